//! The rows of a scoreboard: who holds which of the `max_connections` slots of a service, and what is known of each
//! connection. Whoever lists, ends or adopts connections reads them.
//!
//! | word | who writes it | when | if its writer dies here |
//! |---|---|---|---|
//! | owner | the worker, by compare-and-swap | first of all, to take the slot | the supervisor finds the slot by it |
//! | | the supervisor | when it adopts what a dead worker held | it and the service are gone |
//! | | the owner | last of all, to give the slot back | as if it had not ended yet |
//! | pid | the kernel (`CLONE_PARENT_SETTID`) | before the child runs | there is no child without it |
//! | client, until | the owner | when it has let somebody in, or hears that a spare has | nobody: the number is 0 |
//! | number | the owner | after these: with it they count | |
//! | why, kill at | the owner | after it has told the process to end | it is told once more |
//!
//! All is one store a word, so a process can be killed between any two. Connection processes do not have this memory. What
//! is read here is input all the same: a worker may have written anything.
//!
//! A spare does not write its own row. It says in a pipe that it has been taken ([`crate::spare::events`]), 1 us of
//! processor time; to map its row, write it and unmap it before the handler costs 5 us if the mapping is inherited and 11
//! if it is made, `pwrite(2)` 5, of about 90 for a connection. So between the accept and the worker's next look such a
//! connection is in the pipe, where it is counted.
//!
//! The memory is as large as the largest limit, in a sparse file, so that a reload can change the limit in place.

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use crate::admission::EndCause;
use crate::admission::sources::{MAX_SLOTS, SlotIndex, Source, Sources};
use crate::client::Connection;
use crate::shared::SharedFile;
use crate::sys::memory::{self, AtomicU32, AtomicU64, Mapping};
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;

const SLOTS: usize = MAX_SLOTS as usize;
const OWNERS: usize = 4096;
const PIDS: usize = OWNERS + SLOTS * 4;
const ROWS: usize = PIDS + SLOTS * 4;
/// The words of a [`Connection`], why it has to end, and when it is killed: a line of the cache.
const ROW_WORDS: usize = Connection::WORDS + 2;
const WHY: usize = Connection::WORDS;
const KILL_AT: usize = Connection::WORDS + 1;
const LENGTH: usize = ROWS + SLOTS * ROW_WORDS * 8;

/// Who holds a slot: a worker, by its serial number, or the supervisor. Never 0, which marks a free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    /// The supervisor, for connections whose worker has died.
    pub(crate) const SUPERVISOR: Owner = Owner(u32::MAX);

    /// The worker with this serial number; they count from 1.
    pub(crate) fn worker(serial: u32) -> Self {
        Owner(serial.clamp(1, u32::MAX - 1))
    }
}

/// The scoreboard of a service, mapped.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    memory: Mapping,
    slot_freed: OwnedFd,
    /// Of the supervisor, who wakes nobody by the eventfd: a worker that was captured could make that block.
    to_wake: Option<Cell<bool>>,
    sources: Sources,
    shared: SharedFile,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSlot {
    /// All are taken. [`Scoreboard::want`] and try once more, then wait for [`Scoreboard::slot_freed`].
    Full,
    /// The limit was lowered and connections above it still live. Try again a little later.
    OverLoweredLimit,
}

/// What is in a row that somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) slot: SlotIndex,
    /// The process, if one was made: checked to be one that could be.
    pub(crate) pid: Option<Pid>,
    /// What it serves.
    pub(crate) connection: Option<Connection>,
    /// It was told to end.
    pub(crate) overdue: Option<Overdue>,
}

/// The state of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowState {
    /// Somebody is about to accept, or to make a spare.
    Claimed,
    /// A process waits for a connection.
    Spare,
    /// A connection is let in; its process may be on its way.
    Serving,
    /// Its process was told to end, by a deadline or by hand.
    Ending,
}

impl Row {
    pub(crate) fn state(&self) -> RowState {
        match (self.pid, self.connection, self.overdue) {
            (_, Some(_), Some(_)) => RowState::Ending,
            (_, Some(_), None) => RowState::Serving,
            (Some(_), None, _) => RowState::Spare,
            (None, None, _) => RowState::Claimed,
        }
    }
}

/// A connection that was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overdue {
    /// Why.
    pub(crate) cause: EndCause,
    /// When what is left of it is killed.
    pub(crate) kill_at: Monotonic,
}

/// Place of a word in the header.
#[derive(Clone, Copy)]
enum Word {
    /// `max_connections`; the supervisor writes it.
    Limit,
    /// Not 0 if somebody waits for a free slot.
    Wanted,
    /// Where a slot was freed last.
    Hint,
    /// No slot from here on was ever in use.
    Top,
}

impl Scoreboard {
    /// A new one without a free slot, and its memory file to hand to workers.
    pub(crate) fn create(sources: Sources) -> io::Result<(Scoreboard, OwnedFd)> {
        let file = memory::create(c"preforkd-scoreboard", LENGTH)?;
        let scoreboard = Scoreboard::open(file.as_fd(), memory::event()?, sources, SharedFile::create()?)?;
        Ok((scoreboard, file))
    }

    /// The one in `file`; `slot_freed` is notified when a slot is freed that somebody waits for. Who gives a slot back is
    /// counted in `sources` no more.
    pub(crate) fn open(
        file: BorrowedFd<'_>,
        slot_freed: OwnedFd,
        sources: Sources,
        shared: SharedFile,
    ) -> io::Result<Scoreboard> {
        Ok(Scoreboard { memory: Mapping::new(file, LENGTH)?, slot_freed, to_wake: None, sources, shared })
    }

    /// The supervisor's: whom it would wake is [to be told](Scoreboard::take_wake).
    pub(crate) fn of_supervisor(self) -> Scoreboard {
        Scoreboard { to_wake: Some(Cell::new(false)), ..self }
    }

    /// The memory that its connections share. Who gives a slot back has no share of a gauge any more.
    pub(crate) fn shared(&self) -> &SharedFile {
        &self.shared
    }

    /// What is known of the sources of its connections.
    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Counts every connection of `owner` for the source that `source_of` says, after the configuration has changed.
    pub(crate) fn recount(&self, owner: Owner, source_of: impl Fn(&Connection) -> Option<Source>) {
        for row in self.held_by(owner) {
            let source = row.connection.and_then(|connection| source_of(&connection));
            if let Some(source) = source {
                // Numbers alone repeat: each worker has its own.
                let still =
                    || self.is_held_by(row.slot, owner) && self.connection(row.slot) == row.connection;
                self.sources.move_to(row.slot, source, still);
            }
        }
    }

    fn is_held_by(&self, slot: SlotIndex, owner: Owner) -> bool {
        self.owners().get(slot.index() as usize).is_some_and(|word| word.load(SeqCst) == owner.0)
    }

    /// An eventfd that becomes readable, by a new edge, whenever a slot is freed after [`Scoreboard::want`]. It is never
    /// read, so that everybody who waits sees every edge.
    pub(crate) fn slot_freed(&self) -> BorrowedFd<'_> {
        self.slot_freed.as_fd()
    }

    /// Wakes all who wait for a slot, whether or not there is one: for a worker that may have died before it did.
    pub(crate) fn wake_all(&self) {
        match &self.to_wake {
            Some(to_wake) => to_wake.set(true),
            None => memory::ring(self.slot_freed()),
        }
    }

    /// Whether the supervisor has to tell those who wait for a slot that there may be one.
    pub(crate) fn take_wake(&self) -> bool {
        self.to_wake.as_ref().is_some_and(Cell::take)
    }

    /// Changes the limit. Connections above a lowered one go on; nobody is admitted until they have ended.
    pub(crate) fn set_limit(&self, limit: u32) {
        self.word(Word::Limit).store(limit.min(MAX_SLOTS), SeqCst);
        self.wake_all();
    }

    /// Asks to be woken. To be followed by another [`Slot::claim`], since a slot may have been freed before.
    pub(crate) fn want(&self) {
        self.word(Word::Wanted).store(1, SeqCst);
    }

    fn claim_below(&self, limit: u32, owner: Owner) -> Option<u32> {
        let hint = self.word(Word::Hint).load(SeqCst);
        let start = if hint < limit { hint } else { 0 };
        let owners = self.owners();
        for index in (start..limit).chain(0..start) {
            let word = owners.get(index as usize)?;
            if word.load(SeqCst) == 0 {
                if self.word(Word::Top).load(SeqCst) <= index {
                    self.word(Word::Top).fetch_max(index + 1, SeqCst);
                }
                if word.compare_exchange(0, owner.0, SeqCst, SeqCst).is_ok() {
                    self.word(Word::Hint).store(index + 1, SeqCst);
                    return Some(index);
                }
            }
        }
        None
    }

    /// After a limit was lowered, connections above it count too. Two who claim at once may both be told that they do
    /// not fit.
    fn fits(&self, limit: u32) -> bool {
        let top = self.top();
        if top <= limit {
            return true;
        }
        let taken = |range: std::ops::Range<u32>| {
            let range = range.start as usize..range.end as usize;
            self.owners()
                .get(range)
                .map_or(0, |owners| owners.iter().filter(|word| word.load(SeqCst) != 0).count())
        };
        // The top stays, though nothing may be left up there: who lowered it could hide a slot that is taken just now,
        // after the limit was raised again.
        let above = taken(limit..top);
        above == 0 || taken(0..limit) + above <= limit as usize
    }

    /// Reading beyond it would fill a hole of the file.
    fn top(&self) -> u32 {
        self.word(Word::Top).load(SeqCst).min(MAX_SLOTS)
    }

    /// The processes that live, or have ended and are not reaped yet, of whatever worker.
    pub(crate) fn processes(&self) -> Processes {
        let mut processes = Processes::default();
        for (index, (owner, pid)) in (0..self.top()).zip(self.owners().iter().zip(self.pids())) {
            if owner.load(SeqCst) != 0 {
                // All that it needs of the row: this is asked for each connection that finds no slot.
                let number = self.row_words(index).first().map_or(0, |number| number.load(SeqCst));
                match (pid.load(SeqCst), number) {
                    (0, 0) => processes.claimed += 1,
                    (0, _) => {}
                    (_, 0) => processes.spares += 1,
                    (_, _) => processes.connections += 1,
                }
            }
        }
        processes
    }

    /// The rows of the slots that `owner` holds.
    pub(crate) fn held_by(&self, owner: Owner) -> Vec<Row> {
        let held = |slot: &SlotIndex| self.is_held_by(*slot, owner);
        (0..self.top()).map(SlotIndex::at).filter(held).map(|slot| self.row(slot)).collect()
    }

    /// Whether a program has this listener, or is about to, in another slot than this one.
    pub(crate) fn has_listener(&self, listener: u64, except: Option<SlotIndex>) -> bool {
        let is_held = |slot: &SlotIndex| {
            let owner = self.owners().get(slot.index() as usize);
            Some(slot.index()) != except.map(SlotIndex::index)
                && owner.is_some_and(|word| word.load(SeqCst) != 0)
        };
        let has_it = |slot| self.connection(slot).is_some_and(|one| one.client.listener == listener);
        (0..self.top()).map(SlotIndex::at).filter(is_held).any(has_it)
    }

    /// One of them.
    pub(crate) fn row(&self, slot: SlotIndex) -> Row {
        let pid = self.pids().get(slot.index() as usize).map_or(0, |pid| pid.load(SeqCst));
        let pid = Pid::try_from(pid).ok().filter(|&pid| pid > 1);
        let word = |place: usize| self.row_words(slot.index()).get(place).map_or(0, |word| word.load(SeqCst));
        let cause = word(WHY).checked_sub(1).and_then(|why| EndCause::from_number(u8::try_from(why).ok()?));
        let overdue = cause.map(|cause| Overdue { cause, kill_at: Monotonic::from_nanos(word(KILL_AT)) });
        Row { slot, pid, connection: self.connection(slot), overdue }
    }

    fn connection(&self, slot: SlotIndex) -> Option<Connection> {
        let mut words = [0; Connection::WORDS];
        for (word, place) in words.iter_mut().zip(self.row_words(slot.index())) {
            *word = place.load(SeqCst);
        }
        Connection::from_words(words)
    }

    fn release(&self, slot: SlotIndex) {
        self.clear(slot.index());
        self.word(Word::Hint).store(slot.index(), SeqCst);
        if self.word(Word::Wanted).swap(0, SeqCst) != 0 {
            self.wake_all();
        }
    }

    /// The owner goes last: a slot that has one belongs to it.
    fn clear(&self, index: u32) {
        if let (Some(owner), Some(pid)) = (self.owners().get(index as usize), self.pids().get(index as usize))
        {
            self.forget_connection(index);
            self.sources.leave(SlotIndex::at(index));
            self.shared.ended(index);
            pid.store(0, SeqCst);
            owner.store(0, SeqCst);
        }
    }

    fn forget_connection(&self, index: u32) {
        let words = self.row_words(index);
        words.first().into_iter().for_each(|number| number.store(0, SeqCst));
        // Few were told to end; what is written is another page to copy for the next child.
        words.get(WHY).filter(|why| why.load(SeqCst) != 0).into_iter().for_each(|why| why.store(0, SeqCst));
    }

    /// How many slots may be taken.
    pub(crate) fn limit(&self) -> u32 {
        self.word(Word::Limit).load(SeqCst).min(MAX_SLOTS)
    }

    fn word(&self, word: Word) -> &AtomicU32 {
        &self.memory.words(0, 4)[word as usize]
    }

    fn owners(&self) -> &[AtomicU32] {
        self.memory.words(OWNERS, SLOTS)
    }

    fn pids(&self) -> &[AtomicU32] {
        self.memory.words(PIDS, SLOTS)
    }

    fn row_words(&self, index: u32) -> &[AtomicU64] {
        self.memory.long_words(ROWS + index as usize * ROW_WORDS * 8, ROW_WORDS)
    }
}

/// What [`Scoreboard::processes`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Processes {
    /// That have a connection.
    pub(crate) connections: u32,
    /// That wait for one.
    pub(crate) spares: u32,
    /// Slots of those that are about to be made.
    pub(crate) claimed: u32,
}

/// A slot that this process holds; dropped, it gives itself back.
///
/// A worker's borrows the scoreboard for ever, and counts no references: a count would be a page that parent and child
/// both write. The supervisor's, of a connection that it has adopted, counts.
#[derive(Debug)]
pub(crate) struct Slot<S: Deref<Target = Scoreboard>> {
    scoreboard: S,
    index: SlotIndex,
}

impl<S: Deref<Target = Scoreboard>> Slot<S> {
    /// Takes a slot for `owner` if fewer than the limit are taken.
    pub(crate) fn claim(scoreboard: S, owner: Owner) -> Result<Self, NoSlot> {
        loop {
            let limit = scoreboard.limit();
            let index = scoreboard.claim_below(limit, owner).ok_or(NoSlot::Full)?;
            // The limit may have been lowered meanwhile.
            if index >= scoreboard.limit() {
                scoreboard.clear(index);
            } else if scoreboard.fits(limit) {
                return Ok(Slot { scoreboard, index: SlotIndex::at(index) });
            } else {
                // Nobody is woken: it would be the caller itself, again and again.
                scoreboard.clear(index);
                return Err(NoSlot::OverLoweredLimit);
            }
        }
    }

    /// Takes over a slot that a dead worker held, or the program that this process was before.
    pub(crate) fn adopt(scoreboard: S, index: SlotIndex) -> Self {
        if let Some(owner) = scoreboard.owners().get(index.index() as usize) {
            owner.store(Owner::SUPERVISOR.0, SeqCst);
        }
        Slot { scoreboard, index }
    }

    /// Where fork is to write the pid of the connection process.
    pub(crate) fn pid_word(&self) -> Option<&AtomicI32> {
        self.scoreboard.memory.signed_word(PIDS + self.index.index() as usize * 4)
    }

    /// Says which process holds it, if that was made in another.
    pub(crate) fn note_process(&self, pid: Option<Pid>) {
        self.pid_word().into_iter().for_each(|word| word.store(pid.unwrap_or(0), SeqCst));
    }

    /// Says what its process serves; `None` if that waits again.
    pub(crate) fn note(&self, connection: Option<&Connection>) {
        let Some(connection) = connection else {
            return self.scoreboard.forget_connection(self.index.index());
        };
        // The number goes last: with it the row counts.
        let words = self.scoreboard.row_words(self.index.index());
        for (place, word) in words.iter().zip(connection.to_words()).rev() {
            place.store(word, SeqCst);
        }
    }

    /// Says that its process was told to end.
    pub(crate) fn note_overdue(&self, overdue: Overdue) {
        if let [.., why, kill_at] = self.scoreboard.row_words(self.index.index()) {
            kill_at.store(overdue.kill_at.nanos(), SeqCst);
            why.store(u64::from(overdue.cause.number()) + 1, SeqCst);
        }
    }

    /// Which one it is.
    pub(crate) fn index(&self) -> SlotIndex {
        self.index
    }

    /// The scoreboard that it is of.
    pub(crate) fn scoreboard(&self) -> &S {
        &self.scoreboard
    }
}

impl<S: Deref<Target = Scoreboard>> Drop for Slot<S> {
    fn drop(&mut self) {
        self.scoreboard.release(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, ProxyHeader};
    use crate::sys::socket::{Peer, PeerCredentials};

    fn scoreboard(limit: u32) -> &'static Scoreboard {
        let (scoreboard, _file) = Scoreboard::create(Sources::create().unwrap().0).unwrap();
        scoreboard.set_limit(limit);
        Box::leak(Box::new(scoreboard))
    }

    #[test]
    fn no_more_slots_than_the_limit_and_each_comes_back() {
        let scoreboard = scoreboard(3);
        let mut held: Vec<_> =
            std::iter::from_fn(|| Slot::claim(scoreboard, Owner::worker(1)).ok()).collect();
        assert_eq!(held.len(), 3);
        held.remove(1);
        held.extend(Slot::claim(scoreboard, Owner::worker(2)));
        assert_eq!(held.len(), 3);
        assert!(Slot::claim(scoreboard, Owner::worker(1)).is_err());
        assert_eq!(scoreboard.held_by(Owner::worker(1)).len(), 2);
        drop(held);
        assert!(scoreboard.held_by(Owner::worker(1)).is_empty());
    }

    #[test]
    fn connections_above_a_lowered_limit_count_until_they_end() {
        let scoreboard = scoreboard(5);
        let mut held: Vec<_> =
            std::iter::from_fn(|| Slot::claim(scoreboard, Owner::worker(1)).ok()).collect();
        scoreboard.set_limit(2);
        held.remove(0);
        assert_eq!(
            Slot::claim(scoreboard, Owner::worker(1)).unwrap_err(),
            NoSlot::OverLoweredLimit,
            "four live, two allowed"
        );
        held.drain(..3);
        assert!(Slot::claim(scoreboard, Owner::worker(1)).is_ok(), "one live, two allowed");
        drop(held);
        let all: Vec<_> = std::iter::from_fn(|| Slot::claim(scoreboard, Owner::worker(1)).ok()).collect();
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn a_raised_limit_admits_more() {
        let scoreboard = scoreboard(1);
        let _first = Slot::claim(scoreboard, Owner::worker(1)).unwrap();
        scoreboard.set_limit(2);
        assert!(Slot::claim(scoreboard, Owner::worker(1)).is_ok());
    }

    #[test]
    fn who_waits_is_woken() {
        let scoreboard = scoreboard(1);
        let slot = Slot::claim(scoreboard, Owner::worker(1)).unwrap();
        let rung = || {
            let mut fds = [libc_pollfd(scoreboard.slot_freed())];
            nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap()
        };
        scoreboard.forget_wakings();
        scoreboard.want();
        assert!(Slot::claim(scoreboard, Owner::worker(2)).is_err());
        drop(slot);
        assert_eq!(rung(), 1);
    }

    impl Scoreboard {
        fn forget_wakings(&self) {
            let mut eight = [0; 8];
            let _ = nix::unistd::read(self.slot_freed(), &mut eight);
        }
    }

    fn libc_pollfd(fd: BorrowedFd<'_>) -> nix::poll::PollFd<'_> {
        nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)
    }

    #[test]
    fn a_row_outlives_its_worker() {
        let scoreboard = scoreboard(4);
        let unix = Peer::Unix(Some(PeerCredentials { pid: 7, uid: 1000, gid: u32::MAX }));
        let ip = |text: &str| Peer::Ip(text.parse().unwrap());
        let header = ProxyHeader { length: 107, names_client: true, called: None };
        for peer in [ip("192.0.2.1:80"), ip("[2001:db8::7]:443"), unix, Peer::Unix(None)] {
            for header in [None, Some(header), Some(ProxyHeader { names_client: false, ..header })] {
                let slot = Slot::claim(scoreboard, Owner::worker(9)).unwrap();
                let row = || scoreboard.held_by(Owner::worker(9))[0];
                assert_eq!((row().state(), row().pid, row().connection), (RowState::Claimed, None, None));
                slot.pid_word().unwrap().store(77, SeqCst);
                assert_eq!(row().state(), RowState::Spare);
                let client = Client {
                    peer,
                    accepted: Monotonic::from_nanos(7),
                    header,
                    is_exempt: false,
                    listener: 0,
                };
                let connection = Connection { number: 42, client, until: Monotonic::NEVER };
                slot.note(Some(&connection));
                assert_eq!((row().state(), row().connection), (RowState::Serving, Some(connection)));
                let overdue = Overdue { cause: EndCause::Operator, kill_at: Monotonic::from_nanos(9) };
                slot.note_overdue(overdue);
                assert_eq!((row().state(), row().overdue), (RowState::Ending, Some(overdue)));
                slot.note(None);
                assert_eq!((row().state(), row().overdue), (RowState::Spare, None));
            }
        }
    }

    #[test]
    fn who_adopts_a_slot_gives_it_back() {
        let scoreboard = scoreboard(1);
        let slot = Slot::claim(scoreboard, Owner::worker(9)).unwrap();
        let adopted = Slot::adopt(scoreboard, slot.index());
        // Its worker is dead, and drops nothing.
        let _slot = std::mem::ManuallyDrop::new(slot);
        assert!(scoreboard.held_by(Owner::worker(9)).is_empty());
        assert_eq!(scoreboard.held_by(Owner::SUPERVISOR).len(), 1);
        drop(adopted);
        assert!(Slot::claim(scoreboard, Owner::worker(9)).is_ok());
    }
}
