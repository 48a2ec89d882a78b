//! Whether a connection has a deadline behind it, and the watch that a handler's process keeps on itself.
//!
//! Of a program's connection the worker keeps a copy and asks the kernel about it. Of a handler's it keeps none: each fork
//! would copy them all. So a handler's process has a timer, see [`alarm`], and costs its worker nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::report::Reporter;
use crate::config::Builtin;
use crate::config::admission::Deadlines;
use crate::handler::{self, Traffic};
use crate::shared::Deadline;
use crate::sys::alarm::{self, Ring};
use crate::sys::fd::Passed;
use crate::sys::tcp_info::{Motion, TcpInfo};
use crate::sys::{process, stream, time};

/// With this code a handler's process ends that has found a deadline behind it: timeout(1)'s.
pub(crate) const EXIT_CODE: u8 = 124;

/// How long a process group that was told to end by TERM has until it is ended by KILL, and the kernel to deliver what the
/// client has not taken.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// The kernel counts the age of the last data in its ticks, of 10 ms at most; an age that is too large would end a
/// connection too early.
const TICK_MS: u64 = 10;

/// What is known of a connection that is watched. Times are CLOCK_MONOTONIC in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watch {
    began: u64,
    /// When a byte moved last: never earlier than it did.
    active: u64,
    received: u64,
    acked: u64,
    /// Bytes that were a proxy's and not the client's.
    header: u64,
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

impl Watch {
    /// A connection that was accepted at this time.
    pub(crate) fn new(accepted: u64) -> Self {
        Watch { began: accepted, active: accepted, received: 0, acked: 0, header: 0 }
    }

    /// The same connection, if it began with so many bytes of a proxy's header.
    pub(crate) fn behind(self, header: u64) -> Self {
        Watch { received: header, header, ..self }
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
    pub(crate) fn judge(&mut self, deadlines: &Deadlines, now: u64, motion: Option<Motion>) -> Verdict {
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

    fn note(&mut self, now: u64, motion: Motion) {
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

/// A process that watches its own connection.
struct SelfWatch {
    connection: Passed,
    reporter: Reporter,
    deadlines: Deadlines,
    watch: Watch,
}

impl Ring for SelfWatch {
    fn ring(&mut self) -> Option<Duration> {
        let now = time::monotonic_usec();
        // Closed already, or no TCP.
        let info = TcpInfo::of(self.connection.borrow()).ok();
        match self.watch.judge(&self.deadlines, now, info.and_then(|info| info.motion)) {
            Verdict::Over(deadline) => {
                let traffic = info.map(|info| Traffic {
                    received: info.received.saturating_sub(self.watch.header),
                    sent: info.sent,
                });
                self.reporter.timed_out(deadline, traffic.unwrap_or_default());
                stream::give_up_after(self.connection.borrow(), GRACE);
                process::exit(EXIT_CODE)
            }
            Verdict::LookAt(next) => Some(Duration::from_micros(next.saturating_sub(now))),
            Verdict::Free => None,
        }
    }
}

/// Serves one client as [`handler::serve`] does, and ends this process when a deadline has passed. Without one, it costs
/// nothing.
#[inline]
pub(super) fn serve(
    builtin: Builtin,
    connection: OwnedFd,
    watch: Watch,
    deadlines: Deadlines,
    reporter: Reporter,
) -> (u8, Traffic) {
    // A connection has just been accepted: no clock, and no question to the kernel, is needed yet.
    let first = watch.first_look(&deadlines).map(|at| at.saturating_sub(watch.began));
    let Some(first) = first.map(Duration::from_micros) else { return handler::serve(builtin, connection) };
    let passed = Passed::new(connection.as_fd());
    let mut watcher = SelfWatch { connection: passed, reporter, deadlines, watch };
    // Who cannot be watched is not served for ever.
    alarm::during(&mut watcher, first, || handler::serve(builtin, connection))
        .unwrap_or((crate::exit::OS, Traffic::default()))
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
    fn motion(received: u64, acked: u64, since_data_ms: u32, since_ack_ms: u32) -> Option<Motion> {
        Some(Motion { received, acked, since_data_ms, since_ack_ms })
    }

    #[test]
    fn the_first_look_is_at_the_first_deadline() {
        let first = |deadlines| Watch::new(START).first_look(&deadlines);
        assert_eq!(first(deadlines(0, 0, 0)), None);
        assert_eq!(first(deadlines(5, 60, 90)), Some(START + 5 * SECOND));
        assert_eq!(first(deadlines(50, 6, 0)), Some(START + 6 * SECOND));
    }

    #[test]
    fn a_silent_client_has_until_the_first_deadline() {
        let deadlines = deadlines(5, 60, 0);
        let mut watch = Watch::new(START);
        let silent = motion(0, 0, 4999, 4999);
        let early = watch.judge(&deadlines, START + 5 * SECOND - 1, silent);
        assert_eq!(early, Verdict::LookAt(START + 5 * SECOND));
        let due = watch.judge(&deadlines, START + 5 * SECOND, silent);
        assert_eq!(due, Verdict::Over(Deadline::FirstByte));
    }

    #[test]
    fn what_the_service_says_is_no_first_byte_and_is_activity() {
        let deadlines = deadlines(5, 3, 0);
        let mut watch = Watch::new(START);
        let greeted = watch.judge(&deadlines, START + 3 * SECOND, motion(0, 20, 2990, 2010));
        assert_eq!(greeted, Verdict::LookAt(START + 4 * SECOND));
        let mut watch = Watch::new(START);
        let greeted = watch.judge(&deadlines, START + 5 * SECOND, motion(0, 20, 4990, 10));
        assert_eq!(greeted, Verdict::Over(Deadline::FirstByte));
    }

    #[test]
    fn after_its_first_byte_a_client_without_other_deadlines_is_free() {
        let verdict = Watch::new(START).judge(&deadlines(5, 0, 0), START + 5 * SECOND, motion(1, 0, 10, 10));
        assert_eq!(verdict, Verdict::Free);
    }

    #[test]
    fn the_header_of_a_proxy_is_no_first_byte() {
        let deadlines = deadlines(5, 0, 0);
        let judge = |received| {
            let mut watch = Watch::new(START).behind(28);
            watch.judge(&deadlines, START + 5 * SECOND, motion(received, 0, 10, 10))
        };
        assert_eq!(judge(28), Verdict::Over(Deadline::FirstByte));
        assert_eq!(judge(29), Verdict::Free);
    }

    #[test]
    fn idle_is_counted_from_the_last_byte_and_not_from_the_look() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = Watch::new(START);
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
            let mut watch = Watch::new(START);
            let verdict = watch.judge(&deadlines, START + 10 * SECOND, motion(1, 1, later, earlier));
            assert_eq!(verdict, Verdict::LookAt(START + 18 * SECOND));
        }
    }

    #[test]
    fn acknowledgements_that_move_no_byte_are_no_activity() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = Watch::new(START);
        watch.judge(&deadlines, START + SECOND, motion(7, 9, 10, 10));
        // Keepalives and window probes are answered, and data that was there before is sent again.
        let verdict = watch.judge(&deadlines, START + 11 * SECOND, motion(7, 9, 0, 0));
        assert_eq!(verdict, Verdict::Over(Deadline::Idle));
    }

    #[test]
    fn who_looks_late_still_finds_out() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = Watch::new(START);
        let verdict = watch.judge(&deadlines, START + 100 * SECOND, motion(1, 0, 50_000, 50_000));
        assert_eq!(verdict, Verdict::Over(Deadline::Idle));
        let mut watch = Watch::new(START);
        let verdict = watch.judge(&deadlines, START + 100 * SECOND, motion(1, 0, 1010, 1010));
        assert_eq!(verdict, Verdict::LookAt(START + 109 * SECOND));
    }

    #[test]
    fn a_lifetime_needs_no_kernel_and_comes_first() {
        let deadlines = deadlines(5, 5, 5);
        let mut watch = Watch::new(START);
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
            let mut watch = Watch::new(START);
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
