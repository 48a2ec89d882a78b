//! What the configuration says about admission: the checked values.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Callers, Deadlines, Prefix, Rules, SourceName};
use crate::sys::socket::Peer;

/// Who gets in, how many of them, and how long they may stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    /// `allow` and `deny`.
    pub(crate) rules: Rules,
    /// The proxies whose PROXY header is required and believed.
    pub(crate) proxies: Callers,
    /// What one source may take.
    pub(crate) source: SourceLimits,
    /// What a source is to suffer for what it does.
    pub(crate) penalties: Penalties,
    /// What meets a connection for which there is no room.
    pub(crate) overload: Overload,
    /// How long a connection may take.
    pub(crate) deadlines: Deadlines,
}

impl Policy {
    /// Without the lists of callers, for who has them as [`CallerSets`](super::CallerSets).
    pub(crate) fn without_lists(&self) -> Self {
        Policy {
            rules: Rules::default(),
            proxies: Callers::default(),
            source: self.source,
            penalties: Penalties {
                amounts: self.penalties.amounts.clone(),
                exempt: Callers::default(),
                ..self.penalties
            },
            overload: self.overload.clone(),
            deadlines: self.deadlines,
        }
    }
}

/// What one source may take. A source is a prefix of addresses, or a user of this machine who comes through a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceLimits {
    /// How much of an IPv4 address is its source, 1 to 32.
    pub(crate) prefix_v4: u8,
    /// How much of an IPv6 address is its source, 1 to 128.
    pub(crate) prefix_v6: u8,
    /// Live connections; 1 to 1,000,000.
    pub(crate) max_connections: Option<u32>,
    /// New connections.
    pub(crate) rate: Option<Rate>,
}

/// A token bucket: it holds `burst` tokens, and gets `count` of them, evenly, in each `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// 1 to 1,000,000.
    pub(crate) count: u32,
    /// In what time.
    pub(crate) per: RateUnit,
    /// 1 to 1,000,000.
    pub(crate) burst: u32,
}

/// The time of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RateUnit {
    /// `/s`
    Second,
    /// `/m`
    Minute,
    /// `/h`
    Hour,
}

/// What meets a connection beyond `max_connections`, and beyond what its source may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Overload {
    /// It waits in the backlog. Beyond what its source may take, it cannot, and is closed.
    Queue,
    /// It is accepted, sent this, and closed.
    Refuse {
        /// At most [`LONGEST_MESSAGE`] bytes; may be empty.
        message: String,
    },
    /// It is accepted and reset.
    Reset,
}

/// The longest `refuse_message`: it must fit into the send buffer of a new socket, so that nobody waits for the client.
pub(crate) const LONGEST_MESSAGE: usize = 512;

impl SourceLimits {
    /// The source that a client belongs to.
    pub(crate) fn source_of(&self, peer: Peer) -> SourceName {
        match peer {
            Peer::Ip(address) => SourceName::Prefix(self.prefix_of(address.ip())),
            Peer::Unix(Some(peer)) => SourceName::User(peer.uid),
            Peer::Unix(None) => SourceName::UnknownUser,
        }
    }

    /// The source that an address belongs to.
    pub(crate) fn prefix_of(&self, address: IpAddr) -> Prefix {
        let address = address.to_canonical();
        Prefix::around(address, if address.is_ipv4() { self.prefix_v4 } else { self.prefix_v6 })
    }
}

impl RateUnit {
    /// As a duration.
    pub(crate) fn duration(self) -> Duration {
        Duration::from_secs(match self {
            RateUnit::Second => 1,
            RateUnit::Minute => 60,
            RateUnit::Hour => 3600,
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per {
            RateUnit::Second => "s",
            RateUnit::Minute => "m",
            RateUnit::Hour => "h",
        };
        write!(f, "{}/{unit} burst {}", self.count, self.burst)
    }
}

/// What a source has done that costs it something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Offence {
    /// Its connection process was killed by a fault of its own memory or code.
    Crash,
    /// A deadline ended its connection.
    Timeout,
    /// Its connection process exited with this status.
    Exit(u8),
}

/// What offences cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Penalties {
    /// By offence, each once; empty if there are none.
    pub(crate) amounts: Vec<(Offence, Duration)>,
    /// How much has to come together before the source is refused.
    pub(crate) threshold: Duration,
    /// How much can come together.
    pub(crate) longest: Duration,
    /// Who never has any.
    pub(crate) exempt: Callers,
}

impl Penalties {
    /// What this costs, if anything.
    pub(crate) fn amount(&self, offence: Offence) -> Option<Duration> {
        self.amounts.iter().find(|(other, _)| *other == offence).map(|(_, amount)| *amount)
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Offence::Crash => f.write_str("crash"),
            Offence::Timeout => f.write_str("timeout"),
            Offence::Exit(status) => status.fmt(f),
        }
    }
}
