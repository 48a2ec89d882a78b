//! Signals: flags set by signal-hook, delivered only while the process waits.
//!
//! All signals are blocked outside [`super::epoll::Poller::wait`]. So no system call on the path of a connection is
//! interrupted, a fork happens with signals blocked, and no handler ever runs in a child. sshd waits the same way.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use nix::sys::signal::Signal;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// The signals that a process handles, and a flag for each.
#[derive(Debug)]
pub(crate) struct Signals {
    flags: Vec<(Signal, Arc<AtomicBool>)>,
    handled: SigSet,
    while_waiting: SigSet,
    but_children: SigSet,
}

/// Which signals end a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wakers {
    /// All that are handled.
    All,
    /// All but SIGCHLD.
    NoChildren,
}

impl Signals {
    /// Blocks every signal and installs a flag for each of `handled`.
    pub(crate) fn install(handled: &[Signal]) -> io::Result<Self> {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
        // What is not handled stays blocked while waiting: a stray SIGUSR1 must not end a service. Job control works.
        let mut while_waiting = SigSet::all();
        let mut set = SigSet::empty();
        let mut flags = Vec::with_capacity(handled.len());
        for &signal in handled {
            let flag = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(signal as libc::c_int, Arc::clone(&flag))?;
            while_waiting.remove(signal);
            set.add(signal);
            flags.push((signal, flag));
        }
        for job_control in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
            while_waiting.remove(job_control);
        }
        let mut but_children = while_waiting;
        but_children.add(Signal::SIGCHLD);
        Ok(Signals { flags, handled: set, while_waiting, but_children })
    }

    /// Whether `signal` has come since the last call.
    pub(crate) fn take(&self, signal: Signal) -> bool {
        // Read before it is written: a write would be a page that children have to copy.
        let is_set = |flag: &AtomicBool| flag.load(Ordering::SeqCst) && flag.swap(false, Ordering::SeqCst);
        self.flags.iter().any(|(known, flag)| *known == signal && is_set(flag))
    }

    /// Takes signals that are pending. `epoll_pwait` lets them through only when it finds no event, so a busy process
    /// would never see one; and fetched, they cost a tenth of what a handler does, whose frame holds all registers.
    pub(crate) fn fetch_pending(&self) {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            // SAFETY: the set and the time are live; where the signal came from is not asked.
            let number = unsafe { libc::sigtimedwait(self.handled.as_ref(), std::ptr::null_mut(), &now) };
            let Some((_, flag)) = self.flags.iter().find(|(signal, _)| *signal as libc::c_int == number)
            else {
                return;
            };
            flag.store(true, Ordering::SeqCst);
        }
    }

    pub(super) fn mask_while_waiting(&self, wakers: Wakers) -> &libc::sigset_t {
        match wakers {
            Wakers::All => self.while_waiting.as_ref(),
            Wakers::NoChildren => self.but_children.as_ref(),
        }
    }
}

/// Waits for a signal; all are blocked. Returns its number, and whether it came from the kernel or from outside of this process's
/// namespace of processes.
pub(crate) fn wait_for_any() -> (i32, bool) {
    let all = SigSet::all();
    // SAFETY: siginfo_t is plain data, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set and the place are live.
    let number = unsafe { libc::sigwaitinfo(all.as_ref(), &mut info) };
    // SAFETY: whatever the signal is, this is a number.
    (number, unsafe { info.si_pid() } == 0)
}

/// Whether it tells of a child.
pub(crate) fn is_of_child(number: i32) -> bool {
    number == Signal::SIGCHLD as i32
}

/// Sends a signal, by its number, to a process group of which the caller reaps the leader.
pub(crate) fn relay(number: i32, group: super::wait::Pid) {
    if number > 0 && group > 1 {
        // SAFETY: numbers only.
        unsafe { libc::kill(-group, number) };
    }
}

/// Puts every signal back to its default action, ignored ones included: what is ignored survives execve, and the Rust
/// runtime ignores SIGPIPE.
pub(crate) fn all_to_default() {
    // The kernel's struct sigaction, whose layout differs between architectures; all zero it is SIG_DFL on each.
    let default = [0u64; 8];
    for number in 1..=64 {
        // The raw call, since glibc's refuses 32 and 33, which it keeps for itself and a parent may have ignored.
        // SAFETY: reads a live local that is larger than the struct. An error is for SIGKILL and SIGSTOP.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null_mut::<u64>(), 8)
        };
    }
}

/// The ends of children are told, whatever the parent of this process has made of that.
pub(crate) fn hear_of_children() {
    set(Signal::SIGCHLD, libc::SIG_DFL);
}

/// Ignores SIGPIPE, as every Rust program does: a write says `EPIPE`. Children inherit it.
pub(crate) fn ignore_broken_pipes() {
    set(Signal::SIGPIPE, libc::SIG_IGN);
}

/// In a child: its parent's handlers go. Signals must still be blocked.
pub(crate) fn forget_handlers(signals: &Signals) {
    for (signal, _) in &signals.flags {
        set(*signal, libc::SIG_DFL);
    }
}

fn set(signal: Signal, action: libc::sighandler_t) {
    debug_assert!(matches!(action, libc::SIG_DFL | libc::SIG_IGN), "no handler is set here");
    // SAFETY: neither action runs code of ours.
    unsafe { libc::signal(signal as libc::c_int, action) };
}

/// Unblocks every signal: the last step before a program or a handler takes over.
pub(crate) fn unblock_all() -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}
