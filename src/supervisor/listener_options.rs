//! The options of a listener's socket of the internet, as the keys of its service say them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::config::{Keepalive, SocketOptions};
use crate::sys::options::{self, Probes};
use crate::sys::socket;

/// Whether what bind(2) asks for can be set at all, on a socket that is for nothing else.
pub(super) fn try_before_bind(wanted: &SocketOptions) -> io::Result<()> {
    if wanted.interface.is_none() && !wanted.transparent && wanted.mark == 0 {
        return Ok(());
    }
    set_before_bind(socket::probe()?.as_fd(), wanted)
}

/// What is set before bind(2).
pub(super) fn set_before_bind(socket: BorrowedFd<'_>, wanted: &SocketOptions) -> io::Result<()> {
    set_of_bind(socket, wanted, true)
}

/// All that a TCP listener is to have, whatever it had before. What a socket unit says of its own sockets stays unless a key
/// says something else.
pub(super) fn set_all(socket: BorrowedFd<'_>, wanted: &SocketOptions, is_ours: bool) -> io::Result<()> {
    let because = |key| move |error| OptionError::of(key, error);
    let Keepalive { is_on, idle, interval, count } = wanted.keepalive;
    options::set_nodelay(socket, wanted.nodelay).map_err(because("nodelay"))?;
    if is_on || is_ours {
        options::set_keepalive(socket, is_on, Probes { idle, interval, count })
            .map_err(because("keepalive"))?;
    }
    if wanted.tos != 0 || is_ours {
        options::set_tos(socket, wanted.tos).map_err(because("tos"))?;
    }
    if wanted.defer_accept != 0 || is_ours {
        options::set_defer_accept(socket, wanted.defer_accept).map_err(because("defer_accept"))?;
    }
    set_of_bind(socket, wanted, is_ours)
}

/// The same for a socket of datagrams.
pub(super) fn set_of_datagrams(
    socket: BorrowedFd<'_>,
    wanted: &SocketOptions,
    is_ours: bool,
) -> io::Result<()> {
    // Of a Unix socket nobody has asked for anything.
    if !matches!(socket::local_address(socket), Ok(Some(_))) {
        return Ok(());
    }
    if wanted.tos != 0 || is_ours {
        options::set_tos(socket, wanted.tos).map_err(|error| OptionError::of("tos", error))?;
    }
    set_of_bind(socket, wanted, is_ours)
}

/// What bind(2) asks for; of a socket that is not ours, what nobody asks for stays as it is.
fn set_of_bind(socket: BorrowedFd<'_>, wanted: &SocketOptions, is_ours: bool) -> io::Result<()> {
    let because = |key| move |error| OptionError::of(key, error);
    // bind(2) has put a link-local address at its interface.
    let has_one = matches!(socket::local_address(socket),
        Ok(Some(SocketAddr::V6(bound))) if bound.ip().is_unicast_link_local());
    if wanted.interface.is_some() || is_ours && !has_one {
        options::set_interface(socket, wanted.interface.as_deref()).map_err(because("interface"))?;
    }
    if wanted.freebind || is_ours {
        options::set_freebind(socket, wanted.freebind).map_err(because("freebind"))?;
    }
    if wanted.transparent || is_ours {
        options::set_transparent(socket, wanted.transparent).map_err(because("transparent"))?;
    }
    if wanted.mark != 0 || is_ours {
        options::set_mark(socket, wanted.mark).map_err(because("mark"))?;
    }
    Ok(())
}

/// An option that cannot be set, as a key says it.
#[derive(Debug, thiserror::Error)]
#[error("{key} cannot be set: {source}; {help}")]
pub(super) struct OptionError {
    key: &'static str,
    source: io::Error,
    help: &'static str,
}

impl OptionError {
    fn of(key: &'static str, source: io::Error) -> io::Error {
        let help = match source.raw_os_error() {
            Some(libc::EPERM) if key == "interface" => {
                "root may, or a process with CAP_NET_RAW: add it to AmbientCapabilities= and CapabilityBoundingSet= of the unit; or restart preforkd, if it listens by another one"
            }
            Some(libc::EPERM) => {
                "root may, or a process with CAP_NET_ADMIN: add it to AmbientCapabilities= and CapabilityBoundingSet= of the unit, and set PrivateUsers=no"
            }
            Some(libc::ENODEV) => "there is no such interface, see ip link",
            _ => "remove the key",
        };
        io::Error::new(source.kind(), OptionError { key, source, help })
    }
}
