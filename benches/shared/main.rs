//! What `preforkd::shared` costs: as `others.c`, with its counter and its lock.
//!
//! ```text
//! shared counter|lock PROCESSES MILLISECONDS
//! ```
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic, unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use preforkd::shared::{Counter, Layout, Lock, Shared};

const MOST: usize = 64;

struct State {
    counter: Counter,
    lock: Lock<u64>,
}

impl State {
    fn declare(layout: &mut Layout) -> Self {
        State { counter: layout.counter("counter"), lock: layout.lock("lock", 0) }
    }
}

/// What the processes of the bench tell each other, without what is measured.
#[derive(Default)]
#[repr(align(64))]
struct Line(AtomicU64);

struct Notes {
    ready: Line,
    /// 0: not yet; 1: not counted; 2: counted; 3: the end.
    phase: Line,
    done: [Line; MOST],
    all: [Line; MOST],
}

fn notes() -> &'static Notes {
    let length = std::num::NonZeroUsize::new(size_of::<Notes>()).unwrap();
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new memory.
    let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) }.unwrap();
    // SAFETY: zeros, mapped for as long as this process lives, and aligned to a page.
    unsafe { memory.cast().as_ref() }
}

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|word| word != "--bench").collect();
    let [_, kind, processes, milliseconds] = &arguments[..] else {
        // `cargo bench` without arguments.
        println!("benches/shared/run runs this");
        return;
    };
    let processes: usize = processes.parse().expect("PROCESSES");
    let time = Duration::from_millis(milliseconds.parse().expect("MILLISECONDS"));
    let work: fn(&State) = match kind.as_str() {
        "counter" => |state| state.counter.add(1),
        "lock" => |state| state.lock.update(|value| *value += 1).unwrap(),
        _ => panic!("counter or lock"),
    };
    let state = Shared::new(MOST as u32, State::declare).unwrap();
    let notes = notes();
    let start = |slot: usize| {
        // SAFETY: this process has one thread.
        if let ForkResult::Parent { child } = unsafe { fork() }.unwrap() {
            return child;
        }
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
        let mut here = CpuSet::new();
        here.set(slot % std::thread::available_parallelism().unwrap().get()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &here).unwrap();
        state.begin(slot as u32);
        notes.ready.0.fetch_add(1, SeqCst);
        while notes.phase.0.load(SeqCst) == 0 {
            sleep(Duration::from_micros(100));
        }
        let (mut done, mut all) = (0, 0);
        loop {
            let phase = notes.phase.0.load(Relaxed);
            if phase == 3 {
                break;
            }
            work(&state);
            all += 1;
            done += u64::from(phase == 2);
        }
        notes.done[slot].0.store(done, SeqCst);
        notes.all[slot].0.store(all, SeqCst);
        std::process::exit(0)
    };
    let children: Vec<_> = (0..processes).map(start).collect();
    while notes.ready.0.load(SeqCst) < processes as u64 {
        sleep(Duration::from_micros(100));
    }
    notes.phase.0.store(1, SeqCst);
    sleep(Duration::from_millis(100));
    let from = Instant::now();
    notes.phase.0.store(2, SeqCst);
    sleep(time);
    notes.phase.0.store(3, SeqCst);
    let took = from.elapsed();
    for child in children {
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    }
    let counts = |lines: &[Line; MOST]| -> Vec<u64> {
        lines[..processes].iter().map(|line| line.0.load(SeqCst)).collect()
    };
    let done = counts(&notes.done);
    let sum: u64 = done.iter().sum();
    assert_eq!(state.counter.sum() + state.lock.read().unwrap(), counts(&notes.all).iter().sum::<u64>());
    let (least, most) = (done.iter().min().unwrap(), done.iter().max().unwrap());
    println!("{:.0} {least} {most}", sum as f64 / took.as_secs_f64());
}
