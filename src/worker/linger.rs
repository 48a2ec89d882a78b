//! The lingering close: the last words for clients that get no process, said without waiting for them, and not lost on the
//! way.
//!
//! A client may have sent its request by then. To close on top of it makes the kernel answer with RST, which may overtake
//! the words (RFC 2525, 2.17). So a few of these connections are kept for a moment, and what still comes is thrown away.
//! Most clients hang up as soon as they have read; only who does not is worth the price of being watched.

use std::os::fd::AsFd;
use std::time::Duration;

use super::token::Token;
use crate::pace::LINGER_TIME;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::exposed::ExposedSocket;
use crate::sys::stream::{self, Rest};
use crate::sys::time::Monotonic;

/// How many are kept; the oldest goes when there are more.
const PLACES: usize = 64;

/// How long a client has to hang up before it is watched.
const WATCH_DELAY: Duration = Duration::from_millis(1);

/// How much of what one sends is thrown away before others have their turn.
const DISCARDED_AT_ONCE: usize = 64 << 10;

/// Those that were close and have not hung up. Children get no copy of this table, as long as it is on the stack.
#[derive(Debug)]
pub(super) struct LingeringCloses {
    places: [Option<LingeringClose>; PLACES],
    kept: usize,
    /// When to see whether those that are not watched have hung up.
    look_at: Option<Monotonic>,
}

#[derive(Debug)]
struct LingeringClose {
    connection: ExposedSocket,
    until: Monotonic,
    watched: bool,
}

impl LingeringCloses {
    pub(super) fn new() -> Self {
        LingeringCloses { places: [const { None }; PLACES], kept: 0, look_at: None }
    }

    /// Keeps a connection on which the last was said.
    pub(super) fn keep(&mut self, connection: ExposedSocket, poller: &Poller) {
        let place = self.free_place(poller);
        if let Some(free) = self.places.get_mut(place) {
            let now = Monotonic::now();
            self.look_at.get_or_insert(now + WATCH_DELAY);
            *free = Some(LingeringClose { connection, until: now + LINGER_TIME, watched: false });
            self.kept += 1;
        }
    }

    /// Something has come from one of them.
    pub(super) fn hear(&mut self, place: usize, poller: &Poller) {
        self.forget_if_gone(place, poller);
    }

    /// Hangs up on those that have done so, or were kept for long enough.
    pub(super) fn tend(&mut self, poller: &Poller) {
        if self.kept == 0 {
            return;
        }
        let now = Monotonic::now();
        let looks = self.look_at.take_if(|at| *at <= now).is_some();
        for place in 0..PLACES {
            let Some(close) = self.places.get(place).and_then(Option::as_ref) else { continue };
            if close.until <= now {
                self.forget(place, poller);
            } else if looks && !close.watched && !self.forget_if_gone(place, poller) {
                self.watch(place, poller);
            }
        }
    }

    /// When to [`LingeringCloses::tend`] them.
    pub(super) fn wakes_at(&self) -> Option<Monotonic> {
        if self.kept == 0 {
            return None;
        }
        self.places.iter().flatten().map(|close| close.until).chain(self.look_at).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept == 0
    }

    /// Hangs up on all of them.
    pub(super) fn clear(&mut self, poller: &Poller) {
        (0..PLACES).for_each(|place| self.forget(place, poller));
    }

    /// A place for one more.
    fn free_place(&mut self, poller: &Poller) -> usize {
        if self.kept == PLACES {
            (0..PLACES).for_each(|place| _ = self.forget_if_gone(place, poller));
        }
        if self.kept == PLACES {
            let until =
                |place: &usize| self.places.get(*place).and_then(Option::as_ref).map(|close| close.until);
            (0..PLACES).min_by_key(until).into_iter().for_each(|oldest| self.forget(oldest, poller));
        }
        self.places.iter().position(Option::is_none).unwrap_or_default()
    }

    /// Throws away what one has sent. True if it has hung up.
    fn forget_if_gone(&mut self, place: usize, poller: &Poller) -> bool {
        let close = self.places.get(place).and_then(Option::as_ref);
        let discard = |close: &LingeringClose| stream::discard(close.connection.as_fd(), DISCARDED_AT_ONCE).1;
        let gone = close.is_some_and(|close| discard(close) == Rest::End);
        if gone {
            self.forget(place, poller);
        }
        gone
    }

    fn watch(&mut self, place: usize, poller: &Poller) {
        if let Some(Some(close)) = self.places.get_mut(place) {
            // Without it, the patience for it ends all the same.
            let _ = poller.add(close.connection.as_fd(), Interest::Read, Token::Lingering(place).into());
            close.watched = true;
        }
    }

    fn forget(&mut self, place: usize, poller: &Poller) {
        if let Some(close) = self.places.get_mut(place).and_then(Option::take) {
            if close.watched {
                // A child may have a copy for a moment, epoll(7).
                let _ = poller.remove(close.connection.as_fd());
            }
            self.kept -= 1;
        }
    }
}
