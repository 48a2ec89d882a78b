//! journald's native protocol, <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;

use super::Buffer;
use super::datagram::{Datagram, SendError};
use super::record::Entry;
use crate::sys::memory;

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
        format(entry, self.name, buffer);
        match self.socket.send(buffer) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                // journald maps no file that somebody can still change.
                self.socket.send_descriptor(&memory::sealed(c"preforkd-record", buffer)?)?;
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
