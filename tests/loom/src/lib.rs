//! The orders of memory in `src/shared`, in all that the language allows and not only in what this machine does: the same files,
//! with loom's words. A process is a thread here, and one that is killed is one that ends; what the kernel does then is in `sys`.
//!
//! Of words that processes share there are: those of locks, copies of a value and the word that says which is live, and an event to
//! sleep for (`tests`); how many values have come into a queue and gone out, each under the lock of its own end and read by who has
//! the other (`queues`); and places of a table, read in a row without its lock (`tables`, which has no orders but these). Counters
//! are of no order: what is not tried here is all relaxed.
#![cfg(test)]

/// What the code under test expects around it.
mod sys {
    /// The kernel. It gives a lock to anybody: who has waited longest is no matter of order in memory. To take one is ordered by
    /// nothing, since what the code relies on is that it loads the word itself; what is given back, by its owner or of one who
    /// has died, is ordered behind what he did.
    pub(crate) mod futex {
        use std::io;

        use loom::sync::atomic::AtomicU32;
        use loom::sync::atomic::Ordering::{Relaxed, Release};
        use loom::thread::yield_now;

        use super::time::Monotonic;

        const OWNER_DIED: u32 = 0x4000_0000;
        const WAITERS: u32 = 0x8000_0000;
        const THREAD: u32 = !(OWNER_DIED | WAITERS);
        /// A number that is no thread's any more.
        const GONE: u32 = 0x3fff_ffff;

        pub(crate) fn wait(word: &AtomicU32, value: u32, _: Option<Monotonic>) -> io::Result<()> {
            // The newest value, as the kernel compares it.
            while word.fetch_or(0, Relaxed) == value {
                yield_now();
            }
            Ok(())
        }

        /// Who sleeps looks at the word.
        pub(crate) fn wake_one(_: &AtomicU32) {}

        pub(crate) fn lock_pi(word: &AtomicU32, _: Option<Monotonic>) -> io::Result<()> {
            loop {
                let Err(error) = try_lock_pi(word) else { return Ok(()) };
                if error.raw_os_error() == Some(libc::ESRCH) {
                    return Err(error);
                }
                // So whoever gives it back has to ask the kernel.
                let _ = word
                    .fetch_update(Relaxed, Relaxed, |seen| (seen & THREAD != 0).then_some(seen | WAITERS));
                yield_now();
            }
        }

        pub(crate) fn try_lock_pi(word: &AtomicU32) -> io::Result<()> {
            let take = |seen| (seen & THREAD == 0).then_some(seen & OWNER_DIED | super::thread());
            let taken = word.fetch_update(Relaxed, Relaxed, take);
            taken.map(drop).map_err(|seen| {
                let is_gone = seen & THREAD == GONE;
                io::Error::from_raw_os_error(if is_gone { libc::ESRCH } else { libc::EAGAIN })
            })
        }

        pub(crate) fn unlock_pi(word: &AtomicU32) -> io::Result<()> {
            word.swap(0, Release);
            Ok(())
        }

        /// What the kernel does to the lock of a thread that has died.
        pub(crate) fn bury(word: &AtomicU32) {
            let own = |seen| (seen & THREAD == super::thread()).then_some(OWNER_DIED);
            let _ = word.fetch_update(Release, Relaxed, own);
        }

        /// A thread ends, and the kernel was not told of the lock.
        pub(crate) fn forget(word: &AtomicU32) {
            let own = |seen| (seen & THREAD == super::thread()).then_some(seen & WAITERS | GONE);
            let _ = word.fetch_update(Release, Relaxed, own);
        }
    }

    /// A thread here has one lock at a time, and gives it back itself: who dies without is buried by the test.
    pub(crate) mod robust {
        use loom::sync::atomic::AtomicU64;

        pub(crate) const ENTRY_OF_WORD: usize = 8;

        pub(crate) struct Seat;

        pub(crate) fn with_seat<R>(work: impl FnOnce(&Seat) -> R) -> std::io::Result<R> {
            Ok(work(&Seat))
        }

        impl Seat {
            pub(crate) fn thread(&self) -> u32 {
                super::thread()
            }

            pub(crate) fn highest(&self) -> Option<u64> {
                None
            }

            pub(crate) fn is_full(&self) -> bool {
                false
            }

            pub(crate) fn take_or_give(&self, _: &'static AtomicU64) {}

            pub(crate) fn wake(&self, _: usize) {}

            pub(crate) fn done(&self) {}

            pub(crate) fn add(&self, _: &'static AtomicU64, _: u64) {}

            pub(crate) fn remove(&self, _: &'static AtomicU64) -> bool {
                true
            }
        }
    }

    pub(crate) mod time {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct Monotonic;

        impl Monotonic {
            pub(crate) fn now() -> Self {
                Monotonic
            }
        }

        impl std::ops::Add<std::time::Duration> for Monotonic {
            type Output = Self;

            fn add(self, _: std::time::Duration) -> Self {
                self
            }
        }
    }

    // Loom's threads are all in one of std's.
    loom::thread_local! {
        static THREAD: std::cell::Cell<u32> = std::cell::Cell::new(0);
    }

    pub(crate) fn become_thread(thread: u32) {
        THREAD.with(|own| own.set(thread));
    }

    fn thread() -> u32 {
        THREAD.with(std::cell::Cell::get)
    }
}

#[allow(dead_code, reason = "what is tested does not use all of it")]
mod shared {
    pub(crate) mod atomic {
        use std::ops::Deref;
        use std::sync::atomic::Ordering;

        pub(crate) use loom::hint::spin_loop;
        pub(crate) use loom::sync::atomic::{AtomicU64, fence};

        /// Loom does not know that nothing comes between what a swap reads and what it writes: to it, who swaps may have done so
        /// after a store that he has not seen, and then nobody sees that store. Two swaps have one order.
        #[derive(Debug)]
        pub(crate) struct AtomicU32(loom::sync::atomic::AtomicU32);

        impl AtomicU32 {
            pub(crate) fn new(value: u32) -> Self {
                AtomicU32(loom::sync::atomic::AtomicU32::new(value))
            }

            pub(crate) fn store(&self, value: u32, order: Ordering) {
                self.0.swap(value, order);
            }
        }

        impl Deref for AtomicU32 {
            type Target = loom::sync::atomic::AtomicU32;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }
    }
    #[path = "../../../../src/shared/error.rs"]
    pub(crate) mod error;
    #[path = "../../../../src/shared/event.rs"]
    pub(crate) mod event;
    #[path = "../../../../src/shared/hold.rs"]
    pub(crate) mod hold;
    #[path = "../../../../src/shared/lock.rs"]
    pub(crate) mod lock;
    #[path = "../../../../src/shared/pair.rs"]
    pub(crate) mod pair;
    #[path = "../../../../src/shared/plain.rs"]
    mod real_plain;
    /// In loom nothing is read before it is written, as a processor may have it. So who writes a value asks whether he may.
    pub(crate) mod plain {
        use std::cell::Cell;

        use loom::sync::atomic::Ordering::Relaxed;

        use super::atomic::AtomicU64;
        use super::real_plain as real;
        pub(crate) use super::real_plain::Plain;

        loom::thread_local! {
            static MAY_WRITE: Cell<Option<&'static AtomicU64>> = Cell::new(None);
        }

        /// From now on this thread writes only when it can see that this is not 0.
        pub(crate) fn write_only_after(word: &'static AtomicU64) {
            MAY_WRITE.with(|may| may.set(Some(word)));
        }

        pub(crate) const fn words<T>() -> usize {
            real::words::<T>()
        }

        pub(crate) fn load<T: Plain>(words: &[AtomicU64]) -> T {
            real::load(words)
        }

        pub(crate) fn store<T: Plain>(words: &[AtomicU64], value: &T) {
            let may = MAY_WRITE.with(Cell::get);
            assert!(
                may.is_none_or(|word| word.load(Relaxed) != 0),
                "what is overwritten is not in use any more"
            );
            real::store(words, value);
        }
    }
    #[path = "../../../../src/shared/queue.rs"]
    pub(crate) mod queue;
    #[path = "../../../../src/shared/table.rs"]
    pub(crate) mod table;
    #[path = "../../../../src/shared/word.rs"]
    pub(crate) mod word;

    mod queues;
    mod tables;
    mod tests;
}
