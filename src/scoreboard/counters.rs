//! The counters of one worker, which it alone writes and the supervisor reads for display.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use crate::admission::Refusal;
use crate::sys::memory::{self, Mapping};

const LENGTH: usize = 4096;

/// What a worker counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// Connections taken from the queue.
    Accepted,
    /// Connections whose process has ended, or that never got one.
    Completed,
    /// Connection processes that a fault of their own killed.
    Crashes,
    /// Log records that could not be delivered.
    RecordsDropped,
    /// Connections that their deadline ended.
    Timeouts,
}

/// Connections that were not let in come after these, by reason.
const REFUSED: usize = Count::Timeouts as usize + 1;

/// How many counters there are.
const COUNTS: usize = REFUSED + Refusal::ALL.len();

/// Where something is counted: in a worker's counters, or in the supervisor's sum of those of the dead.
pub(crate) trait CountUp {
    /// Counts one more.
    fn count(&self, what: Count);
}

impl CountUp for Counters {
    fn count(&self, what: Count) {
        self.count_at(what as usize);
    }
}

/// The counters of one worker, mapped.
#[derive(Debug)]
pub(crate) struct Counters(Mapping);

impl Counters {
    /// New counters at zero, and their memory file to hand to the worker.
    pub(crate) fn create() -> io::Result<(Counters, OwnedFd)> {
        let file = memory::create(c"preforkd-counters", LENGTH)?;
        Ok((Counters::open(file.as_fd())?, file))
    }

    /// The counters in `file`.
    pub(crate) fn open(file: BorrowedFd<'_>) -> io::Result<Counters> {
        Mapping::new(file, LENGTH).map(Counters)
    }

    /// Counts one more that was not let in.
    pub(crate) fn count_refused(&self, why: Refusal) {
        self.count_at(REFUSED + why as usize);
    }

    fn count_at(&self, index: usize) {
        if let Some(word) = self.0.long_words(0, COUNTS).get(index) {
            word.store(word.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }

    /// Sets a counter that something else counts.
    pub(crate) fn set(&self, what: Count, value: u64) {
        if let Some(word) = self.0.long_words(0, COUNTS).get(what as usize) {
            word.store(value, Relaxed);
        }
    }

    /// All counters.
    pub(crate) fn totals(&self) -> Counts {
        let mut totals = Counts::default();
        for (total, word) in totals.0.iter_mut().zip(self.0.long_words(0, COUNTS)) {
            *total = word.load(Relaxed);
        }
        totals
    }
}

/// Counters added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts([u64; COUNTS]);

impl Counts {
    /// One of them.
    pub(crate) fn get(&self, what: Count) -> u64 {
        self.0[what as usize]
    }

    /// How many were not let in for this reason.
    pub(crate) fn refused(&self, why: Refusal) -> u64 {
        self.0[REFUSED + why as usize]
    }

    /// Sets one of them.
    pub(crate) fn set(&mut self, what: Count, value: u64) {
        self.0[what as usize] = value;
    }

    /// Counts one more.
    pub(crate) fn count(&mut self, what: Count) {
        // Wrapping: what a worker wrote is in the sum.
        self.0[what as usize] = self.0[what as usize].wrapping_add(1);
    }

    /// Adds those of a worker.
    pub(crate) fn add(&mut self, other: Counts) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.wrapping_add(more);
        }
    }
}
