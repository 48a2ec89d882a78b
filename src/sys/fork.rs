//! Making a process: [`fork`], for what happens once; [`ChildStack::fork`], for every connection, where each page that both
//! sides write costs a fault and a copy; and [`ChildStack::run_until_exec`], which copies nothing at all.
//!
//! All three say what a child does, and [`clone`] makes it. They are safe to call because of what they ask for. A child
//! never returns into its parent's frames: it is given what to do, and exits with the code that this answers. What it is
//! given is [`Send`], for memory that children do not have ([`super::dontfork`], [`super::memory::Mapping`]) is not, nor
//! what refers to it. That the process has one thread, no type can say: the house forbids threads, clippy.toml holds it to
//! that, and here it is checked where it costs nothing.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::clone3::{Begin, CloneArguments, clone3, clone3_on_same_stack};
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
/// # Errors
///
/// `EAGAIN` and `ENOMEM`: no process can be had now. Also after [`exclude_stacks_from_fork`], and with a second thread.
pub(crate) fn fork<F: FnOnce(ForkedChild) -> u8 + Send>(work: F) -> io::Result<Pid> {
    fork_into(Pids::Shared, None, work)
}

/// The same, with a word about the namespace of processes. The child begins in `cgroup`, and never is in its parent's.
///
/// # Errors
///
/// Those of [`fork`], and of a cgroup as [`ChildStack::fork`] has them.
pub(crate) fn fork_into<F: FnOnce(ForkedChild) -> u8 + Send>(
    pids: Pids,
    cgroup: Option<InCgroup<'_>>,
    work: F,
) -> io::Result<Pid> {
    may_fork().map_err(io::Error::other)?;
    fork_here(pids, cgroup, work)
}

/// Forks in a child: that stands on a stack which its children have, whatever was excluded before.
pub(crate) fn fork_again<F: FnOnce(ForkedChild) -> u8 + Send>(_: ForkedChild, work: F) -> io::Result<Pid> {
    fork_here(Pids::Shared, None, work)
}

fn fork_here<F: FnOnce(ForkedChild) -> u8 + Send>(
    pids: Pids,
    cgroup: Option<InCgroup<'_>>,
    work: F,
) -> io::Result<Pid> {
    extern "C" fn begin<F: FnOnce(ForkedChild) -> u8>(work: *mut c_void) -> libc::c_int {
        // SAFETY: the copy that this process has of the parent's `work`, to which nobody else in it refers.
        let work = unsafe { &mut *work.cast::<Option<F>>() };
        process::exit(work.take().map_or(0, |work| work(ForkedChild(PhantomData))))
    }
    let mut work = Some(work);
    let origin = Birthplace { record: None, cgroup };
    // SAFETY: `begin` never returns, and is given what it casts to; memory is not shared.
    unsafe { clone(begin::<F>, (&raw mut work).cast(), pids.flag(), None, origin) }
}

/// In which namespace of processes a child begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pids {
    /// Its parent's.
    Shared,
    /// A new one, of which it is the first process: with it, all in there end.
    Own,
}

impl Pids {
    fn flag(self) -> libc::c_int {
        match self {
            Pids::Shared => 0,
            Pids::Own => libc::CLONE_NEWPID,
        }
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
pub(crate) struct ChildStack {
    memory: DontForkMapping,
    pids: Pids,
}

/// Where a child comes into being.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Birthplace<'a> {
    /// Where the kernel writes its pid before either side goes on (`CLONE_PARENT_SETTID`). So a SIGKILL between "the child
    /// exists" and "its pid is on record" cannot happen.
    pub(crate) record: Option<&'a AtomicI32>,
    /// The cgroup in which it begins: it never is in its parent's. That is where it begins without one.
    pub(crate) cgroup: Option<InCgroup<'a>>,
}

/// In a cgroup of version 2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InCgroup<'a> {
    pub(crate) directory: BorrowedFd<'a>,
    /// Whose it is, if not this process's. The child has files of that user until it becomes one or calls
    /// [`process::forget_files_of_others`].
    pub(crate) owner: Option<u32>,
}

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
        Ok(ChildStack { memory, pids: Pids::Shared })
    }

    /// The same, for children in this namespace of processes.
    pub(crate) fn into_pids(self, pids: Pids) -> Self {
        ChildStack { pids, ..self }
    }

    /// Forks; the child does `run(payload)`, on a stack of its own, and exits with the code that it returns.
    ///
    /// As with all memory, the child gets a copy of the payload, and is the owner of it there: of a descriptor in it, too,
    /// which is another in the child's table. It can borrow nothing but what lives for ever: the parent's stack may not
    /// exist in the child.
    ///
    /// # Errors
    ///
    /// `EAGAIN` and `ENOMEM`: no process can be had now. With a cgroup, what that says, too: `EAGAIN` if it is full, `ENOENT`
    /// if it is gone, `EBUSY` if it has cgroups below it that share its controllers; `ENOSYS` where [`clone3`] is not known.
    ///
    /// # Panics
    ///
    /// In debug builds, if this process has a second thread.
    pub(crate) fn fork<T: Send + 'static>(
        &self,
        origin: Birthplace<'_>,
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
        // SAFETY: `begin` never returns, and is given what it casts to; memory is not shared, and nobody is using this stack.
        unsafe { clone(begin::<T>, start.cast(), self.pids.flag(), Some(self), origin) }
    }

    /// Runs `work` in a child that shares this process's memory, while this process waits, until it has become another
    /// program, or exits with the code that `work` returns: vfork(2), with a stack of its own.
    ///
    /// Signal handlers, working directory and identity are the child's own copies. What it writes to memory stays, and
    /// what it does to descriptors, until [`super::child_fds::ReservedFds::own_table`] gives it a table of its own. So `work`
    /// changes nothing that it borrows, and it must not allocate: this no type can say, and a SIGKILL in the middle would
    /// leave the parent a broken heap.
    ///
    /// # Errors
    ///
    /// As [`ChildStack::fork`].
    pub(crate) fn run_until_exec<F: Fn(SharingChild) -> u8 + Sync>(
        &self,
        origin: Birthplace<'_>,
        work: &F,
    ) -> io::Result<Pid> {
        extern "C" fn begin<F: Fn(SharingChild) -> u8>(work: *mut c_void) -> libc::c_int {
            // SAFETY: the parent's `work`, which waits until this process has gone.
            let work = unsafe { &*work.cast::<F>() };
            process::exit(work(SharingChild(PhantomData)))
        }
        debug_assert!(has_one_thread(), "fork is sound in a process of one thread only");
        let sharing = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | self.pids.flag();
        let work = (&raw const *work).cast_mut().cast();
        // SAFETY: `begin` never returns, and is given what it casts to; the last process that was on this stack and in this
        // memory has gone, or the call that made it would not have returned: CLONE_VFORK.
        unsafe { clone(begin::<F>, work, sharing, Some(self), origin) }
    }

    /// Where a child begins, growing downwards: below what `fork` has placed, which `run_until_exec` leaves alone.
    fn top(&self) -> *mut c_void {
        self.place_for::<[u8; HEADROOM]>().cast()
    }

    fn bottom(&self) -> *mut c_void {
        // SAFETY: the guard is smaller than the memory.
        unsafe { self.memory.start().add(GUARD) }.cast()
    }

    /// The highest aligned place on the stack for a `T`.
    fn place_for<T>(&self) -> *mut T {
        const { assert!(size_of::<T>() <= HEADROOM && align_of::<T>() <= 64) };
        // SAFETY: HEADROOM and the rounding are far smaller than the stack, which is the end of the memory.
        unsafe { self.memory.start().add((GUARD + STACK - size_of::<T>()) / 64 * 64) }.cast()
    }
}

/// Room for a payload at the top of the stack.
const HEADROOM: usize = 512;

/// Whether a child on a copy of this process's own stack would find none.
static STACKS_ARE_EXCLUDED: AtomicBool = AtomicBool::new(false);

/// What of this process its children are to do without, so that forking them is cheaper: its stack, and the stack that
/// std has set up for its handler of overflows, which a worker does not use.
///
/// From now on only a [`ChildStack`] can make children; [`fork`] refuses. If they are to start threads, they have of the stack what
/// that takes.
///
/// # Errors
///
/// This process has a second thread. That children have the stacks after all is none: it is dearer, not wrong.
pub(crate) fn exclude_stacks_from_fork(may_start_threads: bool) -> io::Result<()> {
    must_have_one_thread()?;
    let auxv = title::start_of_auxv().map_or(0, |start| start / dontfork::PAGE * dontfork::PAGE);
    STACKS_ARE_EXCLUDED.store(true, Ordering::Relaxed);
    let _ = title::keep_for_children();
    let _ = dontfork::keep_stack(if may_start_threads { auxv } else { usize::MAX });
    let _ = dontfork::keep_signal_stack();
    // The variables are at the top of the stack. A child that asked for one, as localtime(3) does for TZ, would die.
    // SAFETY: this process has one thread, and std hands out copies of variables only.
    unsafe { libc::clearenv() };
    Ok(())
}

/// Makes a child that does `begin(argument)`, on `stack` or else on its copy of this process's.
///
/// By clone(2), not fork(3): glibc's atfork handlers are bypassed, which is sound because the caller has one thread and so
/// holds no lock of libc's. By [`clone3`] only for a cgroup, since that costs more.
///
/// # Safety
///
/// `begin` never returns, and `argument` is what it was written for. Without a stack the child must have memory of its own
/// (no `CLONE_VM` in `sharing`); with one, no process that shares this memory is using it.
unsafe fn clone(
    begin: Begin,
    argument: *mut c_void,
    sharing: libc::c_int,
    stack: Option<&ChildStack>,
    origin: Birthplace<'_>,
) -> io::Result<Pid> {
    let record = origin.record.map_or(std::ptr::null_mut(), AtomicI32::as_ptr);
    let child_tid = if sharing & libc::CLONE_VM == 0 { libc_tid() } else { 0 };
    let mut flags = sharing;
    if !record.is_null() {
        flags |= libc::CLONE_PARENT_SETTID;
    }
    if child_tid != 0 {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    if let Some(cgroup) = origin.cgroup {
        let (bottom, top) = stack.map_or((0, 0), |stack| (stack.bottom() as u64, stack.top() as u64));
        let arguments = CloneArguments {
            flags: flags as u64 | CloneArguments::INTO_CGROUP,
            child_tid: child_tid as u64,
            parent_tid: record as u64,
            exit_signal: libc::SIGCHLD as u64,
            stack: bottom,
            stack_size: top - bottom,
            cgroup: cgroup.directory.as_raw_fd() as u64,
            ..CloneArguments::default()
        };
        let make = || match stack {
            // SAFETY: as below.
            Some(_) => unsafe { clone3(&arguments, begin, argument) },
            // SAFETY: as below.
            None => match unsafe { clone3_on_same_stack(&arguments) }? {
                0 => check(begin(argument)),
                pid => Ok(pid),
            },
        };
        return match cgroup.owner {
            Some(owner) => process::with_files_of(owner, make),
            None => make(),
        };
    }
    let no_tls = 0usize;
    let Some(stack) = stack else {
        // clone(2), "C library/kernel differences": the order of the last two arguments depends on the architecture.
        #[cfg(target_arch = "x86_64")]
        let (fourth, fifth) = (child_tid, no_tls);
        #[cfg(not(target_arch = "x86_64"))]
        let (fourth, fifth) = (no_tls, child_tid);
        let (flags, same_stack) = (flags | libc::SIGCHLD, 0usize);
        // SAFETY: without CLONE_VM the child has a copy of this memory and stack, as after fork(2); there is one thread, so
        // no lock is left held in the copy. record is null or a live AtomicI32, child_tid libc's own word.
        return match unsafe { libc::syscall(libc::SYS_clone, flags, same_stack, record, fourth, fifth) } {
            0 => check(begin(argument)),
            pid => check(pid as libc::c_int),
        };
    };
    let (flags, no_tls) = (flags | libc::SIGCHLD, no_tls as *mut c_void);
    // SAFETY: the top of a writable stack, which the caller vouches for, as for `begin` and its argument. record is null or
    // a live AtomicI32, child_tid libc's own word.
    check(unsafe {
        libc::clone(begin, stack.top(), flags, argument, record, no_tls, child_tid as *mut c_void)
    })
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
pub(super) fn has_one_thread() -> bool {
    use std::os::unix::fs::MetadataExt;
    cfg!(test) || std::fs::metadata("/proc/self/task").map_or(true, |task| task.nlink() <= 3)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::sys::wait::{Ending, wait_for};
    use crate::sys::{child_fds, fd};

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
        let pid = stack.fork(recorded(&record), say, &mut payload).unwrap();
        assert_eq!(record.load(Ordering::Relaxed), pid);
        assert_eq!(code(Ok(pid)), Ending::Exited(0));
        assert_eq!(File::from(payload.0).write(&[8]).unwrap(), 1, "the parent's is still open");
        assert_eq!(rest_of(read), [7, 8]);
    }

    #[test]
    fn a_child_that_shares_memory_is_waited_for_and_may_take_a_table_of_its_own() {
        let (read, write) = fd::pipe().unwrap();
        let desk = child_fds::ReservedFds::new().unwrap();
        let (record, seen) = (AtomicI32::new(0), AtomicI32::new(0));
        let work = |child| {
            seen.store(process::id(), Ordering::Relaxed);
            let wanted = [Some(std::os::fd::AsFd::as_fd(&write)), None];
            match desk.own_table(child, wanted) {
                Ok((_, [Some(write), None])) => u8::from(nix::unistd::write(write, b"x") != Ok(1)),
                _ => 2,
            }
        };
        let pid = ChildStack::new().unwrap().run_until_exec(recorded(&record), &work).unwrap();
        // It has ended, or this would not be reached.
        assert_eq!((record.into_inner(), seen.load(Ordering::Relaxed)), (pid, pid));
        assert_eq!(code(Ok(pid)), Ending::Exited(0));
        desk.clear();
        drop(write);
        assert_eq!(rest_of(read), b"x", "the desk has let go of it");
    }

    /// A cgroup of version 2, which goes when it is dropped.
    struct Cgroup(PathBuf);

    impl Cgroup {
        /// Below the one of this process; `None`, and said aloud, if this machine lets nobody make one.
        fn new(name: &str) -> Option<Self> {
            let made = Self::make(name);
            if made.is_none() {
                let _ = writeln!(io::stderr(), "SKIPPED: {name} needs a cgroup of version 2 of its own");
            }
            made
        }

        fn make(name: &str) -> Option<Self> {
            let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
            let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let top = mounts.find(|fields| fields.get(2) == Some(&"cgroup2"))?[1].to_owned();
            let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
            let own = own.lines().find_map(|line| line.strip_prefix("0::"))?.trim_end_matches('/').to_owned();
            let directory = PathBuf::from(format!("{top}{own}/preforkd-{name}-{}", process::id()));
            std::fs::create_dir(&directory).ok()?;
            Some(Cgroup(directory))
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.0).unwrap();
        }
    }

    /// In a child: says in which cgroups it is. Allocates nothing.
    fn tell_cgroups(to: BorrowedFd<'_>) -> u8 {
        let mut buffer = [0; 4096];
        let told = File::open("/proc/self/cgroup")
            .and_then(|mut file| file.read(&mut buffer))
            .and_then(|length| Ok(nix::unistd::write(to, &buffer[..length])?));
        u8::from(told.is_err())
    }

    fn recorded(record: &AtomicI32) -> Birthplace<'_> {
        Birthplace { record: Some(record), cgroup: None }
    }

    fn inside(directory: &File) -> InCgroup<'_> {
        InCgroup { directory: directory.as_fd(), owner: None }
    }

    /// The cgroup of version 2 of a child by each of the three calls.
    fn cgroups_of_children(stack: &ChildStack, cgroup: Option<InCgroup<'_>>) -> [String; 3] {
        let told = |child: io::Result<Pid>, write: OwnedFd, read| {
            assert_eq!(code(child), Ending::Exited(0));
            drop(write);
            let told = String::from_utf8(rest_of(read)).unwrap();
            told.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
        };
        let record = AtomicI32::new(0);
        let origin = Birthplace { record: Some(&record), cgroup };
        let (read, write) = fd::pipe().unwrap();
        let mut payload = write;
        let forked = stack.fork(origin, |_, write: OwnedFd| tell_cgroups(write.as_fd()), &mut payload);
        assert_eq!(forked.as_ref().ok(), Some(&record.load(Ordering::Relaxed)));
        let forked = told(forked, payload, read);
        let (read, write) = fd::pipe().unwrap();
        let sharing = stack.run_until_exec(origin, &|_| tell_cgroups(write.as_fd()));
        assert_eq!(sharing.as_ref().ok(), Some(&record.load(Ordering::Relaxed)));
        let sharing = told(sharing, write, read);
        let (read, write) = fd::pipe().unwrap();
        let plain = fork_into(Pids::Shared, cgroup, |_| tell_cgroups(write.as_fd()));
        [forked, sharing, told(plain, write, read)]
    }

    #[test]
    fn children_begin_in_the_cgroup_that_is_named_and_else_in_their_parents() {
        let stack = ChildStack::new().unwrap();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        assert_eq!(cgroups_of_children(&stack, None), [own, own, own]);
        let Some(cgroup) = Cgroup::new("cgroup-test") else { return };
        let directory = File::open(&cgroup.0).unwrap();
        for told in cgroups_of_children(&stack, Some(inside(&directory))) {
            assert_eq!(Path::new(&told).file_name(), cgroup.0.file_name(), "{told}");
        }
    }

    #[test]
    fn a_cgroup_that_is_gone_is_an_error_and_no_child() {
        let Some(cgroup) = Cgroup::new("gone-cgroup-test") else { return };
        let directory = File::open(&cgroup.0).unwrap();
        drop(cgroup);
        let origin = Birthplace { record: None, cgroup: Some(inside(&directory)) };
        let error = ChildStack::new().unwrap().fork(origin, |_, ()| 0, &mut ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            fork_into(Pids::Shared, origin.cgroup, |_| 0).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
