use std::marker::PhantomData;

use super::atomic::AtomicU64;
use super::counter::{Counter, Gauge, Rows};
use super::event::Event;
use super::hold::LockWord;
use super::lock::Lock;
use super::pair::Pair;
use super::plain::{self, Plain};
use super::queue::{Ends, Queue};
use super::table::{LINE, Parts, Places, Table, TableSize};
use crate::sys::memory::InheritedMapping;

/// What a function that declares shared state is given: each call declares one thing and returns the handle to it.
///
/// The function runs in each process that opens the memory, and must declare the same things in the same order each time. The
/// order is that in which locks are taken. A name says what its bytes mean: give it another when that changes, so that a new
/// version of the program does not take the old one's bytes for its own.
///
/// What is wrong (a name that is not one word or is declared twice, a capacity of 0, more than 1 TiB) is not an error of these
/// functions: [`Shared::create`](super::Shared::create) and its like return it, [`SharedError::Declaration`](super::SharedError::Declaration).
/// Of a [`Handler`](crate::Handler) every command that reads a configuration says it.
///
/// ```
/// use preforkd::shared::{Counter, Layout, Lock, Queue, Shared, Table};
///
/// struct State {
///     hits: Counter,
///     seats: Lock<u32>,
///     names: Table<u64, [u8; 32]>,
///     lines: Queue<[u8; 128]>,
/// }
///
/// impl State {
///     fn declare(layout: &mut Layout) -> Self {
///         State {
///             hits: layout.counter("hits"),
///             seats: layout.lock("seats", 180),
///             names: layout.table("names", 10_000),
///             lines: layout.queue("lines", 256),
///         }
///     }
/// }
///
/// let state = Shared::new(100, State::declare)?;
/// state.hits.add(1);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
#[derive(Debug)]
pub struct Layout {
    memory: Memory,
    /// How long what was declared so far is, in bytes; starts with the header.
    end: usize,
    columns: usize,
    ranks: u64,
    names: Vec<&'static str>,
    /// A line for each declaration.
    text: String,
    /// What the memory says in the beginning, where it is not 0.
    initial: Vec<(usize, Vec<u8>)>,
    wrong: Option<String>,
}

/// What there is when something is declared.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory {
    /// Nothing: this is to find out how much is needed.
    Measured,
    /// All of it.
    Mapped {
        mapping: &'static InheritedMapping,
        deaths: &'static AtomicU64,
        secret: (u64, u64),
        serial: u32,
        rows: Rows,
    },
}

impl Layout {
    /// Nothing declared yet; `start` is what comes before.
    pub(super) fn new(memory: Memory, start: usize) -> Self {
        let (names, text, initial) = (Vec::new(), String::new(), Vec::new());
        Layout { memory, end: start, columns: 0, ranks: 0, names, text, initial, wrong: None }
    }

    /// Declares a counter. Eight counters and gauges, or less, take 64 bytes for each process.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let state = Shared::new(100, |layout| (layout.counter("hits"), layout.counter("misses")))?;
    /// let (hits, misses) = *state;
    /// hits.add(1);
    /// assert_eq!((hits.sum(), misses.sum()), (1, 0));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn counter(&mut self, name: &'static str) -> Counter {
        self.declare(name, format_args!("counter {name}"));
        Counter { rows: self.rows(), column: self.column() }
    }

    /// Declares a gauge. It takes as much memory as a counter.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let inside = Shared::new(100, |layout| layout.gauge("inside"))?;
    /// assert_eq!(inside.sum(), 0);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn gauge(&mut self, name: &'static str) -> Gauge {
        self.declare(name, format_args!("gauge {name}"));
        Gauge { rows: self.rows(), column: self.column() }
    }

    /// Declares a value with a lock, and what it is in the beginning: in memory that is new. Of memory that is there already
    /// `initial` changes nothing.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// // Here and there, in one lock, for what is moved must never be in both.
    /// let accounts = Shared::new(100, |layout| layout.lock("accounts", [100_i64, 0]))?;
    /// accounts.update(|[here, there]| (*here, *there) = (*here - 30, *there + 30))?;
    /// assert_eq!(accounts.read()?, [70, 30]);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn lock<T: Plain>(&mut self, name: &'static str, initial: T) -> Lock<T> {
        self.declare(name, format_args!("lock {name} of {} bytes", size_of::<T>()));
        let words = plain::words::<T>();
        // Word, entry, which copy; both copies.
        let start = self.take(words.checked_mul(2).and_then(|both| both.checked_add(3)));
        let bytes = initial.as_bytes().to_vec();
        self.initial.push((start + 24, bytes));
        let rank = self.rank();
        let pair = self.long_words(start + 16, 1 + 2 * words).and_then(<[_]>::split_first);
        Lock {
            word: self.word(start, rank, name),
            pair: pair.map(|(head, copies)| Pair::new(head, copies)),
            value: PhantomData,
        }
    }

    /// Declares a table for so many entries. It takes about three times the memory of their keys and values, and only what is
    /// used is ever taken from the machine.
    ///
    /// ```
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let names = Shared::new(100, |layout| layout.table::<u32, [u8; 8]>("names", 10_000))?;
    /// names.insert(&7, *b"Ada     ")?;
    /// assert_eq!(names.get(&7)?, Some(*b"Ada     "));
    ///
    /// let empty = Shared::new(100, |layout| layout.table::<u32, u32>("empty", 0));
    /// assert!(matches!(empty, Err(SharedError::Declaration(_))));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn table<K: Plain, V: Plain>(&mut self, name: &'static str, capacity: usize) -> Table<K, V> {
        let (key, value) = (size_of::<K>(), size_of::<V>());
        self.declare(name, format_args!("table {name} of {capacity} entries of {key} and {value} bytes"));
        if capacity == 0 {
            self.is_wrong(format!("`{name}` has a capacity of 0; declare it for at least one entry"));
        }
        let Some(size) = TableSize::new(capacity, Table::<K, V>::STRIDE) else {
            self.take(None);
            return Table { places: None, types: PhantomData };
        };
        let locks = self.take(size.parts.checked_mul(LINE / 8));
        let entries = self.take(Some(size.words()));
        let rank = self.rank();
        let places = match self.memory {
            Memory::Measured => None,
            Memory::Mapped { mapping, deaths, secret, .. } => Some(Places {
                rank,
                name,
                deaths,
                secret,
                locks: Parts {
                    words: mapping.words(locks, size.parts * (LINE / 4)),
                    entries: mapping.long_words(locks, size.parts * (LINE / 8)),
                },
                entries: mapping.long_words(entries, size.words()),
                size,
                capacity,
            }),
        };
        Table { places, types: PhantomData }
    }

    /// Declares a queue with room for so many values. Each takes its size, rounded up to a multiple of 8 bytes.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 256))?;
    /// jobs.push(7)?;
    /// assert_eq!(jobs.pop()?, 7);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn queue<T: Plain>(&mut self, name: &'static str, capacity: usize) -> Queue<T> {
        self.declare(name, format_args!("queue {name} of {capacity} values of {} bytes", size_of::<T>()));
        if capacity == 0 {
            self.is_wrong(format!("`{name}` has a capacity of 0; declare it for at least one value"));
        }
        // Each end: word, entry, how many, event.
        let out = self.take(Some(LINE / 8));
        let into = self.take(Some(LINE / 8));
        let length = plain::words::<T>().checked_mul(capacity);
        let values = self.take(length);
        let (out_rank, into_rank) = (self.rank(), self.rank());
        let ends = (|| {
            Some(Ends {
                out: self.word(out, out_rank, name)?,
                popped: self.long_words(out + 16, 1)?.first()?,
                came: Event(self.words(out + 24, 1)?.first()?),
                into: self.word(into, into_rank, name)?,
                pushed: self.long_words(into + 16, 1)?.first()?,
                went: Event(self.words(into + 24, 1)?.first()?),
            })
        })();
        let values = self.long_words(values, length.unwrap_or(0)).unwrap_or(&[]);
        Queue { ends, values, capacity: capacity as u64, value: PhantomData }
    }

    /// What was declared, a line each.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// How long it is, in bytes, without the rows.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// How many counters and gauges there are.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn initial(&self) -> &[(usize, Vec<u8>)] {
        &self.initial
    }

    pub(super) fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }

    /// Columns that are gauges.
    pub(super) fn gauges(&self) -> Vec<usize> {
        let lines =
            self.text.lines().filter(|line| line.starts_with("counter ") || line.starts_with("gauge "));
        lines.enumerate().filter(|(_, line)| line.starts_with("gauge ")).map(|(column, _)| column).collect()
    }

    fn declare(&mut self, name: &'static str, line: std::fmt::Arguments<'_>) {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            self.is_wrong(format!("{name:?} cannot be the name of shared state: a name is one word"));
        }
        if self.names.contains(&name) {
            self.is_wrong(format!("`{name}` is declared twice; give one of them another name"));
        }
        self.names.push(name);
        self.text.push_str(&format!("{line}\n"));
    }

    fn is_wrong(&mut self, why: String) {
        self.wrong.get_or_insert(why);
    }

    /// So many words at the end, beginning with a line of cache; where they are.
    fn take(&mut self, words: Option<usize>) -> usize {
        let start = self.end;
        let end = words
            .and_then(|words| words.checked_mul(8))
            .and_then(|bytes| bytes.checked_next_multiple_of(LINE))
            .and_then(|bytes| start.checked_add(bytes))
            .filter(|end| *end <= LONGEST);
        match end {
            Some(end) => self.end = end,
            None => {
                let name = self.names.last().copied().unwrap_or_default();
                self.is_wrong(format!(
                    "`{name}` and what is declared before it take more than 1 TiB; declare it smaller"
                ));
            }
        }
        start
    }

    fn column(&mut self) -> usize {
        self.columns += 1;
        self.columns - 1
    }

    /// The rank of the next lock. Memory has a serial number, so that what is taken from two at once has an order, too.
    fn rank(&mut self) -> u64 {
        self.ranks += 1;
        let serial = if let Memory::Mapped { serial, .. } = self.memory { serial } else { 0 };
        u64::from(serial) << 32 | self.ranks
    }

    fn rows(&self) -> Rows {
        if let Memory::Mapped { rows, .. } = self.memory { rows } else { Rows::NONE }
    }

    fn word(&self, start: usize, rank: u64, name: &'static str) -> Option<LockWord> {
        let Memory::Mapped { mapping, deaths, .. } = self.memory else { return None };
        let word = mapping.words(start, 1).first()?;
        let entry = mapping.long_words(start + crate::sys::robust::ENTRY_OF_WORD, 1).first()?;
        Some(LockWord { word, entry, deaths, rank, name })
    }

    fn words(&self, start: usize, count: usize) -> Option<&'static [super::atomic::AtomicU32]> {
        let Memory::Mapped { mapping, .. } = self.memory else { return None };
        Some(mapping.words(start, count))
    }

    fn long_words(&self, start: usize, count: usize) -> Option<&'static [AtomicU64]> {
        let Memory::Mapped { mapping, .. } = self.memory else { return None };
        Some(mapping.long_words(start, count))
    }
}

/// Nobody has more, and nothing that is added to it is too much for a number.
const LONGEST: usize = 1 << 40;
