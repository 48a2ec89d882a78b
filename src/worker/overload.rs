//! What meets a connection when all slots are taken.
//!
//! Without spares a worker goes on watching, and refuses whoever comes while there is no slot. With spares it would be
//! woken in place of one that waits, perhaps another worker's; so there it does not watch, and looks now and then while
//! there is no slot. Either way a slot that has become free is taken first.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::Worker;
use super::acceptor::{self, Accepted};
use crate::admission::{Overload, Refusal};
use crate::scoreboard::{NoSlot, Slot};
use crate::sys::socket::Peer;
use crate::sys::{stream, time};

/// How long to wait before another try where a limit was lowered below what lives.
const CROWDED: Duration = Duration::from_millis(50);

/// How often a worker looks for who is to be refused, where there are spares and none waits.
const LOOK: Duration = Duration::from_millis(10);

/// The same while a spare of another worker waits. When that is called, its own worker looks.
const GLANCE: Duration = Duration::from_millis(100);

/// How many are refused before others have their turn.
const AT_ONCE: usize = 32;

impl Worker {
    /// There is no slot for who may wait at this listener. Returns one that has become free meanwhile.
    pub(super) fn overloaded(&mut self, index: usize, why: NoSlot) -> Option<Slot> {
        if self.refuses() && !self.a_spare_waits() {
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
                self.acceptor.pause_until_bell_or(Duration::ZERO);
            }
            _ if self.refuses() => {
                let rest = if self.a_spare_waits() { GLANCE } else { LOOK };
                self.acceptor.pause_until_bell_or(rest);
            }
            NoSlot::Full => self.acceptor.pause_until_bell(),
            NoSlot::OverLoweredLimit => self.acceptor.pause(CROWDED),
        }
    }

    /// Whether this worker needs no bell, because it watches all the time.
    pub(super) fn never_waits(&self) -> bool {
        self.refuses() && self.plan.service.spare == 0
    }

    /// Whether clients are refused rather than left in the queue. Not those of a listener that is about to be closed:
    /// they called while this was another service.
    fn refuses(&self) -> bool {
        self.acceptor.is_open() && self.plan.service.admission.overload != Overload::Queue
    }

    /// Every spare has a slot: as long as one waits, of whatever worker, there is room.
    fn a_spare_waits(&self) -> bool {
        self.plan.service.spare > 0 && self.scoreboard.processes().spares > 0
    }

    fn refuse_queued(&mut self, index: usize) -> Option<Slot> {
        // What has ended just now may have left a slot.
        if !self.children.is_empty() {
            self.spec.signals().fetch_pending();
            self.reap();
        }
        for _ in 0..AT_ONCE {
            if let Ok(slot) = self.claim() {
                return Some(slot);
            }
            match self.acceptor.accept(index) {
                Accepted::Connection(connection, peer) => self.turn_away(connection, peer),
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

    /// The kernel cannot give a connection now.
    pub(super) fn exhausted(&mut self, index: usize, error: &std::io::Error) {
        self.acceptor.pause(acceptor::EXHAUSTED);
        let address = self.plan.listeners.get(index).map_or("", String::as_str);
        self.acceptor.complain(&self.log, &self.plan.service.name, address, error);
    }

    fn turn_away(&mut self, connection: OwnedFd, peer: Peer) {
        let gate = self.spec.gate();
        // Who would not be let in anyway is told nothing.
        if !gate.is_proxy(peer) {
            if let Err(why) = gate.admit(peer, time::monotonic_usec(), None) {
                return self.refuse(why);
            }
        }
        self.refuse(Refusal::Limit);
        match &self.plan.service.admission.overload {
            Overload::Queue => {}
            Overload::Refuse { message } => self.lingering.say(message.as_bytes(), connection, &self.poller),
            Overload::Reset => stream::reset(connection),
        }
    }
}
