//! Connections whose worker has died: they go on, and the supervisor, their subreaper, counts and reaps them.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cgroups::Cgroups;
use super::event_source::EventSource;
use super::kept::Kept;
use super::service::{Adopter, ServiceState, ServiceStates};
use crate::admission::sources::SlotIndex;
use crate::admission::{Deadlines, SourceName};
use crate::client::{Connection, ConnectionId};
use crate::journal::Log;
use crate::scoreboard::{Count, CountUp, Counts, Owner, RowState, Slot};
use crate::spare::events::SpareEvents;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fd::FdNumber;
use crate::sys::process;
use crate::sys::time::Monotonic;
use crate::sys::wait::{Ended, Pid};
use crate::worker::children::{Books, Child, Children, InForce, Leaf};

/// The adopted connections. The scoreboard says where to look; what is kept here was checked.
#[derive(Debug)]
pub(super) struct AdoptedConnections {
    run: u32,
    children: Children<Adopter>,
    /// What spares say whose workers are dead, as long as some wait.
    late: Vec<LateEvents>,
}

/// A dead worker of which spares wait.
#[derive(Debug)]
struct LateEvents {
    record: LateRecord,
    events: Rc<SpareEvents>,
}

/// Which worker that was.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LateRecord {
    service: String,
    worker: u32,
}

/// The same, as it is saved.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedLateEvents {
    record: LateRecord,
    events: FdNumber,
}

/// Where a connection is found again that was adopted: its row has the rest.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AdoptedRecord {
    pid: Pid,
    service: String,
    worker: u32,
    slot: SlotIndex,
    connections: u32,
    /// Those that it has served before the one in its row, and that are not entered.
    ended: Vec<[u64; Connection::WORDS]>,
}

impl LateEvents {
    /// By edge: the end of the pipe is no news.
    fn watch(&self, poller: &Poller) -> io::Result<()> {
        poller.add(self.events.descriptor(), Interest::ReadEdge, EventSource::LateEvents.into())
    }
}

/// A worker that has died.
#[derive(Debug)]
pub(super) struct Dead<'a> {
    pub(super) serial: u32,
    /// Its number, which is that of the session of all that it has made: they lead groups, and who does cannot leave.
    pub(super) pid: Pid,
    pub(super) service_state: &'a Rc<ServiceState>,
    /// What its spares have said since it last listened.
    pub(super) events: &'a Rc<SpareEvents>,
    /// How many connections each of its processes serves.
    pub(super) connections: u32,
    /// Those without a connection will never have one: it would have handed it to them, and notes it before.
    pub(super) hands_over: bool,
    /// What it has counted.
    pub(super) counted: Counts,
    /// Where its processes are.
    pub(super) cgroups: &'a Cgroups,
}

impl AdoptedConnections {
    pub(super) fn new(run: u32) -> Self {
        AdoptedConnections { run, children: Children::new(0, Deadlines::default()), late: Vec::new() }
    }

    /// Takes over what a dead worker held. `is_worker` tells pids that cannot be connections. To be called before anything
    /// that it left is reaped. Returns how many connections go on.
    pub(super) fn adopt<'a>(
        &mut self,
        dead: &Dead<'_>,
        is_worker: impl Fn(Pid) -> bool,
        in_force: impl Fn(&str) -> Option<InForce<'a>>,
        log: &Log,
    ) -> usize {
        let state = dead.service_state;
        let its_own = in_force(&state.name);
        let books = Books { service: &state.name, log, counters: &**state, in_force: its_own, config: None };
        let mut ours = 0;
        for row in state.scoreboard.held_by(Owner::worker(dead.serial)) {
            // What it had counted as accepted and had not completed.
            ours += u64::from(matches!(row.state(), RowState::Serving | RowState::Ending));
            let slot = Slot::adopt(Adopter(Rc::clone(state)), row.slot);
            let id = self.id(dead.serial, 0);
            // Its number is from shared memory: it counts only if the kernel says that it is ours to reap, and was that
            // worker's.
            let is_its_own = |pid: Pid| process::session_of(pid) == Some(dead.pid);
            let is_ours =
                |&pid: &Pid| !is_worker(pid) && !self.has(pid) && process::is_child(pid) && is_its_own(pid);
            match (row.pid.filter(is_ours), row.connection) {
                (Some(pid), connection) => {
                    let leaf = dead.cgroups.leaf_of(pid, &state.name, dead.serial);
                    let child = Child::adopted(slot, id, dead.connections, &row).with_leaf(leaf);
                    self.children.insert(pid, child);
                    if dead.hands_over && connection.is_none() {
                        // One that waits goes by itself, but may be long about getting so far.
                        self.children.kill(pid);
                    }
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
        let record = LateRecord { service: state.name.clone(), worker: dead.serial };
        self.late.push(LateEvents { record, events: Rc::clone(dead.events) });
        self.hear_late(in_force, log);
        self.forget_late();
        // It may have died between freeing a slot and saying so.
        state.scoreboard.wake_all();
        // Not those that were served while nobody listened.
        let goes_on = |child: &Child<Adopter>| child.id().worker == dead.serial && !child.waits();
        self.children.iter().filter(|(_, child)| goes_on(child)).count()
    }

    fn id(&self, worker: u32, number: u64) -> ConnectionId {
        ConnectionId { run: self.run, worker, number }
    }

    /// Watches what spares of this dead worker say, if some wait: it may be long before the next process ends.
    pub(super) fn watch_late(&self, worker: u32, poller: &Poller) {
        if let Some(late) = self.late.iter().find(|late| late.record.worker == worker) {
            let _ = late.watch(poller);
        }
    }

    /// Whether spares of this dead worker wait. They go by themselves, unless they are taken before they know.
    fn waits(&self, worker: u32) -> bool {
        self.children.iter().any(|(_, child)| child.id().worker == worker && child.waits())
    }

    /// The service of an adopted process.
    pub(super) fn service_of(&self, pid: Pid) -> Option<&str> {
        self.children.get(pid).map(|child| child.slot().scoreboard().0.name.as_str())
    }

    /// The service of a spare that waited when its worker died.
    pub(super) fn service_of_spare(&self, pid: Pid) -> Option<&str> {
        let spare = self.children.get(pid).filter(|child| child.waits());
        spare.map(|child| child.slot().scoreboard().0.name.as_str())
    }

    /// Whether spares of dead workers of a service wait.
    pub(super) fn has_spares(&self, service: &str) -> bool {
        self.children.iter().any(|(_, child)| child.waits() && child.slot().scoreboard().0.name == service)
    }

    /// How many spares of dead workers have said that they were taken, and were not heard yet.
    pub(super) fn unheard(&self, service: &str) -> u32 {
        self.late.iter().filter(|late| late.record.service == service).map(|late| late.events.unread()).sum()
    }

    /// The cgroup of one that has ended, and the number of its worker.
    pub(super) fn take_leaf(&mut self, pid: Pid) -> Option<(u32, Leaf)> {
        let worker = self.children.get(pid)?.id().worker;
        Some((worker, self.children.take_leaf(pid)?))
    }

    /// Whether this process is one of them.
    pub(super) fn has(&self, pid: Pid) -> bool {
        self.children.get(pid).is_some()
    }

    /// Hears which spares of dead workers have been taken; returns of which services. `in_force` tells what is in force for one.
    pub(super) fn hear_late<'a>(
        &mut self,
        in_force: impl Fn(&str) -> Option<InForce<'a>>,
        log: &Log,
    ) -> Vec<String> {
        let (mut heard, children) = (Vec::new(), &mut self.children);
        for late in &self.late {
            late.events.read(|pid, connection| {
                let child = children.get(pid).filter(|child| child.id().worker == late.record.worker);
                let Some(state) = child.map(|child| Rc::clone(&child.slot().scoreboard().0)) else { return };
                if children.taken(pid, &connection, || state.count(Count::Accepted)) {
                    // The end of the one before was told to the dead worker alone.
                    let (service, in_force) = (state.name.as_str(), in_force(&state.name));
                    let books = Books { service, log, counters: &*state, in_force, config: None };
                    children.enter_unreported(pid, &books);
                    heard.push(late.record.service.clone());
                }
            });
        }
        heard
    }

    fn forget_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        self.late = late.into_iter().filter(|late| self.waits(late.record.worker)).collect();
    }

    /// A process has been reaped, and what it had to say was heard; false if it was none of them. `in_force` tells what is
    /// in force for a service.
    pub(super) fn ended<'a>(
        &mut self,
        ended: &Ended,
        in_force: impl FnOnce(&str) -> Option<InForce<'a>>,
        log: &Log,
        poller: &Poller,
    ) -> bool {
        let Some(child) = self.children.get(ended.pid) else { return false };
        let state = Rc::clone(&child.slot().scoreboard().0);
        let in_force = in_force(&state.name);
        let books = Books { service: &state.name, log, counters: &*state, in_force, config: None };
        let _departed = self.children.ended(ended, &books, poller);
        self.forget_late();
        true
    }

    /// The name of a connection that one of them serves.
    pub(super) fn id_of(&self, pid: Pid, number: u64) -> Option<ConnectionId> {
        self.children.get(pid).map(|child| ConnectionId { number, ..child.id() })
    }

    /// Ends one connection by hand; false if none of them has it.
    pub(super) fn end_by_hand(&mut self, wanted: ConnectionId) -> bool {
        self.children.end_by_hand(|id| id == wanted)
    }

    /// Ends those of a source that were accepted before this moment, of one service or all.
    pub(super) fn end_source(&mut self, source: SourceName, service: Option<&str>, before: Monotonic) {
        let is_of_it =
            |child: &Child<Adopter>| service.is_none_or(|wanted| child.slot().scoreboard().0.name == wanted);
        self.children
            .end_those(|child, client| is_of_it(child) && client.accepted < before && source.has(client));
    }

    /// Ends programs that have a listener of this service, or of any.
    pub(super) fn end_programs(&mut self, service: Option<&str>) {
        let is_of_it =
            |child: &Child<Adopter>| service.is_none_or(|wanted| child.slot().scoreboard().0.name == wanted);
        self.children.end_programs(is_of_it);
    }

    /// When a connection has to end.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.children.next_deadline()
    }

    /// Ends those whose time is over, as their worker would have.
    pub(super) fn tend(&mut self) {
        self.children.tend();
    }

    /// All of them, as they are saved.
    pub(super) fn save(&self) -> Vec<AdoptedRecord> {
        let save = |(pid, child): (Pid, &Child<Adopter>)| AdoptedRecord {
            pid,
            service: child.slot().scoreboard().0.name.clone(),
            worker: child.id().worker,
            slot: child.slot().index(),
            connections: child.connections(),
            ended: child.ended().map(Connection::to_words).collect(),
        };
        self.children.iter().map(save).collect()
    }

    /// The dead workers of which spares wait, as they are saved.
    pub(super) fn save_late<'a>(&'a self, kept: &mut Kept<'a>) -> Vec<SavedLateEvents> {
        let save = |late: &'a LateEvents| SavedLateEvents {
            record: late.record.clone(),
            events: kept.keep(late.events.descriptor()),
        };
        self.late.iter().map(save).collect()
    }

    /// Takes over what another program had adopted.
    pub(super) fn resume(
        run: u32,
        adopted: Vec<AdoptedRecord>,
        late: Vec<SavedLateEvents>,
        states: &ServiceStates,
        cgroups: &Cgroups,
        poller: &Poller,
    ) -> io::Result<Self> {
        let mut all = AdoptedConnections::new(run);
        for record in adopted {
            let state = states.of_saved(&record.service)?;
            let row = state.scoreboard.row(record.slot);
            let slot = Slot::adopt(Adopter(state), record.slot);
            let ended = record.ended.into_iter().filter_map(Connection::from_words);
            let child = Child::adopted(slot, all.id(record.worker, 0), record.connections, &row);
            let leaf = cgroups.leaf_of(record.pid, &record.service, record.worker);
            all.children.insert(record.pid, child.with_ended(ended).with_leaf(leaf));
        }
        for SavedLateEvents { record, events } in late {
            let events = Rc::new(SpareEvents::open(events.take()?));
            let late = LateEvents { record, events };
            late.watch(poller)?;
            all.late.push(late);
        }
        Ok(all)
    }

    /// Ends them with their process groups: SIGTERM, and SIGKILL after this time.
    pub(super) fn end_all(&mut self, kill_after: Duration) {
        self.children.end_all(kill_after);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }
}
