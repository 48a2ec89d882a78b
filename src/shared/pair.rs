//! A value in two copies: the live one, and the one beside it, where the next is written.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::atomic::{AtomicU64, fence};

/// Both copies, and the word that says which is live. One store to it is the whole change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// From the lowest bit: which copy; two bits for the owner, the mark; a count of changes, which tells a reader that what he
    /// read may have been overwritten.
    head: &'a AtomicU64,
    copies: [&'a [AtomicU64]; 2],
}

const MARK: u64 = 3;
const CHANGE: u64 = 8;

impl<'a> Pair<'a> {
    /// Zeros are a pair whose first copy is live, with mark 0.
    pub(super) fn new(head: &'a AtomicU64, both: &'a [AtomicU64]) -> Self {
        let (first, second) = both.split_at(both.len() / 2);
        Pair { head, copies: [first, second] }
    }

    /// The mark of the last change.
    pub(super) fn mark(&self) -> u64 {
        self.head.load(Acquire) >> 1 & MARK
    }

    /// What `read` makes of the mark and the live copy, unless that may have changed meanwhile. Anybody may do this.
    pub(super) fn peek<R>(&self, read: impl FnOnce(u64, &[AtomicU64]) -> R) -> Option<R> {
        let head = self.head.load(Acquire);
        let result = read(head >> 1 & MARK, self.live(head));
        // Who has seen a word of the change after the next sees the next as well: the fence in `change`.
        fence(Acquire);
        (self.head.load(Relaxed) == head).then_some(result)
    }

    /// What `read` makes of the mark and the live copy, for who has the lock.
    pub(super) fn own<R>(&self, read: impl FnOnce(u64, &[AtomicU64]) -> R) -> R {
        let head = self.head.load(Relaxed);
        read(head >> 1 & MARK, self.live(head))
    }

    /// Has `write` fill the copy beside the live one, and makes it live, with this mark. Only who has the lock may do this, and
    /// wherever he dies, the value is the old or the new one.
    pub(super) fn change(&self, mark: u64, write: impl FnOnce(&[AtomicU64])) {
        let head = self.head.load(Relaxed);
        // That copy was live until the last change. Who reads what follows is to see that change as well.
        fence(Release);
        write(self.live(head ^ 1));
        let changes = (head & !(CHANGE - 1)).wrapping_add(CHANGE);
        self.head.store(changes | mark << 1 | (head ^ 1) & 1, Release);
    }

    fn live(&self, head: u64) -> &'a [AtomicU64] {
        if head & 1 == 0 { self.copies[0] } else { self.copies[1] }
    }
}
