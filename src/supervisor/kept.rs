//! Descriptors that stay open when one program leaves this process to the next.

use std::io;
use std::os::fd::BorrowedFd;

use crate::sys::fd::FdNumber;

/// What is saved names something that is not there.
pub(super) fn contradiction() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the saved state contradicts itself")
}

/// The descriptors that stay open for the next program.
#[derive(Debug, Default)]
pub(super) struct Kept<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Kept<'a> {
    /// Keeps one more; it is found by this number.
    pub(super) fn keep(&mut self, fd: BorrowedFd<'a>) -> FdNumber {
        self.0.push(fd);
        FdNumber::of(fd)
    }

    pub(super) fn descriptors(&self) -> &[BorrowedFd<'a>] {
        &self.0
    }
}
