//! A new generation comes into force, and the old one retires.

use std::rc::Rc;

use super::Supervisor;
use super::generation::Generation;
use super::listeners::{ListenError, Listener};
use super::rollout::{Purpose, Rollout};
use super::service::Service;
use super::state::State;
use super::workers::{WorkerProcess, WorkerStage};
use crate::control::Answer;
use crate::control::server::{ClientId, Server};
use crate::journal::{Level, MessageId};
use crate::scoreboard::Owner;

impl State {
    /// `next` replaces the generation in force, but for the services that are `kept`. Workers of the old one retire.
    /// Returns what came out otherwise than it was tried.
    fn commit(&mut self, next: Generation, kept: &[String]) -> Vec<(String, ListenError)> {
        let mut failures = Vec::new();
        for service in next.services() {
            let name = service.name();
            failures.extend(service.comes_into_force().into_iter().map(|error| (name.to_owned(), error)));
            service.recount(Owner::SUPERVISOR);
            let is_old = |worker: &&WorkerProcess| worker.generation() != service.generation();
            let old = self.workers.of_service(service.name()).filter(is_old);
            old.for_each(|worker| service.recount(Owner::worker(worker.serial())));
        }
        let old = self.generation.replace(next, kept);
        let closing = self.close_unused(&old);
        let generation = &self.generation;
        for worker in self.workers.iter_mut() {
            let service = generation.service(worker.service()).map(Service::generation);
            if service != Some(worker.generation()) && worker.stage() != WorkerStage::Draining {
                worker.retire(&closing);
            }
        }
        failures
    }

    /// The listeners that no service wants any more, with their queues closed.
    fn close_unused(&mut self, old: &Generation) -> Vec<Rc<Listener>> {
        let mut closing = Vec::new();
        for listener in old.listeners() {
            let is_kept = self.generation.listeners().any(|other| Rc::ptr_eq(other, listener));
            if !is_kept && self.listeners.close(listener) {
                closing.push(Rc::clone(listener));
            }
        }
        closing
    }
}

impl Supervisor {
    /// The new generation accepts: it is in force, and the old one retires.
    pub(super) fn complete(&mut self, rollout: Rollout) {
        let log_before = self.state.generation.settings().log;
        let Rollout { next, kept, purpose, clients, control, .. } = rollout;
        let failures = self.state.commit(next, &kept);
        let log = self.state.generation.settings().log;
        if log != log_before {
            self.log.reopen(log);
        }
        for (service, error) in failures {
            self.log.event(Level::Error, None, Some(&service), format_args!("{error}"));
        }
        match purpose {
            Purpose::Start => self.is_serving(control),
            Purpose::Reload => {
                self.state.history.was_reloaded();
                self.is_changed("reloaded", clients, control);
            }
            Purpose::Upgrade => {
                self.is_changed(concat!("upgraded to ", env!("CARGO_PKG_VERSION")), clients, control);
            }
        }
    }

    fn is_serving(&mut self, control: Option<Server>) {
        self.state.listeners.close_left();
        if let Some(control) = control {
            self.state.control.replace(control, &self.poller);
        }
        self.begin_running();
        let summary = self.state.summary();
        self.log.event(Level::Notice, Some(MessageId::Started), None, format_args!("serving: {summary}"));
        self.systemd.ready(&summary);
        if self.invocation.announce {
            self.state.print_addresses();
        }
    }

    fn is_changed(&mut self, what: &str, clients: Vec<ClientId>, control: Option<Server>) {
        let summary = self.state.summary();
        self.log.event(Level::Notice, Some(MessageId::ReloadDone), None, format_args!("{what}: {summary}"));
        self.systemd.ready(&summary);
        let text = format!("{what}; generation {} is in force", self.state.generation.number());
        self.answer(clients, &Answer::Done(text));
        // Only now: the clients came over the old one.
        if let Some(control) = control {
            let waiting = self.changes.take_who_waits_for_reload();
            let path = control.path().display();
            let reason = format!("the control socket is {path} from now on; reload again there");
            self.answer(waiting, &Answer::Refused(reason));
            self.state.control.replace(control, &self.poller);
        }
    }
}
