//! What is wrong with an address, and the way out: why nobody listens there, and why nobody can reach who does.

use std::fmt;
use std::io;

use super::listener_options::OptionError;
use super::port_owner;
use crate::config::{Account, Address, SocketAccess, socket_file};
use crate::exit;
use crate::sys::access::AccessError;

/// Why an address cannot be listened on.
#[derive(Debug)]
pub(super) struct ListenError {
    address: Address,
    cause: Cause,
}

/// What is in the way.
#[derive(Debug)]
pub(super) enum Cause {
    /// Another has it, who is this if /proc tells.
    InUse(Option<String>),
    /// systemd passed no socket of the name, but these.
    NotPassed(Vec<String>),
    /// What systemd passed does not listen.
    NoListener,
    /// What systemd passed is a datagram socket, and nobody waits for its program.
    Datagrams,
    /// A Unix socket's path is at fault, and this is how.
    Path(io::Error, String),
    /// Its file cannot be given to whom the keys say, and why.
    Access(String),
    /// What a key asks of it.
    Demand(String),
    Io(io::Error),
}

impl Cause {
    /// What a system call says of an address.
    pub(super) fn of(address: &Address, error: io::Error) -> Self {
        let obstacle = match address {
            Address::Unix(path) => socket_file::obstacle(path, &error),
            _ => None,
        };
        match (obstacle, error.kind()) {
            (Some(obstacle), _) => Cause::Path(error, obstacle),
            (None, io::ErrorKind::AddrInUse) => Cause::InUse(port_owner::of(address)),
            (None, _) => Cause::Io(error),
        }
    }

    /// What the file of a Unix socket cannot be made, with the names that the keys have.
    pub(super) fn access(error: AccessError, access: &SocketAccess) -> Self {
        let name = |account: &Option<Account>| {
            account
                .as_ref()
                .map_or_else(|| "that of preforkd".to_owned(), |account| format!("\"{}\"", account.name))
        };
        let because = |error: &io::Error| match error.raw_os_error() {
            Some(libc::EPERM) => "this process may not".to_owned(),
            Some(libc::EINVAL) => "there is no such id in the user namespace of this process".to_owned(),
            _ => error.to_string(),
        };
        Cause::Access(match error {
            AccessError::Owner(error) => format!(
                "cannot make user {} its owner (socket_user): {}; root may, or a process with CAP_CHOWN; without either, \
                 give others access by socket_group and socket_mode",
                name(&access.user),
                because(&error)
            ),
            AccessError::Group(error) => format!(
                "cannot make its group {} (socket_group): {}; root may, or a process that is in that group, by \
                 SupplementaryGroups= in its unit",
                name(&access.group),
                because(&error)
            ),
            AccessError::File(error) => {
                format!("cannot make its mode {:04o} (socket_mode): {}", access.mode, because(&error))
            }
        })
    }
}

impl ListenError {
    pub(super) fn new(address: &Address, cause: Cause) -> Self {
        ListenError { address: address.clone(), cause }
    }

    /// Where.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// With which code to exit for it.
    pub(super) fn exit_code(&self) -> u8 {
        match &self.cause {
            Cause::Io(error) | Cause::Path(error, _) if error.kind() == io::ErrorKind::PermissionDenied => {
                exit::NOT_PERMITTED
            }
            Cause::Access(_) => exit::NOT_PERMITTED,
            Cause::Demand(_) | Cause::Datagrams => exit::CONFIG,
            Cause::InUse(_) | Cause::NotPassed(_) | Cause::NoListener | Cause::Io(_) | Cause::Path(..) => {
                exit::OS
            }
        }
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = &self.address;
        match &self.cause {
            Cause::InUse(Some(holder)) if holder.ends_with(&format!("(pid {})", std::process::id())) => {
                write!(
                    f,
                    "cannot listen on {address}: this preforkd has it as part of another address; reload without that one first"
                )
            }
            Cause::InUse(Some(holder)) => write!(f, "cannot listen on {address}: it is in use by {holder}"),
            Cause::InUse(None) => write!(f, "cannot listen on {address}: another process is using it"),
            Cause::NotPassed(names) if names.is_empty() => {
                write!(
                    f,
                    "cannot listen on {address}: systemd passed no socket; is there a .socket unit, and was it started?"
                )
            }
            Cause::NotPassed(names) => {
                write!(
                    f,
                    "cannot listen on {address}: systemd passed no socket of that name, but {}",
                    names.join(", ")
                )
            }
            Cause::NoListener => {
                write!(
                    f,
                    "cannot listen on {address}: what systemd passed is no listening stream socket; use ListenStream= and Accept=no, or ListenDatagram= and wait = true"
                )
            }
            Cause::Datagrams => {
                write!(
                    f,
                    "cannot use {address}: systemd passed a datagram socket, which has no connections that could be accepted; add \
                     wait = true to the service"
                )
            }
            Cause::Path(_, obstacle) => write!(f, "cannot listen on {address}: {obstacle}"),
            Cause::Demand(why) => write!(f, "cannot use {address} as the keys of the service want: {why}"),
            Cause::Access(why) => write!(f, "cannot listen on {address} as it should be: {why}"),
            Cause::Io(error) => write!(f, "cannot listen on {address}: {}", in_words(error, address)),
        }
    }
}

/// What socket(2), bind(2) and listen(2) may say on a machine that is in order, and the way out.
fn in_words(error: &io::Error, address: &Address) -> String {
    if let Some(option) = error.get_ref().and_then(|inner| inner.downcast_ref::<OptionError>()) {
        return option.to_string();
    }
    let port = match address {
        Address::Tcp(address) | Address::Udp(address) => address.port(),
        Address::Scoped(_, _, port) | Address::Any(port) => *port,
        Address::Unix(_) | Address::Abstract(_) | Address::Activated(_) => 0,
    };
    let is_low = (1..1024).contains(&port);
    if let (Some(libc::ENODEV), Address::Scoped(_, name, _)) = (error.raw_os_error(), address) {
        return format!("no interface {name}; see ip link");
    }
    let words = match error.raw_os_error() {
        Some(libc::EACCES) if is_low => {
            "ports below 1024 need root, CAP_NET_BIND_SERVICE or a systemd socket"
        }
        Some(libc::EADDRNOTAVAIL) => "this machine has no such address; see ip addr",
        Some(libc::ENODEV | libc::ENXIO) => "this machine has no such interface; see ip link",
        Some(libc::EINVAL) => {
            "the kernel does not take this address; a link-local one needs its interface, see ip addr"
        }
        Some(libc::EAFNOSUPPORT) => {
            "this machine does not have this kind of address, or RestrictAddressFamilies= of the unit forbids it"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "the kernel or a security module forbids it; look into the journal"
        }
        Some(libc::EMFILE) => "this process has too many descriptors open; raise LimitNOFILE= of the unit",
        Some(libc::ENFILE) => "the machine has too many files open; raise the sysctl fs.file-max",
        Some(libc::ENOMEM | libc::ENOBUFS) => "the kernel has no memory for it",
        Some(libc::ENOSPC | libc::EDQUOT) => "the file system has no room for the socket",
        Some(libc::ELOOP) => "its path has too many symbolic links",
        _ => return error.to_string(),
    };
    words.to_owned()
}

/// Why nobody can reach a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhyUnreachable {
    /// It listens no more.
    Deaf,
    /// Another file is where its own was. Whether the file was ours.
    Replaced(bool),
    /// Its file is gone. Whether it was ours.
    Removed(bool),
    /// Its interface is gone, and another of the same name is another one.
    OtherInterface,
    /// The machine does not have its address now. When that comes back, so do the clients.
    NoAddress,
}

impl WhyUnreachable {
    /// Whether a reload has to make another.
    pub(super) fn asks_for_another(self) -> bool {
        match self {
            WhyUnreachable::Deaf | WhyUnreachable::OtherInterface => true,
            WhyUnreachable::Replaced(is_ours) | WhyUnreachable::Removed(is_ours) => is_ours,
            WhyUnreachable::NoAddress => false,
        }
    }
}

impl fmt::Display for WhyUnreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhyUnreachable::Deaf => "somebody has shut the socket down; preforkd reload makes another",
            WhyUnreachable::OtherInterface => {
                "its interface is gone or was made anew; preforkd reload binds it again, once it is there"
            }
            WhyUnreachable::Replaced(true) => {
                "another file is in its place; preforkd reload makes another, if that goes"
            }
            WhyUnreachable::Removed(true) => "its file was removed; preforkd reload makes another",
            WhyUnreachable::Replaced(false) => {
                "another file is in its place; systemctl restart the socket unit"
            }
            WhyUnreachable::Removed(false) => "its file was removed; systemctl restart the socket unit",
            WhyUnreachable::NoAddress => {
                "this machine does not have the address now; it serves when the address is back"
            }
        })
    }
}
