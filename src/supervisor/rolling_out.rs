//! A new generation: made, proven, put in force; and until then the old one serves.
//!
//! First all new workers get ready without accepting, so that a generation that fails has served nobody. Then they
//! accept, and only when all are in their accept loop does the old generation retire.

use std::collections::BTreeSet;

use super::changes::Change;
use super::closing_listeners::ClosingListeners;
use super::generation::{Generation, LONGEST_PAUSE};
use super::listen_error::ListenError;
use super::purpose::Purpose;
use super::rollout::{ROLLOUT_LIMIT, Rollout, RolloutStage};
use super::service::{MissingAddress, Service};
use super::workers::{WorkerProcess, WorkerStage};
use super::{Fatal, Supervisor};
use crate::config::{Config, ServiceConfig};
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::exit;
use crate::ipc::orders::Order;
use crate::sys::time::Monotonic;

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
        let Config { supervisor, log, services, unavailable } = config;
        if supervisor.cgroup != self.state.cgroups.setting() {
            let text = "supervisor.cgroup was changed, which takes a restart".to_owned();
            return Err(Fatal { text, code: exit::CONFIG });
        }
        if let Some(text) = services.iter().find_map(|service| self.state.generation.users_in_use(service)) {
            return Err(Fatal { text, code: exit::CONFIG });
        }
        let control = match &supervisor.control_socket {
            Some(path) if purpose != Purpose::Recovery && !self.state.control.is_at(path) => {
                self.open_control(path, &supervisor.control_access)?
            }
            _ => None,
        };
        let next = Generation::new(self.state.generation.number() + 1, supervisor, log);
        let mut rollout = Rollout::begin(next, purpose, control, clients);
        let mut why_down = None;
        for service in services {
            match self.add_service(service, &mut rollout) {
                Ok(down) => why_down = why_down.or(down),
                Err(error) => {
                    self.dismiss(rollout);
                    return Err(error);
                }
            }
        }
        rollout.next.add_unavailable(unavailable);
        match (purpose, why_down) {
            (Purpose::Start, Some(error)) if !rollout.serves() => {
                self.dismiss(rollout);
                Err(error)
            }
            (Purpose::Recovery, _) if !rollout.serves() => {
                self.stay_down(rollout);
                Ok(())
            }
            _ => {
                self.changes.begin(Change::RollingOut(Box::new(rollout)));
                Ok(())
            }
        }
    }

    /// Adds a service to a generation on its way. Returns why it is down there, if it may be.
    fn add_service(&mut self, config: ServiceConfig, rollout: &mut Rollout) -> Result<Option<Fatal>, Fatal> {
        let now = Monotonic::now();
        if rollout.purpose == Purpose::Recovery
            && rollout.next.let_rest(&config.name, &self.state.generation, now)
        {
            return Ok(None);
        }
        let no_memory = |error| Fatal::os("cannot make the memory of a service", &error);
        let state = &mut self.state;
        let log = rollout.next.settings().log;
        let is_unchanged = |old: &&Service| old.is_reachable() && *old.config() == config;
        // The workers of an older program must go, whatever they serve.
        let keeps = log == state.generation.settings().log && rollout.purpose != Purpose::Upgrade;
        let old = state.generation.service(&config.name).filter(is_unchanged).filter(|_| keeps);
        let were_missing = old.map(|old| old.missing().len());
        if were_missing == Some(0) {
            rollout.kept.push(config.name);
            return Ok(None);
        }
        if let Err(reason) = state.cgroups.can_limit(&config) {
            let fatal = Fatal { code: exit::CONFIG, text: format!("service {}: {reason}", config.name) };
            let may_be_down = match rollout.purpose {
                Purpose::Start => rollout.is_lenient(),
                Purpose::Recovery => true,
                Purpose::Reload | Purpose::Upgrade => false,
            };
            if !may_be_down {
                return Err(fatal);
            }
            rollout.next.add_down(config, reason);
            return Ok(Some(fatal));
        }
        let service_state = state.services.of(&config).map_err(no_memory)?;
        state.bans.publish(&service_state);
        let (listeners, missing) = state.listeners.open(&config);
        if were_missing == Some(missing.len()) {
            // Nothing has come back, and nothing was lost.
            rollout.kept.push(config.name);
            return Ok(None);
        }
        let fatal = |error: &ListenError| Fatal {
            code: error.exit_code(),
            text: format!("service {}: {error}", config.name),
        };
        let tolerated =
            |error: &&ListenError| rollout.tolerates(&state.generation, &config.name, error.address());
        if let Some(error) = missing.iter().find(|error| !tolerated(error)) {
            return Err(fatal(error));
        }
        if let Some(error) = missing.first().filter(|_| listeners.is_empty()) {
            let why_down = fatal(error);
            let reasons: Vec<_> = missing.iter().map(ToString::to_string).collect();
            rollout.next.add_down(config, reasons.join("; "));
            return Ok(Some(why_down));
        }
        let missing = missing.iter().map(MissingAddress::from).collect();
        let control_socket = rollout.next.settings().supervisor.control_socket.as_deref();
        let staged = state.credentials.stage(&config, control_socket)?;
        let number = rollout.next.number();
        let service =
            Service::new(config, number, service_state, listeners, missing, staged).map_err(no_memory)?;
        for _ in 0..service.config().workers {
            state
                .workers
                .spawn(&service, log, false, &mut state.cgroups, &self.poller)
                .map_err(|error| Fatal::os("cannot start a worker", &error))?;
        }
        rollout.next.add(service);
        Ok(None)
    }

    /// Takes the rollout as far as it can go now.
    pub(super) fn advance_rollout(&mut self, now: Monotonic) {
        self.begin_wanted_reload();
        let Some(rollout) = self.changes.rollout_mut() else { return };
        let (workers, number) = (&self.state.workers, rollout.next.number());
        if rollout.stage() == RolloutStage::Preparing
            && workers.of_generation(number).all(|worker| worker.stage() == WorkerStage::Ready)
        {
            rollout.open();
            rollout.next.services().for_each(Service::begin);
            self.state.listeners.share_ports(false);
            for worker in self.state.workers.iter_mut().filter(|worker| worker.generation() == number) {
                match worker.service_state().is_paused() {
                    // It has shown that it could.
                    true => worker.retire(&ClosingListeners::default()),
                    false => worker.order(&Order::Accept),
                }
            }
        }
        let workers = &self.state.workers;
        let accepts = |service: &Service| {
            service.state().is_paused()
                || workers.accepting(service.name(), number) >= usize::from(service.config().workers)
        };
        if rollout.stage() == RolloutStage::Opening && rollout.next.services().all(accepts) {
            if let Some(rollout) = self.end_rollout() {
                self.complete(rollout);
            }
        } else if rollout.is_late(now) {
            self.lose_late_services();
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
        if rollout.loses_too_many() || gave_up.is_some() {
            return self.lose_service(service, reason, gave_up.unwrap_or(exit::OS));
        }
        let begin = rollout.stage() == RolloutStage::Opening;
        let Some(service) = rollout.next.service(service) else { return };
        let log = rollout.next.settings().log;
        let state = &mut self.state;
        if let Err(error) = state.workers.spawn(service, log, begin, &mut state.cgroups, &self.poller) {
            self.abort(&format!("cannot start a worker: {error}"), exit::OS);
        }
    }

    /// The services whose workers have not come as far as the generation on its way.
    fn late_services(&self) -> BTreeSet<String> {
        let Some(rollout) = self.changes.rollout() else { return BTreeSet::new() };
        let wanted = match rollout.stage() {
            RolloutStage::Preparing => WorkerStage::Ready,
            RolloutStage::Opening => WorkerStage::Accepting,
        };
        let workers = self.state.workers.of_generation(rollout.next.number());
        workers.filter(|worker| worker.stage() != wanted).map(|worker| worker.service().to_owned()).collect()
    }

    /// What the change under way waits for.
    pub(super) fn waits_for(&self) -> Option<String> {
        let late = || {
            let names: Vec<_> = self.late_services().into_iter().collect();
            format!("the workers of {} to get ready", names.join(", "))
        };
        self.changes.waits_for().or_else(|| self.changes.rollout().map(|_| late()))
    }

    /// Time is over for workers that have not come as far as they should.
    fn lose_late_services(&mut self) {
        for service in self.late_services() {
            let reason = format!("its workers did not get ready within {} s", ROLLOUT_LIMIT.as_secs());
            self.lose_service(&service, &reason, exit::OS);
        }
    }

    /// A service cannot be served in the generation on its way. That is given up, unless it may do without the service.
    fn lose_service(&mut self, service: &str, reason: &str, code: u8) {
        let before = &self.state.generation;
        let Some(rollout) = self.changes.rollout_mut() else { return };
        let was_down = before.down().contains_key(service);
        let is_served = before.service(service).is_some();
        let may_be_down = match rollout.purpose {
            Purpose::Start => rollout.is_lenient(),
            Purpose::Recovery => true,
            Purpose::Reload | Purpose::Upgrade => was_down,
        };
        let is_last = rollout.next.services().all(|other| other.name() == service);
        if !may_be_down || is_last && rollout.purpose == Purpose::Start {
            return self.abort(&format!("service {service}: {reason}"), code);
        }
        rollout.next.give_up(service, reason.to_owned(), Monotonic::now() + LONGEST_PAUSE);
        if is_served {
            // As it was, at fewer addresses.
            rollout.kept.push(service.to_owned());
        }
        let number = rollout.next.number();
        let is_its_own =
            |worker: &&mut WorkerProcess| worker.generation() == number && worker.service() == service;
        self.state.workers.iter_mut().filter(is_its_own).for_each(|worker| worker.dismiss());
        if is_last && rollout.purpose == Purpose::Recovery {
            if let Some(rollout) = self.end_rollout() {
                self.stay_down(rollout);
            }
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
            Purpose::Recovery => self.log.debug(None, format_args!("what is down stays down: {reason}")),
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
        self.answer(clients, &Answer::refused(reason));
    }

    /// Nothing can be served that could not be before.
    fn stay_down(&mut self, rollout: Rollout) {
        self.state.listeners.share_ports(false);
        self.state.generation.renew_reasons(rollout.next);
    }

    /// Undoes what was done for a generation that does not come into force. Returns who waits for it.
    pub(super) fn dismiss(&mut self, rollout: Rollout) -> Vec<ClientId> {
        let is_its_own = |worker: &&mut WorkerProcess| rollout.is_generation(worker.generation());
        self.state.workers.iter_mut().filter(is_its_own).for_each(|worker| worker.dismiss());
        if let Some(mut control) = rollout.control {
            control.close(&self.poller);
        }
        self.state.listeners.share_ports(false);
        rollout.clients
    }
}
