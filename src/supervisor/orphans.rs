//! Connections whose worker has died: they go on, and the supervisor, their subreaper, counts and reaps them.

use std::collections::HashMap;
use std::rc::Rc;

use super::ledger::OrphanEntry;
use super::service::Floor;
use crate::journal::{ConnectionRecord, Exit, Log};
use crate::shared::{Caller, ConnectionId, Count, Owner, Place, Tally, Totals};
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::wait::{Ended, Pid};

/// The supervisor's own ledger of connections. The board only says where to look; what is kept here was checked.
#[derive(Debug)]
pub(super) struct Orphans {
    run: u32,
    by_pid: HashMap<Pid, Orphan>,
    /// The counters of dead workers, by serial number, while spares of them live that count a last connection there.
    tallies: HashMap<u32, Counted>,
}

#[derive(Debug)]
struct Counted {
    floor: Rc<Floor>,
    tally: Rc<Tally>,
    /// Connections of its that are completed here: those that lived when it died, and of its spares those that were
    /// called since and have ended.
    ours: u64,
}

#[derive(Debug)]
struct Orphan {
    service: String,
    worker: u32,
    floor: Rc<Floor>,
    slot: Place,
    /// As it was when the worker died: nobody, for a spare that still waited.
    caller: Caller,
}

impl Orphan {
    fn was_waiting(&self) -> bool {
        self.caller.number == 0
    }
}

/// A worker that has died.
#[derive(Debug)]
pub(super) struct Dead<'a> {
    pub(super) serial: u32,
    pub(super) service: &'a str,
    pub(super) floor: &'a Rc<Floor>,
    pub(super) tally: &'a Rc<Tally>,
}

impl Orphans {
    pub(super) fn new(run: u32) -> Self {
        Orphans { run, by_pid: HashMap::new(), tallies: HashMap::new() }
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
        let mut adopted = 0;
        let mut ours = 0;
        for (slot, pid, caller) in board.held_by(Owner::worker(dead.serial)) {
            let floor = Rc::clone(dead.floor);
            let orphan =
                Orphan { service: dead.service.to_owned(), worker: dead.serial, floor, slot, caller };
            let ended = pid.and_then(|pid| reaped.remove(&pid));
            let is_ours = |pid| !is_worker(pid) && !self.by_pid.contains_key(&pid) && process::is_child(pid);
            match (pid, ended) {
                (_, Some(ended)) => {
                    ours += u64::from(self.finish(&orphan, &ended, Exit::Ended(ended.ending), log));
                }
                // Its number is from shared memory: it counts only if the kernel says that it is ours to reap.
                (Some(pid), None) if is_ours(pid) => {
                    board.hand_on(slot, Owner::SUPERVISOR);
                    adopted += usize::from(!orphan.was_waiting());
                    ours += u64::from(!orphan.was_waiting());
                    self.by_pid.insert(pid, orphan);
                }
                // The worker died before it had accepted.
                _ if caller.number == 0 => board.release(slot),
                // It died before it forked, or after it had reaped: nobody is left who knows how that ended.
                (pid, None) => {
                    let unknown = Ended { pid: pid.unwrap_or(0), ..Ended::default() };
                    ours += u64::from(self.finish(&orphan, &unknown, Exit::Lost, log));
                }
            }
        }
        let counted = Counted { floor: Rc::clone(dead.floor), tally: Rc::clone(dead.tally), ours };
        self.tallies.insert(dead.serial, counted);
        self.close_tally(dead.serial);
        // It may have died between freeing a slot and ringing.
        board.ring();
        adopted
    }

    /// A process has been reaped; false if it was no orphan.
    pub(super) fn ended(&mut self, ended: &Ended, log: &Log) -> bool {
        match self.by_pid.remove(&ended.pid) {
            Some(orphan) => {
                let was_called = self.finish(&orphan, ended, Exit::Ended(ended.ending), log);
                if orphan.was_waiting() {
                    if let Some(counted) = self.tallies.get_mut(&orphan.worker) {
                        counted.ours += u64::from(was_called);
                    }
                    self.close_tally(orphan.worker);
                }
                true
            }
            None => false,
        }
    }

    /// Writes the record and gives the slot back; false if there was no connection.
    fn finish(&self, orphan: &Orphan, ended: &Ended, exit: Exit<'_>, log: &Log) -> bool {
        let board = &orphan.floor.board;
        let caller = match orphan.caller.number {
            // A spare, which may have been called since its worker died.
            0 => board.called(orphan.slot),
            _ => Some(orphan.caller),
        };
        board.release(orphan.slot);
        let Some(caller) = caller else { return false };
        orphan.floor.add(|totals| {
            totals.count(Count::Completed);
            if ended.ending.is_crash() {
                totals.count(Count::Crashes);
            }
        });
        let id = ConnectionId { run: self.run, worker: orphan.worker, number: caller.number };
        log.connection(&ConnectionRecord::new(&orphan.service, id, &caller, ended, exit));
        true
    }

    /// Adds up what a dead worker and its spares have counted, when there are no spares of it left.
    fn close_tally(&mut self, worker: u32) {
        if self.waiting(worker).next().is_none() {
            if let Some(counted) = self.tallies.remove(&worker) {
                let totals = self.add_up(worker, &counted);
                counted.floor.add(|sum| sum.add(totals));
            }
        }
    }

    /// Its spares that live.
    fn waiting(&self, worker: u32) -> impl Iterator<Item = &Orphan> {
        self.by_pid.values().filter(move |orphan| orphan.worker == worker && orphan.was_waiting())
    }

    /// What a dead worker and its spares have counted. It may have died between counting a connection as completed and
    /// giving its slot back, or the other way round at the beginning. So what it accepted and is not ours to complete,
    /// it has completed.
    fn add_up(&self, worker: u32, counted: &Counted) -> Totals {
        let called = |orphan: &&Orphan| orphan.floor.board.called(orphan.slot).is_some();
        let ours = counted.ours + self.waiting(worker).filter(called).count() as u64;
        let mut totals = counted.tally.totals();
        totals.set(Count::Completed, totals.get(Count::Accepted).wrapping_sub(ours));
        totals
    }

    /// What dead workers have counted on this floor that is not added to it yet.
    pub(super) fn totals(&self, floor: &Floor) -> Totals {
        let mut totals = Totals::default();
        for (worker, counted) in &self.tallies {
            if std::ptr::eq(&*counted.floor, floor) {
                totals.add(self.add_up(*worker, counted));
            }
        }
        totals
    }

    /// The service of a spare that waited when its worker died.
    pub(super) fn service_of_spare(&self, pid: Pid) -> Option<&str> {
        let orphan = self.by_pid.get(&pid).filter(|orphan| orphan.was_waiting());
        orphan.map(|orphan| orphan.service.as_str())
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

    /// Takes one over from the ledger.
    pub(super) fn take_over(&mut self, entry: OrphanEntry, floor: Rc<Floor>) {
        let OrphanEntry { pid, service, worker, slot, caller } = entry;
        self.by_pid.insert(pid, Orphan { service, worker, floor, slot, caller });
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
