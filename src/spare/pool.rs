//! The spares of a worker.
//!
//! While some wait, the worker leaves the listeners to them. When none is left it accepts itself and forks on accept,
//! and makes new spares only when nobody is queued: a burst that is larger than the pool costs what it would without.
//! A spare that is taken says so in a pipe, which wakes nobody. Only some wake the worker: so many that one has done so
//! before half of them are gone, since those that have waited longest are taken first. The others are heard when the worker
//! wakes for another reason, such as the end of a process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use allocator_api2::vec::Vec;

use super::copies::{Copied, Copies};
use super::events::{SpareEvents, SpareEventsWriter};
use super::pauses::Pauses;
use super::process::{self, SpareContext, SpareSpec};
use crate::admission::Admission;
use crate::admission::sources::SlotIndex;
use crate::child::ChildSpec;
use crate::client::{Connection, ConnectionId};
use crate::scoreboard::{Scoreboard, Slot};
use crate::sys::dontfork::DontForkAlloc;
use crate::sys::fork::{Birthplace, ChildStack, InCgroup, fork_into};
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;
use crate::sys::{fd, memory};

/// The pauses in making spares after one could not be made or has died waiting.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Who has waited so long beside enough others is one too many. Sooner told to go, he would be missed by the next burst: to
/// make and to end a process costs as much as to serve ten connections.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// The spares of a worker: who waits, and when there are to be more.
#[derive(Debug)]
pub(crate) struct Pool {
    /// How many are to wait.
    size: u64,
    /// Those that wait, as far as the worker knows, and whether they wake it.
    waiting: Vec<(Pid, bool), DontForkAlloc>,
    /// How many were made since the last that wakes.
    silent: u64,
    /// The worker must know at once who has been taken.
    all_wake: bool,
    spec: &'static SpareSpec,
    events: SpareEvents,
    copies: Option<Copies>,
    /// The end that children close, or it would not end with us; `None` when all have been told to go.
    leash: Option<OwnedFd>,
    pauses: Pauses,
    /// There is no slot for one.
    until_slot_freed: bool,
    /// How many connections they have taken.
    taken: u64,
    /// How many are to be made until they are counted again; `None` while what is known of them is what is.
    lacking: Option<u64>,
    /// Since more wait than should.
    idle: Option<Idle>,
}

/// How many have waited all the time.
#[derive(Debug)]
struct Idle {
    until: Monotonic,
    least: u64,
}

/// What a pool is made from.
#[derive(Debug)]
pub(crate) struct Setup {
    /// How many spares are to wait.
    pub(crate) size: u32,
    /// How many connections each serves; 0 for as many as come.
    pub(crate) connections: u32,
    /// Whether each wakes the worker when it is taken.
    pub(crate) all_wake: bool,
    pub(crate) child: &'static ChildSpec,
    pub(crate) admission: &'static Admission,
    pub(crate) listeners: std::vec::Vec<BorrowedFd<'static>>,
    pub(crate) sources: Option<BorrowedFd<'static>>,
    pub(crate) events: SpareEvents,
    pub(crate) writer: SpareEventsWriter,
    /// Whether the worker wants a copy of each connection.
    pub(crate) sends_copies: bool,
}

impl Pool {
    /// Nobody waits yet.
    pub(crate) fn new(setup: Setup) -> io::Result<Self> {
        let Setup { size, connections, all_wake, child, admission, listeners, sources, events, .. } = setup;
        let (held, leash) = fd::pipe()?;
        fd::set_nonblocking(leash.as_fd(), true)?;
        let (leash_end, writer, wake) =
            (fd::for_ever(held), setup.writer.for_ever(), fd::for_ever(memory::event()?));
        let hands_over = admission.tells_sources();
        let copies = (size > 0 && (setup.sends_copies || hands_over)).then(Copies::new).transpose()?;
        let sending = copies.as_ref().map(Copies::descriptor);
        let mut kept = [&listeners[..], &[leash_end, writer, wake, child.reporter().descriptor()]].concat();
        kept.extend(sources.into_iter().chain(sending).chain(child.stdin()));
        kept.sort_unstable_by_key(AsRawFd::as_raw_fd);
        let null = || std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = (size > 0).then(null).transpose()?.map(|null| fd::for_ever(null.into()));
        let spec = SpareSpec {
            child,
            admission,
            listeners,
            kept,
            leash: leash_end,
            events: writer,
            wake,
            copies: sending.filter(|_| setup.sends_copies),
            refused: sending.filter(|_| hands_over),
            sources,
            null,
            connections,
        };
        Ok(Pool {
            size: size.into(),
            waiting: Vec::with_capacity_in(size as usize, DontForkAlloc::new()),
            silent: 0,
            all_wake,
            spec: Box::leak(Box::new(spec)),
            events,
            copies,
            leash: Some(leash),
            pauses: Pauses::new(FIRST_PAUSE, LONGEST_PAUSE),
            until_slot_freed: false,
            taken: 0,
            lacking: None,
            idle: None,
        })
    }

    /// Forks a process that does all that a spare does but wait, if there are to be spares.
    pub(crate) fn rehearse(&self, cgroup: Option<InCgroup<'_>>) -> Option<io::Result<Pid>> {
        let spec = self.spec;
        let pids = spec.child.pids();
        (self.size > 0).then(|| fork_into(pids, cgroup, move |child| process::rehearse(child, spec)))
    }

    /// Whether there are to be spares.
    pub(crate) fn is_used(&self) -> bool {
        self.size > 0
    }

    /// Whether each serves more than one connection.
    pub(crate) fn serves_several(&self) -> bool {
        self.spec.connections != 1
    }

    /// An eventfd: a new edge when few spares are left, or something is to be heard at once.
    pub(crate) fn wake(&self) -> BorrowedFd<'static> {
        self.spec.wake
    }

    /// A pipe: a new edge whenever a spare is taken.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.events.descriptor()
    }

    /// Whether spares wait, as far as the worker knows.
    pub(crate) fn waits(&self) -> bool {
        !self.is_dismissed() && !self.waiting.is_empty()
    }

    /// Hears which spares have been taken: `taken` confirms it. `copied` gets the connections that they have sent.
    pub(crate) fn hear(
        &mut self,
        mut taken: impl FnMut(Pid, &Connection) -> bool,
        copied: impl FnMut(Copied),
    ) {
        if self.size == 0 {
            return;
        }
        let (waiting, number) = (&mut self.waiting, &mut self.taken);
        self.events.read(|pid, connection| {
            if taken(pid, &connection) {
                *number += 1;
                waiting.retain(|&(other, _)| other != pid);
            }
        });
        if let Some(copies) = &self.copies {
            copies.read(copied);
        }
    }

    /// How many connections spares have taken so far, as far as the worker knows.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// When to make one more, if one is missing.
    pub(crate) fn next(&self) -> Option<Monotonic> {
        let lacking = self.lacking.unwrap_or_else(|| self.size.saturating_sub(self.waiting.len() as u64));
        let missing = self.leash.is_some() && lacking > 0 && !self.until_slot_freed;
        missing.then(|| self.pauses.next())
    }

    /// All of them have just been heard; if the worker will not hear at once what they do from now on, it makes only those
    /// that are missing now, and none if that is to be: who serves somebody at this moment may wait in the next.
    pub(crate) fn count(&mut self, is_heard_late: bool, none_are_made: bool) {
        let waiting = self.waiting.len() as u64;
        let lacking = if none_are_made { 0 } else { self.size.saturating_sub(waiting) };
        self.lacking = is_heard_late.then_some(lacking);
        self.watch_idle();
    }

    fn watch_idle(&mut self) {
        let (waiting, most) = (self.waiting.len() as u64, self.most());
        match &mut self.idle {
            Some(idle) => idle.least = idle.least.min(waiting),
            None if waiting > most && self.leash.is_some() => {
                self.idle = Some(Idle { until: Monotonic::now() + IDLE_TIME, least: waiting });
            }
            None => {}
        }
    }

    /// How many may wait.
    fn most(&self) -> u64 {
        self.size * 2
    }

    /// When [`Pool::tend`] has something to do.
    pub(crate) fn tends_at(&self) -> Option<Monotonic> {
        self.idle.as_ref().map(|idle| idle.until)
    }

    /// Tells those to go that nobody has needed.
    pub(crate) fn tend(&mut self) {
        let is_due = |idle: &mut Idle| idle.until <= Monotonic::now();
        let Some(idle) = self.idle.take_if(is_due) else { return };
        for _ in self.most()..idle.least {
            self.wake_one();
        }
        // Some may have come to wait since it was begun to count, or take a connection instead of going.
        self.watch_idle();
    }

    /// Makes one more for this slot. `id` is what its first connection will be called; it gets what its program's stderr is
    /// to be, and what it reports by if it is to serve several.
    pub(crate) fn make(
        &mut self,
        slot: &Slot<&'static Scoreboard>,
        id: ConnectionId,
        (stderr, reports): (Option<OwnedFd>, Option<OwnedFd>),
        stack: &ChildStack,
        origin: Birthplace<'_>,
    ) -> io::Result<Pid> {
        let wakes =
            self.all_wake || self.silent + 1 >= self.size / 2 || self.waiting.iter().all(|(_, wakes)| !wakes);
        let (slot, first) = (slot.index(), None);
        let mut context = SpareContext { spec: self.spec, id, slot, wakes, stderr, reports, first };
        let made = stack.fork(origin, process::wait, &mut context);
        match made {
            Ok(pid) => self.add(pid, wakes),
            Err(_) => self.failed(),
        }
        made
    }

    /// Whether who is let in by the worker itself gets a process that waits for others after him, as spares do. Not once
    /// they have been told to go: then nothing is left to wait for.
    pub(crate) fn keeps_all(&self) -> bool {
        self.is_used() && self.serves_several() && !self.is_dismissed()
    }

    /// Makes a process that serves `first` and then goes on as a spare. Also returns his connection, of which the process has
    /// a copy.
    pub(crate) fn make_for(
        &self,
        (slot, id): (SlotIndex, ConnectionId),
        first: (OwnedFd, Connection),
        (stderr, reports): (Option<OwnedFd>, OwnedFd),
        stack: &ChildStack,
        origin: Birthplace<'_>,
    ) -> (io::Result<Pid>, OwnedFd) {
        let (reports, wakes) = (Some(reports), false);
        let context = SpareContext { spec: self.spec, id, slot, wakes, stderr, reports, first: None };
        let mut start = (context, first);
        let made = stack.fork(origin, process::serve_and_wait, &mut start);
        let (_, (socket, _)) = start;
        (made, socket)
    }

    fn add(&mut self, pid: Pid, wakes: bool) {
        self.waiting.push((pid, wakes));
        self.silent = if wakes { 0 } else { self.silent + 1 };
        self.lacking = self.lacking.map(|lacking| lacking.saturating_sub(1));
        self.pauses.made();
    }

    /// One has ended, taken or not, or is stopped and answers nobody. Returns whether it waited.
    pub(crate) fn remove(&mut self, pid: Pid) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|&(waiting, _)| waiting != pid);
        let left = self.waiting.len();
        self.idle.iter_mut().for_each(|idle| idle.least = idle.least.min(left as u64));
        left < before
    }

    /// One waits again.
    pub(crate) fn add_again(&mut self, pid: Pid) {
        self.waiting.push((pid, false));
    }

    /// There is no slot for one until one is freed.
    pub(crate) fn wait_for_slot(&mut self) {
        self.until_slot_freed = true;
    }

    /// There may be a slot.
    pub(crate) fn slot_freed(&mut self) {
        self.until_slot_freed = false;
    }

    /// None can be made for a while, longer each time.
    pub(crate) fn failed(&mut self) {
        self.pauses.failed();
    }

    /// Tells one to look for a connection, and to go if there is none.
    pub(crate) fn wake_one(&self) {
        // It can only be full of others that have not been read.
        let _ = self.leash.as_ref().map(|leash| fd::write(leash.as_fd(), &[0]));
    }

    /// Tells all to go. Until they have gone, they may be taken.
    pub(crate) fn dismiss(&mut self) {
        (self.leash, self.idle) = (None, None);
    }

    /// Whether some have been told to go, and have not gone yet nor been taken. They still have the listeners.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_dismissed() && !self.waiting.is_empty()
    }

    /// Whether they have been told to go.
    pub(crate) fn is_dismissed(&self) -> bool {
        self.leash.is_none()
    }
}
