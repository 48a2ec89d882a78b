//! What `preforkd status` shows.

use std::io::{self, Write};

use super::Supervisor;
use super::generation::DownService;
use super::service::{Service, ServiceState};
use super::state::State;
use super::wording::plural;
use super::workers::{WorkerProcess, WorkerStage};
use crate::admission::Refusal;
use crate::child::confine::cage::on_this_kernel;
use crate::control::{Refused, Reloads, ServiceStatus, Status, TimesStatus, WorkerState, WorkerStatus};
use crate::scoreboard::{Count, CountedTime, Counts, Processes, TimeCounts};
use crate::sys::time::Monotonic;

impl Supervisor {
    pub(super) fn status(&self) -> Status {
        let state = &self.state;
        let (history, generation) = (&state.history, &state.generation);
        let own_dropped = history.dropped(self.log.dropped());
        let mut dropped = own_dropped;
        let mut services = Vec::new();
        for service_state in state.services.alive() {
            let totals = state.totals(&service_state);
            dropped = dropped.saturating_add(totals.get(Count::RecordsDropped));
            let service = generation.service(&service_state.name);
            let down = generation.down().get(&service_state.name);
            // One that was removed is shown while connections of it live.
            if service.is_some() || down.is_some() || state.processes(&service_state).connections > 0 {
                services.push(state.service_status(service, &service_state, &totals));
            }
        }
        for (name, down) in generation.down() {
            if !services.iter().any(|service| service.name == *name) {
                services.push(never_served(name, down));
            }
        }
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Status {
            pid: std::process::id(),
            version: self.invocation.title.version().to_owned(),
            generation: generation.number(),
            uptime_s: (Monotonic::now() - history.started()).as_secs(),
            since_unix_ms: history.since(),
            state: self.phase.condition(self.changes.are_of_configuration()),
            waits_for: self.waits_for().or_else(|| self.drains_wait_for()),
            reloads: Reloads { ok: history.reloads(), failed: history.rejected() },
            last_reload: history.last_reload(),
            upgrades: history.upgrades(),
            bans: state.bans.count() as u64,
            log_records_dropped: dropped,
            own_log_records_dropped: own_dropped,
            services,
        }
    }
}

impl State {
    /// The counters of a service: those of workers that are gone, and of those that are there.
    pub(super) fn totals(&self, service: &ServiceState) -> Counts {
        let mut totals = service.gone();
        self.workers.of_service(&service.name).for_each(|worker| totals.add(worker.counted()));
        (0..self.unheard(&service.name)).for_each(|_| totals.count(Count::Accepted));
        service.tell(totals)
    }

    /// The processes of a service. The scoreboard says what it knows from workers; spares that were taken while their worker
    /// sleeps are found in the pipe through which they said so.
    fn processes(&self, service: &ServiceState) -> Processes {
        let known = service.scoreboard.processes();
        let taken = self.unheard(&service.name).min(known.spares);
        Processes {
            connections: known.connections + taken,
            spares: known.spares - taken,
            claimed: known.claimed,
        }
    }

    fn unheard(&self, service: &str) -> u32 {
        let workers = self.workers.of_service(service).map(|worker| worker.spare_events().unread());
        workers.sum::<u32>() + self.adopted.unheard(service)
    }

    fn service_status(
        &self,
        service: Option<&Service>,
        service_state: &ServiceState,
        totals: &Counts,
    ) -> ServiceStatus {
        let processes = self.processes(service_state);
        let listeners = service.map_or(&[][..], Service::listeners);
        let queues: Vec<_> = listeners.iter().filter_map(|listener| listener.queue()).collect();
        let down = self.generation.down().get(&service_state.name).map(|down| down.reason.clone());
        ServiceStatus {
            name: service_state.name.clone(),
            listen: listeners.iter().map(|listener| listener.name().to_owned()).collect(),
            paused: service_state.is_paused(),
            lameduck: service_state.is_lameduck(),
            down: down.or_else(|| service?.trouble().map(str::to_owned)),
            resting: self
                .workers
                .of_service(&service_state.name)
                .find_map(WorkerProcess::resting)
                .map(str::to_owned),
            unreachable: service.map(Service::unreachable).unwrap_or_default(),
            workers: self.workers.of_service(&service_state.name).map(WorkerStatus::from).collect(),
            workers_died: totals.get(Count::WorkersDied),
            spares: processes.spares,
            warm: self
                .workers
                .of_service(&service_state.name)
                .map(|worker| worker.counted().get(Count::Warm))
                .fold(0, u64::saturating_add),
            cold: service.and_then(|service| service.config().warm.as_ref()?.obstacle.clone()),
            active: processes.connections,
            counted: service_state.scoreboard.sources().counted(),
            max_connections: match service {
                Some(service) if service.config().wait => listeners.len() as u32,
                _ => service_state.scoreboard.limit(),
            },
            left_behind: self.left_behind.count(&service_state.name),
            sandbox: service.and_then(|service| on_this_kernel(service.config(), self.cgroups.are_made())),
            queued: listeners.iter().map(|listener| u64::from(listener.queued())).sum(),
            queues,
            counted_since_unix_ms: Some(service_state.created()),
            accepted: totals.get(Count::Accepted),
            completed: totals.get(Count::Completed),
            refused: refused(totals),
            timeouts: totals.get(Count::Timeouts),
            crashes: totals.get(Count::Crashes),
            penalties: totals.get(Count::Penalties),
            penalized: match totals.get(Count::Penalties) {
                0 => 0,
                _ => service_state.scoreboard.sources().waiting(Monotonic::now()),
            },
            cpu_us: totals.get(Count::CpuMicros),
            bytes_in: totals.get(Count::BytesReceived),
            bytes_out: totals.get(Count::BytesSent),
            log_records_dropped: totals.get(Count::RecordsDropped),
            durations: times(totals, CountedTime::Duration),
            waits: times(totals, CountedTime::Wait),
            served_warm: totals.get(Count::ServedWarm),
            warm_ups: times(totals, CountedTime::WarmUp),
        }
    }

    /// All live connections.
    pub(super) fn live(&self) -> u32 {
        self.services.alive().map(|service| self.live_of(&service)).sum()
    }

    /// Those of a service.
    pub(super) fn live_of(&self, service: &ServiceState) -> u32 {
        self.processes(service).connections
    }

    /// One line for `systemctl status` and the log.
    pub(super) fn summary(&self) -> String {
        let serves = |worker: &&WorkerProcess| worker.stage() != WorkerStage::Draining;
        let workers = self.workers.iter().filter(serves).count();
        let (live, services) = (self.live(), self.generation.services().len());
        let mut text = format!(
            "{services} {}, {workers} {}, {live} {}, generation {}",
            plural(services, "service"),
            plural(workers, "worker"),
            plural(live as usize, "connection"),
            self.generation.number()
        );
        for trouble in self.generation.troubles() {
            text.push_str(&format!("; {trouble}"));
        }
        for paused in self.generation.services().filter(|service| service.state().is_paused()) {
            text.push_str(&format!("; {} is paused", paused.name()));
        }
        for lameduck in self.generation.services().filter(|service| service.state().is_lameduck()) {
            text.push_str(&format!("; {} is a lame duck", lameduck.name()));
        }
        text
    }

    /// Tells on stdout where this serves.
    pub(super) fn print_addresses(&self) {
        let line = |name: &str| format!("listening on {name}\n");
        let text: String = self.generation.listeners().map(|listener| line(listener.name())).collect();
        // A closed stdout is the user's choice.
        let _ = io::stdout().write_all(text.as_bytes());
        let _ = io::stdout().flush();
    }
}

/// A service of which nothing is known but that it is down.
fn never_served(name: &str, down: &DownService) -> ServiceStatus {
    ServiceStatus {
        name: name.to_owned(),
        listen: down.config.iter().flat_map(|config| &config.listen).map(ToString::to_string).collect(),
        paused: false,
        lameduck: false,
        down: Some(down.reason.clone()),
        resting: None,
        unreachable: Vec::new(),
        workers: Vec::new(),
        workers_died: 0,
        spares: 0,
        warm: 0,
        cold: None,
        active: 0,
        counted: 0,
        max_connections: down.config.as_ref().map_or(0, |config| config.max_connections),
        left_behind: 0,
        sandbox: None,
        queued: 0,
        queues: Vec::new(),
        counted_since_unix_ms: None,
        accepted: 0,
        completed: 0,
        refused: Refused::default(),
        timeouts: 0,
        crashes: 0,
        penalties: 0,
        penalized: 0,
        cpu_us: 0,
        bytes_in: 0,
        bytes_out: 0,
        log_records_dropped: 0,
        durations: TimesStatus::default(),
        waits: TimesStatus::default(),
        served_warm: 0,
        warm_ups: TimesStatus::default(),
    }
}

impl From<&WorkerProcess> for WorkerStatus {
    fn from(worker: &WorkerProcess) -> Self {
        let state = match worker.stage() {
            WorkerStage::Starting => WorkerState::Starting,
            WorkerStage::Ready => WorkerState::Ready,
            WorkerStage::Accepting => WorkerState::Accepting,
            WorkerStage::Draining => WorkerState::Draining,
        };
        WorkerStatus { pid: worker.pid(), generation: worker.generation(), state }
    }
}

fn times(totals: &Counts, what: CountedTime) -> TimesStatus {
    let TimeCounts { within, sum_us } = totals.times(what);
    TimesStatus { bounds_us: what.bounds().to_vec(), within: within.to_vec(), sum_us }
}

fn refused(totals: &Counts) -> Refused {
    Refused {
        limit: totals.refused(Refusal::Limit),
        source_limit: totals.refused(Refusal::SourceLimit),
        rate: totals.refused(Refusal::Rate),
        access: totals.refused(Refusal::Access),
        penalty: totals.refused(Refusal::Penalty),
        header: totals.refused(Refusal::Header),
        banned: totals.refused(Refusal::Banned),
    }
}
