//! Connections of proxies whose header has not come yet.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

use super::context::Newcomer;
use super::token::Token;
use crate::admission::proxy::{Read, Reading};
use crate::sys::epoll::{Interest, Poller};
use crate::sys::time::Monotonic;

/// How long a proxy may take to send its header. It has it before it connects.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Waiting {
    newcomer: Newcomer,
    reading: Reading,
    until: Monotonic,
    watched: bool,
}

/// Those that wait, by a number that grows: so the first was the first to come.
#[derive(Debug, Default)]
pub(super) struct Headers {
    waiting: BTreeMap<u64, Waiting>,
    made: u64,
}

impl Headers {
    /// A proxy has connected. Returns it with what it has sent, unless it has to wait for that. It is closed if it cannot
    /// be watched.
    pub(super) fn begin(&mut self, newcomer: Newcomer, poller: &Poller) -> Option<(Newcomer, Read)> {
        let mut reading = Reading::default();
        match reading.advance(newcomer.socket.as_fd()) {
            Read::More => {}
            read => return Some((newcomer, read)),
        }
        let number = self.made;
        self.made += 1;
        if poller.add(newcomer.socket.as_fd(), Interest::Read, Token::Header(number).into()).is_ok() {
            let until = Monotonic::now() + HEADER_TIMEOUT;
            self.waiting.insert(number, Waiting { newcomer, reading, until, watched: true });
        }
        None
    }

    /// Reads what has come for one; returns it unless it has to wait on.
    pub(super) fn advance(&mut self, number: u64, poller: &Poller) -> Option<(Newcomer, Read)> {
        let waiting = self.waiting.get_mut(&number)?;
        match waiting.reading.advance(waiting.newcomer.socket.as_fd()) {
            Read::More => None,
            read => Some((self.remove(number, poller)?, read)),
        }
    }

    /// Lets one be for now, though something has come for it.
    pub(super) fn hold(&mut self, number: u64, poller: &Poller) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            let _ = poller.remove(waiting.newcomer.socket.as_fd());
            waiting.watched = false;
        }
    }

    /// Watches again those that were held.
    pub(super) fn resume(&mut self, poller: &Poller) {
        for (number, waiting) in &mut self.waiting {
            if !waiting.watched {
                let token = Token::Header(*number).into();
                waiting.watched = poller.add(waiting.newcomer.socket.as_fd(), Interest::Read, token).is_ok();
            }
        }
    }

    /// One that has waited for too long.
    pub(super) fn expired(&mut self, poller: &Poller) -> Option<Newcomer> {
        let now = Monotonic::now();
        let number = *self.waiting.first_key_value().filter(|(_, waiting)| waiting.until <= now)?.0;
        self.remove(number, poller)
    }

    fn remove(&mut self, number: u64, poller: &Poller) -> Option<Newcomer> {
        let newcomer = self.waiting.remove(&number)?.newcomer;
        let _ = poller.remove(newcomer.socket.as_fd());
        Some(newcomer)
    }

    /// When the next will have waited for too long.
    pub(super) fn expires_at(&self) -> Option<Monotonic> {
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
