//! Connections whose worker has died: they go on, and the supervisor, their subreaper, counts and reaps them.

use std::rc::Rc;

use super::ledger::{AdoptedEntry, Kept, LateEntry};
use super::service::{Adopter, ServiceState};
use crate::admission::{Admission, Deadlines};
use crate::client::ConnectionId;
use crate::journal::Log;
use crate::scoreboard::{Count, CountUp, Counts, Owner, RowState, Slot};
use crate::spare::events::SpareEvents;
use crate::sys::epoll::Poller;
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::time::Monotonic;
use crate::sys::wait::{Ended, Pid};
use crate::worker::children::{Books, Child, Children};

/// The adopted connections. The scoreboard says where to look; what is kept here was checked.
#[derive(Debug)]
pub(super) struct AdoptedConnections {
    run: u32,
    children: Children<Adopter>,
    /// What spares say whose workers are dead, as long as some wait.
    late: Vec<LateEvents>,
}

#[derive(Debug)]
struct LateEvents {
    service: String,
    worker: u32,
    events: Rc<SpareEvents>,
}

/// A worker that has died.
#[derive(Debug)]
pub(super) struct Dead<'a> {
    pub(super) serial: u32,
    pub(super) service_state: &'a Rc<ServiceState>,
    /// What its spares have said since it last listened.
    pub(super) events: &'a Rc<SpareEvents>,
    /// How many connections each of its processes serves.
    pub(super) connections: u32,
    /// What it has counted.
    pub(super) counted: Counts,
}

impl AdoptedConnections {
    pub(super) fn new(run: u32) -> Self {
        AdoptedConnections { run, children: Children::new(0, Deadlines::default()), late: Vec::new() }
    }

    /// Takes over what a dead worker held. `is_worker` tells pids that cannot be connections. To be called before anything
    /// that it left is reaped. Returns how many connections go on.
    pub(super) fn adopt(
        &mut self,
        dead: &Dead<'_>,
        is_worker: impl Fn(Pid) -> bool,
        admission: Option<&Admission>,
        log: &Log,
    ) -> usize {
        let state = dead.service_state;
        let books = Books { service: &state.name, log, counters: &**state, admission, config: None };
        let (mut going_on, mut ours) = (0, 0);
        for row in state.scoreboard.held_by(Owner::worker(dead.serial)) {
            // What it had counted as accepted and had not completed.
            ours += u64::from(matches!(row.state(), RowState::Serving | RowState::Ending));
            let slot = Slot::adopt(Adopter(Rc::clone(state)), row.slot);
            let id = self.id(dead.serial, 0);
            // Its number is from shared memory: it counts only if the kernel says that it is ours to reap.
            let is_ours = |&pid: &Pid| !is_worker(pid) && !self.has(pid) && process::is_child(pid);
            match (row.pid.filter(is_ours), row.connection) {
                (Some(pid), connection) => {
                    going_on += usize::from(connection.is_some());
                    self.children.insert(pid, Child::adopted(slot, id, dead.connections, &row));
                }
                // The worker died before it had accepted.
                (None, None) => {}
                // It died before it forked, or after it had reaped: nobody is left who knows how that ended.
                (None, Some(connection)) => {
                    let id = self.id(dead.serial, connection.number);
                    books.lost(id, &connection.client, row.pid.unwrap_or(0), &slot);
                }
            }
        }
        // It may have died between counting a connection as completed and giving its slot back, or between counting it
        // as accepted and noting it. So what it accepted and is not ours to complete, it has completed.
        let mut counted = dead.counted;
        counted.set(Count::Completed, counted.get(Count::Accepted).saturating_sub(ours));
        state.add(|counts| counts.add(counted));
        self.late.push(LateEvents {
            service: state.name.clone(),
            worker: dead.serial,
            events: Rc::clone(dead.events),
        });
        going_on += self.hear_late().len();
        self.forget_late();
        // It may have died between freeing a slot and saying so.
        state.scoreboard.wake_all();
        going_on
    }

    fn id(&self, worker: u32, number: u64) -> ConnectionId {
        ConnectionId { run: self.run, worker, number }
    }

    /// Whether spares of this dead worker wait. They go by themselves, unless they are taken before they know.
    pub(super) fn waits(&self, worker: u32) -> bool {
        self.children.iter().any(|(_, child)| child.id().worker == worker && child.waits())
    }

    /// The service of a spare that waited when its worker died.
    pub(super) fn service_of_spare(&self, pid: Pid) -> Option<&str> {
        let spare = self.children.get(pid).filter(|child| child.waits());
        spare.map(|child| child.slot().scoreboard().0.name.as_str())
    }

    /// How many spares of dead workers have said that they were taken, and were not heard yet.
    pub(super) fn unheard(&self, service: &str) -> u32 {
        self.late.iter().filter(|late| late.service == service).map(|late| late.events.unread()).sum()
    }

    /// Whether this process is one of them.
    pub(super) fn has(&self, pid: Pid) -> bool {
        self.children.get(pid).is_some()
    }

    /// Hears which spares of dead workers have been taken; returns of which services.
    pub(super) fn hear_late(&mut self) -> Vec<String> {
        let (mut heard, children) = (Vec::new(), &mut self.children);
        for late in &self.late {
            late.events.read(|pid, connection| {
                let child = children.get(pid).filter(|child| child.id().worker == late.worker);
                let Some(state) = child.map(|child| Rc::clone(&child.slot().scoreboard().0)) else { return };
                if children.taken(pid, &connection, || state.count(Count::Accepted)) {
                    heard.push(late.service.clone());
                }
            });
        }
        heard
    }

    fn forget_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        self.late = late.into_iter().filter(|late| self.waits(late.worker)).collect();
    }

    /// A process has been reaped, and what it had to say was heard; false if it was none of them. `admission` tells what is
    /// in force for a service.
    pub(super) fn ended<'a>(
        &mut self,
        ended: &Ended,
        admission: impl FnOnce(&str) -> Option<&'a Admission>,
        log: &Log,
        poller: &Poller,
    ) -> bool {
        let Some(child) = self.children.get(ended.pid) else { return false };
        let state = Rc::clone(&child.slot().scoreboard().0);
        let admission = admission(&state.name);
        let books = Books { service: &state.name, log, counters: &*state, admission, config: None };
        let _departed = self.children.ended(ended, &books, poller);
        self.forget_late();
        true
    }

    /// When a connection has to end.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.children.next_deadline()
    }

    /// Ends those whose time is over, as their worker would have.
    pub(super) fn tend(&mut self) {
        self.children.tend();
    }

    /// All of them, for the ledger.
    pub(super) fn entries(&self) -> Vec<AdoptedEntry> {
        let entry = |(pid, child): (Pid, &Child<Adopter>)| AdoptedEntry {
            pid,
            service: child.slot().scoreboard().0.name.clone(),
            worker: child.id().worker,
            slot: child.slot().index(),
            connections: child.connections(),
        };
        self.children.iter().map(entry).collect()
    }

    /// The dead workers of which spares wait, for the ledger.
    pub(super) fn late_entries<'a>(&'a self, kept: &mut Kept<'a>) -> Vec<LateEntry> {
        let entry = |late: &'a LateEvents| LateEntry {
            service: late.service.clone(),
            worker: late.worker,
            calls: kept.keep(late.events.descriptor()),
        };
        self.late.iter().map(entry).collect()
    }

    /// Takes one of them over from the ledger, and its pipe.
    pub(super) fn take_over_late(&mut self, service: String, worker: u32, events: Rc<SpareEvents>) {
        self.late.push(LateEvents { service, worker, events });
    }

    /// Takes one over from the ledger.
    pub(super) fn take_over(&mut self, entry: &AdoptedEntry, state: Rc<ServiceState>) {
        let row = state.scoreboard.row(entry.slot);
        let slot = Slot::adopt(Adopter(state), entry.slot);
        let child = Child::adopted(slot, self.id(entry.worker, 0), entry.connections, &row);
        self.children.insert(entry.pid, child);
    }

    /// The state of a service, if a connection of it is here.
    pub(super) fn service_state_of(&self, service: &str) -> Option<&Rc<ServiceState>> {
        let mut states = self.children.iter().map(|(_, child)| &child.slot().scoreboard().0);
        states.find(|state| state.name == service)
    }

    /// Signals them with their process groups.
    pub(super) fn signal(&self, signal: Signal) {
        self.children.signal(signal);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }
}
