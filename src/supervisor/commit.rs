//! A new generation comes into force, and the old one retires.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use super::Supervisor;
use super::closing_listeners::ClosingListeners;
use super::generation::{Generation, Trouble};
use super::phase::KILL_AFTER;
use super::purpose::Purpose;
use super::rollout::Rollout;
use super::service::Service;
use super::state::State;
use super::workers::{WorkerProcess, WorkerStage};
use crate::control::Answer;
use crate::control::server::{ClientId, ControlServer};
use crate::journal::{Level, MessageId};
use crate::scoreboard::Owner;
use crate::sys::time::Monotonic;

impl State {
    /// `next` replaces the generation in force, but for the services that are `kept`. Workers of the old one retire.
    /// Returns what came out otherwise than it was tried.
    fn commit(&mut self, next: Generation, kept: &[String]) -> Vec<(String, String)> {
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
        let generation = &self.generation;
        self.left_behind.end(Monotonic::now() + KILL_AFTER, |service| {
            generation.service(service).is_none() && !generation.down().contains_key(service)
        });
        let closing = self.close_unused(&old);
        let generation = &self.generation;
        for worker in self.workers.iter_mut() {
            let service = generation.service(worker.service()).map(Service::generation);
            if service != Some(worker.generation()) && worker.stage() != WorkerStage::Draining {
                worker.retire(&closing);
            }
        }
        // After an upgrade, a program goes on with what it has: the next worker waits for its end.
        let is_other = |old: &&Service| {
            let now = generation.service(old.name());
            old.config().wait && now.is_none_or(|now| now.config() != old.config())
        };
        let others: Vec<_> = old.services().filter(is_other).map(|old| old.name().to_owned()).collect();
        others.iter().for_each(|name| self.end_programs(name));
        failures
    }

    /// Closes the queues of the listeners that no service wants any more.
    fn close_unused(&mut self, old: &Generation) -> ClosingListeners {
        let kept: HashSet<_> = self.generation.listeners().map(Rc::as_ptr).collect();
        let wildcards: Vec<_> =
            self.generation.listeners().filter(|listener| listener.is_wildcard()).cloned().collect();
        let unused = old.listeners().filter(|listener| !kept.contains(&Rc::as_ptr(listener)));
        self.listeners.close(unused, &wildcards)
    }
}

impl Supervisor {
    /// The new generation accepts: it is in force, and the old one retires.
    pub(super) fn complete(&mut self, rollout: Rollout) {
        let log_before = self.state.generation.settings().log;
        let troubles = self.state.generation.troubles();
        let Rollout { next, kept, purpose, clients, control, .. } = rollout;
        let failures = self.state.commit(next, &kept);
        let log = self.state.generation.settings().log;
        if log != log_before {
            self.log.reopen(log);
        }
        let access = &self.state.generation.settings().supervisor.control_access;
        // Who is replaced lets in nobody any more.
        let kept = control.is_none().then(|| self.state.control.set_access(access));
        if let Some(Err(error)) = kept {
            self.log.error(
                None,
                format_args!("the file of the control socket lets in whom it did before: {error}"),
            );
        }
        self.tell_troubles(&troubles);
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
                let what = format!("upgraded to {}", self.invocation.title.version());
                self.is_changed(&what, clients, control);
            }
            Purpose::Recovery => self.systemd.status(&self.state.summary()),
        }
    }

    /// Writes what cannot be served any more, and what can again.
    fn tell_troubles(&self, before: &BTreeSet<Trouble>) {
        let now = self.state.generation.troubles();
        for trouble in now.difference(before) {
            let down = if trouble.address.is_none() { "down: " } else { "" };
            self.log.event(
                Level::Error,
                Some(MessageId::ServiceDown),
                Some(&trouble.service),
                format_args!("{down}{}; it is tried again", trouble.reason),
            );
        }
        let place = |trouble: &Trouble| (trouble.service.clone(), trouble.address.clone());
        let still: BTreeSet<_> = now.iter().map(place).collect();
        for trouble in before.iter().filter(|trouble| !still.contains(&place(trouble))) {
            let Some(service) = self.state.generation.service(&trouble.service) else { continue };
            let addresses: Vec<_> = service.listeners().iter().map(|listener| listener.name()).collect();
            self.log.event(
                Level::Notice,
                Some(MessageId::ServiceBack),
                Some(&trouble.service),
                format_args!("served at {}", addresses.join(" ")),
            );
        }
    }

    fn is_serving(&mut self, control: Option<ControlServer>) {
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

    fn is_changed(&mut self, what: &str, clients: Vec<ClientId>, control: Option<ControlServer>) {
        let summary = self.state.summary();
        self.log.event(Level::Notice, Some(MessageId::ReloadDone), None, format_args!("{what}: {summary}"));
        self.systemd.ready(&summary);
        let generation = &self.state.generation;
        let mut text = format!("{what}; generation {} is in force", generation.number());
        for trouble in generation.troubles() {
            text.push_str(&format!("\n{trouble}"));
        }
        for (service, unreachable) in generation.lost() {
            text.push_str(&format!("\n{service}: {unreachable}"));
        }
        self.answer(clients, &Answer::Done(text));
        // Only now: the clients came over the old one.
        if let Some(control) = control {
            let waiting = self.changes.take_who_waits_for_reload();
            let path = control.path().display();
            let reason = format!("the control socket is {path} from now on; reload again there");
            self.answer(waiting, &Answer::refused(reason));
            self.state.control.replace(control, &self.poller);
        }
    }
}
