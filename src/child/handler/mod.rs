//! The built-in handlers.
//!
//! Each runs in a connection process of its own, on a blocking stream socket, TCP or Unix, and ends when the client has
//! gone. How the client goes, by a close, a reset or silence, is its own business and no error.

mod chargen;
mod clock;
mod echo;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::client::Traffic;
use crate::exit;
use crate::pace::LINGER_TIME;
use crate::sys::fd::{self, PollFlags};
use crate::sys::stream;
use crate::sys::time::Monotonic;

/// Serves a client until it is gone.
pub(crate) type Handler = fn(&ClientStream<'_>) -> io::Result<()>;

/// The handlers by name. Nobody else knows which there are.
const REGISTRY: [(&str, Handler); 5] = [
    ("echo", echo::echo),
    ("discard", echo::discard),
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

/// Serves one client to the end, with its progress for whoever looks at it. The result is the exit code of this process, and
/// what was moved.
pub(crate) fn serve(handler: Handler, connection: BorrowedFd<'_>, progress: &Progress) -> (u8, Traffic) {
    let client = ClientStream { socket: connection, progress };
    let code = match handler(&client) {
        Ok(()) => exit::OK,
        Err(error) if stream::is_gone(&error) => exit::OK,
        Err(_) => exit::OS,
    };
    (code, progress.traffic())
}

/// What has been moved so far. A signal handler of this process may read it at any time.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    received: AtomicU64,
    sent: AtomicU64,
    /// When a byte moved last, in nanoseconds; `None` if nobody asks.
    moved: Option<AtomicU64>,
}

impl Progress {
    /// With the time of the last byte, for a connection that began `at`.
    pub(crate) fn timed(at: Monotonic) -> Self {
        Progress { moved: Some(at.nanos().into()), ..Progress::default() }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { received: self.received.load(Relaxed), sent: self.sent.load(Relaxed) }
    }

    /// When a byte moved last, if that is kept.
    pub(crate) fn moved(&self) -> Option<Monotonic> {
        self.moved.as_ref().map(|moved| Monotonic::from_nanos(moved.load(Relaxed)))
    }

    /// Only one adds, so that two steps are enough.
    fn add(&self, count: &AtomicU64, length: usize) {
        count.store(count.load(Relaxed) + length as u64, Relaxed);
        if let Some(moved) = self.moved.as_ref().filter(|_| length > 0) {
            moved.store(Monotonic::now().nanos(), Relaxed);
        }
    }
}

/// A connected stream socket; interrupted calls are repeated, and a client that is gone is never a SIGPIPE.
pub(crate) struct ClientStream<'a> {
    socket: BorrowedFd<'a>,
    progress: &'a Progress,
}

impl ClientStream<'_> {
    /// Waits for bytes; 0 is the client's end of stream.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.count_received(stream::receive(self.socket, buffer))
    }

    /// The same, without waiting.
    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.count_received(stream::receive_now(self.socket, buffer))
    }

    fn count_received(&self, received: io::Result<usize>) -> io::Result<usize> {
        let length = received?;
        self.progress.add(&self.progress.received, length);
        Ok(length)
    }

    /// Sends all of it, waiting for the client as long as it takes.
    fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            bytes = &bytes[self.count_sent(stream::send(self.socket, bytes))?..];
        }
        Ok(())
    }

    /// Sends as much as there is room for now.
    fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        self.count_sent(stream::send_now(self.socket, bytes))
    }

    fn count_sent(&self, sent: io::Result<usize>) -> io::Result<usize> {
        let length = sent?;
        self.progress.add(&self.progress.sent, length);
        Ok(length)
    }

    /// Ends our half, then throws away what the client sends until it ends its half too, for [`LINGER_TIME`] at most.
    ///
    /// A close with input unread, or input that comes after it, makes the kernel answer with RST, and RST may overtake
    /// the answer that is still on its way (RFC 1122, 4.2.2.13; RFC 2525, 2.17). `SO_LINGER` does not help: it waits
    /// for acknowledgements, not for input. A client that reads to the end and closes costs us one round trip.
    fn finish(&self) -> io::Result<()> {
        stream::end_sending(self.socket)?;
        let deadline = Monotonic::now() + LINGER_TIME;
        let mut scrap = [0; 1024];
        loop {
            let left = deadline - Monotonic::now();
            if left.is_zero() || fd::poll(self.socket, PollFlags::POLLIN, Some(left))?.is_empty() {
                return Ok(());
            }
            match self.receive_now(&mut scrap) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // poll(2) may be wrong.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
