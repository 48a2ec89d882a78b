use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc as Tried;
use std::sync::atomic::AtomicU64 as AtomicU64OfStd;

use loom::sync::Arc;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;

use super::atomic::{AtomicU32, AtomicU64};
use super::event::Event;
use super::pair::Pair;
use super::word::{self, Patience};
use crate::sys::{become_thread, futex};

/// A lock and its value, two words that are always equal.
struct Memory {
    word: AtomicU32,
    head: AtomicU64,
    copies: [AtomicU64; 4],
}

/// Where a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Owning,
    Writing,
    Committed,
    /// As well, and the kernel does not know that it had the lock.
    Forgotten,
    Never,
}

impl Memory {
    fn new() -> Arc<Self> {
        let copies = std::array::from_fn(|_| AtomicU64::new(0));
        Arc::new(Memory { word: AtomicU32::new(0), head: AtomicU64::new(0), copies })
    }

    fn pair(&self) -> Pair<'_> {
        Pair::new(&self.head, &self.copies)
    }

    /// Makes both words one more. How much was committed, and whether the one before had died.
    fn add(&self, thread: u32, patience: Patience, death: Death) -> (u64, bool) {
        become_thread(thread);
        let Ok(died) = word::take(&self.word, thread, patience, "") else { return (0, false) };
        let (first, second) = self.pair().own(|_, words| read(words));
        assert_eq!(first, second, "who has the lock sees a whole value");
        let write = |words: &[AtomicU64]| {
            words[0].store(first + 1, Relaxed);
            if death == Death::Writing {
                // Nothing that follows is done.
                resume_unwind(Box::new(death));
            }
            words[1].store(first + 1, Relaxed);
        };
        if death != Death::Owning {
            let _ = catch_unwind(AssertUnwindSafe(|| self.pair().change(0, write)));
        }
        match death {
            Death::Never => word::give(&self.word, thread),
            Death::Forgotten => futex::forget(&self.word),
            _ => futex::bury(&self.word),
        }
        (u64::from(matches!(death, Death::Committed | Death::Forgotten | Death::Never)), died)
    }
}

fn read(words: &[AtomicU64]) -> (u64, u64) {
    (words[0].load(Relaxed), words[1].load(Relaxed))
}

/// All orders of what the test does. It must not do it in the first thread: loom then takes what that has done by the end of another
/// for what was before it.
pub(super) fn model(test: impl Fn() + Sync + Send + 'static) {
    model_with(None, test);
}

/// As [`model`], without those in which threads are interrupted more often than so: of long tests there are too many.
pub(super) fn model_with(interruptions: Option<usize>, test: impl Fn() + Sync + Send + 'static) {
    let tried = Tried::new(AtomicU64OfStd::new(0));
    let counted = Tried::clone(&tried);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = interruptions;
    builder.max_branches = 20_000;
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        test();
    });
    // One thread's alone would be one.
    assert!(tried.load(Relaxed) > 10, "loom has tried {tried:?} orders");
    println!("{tried:?} orders");
}

/// Two change the value, one of whom dies somewhere: nobody sees half a change, what was committed stays, and the death is told
/// once.
fn owners(patience: Patience) {
    for death in [Death::Owning, Death::Writing, Death::Committed, Death::Forgotten, Death::Never] {
        model(move || {
            let memory = Memory::new();
            let owner = |thread, death| {
                let memory = Arc::clone(&memory);
                thread::spawn(move || memory.add(thread, patience, death))
            };
            let (first, second) = (owner(1, death), owner(2, Death::Never));
            let (first, second) = (first.join().unwrap(), second.join().unwrap());
            become_thread(3);
            let told = word::take(&memory.word, 3, Patience::Never, "").unwrap();
            let committed = first.0 + second.0;
            assert_eq!(memory.pair().own(|_, words| read(words)), (committed, committed));
            if patience == Patience::Forever {
                let died = u32::from(death != Death::Never);
                assert_eq!([first.1, second.1, told].map(u32::from).iter().sum::<u32>(), died);
            }
        });
    }
}

#[test]
fn owners_that_wait_see_whole_values() {
    owners(Patience::Forever);
}

#[test]
fn owners_that_do_not_wait_see_whole_values() {
    owners(Patience::Never);
}

/// Who reads without the lock sees a value that was committed, or nothing, though the copy that he reads is written again meanwhile.
#[test]
fn readers_see_whole_values() {
    for death in [Death::Writing, Death::Committed, Death::Never] {
        model(move || {
            let memory = Memory::new();
            let writer = {
                let memory = Arc::clone(&memory);
                thread::spawn(move || {
                    memory.add(1, Patience::Never, Death::Never);
                    memory.add(1, Patience::Never, death);
                })
            };
            let reader = {
                let memory = Arc::clone(&memory);
                thread::spawn(move || {
                    let look = || memory.pair().peek(|_, words| read(words));
                    let (now, later) = (look(), look());
                    for (first, second) in [now, later].into_iter().flatten() {
                        assert_eq!(first, second, "who reads sees a whole value");
                    }
                    if let (Some(now), Some(later)) = (now, later) {
                        assert!(now <= later, "who reads again sees no older value");
                    }
                })
            };
            writer.join().unwrap();
            reader.join().unwrap();
        });
    }
}

/// Either the sleeper sees what has come, or he is woken: he never sleeps with something to take.
#[test]
fn no_wake_up_is_lost() {
    model(|| {
        let memory = Memory::new();
        let pusher = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                memory.pair().change(1, |words| words[0].store(1, Relaxed));
                Event(&memory.word).ring();
            })
        };
        let sleeper = thread::spawn(move || {
            let event = Event(&memory.word);
            loop {
                event.announce();
                if memory.pair().mark() != 0 {
                    break event.withdraw();
                }
                event.sleep(None).unwrap();
            }
            let first = memory.pair().own(|_, words| read(words).0);
            assert_eq!(first, 1, "who has seen the mark sees what came with it");
        });
        sleeper.join().unwrap();
        pusher.join().unwrap();
    });
}
