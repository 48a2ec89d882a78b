//! Reaping.
//!
//! nix's `waitpid` answers `EINVAL`, without the pid, for a child that a real-time signal killed: by then the child is
//! gone and its slot would leak. So this is wait4(2) itself, which also tells what the child used.
//!
//! A child may have its parent trace it, by PTRACE_TRACEME. Then these calls tell of its stops as well, whether they were asked for or
//! not: wait_task_stopped() in kernel/exit.c. It is of no use to anybody here, and so who stops like that is killed.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::time::Duration;

/// A process id that the kernel gave.
pub(crate) type Pid = i32;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It exited with this code.
    Exited(u8),
    /// This signal killed it, real-time signals included.
    Killed(i32),
}

impl Ending {
    /// From the status word of wait4(2) about an end.
    pub(crate) fn from_status(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            // WEXITSTATUS is eight bits wide.
            Ending::Exited((libc::WEXITSTATUS(status) & 0xff) as u8)
        } else {
            Ending::Killed(libc::WTERMSIG(status))
        }
    }

    /// Whether a filter of system calls has ended it, seccomp(2).
    pub(crate) fn is_forbidden_call(self) -> bool {
        self == Ending::Killed(libc::SIGSYS)
    }

    /// Whether a fault of the program's own memory or code ended it.
    pub(crate) fn is_crash(self) -> bool {
        matches!(
            self,
            Ending::Killed(
                libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGABRT | libc::SIGSYS
            )
        )
    }

    /// Whether a filter of system calls may have ended it.
    pub(crate) fn is_by_filter(self) -> bool {
        self == Ending::Killed(libc::SIGSYS)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Ending::Exited(code) => write!(f, "exited {code}"),
            Ending::Killed(signal) => match nix::sys::signal::Signal::try_from(signal) {
                Ok(known) => write!(f, "killed {}", known.as_str().trim_start_matches("SIG")),
                Err(_) if signal >= libc::SIGRTMIN() => {
                    write!(f, "killed RTMIN+{}", signal - libc::SIGRTMIN())
                }
                Err(_) => write!(f, "killed {signal}"),
            },
        }
    }
}

impl Default for Ending {
    fn default() -> Self {
        Ending::Exited(0)
    }
}

/// A child that has ended and been reaped.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ended {
    /// Who it was; the kernel may give the number to another process from now on.
    pub(crate) pid: Pid,
    /// How it ended.
    pub(crate) ending: Ending,
    /// User and system time of it and of those that it waited for.
    pub(crate) cpu: Duration,
    /// Its largest resident set, in KiB.
    pub(crate) max_rss_kib: u64,
}

/// Reaps one child if there is one that has ended; `None` if all live or there is none.
pub(crate) fn reap() -> io::Result<Option<Ended>> {
    wait4(-1, libc::WNOHANG)
}

/// Waits until the child `pid` has ended, and reaps it; `None` if there is no such child.
pub(crate) fn wait_for(pid: Pid) -> io::Result<Option<Ended>> {
    wait4(pid, 0)
}

/// Reaps the child `pid` if it has ended; `None` if it lives, or there is no such child.
pub(crate) fn reap_one(pid: Pid) -> io::Result<Option<Ended>> {
    wait4(pid, libc::WNOHANG)
}

/// A child that a signal has stopped since the last call.
pub(crate) fn stopped() -> Option<Pid> {
    loop {
        let found = waitid((libc::P_ALL, 0), libc::WSTOPPED | libc::WNOHANG)?;
        if !found.is_trapped {
            return Some(found.pid);
        }
        end_traced(found.pid);
    }
}

/// A child that has ended, without reaping it: until then nobody else can get its number, nor its group's.
pub(crate) fn ended() -> Option<Pid> {
    loop {
        let found = waitid((libc::P_ALL, 0), libc::WEXITED | libc::WNOWAIT | libc::WNOHANG)?;
        if !found.is_trapped {
            return Some(found.pid);
        }
        end_traced(found.pid);
    }
}

/// Waits until the child `pid` has ended, and leaves it to be reaped.
pub(crate) fn await_end(pid: Pid) {
    while let Some(found) = waitid_of(pid, libc::WEXITED | libc::WNOWAIT).filter(|found| found.is_trapped) {
        end_traced(found.pid);
    }
}

/// Whether this child has ended and only waits to be reaped.
pub(crate) fn has_ended(pid: Pid) -> bool {
    let found = waitid_of(pid, libc::WEXITED | libc::WNOWAIT | libc::WNOHANG);
    found.is_some_and(|found| !found.is_trapped)
}

/// Kills a child that is stopped and that this process traces; or has it go on untraced, should it not be ours to kill. It is not
/// stopped any more then, and so a stop that was left there is not found again.
fn end_traced(pid: Pid) {
    // SAFETY: takes numbers only. It is a child of this process that has not been reaped.
    if unsafe { libc::kill(pid, libc::SIGKILL) } == -1 {
        // SAFETY: takes numbers only, and writes nothing of ours.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0) };
    }
}

/// What waitid(2) has found.
#[derive(Debug, Clone, Copy)]
struct ChildState {
    pid: Pid,
    /// It is traced by this process, and stopped.
    is_trapped: bool,
}

fn waitid_of(pid: Pid, what: libc::c_int) -> Option<ChildState> {
    waitid((libc::P_PID, libc::id_t::try_from(pid).ok()?), what)
}

fn waitid((kind, id): (libc::idtype_t, libc::id_t), what: libc::c_int) -> Option<ChildState> {
    // SAFETY: siginfo_t is plain data, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live local that the kernel writes.
    while unsafe { libc::waitid(kind, id, &mut info, what) } == -1 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
    // SAFETY: waitid has filled in the part of a SIGCHLD, or left the zeros.
    let pid = unsafe { info.si_pid() };
    (pid > 0).then_some(ChildState { pid, is_trapped: info.si_code == libc::CLD_TRAPPED })
}

fn wait4(which: Pid, options: libc::c_int) -> io::Result<Option<Ended>> {
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain numbers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live locals of the right type, which wait4 only writes.
        let pid = unsafe { libc::wait4(which, &mut status, options, &mut usage) };
        if pid > 0 && libc::WIFSTOPPED(status) {
            end_traced(pid);
            continue;
        }
        if pid > 0 {
            return Ok(Some(Ended {
                pid,
                ending: Ending::from_status(status),
                cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
                max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
            }));
        }
        if pid == 0 {
            return Ok(None);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(None),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_read_as_the_log_promises() {
        assert_eq!(Ending::Exited(0).to_string(), "exited 0");
        assert_eq!(Ending::Killed(libc::SIGTERM).to_string(), "killed TERM");
        assert_eq!(Ending::Killed(libc::SIGRTMIN() + 3).to_string(), "killed RTMIN+3");
    }
}
