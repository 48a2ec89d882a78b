//! Records on standard error.
//!
//! | stderr is | a record looks like |
//! |---|---|
//! | a stream to the journal, by `$JOURNAL_STREAM` | `<4>echo: …`, for `SyslogLevelPrefix=` of systemd.exec(5) |
//! | a regular file | `2026-01-31T12:00:00.000Z warning: echo: …`, as nobody else adds the time |
//! | a terminal, or a pipe to anything else | `warning: echo: …` |
//!
//! `$INVOCATION_ID` says nothing about stderr: every shell below a user's service has it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};

use time::macros::format_description;

use super::datagram::SendError;
use super::record::Entry;
use super::{Buffer, Level};
use crate::sys::{fd, stream};

/// So much is written at once: with the next record it is less than PIPE_BUF (pipe(7)), which no other writer comes between, and
/// which is taken whole or not at all.
pub(super) const ENOUGH: usize = 3 << 10;

/// How to write without waiting, and without making fd 2 non-blocking for everybody who shares it: the flag belongs
/// to the open file description, which may be a shell's terminal.
enum Way {
    /// `MSG_DONTWAIT` for each record.
    Socket,
    /// Opened again, so the description is ours.
    Reopened,
    /// It could not be opened again (after a change of user, or a pipe without a reader): ask poll(2), then write.
    Shared,
}

/// What stands before a record.
enum Form {
    Prefixed,
    Timed,
    Plain,
}

/// Standard error.
pub(super) struct Stderr {
    file: Option<OwnedFd>,
    way: Way,
    form: Form,
    /// The last record was only written in part, without its newline.
    torn: bool,
}

impl Stderr {
    /// `journal` says that journald reads what is written to `fd`.
    pub(super) fn open(fd: BorrowedFd<'_>, journal: bool) -> Self {
        let Ok(shared) = fd.try_clone_to_owned() else {
            return Stderr { file: None, way: Way::Shared, form: Form::Plain, torn: false };
        };
        let shared = File::from(shared);
        let kind = shared.metadata().ok().map(|metadata| metadata.file_type());
        let form = match kind {
            _ if journal => Form::Prefixed,
            Some(kind) if kind.is_file() => Form::Timed,
            _ => Form::Plain,
        };
        if kind.is_some_and(|kind| kind.is_file()) {
            // Stdout may be the same, and whoever has started us writes there after us: at an offset that does not move with
            // ours, and so over our lines. It fails for nothing that is open.
            let _ = fd::append(fd);
        }
        let (file, way) = if kind.is_some_and(|kind| kind.is_socket()) {
            (shared, Way::Socket)
        } else {
            match reopen(fd) {
                Ok(own) => (own, Way::Reopened),
                Err(_) => (shared, Way::Shared),
            }
        };
        Stderr { file: Some(file.into()), way, form, torn: false }
    }

    /// Writes a record with one system call, or not at all if that would wait.
    pub(super) fn send(&mut self, entry: &Entry<'_>, buffer: &mut Buffer) -> Result<(), SendError> {
        buffer.clear();
        self.format(entry, buffer);
        self.send_all(buffer).1
    }

    /// Writes records that were formatted; returns how many bytes of them were.
    pub(super) fn send_text(&mut self, text: &[u8]) -> usize {
        self.send_all(text).0
    }

    /// How much of it was written, and whether it was all.
    fn send_all(&mut self, text: &[u8]) -> (usize, Result<(), SendError>) {
        if self.torn {
            if let (_, Err(error)) = self.push(b"\n") {
                return (0, Err(error));
            }
        }
        let (written, result) = self.push(text);
        self.torn = !matches!(text.get(..written), Some([] | [.., b'\n']));
        (written, result)
    }

    fn push(&self, text: &[u8]) -> (usize, Result<(), SendError>) {
        let mut rest = text;
        while !rest.is_empty() {
            match self.write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (text.len() - rest.len(), Err(error.into())),
            }
        }
        (text.len(), Ok(()))
    }

    /// Appends a record.
    pub(super) fn format(&self, entry: &Entry<'_>, out: &mut Buffer) {
        self.begin(entry.level, out);
        entry.message(
            out,
            Some(match self.form {
                Form::Prefixed => marks(entry.level).1,
                Form::Timed | Form::Plain => "\n  ",
            }),
        );
        out.push(b'\n');
    }

    /// Appends what stands before a record.
    fn begin(&self, level: Level, out: &mut Buffer) {
        let (prefix, _, word) = marks(level);
        match self.form {
            Form::Prefixed => out.extend_from_slice(prefix.as_bytes()),
            Form::Timed | Form::Plain => {
                if let Form::Timed = self.form {
                    let now = time::OffsetDateTime::now_utc();
                    let form = format_description!(
                        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z "
                    );
                    let _ = now.format_into(out, form);
                }
                out.extend_from_slice(word.as_bytes());
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let file = self.file.as_ref().map(AsFd::as_fd);
        let file = file.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        let written = match self.way {
            Way::Socket => stream::send_now(file, bytes)?,
            Way::Reopened => fd::write(file, bytes)?,
            Way::Shared => fd::write_now(file, bytes)?,
        };
        if written == 0 { Err(io::Error::from_raw_os_error(libc::EAGAIN)) } else { Ok(written) }
    }
}

/// `O_NOCTTY`: a terminal must not become ours. `O_APPEND`: our offset is our own, and others write there too.
fn reopen(fd: BorrowedFd<'_>) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Whether `$JOURNAL_STREAM`, "device:inode", is this descriptor (systemd.exec(5)).
pub(super) fn is_journal(fd: BorrowedFd<'_>, journal_stream: Option<&str>) -> bool {
    let Some((device, inode)) = journal_stream.and_then(|stream| stream.split_once(':')) else {
        return false;
    };
    let metadata = fd.try_clone_to_owned().and_then(|own| File::from(own).metadata());
    metadata.is_ok_and(|file| device.parse() == Ok(file.dev()) && inode.parse() == Ok(file.ino()))
}

/// The prefix of a record, what joins its lines so that none passes for another record, and the word for people.
fn marks(level: Level) -> (&'static str, &'static str, &'static str) {
    match level {
        Level::Error => ("<3>", "\n<3>  ", "error: "),
        Level::Warning => ("<4>", "\n<4>  ", "warning: "),
        Level::Notice => ("<5>", "\n<5>  ", ""),
        Level::Info => ("<6>", "\n<6>  ", ""),
        Level::Debug => ("<7>", "\n<7>  ", "debug: "),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::journal::record::Body;
    use crate::sys::dontfork::DontForkAlloc;

    fn send_text(stderr: &mut Stderr, text: &str) -> Result<(), SendError> {
        stderr.send(
            &Entry {
                level: Level::Warning,
                id: None,
                service: Some("echo"),
                body: Body::Event(format_args!("{text}")),
            },
            &mut Buffer::new_in(DontForkAlloc::new()),
        )
    }

    #[test]
    fn a_file_gets_the_time_and_is_appended_to() {
        let mut file = tempfile::tempfile().unwrap();
        let mut stderr = Stderr::open(file.as_fd(), false);
        send_text(&mut stderr, "one").unwrap();
        send_text(&mut stderr, "two\nlines").unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let (time, rest) = lines[0].split_once(' ').unwrap();
        assert_eq!(rest, "warning: echo: one");
        assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z'), "{time}");
        assert!(lines[1].ends_with("Z warning: echo: two"));
        assert_eq!(lines[2], "  lines");
    }

    #[test]
    fn a_full_stream_socket_is_not_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut stderr = Stderr::open(ours.as_fd(), true);
        assert!(matches!(stderr.way, Way::Socket));
        let text = "x".repeat(10_000);
        while send_text(&mut stderr, &text).is_ok() {}

        // Whether or not the last record was torn, the next one begins a line.
        theirs.set_nonblocking(true).unwrap();
        let mut seen = Vec::new();
        let _ = theirs.read_to_end(&mut seen);
        send_text(&mut stderr, "after").unwrap();
        let _ = theirs.read_to_end(&mut seen);
        assert!(String::from_utf8(seen).unwrap().ends_with("\n<4>echo: after\n"));

        drop(theirs);
        assert!(send_text(&mut stderr, "nobody").is_err());
    }

    #[test]
    fn a_full_pipe_that_cannot_be_reopened_is_not_waited_for() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut stderr = Stderr::open(writer.as_fd(), false);
        stderr.way = Way::Shared;
        stderr.file = Some(writer);
        let text = "x".repeat(5_000);
        while send_text(&mut stderr, &text).is_ok() {}

        let mut seen = vec![0; 1 << 20];
        let first = nix::unistd::read(&reader, &mut seen).unwrap();
        assert!(first > 5_000);
        send_text(&mut stderr, "after").unwrap();
        drop(stderr);
        let rest = nix::unistd::read(&reader, &mut seen[first..]).unwrap();
        assert!(seen[..first + rest].ends_with(b"\nwarning: echo: after\n"));
    }
}
