//! The supervisor: owns listeners, workers and all that an upgrade must not forget; talks to systemd and to the control socket.
//!
//! It never reads a byte of a connection, and what it reads from memory that workers can write it checks first.

mod adopted;
mod ban_file;
mod bans;
mod cgroups;
mod changes;
mod closing_listeners;
mod commit;
mod connections;
mod control_socket;
mod credentials;
mod event_source;
mod generation;
mod history;
mod kept;
mod left_behind;
mod listen_error;
mod listener;
mod listener_options;
mod listeners;
mod loader;
mod pause;
mod phase;
mod port_owner;
mod purpose;
mod reaping;
mod recovery;
mod reload;
mod rolling_out;
mod rollout;
pub(crate) mod saved;
mod service;
mod start;
mod state;
mod status;
mod systemd;
mod trial;
mod unban;
mod upgrade;
mod watchdog;
mod wording;
mod workers;

use std::io;
use std::path::PathBuf;

use crate::config::{self, Config, Diagnostics, Loaded, Machine, Tolerance};
use crate::exit;
use crate::handler::{Application, Title};
use crate::journal::{Level, Log, MessageId};
use crate::scoreboard::Owner;
use crate::sys::epoll::Poller;
use crate::sys::signal::{Signal, Signals, Wakers};
use crate::sys::time::Monotonic;

use changes::PendingChanges;
use event_source::EventSource;
use pause::AwaitedDrains;
use phase::{After, Phase};
use recovery::Recovery;
use state::State;
use systemd::Systemd;
use watchdog::Watchdog;
use wording::seconds;
use workers::News;

pub(crate) use loader::{LOAD_COMMAND, load};
pub(crate) use port_owner::of as owner_of;
pub(crate) use start::{Resumed, run, take_up};
pub(crate) use trial::{TRIAL_COMMAND, trial};

/// How many reports of a worker are heard before signals and others have their turn; one that lies may never stop.
const REPORTS: usize = 16;

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
    /// Reads it for this program; for the command line there is nothing to read.
    pub(crate) fn load(&self, application: &Application) -> Result<Loaded, Diagnostics> {
        let ConfigSource::File { path, .. } = self else { return Err(Diagnostics::default()) };
        let mut loaded = config::load(path, &Tolerance::OfAny, &Machine::with(application))?;
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

/// How this supervisor was started.
#[derive(Debug)]
struct Invocation {
    source: ConfigSource,
    /// Print to stdout where it listens.
    announce: bool,
    /// What this program is called.
    title: Title,
    /// The file that this process runs, and after an upgrade will run.
    program: PathBuf,
}

struct Supervisor {
    invocation: Invocation,
    log: Log,
    signals: Signals,
    poller: Poller,
    systemd: Systemd,
    watchdog: Option<Watchdog>,
    state: State,
    changes: PendingChanges,
    recovery: Recovery,
    drains: AwaitedDrains,
    phase: Phase,
}

// What the supervisor calls, and for whom it may wait there. It has one thread: while it waits, nobody is reaped, answered
// or obeyed, and systemd's watchdog runs. Who adds a call adds a line.
//
// | call                                    | waits for                     | at most                                    |
// |-----------------------------------------|-------------------------------|--------------------------------------------|
// | epoll_pwait(2)                          | events and signals            | the next deadline                          |
// | read(2), write(2) of the control socket | clients                       | never: they do not block                   |
// | /proc, when somebody connects to it     | the kernel                    | as long as it has processes above another  |
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
// | fsync(2), rename(2) of the bans         | the file system of the state  | as long as it takes: it should be a local  |
// |                                         | directory                     | one; only when somebody bans or unbans     |
// | /proc, when bind(2) says EADDRINUSE     | the kernel                    | as long as it has processes and sockets    |
// | recvmsg(2) of the link to the loader    | file systems, name services   | never: it waits for them, 30 s at most     |
// | recv(2) of what rtnetlink tells         | the kernel                    | never                                      |
// | socket(2), bind(2) to see whether an    | the kernel                    | never: of internet addresses alone         |
// | address is there                        |                               |                                            |
// | write(2) to cgroup.procs, at the start  | the kernel                    | 8 to 24 ms                                 |
// | mkdir(2), write(2), rmdir(2) of cgroups | the kernel                    | as long as it takes: memory of its own     |
// | write(2) to stdout, once, at the start  | whoever started `serve`       | as long as he does not read                |
impl Supervisor {
    fn supervise(&mut self) -> Result<(), Fatal> {
        let mut now = Monotonic::now();
        while !self.has_ended() {
            let timeout = self.next_deadline(now).map(|at| at - Monotonic::now());
            let events = self
                .poller
                .wait(timeout, &self.signals, Wakers::All)
                .map_err(|error| Fatal::os("cannot wait for events", &error))?;
            now = Monotonic::now();
            for token in events {
                match EventSource::from(token) {
                    EventSource::Worker(serial) => self.listen_to(serial, now),
                    // Heard below.
                    EventSource::Change => {}
                    EventSource::LateEvents => self.hear_late(),
                    EventSource::Addresses => self.recovery.hear(now),
                    EventSource::Control(_) => self.serve_control(token),
                }
            }
            self.signals.fetch_pending();
            self.obey_signals(now);
            // Before it may be reaped: until then its process group is its own.
            self.advance_loader(now);
            self.reap(now);
            self.state.adopted.tend();
            self.state.left_behind.tend(now);
            self.state.send_looks();
            self.systemd.deliver();
            self.state.control.tend(now, &self.poller);
            self.start_missing_workers(now);
            self.recover(now);
            self.watch(now);
            self.advance_rollout(now);
            self.advance_trial(now);
            self.advance_end(now);
            self.advance_drains();
            self.tend_bans(now);
            self.state.workers.end_overdue(self.generation_on_its_way(), now);
            if let Some(fatal) = self.take_failure() {
                return Err(fatal);
            }
        }
        self.log.event(Level::Notice, Some(MessageId::Stopped), None, format_args!("ended"));
        Ok(())
    }

    fn obey_signals(&mut self, now: Monotonic) {
        if self.signals.take(Signal::SIGQUIT) {
            self.end_at_once(now);
        }
        if self.signals.take(Signal::SIGTERM) | self.signals.take(Signal::SIGINT) {
            self.begin_end(After::Nothing, now);
        }
        // systemd's RestartKillSignal=, so that a restart can be told from a stop.
        if self.signals.take(Signal::SIGUSR1) && matches!(self.phase, Phase::Starting | Phase::Running) {
            let successor = if self.systemd.is_there() { After::Successor } else { After::Nothing };
            self.begin_end(successor, now);
        }
        if self.signals.take(Signal::SIGHUP) {
            self.reload(Vec::new());
        }
        if self.signals.take(Signal::SIGUSR2) {
            self.upgrade(Vec::new());
        }
    }

    /// The earliest time at which something is due without an event; all that was due until `now` has been done.
    fn next_deadline(&self, now: Monotonic) -> Option<Monotonic> {
        let state = &self.state;
        let deadlines = [
            state.workers.next_deadline(self.generation_on_its_way(), now),
            state.adopted.next_deadline(),
            state.left_behind.next_deadline(),
            state.bans.next_deadline(),
            state.control.next_deadline(),
            self.changes.next_deadline(),
            self.systemd.next_try(),
            self.watchdog.as_ref().map(Watchdog::next),
            self.phase.next_deadline(),
        ];
        let recovery = self.recovery.next_try();
        let backoffs = state.generation.services().filter_map(|service| service.backoff.until());
        // What has been due and was not done waits for something else.
        let pauses = backoffs.chain(recovery).chain(state.generation.rests_until()).filter(|at| now < *at);
        deadlines.into_iter().flatten().chain(pauses).min()
    }

    /// Its workers have a deadline in common.
    fn generation_on_its_way(&self) -> Option<u64> {
        self.changes.rollout().map(|rollout| rollout.next.number())
    }

    fn listen_to(&mut self, serial: u32, now: Monotonic) {
        for _ in 0..REPORTS {
            let news = self.state.workers.hear(serial, &self.poller);
            let state = &mut self.state;
            let Some(worker) = state.workers.get(serial) else { return };
            let (name, generation) = (worker.service().to_owned(), worker.generation());
            let session = worker.pid();
            match news {
                News::Nothing => return,
                News::Other => {}
                News::LeftBehind { whom, kill_after } => {
                    self.leave_behind((&name, serial, session), whom, kill_after, now);
                }
                News::Accepts => {
                    state.workers.relieve(&name, generation, now);
                    let service = state.generation.service_mut(&name);
                    if let Some(service) = service.filter(|service| service.generation() == generation) {
                        service.has_begun();
                    }
                }
                News::Retired => {
                    state.workers.look(&name);
                    // It may have taken some since the new generation came into force.
                    if let Some(service) = state.generation.service(&name) {
                        service.blocks();
                        service.recount(Owner::worker(serial));
                    }
                }
            }
        }
    }

    fn start_missing_workers(&mut self, now: Monotonic) {
        if !self.is_running() {
            return;
        }
        let state = &mut self.state;
        let log = state.generation.settings().log;
        for service in state.generation.services_mut() {
            let wanted = if service.state().is_paused() { 0 } else { usize::from(service.config().workers) };
            while state.workers.serving(service.name(), service.generation(), now) < wanted
                && service.backoff.is_over(now)
            {
                if let Err(error) = state.workers.spawn(service, log, true, &mut state.cgroups, &self.poller)
                {
                    let pause = service.cannot_begin(format!("cannot start a worker: {error}"), now);
                    self.log.error(
                        Some(service.name()),
                        format_args!("cannot start a worker: {error}; trying again in {}", seconds(pause)),
                    );
                }
            }
        }
    }
}
