//! A table: who looks a key up goes through places in a row, each of which may change meanwhile.

use std::array::from_fn;
use std::marker::PhantomData;

use loom::sync::atomic::Ordering::{Acquire, Release};
use loom::thread;
use siphasher::sip::SipHasher13;

use super::atomic::{AtomicU32, AtomicU64};
use super::table::{Parts, Places, Table, TableSize};
use super::tests::model_with;
use crate::sys::become_thread;

/// Of a place: what says which copy is live; both copies of a key and a value.
const STRIDE: usize = 5;
const PLACES: usize = 4;

/// With one part, empty, in memory that is never given back.
fn table() -> Table<u64, u64> {
    let words: &'static [AtomicU32; 1] = Box::leak(Box::new([AtomicU32::new(0)]));
    let locks: &'static [AtomicU64; 3] = Box::leak(Box::new(from_fn(|_| AtomicU64::new(0))));
    let entries: &'static [AtomicU64; PLACES * STRIDE] = Box::leak(Box::new(from_fn(|_| AtomicU64::new(0))));
    let places = Places {
        rank: 1,
        name: "",
        deaths: &locks[2],
        secret: (0, 0),
        locks: Parts { words, entries: locks },
        entries,
        size: TableSize { parts: 1, places: PLACES, stride: STRIDE },
        capacity: PLACES,
    };
    Table { places: Some(places), types: PhantomData }
}

/// The first keys that belong to the first place.
fn keys<const COUNT: usize>() -> [u64; COUNT] {
    let hasher = SipHasher13::new_with_keys(0, 0);
    let low = |key: &u64| hasher.hash(&key.to_ne_bytes()) & u64::from(u32::MAX);
    let mut keys = (0..).filter(|key| (low(key) * PLACES as u64) >> 32 == 0);
    from_fn(|_| keys.next().unwrap())
}

/// An entry that nobody changes is there for everybody, whatever becomes of those that stand before and behind it in the row.
#[test]
fn what_stays_is_always_found() {
    model_with(Some(2), || {
        let [before, stays, behind, new] = keys();
        let table = table();
        for key in [before, stays, behind] {
            assert_eq!(table.insert(&key, key).unwrap(), None);
        }
        let writer = thread::spawn(move || {
            become_thread(1);
            assert_eq!(table.remove(&behind).unwrap(), Some(behind));
            assert_eq!(table.remove(&before).unwrap(), Some(before));
            assert_eq!(table.insert(&new, new).unwrap(), None);
        });
        let reader = thread::spawn(move || {
            become_thread(2);
            let was = table.get(&behind).unwrap();
            assert_eq!(table.get(&stays).unwrap(), Some(stays));
            let is = table.get(&behind).unwrap();
            assert!(is == was || is.is_none(), "what was taken out does not come back");
        });
        writer.join().unwrap();
        reader.join().unwrap();
    });
}

/// Who has been told of an entry finds it, though it stands behind one of which he has not been told.
#[test]
fn who_is_told_of_an_entry_finds_it() {
    model_with(Some(2), || {
        let [one, other] = keys();
        let table = table();
        let told: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        let writer = move |thread, key| {
            thread::spawn(move || {
                become_thread(thread);
                assert_eq!(table.insert(&key, key).unwrap(), None);
                told.fetch_add(thread.into(), Release);
            })
        };
        let writers = [writer(1, one), writer(2, other)];
        let reader = thread::spawn(move || {
            become_thread(3);
            let told = told.load(Acquire);
            for (thread, key) in [(1, one), (2, other)] {
                let found = table.get(&key).unwrap();
                assert!(found == Some(key) || found.is_none() && told & thread == 0);
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        reader.join().unwrap();
    });
}
