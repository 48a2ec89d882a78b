//! The sockets of connections, as the kernel knows them.

use std::ops::RangeInclusive;
use std::sync::OnceLock;

use crate::admission::SourceName;
use crate::config::Address;
use crate::control::{ConnectionStatus, ServiceStatus};
use crate::sys::sock_diag::TcpTable;
use crate::sys::tcp_info::TcpInfo;
use crate::sys::usage::ProcReader;

/// A connection of this age was there when its socket was asked for.
const WAS_THERE_MS: u64 = 1_000;

/// All of them at once, as far as this user may ask: a look at each process would take longer.
#[derive(Debug)]
pub(super) struct Sockets {
    /// At the ports of services: on a machine with other connections, or with the clients themselves, the fewest.
    near: TcpTable,
    /// All, from when one is not there: where it came to, nobody listens any more. It is empty if `near` has all.
    rest: OnceLock<TcpTable>,
}

impl Sockets {
    /// Asks for those of these services.
    pub(super) fn of(services: &[ServiceStatus]) -> Self {
        let rest = OnceLock::new();
        let near = match ports(services) {
            Some(ports) => TcpTable::of_ports(ports),
            None => {
                let _ = rest.set(TcpTable::default());
                TcpTable::of_machine()
            }
        };
        Sockets { near: near.unwrap_or_default(), rest }
    }

    /// Whether nothing is known of any.
    pub(super) fn is_empty(&self) -> bool {
        self.near.is_empty() && self.rest.get().is_none_or(TcpTable::is_empty)
    }

    /// The socket of a connection whose client is its other end. Unlike its inode, that takes no look at its process.
    pub(super) fn direct(&self, found: &ConnectionStatus) -> Option<&TcpInfo> {
        let client = found.is_direct.then(|| found.client.parse().ok())??;
        self.near.of_peer(client).or_else(|| self.rest_for(found)?.of_peer(client))
    }

    /// The inode of the socket that its process has open, if this user may look.
    pub(super) fn inode_of(&self, found: &ConnectionStatus, processes: &ProcReader) -> Option<u64> {
        let is_tcp = matches!(found.source, SourceName::Prefix(_)) && !self.is_empty();
        let pid = found.pid.filter(|_| is_tcp)?;
        let inodes = processes.sockets_of(pid);
        let is_in = |table: &TcpTable| inodes.iter().copied().find(|inode| table.of_inode(*inode).is_some());
        is_in(&self.near).or_else(|| is_in(self.rest_for(found)?))
    }

    /// The one with an inode that was found.
    pub(super) fn of_inode(&self, inode: u64) -> Option<&TcpInfo> {
        self.near.of_inode(inode).or_else(|| self.rest.get()?.of_inode(inode))
    }

    /// Where to look for one that is not near.
    fn rest_for(&self, found: &ConnectionStatus) -> Option<&TcpTable> {
        let was_there = found.age_ms >= WAS_THERE_MS && found.pid.is_some();
        was_there.then(|| self.rest.get_or_init(|| TcpTable::of_machine().unwrap_or_default()))
    }
}

/// From the lowest to the highest port; `None` if one is not known, or there is none.
fn ports(services: &[ServiceStatus]) -> Option<RangeInclusive<u16>> {
    let mut range: Option<RangeInclusive<u16>> = None;
    for listen in services.iter().flat_map(|service| &service.listen) {
        let port = match listen.parse().ok()? {
            Address::Tcp(address) => address.port(),
            Address::Scoped(_, _, port) | Address::Any(port) => port,
            Address::Activated(_) => return None,
            Address::Udp(_) | Address::Unix(_) | Address::Abstract(_) => continue,
        };
        range = Some(range.map_or(port..=port, |range| port.min(*range.start())..=port.max(*range.end())));
    }
    range
}
