//! The pauses in making processes ahead, after one could not be made or has died waiting.

use std::time::Duration;

use crate::pace::Backoff;
use crate::sys::time::Monotonic;

/// When there may be another.
#[derive(Debug)]
pub(crate) struct Pauses {
    backoff: Backoff,
    /// One has been made since something went wrong, and has not died yet.
    on_trial: bool,
}

impl Pauses {
    /// Nothing has gone wrong yet.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Pauses { backoff: Backoff::new(first, longest), on_trial: false }
    }

    /// One has been made.
    pub(crate) fn made(&mut self) {
        if self.backoff.until().is_none() {
            return;
        }
        let now = Monotonic::now();
        match std::mem::replace(&mut self.on_trial, true) {
            // The one before has lived through its pause.
            true => self.backoff.recovers(now),
            false => self.backoff.tries(now),
        }
        self.on_trial = self.backoff.until().is_some();
    }

    /// None can be made for a while, longer each time.
    pub(crate) fn failed(&mut self) {
        self.failed_slowly(Duration::ZERO);
    }

    /// The same, for this time at least.
    pub(crate) fn failed_slowly(&mut self, least: Duration) {
        let now = Monotonic::now();
        if !std::mem::take(&mut self.on_trial) && self.backoff.until().is_some_and(|until| now < until) {
            // It was made before the pause: whoever killed one has killed several.
            return;
        }
        self.backoff.failed_slowly(now, least);
    }

    /// When the next may be made; a time that has passed if it may be now.
    pub(crate) fn next(&self) -> Monotonic {
        self.backoff.until().unwrap_or(Monotonic::from_nanos(0))
    }
}
