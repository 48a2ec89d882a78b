//! What is handed from one part of a worker to another.

use std::fmt;
use std::os::fd::OwnedFd;

use super::children::{Books, InForce};
use crate::admission::Admission;
use crate::child::ChildSpec;
use crate::client::{Client, ConnectionId};
use crate::ipc::orders::Plan;
use crate::journal::{Level, Log, MessageId};
use crate::scoreboard::{Count, Counters, Scoreboard, Slot};
use crate::sys::epoll::Poller;
use crate::sys::signal::Signals;

/// A slot of a worker.
pub(super) type WorkerSlot = Slot<&'static Scoreboard>;

/// A connection that has been accepted, and is not let in yet.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) slot: WorkerSlot,
    pub(super) socket: OwnedFd,
    pub(super) client: Client,
}

/// What all parts of a worker need, and none changes.
///
/// What children use too lives for ever and is only borrowed: their parent's stack, with this on it, is not theirs.
pub(super) struct Context {
    pub(super) plan: Plan,
    pub(super) log: Log,
    pub(super) poller: Poller,
    pub(super) counters: Counters,
    pub(super) scoreboard: &'static Scoreboard,
    pub(super) admission: &'static Admission,
    pub(super) spec: &'static ChildSpec,
    pub(super) signals: &'static Signals,
    /// Whether a copy of each connection is kept until its program has ended.
    pub(super) keeps_connections: bool,
}

impl Context {
    /// What ends are entered in.
    pub(super) fn books(&self) -> Books<'_> {
        let service = &self.plan.service;
        Books {
            service: &service.name,
            log: &self.log,
            counters: &self.counters,
            in_force: Some(InForce { admission: self.admission, records: service.records }),
            config: Some(service),
        }
    }

    /// Writes the records of this turn, and counts those that were lost.
    pub(super) fn write_records(&self) {
        self.log.flush();
        self.counters.set(Count::RecordsDropped, self.log.dropped());
    }

    pub(super) fn id(&self, number: u64) -> ConnectionId {
        ConnectionId { run: self.plan.run, worker: self.plan.serial, number }
    }

    pub(super) fn event(&self, level: Level, id: Option<MessageId>, text: fmt::Arguments<'_>) {
        self.log.event(level, id, Some(&self.plan.service.name), text);
    }
}
