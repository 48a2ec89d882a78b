//! Processes, and killing them.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm};

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

/// Lets a stopped process do one instruction. Whether it has not come to the end.
fn step(child: Pid) -> bool {
    ptrace::step(child, None).unwrap();
    at_trap(child)
}

/// Waits until it is stopped. Whether it has not come to the end.
fn at_trap(child: Pid) -> bool {
    match waitpid(child, Some(WaitPidFlag::empty())).unwrap() {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => true,
        WaitStatus::Stopped(_, Signal::SIGSTOP) => false,
        other => panic!("{other:?}"),
    }
}

/// The addresses of its instructions, one after the other.
fn instructions(work: impl FnOnce()) -> Vec<u64> {
    let child = traced(work);
    let mut addresses = Vec::new();
    while step(child) {
        addresses.push(ptrace::getregs(child).unwrap().rip);
    }
    kill_and_wait(child);
    addresses
}

/// Lets a stopped process run until it is about to do the instruction at this address for this time: with a breakpoint, since to
/// step takes too long. It has as good as the same memory as the process whose instructions were listed.
fn run_to(child: Pid, address: u64, time: usize) {
    const BREAKPOINT: i64 = 0xcc;
    let place = address as ptrace::AddressType;
    let code = ptrace::read(child, place).unwrap();
    for again in 0..time {
        if again > 0 && !step(child) {
            return;
        }
        ptrace::write(child, place, code & !0xff | BREAKPOINT).unwrap();
        ptrace::cont(child, None).unwrap();
        if !at_trap(child) {
            return;
        }
        ptrace::write(child, place, code).unwrap();
        let mut registers = ptrace::getregs(child).unwrap();
        registers.rip = address;
        ptrace::setregs(child, registers).unwrap();
    }
}

/// Kills processes that do something, each before another of its instructions, and has `check` look each time: a thousand of them,
/// and for as many seconds as `PREFORKD_KILLING` says, or three.
pub(crate) fn kill_at_instructions(work: impl Fn(), mut check: impl FnMut()) {
    let seconds = std::env::var("PREFORKD_KILLING").map_or(3, |seconds| seconds.parse().unwrap());
    // On one processor, they need not wake each other on two at each step.
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
    let addresses = instructions(&work);
    // A check that waits for a lock which is lost would wait for ever. So it ends this process.
    let mut check = || {
        alarm::set(STUCK.as_secs() as u32);
        check();
        alarm::cancel();
    };
    check();
    let seed =
        std::env::var("PREFORKD_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut kills = 0;
    while kills < 1000 || Instant::now() < end {
        let child = traced(&work);
        let place = random.usize(..addresses.len());
        let time = addresses[..=place].iter().filter(|before| **before == addresses[place]).count();
        run_to(child, addresses[place], time);
        assert_eq!(kill_and_wait(child), Ended::Killed(Signal::SIGKILL));
        check();
        kills += 1;
    }
    println!("PREFORKD_SEED={seed}: {kills} kills among {} instructions", addresses.len());
}

/// Adds one, in a process that is the only one to do so.
pub(crate) fn note(cell: &AtomicU64) {
    cell.fetch_add(1, SeqCst);
}

pub(crate) fn noted(cell: &AtomicU64) -> u64 {
    cell.load(SeqCst)
}
