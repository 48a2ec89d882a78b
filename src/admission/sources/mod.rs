//! Which sources are there: live connections of each, its tokens, its penalties. One memory for a whole service, so that
//! all is exact over its workers and spares.
//!
//! Nobody holds a lock, and everybody may be killed between any two instructions. Live connections are counted by what
//! is written in their slots ([`members`]); a count beside it only tells when it is worth counting. Tokens and penalties
//! are times in tables of fixed size ([`table`]), one word each.
//!
//! A spare has this memory until it is called; only a process that serves several connections keeps it. It is input: a
//! number out of it can make a source wait, never longer than its limits say, and is no index.

mod members;
mod slot;
mod table;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::SourceName;
use crate::sys::memory::{self, AtomicU64, Mapping};
use crate::sys::time::{Monotonic, nanos};
use members::Members;
use table::TimeTable;

pub(crate) use members::Full;
pub(crate) use slot::{MAX_SLOTS, SlotIndex};

/// Where the parts are.
const SECRET: usize = 0;
const MEMBERS: usize = 4096;
const TOKENS: usize = MEMBERS + Members::LENGTH;
const PENALTIES: usize = TOKENS + TimeTable::length(TOKEN_SETS);
const NAMES: usize = PENALTIES + TimeTable::length(PENALTY_SETS);
const LENGTH: usize = NAMES + PENALTY_SETS * TimeTable::WAYS * NAME_WORDS * 8;

/// Sources that have used up part of their burst; the memory is taken only when there are so many.
const TOKEN_SETS: usize = if cfg!(miri) { 1 << 5 } else { 1 << 17 };

/// Sources that have a penalty.
const PENALTY_SETS: usize = if cfg!(miri) { 1 << 5 } else { 1 << 13 };

/// The name of a source that has one.
const NAME_WORDS: usize = 3;

/// The memory, mapped.
#[derive(Debug)]
pub(crate) struct Sources(Mapping);

/// A source under this memory's secret, so that nobody can choose addresses that meet in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    /// Never 0, and its lowest bits are.
    key: u64,
    name: SourceName,
}

/// A token bucket, as an interval: the generic cell rate algorithm (ITU-T I.371). It needs one time for each source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// From one token to the next.
    pub(crate) interval: Duration,
    /// How many it holds; at least 1.
    pub(crate) burst: u32,
}

/// Set in a penalty's time when it has grown so long that the source is to wait.
const WAITS: u64 = 1;

impl Sources {
    /// New and empty, and its memory file to hand on.
    pub(crate) fn create() -> io::Result<(Sources, OwnedFd)> {
        let file = memory::create(c"preforkd-sources", LENGTH)?;
        let sources = Sources::open(file.as_fd())?;
        for word in sources.0.long_words(SECRET, 2) {
            // Its keys are from getrandom(2).
            word.store(RandomState::new().build_hasher().finish(), SeqCst);
        }
        Ok((sources, file))
    }

    /// Those in `file`.
    pub(crate) fn open(file: BorrowedFd<'_>) -> io::Result<Sources> {
        Mapping::new(file, LENGTH).map(Sources)
    }

    /// A source by its name.
    pub(crate) fn source(&self, name: SourceName) -> Source {
        let mut hasher = match self.0.long_words(SECRET, 2) {
            [one, other] => SipHasher13::new_with_keys(one.load(SeqCst), other.load(SeqCst)),
            _ => SipHasher13::new(),
        };
        // Of each kind another number of bytes, so that no two are hashed alike.
        match name {
            SourceName::Prefix(prefix) => {
                match prefix.network() {
                    IpAddr::V4(ip) => hasher.write_u32(ip.to_bits()),
                    IpAddr::V6(ip) => hasher.write_u128(ip.to_bits()),
                }
                hasher.write_u8(prefix.length());
            }
            SourceName::User(uid) => hasher.write_u64(uid.into()),
            SourceName::UnknownUser => hasher.write_u8(0),
        }
        Source { key: (hasher.finish() & !members::FLAGS).max(members::FLAGS + 1), name }
    }

    /// Counts the connection in this slot for its source, if that has fewer than `limit`.
    pub(crate) fn enter(&self, place: SlotIndex, source: Source, limit: u32) -> Result<(), Full> {
        self.members().enter(place.index(), source.key, limit)
    }

    /// Counts the connection in this slot for nobody any more.
    pub(crate) fn leave(&self, place: SlotIndex) {
        self.members().leave(place.index());
    }

    /// Counts it for another source, or for one at all; the configuration has changed. `still` tells whether the slot
    /// still has the same connection.
    pub(crate) fn move_to(&self, place: SlotIndex, source: Source, still: impl Fn() -> bool) {
        self.members().move_to(place.index(), source.key, still);
    }

    /// How many connections are counted for a source, whichever.
    pub(crate) fn counted(&self) -> u32 {
        self.members().count()
    }

    /// Takes a token, if there is one. `clock` tells the present, not when the connection was accepted: who has kept
    /// somebody waiting since must not turn the time back for all. Who finds no place for his time gets none.
    pub(crate) fn take_token(&self, source: Source, bucket: Bucket, clock: impl Fn() -> Monotonic) -> bool {
        let Some((_, time)) = self.tokens().claim(source.key, clock()) else { return false };
        let mut taken = false;
        let _ = time.fetch_update(SeqCst, SeqCst, |time| {
            // After the word was read. Whoever wrote it had an earlier time, so what is beyond a full bucket was written
            // when the rate was another, and only that is taken back.
            let now = clock().nanos();
            let full = now.saturating_add(nanos(bucket.interval).saturating_mul(bucket.burst.into()));
            let from = time.clamp(now, full);
            let to = from.saturating_add(nanos(bucket.interval));
            taken = to <= full;
            if taken { Some(to) } else { (from < time).then_some(from) }
        });
        taken
    }

    /// Whether a source has to wait for the end of its penalty.
    pub(crate) fn waits(&self, source: Source, now: Monotonic) -> bool {
        let penalty = self.penalties().find(source.key);
        penalty.is_some_and(|(_, time)| is_waiting(time.load(SeqCst), now.nanos()))
    }

    /// How many sources have to. The table is read from end to end, so who knows that there are none does not ask.
    pub(crate) fn waiting(&self, now: Monotonic) -> u32 {
        let is_waiting = |time: u64| is_waiting(time, now.nanos());
        let waiting = self.penalties().entries().filter(|(.., time)| is_waiting(time.load(SeqCst))).count();
        u32::try_from(waiting).unwrap_or(u32::MAX)
    }

    /// Adds to a source's penalty, up to `longest`; from `threshold` on, all in nanoseconds, it waits until the penalty
    /// has gone. Returns how long it waits from now, if it did not before.
    pub(crate) fn punish(
        &self,
        source: Source,
        penalty: &Penalty,
        clock: impl Fn() -> Monotonic,
    ) -> Punished {
        let Some((index, time)) = self.penalties().claim(source.key, clock()) else {
            return Punished::default();
        };
        let mut punished = Punished::default();
        let _ = time.fetch_update(SeqCst, SeqCst, |time| {
            // As for tokens.
            let now = clock().nanos();
            let longest = now.saturating_add(nanos(penalty.longest));
            let until = time.clamp(now, longest).saturating_add(nanos(penalty.amount)).min(longest);
            let waited = is_waiting(time, now);
            let waits = waited || until - now >= nanos(penalty.threshold);
            punished = Punished { total: Duration::from_nanos(until - now), waits, waited };
            Some(if waits { until | WAITS } else { until & !WAITS })
        });
        self.note_name(index, source.name);
        punished
    }

    /// Forgets the penalties of all sources that `which` picks; returns them.
    pub(crate) fn forgive(&self, now: Monotonic, which: impl Fn(SourceName) -> bool) -> Vec<SourceName> {
        let mut forgiven = Vec::new();
        for (index, key, time) in self.penalties().entries() {
            let until = time.load(SeqCst);
            let Some(name) = self.name_at(index).filter(|_| until > now.nanos()) else { continue };
            // It may be another's already.
            if self.source(name).key == key && which(name) {
                time.store(0, SeqCst);
                forgiven.push(name);
            }
        }
        forgiven
    }

    fn members(&self) -> Members<'_> {
        Members::at(&self.0, MEMBERS)
    }

    fn tokens(&self) -> TimeTable<'_> {
        TimeTable::at(&self.0, TOKENS, TOKEN_SETS)
    }

    fn penalties(&self) -> TimeTable<'_> {
        TimeTable::at(&self.0, PENALTIES, PENALTY_SETS)
    }

    fn name_words(&self, index: usize) -> &[AtomicU64] {
        self.0.long_words(NAMES + index * NAME_WORDS * 8, NAME_WORDS)
    }

    fn note_name(&self, index: usize, name: SourceName) {
        for (place, word) in self.name_words(index).iter().zip(name.to_words()) {
            place.store(word, SeqCst);
        }
    }

    fn name_at(&self, index: usize) -> Option<SourceName> {
        let [kind, high, low] = self.name_words(index) else { return None };
        SourceName::from_words([kind, high, low].map(|word| word.load(SeqCst)))
    }
}

fn is_waiting(time: u64, now: u64) -> bool {
    time & WAITS != 0 && time > now
}

/// What one offence costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Penalty {
    /// How long.
    pub(crate) amount: Duration,
    /// How much has to come together before the source waits.
    pub(crate) threshold: Duration,
    /// How much can come together.
    pub(crate) longest: Duration,
}

/// What an offence has led to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Punished {
    /// All that has come together.
    pub(crate) total: Duration,
    /// The source waits until it has gone.
    pub(crate) waits: bool,
    /// It did so before.
    pub(crate) waited: bool,
}

#[cfg(test)]
mod tests;
