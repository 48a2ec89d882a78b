//! The slot for the next connection.

use super::WorkerSlot;
use crate::scoreboard::{NoSlot, Owner, Scoreboard};

/// Where a worker gets its slots from, and the one that it has in hand.
#[derive(Debug)]
pub(super) struct Slots {
    scoreboard: &'static Scoreboard,
    owner: Owner,
    /// In a service with spares, see [`Slots::reserve`].
    reserved: Option<WorkerSlot>,
}

impl Slots {
    pub(super) fn new(scoreboard: &'static Scoreboard, owner: Owner) -> Self {
        Slots { scoreboard, owner, reserved: None }
    }

    /// The one in hand, or another. With `waits`, who gets none hears when there may be one.
    pub(super) fn take(&mut self, waits: bool) -> Result<WorkerSlot, NoSlot> {
        self.reserved.take().map_or_else(|| self.claim(waits), Ok)
    }

    fn claim(&self, waits: bool) -> Result<WorkerSlot, NoSlot> {
        let claim = || WorkerSlot::claim(self.scoreboard, self.owner);
        claim().or_else(|why| {
            if !waits {
                return Err(why);
            }
            self.scoreboard.want();
            claim()
        })
    }

    /// Makes sure that one is in hand before a connection comes.
    ///
    /// With `EPOLLEXCLUSIVE` only one of all that wait is woken. Without spares a worker that then finds all slots taken
    /// has robbed nobody. But slots may be taken by spares of other workers, which could have served; so where there are
    /// spares, who has no slot does not wait.
    pub(super) fn reserve(&mut self, waits: bool) -> Result<(), NoSlot> {
        if self.reserved.is_none() {
            self.reserved = Some(self.claim(waits)?);
        }
        Ok(())
    }

    /// Keeps one in hand. Given back, it would wake another worker, which finds nothing to do either and wakes this one.
    pub(super) fn keep(&mut self, slot: WorkerSlot) {
        self.reserved = Some(slot);
    }

    /// Gives back what is in hand.
    pub(super) fn release(&mut self) {
        self.reserved = None;
    }
}
