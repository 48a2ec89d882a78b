//! The clock that all processes of this machine share.

use std::ops::{Add, Sub};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of CLOCK_MONOTONIC, in nanoseconds. Its number means the same in every process, through pipes, in shared memory
/// and over an upgrade; [`std::time::Instant`] has none to hand on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Monotonic(u64);

impl Monotonic {
    /// Later than every moment that comes.
    pub(crate) const NEVER: Monotonic = Monotonic(u64::MAX);

    /// This moment.
    pub(crate) fn now() -> Self {
        // It fails for a clock that does not exist, and this one does.
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Monotonic(0), |now| {
            Monotonic(now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs())
        })
    }

    /// The moment with this number, as [`Monotonic::nanos`] told it.
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Monotonic(nanos)
    }

    /// Its number.
    pub(crate) const fn nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Monotonic {
    type Output = Monotonic;

    /// So much later; at most [`Monotonic::NEVER`].
    fn add(self, time: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(nanos(time)))
    }
}

impl Sub<Duration> for Monotonic {
    type Output = Monotonic;

    /// So much earlier; at least the beginning of the clock.
    fn sub(self, time: Duration) -> Monotonic {
        Monotonic(self.0.saturating_sub(nanos(time)))
    }
}

impl Sub for Monotonic {
    type Output = Duration;

    /// The time since the other; none if that is later.
    fn sub(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A time in nanoseconds; at most 584 years.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// User and system time of this process.
pub(crate) fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
