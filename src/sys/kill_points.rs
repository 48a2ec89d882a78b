//! Words of shared memory that belong to processes which tests can kill between any two writes.

use std::cell::Cell;
use std::sync::atomic::{self, Ordering};

thread_local! {
    /// How many writes this thread has left; `None` if it lives on.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
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
