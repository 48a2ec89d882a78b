use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use preforkd::shared::{Lock, LockGuard, Locked, Shared, SharedError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::process::{
    Ended, STUCK, fork, kill_and_wait, kill_at_instructions, note, noted, notes, until, until_it_waits, wait,
};

/// What would show it if half a change was made.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Books {
    total: u64,
    by: [u64; 5],
    mirror: [u64; 2],
}

const EMPTY: Books = Books { total: 0, by: [0; 5], mirror: [0; 2] };

impl Books {
    fn assert_whole(&self) {
        assert_eq!(self.total, self.by.iter().sum::<u64>(), "{self:?}");
        assert!(self.mirror.iter().all(|copy| *copy == self.total), "{self:?}");
    }

    fn enter(&mut self, who: usize) {
        self.assert_whole();
        self.total += 1;
        self.by[who] += 1;
        self.mirror = [self.total; 2];
    }
}

fn enter(books: &Lock<Books>, who: usize) {
    let mut guard = books.lock().unwrap().guard();
    guard.enter(who);
    guard.commit();
}

/// Never for ever.
fn take(books: &Lock<Books>) -> Locked<LockGuard<Books>> {
    books.lock_for(STUCK).unwrap()
}

pub(crate) fn a_change_is_made_or_not() {
    let books = Shared::new(4, |layout| layout.lock("books", EMPTY)).unwrap();
    let [begun, done, ..] = notes();
    let (mut deaths, mut told) = (0, 0);
    let work = || {
        note(begun);
        enter(&books, 0);
        note(done);
    };
    kill_at_instructions(work, || {
        let now = books.read().unwrap();
        now.assert_whole();
        let locked = take(&books);
        told += u64::from(locked.owner_died());
        deaths += 1;
        let guard = locked.guard();
        assert_eq!(guard.total, now.total);
        assert!((noted(done)..=noted(begun)).contains(&guard.total));
    });
    println!("{told} of {deaths} were killed with the lock");
    assert_eq!(books.owners_died(), told);
    assert!(told > 0);
    // Whoever has noted that it is done has committed; of the others, some had not yet.
    let total = books.read().unwrap().total;
    assert!(total < noted(begun) && total >= noted(done));
}

pub(crate) fn a_change_is_made_or_not_in_a_crowd() {
    let books = &Shared::new(4, |layout| layout.lock("books", EMPTY)).unwrap();
    let all = notes();
    let rivals: Vec<_> = (1..4)
        .map(|who| {
            fork(move || {
                loop {
                    enter(books, who);
                    note(&all[who]);
                }
            })
        })
        .collect();
    let work = || enter(books, 0);
    let mut before = 0;
    kill_at_instructions(work, || {
        let guard = take(books).guard();
        guard.assert_whole();
        assert!((before..=before + 1).contains(&guard.by[0]));
        before = guard.by[0];
    });
    for rival in rivals {
        kill_and_wait(rival);
    }
    let guard = take(books).guard();
    guard.assert_whole();
    for (by, all) in guard.by.iter().zip(all).take(4).skip(1) {
        let done = noted(all);
        assert!((done..=done + 1).contains(by), "{done}, {guard:?}");
    }
}

/// At random moments, asleep or awake, with the lock or not.
pub(crate) fn crowds_go_on_whoever_is_killed() {
    let books = &Shared::new(8, |layout| layout.lock("books", EMPTY)).unwrap();
    let all = notes();
    let start = |who: usize| {
        fork(move || {
            loop {
                enter(books, who);
                note(&all[who]);
            }
        })
    };
    let mut crowd: Vec<_> = (0..5).map(start).collect();
    let mut killed = [0; 5];
    for _ in 0..2000 {
        let end = Instant::now() + Duration::from_micros(fastrand::u64(..400));
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        let who = fastrand::usize(..5);
        kill_and_wait(crowd[who]);
        killed[who] += 1;
        crowd[who] = start(who);
        books.read().unwrap().assert_whole();
    }
    // All of them still get their turn.
    let before: Vec<_> = (0..5).map(|who| noted(&all[who])).collect();
    until("everybody should get a turn", || (0..5).all(|who| noted(&all[who]) > before[who]));
    for child in crowd {
        kill_and_wait(child);
    }
    let guard = take(books).guard();
    guard.assert_whole();
    for who in 0..5 {
        let done = noted(&all[who]);
        // At each death, one may have been committed and not noted.
        assert!((done..=done + killed[who] + 1).contains(&guard.by[who]), "{done} of {who}, {guard:?}");
    }
    println!("{} of 2005 were killed with the lock; {} changes", books.owners_died(), guard.total);
}

pub(crate) fn who_has_waited_longest_is_next() {
    let books = &Shared::new(16, |layout| layout.lock("order", [0_u64; 16])).unwrap();
    for _ in 0..20 {
        books.update(|order| *order = [0; 16]).unwrap();
        let guard = books.lock().unwrap().guard();
        let mut waiting = Vec::new();
        for who in 1..=8 {
            let child = fork(move || {
                books
                    .update(|order| {
                        let next = order.iter().position(|place| *place == 0).unwrap();
                        order[next] = who;
                    })
                    .unwrap();
            });
            until_it_waits(child);
            waiting.push((who, child));
        }
        // Three leave the queue in the middle of it.
        for _ in 0..3 {
            let (_, child) = waiting.remove(fastrand::usize(..waiting.len()));
            kill_and_wait(child);
        }
        drop(guard);
        for (_, child) in &waiting {
            assert_eq!(wait(*child), Ended::Exit(0));
        }
        let mut expected = [0; 16];
        waiting.iter().zip(&mut expected).for_each(|((who, _), place)| *place = *who);
        assert_eq!(books.read().unwrap(), expected);
    }
    assert_eq!(books.owners_died(), 0);
}

pub(crate) fn a_killed_owner_is_told_of_once() {
    let books = Shared::new(4, |layout| layout.lock("books", EMPTY)).unwrap();
    let [ready, ..] = notes();
    for turn in 1..=50 {
        let child = fork(|| {
            let mut guard = books.lock().unwrap().guard();
            guard.total = 77;
            note(ready);
            until("it should be killed", || false);
        });
        until("a child should have the lock", || noted(ready) == turn);
        assert!(matches!(books.try_lock(), Err(SharedError::WouldBlock)));
        let late = books.lock_for(Duration::from_millis(5));
        assert!(matches!(late, Err(SharedError::TimedOut)), "{late:?}");
        // Half of the time somebody waits for it already.
        let waits = (turn % 2 == 0).then(|| {
            let child = fork(|| assert!(books.lock().unwrap().owner_died()));
            until_it_waits(child);
            child
        });
        kill_and_wait(child);
        match waits {
            Some(waits) => assert_eq!(wait(waits), Ended::Exit(0)),
            None => {
                let locked = books.try_lock().unwrap();
                assert!(locked.owner_died());
                assert_eq!(locked.guard().total, 0);
            }
        }
        assert!(!take(&books).owner_died());
        assert_eq!(books.owners_died(), turn);
    }
}

pub(crate) fn a_child_has_not_its_parents_lock() {
    let books = Shared::new(4, |layout| layout.lock("books", EMPTY)).unwrap();
    let mut guard = Some(books.lock().unwrap().guard());
    let child = fork(|| {
        assert!(matches!(books.try_lock(), Err(SharedError::WouldBlock)));
        let mut guard = guard.take().unwrap();
        guard.total = 1;
        guard.commit();
        assert!(matches!(books.try_lock(), Err(SharedError::WouldBlock)));
        assert_eq!(books.read().unwrap().total, 0);
    });
    assert_eq!(wait(child), Ended::Exit(0));
    // Nor has it when it ends.
    let child = fork(|| assert!(matches!(books.try_lock(), Err(SharedError::WouldBlock))));
    assert_eq!(wait(child), Ended::Exit(0));
}

pub(crate) fn another_program_has_no_lock() {
    let books = Shared::new(4, |layout| layout.lock("books", EMPTY)).unwrap();
    let child = fork(|| {
        let _guard = books.lock().unwrap().guard();
        let program = std::ffi::CString::new("/bin/sleep").unwrap();
        let minute = std::ffi::CString::new("60").unwrap();
        nix::unistd::execv(&program, &[&program, &minute]).unwrap();
    });
    until("it should be another program", || {
        std::fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name == "sleep\n")
    });
    assert!(books.try_lock().unwrap().owner_died());
    assert_eq!(kill_and_wait(child), Ended::Killed(Signal::SIGKILL));
}

pub(crate) fn several_are_given_back_by_the_kernel() {
    let three =
        Shared::new(4, |layout| [layout.lock("a", EMPTY), layout.lock("b", EMPTY), layout.lock("c", EMPTY)]);
    let three = three.unwrap();
    // With all, and with one of them given back out of order.
    for given in [None, Some(0), Some(1), Some(2)] {
        let child = fork(|| {
            let mut guards: Vec<_> = three.iter().map(|lock| Some(lock.lock().unwrap().guard())).collect();
            if let Some(given) = given {
                guards[given] = None;
            }
            nix::sys::signal::raise(Signal::SIGKILL).unwrap();
        });
        assert_eq!(wait(child), Ended::Killed(Signal::SIGKILL));
        for (number, lock) in three.iter().enumerate() {
            assert_eq!(lock.try_lock().unwrap().owner_died(), given != Some(number), "{given:?} {number}");
        }
    }
}
