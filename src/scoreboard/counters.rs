//! The counters of one worker, which it alone writes and the supervisor reads for display.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

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
    /// Microseconds of processor time that connections have used.
    CpuMicros,
    /// Bytes from clients.
    BytesReceived,
    /// Bytes to clients.
    BytesSent,
    /// Penalties that sources were given.
    Penalties,
    /// Programs that are warm now: of a worker that is there, since this is not added up.
    Warm,
    /// Connections that a warm program has served.
    ServedWarm,
    /// Workers that died and were not told to; the supervisor counts them.
    WorkersDied,
}

/// Connections that were not let in come after these, by reason.
const REFUSED: usize = Count::WorkersDied as usize + 1;

/// Then the distributions, one after the other.
const TIMES: usize = REFUSED + Refusal::ALL.len();

/// How many counters there are.
const COUNTS: usize = TIMES + CountedTime::ALL.len() * TIME_WORDS;

/// Of how many times it is counted how long they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CountedTime {
    /// From the accept of a connection to its end.
    Duration,
    /// From the accept until a process had it.
    Wait,
    /// From the start of a program until it was warm.
    WarmUp,
}

/// The upper bounds of a distribution in microseconds, each included; what is longer comes after the last.
pub(crate) type TimeBounds = [u64; BOUNDS];

const BOUNDS: usize = 13;

/// The times within each bound and not the one before, those beyond the last, and the sum of all in microseconds.
const TIME_WORDS: usize = BOUNDS + 2;

impl CountedTime {
    const ALL: [CountedTime; 3] = [CountedTime::Duration, CountedTime::Wait, CountedTime::WarmUp];

    /// From a millisecond to an hour, from ten microseconds to ten seconds, and from a hundred microseconds to a minute.
    pub(crate) const fn bounds(self) -> &'static TimeBounds {
        match self {
            CountedTime::Duration => &[
                1_000,
                5_000,
                10_000,
                50_000,
                100_000,
                500_000,
                1_000_000,
                5_000_000,
                10_000_000,
                60_000_000,
                300_000_000,
                1_800_000_000,
                3_600_000_000,
            ],
            CountedTime::Wait => {
                &[10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 100_000, 1_000_000, 10_000_000]
            }
            CountedTime::WarmUp => &[
                100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000, 10_000_000,
                60_000_000,
            ],
        }
    }

    const fn place(self) -> usize {
        TIMES + self as usize * TIME_WORDS
    }
}

/// Where something is counted: in a worker's counters, or in the supervisor's sum of those of the dead.
pub(crate) trait CountUp {
    /// Counts so many more.
    fn add_at(&self, place: CountPlace, more: u64);

    /// Counts one more.
    fn count(&self, what: Count) {
        self.count_more(what, 1);
    }

    /// Counts so many more.
    fn count_more(&self, what: Count, more: u64) {
        self.add_at(CountPlace(what as usize), more);
    }

    /// Counts a time.
    fn count_time(&self, what: CountedTime, time: Duration) {
        let micros = micros(time);
        let bounds = what.bounds();
        let nth = bounds.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS);
        self.add_at(CountPlace(what.place() + nth), 1);
        self.add_at(CountPlace(what.place() + BOUNDS + 1), micros);
    }
}

/// Which of the counters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CountPlace(usize);

/// A time in microseconds; at most 584,000 years.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl CountUp for Counters {
    fn add_at(&self, CountPlace(index): CountPlace, more: u64) {
        if let Some(word) = self.0.long_words(0, COUNTS).get(index) {
            word.store(word.load(Relaxed).saturating_add(more), Relaxed);
        }
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
        self.add_at(CountPlace(REFUSED + why as usize), 1);
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub(crate) struct Counts([u64; COUNTS]);

impl Default for Counts {
    fn default() -> Self {
        Counts([0; COUNTS])
    }
}

impl From<Counts> for Vec<u64> {
    fn from(counts: Counts) -> Self {
        counts.0.to_vec()
    }
}

impl TryFrom<Vec<u64>> for Counts {
    type Error = String;

    fn try_from(counts: Vec<u64>) -> Result<Self, String> {
        let counts: Result<[u64; COUNTS], _> = counts.try_into();
        counts.map(Counts).map_err(|counts| format!("{} counters and not {COUNTS}", counts.len()))
    }
}

/// How long times were, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeCounts {
    /// How many were within each bound and not the one before, and beyond the last.
    pub(crate) within: [u64; BOUNDS + 1],
    /// All together, in microseconds.
    pub(crate) sum_us: u64,
}

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

    /// How long times were.
    pub(crate) fn times(&self, what: CountedTime) -> TimeCounts {
        let mut times = TimeCounts { within: [0; BOUNDS + 1], sum_us: 0 };
        let words = self.0.iter().skip(what.place());
        times.within.iter_mut().zip(words).for_each(|(within, word)| *within = *word);
        times.sum_us = self.0[what.place() + BOUNDS + 1];
        times
    }

    /// Counts one more.
    pub(crate) fn count(&mut self, what: Count) {
        self.add_at(CountPlace(what as usize), 1);
    }

    /// Counts so many more.
    pub(crate) fn add_at(&mut self, CountPlace(index): CountPlace, more: u64) {
        if let Some(count) = self.0.get_mut(index) {
            // What a worker wrote is in the sum, and it never goes backwards.
            *count = count.saturating_add(more);
        }
    }

    /// Of each the greater.
    pub(crate) fn at_least(mut self, other: Counts) -> Self {
        for (count, other) in self.0.iter_mut().zip(other.0) {
            *count = (*count).max(other);
        }
        self
    }

    /// Adds those of a worker.
    pub(crate) fn add(&mut self, other: Counts) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_within_its_bound_and_all_of_it_is_saved() {
        let (counters, _file) = Counters::create().unwrap();
        let mut sum = Counts::default();
        for what in CountedTime::ALL {
            assert!(what.bounds().is_sorted());
            for bound in what.bounds() {
                for time in [*bound, bound + 1] {
                    counters.count_time(what, Duration::from_micros(time));
                }
            }
            let times = counters.totals().times(what);
            assert_eq!(times.within, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1], "{what:?}");
            assert_eq!(times.sum_us, what.bounds().iter().map(|bound| 2 * bound + 1).sum::<u64>());
        }
        counters.count(Count::WorkersDied);
        counters.count_refused(Refusal::ALL[Refusal::ALL.len() - 1]);
        sum.add(counters.totals());
        assert_eq!(sum.get(Count::WorkersDied), 1);
        let saved = serde_json::to_string(&sum).unwrap();
        assert_eq!(serde_json::from_str::<Counts>(&saved).unwrap(), sum);
        assert!(serde_json::from_str::<Counts>("[1, 2]").is_err());
        assert_eq!(sum.at_least(Counts::default()), sum);
        assert_eq!(Counts::default().at_least(sum), sum);
        const { assert!(COUNTS * 8 <= LENGTH) };
    }
}
