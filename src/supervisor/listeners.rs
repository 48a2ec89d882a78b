//! The listeners: bound by the supervisor or passed by systemd, kept open for as long as a generation wants them.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::kept::{Kept, contradiction};
use super::listen_error::{Cause, ListenError, WhyUnreachable};
use super::listener_options;
use super::systemd::{ActivatedSockets, Systemd};
use crate::config::{Account, Address, ServiceConfig, SocketAccess, SocketKind, SocketOptions};
use crate::control::QueueStatus;
use crate::sys::access::{Access, HeldSocket};
use crate::sys::fd::{self, FdNumber};
use crate::sys::interface;
use crate::sys::socket::{self, UnixName};
use crate::sys::tcp_table::{self, TcpSocket, TcpState};

/// For how long handshakes that have begun are waited for: as long as a client far away needs, or one that puts the end of
/// its handshake off for 200 ms (tcp(7), `TCP_QUICKACK`). Who takes longer, or never meant to end it, is let go.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// A listening socket. It closes when the last service that uses it lets go.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    record: ListenerRecord,
    systemd: Systemd,
}

/// What is known of a listening socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ListenerRecord {
    address: Address,
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

/// Listeners that are being closed: their workers take what is queued first.
#[derive(Debug, Default)]
pub(super) struct ClosingListeners {
    listeners: Vec<Rc<Listener>>,
    handshakes: Duration,
}

impl ClosingListeners {
    /// No handshake begins any more with these. Those that have begun are given their time: a client that has been answered
    /// takes itself for connected.
    fn new(listeners: Vec<Rc<Listener>>) -> Self {
        let local = |listener: &Rc<Listener>| socket::local_address(listener.descriptor()).ok().flatten();
        let closing: HashSet<(IpAddr, u16)> =
            listeners.iter().filter_map(local).map(|local| (local.ip(), local.port())).collect();
        let is_to_one = |called: SocketAddr| {
            tcp_table::who_may_get(called.ip()).iter().any(|ip| closing.contains(&(*ip, called.port())))
        };
        let is_under_way =
            |socket: &TcpSocket| socket.state == TcpState::Handshake && is_to_one(socket.local);
        let are_none = closing.is_empty() || matches!(tcp_table::find(is_under_way), Ok(None));
        ClosingListeners { listeners, handshakes: if are_none { Duration::ZERO } else { HANDSHAKE } }
    }

    pub(super) fn has(&self, listener: &Rc<Listener>) -> bool {
        self.listeners.iter().any(|other| Rc::ptr_eq(listener, other))
    }

    /// How long clients may come that have been answered already.
    pub(super) fn handshakes(&self) -> Duration {
        self.handshakes
    }
}

impl Listener {
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
    fn turn_newcomers_away(&self, is_covered: bool) -> bool {
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
    fn settle(&self) {
        if self.record.standing.get() == Standing::Open {
            self.record.standing.set(Standing::Closing);
            if self.is_ours() {
                self.remove_file();
                self.systemd.forget(&self.record.address);
            }
        }
    }

    fn is_ours(&self) -> bool {
        !matches!(self.record.address, Address::Activated(_))
    }

    fn kind(&self) -> SocketKind {
        match socket::local_address(self.descriptor()) {
            _ if self.is_datagram() => SocketKind::Datagram,
            Ok(None) => SocketKind::Unix,
            Ok(Some(_)) | Err(_) => SocketKind::Tcp,
        }
    }

    fn is_datagram(&self) -> bool {
        socket::is_datagram(self.descriptor())
    }

    fn is_tcp(&self) -> bool {
        matches!(self.record.address, Address::Tcp(_) | Address::Scoped(..) | Address::Any(_))
    }

    /// Whether it listens at every address of this machine.
    pub(super) fn is_wildcard(&self) -> bool {
        let bound = socket::local_address(self.descriptor()).ok().flatten();
        !self.is_datagram() && bound.is_some_and(|bound| bound.ip().is_unspecified())
    }

    /// Whether nobody else can have its address before it is closed: others find a Unix socket by its file.
    fn holds_address(&self) -> bool {
        self.is_tcp() || matches!(self.record.address, Address::Udp(_) | Address::Abstract(_))
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
        match &self.record.address {
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
    fn try_out(&self, options: &SocketOptions, access: &SocketAccess) -> Result<(), Cause> {
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

    fn prepare(&self, options: &SocketOptions, access: &SocketAccess) -> Result<(), ListenError> {
        let set = match self.kind() {
            SocketKind::Tcp if self.record.file.is_none() => {
                listener_options::set_all(self.descriptor(), options, self.is_ours())
            }
            SocketKind::Datagram => {
                listener_options::set_of_datagrams(self.descriptor(), options, self.is_ours())
            }
            SocketKind::Tcp | SocketKind::Unix => Ok(()),
        };
        if self.record.standing.replace(Standing::Open) != Standing::Open && self.is_ours() {
            self.systemd.store(&self.record.address, self.descriptor());
        }
        let failed = |cause| ListenError::new(&self.record.address, cause);
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
            socket::stop_listening(self.descriptor());
        }
    }
}

/// The file of a Unix socket, if it still is the one that we made.
fn held(path: &Path, inode: u64) -> io::Result<HeldSocket> {
    let file = HeldSocket::at(path)?;
    if file.inode() == inode { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn wanted(access: &SocketAccess) -> Access {
    let id = |account: &Option<Account>| account.as_ref().map(|account| account.id);
    Access { uid: id(&access.user), gid: id(&access.group), mode: access.mode }
}

impl SavedListener {
    /// Takes it over from another program.
    pub(super) fn resume(self, systemd: Systemd) -> io::Result<Listener> {
        Ok(Listener { socket: self.socket.take()?, record: self.record, systemd })
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

/// Makes a socket that is bound to an address; told whether it shares its port.
type Bind<'a> = dyn Fn(bool) -> io::Result<OwnedFd> + 'a;

/// All listeners of the supervisor.
#[derive(Debug)]
pub(super) struct Listeners {
    /// By address, so that a reload finds what is open. A listener that no service uses any more is closed.
    open: HashMap<Address, Vec<Weak<Listener>>>,
    /// Those that were taken out of use. As long as somebody has one, its port is not free.
    closing: Vec<Weak<Listener>>,
    passed: ActivatedSockets,
    systemd: Systemd,
}

impl Listeners {
    /// With the sockets that systemd passed, by their names.
    pub(super) fn new(passed: ActivatedSockets, systemd: Systemd) -> Self {
        Listeners { open: HashMap::new(), closing: Vec::new(), passed, systemd }
    }

    /// As another program has saved them: what systemd passed, and what is open.
    pub(super) fn resume(
        passed: BTreeMap<String, Vec<FdNumber>>,
        listeners: &[Rc<Listener>],
        systemd: Systemd,
    ) -> io::Result<Self> {
        let mut named: HashMap<String, Vec<OwnedFd>> = HashMap::new();
        for (name, sockets) in passed {
            let sockets: io::Result<Vec<_>> = sockets.into_iter().map(FdNumber::take).collect();
            named.insert(name, sockets?);
        }
        let mut open: HashMap<Address, Vec<Weak<Listener>>> = HashMap::new();
        // A Unix socket that is closing has no way to it any more; its path is for another.
        let is_to_be_found = |listener: &&Rc<Listener>| {
            listener.holds_address() || listener.record.standing.get() == Standing::Open
        };
        for listener in listeners.iter().filter(is_to_be_found) {
            open.entry(listener.record.address.clone()).or_default().push(Rc::downgrade(listener));
        }
        let is_closing = |listener: &&Rc<Listener>| listener.record.standing.get() == Standing::Closing;
        let closing = listeners.iter().filter(is_closing).map(Rc::downgrade).collect();
        Ok(Listeners { open, closing, passed: ActivatedSockets { named, stored: HashMap::new() }, systemd })
    }

    /// What systemd passed, as it is saved.
    pub(super) fn save_passed<'a>(&'a self, kept: &mut Kept<'a>) -> BTreeMap<String, Vec<FdNumber>> {
        let mut keep = |socket: &'a OwnedFd| kept.keep(socket.as_fd());
        let named = self.passed.named.iter();
        named.map(|(name, sockets)| (name.clone(), sockets.iter().map(&mut keep).collect())).collect()
    }

    /// Closes what the supervisor before this one left and no service wants. systemd closes its copy in a process that it
    /// starts for it, `asynchronous_close` in its service_fd_store_unlink(), and until then clients would be let in to
    /// wait for nobody.
    pub(super) fn close_left(&mut self) {
        for (address, listener) in self.passed.stored.drain() {
            self.systemd.forget(&address);
            socket::stop_listening(listener.as_fd());
            if let Address::Unix(path) = &address {
                // Unless it is another's by now. Nothing depends on it: it is removed when somebody wants the path.
                let _ = socket::remove_stale(path);
            }
        }
    }

    /// What the supervisor before this one left for `address`, if it is what it should be.
    fn left(&mut self, address: &Address) -> Option<OwnedFd> {
        let socket = self.passed.stored.remove(address)?;
        let is_right = match address {
            Address::Tcp(wanted) => socket::local_address(socket.as_fd()).is_ok_and(|bound| {
                bound.is_some_and(|bound| {
                    bound.ip() == wanted.ip() && [0, bound.port()].contains(&wanted.port())
                })
            }),
            Address::Udp(wanted) => socket::local_address(socket.as_fd()).is_ok_and(|bound| {
                let is_it = |bound: SocketAddr| {
                    bound.ip() == wanted.ip() && [0, bound.port()].contains(&wanted.port())
                };
                socket::is_datagram(socket.as_fd()) && bound.is_some_and(is_it)
            }),
            Address::Scoped(ip, name, port) => socket::local_address(socket.as_fd()).is_ok_and(|bound| {
                let Some(SocketAddr::V6(bound)) = bound else { return false };
                bound.ip() == ip
                    && interface::index_of(name) == Some(bound.scope_id())
                    && [0, bound.port()].contains(port)
            }),
            Address::Any(port) => socket::local_address(socket.as_fd()).is_ok_and(|bound| {
                bound.is_some_and(|bound| {
                    bound.ip().is_unspecified()
                        && (bound.is_ipv4() || socket::takes_both(socket.as_fd()))
                        && [0, bound.port()].contains(port)
                })
            }),
            // Somebody may have removed the file, and then nobody can connect.
            Address::Unix(path) => {
                path.exists() && socket::local_name(socket.as_fd()) == Some(UnixName::Path(path.clone()))
            }
            Address::Abstract(name) => {
                socket::local_name(socket.as_fd()) == Some(UnixName::Abstract(name.clone().into()))
            }
            Address::Activated(_) => false,
        };
        let is_usable = is_right
            && match address {
                Address::Udp(_) => true,
                // A worker that waits in accept hears nothing else.
                _ => socket::is_listener(socket.as_fd()) && fd::set_nonblocking(socket.as_fd(), true).is_ok(),
            };
        is_usable.then_some(socket)
    }

    /// The listeners of `service`: those that are open already, and new ones; and the addresses at which there is none.
    pub(super) fn open(&mut self, service: &ServiceConfig) -> (Vec<Rc<Listener>>, Vec<ListenError>) {
        self.open.retain(|_, listeners| listeners.iter().any(|listener| listener.strong_count() > 0));
        self.closing.retain(|listener| listener.strong_count() > 0);
        let (mut all, mut missing) = (Vec::new(), Vec::new());
        for address in &service.listen {
            let mut known: Vec<_> =
                self.open.get(address).into_iter().flatten().filter_map(Weak::upgrade).collect();
            // Before another of the same name is stored.
            known.iter().filter(|listener| !listener.is_reachable()).for_each(|lost| lost.settle());
            known.retain(|listener| listener.is_reachable());
            if !known.is_empty() {
                let failed = |cause| ListenError::new(address, cause);
                let mut refusals = known
                    .iter()
                    .filter_map(|listener| listener.try_out(&service.socket, &service.socket_access).err());
                match refusals.next() {
                    None => all.extend(known),
                    Some(cause) => missing.push(failed(cause)),
                }
                continue;
            }
            match self.make(address, &service.socket, &service.socket_access) {
                Ok(fresh) => {
                    self.open.insert(address.clone(), fresh.iter().map(Rc::downgrade).collect());
                    all.extend(fresh);
                }
                Err(error) => missing.push(error),
            }
        }
        if let Some(datagrams) = all.iter().find(|listener| listener.is_datagram() && !service.wait) {
            missing.push(ListenError::new(&datagrams.record.address, Cause::Datagrams));
            all.retain(|listener| !listener.is_datagram());
        }
        if let Some(error) = unmet(service, &all) {
            // Whom it would let in, or not, is not what was written.
            all.retain(|listener: &Rc<Listener>| listener.is_ours());
            missing.push(error);
        }
        (all, missing)
    }

    /// Takes listeners out of use: what is queued can be taken, nothing more comes. A service that wants the address
    /// before the last worker is done with it gets the same TCP listener again, since nobody could bind another.
    /// Those that outlive us are left as they are. Who looks for one of the others finds one of `wildcards` at once.
    pub(super) fn close<'a>(
        &mut self,
        unused: impl Iterator<Item = &'a Rc<Listener>>,
        wildcards: &[Rc<Listener>],
    ) -> ClosingListeners {
        let closing = unused.filter(|listener| self.take_out_of_use(listener, wildcards)).cloned().collect();
        ClosingListeners::new(closing)
    }

    /// False if it outlives us.
    fn take_out_of_use(&mut self, listener: &Rc<Listener>, wildcards: &[Rc<Listener>]) -> bool {
        let covers = |other: &Rc<Listener>| socket::covers(other.descriptor(), listener.descriptor());
        let is_covered = listener.is_tcp() && wildcards.iter().any(covers);
        if let Some(open) =
            self.open.get_mut(&listener.record.address).filter(|_| is_covered || !listener.holds_address())
        {
            open.retain(|other| !std::ptr::eq(other.as_ptr(), Rc::as_ptr(listener)));
        }
        self.closing.push(Rc::downgrade(listener));
        listener.turn_newcomers_away(is_covered)
    }

    /// Also those that are being closed.
    fn all(&self) -> impl Iterator<Item = Rc<Listener>> {
        self.open.values().flatten().chain(&self.closing).filter_map(Weak::upgrade)
    }

    /// Binds an address beside others of ours that stand in its way: an address and the wildcard follow each other without
    /// a moment in which nobody listens. It does not listen yet; until all is ready, clients find those that are there.
    fn bind_beside_own(&self, bind: &Bind<'_>) -> io::Result<OwnedFd> {
        self.share_ports(true);
        let bound = bind(true);
        if bound.is_err() {
            self.share_ports(false);
        }
        bound
    }

    /// Listens at a port, or binds it only where a listener of ours is in the way; and whether it listens.
    fn listen(&self, port: u16, backlog: u32, bind: &Bind<'_>) -> io::Result<(OwnedFd, bool)> {
        let listen = |socket: OwnedFd| {
            socket::start_listening(socket.as_fd(), backlog)?;
            Ok((socket, true))
        };
        match bind(false).and_then(listen) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && self.has_port(port) => {
                self.bind_beside_own(bind).map(|bound| (bound, false)).map_err(|_| error)
            }
            made => made,
        }
    }

    /// Whether a listener of ours is in the way of others that want this port.
    fn has_port(&self, port: u16) -> bool {
        let has = |listener: BorrowedFd<'_>| {
            socket::local_address(listener).is_ok_and(|bound| bound.is_some_and(|bound| bound.port() == port))
        };
        self.all().any(|listener| has(listener.descriptor()))
            || self.passed.stored.values().any(|listener| has(listener.as_fd()))
    }

    /// Lets all of ours share their ports, or no more.
    pub(super) fn share_ports(&self, share: bool) {
        let tcp = self.all().filter(|listener| !listener.is_datagram());
        tcp.for_each(|listener| socket::share_port(listener.descriptor(), share));
        let stored = self.passed.stored.values().map(AsFd::as_fd);
        stored
            .filter(|listener| !socket::is_datagram(*listener))
            .for_each(|listener| socket::share_port(listener, share));
    }

    fn make(
        &mut self,
        address: &Address,
        options: &SocketOptions,
        access: &SocketAccess,
    ) -> Result<Vec<Rc<Listener>>, ListenError> {
        let failed = |cause| ListenError::new(address, cause);
        let io_failed = |error| failed(Cause::of(address, error));
        let set_options = |socket: BorrowedFd<'_>| listener_options::set_before_bind(socket, options);
        let left = self.left(address);
        let mut listens = true;
        let (sockets, file) = match address {
            Address::Tcp(tcp) => {
                let bind = |shares| socket::bind_tcp(*tcp, shares, &set_options);
                let made = left
                    .map_or_else(|| self.listen(tcp.port(), options.backlog, &bind), |left| Ok((left, true)));
                let (socket, is_listening) = made.map_err(io_failed)?;
                listens = is_listening;
                (vec![socket], None)
            }
            Address::Scoped(ip, name, port) => {
                let bind = |shares| {
                    let index = interface::index_of(name)
                        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
                    let address = SocketAddrV6::new(*ip, *port, 0, index).into();
                    socket::bind_tcp(address, shares, &set_options)
                };
                let made =
                    left.map_or_else(|| self.listen(*port, options.backlog, &bind), |left| Ok((left, true)));
                let (socket, is_listening) = made.map_err(io_failed)?;
                listens = is_listening;
                (vec![socket], None)
            }
            Address::Any(port) => {
                let bind = |shares| socket::bind_any(*port, shares, &set_options);
                let made =
                    left.map_or_else(|| self.listen(*port, options.backlog, &bind), |left| Ok((left, true)));
                let (socket, is_listening) = made.map_err(io_failed)?;
                listens = is_listening;
                (vec![socket], None)
            }
            Address::Udp(udp) => {
                let bind = || socket::bind_udp(*udp, &set_options);
                let socket = left.map_or_else(bind, Ok).map_err(io_failed)?;
                listens = false;
                (vec![socket], None)
            }
            Address::Unix(path) => {
                let bind = || {
                    socket::remove_stale(path)?;
                    socket::bind_unix(path, access.mode)
                };
                let socket = left.map_or_else(bind, Ok).map_err(io_failed)?;
                let file = HeldSocket::at(path).map_err(io_failed)?;
                // Before it listens: until then nobody can connect.
                let given = file
                    .set(path, wanted(access))
                    .map_err(|error| failed(Cause::access(error, access)))
                    .and_then(|()| {
                        socket::start_listening(socket.as_fd(), options.backlog).map_err(io_failed)
                    });
                if let Err(error) = given {
                    let _ = std::fs::remove_file(path);
                    return Err(error);
                }
                (vec![socket], Some((path.clone(), file.inode())))
            }
            Address::Abstract(name) => {
                let socket = left.map_or_else(|| socket::listen_abstract(name, options.backlog), Ok);
                (vec![socket.map_err(io_failed)?], None)
            }
            Address::Activated(name) => (self.passed(name).map_err(failed)?, None),
        };
        let wrap = |socket: OwnedFd| {
            // What systemd made has a file, too, which is not ours to remove.
            let passed = || match socket::local_name(socket.as_fd()) {
                Some(UnixName::Path(path)) => {
                    let inode = std::fs::symlink_metadata(&path).ok()?.ino();
                    Some((path, inode))
                }
                _ => None,
            };
            let file = file.clone().or_else(passed);
            let bound = socket::local_address(socket.as_fd()).ok().flatten();
            let name = bound.filter(|_| file.is_none()).map_or_else(
                || address.to_string(),
                |bound| match address {
                    Address::Scoped(ip, name, _) => {
                        Address::Scoped(*ip, name.clone(), bound.port()).to_string()
                    }
                    Address::Any(_) => Address::Any(bound.port()).to_string(),
                    Address::Udp(_) => Address::Udp(bound).to_string(),
                    _ => bound.to_string(),
                },
            );
            let standing = Cell::new(Standing::Closing);
            let record = ListenerRecord { address: address.clone(), name, file, standing };
            let listener = Listener { socket, record, systemd: self.systemd.clone() };
            if listens {
                listener.begin(options);
            }
            listener.prepare(options, access)?;
            Ok(Rc::new(listener))
        };
        sockets.into_iter().map(wrap).collect()
    }

    /// Copies, so that systemd's sockets can be asked for again after a reload that did without them.
    fn passed(&self, name: &str) -> Result<Vec<OwnedFd>, Cause> {
        let Some(sockets) = self.passed.named.get(name) else {
            let mut names: Vec<_> = self.passed.named.keys().cloned().collect();
            names.sort();
            return Err(Cause::NotPassed(names));
        };
        let mut copies = Vec::new();
        for socket in sockets {
            if !socket::is_datagram(socket.as_fd()) {
                if !socket::is_listener(socket.as_fd()) {
                    return Err(Cause::NoListener);
                }
                fd::set_nonblocking(socket.as_fd(), true).map_err(Cause::Io)?;
            }
            copies.push(socket.try_clone().map_err(Cause::Io)?);
        }
        Ok(copies)
    }
}

/// What a key asks of the sockets that systemd has passed, if they are not of the kind for it.
fn unmet(service: &ServiceConfig, open: &[Rc<Listener>]) -> Option<ListenError> {
    let passed = open.iter().filter(|listener| !listener.is_ours());
    let address = &passed.clone().next()?.record.address;
    let ours = service.listen.iter().filter_map(|address| match address {
        Address::Tcp(_) | Address::Scoped(..) | Address::Any(_) => Some(SocketKind::Tcp),
        Address::Udp(_) => Some(SocketKind::Datagram),
        Address::Unix(_) | Address::Abstract(_) => Some(SocketKind::Unix),
        Address::Activated(_) => None,
    });
    let kinds: Vec<_> = passed.map(|listener| listener.kind()).chain(ours).collect();
    let why = service.passed.object(&kinds)?;
    Some(ListenError::new(address, Cause::Demand(why)))
}
