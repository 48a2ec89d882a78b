//! Reaping.
//!
//! nix's `waitpid` answers `EINVAL`, without the pid, for a child that a real-time signal killed: by then the child is
//! gone and its slot would leak. So this is wait4(2) itself, which also tells what the child used.
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
    /// From the status word of wait4(2); anything but an exit cannot be other than a signal without `WUNTRACED`.
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
    waitid(libc::P_ALL, 0, libc::WSTOPPED)
}

/// A child that has ended, without reaping it: until then nobody else can get its number, nor its group's.
pub(crate) fn ended() -> Option<Pid> {
    waitid(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)
}

/// Waits until the child `pid` has ended, and leaves it to be reaped.
pub(crate) fn await_end(pid: Pid) {
    let Ok(id) = libc::id_t::try_from(pid) else { return };
    // SAFETY: without a place for what it finds, waitid touches no memory of ours.
    while unsafe { libc::waitid(libc::P_PID, id, std::ptr::null_mut(), libc::WEXITED | libc::WNOWAIT) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// Whether this child has ended and only waits to be reaped.
pub(crate) fn has_ended(pid: Pid) -> bool {
    libc::id_t::try_from(pid).is_ok_and(|id| waitid(libc::P_PID, id, libc::WEXITED | libc::WNOWAIT).is_some())
}

fn waitid(kind: libc::idtype_t, id: libc::id_t, what: libc::c_int) -> Option<Pid> {
    // SAFETY: siginfo_t is plain data, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live local that the kernel writes.
    let result = unsafe { libc::waitid(kind, id, &mut info, what | libc::WNOHANG) };
    // SAFETY: waitid has filled in the part of a SIGCHLD, or left the zeros.
    let pid = unsafe { info.si_pid() };
    (result == 0 && pid > 0).then_some(pid)
}

fn wait4(which: Pid, options: libc::c_int) -> io::Result<Option<Ended>> {
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain numbers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live locals of the right type, which wait4 only writes.
        let pid = unsafe { libc::wait4(which, &mut status, options, &mut usage) };
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
