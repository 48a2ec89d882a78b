//! Having a lock, so that the kernel knows it.

use std::marker::PhantomData;
use std::sync::atomic::Ordering::Relaxed;

use super::atomic::{AtomicU32, AtomicU64};
use super::error::SharedError;
use super::event::Event;
use super::word::{self, Patience};
use crate::sys::robust::{ENTRY_OF_WORD, Seat, with_seat};

/// A lock in shared memory, without what it guards.
#[derive(Debug, Clone, Copy)]
pub(super) struct LockWord {
    pub(super) word: &'static AtomicU32,
    /// In the kernel's list of what a thread has; [`ENTRY_OF_WORD`] bytes behind the word.
    pub(super) entry: &'static AtomicU64,
    /// How often an owner of any lock of this memory has died.
    pub(super) deaths: &'static AtomicU64,
    /// Who has a lock takes only those of higher rank.
    pub(super) rank: u64,
    pub(super) name: &'static str,
}

/// A lock that this thread has, until this is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    word: &'static AtomicU32,
    entry: &'static AtomicU64,
    thread: u32,
    /// Of this thread only.
    _here: PhantomData<*mut ()>,
}

impl LockWord {
    /// Takes the lock. Whether its last owner died.
    pub(super) fn lock(&self, patience: Patience) -> Result<(Hold, bool), SharedError> {
        with_seat(|seat| self.lock_in(seat, patience))?
    }

    /// As [`LockWord::lock`], but who has anything is refused: it is going to wait for others.
    pub(super) fn lock_alone(&self, patience: Patience) -> Result<(Hold, bool), SharedError> {
        with_seat(|seat| match seat.highest() {
            Some(_) if patience != Patience::Never => Err(SharedError::Order { name: self.name }),
            _ => self.lock_in(seat, patience),
        })?
    }

    fn lock_in(&self, seat: &Seat, patience: Patience) -> Result<(Hold, bool), SharedError> {
        if seat.highest().is_some_and(|highest| highest >= self.rank) {
            return Err(SharedError::Order { name: self.name });
        }
        if seat.is_full() {
            return Err(SharedError::TooMany);
        }
        seat.take_or_give(self.entry);
        let taken = word::take(self.word, seat.thread(), patience, self.name);
        if taken.is_ok() {
            seat.add(self.entry, self.rank);
        }
        seat.done();
        let died = taken?;
        if died {
            self.deaths.fetch_add(1, Relaxed);
        }
        let hold = Hold { word: self.word, entry: self.entry, thread: seat.thread(), _here: PhantomData };
        Ok((hold, died))
    }
}

impl Hold {
    /// Does something if this thread has the lock: not in a forked child, where it is its parent's.
    pub(super) fn if_mine<R>(&self, work: impl FnOnce(&Seat) -> R) -> Option<R> {
        with_seat(|seat| (seat.thread() == self.thread).then(|| work(seat))).ok().flatten()
    }

    /// Changes something and tells who sleeps for it; who dies in between has told him as well.
    pub(super) fn change_and_ring(&self, event: Event<'_>, change: impl FnOnce()) -> bool {
        let done = self.if_mine(|seat| {
            seat.wake(event.address() + ENTRY_OF_WORD);
            change();
            event.ring();
            seat.done();
        });
        done.is_some()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.if_mine(|seat| {
            seat.take_or_give(self.entry);
            if seat.remove(self.entry) {
                word::give(self.word, self.thread);
            }
            seat.done();
        });
    }
}
