//! Memory that processes share: a sealed memfd, mapped as atomic words only.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::{FcntlArg, SealFlag};
use nix::sys::memfd::MFdFlags;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};
#[cfg(not(miri))]
use nix::{
    fcntl::fcntl,
    sys::memfd::memfd_create,
    sys::mman::{madvise, mmap, mmap_anonymous, munmap},
    sys::stat::fstat,
};

#[cfg(miri)]
use super::interpreted::{fcntl, fstat, madvise, memfd_create, mmap, mmap_anonymous, munmap};

#[cfg(test)]
pub(crate) use crate::sys::kill_points::{AtomicU32, AtomicU64};
#[cfg(not(test))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64};

/// A new memory file of `length` zero bytes. It can grow but never shrink, so nobody who has it can make another
/// process's access fail with SIGBUS.
pub(crate) fn create(name: &CStr, length: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    grow(fd.as_fd(), length)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    Ok(fd)
}

/// The same memory file for who shall only read it: neither this descriptor nor a mapping of it can be made writable.
pub(crate) fn to_read(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.into())
}

/// Makes a memory file at least `length` bytes long; mappings of the first part stay valid.
pub(crate) fn grow(fd: BorrowedFd<'_>, length: usize) -> io::Result<()> {
    let file = File::from(fd.try_clone_to_owned()?);
    if file.metadata()?.len() < length as u64 { file.set_len(length as u64) } else { Ok(()) }
}

/// Waits until no other process has the lock on a file, and takes it: fcntl_locking(2). It is given back when this process
/// ends or closes any descriptor of that file.
pub(crate) fn lock(file: BorrowedFd<'_>) -> io::Result<()> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        match fcntl(file, FcntlArg::F_SETLKW(&whole)) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return Ok(result.map(|_| ())?),
        }
    }
}

/// A memory file with `content` that nobody can change any more.
pub(crate) fn sealed(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    let seals =
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Whether nobody can change a memory file any more.
fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    let wanted = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(fd, FcntlArg::F_GET_SEALS).is_ok_and(|seals| SealFlag::from_bits_truncate(seals).contains(wanted))
}

/// The content of a memory file of at most `longest` bytes that nobody can change any more, as [`sealed`] makes it.
///
/// # Errors
///
/// `InvalidData` if it can be changed or is longer.
pub(crate) fn read_sealed(fd: OwnedFd, longest: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let is_sealed = is_sealed(fd.as_fd());
    let mut file = File::from(fd);
    if !is_sealed || file.metadata()?.len() > longest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the memory file is too long or not sealed"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// A mapping of a memory file, shared with every process that maps the same file, absent from forked children.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the file is shorter: touching what is missing would kill this process.
    pub(crate) fn new(fd: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let mapping = Mapping::shared(fd, length)?;
        mapping.keep_from_children()?;
        Ok(mapping)
    }

    /// As [`Mapping::new`], but children have it, too.
    fn shared(fd: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        Mapping::map(fd, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)
    }

    /// A connection process must not have this memory, and a fork is cheaper without it.
    fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: MADV_DONTFORK changes nothing in this process.
        Ok(unsafe { madvise(self.start, self.length, MmapAdvise::MADV_DONTFORK) }?)
    }

    fn map(fd: BorrowedFd<'_>, length: usize, protection: ProtFlags, flags: MapFlags) -> io::Result<Self> {
        let seals = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS)?);
        let size = fstat(fd)?.st_size;
        if !seals.contains(SealFlag::F_SEAL_SHRINK) || u64::try_from(size).unwrap_or(0) < length as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the memory file is too short or can shrink",
            ));
        }
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice; the checks above keep it from raising SIGBUS.
        let start = unsafe { mmap(None, size, protection, flags, fd, 0) }?;
        Ok(Mapping { start, length })
    }

    /// `count` 32-bit words from byte `offset`; shorter if the mapping ends before.
    pub(crate) fn words(&self, offset: usize, count: usize) -> &[AtomicU32] {
        self.atomics(offset, count)
    }

    /// `count` 64-bit words from byte `offset`; shorter if the mapping ends before.
    pub(crate) fn long_words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.atomics(offset, count)
    }

    /// The word at byte `offset`, for a pid that the kernel writes.
    pub(crate) fn signed_word(&self, offset: usize) -> Option<&AtomicI32> {
        self.atomics(offset, 1).first()
    }

    fn atomics<T: Atomic>(&self, offset: usize, count: usize) -> &[T] {
        let size = size_of::<T>();
        debug_assert_eq!(offset % size, 0, "words are aligned");
        let offset = (offset / size * size).min(self.length / size * size);
        let count = count.min((self.length - offset) / size);
        // SAFETY: `offset` is at most `length`, so this stays in the mapping or one past it.
        let start = unsafe { self.start.as_ptr().cast::<u8>().add(offset) };
        // SAFETY: inside the mapping, which lives as long as self; aligned; every bit pattern is a value. Other processes
        // write it by atomic operations only. The kernel does, too, with one exception: a child's pid
        // (CLONE_PARENT_SETTID), which it puts there by a plain store of the whole aligned word, never torn.
        unsafe { std::slice::from_raw_parts(start.cast(), count) }
    }
}

/// What memory that others write at the same time can be seen as.
trait Atomic {}
impl Atomic for AtomicU32 {}
impl Atomic for AtomicU64 {}
impl Atomic for AtomicI32 {}
#[cfg(test)]
impl Atomic for std::sync::atomic::AtomicU32 {}
#[cfg(test)]
impl Atomic for std::sync::atomic::AtomicU64 {}

/// A mapping of a memory file that children have, too, until they end.
#[derive(Debug)]
pub(crate) struct InheritedMapping(Mapping);

// SAFETY: it is never unmapped, and written by atomic operations only. Children have it.
unsafe impl Send for InheritedMapping {}
// SAFETY: as above.
unsafe impl Sync for InheritedMapping {}

impl InheritedMapping {
    /// Maps the first `length` bytes, until this process ends.
    ///
    /// # Errors
    ///
    /// As [`Mapping::new`].
    pub(crate) fn new(fd: BorrowedFd<'_>, length: usize) -> io::Result<&'static Self> {
        Ok(Box::leak(Box::new(InheritedMapping(Mapping::shared(fd, length)?))))
    }

    /// `count` 32-bit words from byte `offset`; fewer if the mapping ends before.
    pub(crate) fn words(&self, offset: usize, count: usize) -> &[std::sync::atomic::AtomicU32] {
        self.0.atomics(offset, count)
    }

    /// `count` 64-bit words from byte `offset`; fewer if the mapping ends before.
    pub(crate) fn long_words(&self, offset: usize, count: usize) -> &[std::sync::atomic::AtomicU64] {
        self.0.atomics(offset, count)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: maps exactly what `new` mapped, and no reference into it outlives self. An error would leave a
        // mapping that nobody uses.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

/// Memory that another process writes and this one only reads.
#[derive(Debug)]
pub(crate) struct ReadMapping {
    mapping: Mapping,
    children_have_it: bool,
}

// SAFETY: it is read by atomic operations only, and any thread may unmap it.
unsafe impl Send for ReadMapping {}
// SAFETY: it is read by atomic operations only.
unsafe impl Sync for ReadMapping {}

impl ReadMapping {
    /// Maps the first `length` bytes of what [`to_read`] has returned; children have it only if they are `to_have_it`.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the file is shorter.
    pub(crate) fn new(fd: BorrowedFd<'_>, length: usize, to_have_it: bool) -> io::Result<Self> {
        // Linux shows in a private mapping, too, what others write to the file, for pages that were not written here. And
        // whoever makes it writable in a child that he has captured writes to a copy of his own.
        let mapping = Mapping::map(fd, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE)?;
        if !to_have_it {
            mapping.keep_from_children()?;
        }
        Ok(ReadMapping { mapping, children_have_it: to_have_it })
    }

    /// In a child, if it has it: from now on there are zeros in its place.
    pub(crate) fn forget(&self) -> io::Result<()> {
        if !self.children_have_it {
            return Ok(());
        }
        let size = NonZeroUsize::new(self.mapping.length).ok_or(io::ErrorKind::InvalidInput)?;
        let place = NonZeroUsize::new(self.mapping.start.as_ptr() as usize);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        // SAFETY: it takes the place of exactly what `new` mapped. References into that are to atomic words, which are there
        // as before.
        unsafe { mmap_anonymous(place, size, ProtFlags::PROT_READ, flags) }?;
        Ok(())
    }

    /// The 64-bit word with this number; 0 if there is none.
    pub(crate) fn word(&self, index: usize) -> u64 {
        let word = self.mapping.long_words(index.saturating_mul(8), 1).first();
        word.map_or(0, |word| word.load(Ordering::SeqCst))
    }
}

/// Memory that nobody can write any more, not even who has it: a sealed file, mapped to be read. Children have it, too, and
/// a fork copies nothing of it.
#[derive(Debug)]
pub(crate) struct SealedMapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: nobody writes it, and any thread may unmap it. Children have it.
unsafe impl Send for SealedMapping {}
// SAFETY: nobody writes it.
unsafe impl Sync for SealedMapping {}

/// A number of which every bit pattern is a value.
trait Number {}
impl Number for u32 {}
impl Number for u128 {}

impl SealedMapping {
    /// Maps a memory file that [`sealed`] has made.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it can be changed or is empty.
    pub(crate) fn open(file: BorrowedFd<'_>) -> io::Result<Self> {
        let size = fstat(file)?.st_size;
        let size = usize::try_from(size).ok().and_then(NonZeroUsize::new).filter(|_| is_sealed(file));
        let size = size.ok_or(io::ErrorKind::InvalidData)?;
        // A shared mapping of such a file is refused by kernels before 6.7, even to read, memfd_create(2).
        // SAFETY: a new mapping at an address of the kernel's choice; the seals keep it from raising SIGBUS.
        let start = unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, file, 0) }?;
        Ok(SealedMapping { start, length: size.get() })
    }

    /// `count` numbers from byte `offset` on; none if there are not so many.
    pub(crate) fn numbers(&self, offset: usize, count: usize) -> &[u32] {
        self.at(offset, count)
    }

    /// As [`SealedMapping::numbers`], of 128 bits.
    pub(crate) fn wide_numbers(&self, offset: usize, count: usize) -> &[u128] {
        self.at(offset, count)
    }

    fn at<T: Number>(&self, offset: usize, count: usize) -> &[T] {
        let end = count.checked_mul(size_of::<T>()).and_then(|length| length.checked_add(offset));
        let is_inside = end.is_some_and(|end| end <= self.length) && offset % size_of::<T>() == 0;
        if count == 0 || !is_inside {
            return &[];
        }
        // SAFETY: `offset` is inside the mapping.
        let place = unsafe { self.start.as_ptr().cast::<u8>().add(offset) };
        // SAFETY: inside the mapping, which lives as long as self and which nobody can write; aligned, since mappings
        // begin with a page; every bit pattern is a value.
        unsafe { std::slice::from_raw_parts(place.cast(), count) }
    }
}

impl Drop for SealedMapping {
    fn drop(&mut self) {
        // SAFETY: maps exactly what `open` mapped, and no reference into it outlives self.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

/// Gives memory that is free back to the system, so that forks do not copy its page tables.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// An eventfd that does not block, starting at 0.
pub(crate) fn event() -> io::Result<OwnedFd> {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    Ok(event.into())
}

/// Adds 1 to an eventfd. It cannot fail but for a count near 2^64, when all are awake anyway.
pub(crate) fn ring(event: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight readable bytes, as eventfd(2) wants.
    unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}
