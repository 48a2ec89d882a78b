//! What has become of this supervisor's reloads and upgrades, since it was started.

use serde::{Deserialize, Serialize};

use super::status::plural;
use crate::sys::time::Monotonic;

/// It goes on over upgrades.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    started: Monotonic,
    reloads: u64,
    rejected: u64,
    last_was_rejected: bool,
    upgrades: u64,
}

impl History {
    /// Nothing has happened yet.
    pub(super) fn begin() -> Self {
        History { started: Monotonic::now(), reloads: 0, rejected: 0, last_was_rejected: false, upgrades: 0 }
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
        self.last_was_rejected = false;
    }

    pub(super) fn was_rejected(&mut self) {
        self.rejected += 1;
        self.last_was_rejected = true;
    }

    pub(super) fn was_upgraded(&mut self) {
        self.upgrades += 1;
    }

    /// What became of the reloads, in a few words.
    pub(super) fn of_reloads(&self) -> String {
        let (ok, rejected) = (self.reloads, self.rejected);
        match (ok, rejected) {
            (0, 0) => "never reloaded".to_owned(),
            (_, 0) => format!("{ok} {}", plural(ok as usize, "reload")),
            _ if self.last_was_rejected => {
                format!("the last of {} reloads was rejected", ok.saturating_add(rejected))
            }
            _ => format!("{ok} {}, {rejected} rejected", plural(ok as usize, "reload")),
        }
    }
}
