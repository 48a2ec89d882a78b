//! A queue: its ends have a lock each, and what the one says is read by who has the other.

use std::array::from_fn;
use std::marker::PhantomData;

use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;

use super::atomic::{AtomicU32, AtomicU64};
use super::event::Event;
use super::hold::LockWord;
use super::plain::write_only_after;
use super::queue::{Ends, Queue};
use super::tests::model_with;
use crate::sys::{become_thread, futex};

/// So many values, whose words are always equal.
const ROOM: usize = 2;

/// Empty, in memory that is never given back.
fn queue(capacity: u64) -> Queue<[u64; 2]> {
    let words: &'static [AtomicU32; 4] = Box::leak(Box::new(from_fn(|_| AtomicU32::new(0))));
    let numbers: &'static [AtomicU64; 5] = Box::leak(Box::new(from_fn(|_| AtomicU64::new(0))));
    let values: &'static [AtomicU64; 2 * ROOM] = Box::leak(Box::new(from_fn(|_| AtomicU64::new(0))));
    let lock = |word, entry, rank| LockWord { word, entry, deaths: &numbers[4], rank, name: "" };
    let ends = Ends {
        out: lock(&words[0], &numbers[0], 1),
        popped: &numbers[1],
        came: Event(&words[1]),
        into: lock(&words[2], &numbers[2], 2),
        pushed: &numbers[3],
        went: Event(&words[3]),
    };
    Queue { ends: Some(ends), values, capacity, value: PhantomData }
}

/// What comes out is what went in, each once and in this order; a place is written again only when it has been read; nobody sleeps
/// while there is something to do.
#[test]
fn values_come_out_as_they_went_in() {
    model_with(Some(3), || {
        let queue = queue(1);
        let looked: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        let pusher = thread::spawn(move || {
            become_thread(1);
            queue.push([1; 2]).unwrap();
            write_only_after(looked);
            queue.push([2; 2]).unwrap();
        });
        let popper = thread::spawn(move || {
            become_thread(2);
            let first = queue.front().unwrap().guard();
            assert_eq!(*first, [1; 2]);
            looked.store(1, Relaxed);
            first.remove();
            assert_eq!(queue.pop().unwrap(), [2; 2]);
        });
        pusher.join().unwrap();
        popper.join().unwrap();
    });
}

/// Who looks from outside sees no more than there are.
#[test]
fn no_more_is_counted_than_there_is() {
    model_with(Some(3), || {
        let queue = queue(2);
        let pusher = thread::spawn(move || {
            become_thread(1);
            queue.push([1; 2]).unwrap();
        });
        let popper = thread::spawn(move || {
            become_thread(2);
            assert_eq!(queue.pop().unwrap(), [1; 2]);
        });
        let looker = thread::spawn(move || assert!(queue.len().unwrap() < 2));
        pusher.join().unwrap();
        popper.join().unwrap();
        looker.join().unwrap();
    });
}

/// What somebody has looked at who dies then is the next one's, who sees it whole.
#[test]
fn what_the_dead_had_in_hand_is_the_next_ones() {
    model_with(Some(3), || {
        let queue = queue(2);
        let pusher = thread::spawn(move || {
            become_thread(1);
            queue.push([1; 2]).unwrap();
            queue.push([2; 2]).unwrap();
        });
        pusher.join().unwrap();
        let dying = thread::spawn(move || {
            become_thread(2);
            let front = queue.front().unwrap().guard();
            assert_eq!(*front, [front[0]; 2]);
            std::mem::forget(front);
            futex::bury(queue.ends.unwrap().out.word);
        });
        let popper = thread::spawn(move || {
            become_thread(3);
            assert_eq!(queue.pop().unwrap(), [1; 2]);
        });
        dying.join().unwrap();
        popper.join().unwrap();
        become_thread(4);
        assert_eq!(queue.pop().unwrap(), [2; 2]);
    });
}
