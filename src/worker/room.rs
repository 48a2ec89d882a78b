//! Whether there is room for a connection: the slot for the next one, and what meets it when all slots are taken.
//!
//! Without spares a worker goes on watching, and refuses whoever comes while there is no slot. With spares it would be
//! woken in place of one that waits, perhaps another worker's; so there it does not watch, and looks now and then while
//! there is no slot. Either way a slot that has become free is taken first.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::Worker;
use super::acceptor::Accepted;
use super::context::WorkerSlot;
use crate::admission::{Overload, Refusal};
use crate::client::Client;
use crate::scoreboard::{NoSlot, Owner, Scoreboard};

/// How long to wait before another try where a limit was lowered below what lives.
const LOWERED_LIMIT_PAUSE: Duration = Duration::from_millis(50);

/// How often a worker looks for who is to be refused, where there are spares and none waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The same while a spare of another worker waits. When that is taken, its own worker looks.
const LOOK_INTERVAL_WITH_SPARES: Duration = Duration::from_millis(100);

/// How many are refused before others have their turn.
const REFUSED_AT_ONCE: usize = 32;

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

    /// Another than the one in hand, which stays there.
    pub(super) fn take_another(&mut self, waits: bool) -> Result<WorkerSlot, NoSlot> {
        self.reserve(waits)?;
        self.claim(waits)
    }

    /// Gives back what is in hand.
    pub(super) fn release(&mut self) {
        self.reserved = None;
    }
}

impl Worker {
    /// Whether this worker can take a connection if it is woken for one.
    pub(super) fn has_room(&mut self) -> bool {
        if !self.reserves() || !self.acceptor.takes() {
            return true;
        }
        let reserved = self.slots.reserve(!self.never_waits());
        reserved
            .map_err(|why| {
                self.wait_for_slot(why);
                // Nobody else has what would serve who comes.
                self.warm.let_one_go();
            })
            .is_ok()
    }

    /// Whether a slot is claimed before a connection comes.
    pub(super) fn reserves(&self) -> bool {
        self.cx.plan.service.spare > 0 && self.acceptor.is_open()
    }

    /// There is no slot for who may wait at this listener. Returns one that has become free meanwhile.
    pub(super) fn overloaded(&mut self, index: usize, why: NoSlot) -> Option<WorkerSlot> {
        if self.refuses() && self.room_elsewhere().is_none() {
            return self.refuse_queued(index);
        }
        self.wait_for_slot(why);
        self.let_a_spare_look();
        None
    }

    /// Rests until there may be a slot, or somebody to refuse.
    pub(super) fn wait_for_slot(&mut self, why: NoSlot) {
        match why {
            _ if self.never_waits() => {}
            _ if self.refuses() && self.acceptor.is_due() => {
                self.acceptor.pause_until_slot_freed_or(Duration::ZERO);
            }
            _ if self.refuses() => {
                self.acceptor.pause_until_slot_freed_or(self.room_elsewhere().unwrap_or(LOOK_INTERVAL));
            }
            NoSlot::Full => self.acceptor.pause_until_slot_freed(),
            NoSlot::OverLoweredLimit => self.acceptor.pause(LOWERED_LIMIT_PAUSE),
        }
    }

    /// Whether this worker need not hear of free slots, because it watches all the time.
    pub(super) fn never_waits(&self) -> bool {
        self.refuses() && self.cx.plan.service.spare == 0
    }

    /// Whether clients are refused rather than left in the queue. Not those of a listener that is about to be closed:
    /// they called while this was another service.
    fn refuses(&self) -> bool {
        self.acceptor.is_open() && self.cx.plan.service.admission.overload != Overload::Queue
    }

    /// In a service with spares, whether another worker has room for who comes, and how soon to see whether it still has: a
    /// spare that waits has a slot, and so has one that is just being made, or a worker that is about to accept.
    fn room_elsewhere(&self) -> Option<Duration> {
        if self.cx.plan.service.spare == 0 {
            return None;
        }
        let processes = self.cx.scoreboard.processes();
        match (processes.spares, processes.claimed) {
            (0, 0) => None,
            (0, _) => Some(LOOK_INTERVAL),
            _ => Some(LOOK_INTERVAL_WITH_SPARES),
        }
    }

    fn refuse_queued(&mut self, index: usize) -> Option<WorkerSlot> {
        // What has ended just now may have left a slot.
        if !self.children.is_empty() {
            self.cx.signals.fetch_pending();
            self.reap();
        }
        for _ in 0..REFUSED_AT_ONCE {
            // In this order: who was queued before there was seen to be no room may be refused. Who comes later may have
            // seen that there is some again, and found a slot or a spare if he had come to another worker.
            if self.acceptor.is_empty(index) {
                self.acceptor.nothing_more(index);
                return None;
            }
            if let Ok(slot) = self.slots.take(!self.never_waits()) {
                return Some(slot);
            }
            if self.room_elsewhere().is_some() {
                self.wait_for_slot(NoSlot::Full);
                return None;
            }
            match self.acceptor.accept(index) {
                Accepted::Connection(socket, peer) => {
                    self.turn_away_one_too_many(socket, Client::now(peer));
                }
                Accepted::Lost => {}
                Accepted::Nothing => {
                    self.acceptor.nothing_more(index);
                    return None;
                }
                Accepted::Exhausted(error) => {
                    self.exhausted(index, &error);
                    return None;
                }
            }
        }
        if !self.never_waits() {
            self.acceptor.more(index);
        }
        None
    }

    fn turn_away_one_too_many(&mut self, socket: OwnedFd, mut client: Client) {
        // Who would not be let in anyway is told nothing.
        let admission = self.cx.admission;
        let checked = match admission.is_proxy(client.peer) {
            true => Ok(()),
            false => admission.check(&mut client, socket.as_fd(), None),
        };
        self.turn_away(checked.err().unwrap_or(Refusal::Limit), socket);
    }

    /// Counts a client that is not let in, and ends its connection.
    pub(super) fn turn_away(&mut self, why: Refusal, socket: OwnedFd) {
        self.refuse(why);
        if let Some(said) = self.cx.admission.turn_away(why, socket) {
            self.lingering.keep(said.into(), &self.cx.poller);
        }
    }
}
