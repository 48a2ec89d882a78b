//! Upgrade in place: this process runs the program that is now on disk; pid, listeners, workers and connections stay.
//!
//! First the new program reads a copy of the saved state in a process of its own and says that it can go on from there.
//! Only then it takes this one over, and replaces the workers by a new generation. One that is broken is refused, and the
//! old program serves on.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::Supervisor;
use super::changes::Change;
use super::kept::Kept;
use super::purpose::Purpose;
use super::trial::Trial;
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::journal::{Level, MessageId};
use crate::sys::fd::FdNumber;
use crate::sys::process;
use crate::sys::time::Monotonic;

/// Tells a program that it takes over a supervisor, and by which descriptor it finds the saved state.
const STATE_VARIABLE: &str = "PREFORKD_STATE";

/// Where the program of this process is, also when another file is there by now.
pub(super) fn program() -> io::Result<PathBuf> {
    // proc(5): " (deleted)" is appended when the file is gone.
    let path = std::fs::read_link("/proc/self/exe")?.into_os_string().into_vec();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(&path).to_vec();
    Ok(std::ffi::OsString::from_vec(path).into())
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
        if let Some(why) = self.phase.why_not_running() {
            self.log.warning(None, format_args!("upgrade refused: {why}"));
            return self.answer(clients, &Answer::not_now(why));
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
