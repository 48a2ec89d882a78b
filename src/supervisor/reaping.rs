//! Every process that has ended, and what follows from it.

use super::Supervisor;
use super::adopted::Dead;
use super::rollout::Purpose;
use super::service::Service;
use super::status::seconds;
use super::workers::{WorkerProcess, WorkerStage};
use crate::exit;
use crate::journal::{Level, MessageId};
use crate::scoreboard::Owner;
use crate::sys::process;
use crate::sys::time::Monotonic;
use crate::sys::wait::{self, Ended, Ending, Pid};

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
            if self.state.adopted.has(pid) {
                process::kill_rest_of_group(pid);
            }
            // It may have been a worker, and is gone.
            let Ok(Some(ended)) = wait::reap_one(pid) else { continue };
            self.hear_late();
            let state = &mut self.state;
            if let Some(service) = state.adopted.service_of_spare(pid) {
                // The one connection that it was woken for may still be queued.
                state.workers.look(service);
            }
            let generation = &state.generation;
            let admission = |name: &str| generation.service(name).map(Service::admission);
            if !state.adopted.ended(&ended, admission, &self.log, &self.poller) {
                // A process that a connection process left behind.
                self.log.debug(None, format_args!("reaped process {pid}, {}", ended.ending));
            }
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
        for service in self.state.adopted.hear_late() {
            self.recount_adopted(&service);
        }
    }

    /// Who was let in by another configuration is counted as this one wants it.
    fn recount_adopted(&self, service: &str) {
        if let Some(service) = self.state.generation.service(service) {
            service.recount(Owner::SUPERVISOR);
        }
    }

    fn bury(&mut self, mut worker: WorkerProcess, ended: &Ended, now: Monotonic) {
        worker.hear_last_words();
        let _ = self.poller.remove(worker.link());
        let dead = Dead {
            serial: worker.serial(),
            service_state: worker.service_state(),
            events: worker.spare_events(),
            connections: worker.connections(),
            counted: worker.counted(),
        };
        let state = &mut self.state;
        let admission = state.generation.service(worker.service()).map(Service::admission);
        let adopted = state.adopted.adopt(&dead, |pid| state.workers.has(pid), admission, &self.log);
        state.adopted.watch_late(worker.serial(), &self.poller);
        // The one connection that it was woken for may still be queued.
        state.workers.look(worker.service());
        self.end_adopted();
        self.recount_adopted(worker.service());
        if ended.ending == Ending::Exited(exit::OK) && worker.stage() == WorkerStage::Draining {
            return;
        }
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
