//! Memory that children do not get.
//!
//! What a worker writes for every connection, and its children never read, would be copied page by page for each of
//! them: first the page table by fork, then the pages by whoever writes first. `MADV_DONTFORK` (madvise(2)) spares both.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator, Layout};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, mprotect};
#[cfg(not(miri))]
use nix::sys::mman::{madvise, mmap_anonymous, munmap};

#[cfg(miri)]
use super::interpreted::{madvise, mmap_anonymous, munmap};

pub(super) const PAGE: usize = 4096;

/// A private mapping, at first all of it absent from children.
#[derive(Debug)]
pub(crate) struct DontForkMapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

impl DontForkMapping {
    /// `length` zero bytes, rounded up to whole pages; none takes memory before it is written.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let length = length.max(1).next_multiple_of(PAGE);
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        let mapping = DontForkMapping { start, length };
        mapping.advise(0..length, MmapAdvise::MADV_DONTFORK)?;
        Ok(mapping)
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// Lets children have this part after all.
    pub(super) fn give_to_children(&self, part: Range<usize>) -> io::Result<()> {
        self.advise(part, MmapAdvise::MADV_DOFORK)
    }

    /// Makes every access to this part a fault.
    pub(super) fn forbid(&self, part: Range<usize>) -> io::Result<()> {
        let (start, length) = self.part(part);
        // SAFETY: inside this mapping, to which nobody has a reference yet.
        Ok(unsafe { mprotect(start, length, ProtFlags::PROT_NONE) }?)
    }

    fn advise(&self, part: Range<usize>, advice: MmapAdvise) -> io::Result<()> {
        let (start, length) = self.part(part);
        // SAFETY: inside this mapping; what children get changes nothing in this process.
        Ok(unsafe { madvise(start, length, advice) }?)
    }

    fn part(&self, part: Range<usize>) -> (NonNull<libc::c_void>, usize) {
        let end = part.end.min(self.length);
        let start = part.start.min(end);
        // SAFETY: at most one past the mapping.
        (unsafe { self.start.byte_add(start) }, end - start)
    }
}

impl Drop for DontForkMapping {
    fn drop(&mut self) {
        // SAFETY: maps exactly what `new` mapped, and nobody refers into it any more.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

/// An allocator for collections that are a worker's own business. Each allocation is a mapping of its own, so it is for
/// few and large ones. Not [`Send`], and so nothing that a child can be given: see [`super::fork`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct DontForkAlloc(PhantomData<*mut ()>);

impl DontForkAlloc {
    pub(crate) const fn new() -> Self {
        DontForkAlloc(PhantomData)
    }
}

// SAFETY: each block is a mapping of its own, page-aligned, valid until it is deallocated, and the allocator has no
// state, so that all its copies are the same.
unsafe impl Allocator for DontForkAlloc {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.align() > PAGE {
            return Err(AllocError);
        }
        let memory =
            std::mem::ManuallyDrop::new(DontForkMapping::new(layout.size()).map_err(|_| AllocError)?);
        Ok(NonNull::slice_from_raw_parts(memory.start.cast(), memory.length))
    }

    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
        drop(DontForkMapping { start: start.cast(), length: layout.size().max(1).next_multiple_of(PAGE) });
    }
}

/// Keeps the stack of this process from its children, below this address; it stays so as the stack grows. Only children that begin
/// on another stack can be made from now on.
pub(super) fn keep_stack(below: usize) -> io::Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find(|line| line.ends_with("[stack]"));
    let range = line.and_then(|line| line.split_whitespace().next()?.split_once('-'));
    let bounds = range.map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)));
    match bounds {
        Some((Ok(start), Ok(end))) if start < end.min(below) => keep(start, end.min(below) - start),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The same for the alternate signal stack and the guard page that std puts below it.
pub(super) fn keep_signal_stack() -> io::Result<()> {
    // SAFETY: stack_t is plain data, for which zero is a value.
    let mut current: libc::stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: only reads the setting, into a live local.
    super::check(unsafe { libc::sigaltstack(std::ptr::null(), &mut current) })?;
    let start = current.ss_sp as usize;
    if current.ss_flags & libc::SS_DISABLE != 0 || start < PAGE {
        return Ok(());
    }
    keep(start - PAGE, current.ss_size.next_multiple_of(PAGE) + PAGE)
}

fn keep(start: usize, length: usize) -> io::Result<()> {
    // SAFETY: the kernel checks the range, and MADV_DONTFORK changes nothing in this process.
    let result = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTFORK) };
    super::check(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_work_in_it() {
        let mut numbers = allocator_api2::vec::Vec::new_in(DontForkAlloc::new());
        (0..10_000u32).for_each(|number| numbers.push(number));
        assert!(numbers.iter().copied().eq(0..10_000));
    }
}
