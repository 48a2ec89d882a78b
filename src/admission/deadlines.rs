//! How long a connection may take, and whether it has a deadline behind it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::tcp_info::Activity;

/// How long a connection may take; `None` is for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deadlines {
    /// Until the first byte of the client.
    pub(crate) first_byte: Option<Duration>,
    /// Without a byte in either direction.
    pub(crate) idle: Option<Duration>,
    /// All in all.
    pub(crate) lifetime: Option<Duration>,
}

impl Deadlines {
    /// Those that only the connection itself can tell about.
    pub(crate) fn of_bytes(self) -> Deadlines {
        Deadlines { lifetime: None, ..self }
    }

    /// Whether there are such.
    pub(crate) fn are_of_bytes(self) -> bool {
        self.of_bytes() != Deadlines::default()
    }
}

/// A deadline that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Deadline {
    /// `first_byte_timeout`
    FirstByte,
    /// `idle_timeout`
    Idle,
    /// `max_lifetime`
    Lifetime,
}

impl Deadline {
    /// All of them, at the places that their numbers say.
    pub(crate) const ALL: [Deadline; 3] = [Deadline::FirstByte, Deadline::Idle, Deadline::Lifetime];
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Deadline::FirstByte => "first_byte",
            Deadline::Idle => "idle",
            Deadline::Lifetime => "lifetime",
        })
    }
}

/// How long a process group that was told to end by TERM has until it is ended by KILL, and the kernel to deliver what the
/// client has not taken.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// The kernel counts the age of the last data in its ticks, of 10 ms at most; an age that is too large would end a
/// connection too early.
const TICK_MS: u64 = 10;

/// What is known of a connection that is watched. Times are CLOCK_MONOTONIC in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ActivityWatch {
    pub(crate) began: u64,
    /// When a byte moved last: never earlier than it did.
    active: u64,
    received: u64,
    acked: u64,
    /// Bytes that were a proxy's and not the client's.
    pub(crate) header: u64,
}

/// What a look at a connection has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A deadline has passed.
    Over(Deadline),
    /// None can pass before this time.
    LookAt(u64),
    /// None can pass any more.
    Free,
}

impl ActivityWatch {
    /// A connection that was accepted at this time.
    pub(crate) fn new(accepted: u64) -> Self {
        ActivityWatch { began: accepted, active: accepted, received: 0, acked: 0, header: 0 }
    }

    /// The same connection, if it began with so many bytes of a proxy's header.
    pub(crate) fn behind(self, header: u64) -> Self {
        ActivityWatch { received: header, header, ..self }
    }

    /// When to look first; `None` if there is nothing to look for.
    pub(crate) fn first_look(&self, deadlines: &Deadlines) -> Option<u64> {
        let times = [deadlines.first_byte, deadlines.idle, deadlines.lifetime];
        times.into_iter().flatten().min().map(|time| after(self.began, time))
    }

    /// Judges what the kernel says. Without it, as of a Unix socket, there is only a lifetime.
    ///
    /// The last activity is estimated when a counter has moved since the last look, so a connection in use costs one look
    /// in each `idle_timeout`. What the kernel tells is the time of the last data or acknowledgement of any kind, which
    /// may be later than that of the byte that moved the counter: then the end comes later, by less than one more
    /// `idle_timeout`.
    pub(crate) fn judge(&mut self, deadlines: &Deadlines, now: u64, motion: Option<Activity>) -> Verdict {
        let mut passed = None;
        let mut next: Option<u64> = None;
        let mut meet = |due: u64, deadline: Deadline| {
            if due <= now {
                passed = passed.or(Some(deadline));
            }
            next = Some(next.map_or(due, |next| next.min(due)));
        };
        if let Some(time) = deadlines.lifetime {
            meet(after(self.began, time), Deadline::Lifetime);
        }
        if let Some(motion) = motion {
            self.note(now, motion);
            if let Some(time) = deadlines.first_byte.filter(|_| motion.received <= self.header) {
                meet(after(self.began, time), Deadline::FirstByte);
            }
            if let Some(time) = deadlines.idle {
                meet(after(self.active, time), Deadline::Idle);
            }
        }
        match (passed, next) {
            (Some(deadline), _) => Verdict::Over(deadline),
            (None, Some(next)) => Verdict::LookAt(next),
            (None, None) => Verdict::Free,
        }
    }

    fn note(&mut self, now: u64, motion: Activity) {
        let data = (motion.received != self.received).then_some(motion.since_data_ms);
        let acknowledgement = (motion.acked != self.acked).then_some(motion.since_ack_ms);
        if let Some(ms) = data.into_iter().chain(acknowledgement).min() {
            let age = u64::from(ms).saturating_sub(TICK_MS) * 1000;
            self.active = self.active.max(now.saturating_sub(age));
        }
        (self.received, self.acked) = (motion.received, motion.acked);
    }
}

fn after(time: u64, duration: Duration) -> u64 {
    time.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const START: u64 = 1000 * SECOND;

    fn deadlines(first_byte: u64, idle: u64, lifetime: u64) -> Deadlines {
        let time = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
        Deadlines { first_byte: time(first_byte), idle: time(idle), lifetime: time(lifetime) }
    }

    /// So many bytes each way, and milliseconds since.
    fn motion(received: u64, acked: u64, since_data_ms: u32, since_ack_ms: u32) -> Option<Activity> {
        Some(Activity { received, acked, since_data_ms, since_ack_ms })
    }

    #[test]
    fn the_first_look_is_at_the_first_deadline() {
        let first = |deadlines| ActivityWatch::new(START).first_look(&deadlines);
        assert_eq!(first(deadlines(0, 0, 0)), None);
        assert_eq!(first(deadlines(5, 60, 90)), Some(START + 5 * SECOND));
        assert_eq!(first(deadlines(50, 6, 0)), Some(START + 6 * SECOND));
    }

    #[test]
    fn a_silent_client_has_until_the_first_deadline() {
        let deadlines = deadlines(5, 60, 0);
        let mut watch = ActivityWatch::new(START);
        let silent = motion(0, 0, 4999, 4999);
        let early = watch.judge(&deadlines, START + 5 * SECOND - 1, silent);
        assert_eq!(early, Verdict::LookAt(START + 5 * SECOND));
        let due = watch.judge(&deadlines, START + 5 * SECOND, silent);
        assert_eq!(due, Verdict::Over(Deadline::FirstByte));
    }

    #[test]
    fn what_the_service_says_is_no_first_byte_and_is_activity() {
        let deadlines = deadlines(5, 3, 0);
        let mut watch = ActivityWatch::new(START);
        let greeted = watch.judge(&deadlines, START + 3 * SECOND, motion(0, 20, 2990, 2010));
        assert_eq!(greeted, Verdict::LookAt(START + 4 * SECOND));
        let mut watch = ActivityWatch::new(START);
        let greeted = watch.judge(&deadlines, START + 5 * SECOND, motion(0, 20, 4990, 10));
        assert_eq!(greeted, Verdict::Over(Deadline::FirstByte));
    }

    #[test]
    fn after_its_first_byte_a_client_without_other_deadlines_is_free() {
        let verdict =
            ActivityWatch::new(START).judge(&deadlines(5, 0, 0), START + 5 * SECOND, motion(1, 0, 10, 10));
        assert_eq!(verdict, Verdict::Free);
    }

    #[test]
    fn the_header_of_a_proxy_is_no_first_byte() {
        let deadlines = deadlines(5, 0, 0);
        let judge = |received| {
            let mut watch = ActivityWatch::new(START).behind(28);
            watch.judge(&deadlines, START + 5 * SECOND, motion(received, 0, 10, 10))
        };
        assert_eq!(judge(28), Verdict::Over(Deadline::FirstByte));
        assert_eq!(judge(29), Verdict::Free);
    }

    #[test]
    fn idle_is_counted_from_the_last_byte_and_not_from_the_look() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = ActivityWatch::new(START);
        // A byte came after 4 s.
        let look = watch.judge(&deadlines, START + 10 * SECOND, motion(1, 0, 6010, 6010));
        assert_eq!(look, Verdict::LookAt(START + 14 * SECOND));
        // It may have been one tick later than the kernel says, never earlier.
        let look = watch.judge(&deadlines, START + 14 * SECOND, motion(1, 0, 10_010, 10_010));
        assert_eq!(look, Verdict::Over(Deadline::Idle));
    }

    #[test]
    fn either_direction_is_activity_and_the_later_counts() {
        let deadlines = deadlines(0, 10, 0);
        for (later, earlier) in [(2010, 9010), (9010, 2010)] {
            let mut watch = ActivityWatch::new(START);
            let verdict = watch.judge(&deadlines, START + 10 * SECOND, motion(1, 1, later, earlier));
            assert_eq!(verdict, Verdict::LookAt(START + 18 * SECOND));
        }
    }

    #[test]
    fn acknowledgements_that_move_no_byte_are_no_activity() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = ActivityWatch::new(START);
        watch.judge(&deadlines, START + SECOND, motion(7, 9, 10, 10));
        // Keepalives and window probes are answered, and data that was there before is sent again.
        let verdict = watch.judge(&deadlines, START + 11 * SECOND, motion(7, 9, 0, 0));
        assert_eq!(verdict, Verdict::Over(Deadline::Idle));
    }

    #[test]
    fn who_looks_late_still_finds_out() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = ActivityWatch::new(START);
        let verdict = watch.judge(&deadlines, START + 100 * SECOND, motion(1, 0, 50_000, 50_000));
        assert_eq!(verdict, Verdict::Over(Deadline::Idle));
        let mut watch = ActivityWatch::new(START);
        let verdict = watch.judge(&deadlines, START + 100 * SECOND, motion(1, 0, 1010, 1010));
        assert_eq!(verdict, Verdict::LookAt(START + 109 * SECOND));
    }

    #[test]
    fn a_lifetime_needs_no_kernel_and_comes_first() {
        let deadlines = deadlines(5, 5, 5);
        let mut watch = ActivityWatch::new(START);
        assert_eq!(watch.judge(&deadlines, START + SECOND, None), Verdict::LookAt(START + 5 * SECOND));
        let verdict = watch.judge(&deadlines, START + 5 * SECOND, motion(0, 0, 0, 0));
        assert_eq!(verdict, Verdict::Over(Deadline::Lifetime));
    }

    /// Against a model that knows when each byte moved: never too early, and not later than two idle times.
    #[test]
    fn no_look_ends_a_connection_early() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..500 {
            let idle = 1 + next(20);
            let deadlines = deadlines(0, idle, 0);
            let mut moved: Vec<u64> = Vec::new();
            let mut time = START;
            for _ in 0..next(30) {
                time += next(2 * idle * SECOND);
                moved.push(time);
            }
            let mut watch = ActivityWatch::new(START);
            let mut look = watch.first_look(&deadlines).unwrap();
            let over = loop {
                // Who looks may have been held up.
                let now = look + next(3 * SECOND);
                let so_far: Vec<_> = moved.iter().copied().filter(|&at| at <= now).collect();
                let last = so_far.last().copied().unwrap_or(START);
                // In ticks of 4 ms, rounded the wrong way.
                let ms = ((now / 4000 - last / 4000) * 4) as u32;
                match watch.judge(&deadlines, now, motion(so_far.len() as u64, 0, ms, ms)) {
                    Verdict::Over(deadline) => {
                        assert_eq!(deadline, Deadline::Idle);
                        assert!(now - last >= idle * SECOND, "{now} is too early after {last}, {idle} s");
                        assert!(now - last <= idle * SECOND + 3 * SECOND + 10_000, "late");
                        break now;
                    }
                    Verdict::LookAt(next) => look = next,
                    Verdict::Free => unreachable!("idle is always watched"),
                }
            };
            assert!(over > START);
        }
    }
}
