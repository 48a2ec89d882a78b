//! Whatever is done in whatever order, a naive model knows the same. Who is killed is in `tests/shared`.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use super::{Layout, Lock, Queue, Shared, SharedError, Table};
use crate::seeded::{seed, turns};

/// These; the first three alone in an interpreter.
fn capacities(all: &[usize]) -> &[usize] {
    if cfg!(miri) { &all[..3] } else { all }
}

#[test]
fn a_table_is_a_map() {
    let mut random = fastrand::Rng::with_seed(seed());
    for &capacity in capacities(&[1, 7, 64, 1000, 20_000]) {
        let table: Shared<Table<u64, [u8; 11]>> =
            Shared::new(1, |layout| layout.table("t", capacity)).unwrap();
        let mut model = HashMap::new();
        for turn in 0..turns(20_000) {
            let key = random.u64(..capacity as u64);
            match random.u8(..10) {
                0..5 => {
                    let value = std::array::from_fn(|_| random.u8(..));
                    assert_eq!(table.insert(&key, value).unwrap(), model.insert(key, value));
                }
                5..8 => assert_eq!(table.remove(&key).unwrap(), model.remove(&key)),
                8 => {
                    // Not committed.
                    let mut entry = table.lock(&key).unwrap().guard();
                    assert_eq!(*entry, model.get(&key).copied());
                    *entry = None;
                }
                _ if turn % 500 == 0 => {
                    let before = model.len();
                    model.retain(|key, _| key % 3 > 0);
                    let removed = table.retain(|key, _| key % 3 > 0).unwrap();
                    assert_eq!(removed, (before - model.len()) as u64);
                }
                _ => assert_eq!(table.get(&key).unwrap(), model.get(&key).copied()),
            }
        }
        assert_eq!(table.iter().collect::<HashMap<_, _>>(), model);
    }
}

#[test]
fn a_table_holds_what_it_was_declared_for() {
    for &capacity in capacities(&[1, 2, 30, 100, 1024, 5000, 50_000]) {
        let table: Shared<Table<u64, u64>> = Shared::new(1, |layout| layout.table("t", capacity)).unwrap();
        for key in 0..capacity as u64 {
            assert_eq!(table.insert(&key, key).unwrap(), None);
        }
        assert!((0..capacity as u64).all(|key| table.get(&key).unwrap() == Some(key)));
    }
    let table: Shared<Table<u64, u64>> = Shared::new(1, |layout| layout.table("t", 3)).unwrap();
    (0..3).for_each(|key| assert_eq!(table.insert(&key, 1).unwrap(), None));
    assert!(matches!(table.insert(&3, 1), Err(SharedError::Full { name: "t" })));
    assert_eq!(table.remove(&1).unwrap(), Some(1));
    table.insert(&3, 1).unwrap();
}

#[test]
fn a_queue_is_a_queue() {
    let mut random = fastrand::Rng::with_seed(seed());
    for capacity in [1, 2, 3, 50] {
        let queue: Shared<Queue<[u8; 9]>> = Shared::new(1, |layout| layout.queue("q", capacity)).unwrap();
        let mut model = VecDeque::new();
        for _ in 0..turns(5_000) {
            match random.u8(..5) {
                0 | 1 => {
                    let value = std::array::from_fn(|_| random.u8(..));
                    match queue.try_push(value) {
                        Ok(()) => model.push_back(value),
                        Err(error) => {
                            assert!(matches!(error, SharedError::Full { name: "q" }));
                            assert_eq!(model.len(), capacity);
                        }
                    }
                }
                2 | 3 => assert_eq!(queue.try_pop().unwrap(), model.pop_front()),
                _ if !model.is_empty() => {
                    // Looked at, and left.
                    assert_eq!(*queue.front().unwrap().guard(), model[0]);
                }
                _ => {}
            }
            assert_eq!(queue.len().unwrap(), model.len() as u64);
        }
        let late = queue.pop_for(Duration::from_millis(1));
        assert!(if model.is_empty() { matches!(late, Err(SharedError::TimedOut)) } else { late.is_ok() });
    }
}

#[test]
fn who_reads_sees_whole_values() {
    const CHANGES: u32 = if cfg!(miri) { 10 } else { 20_000 };
    let value: Shared<Lock<[u64; 40]>> = Shared::new(1, |layout| layout.lock("v", [0; 40])).unwrap();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..CHANGES {
                    value.update(|value| *value = [value[0] + 1; 40]).unwrap();
                }
                ends.store(true, SeqCst);
            });
        }
        let mut last = 0;
        while !ends.load(SeqCst) {
            let now = value.read().unwrap();
            assert!(now.iter().all(|word| *word == now[0]) && now[0] >= last);
            last = now[0];
        }
    });
    assert_eq!(value.read().unwrap(), [2 * u64::from(CHANGES); 40]);
}

#[test]
fn locks_have_an_order() {
    let state = Shared::new(1, |layout| {
        (layout.lock("a", 0_u32), layout.table::<u32, u32>("b", 100), layout.queue::<u32>("c", 2))
    });
    let state = state.unwrap();
    let (a, b, c) = &*state;
    let first = a.lock().unwrap().guard();
    let entry = b.lock(&1).unwrap().guard();
    assert!(matches!(a.lock(), Err(SharedError::Order { name: "a" })));
    for key in 0..100 {
        assert!(matches!(b.lock(&key), Err(SharedError::Order { name: "b" })));
    }
    // To wait for a queue with something in hand may be for ever.
    assert!(matches!(c.push(1), Err(SharedError::Order { name: "c" })));
    c.try_push(1).unwrap();
    drop(first);
    assert!(matches!(a.try_lock(), Err(SharedError::Order { name: "a" })));
    drop(entry);
    a.lock().unwrap().guard().commit();
    assert_eq!(c.pop().unwrap(), 1);
}

#[test]
fn a_thread_has_sixteen_locks_at_most() {
    const NAMES: [&str; 17] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"];
    let locks = Shared::new(1, |layout| NAMES.map(|name| layout.lock(name, 0_u8))).unwrap();
    let guards: Vec<_> = locks[..16].iter().map(|lock| lock.lock().unwrap()).collect();
    assert!(matches!(locks[16].lock(), Err(SharedError::TooMany)));
    drop(guards);
    assert!(locks[16].lock().is_ok());
}

#[test]
fn memory_is_for_what_declared_it() {
    let one = |layout: &mut Layout| (layout.counter("hits"), layout.lock("seats", 5_u32));
    let fd = Shared::create(4, one).unwrap();
    let opened = Shared::open(fd.as_fd(), 4, one).unwrap();
    assert_eq!(opened.1.read().unwrap(), 5);
    opened.1.update(|seats| *seats = 6).unwrap();
    // Another time, with more processes.
    let again = Shared::open(fd.as_fd(), 400, one).unwrap();
    assert_eq!(again.1.read().unwrap(), 6);
    let other = |layout: &mut Layout| (layout.counter("hits"), layout.lock("seats", 5_u64));
    match Shared::open(fd.as_fd(), 4, other) {
        Err(SharedError::OtherLayout { was, is }) => {
            assert_eq!((was.as_str(), is.as_str()), ("lock seats of 4 bytes", "lock seats of 8 bytes"));
        }
        other => panic!("{other:?}"),
    }
    let more = |layout: &mut Layout| (one(layout), layout.gauge("users"));
    assert!(matches!(Shared::open(fd.as_fd(), 4, more), Err(SharedError::OtherLayout { .. })));
    // And what is no such memory.
    let file = crate::sys::memory::create(c"other", 3).unwrap();
    assert!(Shared::open(file.as_fd(), 4, one).is_err());
}

#[test]
fn wrong_declarations_are_errors() {
    let why = |result: Result<(), SharedError>| result.unwrap_err().to_string();
    let twice = Shared::new(1, |layout| (layout.counter("a"), layout.gauge("a")));
    assert_eq!(why(twice.map(drop)), "`a` is declared twice; give one of them another name");
    let nothing = Shared::new(1, |layout| layout.queue::<u8>("a", 0));
    assert_eq!(why(nothing.map(drop)), "`a` has a capacity of 0; declare it for at least one value");
    let huge = Shared::new(1, |layout| layout.table::<u64, u64>("a", usize::MAX / 2));
    assert!(why(huge.map(drop)).contains("1 TiB"));
    let words = Shared::new(1, |layout| layout.counter("a b"));
    assert!(why(words.map(drop)).contains("one word"));
    let early = Shared::new(1, |layout| {
        let lock = layout.lock("a", 1_u8);
        assert!(matches!(lock.read(), Ok(1) | Err(SharedError::NotYet)));
        lock
    });
    assert!(early.is_ok());
}

/// What a captured process may do.
#[test]
fn overwritten_memory_is_wrong_but_harmless() {
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..300 {
        let declare = |layout: &mut Layout| {
            (layout.lock("l", [0_u64; 3]), layout.table::<u32, u32>("t", 20), layout.queue::<u16>("q", 5))
        };
        let fd = Shared::create(1, declare).unwrap();
        let state = Shared::open(fd.as_fd(), 1, declare).unwrap();
        let file = std::fs::File::from(fd);
        let length = file.metadata().unwrap().len();
        let mut bytes = vec![0; length as usize - 256];
        random.fill(&mut bytes);
        file.write_all_at(&bytes, 256).unwrap();
        let soon = Duration::from_millis(1);
        let _ = (state.0.read(), state.0.lock_for(soon).map(drop));
        let _ = state.1.get(&random.u32(..));
        let _ = state.1.iter().count();
        let _ = (state.2.try_pop(), state.2.try_push(1), state.2.len());
    }
}
