//! An accepted connection for which there is no process yet, because fork said `EAGAIN` or `ENOMEM`.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::greeting::ProxyHeader;
use crate::client::Client;
use crate::scoreboard::Slot;

/// How long an accepted connection waits for a process before it is closed.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// The connection and its slot, and when to try again.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) slot: Slot,
    pub(super) connection: OwnedFd,
    pub(super) client: Client,
    pub(super) header: Option<ProxyHeader>,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    error: io::Error,
    until: Instant,
    pause: Duration,
    next: Instant,
}

impl Pending {
    pub(super) fn new(slot: Slot, connection: OwnedFd, client: Client, header: Option<ProxyHeader>) -> Self {
        Pending { slot, connection, client, header, trouble: None }
    }

    /// Notes a failed try; false when it was the last.
    pub(super) fn failed(&mut self, error: io::Error) -> bool {
        let now = Instant::now();
        let (until, pause) = match &self.trouble {
            Some(before) => (before.until, (before.pause * 2).min(LONGEST_PAUSE)),
            None => (now + PATIENCE, FIRST_PAUSE),
        };
        self.trouble = Some(Trouble { error, until, pause, next: now + pause });
        now < until
    }

    /// When to try again.
    pub(super) fn next_try(&self) -> Instant {
        self.trouble.as_ref().map_or_else(Instant::now, |trouble| trouble.next)
    }

    /// Why there is no process, for the record.
    pub(super) fn reason(&self) -> String {
        match &self.trouble {
            Some(trouble) => {
                format!("no process could be made for {} s: {}", PATIENCE.as_secs(), trouble.error)
            }
            None => "no process could be made".to_owned(),
        }
    }
}
