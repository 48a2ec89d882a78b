//! Options of sockets: socket(7), ip(7), ipv6(7), tcp(7), unix(7). Linux hands all of them on to accepted connections.
//!
//! Some need a privilege even to be set to what they are, so that each is set only where it differs.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{self as nixsock, AddressFamily, SockFlag, SockType, setsockopt, sockopt};

use super::check;

/// `IFNAMSIZ`, with the NUL.
const LONGEST_NAME: usize = 16;

/// linux/in6.h; libc does not have it.
const IPV6_FREEBIND: libc::c_int = 78;

/// How idle connections are probed; what is `None` is as the machine has it (`net.ipv4.tcp_keepalive_*`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Probes {
    /// Seconds until the first.
    pub(crate) idle: Option<u32>,
    /// Seconds between two.
    pub(crate) interval: Option<u32>,
    /// How many without an answer end the connection.
    pub(crate) count: Option<u32>,
}

pub(super) fn get(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let place = (&raw mut value).cast();
    // SAFETY: both describe live locals that the kernel writes.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, place, &mut length) })?;
    Ok(value)
}

pub(super) fn set(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    if get(socket, level, option).is_ok_and(|current| current == value) {
        return Ok(());
    }
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is a live local that the kernel reads.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    check(result).map(drop)
}

/// Whether descriptors can be sent over this Unix socket, and by those who connect to it: who tries where it is not so gets EPERM.
/// Before Linux 6.16 they can.
pub(crate) fn pass_descriptors(socket: BorrowedFd<'_>, pass: bool) {
    /// linux/socket.h, the same on all that we build for; libc does not have it yet.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let _ = set(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, i32::from(pass));
}

/// Of both families where the socket takes both; that of the other fails, and so it should.
fn set_for_families(
    socket: BorrowedFd<'_>,
    (v4, v6): (libc::c_int, libc::c_int),
    value: libc::c_int,
) -> io::Result<()> {
    match set(socket, libc::IPPROTO_IPV6, v6, value) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            set(socket, libc::IPPROTO_IP, v4, value)
        }
        Ok(()) => {
            let _ = set(socket, libc::IPPROTO_IP, v4, value);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// `SO_BINDTODEVICE`: takes only what comes by this interface; by any without one.
pub(crate) fn set_interface(socket: BorrowedFd<'_>, name: Option<&str>) -> io::Result<()> {
    let wanted = CString::new(name.unwrap_or_default())?;
    let mut current = [0u8; LONGEST_NAME];
    let mut length = current.len() as libc::socklen_t;
    let place = current.as_mut_ptr().cast();
    // SAFETY: both describe live locals that the kernel writes.
    let asked = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, place, &mut length)
    };
    let is_as_wanted = current.split(|byte| *byte == 0).next().unwrap_or_default() == wanted.as_bytes();
    if asked == 0 && is_as_wanted {
        return Ok(());
    }
    let bytes = wanted.as_bytes_with_nul();
    // SAFETY: the name is readable for its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            bytes.as_ptr().cast(),
            bytes.len() as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// `IP_FREEBIND`: may be bound to an address that this machine does not have yet.
pub(crate) fn set_freebind(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set_for_families(socket, (libc::IP_FREEBIND, IPV6_FREEBIND), on.into())
}

/// `IP_TRANSPARENT`: takes connections to addresses of others, as a router diverts them.
pub(crate) fn set_transparent(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set_for_families(socket, (libc::IP_TRANSPARENT, libc::IPV6_TRANSPARENT), on.into())
}

/// `SO_MARK`: what is sent has this mark, for rules of routing and of the firewall.
pub(crate) fn set_mark(socket: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_MARK, libc::c_int::from_ne_bytes(mark.to_ne_bytes()))
}

/// `IP_TOS` and `IPV6_TCLASS`: the type of service of what is sent.
pub(crate) fn set_tos(socket: BorrowedFd<'_>, tos: u8) -> io::Result<()> {
    set_for_families(socket, (libc::IP_TOS, libc::IPV6_TCLASS), tos.into())
}

/// `TCP_DEFER_ACCEPT`: who has connected is to be accepted only when the first byte has come, or this many seconds later.
pub(crate) fn set_defer_accept(socket: BorrowedFd<'_>, seconds: u32) -> io::Result<()> {
    // What is read back is what the kernel makes of it: a number of its own retransmissions.
    let seconds = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
    set(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds)
}

/// `TCP_NODELAY`.
pub(crate) fn set_nodelay(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    Ok(setsockopt(&socket, sockopt::TcpNoDelay, &on)?)
}

/// `SO_KEEPALIVE` and how it is done.
pub(crate) fn set_keepalive(socket: BorrowedFd<'_>, on: bool, probes: Probes) -> io::Result<()> {
    setsockopt(&socket, sockopt::KeepAlive, &on)?;
    // What the machine has by default, a fresh socket has. Where there can be none, nothing was changed before.
    let flags = SockFlag::SOCK_CLOEXEC;
    let fresh = nixsock::socket(AddressFamily::Inet, SockType::Stream, flags, None)
        .or_else(|_| nixsock::socket(AddressFamily::Inet6, SockType::Stream, flags, None))
        .ok();
    let default = |option| get(fresh.as_ref()?.as_fd(), libc::IPPROTO_TCP, option).ok();
    let wanted = [
        (libc::TCP_KEEPIDLE, probes.idle),
        (libc::TCP_KEEPINTVL, probes.interval),
        (libc::TCP_KEEPCNT, probes.count),
    ];
    for (option, wanted) in wanted {
        let wanted = wanted.map(|value| libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX));
        if let Some(value) = wanted.or_else(|| default(option)) {
            set(socket, libc::IPPROTO_TCP, option, value)?;
        }
    }
    Ok(())
}
