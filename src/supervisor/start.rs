//! How a supervisor comes to be: by a start, or where another program left this process to this one.

use std::io;
use std::os::fd::OwnedFd;

use super::changes::PendingChanges;
use super::pause::AwaitedDrains;
use super::phase::Phase;
use super::recovery::Recovery;
use super::saved::Saved;
use super::state::State;
use super::systemd::{ActivatedSockets, Systemd};
use super::watchdog::Watchdog;
use super::{ConfigSource, Fatal, HANDLED, Invocation, Supervisor, upgrade};
use crate::config::Config;
use crate::handler::Title;
use crate::journal::Log;
use crate::sys::epoll::Poller;
use crate::sys::signal::Signals;
use crate::sys::{fd, process};

/// Serves `config` until told to end; the whole life of the supervisor. With `announce`, prints to stdout where it
/// listens once it serves.
pub(crate) fn run(config: Config, source: ConfigSource, announce: bool, title: Title) -> Result<(), Fatal> {
    let poller = Poller::new().map_err(|error| Fatal::os("cannot make an epoll instance", &error))?;
    let systemd = Systemd::default();
    let passed = ActivatedSockets::take(&systemd)
        .map_err(|error| Fatal::os("cannot take over systemd's sockets", &error))?;
    let state = State::new(&config, passed, &systemd).map_err(|error| Fatal::os("cannot begin", &error))?;
    let mut supervisor = Supervisor::new(state, Phase::Starting, systemd, (source, announce, title), poller)?;
    supervisor.recall_bans();
    if let Some(why) = supervisor.state.cgroups.refusal() {
        supervisor.log.warning(None, format_args!("connections have no cgroups of their own: {why}"));
    }
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
pub(crate) fn take_up(source: ConfigSource, announce: bool, title: Title) -> Resumed {
    match upgrade::inherited_state() {
        None => Resumed::NotAnUpgrade(source),
        Some(file) => Resumed::Ended(go_on(file, source, announce, title)),
    }
}

fn go_on(file: io::Result<OwnedFd>, source: ConfigSource, announce: bool, title: Title) -> Result<(), Fatal> {
    let failed = |error: io::Error| Fatal::os("cannot go on after the upgrade", &error);
    let poller = Poller::new().map_err(failed)?;
    let systemd = Systemd::default();
    let saved = file.and_then(Saved::read).map_err(failed)?;
    let (mut state, clients) = State::resume(saved, &systemd, &poller).map_err(failed)?;
    state.history.was_upgraded();
    let mut supervisor = Supervisor::new(state, Phase::Running, systemd, (source, announce, title), poller)?;
    supervisor.renew_workers(clients);
    let result = supervisor.supervise();
    supervisor.leave_nothing();
    result
}

impl Supervisor {
    fn new(
        state: State,
        phase: Phase,
        systemd: Systemd,
        (source, announce, title): (ConfigSource, bool, Title),
        poller: Poller,
    ) -> Result<Self, Fatal> {
        let failed = |what| move |error: io::Error| Fatal::os(what, &error);
        fd::fill_standard().map_err(failed("cannot open /dev/null"))?;
        let signals = Signals::install(&HANDLED).map_err(failed("cannot install signal handlers"))?;
        process::become_subreaper().map_err(failed("cannot become the reaper of connections"))?;
        let program = upgrade::program().map_err(failed("cannot find the program of this process"))?;
        Ok(Supervisor {
            invocation: Invocation { source, announce, title, program },
            log: Log::open(state.generation.settings().log, title.name),
            signals,
            poller,
            watchdog: Watchdog::new(&systemd),
            systemd,
            state,
            changes: PendingChanges::default(),
            recovery: Recovery::default(),
            drains: AwaitedDrains::default(),
            phase,
        })
    }
}
