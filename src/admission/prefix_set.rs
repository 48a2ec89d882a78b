//! Yes or no for every address: where it changes, and nothing else.
//!
//! A worker asks this for each connection, and its children inherit it. So it is small, and in memory that nobody can
//! write and no fork copies. The supervisor makes it once for each service of a generation, and all its workers map the
//! same file.

use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::{Prefixes, Rules};
use crate::sys::memory::{self, SealedMapping};

/// One list as yes or no: the changes of each family.
#[derive(Debug, Default)]
pub(super) struct ListDraft {
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

/// How many lists a policy has: rules, proxies, and who has no penalties.
const LISTS: usize = 3;

/// The file begins with 32-bit numbers, three for each [`Family`]: those of IPv6, list by list, then those of IPv4. The
/// changes follow in the same order. There are as many numbers as make all of them aligned.
const HEAD: usize = (LISTS * 2 * 3).next_multiple_of(size_of::<u128>() / size_of::<u32>());

/// The answers to what a policy asks about addresses.
#[derive(Debug)]
pub(crate) struct PrefixSets {
    rules: PrefixSet,
    proxies: PrefixSet,
    exempt: PrefixSet,
    /// `None` if no answer ever changes.
    memory: Option<SealedMapping>,
}

/// Where the answers of one list are.
#[derive(Debug, Clone, Copy)]
struct PrefixSet {
    v4: Family,
    v6: Family,
}

/// The answer before the first change, the offset of the changes in bytes, and how many there are.
#[derive(Debug, Clone, Copy)]
struct Family {
    first: bool,
    offset: usize,
    count: usize,
}

impl PrefixSets {
    /// The lists of a policy as a memory file that nobody can change.
    pub(crate) fn freeze(rules: &Rules, proxies: &Prefixes, exempt: &Prefixes) -> io::Result<OwnedFd> {
        let lists: [ListDraft; LISTS] = [rules.answers(), proxies.answers(), exempt.answers()];
        let (mut head, mut changes) = (Vec::new(), Vec::new());
        for ListDraft { v6, .. } in &lists {
            head.push((v6.first, changes.len(), v6.at.len()));
            changes.extend(v6.at.iter().flat_map(|start| start.to_ne_bytes()));
        }
        for ListDraft { v4, .. } in &lists {
            head.push((v4.first, changes.len(), v4.at.len()));
            changes.extend(v4.at.iter().flat_map(|start| start.to_ne_bytes()));
        }
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let mut numbers = Vec::with_capacity(HEAD);
        for (first, offset, count) in head {
            let offset = u32::try_from(HEAD * size_of::<u32>() + offset).map_err(too_long)?;
            numbers.extend([u32::from(first), offset, u32::try_from(count).map_err(too_long)?]);
        }
        numbers.resize(HEAD, 0);
        let head: Vec<u8> = numbers.into_iter().flat_map(u32::to_ne_bytes).collect();
        memory::sealed(c"preforkd-prefixes", &[head, changes].concat())
    }

    /// Maps what [`PrefixSets::freeze`] has made.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is something else.
    pub(crate) fn open(file: BorrowedFd<'_>) -> io::Result<Self> {
        let memory = SealedMapping::open(file)?;
        let family = |index: usize, holds: &dyn Fn(Family) -> bool| {
            let number = |at: usize| usize::try_from(*memory.numbers(0, HEAD).get(index * 3 + at)?).ok();
            let family = Family { first: number(0)? == 1, offset: number(1)?, count: number(2)? };
            holds(family).then_some(family)
        };
        let set = |list: usize| {
            let v6 = family(list, &|v6| memory.wide_numbers(v6.offset, v6.count).len() == v6.count)?;
            let v4 = family(LISTS + list, &|v4| memory.numbers(v4.offset, v4.count).len() == v4.count)?;
            Some(PrefixSet { v4, v6 })
        };
        let (Some(rules), Some(proxies), Some(exempt)) = (set(0), set(1), set(2)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file of prefixes is broken"));
        };
        let is_asked = [rules, proxies, exempt].iter().any(|set| set.v4.count + set.v6.count > 0);
        Ok(PrefixSets { rules, proxies, exempt, memory: is_asked.then_some(memory) })
    }

    /// Whether the rules let an address in.
    pub(crate) fn allow(&self, address: IpAddr) -> bool {
        self.says(self.rules, address)
    }

    /// Whether a proxy connects from an address.
    pub(crate) fn has_proxy(&self, address: IpAddr) -> bool {
        self.says(self.proxies, address)
    }

    /// Whether an address never has penalties.
    pub(crate) fn exempt(&self, address: IpAddr) -> bool {
        self.says(self.exempt, address)
    }

    /// It costs one binary search, and allocates nothing.
    fn says(&self, set: PrefixSet, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let Family { first, offset, count } = if address.is_ipv4() { set.v4 } else { set.v6 };
        let Some(memory) = &self.memory else { return first };
        first
            ^ match address {
                IpAddr::V4(ip) => is_odd(memory.numbers(offset, count), ip.to_bits()),
                IpAddr::V6(ip) => is_odd(memory.wide_numbers(offset, count), ip.to_bits()),
            }
    }
}

/// Whether the answer has changed an odd number of times up to here.
fn is_odd<A: Copy + Ord>(starts: &[A], address: A) -> bool {
    starts.partition_point(|start| *start <= address) % 2 == 1
}
