//! Whom a list of the configuration names, and what a client is counted as.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::prefix::{Prefix, PrefixError, from_text};
use crate::client::Client;
use crate::sys::socket::Peer;

/// An entry of `allow`, `deny`, `penalty_exempt` or `proxy_protocol_from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Caller {
    /// Clients with these addresses.
    Prefix(Prefix),
    /// Clients of Unix sockets that are this user.
    User(u32),
    /// Clients of Unix sockets that have this group, effective or supplementary.
    Group(u32),
    /// Whoever may connect to a Unix socket.
    Unix,
}

impl Caller {
    /// The addresses, if it is about them.
    pub(crate) fn prefix(self) -> Option<Prefix> {
        match self {
            Caller::Prefix(prefix) => Some(prefix),
            Caller::User(_) | Caller::Group(_) | Caller::Unix => None,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Prefix(prefix) => prefix.fmt(f),
            Caller::User(uid) => write!(f, "user:{uid}"),
            Caller::Group(gid) => write!(f, "group:{gid}"),
            Caller::Unix => f.write_str("unix:"),
        }
    }
}

/// A user of this machine, and the groups that he has, the effective one among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalUser<'a> {
    pub(crate) uid: u32,
    pub(crate) groups: &'a [u32],
}

/// What connections, tokens and penalties are counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SourceName {
    /// The clients over TCP with these addresses.
    Prefix(Prefix),
    /// The clients of Unix sockets that are this user.
    User(u32),
    /// The clients of Unix sockets of whom the kernel did not say who they are.
    UnknownUser,
}

impl SourceName {
    /// Whether the two have a client in common.
    pub(crate) fn overlaps(&self, other: &SourceName) -> bool {
        match (self, other) {
            (SourceName::Prefix(one), SourceName::Prefix(other)) => one.overlaps(other),
            _ => self == other,
        }
    }

    /// A client alone, whatever prefix its service counts it by.
    pub(crate) fn of_client(peer: Peer) -> Self {
        match peer {
            Peer::Ip(address) => SourceName::Prefix(Prefix::around(address.ip(), u8::MAX)),
            Peer::Unix(Some(peer)) => SourceName::User(peer.uid),
            Peer::Unix(None) => SourceName::UnknownUser,
        }
    }

    /// Whether a client is one of these.
    pub(crate) fn has(&self, client: &Client) -> bool {
        !client.is_listener() && self.overlaps(&SourceName::of_client(client.peer))
    }

    /// Whether every client of the other is one of this.
    pub(crate) fn has_all_of(&self, other: &SourceName) -> bool {
        match (self, other) {
            (SourceName::Prefix(one), SourceName::Prefix(other)) => {
                one.length() <= other.length() && one.overlaps(other)
            }
            _ => self == other,
        }
    }

    /// As two words and a kind, for memory that is shared; see [`SourceName::from_words`].
    pub(super) fn to_words(self) -> [u64; 3] {
        let (kind, detail, value) = match self {
            SourceName::UnknownUser => (UNKNOWN_USER, 0, 0),
            SourceName::User(uid) => (USER, 0, u128::from(uid)),
            SourceName::Prefix(prefix) => match prefix.network() {
                IpAddr::V4(ip) => (V4, prefix.length(), u128::from(ip.to_bits())),
                IpAddr::V6(ip) => (V6, prefix.length(), ip.to_bits()),
            },
        };
        [kind << 8 | u64::from(detail), (value >> 64) as u64, value as u64]
    }

    /// From words that anybody may have written.
    pub(super) fn from_words([kind, high, low]: [u64; 3]) -> Option<Self> {
        let address = match kind >> 8 {
            UNKNOWN_USER => return Some(SourceName::UnknownUser),
            USER => return Some(SourceName::User(low as u32)),
            V4 => IpAddr::from((low as u32).to_be_bytes()),
            V6 => IpAddr::from((u128::from(high) << 64 | u128::from(low)).to_be_bytes()),
            _ => return None,
        };
        Some(SourceName::Prefix(Prefix::around(address, kind as u8)))
    }
}

/// The kinds of words; 0 is none.
const USER: u64 = 1;
const UNKNOWN_USER: u64 = 2;
const V4: u64 = 4;
const V6: u64 = 6;

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceName::Prefix(prefix) => prefix.fmt(f),
            SourceName::User(uid) => write!(f, "user:{uid}"),
            SourceName::UnknownUser => f.write_str("user:?"),
        }
    }
}

/// As it is written; a user by his number.
impl FromStr for SourceName {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        match text.strip_prefix("user:") {
            Some("?") => Ok(SourceName::UnknownUser),
            Some(uid) => uid.parse().map(SourceName::User).map_err(|_| PrefixError::NoAddress),
            None => text.parse().map(SourceName::Prefix),
        }
    }
}

impl Serialize for SourceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SourceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_text_and_words() {
        for text in ["192.0.2.0/24", "2001:db8::/32", "0.0.0.0/0", "user:0", "user:4294967294", "user:?"] {
            let source: SourceName = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
            assert_eq!(SourceName::from_words(source.to_words()), Some(source));
        }
        for text in ["user:", "user:alice", "user:-1", "group:1", "unix:"] {
            assert!(text.parse::<SourceName>().is_err(), "{text}");
        }
        assert_eq!(SourceName::from_words([0, 0, 7]), None);
    }

    #[test]
    fn a_user_has_nothing_in_common_with_another_or_with_an_address() {
        let [user, other, unknown, all]: [SourceName; 4] =
            ["user:1", "user:2", "user:?", "0.0.0.0/0"].map(|text| text.parse().unwrap());
        assert!(user.overlaps(&user) && !user.overlaps(&other));
        assert!(!user.overlaps(&unknown) && !user.overlaps(&all) && !all.overlaps(&user));
        assert!(user.has_all_of(&user) && !user.has_all_of(&other) && !all.has_all_of(&user));
    }

    #[test]
    fn a_prefix_has_all_of_those_within() {
        let [net, host, other, six]: [SourceName; 4] =
            ["192.0.2.0/24", "192.0.2.7", "192.0.3.7", "::/0"].map(|text| text.parse().unwrap());
        assert!(net.has_all_of(&net) && net.has_all_of(&host) && !host.has_all_of(&net));
        assert!(!net.has_all_of(&other) && !six.has_all_of(&host));
    }
}
