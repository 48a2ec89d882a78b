//! The descriptors of a process that was forked: which it keeps, and under which numbers it finds them.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};

use super::check;
use super::fd::{put, replace};
use super::fork::{ForkedChild, SharingChild};

/// In a child about to exec: makes the descriptor table exactly 0, 1, 2 as they are, `wanted` from 3 on in this order,
/// and marks everything else closed on exec.
pub(crate) fn hand_over(_: ForkedChild, wanted: &[BorrowedFd<'_>]) -> io::Result<()> {
    let first: RawFd = 3;
    let count = RawFd::try_from(wanted.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let beyond = first + count;
    // Through copies above the target range, so that no dup2 overwrites a source that is still to come.
    let mut copies = Vec::with_capacity(wanted.len());
    for fd in wanted {
        copies.push(fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(beyond))?);
    }
    for (target, copy) in (first..).zip(copies) {
        // SAFETY: dup2 on numbers touches no memory. Who owned `target` is a copy of one of the parent's: `ForkedChild`.
        check(unsafe { libc::dup2(copy, target) })?;
    }
    close_range(beyond, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Two numbers that stay taken, below all that come and go in a worker: where a child that shares the worker's table finds
/// what it needs.
///
/// To copy a table costs a little for each descriptor in it, and to close them again in the child costs more. A worker
/// has two for each program that runs. So a child of [`super::fork::ChildStack::run_until_exec`] shares the table at first,
/// puts its two here, and copies only what lies below: `CLOSE_RANGE_UNSHARE`, close_range(2).
#[derive(Debug)]
pub(crate) struct ReservedFds {
    null: File,
    places: [OwnedFd; 2],
}

impl ReservedFds {
    /// Takes the numbers, when all that lives as long as the worker has its own.
    pub(crate) fn new() -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let places = [null.try_clone()?.into(), null.try_clone()?.into()];
        Ok(ReservedFds { null, places })
    }

    /// In a child that shares its parent's table, while that waits: leaves the parent's table for one of its own, with
    /// copies of these on the desk, in this order, and nothing that comes and goes.
    pub(crate) fn own_table(
        &self,
        child: SharingChild,
        wanted: [Option<BorrowedFd<'_>>; 2],
    ) -> io::Result<(ForkedChild, [Option<BorrowedFd<'_>>; 2])> {
        let mut found = [None; 2];
        for ((place, wanted), found) in self.places.iter().zip(wanted).zip(&mut found) {
            if let Some(wanted) = wanted {
                replace(place.as_fd(), wanted)?;
                *found = Some(place.as_fd());
            }
        }
        let beyond = self.places.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(RawFd::MAX - 1) + 1;
        close_range(beyond, RawFd::MAX, libc::CLOSE_RANGE_UNSHARE)?;
        Ok((child.with_own_table(), found))
    }

    /// In the parent, when the child has gone: the desk must not keep what was on it.
    pub(crate) fn clear(&self) {
        for place in &self.places {
            // It fails for no descriptor that is open.
            let _ = replace(place.as_fd(), self.null.as_fd());
        }
    }
}

/// In a connection process: puts its connection, or what is to be in its place, on fds 0 and 1.
pub(crate) fn standard(fd: BorrowedFd<'_>) -> io::Result<()> {
    (0..=1).try_for_each(|number| put(fd, number))
}

/// In a connection process that execs: puts the connection on fd 3, this on 0, and what 2 is on 1, too; whatever else there
/// is is closed then.
pub(crate) fn standard_and_first(stdin: BorrowedFd<'_>, connection: BorrowedFd<'_>) -> io::Result<()> {
    /// `SD_LISTEN_FDS_START`, sd_listen_fds(3).
    const FIRST: RawFd = 3;
    put(stdin, 0)?;
    // SAFETY: dup2 on numbers touches no memory. The standard descriptors stay open, and nobody owns them.
    check(unsafe { libc::dup2(2, 1) })?;
    put(connection, FIRST)?;
    // If it was there already, it still is to be closed.
    // SAFETY: fcntl with F_SETFD touches no memory.
    check(unsafe { libc::fcntl(FIRST, libc::F_SETFD, 0) })?;
    close_range(FIRST + 1, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// In a connection process: puts something else on fd 2.
pub(crate) fn standard_error(stderr: BorrowedFd<'_>) -> io::Result<()> {
    put(stderr, 2)
}

/// In a connection process that execs: whatever is not 0, 1 or 2 is closed then.
pub(crate) fn close_others_on_exec() -> io::Result<()> {
    close_range(3, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// In a child: closes whatever is not 0, 1, 2, `another` or among `kept`, owners or not. `kept` is in order.
pub(crate) fn close_all_but(
    child: ForkedChild,
    kept: &[BorrowedFd<'_>],
    another: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let another = another.as_slice();
    let number = another.first().map_or(RawFd::MAX, AsRawFd::as_raw_fd);
    let (before, after) = kept.split_at(kept.partition_point(|fd| fd.as_raw_fd() < number));
    close_from(child, 3, &[before, another, after])
}

/// The same, and 0, 1 and 2, which none of `kept` is.
pub(crate) fn close_standard_and_all_but(child: ForkedChild, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    close_from(child, 0, &[kept])
}

fn close_from(_: ForkedChild, mut first: RawFd, kept: &[&[BorrowedFd<'_>]]) -> io::Result<()> {
    let kept = || kept.iter().copied().flatten().map(AsRawFd::as_raw_fd);
    debug_assert!(kept().is_sorted(), "what is kept is in order");
    for fd in kept().filter(|&fd| fd > 2) {
        if first < fd {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX, 0)
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: touches no memory. What it closes for good has no owner but copies of the parent's: see `ForkedChild`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
