//! Making a process.
//!
//! Three ways, all clone(2): [`fork`], for what happens once; [`ChildStack::fork`], for every connection, where each page
//! that both sides write costs a fault and a copy; and [`ChildStack::run_until_exec`], which copies nothing at all.
//!
//! They are safe to call because of what they ask for. A child never returns into its parent's frames: it is given what to
//! do, and exits with the code that this answers. What it is given is [`Send`], for memory that children do not have
//! ([`super::dontfork`], [`super::memory::Mapping`]) is not, nor what refers to it. That the process has one thread, no type
//! can say: the house forbids threads, clippy.toml holds it to that, and here it is checked where it costs nothing.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::dontfork::{self, DontForkMapping};
use super::wait::Pid;
use super::{check, process, title};

/// Proof that this process was forked for what it runs, and that its table of descriptors is its own: whoever owns what is
/// closed there is a copy of a value of the parent's, that nobody comes back to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForkedChild(PhantomData<*mut ()>);

/// Proof that this process shares memory and descriptors with its parent, which waits.
#[derive(Debug)]
pub(crate) struct SharingChild(PhantomData<*mut ()>);

impl SharingChild {
    /// When it has a table of descriptors of its own.
    pub(super) fn with_own_table(self) -> ForkedChild {
        ForkedChild(PhantomData)
    }
}

/// Forks, once in a while; the child does `work` and exits with the code that it returns.
///
/// clone(2) and not fork(3): glibc's atfork handlers are bypassed, which is sound because the caller has one thread and
/// so holds no lock of libc's.
///
/// # Errors
///
/// `EAGAIN` and `ENOMEM`: no process can be had now. Also after [`exclude_stacks_from_fork`], and with a second thread.
pub(crate) fn fork<F: FnOnce(ForkedChild) -> u8 + Send>(work: F) -> io::Result<Pid> {
    /// Not Rust's ABI: nothing unwinds out of here.
    extern "C" fn begin<F: FnOnce(ForkedChild) -> u8>(work: &mut Option<F>) -> ! {
        process::exit(work.take().map_or(0, |work| work(ForkedChild(PhantomData))))
    }
    may_fork().map_err(io::Error::other)?;
    let mut work = Some(work);
    let (no_record, no_tls, no_stack) = (0usize, 0usize, 0usize);
    let child_tid = libc_tid();
    let flags = libc::SIGCHLD | child_tid_flags(child_tid);
    // clone(2), "C library/kernel differences": the order of the last two arguments depends on the architecture.
    #[cfg(target_arch = "x86_64")]
    let (fourth, fifth) = (child_tid, no_tls);
    #[cfg(not(target_arch = "x86_64"))]
    let (fourth, fifth) = (no_tls, child_tid);
    // SAFETY: without CLONE_VM the child has a copy of this memory and stack, as after fork(2); there is one thread, so
    // no lock is left held in the copy. child_tid is libc's own word.
    match unsafe { libc::syscall(libc::SYS_clone, flags, no_stack, no_record, fourth, fifth) } {
        -1 => Err(io::Error::last_os_error()),
        0 => begin(&mut work),
        pid => Ok(pid as Pid),
    }
}

fn may_fork() -> Result<(), &'static str> {
    match (has_one_thread(), STACKS_ARE_EXCLUDED.load(Ordering::Relaxed)) {
        (true, false) => Ok(()),
        (true, true) => Err("children of this process need a stack of their own"),
        (false, _) => Err(SECOND_THREAD),
    }
}

/// The stack on which children begin, apart from that of their parent.
///
/// After a fork, the first write to each page of a stack is a fault and a copy, for parent and child; a parent that
/// forks for every connection pays that for each page that its loop touches. With a stack for children, the parent's
/// own can be [kept from them](exclude_stacks_from_fork), and only one page of this one is ever written by both.
#[derive(Debug)]
pub(crate) struct ChildStack(DontForkMapping);

/// Untouched pages take no memory, but with vm.overcommit_memory=2 each process is charged for all of them.
const STACK: usize = 1 << 20;

/// Below the stack. Children do not have it, so running off the end of the stack is a fault for them.
const GUARD: usize = 1 << 20;

/// What a child begins with, at the top of its stack.
struct ChildStart<T> {
    run: fn(ForkedChild, T) -> u8,
    payload: T,
}

impl ChildStack {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or this process has a second thread.
    pub(crate) fn new() -> io::Result<Self> {
        must_have_one_thread()?;
        let memory = DontForkMapping::new(GUARD + STACK)?;
        memory.forbid(0..GUARD)?;
        memory.give_to_children(GUARD..GUARD + STACK)?;
        Ok(ChildStack(memory))
    }

    /// Forks; the child does `run(payload)`, on a stack of its own, and exits with the code that it returns.
    ///
    /// The kernel writes the child's pid to `record` before either side goes on (`CLONE_PARENT_SETTID`). So a SIGKILL
    /// between "the child exists" and "its pid is on record" cannot happen.
    ///
    /// As with all memory, the child gets a copy of the payload, and is the owner of it there: of a descriptor in it, too,
    /// which is another in the child's table. It can borrow nothing but what lives for ever: the parent's stack may not
    /// exist in the child.
    ///
    /// # Errors
    ///
    /// `EAGAIN` and `ENOMEM`: no process can be had now.
    ///
    /// # Panics
    ///
    /// In debug builds, if this process has a second thread.
    pub(crate) fn fork<T: Send + 'static>(
        &self,
        record: Option<&AtomicI32>,
        run: fn(ForkedChild, T) -> u8,
        payload: &mut T,
    ) -> io::Result<Pid> {
        extern "C" fn begin<T>(start: *mut c_void) -> libc::c_int {
            // SAFETY: the parent has put a ChildStart<T> there, of which this process has a copy of its own. Nobody else
            // in it has the payload: the parent's was borrowed exclusively, by a frame that does not go on here.
            let start = unsafe { start.cast::<ChildStart<T>>().read() };
            process::exit((start.run)(ForkedChild(PhantomData), start.payload))
        }
        debug_assert!(has_one_thread(), "fork is sound in a process of one thread only");
        let start = self.place_for::<ChildStart<T>>();
        // SAFETY: a live value. The copy is used in the child only; here it is bytes that nobody reads or drops.
        let payload = unsafe { std::ptr::read(payload) };
        // SAFETY: inside the stack, aligned, and nobody else is using this stack in this process.
        unsafe { start.write(ChildStart { run, payload }) };
        let child_tid = libc_tid();
        let flags = libc::SIGCHLD | child_tid_flags(child_tid);
        self.clone(begin::<T>, flags, start.cast(), record, child_tid)
    }

    /// Runs `work` in a child that shares this process's memory, while this process waits, until it has become another
    /// program, or exits with the code that `work` returns: vfork(2), with a stack of its own.
    ///
    /// Signal handlers, working directory and identity are the child's own copies. What it writes to memory stays, and
    /// what it does to descriptors, until [`super::fd::ReservedFds::own_table`] gives it a table of its own. So `work`
    /// changes nothing that it borrows, and it must not allocate: this no type can say, and a SIGKILL in the middle would
    /// leave the parent a broken heap.
    ///
    /// # Errors
    ///
    /// As [`ChildStack::fork`].
    pub(crate) fn run_until_exec<F: Fn(SharingChild) -> u8 + Sync>(
        &self,
        record: Option<&AtomicI32>,
        work: &F,
    ) -> io::Result<Pid> {
        extern "C" fn begin<F: Fn(SharingChild) -> u8>(work: *mut c_void) -> libc::c_int {
            // SAFETY: the parent's `work`, which waits until this process has gone.
            let work = unsafe { &*work.cast::<F>() };
            process::exit(work(SharingChild(PhantomData)))
        }
        debug_assert!(has_one_thread(), "fork is sound in a process of one thread only");
        let flags = libc::SIGCHLD | libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
        let work = (&raw const *work).cast_mut().cast();
        self.clone(begin::<F>, flags, work, record, 0)
    }

    fn clone(
        &self,
        begin: extern "C" fn(*mut c_void) -> libc::c_int,
        flags: libc::c_int,
        argument: *mut c_void,
        record: Option<&AtomicI32>,
        child_tid: usize,
    ) -> io::Result<Pid> {
        let record = record.map_or(std::ptr::null_mut(), AtomicI32::as_ptr);
        let flags = if record.is_null() { flags } else { flags | libc::CLONE_PARENT_SETTID };
        // Below what `fork` has placed, which `run_until_exec` leaves alone.
        let top: *mut c_void = self.place_for::<[u8; HEADROOM]>().cast();
        let no_tls = std::ptr::null_mut::<c_void>();
        // SAFETY: `top` is inside a writable stack that no process with this memory is using: a child with CLONE_VM
        // has gone before clone returns, any other has a copy. `begin` never returns and gets the argument it was
        // written for. record is null or a live AtomicI32, child_tid libc's own word.
        let pid =
            unsafe { libc::clone(begin, top, flags, argument, record, no_tls, child_tid as *mut c_void) };
        check(pid)
    }

    /// The highest aligned place on the stack for a `T`.
    fn place_for<T>(&self) -> *mut T {
        const { assert!(size_of::<T>() <= HEADROOM && align_of::<T>() <= 64) };
        // SAFETY: HEADROOM and the rounding are far smaller than the stack, which is the end of the memory.
        unsafe { self.0.start().add((GUARD + STACK - size_of::<T>()) / 64 * 64) }.cast()
    }
}

/// Room for a payload at the top of the stack.
const HEADROOM: usize = 512;

/// Whether a child on a copy of this process's own stack would find none.
static STACKS_ARE_EXCLUDED: AtomicBool = AtomicBool::new(false);

/// What of this process its children are to do without, so that forking them is cheaper: its stack, and the stack that
/// std has set up for its handler of overflows, which a worker does not use.
///
/// From now on only a [`ChildStack`] can make children; [`fork`] refuses.
///
/// # Errors
///
/// This process has a second thread. That children have the stacks after all is none: it is dearer, not wrong.
pub(crate) fn exclude_stacks_from_fork() -> io::Result<()> {
    must_have_one_thread()?;
    STACKS_ARE_EXCLUDED.store(true, Ordering::Relaxed);
    let _ = title::keep_for_children();
    let _ = dontfork::keep_stack();
    let _ = dontfork::keep_signal_stack();
    // The variables are at the top of the stack. A child that asked for one, as localtime(3) does for TZ, would die.
    // SAFETY: this process has one thread, and std hands out copies of variables only.
    unsafe { libc::clearenv() };
    Ok(())
}

fn child_tid_flags(child_tid: usize) -> libc::c_int {
    if child_tid == 0 { 0 } else { libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID }
}

/// Where libc keeps the id of its thread, so that the child's libc learns its own id as after fork(3): robust mutexes
/// compare it. 0 if the kernel does not tell (`CONFIG_CHECKPOINT_RESTORE`).
fn libc_tid() -> usize {
    static ADDRESS: OnceLock<usize> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let mut address = 0usize;
        // SAFETY: PR_GET_TID_ADDRESS writes one pointer to the given place, prctl(2).
        let result = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) };
        if result == 0 { address } else { 0 }
    })
}

const SECOND_THREAD: &str = "only a process of one thread can make children";

fn must_have_one_thread() -> io::Result<()> {
    if has_one_thread() { Ok(()) } else { Err(io::Error::other(SECOND_THREAD)) }
}

/// Whether this process has one thread: /proc/self/task has a link for each, and two of its own. True without /proc. Tests
/// have threads, and children that use nothing which another may have locked.
fn has_one_thread() -> bool {
    use std::os::unix::fs::MetadataExt;
    cfg!(test) || std::fs::metadata("/proc/self/task").map_or(true, |task| task.nlink() <= 3)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::sys::fd;
    use crate::sys::wait::{Ending, wait_for};

    /// Everything until the last writer has gone. Blocking: children of other tests may have a copy for a moment.
    fn rest_of(pipe: OwnedFd) -> Vec<u8> {
        fd::set_nonblocking(std::os::fd::AsFd::as_fd(&pipe), false).unwrap();
        let mut heard = Vec::new();
        File::from(pipe).read_to_end(&mut heard).unwrap();
        heard
    }

    fn code(pid: io::Result<Pid>) -> Ending {
        wait_for(pid.unwrap()).unwrap().unwrap().ending
    }

    #[test]
    fn a_child_exits_with_what_it_returns_and_nothing_of_its_parent_is_dropped_there() {
        struct Loud(File);
        impl Drop for Loud {
            fn drop(&mut self) {
                let _ = self.0.write(b"dropped");
            }
        }
        let (read, write) = fd::pipe().unwrap();
        let loud = Loud(write.into());
        assert_eq!(code(fork(|_| 7)), Ending::Exited(7));
        assert_eq!(File::from(read).read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(loud);
    }

    #[test]
    fn without_its_own_stack_a_process_does_not_fork_plainly() {
        let child = fork(|_| {
            STACKS_ARE_EXCLUDED.store(true, Ordering::Relaxed);
            u8::from(may_fork().is_ok())
        });
        assert_eq!(code(child), Ending::Exited(0));
        assert_eq!(may_fork(), Ok(()));
    }

    #[test]
    fn both_own_their_copy_of_a_payload() {
        let (read, write) = fd::pipe().unwrap();
        let mut payload = (write, 7u8);
        let say = |_: ForkedChild, (to, what): (OwnedFd, u8)| {
            let written = File::from(to).write(&[what]);
            u8::from(written.is_err())
        };
        let stack = ChildStack::new().unwrap();
        let record = AtomicI32::new(0);
        let pid = stack.fork(Some(&record), say, &mut payload).unwrap();
        assert_eq!(record.load(Ordering::Relaxed), pid);
        assert_eq!(code(Ok(pid)), Ending::Exited(0));
        assert_eq!(File::from(payload.0).write(&[8]).unwrap(), 1, "the parent's is still open");
        assert_eq!(rest_of(read), [7, 8]);
    }

    #[test]
    fn a_child_that_shares_memory_is_waited_for_and_may_take_a_table_of_its_own() {
        let (read, write) = fd::pipe().unwrap();
        let desk = fd::ReservedFds::new().unwrap();
        let (record, seen) = (AtomicI32::new(0), AtomicI32::new(0));
        let work = |child| {
            seen.store(process::id(), Ordering::Relaxed);
            let wanted = [Some(std::os::fd::AsFd::as_fd(&write)), None];
            match desk.own_table(child, wanted) {
                Ok((_, [Some(write), None])) => u8::from(nix::unistd::write(write, b"x") != Ok(1)),
                _ => 2,
            }
        };
        let pid = ChildStack::new().unwrap().run_until_exec(Some(&record), &work).unwrap();
        // It has ended, or this would not be reached.
        assert_eq!((record.into_inner(), seen.load(Ordering::Relaxed)), (pid, pid));
        assert_eq!(code(Ok(pid)), Ending::Exited(0));
        desk.clear();
        drop(write);
        assert_eq!(rest_of(read), b"x", "the desk has let go of it");
    }
}
