use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use siphasher::sip::SipHasher13;

use super::atomic::AtomicU64;
use super::error::SharedError;
use super::hold::{Hold, LockWord};
use super::lock::{Locked, READS};
use super::pair::Pair;
use super::plain::{self, Plain};
use super::word::Patience;

/// Values by key, of a fixed size, with many locks: processes that change entries with different keys rarely meet.
///
/// Each entry is changed as a [`Lock`](super::Lock) changes its value: beside the live copy, and by one store to memory. So
/// whoever is killed has changed it completely or not at all. Looking up takes no lock and waits for nobody.
///
/// Keys are equal if their bytes are. Where they are in the table follows from a secret that is made with the memory, so
/// strangers who choose keys cannot choose them to meet. The table holds as many entries as it was declared for: of a million
/// tables so full, about one has a part in which there is no room for one entry more.
///
/// A process can have one entry of a table locked at a time. What must change together belongs in one value, or in a
/// [`Lock`](super::Lock).
///
/// May be used in every process and thread; but a worker or supervisor should only look up.
///
/// ```
/// use preforkd::shared::Shared;
///
/// let calls = Shared::new(100, |layout| layout.table::<[u8; 16], u64>("calls", 1000))?;
/// let home = *b"::1\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// calls.update(&home, |calls| *calls = Some(calls.unwrap_or(0) + 1))?;
/// assert_eq!(calls.get(&home)?, Some(1));
/// assert_eq!(calls.iter().count(), 1);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
pub struct Table<K, V> {
    pub(super) places: Option<Places>,
    pub(super) types: PhantomData<fn() -> (K, V)>,
}

/// The memory of a table: parts with a lock each, and places for entries in each part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) rank: u64,
    pub(super) name: &'static str,
    pub(super) deaths: &'static AtomicU64,
    pub(super) secret: (u64, u64),
    /// Of each part, a word and its entry.
    pub(super) locks: Parts,
    pub(super) entries: &'static [AtomicU64],
    pub(super) size: TableSize,
    pub(super) capacity: usize,
}

/// Where the locks of the parts are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) words: &'static [super::atomic::AtomicU32],
    pub(super) entries: &'static [AtomicU64],
}

/// From one lock to the next, in bytes: a line of cache.
pub(super) const LINE: usize = 64;

/// How large a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableSize {
    pub(super) parts: usize,
    /// In each part.
    pub(super) places: usize,
    /// Of each place, in words.
    pub(super) stride: usize,
}

impl TableSize {
    /// For so many entries.
    ///
    /// How many of them fall to one part is as good as Poisson's: a mean, and its root as standard deviation. Six of those and a
    /// few more places are enough for all but one in 10⁹ parts.
    pub(super) fn new(capacity: usize, stride: usize) -> Option<Self> {
        let mean = (capacity / 64).clamp(16, 128);
        let parts = capacity.div_ceil(mean).max(1);
        let places = if parts == 1 { capacity } else { mean + 6 * mean.isqrt() + 14 };
        let size = TableSize { parts, places, stride };
        size.places.checked_mul(parts)?.checked_mul(stride)?.checked_mul(8)?;
        Some(size)
    }

    /// All its entries, in words.
    pub(super) fn words(&self) -> usize {
        self.parts * self.places * self.stride
    }
}

/// The marks of a place: never used since all behind it in its row were; in use; no longer.
const EMPTY: u64 = 0;
const USED: u64 = 1;
const REMOVED: u64 = 2;

/// What stands at a place.
enum AtPlace<K, V> {
    Nothing,
    Removed,
    Pair(K, V),
}

impl<K, V> Default for Table<K, V> {
    /// None yet: [`SharedError::NotYet`].
    fn default() -> Self {
        Table { places: None, types: PhantomData }
    }
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Table<K, V> {}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("name", &self.places.map(|places| places.name)).finish_non_exhaustive()
    }
}

impl Places {
    /// The part where a key belongs, and the first place to look there.
    fn home(&self, key: &[u8]) -> (usize, usize) {
        let hash = SipHasher13::new_with_keys(self.secret.0, self.secret.1).hash(key);
        // The high half chooses the part, the low half the place: both evenly, by multiplication.
        let scale = |half: u64, count: usize| ((half * count as u64) >> 32) as usize;
        (scale(hash >> 32, self.size.parts), scale(hash & u64::from(u32::MAX), self.size.places))
    }

    fn place(&self, part: usize, place: usize) -> Option<Pair<'static>> {
        let at = (part * self.size.places + place) * self.size.stride;
        let (head, copies) = self.entries.get(at..at + self.size.stride)?.split_first()?;
        Some(Pair::new(head, copies))
    }

    /// The places of a part with their numbers, from this on and round.
    fn round(self, part: usize, first: usize) -> impl Iterator<Item = (usize, Pair<'static>)> {
        let count = self.size.places;
        let numbers = (first..count).chain(0..first.min(count));
        numbers.filter_map(move |number| Some((number, self.place(part, number)?)))
    }

    /// Makes places that are no longer used as if they had never been, from this one backwards, if none behind it needs them:
    /// who looks for a key goes on until one that is empty.
    fn tidy(&self, part: usize, last: usize) {
        let count = self.size.places;
        let next = self.place(part, (last + 1) % count);
        if next.is_none_or(|next| next.mark() != EMPTY) {
            return;
        }
        for number in (0..count).map(|back| (last + count - back) % count) {
            match self.place(part, number) {
                Some(place) if place.mark() == REMOVED => place.change(EMPTY, |_| ()),
                _ => break,
            }
        }
    }

    fn lock(&self, part: usize) -> Option<LockWord> {
        Some(LockWord {
            word: self.locks.words.get(part * (LINE / 4))?,
            entry: self.locks.entries.get(part * (LINE / 8) + 1)?,
            deaths: self.deaths,
            rank: self.rank,
            name: self.name,
        })
    }

    fn take(&self, part: usize) -> Result<(Hold, bool), SharedError> {
        self.lock(part).ok_or(SharedError::NotYet)?.lock(Patience::Forever)
    }
}

fn found<K: Plain, V: Plain>(mark: u64, words: &[AtomicU64]) -> AtPlace<K, V> {
    match mark {
        EMPTY => AtPlace::Nothing,
        USED => {
            let (key, value) = words.split_at(plain::words::<K>().min(words.len()));
            AtPlace::Pair(plain::load(key), plain::load(value))
        }
        _ => AtPlace::Removed,
    }
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// The words of one place: what says which copy is live, and two copies of key and value.
    pub(super) const STRIDE: usize = 1 + 2 * (plain::words::<K>() + plain::words::<V>());

    /// The value of a key. Takes no lock.
    ///
    /// # Errors
    ///
    /// [`SharedError::NotYet`]. And if others change an entry again and again while this reads it, it takes a lock, with the errors
    /// of [`Table::lock`].
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// assert_eq!(calls.get(&7)?, None);
    /// calls.insert(&7, 1)?;
    /// assert_eq!(calls.get(&7)?, Some(1));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn get(&self, key: &K) -> Result<Option<V>, SharedError> {
        let places = self.places.ok_or(SharedError::NotYet)?;
        let (part, first) = places.home(key.as_bytes());
        for (_, place) in places.round(part, first) {
            match self.read(&places, part, place)? {
                AtPlace::Nothing => return Ok(None),
                AtPlace::Pair(found, value) if found.as_bytes() == key.as_bytes() => return Ok(Some(value)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Sets the value of a key; the value before.
    ///
    /// # Errors
    ///
    /// [`SharedError::Full`]; else as [`Table::lock`].
    ///
    /// ```
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// assert_eq!(calls.insert(&7, 1)?, None);
    /// assert_eq!(calls.insert(&7, 2)?, Some(1));
    ///
    /// let one = Shared::new(100, |layout| layout.table::<u32, u64>("one", 1))?;
    /// one.insert(&7, 1)?;
    /// assert!(matches!(one.insert(&8, 1), Err(SharedError::Full { name: "one" })));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn insert(&self, key: &K, value: V) -> Result<Option<V>, SharedError> {
        let mut entry = self.lock(key)?.guard();
        let before = entry.replace(value);
        entry.commit()?;
        Ok(before)
    }

    /// Takes a key and its value out; the value.
    ///
    /// # Errors
    ///
    /// As [`Table::lock`].
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// calls.insert(&7, 1)?;
    /// assert_eq!(calls.remove(&7)?, Some(1));
    /// assert_eq!(calls.remove(&7)?, None);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn remove(&self, key: &K) -> Result<Option<V>, SharedError> {
        let mut entry = self.lock(key)?.guard();
        let before = entry.take();
        entry.commit()?;
        Ok(before)
    }

    /// Locks an entry, has `change` change it, commits, and gives the lock back. `None` is no entry, before and after.
    ///
    /// ```
    /// # use preforkd::shared::Shared;
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// calls.update(&7, |calls| *calls = Some(calls.unwrap_or(0) + 1))?;
    /// calls.update(&7, |calls| *calls = None)?;
    /// assert_eq!(calls.get(&7)?, None);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Table::lock`], and [`SharedError::Full`], with which nothing has changed though `change` has been called.
    pub fn update<R>(&self, key: &K, change: impl FnOnce(&mut Option<V>) -> R) -> Result<R, SharedError> {
        let mut entry = self.lock(key)?.guard();
        let result = change(&mut entry);
        entry.commit()?;
        Ok(result)
    }

    /// Locks an entry, present or not, and waits for it as long as that takes. With it are locked those that share its lock.
    ///
    /// That an owner died says that it had one of these.
    ///
    /// # Errors
    ///
    /// [`SharedError::Order`], if this thread holds another entry of this table, or something that was declared after it;
    /// [`SharedError::TooMany`]; [`SharedError::Damaged`]; [`SharedError::NotYet`]; [`SharedError::System`], as [`Lock::lock`](super::Lock::lock).
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// let mut entry = calls.lock(&7)?.guard();
    /// assert_eq!(*entry, None);
    /// *entry = Some(1);
    /// entry.commit()?;
    /// assert_eq!(calls.get(&7)?, Some(1));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn lock(&self, key: &K) -> Result<Locked<TableEntry<K, V>>, SharedError> {
        let places = self.places.ok_or(SharedError::NotYet)?;
        let (part, first) = places.home(key.as_bytes());
        let (hold, died) = places.take(part)?;
        let (mut value, mut its_place, mut free) = (None, None, None);
        for (number, place) in places.round(part, first) {
            match place.own(found::<K, V>) {
                AtPlace::Pair(found, its_value) if found.as_bytes() == key.as_bytes() => {
                    (value, its_place) = (Some(its_value), Some(number));
                    break;
                }
                AtPlace::Pair(..) => {}
                AtPlace::Removed => free = free.or(Some(number)),
                AtPlace::Nothing => {
                    free = free.or(Some(number));
                    break;
                }
            }
        }
        let entry = TableEntry { key: *key, value, place: its_place, free, part, places, hold };
        Ok(Locked::new(entry, died))
    }

    /// All entries, each as it is when its turn comes; what is put in or taken out meanwhile may be among them or not. Takes no lock.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// calls.insert(&7, 1)?;
    /// calls.insert(&8, 3)?;
    /// assert_eq!(calls.iter().map(|(_, calls)| calls).sum::<u64>(), 4);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (K, V)> + use<K, V> {
        let table = *self;
        let parts = table.places.map_or(0, |places| places.size.parts);
        let all = (0..parts).flat_map(move |part| {
            table.places.into_iter().flat_map(move |places| {
                places.round(part, 0).filter_map(move |(_, place)| table.read(&places, part, place).ok())
            })
        });
        all.filter_map(|found| if let AtPlace::Pair(key, value) = found { Some((key, value)) } else { None })
    }

    /// Takes out all entries for which `keep` says no: those that have expired, for example. Locks one part of the table after
    /// the other. How many were taken out.
    ///
    /// ```
    /// # use preforkd::shared::Shared;
    /// let seen = Shared::new(100, |layout| layout.table::<u32, u64>("seen", 1000))?;
    /// seen.insert(&1, 50)?;
    /// seen.insert(&2, 70)?;
    /// assert_eq!(seen.retain(|_, at| at > 60)?, 1);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Table::lock`]; some entries may have been taken out by then.
    pub fn retain(&self, mut keep: impl FnMut(K, V) -> bool) -> Result<u64, SharedError> {
        let places = self.places.ok_or(SharedError::NotYet)?;
        let mut removed = 0;
        for part in 0..places.size.parts {
            let (hold, _) = places.take(part)?;
            for (number, place) in places.round(part, 0) {
                match place.own(found::<K, V>) {
                    AtPlace::Pair(key, value) if !keep(key, value) => {
                        hold.if_mine(|_| {
                            place.change(REMOVED, |_| ());
                            places.tidy(part, number);
                        });
                        removed += 1;
                    }
                    _ => {}
                }
            }
        }
        Ok(removed)
    }

    /// How many entries it was declared for; 0 in the function that declares it.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// assert_eq!(calls.capacity(), 1000);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn capacity(&self) -> u64 {
        self.places.map_or(0, |places| places.capacity as u64)
    }

    fn read(&self, places: &Places, part: usize, place: Pair<'static>) -> Result<AtPlace<K, V>, SharedError> {
        for _ in 0..READS {
            if let Some(found) = place.peek(found::<K, V>) {
                return Ok(found);
            }
        }
        let (_hold, _) = places.take(part)?;
        Ok(place.own(found::<K, V>))
    }
}

/// An entry of a table that is this thread's, with those that share its lock; what this refers to is its own copy of the
/// value, `None` if there is no such entry.
///
/// Dropped without [`commit`](TableEntry::commit), nothing has changed. In a forked child it does nothing: the lock is its
/// parent's. Nor can it go to another thread.
///
/// ```
/// use preforkd::shared::Shared;
///
/// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
/// let mut entry = calls.lock(&7)?.guard();
/// *entry = Some(1);
/// drop(entry);
/// assert_eq!(calls.get(&7)?, None);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
pub struct TableEntry<K, V> {
    key: K,
    value: Option<V>,
    place: Option<usize>,
    /// Where it goes if it is new.
    free: Option<usize>,
    part: usize,
    places: Places,
    hold: Hold,
}

impl<K: Plain, V: Plain> TableEntry<K, V> {
    /// Its key.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// let entry = calls.lock(&7)?.guard();
    /// assert_eq!(entry.key(), &7);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Makes the copy the value, or takes the entry out if it is `None`; gives the lock back.
    ///
    /// # Errors
    ///
    /// [`SharedError::Full`], if it is new and there is no room.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let calls = Shared::new(100, |layout| layout.table::<u32, u64>("calls", 1000))?;
    /// calls.insert(&7, 1)?;
    /// let mut entry = calls.lock(&7)?.guard();
    /// *entry = None;
    /// entry.commit()?;
    /// assert_eq!(calls.iter().count(), 0);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn commit(self) -> Result<(), SharedError> {
        let TableEntry { key, value, place, free, part, places, hold } = self;
        match (value, place, free) {
            (Some(value), Some(number), _) | (Some(value), None, Some(number)) => {
                let place = places.place(part, number).ok_or(SharedError::NotYet)?;
                hold.if_mine(|_| {
                    place.change(USED, |words| {
                        let (key_words, value_words) = words.split_at(plain::words::<K>().min(words.len()));
                        plain::store(key_words, &key);
                        plain::store(value_words, &value);
                    });
                });
            }
            (Some(_), None, None) => return Err(SharedError::Full { name: places.name }),
            (None, Some(number), _) => {
                let place = places.place(part, number).ok_or(SharedError::NotYet)?;
                hold.if_mine(|_| {
                    place.change(REMOVED, |_| ());
                    places.tidy(part, number);
                });
            }
            (None, None, _) => {}
        }
        Ok(())
    }
}

impl<K, V> Deref for TableEntry<K, V> {
    type Target = Option<V>;

    fn deref(&self) -> &Option<V> {
        &self.value
    }
}

impl<K, V> DerefMut for TableEntry<K, V> {
    fn deref_mut(&mut self) -> &mut Option<V> {
        &mut self.value
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for TableEntry<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TableEntry").field(&self.key).field(&self.value).finish()
    }
}
