//! The program on disk reads a copy of the saved state, in a process of its own, and says that it can go on from there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::event_source::EventSource;
use super::saved::Saved;
use super::workers;
use crate::config;
use crate::control::server::ClientId;
use crate::exit;
use crate::handler::Application;
use crate::ipc::orders::{self, Heard, WorkerReport};
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fork::fork;
use crate::sys::signal::Signal;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;
use crate::sys::{child_fds, fd};
use crate::sys::{message, process};

/// The hidden command that tries a program.
pub(crate) const TRIAL_COMMAND: &str = "upgrade-trial";

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
    pub(super) fn begin(
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
            if child_fds::hand_over(child, &[far_end.as_fd(), state]).is_ok() {
                let error = process::exec(&program, &arguments, &nothing);
                let _ = fd::inherited(3).and_then(|link| {
                    orders::tell(
                        link.as_fd(),
                        &WorkerReport::failed(&format_args!("it cannot be run: {error}")),
                    )
                });
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
    pub(super) fn verdict(
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
