use super::*;
use crate::admission::Prefix;
use crate::seeded::turns;
use crate::sys::kill_points;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;

const SECOND: Duration = Duration::from_secs(1);
/// Any time; a machine that has just been started has an earlier one.
const NOW: Monotonic = Monotonic::from_nanos(100_000_000_000_000);
/// How often threads try something at once; an interpreter tries each order by itself.
const TOGETHER: u32 = if cfg!(miri) { 10 } else { 20_000 };

fn sources() -> Sources {
    Sources::create().unwrap().0
}

fn source(sources: &Sources, text: &str) -> Source {
    sources.source(text.parse().unwrap())
}

fn address(number: u32) -> SourceName {
    SourceName::Prefix(Prefix::around(IpAddr::V4(number.into()), 32))
}

#[test]
fn a_source_gets_in_as_often_as_its_limit_and_again_when_one_has_left() {
    let sources = sources();
    let (one, other) = (source(&sources, "192.0.2.1"), source(&sources, "192.0.2.2"));
    for index in 0..3 {
        sources.enter(SlotIndex::at(index), one, 3).unwrap();
    }
    assert_eq!(sources.enter(SlotIndex::at(3), one, 3), Err(Full));
    sources.enter(SlotIndex::at(3), other, 3).unwrap();
    sources.leave(SlotIndex::at(1));
    sources.enter(SlotIndex::at(1), one, 3).unwrap();
    assert_eq!(sources.enter(SlotIndex::at(4), one, 3), Err(Full));
    assert_eq!(sources.counted(), 4);
    (0..5).for_each(|index| sources.leave(SlotIndex::at(index)));
    assert_eq!(sources.counted(), 0);
}

#[test]
fn a_limit_can_change_in_both_directions() {
    let sources = sources();
    let one = source(&sources, "2001:db8::/64");
    (0..5).for_each(|index| sources.enter(SlotIndex::at(index), one, 5).unwrap());
    assert_eq!(sources.enter(SlotIndex::at(5), one, 2), Err(Full));
    sources.enter(SlotIndex::at(5), one, 6).unwrap();
    (0..5).for_each(|index| sources.leave(SlotIndex::at(index)));
    sources.enter(SlotIndex::at(0), one, 2).unwrap();
    assert_eq!(sources.enter(SlotIndex::at(1), one, 2), Err(Full));
}

#[test]
fn a_newcomer_keeps_his_slot_while_who_had_it_before_is_counted_anew() {
    for still in [false, true] {
        let sources = sources();
        let (old, new) = (source(&sources, "192.0.2.0/24"), source(&sources, "192.0.2.1"));
        let place = SlotIndex::at(0);
        sources.enter(place, old, 1).unwrap();
        let looks = std::cell::Cell::new(0);
        sources.move_to(place, new, || {
            looks.set(looks.get() + 1);
            if looks.get() == 1 {
                return true;
            }
            sources.leave(place);
            sources.members().apply_and_die(0, new.key);
            still
        });
        assert_eq!(looks.get(), 2);
        assert_eq!(sources.enter(SlotIndex::at(1), new, 1), Err(Full), "he is about to enter");
        assert_eq!(sources.counted(), 0, "and it is for him to say that he has");
    }
}

#[test]
fn a_rough_count_that_was_left_too_high_keeps_nobody_out() {
    let sources = sources();
    let one = source(&sources, "192.0.2.1");
    for _ in 0..100 {
        // What a worker leaves that is killed while it applies.
        sources.members().apply_and_die(7, one.key);
        sources.leave(SlotIndex::at(7));
    }
    sources.enter(SlotIndex::at(0), one, 2).unwrap();
    sources.enter(SlotIndex::at(1), one, 2).unwrap();
    assert_eq!(sources.enter(SlotIndex::at(2), one, 2), Err(Full));
}

/// Threads stand for the processes: the memory is the same, and nothing else is shared.
#[test]
fn however_many_apply_at_once_there_are_never_more_than_the_limit() {
    const LIMIT: u32 = 3;
    let (sources, file) = Sources::create().unwrap();
    let one = source(&sources, "192.0.2.1");
    let (inside, entered) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (file, inside, entered) = (&file, &inside, &entered);
            scope.spawn(move || {
                let sources = Sources::open(file.as_fd()).unwrap();
                for _ in 0..TOGETHER {
                    if sources.enter(SlotIndex::at(index), one, LIMIT).is_ok() {
                        assert!(inside.fetch_add(1, SeqCst) < LIMIT);
                        entered.fetch_add(1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                        sources.leave(SlotIndex::at(index));
                    }
                }
            });
        }
    });
    assert!(entered.load(SeqCst) > 0);
    assert_eq!(sources.counted(), 0);
    (0..LIMIT).for_each(|index| sources.enter(SlotIndex::at(index), one, LIMIT).unwrap());
}

#[test]
fn connections_move_to_another_source_unless_they_have_gone() {
    let sources = sources();
    let (narrow, wide) = (source(&sources, "192.0.2.1"), source(&sources, "192.0.2.0/24"));
    sources.enter(SlotIndex::at(0), narrow, 9).unwrap();
    sources.move_to(SlotIndex::at(0), wide, || true);
    // One that was never counted.
    sources.move_to(SlotIndex::at(1), wide, || true);
    // One that has gone meanwhile.
    sources.move_to(SlotIndex::at(2), wide, || false);
    assert_eq!(sources.counted(), 2);
    assert_eq!(sources.enter(SlotIndex::at(3), wide, 2), Err(Full));
    (0..3).for_each(|index| sources.leave(SlotIndex::at(index)));
    sources.enter(SlotIndex::at(0), wide, 1).unwrap();
    assert_eq!(sources.enter(SlotIndex::at(1), wide, 1), Err(Full));
}

#[test]
fn a_bucket_holds_its_burst_and_fills_with_its_rate() {
    let sources = sources();
    let bucket = Bucket { interval: SECOND / 10, burst: 20 };
    let one = source(&sources, "192.0.2.1");
    let take = |now| (0..100).filter(|_| sources.take_token(one, bucket, || now)).count();
    assert_eq!(take(NOW), 20);
    assert_eq!(take(NOW + SECOND / 10 - Duration::from_nanos(1)), 0);
    assert_eq!(take(NOW + SECOND / 10), 1);
    assert_eq!(take(NOW + SECOND), 9);
    assert_eq!(take(NOW + 100 * SECOND), 20);
    assert!(sources.take_token(source(&sources, "192.0.2.2"), bucket, || NOW));
}

#[test]
fn a_slow_rate_of_before_does_not_outlive_a_reload() {
    let sources = sources();
    let one = source(&sources, "192.0.2.1");
    let (slow, fast) = (Bucket { interval: 3600 * SECOND, burst: 5 }, Bucket { interval: SECOND, burst: 1 });
    (0..5).for_each(|_| assert!(sources.take_token(one, slow, || NOW)));
    assert!(!sources.take_token(one, fast, || NOW));
    assert!(sources.take_token(one, fast, || NOW + SECOND));
}

#[test]
fn tokens_are_exact_for_many_at_once() {
    const ROUNDS: u32 = turns(1000);
    let (_, file) = Sources::create().unwrap();
    let bucket = Bucket { interval: 3600 * SECOND, burst: ROUNDS };
    let taken = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let sources = Sources::open(file.as_fd()).unwrap();
                for round in 0..ROUNDS {
                    for number in 0..4 {
                        if sources.take_token(sources.source(address(number)), bucket, || {
                            NOW + Duration::from_nanos(round.into())
                        }) {
                            taken.fetch_add(1, SeqCst);
                        }
                    }
                }
            });
        }
    });
    assert_eq!(taken.load(SeqCst), 4 * ROUNDS);
}

#[test]
fn millions_of_sources_lock_nobody_out_and_forget_the_worst_last() {
    let sources = sources();
    let bucket = Bucket { interval: 3600 * SECOND, burst: 3 };
    let worst: Vec<_> = (0..100).map(|number| sources.source(address(number))).collect();
    for source in &worst {
        (0..3).for_each(|_| assert!(sources.take_token(*source, bucket, || NOW)));
    }
    for number in 0..3_000_000 {
        assert!(sources.take_token(sources.source(address(1_000_000 + number)), bucket, || NOW + SECOND));
    }
    assert!(worst.iter().all(|source| !sources.take_token(*source, bucket, || NOW + 2 * SECOND)));
    assert!(sources.take_token(source(&sources, "203.0.113.1"), bucket, || NOW + 2 * SECOND));
}

#[test]
fn penalties_add_up_and_go_by() {
    let sources = sources();
    let one = source(&sources, "192.0.2.0/24");
    let crash = Penalty { amount: 10 * SECOND, threshold: 15 * SECOND, longest: 30 * SECOND };
    let punished = sources.punish(one, &crash, || NOW);
    assert_eq!(punished, Punished { total: 10 * SECOND, waits: false, waited: false });
    assert!(!sources.waits(one, NOW));
    assert_eq!(sources.waiting(NOW), 0);
    let punished = sources.punish(one, &crash, || NOW + SECOND);
    assert_eq!(punished, Punished { total: 19 * SECOND, waits: true, waited: false });
    assert!(sources.waits(one, NOW + 19 * SECOND));
    // Not below the threshold, but when it has gone.
    assert!(!sources.waits(one, NOW + 21 * SECOND));
    (0..9).for_each(|_| _ = sources.punish(one, &crash, || NOW + 2 * SECOND));
    assert!(sources.waits(one, NOW + 31 * SECOND));
    assert!(!sources.waits(one, NOW + 33 * SECOND));
    assert!(!sources.waits(source(&sources, "192.0.3.0/24"), NOW));
}

#[test]
fn penalties_can_be_forgiven() {
    let sources = sources();
    let penalty = Penalty { amount: 60 * SECOND, threshold: Duration::ZERO, longest: 60 * SECOND };
    for text in ["192.0.2.1", "192.0.2.2", "2001:db8:1:2::/64"] {
        assert!(sources.punish(source(&sources, text), &penalty, || NOW).waits);
    }
    assert_eq!(sources.waiting(NOW), 3);
    let forgiven = sources.forgive(NOW, |prefix| prefix == "192.0.2.2".parse().unwrap());
    assert_eq!(forgiven, ["192.0.2.2".parse().unwrap()]);
    assert!(!sources.waits(source(&sources, "192.0.2.2"), NOW));
    assert!(sources.waits(source(&sources, "192.0.2.1"), NOW));
    assert_eq!((sources.waiting(NOW), sources.waiting(NOW + 61 * SECOND)), (2, 0));
    assert_eq!(sources.forgive(NOW, |_| true).len(), 2);
    assert_eq!(sources.waiting(NOW), 0);
    assert_eq!(sources.forgive(NOW, |_| true).len(), 0);
}

#[test]
fn nonsense_in_the_memory_makes_nobody_wait_for_longer_than_he_could() {
    let sources = sources();
    let one = source(&sources, "192.0.2.1");
    let bucket = Bucket { interval: SECOND, burst: 2 };
    sources.tokens().claim(one.key, NOW).unwrap().1.store(u64::MAX, SeqCst);
    assert!(!sources.take_token(one, bucket, || NOW));
    assert!(sources.take_token(one, bucket, || NOW + SECOND));
}

#[test]
fn who_comes_late_does_not_turn_the_time_back() {
    let sources = sources();
    let one = source(&sources, "192.0.2.1");
    let bucket = Bucket { interval: SECOND, burst: 5 };
    (0..5).for_each(|_| assert!(sources.take_token(one, bucket, || NOW)));
    // The clock is asked after the word was read: what it says is never earlier than what was written by this rate.
    let asked = std::cell::Cell::new(0);
    let late = || {
        asked.set(asked.get() + 1);
        NOW
    };
    assert!(!sources.take_token(one, bucket, late));
    assert!(asked.get() >= 2, "the time before the word was read does not count");
    assert!(!sources.take_token(one, bucket, || NOW));
}

/// Memory, and how often somebody got what he asked for.
type Shared = Rc<(Sources, AtomicU32)>;

fn shared() -> Shared {
    Rc::new((sources(), AtomicU32::new(0)))
}

#[test]
fn who_applies_while_a_slot_is_counted_anew_goes_on_to_apply() {
    let sources = sources();
    let wide = source(&sources, "192.0.2.0/24");
    sources.enter(SlotIndex::at(0), source(&sources, "192.0.2.1"), 9).unwrap();
    let looked = AtomicU32::new(0);
    sources.move_to(SlotIndex::at(0), wide, || {
        if looked.fetch_add(1, SeqCst) == 0 {
            return true;
        }
        assert_eq!(sources.enter(SlotIndex::at(1), wide, 1), Err(Full), "it counts while it is moved");
        // Its connection goes, and the next in its place is about to enter.
        sources.leave(SlotIndex::at(0));
        sources.members().apply_and_die(0, wide.key);
        false
    });
    assert_eq!(sources.enter(SlotIndex::at(1), wide, 1), Err(Full), "it counts while it applies");
}

/// Runs `what` as often as it has accesses to shared memory, each time after `before` and with `others` in between at
/// another of them.
fn at_each_access(
    before: impl Fn(&Shared),
    what: impl Fn(&Shared),
    others: impl Fn(&Shared) + Copy + 'static,
    check: impl Fn(&Shared, u32),
) {
    for after in 0.. {
        let shared = shared();
        let theirs = Rc::clone(&shared);
        before(&shared);
        if !kill_points::interrupted(after, move || others(&theirs), || what(&shared)) {
            assert!(after > 3, "nothing was interrupted");
            return;
        }
        check(&shared, after);
    }
}

#[test]
fn a_new_source_has_its_burst_whoever_hears_of_it_in_between() {
    const BUCKET: Bucket = Bucket { interval: Duration::from_secs(3600), burst: 2 };
    fn take(shared: &Shared) {
        let (sources, taken) = &**shared;
        let is_taken = sources.take_token(source(sources, "192.0.2.1"), BUCKET, || NOW);
        taken.fetch_add(u32::from(is_taken), SeqCst);
    }
    let check = |shared: &Shared, after| {
        assert_eq!(shared.1.load(SeqCst), 2, "interrupted after {after} accesses");
    };
    at_each_access(|_| {}, take, |shared| (0..2).for_each(|_| take(shared)), check);
    // Who comes in between is interrupted himself.
    for second in 0..40 {
        let others = move |shared: &Shared| {
            let theirs = Rc::clone(shared);
            kill_points::interrupted(second, move || take(&theirs), || take(shared));
            take(shared);
        };
        at_each_access(|_| {}, take, others, check);
    }
}

#[test]
fn nobody_is_let_in_above_the_limit_whoever_comes_and_goes_in_between() {
    fn enter(shared: &Shared, slot: u32) -> bool {
        let (sources, entered) = &**shared;
        let is_in = sources.enter(SlotIndex::at(slot), source(sources, "192.0.2.1"), 2).is_ok();
        entered.fetch_add(u32::from(is_in), SeqCst);
        is_in
    }
    let check = |shared: &Shared, after| {
        let inside = shared.1.load(SeqCst);
        assert!((1..=2).contains(&inside), "{inside}, interrupted after {after} accesses");
        assert_eq!(shared.0.counted(), inside, "interrupted after {after} accesses");
        (3..6).for_each(|slot| _ = enter(shared, slot));
        assert_eq!(shared.1.load(SeqCst), 2, "interrupted after {after} accesses");
    };
    for second in 0..30 {
        let others = move |shared: &Shared| {
            let theirs = Rc::clone(shared);
            kill_points::interrupted(second, move || _ = enter(&theirs, 2), || _ = enter(shared, 1));
        };
        at_each_access(|_| {}, |shared| _ = enter(shared, 0), others, check);
        let what = |shared: &Shared| {
            if enter(shared, 0) {
                // Counted no more before it is out.
                shared.1.fetch_sub(1, SeqCst);
                shared.0.leave(SlotIndex::at(0));
            }
            enter(shared, 0);
        };
        at_each_access(|_| {}, what, others, check);
    }
}

#[test]
fn who_comes_while_a_slot_is_counted_anew_is_counted_once() {
    fn comes(shared: &Shared) {
        shared.1.store(1, SeqCst);
        shared.0.leave(SlotIndex::at(0));
        shared.0.enter(SlotIndex::at(0), source(&shared.0, "192.0.2.0/24"), 9).unwrap();
    }
    let before =
        |shared: &Shared| shared.0.enter(SlotIndex::at(0), source(&shared.0, "192.0.2.1"), 9).unwrap();
    let moves = |shared: &Shared| {
        let (sources, changed) = &**shared;
        let wide = source(sources, "192.0.2.0/24");
        sources.move_to(SlotIndex::at(0), wide, || changed.load(SeqCst) == 0);
    };
    let check = |shared: &Shared, after| {
        let wide = source(&shared.0, "192.0.2.0/24");
        let is_refused = shared.0.enter(SlotIndex::at(1), wide, 1).is_err();
        let is_alone = shared.0.enter(SlotIndex::at(1), wide, 2).is_ok();
        assert_eq!((is_refused, is_alone), (true, true), "interrupted after {after} accesses");
    };
    at_each_access(before, moves, comes, check);
    let goes = |shared: &Shared| {
        comes(shared);
        shared.0.leave(SlotIndex::at(0));
    };
    at_each_access(before, moves, goes, |shared, after| {
        assert_eq!(shared.0.counted(), 0, "interrupted after {after} accesses");
    });
}

/// A source that nobody knows yet, by processes that hear of it at the same time.
#[test]
fn however_many_meet_a_new_source_at_once_it_has_no_more_tokens_than_its_burst() {
    const BURST: u32 = 3;
    const TAKERS: u32 = 4;
    let (_sources, file) = Sources::create().unwrap();
    let bucket = Bucket { interval: 3600 * SECOND, burst: BURST };
    let taken: Vec<_> = (0..TOGETHER).map(|_| AtomicU32::new(0)).collect();
    let arrived = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..TAKERS {
            scope.spawn(|| {
                let sources = Sources::open(file.as_fd()).unwrap();
                for (round, taken) in (0..).zip(&taken) {
                    arrived.fetch_add(1, SeqCst);
                    while arrived.load(SeqCst) < (round + 1) * TAKERS {
                        std::thread::yield_now();
                    }
                    if sources.take_token(sources.source(address(round)), bucket, || NOW) {
                        taken.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    let wrong = taken.iter().filter(|taken| taken.load(SeqCst) != BURST).count();
    assert_eq!(wrong, 0, "of {} sources", taken.len());
}
