//! The live connections of each source.
//!
//! Beside each slot of the [scoreboard](super::super::scoreboard) stands the source of its connection. What is written there is
//! the count: who dies takes nothing with him, and who buries him clears the slot. To look through all of them for every
//! connection would be slow, so there is a rough count for each of many groups of sources. It is raised before anybody is
//! in and lowered after he is out, so that it may be too high, for ever if somebody was killed in between, and never too
//! low. If not even that reaches the limit, nobody has to look.
//!
//! Everybody writes his slot first, then raises the count, then decides. So of those who are in at any time, the one that
//! was last to raise it has either found all the others in it or seen all their slots, and there were fewer than the
//! limit.

use std::sync::atomic::Ordering::SeqCst;

use super::slot::MAX_SLOTS;
use crate::sys::memory::{AtomicU32, AtomicU64, Mapping};

/// In a slot's word: it is not decided whether it gets in.
const APPLIES: u64 = 1;

/// Beside it: the supervisor counts anew who was there before. Else its word could be taken for that of a newcomer of the same
/// source who has got the slot meanwhile, and be taken back.
const MOVES: u64 = 2;

/// The bits of a slot's word that are not its source's.
pub(crate) const FLAGS: u64 = APPLIES | MOVES;

const SLOTS: usize = MAX_SLOTS as usize;
const GROUPS: usize = if cfg!(miri) { 1 << 10 } else { 1 << 20 };

/// How often one looks again who could not tell because others were about to enter.
const TRIES: u32 = 100;

/// The source has as many as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Members<'a> {
    /// No slot from here on was ever in use.
    top: &'a [AtomicU32],
    slots: &'a [AtomicU64],
    groups: &'a [AtomicU32],
}

const HEAD: usize = 64;

impl<'a> Members<'a> {
    pub(crate) const LENGTH: usize = HEAD + SLOTS * 8 + GROUPS * 4;

    pub(crate) fn at(memory: &'a Mapping, offset: usize) -> Self {
        Members {
            top: memory.words(offset, 1),
            slots: memory.long_words(offset + HEAD, SLOTS),
            groups: memory.words(offset + HEAD + SLOTS * 8, GROUPS),
        }
    }

    pub(crate) fn enter(&self, index: u32, key: u64, limit: u32) -> Result<(), Full> {
        let slot = self.slots.get(index as usize).ok_or(Full)?;
        self.raise_top(index);
        for _ in 0..TRIES {
            slot.store(key | APPLIES, SeqCst);
            let rough = self.raise(key);
            let (members, applicants) = if rough < limit { (0, 0) } else { self.others(index as usize, key) };
            if members.saturating_add(applicants) < limit {
                slot.store(key, SeqCst);
                return Ok(());
            }
            slot.store(0, SeqCst);
            self.lower(key);
            if members >= limit {
                return Err(Full);
            }
            // The rest are about to enter, or not: like this one, each sees the others.
            std::thread::yield_now();
        }
        Err(Full)
    }

    /// The others of a source: who is in, and who applies.
    fn others(&self, index: usize, key: u64) -> (u32, u32) {
        let (mut members, mut applicants) = (0, 0);
        for (other, slot) in self.slots.iter().take(self.top()).enumerate() {
            let word = slot.load(SeqCst);
            if word & !FLAGS == key && other != index {
                members += u32::from(word == key);
                applicants += u32::from(word != key);
            }
        }
        (members, applicants)
    }

    pub(crate) fn leave(&self, index: u32) {
        let Some(slot) = self.slots.get(index as usize) else { return };
        // Without limits nothing was ever written here, and nothing need be.
        if slot.load(SeqCst) != 0 {
            self.lower_for_member(slot.swap(0, SeqCst));
        }
    }

    pub(crate) fn move_to(&self, index: u32, key: u64, still: impl Fn() -> bool) {
        let Some(slot) = self.slots.get(index as usize) else { return };
        let before = slot.load(SeqCst);
        let applies = key | APPLIES | MOVES;
        // Since the caller looked, the slot may have become another's, whose word this is.
        if before & !FLAGS == key
            || !still()
            || slot.compare_exchange(before, applies, SeqCst, SeqCst).is_err()
        {
            return;
        }
        self.raise_top(index);
        self.lower_for_member(before);
        self.raise(key);
        // A slot says that its connection has gone before it leaves: if it has not, it will take our word with it.
        let word = if still() { key } else { 0 };
        let written = slot.compare_exchange(applies, word, SeqCst, SeqCst).is_ok();
        if !written || word == 0 {
            self.lower(key);
        }
    }

    pub(crate) fn count(&self) -> u32 {
        let slots = self.slots.iter().take(self.top()).map(|slot| slot.load(SeqCst));
        slots.filter(|&word| word != 0 && word & APPLIES == 0).count() as u32
    }

    fn top(&self) -> usize {
        self.top.first().map_or(0, |top| top.load(SeqCst) as usize).min(SLOTS)
    }

    fn raise_top(&self, index: u32) {
        if let Some(top) = self.top.first().filter(|top| top.load(SeqCst) <= index) {
            top.fetch_max(index + 1, SeqCst);
        }
    }

    fn group(&self, key: u64) -> Option<&'a AtomicU32> {
        self.groups.get((key / (FLAGS + 1)) as usize % GROUPS)
    }

    /// Returns the rough count before.
    fn raise(&self, key: u64) -> u32 {
        self.group(key).map_or(0, |group| group.fetch_add(1, SeqCst))
    }

    fn lower(&self, key: u64) {
        if let Some(group) = self.group(key) {
            let _ = group.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1));
        }
    }

    /// For what stood in a slot. Who was killed while he applied may have raised the count or not.
    fn lower_for_member(&self, word: u64) {
        if word != 0 && word & APPLIES == 0 {
            self.lower(word);
        }
    }
}

#[cfg(test)]
impl Members<'_> {
    pub(crate) fn apply_and_die(&self, index: u32, key: u64) {
        self.raise_top(index);
        self.slots[index as usize].store(key | APPLIES, SeqCst);
        self.raise(key);
    }
}
