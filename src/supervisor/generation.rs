//! The generation in force: the services as the configuration has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::listener::{self, Listener, ListenerTable};
use super::service::{MissingAddress, Service, ServiceStates};
use crate::config::{Address, Config, ServiceConfig, Snapshot, SupervisorConfig, Unavailable};
use crate::control::Unreachable;
use crate::journal::LogSettings;
use crate::sys::process;
use crate::sys::time::Monotonic;

/// Between looks at files and users, which a process of its own takes, and between workers that cannot begin.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A generation; nothing of it changes but what its services have to wait for.
#[derive(Debug)]
pub(super) struct Generation {
    settings: GenerationSettings,
    services: BTreeMap<String, Service>,
    /// The services that cannot be served now, by name.
    down: BTreeMap<String, DownService>,
    /// The files that say what those among them are that have no configuration yet.
    snapshot: Snapshot,
}

/// A service that cannot be served now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DownService {
    /// `None` if it names what this machine does not have.
    pub(super) config: Option<ServiceConfig>,
    /// Why, as a sentence for the log.
    pub(super) reason: String,
    /// Its workers could not begin; not before this time they are tried again.
    #[serde(skip)]
    pub(super) rests_until: Option<Monotonic>,
}

impl DownService {
    /// Without a configuration yet.
    pub(super) fn unavailable(reason: String) -> Self {
        DownService { config: None, reason, rests_until: None }
    }

    /// Without a listener or a worker.
    pub(super) fn unserved(config: ServiceConfig, reason: String) -> Self {
        DownService { config: Some(config), reason, rests_until: None }
    }

    fn rests(&self, now: Monotonic) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
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
    missing: Vec<MissingAddress>,
}

impl SavedService {
    pub(super) fn config(&self) -> &ServiceConfig {
        &self.config
    }
}

/// A service that cannot be served now, or not at one of its addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Trouble {
    pub(super) service: String,
    /// `None` if it is not served anywhere.
    pub(super) address: Option<String>,
    pub(super) reason: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trouble { service, address, reason } = self;
        match address {
            None => write!(f, "{service} is down: {reason}"),
            Some(_) => write!(f, "{service}: {reason}"),
        }
    }
}

/// What is saved of services that are down.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct SavedDown {
    services: BTreeMap<String, DownService>,
    snapshot: Snapshot,
}

impl Generation {
    /// One without services yet.
    pub(super) fn new(number: u64, supervisor: SupervisorConfig, log: LogSettings) -> Self {
        let settings = GenerationSettings { number, supervisor, log };
        Generation {
            settings,
            services: BTreeMap::new(),
            down: BTreeMap::new(),
            snapshot: Snapshot::default(),
        }
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
        let served = self.services.values().map(|service| service.config().clone());
        let services = served.chain(self.down.values().filter_map(|down| down.config.clone())).collect();
        let unavailable = self.down.iter().filter(|(_, down)| down.config.is_none());
        let reasons = unavailable.map(|(name, down)| (name.clone(), down.reason.clone())).collect();
        let unavailable = Unavailable { reasons, snapshot: self.snapshot.clone() };
        Config { supervisor, log, services, unavailable }
    }

    /// Why this service cannot have its users from here on: one of them is that of a connection that began as another's, and would
    /// be ended by the first that is it now. Users that stay those of the same slots may.
    pub(super) fn users_in_use(&self, config: &ServiceConfig) -> Option<String> {
        let range = |config: &ServiceConfig| config.identity.user.clone().filter(|user| user.range.is_some());
        let own = range(config)?;
        let stays = |service: &Service| {
            service.name() == config.name && range(service.config()).is_some_and(|user| user.uid == own.uid)
        };
        let mut others = self.services.values().filter(|service| !stays(service));
        let first_of_both = others.find_map(|service| {
            let users = range(service.config())?.users();
            let first = *users.start().max(own.users().start());
            (users.contains(&first) && own.users().contains(&first)).then(|| (first, service.name()))
        });
        if let Some((user, service)) = first_of_both {
            let name = &config.name;
            return Some(format!(
                "service {name} cannot have user {user}, which is in the range of service {service} that is in force: take others, \
                 or restart"
            ));
        }
        if self.services.values().any(stays) {
            return None;
        }
        let user =
            own.users().take(config.max_connections as usize).find(|user| process::has_processes(*user))?;
        Some(format!(
            "service {} cannot have user {user}: it has processes, and these would be killed by its next connection; end them, or take \
             others",
            config.name
        ))
    }

    /// The services that cannot be served now, by name.
    pub(super) fn down(&self) -> &BTreeMap<String, DownService> {
        &self.down
    }

    /// Adds services that name what this machine does not have.
    pub(super) fn add_unavailable(&mut self, unavailable: Unavailable) {
        let down = |(name, reason)| (name, DownService::unavailable(reason));
        self.down.extend(unavailable.reasons.into_iter().map(down));
        self.snapshot = unavailable.snapshot;
    }

    /// Adds a service that cannot be served, for this reason.
    pub(super) fn add_down(&mut self, config: ServiceConfig, reason: String) {
        self.down.insert(config.name.clone(), DownService::unserved(config, reason));
    }

    /// The workers of a service cannot begin.
    pub(super) fn give_up(&mut self, name: &str, reason: String, rests_until: Monotonic) {
        if let Some(service) = self.services.remove(name) {
            let down = DownService::unserved(service.config().clone(), reason);
            self.down.insert(name.to_owned(), DownService { rests_until: Some(rests_until), ..down });
        }
    }

    /// Adds a service that rests in `before`. False if it does not.
    pub(super) fn let_rest(&mut self, name: &str, before: &Generation, now: Monotonic) -> bool {
        let resting = before.down.get(name).filter(|down| down.rests(now));
        self.down.extend(resting.map(|down| (name.to_owned(), down.clone())));
        resting.is_some()
    }

    /// When services have rested.
    pub(super) fn rests_until(&self) -> impl Iterator<Item = Monotonic> {
        self.down.values().filter_map(|down| down.rests_until)
    }

    /// More is known of a service, if it is down and there was no configuration of it.
    pub(super) fn renew(&mut self, name: &str, known: DownService) {
        if let Some(down) = self.down.get_mut(name).filter(|down| down.config.is_none()) {
            *down = known;
        }
    }

    /// What is down here is so for the reasons that were found when `other` was made.
    pub(super) fn renew_reasons(&mut self, other: Generation) {
        for (name, found) in other.down {
            if let Some(down) = self.down.get_mut(&name) {
                *down = found;
            }
        }
    }

    /// The files that say what the services are that have no configuration yet.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The listeners at which nobody can reach a service, by its name, as the kernel and the file system say now.
    pub(super) fn lost(&self) -> impl Iterator<Item = (&str, Unreachable)> {
        let named = |service| move |lost| (Service::name(service), lost);
        self.services.values().flat_map(move |service| service.lost().map(named(service)))
    }

    /// What cannot be served now, and why.
    pub(super) fn troubles(&self) -> BTreeSet<Trouble> {
        let down = self.down.iter().map(|(name, down)| (name, None, down.reason.clone()));
        let services = self.services.iter();
        let cannot_begin =
            services.clone().filter_map(|(name, service)| Some((name, None, service.trouble()?.to_owned())));
        let missing = services.flat_map(|(name, service)| {
            service
                .missing()
                .iter()
                .map(move |missing| (name, Some(&missing.address), missing.reason.clone()))
        });
        let trouble = |(service, address, reason): (&String, Option<&Address>, String)| Trouble {
            service: service.clone(),
            address: address.map(ToString::to_string),
            reason,
        };
        down.chain(cannot_begin).chain(missing).map(trouble).collect()
    }

    /// Whether something could not be served that can be tried as it is.
    pub(super) fn has_to_try(&self, now: Monotonic) -> bool {
        self.down.values().any(|down| down.config.is_some() && !down.rests(now))
            || self.services().any(|service| !service.missing().is_empty())
    }

    /// Whether something could not be served whose files and users have to be looked for.
    pub(super) fn has_to_read(&self) -> bool {
        self.down.values().any(|down| down.config.is_none())
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
            missing: service.missing().to_vec(),
        };
        self.services.values().map(save).collect()
    }

    /// The others.
    pub(super) fn save_down(&self) -> SavedDown {
        SavedDown { services: self.down.clone(), snapshot: self.snapshot.clone() }
    }

    /// The generation that another program has saved.
    pub(super) fn resume(
        settings: GenerationSettings,
        services: Vec<SavedService>,
        down: SavedDown,
        states: &ServiceStates,
        listeners: &[Rc<Listener>],
    ) -> io::Result<Self> {
        let SavedDown { services: down, snapshot } = down;
        let mut generation = Generation { settings, services: BTreeMap::new(), down, snapshot };
        for SavedService { config, generation: number, listeners: places, missing } in services {
            let state = states.of_saved(&config.name)?;
            let sockets = listener::pick(listeners, &places)?;
            let service = Service::new(config, number, state, sockets, missing, None)?;
            service.shares();
            generation.add(service);
        }
        Ok(generation)
    }
}
