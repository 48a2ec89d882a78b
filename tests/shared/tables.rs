use std::collections::HashMap;

use preforkd::shared::{Shared, Table};

use crate::process::{fork, kill_and_wait, kill_at_instructions, note, noted, notes, until};

type Numbers = Table<u64, [u64; 5]>;

pub(crate) fn an_entry_is_changed_or_not() {
    let table: Shared<Numbers> = Shared::new(4, |layout| layout.table("numbers", 40)).unwrap();
    let [turn, ..] = notes();
    let change = |turn: u64| (turn * 7 % 30, (turn % 3 > 0).then_some([turn; 5]));
    let mut model = HashMap::new();
    let work = || {
        let (key, value) = change(noted(turn));
        table.update(&key, |entry| *entry = value).unwrap();
    };
    let check = || {
        let (key, value) = change(noted(turn));
        let before: Option<[u64; 5]> = model.get(&key).copied();
        let now = table.get(&key).unwrap();
        assert!(now == before || now == value, "{now:?}, {before:?} or {value:?}");
        match now {
            Some(now) => model.insert(key, now),
            None => model.remove(&key),
        };
        assert_eq!(table.iter().collect::<HashMap<_, _>>(), model);
        // The locks are not lost, either.
        for key in 0..30 {
            assert_eq!(*table.lock(&key).unwrap().guard(), model.get(&key).copied());
        }
        note(turn);
    };
    kill_at_instructions(work, check);
    println!("{} were killed with a lock", table.owners_died());
    assert!(table.owners_died() > 0);
}

pub(crate) fn crowds_see_whole_entries() {
    let table: &Shared<Numbers> = &Shared::new(8, |layout| layout.table("numbers", 40)).unwrap();
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
