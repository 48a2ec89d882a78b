//! The TCP and UDP sockets of this machine, as /proc tells: proc_net_tcp in the kernel's documentation.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;

/// With one process's network, which hardened units show as well. What listens is before what is under way.
const TCP: Tables = (["/proc/self/net/tcp", "/proc/self/net/tcp6"], TCP_STATES);

/// Of the same form, proc(5).
const UDP: Tables = (["/proc/self/net/udp", "/proc/self/net/udp6"], UDP_STATES);

/// Of IPv4 and IPv6, and what rows of them are read.
type Tables = ([&'static str; 2], States);

/// What a socket does, include/net/tcp_states.h of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TcpState {
    Listens,
    /// A client has been answered, and what ends its handshake has not come yet.
    Handshake,
    Established,
    /// The client has ended its half.
    CloseWait,
    /// Of a UDP socket: it is bound, and has no peer.
    Unconnected,
}

/// How a state is written, in which table: of TCP, those that somebody asks for. Most rows are of connections that are over.
type States = &'static [(&'static str, TcpState)];
const TCP_STATES: States = &[
    ("0A", TcpState::Listens),
    ("03", TcpState::Handshake),
    ("01", TcpState::Established),
    ("08", TcpState::CloseWait),
];
const UDP_STATES: States = &[("07", TcpState::Unconnected), ("01", TcpState::Established)];

/// One socket.
#[derive(Debug)]
pub(crate) struct TcpSocket {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) state: TcpState,
    /// 0 for one that belongs to no file, as long as nobody has accepted it.
    pub(crate) inode: u64,
}

/// The first socket of which this is so.
///
/// # Errors
///
/// What opening or reading a table has brought; one for IPv6 need not be there.
pub(crate) fn find(wanted: impl Fn(&TcpSocket) -> bool) -> io::Result<Option<TcpSocket>> {
    find_in(TCP, wanted)
}

/// The inode of the first UDP socket that is bound so.
pub(crate) fn find_udp(wanted: impl Fn(SocketAddr) -> bool) -> Option<u64> {
    find_in(UDP, |socket| wanted(socket.local)).ok()?.map(|socket| socket.inode)
}

fn find_in(tables: Tables, wanted: impl Fn(&TcpSocket) -> bool) -> io::Result<Option<TcpSocket>> {
    let mut found = None;
    each(tables, |socket| match wanted(&socket) {
        true => {
            found = Some(socket);
            ControlFlow::Break(())
        }
        false => ControlFlow::Continue(()),
    })?;
    Ok(found)
}

/// The connections to `listener` of which this is so: not those to another listener of the same port. Errors as of [`find`].
pub(crate) fn of_listener(
    listener: SocketAddr,
    wanted: impl Fn(&TcpSocket) -> bool,
) -> io::Result<Vec<TcpSocket>> {
    let (mut listening, mut found) = (vec![listener.ip()], Vec::new());
    each(TCP, |socket| {
        if socket.local.port() == listener.port() {
            match socket.state {
                TcpState::Listens => listening.push(socket.local.ip()),
                _ if wanted(&socket) => found.push(socket),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    })?;
    found.retain(|socket| who_gets(socket.local.ip(), &listening) == Some(listener.ip()));
    Ok(found)
}

/// Which of these a connection to `called` comes to.
fn who_gets(called: IpAddr, listening: &[IpAddr]) -> Option<IpAddr> {
    who_may_get(called).into_iter().find(|ip| listening.contains(ip))
}

/// Where somebody must listen to get a connection to `called`, in the kernel's order: the address itself, then the wildcard of its
/// family, then that of both.
pub(crate) fn who_may_get(called: IpAddr) -> [IpAddr; 3] {
    let own: IpAddr =
        if called.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    [called, own, Ipv6Addr::UNSPECIFIED.into()]
}

fn each((tables, states): Tables, mut take: impl FnMut(TcpSocket) -> ControlFlow<()>) -> io::Result<()> {
    let mut row = String::new();
    for table in tables {
        let mut rows = match File::open(table) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && table != tables[0] => continue,
            opened => BufReader::new(opened?),
        };
        while rows.read_line(&mut row)? > 0 {
            if parse(&row, states).map(&mut take).is_some_and(|flow| flow.is_break()) {
                return Ok(());
            }
            row.clear();
        }
    }
    Ok(())
}

/// The socket of this row, if it has one of these states. The first row has names.
fn parse(row: &str, states: States) -> Option<TcpSocket> {
    let mut fields = row.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let state = states.iter().find(|(written, _)| *written == state)?.1;
    Some(TcpSocket {
        local: address(local)?,
        remote: address(remote)?,
        state,
        inode: fields.nth(5)?.parse().ok()?,
    })
}

/// `0100007F:1F90`: 32-bit words as the machine stores them, in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for word in ip.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::from(four),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_is_found_with_its_inode_and_what_is_no_row_is_not() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(ip).unwrap();
            let local = listener.local_addr().unwrap();
            let found = find(|socket| socket.local == local).unwrap().unwrap();
            assert_eq!(found.state, TcpState::Listens);
            assert!(found.inode != 0);
        }
        let row = "   0: 0100007F:1F90 0200007F:A000 03 00000000:00000000 00:00000000 00000000     0        0 7 1 x";
        let socket = parse(row, TCP_STATES).unwrap();
        assert_eq!(
            (socket.local, socket.state, socket.inode),
            ("127.0.0.1:8080".parse().unwrap(), TcpState::Handshake, 7)
        );
        for length in 0..row.find("7 1 x").unwrap() {
            assert!(parse(&row[..length], TCP_STATES).is_none());
        }
    }

    #[test]
    fn a_listener_has_its_own_connections_only() {
        let one = TcpListener::bind("127.0.0.41:0").unwrap();
        let port = one.local_addr().unwrap().port();
        let other = TcpListener::bind(("127.0.0.42", port)).unwrap();
        let listeners = [one.local_addr().unwrap(), other.local_addr().unwrap()];
        let clients = listeners.map(|listener| TcpStream::connect(listener).unwrap());
        let callers = |listener| {
            let of_it = of_listener(listener, |socket| socket.inode == 0).unwrap();
            of_it.into_iter().map(|socket| socket.remote).collect::<Vec<_>>()
        };
        for (listener, client) in listeners.into_iter().zip(&clients) {
            assert_eq!(callers(listener), [client.local_addr().unwrap()]);
        }
        for wildcard in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            assert!(callers((wildcard, port).into()).is_empty(), "each goes to who is named");
        }
    }

    #[test]
    fn who_is_named_gets_it_before_wildcards() {
        let [four, six, any, any_six] =
            ["127.0.0.1", "::1", "0.0.0.0", "::"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let listening = [any_six, any, six, four];
        for (called, who) in [(four, [four, any, any_six]), (six, [six, any_six, any_six])] {
            let mut left = listening.to_vec();
            for next in who {
                assert_eq!(who_gets(called, &left), Some(next));
                left.retain(|ip| *ip != next || *ip == any_six);
            }
        }
        assert_eq!(who_gets(six, &[any, four]), None);
    }
}
