//! Connections whose worker has died: they go on, and the supervisor, their subreaper, counts and reaps them.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::ledger::{Kept, LateEntry, OrphanEntry};
use super::service::Floor;
use crate::connection::deadline::GRACE;
use crate::journal::{ConnectionRecord, Exit, Log};
use crate::shared::{Caller, Calls, ConnectionId, Count, Deadline, Owner, Place, Totals};
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::wait::{Ended, Pid};

/// The supervisor's own ledger of connections. The board only says where to look; what is kept here was checked.
#[derive(Debug)]
pub(super) struct Orphans {
    run: u32,
    by_pid: HashMap<Pid, Orphan>,
    /// Of dead workers whose spares have not all gone or been called.
    late: Vec<LateCalls>,
}

#[derive(Debug)]
struct LateCalls {
    service: String,
    worker: u32,
    calls: Rc<Calls>,
}

#[derive(Debug)]
struct Orphan {
    service: String,
    worker: u32,
    floor: Rc<Floor>,
    slot: Place,
    caller: Caller,
    stage: Stage,
}

/// How far the end of an orphan by `max_lifetime` has come. Times are CLOCK_MONOTONIC in microseconds.
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
    pub(super) floor: &'a Rc<Floor>,
    /// What its spares have said since it last listened.
    pub(super) calls: &'a Rc<Calls>,
    /// What it has counted.
    pub(super) counted: Totals,
}

impl Orphans {
    pub(super) fn new(run: u32) -> Self {
        Orphans { run, by_pid: HashMap::new(), late: Vec::new() }
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
        let board = &dead.floor.board;
        let mut called = HashMap::new();
        dead.calls.read(|pid, caller| {
            called.insert(pid, caller);
        });
        let (mut adopted, mut ours) = (0, 0);
        for (slot, pid, mut caller) in board.held_by(Owner::worker(dead.serial)) {
            // What it had counted as accepted and had not completed.
            ours += u64::from(caller.number != 0);
            // A spare that the dead worker took for one that waits.
            if let Some(late) = pid.and_then(|pid| called.remove(&pid)).filter(|_| caller.number == 0) {
                caller = late;
                board.note(slot, &caller);
                dead.floor.add(|totals| totals.count(Count::Accepted));
            }
            let floor = Rc::clone(dead.floor);
            let orphan = Orphan {
                service: dead.service.to_owned(),
                worker: dead.serial,
                floor,
                slot,
                caller,
                stage: Stage::Lives,
            };
            let ended = pid.and_then(|pid| reaped.remove(&pid));
            let is_ours = |pid| !is_worker(pid) && !self.by_pid.contains_key(&pid) && process::is_child(pid);
            match (pid, ended) {
                (_, Some(ended)) => self.finish(&orphan, &ended, Exit::Ended(ended.ending), log),
                // Its number is from shared memory: it counts only if the kernel says that it is ours to reap.
                (Some(pid), None) if is_ours(pid) => {
                    board.hand_on(slot, Owner::SUPERVISOR);
                    adopted += usize::from(caller.number != 0);
                    self.by_pid.insert(pid, orphan);
                }
                // The worker died before it had accepted.
                _ if caller.number == 0 => board.release(slot),
                // It died before it forked, or after it had reaped: nobody is left who knows how that ended.
                (pid, None) => {
                    let unknown = Ended { pid: pid.unwrap_or(0), ..Ended::default() };
                    self.finish(&orphan, &unknown, Exit::Lost, log);
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
        dead.floor.add(|totals| totals.add(counted));
        // It may have died between freeing a slot and ringing.
        board.ring();
        adopted
    }

    /// Whether spares of this dead worker wait. They go by themselves, unless they are called before they know.
    pub(super) fn waits(&self, worker: u32) -> bool {
        self.by_pid.values().any(|orphan| orphan.worker == worker && orphan.caller.number == 0)
    }

    /// The service of a spare that waited when its worker died.
    pub(super) fn service_of_spare(&self, pid: Pid) -> Option<&str> {
        let orphan = self.by_pid.get(&pid).filter(|orphan| orphan.caller.number == 0);
        orphan.map(|orphan| orphan.service.as_str())
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
            late.calls.read(|pid, caller| {
                let orphan = self.by_pid.get_mut(&pid);
                let waits = |orphan: &&mut Orphan| orphan.worker == late.worker && orphan.caller.number == 0;
                if let Some(orphan) = orphan.filter(waits) {
                    orphan.caller = caller;
                    orphan.floor.board.note(orphan.slot, &caller);
                    orphan.floor.add(|totals| totals.count(Count::Accepted));
                    heard.push(late.service.clone());
                }
            });
        }
        heard
    }

    /// A process has been reaped, and what it had to say was heard; false if it was no orphan.
    pub(super) fn ended(&mut self, ended: &Ended, log: &Log) -> bool {
        match self.by_pid.remove(&ended.pid) {
            Some(orphan) => {
                let exit = match orphan.stage {
                    Stage::Lives => Exit::Ended(ended.ending),
                    Stage::Told(_) | Stage::Killed => Exit::TimedOut(Deadline::Lifetime),
                };
                self.finish(&orphan, ended, exit, log);
                if !self.waits(orphan.worker) {
                    self.late.retain(|late| late.worker != orphan.worker);
                }
                true
            }
            None => false,
        }
    }

    fn finish(&self, orphan: &Orphan, ended: &Ended, exit: Exit<'_>, log: &Log) {
        orphan.floor.board.release(orphan.slot);
        let caller = orphan.caller;
        if caller.number == 0 {
            // A spare that nobody has called.
            return;
        }
        orphan.floor.add(|totals| {
            totals.count(Count::Completed);
            if ended.ending.is_crash() {
                totals.count(Count::Crashes);
            }
            if matches!(exit, Exit::TimedOut(_)) {
                totals.count(Count::Timeouts);
            }
        });
        let id = ConnectionId { run: self.run, worker: orphan.worker, number: caller.number };
        log.connection(&ConnectionRecord::new(&orphan.service, id, &caller, ended, exit));
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
        for (pid, orphan) in self.by_pid.iter_mut().filter(|(_, orphan)| orphan.caller.number != 0) {
            let Some(lifetime) = lifetime(&orphan.service) else { continue };
            let due = match orphan.stage {
                Stage::Lives => orphan.caller.accepted_usec.saturating_add(usec(lifetime)),
                Stage::Told(at) => at.saturating_add(usec(GRACE)),
                Stage::Killed => continue,
            };
            let due = if due > now {
                due
            } else if orphan.stage == Stage::Lives {
                process::signal_group(*pid, Signal::SIGTERM);
                orphan.stage = Stage::Told(now);
                now.saturating_add(usec(GRACE))
            } else {
                process::signal_group(*pid, Signal::SIGKILL);
                orphan.stage = Stage::Killed;
                continue;
            };
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        next
    }

    /// All of them, for the ledger.
    pub(super) fn entries(&self) -> Vec<OrphanEntry> {
        let entry = |(pid, orphan): (&Pid, &Orphan)| OrphanEntry {
            pid: *pid,
            service: orphan.service.clone(),
            worker: orphan.worker,
            slot: orphan.slot,
            caller: orphan.caller,
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
    pub(super) fn take_over_late(&mut self, service: String, worker: u32, calls: Rc<Calls>) {
        self.late.push(LateCalls { service, worker, calls });
    }

    /// Takes one over from the ledger.
    pub(super) fn take_over(&mut self, entry: OrphanEntry, floor: Rc<Floor>) {
        let OrphanEntry { pid, service, worker, slot, caller } = entry;
        self.by_pid.insert(pid, Orphan { service, worker, floor, slot, caller, stage: Stage::Lives });
    }

    /// The floor of a service, if a connection of it is here.
    pub(super) fn floor_of(&self, service: &str) -> Option<&Rc<Floor>> {
        self.by_pid.values().find(|orphan| orphan.service == service).map(|orphan| &orphan.floor)
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
