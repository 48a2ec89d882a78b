//! The clock that all processes of this machine share.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in microseconds.
pub(crate) fn monotonic_usec() -> u64 {
    // It fails for a clock that does not exist, and this one does.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec().unsigned_abs() * 1_000_000 + now.tv_nsec().unsigned_abs() / 1000)
}
