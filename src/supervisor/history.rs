//! What has become of this supervisor's reloads and upgrades, since it was started.

use serde::{Deserialize, Serialize};

use super::wording::plural;
use crate::control::LastReload;
use crate::sys::time::{Monotonic, UnixTime};

/// It goes on over upgrades.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    started: Monotonic,
    /// The same by the clock on the wall.
    since: UnixTime,
    reloads: u64,
    rejected: u64,
    last_reload: Option<LastReload>,
    upgrades: u64,
    /// Log records that programs before this one have lost.
    dropped_before: u64,
    /// And this one, when it was last asked.
    dropped: u64,
}

impl History {
    /// Nothing has happened yet.
    pub(super) fn begin() -> Self {
        History {
            started: Monotonic::now(),
            since: UnixTime::now(),
            reloads: 0,
            rejected: 0,
            last_reload: None,
            upgrades: 0,
            dropped_before: 0,
            dropped: 0,
        }
    }

    pub(super) fn since(&self) -> UnixTime {
        self.since
    }

    pub(super) fn last_reload(&self) -> Option<LastReload> {
        self.last_reload
    }

    /// Log records that were lost since the start, `dropped` by this program.
    pub(super) fn dropped(&self, dropped: u64) -> u64 {
        self.dropped_before.saturating_add(dropped)
    }

    /// This program may be replaced, and has lost so many.
    pub(super) fn note_dropped(&mut self, dropped: u64) {
        self.dropped = dropped;
    }

    pub(super) fn started(&self) -> Monotonic {
        self.started
    }

    /// How many reloads have come into force.
    pub(super) fn reloads(&self) -> u64 {
        self.reloads
    }

    /// How many were rejected.
    pub(super) fn rejected(&self) -> u64 {
        self.rejected
    }

    pub(super) fn upgrades(&self) -> u64 {
        self.upgrades
    }

    pub(super) fn was_reloaded(&mut self) {
        self.reloads += 1;
        self.last_reload = Some(LastReload { ok: true, unix_ms: UnixTime::now() });
    }

    pub(super) fn was_rejected(&mut self) {
        self.rejected += 1;
        self.last_reload = Some(LastReload { ok: false, unix_ms: UnixTime::now() });
    }

    pub(super) fn was_upgraded(&mut self) {
        self.upgrades += 1;
        self.dropped_before = self.dropped(self.dropped);
        self.dropped = 0;
    }

    /// What became of the reloads, in a few words.
    pub(super) fn of_reloads(&self) -> String {
        let (ok, rejected) = (self.reloads, self.rejected);
        match (ok, rejected) {
            (0, 0) => "never reloaded".to_owned(),
            (_, 0) => format!("{ok} {}", plural(ok as usize, "reload")),
            _ if self.last_reload.is_some_and(|last| !last.ok) => {
                format!("the last of {} reloads was rejected", ok.saturating_add(rejected))
            }
            _ => format!("{ok} {}, {rejected} rejected", plural(ok as usize, "reload")),
        }
    }
}
