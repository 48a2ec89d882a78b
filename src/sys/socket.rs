//! Listening sockets and accepted connections.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    self as nixsock, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr,
    setsockopt, sockopt,
};
use nix::sys::stat;

use serde::{Deserialize, Serialize};

use super::check;
use super::fd::{self, PollFlags};
use super::options;
use super::tcp_info::TcpInfo;
use super::tcp_table::{self, TcpSocket, TcpState};

/// Who is at the other end of a connection, as accept4(2) said or a proxy that is believed.
///
/// It is shown as a record of the log has it: `192.0.2.7:50972`, `[2001:db8::7]:50972`, `uid 1000 (pid 26813)` or `unknown`.
///
/// ```
/// use preforkd::{Peer, PeerCredentials};
///
/// let peer = Peer::Ip("[2001:db8::7]:50972".parse()?);
/// assert_eq!(peer.to_string(), "[2001:db8::7]:50972");
/// let peer = Peer::Unix(Some(PeerCredentials { pid: 26813, uid: 1000, gid: 1000 }));
/// assert_eq!(peer.to_string(), "uid 1000 (pid 26813)");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// A TCP client; IPv4-mapped addresses are IPv4 here.
    Ip(SocketAddr),
    /// A client of a Unix socket; nothing is known of one that was gone too soon.
    Unix(Option<PeerCredentials>),
}

/// Who connected to a Unix socket, as it was when it did: unix(7), `SO_PEERCRED`.
///
/// ```
/// use preforkd::{Peer, PeerCredentials};
///
/// fn is_root(peer: Peer) -> bool {
///     matches!(peer, Peer::Unix(Some(PeerCredentials { uid: 0, .. })))
/// }
///
/// assert!(is_root(Peer::Unix(Some(PeerCredentials { pid: 1, uid: 0, gid: 0 }))));
/// assert!(!is_root(Peer::Unix(None)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCredentials {
    /// Process id, in preforkd's PID namespace; it may have ended since, and another have its number.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// A new TCP socket that is bound to `address`, does not block and does not listen yet. An IPv6 wildcard takes IPv6 only. If it `shares`, it can be bound beside others that do, see [`share_port`].
pub(crate) fn bind_tcp(address: SocketAddr, shares: bool, before: &Before<'_>) -> io::Result<OwnedFd> {
    bind_one(address, true, shares, before)
}

/// One that is bound to this port of every address of this machine, and takes both families where it has both. It does not
/// listen yet.
///
/// One socket, for what one family's could not do: have the same port in both if the kernel chooses it, and be there for
/// IPv6 addresses that the machine gets later.
pub(crate) fn bind_any(port: u16, shares: bool, before: &Before<'_>) -> io::Result<OwnedFd> {
    let both = bind_one((Ipv6Addr::UNSPECIFIED, port).into(), false, shares, before);
    match both {
        // Of kernels that were started with ipv6.disable=1, and where RestrictAddressFamilies= has no AF_INET6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind_one((Ipv4Addr::UNSPECIFIED, port).into(), false, shares, before)
        }
        both => both,
    }
}

/// A new socket of datagrams that is bound to `address`. It blocks, for who reads it is a program that expects that. An IPv6
/// wildcard takes IPv6 only. Nobody else can bind the same.
pub(crate) fn bind_udp(address: SocketAddr, before: &Before<'_>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = nixsock::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    before(socket.as_fd())?;
    bind_to(&socket, address, true)?;
    Ok(socket)
}

/// Whether `fd` is a socket of datagrams.
pub(crate) fn is_datagram(fd: BorrowedFd<'_>) -> bool {
    nixsock::getsockopt(&fd, sockopt::SockType) == Ok(SockType::Datagram)
}

/// What tells a socket from all others of this machine, whoever has it: `SO_COOKIE`. Never 0, which is returned where the
/// kernel does not tell.
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> u64 {
    let (mut cookie, mut length): (u64, _) = (0, size_of::<u64>() as libc::socklen_t);
    let place = (&raw mut cookie).cast();
    // SAFETY: both describe live locals that the kernel writes.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, place, &mut length)
    };
    if result == 0 { cookie } else { 0 }
}

/// When the datagram came that was read last from a socket, whoever read it, in seconds and nanoseconds; `None` if none was
/// since this was asked for the first time, or where the kernel does not tell: socket(7), `SIOCGSTAMP`.
pub(crate) fn last_read(socket: BorrowedFd<'_>) -> Option<(i64, i64)> {
    /// linux/sockios.h; libc does not have it everywhere.
    const SIOCGSTAMPNS: libc::Ioctl = 0x8907;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec to a live local.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSTAMPNS, &raw mut time) };
    (result == 0).then_some((time.tv_sec, time.tv_nsec))
}

/// Has a socket of datagrams take those of everybody again, after a program has connected it to somebody. False if it was to
/// nobody, or cannot be.
pub(crate) fn disconnect(socket: BorrowedFd<'_>) -> bool {
    let (mut storage, mut length) = no_address();
    // SAFETY: both describe live locals that the kernel writes.
    let is_connected =
        unsafe { libc::getpeername(socket.as_raw_fd(), (&raw mut storage).cast(), &mut length) } == 0;
    let (storage, length) = no_address();
    // SAFETY: the address is a live local of this length; a family of 0 is AF_UNSPEC, connect(2).
    is_connected && unsafe { libc::connect(socket.as_raw_fd(), (&raw const storage).cast(), length) } == 0
}

/// Whether a socket takes both families.
pub(crate) fn takes_both(socket: BorrowedFd<'_>) -> bool {
    nixsock::getsockopt(&socket, sockopt::Ipv6V6Only) == Ok(false)
}

/// What is done to a socket before it is bound.
pub(crate) type Before<'a> = dyn Fn(BorrowedFd<'_>) -> io::Result<()> + 'a;

fn bind_one(address: SocketAddr, ipv6_only: bool, shares: bool, before: &Before<'_>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = stream_socket(family)?;
    // Without it a restart has to wait for the TIME_WAIT of old connections, socket(7). It does not let two listeners
    // share an address, as SO_REUSEPORT would.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if shares {
        share_port(socket.as_fd(), true);
    }
    before(socket.as_fd())?;
    bind_to(&socket, address, ipv6_only)?;
    Ok(socket)
}

fn bind_to(socket: &OwnedFd, address: SocketAddr, ipv6_only: bool) -> io::Result<()> {
    match address {
        SocketAddr::V4(address) => nixsock::bind(socket.as_raw_fd(), &SockaddrIn::from(address))?,
        SocketAddr::V6(address) => {
            setsockopt(socket, sockopt::Ipv6V6Only, &ipv6_only)?;
            nixsock::bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
        }
    }
    Ok(())
}

/// Lets a TCP socket have its port together with others of this user that share theirs, or not any more. The kernel asks
/// only while somebody binds or begins to listen: `inet_bind_conflict` in its net/ipv4/inet_connection_sock.c.
pub(crate) fn share_port(socket: BorrowedFd<'_>, shares: bool) {
    // It can only fail on what is no socket of the internet.
    let _ = setsockopt(&socket, sockopt::ReusePort, &shares);
}

/// Whether a client that looks for `narrow` would find `wide` without it.
pub(crate) fn covers(wide: BorrowedFd<'_>, narrow: BorrowedFd<'_>) -> bool {
    let address = |socket| local_address(socket).ok().flatten();
    let (Some(there), Some(wanted)) = (address(wide), address(narrow)) else { return false };
    let takes_family = there.is_ipv4() == wanted.is_ipv4() || takes_both(wide);
    // Of two wildcards none is less exact.
    let is_found = !wanted.ip().is_unspecified() || wide.as_raw_fd() != narrow.as_raw_fd();
    there.port() == wanted.port()
        && there.ip().is_unspecified()
        && is_found
        && (takes_family || takes_both(narrow))
}

/// Hides a TCP listener from whoever comes, who finds another that is less exact, or none: it listens at an interface that
/// there is not. What is queued stays, and handshakes under way are finished. Without `CAP_NET_RAW` there is no way back.
///
/// # Errors
///
/// `EPERM` if it listens at an interface already, or the kernel is older than 5.7 and this process is not privileged.
pub(crate) fn hide(listener: BorrowedFd<'_>) -> io::Result<()> {
    let nowhere = libc::c_int::MAX;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is a live local that the kernel reads.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw const nowhere).cast(),
            length,
        )
    };
    check(result).map(drop)
}

/// A new Unix socket at `path` that does not block; nobody can connect until it listens. The path must not exist. What is
/// there has this mode from its first moment.
pub(crate) fn bind_unix(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let socket = stream_socket(AddressFamily::Unix)?;
    options::pass_descriptors(socket.as_fd(), false);
    let address = UnixAddr::new(path)?;
    // bind(2) gives the file the socket's own mode, less the umask: unix_bind_bsd() in the kernel's net/unix/af_unix.c.
    stat::fchmod(&socket, stat::Mode::from_bits_truncate(mode))?;
    let mask = stat::umask(stat::Mode::empty());
    let bound = nixsock::bind(socket.as_raw_fd(), &address);
    stat::umask(mask);
    bound?;
    Ok(socket)
}

/// A new Unix socket that listens under this name of the abstract namespace and does not block.
pub(crate) fn listen_abstract(name: &str, backlog: u32) -> io::Result<OwnedFd> {
    let socket = stream_socket(AddressFamily::Unix)?;
    options::pass_descriptors(socket.as_fd(), false);
    nixsock::bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    start_listening(socket.as_fd(), backlog)?;
    Ok(socket)
}

/// Removes the Unix socket at this path, if there is one and nobody listens at it any more; bind(2) would fail with it
/// there. Never waits.
///
/// # Errors
///
/// `AddrInUse` if somebody may listen there; `PermissionDenied` if this process may not ask; what unlink(2) says.
pub(crate) fn remove_stale(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        return Ok(());
    }
    match connect_unix(path).map_err(|error| error.kind()) {
        Err(io::ErrorKind::ConnectionRefused) => std::fs::remove_file(path),
        Err(io::ErrorKind::NotFound) => Ok(()),
        Err(io::ErrorKind::PermissionDenied) => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// Connects to the Unix socket at this path, with a socket that does not block. Never waits.
///
/// # Errors
///
/// `WouldBlock` if the queue of who listens there is full, unix(7): a connect that blocks would sleep until one is accepted.
pub(crate) fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    let socket = stream_socket(AddressFamily::Unix)?;
    nixsock::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// A TCP socket to try something with.
pub(crate) fn probe() -> io::Result<OwnedFd> {
    stream_socket(AddressFamily::Inet).or_else(|_| stream_socket(AddressFamily::Inet6))
}

/// A socket of the same family that is connected to nobody, and waits as a connection does.
pub(crate) fn unconnected_like(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let address = nixsock::getsockname::<nixsock::SockaddrStorage>(listener.as_raw_fd())?;
    let socket = stream_socket(nixsock::SockaddrLike::family(&address).unwrap_or(AddressFamily::Unix))?;
    fd::set_nonblocking(socket.as_fd(), false)?;
    Ok(socket)
}

/// Whether both are of one family and protocol.
pub(crate) fn is_of_kind(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let is_same = |option| {
        let value = number_option(one, (libc::SOL_SOCKET, option));
        value.is_some() && value == number_option(other, (libc::SOL_SOCKET, option))
    };
    is_same(libc::SO_DOMAIN) && is_same(libc::SO_PROTOCOL)
}

/// The address of a listener, as getsockname(2) says it, if that is what it says of every connection of it: a `sockaddr_in` or
/// `sockaddr_in6` that names one address, in words of this machine, and zeros. Not where a zone belongs to it, or where the listener may
/// get what is for others: ip(7), `IP_TRANSPARENT`. Where a BPF program for sk_lookup steers others to it, nobody can tell.
pub(crate) fn address_of_all(listener: BorrowedFd<'_>) -> Option<[u64; 4]> {
    let (mut storage, mut length) = no_address();
    // SAFETY: both describe live locals that the kernel writes.
    check(unsafe { libc::getsockname(listener.as_raw_fd(), (&raw mut storage).cast(), &mut length) }).ok()?;
    let address = ip_of(&storage)?;
    let has_zone = matches!(address, SocketAddr::V6(address) if address.scope_id() != 0);
    let is_one = !has_zone && !address.ip().to_canonical().is_unspecified();
    let transparent = [(libc::SOL_IP, libc::IP_TRANSPARENT), (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)];
    let may_be_others =
        transparent.iter().any(|option| number_option(listener, *option).is_some_and(|on| on != 0));
    let mut words = [0; 4];
    if !is_one || may_be_others || length as usize > size_of_val(&words) {
        return None;
    }
    // SAFETY: the storage is larger, and was zeros where the kernel has not written.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const storage).cast::<u8>(),
            words.as_mut_ptr().cast(),
            size_of_val(&words),
        );
    }
    Some(words)
}

/// An option that is a number, at its level.
fn number_option(socket: BorrowedFd<'_>, (level, option): (libc::c_int, libc::c_int)) -> Option<libc::c_int> {
    let (mut value, mut length): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the kernel writes one int to a live local.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &mut length) };
    (result == 0).then_some(value)
}

fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(nixsock::socket(family, SockType::Stream, flags, None)?)
}

/// Starts to listen, or changes the backlog of a socket that already does.
pub(crate) fn start_listening(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let backlog = Backlog::new(backlog).unwrap_or(Backlog::MAXCONN);
    Ok(nixsock::listen(&socket, backlog)?)
}

/// Whether `fd` is a stream socket that listens.
pub(crate) fn is_listener(fd: BorrowedFd<'_>) -> bool {
    nixsock::getsockopt(&fd, sockopt::AcceptConn) == Ok(true)
        && nixsock::getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream)
}

/// Makes a TCP listener deaf: what is queued stays, handshakes under way are finished, no new one begins.
///
/// Closing a listener resets what is queued on it. This makes it possible to take the whole queue first; a client that
/// comes in between sends its SYN again and is refused in the ordinary way. It works by a least TTL that no packet has
/// which came over the loopback or a router (ip(7), `IP_MINTTL`). A socket filter would do it too, but drops the end of a
/// handshake as well, and some kernels keep it for root.
///
/// Connections whose handshake ends from then on have inherited it, until [`accept`] undoes that.
pub(crate) fn make_deaf(listener: BorrowedFd<'_>) {
    set_least_ttl(listener, 255);
}

/// Undoes [`make_deaf`].
pub(crate) fn make_hear(listener: BorrowedFd<'_>) {
    set_least_ttl(listener, 0);
}

/// How often a client is asked whether it is there, in seconds, that may have said otherwise to a deaf connection.
const ASKED_EVERY: u32 = 5;

/// Undoes what a connection has inherited from a listener that had been made deaf before its handshake ended. Whoever accepts
/// need not know of that yet.
///
/// What its client sent meanwhile will come again, but for a reset: that comes once, and who has missed it waits for ever. So
/// from now on the kernel asks such a client whether it is still there, and has the answer that was missed.
fn undo_deafness(connection: BorrowedFd<'_>, client: SocketAddr) {
    if has_least_ttl(connection, client) {
        set_least_ttl(connection, 0);
        let _ = nixsock::setsockopt(&connection, sockopt::TcpKeepIdle, &ASKED_EVERY);
        let _ = nixsock::setsockopt(&connection, sockopt::KeepAlive, &true);
    }
}

/// linux/in6.h; libc does not have it.
const IPV6_MINHOPCOUNT: libc::c_int = 73;

const LEAST_TTL: [(libc::c_int, libc::c_int); 2] =
    [(libc::IPPROTO_IP, libc::IP_MINTTL), (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT)];

fn has_least_ttl(connection: BorrowedFd<'_>, client: SocketAddr) -> bool {
    let [v4, v6] = LEAST_TTL;
    let option = if client.is_ipv4() { v4 } else { v6 };
    number_option(connection, option).is_some_and(|ttl| ttl > 0)
}

fn set_least_ttl(socket: BorrowedFd<'_>, ttl: libc::c_int) {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    for (level, option) in LEAST_TTL {
        // The level that is not the socket's fails, and so it should.
        // SAFETY: the value is a live local that the kernel reads.
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const ttl).cast(), length) };
    }
}

/// Makes a listener refuse whoever comes, though other processes have copies of it; what is queued is reset.
///
/// Closing it does so only with the last copy. shutdown(2) is of the socket itself: TCP leaves the listening state, and a
/// Unix socket answers `ECONNREFUSED`.
pub(crate) fn stop_listening(listener: BorrowedFd<'_>) {
    // It can only fail for what does not listen.
    let _ = nixsock::shutdown(listener.as_raw_fd(), nixsock::Shutdown::Read);
}

/// Takes the next connection from the queue. The connection is closed on exec and blocks, whatever the listener does.
///
/// # Errors
///
/// `WouldBlock` if none is queued; everything else that accept(2) lists.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Peer)> {
    let (mut storage, mut length) = no_address();
    let address = (&raw mut storage).cast();
    // SAFETY: `address` and `length` describe live locals that the kernel writes.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), address, &mut length, libc::SOCK_CLOEXEC) };
    let fd = check(fd)?;
    // SAFETY: the kernel has just given us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let peer = match ip_of(&storage) {
        Some(address) => {
            let unmapped = unmapped(address);
            if unmapped != address {
                become_ipv4(fd.as_fd());
            }
            undo_deafness(fd.as_fd(), unmapped);
            Peer::Ip(unmapped)
        }
        None => Peer::Unix(peer_credentials(fd.as_fd()).ok()),
    };
    Ok((fd, peer))
}

/// Turns a connection over IPv4 that a listener of both families has accepted into one of IPv4 for good, ipv6(7),
/// `IPV6_ADDRFORM`: programs ask the kernel who their client is, and compare. One that its client has ended before it was
/// accepted stays as it is; the kernel does so in the state ESTABLISHED only.
fn become_ipv4(connection: BorrowedFd<'_>) {
    let family = libc::AF_INET;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is a live local that the kernel reads.
    unsafe {
        libc::setsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_ADDRFORM,
            (&raw const family).cast(),
            length,
        )
    };
}

/// Whether an error of [`accept`] says nothing about the listener, or about this process: the client was gone again, or
/// the network is at fault. accept(2): errors of the network that are already pending on
/// the new connection come out of accept, "treat them like EAGAIN by retrying".
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::ETIMEDOUT
                | libc::EPERM
        )
    )
}

/// The address at this end of a connection or listener; `None` if it is not TCP.
pub(crate) fn local_address(socket: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
    let (mut storage, mut length) = no_address();
    // SAFETY: both describe live locals that the kernel writes.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut storage).cast(), &mut length) })?;
    Ok(ip_of(&storage).map(unmapped))
}

/// Whether this machine has the address, or may take it: bind(2) says so. True if it says nothing about it.
pub(crate) fn is_address_here(ip: IpAddr) -> bool {
    if ip.is_unspecified() || ip.is_loopback() {
        return true;
    }
    let bound = match ip {
        IpAddr::V4(ip) => stream_socket(AddressFamily::Inet)
            .map(|probe| nixsock::bind(probe.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(ip, 0)))),
        // Of a link-local one, it is the link that counts.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => return true,
        IpAddr::V6(ip) => stream_socket(AddressFamily::Inet6).map(|probe| {
            nixsock::bind(probe.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, 0)))
        }),
    };
    !matches!(bound, Ok(Err(Errno::EADDRNOTAVAIL)))
}

/// What a Unix socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UnixName {
    /// A file.
    Path(PathBuf),
    /// A name of the abstract namespace: any bytes, without the NUL before them.
    Abstract(Vec<u8>),
}

/// What a Unix socket is bound to; `None` if it is to nothing, or no Unix socket.
pub(crate) fn local_name(socket: BorrowedFd<'_>) -> Option<UnixName> {
    unix_name(&nixsock::getsockname(socket.as_raw_fd()).ok()?)
}

/// What the client of a Unix socket is bound to; clients seldom are.
pub(crate) fn peer_name(socket: BorrowedFd<'_>) -> Option<UnixName> {
    unix_name(&nixsock::getpeername(socket.as_raw_fd()).ok()?)
}

fn unix_name(address: &UnixAddr) -> Option<UnixName> {
    let path = address.path().map(|path| UnixName::Path(path.to_owned()));
    path.or_else(|| address.as_abstract().map(|name| UnixName::Abstract(name.to_owned())))
}

/// Who connected to a Unix socket.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
    let credentials = nixsock::getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(PeerCredentials { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() })
}

/// The supplementary groups of who connected to a Unix socket, as it was when it did.
///
/// # Errors
///
/// `ERANGE` if there is no room for all of them.
pub(crate) fn peer_groups<'a>(socket: BorrowedFd<'_>, room: &'a mut [u32]) -> io::Result<&'a [u32]> {
    let mut length = size_of_val(room) as libc::socklen_t;
    let place = room.as_mut_ptr().cast();
    // SAFETY: `place` and `length` describe memory that the kernel may write.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, place, &mut length)
    })?;
    Ok(room.get(..length as usize / size_of::<u32>()).unwrap_or_default())
}

/// Whether accept would find nothing now. False if the system does not tell.
pub(crate) fn is_queue_empty(listener: BorrowedFd<'_>) -> bool {
    fd::poll(listener, PollFlags::POLLIN, Some(Duration::ZERO)).is_ok_and(|events| events.is_empty())
}

/// How many connections wait to be accepted, and how many may: for a listener, these are `tcpi_unacked` and
/// `tcpi_sacked`. `None` where the kernel does not tell, as of datagrams.
pub(crate) fn queue(listener: BorrowedFd<'_>) -> Option<(u32, u32)> {
    TcpInfo::of(listener).ok().map(|info| (info.unacked, info.sacked))
}

/// Connections that wait to be accepted, or 1 if datagrams wait. 0 where the kernel does not tell.
pub(crate) fn queued(listener: BorrowedFd<'_>) -> u32 {
    if is_datagram(listener) {
        // The kernel tells how large the first is, and not how many there are.
        return u32::from(!is_queue_empty(listener));
    }
    queue(listener).map_or(0, |(queued, _)| queued)
}

/// Who is in the queue of a TCP listener. `None` if that is not to be seen here: the socket may be of another network.
pub(crate) fn queued_callers(listener: BorrowedFd<'_>) -> Option<Vec<SocketAddr>> {
    if !is_listener(listener) {
        return None;
    }
    let local = local_address(listener).ok()??;
    let is_queued = |socket: &TcpSocket| {
        matches!(socket.state, TcpState::Established | TcpState::CloseWait) && socket.inode == 0
    };
    let queued_there = tcp_table::of_listener(local, is_queued).ok()?;
    let callers: Vec<_> = queued_there.into_iter().map(|socket| socket.remote).collect();
    (callers.len() >= queued(listener).max(1) as usize).then_some(callers)
}

/// Room for an address that the kernel writes, and its size.
fn no_address() -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: sockaddr_storage is plain data, for which zero is a value.
    (unsafe { std::mem::zeroed() }, size_of::<libc::sockaddr_storage>() as libc::socklen_t)
}

fn ip_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in, which sockaddr_storage has room and alignment for.
            let raw = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = u32::from_be(raw.sin_addr.s_addr).into();
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is a sockaddr_in6, which sockaddr_storage has room and alignment for.
            let raw = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let (ip, port) = (raw.sin6_addr.s6_addr.into(), u16::from_be(raw.sin6_port));
            Some(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// `::ffff:192.0.2.1` is a client that came over IPv4 to a socket that takes both.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), address.port()),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen_unix(path: &Path, backlog: u32) -> OwnedFd {
        let socket = bind_unix(path, 0o600).unwrap();
        start_listening(socket.as_fd(), backlog).unwrap();
        socket
    }

    #[test]
    fn who_stops_listening_does_so_for_all_who_have_a_copy() {
        let tcp = bind_tcp("127.0.0.1:0".parse().unwrap(), false, &|_| Ok(())).unwrap();
        start_listening(tcp.as_fd(), 8).unwrap();
        let address = local_address(tcp.as_fd()).unwrap().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let unix = listen_unix(&path, 8);
        let copies = [&tcp, &unix].map(|listener| listener.try_clone().unwrap());
        let connect = || {
            let tcp = std::net::TcpStream::connect(address).map(OwnedFd::from);
            [tcp, std::os::unix::net::UnixStream::connect(&path).map(OwnedFd::from)]
        };
        let _queued = connect().map(Result::unwrap);
        copies.iter().for_each(|copy| stop_listening(copy.as_fd()));
        for refused in connect() {
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
        remove_stale(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn only_a_unix_socket_at_which_nobody_listens_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        remove_stale(&path).unwrap();
        let listener = listen_unix(&path, 0);
        // Until its queue is full; one that blocked would sleep there.
        for _ in 0..3 {
            assert_eq!(remove_stale(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        drop(listener);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        remove_stale(&path).unwrap();
        assert!(path.exists(), "no socket");
    }
}
