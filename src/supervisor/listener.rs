//! A listener: bound by the supervisor or passed by systemd, kept open for as long as a generation wants it.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::kept::{Kept, contradiction};
use super::listen_error::{Cause, ListenError, WhyUnreachable};
use super::listener_options;
use super::systemd::Systemd;
use crate::config::{Account, Address, SocketAccess, SocketKind, SocketOptions};
use crate::control::QueueStatus;
use crate::sys::access::{Access, HeldSocket};
use crate::sys::exposed::ExposedSocket;
use crate::sys::fd::{self, FdNumber};
use crate::sys::{interface, options, socket};

/// A listening socket. It closes when the last service that uses it lets go.
#[derive(Debug)]
pub(super) struct Listener {
    socket: ExposedSocket,
    record: ListenerRecord,
    systemd: Systemd,
}

/// Where a listener was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct WantedListener {
    pub(super) address: Address,
    /// By whom, if the kernel was to choose a port: each service has another.
    service: Option<String>,
}

impl WantedListener {
    pub(super) fn new(address: &Address, service: &str) -> Self {
        let service = address.has_any_port().then(|| service.to_owned());
        WantedListener { address: address.clone(), service }
    }
}

/// What is known of a listening socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ListenerRecord {
    wanted: WantedListener,
    name: String,
    /// The file of a Unix socket that we made, and its inode.
    file: Option<(PathBuf, u64)>,
    standing: Cell<Standing>,
}

/// A listener as it is saved.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedListener {
    socket: FdNumber,
    record: ListenerRecord,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Standing {
    /// Services have it or will, and systemd keeps a copy.
    Open,
    /// Its file is gone, systemd keeps no copy, and workers take what is queued. A TCP listener can be taken back.
    Closing,
    /// It is for the supervisor after us, which gets it from systemd.
    Left,
}

impl Listener {
    /// Of a socket that is bound, by the name that it has in messages. `file` is that of a Unix socket, and its inode.
    pub(super) fn new(
        socket: OwnedFd,
        wanted: WantedListener,
        name: String,
        file: Option<(PathBuf, u64)>,
        systemd: Systemd,
    ) -> Self {
        let standing = Cell::new(Standing::Closing);
        Listener { socket: socket.into(), record: ListenerRecord { wanted, name, file, standing }, systemd }
    }

    /// Where it was asked for.
    pub(super) fn wanted(&self) -> &WantedListener {
        &self.record.wanted
    }

    /// The address of that.
    pub(super) fn address(&self) -> &Address {
        &self.record.wanted.address
    }

    pub(super) fn standing(&self) -> Standing {
        self.record.standing.get()
    }

    /// What it is called in messages: the address as bound, with the port that the kernel chose.
    pub(super) fn name(&self) -> &str {
        &self.record.name
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// How many connections wait to be accepted, and how many may, if the kernel tells.
    pub(super) fn queue(&self) -> Option<QueueStatus> {
        let (queued, limit) = socket::queue(self.descriptor())?;
        Some(QueueStatus { listen: self.name().to_owned(), queued, limit })
    }

    /// Whether this cookie is its own.
    pub(super) fn has_cookie(&self, cookie: u64) -> bool {
        socket::cookie(self.descriptor()) == cookie
    }

    /// How many connections wait to be accepted.
    pub(super) fn queued(&self) -> u32 {
        socket::queued(self.descriptor())
    }

    /// Makes sure that nothing more is queued, so that the queue can be emptied and the socket closed without a reset. If
    /// it `is_covered`, who comes finds another listener from now on.
    /// False if it should be left as it is: systemd's sockets stay open beyond us, and what is queued on them is served
    /// by who comes next.
    pub(super) fn turn_newcomers_away(&self, is_covered: bool) -> bool {
        if self.is_tcp() && !(is_covered && socket::hide(self.descriptor()).is_ok()) {
            socket::make_deaf(self.descriptor());
        }
        self.settle();
        self.is_ours()
    }

    /// Leaves it to the supervisor after this one, which gets it from systemd.
    pub(super) fn leave(&self) {
        self.record.standing.set(Standing::Left);
    }

    /// Takes back what others know of it.
    pub(super) fn settle(&self) {
        if self.record.standing.get() == Standing::Open {
            self.record.standing.set(Standing::Closing);
            if self.is_ours() {
                self.remove_file();
                self.systemd.forget(self.address());
            }
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        !matches!(self.address(), Address::Activated(_))
    }

    pub(super) fn kind(&self) -> SocketKind {
        match socket::local_address(self.descriptor()) {
            _ if self.is_datagram() => SocketKind::Datagram,
            Ok(None) => SocketKind::Unix,
            Ok(Some(_)) | Err(_) => SocketKind::Tcp,
        }
    }

    pub(super) fn is_datagram(&self) -> bool {
        socket::is_datagram(self.descriptor())
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.address(), Address::Tcp(_) | Address::Scoped(..) | Address::Any(_))
    }

    /// Whether it listens at every address of this machine.
    pub(super) fn is_wildcard(&self) -> bool {
        let bound = socket::local_address(self.descriptor()).ok().flatten();
        !self.is_datagram() && bound.is_some_and(|bound| bound.ip().is_unspecified())
    }

    /// Whether nobody else can have its address before it is closed: others find a Unix socket by its file.
    pub(super) fn holds_address(&self) -> bool {
        self.is_tcp() || matches!(self.address(), Address::Udp(_) | Address::Abstract(_))
    }

    /// Whether it is what it was when it was made. A Unix socket whose file somebody has removed or replaced is reached by
    /// nobody any more, nor is one that somebody has shut down; another has to be made.
    pub(super) fn is_reachable(&self) -> bool {
        !self.why_unreachable().is_some_and(|why| why.asks_for_another())
    }

    /// Why nobody can reach it, if that is so, as the kernel and the file system say now.
    pub(super) fn why_unreachable(&self) -> Option<WhyUnreachable> {
        if !self.is_datagram() && !socket::is_listener(self.descriptor()) {
            return Some(WhyUnreachable::Deaf);
        }
        match &self.record.file {
            Some((path, inode)) => match std::fs::symlink_metadata(path) {
                Ok(file) if file.ino() == *inode => None,
                Ok(_) => Some(WhyUnreachable::Replaced(self.is_ours())),
                Err(_) => Some(WhyUnreachable::Removed(self.is_ours())),
            },
            None => match socket::local_address(self.descriptor()) {
                Ok(Some(SocketAddr::V6(bound))) if !self.is_at_interface(&bound) => {
                    Some(WhyUnreachable::OtherInterface)
                }
                Ok(Some(address)) if !socket::is_address_here(address.ip()) => {
                    Some(WhyUnreachable::NoAddress)
                }
                _ => None,
            },
        }
    }

    /// Whether the interface that its address names still is the one that it is bound to.
    fn is_at_interface(&self, bound: &SocketAddrV6) -> bool {
        match self.address() {
            Address::Scoped(_, name, _) => interface::index_of(name) == Some(bound.scope_id()),
            _ => true,
        }
    }

    fn remove_file(&self) {
        // Another preforkd may have taken the path over.
        if let Some((path, _)) = self.record.file.as_ref().filter(|_| self.is_reachable()) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Says whether [`Listener::put_to_use`] could give its file to whom this says.
    pub(super) fn try_out(&self, options: &SocketOptions, access: &SocketAccess) -> Result<(), Cause> {
        if self.kind() != SocketKind::Unix {
            listener_options::try_before_bind(options).map_err(Cause::Io)?;
        }
        let Some((path, inode)) = self.record.file.as_ref().filter(|_| self.is_ours()) else { return Ok(()) };
        let file = held(path, *inode).map_err(Cause::Io)?;
        file.try_out(path, wanted(access)).map_err(|error| Cause::access(error, access))
    }

    /// Has a service use it from now on, as a reload may have changed it; it may have been closing. It is used also if
    /// its file cannot be given to whom it should be.
    pub(super) fn put_to_use(
        &self,
        options: &SocketOptions,
        access: &SocketAccess,
    ) -> Result<(), ListenError> {
        if self.is_tcp() {
            socket::make_hear(self.descriptor());
        }
        self.begin(options);
        self.prepare(options, access)
    }

    /// Begins to listen, if it does not yet.
    pub(super) fn begin(&self, options: &SocketOptions) {
        // It cannot fail on a socket that listens, nor on one whose port is shared by those who have it; and does nothing
        // to one of datagrams.
        let _ = socket::start_listening(self.descriptor(), options.backlog);
    }

    /// Accepting from it never waits.
    pub(super) fn never_blocks(&self) {
        let _ = fd::set_nonblocking(self.descriptor(), true);
    }

    pub(super) fn prepare(&self, options: &SocketOptions, access: &SocketAccess) -> Result<(), ListenError> {
        let set = match self.kind() {
            SocketKind::Tcp if self.record.file.is_none() => {
                listener_options::set_all(self.descriptor(), options, self.is_ours())
            }
            SocketKind::Datagram => {
                listener_options::set_of_datagrams(self.descriptor(), options, self.is_ours())
            }
            SocketKind::Unix => {
                options::pass_descriptors(self.descriptor(), access.passes_rights);
                Ok(())
            }
            SocketKind::Tcp => Ok(()),
        };
        if self.record.standing.replace(Standing::Open) != Standing::Open && self.is_ours() {
            self.systemd.store(self.address(), self.descriptor());
        }
        let failed = |cause| ListenError::new(self.address(), cause);
        set.map_err(|error| failed(Cause::Io(error)))?;
        let Some((path, inode)) = self.record.file.as_ref().filter(|_| self.is_ours()) else { return Ok(()) };
        let set =
            |file: HeldSocket| file.set(path, wanted(access)).map_err(|error| Cause::access(error, access));
        let set = held(path, *inode).map_err(Cause::Io).and_then(set);
        set.map_err(failed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.settle();
        if self.record.standing.get() != Standing::Left && self.is_ours() {
            // systemd closes its copy when it comes to it.
            self.socket.stop_listening();
        }
    }
}

/// The file of a Unix socket, if it still is the one that we made.
fn held(path: &Path, inode: u64) -> io::Result<HeldSocket> {
    let file = HeldSocket::at(path)?;
    if file.inode() == inode { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

pub(super) fn wanted(access: &SocketAccess) -> Access {
    let id = |account: &Option<Account>| account.as_ref().map(|account| account.id);
    Access { uid: id(&access.user), gid: id(&access.group), mode: access.mode }
}

impl SavedListener {
    /// Takes it over from another program.
    pub(super) fn resume(self, systemd: Systemd) -> io::Result<Listener> {
        Ok(Listener { socket: self.socket.take()?.into(), record: self.record, systemd })
    }
}

/// The listeners that something has which is saved: each once, in the order of their first use.
#[derive(Debug, Default)]
pub(super) struct ListenerTable<'a>(Vec<&'a Listener>);

impl<'a> ListenerTable<'a> {
    /// The places of these in the table.
    pub(super) fn places(&mut self, listeners: &'a [Rc<Listener>]) -> Vec<usize> {
        let mut place = |listener: &'a Listener| {
            let known = self.0.iter().position(|other| std::ptr::eq(*other, listener));
            known.unwrap_or_else(|| {
                self.0.push(listener);
                self.0.len() - 1
            })
        };
        listeners.iter().map(|listener| place(listener)).collect()
    }

    pub(super) fn save(self, kept: &mut Kept<'a>) -> Vec<SavedListener> {
        let save = |listener: &'a Listener| SavedListener {
            socket: kept.keep(listener.descriptor()),
            record: listener.record.clone(),
        };
        self.0.into_iter().map(save).collect()
    }
}

/// Those at these places.
pub(super) fn pick(listeners: &[Rc<Listener>], places: &[usize]) -> io::Result<Vec<Rc<Listener>>> {
    places.iter().map(|&place| listeners.get(place).map(Rc::clone).ok_or_else(contradiction)).collect()
}
