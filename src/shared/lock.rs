use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::error::SharedError;
use super::hold::{Hold, LockWord};
use super::pair::Pair;
use super::plain::{self, Plain};
use super::word::Patience;
use crate::sys::time::Monotonic;

/// So long from now.
pub(super) fn within(time: Duration) -> Patience {
    Patience::Until(Monotonic::now() + time)
}

/// What [`Lock::lock`] and its like give: a guard, and whether the one before gave it back.
///
/// Either way the value is whole: that of the last [`commit`](LockGuard::commit). What the dead owner had not committed is as
/// if it had never begun. So to most, both are the same ([`Locked::guard`]). They differ to who keeps something else up to
/// date with the value, a file for example: the owner may have died between the two.
///
/// ```
/// use preforkd::shared::{Locked, Shared};
///
/// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
/// match seats.lock()? {
///     Locked::Clean(seats) => assert_eq!(*seats, 180),
///     // Whole, but a file that is to say the same may not have been written.
///     Locked::OwnerDied(seats) => std::fs::write("seats", seats.to_string())?,
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the lock is given back at once"]
pub enum Locked<G> {
    /// The last owner gave it back.
    Clean(G),
    /// The last owner died while it had the lock. This is told to one only: the next.
    OwnerDied(G),
}

impl<G> Locked<G> {
    /// The guard, whatever became of the one before.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
    /// let left = seats.lock()?.guard();
    /// assert_eq!(*left, 180);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn guard(self) -> G {
        match self {
            Locked::Clean(guard) | Locked::OwnerDied(guard) => guard,
        }
    }

    /// Whether the last owner died.
    ///
    /// A thread that ends with the lock is to the kernel what a process is that is killed with it:
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
    /// let of_thread = *seats;
    /// let thread = std::thread::spawn(move || std::mem::forget(of_thread.lock()));
    /// thread.join().unwrap();
    ///
    /// assert!(seats.lock()?.owner_died());
    /// assert!(!seats.lock()?.owner_died()); // It is told once.
    /// assert_eq!(seats.owners_died(), 1);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn owner_died(&self) -> bool {
        matches!(self, Locked::OwnerDied(_))
    }

    pub(super) fn new(guard: G, died: bool) -> Self {
        if died { Locked::OwnerDied(guard) } else { Locked::Clean(guard) }
    }
}

/// A value that one process at a time changes, and that survives whoever changes it.
///
/// Who has the lock gets a copy of the value to change, and [`commit`](LockGuard::commit) makes that the value, by one store
/// to memory. Whoever is killed, at whatever instruction, has changed the value completely or not at all, and the next
/// process gets the lock at once and is told.
///
/// **Fair.** The kernel hands the lock to the one who has waited longest. **Without deadlock**: locks can only be taken in the
/// order in which they are declared, another order is an error ([`SharedError::Order`]), the first time it is tried.
/// **Cheap**: about 30 ns if nobody else wants it, and no system call but for the first in each process.
///
/// May be locked in every process and thread, but a worker or supervisor should not: it would keep all others waiting with it.
/// [`Lock::read`] never waits for the owner and suits them.
///
/// The word is one of `FUTEX_LOCK_PI`, and the kernel finds it by the list of get_robust_list(2), of which a thread has one:
/// a process that uses this has no robust mutexes of pthreads. The word holds the id of a thread, so the processes must be
/// of one PID namespace.
///
/// ```
/// use preforkd::shared::{Locked, Shared};
///
/// let seats = Shared::new(100, |layout| layout.lock("seats", 1_u32))?;
/// let mut left = match seats.lock()? {
///     Locked::Clean(left) => left,
///     Locked::OwnerDied(left) => left, // whole, but somebody's purchase has not come to pass
/// };
/// if *left > 0 {
///     *left -= 1;
///     left.commit();
/// }
/// assert_eq!(seats.read()?, 0);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
pub struct Lock<T> {
    pub(super) word: Option<LockWord>,
    pub(super) pair: Option<Pair<'static>>,
    pub(super) value: PhantomData<fn() -> T>,
}

impl<T> Default for Lock<T> {
    /// None yet: [`SharedError::NotYet`].
    fn default() -> Self {
        Lock { word: None, pair: None, value: PhantomData }
    }
}

impl<T> Clone for Lock<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Lock<T> {}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("name", &self.word.map(|word| word.name)).finish_non_exhaustive()
    }
}

impl<T: Plain> Lock<T> {
    /// Takes the lock, and waits for it as long as that takes.
    ///
    /// An owner that is stopped or stuck keeps it; a deadline for connections, or [`Lock::lock_for`], ends that.
    ///
    /// # Errors
    ///
    /// [`SharedError::Order`], if this thread holds this lock or one that was declared after it; [`SharedError::TooMany`];
    /// [`SharedError::Damaged`]; [`SharedError::NotYet`]; and [`SharedError::System`]: futex(2), set_robust_list(2) and mmap(2).
    ///
    /// ```
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
    /// let mut left = seats.lock()?.guard();
    /// *left -= 1;
    /// left.commit();
    ///
    /// let _held = seats.lock()?;
    /// assert!(matches!(seats.lock(), Err(SharedError::Order { name: "seats" })));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn lock(&self) -> Result<Locked<LockGuard<T>>, SharedError> {
        self.lock_with(Patience::Forever)
    }

    /// Takes the lock if nobody has it.
    ///
    /// # Errors
    ///
    /// As [`Lock::lock`], and [`SharedError::WouldBlock`].
    ///
    /// ```
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
    /// let held = seats.lock()?;
    /// std::thread::scope(|others| {
    ///     others.spawn(|| assert!(matches!(seats.try_lock(), Err(SharedError::WouldBlock))));
    /// });
    /// drop(held);
    /// assert_eq!(*seats.try_lock()?.guard(), 180);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn try_lock(&self) -> Result<Locked<LockGuard<T>>, SharedError> {
        self.lock_with(Patience::Never)
    }

    /// Takes the lock, and waits for it at most so long.
    ///
    /// # Errors
    ///
    /// As [`Lock::lock`], and [`SharedError::TimedOut`].
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
    /// let _held = seats.lock()?;
    /// std::thread::scope(|others| {
    ///     others.spawn(|| {
    ///         let in_vain = seats.lock_for(Duration::from_millis(5));
    ///         assert!(matches!(in_vain, Err(SharedError::TimedOut)));
    ///     });
    /// });
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn lock_for(&self, time: Duration) -> Result<Locked<LockGuard<T>>, SharedError> {
        self.lock_with(within(time))
    }

    fn lock_with(&self, patience: Patience) -> Result<Locked<LockGuard<T>>, SharedError> {
        let (Some(word), Some(pair)) = (self.word, self.pair) else { return Err(SharedError::NotYet) };
        let (hold, died) = word.lock(patience)?;
        let value = pair.own(|_, words| plain::load(words));
        Ok(Locked::new(LockGuard { value, pair, hold }, died))
    }

    /// Takes the lock, has `change` change the value, commits, and gives the lock back. That its last owner died makes no
    /// difference.
    ///
    /// ```
    /// # use preforkd::shared::Shared;
    /// let seats = Shared::new(100, |layout| layout.lock("seats", 7_u32))?;
    /// let left = seats.update(|seats| { *seats -= 1; *seats })?;
    /// assert_eq!(left, 6);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Lock::lock`]; then `change` has not been called.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, SharedError> {
        let mut guard = self.lock()?.guard();
        let result = change(&mut guard);
        guard.commit();
        Ok(result)
    }

    /// The value as it was last committed, without the lock. Does not wait for the owner, who may be in the middle of a change.
    ///
    /// # Errors
    ///
    /// [`SharedError::NotYet`]. And if others commit again and again while this reads, it takes the lock to have its turn, with
    /// the errors of that.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
    /// let mut left = seats.lock()?.guard();
    /// *left -= 1;
    /// assert_eq!(seats.read()?, 180);
    /// left.commit();
    /// assert_eq!(seats.read()?, 179);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn read(&self) -> Result<T, SharedError> {
        let (Some(word), Some(pair)) = (self.word, self.pair) else { return Err(SharedError::NotYet) };
        for _ in 0..READS {
            if let Some(value) = pair.peek(|_, words| plain::load(words)) {
                return Ok(value);
            }
        }
        let (_hold, _) = word.lock(Patience::Forever)?;
        Ok(pair.own(|_, words| plain::load(words)))
    }
}

/// How often to read while others write, before asking them to wait.
pub(super) const READS: u32 = 1000;

/// The lock is this thread's, and what this refers to is its own copy of the value.
///
/// Dropped without [`commit`](LockGuard::commit), it gives the lock back, and nothing has changed. In a forked child it does
/// nothing: the lock is its parent's. Nor can it go to another thread.
///
/// ```
/// use preforkd::shared::Shared;
///
/// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
/// let mut left = seats.lock()?.guard();
/// *left = 0;
/// drop(left);
/// assert_eq!(seats.read()?, 180);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
pub struct LockGuard<T> {
    value: T,
    pair: Pair<'static>,
    hold: Hold,
}

impl<T: Plain> LockGuard<T> {
    /// Makes the copy the value, and gives the lock back. In a forked child it does nothing.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let seats = Shared::new(100, |layout| layout.lock("seats", 180_u32))?;
    /// let mut left = seats.lock()?.guard();
    /// *left -= 2;
    /// left.commit();
    /// assert_eq!(seats.read()?, 178);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn commit(self) {
        let LockGuard { value, pair, hold } = self;
        hold.if_mine(|_| pair.change(0, |words| plain::store(words, &value)));
    }
}

impl<T> Deref for LockGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for LockGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for LockGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
