//! What miri has instead of the system: it has no memfd_create(2), maps no files, and knows no locks of the kernel. Tests in it
//! get the same memory, each word of which it watches.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::Release};
use std::sync::{Mutex, PoisonError};

use libc::c_void;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag};
use nix::sys::memfd::MFdFlags;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};
use nix::sys::stat::FileStat;

use super::time::Monotonic;

/// Memory that was mapped.
struct Mapped {
    /// The file that it is of, and whoever maps that shares it, until the number is another file's.
    file: Option<RawFd>,
    start: NonNull<c_void>,
    length: usize,
    /// How many have it, and the file.
    users: usize,
}

// SAFETY: only its place is kept here.
unsafe impl Send for Mapped {}

static MAPPED: Mutex<Vec<Mapped>> = Mutex::new(Vec::new());

fn with_mapped<R>(work: impl FnOnce(&mut Vec<Mapped>) -> R) -> R {
    work(&mut MAPPED.lock().unwrap_or_else(PoisonError::into_inner))
}

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A file without a name.
pub(super) fn memfd_create(name: &CStr, _: MFdFlags) -> nix::Result<OwnedFd> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    // Interpreters of one program run beside each other, each with the same numbers.
    let (file, path) = loop {
        let number = MADE.fetch_add(1, Relaxed);
        let name = format!("{}-{}-{number}", name.to_string_lossy(), std::process::id());
        let path = std::env::temp_dir().join(name);
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => break (opened.map_err(errno)?, path),
        }
    };
    std::fs::remove_file(&path).map_err(errno)?;
    let number = Some(file.as_raw_fd());
    give_back(|mapped| {
        let is_of_it = mapped.file == number;
        if is_of_it {
            mapped.file = None;
        }
        is_of_it
    });
    Ok(file.into())
}

/// It has all seals that anybody asks for.
pub(super) fn fcntl(_: impl AsFd, what: FcntlArg<'_>) -> nix::Result<libc::c_int> {
    match what {
        FcntlArg::F_ADD_SEALS(_) => Ok(0),
        FcntlArg::F_GET_SEALS => Ok(SealFlag::all().bits()),
        _ => Err(Errno::ENOSYS),
    }
}

/// Its length.
pub(super) fn fstat(file: impl AsFd) -> nix::Result<FileStat> {
    let length = opened(file)?.metadata().map_err(errno)?.len();
    // SAFETY: numbers, for all of which 0 is a value.
    let mut stat: FileStat = unsafe { std::mem::zeroed() };
    stat.st_size = length as libc::off_t;
    Ok(stat)
}

fn opened(file: impl AsFd) -> nix::Result<File> {
    Ok(file.as_fd().try_clone_to_owned().map_err(errno)?.into())
}

/// What is in the file now; what is written to the one is not in the other from then on.
pub(super) unsafe fn mmap(
    _: Option<NonZeroUsize>,
    length: NonZeroUsize,
    _: ProtFlags,
    _: MapFlags,
    file: impl AsFd,
    _: libc::off_t,
) -> nix::Result<NonNull<c_void>> {
    let number = Some(file.as_fd().as_raw_fd());
    let shared = with_mapped(|all| {
        let mapped = all.iter_mut().find(|mapped| mapped.file == number && mapped.length == length.get())?;
        mapped.users += 1;
        Some(mapped.start)
    });
    if let Some(start) = shared {
        return Ok(start);
    }
    let start = allocate(number, length)?;
    // SAFETY: as long as it was allocated, and nobody else's yet.
    let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), length.get()) };
    opened(file)?.read_exact_at(bytes, 0).map_err(errno)?;
    Ok(start)
}

pub(super) unsafe fn mmap_anonymous(
    _: Option<NonZeroUsize>,
    length: NonZeroUsize,
    _: ProtFlags,
    _: MapFlags,
) -> nix::Result<NonNull<c_void>> {
    allocate(None, length)
}

fn layout(length: usize) -> nix::Result<Layout> {
    Layout::from_size_align(length, 4096).map_err(|_| Errno::EINVAL)
}

fn allocate(file: Option<RawFd>, length: NonZeroUsize) -> nix::Result<NonNull<c_void>> {
    // SAFETY: not of length 0.
    let start = unsafe { alloc_zeroed(layout(length.get())?) };
    let start = NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?;
    let users = 1 + usize::from(file.is_some());
    with_mapped(|all| all.push(Mapped { file, start, length: length.get(), users }));
    Ok(start)
}

pub(super) unsafe fn munmap(start: NonNull<c_void>, _: usize) -> nix::Result<()> {
    give_back(|mapped| mapped.start == start);
    Ok(())
}

/// One less has what is such memory.
fn give_back(mut is_such: impl FnMut(&mut Mapped) -> bool) {
    with_mapped(|all| {
        all.iter_mut().for_each(|mapped| mapped.users -= usize::from(is_such(mapped)));
        all.retain(|mapped| {
            if let (0, Ok(layout)) = (mapped.users, layout(mapped.length)) {
                // SAFETY: allocated with this layout, and nobody has it any more.
                unsafe { dealloc(mapped.start.as_ptr().cast(), layout) };
            }
            mapped.users > 0
        });
    });
}

/// Nothing is forked.
pub(super) unsafe fn madvise(_: NonNull<c_void>, _: usize, _: MmapAdvise) -> nix::Result<()> {
    Ok(())
}

/// Nobody is killed.
pub(super) fn set_robust_list(_: usize) -> io::Result<()> {
    Ok(())
}

/// The operations of `FUTEX_LOCK_PI`, among threads that do not die. What is given back is ordered behind what its owner did, and
/// nothing else is ordered; `tests/loom` says why.
pub(super) fn lock_of_kernel(
    word: &AtomicU32,
    operation: libc::c_int,
    until: Option<Monotonic>,
) -> Option<io::Result<()>> {
    const WAITERS: u32 = libc::FUTEX_WAITERS;
    const THREAD: u32 = libc::FUTEX_TID_MASK;
    // SAFETY: gettid(2) cannot fail and touches nothing.
    let thread = unsafe { libc::gettid() }.unsigned_abs();
    let error = |number| Some(Err(io::Error::from_raw_os_error(number)));
    match operation {
        libc::FUTEX_WAIT_BITSET | libc::FUTEX_WAKE => return None,
        libc::FUTEX_UNLOCK_PI => {
            word.swap(0, Release);
            return Some(Ok(()));
        }
        _ => {}
    }
    loop {
        let take = |seen| (seen & THREAD == 0).then_some(thread | seen & libc::FUTEX_OWNER_DIED);
        match word.fetch_update(Relaxed, Relaxed, take) {
            Ok(_) => return Some(Ok(())),
            Err(_) if operation == libc::FUTEX_TRYLOCK_PI => return error(libc::EAGAIN),
            Err(seen) if seen & THREAD == thread => return error(libc::EDEADLK),
            Err(_) if until.is_some_and(|until| Monotonic::now() >= until) => return error(libc::ETIMEDOUT),
            Err(_) => {}
        }
        let wait = |seen| (seen & THREAD != 0).then_some(seen | WAITERS);
        let _ = word.fetch_update(Relaxed, Relaxed, wait);
        std::thread::yield_now();
    }
}
