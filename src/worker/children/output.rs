//! What a program writes to stderr, cut into lines.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sys::fd::{self, OwnFds};
use crate::sys::time::Monotonic;

/// A longer line is cut here.
const LONGEST_LINE: usize = 8 * 1024;

/// How much is read, and how many lines are handed on, before others have their turn.
const BYTES_AT_ONCE: usize = 32 * 1024;
const LINES_AT_ONCE: u32 = 256;

/// So many lines of a connection become records in each window; the rest is counted. One program must not have journald
/// drop what all others say, which it does beyond `LogRateLimitBurst=`.
pub(super) const LINES_IN_WINDOW: u32 = 1000;
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// The reading end of a pipe, and the line that is not complete yet.
#[derive(Debug)]
pub(crate) struct Output {
    pipe: File,
    partial: Vec<u8>,
    /// When the window of these lines is over.
    until: Monotonic,
    lines: u32,
    left_out: u64,
}

/// What a program has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Line(&'a [u8]),
    /// So many lines that are not handed on.
    LeftOut(u64),
}

/// What a reading left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PipeState {
    /// There is more to read now.
    More,
    /// Nothing for now; the program, or somebody who inherited from it, can still write.
    Empty,
    /// Nobody can write any more.
    Closed,
}

/// Makes the pipes that programs have as their stderr.
#[derive(Debug)]
pub(crate) struct OutputPipes {
    /// `None` without /proc; then a pipe has to do as it is.
    own: Option<OwnFds>,
}

impl OutputPipes {
    pub(crate) fn new() -> Self {
        OutputPipes { own: OwnFds::open().ok() }
    }

    /// A pipe: the end to read, and the stderr of a program.
    ///
    /// That stderr can be read as well, which Linux allows of a pipe that is opened anew, fifo(7): so it has a reader for as
    /// long as it is open, and a program whose worker has died gets no SIGPIPE. Once the pipe is full it waits.
    pub(crate) fn make(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = fd::pipe()?;
        let both_ways = self.own.as_ref().and_then(|own| own.open_both_ways(write.as_fd()).ok());
        Ok((read, both_ways.unwrap_or(write)))
    }
}

impl Output {
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        let until = Monotonic::from_nanos(0);
        Output { pipe: pipe.into(), partial: Vec::new(), until, lines: 0, left_out: 0 }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads what is there, up to a bound, and hands on complete lines.
    pub(super) fn read(&mut self, now: Monotonic, say: &mut impl FnMut(Said<'_>)) -> PipeState {
        let mut buffer = [0; 4096];
        let (mut total, before) = (0, self.lines);
        while total < BYTES_AT_ONCE && self.lines.wrapping_sub(before) < LINES_AT_ONCE {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    self.flush(now, say);
                    self.report_left_out(say);
                    return PipeState::Closed;
                }
                Ok(length) => {
                    total += length;
                    self.take(buffer.get(..length).unwrap_or_default(), now, say);
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
    pub(super) fn drain(&mut self, now: Monotonic, say: &mut impl FnMut(Said<'_>)) {
        // A pipe holds 64 KiB unless somebody made it larger; a descendant that never stops must not hold us up.
        for _ in 0..16 {
            if self.read(now, say) != PipeState::More {
                break;
            }
        }
        self.flush(now, say);
        self.report_left_out(say);
    }

    fn take(&mut self, mut bytes: &[u8], now: Monotonic, say: &mut impl FnMut(Said<'_>)) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            if self.partial.is_empty() {
                self.hand_on(head, now, say);
            } else {
                self.partial.extend_from_slice(head);
                self.flush(now, say);
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() >= LONGEST_LINE {
            self.flush(now, say);
        }
    }

    fn flush(&mut self, now: Monotonic, say: &mut impl FnMut(Said<'_>)) {
        if !self.partial.is_empty() {
            let line = std::mem::take(&mut self.partial);
            self.hand_on(&line, now, say);
            self.partial = line;
            self.partial.clear();
        }
    }

    fn hand_on(&mut self, line: &[u8], now: Monotonic, say: &mut impl FnMut(Said<'_>)) {
        if self.until <= now {
            self.report_left_out(say);
            (self.until, self.lines) = (now + WINDOW, 0);
        }
        if self.lines < LINES_IN_WINDOW {
            self.lines += 1;
            say(Said::Line(line));
        } else {
            self.left_out += 1;
        }
    }

    fn report_left_out(&mut self, say: &mut impl FnMut(Said<'_>)) {
        if self.left_out > 0 {
            say(Said::LeftOut(std::mem::take(&mut self.left_out)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const NOW: Monotonic = Monotonic::from_nanos(1);

    fn shown(said: Said<'_>) -> String {
        match said {
            Said::Line(line) => String::from_utf8_lossy(line).into_owned(),
            Said::LeftOut(count) => format!("{count} left out"),
        }
    }

    fn lines_of(writes: &[&[u8]]) -> Vec<String> {
        let (read, write) = crate::sys::fd::pipe().unwrap();
        let (mut output, mut pipe) = (Output::new(read), File::from(write));
        let mut lines = Vec::new();
        for bytes in writes {
            pipe.write_all(bytes).unwrap();
            output.read(NOW, &mut |said| lines.push(shown(said)));
        }
        output.drain(NOW, &mut |said| lines.push(shown(said)));
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

    #[test]
    fn who_says_too_much_is_cut_short_for_a_while_and_the_rest_is_counted() {
        let (read, write) = crate::sys::fd::pipe().unwrap();
        let (mut output, mut pipe) = (Output::new(read), File::from(write));
        let mut said = Vec::new();
        let mut write_and_read = |now: Monotonic, lines: usize| {
            for _ in 0..lines / 500 {
                pipe.write_all(&b"x\n".repeat(500)).unwrap();
                while output.read(now, &mut |line| said.push(shown(line))) == PipeState::More {}
            }
        };
        write_and_read(NOW, 3000);
        write_and_read(NOW + WINDOW, 500);
        drop(pipe);
        output.drain(NOW + WINDOW, &mut |line| said.push(shown(line)));
        let left_out: Vec<_> = said.iter().filter(|line| *line != "x").collect();
        assert_eq!(left_out, ["2000 left out"]);
        assert_eq!(said.len(), LINES_IN_WINDOW as usize + 1 + 500);
    }
}
