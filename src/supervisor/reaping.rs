//! Every process that has ended, and what follows from it.

use std::time::Instant;

use super::adopted::Dead;
use super::ending::Phase;
use super::status::seconds;
use super::workers::WorkerProcess;
use super::{LATE_EVENTS, Supervisor};
use crate::control::WorkerState;
use crate::exit;
use crate::journal::{Level, MessageId};
use crate::scoreboard::Owner;
use crate::sys::epoll::Interest;
use crate::sys::process;
use crate::sys::wait::{self, Ended, Ending, Pid};

impl Supervisor {
    /// Reaps all that have ended.
    ///
    /// Workers come first, and of each what it left is adopted before anything of that is reaped. When a worker dies the
    /// kernel makes its children ours and itself a zombie in one step; so whoever comes to us has a worker that can be
    /// found here, or left one before.
    pub(super) fn reap(&mut self) {
        self.bury_workers();
        while let Some(pid) = wait::ended() {
            if !self.adopted.has(pid) {
                // A worker, or of one that has died since.
                self.bury_workers();
            }
            let is_adopted = self.adopted.has(pid);
            if is_adopted {
                process::kill_rest_of_group(pid);
            }
            // It may have been a worker, and is gone.
            let Ok(Some(ended)) = wait::reap_one(pid) else { continue };
            self.hear_late();
            if let Some(service) = self.adopted.service_of_spare(pid) {
                // The one connection that it was woken for may still be queued.
                self.workers.look(service);
            }
            let services = &self.services;
            let admission = |name: &str| services.get(name).map(|service| &service.admission);
            if !self.adopted.ended(&ended, admission, &self.log, &self.poller) {
                // A process that a connection process left behind.
                self.log.debug(None, format_args!("reaped process {pid}, {}", ended.ending));
            }
        }
    }

    fn bury_workers(&mut self) {
        let dead: Vec<Pid> =
            self.workers.iter().map(|(_, worker)| worker.pid).filter(|pid| wait::has_ended(*pid)).collect();
        for pid in dead {
            if let (Ok(Some(ended)), Some((serial, worker))) = (wait::reap_one(pid), self.workers.remove(pid))
            {
                self.bury(serial, worker, &ended);
            }
        }
    }

    pub(super) fn hear_late(&mut self) {
        for service in self.adopted.hear_late() {
            self.recount_adopted(&service);
        }
    }

    /// Who was let in by another configuration is counted as this one wants it.
    fn recount_adopted(&self, service: &str) {
        if let Some(service) = self.services.get(service) {
            service.recount(Owner::SUPERVISOR);
        }
    }

    fn bury(&mut self, serial: u32, mut worker: WorkerProcess, ended: &Ended) {
        worker.hear_last_words();
        let _ = self.poller.remove(worker.link());
        let dead = Dead {
            serial,
            service_state: &worker.service_state,
            events: &worker.calls,
            connections: worker.connections,
            counted: worker.counters.totals(),
        };
        let (workers, services) = (&self.workers, &self.services);
        let admission = services.get(&worker.service).map(|service| &service.admission);
        let adopted = self.adopted.adopt(&dead, |pid| workers.has(pid), admission, &self.log);
        self.signal_adopted();
        if self.adopted.waits(serial) {
            // It may be long before the next process ends. By edge: the end of the pipe is no news.
            let _ = self.poller.add(worker.calls.descriptor(), Interest::ReadEdge, LATE_EVENTS);
        }
        self.recount_adopted(&worker.service);
        // The one connection that it was woken for may still be queued.
        self.workers.look(&worker.service);
        if ended.ending == Ending::Exited(exit::OK) && worker.state == WorkerState::Draining {
            return;
        }
        let connections = match adopted {
            0 => String::new(),
            1 => "; its connection goes on".to_owned(),
            more => format!("; its {more} connections go on"),
        };
        let complaint = worker.complaint.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
        self.log.event(
            Level::Warning,
            Some(MessageId::WorkerDied),
            Some(&worker.service),
            format_args!("worker {} {}{complaint}{connections}", worker.pid, ended.ending),
        );
        self.replace(&worker, ended);
    }

    fn replace(&mut self, worker: &WorkerProcess, ended: &Ended) {
        if self.rollout.as_ref().is_some_and(|rollout| rollout.generation == worker.generation) {
            let reason = match &worker.complaint {
                Some(complaint) => format!("service {}: {complaint}", worker.service),
                None => format!("service {}: its worker {}", worker.service, ended.ending),
            };
            let gave_up = match ended.ending {
                Ending::Exited(exit::NOT_PERMITTED) => Some(exit::NOT_PERMITTED),
                Ending::Exited(_) => Some(exit::OS),
                Ending::Killed(_) => None,
            };
            self.lost_in_rollout(&worker.service, gave_up, &reason);
            return;
        }
        let current = self.services.get_mut(&worker.service).filter(|s| s.generation == worker.generation);
        let Some(service) = current.filter(|_| matches!(self.phase, Phase::Running)) else { return };
        if matches!(worker.state, WorkerState::Starting | WorkerState::Ready) {
            let pause = service.back_off.failed(Instant::now());
            self.log.event(
                Level::Error,
                Some(MessageId::WorkerThrottled),
                Some(&worker.service),
                format_args!("its worker could not begin; the next one starts in {}", seconds(pause)),
            );
        }
        // `tend` starts the next one.
    }
}
