//! How often something is done: ever more seldom after failures, or not more than once in a while; and times that several
//! parts keep.

use std::time::Duration;

use crate::sys::time::Monotonic;

/// How long accepting rests after the kernel had no descriptor or memory for a connection. The connection stays queued.
pub(crate) const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection is kept for the client to hang up, when all has been sent.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(2);

/// Ever longer pauses after failures, doubled from the first up to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    pause: Duration,
    until: Option<Monotonic>,
}

impl Backoff {
    /// Nothing has failed yet.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, pause: Duration::ZERO, until: None }
    }

    /// One more failure; returns the pause that follows.
    pub(crate) fn failed(&mut self, now: Monotonic) -> Duration {
        self.failed_slowly(now, self.first)
    }

    /// One more failure, after which the pause is not shorter than this.
    pub(crate) fn failed_slowly(&mut self, now: Monotonic, least: Duration) -> Duration {
        self.pause = (self.pause * 2).max(least).clamp(self.first, self.longest);
        self.until = Some(now + self.pause);
        self.pause
    }

    /// A success that is not to be trusted yet: the pause is halved, and follows again unless it has become shorter than
    /// the first.
    pub(crate) fn recovers(&mut self, now: Monotonic) {
        self.pause /= 2;
        match self.pause < self.first {
            true => self.succeeded(),
            false => self.until = Some(now + self.pause),
        }
    }

    /// Another try, whose outcome is not known yet: the same pause follows.
    pub(crate) fn tries(&mut self, now: Monotonic) {
        if self.until.is_some() {
            self.until = Some(now + self.pause);
        }
    }

    /// The pause ends at this time.
    pub(crate) fn due_at(&mut self, at: Monotonic) {
        self.until = Some(at);
    }

    /// A success: the next failure is the first again.
    pub(crate) fn succeeded(&mut self) {
        (self.pause, self.until) = (Duration::ZERO, None);
    }

    /// When the pause is over; `None` if there is none. The length of the next is kept until a success.
    pub(crate) fn until(&self) -> Option<Monotonic> {
        self.until
    }

    /// Whether there is no pause, or it has passed.
    pub(crate) fn is_over(&self, now: Monotonic) -> bool {
        self.until.is_none_or(|until| until <= now)
    }
}

/// Once in a while, and the first time at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Every {
    time: Duration,
    next: Monotonic,
}

impl Every {
    pub(crate) const fn new(time: Duration) -> Self {
        Every { time, next: Monotonic::from_nanos(0) }
    }

    /// Whether it is time; if so, it is not again for a while.
    pub(crate) fn is_due(&mut self, now: Monotonic) -> bool {
        let is_due = self.next <= now;
        if is_due {
            self.next = now + self.time;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Monotonic = Monotonic::from_nanos(1);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_double_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(10 * MS, 50 * MS);
        assert!(backoff.is_over(NOW));
        assert_eq!([(); 4].map(|()| backoff.failed(NOW)), [10 * MS, 20 * MS, 40 * MS, 50 * MS]);
        assert_eq!((backoff.is_over(NOW + 49 * MS), backoff.is_over(NOW + 50 * MS)), (false, true));
        backoff.recovers(NOW);
        assert_eq!(backoff.until(), Some(NOW + 25 * MS));
        backoff.recovers(NOW);
        backoff.recovers(NOW);
        assert_eq!((backoff.until(), backoff.failed(NOW)), (None, 10 * MS));
        backoff.succeeded();
        assert_eq!(backoff.until(), None);
    }

    #[test]
    fn once_in_a_while_begins_at_once() {
        let mut every = Every::new(10 * MS);
        assert_eq!(
            [0, 9, 10, 11, 20].map(|ms| every.is_due(NOW + ms * MS)),
            [true, false, true, false, true]
        );
    }
}
