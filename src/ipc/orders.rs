//! What the supervisor hands to a worker, and what the two say to each other.
//!
//! A worker is exec'ed, so that it is small, has an address-space layout of its own, and knows one service. It finds
//! its plan in a sealed memory file and its descriptors at fixed places.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::config;
use crate::sys::{fd, message};

/// The hidden command that starts a worker.
pub(crate) const COMMAND: &str = "worker";

/// What a worker does.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The service, checked; the lists of its admission are not in it but among the [descriptors](WorkerFds).
    pub(crate) service: config::ServiceConfig,
    /// What the listeners are called, in their order. An entry of `listen` can stand for several sockets of systemd's.
    pub(crate) listeners: Vec<String>,
    /// How many spares this worker keeps; the share of it in the service's.
    pub(crate) spares: u32,
    /// Where records go.
    pub(crate) log: crate::journal::LogSettings,
    /// The first part of connection ids.
    pub(crate) run: u32,
    /// The worker's serial number, never used twice under one supervisor.
    pub(crate) serial: u32,
}

/// The descriptors of a worker, in the order of their numbers, from 3 on. Listeners follow.
#[derive(Debug)]
pub(crate) struct WorkerFds {
    /// Messages to and from the supervisor; its end means that the supervisor is gone.
    pub(crate) link: OwnedFd,
    /// The [`Plan`].
    pub(crate) plan: OwnedFd,
    /// The scoreboard's memory.
    pub(crate) scoreboard: OwnedFd,
    /// The eventfd that tells of free slots.
    pub(crate) slot_freed: OwnedFd,
    /// The worker's counters.
    pub(crate) counters: OwnedFd,
    /// Where spares say that they have been taken: the end to read, and the end to write.
    pub(crate) spare_events: OwnedFd,
    /// See `spare_events`.
    pub(crate) spare_events_writer: OwnedFd,
    /// The memory of the sources.
    pub(crate) sources: OwnedFd,
    /// The lists of the service's admission.
    pub(crate) prefixes: OwnedFd,
}

impl WorkerFds {
    /// Takes them over, in a process that a supervisor has started.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(WorkerFds {
            link: fd::inherited(3)?,
            plan: fd::inherited(4)?,
            scoreboard: fd::inherited(5)?,
            slot_freed: fd::inherited(6)?,
            counters: fd::inherited(7)?,
            spare_events: fd::inherited(8)?,
            spare_events_writer: fd::inherited(9)?,
            sources: fd::inherited(10)?,
            prefixes: fd::inherited(11)?,
        })
    }

    /// The listener at place `index` of the plan.
    pub(crate) fn listener(index: usize) -> io::Result<OwnedFd> {
        let number = i32::try_from(index).ok().and_then(|index| index.checked_add(12));
        fd::inherited(number.ok_or(io::ErrorKind::InvalidInput)?)
    }
}

impl Plan {
    /// As the content of a memory file.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// From the memory file that the supervisor sealed.
    pub(crate) fn read(file: OwnedFd) -> io::Result<Self> {
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
    },
    /// Say that you are well.
    Answer,
    /// See whether something is queued. A worker that retires may have been the only one that was woken for it.
    Look,
    /// End all connections with their process groups: politely, or at once.
    End {
        /// SIGKILL instead of SIGTERM.
        at_once: bool,
    },
}

/// From a worker to its supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WorkerReport {
    /// Everything is in place; waiting for [`Order::Accept`].
    Ready,
    /// In the accept loop.
    Accepting,
    /// Well.
    Well,
    /// A handler that runs in a copy of this worker's memory was killed by a fault. Whoever caused it may be guessing
    /// at addresses, and must not be given the same ones for long (Bittau et al., "Hacking Blind", 2014).
    NeedsRenewal,
    /// No listener is open any more; connections go on.
    Retired,
    /// It cannot work, and why.
    Failed(String),
}

impl WorkerReport {
    /// It cannot work; of a reason that has no end, its beginning.
    pub(crate) fn failed(reason: &impl ToString) -> Self {
        let mut reason = reason.to_string();
        if reason.len() > LONGEST_REASON {
            let end = (0..=LONGEST_REASON).rev().find(|end| reason.is_char_boundary(*end));
            reason.truncate(end.unwrap_or(0));
        }
        WorkerReport::Failed(reason)
    }
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
        let order = Order::Retire { empty: places.iter().copied().collect() };
        tell(here.as_fd(), &order).unwrap();
        let Heard::Message(Order::Retire { empty }) = hear(there.as_fd()) else {
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
