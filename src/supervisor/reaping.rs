//! Every process that has ended, and what follows from it.

use std::collections::HashMap;
use std::time::Instant;

use super::adopted::Dead;
use super::ending::Phase;
use super::status::seconds;
use super::workers::WorkerProcess;
use super::{LATE_CALLS, Supervisor};
use crate::control::WorkerState;
use crate::exit;
use crate::journal::{Level, MessageId};
use crate::scoreboard::Owner;
use crate::sys::epoll::Interest;
use crate::sys::process;
use crate::sys::wait::{self, Ended, Ending, Pid};

impl Supervisor {
    /// Reaps all that have ended. Workers come first: with each, its children have become ours.
    pub(super) fn reap(&mut self) {
        let mut reaped = HashMap::new();
        while let Some(pid) = wait::ended() {
            if self.adopted.has(pid) {
                process::kill_rest_of_group(pid);
            }
            let Ok(Some(ended)) = wait::wait_for(pid) else { break };
            reaped.insert(pid, ended);
        }
        let workers: Vec<Pid> = reaped.keys().copied().filter(|pid| self.workers.has(*pid)).collect();
        for pid in workers {
            if let (Some(ended), Some((serial, worker))) = (reaped.remove(&pid), self.workers.remove(pid)) {
                self.bury(serial, worker, &ended, &mut reaped);
            }
        }
        self.hear_late_calls();
        for ended in reaped.values() {
            if let Some(service) = self.adopted.service_of_spare(ended.pid) {
                // The one connection that it was woken for may still be queued.
                self.workers.look(service);
            }
            if !self.adopted.ended(ended, &self.log) {
                // A process that a connection process left behind.
                self.log.debug(None, format_args!("reaped process {}, {}", ended.pid, ended.ending));
            }
        }
    }

    pub(super) fn hear_late_calls(&mut self) {
        for service in self.adopted.hear_late_calls() {
            self.recount_adopted(&service);
        }
    }

    /// Who was let in by another configuration is counted as this one wants it.
    fn recount_adopted(&self, service: &str) {
        if let Some(service) = self.services.get(service) {
            service.recount(Owner::SUPERVISOR);
        }
    }

    fn bury(
        &mut self,
        serial: u32,
        mut worker: WorkerProcess,
        ended: &Ended,
        reaped: &mut HashMap<Pid, Ended>,
    ) {
        worker.hear_last_words();
        let _ = self.poller.remove(worker.link());
        let dead = Dead {
            serial,
            service: &worker.service,
            service_state: &worker.service_state,
            calls: &worker.calls,
            counted: worker.counters.totals(),
        };
        let workers = &self.workers;
        let adopted = self.adopted.adopt(&dead, reaped, |pid| workers.has(pid), &self.log);
        self.signal_adopted();
        if self.adopted.waits(serial) {
            // It may be long before the next process ends. By edge: the end of the pipe is no news.
            let _ = self.poller.add(worker.calls.descriptor(), Interest::ReadEdge, LATE_CALLS);
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
