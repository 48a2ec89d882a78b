//! Processes, and killing them.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

/// After so long something is stuck.
pub(crate) const STUCK: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exit(i32),
    Killed(Signal),
}

/// A process that does this and exits with 0. A panic makes it end by SIGABRT: unwinding ends in the harness of nobody.
pub(crate) fn fork(work: impl FnOnce()) -> Pid {
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let parent_is_gone = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            parent_is_gone.unwrap();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            std::process::exit(if done.is_ok() { 0 } else { 101 });
        }
    }
}

pub(crate) fn wait(child: Pid) -> Ended {
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, code) => Ended::Exit(code),
        WaitStatus::Signaled(_, signal, _) => Ended::Killed(signal),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn kill_and_wait(child: Pid) -> Ended {
    kill(child, Signal::SIGKILL).unwrap();
    wait(child)
}

/// Numbers that processes tell each other without what is tested.
pub(crate) fn notes() -> &'static [AtomicU64; 64] {
    let length = std::num::NonZeroUsize::new(512).unwrap();
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new memory.
    let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) }.unwrap();
    // SAFETY: zeros, mapped until all have ended.
    unsafe { memory.cast().as_ref() }
}

/// Waits until that holds.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + STUCK;
    while !holds() {
        assert!(Instant::now() < end, "stuck: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Waits until a process sleeps in futex(2).
pub(crate) fn until_it_waits(child: Pid) {
    until("a process should wait", || {
        let call = std::fs::read_to_string(format!("/proc/{child}/syscall")).unwrap_or_default();
        call.starts_with(&format!("{} ", nix::libc::SYS_futex))
    });
}

/// A process that does something, and is stopped before.
fn traced(work: impl FnOnce()) -> Pid {
    let child = fork(|| {
        ptrace::traceme().unwrap();
        raise(Signal::SIGSTOP).unwrap();
        work();
        // Where the tracer stops counting.
        raise(Signal::SIGSTOP).unwrap();
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Stopped(child, Signal::SIGSTOP));
    child
}

/// Lets a stopped process do so many instructions. Whether it has not come to the end.
fn step(child: Pid, count: usize) -> bool {
    for _ in 0..count {
        ptrace::step(child, None).unwrap();
        match waitpid(child, Some(WaitPidFlag::empty())).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, Signal::SIGSTOP) => return false,
            other => panic!("{other:?}"),
        }
    }
    true
}

/// How many instructions it takes.
fn length(work: impl FnOnce()) -> usize {
    let child = traced(work);
    let mut length = 0;
    while step(child, 1) {
        length += 1;
    }
    kill_and_wait(child);
    length
}

/// Kills processes that do something, `times` of them, each after another number of its instructions, and has `check` look
/// each time.
pub(crate) fn kill_at_instructions(times: usize, work: impl Fn(), mut check: impl FnMut()) {
    let length = length(&work);
    check();
    let seed =
        std::env::var("PREFORKD_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("PREFORKD_SEED={seed}; {times} kills among {length} instructions");
    let mut random = fastrand::Rng::with_seed(seed);
    let phase = random.f64();
    for turn in 0..times {
        // Evenly spread, so that all are visited if there are enough.
        let place = ((turn as f64 + phase) * length as f64 / times as f64) as usize;
        let child = traced(&work);
        step(child, place.min(length));
        assert_eq!(kill_and_wait(child), Ended::Killed(Signal::SIGKILL));
        check();
    }
}

/// Adds one, in a process that is the only one to do so.
pub(crate) fn note(cell: &AtomicU64) {
    cell.fetch_add(1, SeqCst);
}

pub(crate) fn noted(cell: &AtomicU64) -> u64 {
    cell.load(SeqCst)
}
