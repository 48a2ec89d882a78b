//! The slots of a service, one for each connection that may live.

use serde::{Deserialize, Serialize};

/// The largest `max_connections`, and so the number of slots of every service. An interpreter has no pages that nobody has touched.
pub(crate) const MAX_SLOTS: u32 = if cfg!(miri) { 1_000 } else { 1_000_000 };

/// The slot of a connection: its row on the scoreboard, and where it is counted for its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotIndex(u32);

impl SlotIndex {
    /// The slot with this number.
    pub(crate) fn at(index: u32) -> Self {
        SlotIndex(index)
    }

    pub(crate) fn index(self) -> u32 {
        self.0
    }
}
