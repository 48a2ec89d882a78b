//! How a supervisor comes to be: by a start, or where another program left this process to this one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::adopted::AdoptedConnections;
use super::ending::Phase;
use super::ledger::Ledger;
use super::listeners::Listeners;
use super::resume::{self, Parts};
use super::systemd::{ActivatedSockets, Systemd};
use super::watchdog::Watchdog;
use super::workers::Workers;
use super::{ConfigSource, Fatal, HANDLED, Supervisor, upgrade};
use crate::config::Config;
use crate::control::Reloads;
use crate::journal::Log;
use crate::sys::epoll::Poller;
use crate::sys::signal::Signals;
use crate::sys::{fd, process};

/// Serves `config` until told to end; the whole life of the supervisor. With `announce`, prints to stdout where it
/// listens once it serves.
pub(crate) fn run(config: Config, source: ConfigSource, announce: bool) -> Result<(), Fatal> {
    let poller = Poller::new().map_err(|error| Fatal::os("cannot make an epoll instance", &error))?;
    let parts = Parts::new(&config)?;
    let mut supervisor = Supervisor::new(parts, source, announce, poller)?;
    let result = supervisor.start(config).and_then(|()| supervisor.supervise());
    supervisor.leave_nothing();
    result
}

/// Whether another program left this process to this one.
#[derive(Debug)]
pub(crate) enum Resumed {
    /// It did; this is how it ended.
    Ended(Result<(), Fatal>),
    /// It did not: this is a start.
    NotAnUpgrade(ConfigSource),
}

/// Goes on where another program left this process to this one, if this is an upgrade.
pub(crate) fn take_up(source: ConfigSource, announce: bool) -> Resumed {
    match upgrade::inherited_ledger() {
        None => Resumed::NotAnUpgrade(source),
        Some(file) => Resumed::Ended(go_on(file, source, announce)),
    }
}

fn go_on(file: io::Result<OwnedFd>, source: ConfigSource, announce: bool) -> Result<(), Fatal> {
    let failed = |error: io::Error| Fatal::os("cannot go on after the upgrade", &error);
    let poller = Poller::new().map_err(failed)?;
    let ledger = file.and_then(Ledger::read).map_err(failed)?;
    let (parts, clients) = resume::take_over(ledger, &poller).map_err(failed)?;
    let mut supervisor = Supervisor::new(parts, source, announce, poller)?;
    supervisor.renew_workers(clients);
    let result = supervisor.supervise();
    supervisor.leave_nothing();
    result
}

impl Parts {
    fn new(config: &Config) -> Result<Self, Fatal> {
        let systemd = Systemd::default();
        let passed = ActivatedSockets::take(&systemd)
            .map_err(|error| Fatal::os("cannot take over systemd's sockets", &error))?;
        // Each worker takes some descriptors of the supervisor's.
        let descriptor_limit = process::raise_descriptor_limit()
            .map_err(|error| Fatal::os("cannot raise the limit of descriptors", &error))?;
        let run = run_tag();
        Ok(Parts {
            systemd: systemd.clone(),
            settings: config.supervisor.clone(),
            log_settings: config.log,
            listeners: Listeners::new(passed, systemd),
            services: BTreeMap::new(),
            service_states: BTreeMap::new(),
            workers: Workers::new(run, descriptor_limit),
            adopted: AdoptedConnections::new(run),
            control: None,
            generation: 0,
            reloads: Reloads::default(),
            upgrades: 0,
            phase: Phase::Starting,
            started: Instant::now(),
        })
    }
}

impl Supervisor {
    fn new(parts: Parts, source: ConfigSource, announce: bool, poller: Poller) -> Result<Self, Fatal> {
        let failed = |what| move |error: io::Error| Fatal::os(what, &error);
        fd::fill_standard().map_err(failed("cannot open /dev/null"))?;
        let signals = Signals::install(&HANDLED).map_err(failed("cannot install signal handlers"))?;
        process::become_subreaper().map_err(failed("cannot become the reaper of connections"))?;
        Ok(Supervisor {
            source,
            announce,
            program: upgrade::program().map_err(failed("cannot find the program of this process"))?,
            settings: parts.settings,
            log_settings: parts.log_settings,
            log: Log::open(parts.log_settings),
            signals,
            poller,
            watch: Watchdog::new(&parts.systemd),
            systemd: parts.systemd,
            listeners: parts.listeners,
            services: parts.services,
            service_states: parts.service_states,
            workers: parts.workers,
            adopted: parts.adopted,
            // An upgrade takes its control socket over as the first.
            controls_opened: u64::from(parts.control.is_some()),
            control: parts.control,
            loader: None,
            rollout: None,
            reload_wanted: None,
            trial: None,
            upgrade_wanted: None,
            generation: parts.generation,
            reloads: parts.reloads,
            upgrades: parts.upgrades,
            last_reload_failed: false,
            phase: parts.phase,
            fatal: None,
            started: parts.started,
        })
    }
}

/// 24 bits that tell this supervisor from the one before it.
fn run_tag() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    // std seeds it from the kernel's random numbers.
    (RandomState::new().hash_one(std::process::id()) & 0xff_ffff) as u32
}
