//! The built-in handlers.
//!
//! Each runs in a connection process of its own, on a blocking stream socket, TCP or Unix, and ends when the client has
//! gone. How the client goes, by a close, a reset or silence, is its own business and no error.

mod chargen;
mod clock;
mod stream;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags, Shutdown};

use crate::client::Traffic;
use crate::exit;
use crate::pace::LINGER_TIME;
use crate::sys::time::Monotonic;

/// Serves a client until it is gone.
pub(crate) type Handler = fn(&ClientStream<'_>) -> nix::Result<()>;

/// The handlers by name. Nobody else knows which there are.
const REGISTRY: [(&str, Handler); 5] = [
    ("echo", stream::echo),
    ("discard", stream::discard),
    ("chargen", chargen::serve),
    ("daytime", clock::daytime),
    ("time", clock::time),
];

/// The names that a configuration may give.
pub(crate) static NAMES: [&str; REGISTRY.len()] = {
    let mut names = [""; REGISTRY.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = REGISTRY[index].0;
        index += 1;
    }
    names
};

/// The handler with this name.
pub(crate) fn find(name: &str) -> Option<Handler> {
    REGISTRY.iter().find(|(known, _)| *known == name).map(|(_, handler)| *handler)
}

/// Serves one client to the end and closes the connection: at once, since when this process exits its memory comes
/// first. The result is the exit code of this process, and what was moved.
pub(crate) fn serve(handler: Handler, connection: OwnedFd) -> (u8, Traffic) {
    let served = serve_on(handler, connection.as_fd());
    drop(connection);
    served
}

/// The same, for whoever closes the connection itself.
pub(crate) fn serve_on(handler: Handler, connection: BorrowedFd<'_>) -> (u8, Traffic) {
    let client = ClientStream { socket: connection, traffic: Cell::default() };
    let code = match handler(&client) {
        Ok(()) => exit::OK,
        Err(error) if client_is_gone(error) => exit::OK,
        Err(_) => exit::OS,
    };
    (code, client.traffic.get())
}

/// What tcp(7), ip(7) and unix(7) report when the client or the way to it is no longer there.
fn client_is_gone(error: Errno) -> bool {
    matches!(
        error,
        Errno::EPIPE
            | Errno::ECONNRESET
            | Errno::ECONNABORTED
            | Errno::ENOTCONN
            | Errno::ETIMEDOUT
            | Errno::EHOSTUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETUNREACH
            | Errno::ENETDOWN
    )
}

/// A connected stream socket; interrupted calls are repeated, and a client that is gone is never a SIGPIPE.
pub(crate) struct ClientStream<'a> {
    socket: BorrowedFd<'a>,
    traffic: Cell<Traffic>,
}

impl ClientStream<'_> {
    /// Waits for bytes; 0 is the client's end of stream.
    fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        self.receive_with(buffer, MsgFlags::empty())
    }

    fn receive_with(&self, buffer: &mut [u8], flags: MsgFlags) -> nix::Result<usize> {
        let length = uninterrupted(|| socket::recv(self.socket.as_raw_fd(), buffer, flags))?;
        let traffic = self.traffic.get();
        self.traffic.set(Traffic { received: traffic.received + length as u64, ..traffic });
        Ok(length)
    }

    /// Sends all of it, waiting for the client as long as it takes.
    fn send(&self, mut bytes: &[u8]) -> nix::Result<()> {
        while !bytes.is_empty() {
            bytes = &bytes[self.send_with(bytes, MsgFlags::empty())?..];
        }
        Ok(())
    }

    fn send_with(&self, bytes: &[u8], flags: MsgFlags) -> nix::Result<usize> {
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        let length = uninterrupted(|| socket::send(self.socket.as_raw_fd(), bytes, flags))?;
        let traffic = self.traffic.get();
        self.traffic.set(Traffic { sent: traffic.sent + length as u64, ..traffic });
        Ok(length)
    }

    /// Waits for one of `events`, an error or a hang-up; nothing came if the answer is empty.
    fn wait(&self, events: PollFlags, timeout: PollTimeout) -> nix::Result<PollFlags> {
        let mut fds = [PollFd::new(self.as_fd(), events)];
        uninterrupted(|| poll(&mut fds, timeout))?;
        Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
    }

    /// Ends our half, then throws away what the client sends until it ends its half too, for [`LINGER_TIME`] at most.
    ///
    /// A close with input unread, or input that comes after it, makes the kernel answer with RST, and RST may overtake
    /// the answer that is still on its way (RFC 1122, 4.2.2.13; RFC 2525, 2.17). `SO_LINGER` does not help: it waits
    /// for acknowledgements, not for input. A client that reads to the end and closes costs us one round trip.
    fn finish(&self) -> nix::Result<()> {
        socket::shutdown(self.socket.as_raw_fd(), Shutdown::Write)?;
        let deadline = Monotonic::now() + LINGER_TIME;
        let mut scrap = [0; 1024];
        loop {
            let left = deadline - Monotonic::now();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if left.is_zero() || self.wait(PollFlags::POLLIN, timeout)?.is_empty() {
                return Ok(());
            }
            match self.receive_with(&mut scrap, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Ok(()),
                // poll(2) may be wrong.
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for ClientStream<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket
    }
}

fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}
