//! Upgrade in place: this process runs the program that is now on disk; pid, listeners, workers and connections stay.
//!
//! First the new program reads a copy of the saved state in a process of its own and says that it can go on from there.
//! Only then it takes this one over, and replaces the workers by a new generation. One that is broken is refused, and the
//! old program serves on.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::changes::Change;
use super::rollout::Purpose;
use super::saved::{Kept, Saved};
use super::{EventSource, Supervisor, workers};
use crate::config;
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::exit;
use crate::handler::Application;
use crate::ipc::orders::{self, Heard, WorkerReport};
use crate::journal::{Level, MessageId};
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fd::{self, FdNumber};
use crate::sys::fork::fork;
use crate::sys::signal::Signal;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;
use crate::sys::{message, process};

/// The hidden command that tries a program.
pub(crate) const TRIAL_COMMAND: &str = "upgrade-trial";

/// Tells a program that it takes over a supervisor, and by which descriptor it finds the saved state.
const STATE_VARIABLE: &str = "PREFORKD_STATE";

/// How long the new program may take to read the state.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);

/// The new program, being tried.
#[derive(Debug)]
pub(super) struct Trial {
    pid: Pid,
    link: OwnedFd,
    deadline: Monotonic,
    clients: Vec<ClientId>,
    /// It has said that it can go on from here.
    has_passed: bool,
}

impl Trial {
    /// `program` reads `state` in a process of its own.
    fn begin(
        program: &Path,
        state: BorrowedFd<'_>,
        clients: Vec<ClientId>,
        poller: &Poller,
    ) -> io::Result<Self> {
        let (link, far_end) = message::pair()?;
        poller.add(link.as_fd(), Interest::Read, EventSource::Change.into())?;
        let program = CString::new(program.as_os_str().as_bytes())?;
        let arguments = [workers::own_name(), CString::new(TRIAL_COMMAND)?];
        let nothing: [CString; 0] = [];
        let pid = fork(|child| {
            if fd::hand_over(child, &[far_end.as_fd(), state]).is_ok() {
                let _ = process::exec(&program, &arguments, &nothing);
            }
            exit::OS
        })?;
        let deadline = Monotonic::now() + TRIAL_LIMIT;
        Ok(Trial { pid, link, deadline, clients, has_passed: false })
    }

    pub(super) fn deadline(&self) -> Monotonic {
        self.deadline
    }

    /// Whether it can go on from here, or why not; `None` as long as it has not said so, or systemd has not taken all that
    /// it was told, which the next program would not know.
    fn verdict(
        &mut self,
        has_told_systemd: bool,
        poller: &Poller,
        now: Monotonic,
    ) -> Option<Result<(), String>> {
        if !self.has_passed {
            match orders::hear(self.link.as_fd()) {
                Heard::Message(WorkerReport::Ready) => self.has_passed = true,
                Heard::Message(WorkerReport::Failed(reason)) => return Some(Err(reason)),
                Heard::Silence if now < self.deadline => return None,
                Heard::Silence => {
                    return Some(Err(format!("it said nothing within {} s", TRIAL_LIMIT.as_secs())));
                }
                _ => {
                    let text = "it did not say that it can go on from here; is it a preforkd at all?";
                    return Some(Err(text.to_owned()));
                }
            }
        }
        if has_told_systemd {
            return Some(Ok(()));
        }
        // It has no more to say, and its end is no event.
        let _ = poller.remove(self.link.as_fd());
        (self.deadline <= now).then(|| Err("systemd does not read what it is told".to_owned()))
    }

    /// Ends it, done or not; returns who waits for the upgrade.
    pub(super) fn end(self, poller: &Poller) -> Vec<ClientId> {
        let _ = poller.remove(self.link.as_fd());
        // It may have been reaped already; then there is no such child, and its number belongs to nobody of ours. It is
        // reaped with all others: who is killed may be long in ending.
        if process::is_child(self.pid) {
            process::signal_process(self.pid, Signal::SIGKILL);
        }
        self.clients
    }
}

/// Where the program of this process is, also when another file is there by now.
pub(super) fn program() -> io::Result<PathBuf> {
    // proc(5): " (deleted)" is appended when the file is gone.
    let path = std::fs::read_link("/proc/self/exe")?.into_os_string().into_vec();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(&path).to_vec();
    Ok(std::ffi::OsString::from_vec(path).into())
}

/// Reads the state of a running supervisor and says whether this program could go on from it: the whole life of a trial.
/// What is wrong with it in itself has been `found` already.
pub(crate) fn trial(application: &Application, found: Result<(), String>) -> u8 {
    let (Ok(link), Ok(file)) = (fd::inherited(3), fd::inherited(4)) else {
        return exit::USAGE;
    };
    let read = || Saved::read(file).map_err(|error| error.to_string());
    let serves = found.and_then(|()| read()).and_then(|saved| {
        saved.services().try_for_each(|service| {
            config::can_serve(service, application).map_err(|why| format!("{}: {why}", service.name))
        })
    });
    let report = match serves {
        Ok(()) => WorkerReport::Ready,
        Err(why) => WorkerReport::failed(&why),
    };
    let _ = orders::tell(link.as_fd(), &report);
    exit::OK
}

/// The state that another program left in this process, if this is an upgrade.
pub(super) fn inherited_state() -> Option<io::Result<OwnedFd>> {
    let number = std::env::var(STATE_VARIABLE).ok()?;
    Some(match serde_json::from_str::<FdNumber>(&number) {
        Ok(number) => number.take(),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    })
}

impl Supervisor {
    /// Begins to replace this program by the one on disk.
    pub(super) fn upgrade(&mut self, clients: Vec<ClientId>) {
        if !self.is_running() {
            return self.refuse_upgrade(clients, "preforkd is not running yet, or is ending");
        }
        self.end_recovery();
        if !self.changes.are_idle() {
            return self.changes.want_upgrade(clients);
        }
        let services: Vec<_> = self.state.services.alive().collect();
        let saved = self.state.save(&services, &[], &mut Kept::default()).write();
        let program = &self.invocation.program;
        match saved.and_then(|saved| Trial::begin(program, saved.as_fd(), clients.clone(), &self.poller)) {
            Ok(trial) => self.changes.begin(Change::Trying(trial)),
            Err(error) => {
                let reason = format!("cannot try {}: {error}", program.display());
                self.refuse_upgrade(clients, &reason);
            }
        }
    }

    fn refuse_upgrade(&mut self, clients: Vec<ClientId>, reason: &str) {
        self.log.event(
            Level::Error,
            Some(MessageId::ReloadRejected),
            None,
            format_args!("upgrade refused, the old program serves on: {reason}"),
        );
        self.answer(clients, &Answer::refused(reason));
    }

    /// The trial has something to say, or has ended, or its time is over.
    pub(super) fn advance_trial(&mut self, now: Monotonic) {
        if let Some(clients) = self.changes.take_upgrade() {
            return self.upgrade(clients);
        }
        let has_told_systemd = self.systemd.next_try().is_none();
        let Some(trial) = self.changes.trial() else { return };
        let Some(verdict) = trial.verdict(has_told_systemd, &self.poller, now) else { return };
        let Some(mut clients) = self.end_trial() else { return };
        let program = self.invocation.program.display().to_string();
        match verdict {
            Err(reason) => self.refuse_upgrade(clients, &format!("{program}: {reason}")),
            Ok(()) => {
                self.give_up_drains(
                    "preforkd goes on as another program; the services stay paused, ask again",
                );
                // Who has asked meanwhile wants the program that is on disk now: this is it.
                clients.extend(self.changes.take_upgrade().unwrap_or_default());
                let error = self.exec(&clients);
                self.refuse_upgrade(clients, &format!("cannot run {program}: {error}"));
            }
        }
        // No event need come that would begin the next.
        if let Some(clients) = self.changes.take_upgrade() {
            self.upgrade(clients);
        }
    }

    /// Ends the trial, if one is under way; returns who waits for the upgrade.
    pub(super) fn end_trial(&mut self) -> Option<Vec<ClientId>> {
        self.changes.trial()?;
        match self.changes.end() {
            Some(Change::Trying(trial)) => Some(trial.end(&self.poller)),
            _ => None,
        }
    }

    /// Becomes the program on disk; comes back only if that fails, with everything as it was.
    fn exec(&mut self, clients: &[ClientId]) -> io::Error {
        let services: Vec<_> = self.state.services.alive().collect();
        let mut kept = Kept::default();
        self.state.history.note_dropped(self.log.dropped());
        let saved = self.state.save(&services, clients, &mut kept);
        let attempt = || -> io::Result<io::Error> {
            let file = saved.write()?;
            let program = CString::new(self.invocation.program.as_os_str().as_bytes())?;
            let arguments = std::env::args_os().map(|argument| CString::new(argument.into_vec()));
            let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
            let mut kept = kept;
            let number = kept.keep(file.as_fd());
            let environment = environment(number)?;
            Ok(process::exec_keeping(kept.descriptors(), &program, &arguments, &environment))
        };
        attempt().unwrap_or_else(|error| error)
    }

    /// After the exec: everything is as it was; now new workers, of the new program.
    pub(super) fn renew_workers(&mut self, clients: Vec<ClientId>) {
        let config = self.state.generation.config();
        if let Err(error) = self.begin_rollout(config, clients.clone(), Purpose::Upgrade) {
            self.reject(clients, &format!("the new program runs, but its workers cannot start: {error}"));
        }
    }
}

/// This process's environment, with the number of the saved state.
fn environment(state: FdNumber) -> io::Result<Vec<CString>> {
    let variable =
        |name: &OsStr, value: &OsStr| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat());
    let kept = std::env::vars_os().filter(|(name, _)| name != STATE_VARIABLE);
    let mut all = kept.map(|(name, value)| variable(&name, &value)).collect::<Result<Vec<_>, _>>()?;
    all.push(variable(STATE_VARIABLE.as_ref(), serde_json::to_string(&state)?.as_ref())?);
    Ok(all)
}
