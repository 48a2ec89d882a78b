//! A time for each of many sources, in a table that never grows.
//!
//! A source whose time has passed needs no place; when all places that it could have are taken, the one whose time
//! passes first is forgotten. So newcomers always find a place, and who has most to wait for is forgotten last: an
//! attacker with more prefixes than places loses what each of them would have to wait, a little early, and he had
//! a fresh prefix anyway.

use std::sync::atomic::Ordering::SeqCst;

use super::members::FLAGS;
use crate::sys::memory::{AtomicU64, Mapping};
use crate::sys::time::Monotonic;

/// How often one looks for a place.
const TRIES: u32 = 16;

/// In the word of a key, whose lowest bit is 0: it is not decided whether the source gets this place.
const MARK: u64 = 1;

/// The bits of a key, above that, which a mark has not: who finds his own mark must not take another's for it.
const MARK_BITS: u64 = 0xfffe;

fn mark(key: u64, now: Monotonic) -> u64 {
    key & !MARK_BITS | now.nanos() << 1 & MARK_BITS | MARK
}

fn is_mark_of(word: u64, key: u64) -> bool {
    word & MARK != 0 && (word ^ key) & !(MARK_BITS | MARK) == 0
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeTable<'a>(&'a [AtomicU64]);

/// Words of a set: its keys, then their times.
const SET: usize = 2 * TimeTable::WAYS;

impl<'a> TimeTable<'a> {
    /// Places that a source can have; their keys are one cache line, their times the next.
    pub(crate) const WAYS: usize = 8;

    /// In bytes.
    pub(crate) const fn length(sets: usize) -> usize {
        sets * SET * size_of::<u64>()
    }

    pub(crate) fn at(memory: &'a Mapping, offset: usize, sets: usize) -> Self {
        TimeTable(memory.long_words(offset, sets * SET))
    }

    fn set(&self, key: u64) -> impl Iterator<Item = (usize, &'a AtomicU64, &'a AtomicU64)> {
        let number = (key / (FLAGS + 1)) as usize % (self.0.len() / SET).max(1);
        places(number, self.0.get(number * SET..(number + 1) * SET).unwrap_or_default())
    }

    /// The place of a source, if it has one.
    pub(crate) fn find(&self, key: u64) -> Option<(usize, &'a AtomicU64)> {
        let mut set = self.set(key);
        set.find(|(_, other, _)| other.load(SeqCst) == key).map(|(index, _, time)| (index, time))
    }

    /// The place of a source, or a new one. `None` if others took it each time.
    ///
    /// A place is marked until its source can have no other: of two who hear of a source at the same time, the one that
    /// marks later sees the mark of the other, and takes it away, or sees that it has come too late.
    pub(crate) fn claim(&self, key: u64, now: Monotonic) -> Option<(usize, &'a AtomicU64)> {
        for _ in 0..TRIES {
            if let Some(found) = self.find(key) {
                return Some(found);
            }
            // The key before the time, or that could be what another has written for its source since.
            let seen = self.set(key).map(|place| (place, place.1.load(SeqCst), place.2.load(SeqCst)));
            let ((index, place, time), other, until) = seen.min_by_key(|(.., until)| *until)?;
            let mark = mark(key, now);
            if other == key || place.compare_exchange(other, mark, SeqCst, SeqCst).is_err() {
                continue;
            }
            if until > now.nanos() {
                let _ = time.compare_exchange(until, 0, SeqCst, SeqCst);
            }
            if self.has_no_other(key, index) && place.compare_exchange(mark, key, SeqCst, SeqCst).is_ok() {
                return Some((index, time));
            }
            let _ = place.compare_exchange(mark, 0, SeqCst, SeqCst);
            std::thread::yield_now();
        }
        None
    }

    /// Whether a source has no place but this one. Takes away the marks of others, who may be dead.
    fn has_no_other(&self, key: u64, index: usize) -> bool {
        let mut others = self.set(key).filter(|(other, ..)| *other != index);
        others.all(|(_, place, _)| match place.load(SeqCst) {
            word if word == key => false,
            word if is_mark_of(word, key) => place.compare_exchange(word, 0, SeqCst, SeqCst).is_ok(),
            _ => true,
        })
    }

    /// All that have a place: where, the key, and the time.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (usize, u64, &'a AtomicU64)> {
        let sets = self.0.chunks_exact(SET).enumerate();
        let all = sets.flat_map(|(number, set)| places(number, set));
        let all = all.map(|(index, key, time)| (index, key.load(SeqCst), time));
        all.filter(|(_, key, _)| *key != 0 && key & MARK == 0)
    }
}

/// The places of a set, each with its number in the table.
fn places(number: usize, set: &[AtomicU64]) -> impl Iterator<Item = (usize, &AtomicU64, &AtomicU64)> {
    let (keys, times) = set.split_at(set.len() / 2);
    keys.iter().zip(times).zip(number * TimeTable::WAYS..).map(|((key, time), index)| (index, key, time))
}
