//! Yes or no for every address: where it changes, and nothing else.
//!
//! A worker asks this for each connection, and its children inherit it. So it is small, and in memory that nobody can
//! write and no fork copies.

use std::io;
use std::net::IpAddr;

use crate::sys::memory::SealedMapping;

/// The answers, to be frozen.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) v4: Changes<u32>,
    pub(super) v6: Changes<u128>,
}

/// Of one family: the addresses from which on the answer is another, and the answer before the first of them.
#[derive(Debug, Default)]
pub(super) struct Changes<A> {
    first: bool,
    at: Vec<A>,
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

/// The answers.
#[derive(Debug)]
pub(crate) struct PrefixSet {
    v4: (bool, usize),
    v6: (bool, usize),
    memory: SealedMapping,
}

impl PrefixSet {
    pub(super) fn new(Draft { v4, v6 }: Draft) -> io::Result<Self> {
        // The wider come first, so that all are aligned.
        let wide = v6.at.iter().flat_map(|start| start.to_ne_bytes());
        let bytes: Vec<u8> = wide.chain(v4.at.iter().flat_map(|start| start.to_ne_bytes())).collect();
        let memory = SealedMapping::new(c"preforkd-prefixes", &bytes)?;
        Ok(PrefixSet { v4: (v4.first, v4.at.len()), v6: (v6.first, v6.at.len()), memory })
    }

    /// The answer for an address. It costs one binary search, and allocates nothing.
    pub(crate) fn says(&self, address: IpAddr) -> bool {
        let ((first4, length4), (first6, length6)) = (self.v4, self.v6);
        match address.to_canonical() {
            IpAddr::V4(ip) => {
                let starts = self.memory.numbers(length6 * size_of::<u128>(), length4);
                first4 ^ is_odd(starts, ip.to_bits())
            }
            IpAddr::V6(ip) => first6 ^ is_odd(self.memory.wide_numbers(0, length6), ip.to_bits()),
        }
    }
}

/// Whether the answer has changed an odd number of times up to here.
fn is_odd<A: Copy + Ord>(starts: &[A], address: A) -> bool {
    starts.partition_point(|start| *start <= address) % 2 == 1
}
