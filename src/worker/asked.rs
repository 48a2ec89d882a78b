//! What programs ask before they signal somebody, where the kernel does not keep their signals in: before Linux 6.12.
//!
//! Who is asked is asked by all that comes of a program, and a call that is not answered waits. So it is answered at once, one in each
//! turn of the worker. When the worker has died, the kernel says that there is no such call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::child::confine::cage::SignalGuard;
use crate::child::confine::signals;
use crate::journal::{Level, Log};
use crate::sys::process;
use crate::sys::seccomp::{self, CallVerdict};
use crate::sys::wait::Pid;

/// Where they ask.
#[derive(Debug)]
pub(super) struct SignalQuestions(OwnedFd);

impl SignalQuestions {
    /// `None` if nobody asks.
    pub(super) fn new(guard: SignalGuard, log: &Log, service: &str) -> Option<Self> {
        match guard {
            SignalGuard::Kernel => None,
            SignalGuard::Worker(listener) => Some(SignalQuestions(listener)),
            SignalGuard::Missing => {
                let text = "connection processes may signal each other: before Linux 6.12 their worker would have to be asked, and what \
                            runs preforkd is asked already (seccomp_unotify(2)); user = { range = \"...\" } keeps them apart";
                log.event(Level::Warning, None, Some(service), format_args!("{text}"));
                None
            }
        }
    }

    pub(super) fn answer(&self) {
        let Some(question) = seccomp::question(self.as_fd()) else { return };
        let meant = signals::meant(question.call, &question.arguments);
        let verdict = meant.map_or(CallVerdict::Forbidden, |meant| judge(question.caller, meant));
        seccomp::answer(self.as_fd(), &question, verdict);
    }
}

impl AsFd for SignalQuestions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether one process may signal another, or a group if the number is negative: who belongs to the same connection.
///
/// Who is not there is not looked for again by the kernel: by then the number could be that of a sibling.
fn judge(caller: Pid, meant: Pid) -> CallVerdict {
    let (is_there, may) = match (meant, meant.saturating_neg()) {
        (..=-2, group) => {
            (process::is_group(group), process::group_of(caller) == Some(group) || belongs(caller, group))
        }
        (1.., _) => (process::exists(meant), belongs(caller, meant)),
        // All that it may signal, or nothing that has a number.
        _ => return CallVerdict::Forbidden,
    };
    match (is_there, may) {
        (false, _) => CallVerdict::Nobody,
        (true, true) if caller > 0 => CallVerdict::GoOn,
        (true, _) => CallVerdict::Forbidden,
    }
}

/// Whether two come of one connection, and who has lost his parent meanwhile: he has its group, or shares a session that began in it.
fn belongs(one: Pid, other: Pid) -> bool {
    let above = |pid| process::child_above(pid).flatten();
    let own = process::session_of(process::id());
    let session = |pid| process::session_of(pid).filter(|session| Some(*session) != own);
    let is_one = |of: &dyn Fn(Pid) -> Option<Pid>| of(one).is_some_and(|found| of(other) == Some(found));
    // The cheapest first.
    is_one(&process::group_of) || is_one(&above) || is_one(&session)
}
