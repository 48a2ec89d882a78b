//! What meets a connection when all slots are taken.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::Worker;
use super::intake::{self, Taken};
use crate::admission::Refusal;
use crate::config::admission::Overload;
use crate::shared::NoSlot;
use crate::sys::socket::{self, Peer};
use crate::sys::time;

/// How long to wait before another try where a limit was lowered below what lives.
const CROWDED: Duration = Duration::from_millis(50);

/// How often a worker looks for who is to be refused, where a spare of another worker could serve him.
const LOOK: Duration = Duration::from_millis(10);

impl Worker {
    /// There is no slot for who may wait at this listener.
    pub(super) fn overloaded(&mut self, index: usize, why: NoSlot) {
        // Every spare has a slot: as long as one waits, of whatever worker, there is room.
        let refuses = self.refuses() && (!self.has_spares() || self.board.processes().spares == 0);
        if refuses {
            return self.accept_to_refuse(index);
        }
        self.wait_for_slot(why);
        self.let_a_spare_look();
    }

    /// Rests until there may be a slot, or somebody to refuse.
    pub(super) fn wait_for_slot(&mut self, why: NoSlot) {
        match why {
            // To watch the listener would be to be woken in place of a spare.
            _ if self.refuses() && self.has_spares() => self.intake.pause(LOOK),
            _ if self.refuses() => {}
            NoSlot::Full => self.intake.pause_until_bell(),
            NoSlot::Crowded => self.intake.pause(CROWDED),
        }
    }

    /// Whether clients are refused rather than left in the queue. Not those of a listener that is about to be closed:
    /// they called while this was another service.
    fn refuses(&self) -> bool {
        self.intake.is_open() && self.plan.service.admission.overload != Overload::Queue
    }

    fn has_spares(&self) -> bool {
        self.plan.service.spare > 0
    }

    fn accept_to_refuse(&mut self, index: usize) {
        match self.intake.accept(index) {
            Taken::Connection(connection, peer) => self.turn_away(connection, peer),
            Taken::Lost => {}
            Taken::Nothing => self.intake.nothing_more(index),
            Taken::Exhausted(error) => self.exhausted(index, &error),
        }
    }

    /// The kernel cannot give a connection now.
    pub(super) fn exhausted(&mut self, index: usize, error: &std::io::Error) {
        self.intake.pause(intake::EXHAUSTED);
        let address = self.plan.listeners.get(index).map_or("", String::as_str);
        self.intake.complain(&self.log, &self.plan.service.name, address, error);
    }

    fn turn_away(&mut self, connection: OwnedFd, peer: Peer) {
        let gate = self.preparation.gate();
        // Who would not be let in anyway is told nothing.
        if !gate.is_proxy(peer) {
            if let Err(why) = gate.admit(peer, time::monotonic_usec(), None) {
                return self.refuse(why);
            }
        }
        self.refuse(Refusal::Limit);
        match &self.plan.service.admission.overload {
            Overload::Queue => {}
            Overload::Refuse { message } => self.farewells.say(message.as_bytes(), connection, &self.poller),
            Overload::Reset => socket::reset(connection),
        }
    }
}
