//! All that the supervisor knows of the world: what a start makes, and an upgrade leaves to the next program.

use std::io;
use std::rc::Rc;

use super::adopted::AdoptedConnections;
use super::bans::Bans;
use super::cgroups::Cgroups;
use super::control_socket::ControlSocket;
use super::credentials::CredentialFiles;
use super::generation::Generation;
use super::history::History;
use super::kept::Kept;
use super::left_behind::LeftBehind;
use super::listener::{ListenerTable, SavedListener};
use super::listeners::Listeners;
use super::saved::Saved;
use super::service::{ServiceState, ServiceStates};
use super::systemd::{ActivatedSockets, Systemd};
use super::workers::{WorkerProcess, Workers};
use crate::config::Config;
use crate::control::server::ClientId;
use crate::sys::epoll::Poller;
use crate::sys::process;

/// It is made of parts that save themselves, each with what it has in it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) history: History,
    /// What is in force.
    pub(super) generation: Generation,
    pub(super) services: ServiceStates,
    pub(super) bans: Bans,
    pub(super) credentials: CredentialFiles,
    pub(super) listeners: Listeners,
    pub(super) workers: Workers,
    pub(super) adopted: AdoptedConnections,
    pub(super) left_behind: LeftBehind,
    pub(super) cgroups: Cgroups,
    pub(super) control: ControlSocket,
}

impl State {
    /// Has workers look whom something waits for that they were not woken for.
    pub(super) fn send_looks(&mut self) {
        for service in self.services.alive().filter(|service| service.scoreboard.take_wake()) {
            self.workers.look(&service.name);
        }
        self.workers.send_looks();
    }

    /// At the start, when nothing is served yet.
    pub(super) fn new(config: &Config, passed: ActivatedSockets, systemd: &Systemd) -> io::Result<Self> {
        // Each worker takes some descriptors of the supervisor's.
        let limit = process::raise_descriptor_limit();
        let failed = |error| io::Error::other(format!("cannot raise the limit of descriptors: {error}"));
        let descriptor_limit = limit.map_err(failed)?;
        let run = run_tag();
        Ok(State {
            history: History::begin(),
            generation: Generation::new(0, config.supervisor.clone(), config.log),
            services: ServiceStates::default(),
            bans: Bans::default(),
            credentials: CredentialFiles::default(),
            listeners: Listeners::new(passed, systemd.clone()),
            workers: Workers::new(run, descriptor_limit),
            adopted: AdoptedConnections::new(run),
            left_behind: LeftBehind::default(),
            cgroups: Cgroups::begin(config.supervisor.cgroup, run)?,
            control: ControlSocket::default(),
        })
    }

    /// All of it, and in `kept` the descriptors that it names. `services` are the states of all services; `clients` wait for
    /// the upgrade.
    pub(super) fn save<'a>(
        &'a self,
        services: &'a [Rc<ServiceState>],
        clients: &[ClientId],
        kept: &mut Kept<'a>,
    ) -> Saved {
        let mut listeners = ListenerTable::default();
        Saved {
            history: self.history.clone(),
            generation: self.generation.settings().clone(),
            services: self.generation.save(&mut listeners),
            down: self.generation.save_down(),
            credentials: self.credentials.clone(),
            bans: self.bans.save(),
            states: services.iter().map(|state| state.save(kept)).collect(),
            worker_settings: self.workers.settings(),
            workers: self.workers.save(&mut listeners, kept),
            adopted: self.adopted.save(),
            left_behind: self.left_behind.clone(),
            cgroups: self.cgroups.clone(),
            late: self.adopted.save_late(kept),
            control: self.control.save(clients, |fd| kept.keep(fd)),
            passed: self.listeners.save_passed(kept),
            // When all who have one have said so.
            listeners: listeners.save(kept),
        }
    }

    /// Goes on from what another program has saved. Returns the clients that wait, too.
    pub(super) fn resume(
        saved: Saved,
        systemd: &Systemd,
        poller: &Poller,
    ) -> io::Result<(Self, Vec<ClientId>)> {
        let (services, _alive) = ServiceStates::resume(saved.states)?;
        let take = |listener: SavedListener| listener.resume(systemd.clone()).map(Rc::new);
        let listeners = saved.listeners.into_iter().map(take).collect::<io::Result<Vec<_>>>()?;
        let generation =
            Generation::resume(saved.generation, saved.services, saved.down, &services, &listeners)?;
        let workers = Workers::resume(saved.worker_settings, saved.workers, &services, &listeners, poller)?;
        let run = saved.worker_settings.run;
        let cgroups = saved.cgroups.resumed();
        let adopted =
            AdoptedConnections::resume(run, saved.adopted, saved.late, &services, &cgroups, poller)?;
        let access = &generation.settings().supervisor.control_access;
        let (control, clients) = ControlSocket::resume(saved.control, access, poller)?;
        let listeners = Listeners::resume(saved.passed, &listeners, systemd.clone())?;
        let state = State {
            history: saved.history,
            generation,
            services,
            bans: Bans::resume(saved.bans),
            credentials: saved.credentials,
            listeners,
            workers,
            adopted,
            left_behind: saved.left_behind,
            cgroups,
            control,
        };
        Ok((state, clients))
    }

    /// Ends the programs that have a listener of this service, but for those of workers that serve.
    pub(super) fn end_programs(&mut self, service: &str) {
        self.workers.of_service(service).for_each(WorkerProcess::end_programs);
        self.adopted.end_programs(Some(service));
    }
}

/// 24 bits that tell this supervisor from the one before it.
fn run_tag() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    // std seeds it from the kernel's random numbers.
    (RandomState::new().hash_one(std::process::id()) & 0xff_ffff) as u32
}
