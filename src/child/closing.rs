//! The end of a connection whose server has ended: it is closed when its client has all that was written.
//!
//! A close with input unread, or input that comes after it, makes the kernel throw away what is still on its way and
//! answer with RST (RFC 1122, 4.2.2.13; RFC 2525, 2.17). So first our half is ended, and what the client sends is thrown
//! away, until it has acknowledged everything; and until it hangs up, if it has sent what nobody reads. Who has nothing
//! to say, and has everything, is not waited for. All of it has bounds, in time and in bytes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::client::Traffic;
use crate::pace::LINGER_TIME;
use crate::sys::fd::{self, PollFlags};
use crate::sys::stream::{self, Rest};
use crate::sys::tcp_info::TcpInfo;
use crate::sys::time::Monotonic;

/// How long a client may acknowledge nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a close takes at most.
pub(crate) const LONGEST_CLOSE: Duration = Duration::from_secs(30);

/// How much is thrown away at most.
const MOST_DISCARDED: u64 = 16 << 20;

/// How much of it before others have their turn.
const DISCARDED_AT_ONCE: usize = 256 << 10;

/// The pauses between looks, where the kernel does not say that a client has acknowledged.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How far the close of one connection has come.
#[derive(Debug)]
pub(crate) struct Closing {
    /// At the latest.
    until: Monotonic,
    /// Without news of the client.
    patient_until: Monotonic,
    discarded: u64,
    acked: u64,
    has_all: bool,
    /// What the kernel has counted; `None` if this is no TCP.
    counted: Option<Traffic>,
}

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It may be closed.
    Over,
    /// It is to be looked at again when there is news, or at this time.
    Later(Monotonic),
}

impl Closing {
    /// One that takes until then at the latest. Nothing has been done yet.
    pub(crate) fn new(now: Monotonic, until: Monotonic) -> Self {
        let patient_until = now + PATIENCE;
        Closing { until, patient_until, discarded: 0, acked: 0, has_all: false, counted: None }
    }

    /// Takes until then, if that is earlier.
    pub(crate) fn hurry(&mut self, until: Monotonic) {
        self.until = self.until.min(until);
    }

    /// Bytes from the client, a header's too, and bytes that it has acknowledged.
    pub(crate) fn counted(&self) -> Option<Traffic> {
        self.counted
    }

    /// Throws away what has come, and sees whether the client has everything.
    pub(crate) fn look(&mut self, connection: BorrowedFd<'_>, now: Monotonic) -> Found {
        let (discarded, rest) = stream::discard(connection, DISCARDED_AT_ONCE);
        self.discarded = self.discarded.saturating_add(discarded as u64);
        let info = TcpInfo::of(connection).ok();
        self.counted = info.map(|info| Traffic { received: info.received, sent: info.acked });
        let acked = info.map_or(0, |info| info.acked);
        // What was written to a Unix socket has arrived.
        let has_all = info.is_none_or(|info| info.has_all());
        if has_all && (discarded > 0 || !self.has_all) {
            self.patient_until = now + LINGER_TIME;
        } else if acked > self.acked {
            self.patient_until = now + PATIENCE;
        }
        (self.acked, self.has_all) = (acked, has_all);
        let is_gone = info.is_some_and(|info| info.is_closed);
        let may_be_closed = match rest {
            Rest::More => false,
            Rest::Nothing => has_all && self.discarded == 0,
            Rest::End => has_all,
        };
        let until = self.until.min(self.patient_until);
        if is_gone || may_be_closed || self.discarded >= MOST_DISCARDED || until <= now {
            return Found::Over;
        }
        Found::Later(if rest == Rest::More { now } else { until })
    }
}

/// In the process that has served a connection: closes it. Returns what was moved: of what was `sent`, only what the client
/// has acknowledged.
#[inline]
pub(super) fn close(connection: OwnedFd, header_length: u64, said: Traffic, until: Monotonic) -> Traffic {
    let Ok(info) = TcpInfo::of(connection.as_fd()) else { return said };
    let is_read = info.received.saturating_sub(header_length) <= said.received;
    if info.is_closed || (info.end_has_come && is_read && info.has_all()) {
        return Traffic { sent: info.acked, ..said };
    }
    let counted = finish(connection.as_fd(), until);
    drop(connection);
    counted.map_or(said, |counted| Traffic { sent: counted.sent, ..said })
}

/// Ends our half, and waits until the connection may be closed. What a signal handler may do.
///
/// Never inlined: its frame must not become part of the others', see [`super::handler`].
#[inline(never)]
pub(super) fn finish(connection: BorrowedFd<'_>, until: Monotonic) -> Option<Traffic> {
    let _ = stream::end_sending(connection);
    let now = Monotonic::now();
    let mut closing = Closing::new(now, until.min(now + LONGEST_CLOSE));
    let mut pause = FIRST_PAUSE;
    loop {
        let now = Monotonic::now();
        let Found::Later(at) = closing.look(connection, now) else { return closing.counted() };
        let has_ended = TcpInfo::of(connection).is_ok_and(|info| info.end_has_come);
        let left = (at - now).min(pause);
        // With both halves ended, poll(2) does not wait, although not all is acknowledged.
        if has_ended {
            std::thread::sleep(left);
        } else if fd::poll(connection, PollFlags::POLLIN, Some(left)).is_err() {
            return closing.counted();
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn new() -> Closing {
        let now = Monotonic::now();
        Closing::new(now, now + LONGEST_CLOSE)
    }

    #[test]
    fn who_has_all_and_says_nothing_is_not_waited_for() {
        let (mut client, mut server) = pair();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
        let mut closing = new();
        while closing.look(server.as_fd(), Monotonic::now()) != Found::Over {}
        assert_eq!(closing.counted(), Some(Traffic { received: 0, sent: 6 }));
        let (mut client, mut server) = UnixStream::pair().unwrap();
        server.write_all(b"answer").unwrap();
        assert_eq!(new().look(server.as_fd(), Monotonic::now()), Found::Over);
        client.read_exact(&mut [0; 6]).unwrap();
    }

    #[test]
    fn who_has_sent_what_nobody_reads_is_waited_for() {
        let (mut client, mut server) = pair();
        client.write_all(&[7; 100_000]).unwrap();
        server.write_all(b"answer").unwrap();
        stream::end_sending(server.as_fd()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let mut closing = new();
        while closing.counted().map_or(0, |counted| counted.received) < 100_000 {
            assert_ne!(closing.look(server.as_fd(), Monotonic::now()), Found::Over);
        }
        let late = Monotonic::now() + LINGER_TIME;
        assert_ne!(closing.look(server.as_fd(), Monotonic::now()), Found::Over);
        client.shutdown(Shutdown::Write).unwrap();
        while closing.look(server.as_fd(), Monotonic::now()) != Found::Over {}
        assert!(Monotonic::now() < late);
        assert_eq!(closing.counted(), Some(Traffic { received: 100_000, sent: 6 }));
    }

    #[test]
    fn who_takes_nothing_or_sends_without_end_is_given_up() {
        let (client, server) = pair();
        server.set_nonblocking(true).unwrap();
        while (&server).write(&[7; 65536]).is_ok() {}
        let (mut closing, now) = (new(), Monotonic::now());
        let found = |closing: &mut Closing, later| closing.look(server.as_fd(), now + later);
        let Found::Later(at) = found(&mut closing, Duration::ZERO) else { panic!("it has not all") };
        // The first look may have seen it acknowledge something.
        assert!(at <= now + 2 * PATIENCE);
        assert_eq!(found(&mut closing, 2 * PATIENCE), Found::Over);
        assert!(closing.counted().unwrap().sent > 0);
        drop(client);

        let (mut client, server) = pair();
        let sender = std::thread::spawn(move || while client.write(&[7; 65536]).is_ok() {});
        let mut closing = new();
        while closing.look(server.as_fd(), Monotonic::now()) != Found::Over {}
        drop(server);
        sender.join().unwrap();
    }

    #[test]
    fn a_process_waits_until_its_client_has_all() {
        let (mut client, mut server) = pair();
        client.write_all(&[7; 1000]).unwrap();
        server.write_all(b"answer").unwrap();
        let reader = std::thread::spawn(move || {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        });
        let said = Traffic { received: 0, sent: 6 };
        assert_eq!(close(server.into(), 0, said, Monotonic::NEVER), said);
        assert_eq!(reader.join().unwrap(), "answer");
    }
}
