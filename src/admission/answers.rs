//! What a list of callers says about everybody, as it is made: for addresses where it changes, for users and groups one by one.

use std::collections::BTreeMap;

/// One list as yes or no.
#[derive(Debug, Default)]
pub(super) struct ListDraft {
    pub(super) v4: Changes<u32>,
    pub(super) v6: Changes<u128>,
    pub(super) users: Answers,
    /// For users who are not among them.
    pub(super) groups: Answers,
    /// For whoever comes through a Unix socket and is in neither.
    pub(super) others: bool,
}

/// The ids for which there is an answer, in order.
#[derive(Debug, Default)]
pub(super) struct Answers(BTreeMap<u32, bool>);

impl Answers {
    /// Of several for the same the first counts.
    pub(super) fn add(&mut self, id: u32, answer: bool) {
        self.0.entry(id).or_insert(answer);
    }

    /// The ids with this answer, in order.
    pub(super) fn with(&self, answer: bool) -> Vec<u32> {
        self.0.iter().filter(|(_, its)| **its == answer).map(|(id, _)| *id).collect()
    }
}

/// Of one family: the addresses from which on the answer is another, and the answer before the first of them.
#[derive(Debug, Default)]
pub(super) struct Changes<A> {
    pub(super) first: bool,
    pub(super) at: Vec<A>,
}

impl<A> Changes<A> {
    /// The changes of what begins where, in order. `otherwise` is the answer before the first.
    pub(super) fn new(otherwise: bool, ranges: impl Iterator<Item = (A, bool)>) -> Self {
        let mut changes = Changes { first: otherwise, at: Vec::new() };
        for (start, answer) in ranges {
            if answer != (changes.first ^ (changes.at.len() % 2 == 1)) {
                changes.at.push(start);
            }
        }
        changes
    }
}
