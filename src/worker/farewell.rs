//! The last words for clients that get no process: said without waiting for them, and not lost on the way.
//!
//! A client may have sent its request by then. To close on top of it makes the kernel answer with RST, which may overtake
//! the words (RFC 2525, 2.17). So a few of these connections are kept for a moment, and what still comes is thrown away.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::FAREWELLS;
use crate::sys::epoll::{Interest, Poller};

/// How many are kept; the oldest goes when there are more.
const PLACES: usize = 64;

/// How long each is kept.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much of one is thrown away before others have their turn.
const ROUNDS: usize = 8;

/// Those that were told and have not hung up.
#[derive(Debug)]
pub(super) struct Farewells {
    places: Vec<Option<Told>>,
    /// The place of the next, and so of the oldest.
    next: usize,
    kept: usize,
}

#[derive(Debug)]
struct Told {
    connection: OwnedFd,
    until: Instant,
}

impl Farewells {
    pub(super) fn new() -> Self {
        Farewells { places: std::iter::repeat_with(|| None).take(PLACES).collect(), next: 0, kept: 0 }
    }

    /// Says it and hangs up. `words` fit into the buffer of a fresh socket; if they do not, nobody waits.
    pub(super) fn say(&mut self, words: &[u8], connection: OwnedFd, poller: &Poller) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let said = !words.is_empty() && send(connection.as_raw_fd(), words, flags).is_ok();
        if !said || shutdown(connection.as_raw_fd(), Shutdown::Write).is_err() || has_hung_up(&connection) {
            return;
        }
        let place = self.next;
        self.forget(place, poller);
        self.next = (place + 1) % PLACES;
        let watched = poller.add(connection.as_fd(), Interest::Read, FAREWELLS + place as u64).is_ok();
        if let Some(free) = self.places.get_mut(place).filter(|_| watched) {
            *free = Some(Told { connection, until: Instant::now() + PATIENCE });
            self.kept += 1;
        }
    }

    /// Something has come from one of them.
    pub(super) fn hear(&mut self, token: u64, poller: &Poller) {
        let place = (token - FAREWELLS) as usize;
        let told = self.places.get(place).and_then(Option::as_ref);
        if told.is_some_and(|told| has_hung_up(&told.connection)) {
            self.forget(place, poller);
        }
    }

    /// Hangs up on those that were kept for long enough.
    pub(super) fn expire(&mut self, poller: &Poller) {
        if self.kept == 0 {
            return;
        }
        let now = Instant::now();
        for place in 0..PLACES {
            if self.places.get(place).and_then(Option::as_ref).is_some_and(|told| told.until <= now) {
                self.forget(place, poller);
            }
        }
    }

    /// When the next has been kept for long enough.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        if self.kept == 0 {
            return None;
        }
        self.places.iter().flatten().map(|told| told.until).min()
    }

    fn forget(&mut self, place: usize, poller: &Poller) {
        if let Some(told) = self.places.get_mut(place).and_then(Option::take) {
            // A child may have a copy for a moment, epoll(7).
            let _ = poller.remove(told.connection.as_fd());
            self.kept -= 1;
        }
    }
}

/// Throws away what has come; true at the end of it.
fn has_hung_up(connection: &OwnedFd) -> bool {
    let mut scrap = [0; 4096];
    for _ in 0..ROUNDS {
        match recv(connection.as_raw_fd(), &mut scrap, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return false,
            Err(_) => return true,
        }
    }
    false
}
