//! Filters of system calls, seccomp(2).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;
use super::wait::Pid;

/// An instruction of a filter.
pub(crate) type Instruction = libc::sock_filter;

/// Has this process, and all that comes of it, ask the kernel for what `program` allows only. There is no way back.
///
/// By prctl(2), which older filters of systemd let through where they do not seccomp(2).
///
/// # Errors
///
/// `EACCES` if it could gain privileges, see [`super::process::gain_no_privileges`]; `EINVAL` without filters in this kernel.
pub(crate) fn install(program: &[Instruction]) -> io::Result<()> {
    let program = described(program)?;
    // SAFETY: `program` describes instructions that outlive the call, which copies them.
    check(unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0_usize, 0_usize)
    })?;
    Ok(())
}

/// Whether this kernel has filters.
pub(crate) fn is_there() -> bool {
    // SAFETY: without a filter there is nothing to read. A kernel that has them finds fault with the address, prctl(2).
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::null::<u8>(), 0_usize, 0_usize)
    };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

fn described(program: &[Instruction]) -> io::Result<libc::sock_fprog> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The kernel reads it, whatever the type says.
    Ok(libc::sock_fprog { len, filter: program.as_ptr().cast_mut() })
}

/// Whether a process can be asked about a call of another, seccomp_unotify(2): Linux 5.0, and a filter of systemd that lets
/// seccomp(2) through.
pub(crate) fn can_ask() -> bool {
    let action = libc::SECCOMP_RET_USER_NOTIF;
    let operation = libc::SECCOMP_GET_ACTION_AVAIL;
    // SAFETY: reads a number that is there.
    unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const action) == 0 }
}

/// The same as [`install`]; what the filter answers with `SECCOMP_RET_USER_NOTIF` is asked at the descriptor, which
/// waits to be read. It is closed by exec.
///
/// # Errors
///
/// The same, and `EBUSY` if another filter of this process asks somebody already.
pub(crate) fn install_asking(program: &[Instruction]) -> io::Result<OwnedFd> {
    let program = described(program)?;
    let (operation, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: `program` describes instructions that outlive the call, which copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    let result = check(i32::try_from(result).unwrap_or(-1))?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// A call that waits for an answer.
#[derive(Debug)]
pub(crate) struct Question {
    id: u64,
    /// The thread that calls; 0 if it has no number here.
    pub(crate) caller: Pid,
    pub(crate) call: i64,
    pub(crate) arguments: [u64; 6],
}

/// What is asked at a descriptor that is ready to be read; `None` if who has asked is no more.
pub(crate) fn question(listener: BorrowedFd<'_>) -> Option<Question> {
    // SAFETY: plain data, for which zero is a value; the kernel asks for it.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes a structure of this kind to a live local.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut asked) }).ok()?;
    let caller = Pid::try_from(asked.pid).ok()?;
    Some(Question { id: asked.id, caller, call: asked.data.nr.into(), arguments: asked.data.args })
}

/// What a call is to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallVerdict {
    /// It goes on. Its arguments are numbers, which cannot change meanwhile.
    GoOn,
    /// It fails with `EPERM`.
    Forbidden,
    /// It fails with `ESRCH`.
    Nobody,
}

/// Answers it. Who has asked may be no more.
pub(crate) fn answer(listener: BorrowedFd<'_>, question: &Question, verdict: CallVerdict) {
    let (flags, error) = match verdict {
        CallVerdict::GoOn => (libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32, 0),
        CallVerdict::Forbidden => (0, -libc::EPERM),
        CallVerdict::Nobody => (0, -libc::ESRCH),
    };
    let answer = libc::seccomp_notif_resp { id: question.id, val: 0, error, flags };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the kernel reads a structure of this kind.
    let _ = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw const answer) };
}
