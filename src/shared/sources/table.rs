//! A time for each of many sources, in a table that never grows.
//!
//! A source whose time has passed needs no place; when all places that it could have are taken, the one whose time
//! passes first is forgotten. So newcomers always find a place, and who has most to wait for is forgotten last: an
//! attacker with more prefixes than places loses what each of them would have to wait, a little early, and he had
//! a fresh prefix anyway.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::Nanos;
use crate::sys::memory::Mapping;

/// How often one looks for a place.
const TRIES: u32 = 16;

#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    keys: &'a [AtomicU64],
    times: &'a [AtomicU64],
    sets: usize,
}

impl<'a> Table<'a> {
    /// Places that a source can have; their keys are one cache line.
    pub(super) const WAYS: usize = 8;

    /// In bytes. `sets` is a power of two.
    pub(super) const fn length(sets: usize) -> usize {
        sets * Self::WAYS * 16
    }

    pub(super) fn at(memory: &'a Mapping, offset: usize, sets: usize) -> Self {
        let places = sets * Self::WAYS;
        let keys = memory.long_words(offset, places);
        Table { keys, times: memory.long_words(offset + places * 8, places), sets }
    }

    fn set(&self, key: u64) -> impl Iterator<Item = (usize, &'a AtomicU64, &'a AtomicU64)> {
        let start = (key >> 1) as usize % self.sets * Self::WAYS;
        let range = start..start + Self::WAYS;
        let part = |words: &'a [AtomicU64]| words.get(range.clone()).unwrap_or_default();
        let (keys, times) = (part(self.keys), part(self.times));
        keys.iter().zip(times).zip(start..).map(|((key, time), index)| (index, key, time))
    }

    /// The place of a source, if it has one.
    pub(super) fn find(&self, key: u64) -> Option<(usize, &'a AtomicU64)> {
        let mut set = self.set(key);
        set.find(|(_, other, _)| other.load(SeqCst) == key).map(|(index, _, time)| (index, time))
    }

    /// The place of a source, or a new one. `None` if others took it each time.
    pub(super) fn claim(&self, key: u64, now: Nanos) -> Option<(usize, &'a AtomicU64)> {
        for _ in 0..TRIES {
            if let Some(found) = self.find(key) {
                return Some(found);
            }
            let (index, place, time) = self.set(key).min_by_key(|(_, _, time)| time.load(SeqCst))?;
            let (other, until) = (place.load(SeqCst), time.load(SeqCst));
            if place.compare_exchange(other, key, SeqCst, SeqCst).is_err() {
                continue;
            }
            if until > now {
                let _ = time.compare_exchange(until, 0, SeqCst, SeqCst);
            }
            // Somebody else may have found another place for it at the same time.
            if self.set(key).all(|(other, place, _)| other == index || place.load(SeqCst) != key) {
                return Some((index, time));
            }
            let _ = place.compare_exchange(key, 0, SeqCst, SeqCst);
            std::thread::yield_now();
        }
        None
    }

    /// All that have a place: where, the key, and the time.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, u64, &'a AtomicU64)> {
        let places = self.keys.iter().zip(self.times).enumerate();
        places.map(|(index, (key, time))| (index, key.load(SeqCst), time)).filter(|(_, key, _)| *key != 0)
    }
}
