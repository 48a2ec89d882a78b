//! The generation in force: the services as the configuration has them.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::listeners::{Listener, ListenerTable};
use super::service::{Service, ServiceStates};
use crate::config::{Config, ServiceConfig, SupervisorConfig};
use crate::journal::LogSettings;

/// A generation; nothing of it changes but what its services have to wait for.
#[derive(Debug)]
pub(super) struct Generation {
    settings: GenerationSettings,
    services: BTreeMap<String, Service>,
}

/// What of a generation concerns no single service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GenerationSettings {
    /// The first is 1; before it nothing is served.
    pub(super) number: u64,
    pub(super) supervisor: SupervisorConfig,
    pub(super) log: LogSettings,
}

/// A service as it is saved; the rest is made from its configuration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedService {
    config: ServiceConfig,
    generation: u64,
    listeners: Vec<usize>,
}

impl Generation {
    /// One without services yet.
    pub(super) fn new(number: u64, supervisor: SupervisorConfig, log: LogSettings) -> Self {
        Generation { settings: GenerationSettings { number, supervisor, log }, services: BTreeMap::new() }
    }

    pub(super) fn number(&self) -> u64 {
        self.settings.number
    }

    pub(super) fn settings(&self) -> &GenerationSettings {
        &self.settings
    }

    /// The configuration from which it was made.
    pub(super) fn config(&self) -> Config {
        let GenerationSettings { number: _, supervisor, log } = self.settings.clone();
        let services = self.services.values().map(|service| service.config().clone()).collect();
        Config { supervisor, log, services }
    }

    /// Adds a service.
    pub(super) fn add(&mut self, service: Service) {
        self.services.insert(service.name().to_owned(), service);
    }

    pub(super) fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    pub(super) fn service_mut(&mut self, name: &str) -> Option<&mut Service> {
        self.services.get_mut(name)
    }

    /// All services, by name.
    pub(super) fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values()
    }

    pub(super) fn services_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        self.services.values_mut()
    }

    /// All listeners, one for each service that has it.
    pub(super) fn listeners(&self) -> impl Iterator<Item = &Rc<Listener>> {
        self.services.values().flat_map(Service::listeners)
    }

    /// Gives way to `next`, to which it hands the services that are `kept`. Returns what is left of it.
    pub(super) fn replace(&mut self, mut next: Generation, kept: &[String]) -> Generation {
        for name in kept {
            next.services.extend(self.services.remove_entry(name));
        }
        std::mem::replace(self, next)
    }

    /// The services as they are saved.
    pub(super) fn save<'a>(&'a self, listeners: &mut ListenerTable<'a>) -> Vec<SavedService> {
        let save = |service: &'a Service| SavedService {
            config: service.config().clone(),
            generation: service.generation(),
            listeners: listeners.places(service.listeners()),
        };
        self.services.values().map(save).collect()
    }

    /// The generation that another program has saved.
    pub(super) fn resume(
        settings: GenerationSettings,
        services: Vec<SavedService>,
        states: &ServiceStates,
        listeners: &[Rc<Listener>],
    ) -> io::Result<Self> {
        let mut generation = Generation { settings, services: BTreeMap::new() };
        for SavedService { config, generation: number, listeners: places } in services {
            let state = states.of_saved(&config.name)?;
            let sockets = super::listeners::pick(listeners, &places)?;
            generation.add(Service::new(config, number, state, sockets)?);
        }
        Ok(generation)
    }
}
