//! Yes or no for everybody: for addresses where it changes, for users and groups one by one, and nothing else.
//!
//! A worker asks this for each connection, and its children inherit it. So it is small, and in memory that nobody can
//! write and no fork copies. The supervisor makes it once for each service of a generation, and all its workers map the
//! same file.

use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::answers::ListDraft;
use super::{Callers, Rules};
use crate::sys::memory::{self, SealedMapping};
use crate::sys::socket::{self, PeerCredentials};

/// How many lists a policy has: rules, proxies, and who has no penalties.
const LISTS: usize = 3;

/// The file begins with 32-bit numbers, three for each [`Family`]: those of IPv6, list by list, then those of IPv4, and then,
/// list by list, the four of [`Local`], in the same form. What they describe follows in the same order. There are as many
/// numbers as make all of it aligned.
const HEAD: usize = (LISTS * 6 * 3).next_multiple_of(size_of::<u128>() / size_of::<u32>());

/// More groups of a client than this are not read.
const MOST_GROUPS: usize = 1024;

/// The answers to what a policy asks about clients.
#[derive(Debug)]
pub(crate) struct CallerSets {
    rules: CallerSet,
    proxies: CallerSet,
    exempt: CallerSet,
    /// `None` if no answer ever changes.
    memory: Option<SealedMapping>,
}

/// Where the answers of one list are.
#[derive(Debug, Clone, Copy)]
struct CallerSet {
    v4: Family,
    v6: Family,
    local: Local,
}

/// Of clients of Unix sockets: ids in order, by no and yes. The answer for all others is in the first of the users.
#[derive(Debug, Clone, Copy)]
struct Local {
    users: [Family; 2],
    groups: [Family; 2],
}

/// The answer before the first change, the offset of the changes in bytes, and how many there are.
#[derive(Debug, Clone, Copy)]
struct Family {
    first: bool,
    offset: usize,
    count: usize,
}

impl CallerSets {
    /// The lists of a policy as a memory file that nobody can change.
    pub(crate) fn freeze(rules: &Rules, proxies: &Callers, exempt: &Callers) -> io::Result<OwnedFd> {
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
        for ListDraft { users, groups, others, .. } in &lists {
            for ids in [users.with(false), users.with(true), groups.with(false), groups.with(true)] {
                head.push((*others, changes.len(), ids.len()));
                changes.extend(ids.iter().flat_map(|id| id.to_ne_bytes()));
            }
        }
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let mut numbers = Vec::with_capacity(HEAD);
        for (first, offset, count) in head {
            let offset = u32::try_from(HEAD * size_of::<u32>() + offset).map_err(too_long)?;
            numbers.extend([u32::from(first), offset, u32::try_from(count).map_err(too_long)?]);
        }
        numbers.resize(HEAD, 0);
        let head: Vec<u8> = numbers.into_iter().flat_map(u32::to_ne_bytes).collect();
        memory::sealed(c"preforkd-callers", &[head, changes].concat())
    }

    /// Maps what [`CallerSets::freeze`] has made.
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
            let ids = |place: usize| {
                let index = LISTS * 2 + list * 4 + place;
                family(index, &|ids| memory.numbers(ids.offset, ids.count).len() == ids.count)
            };
            let local = Local { users: [ids(0)?, ids(1)?], groups: [ids(2)?, ids(3)?] };
            Some(CallerSet { v4, v6, local })
        };
        let (Some(rules), Some(proxies), Some(exempt)) = (set(0), set(1), set(2)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file of callers is broken"));
        };
        let is_asked = |set: &CallerSet| set.v4.count + set.v6.count > 0 || set.local.names_anybody();
        let is_asked = [rules, proxies, exempt].iter().any(is_asked);
        Ok(CallerSets { rules, proxies, exempt, memory: is_asked.then_some(memory) })
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

    /// Whether the rules let a client of a Unix socket in, at whose other end `socket` is. Not if they are about somebody
    /// of whom it is not known whether he is that.
    pub(crate) fn allow_user(&self, peer: Option<PeerCredentials>, socket: BorrowedFd<'_>) -> bool {
        self.says_user(self.rules, peer, Some(socket)).unwrap_or(false)
    }

    /// Whether a proxy connects to a Unix socket.
    pub(crate) fn has_unix_proxies(&self) -> bool {
        self.proxies.local.others()
    }

    /// Whether a user never has penalties. Without the socket only he himself is asked about, not his groups.
    pub(crate) fn exempt_user(&self, peer: Option<PeerCredentials>, socket: Option<BorrowedFd<'_>>) -> bool {
        self.says_user(self.exempt, peer, socket).unwrap_or(false)
    }

    /// `None` if it cannot be told. It costs no system call unless there are groups, and he is not named himself.
    fn says_user(
        &self,
        set: CallerSet,
        peer: Option<PeerCredentials>,
        socket: Option<BorrowedFd<'_>>,
    ) -> Option<bool> {
        let local = set.local;
        if !local.names_anybody() {
            return Some(local.others());
        }
        let (memory, peer) = (self.memory.as_ref()?, peer?);
        let has = |ids: Family, id: u32| memory.numbers(ids.offset, ids.count).binary_search(&id).is_ok();
        let [no, yes] = local.users.map(|ids| has(ids, peer.uid));
        if no || yes {
            return Some(yes);
        }
        if local.groups.iter().all(|ids| ids.count == 0) {
            return Some(local.others());
        }
        let [no, yes] = has_group(peer.gid, socket?, local.groups, &has)?;
        Some(!no && (yes || local.others()))
    }

    /// It costs one binary search, and allocates nothing.
    fn says(&self, set: CallerSet, address: IpAddr) -> bool {
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

impl Local {
    fn names_anybody(&self) -> bool {
        self.users.iter().chain(&self.groups).any(|ids| ids.count > 0)
    }

    fn others(&self) -> bool {
        self.users.iter().any(|ids| ids.first)
    }
}

/// Whether the client at the other end of `socket` has one of the groups of each list. Apart, so that room for his groups is
/// taken only where it is needed.
#[inline(never)]
fn has_group(
    effective: u32,
    socket: BorrowedFd<'_>,
    lists: [Family; 2],
    has: &dyn Fn(Family, u32) -> bool,
) -> Option<[bool; 2]> {
    let mut room = [0; MOST_GROUPS];
    let groups = socket::peer_groups(socket, &mut room).ok()?;
    let all = || groups.iter().chain([&effective]);
    Some(lists.map(|ids| ids.count > 0 && all().any(|group| has(ids, *group))))
}

/// Whether the answer has changed an odd number of times up to here.
fn is_odd<A: Copy + Ord>(starts: &[A], address: A) -> bool {
    starts.partition_point(|start| *start <= address) % 2 == 1
}
