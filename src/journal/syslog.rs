//! Syslog in the form of RFC 5424.
//!
//! The `syslog` crate formats. It does not send: its transports stay with the daemon that they found first.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use syslog::{Facility, Formatter5424, LogFormat as _, Severity};

use super::datagram::{Datagram, SendError};
use super::record::Entry;
use super::{Buffer, Level};
use crate::sys::process;

/// The name of our structured data; 32473 is the enterprise number for whoever has none (RFC 5612).
const STRUCTURED_DATA: &str = "preforkd@32473";

/// A syslog daemon on this machine.
pub(super) struct Syslog {
    socket: Datagram,
    formatter: Formatter5424,
    line: Vec<u8>,
}

impl Syslog {
    pub(super) fn open(path: &Path, name: &'static str) -> io::Result<Self> {
        let formatter = Formatter5424 {
            facility: Facility::LOG_DAEMON,
            hostname: Some(hostname()),
            process: name.to_owned(),
            pid: 0,
        };
        Ok(Syslog { socket: Datagram::open(path)?, formatter, line: Vec::new() })
    }

    pub(super) fn path(&self) -> &Path {
        self.socket.path()
    }

    pub(super) fn send(&mut self, entry: &Entry<'_>, buffer: &mut Buffer) -> Result<(), SendError> {
        buffer.clear();
        // RFC 5424 allows newlines, many a daemon and reader of its files does not.
        entry.message(buffer, None);
        let message = String::from_utf8_lossy(buffer);

        let mut fields = BTreeMap::new();
        entry.fields(&mut |name, value| drop(fields.insert(name.to_owned(), value.to_string())));
        let mut data = BTreeMap::new();
        if !fields.is_empty() {
            data.insert(STRUCTURED_DATA.to_owned(), fields);
        }

        // Asked each time: a fork would make a remembered one wrong.
        self.formatter.pid = std::process::id();
        let id = entry.id.map_or(0, super::MessageId::number);
        self.line.clear();
        if self.formatter.format(&mut self.line, severity(entry.level), (id, data, message)).is_err() {
            return Err(SendError::Full);
        }
        Ok(self.socket.send(&self.line)?)
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Error => Severity::LOG_ERR,
        Level::Warning => Severity::LOG_WARNING,
        Level::Notice => Severity::LOG_NOTICE,
        Level::Info => Severity::LOG_INFO,
        Level::Debug => Severity::LOG_DEBUG,
    }
}

/// The name that the kernel has: no look-up, and printable ASCII as the RFC wants.
fn hostname() -> String {
    let name = process::host_name();
    let name: String = name.to_string_lossy().chars().filter(char::is_ascii_graphic).take(255).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}
