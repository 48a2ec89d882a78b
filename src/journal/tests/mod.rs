//! The log against real sockets and pipes.

mod catalog;
mod content;
mod delivery;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::*;
use crate::admission::Deadline;
use crate::client::ConnectionId;
use crate::sys::wait::Ending;

const ID: ConnectionId = ConnectionId { run: 0x5f3a1c, worker: 7, number: 123 };

/// A machine with a journal, a syslog daemon and a stderr of its own.
struct FakeMachine {
    _directory: tempfile::TempDir,
    journal: PathBuf,
    syslog: PathBuf,
    stderr: OwnedFd,
    stderr_reader: File,
}

impl FakeMachine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (reader, stderr) = nix::unistd::pipe().unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        FakeMachine {
            journal: directory.path().join("journal"),
            syslog: directory.path().join("log"),
            _directory: directory,
            stderr,
            stderr_reader: reader.into(),
        }
    }

    fn listen(path: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    fn log(&self, target: LogTarget, level: Level, journal_stream: Option<&str>) -> Log {
        let places = Places {
            journal: &self.journal,
            syslog: &self.syslog,
            stderr: self.stderr.as_fd(),
            journal_stream,
        };
        Log::open_at(crate::journal::LogSettings { target, level }, "preforkd", &places)
    }

    /// What `$JOURNAL_STREAM` would be if this stderr went to the journal.
    fn stream(&self) -> String {
        let stat = nix::sys::stat::fstat(&self.stderr).unwrap();
        format!("{}:{}", stat.st_dev, stat.st_ino)
    }

    fn stderr(&self) -> String {
        let mut text = Vec::new();
        let _ = (&self.stderr_reader).read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    }
}

fn receive(socket: &UnixDatagram) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1 << 20];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// Reads one entry of the native protocol.
fn parse(mut entry: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|&byte| byte == b'\n').unwrap();
        let (line, rest) = (&entry[..end], &entry[end + 1..]);
        let (name, value) = match line.iter().position(|&byte| byte == b'=') {
            Some(equals) => {
                entry = rest;
                (&line[..equals], &line[equals + 1..])
            }
            None => {
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                assert_eq!(rest[8 + length], b'\n');
                entry = &rest[9 + length..];
                (line, &rest[8..8 + length])
            }
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert!(fields.insert(text(name), text(value)).is_none(), "a field twice");
    }
    fields
}

fn connection(exit: Exit<'_>) -> ConnectionRecord<'_> {
    ConnectionRecord {
        service: "echo",
        id: ID,
        pid: 812,
        remote: Remote::Ip("192.0.2.1:51234".parse().unwrap()),
        duration: Duration::from_micros(1_204_567),
        exit,
        bytes: None,
        cpu: Duration::from_micros(1_900),
        max_rss_kib: 1340,
        usage: None,
        warm: false,
    }
}
