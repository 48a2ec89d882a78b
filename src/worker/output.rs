//! What a program writes to stderr, cut into lines.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A longer line is cut here.
const LONGEST_LINE: usize = 8 * 1024;

/// How much is read before others have their turn.
const AT_ONCE: usize = 32 * 1024;

/// The reading end of a pipe, and the line that is not complete yet.
#[derive(Debug)]
pub(super) struct Output {
    pipe: File,
    partial: Vec<u8>,
}

/// What a reading left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PipeState {
    /// There is more to read now.
    More,
    /// Nothing for now; the program, or somebody who inherited from it, can still write.
    Empty,
    /// Nobody can write any more.
    Closed,
}

impl Output {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Output { pipe: pipe.into(), partial: Vec::new() }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads what is there, up to a bound, and hands on complete lines.
    pub(super) fn read(&mut self, line: &mut impl FnMut(&[u8])) -> PipeState {
        let mut buffer = [0; 4096];
        let mut total = 0;
        while total < AT_ONCE {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    self.flush(line);
                    return PipeState::Closed;
                }
                Ok(length) => {
                    total += length;
                    self.take(buffer.get(..length).unwrap_or_default(), line);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return PipeState::Empty,
                Err(_) => return PipeState::Closed,
            }
        }
        PipeState::More
    }

    /// Reads what is left after the process has ended, with the last line even if it has no newline. What a descendant
    /// writes later is lost.
    pub(super) fn drain(&mut self, line: &mut impl FnMut(&[u8])) {
        // A pipe holds 64 KiB unless somebody made it larger; a descendant that never stops must not hold us up.
        for _ in 0..4 {
            if self.read(line) != PipeState::More {
                break;
            }
        }
        self.flush(line);
    }

    fn take(&mut self, mut bytes: &[u8], line: &mut impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            if self.partial.is_empty() {
                line(head);
            } else {
                self.partial.extend_from_slice(head);
                self.flush(line);
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() >= LONGEST_LINE {
            self.flush(line);
        }
    }

    fn flush(&mut self, line: &mut impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(&self.partial);
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn lines_of(writes: &[&[u8]]) -> Vec<String> {
        let (read, write) = crate::sys::fd::pipe().unwrap();
        let (mut output, mut pipe) = (Output::new(read), File::from(write));
        let mut lines = Vec::new();
        for bytes in writes {
            pipe.write_all(bytes).unwrap();
            output.read(&mut |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        }
        output.drain(&mut |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        lines
    }

    #[test]
    fn lines_are_whole_however_they_were_written() {
        assert_eq!(lines_of(&[b"one\ntwo\n"]), ["one", "two"]);
        assert_eq!(lines_of(&[b"o", b"ne", b"\n"]), ["one"]);
        assert_eq!(lines_of(&[b"no newline"]), ["no newline"]);
        assert_eq!(lines_of(&[b"a\n\nb\n"]), ["a", "", "b"]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let long = vec![b'x'; LONGEST_LINE + 4096];
        let lines = lines_of(&[&long]);
        assert_eq!(lines.iter().map(String::len).sum::<usize>(), long.len());
        assert!(lines.iter().all(|line| line.len() <= LONGEST_LINE + 4096));
    }
}
