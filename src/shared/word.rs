//! The word of a lock: 0, or the id of the thread that has it, with the kernel's two bits. Between two who meet, the kernel
//! decides: `FUTEX_LOCK_PI` of futex(2) hands the word to the one who has waited longest, so nobody starves and nobody
//! overtakes a queue; who dies in the queue leaves it; and when the owner dies, the word says so.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::atomic::{AtomicU32, spin_loop};
use super::error::SharedError;
use crate::sys::futex;
use crate::sys::time::Monotonic;

/// `FUTEX_TID_MASK`, `FUTEX_OWNER_DIED` and `FUTEX_WAITERS` of linux/futex.h.
const THREAD: u32 = 0x3fff_ffff;
const OWNER_DIED: u32 = 0x4000_0000;
const WAITERS: u32 = 0x8000_0000;

/// How often to look again at a word for which nobody queues, before asking the kernel: about as long as another process
/// takes to change a small value.
const LOOKS: u32 = 40;

/// For how long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Never,
    Until(Monotonic),
    Forever,
}

impl Patience {
    /// The end of it, if there is one.
    pub(super) fn until(self) -> Option<Monotonic> {
        if let Patience::Until(moment) = self { Some(moment) } else { None }
    }
}

/// Makes the word this thread's. Whether its last owner died; this is told once.
pub(super) fn take(
    word: &AtomicU32,
    thread: u32,
    patience: Patience,
    name: &'static str,
) -> Result<bool, SharedError> {
    if word.compare_exchange(0, thread, Acquire, Relaxed).is_ok() {
        return Ok(false);
    }
    if patience != Patience::Never {
        for _ in 0..LOOKS {
            let seen = word.load(Relaxed);
            if seen & WAITERS != 0 {
                break;
            }
            if seen == 0 && word.compare_exchange(0, thread, Acquire, Relaxed).is_ok() {
                return Ok(false);
            }
            spin_loop();
        }
    }
    loop {
        let result = match patience {
            Patience::Never => futex::try_lock_pi(word),
            Patience::Until(moment) => futex::lock_pi(word, Some(moment)),
            Patience::Forever => futex::lock_pi(word, None),
        };
        let Err(error) = result else { break };
        match error.raw_os_error().unwrap_or(0) {
            libc::EAGAIN if patience == Patience::Never => return Err(SharedError::WouldBlock),
            libc::EAGAIN | libc::EINTR => {}
            libc::ETIMEDOUT => return Err(SharedError::TimedOut),
            libc::EDEADLK => return Err(SharedError::Order { name }),
            // The owner is gone, and the kernel was not told of the lock: the word was overwritten, or a guard forgotten by a
            // thread that ended. Who takes it over is its owner.
            libc::ESRCH => {
                let seen = word.load(Relaxed);
                let taken = seen & WAITERS | OWNER_DIED | thread;
                if seen & THREAD != 0 && word.compare_exchange(seen, taken, Relaxed, Relaxed).is_ok() {
                    break;
                }
            }
            libc::EPERM | libc::EINVAL => return Err(SharedError::Damaged { name }),
            _ => return Err(SharedError::System(error)),
        }
    }
    // Neither the kernel nor the exchange orders what the owner before did; this does.
    let died = word.load(Acquire) & OWNER_DIED != 0;
    if died {
        word.fetch_and(!OWNER_DIED, Relaxed);
    }
    Ok(died)
}

/// Gives the word, which is this thread's, to the next.
pub(super) fn give(word: &AtomicU32, thread: u32) {
    if word.compare_exchange(thread, 0, Release, Relaxed).is_err() {
        // It fails if somebody has overwritten the word; it is his, then.
        let _ = futex::unlock_pi(word);
    }
}
