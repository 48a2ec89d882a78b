//! The orders of memory in `src/shared`, in all that the language allows and not only in what this machine does: the same files,
//! with loom's words. A process is a thread here, and one that is killed is one that ends; what the kernel does then is in `sys`.
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

    pub(crate) mod time {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct Monotonic;
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
        pub(crate) use loom::hint::spin_loop;
        pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
    }
    #[path = "../../../../src/shared/error.rs"]
    pub(crate) mod error;
    #[path = "../../../../src/shared/event.rs"]
    pub(crate) mod event;
    #[path = "../../../../src/shared/pair.rs"]
    pub(crate) mod pair;
    #[path = "../../../../src/shared/word.rs"]
    pub(crate) mod word;

    mod tests;
}
