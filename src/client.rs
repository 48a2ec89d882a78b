//! Who is connected, and what the connection is called: what every part of preforkd knows of it.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

use crate::sys::socket::{Peer, PeerCredentials};

/// What a worker notes about a connection, so that the record of it can be written when the worker is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Client {
    /// The last part of its id; 0 in a slot whose connection has not been accepted yet.
    pub(crate) number: u64,
    /// When it was accepted: CLOCK_MONOTONIC in microseconds, one clock for all processes.
    pub(crate) accepted_usec: u64,
    /// Who it is.
    pub(crate) peer: Peer,
}

impl Client {
    /// No connection has been accepted yet.
    pub(crate) const NOBODY: Client = Client { number: 0, accepted_usec: 0, peer: Peer::Unix(None) };

    /// How many words it takes in shared memory or in a pipe.
    pub(crate) const WORDS: usize = 5;

    /// As words, the number first.
    pub(crate) fn to_words(self) -> [u64; Client::WORDS] {
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
    pub(crate) fn from_words([number, accepted_usec, tag, high, low]: [u64; Client::WORDS]) -> Self {
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
        Client { number, accepted_usec, peer }
    }
}

/// Names one connection in the log, in `PREFORKD_CONNECTION` and on the control socket.
///
/// It is never used twice: `run` differs between two supervisors, `worker` between the workers of one supervisor, and
/// `number` between the connections of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId {
    /// 24 random bits of the supervisor.
    pub(crate) run: u32,
    /// The worker's serial number.
    pub(crate) worker: u32,
    /// Counted by the worker, from 1; of a process that serves several connections, see [`ConnectionId::nth`].
    pub(crate) number: u64,
}

/// The bits of a number that tell the process; those above count its connections, from 0.
const PROCESS_BITS: u32 = 40;

impl ConnectionId {
    /// How many connections one process can have names for.
    pub(crate) const PER_PROCESS: u32 = 1 << (u64::BITS - PROCESS_BITS);

    /// The name of a later connection of the same process.
    pub(crate) fn nth(self, n: u32) -> Self {
        ConnectionId { number: process_of(self.number) | u64::from(n) << PROCESS_BITS, ..self }
    }
}

/// The part of a number that all connections of a process have in common.
pub(crate) fn process_of(number: u64) -> u64 {
    number & ((1 << PROCESS_BITS) - 1)
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}-{}-{}", self.run & 0xff_ffff, self.worker, process_of(self.number))?;
        match self.number >> PROCESS_BITS {
            0 => Ok(()),
            n => write!(f, ".{n}"),
        }
    }
}

/// What a handler has moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Bytes from the client.
    pub(crate) received: u64,
    /// Bytes to the client.
    pub(crate) sent: u64,
}
