use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use super::atomic::AtomicU64;
use super::error::SharedError;
use super::event::Event;
use super::hold::{Hold, LockWord};
use super::lock::{Locked, within};
use super::plain::{self, Plain};
use super::word::Patience;

/// A line of at most so many values, first in, first out, between any number of processes on both sides.
///
/// A value is in the queue from one store to memory on, and out of it from another. So who is killed while he pushes has
/// pushed or not, and who is killed while he pops has popped or not; the others go on at once. What was popped by a process
/// that is killed then is gone with it: if that must not be, have it look at the value while it is still in the queue
/// ([`Queue::front`]), and take it out when it is done.
///
/// **Fair**, on both sides: who has waited longest is next. Who waits for a queue must hold nothing else
/// ([`SharedError::Order`]), or those that he waits for could be waiting for him.
///
/// May be used in every process and thread. It is made of two locks: what [`Lock`](super::Lock) says of those, holds here, too.
///
/// ```
/// use preforkd::shared::Shared;
///
/// let jobs = Shared::new(100, |layout| layout.queue::<[u8; 16]>("jobs", 64))?;
/// jobs.push(*b"sweep the floor.")?;
/// assert_eq!(&jobs.pop()?, b"sweep the floor.");
/// assert_eq!(jobs.try_pop()?, None);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
pub struct Queue<T> {
    pub(super) ends: Option<Ends>,
    pub(super) values: &'static [AtomicU64],
    pub(super) capacity: u64,
    pub(super) value: PhantomData<fn() -> T>,
}

/// Who pops changes the first, who pushes the second: how many values have ever gone out, and come in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) out: LockWord,
    pub(super) popped: &'static AtomicU64,
    /// For who waits for a value.
    pub(super) came: Event<'static>,
    pub(super) into: LockWord,
    pub(super) pushed: &'static AtomicU64,
    /// For who waits for room.
    pub(super) went: Event<'static>,
}

impl Ends {
    /// How many values there are.
    fn count(&self, capacity: u64) -> Result<u64, SharedError> {
        // In this order: it can be too many, for what goes out meanwhile, but never below none.
        let popped = self.popped.load(Acquire);
        let count = self.pushed.load(Acquire).wrapping_sub(popped);
        if count <= capacity { Ok(count) } else { Err(SharedError::Damaged { name: self.out.name }) }
    }
}

impl<T> Default for Queue<T> {
    /// None yet: [`SharedError::NotYet`].
    fn default() -> Self {
        Queue { ends: None, values: &[], capacity: 0, value: PhantomData }
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Queue<T> {}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.ends.map(|ends| ends.out.name);
        f.debug_struct("Queue").field("name", &name).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl<T: Plain> Queue<T> {
    /// Puts a value at the end, and waits for room as long as that takes.
    ///
    /// # Errors
    ///
    /// [`SharedError::Order`], if this thread holds anything; [`SharedError::Damaged`]; [`SharedError::NotYet`];
    /// [`SharedError::System`]: futex(2), and as [`Lock::lock`](super::Lock::lock).
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 64))?;
    /// jobs.push(7)?;
    /// jobs.push(8)?;
    /// assert_eq!((jobs.pop()?, jobs.pop()?), (7, 8));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn push(&self, value: T) -> Result<(), SharedError> {
        self.push_with(&value, Patience::Forever)
    }

    /// Puts a value at the end, and waits for room at most so long.
    ///
    /// # Errors
    ///
    /// As [`Queue::push`], and [`SharedError::TimedOut`].
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
    /// jobs.push(7)?;
    /// let in_vain = jobs.push_for(8, Duration::from_millis(5));
    /// assert!(matches!(in_vain, Err(SharedError::TimedOut)));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn push_for(&self, value: T, time: Duration) -> Result<(), SharedError> {
        self.push_with(&value, within(time))
    }

    /// Puts a value at the end if there is room.
    ///
    /// # Errors
    ///
    /// [`SharedError::Full`]; [`SharedError::WouldBlock`], if another process is pushing at this moment; [`SharedError::Order`],
    /// if this thread holds something that was declared after the queue; [`SharedError::TooMany`]; else as [`Queue::push`].
    ///
    /// ```
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
    /// jobs.try_push(7)?;
    /// assert!(matches!(jobs.try_push(8), Err(SharedError::Full { name: "jobs" })));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn try_push(&self, value: T) -> Result<(), SharedError> {
        self.push_with(&value, Patience::Never)
    }

    /// Takes the first value out, and waits for one as long as that takes.
    ///
    /// # Errors
    ///
    /// As [`Queue::push`].
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
    /// std::thread::scope(|others| {
    ///     others.spawn(|| jobs.push(7).unwrap());
    ///     assert_eq!(jobs.pop().unwrap(), 7);
    /// });
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn pop(&self) -> Result<T, SharedError> {
        Ok(self.front()?.guard().remove())
    }

    /// Takes the first value out, and waits for one at most so long.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`], and [`SharedError::TimedOut`].
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use preforkd::shared::{Shared, SharedError};
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
    /// let in_vain = jobs.pop_for(Duration::from_millis(5));
    /// assert!(matches!(in_vain, Err(SharedError::TimedOut)));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn pop_for(&self, time: Duration) -> Result<T, SharedError> {
        let front = self.front_with(within(time))?;
        front.map_or(Err(SharedError::TimedOut), |front| Ok(front.guard().remove()))
    }

    /// Takes the first value out if there is one.
    ///
    /// # Errors
    ///
    /// [`SharedError::WouldBlock`], if another process is popping at this moment; [`SharedError::Order`], if this thread holds
    /// something that was declared after the queue; [`SharedError::TooMany`]; else as [`Queue::push`].
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
    /// assert_eq!(jobs.try_pop()?, None);
    /// jobs.push(7)?;
    /// assert_eq!(jobs.try_pop()?, Some(7));
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn try_pop(&self) -> Result<Option<T>, SharedError> {
        Ok(self.front_with(Patience::Never)?.map(|front| front.guard().remove()))
    }

    /// The first value, which stays in the queue until it is [removed](Front::remove); waits for one as long as that takes.
    ///
    /// Until then nobody else pops. If this process dies first, the value is the next process's, which is told by
    /// [`Locked::OwnerDied`] that it may not be the first to see it: for what must be done at least once.
    ///
    /// ```
    /// # use preforkd::shared::Shared;
    /// let letters = Shared::new(100, |layout| layout.queue::<u64>("letters", 64))?;
    /// letters.push(7)?;
    /// let letter = letters.front()?.guard();
    /// // … deliver it …
    /// assert_eq!(letter.remove(), 7);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`].
    pub fn front(&self) -> Result<Locked<Front<T>>, SharedError> {
        self.front_with(Patience::Forever)?.ok_or(SharedError::TimedOut)
    }

    /// How many values are in the queue now. Takes no lock.
    ///
    /// # Errors
    ///
    /// [`SharedError::NotYet`]. Of memory that was overwritten it may be wrong, but is never more than the capacity.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
    /// jobs.push(7)?;
    /// assert_eq!(jobs.len()?, 1);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn len(&self) -> Result<u64, SharedError> {
        let ends = self.ends.ok_or(SharedError::NotYet)?;
        // Between the two looks others may have popped and pushed.
        let popped = ends.popped.load(Acquire);
        Ok(ends.pushed.load(Relaxed).wrapping_sub(popped).min(self.capacity))
    }

    /// Whether there is none now.
    ///
    /// # Errors
    ///
    /// As [`Queue::len`].
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
    /// assert!(jobs.is_empty()?);
    /// jobs.push(7)?;
    /// assert!(!jobs.is_empty()?);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn is_empty(&self) -> Result<bool, SharedError> {
        Ok(self.len()? == 0)
    }

    /// How many values it has room for, as it was declared.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 64))?;
    /// assert_eq!(jobs.capacity(), 64);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    fn push_with(&self, value: &T, patience: Patience) -> Result<(), SharedError> {
        let ends = self.ends.ok_or(SharedError::NotYet)?;
        let (hold, _) = ends.into.lock_alone(patience)?;
        let has_room = || Ok(ends.count(self.capacity)? < self.capacity);
        if !wait_until(has_room, ends.went, patience)? {
            return Err(match patience {
                Patience::Never => SharedError::Full { name: ends.into.name },
                _ => SharedError::TimedOut,
            });
        }
        let pushed = ends.pushed.load(Relaxed);
        plain::store(self.place(pushed), value);
        hold.change_and_ring(ends.came, || ends.pushed.store(pushed.wrapping_add(1), Release));
        Ok(())
    }

    fn front_with(&self, patience: Patience) -> Result<Option<Locked<Front<T>>>, SharedError> {
        let ends = self.ends.ok_or(SharedError::NotYet)?;
        let (hold, died) = ends.out.lock_alone(patience)?;
        let has_value = || Ok(ends.count(self.capacity)? > 0);
        if !wait_until(has_value, ends.came, patience)? {
            return Ok(None);
        }
        let value = plain::load(self.place(ends.popped.load(Relaxed)));
        Ok(Some(Locked::new(Front { value, ends, hold }, died)))
    }

    /// Where the value with this number is.
    fn place(&self, number: u64) -> &[AtomicU64] {
        let words = const { plain::words::<T>() };
        let place = number.checked_rem(self.capacity).unwrap_or(0) as usize * words;
        self.values.get(place..place + words).unwrap_or(&[])
    }
}

/// Waits until that holds, as the only one who waits for this event. Whether it does.
fn wait_until(
    holds: impl Fn() -> Result<bool, SharedError>,
    event: Event<'_>,
    patience: Patience,
) -> Result<bool, SharedError> {
    loop {
        if holds()? {
            return Ok(true);
        }
        if patience == Patience::Never {
            return Ok(false);
        }
        event.announce();
        if holds()? {
            event.withdraw();
            return Ok(true);
        }
        match event.sleep(patience.until()) {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => {}
                Some(libc::ETIMEDOUT) => {
                    event.withdraw();
                    return holds();
                }
                _ => return Err(error.into()),
            },
        }
    }
}

/// The first value of a queue, which is still in it. Nobody else pops until this is dropped, which leaves the value there, or
/// [removed](Front::remove).
///
/// ```
/// use preforkd::shared::Shared;
///
/// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
/// jobs.push(7)?;
/// let job = jobs.front()?.guard();
/// assert_eq!(*job, 7);
/// drop(job);
/// assert_eq!(jobs.len()?, 1);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
pub struct Front<T> {
    value: T,
    ends: Ends,
    hold: Hold,
}

impl<T: Plain> Front<T> {
    /// Takes the value out of the queue, and lets the next process have the one after it. In a forked child it takes nothing out: the
    /// queue's front is its parent's.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let jobs = Shared::new(100, |layout| layout.queue::<u64>("jobs", 1))?;
    /// jobs.push(7)?;
    /// assert_eq!(jobs.front()?.guard().remove(), 7);
    /// assert_eq!(jobs.len()?, 0);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn remove(self) -> T {
        let Front { value, ends, hold } = self;
        let popped = ends.popped.load(Relaxed);
        hold.change_and_ring(ends.went, || ends.popped.store(popped.wrapping_add(1), Release));
        value
    }
}

impl<T> Deref for Front<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Front<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
