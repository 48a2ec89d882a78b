//! All TCP connections of this machine at once, as the kernel knows them: sock_diag(7).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::tcp_info::TcpInfo;

/// struct nlmsghdr, struct inet_diag_req and struct inet_diag_msg of linux/netlink.h and linux/inet_diag.h.
const HEADER: usize = 16;
const REQUEST: usize = 60;
const STATES_AT: usize = 52;
const MESSAGE: usize = 72;
const PEER_PORT_AT: usize = 6;
const PEER_AT: usize = 24;
const INODE_AT: usize = 68;

/// The older of two questions: one look finds both families, where `SOCK_DIAG_BY_FAMILY` takes one look for each at all there is.
const TCPDIAG_GETSOCK: u16 = 18;
const INET_DIAG_INFO: u16 = 2;

/// A filter, and how its instructions compare a socket's own port.
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_S_GE: u8 = 2;
const INET_DIAG_BC_S_LE: u8 = 3;
const INSTRUCTION: usize = 8;

/// Established, and those of which one half has ended: `TCP_ESTABLISHED`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2`, `TCP_CLOSE_WAIT`.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8;

/// As large as one answer gets: netlink_dump() of the kernel gives up to 32 KiB at once.
const BUFFER: usize = 64 * 1024;

/// What the kernel knows of each.
#[derive(Debug, Default)]
pub(crate) struct TcpTable {
    sockets: Vec<TcpInfo>,
    /// The inode of each.
    inodes: Vec<u32>,
    /// Which of them has which inode, from when somebody asks: most are found by their other end.
    by_inode: OnceLock<HashMap<u64, usize>>,
    /// Which has this other end; `None` if several have: they differ in their own.
    by_peer: HashMap<SocketAddr, Option<usize>>,
}

impl TcpTable {
    /// Asks for it.
    ///
    /// # Errors
    ///
    /// `EAFNOSUPPORT` where netlink is forbidden, `ENOENT` where the kernel has no such thing.
    pub(crate) fn of_machine() -> io::Result<Self> {
        TcpTable::of_ports(0..=u16::MAX)
    }

    /// The same of those whose own port is one of these: the kernel leaves out the others, clients on this machine among them.
    ///
    /// # Errors
    ///
    /// As of all.
    pub(crate) fn of_ports(ports: RangeInclusive<u16>) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let link = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
        let mut table = TcpTable::default();
        sendto(link.as_raw_fd(), &request(ports), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(link.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if !table.take(buffer.get(..length).unwrap_or_default())? {
                return Ok(table);
            }
        }
    }

    /// Whether nothing is known of any.
    pub(crate) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// The one with this inode.
    pub(crate) fn of_inode(&self, inode: u64) -> Option<&TcpInfo> {
        let by_inode = self.by_inode.get_or_init(|| {
            self.inodes.iter().enumerate().map(|(index, inode)| (u64::from(*inode), index)).collect()
        });
        self.sockets.get(*by_inode.get(&inode)?)
    }

    /// The one whose other end is this, if there is one only.
    pub(crate) fn of_peer(&self, peer: SocketAddr) -> Option<&TcpInfo> {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        self.sockets.get((*self.by_peer.get(&peer)?)?)
    }

    /// Takes what is in one answer; false if it was the last.
    fn take(&mut self, mut answer: &[u8]) -> io::Result<bool> {
        while let (Some(length), Some(kind)) = (number(answer, 0), short(answer, 4)) {
            let length = length as usize;
            let Some(message) = answer.get(HEADER..length) else { break };
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(false),
                libc::NLMSG_ERROR => {
                    let code = number(message, 0).unwrap_or(0) as i32;
                    return if code == 0 { Ok(false) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => {}
            }
            if let (Some(inode), Some(info)) = (number(message, INODE_AT), info(message)) {
                let index = self.sockets.len();
                self.sockets.push(info);
                self.inodes.push(inode);
                if let Some(peer) = peer(message) {
                    self.by_peer.entry(peer).and_modify(|only| *only = None).or_insert(Some(index));
                }
            }
            answer = answer.get(aligned(length)..).unwrap_or_default();
        }
        Ok(true)
    }
}

/// The other end of a connection; numbers of struct inet_diag_sockid are as on the wire.
fn peer(message: &[u8]) -> Option<SocketAddr> {
    let address: [u8; 16] = message.get(PEER_AT..PEER_AT + 16)?.try_into().ok()?;
    let [a, b, c, d, ..] = address;
    let ip = match i32::from(*message.first()?) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => IpAddr::V6(Ipv6Addr::from(address)).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_be(short(message, PEER_PORT_AT)?)))
}

fn request(ports: RangeInclusive<u16>) -> Vec<u8> {
    let filter = if ports == (0..=u16::MAX) { Vec::new() } else { filter(ports) };
    let length = (HEADER + REQUEST + filter.len()) as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(length.to_ne_bytes());
    request.extend(TCPDIAG_GETSOCK.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([libc::AF_UNSPEC as u8, 0, 0, 1 << (INET_DIAG_INFO - 1)]);
    request.resize(HEADER + STATES_AT, 0);
    request.extend(STATES.to_ne_bytes());
    request.resize(HEADER + REQUEST, 0);
    request.extend(filter);
    request
}

/// An attribute with two instructions for the kernel, each a struct inet_diag_bc_op and one more that has the port: whose port is
/// not that or above, or not that or below, goes beyond the end, and is left out.
fn filter(ports: RangeInclusive<u16>) -> Vec<u8> {
    let instructions = [(INET_DIAG_BC_S_GE, *ports.start()), (INET_DIAG_BC_S_LE, *ports.end())];
    let all = (instructions.len() * INSTRUCTION) as u16;
    let mut filter = Vec::new();
    filter.extend((4 + all).to_ne_bytes());
    filter.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    for (index, (code, port)) in instructions.into_iter().enumerate() {
        let beyond = all - (index * INSTRUCTION) as u16 + 4;
        filter.extend([code, INSTRUCTION as u8]);
        filter.extend(beyond.to_ne_bytes());
        filter.extend([0; 2]);
        filter.extend(port.to_ne_bytes());
    }
    filter
}

/// Its attributes follow it, each with a length and a type.
fn info(message: &[u8]) -> Option<TcpInfo> {
    let mut attributes = message.get(MESSAGE..)?;
    while let (Some(length), Some(kind)) = (short(attributes, 0), short(attributes, 2)) {
        let value = attributes.get(4..usize::from(length))?;
        if kind == INET_DIAG_INFO {
            return Some(TcpInfo::from_bytes(value));
        }
        attributes = attributes.get(aligned(usize::from(length))..)?;
    }
    None
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    use nix::sys::socket as nixsock;

    use super::*;

    #[test]
    fn a_connection_is_found_by_its_inode_and_its_client_with_what_has_moved() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            client.write_all(b"hello").unwrap();
            let inode = std::fs::metadata(format!("/proc/self/fd/{}", server.as_raw_fd())).unwrap().ino();
            let table = TcpTable::of_machine().unwrap();
            assert_eq!(table.of_inode(inode).unwrap().received, 5);
            assert_eq!(table.of_peer(client.local_addr().unwrap()).unwrap().received, 5);
        }
    }

    #[test]
    fn only_sockets_at_these_ports_are_asked_for() {
        let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut ports: Vec<_> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let clients: Vec<_> = listeners
            .iter()
            .map(|listener| TcpStream::connect(listener.local_addr().unwrap()).unwrap())
            .collect();
        let peers: Vec<_> = listeners.iter().map(|listener| listener.accept().unwrap()).collect();
        ports.sort_unstable();
        for wanted in [ports[0]..=ports[0], ports[1]..=ports[2], ports[0]..=ports[1], 1..=1] {
            let table = TcpTable::of_ports(wanted.clone()).unwrap();
            for (client, (server, peer)) in clients.iter().zip(&peers) {
                let is_wanted = wanted.contains(&server.local_addr().unwrap().port());
                assert_eq!(table.of_peer(*peer).is_some(), is_wanted, "{wanted:?}");
                let is_wanted = wanted.contains(&client.local_addr().unwrap().port());
                assert_eq!(table.of_peer(server.local_addr().unwrap()).is_some(), is_wanted, "{wanted:?}");
            }
        }
    }

    #[test]
    fn a_client_of_two_is_not_taken_for_one_of_them() {
        let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        // One port for both, which has to be nobody else's: what others connect with has not said that it is shared, socket(7).
        let client = |port: u16| {
            let socket =
                nixsock::socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            nixsock::setsockopt(&socket, nixsock::sockopt::ReuseAddr, &true).unwrap();
            nixsock::bind(socket.as_raw_fd(), &nixsock::SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
            TcpStream::from(socket)
        };
        let first = client(0);
        let second = client(first.local_addr().unwrap().port());
        let [(_one, peer), (_two, same)] =
            [(&first, &listeners[0]), (&second, &listeners[1])].map(|(client, listener)| {
                let to = nixsock::SockaddrStorage::from(listener.local_addr().unwrap());
                nixsock::connect(client.as_raw_fd(), &to).unwrap();
                listener.accept().unwrap()
            });
        assert_eq!(peer, same);
        assert!(TcpTable::of_machine().unwrap().of_peer(peer).is_none());
    }

    #[test]
    fn an_answer_that_is_cut_off_anywhere_is_no_panic() {
        let mut answer = vec![0; 200];
        for (at, value) in [(0, 200_u32), (4, 20), (88, 100), (90, 2)] {
            answer[at..at + 2].copy_from_slice(&(value as u16).to_ne_bytes());
        }
        for length in 0..answer.len() {
            let _ = TcpTable::default().take(&answer[..length]);
        }
        for length in 0..200_u8 {
            answer[0] = length;
            answer[88] = length;
            if length >= HEADER as u8 {
                let _ = TcpTable::default().take(&answer);
            }
        }
    }
}
