//! The spares of a worker.
//!
//! While some wait, the worker leaves the listeners to them. When none is left it accepts itself and forks on accept,
//! and makes new spares only when nobody is queued: a burst that is larger than the pool costs what it would without.
//! A spare that is called says so in a pipe, which wakes nobody. Only some ring: so many that one has rung before half
//! of them are gone, since those that have waited longest are called first. The others are seen when the worker wakes
//! for another reason, such as the end of a process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use allocator_api2::vec::Vec;

use super::events::{SpareEvents, SpareEventsWriter};
use crate::client::Client;
use crate::sys::dontfork::DontForkAlloc;
use crate::sys::fd;
use crate::sys::memory;
use crate::sys::wait::Pid;

/// The pool.
#[derive(Debug)]
pub(crate) struct Pool {
    /// How many are to wait.
    size: u64,
    /// Those that wait, as far as the worker knows, and whether they ring.
    waiting: Vec<(Pid, bool), DontForkAlloc>,
    /// How many were made since the last that rings.
    silent: u64,
    /// Who is refused depends on whether a spare waits: then everybody must know at once.
    all_ring: bool,
    calls: SpareEvents,
    to_come: BorrowedFd<'static>,
    /// `None` when all have been told to go.
    leash: Option<Leash>,
    doorbell: BorrowedFd<'static>,
    rest: Rest,
    /// How many were told to go and have not gone yet.
    leaving: u64,
}

/// The pipe that holds them: see [`crate::spare::process`].
#[derive(Debug)]
struct Leash {
    held: BorrowedFd<'static>,
    /// Children close it, or it would not end with us.
    holder: OwnedFd,
}

/// The descriptors of a spare, beside the listeners.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines {
    pub(crate) leash: BorrowedFd<'static>,
    pub(crate) calls: BorrowedFd<'static>,
    pub(crate) bell: BorrowedFd<'static>,
    /// Whether it rings when it is called.
    pub(crate) rings: bool,
}

/// When the next spare may be made, after it has gone wrong: one at a time and ever more seldom, until they live again.
#[derive(Debug, Default)]
struct Rest {
    until: Option<Instant>,
    pause: Duration,
    /// One has been made since, and has not died yet.
    on_trial: bool,
    /// There is no slot; the scoreboard's bell will tell.
    until_bell: bool,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Pool {
    /// Nobody waits yet. With `all_ring` every spare wakes the worker when it is called.
    pub(crate) fn new(
        size: u32,
        all_ring: bool,
        calls: SpareEvents,
        to_come: SpareEventsWriter,
    ) -> io::Result<Self> {
        let (held, holder) = fd::pipe()?;
        fd::set_nonblocking(holder.as_fd(), true)?;
        Ok(Pool {
            size: size.into(),
            waiting: Vec::with_capacity_in(size as usize, DontForkAlloc::new()),
            silent: 0,
            all_ring,
            calls,
            to_come: to_come.for_ever(),
            leash: Some(Leash { held: fd::for_ever(held), holder }),
            doorbell: fd::for_ever(memory::event()?),
            rest: Rest::default(),
            leaving: 0,
        })
    }

    /// Readable, by a new edge, when few spares are left.
    pub(crate) fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell
    }

    /// Readable, by a new edge, whenever a spare is called.
    pub(crate) fn calls(&self) -> BorrowedFd<'_> {
        self.calls.descriptor()
    }

    /// The descriptors that spares keep.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'static>; 3] {
        let leash = self.leash.as_ref().map_or(self.doorbell, |leash| leash.held);
        [leash, self.to_come, self.doorbell]
    }

    /// What the next spare needs to wait; `None` when all have been told to go.
    pub(crate) fn lines(&self) -> Option<Lines> {
        let leash = self.leash.as_ref()?.held;
        let rings =
            self.all_ring || self.silent + 1 >= self.size / 2 || self.waiting.iter().all(|(_, rings)| !rings);
        Some(Lines { leash, calls: self.to_come, bell: self.doorbell, rings })
    }

    /// Whether spares wait, as far as the worker knows.
    pub(crate) fn waits(&self) -> bool {
        !self.is_dismissed() && !self.waiting.is_empty()
    }

    /// Listens for who has been called: `call` confirms it.
    pub(crate) fn listen(&mut self, mut call: impl FnMut(Pid, &Client) -> bool) {
        if self.size == 0 {
            return;
        }
        let waiting = &mut self.waiting;
        self.calls.read(|pid, client| {
            if call(pid, &client) {
                waiting.retain(|&(other, _)| other != pid);
            }
        });
    }

    /// When to make one more, if one is missing.
    pub(crate) fn next(&self) -> Option<Instant> {
        let missing =
            self.leash.is_some() && (self.waiting.len() as u64) < self.size && !self.rest.until_bell;
        missing.then(|| self.rest.until.unwrap_or_else(Instant::now))
    }

    /// Whether to make one more now.
    pub(crate) fn is_due(&self) -> bool {
        self.next().is_some_and(|next| self.rest.until.is_none() || next <= Instant::now())
    }

    /// A new one waits.
    pub(crate) fn add(&mut self, pid: Pid, lines: &Lines) {
        self.waiting.push((pid, lines.rings));
        self.silent = if lines.rings { 0 } else { self.silent + 1 };
        if std::mem::replace(&mut self.rest.on_trial, true) {
            // The one before has lived through its pause.
            self.rest.pause /= 2;
        }
        if self.rest.pause < FIRST_PAUSE {
            self.rest = Rest { until_bell: self.rest.until_bell, ..Rest::default() };
        } else {
            self.rest.until = Some(Instant::now() + self.rest.pause);
        }
    }

    /// One has ended, called or not, or is stopped and answers nobody. Returns whether it waited.
    pub(crate) fn remove(&mut self, pid: Pid) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|&(waiting, _)| waiting != pid);
        self.waiting.len() < before
    }

    /// One waits again. When a burst has left twice as many as there should be, one is told to go.
    pub(crate) fn add_again(&mut self, pid: Pid) {
        self.waiting.push((pid, false));
        let leash = self.leash.as_ref().filter(|_| self.waiting.len() as u64 > self.size * 2 + self.leaving);
        if leash.is_some_and(|leash| nix::unistd::write(&leash.holder, &[0]).is_ok()) {
            self.leaving += 1;
        }
    }

    /// One has gone as it was told.
    pub(crate) fn has_left(&mut self) {
        self.leaving = self.leaving.saturating_sub(1);
    }

    /// There is no slot for one until the bell rings.
    pub(crate) fn rest_until_bell(&mut self) {
        self.rest.until_bell = true;
    }

    /// There may be a slot.
    pub(crate) fn slot_freed(&mut self) {
        self.rest.until_bell = false;
    }

    /// None can be made for a while, longer each time.
    pub(crate) fn rest(&mut self) {
        let now = Instant::now();
        if !std::mem::take(&mut self.rest.on_trial) && self.rest.until.is_some_and(|until| now < until) {
            // It was made before the pause: whoever killed one has killed several.
            return;
        }
        self.rest.pause = (self.rest.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.rest.until = Some(now + self.rest.pause);
    }

    /// Tells one to look for a connection, and to go if there is none.
    pub(crate) fn wake_one(&self) {
        if let Some(leash) = &self.leash {
            // It can only be full of others that have not been read.
            let _ = nix::unistd::write(&leash.holder, &[0]);
        }
    }

    /// Tells all to go. Until they have gone, they may be called.
    pub(crate) fn dismiss(&mut self) {
        self.leash = None;
    }

    /// Whether some have been told to go, and have not gone yet nor been called. They still have the listeners.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_dismissed() && !self.waiting.is_empty()
    }

    /// Whether they have been told to go.
    pub(crate) fn is_dismissed(&self) -> bool {
        self.leash.is_none()
    }
}
