//! State that all connection processes of a service share, and that survives any of them.
//!
//! A process for every connection means that what one of them changes in its memory is gone with it. What is declared here is
//! in memory that all of them have: [counters](Counter) and [gauges](Gauge), values with a [lock](Lock), [tables](Table)
//! and [queues](Queue). It is made before the first process is, has no name that others could open, and is gone with the
//! service.
//!
//! A process may be killed at any instruction. Each change is made beside what is live and becomes live by one store to
//! memory, so it has happened or not; and the kernel knows what a process has locked, and hands it to the next when it dies.
//! Whoever has waited longest is next. Locks have an order, that of their declaration, and no other is accepted, so there is no
//! deadlock to be found.
//!
//! Any process of the service can overwrite this memory once it has been taken over by a hostile client: it is shared
//! with every connection of this service, and no more. So all of it is [plain](Plain) bytes, any of which are a value. Such a
//! process can make values wrong and have others wait in vain, but not have them do what it wants.
//!
//! It works between the processes of any program, forked in whatever way, on Linux 5.14 or later:
//!
//! ```
//! use preforkd::shared::{Counter, Layout, Lock, Shared};
//!
//! struct State {
//!     hits: Counter,
//!     seats: Lock<u32>,
//! }
//!
//! impl State {
//!     fn declare(layout: &mut Layout) -> Self {
//!         State { hits: layout.counter("hits"), seats: layout.lock("seats", 180) }
//!     }
//! }
//!
//! let state = Shared::new(100, State::declare)?;
//! // … fork; then in any process:
//! state.hits.add(1);
//! let sold = state.seats.update(|seats| {
//!     let has_one = *seats > 0;
//!     *seats -= u32::from(has_one);
//!     has_one
//! })?;
//! assert!(sold);
//! # Ok::<(), preforkd::shared::SharedError>(())
//! ```
//!
//! Sources: futex(2), get_robust_list(2), memfd_create(2); for reading while others write, Boehm, "Can Seqlocks Get Along With
//! Programming Language Memory Models?", MSPC 2012.

mod atomic;
mod counter;
mod error;
mod event;
mod file;
mod hold;
mod layout;
mod lock;
mod pair;
mod plain;
mod queue;
mod table;
#[cfg(test)]
mod tests;
mod word;

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

pub use counter::{Counter, Gauge};
pub use error::SharedError;
pub(crate) use file::{Declared, SharedFile};
pub use layout::Layout;
pub use lock::{Lock, LockGuard, Locked};
pub use plain::Plain;
pub use queue::{Front, Queue};
pub use table::{Table, TableEntry};

use counter::Rows;
use layout::Memory;

use crate::sys::memory::{self, InheritedMapping};
use crate::sys::robust;

/// Shared state as this process has it: what the function that declares it has returned.
///
/// The supervisor [creates](Shared::create) the memory and hands its descriptor to each worker, which [opens](Shared::open) it;
/// connection processes have it from their worker. A program that only forks does both at once ([`Shared::new`]).
///
/// ```
/// use preforkd::shared::Shared;
///
/// let hits = Shared::new(4, |layout| layout.counter("hits"))?;
/// hits.add(1);
/// assert_eq!(hits.sum(), 1);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
#[derive(Debug)]
pub struct Shared<S> {
    state: S,
    rows: Rows,
    gauges: Vec<usize>,
    deaths: &'static atomic::AtomicU64,
}

/// "shared" and the version of what follows: bytes 0 to 7 of the memory.
const MAGIC: u64 = u64::from_le_bytes(*b"shared\0\x01");

/// What the header says, 64 bits each: the magic number; how long the declarations are that follow it; a serial number; the secret
/// of tables, twice; how often an owner of a lock has died; how many slots were ever in use.
const HEADER: usize = 64;
const DEATHS: usize = 40;
const USED: usize = 48;

/// How long the declarations in other memory may be, in bytes.
const MOST_TEXT: usize = 1 << 16;

impl<S> Shared<S> {
    /// New memory for what `declare` declares, and room for the counts of so many processes at a time: slots 0 to `processes` - 1.
    /// Sealed, so that nobody who has it can make it shorter; close-on-exec.
    ///
    /// # Errors
    ///
    /// [`SharedError::Declaration`] says what is wrong with the declarations. [`SharedError::System`]: memfd_create(2).
    ///
    /// ```
    /// use std::os::fd::AsFd;
    ///
    /// use preforkd::shared::Shared;
    ///
    /// let memory = Shared::create(4, |layout| layout.counter("hits"))?;
    /// // In a worker that has inherited the descriptor:
    /// let hits = Shared::open(memory.as_fd(), 4, |layout| layout.counter("hits"))?;
    /// hits.add(1);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn create(processes: u32, declare: impl Fn(&mut Layout) -> S) -> Result<OwnedFd, SharedError> {
        let plan = Plan::new(&declare)?;
        let file = File::from(memory::create(c"preforkd-shared", 0)?);
        plan.fill(&file, processes)?;
        Ok(file.into())
    }

    /// As [`Shared::open`], of memory that may be empty; then it is filled, by one of those who come at once.
    pub(crate) fn open_or_fill(
        fd: BorrowedFd<'_>,
        processes: u32,
        declare: impl Fn(&mut Layout) -> S,
    ) -> Result<Self, SharedError> {
        let plan = Plan::new(&declare)?;
        let file = File::from(fd.try_clone_to_owned()?);
        // Given back when `file` is closed, or whoever has it dies: who comes then fills it again.
        memory::lock(file.as_fd())?;
        let mut magic = [0; 8];
        // Short memory is empty.
        let _ = file.read_at(&mut magic, 0)?;
        if magic == [0; 8] {
            plan.fill(&file, processes)?;
        }
        drop(file);
        Self::open(fd, processes, declare)
    }

    /// Maps memory that [`Shared::create`] has made, for as long as this process and those that it forks live. The descriptor
    /// can be closed. If the memory has room for fewer processes, it grows; processes that have it do not see counts of the
    /// slots that are new.
    ///
    /// # Errors
    ///
    /// [`SharedError::OtherLayout`]: it was made for other declarations. What is in it is then nobody's; a service creates new
    /// memory and says so. [`SharedError::Declaration`], and [`SharedError::System`]: mmap(2).
    ///
    /// ```
    /// use std::os::fd::AsFd;
    ///
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let memory = Shared::create(4, |layout| layout.counter("hits"))?;
    /// let other = Shared::open(memory.as_fd(), 4, |layout| layout.counter("visits"));
    /// assert!(matches!(other, Err(SharedError::OtherLayout { .. })), "{:?}", other.err());
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn open(
        fd: BorrowedFd<'_>,
        processes: u32,
        declare: impl Fn(&mut Layout) -> S,
    ) -> Result<Self, SharedError> {
        let plan = Plan::new(&declare)?;
        plan.must_be_that_of(fd)?;
        memory::grow(fd, plan.length(processes))?;
        let length = usize::try_from(File::from(fd.try_clone_to_owned()?).metadata()?.len()).unwrap_or(0);
        let mapping = InheritedMapping::new(fd, length)?;
        let word = |at: usize| mapping.long_words(at, 1).first().ok_or(SharedError::NotYet);
        let rows = Rows {
            cells: mapping.long_words(plan.layout.end(), (length - plan.layout.end()) / 8),
            stride: plan.stride(),
            used: Some(word(USED)?),
        };
        let memory = Memory::Mapped {
            mapping,
            deaths: word(DEATHS)?,
            secret: (word(24)?.load(Relaxed), word(32)?.load(Relaxed)),
            serial: word(16)?.load(Relaxed) as u32,
            rows,
        };
        let mut layout = Layout::new(memory, plan.start);
        let state = declare(&mut layout);
        if layout.text() != plan.layout.text() {
            return Err(SharedError::Declaration(
                "what is declared as shared state is not the same each time; let it depend on nothing that changes".to_owned(),
            ));
        }
        robust::reserve()?;
        Ok(Shared { state, rows, gauges: layout.gauges(), deaths: word(DEATHS)? })
    }

    /// New memory for this process and those that it forks: [`Shared::create`] and [`Shared::open`].
    ///
    /// # Errors
    ///
    /// As those.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let seats = Shared::new(4, |layout| layout.lock("seats", 180_u32))?;
    /// assert_eq!(seats.update(|seats| { *seats -= 1; *seats })?, 179);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn new(processes: u32, declare: impl Fn(&mut Layout) -> S) -> Result<Self, SharedError> {
        let fd = Self::create(processes, &declare)?;
        Self::open(fd.as_fd(), processes, declare)
    }

    /// Says which slot this process has, to be called in it before it counts anything. No other living process has the same.
    /// Without, it counts where all count that have none, which is dearer, and what it adds to a gauge outlives it.
    ///
    /// preforkd's own connection processes need not call it.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let inside = Shared::new(4, |layout| layout.gauge("inside"))?;
    /// // In the process that has been forked as the third:
    /// inside.begin(2);
    /// inside.add(1);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn begin(&self, slot: u32) {
        self.ended(slot);
        self.rows.use_slot(slot);
        counter::take_row(slot);
    }

    /// Says that the process which had this slot is dead, to be called by who has reaped it, before the slot is another's: takes
    /// its share out of all gauges. To call it twice, or to be killed in it and have another call it, does no harm.
    ///
    /// Locks need no such call: the kernel knows what the dead process had.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let inside = Shared::new(4, |layout| layout.gauge("inside"))?;
    /// inside.begin(2);
    /// inside.add(1);
    /// assert_eq!(inside.sum(), 1);
    /// // In the process that has reaped it:
    /// inside.ended(2);
    /// assert_eq!(inside.sum(), 0);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn ended(&self, slot: u32) {
        for cell in self.gauges.iter().filter_map(|column| self.rows.of_slot(slot, *column)) {
            cell.store(0, Relaxed);
        }
    }

    /// How often the owner of a lock has died, of a table's and a queue's, too, since the memory was made. Others carried on each
    /// time; but a number that grows says that processes are killed in the middle of something.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let seats = Shared::new(4, |layout| layout.lock("seats", 180_u32))?;
    /// assert_eq!(seats.owners_died(), 0);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn owners_died(&self) -> u64 {
        self.deaths.load(Relaxed)
    }
}

impl<S> Deref for Shared<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.state
    }
}

/// What is declared, and where it is going to be.
struct Plan {
    /// Where what is declared begins: after the header and the declarations.
    start: usize,
    layout: Layout,
}

impl Plan {
    fn new<S>(declare: &impl Fn(&mut Layout) -> S) -> Result<Self, SharedError> {
        let measure = |start| {
            let mut layout = Layout::new(Memory::Measured, start);
            declare(&mut layout);
            layout
        };
        let start = (HEADER + measure(HEADER).text().len()).next_multiple_of(table::LINE);
        let layout = measure(start);
        match layout.wrong() {
            Some(wrong) => Err(SharedError::Declaration(wrong.to_owned())),
            None => Ok(Plan { start, layout }),
        }
    }

    /// Cells from one row to the next: whole lines of cache.
    fn stride(&self) -> usize {
        self.layout.columns().max(1).next_multiple_of(table::LINE / 8)
    }

    /// Row 0 is for who has no slot.
    fn length(&self, processes: u32) -> usize {
        self.layout.end() + (processes as usize + 1) * self.stride() * 8
    }

    /// Makes memory what it is in the beginning. Until the last step it is nobody's.
    fn fill(&self, file: &File, processes: u32) -> Result<(), SharedError> {
        if file.metadata()?.len() < self.length(processes) as u64 {
            file.set_len(self.length(processes) as u64)?;
        }
        for (place, bytes) in self.layout.initial() {
            file.write_all_at(bytes, *place as u64)?;
        }
        file.write_all_at(self.layout.text().as_bytes(), HEADER as u64)?;
        // Its keys are from getrandom(2).
        let keys = RandomState::new();
        let random = |number: u64| keys.hash_one(number);
        let serial = random(0) & u64::from(u32::MAX);
        let text = self.layout.text().len() as u64;
        let header = [MAGIC, text, serial, random(1), random(2)].map(u64::to_ne_bytes);
        file.write_all_at(&header.concat(), 0)?;
        Ok(())
    }

    fn must_be_that_of(&self, fd: BorrowedFd<'_>) -> Result<(), SharedError> {
        let file = File::from(fd.try_clone_to_owned()?);
        let mut number = [0; 8];
        let read = file.read_exact_at(&mut number, 0);
        let is_ours = read.is_ok() && u64::from_ne_bytes(number) == MAGIC;
        let mut text = Vec::new();
        if is_ours {
            file.read_exact_at(&mut number, 8)?;
            let length = usize::try_from(u64::from_ne_bytes(number)).unwrap_or(MOST_TEXT).min(MOST_TEXT);
            let rest = file.metadata()?.len().saturating_sub(HEADER as u64);
            text.resize(length.min(usize::try_from(rest).unwrap_or(0)), 0);
            file.read_exact_at(&mut text, HEADER as u64)?;
        }
        let was = String::from_utf8_lossy(&text);
        let is = self.layout.text();
        if is_ours && was == is {
            return Ok(());
        }
        let (mut was, mut is) = (was.lines(), is.lines());
        loop {
            let (was, is) = (was.next().unwrap_or_default(), is.next().unwrap_or_default());
            if was != is || was.is_empty() {
                return Err(SharedError::OtherLayout { was: was.to_owned(), is: is.to_owned() });
            }
        }
    }
}
