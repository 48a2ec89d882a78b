//! What the kernel is told about a thread that may be killed between any two instructions: which locks it has, and which
//! word it was about to change. When it dies, the kernel marks the first and wakes who waits for the second:
//! get_robust_list(2), Documentation/locking/robust-futex-ABI.rst.
//!
//! A thread can have one such list. libc's is for the robust mutexes of pthreads, with links that it follows and writes through
//! in shared memory, where a captured process can change them. This one is only ever read by the kernel, which expects the
//! worst; what the thread itself needs to know is in private memory. A thread that has a seat here is without libc's list.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicIsize, AtomicU64, AtomicUsize, compiler_fence};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};
#[cfg(not(miri))]
use nix::sys::mman::{madvise, mmap_anonymous, munmap};

#[cfg(miri)]
use super::interpreted::{madvise, mmap_anonymous, munmap, set_robust_list};

/// How many locks a thread can have at a time.
pub(crate) const MOST: usize = 16;

/// How far the word of a lock is behind its entry in the list, as the kernel adds it: the word comes first.
const WORD_OF_ENTRY: isize = -(ENTRY_OF_WORD as isize);

/// How far the entry of a lock is behind its word, in bytes.
pub(crate) const ENTRY_OF_WORD: usize = 8;

/// In the address of an entry: the word is one of FUTEX_LOCK_PI.
const PI: usize = 1;

/// A thread's list, alone on a page that is zero again in a forked child.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Seat {
    /// `struct robust_list_head` of linux/futex.h, up to `pending`.
    first: AtomicUsize,
    offset: AtomicIsize,
    pending: AtomicUsize,
    /// This thread's id, 0 if the kernel does not know of this list.
    thread: Cell<u32>,
    count: Cell<usize>,
    entries: [Cell<Option<&'static AtomicU64>>; MOST],
    /// Of the same locks, ascending.
    ranks: [Cell<u64>; MOST],
}

/// The seat of a thread, until that ends.
struct Seated(Cell<Option<NonNull<Seat>>>);

thread_local! {
    static SEATED: Seated = const { Seated(Cell::new(None)) };
}

/// Has the memory of this thread's seat ready, so that children need not ask for any.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn reserve() -> io::Result<()> {
    SEATED.try_with(|seated| seated.page().map(|_| ())).map_err(io::Error::other)?
}

/// Does something with this thread's seat.
///
/// # Errors
///
/// `ENOMEM`; `ENOSYS` or `EPERM` where a sandbox forbids set_robust_list(2). Also in the last moments of a thread.
pub(crate) fn with_seat<R>(work: impl FnOnce(&Seat) -> R) -> io::Result<R> {
    let done = SEATED.try_with(|seated| {
        let seat = seated.page()?;
        // SAFETY: page() has it mapped; it is zero or what this thread has made of it, and unmapped when the thread ends.
        // All zero is a Seat.
        let seat = unsafe { seat.as_ref() };
        if seat.thread.get() == 0 {
            seat.register()?;
        }
        Ok(work(seat))
    });
    done.map_err(io::Error::other)?
}

impl Seated {
    fn page(&self) -> io::Result<NonNull<Seat>> {
        if let Some(seat) = self.0.get() {
            return Ok(seat);
        }
        let length = const { NonZeroUsize::new(size_of::<Seat>()) }.ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new private memory at an address of the kernel's choice.
        let page = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        // A child has neither its parent's id nor its parent's locks.
        // SAFETY: memory that is all ours; nothing is there yet.
        unsafe { madvise(page, size_of::<Seat>(), MmapAdvise::MADV_WIPEONFORK) }?;
        self.0.set(Some(page.cast()));
        Ok(page.cast())
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let Some(page) = self.0.take() else { return };
        // SAFETY: as in `with_seat`.
        let seat = unsafe { page.as_ref() };
        if seat.count.get() > 0 {
            // A guard was forgotten; the kernel finds it here when this thread has ended.
            return;
        }
        if seat.thread.get() != 0 {
            // It cannot fail with the right length.
            let _ = set_robust_list(0);
        }
        // SAFETY: nobody refers to it: `with_seat` refuses from now on, and the kernel has forgotten it.
        let _ = unsafe { munmap(page.cast(), size_of::<Seat>()) };
    }
}

/// The size of what the kernel reads.
#[cfg(not(miri))]
const HEAD: usize = 3 * size_of::<usize>();

/// Tells the kernel where this thread's list is; 0 for nowhere.
#[cfg(not(miri))]
fn set_robust_list(head: usize) -> io::Result<()> {
    // SAFETY: nowhere, or three words as the kernel expects them, which stay until it is told of others or the thread has ended.
    match unsafe { libc::syscall(libc::SYS_set_robust_list, head, HEAD) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Seat {
    fn register(&self) -> io::Result<()> {
        self.first.store(self.head(), Relaxed);
        self.offset.store(WORD_OF_ENTRY, Relaxed);
        // SAFETY: gettid(2) cannot fail and touches nothing.
        let thread = unsafe { libc::gettid() };
        set_robust_list(self.head())?;
        self.thread.set(thread.unsigned_abs());
        Ok(())
    }

    /// The end of the list is its beginning.
    fn head(&self) -> usize {
        (&raw const self.first).addr()
    }

    /// This thread's id.
    pub(crate) fn thread(&self) -> u32 {
        self.thread.get()
    }

    /// The rank of the last lock that this thread has taken and still has.
    pub(crate) fn highest(&self) -> Option<u64> {
        self.count.get().checked_sub(1).and_then(|last| self.ranks.get(last)).map(Cell::get)
    }

    /// Whether it has as many locks as it can.
    pub(crate) fn is_full(&self) -> bool {
        self.count.get() >= MOST
    }

    /// From now on, until [`Seat::done`]: if this thread dies and the word of this lock says that it is its owner, it is marked.
    pub(crate) fn take_or_give(&self, entry: &'static AtomicU64) {
        self.intend(address(entry));
    }

    /// From now on, until [`Seat::done`]: if this thread dies, one who sleeps on the word before this address is woken. The
    /// word must be one that never has a thread's id in it.
    pub(crate) fn wake(&self, behind_word: usize) {
        self.intend(behind_word);
    }

    fn intend(&self, entry: usize) {
        // The kernel looks when this thread has run its last instruction: the order of instructions is all that counts.
        compiler_fence(std::sync::atomic::Ordering::SeqCst);
        self.pending.store(entry, Relaxed);
        compiler_fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// What was begun is done.
    pub(crate) fn done(&self) {
        self.intend(0);
    }

    /// Puts a lock on the list, which has room.
    pub(crate) fn add(&self, entry: &'static AtomicU64, rank: u64) {
        let count = self.count.get();
        if let (Some(place), Some(its_rank)) = (self.entries.get(count), self.ranks.get(count)) {
            place.set(Some(entry));
            its_rank.set(rank);
            self.count.set(count + 1);
            entry.store(self.before(count) as u64, Relaxed);
            compiler_fence(std::sync::atomic::Ordering::SeqCst);
            self.first.store(address(entry), Relaxed);
        }
    }

    /// Takes a lock off the list. Whether it was there.
    pub(crate) fn remove(&self, entry: &'static AtomicU64) -> bool {
        let count = self.count.get();
        let held = self.entries.iter().take(count);
        let Some(place) =
            held.clone().position(|held| held.get().is_some_and(|held| std::ptr::eq(held, entry)))
        else {
            return false;
        };
        let rest = self.before(place);
        // The list begins with the last.
        match held.clone().nth(place + 1).and_then(Cell::get) {
            Some(next) => next.store(rest as u64, Relaxed),
            None => self.first.store(rest, Relaxed),
        }
        for later in place + 1..count {
            self.entries[later - 1].set(self.entries[later].get());
            self.ranks[later - 1].set(self.ranks[later].get());
        }
        self.entries[count - 1].set(None);
        self.count.set(count - 1);
        true
    }

    /// What follows on the list after the lock with this place.
    fn before(&self, place: usize) -> usize {
        let before = place.checked_sub(1).and_then(|place| self.entries[place].get());
        before.map_or(self.head(), address)
    }
}

fn address(entry: &'static AtomicU64) -> usize {
    entry.as_ptr().addr() | PI
}
