//! Longest-prefix match: the addresses cut into ranges, each with the prefix that decides for it.
//!
//! Callers either nest or have nothing in common, so `n` of them cut an address family into at most `2n + 1` ranges,
//! and a binary search finds the one of an address.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::Prefix;
use super::answers::Changes;

/// Decides for the addresses that no prefix has.
const NOBODY: u32 = u32::MAX;

/// For each address, the longest of the prefixes that have it.
#[derive(Debug, Clone, Default)]
pub(super) struct PrefixTable {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

/// Where ranges begin, and the number of the prefix of each; apart, because a search looks only at beginnings.
#[derive(Debug, Clone, Default)]
struct Ranges<A> {
    starts: Vec<A>,
    owners: Vec<u32>,
}

impl PrefixTable {
    /// The table of these prefixes, which it knows by their places in the list. Of two equal ones the first counts.
    /// A place without one is no prefix's.
    pub(super) fn new(prefixes: impl Iterator<Item = Option<Prefix>>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (owner, prefix) in (0..NOBODY).zip(prefixes) {
            let Some(prefix) = prefix else { continue };
            let (first, last) = prefix.range();
            let family = if prefix.is_ipv4() { &mut v4 } else { &mut v6 };
            family.push(Span { first, last, owner });
        }
        let v4 = cut(v4);
        // What begins after the last address of IPv4 is of nobody.
        let starts = v4.starts.into_iter().map_while(|start| u32::try_from(start).ok());
        PrefixTable { v4: Ranges { starts: starts.collect(), owners: v4.owners }, v6: cut(v6) }
    }

    /// Yes or no for every address, by the place of the longest prefix that has it.
    pub(super) fn changes(&self, says: impl Fn(Option<usize>) -> bool) -> (Changes<u32>, Changes<u128>) {
        let says = |owner: u32| says(if owner == NOBODY { None } else { usize::try_from(owner).ok() });
        (self.v4.changes(says), self.v6.changes(says))
    }

    /// The place in the list of the longest prefix that has the address.
    pub(super) fn find(&self, address: IpAddr) -> Option<usize> {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.v4.find(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.find(v6.to_bits()),
        }
    }
}

impl<A: Copy + Ord> Ranges<A> {
    fn find(&self, address: A) -> Option<usize> {
        let after = self.starts.partition_point(|start| *start <= address);
        let owner = *self.owners.get(after.checked_sub(1)?)?;
        if owner == NOBODY { None } else { usize::try_from(owner).ok() }
    }

    fn changes(&self, says: impl Fn(u32) -> bool) -> Changes<A> {
        let ranges = self.starts.iter().zip(&self.owners);
        Changes::new(says(NOBODY), ranges.map(|(start, owner)| (*start, says(*owner))))
    }
}

impl Ranges<u128> {
    /// A range begins here, and the one before ends; one that has just begun here was empty.
    fn begin(&mut self, start: u128, owner: u32) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.owners.pop();
        }
        self.starts.push(start);
        self.owners.push(owner);
    }
}

/// The addresses of a prefix.
struct Span {
    first: u128,
    last: u128,
    owner: u32,
}

/// Walks over the addresses; `around` has the prefixes that have the current one, the longest on top.
fn cut(mut spans: Vec<Span>) -> Ranges<u128> {
    spans.sort_by_key(|span| (span.first, Reverse(span.last), span.owner));
    let mut ranges = Ranges::default();
    let mut around: Vec<Span> = Vec::new();
    for span in spans {
        leave(&mut around, &mut ranges, |last| last < span.first);
        let twin = around.last().is_some_and(|top| (top.first, top.last) == (span.first, span.last));
        if !twin {
            ranges.begin(span.first, span.owner);
            around.push(span);
        }
    }
    leave(&mut around, &mut ranges, |_| true);
    ranges
}

/// Leaves the prefixes that end before the next address.
fn leave(around: &mut Vec<Span>, ranges: &mut Ranges<u128>, ended: impl Fn(u128) -> bool) {
    while around.last().is_some_and(|span| ended(span.last)) {
        let Some(span) = around.pop() else { return };
        // After the last address of all there is nothing.
        if let Some(next) = span.last.checked_add(1) {
            ranges.begin(next, around.last().map_or(NOBODY, |outer| outer.owner));
        }
    }
}
