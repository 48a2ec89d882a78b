//! A new generation: made, proven, put in force; and until then the old one serves.
//!
//! First all new workers get ready without accepting, so that a generation that fails has served nobody. Then they
//! accept, and only when all are in their accept loop does the old generation retire.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::service::{Service, ServiceState};
use super::{Fatal, Supervisor};
use crate::config::{self, Config};
use crate::control::server::{ClientId, Server};
use crate::control::{Answer, WorkerState};
use crate::exit;
use crate::ipc::orders::Order;

/// How long a new generation may take to get ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many of its workers a generation may lose to signals before it is given up.
const LOSSES: u32 = 32;

/// What a worker belongs to whose generation was given up.
const NO_GENERATION: u64 = 0;

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
    pub(super) generation: u64,
    pub(super) purpose: Purpose,
    pub(super) fresh: BTreeMap<String, Service>,
    /// Names of services that stay as they are.
    pub(super) kept: Vec<String>,
    pub(super) settings: config::SupervisorConfig,
    pub(super) log_settings: crate::journal::LogSettings,
    pub(super) control: Option<Server>,
    pub(super) clients: Vec<ClientId>,
    stage: RolloutStage,
    pub(super) deadline: Instant,
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
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Supervisor {
    /// The first generation.
    pub(super) fn start(&mut self, config: Config) -> Result<(), Fatal> {
        self.begin_rollout(config, Vec::new(), Purpose::Start)?;
        self.advance_rollout();
        Ok(())
    }

    /// Opens what is new and starts the new workers. On an error nothing has changed.
    pub(super) fn begin_rollout(
        &mut self,
        config: Config,
        clients: Vec<ClientId>,
        purpose: Purpose,
    ) -> Result<(), Fatal> {
        let generation = self.generation + 1;
        let control = self.new_control(&config)?;
        let mut rollout = Rollout {
            generation,
            purpose,
            fresh: BTreeMap::new(),
            kept: Vec::new(),
            settings: config.supervisor,
            log_settings: config.log,
            control,
            clients,
            stage: RolloutStage::Preparing,
            deadline: Instant::now() + PATIENCE,
            losses: 0,
        };
        let result = self.make_services(config.services, &mut rollout);
        if let Err(error) = result {
            self.dismiss(generation);
            if let Some(mut control) = rollout.control {
                control.close(&self.poller);
            }
            return Err(error);
        }
        self.rollout = Some(rollout);
        Ok(())
    }

    fn new_control(&mut self, config: &Config) -> Result<Option<Server>, Fatal> {
        match &config.supervisor.control_socket {
            Some(path) if self.control.as_ref().is_none_or(|control| control.path() != path) => {
                self.open_control(path).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn make_services(
        &mut self,
        services: Vec<config::ServiceConfig>,
        rollout: &mut Rollout,
    ) -> Result<(), Fatal> {
        for config in services {
            let name = config.name.clone();
            let old = self.services.get(&name);
            let is_reachable = |old: &&Service| old.listeners.iter().all(|listener| listener.is_reachable());
            let is_unchanged = old.filter(is_reachable).is_some_and(|old| old.config == config)
                && rollout.log_settings == self.log_settings;
            // The workers of an older program must go, whatever they serve.
            if is_unchanged && rollout.purpose != Purpose::Upgrade {
                rollout.kept.push(name);
                continue;
            }
            let service_state = self.service_state(&config)?;
            let listeners = self.listeners.open(&config).map_err(|error| Fatal {
                code: if error.is_permission() { exit::NOT_PERMITTED } else { exit::OS },
                text: format!("service {name}: {error}"),
            })?;
            let service = Service::new(config, rollout.generation, service_state, listeners)
                .map_err(|error| Fatal::os("cannot make the memory of a service", &error))?;
            for _ in 0..service.config.workers {
                self.workers
                    .spawn(&service, rollout.log_settings, false, &self.poller)
                    .map_err(|error| Fatal::os("cannot start a worker", &error))?;
            }
            rollout.fresh.insert(name, service);
        }
        Ok(())
    }

    /// The service_state of a service: as long as a connection of it lives, the same, though the service was removed meanwhile.
    fn service_state(&mut self, config: &config::ServiceConfig) -> Result<Rc<ServiceState>, Fatal> {
        self.service_states.retain(|_, service_state| service_state.strong_count() > 0);
        if let Some(service_state) = self.service_states.get(&config.name).and_then(Weak::upgrade) {
            return Ok(service_state);
        }
        let service_state = ServiceState::new(&config.name, config.max_connections)
            .map_err(|error| Fatal::os("cannot make the memory of a service", &error))?;
        self.service_states.insert(config.name.clone(), Rc::downgrade(&service_state));
        Ok(service_state)
    }

    /// Takes the rollout as far as it can go now.
    pub(super) fn advance_rollout(&mut self) {
        self.begin_wanted_reload();
        let Some(rollout) = &mut self.rollout else { return };
        if rollout.stage == RolloutStage::Preparing {
            let mut new = self.workers.iter().filter(|(_, worker)| worker.generation == rollout.generation);
            if new.all(|(_, worker)| worker.state == WorkerState::Ready) {
                rollout.stage = RolloutStage::Opening;
                self.workers.order_generation(rollout.generation, &Order::Accept);
            }
        }
        let workers = &self.workers;
        if rollout.stage == RolloutStage::Opening
            && rollout.fresh.iter().all(|(name, service)| {
                workers.accepting(name, service.generation) >= usize::from(service.config.workers)
            })
        {
            self.complete();
        } else if rollout.deadline <= Instant::now() {
            self.abort(&format!("its workers did not get ready within {} s", PATIENCE.as_secs()), exit::OS);
        }
        if !self.is_reloading() && self.reload_wanted.is_some() {
            // No event need come that would take it further: perhaps it has nothing to start and nothing to retire.
            self.advance_rollout();
        }
    }

    /// A worker of the new generation has died. One that a signal killed is replaced; one that gave up speaks for all.
    pub(super) fn lost_in_rollout(&mut self, service: &str, gave_up: Option<u8>, reason: &str) {
        let Some(rollout) = &mut self.rollout else { return };
        rollout.losses += 1;
        if gave_up.is_some() || rollout.losses > LOSSES {
            return self.abort(reason, gave_up.unwrap_or(exit::OS));
        }
        let begin = rollout.stage == RolloutStage::Opening;
        let log = rollout.log_settings;
        let Some(service) = rollout.fresh.get(service) else { return };
        if let Err(error) = self.workers.spawn(service, log, begin, &self.poller) {
            self.abort(&format!("cannot start a worker: {error}"), exit::OS);
        }
    }

    /// Gives the new generation up. The old one has not been touched; if there is none, the supervisor ends.
    fn abort(&mut self, reason: &str, code: u8) {
        let Some(clients) = self.drop_rollout() else { return };
        if self.generation == 0 {
            self.fatal = Some(Fatal { text: reason.to_owned(), code });
        } else {
            self.reject(clients, reason);
        }
    }

    /// Gives the new generation up because everything ends.
    pub(super) fn give_up_rollout(&mut self, reason: &str) {
        let loading = self.loader.take().map(|loader| loader.end(&self.poller)).into_iter().flatten();
        let under_way = self.drop_rollout().into_iter().flatten().chain(loading);
        let waiting = self.reload_wanted.take().into_iter().flatten();
        for client in under_way.chain(waiting).collect::<Vec<_>>() {
            self.answer(client, &Answer::Refused(reason.to_owned()));
        }
    }

    /// Returns who waits for it.
    fn drop_rollout(&mut self) -> Option<Vec<ClientId>> {
        let rollout = self.rollout.take()?;
        self.dismiss(rollout.generation);
        if let Some(mut control) = rollout.control {
            control.close(&self.poller);
        }
        Some(rollout.clients)
    }

    /// Workers that may have accepted already end with their connections. They lose their generation's number: the
    /// next rollout has the same one, and must neither wait for them nor fail with them.
    fn dismiss(&mut self, generation: u64) {
        for (_, worker) in self.workers.iter_mut().filter(|(_, worker)| worker.generation == generation) {
            worker.retire(&[]);
            worker.generation = NO_GENERATION;
        }
    }
}
