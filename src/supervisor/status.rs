//! What `preforkd status` shows.

use super::Supervisor;
use super::service::{Floor, Service};
use crate::control::{Refused, ServiceStatus, Status, WorkerStatus};
use crate::shared::{Count, Totals};

impl Supervisor {
    pub(super) fn status(&self) -> Status {
        let mut dropped = self.log.dropped();
        let mut services = Vec::new();
        for (name, floor) in self.floors() {
            let totals = self.totals(name, &floor);
            dropped = dropped.wrapping_add(totals.get(Count::RecordsDropped));
            let service = self.services.get(name);
            // One that was removed is shown while connections of it live.
            if service.is_some() || floor.board.live() > 0 {
                services.push(self.service_status(name, service, &floor, totals));
            }
        }
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.generation,
            uptime_s: self.started.elapsed().as_secs(),
            state: self.phase.state(self.rollout.is_some()),
            reloads: self.reloads,
            upgrades: self.upgrades,
            log_records_dropped: dropped,
            services,
        }
    }

    /// The counters of a service: those of workers that are gone, and of those that are there.
    pub(super) fn totals(&self, name: &str, floor: &Floor) -> Totals {
        let mut totals = floor.gone.get();
        for (_, worker) in self.crew.iter().filter(|(_, worker)| worker.service == name) {
            totals.add(worker.tally.totals());
        }
        totals
    }

    fn service_status(
        &self,
        name: &str,
        service: Option<&Service>,
        floor: &Floor,
        totals: Totals,
    ) -> ServiceStatus {
        let listeners = service.map_or(&[][..], |service| &service.listeners);
        let workers = self.crew.iter().filter(|(_, worker)| worker.service == name);
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
            spares: 0,
            active: floor.board.live(),
            max_connections: floor.board.limit(),
            queued: listeners.iter().map(|listener| u64::from(listener.queued())).sum(),
            accepted: totals.get(Count::Accepted),
            completed: totals.get(Count::Completed),
            refused: Refused::default(),
            timeouts: 0,
            crashes: totals.get(Count::Crashes),
        }
    }
}
