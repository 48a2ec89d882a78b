//! Making a process.
#![allow(unsafe_code)]

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicI32;

use super::wait::Pid;

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Forked {
    /// The caller, with the pid of its new child.
    Parent(Pid),
    /// The new process. It must leave with [`super::process::exit`] or exec, never by returning to its caller's
    /// caller: values up there belong to the parent.
    Child,
}

/// Forks, and has the kernel write the child's pid to `record` before either side goes on.
///
/// That write is why this is clone(2) and not fork(3): a SIGKILL between "the child exists" and "its pid is on record"
/// cannot happen, since the kernel does both in one call (`CLONE_PARENT_SETTID`). glibc's atfork handlers are
/// bypassed, which is sound because the caller has one thread and so holds no lock of libc's.
///
/// # Errors
///
/// `EAGAIN` and `ENOMEM`: no process can be had now.
///
/// # Panics
///
/// In debug builds, if this process has a second thread.
pub(crate) fn fork(record: Option<&AtomicI32>) -> io::Result<Forked> {
    debug_assert_eq!(threads(), 1, "fork is sound in a process of one thread only");
    let parent_tid = record.map_or(std::ptr::null_mut(), AtomicI32::as_ptr);
    let child_tid = libc_tid();
    let mut flags = libc::SIGCHLD;
    if !parent_tid.is_null() {
        flags |= libc::CLONE_PARENT_SETTID;
    }
    if child_tid != 0 {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    match clone(flags, parent_tid, child_tid)? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

fn clone(flags: libc::c_int, parent_tid: *mut i32, child_tid: usize) -> io::Result<Pid> {
    let no_tls = 0usize;
    let no_stack = 0usize;
    // clone(2), "C library/kernel differences": the order of the last two arguments depends on the architecture.
    #[cfg(target_arch = "x86_64")]
    let (fourth, fifth) = (child_tid, no_tls);
    #[cfg(not(target_arch = "x86_64"))]
    let (fourth, fifth) = (no_tls, child_tid);
    // SAFETY: without CLONE_VM the child has a copy of this memory and stack, as after fork(2); there is one thread, so
    // no lock is left held in the copy. parent_tid is null or a live AtomicI32; child_tid is libc's own word.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, no_stack, parent_tid, fourth, fifth) };
    if pid == -1 { Err(io::Error::last_os_error()) } else { Ok(pid as Pid) }
}

/// Where libc keeps the id of its thread, so that the child's libc learns its own id as after fork(3); 0 if the kernel
/// does not tell (`CONFIG_CHECKPOINT_RESTORE`), which leaves a stale id that only robust mutexes look at.
fn libc_tid() -> usize {
    static ADDRESS: OnceLock<usize> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let mut address = 0usize;
        // SAFETY: PR_GET_TID_ADDRESS writes one pointer to the given place, prctl(2).
        let result = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) };
        if result == 0 { address } else { 0 }
    })
}

/// How many threads this process has: /proc/self/task has a link for each, and two of its own. 1 without /proc.
fn threads() -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/task").map_or(1, |task| task.nlink().saturating_sub(2))
}
