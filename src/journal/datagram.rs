//! Datagrams to a log daemon that may be slow, full, away, or another one than a moment ago.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::sys::message;

/// Why a record was not taken.
#[derive(Debug)]
pub(super) enum SendError {
    /// Who takes records is there but cannot keep up, or memory ran out: the record is lost.
    Full,
    /// Nobody is there.
    Away(io::Error),
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(
                libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EMSGSIZE | libc::EMFILE | libc::ENFILE,
            ) => SendError::Full,
            _ => SendError::Away(error),
        }
    }
}

/// A socket whose datagrams go to whoever is at a path: one that is connected stays with the daemon that it found first, and is dead after
/// its restart (rust-syslog issue 21, tracing issue 1758).
///
/// It is connected all the same, for a process that has been root and is not any more: where the path lets in nobody else, it goes on
/// with the daemon that it found then.
pub(super) struct Datagram {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Datagram {
    /// Makes the socket; nobody need be at `path` yet.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // Room for a burst, as sd-journal does.
        message::set_room(socket.as_fd(), 8 << 20);
        let _ = socket.connect(path);
        Ok(Datagram { socket, path: path.to_owned() })
    }

    /// Where the datagrams go.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends or fails, at once.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send_to(datagram, &self.path) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return self.socket.send(datagram).map(drop).map_err(|of_found| match of_found.kind() {
                        io::ErrorKind::NotConnected | io::ErrorKind::ConnectionRefused => error,
                        // It is there, and full, or the record is too long.
                        _ => of_found,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends an empty datagram that carries a descriptor.
    pub(super) fn send_descriptor(&self, descriptor: &OwnedFd) -> io::Result<()> {
        message::send_copy_to(self.socket.as_fd(), &self.path, descriptor.as_fd())
    }

    #[cfg(test)]
    pub(super) fn shrink(&self) {
        message::set_room(self.socket.as_fd(), 0);
    }
}
