//! Waiting in the kernel for a word of shared memory to change: futex(2). All words are between processes.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::AtomicU32;

use super::time::Monotonic;

/// `FUTEX_LOCK_PI2` of linux/futex.h, Linux 5.14: `FUTEX_LOCK_PI` by the clock that nobody sets.
const LOCK_PI2: libc::c_int = 13;

/// Sleeps while the word is `value`, until somebody wakes it.
///
/// # Errors
///
/// `EAGAIN`: it is not `value`. `EINTR`: a signal. `ETIMEDOUT`: that moment has come.
pub(crate) fn wait(word: &AtomicU32, value: u32, until: Option<Monotonic>) -> io::Result<()> {
    call(word, libc::FUTEX_WAIT_BITSET, value, until)
}

/// Wakes one who sleeps on the word.
pub(crate) fn wake_one(word: &AtomicU32) {
    // It fails for an address that is no word's.
    let _ = call(word, libc::FUTEX_WAKE, 1, None);
}

/// Waits in the kernel's queue until the word is handed to this thread: in the order of arrival, among threads of equal
/// priority. Who dies in the queue leaves it. The kernel writes this thread's id to the word.
///
/// # Errors
///
/// `ETIMEDOUT`: that moment has come. `EDEADLK`: this thread has it, or has what its owner waits for. `ESRCH`: the word names
/// no thread. `EPERM`, `EINVAL`: nor could it. `EAGAIN`, `EINTR`: once more, please. `ENOMEM`; `ENOSYS` with a moment, before
/// Linux 5.14.
pub(crate) fn lock_pi(word: &AtomicU32, until: Option<Monotonic>) -> io::Result<()> {
    let operation = if until.is_some() { LOCK_PI2 } else { libc::FUTEX_LOCK_PI };
    call(word, operation, 0, until)
}

/// As [`lock_pi`], without waiting.
///
/// # Errors
///
/// `EAGAIN`: somebody has it, or is just dying with it. Else as [`lock_pi`].
pub(crate) fn try_lock_pi(word: &AtomicU32) -> io::Result<()> {
    call(word, libc::FUTEX_TRYLOCK_PI, 0, None)
}

/// Hands the word, which is this thread's, to the one who has waited longest, or makes it 0.
///
/// # Errors
///
/// `EPERM`: it is not this thread's. `EINVAL`: somebody has written to it who must not.
pub(crate) fn unlock_pi(word: &AtomicU32) -> io::Result<()> {
    call(word, libc::FUTEX_UNLOCK_PI, 0, None)
}

fn call(word: &AtomicU32, operation: libc::c_int, value: u32, until: Option<Monotonic>) -> io::Result<()> {
    #[cfg(miri)]
    if let Some(done) = super::interpreted::lock_of_kernel(word, operation, until) {
        return done;
    }
    const SECOND: u64 = 1_000_000_000;
    // A moment is at most 2^64 ns, so both parts fit.
    let until = until.map(|until| libc::timespec {
        tv_sec: (until.nanos() / SECOND) as libc::time_t,
        tv_nsec: (until.nanos() % SECOND) as libc::c_long,
    });
    let until = until.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: a live word, which the kernel changes as one; null or a live timespec. The fifth argument is not used by these
    // operations, the sixth by FUTEX_WAIT_BITSET only: woken by anybody.
    let result =
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, until, 0usize, u32::MAX) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
