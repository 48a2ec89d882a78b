//! Words of shared memory that belong to processes which tests can kill between any two writes, or have interrupted by
//! others between any two accesses.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{self, Ordering};

thread_local! {
    /// How many writes this thread has left; `None` if it lives on.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    /// What comes in between, and after how many accesses.
    static INTERRUPTION: RefCell<Option<Interruption>> = const { RefCell::new(None) };
}

type Interruption = (u32, Box<dyn FnOnce()>);

/// Lets others do something after so many accesses of this thread. Returns whether `what` was interrupted, or has ended
/// before.
pub(crate) fn interrupted(after: u32, others: impl FnOnce() + 'static, what: impl FnOnce()) -> bool {
    let outer = INTERRUPTION.replace(Some((after, Box::new(others))));
    what();
    INTERRUPTION.replace(outer).is_none()
}

/// About to look at a word, or to write it.
fn access() {
    let due = INTERRUPTION.with_borrow_mut(|interruption| match interruption {
        Some((0, _)) => interruption.take(),
        Some((left, _)) => {
            *left -= 1;
            None
        }
        None => None,
    });
    if let Some((_, others)) = due {
        others();
    }
}

/// Lets what this thread does die after so many writes, or live again. The dead compute on, and change nothing.
pub(crate) fn live_for(writes: Option<u32>) {
    LEFT.set(writes);
}

/// Whether it has died.
pub(crate) fn has_died() -> bool {
    LEFT.get() == Some(0)
}

/// Whether it lives to write this.
fn writes() -> bool {
    access();
    let lives = !has_died();
    LEFT.set(LEFT.get().map(|left| left.saturating_sub(1)));
    lives
}

macro_rules! kill_points {
    ($name:ident, $word:ty) => {
        #[derive(Debug)]
        #[repr(transparent)]
        pub(crate) struct $name(atomic::$name);

        impl $name {
            pub(crate) fn load(&self, order: Ordering) -> $word {
                access();
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $word, order: Ordering) {
                if writes() {
                    self.0.store(value, order);
                }
            }

            pub(crate) fn compare_exchange(
                &self,
                from: $word,
                to: $word,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$word, $word> {
                if writes() {
                    self.0.compare_exchange(from, to, success, failure)
                } else {
                    Err(self.0.load(failure))
                }
            }

            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                change: impl FnMut($word) -> Option<$word>,
            ) -> Result<$word, $word> {
                if writes() {
                    self.0.fetch_update(success, failure, change)
                } else {
                    Err(self.0.load(failure))
                }
            }

            pub(crate) fn swap(&self, value: $word, order: Ordering) -> $word {
                if writes() { self.0.swap(value, order) } else { self.0.load(order) }
            }
        }
    };
}

kill_points!(AtomicU32, u32);
kill_points!(AtomicU64, u64);

impl AtomicU32 {
    pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        if writes() { self.0.fetch_add(value, order) } else { self.0.load(order) }
    }

    pub(crate) fn fetch_max(&self, value: u32, order: Ordering) -> u32 {
        if writes() { self.0.fetch_max(value, order) } else { self.0.load(order) }
    }
}
