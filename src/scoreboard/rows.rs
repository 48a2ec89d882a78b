//! The scoreboard of a service: who holds which of its `max_connections` slots.
//!
//! A slot is taken by one compare-and-swap that also says who took it, and given back by one store. So a worker can be
//! killed between any two instructions: what it held is still marked as its own, and the supervisor finds it. Connection
//! processes do not have this memory. All that is read here is input: another process may have written anything.
//!
//! The scoreboard is as large as the largest limit, in a sparse file, so that a reload can change the limit in place.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use crate::admission::sources::{MAX_SLOTS, SlotIndex, Source, Sources};
use crate::client::Client;
use crate::sys::memory::{self, AtomicU32, AtomicU64, Mapping};
use crate::sys::wait::Pid;

const SLOTS: usize = MAX_SLOTS as usize;
const OWNERS: usize = 4096;
const PIDS: usize = OWNERS + SLOTS * 4;
const CALLERS: usize = PIDS + SLOTS * 4;
const CALLER_WORDS: usize = 8;
const LENGTH: usize = CALLERS + SLOTS * CALLER_WORDS * 8;

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

/// The scoreboard, mapped.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    memory: Mapping,
    bell: OwnedFd,
    sources: Sources,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSlot {
    /// All are taken. [`Scoreboard::want`] and try once more, then wait for the bell.
    Full,
    /// The limit was lowered and connections above it still live. Try again a little later.
    OverLoweredLimit,
}

/// SlotIndex of a word in the header.
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
    /// A new scoreboard without a free slot, and its memory file to hand to workers.
    pub(crate) fn create(sources: Sources) -> io::Result<(Scoreboard, OwnedFd)> {
        let file = memory::create(c"preforkd-board", LENGTH)?;
        let scoreboard = Scoreboard::open(file.as_fd(), memory::event()?, sources)?;
        Ok((scoreboard, file))
    }

    /// The scoreboard in `file`, whose `bell` rings when a slot is freed that somebody waits for. Who gives a slot back is
    /// counted in `sources` no more.
    pub(crate) fn open(file: BorrowedFd<'_>, bell: OwnedFd, sources: Sources) -> io::Result<Scoreboard> {
        Ok(Scoreboard { memory: Mapping::new(file, LENGTH)?, bell, sources })
    }

    /// What is known of the sources of its connections.
    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Counts every connection of `owner` for the source that `source_of` says, after the configuration has changed.
    pub(crate) fn recount(&self, owner: Owner, source_of: impl Fn(&Client) -> Option<Source>) {
        for (place, _, client) in self.held_by(owner) {
            if let Some(source) = source_of(&client).filter(|_| client.number != 0) {
                // Numbers alone repeat: each worker has its own.
                let still = || self.is_held_by(place, owner) && self.client(place.index()) == client;
                self.sources.move_to(place, source, still);
            }
        }
    }

    fn is_held_by(&self, place: SlotIndex, owner: Owner) -> bool {
        self.owners().get(place.index() as usize).is_some_and(|word| word.load(SeqCst) == owner.0)
    }

    /// An eventfd that becomes readable, by a new edge, whenever a slot is freed after [`Scoreboard::want`]. It is never
    /// read, so that everybody who waits sees every edge.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Wakes all who wait for a slot, whether or not there is one: for a worker that may have died before it rang.
    pub(crate) fn ring(&self) {
        memory::ring(self.bell());
    }

    /// Changes the limit. Connections above a lowered one go on; nobody is admitted until they have ended.
    pub(crate) fn set_limit(&self, limit: u32) {
        self.word(Word::Limit).store(limit.min(MAX_SLOTS), SeqCst);
        self.ring();
    }

    /// Asks for the bell. To be followed by another [`Scoreboard::claim`], since a slot may have been freed before.
    pub(crate) fn want(&self) {
        self.word(Word::Wanted).store(1, SeqCst);
    }

    /// Takes a slot for `owner` if fewer than the limit are taken.
    pub(crate) fn claim(&'static self, owner: Owner) -> Result<Slot, NoSlot> {
        loop {
            let limit = self.limit();
            let index = self.claim_below(limit, owner).ok_or(NoSlot::Full)?;
            // The limit may have been lowered meanwhile.
            if index >= self.limit() {
                self.clear(index);
            } else if self.fits(limit) {
                return Ok(Slot { scoreboard: self, index });
            } else {
                // Without the bell: it would ring for the client itself, again and again.
                self.clear(index);
                return Err(NoSlot::OverLoweredLimit);
            }
        }
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
        let top = self.word(Word::Top).load(SeqCst).min(MAX_SLOTS);
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

    /// The processes that live, or have ended and are not reaped yet, of whatever worker.
    pub(crate) fn processes(&self) -> Processes {
        let mut processes = Processes::default();
        let top = self.word(Word::Top).load(SeqCst).min(MAX_SLOTS);
        for (index, (owner, pid)) in (0..top).zip(self.owners().iter().zip(self.pids())) {
            if owner.load(SeqCst) != 0 && pid.load(SeqCst) != 0 {
                match self.number(index) {
                    0 => processes.spares += 1,
                    _ => processes.connections += 1,
                }
            }
        }
        processes
    }

    fn number(&self, index: u32) -> u64 {
        self.caller_words(index).first().map_or(0, |number| number.load(SeqCst))
    }

    /// Notes who has called the process in this slot.
    pub(crate) fn note(&self, place: SlotIndex, client: &Client) {
        self.write_note(place.index(), client);
    }

    /// The slots that `owner` holds: index, pid if a process was made, and what was noted about it.
    pub(crate) fn held_by(&self, owner: Owner) -> Vec<(SlotIndex, Option<Pid>, Client)> {
        // Not beyond the top: reading a hole of the file would fill it.
        (0..self.word(Word::Top).load(SeqCst).min(MAX_SLOTS))
            .zip(self.owners().iter().zip(self.pids()))
            .filter(|(_, (word, _))| word.load(SeqCst) == owner.0)
            .map(|(index, (_, pid))| {
                let pid = Pid::try_from(pid.load(SeqCst)).ok().filter(|&pid| pid > 1);
                (SlotIndex::at(index), pid, self.client(index))
            })
            .collect()
    }

    /// Moves a slot from a dead worker to `to`, who gives it back by [`Scoreboard::release`].
    pub(crate) fn hand_on(&self, place: SlotIndex, to: Owner) {
        if let Some(owner) = self.owners().get(place.index() as usize) {
            owner.store(to.0, SeqCst);
        }
    }

    /// Gives a slot back.
    pub(crate) fn release(&self, place: SlotIndex) {
        self.clear(place.index());
        self.word(Word::Hint).store(place.index(), SeqCst);
        if self.word(Word::Wanted).swap(0, SeqCst) != 0 {
            self.ring();
        }
    }

    /// The owner goes last: a slot that has one belongs to it.
    fn clear(&self, index: u32) {
        if let (Some(owner), Some(pid)) = (self.owners().get(index as usize), self.pids().get(index as usize))
        {
            self.caller_words(index).iter().take(1).for_each(|number| number.store(0, SeqCst));
            self.sources.leave(SlotIndex::at(index));
            pid.store(0, SeqCst);
            owner.store(0, SeqCst);
        }
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

    fn caller_words(&self, index: u32) -> &[AtomicU64] {
        self.memory.long_words(CALLERS + index as usize * CALLER_WORDS * 8, CALLER_WORDS)
    }

    fn write_note(&self, index: u32, client: &Client) {
        // The number goes last: with it the note counts.
        for (place, word) in self.caller_words(index).iter().zip(client.to_words()).rev() {
            place.store(word, SeqCst);
        }
    }

    fn client(&self, index: u32) -> Client {
        let mut words = [0; Client::WORDS];
        for (word, place) in words.iter_mut().zip(self.caller_words(index)) {
            *word = place.load(SeqCst);
        }
        Client::from_words(words)
    }
}

/// What [`Scoreboard::processes`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Processes {
    /// That have a connection.
    pub(crate) connections: u32,
    /// That wait for one.
    pub(crate) spares: u32,
}

/// A slot that this process holds; it gives itself back. It borrows the scoreboard for ever, and counts no references: a
/// count would be a page that parent and child both write.
#[derive(Debug)]
pub(crate) struct Slot {
    scoreboard: &'static Scoreboard,
    index: u32,
}

impl Slot {
    /// Where fork is to write the pid of the connection process.
    pub(crate) fn pid_word(&self) -> Option<&AtomicI32> {
        self.scoreboard.memory.signed_word(PIDS + self.index as usize * 4)
    }

    /// Notes who the connection is, for the time after this process.
    pub(crate) fn note(&self, client: &Client) {
        self.scoreboard.write_note(self.index, client);
    }

    /// Which one it is.
    pub(crate) fn place(&self) -> SlotIndex {
        SlotIndex::at(self.index)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.scoreboard.release(self.place());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{Peer, PeerCredentials};

    fn scoreboard(limit: u32) -> &'static Scoreboard {
        let (scoreboard, _file) = Scoreboard::create(Sources::create().unwrap().0).unwrap();
        scoreboard.set_limit(limit);
        Box::leak(Box::new(scoreboard))
    }

    #[test]
    fn no_more_slots_than_the_limit_and_each_comes_back() {
        let scoreboard = scoreboard(3);
        let mut held: Vec<_> = std::iter::from_fn(|| scoreboard.claim(Owner::worker(1)).ok()).collect();
        assert_eq!(held.len(), 3);
        held.remove(1);
        held.extend(scoreboard.claim(Owner::worker(2)));
        assert_eq!(held.len(), 3);
        assert!(scoreboard.claim(Owner::worker(1)).is_err());
        assert_eq!(scoreboard.held_by(Owner::worker(1)).len(), 2);
        drop(held);
        assert!(scoreboard.held_by(Owner::worker(1)).is_empty());
    }

    #[test]
    fn connections_above_a_lowered_limit_count_until_they_end() {
        let scoreboard = scoreboard(5);
        let mut held: Vec<_> = std::iter::from_fn(|| scoreboard.claim(Owner::worker(1)).ok()).collect();
        scoreboard.set_limit(2);
        held.remove(0);
        assert_eq!(
            scoreboard.claim(Owner::worker(1)).unwrap_err(),
            NoSlot::OverLoweredLimit,
            "four live, two allowed"
        );
        held.drain(..3);
        assert!(scoreboard.claim(Owner::worker(1)).is_ok(), "one live, two allowed");
        drop(held);
        let all: Vec<_> = std::iter::from_fn(|| scoreboard.claim(Owner::worker(1)).ok()).collect();
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn a_raised_limit_admits_more() {
        let scoreboard = scoreboard(1);
        let _first = scoreboard.claim(Owner::worker(1)).unwrap();
        scoreboard.set_limit(2);
        assert!(scoreboard.claim(Owner::worker(1)).is_ok());
    }

    #[test]
    fn who_waits_hears_the_bell() {
        let scoreboard = scoreboard(1);
        let slot = scoreboard.claim(Owner::worker(1)).unwrap();
        let rung = || {
            let mut fds = [libc_pollfd(scoreboard.bell())];
            nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap()
        };
        scoreboard.bell_is_silent();
        scoreboard.want();
        assert!(scoreboard.claim(Owner::worker(2)).is_err());
        drop(slot);
        assert_eq!(rung(), 1);
    }

    impl Scoreboard {
        fn bell_is_silent(&self) {
            let mut eight = [0; 8];
            let _ = nix::unistd::read(self.bell(), &mut eight);
        }
    }

    fn libc_pollfd(fd: BorrowedFd<'_>) -> nix::poll::PollFd<'_> {
        nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)
    }

    #[test]
    fn a_note_outlives_its_worker() {
        let scoreboard = scoreboard(4);
        let unix = Peer::Unix(Some(PeerCredentials { pid: 7, uid: 1000, gid: u32::MAX }));
        let ip = |text: &str| Peer::Ip(text.parse().unwrap());
        for peer in [ip("192.0.2.1:80"), ip("[2001:db8::7]:443"), unix, Peer::Unix(None)] {
            let slot = scoreboard.claim(Owner::worker(9)).unwrap();
            let client = Client { number: 42, accepted_usec: 7, peer };
            slot.note(&client);
            let (_, pid, found) = scoreboard.held_by(Owner::worker(9))[0];
            assert_eq!((pid, found), (None, client));
        }
    }
}
