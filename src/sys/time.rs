//! The clock that all processes of this machine share.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in microseconds.
pub(crate) fn monotonic_usec() -> u64 {
    // It fails for a clock that does not exist, and this one does.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec().unsigned_abs() * 1_000_000 + now.tv_nsec().unsigned_abs() / 1000)
}

/// User and system time of this process, in microseconds.
pub(crate) fn cpu_usec() -> u64 {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    nix::time::clock_gettime(clock).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000
            + u64::try_from(time.tv_nsec() / 1000).unwrap_or(0)
    })
}
