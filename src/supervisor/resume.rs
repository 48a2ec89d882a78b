//! Writing the ledger, and going on from one.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::adopted::AdoptedConnections;
use super::ending::Phase;
use super::ledger::{
    ControlEntry, InheritedFds, Kept, LateEntry, Ledger, ListenerEntry, ServiceEntry, ServiceStateEntry,
};
use super::listeners::{Listener, Listeners};
use super::service::{Service, ServiceState};
use super::systemd::Systemd;
use super::workers::Workers;
use super::{CONTROLS, LATE_EVENTS, Supervisor};
use crate::config;
use crate::control::Reloads;
use crate::control::server::{ClientId, Server};
use crate::spare::events::SpareEvents;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::time;

/// What survives an upgrade, or is made at the start.
pub(super) struct Parts {
    pub(super) systemd: Systemd,
    pub(super) settings: config::SupervisorConfig,
    pub(super) log_settings: crate::journal::LogSettings,
    pub(super) listeners: Listeners,
    pub(super) services: BTreeMap<String, Service>,
    pub(super) service_states: BTreeMap<String, Weak<ServiceState>>,
    pub(super) workers: Workers,
    pub(super) adopted: AdoptedConnections,
    pub(super) control: Option<Server>,
    pub(super) generation: u64,
    pub(super) reloads: Reloads,
    pub(super) upgrades: u64,
    pub(super) phase: Phase,
    pub(super) started: Instant,
}

impl Supervisor {
    /// All that the next program must know. `kept` are the descriptors that it names.
    pub(super) fn write_ledger<'a>(&'a self, kept: &mut Kept<'a>, clients: &[ClientId]) -> Ledger {
        let mut ledger = Ledger::new(self.workers.run(), self.settings.clone(), self.log_settings);
        ledger.next_serial = self.workers.next_serial();
        ledger.descriptor_limit = self.workers.descriptor_limit();
        ledger.generation = self.generation;
        ledger.reloads = self.reloads;
        ledger.upgrades = self.upgrades;
        ledger.started_usec =
            time::monotonic_usec().saturating_sub(self.started.elapsed().as_micros() as u64);
        ledger.control = self.control.as_ref().map(|control| {
            let (listener, path, inode, waiting) = control.parts(clients);
            ControlEntry {
                listener: kept.keep(listener),
                path: path.to_owned(),
                inode,
                clients: waiting.into_iter().map(|client| kept.keep(client)).collect(),
                newcomers: control.newcomers().map(|client| kept.keep(client)).collect(),
            }
        });
        ledger.passed = self.listeners.passed_entries(kept);
        let mut listeners = ListenerTable::default();
        ledger.services = self
            .services
            .values()
            .map(|service| ServiceEntry {
                config: service.config.clone(),
                generation: service.generation,
                listeners: listeners.indices(&service.listeners),
            })
            .collect();
        for (name, service_state) in &self.service_states {
            // Borrowed from the workers, adopted and services that hold it, so that it outlives this borrow of self.
            let holder = self.service_state_holder(name);
            if let Some(held) = holder.filter(|held| std::ptr::eq(Rc::as_ptr(held), service_state.as_ptr())) {
                ledger.service_states.push(ServiceStateEntry {
                    service: name.clone(),
                    scoreboard: kept.keep(held.file.as_fd()),
                    bell: kept.keep(held.scoreboard.slot_freed()),
                    sources: kept.keep(held.sources_file.as_fd()),
                    gone: held.gone.get(),
                });
            }
        }
        ledger.workers = self.workers.entries(&mut |list| listeners.indices(list), kept);
        ledger.adopted = self.adopted.entries();
        ledger.late = self.adopted.late_entries(kept);
        ledger.listeners = listeners.0.into_iter().map(|listener| listener.entry(kept)).collect();
        ledger
    }

    fn service_state_holder(&self, name: &str) -> Option<&Rc<ServiceState>> {
        let of_service = self.services.get(name).map(|service| &service.service_state);
        let of_worker =
            || self.workers.iter().find(|(_, worker)| worker.service == name).map(|(_, w)| &w.service_state);
        of_service.or_else(of_worker).or_else(|| self.adopted.service_state_of(name))
    }
}

/// Listeners in the order of their first use.
#[derive(Default)]
struct ListenerTable<'a>(Vec<&'a Listener>);

impl<'a> ListenerTable<'a> {
    fn indices(&mut self, listeners: &'a [Rc<Listener>]) -> Vec<usize> {
        let mut index = |listener: &'a Listener| {
            let known = self.0.iter().position(|other| std::ptr::eq(*other, listener));
            known.unwrap_or_else(|| {
                self.0.push(listener);
                self.0.len() - 1
            })
        };
        listeners.iter().map(|listener| index(listener)).collect()
    }
}

/// What a ledger says, taken over.
pub(super) fn take_over(ledger: Ledger, poller: &Poller) -> io::Result<(Parts, Vec<ClientId>)> {
    let systemd = Systemd::default();
    let mut taken = InheritedFds::default();
    let mut passed: HashMap<String, Vec<OwnedFd>> = HashMap::new();
    for (name, descriptors) in ledger.passed {
        for descriptor in descriptors {
            passed.entry(name.clone()).or_default().push(taken.take(descriptor)?);
        }
    }
    let listeners: io::Result<Vec<_>> =
        ledger.listeners.into_iter().map(|entry| listener(entry, &mut taken, &systemd)).collect();
    let listeners = listeners?;
    let mut service_states = BTreeMap::new();
    for entry in ledger.service_states {
        let (scoreboard, bell) = (taken.take(entry.scoreboard)?, taken.take(entry.bell)?);
        let service_state = ServiceState::resume(
            entry.service.clone(),
            scoreboard,
            bell,
            taken.take(entry.sources)?,
            entry.gone,
        )?;
        service_states.insert(entry.service, service_state);
    }
    let mut services = BTreeMap::new();
    for entry in ledger.services {
        let name = entry.config.name.clone();
        let service_state = Rc::clone(service_states.get(&name).ok_or_else(broken)?);
        let sockets = pick(&listeners, &entry.listeners)?;
        services.insert(name, Service::new(entry.config, entry.generation, service_state, sockets)?);
    }
    let mut workers = Workers::resume(ledger.run, ledger.next_serial, ledger.descriptor_limit);
    for entry in ledger.workers {
        let service_state = Rc::clone(service_states.get(&entry.service).ok_or_else(broken)?);
        let sockets = pick(&listeners, &entry.listeners)?;
        workers.take_over(entry, service_state, sockets, &mut taken, poller)?;
    }
    let mut adopted = AdoptedConnections::new(ledger.run);
    for entry in ledger.adopted {
        let service_state = Rc::clone(service_states.get(&entry.service).ok_or_else(broken)?);
        adopted.take_over(&entry, service_state);
    }
    for LateEntry { service, worker, calls } in ledger.late {
        let calls = SpareEvents::open(taken.take(calls)?);
        poller.add(calls.descriptor(), Interest::ReadEdge, LATE_EVENTS)?;
        adopted.take_over_late(service, worker, Rc::new(calls));
    }
    let mut waiting = Vec::new();
    let control = match ledger.control {
        Some(entry) => {
            let socket = taken.take(entry.listener)?;
            let mut control = Server::resume(socket, entry.path, entry.inode, CONTROLS, poller);
            for client in entry.clients {
                waiting.push(control.resume_client(taken.take(client)?));
            }
            for newcomer in entry.newcomers {
                control.resume_newcomer(taken.take(newcomer)?, poller);
            }
            Some(control)
        }
        None => None,
    };
    let age = Duration::from_micros(time::monotonic_usec().saturating_sub(ledger.started_usec));
    let now = Instant::now();
    let parts = Parts {
        systemd: systemd.clone(),
        settings: ledger.settings,
        log_settings: ledger.log,
        listeners: Listeners::resume(passed, &listeners, systemd),
        service_states: service_states
            .iter()
            .map(|(name, service_state)| (name.clone(), Rc::downgrade(service_state)))
            .collect(),
        services,
        workers,
        adopted,
        control,
        generation: ledger.generation,
        reloads: ledger.reloads,
        upgrades: ledger.upgrades + 1,
        phase: Phase::Running,
        started: now.checked_sub(age).unwrap_or(now),
    };
    Ok((parts, waiting))
}

fn listener(entry: ListenerEntry, taken: &mut InheritedFds, systemd: &Systemd) -> io::Result<Rc<Listener>> {
    let socket = taken.take(entry.socket)?;
    Ok(Rc::new(Listener::resume(socket, entry, systemd.clone())))
}

fn pick(listeners: &[Rc<Listener>], indices: &[usize]) -> io::Result<Vec<Rc<Listener>>> {
    indices.iter().map(|&index| listeners.get(index).map(Rc::clone).ok_or_else(broken)).collect()
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the ledger contradicts itself")
}
