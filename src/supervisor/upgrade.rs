//! Upgrade in place: this process runs the program that is now on disk; pid, listeners, workers and connections stay.
//!
//! First the new program reads a copy of the ledger in a process of its own and says that it can go on from there. Only
//! then it takes this one over, and replaces the workers by a new generation. One that is broken is refused, and the old
//! program serves on.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::ending::Phase;
use super::ledger::{self, Kept, Ledger};
use super::rollout::Purpose;
use super::{Supervisor, TRIAL};
use crate::config::Config;
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::exit;
use crate::ipc::orders::{self, Heard, WorkerReport};
use crate::journal::{Level, MessageId};
use crate::sys::epoll::Interest;
use crate::sys::fork::fork;
use crate::sys::signal::Signal;
use crate::sys::wait::Pid;
use crate::sys::{fd, memory, message, process};

/// The hidden command that tries a program.
pub(crate) const TRIAL_COMMAND: &str = "upgrade-trial";

/// Tells a program that it takes over a supervisor, and by which descriptor it finds the ledger.
const LEDGER_VARIABLE: &str = "PREFORKD_LEDGER";

/// How long the new program may take to read the ledger.
const PATIENCE: Duration = Duration::from_secs(10);

/// The new program, being tried.
#[derive(Debug)]
pub(super) struct Trial {
    pid: Pid,
    link: OwnedFd,
    deadline: Instant,
    clients: Vec<ClientId>,
    /// It has said that it can go on from here.
    has_passed: bool,
}

impl Trial {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it can go on from here, or why not; `None` as long as it has not said so.
    fn verdict(&mut self, now: Instant) -> Option<Result<(), String>> {
        if self.has_passed {
            return Some(Ok(()));
        }
        Some(match orders::hear(self.link.as_fd()) {
            Heard::Message(WorkerReport::Ready) => {
                self.has_passed = true;
                Ok(())
            }
            Heard::Message(WorkerReport::Failed(reason)) => Err(reason),
            Heard::Silence if now < self.deadline => return None,
            Heard::Silence => Err(format!("it said nothing within {} s", PATIENCE.as_secs())),
            _ => Err("it did not say that it can go on from here; is it a preforkd at all?".to_owned()),
        })
    }
}

/// Where the program of this process is, also when another file is there by now.
pub(super) fn program() -> io::Result<PathBuf> {
    // proc(5): " (deleted)" is appended when the file is gone.
    let path = std::fs::read_link("/proc/self/exe")?.into_os_string().into_vec();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(&path).to_vec();
    Ok(std::ffi::OsString::from_vec(path).into())
}

/// Reads the ledger of a running supervisor and says whether this program could go on from it: the whole life of a trial.
pub(crate) fn trial() -> u8 {
    let (Ok(link), Ok(file)) = (fd::inherited(3), fd::inherited(4)) else {
        return exit::USAGE;
    };
    let report = match Ledger::read(file) {
        Ok(_) => WorkerReport::Ready,
        Err(error) => WorkerReport::failed(&error),
    };
    let _ = orders::tell(link.as_fd(), &report);
    exit::OK
}

/// The ledger that another program left in this process, if this is an upgrade.
pub(super) fn inherited_ledger() -> Option<io::Result<OwnedFd>> {
    let number = std::env::var(LEDGER_VARIABLE).ok()?;
    Some(match number.parse() {
        Ok(number) => fd::inherited(number),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    })
}

impl Supervisor {
    /// Begins to replace this program by the one on disk.
    pub(super) fn upgrade(&mut self, clients: Vec<ClientId>) {
        if !matches!(self.phase, Phase::Running) {
            return self.refuse_upgrade(clients, "preforkd is not running yet, or is ending");
        }
        if self.is_reloading() || self.trial.is_some() {
            self.upgrade_wanted.get_or_insert_default().extend(clients);
            return;
        }
        if let Err(error) = self.begin_trial(clients.clone()) {
            self.refuse_upgrade(clients, &format!("cannot try {}: {error}", self.program.display()));
        }
    }

    /// Begins an upgrade that had to wait.
    pub(super) fn begin_wanted_upgrade(&mut self) {
        if self.is_reloading() || self.trial.is_some() {
            return;
        }
        if let Some(clients) = self.upgrade_wanted.take() {
            self.upgrade(clients);
        }
    }

    pub(super) fn refuse_upgrade(&mut self, clients: impl IntoIterator<Item = ClientId>, reason: &str) {
        self.log.event(
            Level::Error,
            Some(MessageId::ReloadRejected),
            None,
            format_args!("upgrade refused, the old program serves on: {reason}"),
        );
        for client in clients {
            self.answer(client, &Answer::Refused(reason.to_owned()));
        }
    }

    fn begin_trial(&mut self, clients: Vec<ClientId>) -> io::Result<()> {
        let (link, far_end) = message::pair()?;
        let ledger =
            memory::sealed(c"preforkd-ledger", &self.write_ledger(&mut Kept::default(), &[]).encode()?)?;
        let program = CString::new(self.program.as_os_str().as_bytes())?;
        let arguments = [CString::from(c"preforkd"), CString::new(TRIAL_COMMAND)?];
        let nothing: [CString; 0] = [];
        let pid = fork(|child| {
            if fd::hand_over(child, &[far_end.as_fd(), ledger.as_fd()]).is_ok() {
                let _ = process::exec(&program, &arguments, &nothing);
            }
            exit::OS
        })?;
        self.poller.add(link.as_fd(), Interest::Read, TRIAL)?;
        self.trial =
            Some(Trial { pid, link, deadline: Instant::now() + PATIENCE, clients, has_passed: false });
        Ok(())
    }

    /// The trial has something to say, or has ended, or its time is over.
    pub(super) fn advance_trial(&mut self, now: Instant) {
        let Some(trial) = &mut self.trial else { return self.begin_wanted_upgrade() };
        let verdict = match trial.verdict(now) {
            None => return,
            // It would be forgotten.
            Some(Ok(())) if self.systemd.next_try().is_some() && now < trial.deadline => {
                let _ = self.poller.remove(trial.link.as_fd());
                return;
            }
            Some(Ok(())) if self.systemd.next_try().is_some() => {
                Err("systemd does not read what it is told".to_owned())
            }
            Some(verdict) => verdict,
        };
        let clients = self.end_trial();
        let program = self.program.display().to_string();
        match verdict {
            Err(reason) => self.refuse_upgrade(clients, &format!("{program}: {reason}")),
            Ok(()) => {
                let error = self.exec(&clients);
                self.refuse_upgrade(clients, &format!("cannot run {program}: {error}"));
            }
        }
    }

    /// Gives an upgrade up because everything ends.
    pub(super) fn give_up_upgrade(&mut self, reason: &str) {
        let mut clients = self.end_trial();
        clients.extend(self.upgrade_wanted.take().into_iter().flatten());
        for client in clients {
            self.answer(client, &Answer::Refused(reason.to_owned()));
        }
    }

    pub(super) fn end_trial(&mut self) -> Vec<ClientId> {
        let Some(trial) = self.trial.take() else { return Vec::new() };
        let _ = self.poller.remove(trial.link.as_fd());
        // It may have been reaped already; then there is no such child, and its number belongs to nobody of ours. It is
        // reaped with all others: who is killed may be long in ending.
        if process::is_child(trial.pid) {
            process::signal_process(trial.pid, Signal::SIGKILL);
        }
        trial.clients
    }

    /// Becomes the program on disk; comes back only if that fails, with everything as it was.
    fn exec(&self, clients: &[ClientId]) -> io::Error {
        let mut kept = Kept::default();
        let ledger = self.write_ledger(&mut kept, clients);
        let attempt = move || -> io::Result<io::Error> {
            let file = memory::sealed(c"preforkd-ledger", &ledger.encode()?)?;
            let program = CString::new(self.program.as_os_str().as_bytes())?;
            let arguments: Result<Vec<_>, _> =
                std::env::args_os().map(|argument| CString::new(argument.into_vec())).collect();
            let environment = environment(&file)?;
            let mut kept = kept;
            kept.keep(file.as_fd());
            Ok(process::exec_keeping(kept.descriptors(), &program, &arguments?, &environment))
        };
        attempt().unwrap_or_else(|error| error)
    }

    /// After the exec: everything is as it was; now new workers, of the new program.
    pub(super) fn renew_workers(&mut self, clients: Vec<ClientId>) {
        let services = self.services.values().map(|service| service.config.clone()).collect();
        let config = Config { supervisor: self.settings.clone(), log: self.log_settings, services };
        if let Err(error) = self.begin_rollout(config, clients.clone(), Purpose::Upgrade) {
            self.reject(clients, &format!("the new program runs, but its workers cannot start: {error}"));
        }
    }
}

/// This process's environment, with the number of the ledger.
fn environment(ledger: &OwnedFd) -> io::Result<Vec<CString>> {
    let kept = std::env::vars_os().filter(|(name, _)| name != LEDGER_VARIABLE);
    let mut all = Vec::new();
    for (name, value) in kept {
        all.push(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    all.push(CString::new(format!("{LEDGER_VARIABLE}={}", ledger::descriptor_text(ledger)))?);
    Ok(all)
}
