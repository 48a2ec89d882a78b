//! What is to be done when: a heap of times.
//!
//! An entry for a connection that has ended is not looked for. It goes when it comes to the top, before anybody waits for
//! it, or when most entries are of that kind. So an end costs nothing, a connection a few comparisons, and memory follows
//! what lives. It is memory of the worker's own: a fork has none of it to copy.

use allocator_api2::vec::Vec;

use crate::sys::dontfork::DontForkAlloc;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;

/// What is to be done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimerKind {
    /// Ask the kernel whether it is in use.
    Look,
    /// Its lifetime is over.
    End,
    /// It was told to end.
    Kill,
    /// See whether its program has the connection yet.
    Hold,
    /// See whether its client has what its program wrote, which has ended.
    Close,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timer {
    pub(super) at: Monotonic,
    pub(super) pid: Pid,
    /// The connection's: the kernel gives a pid again.
    pub(super) number: u64,
    pub(super) kind: TimerKind,
}

/// All that is to be done.
#[derive(Debug)]
pub(super) struct Timers(Vec<Timer, DontForkAlloc>);

/// So many entries may be of connections that have ended, before it is tidied up.
const SLACK: usize = 1024;

/// A connection has no more than this: of each task one.
const TIMERS_PER_CONNECTION: usize = 4;

impl Timers {
    /// An empty one, with room if it will be needed.
    pub(super) fn new(is_needed: bool) -> Self {
        Timers(Vec::with_capacity_in(if is_needed { 2 * SLACK } else { 0 }, DontForkAlloc::new()))
    }

    /// Adds an entry. `connections` live now, and `is_wanted` says whether one of an entry does.
    pub(super) fn put(&mut self, entry: Timer, connections: usize, is_wanted: impl Fn(Pid, u64) -> bool) {
        if self.0.len() >= (TIMERS_PER_CONNECTION + 1) * connections + SLACK {
            self.0.retain(|entry| is_wanted(entry.pid, entry.number));
            (0..self.0.len() / 2).rev().for_each(|index| self.sink(index));
        }
        self.0.push(entry);
        self.rise(self.0.len() - 1);
    }

    /// The next that is due; what is no longer wanted goes.
    pub(super) fn take_due(&mut self, now: Monotonic, is_wanted: impl Fn(Pid, u64) -> bool) -> Option<Timer> {
        loop {
            let first = *self.0.first()?;
            let wanted = is_wanted(first.pid, first.number);
            if wanted && first.at > now {
                return None;
            }
            self.0.swap_remove(0);
            self.sink(0);
            if wanted {
                return Some(first);
            }
        }
    }

    /// When the next is due; exact after [`Timers::take_due`] had nothing.
    pub(super) fn next(&self) -> Option<Monotonic> {
        self.0.first().map(|entry| entry.at)
    }

    fn at(&self, index: usize) -> Monotonic {
        self.0.get(index).map_or(Monotonic::NEVER, |entry| entry.at)
    }

    fn rise(&mut self, mut index: usize) {
        while index > 0 && self.at(index) < self.at((index - 1) / 2) {
            self.0.swap(index, (index - 1) / 2);
            index = (index - 1) / 2;
        }
    }

    fn sink(&mut self, mut index: usize) {
        loop {
            let (left, right) = (2 * index + 1, 2 * index + 2);
            let child = if self.at(right) < self.at(left) { right } else { left };
            if child >= self.0.len() || self.at(index) <= self.at(child) {
                return;
            }
            self.0.swap(index, child);
            index = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Monotonic {
        Monotonic::from_nanos(nanos)
    }

    fn entry(nanos: u64, pid: Pid) -> Timer {
        Timer { at: at(nanos), pid, number: pid as u64, kind: TimerKind::Look }
    }

    #[test]
    fn it_comes_in_the_order_of_time_and_not_before() {
        let mut timers = Timers::new(true);
        let mut times: std::vec::Vec<u64> = (0..500).map(|number| number * 7919 % 500).collect();
        for &nanos in &times {
            timers.put(entry(nanos, 1), 1000, |_, _| true);
        }
        times.sort_unstable();
        assert_eq!(timers.next(), Some(at(0)));
        let mut taken = std::vec::Vec::new();
        while let Some(entry) = timers.take_due(at(250), |_, _| true) {
            taken.push(entry.at.nanos());
        }
        assert_eq!(taken, &times[..=250]);
        assert_eq!(timers.next(), Some(at(251)));
    }

    #[test]
    fn what_has_ended_wakes_nobody() {
        let mut timers = Timers::new(false);
        for (nanos, pid) in [(10, 1), (20, 2), (30, 3), (40, 2)] {
            timers.put(entry(nanos, pid), 10, |_, _| true);
        }
        assert_eq!(timers.take_due(at(5), |pid, _| pid == 3), None);
        assert_eq!(timers.next(), Some(at(30)));
        assert_eq!(timers.take_due(at(50), |pid, _| pid == 3), Some(entry(30, 3)));
        assert_eq!(timers.take_due(at(50), |pid, _| pid == 3), None);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_pid_that_came_again_is_another_connection() {
        let mut timers = Timers::new(true);
        timers.put(Timer { number: 1, ..entry(10, 7) }, 1, |_, _| true);
        timers.put(Timer { number: 2, ..entry(20, 7) }, 1, |_, _| true);
        let due = timers.take_due(at(30), |pid, number| (pid, number) == (7, 2));
        assert_eq!(due.map(|entry| entry.at), Some(at(20)));
    }

    #[test]
    fn it_holds_no_more_than_a_few_times_what_lives() {
        let mut timers = Timers::new(true);
        for number in 0..200_000 {
            // The last ten live, each with three entries that are far away.
            let is_wanted = |pid: Pid, _| pid > number - 10;
            (0..3).for_each(|more| timers.put(entry(1 << 40 | u64::from(more == 0), number), 10, is_wanted));
            assert!(timers.0.len() <= (TIMERS_PER_CONNECTION + 1) * 10 + SLACK, "{}", timers.0.len());
        }
        let all = std::iter::from_fn(|| timers.take_due(Monotonic::NEVER, |_, _| true));
        assert!(all.map(|entry| entry.at).is_sorted());
    }
}
