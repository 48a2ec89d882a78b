//! A new generation comes into force, and the old one retires.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Supervisor;
use super::ending::Phase;
use super::listeners::Listener;
use super::rollout::Purpose;
use super::service::Service;
use super::workers::WorkerProcess;
use crate::control::server::{ClientId, Server};
use crate::control::{Answer, WorkerState};
use crate::journal::MessageId;
use crate::scoreboard::Owner;

impl Supervisor {
    /// The new generation accepts: it is in force, and the old one retires.
    pub(super) fn complete(&mut self) {
        let Some(rollout) = self.rollout.take() else { return };
        let mut old = std::mem::take(&mut self.services);
        for name in rollout.kept {
            self.services.extend(old.remove_entry(&name));
        }
        for (name, service) in rollout.fresh {
            service.service_state.scoreboard.set_limit(service.config.max_connections);
            for listener in &service.listeners {
                listener.put_to_use(service.config.socket);
            }
            service.recount(Owner::SUPERVISOR);
            let mine = |(serial, worker): (u32, &WorkerProcess)| {
                (worker.service == name && worker.generation != service.generation).then_some(serial)
            };
            let old = self.workers.iter().filter_map(mine);
            old.for_each(|serial| service.recount(Owner::worker(serial)));
            self.services.insert(name, service);
        }
        let closing = self.close_unused(&old);
        let services = &self.services;
        for (_, worker) in self.workers.iter_mut() {
            let current =
                services.get(&worker.service).is_some_and(|service| service.generation == worker.generation);
            if !current && worker.state != WorkerState::Draining {
                worker.retire(&closing);
            }
        }
        let first = self.generation == 0;
        self.generation = rollout.generation;
        self.settings = rollout.settings;
        if self.log_settings != rollout.log_settings {
            self.log_settings = rollout.log_settings;
            self.log.reopen(rollout.log_settings);
        }
        if first {
            self.listeners.close_left();
            self.control = rollout.control;
            if let Some(control) = &mut self.control {
                control.begin(&self.poller);
            }
            self.is_serving();
        } else {
            self.is_reloaded(rollout.purpose, rollout.clients, rollout.control);
        }
    }

    /// The listeners that no service wants any more, with their queues closed.
    pub(super) fn close_unused(&mut self, old: &BTreeMap<String, Service>) -> Vec<Rc<Listener>> {
        let mut closing = Vec::new();
        for listener in old.values().flat_map(|service| &service.listeners) {
            let mut kept = self.services.values().flat_map(|service| &service.listeners);
            if !kept.any(|other| Rc::ptr_eq(other, listener)) && self.listeners.close(listener) {
                closing.push(Rc::clone(listener));
            }
        }
        closing
    }

    fn is_serving(&mut self) {
        self.phase = Phase::Running;
        let summary = self.summary();
        self.log.event(
            crate::journal::Level::Notice,
            Some(MessageId::Started),
            None,
            format_args!("serving: {summary}"),
        );
        self.systemd.ready(&summary);
        if self.announce {
            self.print_addresses();
        }
    }

    fn is_reloaded(&mut self, purpose: Purpose, clients: Vec<ClientId>, control: Option<Server>) {
        let what = match purpose {
            Purpose::Upgrade => concat!("upgraded to ", env!("CARGO_PKG_VERSION")),
            Purpose::Start | Purpose::Reload => {
                self.reloads.ok += 1;
                self.last_reload_failed = false;
                "reloaded"
            }
        };
        let text = format!("{what}; generation {} is in force", self.generation);
        self.log.event(
            crate::journal::Level::Notice,
            Some(MessageId::ReloadDone),
            None,
            format_args!("{what}: {}", self.summary()),
        );
        self.systemd.ready(&self.summary());
        for client in clients {
            self.answer(client, &Answer::Done(text.clone()));
        }
        // Only now: the clients came over the old one.
        if let Some(mut new) = control {
            new.begin(&self.poller);
            self.refuse_who_waits_elsewhere(&new);
            if let Some(mut old) = self.control.replace(new) {
                old.close(&self.poller);
            }
        }
    }

    /// Whoever waits for a reload of his own at the old control socket; the reload itself still comes.
    fn refuse_who_waits_elsewhere(&mut self, new: &Server) {
        let waiting = self.reload_wanted.as_mut().map(std::mem::take).unwrap_or_default();
        let reason =
            format!("the control socket is {} from now on; reload again there", new.path().display());
        for client in waiting {
            self.answer(client, &Answer::Refused(reason.clone()));
        }
    }
}
