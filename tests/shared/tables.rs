use std::collections::HashMap;

use preforkd::shared::{Shared, Table};

use crate::process::{fork, kill_and_wait, kill_at_instructions, note, noted, notes, until};

type Numbers = Table<u64, [u64; 5]>;

fn numbers(capacity: usize) -> Shared<Numbers> {
    Shared::new(8, |layout| layout.table("numbers", capacity)).unwrap()
}

/// What is there before and after the change that is going to be interrupted, beside the entries of others.
fn is_made_or_not(before: Option<[u64; 5]>, after: Option<[u64; 5]>) {
    const KEY: u64 = 30;
    let table = numbers(40);
    let others: HashMap<_, _> = (0..KEY).map(|key| (key, [key; 5])).collect();
    others.iter().for_each(|(key, value)| assert_eq!(table.insert(key, *value).unwrap(), None));
    let change = |to: Option<[u64; 5]>| table.update(&KEY, |entry| *entry = to).unwrap();
    change(before);
    let (mut made, mut not_made) = (0, 0);
    kill_at_instructions(
        || change(after),
        || {
            let now = table.get(&KEY).unwrap();
            assert!(now == before || now == after, "{now:?}, {before:?} or {after:?}");
            made += u32::from(now == after);
            not_made += u32::from(now == before);
            let mut all: HashMap<_, _> = table.iter().collect();
            assert_eq!(all.remove(&KEY), now);
            assert_eq!(all, others);
            // The locks are not lost, either.
            for key in 0..KEY {
                assert_eq!(*table.lock(&key).unwrap().guard(), Some(others[&key]));
            }
            change(before);
        },
    );
    println!("{made} were made, {not_made} not; {} were killed with a lock", table.owners_died());
    assert!(made > 0 && not_made > 0 && table.owners_died() > 0);
}

pub(crate) fn an_entry_is_put_in_or_not() {
    is_made_or_not(None, Some([1; 5]));
}

pub(crate) fn an_entry_is_changed_or_not() {
    is_made_or_not(Some([1; 5]), Some([2; 5]));
}

pub(crate) fn an_entry_is_taken_out_or_not() {
    is_made_or_not(Some([1; 5]), None);
}

/// Rows of entries, and of places that are free again: who looks for a key finds it whatever was tidied up by then.
pub(crate) fn entries_are_taken_out_one_by_one() {
    // As many places, in one part.
    let table = numbers(16);
    let stays = |key: u64| key % 3 == 0;
    let fill = || (0..9).for_each(|key| _ = table.insert(&key, [key; 5]).unwrap());
    fill();
    let (mut removed, mut kept) = (0, 0);
    kill_at_instructions(
        || _ = table.retain(|key, _| stays(key)).unwrap(),
        || {
            let all: HashMap<_, _> = table.iter().collect();
            for key in 0..9 {
                let found = table.get(&key).unwrap();
                assert_eq!(found, all.get(&key).copied());
                assert!(found.map_or(!stays(key), |found| found == [key; 5]), "{key}: {found:?}");
                kept += u32::from(found.is_some());
                removed += u32::from(found.is_none());
            }
            fill();
            assert_eq!(table.iter().count(), 9);
        },
    );
    println!("{removed} were removed, {kept} not; {} were killed with a lock", table.owners_died());
    assert!(removed > 0 && kept > 0 && table.owners_died() > 0);
}

pub(crate) fn crowds_see_whole_entries() {
    let table = &numbers(40);
    let all = notes();
    let start = |who: usize| {
        fork(move || {
            for turn in 0_u64.. {
                let key = fastrand::u64(..30);
                match turn % 4 {
                    0 => drop(table.remove(&key).unwrap()),
                    1 => {
                        let found = table.get(&key).unwrap();
                        assert!(found.is_none_or(|found| found.iter().all(|number| *number == found[0])));
                    }
                    _ => drop(table.insert(&key, [turn * 100 + key; 5]).unwrap()),
                }
                note(&all[who]);
            }
        })
    };
    let mut crowd: Vec<_> = (0..4).map(start).collect();
    for _ in 0..1000 {
        let who = fastrand::usize(..4);
        let before = noted(&all[who]);
        until("everybody should go on", || noted(&all[who]) > before + fastrand::u64(..50));
        let ended = kill_and_wait(crowd[who]);
        assert_eq!(ended, crate::process::Ended::Killed(nix::sys::signal::Signal::SIGKILL));
        crowd[who] = start(who);
        let mut seen = std::collections::HashSet::new();
        for (key, value) in table.iter() {
            assert!(
                value.iter().all(|number| *number == value[0]) && value[0] % 100 == key,
                "{key}: {value:?}"
            );
            seen.insert(key);
        }
        assert!(seen.iter().all(|key| *key < 30));
    }
    for child in crowd {
        kill_and_wait(child);
    }
    for key in 0..30 {
        table.remove(&key).unwrap();
    }
    assert_eq!(table.iter().count(), 0);
}
