//! The clock that all processes of this machine share.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

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

/// Milliseconds since 1970, by the clock on the wall: for files, and for people, who see it in UTC as of RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct UnixTime(u64);

impl UnixTime {
    /// This moment.
    pub(crate) fn now() -> Self {
        UnixTime(SystemTime::UNIX_EPOCH.elapsed().map_or(0, millis))
    }

    /// So many.
    pub(crate) fn millis(self) -> u64 {
        self.0
    }

    /// The time since the other; none if that is later.
    pub(crate) fn since(self, earlier: UnixTime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for UnixTime {
    type Output = UnixTime;

    /// So much later.
    fn add(self, time: Duration) -> UnixTime {
        UnixTime(self.0.saturating_add(millis(time)))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0 / 1000).ok();
        let Some(time) = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()) else {
            return f.write_str("9999-12-31T23:59:59Z");
        };
        let (date, clock) = (time.date(), time.time());
        write!(f, "{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())?;
        write!(f, "T{:02}:{:02}:{:02}Z", clock.hour(), clock.minute(), clock.second())
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// User and system time of this process.
pub(crate) fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_on_the_wall_is_shown_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_999, "2000-02-28T23:59:59Z"),
            (1_764_343_388_001, "2025-11-28T15:23:08Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(UnixTime(seconds).to_string(), text);
        }
        assert_eq!(UnixTime(7) + Duration::from_millis(1), UnixTime(8));
        assert_eq!(
            (UnixTime(9).since(UnixTime(7)), UnixTime(7).since(UnixTime(9))),
            (Duration::from_millis(2), Duration::ZERO)
        );
    }
}
