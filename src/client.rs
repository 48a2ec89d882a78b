//! Who is connected, and what the connection is called: what every part of preforkd knows of it.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::sys::interface;
use crate::sys::socket::{Peer, PeerCredentials};
use crate::sys::time::Monotonic;

/// Who is connected, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Client {
    /// Who it is: the other end of the connection, or whom a proxy that is believed has named.
    pub(crate) peer: Peer,
    /// When the connection was accepted.
    pub(crate) accepted: Monotonic,
    /// The header that a proxy has sent before the client's first byte.
    pub(crate) header: Option<ProxyHeader>,
    /// Whether it never has penalties, being a user of this machine; an address is asked about anew.
    pub(crate) is_exempt: bool,
    /// What tells a listener from others that is given to its program itself; whoever calls there is nobody's client but that
    /// program's. 0 of a connection.
    pub(crate) listener: u64,
}

/// What a proxy has told about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProxyHeader {
    /// How many bytes it had, which are none of the client's.
    pub(crate) length: u16,
    /// It names a client. Else the connection is the proxy's own, or of somebody who has no address.
    pub(crate) names_client: bool,
    /// What the client called; known as long as the connection is being begun, and not on the scoreboard.
    pub(crate) called: Option<SocketAddr>,
}

impl Client {
    /// Whether it is an address, and the other end of its socket.
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.peer, Peer::Ip(_)) && self.header.is_none_or(|header| !header.names_client)
    }

    /// One that connects by itself, accepted just now.
    pub(crate) fn now(peer: Peer) -> Self {
        Client { peer, accepted: Monotonic::now(), header: None, is_exempt: false, listener: 0 }
    }

    /// Whoever calls at a listener that is given to its program itself.
    pub(crate) fn of_listener(cookie: u64) -> Self {
        Client { listener: cookie, ..Client::now(Peer::Unix(None)) }
    }

    /// Whether that is so.
    pub(crate) fn is_listener(&self) -> bool {
        self.listener != 0
    }

    /// How many bytes came before the client's first.
    pub(crate) fn header_length(&self) -> u64 {
        self.header.map_or(0, |header| header.length.into())
    }

    /// Whether this is a proxy's own connection, such as its check of the service.
    pub(crate) fn is_proxy(&self) -> bool {
        self.header.is_some_and(|header| !header.names_client)
    }
}

/// A connection that was accepted and let in, as its row on the scoreboard and a spare's event have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    /// The last part of its [`ConnectionId`]; never 0.
    pub(crate) number: u64,
    pub(crate) client: Client,
    /// When `max_lifetime` is over that was in force when it was accepted; [`Monotonic::NEVER`] without one.
    pub(crate) until: Monotonic,
}

/// In the word with the family: whether there was a header, and whether it named a client.
const HAS_HEADER: u64 = 1 << 40;
const NAMES_CLIENT: u64 = 1 << 41;

/// In the same word.
const IS_EXEMPT: u64 = 1 << 42;
/// The family of a link-local address whose interface stands in its bits 32 to 63. These are zero, RFC 4291 section 2.5.6.
const SCOPED: u64 = 7;
/// What stands for a listener.
const LISTENER: u64 = 8;

fn is_scoped(ip: u128) -> bool {
    Ipv6Addr::from(ip).is_unicast_link_local() && (ip >> 64) as u32 == 0
}

/// An IP address as programs and records have it: a link-local one with its interface.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Zoned(pub(crate) SocketAddr);

impl fmt::Display for Zoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.ip().to_canonical().fmt(f)?;
        match self.0 {
            SocketAddr::V6(address) if address.ip().is_unicast_link_local() && address.scope_id() != 0 => {
                match interface::name_of(address.scope_id()) {
                    Some(name) => write!(f, "%{name}"),
                    None => write!(f, "%{}", address.scope_id()),
                }
            }
            _ => Ok(()),
        }
    }
}

impl Connection {
    /// How many words it takes in shared memory or in a pipe.
    pub(crate) const WORDS: usize = 6;

    /// As words, the number first.
    pub(crate) fn to_words(self) -> [u64; Connection::WORDS] {
        let Connection { number, client, until } = self;
        let (family, ip) = match client.peer {
            Peer::Unix(None) if client.is_listener() => (LISTENER, u128::from(client.listener)),
            Peer::Unix(None) => (0, 0),
            Peer::Unix(Some(peer)) => {
                (1, u128::from(peer.pid as u32) << 64 | u128::from(peer.uid) << 32 | u128::from(peer.gid))
            }
            Peer::Ip(SocketAddr::V4(address)) => (4, u128::from(address.ip().to_ipv6_mapped())),
            Peer::Ip(SocketAddr::V6(address)) => match u128::from(*address.ip()) {
                ip if is_scoped(ip) && address.scope_id() != 0 => {
                    (SCOPED, ip | u128::from(address.scope_id()) << 64)
                }
                ip => (6, ip),
            },
        };
        let port = match client.peer {
            Peer::Ip(address) => address.port(),
            Peer::Unix(_) => 0,
        };
        let header = client.header.map_or(0, |header| {
            let names = if header.names_client { NAMES_CLIENT } else { 0 };
            HAS_HEADER | names | u64::from(header.length) << 24
        });
        let exempt = if client.is_exempt { IS_EXEMPT } else { 0 };
        let about = exempt | header | family << 16 | u64::from(port);
        [number, client.accepted.nanos(), about, (ip >> 64) as u64, ip as u64, until.nanos()]
    }

    /// From words that anybody may have written; `None` without a number.
    pub(crate) fn from_words(words: [u64; Connection::WORDS]) -> Option<Self> {
        let [number, accepted, about, high, low, until] = words;
        let ip = Ipv6Addr::from(u128::from(high) << 64 | u128::from(low));
        let without_scope = Ipv6Addr::from(u128::from(high >> 32 << 32) << 64 | u128::from(low));
        let port = about as u16;
        let peer = match (about >> 16 & 0xff, ip.to_ipv4_mapped()) {
            (4, Some(ip)) => Peer::Ip(SocketAddr::new(ip.into(), port)),
            (SCOPED, _) if without_scope.is_unicast_link_local() => {
                Peer::Ip(SocketAddrV6::new(without_scope, port, 0, high as u32).into())
            }
            (SCOPED | 6, _) => Peer::Ip(SocketAddrV6::new(ip, port, 0, 0).into()),
            (1, _) => Peer::Unix(Some(PeerCredentials {
                pid: high as i32,
                uid: (low >> 32) as u32,
                gid: low as u32,
            })),
            _ => Peer::Unix(None),
        };
        let header = (about & HAS_HEADER != 0).then_some(ProxyHeader {
            length: (about >> 24) as u16,
            names_client: about & NAMES_CLIENT != 0,
            called: None,
        });
        let is_exempt = about & IS_EXEMPT != 0;
        let listener = if about >> 16 & 0xff == LISTENER { low } else { 0 };
        let accepted = Monotonic::from_nanos(accepted);
        let client = Client { peer, accepted, header, is_exempt, listener };
        (number != 0).then_some(Connection { number, client, until: Monotonic::from_nanos(until) })
    }
}

/// Names one connection in the log, in `PREFORKD_CONNECTION` and on the control socket; shown as `e0004a-2-1`.
///
/// It is never used twice: `run` differs between two supervisors, `worker` between the workers of one supervisor, and
/// `number` between the connections of one worker.
///
/// ```
/// use preforkd::ConnectionId;
///
/// let id: ConnectionId = "e0004a-2-1".parse()?;
/// assert_eq!(id.to_string(), "e0004a-2-1");
/// # Ok::<(), preforkd::NoConnectionId>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
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

    /// What the names of all connections of its worker begin with.
    pub(crate) fn of_worker(self) -> String {
        format!("{:06x}-{}", self.run & 0xff_ffff, self.worker)
    }

    /// The name of a later connection of the same process.
    pub(crate) fn nth(self, n: u32) -> Self {
        ConnectionId { number: process_of(self.number) | u64::from(n) << PROCESS_BITS, ..self }
    }
}

/// The part of a number that all connections of a process have in common.
pub(crate) fn process_of(number: u64) -> u64 {
    number & ((1 << PROCESS_BITS) - 1)
}

/// As it is written.
impl FromStr for ConnectionId {
    type Err = NoConnectionId;

    fn from_str(text: &str) -> Result<Self, NoConnectionId> {
        let mut parts = text.splitn(3, '-');
        let mut part =
            || parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'.'));
        let run = part().and_then(|run| u32::from_str_radix(run, 16).ok());
        let worker = part().and_then(|worker| worker.parse().ok());
        let number = part().and_then(|number| {
            let (process, nth) = number.split_once('.').unwrap_or((number, "0"));
            let (process, nth): (u64, u64) = (process.parse().ok()?, nth.parse().ok()?);
            (process == process_of(process) && nth < u64::from(ConnectionId::PER_PROCESS))
                .then_some(process | nth << PROCESS_BITS)
        });
        match (run, worker, number) {
            (Some(run), Some(worker), Some(number)) => Ok(ConnectionId { run, worker, number }),
            _ => Err(NoConnectionId),
        }
    }
}

/// What is no name of a connection.
///
/// ```
/// use preforkd::{ConnectionId, NoConnectionId};
///
/// assert_eq!("yesterday's".parse::<ConnectionId>(), Err(NoConnectionId));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no connection's id; they look like 1cecf0-1-42, and \"preforkd connections\" and the log have them"
)]
pub struct NoConnectionId;

impl Serialize for ConnectionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConnectionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
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
