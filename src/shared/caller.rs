//! Who a connection process serves.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

use crate::sys::socket::{Peer, PeerCredentials};

/// What a worker notes about a connection, so that the record of it can be written when the worker is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Caller {
    /// The last part of its id; 0 in a slot whose connection has not been accepted yet.
    pub(crate) number: u64,
    /// When it was accepted: CLOCK_MONOTONIC in microseconds, one clock for all processes.
    pub(crate) accepted_usec: u64,
    /// Who it is.
    pub(crate) peer: Peer,
}

impl Caller {
    /// No connection has been accepted yet.
    pub(crate) const NOBODY: Caller = Caller { number: 0, accepted_usec: 0, peer: Peer::Unix(None) };

    /// How many words it takes in shared memory or in a pipe.
    pub(crate) const WORDS: usize = 5;

    /// As words, the number first.
    pub(crate) fn to_words(self) -> [u64; Caller::WORDS] {
        let (tag, ip) = match self.peer {
            Peer::Unix(None) => (0, 0),
            Peer::Unix(Some(peer)) => {
                (1, u128::from(peer.pid as u32) << 64 | u128::from(peer.uid) << 32 | u128::from(peer.gid))
            }
            Peer::Ip(address) => {
                let family = if address.is_ipv4() { 4 } else { 6 };
                let ip = match address {
                    SocketAddr::V4(address) => address.ip().to_ipv6_mapped(),
                    SocketAddr::V6(address) => *address.ip(),
                };
                (family << 16 | u64::from(address.port()), u128::from(ip))
            }
        };
        [self.number, self.accepted_usec, tag, (ip >> 64) as u64, ip as u64]
    }

    /// From words that anybody may have written.
    pub(crate) fn from_words([number, accepted_usec, tag, high, low]: [u64; Caller::WORDS]) -> Self {
        let ip = Ipv6Addr::from(u128::from(high) << 64 | u128::from(low));
        let port = (tag & 0xffff) as u16;
        let peer = match (tag >> 16, ip.to_ipv4_mapped()) {
            (4, Some(ip)) => Peer::Ip(SocketAddr::new(ip.into(), port)),
            (6, _) => Peer::Ip(SocketAddrV6::new(ip, port, 0, 0).into()),
            (0, _) if tag == 1 => Peer::Unix(Some(PeerCredentials {
                pid: high as i32,
                uid: (low >> 32) as u32,
                gid: low as u32,
            })),
            _ => Peer::Unix(None),
        };
        Caller { number, accepted_usec, peer }
    }
}
