//! One who sleeps until another has changed something.

use std::io;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::atomic::{AtomicU32, fence};
use crate::sys::futex;
use crate::sys::time::Monotonic;

/// The word says that somebody sleeps, or is about to: never more than one, and he has a lock that makes him that one.
///
/// It is of those that have no thread's id, so the kernel wakes the sleeper if who is to wake him dies first: `Seat::wake`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event<'a>(pub(super) &'a AtomicU32);

/// `FUTEX_WAITERS`.
const ASLEEP: u32 = 0x8000_0000;

impl Event<'_> {
    /// Where the word is.
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self.0).addr()
    }

    /// To be said before looking for the last time.
    pub(super) fn announce(&self) {
        self.0.store(ASLEEP, Relaxed);
        // Either who changes something sees this, or the look that follows sees the change.
        fence(SeqCst);
    }

    /// The look has found something, or there is no more time.
    pub(super) fn withdraw(&self) {
        self.0.store(0, Relaxed);
    }

    /// Sleeps until somebody rings.
    pub(super) fn sleep(&self, until: Option<Monotonic>) -> io::Result<()> {
        futex::wait(self.0, ASLEEP, until)
    }

    /// Something has changed.
    pub(super) fn ring(&self) {
        fence(SeqCst);
        if self.0.load(Relaxed) != 0 && self.0.swap(0, Relaxed) != 0 {
            futex::wake_one(self.0);
        }
    }
}
