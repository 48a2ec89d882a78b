//! What `preforkd status` shows.

use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use super::Supervisor;
use super::service::{Service, ServiceState};
use crate::admission::Refusal;
use crate::control::{Refused, ServiceStatus, Status, WorkerState, WorkerStatus};
use crate::scoreboard::{Count, Counts, Processes};

impl Supervisor {
    pub(super) fn status(&self) -> Status {
        let mut dropped = self.log.dropped();
        let mut services = Vec::new();
        for (name, service_state) in self.service_states() {
            let totals = self.totals(name, &service_state);
            dropped = dropped.wrapping_add(totals.get(Count::RecordsDropped));
            let service = self.services.get(name);
            // One that was removed is shown while connections of it live.
            if service.is_some() || self.processes(name, &service_state).connections > 0 {
                services.push(self.service_status(name, service, &service_state, totals));
            }
        }
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.generation,
            uptime_s: self.started.elapsed().as_secs(),
            state: self.phase.state(self.is_reloading()),
            reloads: self.reloads,
            upgrades: self.upgrades,
            log_records_dropped: dropped,
            services,
        }
    }

    /// The counters of a service: those of workers that are gone, and of those that are there.
    pub(super) fn totals(&self, name: &str, service_state: &ServiceState) -> Counts {
        let mut totals = service_state.gone.get();
        for (_, worker) in self.workers.iter().filter(|(_, worker)| worker.service == name) {
            totals.add(worker.counters.totals());
        }
        (0..self.unheard(name)).for_each(|_| totals.count(Count::Accepted));
        totals
    }

    /// The processes of a service. The scoreboard says what it knows from workers; spares that were called while their worker
    /// sleeps are found in the pipe through which they said so.
    fn processes(&self, name: &str, service_state: &ServiceState) -> Processes {
        let known = service_state.scoreboard.processes();
        let called = self.unheard(name).min(known.spares);
        Processes {
            connections: known.connections + called,
            spares: known.spares - called,
            claimed: known.claimed,
        }
    }

    fn unheard(&self, name: &str) -> u32 {
        let workers = self.workers.iter().filter(|(_, worker)| worker.service == name);
        workers.map(|(_, worker)| worker.calls.unread()).sum::<u32>() + self.adopted.unheard(name)
    }

    fn service_status(
        &self,
        name: &str,
        service: Option<&Service>,
        service_state: &ServiceState,
        totals: Counts,
    ) -> ServiceStatus {
        let processes = self.processes(name, service_state);
        let listeners = service.map_or(&[][..], |service| &service.listeners);
        let workers = self.workers.iter().filter(|(_, worker)| worker.service == name);
        ServiceStatus {
            name: name.to_owned(),
            listen: listeners.iter().map(|listener| listener.name().to_owned()).collect(),
            workers: workers
                .map(|(_, worker)| WorkerStatus {
                    pid: worker.pid,
                    generation: worker.generation,
                    state: worker.state,
                })
                .collect(),
            spares: processes.spares,
            active: processes.connections,
            counted: service_state.scoreboard.sources().counted(),
            max_connections: service_state.scoreboard.limit(),
            queued: listeners.iter().map(|listener| u64::from(listener.queued())).sum(),
            accepted: totals.get(Count::Accepted),
            completed: totals.get(Count::Completed),
            refused: refused(&totals),
            timeouts: totals.get(Count::Timeouts),
            crashes: totals.get(Count::Crashes),
        }
    }

    /// All live connections.
    pub(super) fn live(&self) -> u32 {
        self.service_states()
            .map(|(name, service_state)| self.processes(name, &service_state).connections)
            .sum()
    }

    /// The service_states of all services of which something lives, with their names.
    pub(super) fn service_states(&self) -> impl Iterator<Item = (&str, Rc<ServiceState>)> {
        self.service_states
            .iter()
            .filter_map(|(name, service_state)| Some((name.as_str(), service_state.upgrade()?)))
    }

    /// One line for `systemctl status` and the log.
    pub(super) fn summary(&self) -> String {
        let workers = self.workers.iter().filter(|(_, worker)| worker.state != WorkerState::Draining).count();
        let live = self.live();
        format!(
            "{} {}, {workers} {}, {live} {}, generation {}",
            self.services.len(),
            plural(self.services.len(), "service"),
            plural(workers, "worker"),
            plural(live as usize, "connection"),
            self.generation
        )
    }

    /// Tells on stdout where this serves.
    pub(super) fn print_addresses(&self) {
        let mut text = String::new();
        for listener in self.services.values().flat_map(|service| &service.listeners) {
            text.push_str(&format!("listening on {}\n", listener.name()));
        }
        // A closed stdout is the user's choice.
        let _ = io::stdout().write_all(text.as_bytes());
        let _ = io::stdout().flush();
    }
}

fn refused(totals: &Counts) -> Refused {
    Refused {
        limit: totals.refused(Refusal::Limit),
        source_limit: totals.refused(Refusal::SourceLimit),
        rate: totals.refused(Refusal::Rate),
        access: totals.refused(Refusal::Access),
        penalty: totals.refused(Refusal::Penalty),
        header: totals.refused(Refusal::Header),
    }
}

pub(super) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f32())
}
