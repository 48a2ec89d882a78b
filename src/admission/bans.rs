//! Whom the operator keeps out of a service, in memory that the supervisor writes and its workers only read.
//!
//! So a ban holds from the next connection on, without a word to anybody. The list is there twice: the half that is not in
//! force is written, then a number changes, whose lowest bit says which half is. Who reads a half looks at the number before
//! and after; if it has changed, he reads again. A supervisor that dies in between has changed nothing.
//!
//! Prefixes are kept as the addresses at which the answer changes: to ask costs one binary search, without a ban nothing.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::SeqCst;

use super::SourceName;
use crate::sys::memory::{self, AtomicU64, Mapping, ReadMapping};
use crate::sys::socket::Peer;

/// How many bans there can be.
pub(crate) const MAX_BANS: usize = 10_000;

/// Where the number is; then come the halves. All are words of 64 bits.
const NUMBER: usize = 0;
const HALVES: usize = 8;

/// In a half: how many changes of IPv4 and of IPv6, how many users, and whether who is unknown is among them. Then these.
const V4: usize = 8;
const V6: usize = V4 + 2 * MAX_BANS;
const USERS: usize = V6 + 4 * MAX_BANS;
const HALF: usize = USERS + MAX_BANS;

/// In bytes.
const LENGTH: usize = (HALVES + 2 * HALF) * size_of::<u64>();

/// How often a list is read that changes meanwhile.
const TRIES: u32 = 16;

/// The supervisor's side.
#[derive(Debug)]
pub(crate) struct BanTable {
    memory: Mapping,
    file: OwnedFd,
    to_read: OwnedFd,
}

impl BanTable {
    /// New: nobody is banned.
    pub(crate) fn create() -> io::Result<Self> {
        BanTable::open(memory::create(c"preforkd-bans", LENGTH)?)
    }

    /// The one in `file`, as another program has left it.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        let memory = Mapping::new(file.as_fd(), LENGTH)?;
        let to_read = memory::to_read(file.as_fd())?;
        Ok(BanTable { memory, file, to_read })
    }

    /// What another program goes on with.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What workers get.
    pub(crate) fn to_read(&self) -> BorrowedFd<'_> {
        self.to_read.as_fd()
    }

    /// These are banned from now on, and nobody else. More than [`MAX_BANS`] of them there must not be.
    pub(crate) fn publish(&self, banned: impl Iterator<Item = SourceName>) {
        let (mut v4, mut v6, mut users, mut unknown) = (Vec::new(), Vec::new(), Vec::new(), false);
        for source in banned {
            match source {
                SourceName::Prefix(prefix) if prefix.is_ipv4() => v4.push(prefix.range()),
                SourceName::Prefix(prefix) => v6.push(prefix.range()),
                SourceName::User(uid) => users.push(u64::from(uid)),
                SourceName::UnknownUser => unknown = true,
            }
        }
        users.sort_unstable();
        users.dedup();
        // An IPv4 address has 32 bits, and one more than the last of them has 33.
        let v4: Vec<u64> = changes(v4).map(|address| address as u64).collect();
        let v6: Vec<u64> = changes(v6).flat_map(|address| [(address >> 64) as u64, address as u64]).collect();
        let number = self.words(NUMBER, 1);
        let next = number.first().map_or(0, |number| number.load(SeqCst)).wrapping_add(1);
        let half = HALVES + (next % 2) as usize * HALF;
        let head = [v4.len(), v6.len() / 2, users.len(), usize::from(unknown)].map(|count| count as u64);
        for (place, words) in [(0, &head[..]), (V4, &v4), (V6, &v6), (USERS, &users)] {
            for (place, word) in self.words(half + place, words.len()).iter().zip(words) {
                place.store(*word, SeqCst);
            }
        }
        if let Some(number) = number.first() {
            number.store(next, SeqCst);
        }
    }

    fn words(&self, place: usize, count: usize) -> &[AtomicU64] {
        self.memory.long_words(place * size_of::<u64>(), count)
    }
}

/// The addresses at which the answer changes, in order, from the first and last address of each prefix. Beyond the last
/// address of all it does not.
fn changes(mut ranges: Vec<(u128, u128)>) -> impl Iterator<Item = u128> {
    ranges.sort_unstable();
    let mut apart: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match apart.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => apart.push((first, last)),
        }
    }
    apart.into_iter().flat_map(|(first, last)| [Some(first), last.checked_add(1)]).flatten()
}

/// A worker's side.
#[derive(Debug)]
pub(crate) struct BannedClients(ReadMapping);

impl BannedClients {
    /// Maps what [`BanTable::to_read`] returns; children have it if they are `to_ask`, too.
    pub(crate) fn open(file: BorrowedFd<'_>, children_ask: bool) -> io::Result<Self> {
        ReadMapping::new(file, LENGTH, children_ask).map(BannedClients)
    }

    /// In a child that asks no more: it has the list no more, and nobody is in it.
    pub(crate) fn forget(&self) -> io::Result<()> {
        self.0.forget()
    }

    /// Whether a client is banned. Allocates nothing, and makes no system call.
    pub(crate) fn has(&self, peer: Peer) -> bool {
        let mut found = false;
        for _ in 0..TRIES {
            let number = self.0.word(NUMBER);
            found = self.half_has(HALVES + (number % 2) as usize * HALF, peer);
            if self.0.word(NUMBER) == number {
                break;
            }
        }
        found
    }

    fn half_has(&self, half: usize, peer: Peer) -> bool {
        let word = |place: usize| self.0.word(half + place);
        let count =
            |place: usize, most: usize| usize::try_from(word(place)).map_or(most, |count| count.min(most));
        match peer {
            Peer::Ip(address) => match address.ip().to_canonical() {
                IpAddr::V4(ip) => {
                    let ip = u64::from(ip.to_bits());
                    count_while(count(0, 2 * MAX_BANS), |index| word(V4 + index) <= ip) % 2 == 1
                }
                IpAddr::V6(ip) => {
                    let wide = |index: usize| {
                        let place = V6 + index * 2;
                        u128::from(word(place)) << 64 | u128::from(word(place + 1))
                    };
                    count_while(count(1, 2 * MAX_BANS), |index| wide(index) <= ip.to_bits()) % 2 == 1
                }
            },
            Peer::Unix(Some(peer)) => {
                let (uid, count) = (u64::from(peer.uid), count(2, MAX_BANS));
                let place = count_while(count, |index| word(USERS + index) < uid);
                place < count && word(USERS + place) == uid
            }
            Peer::Unix(None) => word(3) != 0,
        }
    }
}

/// For how many of the first `count` it is so, which are those for which it is.
fn count_while(count: usize, is_so: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut to) = (0, count);
    while from < to {
        let middle = from.midpoint(to);
        if is_so(middle) { from = middle + 1 } else { to = middle }
    }
    from
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::*;
    use crate::admission::Prefix;
    use crate::sys::kill_points::{interrupted, live_for};
    use crate::sys::socket::PeerCredentials;

    fn table() -> (BanTable, BannedClients) {
        let table = BanTable::create().unwrap();
        let reader = BannedClients::open(table.to_read(), false).unwrap();
        (table, reader)
    }

    fn source(text: &str) -> SourceName {
        text.parse().unwrap()
    }

    fn ip(address: IpAddr) -> Peer {
        Peer::Ip(SocketAddr::from((address, 7)))
    }

    fn user(uid: u32) -> Peer {
        Peer::Unix(Some(PeerCredentials { pid: 1, uid, gid: 1 }))
    }

    #[test]
    fn who_is_banned_is_found_and_nobody_else() {
        let (table, reader) = table();
        let of = |text: &str| ip(text.parse().unwrap());
        let all = [of("192.0.2.1"), of("::1"), user(0), Peer::Unix(None)];
        assert!(all.iter().all(|peer| !reader.has(*peer)));
        let banned = ["192.0.2.0/24", "192.0.2.7", "255.255.255.255", "ffff::/16", "user:7", "user:?"];
        table.publish(banned.iter().map(|text| source(text)));
        for (peer, is_banned) in [
            (of("192.0.1.255"), false),
            (of("192.0.2.0"), true),
            (of("::ffff:192.0.2.255"), true),
            (of("192.0.3.0"), false),
            (of("255.255.255.254"), false),
            (of("255.255.255.255"), true),
            (of("fffe::"), false),
            (of("ffff::"), true),
            (of("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), true),
            (of("::c000:200"), false),
            (user(6), false),
            (user(7), true),
            (user(8), false),
            (Peer::Unix(None), true),
        ] {
            assert_eq!(reader.has(peer), is_banned, "{peer:?}");
        }
        table.publish(std::iter::empty());
        assert!(all.iter().all(|peer| !reader.has(*peer)));
        table.publish(["0.0.0.0/0", "::/0"].iter().map(|text| source(text)));
        assert!(reader.has(all[0]) && reader.has(all[1]) && !reader.has(all[2]));
    }

    #[test]
    fn the_table_agrees_with_who_tries_one_after_the_other() {
        let mut random = fastrand::Rng::with_seed(crate::seeded::seed());
        let (table, reader) = table();
        let v4 = |random: &mut fastrand::Rng| Ipv4Addr::from_bits(random.u32(..64) << 26 | random.u32(..8));
        let v6 = |random: &mut fastrand::Rng| {
            Ipv6Addr::from_bits(u128::from(random.u8(..8)) << 125 | u128::from(random.u8(..8)))
        };
        for round in 0..200 {
            let banned: Vec<SourceName> = (0..random.usize(..12))
                .map(|_| match random.u8(..3) {
                    0 => SourceName::Prefix(Prefix::around(v4(&mut random).into(), random.u8(..=32))),
                    1 => SourceName::Prefix(Prefix::around(v6(&mut random).into(), random.u8(..=128))),
                    _ => SourceName::User(random.u32(..8)),
                })
                .collect();
            table.publish(banned.iter().copied());
            for _ in 0..100 {
                let peer = match random.u8(..3) {
                    0 => ip(v4(&mut random).into()),
                    1 => ip(v6(&mut random).into()),
                    _ => user(random.u32(..8)),
                };
                let client = SourceName::of_client(peer);
                let is_banned = banned.iter().any(|source| source.overlaps(&client));
                assert_eq!(reader.has(peer), is_banned, "round {round}: {client} in {banned:?}");
            }
        }
    }

    #[test]
    fn as_many_as_there_can_be_have_room() {
        let (table, reader) = table();
        let every = |index: usize| IpAddr::V6(Ipv6Addr::from_bits((index as u128) << 64));
        let hosts = |index: usize| SourceName::Prefix(Prefix::around(every(index), 128));
        table.publish((0..MAX_BANS).map(hosts));
        assert!((0..MAX_BANS).all(|index| reader.has(ip(every(index)))));
        let beside = Ipv6Addr::from_bits(1);
        assert!(!reader.has(ip(every(MAX_BANS))) && !reader.has(ip(beside.into())));
        let v4 = |index: usize| IpAddr::V4(Ipv4Addr::from_bits(index as u32 * 2));
        table.publish((0..MAX_BANS).map(|index| SourceName::Prefix(Prefix::around(v4(index), 32))));
        assert!((0..MAX_BANS).all(|index| reader.has(ip(v4(index)))) && !reader.has(ip(every(1))));
        table.publish((0..MAX_BANS).map(|index| SourceName::User(index as u32)));
        assert!((0..MAX_BANS).all(|index| reader.has(user(index as u32))) && !reader.has(ip(v4(1))));
    }

    #[test]
    fn who_reads_while_it_changes_finds_one_list_or_the_other() {
        let (banned, other) = (source("192.0.2.0/24"), source("198.51.100.0/24"));
        let peer = ip("192.0.2.1".parse().unwrap());
        for changes in 1..4 {
            for after in 0.. {
                let (table, reader) = table();
                table.publish([banned].into_iter());
                let others = move || {
                    for _ in 0..changes {
                        table.publish([other, banned].into_iter());
                    }
                };
                let mut found = false;
                if !interrupted(after, others, || found = reader.has(peer)) {
                    break;
                }
                assert!(found, "after {after} accesses");
            }
        }
    }

    #[test]
    fn a_writer_that_dies_has_changed_all_or_nothing() {
        let (one, other) = (source("192.0.2.0/24"), source("198.51.100.0/24"));
        let [in_one, in_other] = ["192.0.2.1", "198.51.100.1"].map(|text| ip(text.parse().unwrap()));
        let mut both = [false; 2];
        for writes in 0..16 {
            let (table, reader) = table();
            table.publish([one].into_iter());
            live_for(Some(writes));
            table.publish([other].into_iter());
            live_for(None);
            let has = (reader.has(in_one), reader.has(in_other));
            assert!(has == (true, false) || has == (false, true), "{writes}: {has:?}");
            both[usize::from(has.1)] = true;
            // Another program goes on from there.
            let table = BanTable::open(table.file().try_clone_to_owned().unwrap()).unwrap();
            table.publish([other].into_iter());
            assert_eq!((reader.has(in_one), reader.has(in_other)), (false, true));
        }
        assert_eq!(both, [true; 2]);
    }

    #[test]
    fn whatever_is_written_there_is_read_within_its_bounds() {
        let (table, reader) = table();
        table.words(0, usize::MAX).iter().for_each(|word| word.store(u64::MAX, SeqCst));
        for peer in [ip("192.0.2.1".parse().unwrap()), ip("::1".parse().unwrap()), user(7), Peer::Unix(None)]
        {
            let _ = reader.has(peer);
        }
    }

    #[test]
    fn who_may_read_cannot_write() {
        let (table, _) = table();
        let file = std::fs::File::from(table.to_read().try_clone_to_owned().unwrap());
        assert!(std::io::Write::write(&mut &file, b"x").is_err());
        assert!(Mapping::new(table.to_read(), LENGTH).is_err());
        let (_, short) = (table, memory::create(c"test", 4096).unwrap());
        assert!(BannedClients::open(short.as_fd(), false).is_err());
    }
}
