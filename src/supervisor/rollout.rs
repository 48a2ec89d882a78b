//! A new generation: made, proven, put in force; and until then the old one serves.
//!
//! First all new workers get ready without accepting, so that a generation that fails has served nobody. Then they
//! accept, and only when all are in their accept loop does the old generation retire.

use std::time::Duration;

use super::changes::Change;
use super::generation::Generation;
use super::service::Service;
use super::workers::WorkerStage;
use super::{Fatal, Supervisor};
use crate::config::{Config, ServiceConfig};
use crate::control::Answer;
use crate::control::server::{ClientId, Server};
use crate::exit;
use crate::ipc::orders::Order;
use crate::sys::time::Monotonic;

/// How long a new generation may take to get ready.
const ROLLOUT_LIMIT: Duration = Duration::from_secs(30);

/// How many of its workers a generation may lose to signals before it is given up.
const LOSSES: u32 = 32;

/// Why there is a new generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// There was none before.
    Start,
    /// The configuration may have changed.
    Reload,
    /// The program has.
    Upgrade,
}

/// A generation on its way.
#[derive(Debug)]
pub(super) struct Rollout {
    /// With the services that are new.
    pub(super) next: Generation,
    /// Names of services that stay as they are.
    pub(super) kept: Vec<String>,
    pub(super) purpose: Purpose,
    /// The control socket, if that is another.
    pub(super) control: Option<Server>,
    /// Who waits for it.
    pub(super) clients: Vec<ClientId>,
    stage: RolloutStage,
    deadline: Monotonic,
    losses: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RolloutStage {
    /// Workers get ready.
    Preparing,
    /// Workers begin to accept.
    Opening,
}

impl Rollout {
    pub(super) fn deadline(&self) -> Monotonic {
        self.deadline
    }

    /// Whether this is its number, and so that of its workers.
    pub(super) fn is_generation(&self, number: u64) -> bool {
        self.next.number() == number
    }
}

impl Supervisor {
    /// The first generation.
    pub(super) fn start(&mut self, config: Config) -> Result<(), Fatal> {
        self.begin_rollout(config, Vec::new(), Purpose::Start)?;
        self.advance_rollout(Monotonic::now());
        Ok(())
    }

    /// Opens what is new and starts the new workers. On an error nothing has changed.
    pub(super) fn begin_rollout(
        &mut self,
        config: Config,
        clients: Vec<ClientId>,
        purpose: Purpose,
    ) -> Result<(), Fatal> {
        let Config { supervisor, log, services } = config;
        let control = match &supervisor.control_socket {
            Some(path) if !self.state.control.is_at(path) => Some(self.state.control.open(path)?),
            _ => None,
        };
        let mut rollout = Rollout {
            next: Generation::new(self.state.generation.number() + 1, supervisor, log),
            kept: Vec::new(),
            purpose,
            control,
            clients,
            stage: RolloutStage::Preparing,
            deadline: Monotonic::now() + ROLLOUT_LIMIT,
            losses: 0,
        };
        for service in services {
            if let Err(error) = self.add_service(service, &mut rollout) {
                self.dismiss(rollout);
                return Err(error);
            }
        }
        self.changes.begin(Change::RollingOut(Box::new(rollout)));
        Ok(())
    }

    fn add_service(&mut self, config: ServiceConfig, rollout: &mut Rollout) -> Result<(), Fatal> {
        let no_memory = |error| Fatal::os("cannot make the memory of a service", &error);
        let state = &mut self.state;
        let log = rollout.next.settings().log;
        let is_unchanged = |old: &&Service| old.is_reachable() && *old.config() == config;
        let old = state.generation.service(&config.name).filter(is_unchanged);
        // The workers of an older program must go, whatever they serve.
        if old.is_some() && log == state.generation.settings().log && rollout.purpose != Purpose::Upgrade {
            rollout.kept.push(config.name);
            return Ok(());
        }
        let service_state = state.services.of(&config).map_err(no_memory)?;
        let listeners = state.listeners.open(&config).map_err(|error| Fatal {
            code: if error.is_permission() { exit::NOT_PERMITTED } else { exit::OS },
            text: format!("service {}: {error}", config.name),
        })?;
        let service =
            Service::new(config, rollout.next.number(), service_state, listeners).map_err(no_memory)?;
        for _ in 0..service.config().workers {
            state
                .workers
                .spawn(&service, log, false, &self.poller)
                .map_err(|error| Fatal::os("cannot start a worker", &error))?;
        }
        rollout.next.add(service);
        Ok(())
    }

    /// Takes the rollout as far as it can go now.
    pub(super) fn advance_rollout(&mut self, now: Monotonic) {
        self.begin_wanted_reload();
        let Some(rollout) = self.changes.rollout_mut() else { return };
        let (workers, number) = (&self.state.workers, rollout.next.number());
        if rollout.stage == RolloutStage::Preparing
            && workers.of_generation(number).all(|worker| worker.stage() == WorkerStage::Ready)
        {
            rollout.stage = RolloutStage::Opening;
            workers.of_generation(number).for_each(|worker| worker.order(&Order::Accept));
        }
        let accepts = |service: &Service| {
            workers.accepting(service.name(), number) >= usize::from(service.config().workers)
        };
        if rollout.stage == RolloutStage::Opening && rollout.next.services().all(accepts) {
            if let Some(rollout) = self.end_rollout() {
                self.complete(rollout);
            }
        } else if rollout.deadline <= now {
            let limit = ROLLOUT_LIMIT.as_secs();
            self.abort(&format!("its workers did not get ready within {limit} s"), exit::OS);
        }
        if let Some(clients) = self.changes.take_reload() {
            self.reload(clients);
            // No event need come that would take it further: perhaps it has nothing to start and nothing to retire.
            self.advance_rollout(now);
        }
    }

    /// A worker of the new generation has died. One that a signal killed is replaced; one that gave up speaks for all.
    pub(super) fn lost_in_rollout(&mut self, service: &str, gave_up: Option<u8>, reason: &str) {
        let Some(rollout) = self.changes.rollout_mut() else { return };
        rollout.losses += 1;
        if gave_up.is_some() || rollout.losses > LOSSES {
            return self.abort(reason, gave_up.unwrap_or(exit::OS));
        }
        let begin = rollout.stage == RolloutStage::Opening;
        let Some(service) = rollout.next.service(service) else { return };
        let log = rollout.next.settings().log;
        if let Err(error) = self.state.workers.spawn(service, log, begin, &self.poller) {
            self.abort(&format!("cannot start a worker: {error}"), exit::OS);
        }
    }

    /// Gives the new generation up. The old one has not been touched; if there is none, the supervisor ends.
    fn abort(&mut self, reason: &str, code: u8) {
        let Some(rollout) = self.end_rollout() else { return };
        let purpose = rollout.purpose;
        let clients = self.dismiss(rollout);
        match purpose {
            Purpose::Start => self.fail(Fatal { text: reason.to_owned(), code }),
            Purpose::Reload | Purpose::Upgrade => self.reject(clients, reason),
        }
    }

    fn end_rollout(&mut self) -> Option<Rollout> {
        self.changes.rollout()?;
        match self.changes.end() {
            Some(Change::RollingOut(rollout)) => Some(*rollout),
            _ => None,
        }
    }

    /// Gives up what is being changed and what is wanted, because everything ends.
    pub(super) fn give_up_changes(&mut self, reason: &str) {
        let under_way = match self.changes.end() {
            Some(Change::Reading(loader)) => loader.end(&self.poller),
            Some(Change::RollingOut(rollout)) => self.dismiss(*rollout),
            Some(Change::Trying(trial)) => trial.end(&self.poller),
            None => Vec::new(),
        };
        let waiting = self.changes.give_up();
        let clients: Vec<_> = under_way.into_iter().chain(waiting).collect();
        self.answer(clients, &Answer::Refused(reason.to_owned()));
    }

    /// Undoes what was done for a generation that does not come into force. Returns who waits for it.
    fn dismiss(&mut self, rollout: Rollout) -> Vec<ClientId> {
        let is_its_own =
            |worker: &&mut super::workers::WorkerProcess| rollout.is_generation(worker.generation());
        self.state.workers.iter_mut().filter(is_its_own).for_each(|worker| worker.dismiss());
        if let Some(mut control) = rollout.control {
            control.close(&self.poller);
        }
        rollout.clients
    }
}
