//! The configuration, read and checked again in a process of its own.
//!
//! A file server, and whom getent(1) asks, may answer late or never. That process waits for them, and the supervisor goes
//! on. It is this program again, as it was started, whatever is on disk by now.

use std::ffi::{CString, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::event_source::EventSource;
use super::purpose::Purpose;
use super::workers;
use crate::config::{self, Config, Diagnostic, Loaded, Machine, Snapshot, Tolerance};
use crate::control::server::ClientId;
use crate::exit;
use crate::handler::Application;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::signal::Signal;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;
use crate::sys::{fd, memory, message, process};

/// The hidden command that reads a configuration.
pub(crate) const LOAD_COMMAND: &str = "load";

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most bytes that a checked configuration may have as JSON.
const LONGEST: u64 = 256 << 20;

/// The longest message about what is waited for; the rest of it is cut off.
const LONGEST_MESSAGE: usize = 8 * 1024;

/// How many messages are heard before signals and others have their turn.
const MESSAGES: usize = 64;

/// What came of it: a configuration, or the text of all that is wrong.
type Outcome = Result<Checked, String>;

/// A configuration that can be used.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Checked {
    pub(super) config: Config,
    /// What somebody should look at all the same, a text each.
    pub(super) warnings: Vec<String>,
}

/// What is to be read.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ReadingTask {
    /// The main file.
    pub(super) path: PathBuf,
    /// What it and its drop-ins said, if that counts and not what they say now.
    pub(super) snapshot: Option<Snapshot>,
    pub(super) tolerance: Tolerance,
}

/// The process that reads, for who wants the reload.
#[derive(Debug)]
pub(super) struct Loader {
    pid: Pid,
    link: OwnedFd,
    deadline: Monotonic,
    waits_for: String,
    purpose: Purpose,
    clients: Vec<ClientId>,
}

impl Loader {
    pub(super) fn begin(
        task: &ReadingTask,
        purpose: Purpose,
        clients: Vec<ClientId>,
        descriptor_limit: u64,
        poller: &Poller,
    ) -> io::Result<Self> {
        let (link, far_end) = message::pair()?;
        poller.add(link.as_fd(), Interest::Read, EventSource::Change.into())?;
        let arguments = [CString::new(LOAD_COMMAND)?, CString::new(task.path.as_os_str().as_bytes())?];
        let task = memory::sealed(c"preforkd-task", &serde_json::to_vec(task)?)?;
        let variable = |(name, value): (OsString, OsString)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let environment = std::env::vars_os().map(variable).collect::<Result<Vec<_>, _>>()?;
        let handover = [far_end.as_fd(), task.as_fd()];
        let pid = workers::exec_self(&arguments, &environment, None, &handover, descriptor_limit)?;
        let deadline = Monotonic::now() + PATIENCE;
        Ok(Loader { pid, link, deadline, waits_for: "its start".to_owned(), purpose, clients })
    }

    pub(super) fn deadline(&self) -> Monotonic {
        self.deadline
    }

    /// What the process waits for, as it said last.
    pub(super) fn waits_for(&self) -> &str {
        &self.waits_for
    }

    /// What it reads for.
    pub(super) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// What has come of it, if something has.
    pub(super) fn hear(&mut self, now: Monotonic) -> Option<Outcome> {
        let mut buffer = [0; LONGEST_MESSAGE];
        for _ in 0..MESSAGES {
            match message::receive_copy(self.link.as_fd(), &mut buffer) {
                Ok((_, Some(outcome))) => {
                    let outcome: io::Result<Outcome> = read(outcome);
                    return Some(outcome.unwrap_or_else(|error| Err(cannot_be_read(&error))));
                }
                Ok((length @ 1.., None)) => {
                    let text = buffer.get(..length).unwrap_or_default();
                    self.waits_for = String::from_utf8_lossy(text).into_owned();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok((0, None)) | Err(_) => {
                    return Some(Err(
                        "the process that reads the configuration ended before it was done".into()
                    ));
                }
            }
        }
        (self.deadline <= now).then(|| {
            let (limit, waits_for) = (PATIENCE.as_secs(), &self.waits_for);
            Err(format!("the configuration was not read within {limit} s, waiting for {waits_for}"))
        })
    }

    /// Ends it with its getent, done or not; returns who wants the reload. It is not waited for: who is stuck in the kernel
    /// dies when that lets go.
    pub(super) fn end(self, poller: &Poller) -> Vec<ClientId> {
        let _ = poller.remove(self.link.as_fd());
        // It may have been reaped already; then its number belongs to nobody of ours.
        if process::is_child(self.pid) {
            process::signal_group(self.pid, Signal::SIGKILL);
        }
        self.clients
    }
}

fn read<T: DeserializeOwned>(file: OwnedFd) -> io::Result<T> {
    Ok(serde_json::from_slice(&memory::read_sealed(file, LONGEST)?)?)
}

fn cannot_be_read(error: &io::Error) -> String {
    format!("the checked configuration cannot be handed over: {error}")
}

/// Reads a configuration for this program: the whole life of such a process.
pub(crate) fn load(application: &Application) -> u8 {
    let (Ok(link), Ok(task)) = (fd::inherited(3), fd::inherited(4)) else {
        return exit::USAGE;
    };
    let Ok(task) = read(task) else { return exit::USAGE };
    process::set_name(c"preforkd-load");
    let sent = process::end_with_parent()
        // What is said must arrive, when the supervisor has the time.
        .and_then(|()| fd::set_nonblocking(link.as_fd(), false))
        .and_then(|()| send(link.as_fd(), &outcome(&task, application, link.as_fd())));
    if sent.is_ok() { exit::OK } else { exit::OS }
}

fn outcome(task: &ReadingTask, application: &Application, link: BorrowedFd<'_>) -> Outcome {
    let waits_for = |what: fmt::Arguments<'_>| {
        let what = what.to_string();
        if message::send(link, what.as_bytes().get(..LONGEST_MESSAGE).unwrap_or(what.as_bytes())).is_err() {
            // The supervisor is gone.
            process::exit(exit::OS);
        }
    };
    let ReadingTask { path, snapshot, tolerance } = task;
    let machine = Machine { waits_for: &waits_for, ..Machine::with(application) };
    let loaded = match snapshot {
        Some(snapshot) => config::check_again(path, snapshot, tolerance, &machine),
        None => config::load(path, tolerance, &machine),
    };
    let Loaded { config, warnings } = loaded.map_err(|errors| errors.to_string())?;
    Ok(Checked { config, warnings: warnings.iter().map(Diagnostic::reason).collect() })
}

fn send(link: BorrowedFd<'_>, outcome: &Outcome) -> io::Result<()> {
    let mut text = serde_json::to_vec(outcome)?;
    if text.len() as u64 > LONGEST {
        text = serde_json::to_vec(&Outcome::Err(cannot_be_read(&io::ErrorKind::FileTooLarge.into())))?;
    }
    message::send_copy(link, b"done", memory::sealed(c"preforkd-config", &text)?.as_fd())
}
