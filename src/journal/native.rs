//! journald's native protocol, <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;

use super::datagram::{Datagram, SendError};
use super::record::Entry;
use super::{Buffer, Level};
use crate::sys::memory;

/// So much is sent at once. journald's queue is counted in datagrams, and each costs it and us a system call.
pub(super) const ENOUGH: usize = 32 << 10;

/// The journal.
pub(super) struct Native {
    socket: Datagram,
    /// As whose records they are known.
    name: &'static str,
}

impl Native {
    pub(super) fn open(path: &Path, name: &'static str) -> io::Result<Self> {
        Ok(Native { socket: Datagram::open(path)?, name })
    }

    pub(super) fn path(&self) -> &Path {
        self.socket.path()
    }

    pub(super) fn send(&self, entry: &Entry<'_>, buffer: &mut Buffer) -> Result<(), SendError> {
        buffer.clear();
        self.format(entry, buffer);
        self.send_text(buffer)
    }

    /// Appends an entry; what stands there already is another one, or several.
    pub(super) fn format(&self, entry: &Entry<'_>, out: &mut Buffer) {
        if !out.is_empty() {
            // Between entries of one datagram, as in the export format.
            out.push(b'\n');
        }
        format(entry, self.name, out);
    }

    /// Sends entries that were formatted: all or none.
    pub(super) fn send_text(&self, text: &[u8]) -> Result<(), SendError> {
        match self.socket.send(text) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                // journald maps no file that somebody can still change.
                self.socket.send_descriptor(&memory::sealed(c"preforkd-record", text)?)?;
            }
            other => other?,
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn shrink(&self) {
        self.socket.shrink();
    }
}

pub(super) fn format(entry: &Entry<'_>, name: &str, out: &mut Buffer) {
    field(out, "MESSAGE", |out| entry.message(out, Some("\n")));
    field(out, "PRIORITY", |out| out.push(b'0' + entry.level as u8));
    field(out, "SYSLOG_IDENTIFIER", |out| out.extend_from_slice(name.as_bytes()));
    if let Some(id) = entry.id {
        field(out, "MESSAGE_ID", |out| {
            out.extend_from_slice(id.hex().as_bytes());
        });
    }
    entry.fields(&mut |name, value: fmt::Arguments<'_>| {
        field(out, name, |out| drop(out.write_fmt(value)));
    });
}

/// The message of a connection's entry, which is one line, and whether it is a warning.
pub(super) fn message_of(entry: &[u8]) -> (Level, Cow<'_, str>) {
    let mut lines = entry.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let message = lines.next().and_then(|line| line.strip_prefix(b"MESSAGE=")).unwrap_or_default();
    let is_warning = lines.next() == Some(b"PRIORITY=4");
    (if is_warning { Level::Warning } else { Level::Info }, String::from_utf8_lossy(message))
}

/// Appends `NAME=value`, or the form with a length if the value has a newline.
fn field(out: &mut Buffer, name: &str, value: impl FnOnce(&mut Buffer)) {
    out.extend_from_slice(name.as_bytes());
    let separator = out.len();
    out.push(b'=');
    value(out);
    let length = out.len() - separator - 1;
    if out[separator + 1..].contains(&b'\n') {
        out[separator] = b'\n';
        let prefix = (length as u64).to_le_bytes();
        out.splice(separator + 1..separator + 1, prefix);
    }
    out.push(b'\n');
}
