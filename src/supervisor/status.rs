//! What `preforkd status` shows.

use super::Supervisor;
use super::service::Service;
use crate::control::{Refused, ServiceStatus, Status, WorkerStatus};
use crate::shared::{Count, Totals};

impl Supervisor {
    pub(super) fn status(&self) -> Status {
        let services: Vec<_> =
            self.services.iter().map(|(name, service)| self.service_status(name, service)).collect();
        let dropped: u64 = self
            .services
            .iter()
            .map(|(name, service)| self.totals(name, service))
            .fold(self.log.dropped(), |sum, totals| sum.wrapping_add(totals.get(Count::RecordsDropped)));
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.generation,
            uptime_s: self.started.elapsed().as_secs(),
            state: self.phase.state(self.rollout.is_some()),
            reloads: self.reloads,
            upgrades: 0,
            log_records_dropped: dropped,
            services,
        }
    }

    /// The counters of a service: those of workers that are gone, and of those that are there.
    fn totals(&self, name: &str, service: &Service) -> Totals {
        let mut totals = service.floor.gone.get();
        for (_, worker) in self.crew.iter().filter(|(_, worker)| worker.service == name) {
            totals.add(worker.tally.totals());
        }
        totals
    }

    fn service_status(&self, name: &str, service: &Service) -> ServiceStatus {
        let totals = self.totals(name, service);
        let workers = self.crew.iter().filter(|(_, worker)| worker.service == name);
        ServiceStatus {
            name: name.to_owned(),
            listen: service.listeners.iter().map(|listener| listener.name().to_owned()).collect(),
            workers: workers
                .map(|(_, worker)| WorkerStatus {
                    pid: worker.pid,
                    generation: worker.generation,
                    state: worker.state,
                })
                .collect(),
            spares: 0,
            active: service.floor.board.live(),
            max_connections: service.config.max_connections,
            queued: service.listeners.iter().map(|listener| u64::from(listener.queued())).sum(),
            accepted: totals.get(Count::Accepted),
            completed: totals.get(Count::Completed),
            refused: Refused::default(),
            timeouts: 0,
            crashes: totals.get(Count::Crashes),
        }
    }
}
