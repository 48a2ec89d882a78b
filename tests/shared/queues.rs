use std::sync::atomic::Ordering::SeqCst;

use preforkd::shared::{Queue, Shared};

use crate::process::{
    STUCK, fork, kill_and_wait, kill_at_instructions, note, noted, notes, until, until_it_waits,
};

fn queue(capacity: usize) -> Shared<Queue<[u64; 3]>> {
    Shared::new(8, |layout| layout.queue("numbers", capacity)).unwrap()
}

pub(crate) fn a_value_is_pushed_or_not() {
    let queue = queue(3);
    let [turn, ..] = notes();
    let mut pushed = 0;
    let work = || queue.push([noted(turn); 3]).unwrap();
    kill_at_instructions(work, || {
        match queue.try_pop().unwrap() {
            Some(value) => {
                assert_eq!(value, [noted(turn); 3]);
                pushed += 1;
            }
            None => assert!(queue.is_empty().unwrap()),
        }
        note(turn);
        // For who pushes next.
        queue.push_for([0; 3], STUCK).unwrap();
        assert_eq!(queue.pop_for(STUCK).unwrap(), [0; 3]);
    });
    println!("{pushed} had pushed; {} were killed with a lock", queue.owners_died());
    assert!(pushed > 0 && queue.owners_died() > 0);
}

pub(crate) fn a_value_is_popped_or_not() {
    let queue = queue(3);
    let [next, ..] = notes();
    let mut first = 0;
    let refill = || {
        while queue.len().unwrap() < 3 {
            queue.push_for([noted(next); 3], STUCK).unwrap();
            note(next);
        }
    };
    refill();
    let mut popped = 0;
    kill_at_instructions(
        || {
            let _ = queue.pop().unwrap();
        },
        || {
            let now = *queue.front().unwrap().guard();
            assert!(now == [first; 3] || now == [first + 1; 3], "{now:?} after {first}");
            popped += now[0] - first;
            first = now[0];
            refill();
        },
    );
    println!("{popped} had popped; {} were killed with a lock", queue.owners_died());
    assert!(popped > 0 && queue.owners_died() > 0);
}

/// A value that is in the queue is taken by who waits for one, even if who put it there dies before he could say so.
pub(crate) fn a_sleeper_is_woken_by_the_dead() {
    let queue = queue(3);
    let [turn, got, ..] = notes();
    let consumer = fork(|| {
        loop {
            got.store(queue.pop().unwrap()[0], SeqCst);
        }
    });
    until_it_waits(consumer);
    note(turn);
    kill_at_instructions(
        || queue.push([noted(turn); 3]).unwrap(),
        || {
            // Nobody pushes another meanwhile.
            until("what is in the queue should be taken", || queue.is_empty().unwrap());
            note(turn);
            queue.push_for([noted(turn); 3], STUCK).unwrap();
            until("the consumer should go on", || noted(got) == noted(turn));
            note(turn);
            until_it_waits(consumer);
        },
    );
    kill_and_wait(consumer);
}

pub(crate) fn who_waits_for_room_is_woken_by_the_dead() {
    let queue = queue(1);
    let [pushed, ..] = notes();
    let producer = fork(|| {
        loop {
            queue.push([noted(pushed); 3]).unwrap();
            note(pushed);
        }
    });
    let mut popped = 0;
    until_it_waits(producer);
    kill_at_instructions(
        || {
            let _ = queue.pop().unwrap();
        },
        || {
            until("there should be a value again", || !queue.is_empty().unwrap());
            let value = queue.pop_for(STUCK).unwrap()[0];
            assert!(value == popped || value == popped + 1, "{value} after {popped}");
            popped = value + 1;
            until("the producer should go on", || !queue.is_empty().unwrap());
            until_it_waits(producer);
        },
    );
    kill_and_wait(producer);
}

/// Producers note before and after, consumers what they got: all is accounted for but what the dead had in hand.
pub(crate) fn crowds_lose_nothing() {
    let queue = &queue(4);
    let all = notes();
    let (begun, done, got) = (&all[0..3], &all[8..11], &all[16..19]);
    let producer = |who: usize| {
        fork(move || {
            loop {
                note(&begun[who]);
                queue.push([who as u64; 3]).unwrap();
                note(&done[who]);
            }
        })
    };
    let consumer = |who: usize| {
        fork(move || {
            loop {
                let value = queue.pop().unwrap();
                assert_eq!(value, [value[0]; 3]);
                note(&got[value[0] as usize]);
                note(&all[24 + who]);
            }
        })
    };
    let mut producers: Vec<_> = (0..3).map(producer).collect();
    let mut consumers: Vec<_> = (0..3).map(consumer).collect();
    let mut killed_consumers = 0;
    for _ in 0..1000 {
        let who = fastrand::usize(..3);
        let before = noted(&all[24 + who]);
        until("everybody should get something", || noted(&all[24 + who]) > before + fastrand::u64(..20));
        if fastrand::bool() {
            kill_and_wait(producers[who]);
            producers[who] = producer(who);
        } else {
            kill_and_wait(consumers[who]);
            consumers[who] = consumer(who);
            killed_consumers += 1;
        }
    }
    for child in producers {
        kill_and_wait(child);
    }
    until("the rest should be taken", || queue.is_empty().unwrap());
    consumers.into_iter().for_each(until_it_waits);
    let sum = |cells: &[std::sync::atomic::AtomicU64]| cells.iter().map(noted).sum::<u64>();
    let (begun, done, got) = (sum(begun), sum(done), sum(got));
    assert!(
        got <= begun && got + killed_consumers >= done,
        "{begun} {done} {got}, {killed_consumers} killed"
    );
    println!("{got} values; {} were killed with a lock", queue.owners_died());
}
