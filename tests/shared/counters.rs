use preforkd::shared::Shared;

use crate::process::{fork, kill_and_wait, kill_at_instructions, note, noted, notes, until};

pub(crate) fn a_count_is_made_or_not() {
    let hits = Shared::new(4, |layout| layout.counter("hits")).unwrap();
    let [begun, done, ..] = notes();
    let mut sum = 0;
    let work = || {
        hits.begin(2);
        note(begun);
        hits.add(1);
        note(done);
    };
    kill_at_instructions(work, || {
        assert!((sum..=sum + 1).contains(&hits.sum()), "{} after {sum}", hits.sum());
        assert!((noted(done)..=noted(begun)).contains(&hits.sum()));
        sum = hits.sum();
    });
}

pub(crate) fn a_share_goes_with_its_process() {
    let talking = Shared::new(4, |layout| (layout.counter("hits"), layout.gauge("talking"))).unwrap();
    let (hits, gauge) = *talking;
    let [ready, ..] = notes();
    gauge.add(1);
    for turn in 1..=20 {
        let child = fork(|| {
            talking.begin(3);
            gauge.add(5);
            gauge.add(-2);
            hits.add(1);
            note(ready);
            until("it should be killed", || false);
        });
        until("a child should be ready", || noted(ready) == turn);
        assert_eq!(gauge.sum(), 4);
        kill_and_wait(child);
        talking.ended(3);
        talking.ended(3);
        assert_eq!((gauge.sum(), hits.sum()), (1, turn));
    }
}
