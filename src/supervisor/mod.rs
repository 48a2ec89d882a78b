//! The supervisor: owns listeners, workers and the ledger; talks to systemd and to the control socket.
//!
//! It never reads a byte of a connection, and what it reads from memory that workers can write it checks first.

mod adopted;
mod commit;
mod ending;
mod ledger;
mod listeners;
mod loader;
mod port_owner;
mod reaping;
mod reload;
mod resume;
mod rollout;
mod service;
mod start;
mod status;
mod systemd;
mod unban;
mod upgrade;
mod watchdog;
mod workers;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Weak;
use std::time::Instant;

use crate::config::{self, Config, Diagnostics, Loaded, Machine};
use crate::control::server::{ClientId, Server};
use crate::control::{Answer, Reloads, Request, WorkerState};
use crate::exit;
use crate::ipc::orders::{Heard, WorkerReport};
use crate::journal::{Log, MessageId};
use crate::scoreboard::Owner;
use crate::sys::epoll::Poller;
use crate::sys::signal::{Signal, Signals, Wakers};
use crate::sys::time::Monotonic;

use adopted::AdoptedConnections;
use ending::{After, Phase};
use listeners::Listeners;
use loader::Loader;
use rollout::Rollout;
use service::{Service, ServiceState};
use status::seconds;
use systemd::Systemd;
use upgrade::Trial;
use watchdog::Watchdog;
use workers::Workers;

pub(crate) use loader::{LOAD_COMMAND, load};
pub(crate) use start::{Resumed, run, take_up};
pub(crate) use upgrade::{TRIAL_COMMAND, trial};

/// Tokens of the poller: below this the serial number of a worker, whose link has something to say; above it control
/// sockets, each with room for its clients.
const CONTROLS: u64 = 1 << 40;

/// How many reports of a worker are heard before signals and others have their turn; one that lies may never stop.
const REPORTS: usize = 16;

/// The token of the link to a program that is being tried.
const TRIAL: u64 = CONTROLS - 1;

/// The token of what spares of dead workers say.
const LATE_EVENTS: u64 = CONTROLS - 2;

/// The token of the link to the process that reads the configuration.
const LOADER: u64 = CONTROLS - 3;

/// The signals that mean something to the supervisor.
const HANDLED: [Signal; 7] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Where the configuration comes from.
#[derive(Debug)]
pub(crate) enum ConfigSource {
    /// A file and its drop-ins, read again on reload.
    File {
        /// The main file.
        path: PathBuf,
        /// Where the control socket is, whatever the file says.
        control: Option<PathBuf>,
    },
    /// The command line; it never changes.
    CommandLine,
}

impl ConfigSource {
    /// Reads it for a program with these handlers; for the command line there is nothing to read.
    pub(crate) fn load(&self, handlers: &[&str]) -> Result<Loaded, Diagnostics> {
        let ConfigSource::File { path, .. } = self else { return Err(Diagnostics::default()) };
        let mut loaded = config::load(path, &Machine::with(handlers))?;
        self.adjust(&mut loaded.config);
        Ok(loaded)
    }

    /// What the command line says, whatever the files say.
    fn adjust(&self, config: &mut Config) {
        if let ConfigSource::File { control: Some(control), .. } = self {
            config.supervisor.control_socket = Some(control.clone());
        }
    }
}

/// Why the supervisor ends before it serves, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Fatal {
    /// For the user.
    text: String,
    /// For who started it.
    code: u8,
}

impl Fatal {
    fn os(what: &str, error: &io::Error) -> Self {
        Fatal { text: format!("{what}: {error}"), code: exit::OS }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

struct Supervisor {
    source: ConfigSource,
    announce: bool,
    /// The file that this process runs, and after an upgrade will run.
    program: PathBuf,
    settings: config::SupervisorConfig,
    log_settings: crate::journal::LogSettings,
    log: Log,
    signals: Signals,
    poller: Poller,
    systemd: Systemd,
    listeners: Listeners,
    services: BTreeMap<String, Service>,
    /// By service, those of removed services included while a worker or connection of theirs lives.
    service_states: BTreeMap<String, Weak<ServiceState>>,
    workers: Workers,
    adopted: AdoptedConnections,
    control: Option<Server>,
    controls_opened: u64,
    /// Reads the configuration for a reload.
    loader: Option<Loader>,
    rollout: Option<Rollout>,
    /// Who asked for a reload while one was under way; they get one of their own.
    reload_wanted: Option<Vec<ClientId>>,
    /// The program on disk, being tried.
    trial: Option<Trial>,
    /// Who asked for an upgrade while something else was under way.
    upgrade_wanted: Option<Vec<ClientId>>,
    generation: u64,
    reloads: Reloads,
    upgrades: u64,
    last_reload_failed: bool,
    watch: Option<Watchdog>,
    phase: Phase,
    /// Why there is no going on.
    fatal: Option<Fatal>,
    started: Instant,
}

// What the supervisor calls, and for whom it may wait there. It has one thread: while it waits, nobody is reaped, answered
// or obeyed, and systemd's watchdog runs. Who adds a call adds a line.
//
// | call                                    | waits for                     | at most                                    |
// |-----------------------------------------|-------------------------------|--------------------------------------------|
// | epoll_pwait(2)                          | events and signals            | the next deadline                          |
// | read(2), write(2) of the control socket | clients                       | never: they do not block                   |
// | send(2), recv(2) of links to workers    | workers                       | never; who takes no orders is killed       |
// | read(2) of what spares say              | workers and spares            | never: the pipes do not block              |
// | sendmsg(2) to the log                   | journald, syslog, stderr      | never; what is not taken is lost, counted  |
// | sendmsg(2) to systemd                   | systemd                       | never; kept, and for 1 s at the very end   |
// | connect(2) to see who is at a path      | the owner of a Unix socket    | never: EAGAIN is an answer                 |
// | wait4(2)                                | children                      | never: only for who has ended              |
// | the same, at the very end               | children that were killed     | 5 s                                        |
// | fork(2), execve(2) for an upgrade       | the kernel; the program's file| as long as a local file system takes       |
// | stat(2), unlink(2), bind(2), chmod(2)   | the file system of a Unix     | as long as it takes: it should be a local  |
// | of Unix sockets and the control socket  | socket                        | one, and /run is                           |
// | /proc, when bind(2) says EADDRINUSE     | the kernel                    | as long as it has processes and sockets    |
// | recvmsg(2) of the link to the loader    | file systems, name services   | never: it waits for them, 30 s at most     |
// | write(2) to stdout, once, at the start  | whoever started `serve`       | as long as he does not read                |
impl Supervisor {
    fn supervise(&mut self) -> Result<(), Fatal> {
        while !self.has_ended() {
            let timeout = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            let tokens = self
                .poller
                .wait(timeout, &self.signals, Wakers::All)
                .map_err(|error| Fatal::os("cannot wait for events", &error))?;
            for token in tokens {
                match u32::try_from(token) {
                    Ok(serial) => self.listen_to(serial),
                    // Heard below.
                    Err(_) if token == TRIAL || token == LOADER => {}
                    Err(_) if token == LATE_EVENTS => self.hear_late(),
                    Err(_) => self.serve_control(token),
                }
            }
            self.signals.fetch_pending();
            self.obey_signals();
            // Before it may be reaped: until then its process group is its own.
            self.advance_loader(Monotonic::now());
            self.reap();
            self.adopted.tend();
            self.workers.send_looks();
            self.systemd.deliver();
            self.tend_control();
            self.tend(Instant::now());
            self.watch(Instant::now());
            self.advance_rollout();
            self.advance_trial(Instant::now());
            self.advance_end(Instant::now());
            if let Some(fatal) = self.fatal.take() {
                return Err(fatal);
            }
        }
        self.log.event(crate::journal::Level::Notice, Some(MessageId::Stopped), None, format_args!("ended"));
        Ok(())
    }

    fn obey_signals(&mut self) {
        if self.signals.take(Signal::SIGQUIT) {
            self.end_at_once();
        }
        if self.signals.take(Signal::SIGTERM) | self.signals.take(Signal::SIGINT) {
            match self.phase {
                Phase::Starting | Phase::Running => self.begin_drain(After::Nothing),
                Phase::Draining { .. } | Phase::Ending { .. } => self.end_at_once(),
            }
        }
        // systemd's RestartKillSignal=, so that a restart can be told from a stop.
        if self.signals.take(Signal::SIGUSR1) && matches!(self.phase, Phase::Starting | Phase::Running) {
            let successor = if self.systemd.is_there() { After::Successor } else { After::Nothing };
            self.begin_drain(successor);
        }
        if self.signals.take(Signal::SIGHUP) {
            self.reload(Vec::new());
        }
        if self.signals.take(Signal::SIGUSR2) {
            self.upgrade(Vec::new());
        }
    }

    /// The earliest time at which something is due without an event.
    fn next_deadline(&mut self) -> Option<Instant> {
        let on_its_way = self.rollout.as_ref().map(|rollout| rollout.generation);
        let overdue = self.workers.end_overdue(on_its_way, Instant::now());
        let adopted = self.adopted.next_deadline().map(|at| Instant::now() + (at - Monotonic::now()));
        let back_off = self.services.values().filter_map(|service| service.back_off.until());
        let rollout = self.rollout.as_ref().map(Rollout::deadline);
        let renewal = self.workers.next_renewal();
        let trial = self.trial.as_ref().map(Trial::deadline);
        let watch = self.watch.as_ref().map(Watchdog::next);
        let loader =
            self.loader.as_ref().map(|loader| Instant::now() + (loader.deadline() - Monotonic::now()));
        let systemd = self.systemd.next_try();
        let control = self.control.as_ref().and_then(Server::next_try);
        back_off
            .chain(overdue)
            .chain(adopted)
            .chain(rollout)
            .chain(renewal)
            .chain(watch)
            .chain(trial)
            .chain(loader)
            .chain(systemd)
            .chain(control)
            .chain(self.phase.next())
            .min()
    }

    fn listen_to(&mut self, serial: u32) {
        for _ in 0..REPORTS {
            let Some(worker) = self.workers.get_mut(serial) else { return };
            match worker.hear() {
                Heard::Silence => return,
                Heard::End => {
                    let _ = self.poller.remove(worker.link());
                    // It is dead, or about to be; reaping it does the rest. One that only hung up would accept for
                    // ever.
                    if worker.state != WorkerState::Draining {
                        worker.kill();
                    }
                    return;
                }
                Heard::Nonsense => return worker.kill(),
                Heard::Message(WorkerReport::Ready) if worker.state == WorkerState::Starting => {
                    worker.state = WorkerState::Ready;
                }
                Heard::Message(WorkerReport::Accepting) => {
                    if worker.state != WorkerState::Draining {
                        worker.state = WorkerState::Accepting;
                    }
                    let (name, generation) = (worker.service.clone(), worker.generation);
                    self.workers.relieve(&name, generation);
                    if let Some(service) = self.services.get_mut(&name).filter(|s| s.generation == generation)
                    {
                        service.back_off.succeeded();
                    }
                }
                Heard::Message(WorkerReport::Retired) => {
                    worker.state = WorkerState::Draining;
                    // A removed address must be free again although an old connection lives on.
                    worker.listeners.clear();
                    let service = worker.service.clone();
                    self.workers.look(&service);
                    // It may have taken some since the new generation came into force.
                    if let Some(service) = self.services.get(&service) {
                        service.recount(Owner::worker(serial));
                    }
                }
                Heard::Message(WorkerReport::Failed(complaint)) => worker.complaint = Some(complaint),
                Heard::Message(WorkerReport::NeedsRenewal) => worker.needs_renewal = true,
                Heard::Message(WorkerReport::Well) => worker.is_asked = false,
                Heard::Message(WorkerReport::Ready) => {}
            }
        }
    }

    fn tend_control(&mut self) {
        if let Some(control) = &mut self.control {
            control.tend(Instant::now(), &self.poller);
        }
    }

    fn serve_control(&mut self, token: u64) {
        let Some(control) = &mut self.control else { return };
        match control.handle(token, &self.poller) {
            None => {}
            Some((client, Request::Reload)) => self.reload(vec![client]),
            Some((client, Request::Upgrade)) => self.upgrade(vec![client]),
            Some((client, Request::Unban { prefix, service })) => {
                let answer = self.unban(prefix, service.as_deref());
                self.answer(client, &answer);
            }
            Some((client, Request::Status)) => {
                let answer = Answer::Status(Box::new(self.status()));
                self.answer(client, &answer);
            }
        }
    }

    fn answer(&mut self, client: ClientId, answer: &Answer) {
        if let Some(control) = &mut self.control {
            control.answer(client, answer, &self.poller);
        }
    }

    fn open_control(&mut self, path: &std::path::Path) -> Result<Server, Fatal> {
        self.controls_opened += 1;
        Server::open(path, CONTROLS * self.controls_opened)
            .map_err(|error| Fatal { code: error.exit_code(), text: error.to_string() })
    }

    /// Starts the workers that are missing.
    fn tend(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let names: Vec<_> = self.services.keys().cloned().collect();
        for name in names {
            while let Some(service) = self.services.get_mut(&name) {
                let present = self.workers.serving(&name, service.generation);
                if present >= usize::from(service.config.workers) || !service.back_off.is_over(now) {
                    break;
                }
                if let Err(error) = self.workers.spawn(service, self.log_settings, true, &self.poller) {
                    let pause = service.back_off.failed(now);
                    self.log.error(
                        Some(&name),
                        format_args!("cannot start a worker: {error}; trying again in {}", seconds(pause)),
                    );
                }
            }
        }
    }
}
