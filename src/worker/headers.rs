//! Connections of proxies whose header has not come yet.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::HEADERS;
use crate::admission::proxy::Reading;
use crate::scoreboard::Slot;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::socket::Peer;

/// How long a proxy may take to send its header. It has it before it connects.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that a proxy has made.
#[derive(Debug)]
pub(super) struct AwaitingHeader {
    pub(super) slot: Slot,
    pub(super) connection: OwnedFd,
    /// The proxy.
    pub(super) peer: Peer,
    pub(super) accepted_usec: u64,
    pub(super) reading: Reading,
}

#[derive(Debug)]
struct Waiting {
    newcomer: AwaitingHeader,
    until: Instant,
    watched: bool,
}

/// Those that wait, by the token of their events, which grows: so the first was the first to come.
#[derive(Debug, Default)]
pub(super) struct Headers {
    waiting: BTreeMap<u64, Waiting>,
    made: u64,
}

impl Headers {
    /// One more waits. It is closed if it cannot be watched.
    pub(super) fn add(&mut self, newcomer: AwaitingHeader, poller: &Poller) {
        let token = HEADERS + self.made;
        self.made += 1;
        if poller.add(newcomer.connection.as_fd(), Interest::Read, token).is_ok() {
            let until = Instant::now() + PATIENCE;
            self.waiting.insert(token, Waiting { newcomer, until, watched: true });
        }
    }

    /// Reads what has come for one; returns it unless it has to wait on.
    pub(super) fn advance<T>(
        &mut self,
        token: u64,
        poller: &Poller,
        read: impl FnOnce(&mut AwaitingHeader) -> Option<T>,
    ) -> Option<(AwaitingHeader, T)> {
        let read = read(&mut self.waiting.get_mut(&token)?.newcomer)?;
        Some((self.remove(token, poller)?, read))
    }

    /// Lets one be for now, though something has come for it.
    pub(super) fn hold(&mut self, token: u64, poller: &Poller) {
        if let Some(waiting) = self.waiting.get_mut(&token) {
            let _ = poller.remove(waiting.newcomer.connection.as_fd());
            waiting.watched = false;
        }
    }

    /// Watches again those that were held.
    pub(super) fn resume(&mut self, poller: &Poller) {
        for (token, waiting) in &mut self.waiting {
            if !waiting.watched {
                waiting.watched =
                    poller.add(waiting.newcomer.connection.as_fd(), Interest::Read, *token).is_ok();
            }
        }
    }

    /// One that has waited for too long.
    pub(super) fn expired(&mut self, poller: &Poller) -> Option<AwaitingHeader> {
        let now = Instant::now();
        let token = *self.waiting.first_key_value().filter(|(_, waiting)| waiting.until <= now)?.0;
        self.remove(token, poller)
    }

    fn remove(&mut self, token: u64, poller: &Poller) -> Option<AwaitingHeader> {
        let newcomer = self.waiting.remove(&token)?.newcomer;
        let _ = poller.remove(newcomer.connection.as_fd());
        Some(newcomer)
    }

    /// When the next will have waited for too long.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, waiting)| waiting.until)
    }

    /// Closes all of them.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
