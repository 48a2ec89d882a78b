//! What the supervisor hands to a worker, and what the two say to each other.
//!
//! A worker is exec'ed, so that it is small, has an address-space layout of its own, and knows one service. It finds
//! its link and its plan at fixed places, and in the plan, a sealed memory file, where everything else is.
//!
//! | message                  | from       | to         | answered by | if it is lost, or its sender dies here           |
//! |--------------------------|------------|------------|-------------|--------------------------------------------------|
//! | [`Order::Accept`]        | supervisor | worker     | `Accepting` | a worker that takes no orders is killed          |
//! | [`Order::Look`]          | supervisor | worker     | `Looked`    | one at a time; the watchdog ends who owes one    |
//! | [`Order::Retire`]        | supervisor | worker     | `Retired`   | as above; without a supervisor it retires anyway |
//! | [`Order::Kill`]          | supervisor | worker     |             | as above; the connection goes on                 |
//! | [`Order::KillSource`]    | supervisor | worker     |             | as above; it is said twice                       |
//! | [`Order::EndPrograms`]   | supervisor | worker     |             | as above; dead, they are the supervisor's        |
//! | [`Order::End`]           | supervisor | worker     | its end     | killed, its connections are the supervisor's     |
//! | [`WorkerReport::Ready`]  | worker     | supervisor |             | a worker that is not ready in time is killed     |
//! | [`WorkerReport::Failed`] | worker     | supervisor |             | its exit code says the same in fewer words       |
//! | `NeedsRenewal`           | worker     | supervisor |             | it dies and is replaced, or asks no more         |
//! | `Rests`, `Works`         | worker     | supervisor |             | `status` shows what was, until it says so again  |

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admission::SourceName;
use crate::config;
use crate::sys::fd::FdNumber;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;
use crate::sys::{memory, message};

/// The hidden command that starts a worker.
pub(crate) const COMMAND: &str = "worker";

/// What a worker does, and where it finds what it needs for that.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The service, checked; the lists of its admission are among the [descriptors](WorkerFds).
    pub(crate) service: config::ServiceConfig,
    /// An entry of the service's `listen` can stand for several sockets of systemd's.
    pub(crate) listeners: Vec<PlannedListener>,
    /// How many spares this worker keeps; the share of it in the service's.
    pub(crate) spares: u32,
    /// Where records go.
    pub(crate) log: crate::journal::LogSettings,
    /// The first part of connection ids.
    pub(crate) run: u32,
    /// The worker's serial number, never used twice under one supervisor.
    pub(crate) serial: u32,
    /// The directory below which it makes a cgroup for each connection, if it does.
    pub(crate) cgroups: Option<PathBuf>,
    /// What else it was given.
    pub(crate) fds: WorkerFds,
}

/// A listener of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PlannedListener {
    /// What it is called in messages.
    pub(crate) name: String,
    /// The socket.
    pub(crate) fd: FdNumber,
}

/// Where a worker finds its descriptors, but for the listeners.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerFds {
    /// The scoreboard's memory.
    pub(crate) scoreboard: FdNumber,
    /// The eventfd that tells of free slots.
    pub(crate) slot_freed: FdNumber,
    /// The worker's counters.
    pub(crate) counters: FdNumber,
    /// Where spares say that they have been taken, to be read.
    pub(crate) spare_events: FdNumber,
    /// The same, to be written.
    pub(crate) spare_events_writer: FdNumber,
    /// The memory of the sources.
    pub(crate) sources: FdNumber,
    /// The memory of what connections share.
    pub(crate) shared: FdNumber,
    /// Who is banned, to be read.
    pub(crate) bans: FdNumber,
    /// The lists of the service's admission.
    pub(crate) prefixes: FdNumber,
}

/// The descriptors that a new worker gets: its link, its plan, and those that the plan names.
#[derive(Debug)]
pub(crate) struct Handover<'a>(Vec<BorrowedFd<'a>>);

/// The places of the link and the plan.
const LINK: usize = 0;
const PLAN: usize = 1;

impl<'a> Handover<'a> {
    /// Nothing but the link, so far.
    pub(crate) fn new(link: BorrowedFd<'a>) -> Self {
        // The plan comes to be when all the rest has its number.
        Handover(vec![link, link])
    }

    /// Adds a descriptor; returns where the worker will find it.
    pub(crate) fn add(&mut self, fd: BorrowedFd<'a>) -> FdNumber {
        self.0.push(fd);
        FdNumber::at_place(self.0.len() - 1)
    }

    /// All of them in their order, with the plan.
    pub(crate) fn complete(mut self, plan: BorrowedFd<'a>) -> Vec<BorrowedFd<'a>> {
        self.0[PLAN] = plan;
        self.0
    }
}

/// Takes over the link to the supervisor and the plan, in a process that a supervisor has started.
pub(crate) fn take_plan() -> io::Result<(OwnedFd, Plan)> {
    Ok((FdNumber::at_place(LINK).take()?, Plan::read(FdNumber::at_place(PLAN).take()?)?))
}

impl Plan {
    /// As a sealed memory file.
    pub(crate) fn write(&self) -> io::Result<OwnedFd> {
        memory::sealed(c"preforkd-plan", &serde_json::to_vec(self)?)
    }

    fn read(file: OwnedFd) -> io::Result<Self> {
        let mut text = Vec::new();
        File::from(file).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// From the supervisor to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Begin to accept: the generation is in force.
    Accept,
    /// Stop accepting and end when the connections have ended. Of these listeners take what is queued first: they will
    /// be closed, and closing resets the queue.
    Retire {
        /// By their places in the plan.
        empty: ListenerSet,
        /// For so long clients may come whose handshake had begun before: to close would reset who believes to be let in.
        handshakes: Duration,
    },
    /// See whether something is queued, and a slot free for it, and say that you have: a worker that is gone, stopped or stuck
    /// may have been the only one that was woken for it, and a connection whose worker is gone has ended.
    Look {
        /// What the answer says.
        request: u32,
    },
    /// End one connection with its process group, if it is there.
    Kill {
        /// The last part of its id.
        number: u64,
    },
    /// End the connections of some clients with their process groups.
    KillSource {
        /// Whose.
        source: SourceName,
        /// Those that were accepted before this moment.
        before: Monotonic,
    },
    /// End the programs that have a listener, and start none any more: the service has changed, is paused, or is no more.
    EndPrograms,
    /// End all connections with their process groups.
    End {
        /// SIGTERM first, and SIGKILL for what is left then; at once if there is no time between.
        kill_after: Duration,
    },
}

/// From a worker to its supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WorkerReport {
    /// Everything is in place; waiting for [`Order::Accept`].
    Ready,
    /// In the accept loop.
    Accepting,
    /// Has looked, and is well.
    Looked {
        /// What the order said.
        request: u32,
    },
    /// A handler that runs in a copy of this worker's memory was killed by a fault. Whoever caused it may be guessing
    /// at addresses, and must not be given the same ones for long (Bittau et al., "Hacking Blind", 2014).
    NeedsRenewal,
    /// A program has ended and left somebody behind.
    LeftBehind {
        /// Where they are.
        whom: LeftOver,
        /// When they are to be killed, if they are.
        kill_after: Option<Duration>,
    },
    /// No listener is open any more; connections go on.
    Retired,
    /// A program that is to have a listener fails at once, and this is how; it is not started for a while.
    Rests(String),
    /// None rests any more.
    Works,
    /// It cannot work, and why.
    Failed(String),
}

/// Where those are whom a program has left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LeftOver {
    /// The process group of their leader, who is gone.
    Group(Pid),
    /// The cgroup of the worker with this number, which is not the worker's any more.
    Leaf(u32),
}

impl WorkerReport {
    /// It cannot work; of a reason that has no end, its beginning.
    pub(crate) fn failed(reason: &impl ToString) -> Self {
        WorkerReport::Failed(shortened(reason))
    }

    /// A program rests, and why.
    pub(crate) fn rests(reason: &impl ToString) -> Self {
        WorkerReport::Rests(shortened(reason))
    }
}

fn shortened(reason: &impl ToString) -> String {
    let mut reason = reason.to_string();
    if reason.len() > LONGEST_REASON {
        let end = (0..=LONGEST_REASON).rev().find(|end| reason.is_char_boundary(*end));
        reason.truncate(end.unwrap_or(0));
    }
    reason
}

/// A set of listeners, by their places in the plan: a bit for each, so that it fits a message whatever a worker listens at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListenerSet(Vec<u64>);

impl ListenerSet {
    /// Whether this place is among them.
    pub(crate) fn contains(&self, place: usize) -> bool {
        self.0.get(place / 64).is_some_and(|word| word & 1 << (place % 64) != 0)
    }
}

impl FromIterator<usize> for ListenerSet {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut words = Vec::new();
        for place in places {
            words.resize(words.len().max(place / 64 + 1), 0);
            if let Some(word) = words.get_mut(place / 64) {
                *word |= 1 << (place % 64);
            }
        }
        ListenerSet(words)
    }
}

/// The longest message. [`ListenerSet`] reaches it with 49,000 listeners.
const LONGEST: usize = 16 * 1024;

/// The longest reason: JSON may need six bytes for one.
const LONGEST_REASON: usize = (LONGEST - 64) / 6;

/// Sends an order or report.
///
/// # Errors
///
/// `InvalidInput` if it is longer than the other side would read; what send(2) says.
pub(crate) fn tell(link: BorrowedFd<'_>, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > LONGEST {
        let reason = format!("a message of {} bytes is longer than {LONGEST}", text.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    message::send(link, &text)
}

/// What came over a link.
#[derive(Debug)]
pub(crate) enum Heard<T> {
    /// A message.
    Message(T),
    /// Nothing for now.
    Silence,
    /// The other side is gone.
    End,
    /// Something that is no message.
    Nonsense,
}

/// Receives an order or report.
pub(crate) fn hear<T: for<'de> Deserialize<'de>>(link: BorrowedFd<'_>) -> Heard<T> {
    let mut buffer = [0; LONGEST];
    match message::receive(link, &mut buffer) {
        Ok(0) => Heard::End,
        Ok(length) => match buffer.get(..length).map(serde_json::from_slice) {
            Some(Ok(message)) => Heard::Message(message),
            _ => Heard::Nonsense,
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Heard::Silence
        }
        Err(_) => Heard::End,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn every_message_fits_or_is_an_error() {
        let (here, there) = message::pair().unwrap();
        let places: Vec<_> = (0..49_000).filter(|place| place % 3 != 0).collect();
        let order = Order::Retire { empty: places.iter().copied().collect(), handshakes: Duration::ZERO };
        tell(here.as_fd(), &order).unwrap();
        let Heard::Message(Order::Retire { empty, .. }) = hear(there.as_fd()) else {
            panic!("not what was said")
        };
        assert!((0..50_000).filter(|place| empty.contains(*place)).eq(places));

        for reason in ["\u{1}".repeat(100_000), "ä".repeat(100_000), "short".to_owned()] {
            tell(here.as_fd(), &WorkerReport::failed(&reason)).unwrap();
            let Heard::Message(WorkerReport::Failed(heard)) = hear(there.as_fd()) else {
                panic!("not what was said")
            };
            assert!(reason.starts_with(&heard) && heard.len() >= reason.len().min(2000));
        }

        let error = tell(here.as_fd(), &WorkerReport::Failed("x".repeat(LONGEST))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(matches!(hear::<Order>(there.as_fd()), Heard::Silence));
    }
}
