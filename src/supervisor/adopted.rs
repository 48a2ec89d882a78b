//! Connections whose worker has died: they go on, and the supervisor, their subreaper, counts and reaps them.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::ledger::{Kept, LateEntry, OrphanEntry};
use super::service::ServiceState;
use crate::admission::sources::SlotIndex;
use crate::admission::{Deadline, GRACE};
use crate::client::{Client, ConnectionId};
use crate::journal::{ConnectionRecord, Exit, Log};
use crate::scoreboard::{Count, Counts, Owner};
use crate::spare::events::SpareEvents;
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::wait::{Ended, Pid};

/// The supervisor's own ledger of connections. The scoreboard only says where to look; what is kept here was checked.
#[derive(Debug)]
pub(super) struct AdoptedConnections {
    run: u32,
    by_pid: HashMap<Pid, Adopted>,
    /// Of dead workers whose spares have not all gone or been called.
    late: Vec<LateCalls>,
}

#[derive(Debug)]
struct LateCalls {
    service: String,
    worker: u32,
    calls: Rc<SpareEvents>,
}

#[derive(Debug)]
struct Adopted {
    service: String,
    worker: u32,
    service_state: Rc<ServiceState>,
    slot: SlotIndex,
    client: Client,
    stage: Stage,
}

/// How far the end of an adopted by `max_lifetime` has come. Times are CLOCK_MONOTONIC in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Lives,
    /// It was told to end, at this time.
    Told(u64),
    Killed,
}

/// A worker that has died.
#[derive(Debug)]
pub(super) struct Dead<'a> {
    pub(super) serial: u32,
    pub(super) service: &'a str,
    pub(super) service_state: &'a Rc<ServiceState>,
    /// What its spares have said since it last listened.
    pub(super) calls: &'a Rc<SpareEvents>,
    /// What it has counted.
    pub(super) counted: Counts,
}

impl AdoptedConnections {
    pub(super) fn new(run: u32) -> Self {
        AdoptedConnections { run, by_pid: HashMap::new(), late: Vec::new() }
    }

    /// Takes over what a dead worker held. `reaped` are the processes that were reaped together with it: when a worker
    /// dies its children become the supervisor's in the same instant, so none of them can have been reaped earlier.
    /// `is_worker` tells pids that cannot be connections. Returns how many connections go on.
    pub(super) fn adopt(
        &mut self,
        dead: &Dead<'_>,
        reaped: &mut HashMap<Pid, Ended>,
        is_worker: impl Fn(Pid) -> bool,
        log: &Log,
    ) -> usize {
        let scoreboard = &dead.service_state.scoreboard;
        let mut called = HashMap::new();
        dead.calls.read(|pid, client| {
            called.insert(pid, client);
        });
        let (mut going_on, mut ours) = (0, 0);
        for (slot, pid, mut client) in scoreboard.held_by(Owner::worker(dead.serial)) {
            // What it had counted as accepted and had not completed.
            ours += u64::from(client.number != 0);
            // A spare that the dead worker took for one that waits.
            if let Some(late) = pid.and_then(|pid| called.remove(&pid)).filter(|_| client.number == 0) {
                client = late;
                scoreboard.note(slot, &client);
                dead.service_state.add(|totals| totals.count(Count::Accepted));
            }
            let service_state = Rc::clone(dead.service_state);
            let adopted = Adopted {
                service: dead.service.to_owned(),
                worker: dead.serial,
                service_state,
                slot,
                client,
                stage: Stage::Lives,
            };
            let ended = pid.and_then(|pid| reaped.remove(&pid));
            let is_ours = |pid| !is_worker(pid) && !self.by_pid.contains_key(&pid) && process::is_child(pid);
            match (pid, ended) {
                (_, Some(ended)) => self.finish(&adopted, &ended, Exit::Ended(ended.ending), log),
                // Its number is from shared memory: it counts only if the kernel says that it is ours to reap.
                (Some(pid), None) if is_ours(pid) => {
                    scoreboard.hand_on(slot, Owner::SUPERVISOR);
                    going_on += usize::from(client.number != 0);
                    self.by_pid.insert(pid, adopted);
                }
                // The worker died before it had accepted.
                _ if client.number == 0 => scoreboard.release(slot),
                // It died before it forked, or after it had reaped: nobody is left who knows how that ended.
                (pid, None) => {
                    let unknown = Ended { pid: pid.unwrap_or(0), ..Ended::default() };
                    self.finish(&adopted, &unknown, Exit::Lost, log);
                }
            }
        }
        if self.waits(dead.serial) {
            let (service, calls) = (dead.service.to_owned(), Rc::clone(dead.calls));
            self.late.push(LateCalls { service, worker: dead.serial, calls });
        }
        // It may have died between counting a connection as completed and giving its slot back, or between counting it
        // as accepted and noting it. So what it accepted and is not ours to complete, it has completed.
        let mut counted = dead.counted;
        counted.set(Count::Completed, counted.get(Count::Accepted).saturating_sub(ours));
        dead.service_state.add(|totals| totals.add(counted));
        // It may have died between freeing a slot and ringing.
        scoreboard.ring();
        going_on
    }

    /// Whether spares of this dead worker wait. They go by themselves, unless they are called before they know.
    pub(super) fn waits(&self, worker: u32) -> bool {
        self.by_pid.values().any(|adopted| adopted.worker == worker && adopted.client.number == 0)
    }

    /// The service of a spare that waited when its worker died.
    pub(super) fn service_of_spare(&self, pid: Pid) -> Option<&str> {
        let adopted = self.by_pid.get(&pid).filter(|adopted| adopted.client.number == 0);
        adopted.map(|adopted| adopted.service.as_str())
    }

    /// How many spares of dead workers have said that they were called, and were not heard yet.
    pub(super) fn called_late(&self, service: &str) -> u32 {
        self.late.iter().filter(|late| late.service == service).map(|late| late.calls.unread()).sum()
    }

    /// Whether this process is one of them.
    pub(super) fn has(&self, pid: Pid) -> bool {
        self.by_pid.contains_key(&pid)
    }

    /// Learns which spares of dead workers have been called; returns of which services.
    pub(super) fn hear_late_calls(&mut self) -> Vec<String> {
        let mut heard = Vec::new();
        for late in &self.late {
            late.calls.read(|pid, client| {
                let adopted = self.by_pid.get_mut(&pid);
                let waits =
                    |adopted: &&mut Adopted| adopted.worker == late.worker && adopted.client.number == 0;
                if let Some(adopted) = adopted.filter(waits) {
                    adopted.client = client;
                    adopted.service_state.scoreboard.note(adopted.slot, &client);
                    adopted.service_state.add(|totals| totals.count(Count::Accepted));
                    heard.push(late.service.clone());
                }
            });
        }
        heard
    }

    /// A process has been reaped, and what it had to say was heard; false if it was no adopted.
    pub(super) fn ended(&mut self, ended: &Ended, log: &Log) -> bool {
        match self.by_pid.remove(&ended.pid) {
            Some(adopted) => {
                let exit = match adopted.stage {
                    Stage::Lives => Exit::Ended(ended.ending),
                    Stage::Told(_) | Stage::Killed => Exit::TimedOut(Deadline::Lifetime),
                };
                self.finish(&adopted, ended, exit, log);
                if !self.waits(adopted.worker) {
                    self.late.retain(|late| late.worker != adopted.worker);
                }
                true
            }
            None => false,
        }
    }

    fn finish(&self, adopted: &Adopted, ended: &Ended, exit: Exit<'_>, log: &Log) {
        adopted.service_state.scoreboard.release(adopted.slot);
        let client = adopted.client;
        if client.number == 0 {
            // A spare that nobody has called.
            return;
        }
        adopted.service_state.add(|totals| {
            totals.count(Count::Completed);
            if ended.ending.is_crash() {
                totals.count(Count::Crashes);
            }
            if matches!(exit, Exit::TimedOut(_)) {
                totals.count(Count::Timeouts);
            }
        });
        let id = ConnectionId { run: self.run, worker: adopted.worker, number: client.number };
        log.connection(&ConnectionRecord::new(&adopted.service, id, &client, ended, exit));
    }

    /// Ends those that have lived for as long as `lifetime` says of their service, as their worker would have. Returns when
    /// to look again.
    pub(super) fn end_overdue(
        &mut self,
        now: u64,
        lifetime: impl Fn(&str) -> Option<Duration>,
    ) -> Option<u64> {
        let usec = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut next: Option<u64> = None;
        for (pid, adopted) in self.by_pid.iter_mut().filter(|(_, adopted)| adopted.client.number != 0) {
            let Some(lifetime) = lifetime(&adopted.service) else { continue };
            let due = match adopted.stage {
                Stage::Lives => adopted.client.accepted_usec.saturating_add(usec(lifetime)),
                Stage::Told(at) => at.saturating_add(usec(GRACE)),
                Stage::Killed => continue,
            };
            let due = if due > now {
                due
            } else if adopted.stage == Stage::Lives {
                process::signal_group(*pid, Signal::SIGTERM);
                adopted.stage = Stage::Told(now);
                now.saturating_add(usec(GRACE))
            } else {
                process::signal_group(*pid, Signal::SIGKILL);
                adopted.stage = Stage::Killed;
                continue;
            };
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        next
    }

    /// All of them, for the ledger.
    pub(super) fn entries(&self) -> Vec<OrphanEntry> {
        let entry = |(pid, adopted): (&Pid, &Adopted)| OrphanEntry {
            pid: *pid,
            service: adopted.service.clone(),
            worker: adopted.worker,
            slot: adopted.slot,
            client: adopted.client,
        };
        self.by_pid.iter().map(entry).collect()
    }

    /// The dead workers of which spares wait, for the ledger.
    pub(super) fn late_entries<'a>(&'a self, kept: &mut Kept<'a>) -> Vec<LateEntry> {
        let entry = |late: &'a LateCalls| LateEntry {
            service: late.service.clone(),
            worker: late.worker,
            calls: kept.keep(late.calls.descriptor()),
        };
        self.late.iter().map(entry).collect()
    }

    /// Takes one of them over from the ledger, and its pipe.
    pub(super) fn take_over_late(&mut self, service: String, worker: u32, calls: Rc<SpareEvents>) {
        self.late.push(LateCalls { service, worker, calls });
    }

    /// Takes one over from the ledger.
    pub(super) fn take_over(&mut self, entry: OrphanEntry, service_state: Rc<ServiceState>) {
        let OrphanEntry { pid, service, worker, slot, client } = entry;
        self.by_pid
            .insert(pid, Adopted { service, worker, service_state, slot, client, stage: Stage::Lives });
    }

    /// The service_state of a service, if a connection of it is here.
    pub(super) fn service_state_of(&self, service: &str) -> Option<&Rc<ServiceState>> {
        self.by_pid.values().find(|adopted| adopted.service == service).map(|adopted| &adopted.service_state)
    }

    /// Signals them with their process groups.
    pub(super) fn signal(&self, signal: Signal) {
        for pid in self.by_pid.keys() {
            process::signal_group(*pid, signal);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }
}
