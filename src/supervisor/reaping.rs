//! Every process that has ended, and what follows from it.

use std::time::Duration;

use super::Supervisor;
use super::adopted::Dead;
use super::purpose::Purpose;
use super::service::Service;
use super::state::State;
use super::wording::seconds;
use super::workers::{WorkerProcess, WorkerStage};
use crate::config::KillMode;
use crate::exit;
use crate::ipc::orders::LeftOver;
use crate::ipc::reports::ExitNote;
use crate::journal::{Level, MessageId};
use crate::scoreboard::{Count, CountUp, Owner};
use crate::sys::process;
use crate::sys::time::Monotonic;
use crate::sys::wait::{self, Ended, Ending, Pid};
use crate::worker::children::Leaf;
use crate::worker::children::rest::{self, GroupRest, LeafRest};

impl Supervisor {
    /// Reaps all that have ended.
    ///
    /// Workers come first, and of each what it left is adopted before anything of that is reaped. When a worker dies the
    /// kernel makes its children ours and itself a zombie in one step; so whoever comes to us has a worker that can be
    /// found here, or left one before.
    pub(super) fn reap(&mut self, now: Monotonic) {
        self.bury_workers(now);
        while let Some(pid) = wait::ended() {
            if !self.state.adopted.has(pid) {
                // A worker, or of one that has died since.
                self.bury_workers(now);
            }
            let leaf = self.state.adopted.take_leaf(pid);
            let rest = if leaf.is_some() { None } else { self.end_rest(pid) };
            let (note, session) = (self.note_of(pid), process::session_of(pid));
            // It may have been a worker, and is gone.
            let Ok(Some(ended)) = wait::reap_one(pid) else { continue };
            let ended = ExitNote::correct(note, ended);
            self.end_leaf(pid, leaf, now);
            if let (Some((service, kill_after)), Some(session)) =
                (rest.and_then(|(service, rest)| Some((service, rest.left(pid)?))), session)
            {
                self.state.left_behind.add(&service, (pid, session), kill_after.map(|time| now + time));
            }
            self.hear_late();
            let state = &mut self.state;
            if let Some(service) = state.adopted.service_of_spare(pid) {
                // The one connection that it was woken for may still be queued.
                state.workers.look(service);
            }
            let generation = &state.generation;
            let in_force = |name: &str| generation.service(name).map(Service::in_force);
            if !state.adopted.ended(&ended, in_force, &self.log, &self.poller) {
                // A process that a connection process left behind.
                self.log.debug(None, format_args!("reaped process {pid}, {}", ended.ending));
                state.left_behind.forget_gone();
            }
        }
        let State { cgroups, workers, .. } = &mut self.state;
        cgroups.tidy(|serial| workers.get(serial).is_some());
    }

    /// Does what is to be done about the group of an adopted process that has ended. Who has a service no more has no way to
    /// be left behind.
    fn end_rest(&self, pid: Pid) -> Option<(String, GroupRest)> {
        let service = self.state.adopted.service_of(pid)?;
        Some((service.to_owned(), rest::end(pid, self.kill_mode(service))))
    }

    fn kill_mode(&self, service: &str) -> KillMode {
        let in_force = self.state.generation.service(service);
        in_force.map_or(KillMode::Group { grace: Duration::ZERO }, |service| service.config().kill_mode)
    }

    /// The same about its cgroup, when it has been reaped. What is empty then goes with those of its worker.
    fn end_leaf(&mut self, pid: Pid, leaf: Option<(u32, Leaf)>, now: Monotonic) {
        let Some((worker, leaf)) = leaf else { return };
        let Some(service) = self.state.adopted.service_of(pid).map(str::to_owned) else { return };
        if let LeafRest::Left(number, kill_after) = rest::end_leaf(leaf, self.kill_mode(&service)) {
            self.leave_leaf_behind((&service, worker, number), kill_after, now);
        }
    }

    /// What the first process of a namespace says of the end of an adopted process.
    fn note_of(&self, pid: Pid) -> Option<ExitNote> {
        let service = self.state.generation.service(self.state.adopted.service_of(pid)?)?;
        let has_own_pids = service.config().sandbox.as_ref().is_some_and(|sandbox| sandbox.pid_namespace);
        if has_own_pids { ExitNote::of(pid) } else { None }
    }

    /// A program has left somebody behind, as its worker says: its service, the worker's number and pid.
    pub(super) fn leave_behind(
        &mut self,
        (service, serial, worker): (&str, u32, Pid),
        whom: LeftOver,
        kill_after: Option<Duration>,
        now: Monotonic,
    ) {
        match whom {
            LeftOver::Group(group) => self.leave_group_behind(service, (group, worker), kill_after, now),
            LeftOver::Leaf(number) => self.leave_leaf_behind((service, serial, number), kill_after, now),
        }
    }

    /// This cgroup of that worker. It is none of another's whatever its number is.
    fn leave_leaf_behind(
        &mut self,
        (service, worker, number): (&str, u32, u32),
        kill_after: Option<Duration>,
        now: Monotonic,
    ) {
        let state = &mut self.state;
        if let Some(directory) = state.cgroups.leaf(service, worker, number) {
            state.left_behind.add_cgroup(service, directory, kill_after.map(|time| now + time));
        }
    }

    /// This group, which would be in the session of that worker.
    fn leave_group_behind(
        &mut self,
        service: &str,
        (group, worker): (Pid, Pid),
        kill_after: Option<Duration>,
        now: Monotonic,
    ) {
        let state = &mut self.state;
        // Nobody who is known as something else can be what a worker says.
        if group > 1 && !state.adopted.has(group) && !state.workers.has(group) {
            state.left_behind.add(service, (group, worker), kill_after.map(|time| now + time));
        }
    }

    fn bury_workers(&mut self, now: Monotonic) {
        let pids = self.state.workers.iter().map(WorkerProcess::pid);
        let dead: Vec<Pid> = pids.filter(|pid| wait::has_ended(*pid)).collect();
        for pid in dead {
            if let (Ok(Some(ended)), Some(worker)) = (wait::reap_one(pid), self.state.workers.remove(pid)) {
                self.bury(worker, &ended, now);
            }
        }
    }

    /// Hears what spares of dead workers say.
    pub(super) fn hear_late(&mut self) {
        let generation = &self.state.generation;
        let in_force = |name: &str| generation.service(name).map(Service::in_force);
        for service in self.state.adopted.hear_late(in_force, &self.log) {
            self.recount_adopted(&service);
        }
    }

    /// Who was let in by another configuration is counted as this one wants it.
    fn recount_adopted(&self, service: &str) {
        if let Some(service) = self.state.generation.service(service) {
            service.blocks();
            service.recount(Owner::SUPERVISOR);
        }
    }

    fn bury(&mut self, mut worker: WorkerProcess, ended: &Ended, now: Monotonic) {
        worker.hear_last_words();
        let (serial, pid) = (worker.serial(), worker.pid());
        for (whom, kill_after) in worker.left().to_vec() {
            self.leave_behind((worker.service(), serial, pid), whom, kill_after, now);
        }
        self.state.cgroups.worker_is_gone();
        let _ = self.poller.remove(worker.link());
        let state = &mut self.state;
        let dead = Dead {
            serial: worker.serial(),
            pid: worker.pid(),
            service_state: worker.service_state(),
            events: worker.spare_events(),
            connections: worker.connections(),
            hands_over: worker.hands_over(),
            counted: worker.counted(),
            cgroups: &state.cgroups,
        };
        let generation = &state.generation;
        let in_force = |name: &str| generation.service(name).map(Service::in_force);
        let adopted = state.adopted.adopt(&dead, |pid| state.workers.has(pid), in_force, &self.log);
        state.adopted.watch_late(worker.serial(), &self.poller);
        // The one connection that it was woken for may still be queued.
        state.workers.look(worker.service());
        self.end_adopted();
        self.recount_adopted(worker.service());
        if ended.ending == Ending::Exited(exit::OK) && worker.stage() == WorkerStage::Draining {
            return;
        }
        worker.service_state().count(Count::WorkersDied);
        let connections = match adopted {
            0 => String::new(),
            1 => "; its connection goes on".to_owned(),
            more => format!("; its {more} connections go on"),
        };
        let complaint = worker.complaint().map(|text| format!(": {text}")).unwrap_or_default();
        let is_tried = self.changes.purpose() == Some(Purpose::Recovery) && worker.prepares();
        self.log.event(
            // What is tried again and again is known to fail.
            if is_tried { Level::Debug } else { Level::Warning },
            Some(MessageId::WorkerDied),
            Some(worker.service()),
            format_args!("worker {} {}{complaint}{connections}", worker.pid(), ended.ending),
        );
        self.replace(&worker, ended, now);
    }

    /// What follows from the death of a worker that was needed; `start_missing_workers` starts the next one.
    fn replace(&mut self, worker: &WorkerProcess, ended: &Ended, now: Monotonic) {
        let name = worker.service();
        if self.changes.rollout().is_some_and(|rollout| rollout.is_generation(worker.generation())) {
            let reason = match worker.complaint() {
                Some(complaint) => complaint.to_owned(),
                None => format!("its worker {}", ended.ending),
            };
            let gave_up = match ended.ending {
                Ending::Exited(exit::NOT_PERMITTED) => Some(exit::NOT_PERMITTED),
                Ending::Exited(_) => Some(exit::OS),
                Ending::Killed(_) => None,
            };
            return self.lost_in_rollout(name, gave_up, &reason);
        }
        let is_running = self.is_running();
        let is_its_own = |service: &&mut Service| service.generation() == worker.generation();
        let Some(service) = self.state.generation.service_mut(name).filter(is_its_own) else { return };
        if is_running && worker.prepares() {
            let reason =
                worker.complaint().map_or_else(|| format!("its worker {}", ended.ending), str::to_owned);
            let pause = service.cannot_begin(reason, now);
            self.log.event(
                Level::Error,
                Some(MessageId::WorkerThrottled),
                Some(name),
                format_args!("its worker could not begin; the next one starts in {}", seconds(pause)),
            );
        }
    }
}
