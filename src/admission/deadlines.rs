//! How long a connection may take, and whether it has a deadline behind it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::sys::tcp_info::Activity;
use crate::sys::time::Monotonic;

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

    /// When the lifetime of a client's connection is over.
    pub(crate) fn until(&self, client: &Client) -> Monotonic {
        self.lifetime.map_or(Monotonic::NEVER, |time| client.accepted + time)
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
    const ALL: [Deadline; 3] = [Deadline::FirstByte, Deadline::Idle, Deadline::Lifetime];

    /// The one with this number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Deadline::ALL.get(usize::from(number)).copied()
    }
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

/// Why preforkd ends a connection that would go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndCause {
    /// It has this deadline behind it.
    Deadline(Deadline),
    /// Somebody who may has asked for it: `preforkd kill`.
    Operator,
    /// It has a listener, and its service has another use for that or none.
    Service,
}

impl EndCause {
    /// The number of those that are no deadlines.
    const OPERATOR: u8 = 64;
    const SERVICE: u8 = 65;

    /// As a number that [`EndCause::from_number`] knows.
    pub(crate) fn number(self) -> u8 {
        match self {
            EndCause::Deadline(deadline) => deadline as u8,
            EndCause::Operator => EndCause::OPERATOR,
            EndCause::Service => EndCause::SERVICE,
        }
    }

    /// The one with this number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        match number {
            EndCause::OPERATOR => Some(EndCause::Operator),
            EndCause::SERVICE => Some(EndCause::Service),
            number => Deadline::from_number(number).map(EndCause::Deadline),
        }
    }
}

/// How long a process group that was told to end by TERM has until it is ended by KILL, and the kernel to deliver what the
/// client has not taken.
pub(crate) const TERM_TO_KILL: Duration = Duration::from_secs(5);

/// The kernel counts the age of the last data in its ticks, of 10 ms at most; an age that is too large would end a
/// connection too early.
const KERNEL_TICK_MS: u64 = 10;

/// What is known of a connection that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ActivityWatch {
    began: Monotonic,
    /// When a byte moved last: never earlier than it did.
    active: Monotonic,
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
    LookAt(Monotonic),
    /// None can pass any more.
    Free,
}

impl ActivityWatch {
    /// The connection of this client.
    pub(crate) fn new(client: &Client) -> Self {
        let (began, header) = (client.accepted, client.header_length());
        ActivityWatch { began, active: began, received: header, acked: 0, header }
    }

    /// When to look first; `None` if there is nothing to look for.
    pub(crate) fn first_look(&self, deadlines: &Deadlines) -> Option<Monotonic> {
        let times = [deadlines.first_byte, deadlines.idle, deadlines.lifetime];
        times.into_iter().flatten().min().map(|time| self.began + time)
    }

    /// Judges what the kernel says. Without it, as of a Unix socket, there is only a lifetime.
    ///
    /// The last activity is estimated when a counter has moved since the last look, so a connection in use costs one look
    /// in each `idle_timeout`. What the kernel tells is the time of the last data or acknowledgement of any kind, which
    /// may be later than that of the byte that moved the counter: then the end comes later, by less than one more
    /// `idle_timeout`.
    pub(crate) fn judge(
        &mut self,
        deadlines: &Deadlines,
        now: Monotonic,
        activity: Option<Activity>,
    ) -> Verdict {
        let mut passed = None;
        let mut next: Option<Monotonic> = None;
        let mut meet = |due: Monotonic, deadline: Deadline| {
            if due <= now {
                passed = passed.or(Some(deadline));
            }
            next = Some(next.map_or(due, |next| next.min(due)));
        };
        if let Some(time) = deadlines.lifetime {
            meet(self.began + time, Deadline::Lifetime);
        }
        if let Some(activity) = activity {
            self.note(now, activity);
            if let Some(time) = deadlines.first_byte.filter(|_| activity.received <= self.header) {
                meet(self.began + time, Deadline::FirstByte);
            }
            if let Some(time) = deadlines.idle {
                meet(self.active + time, Deadline::Idle);
            }
        }
        match (passed, next) {
            (Some(deadline), _) => Verdict::Over(deadline),
            (None, Some(next)) => Verdict::LookAt(next),
            (None, None) => Verdict::Free,
        }
    }

    fn note(&mut self, now: Monotonic, activity: Activity) {
        let data = (activity.received != self.received).then_some(activity.since_data_ms);
        let acknowledgement = (activity.acked != self.acked).then_some(activity.since_ack_ms);
        if let Some(ms) = data.into_iter().chain(acknowledgement).min() {
            let age = Duration::from_millis(u64::from(ms).saturating_sub(KERNEL_TICK_MS));
            self.active = self.active.max(now - age);
        }
        (self.received, self.acked) = (activity.received, activity.acked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ProxyHeader;
    use crate::sys::socket::Peer;

    const SECOND: Duration = Duration::from_secs(1);
    const START: Monotonic = Monotonic::from_nanos(1_000_000_000_000);

    fn fresh() -> ActivityWatch {
        behind(0)
    }

    fn behind(length: u16) -> ActivityWatch {
        let header = Some(ProxyHeader { length, names_client: true, called: None });
        ActivityWatch::new(&Client {
            peer: Peer::Unix(None),
            accepted: START,
            header,
            is_exempt: false,
            listener: 0,
        })
    }

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
        let first = |deadlines| fresh().first_look(&deadlines);
        assert_eq!(first(deadlines(0, 0, 0)), None);
        assert_eq!(first(deadlines(5, 60, 90)), Some(START + 5 * SECOND));
        assert_eq!(first(deadlines(50, 6, 0)), Some(START + 6 * SECOND));
    }

    #[test]
    fn a_silent_client_has_until_the_first_deadline() {
        let deadlines = deadlines(5, 60, 0);
        let mut watch = fresh();
        let silent = motion(0, 0, 4999, 4999);
        let early = watch.judge(&deadlines, START + 5 * SECOND - Duration::from_nanos(1), silent);
        assert_eq!(early, Verdict::LookAt(START + 5 * SECOND));
        let due = watch.judge(&deadlines, START + 5 * SECOND, silent);
        assert_eq!(due, Verdict::Over(Deadline::FirstByte));
    }

    #[test]
    fn what_the_service_says_is_no_first_byte_and_is_activity() {
        let deadlines = deadlines(5, 3, 0);
        let mut watch = fresh();
        let greeted = watch.judge(&deadlines, START + 3 * SECOND, motion(0, 20, 2990, 2010));
        assert_eq!(greeted, Verdict::LookAt(START + 4 * SECOND));
        let mut watch = fresh();
        let greeted = watch.judge(&deadlines, START + 5 * SECOND, motion(0, 20, 4990, 10));
        assert_eq!(greeted, Verdict::Over(Deadline::FirstByte));
    }

    #[test]
    fn after_its_first_byte_a_client_without_other_deadlines_is_free() {
        let verdict = fresh().judge(&deadlines(5, 0, 0), START + 5 * SECOND, motion(1, 0, 10, 10));
        assert_eq!(verdict, Verdict::Free);
    }

    #[test]
    fn the_header_of_a_proxy_is_no_first_byte() {
        let deadlines = deadlines(5, 0, 0);
        let judge = |received| {
            let mut watch = behind(28);
            watch.judge(&deadlines, START + 5 * SECOND, motion(received, 0, 10, 10))
        };
        assert_eq!(judge(28), Verdict::Over(Deadline::FirstByte));
        assert_eq!(judge(29), Verdict::Free);
    }

    #[test]
    fn idle_is_counted_from_the_last_byte_and_not_from_the_look() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = fresh();
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
            let mut watch = fresh();
            let verdict = watch.judge(&deadlines, START + 10 * SECOND, motion(1, 1, later, earlier));
            assert_eq!(verdict, Verdict::LookAt(START + 18 * SECOND));
        }
    }

    #[test]
    fn acknowledgements_that_move_no_byte_are_no_activity() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = fresh();
        watch.judge(&deadlines, START + SECOND, motion(7, 9, 10, 10));
        // Keepalives and window probes are answered, and data that was there before is sent again.
        let verdict = watch.judge(&deadlines, START + 11 * SECOND, motion(7, 9, 0, 0));
        assert_eq!(verdict, Verdict::Over(Deadline::Idle));
    }

    #[test]
    fn who_looks_late_still_finds_out() {
        let deadlines = deadlines(0, 10, 0);
        let mut watch = fresh();
        let verdict = watch.judge(&deadlines, START + 100 * SECOND, motion(1, 0, 50_000, 50_000));
        assert_eq!(verdict, Verdict::Over(Deadline::Idle));
        let mut watch = fresh();
        let verdict = watch.judge(&deadlines, START + 100 * SECOND, motion(1, 0, 1010, 1010));
        assert_eq!(verdict, Verdict::LookAt(START + 109 * SECOND));
    }

    #[test]
    fn a_lifetime_needs_no_kernel_and_comes_first() {
        let deadlines = deadlines(5, 5, 5);
        let mut watch = fresh();
        assert_eq!(watch.judge(&deadlines, START + SECOND, None), Verdict::LookAt(START + 5 * SECOND));
        let verdict = watch.judge(&deadlines, START + 5 * SECOND, motion(0, 0, 0, 0));
        assert_eq!(verdict, Verdict::Over(Deadline::Lifetime));
    }

    /// Against a model that knows when each byte moved: never too early, and not later than two idle times.
    #[test]
    fn no_look_ends_a_connection_early() {
        let mut random = fastrand::Rng::with_seed(crate::seeded::seed());
        let mut next = |below: u64| random.u64(..below);
        for _ in 0..crate::seeded::turns(500) {
            let idle = 1 + next(20);
            let deadlines = deadlines(0, idle, 0);
            let mut moved: Vec<Monotonic> = Vec::new();
            let mut time = START;
            for _ in 0..next(30) {
                time = time + Duration::from_micros(next(2_000_000 * idle));
                moved.push(time);
            }
            let mut watch = fresh();
            let mut look = watch.first_look(&deadlines).unwrap();
            let over = loop {
                // Who looks may have been held up.
                let now = look + Duration::from_micros(next(3_000_000));
                let so_far: Vec<_> = moved.iter().copied().filter(|&at| at <= now).collect();
                let last = so_far.last().copied().unwrap_or(START);
                // In ticks of 4 ms, rounded the wrong way.
                let tick = |at: Monotonic| at.nanos() / 4_000_000;
                let ms = ((tick(now) - tick(last)) * 4) as u32;
                match watch.judge(&deadlines, now, motion(so_far.len() as u64, 0, ms, ms)) {
                    Verdict::Over(deadline) => {
                        assert_eq!(deadline, Deadline::Idle);
                        let idle = idle as u32 * SECOND;
                        assert!(now - last >= idle, "{now:?} is too early after {last:?}, {idle:?}");
                        // The tick that is taken off, and the one that was rounded away.
                        assert!(now - last <= idle + 3 * SECOND + Duration::from_millis(10 + 4), "late");
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
