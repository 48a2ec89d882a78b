//! All listeners: which are open, how those that a service wants are made, and how those that none wants are closed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::{Rc, Weak};

use super::closing_listeners::ClosingListeners;
use super::kept::Kept;
use super::listen_error::{Cause, ListenError};
use super::listener::{Listener, Standing, WantedListener, wanted};
use super::listener_options;
use super::systemd::{ActivatedSockets, Systemd};
use crate::config::{Address, ServiceConfig, SocketAccess, SocketKind, SocketOptions};
use crate::sys::access::HeldSocket;
use crate::sys::fd::{self, FdNumber};
use crate::sys::interface;
use crate::sys::socket::{self, UnixName};

/// Makes a socket that is bound to an address; told whether it shares its port.
type Bind<'a> = dyn Fn(bool) -> io::Result<OwnedFd> + 'a;

/// A socket at an address of a service.
struct Made {
    socket: OwnedFd,
    /// Of a Unix socket, and its inode.
    file: Option<(PathBuf, u64)>,
    /// False for one that does so when all is ready.
    listens: bool,
}

impl Made {
    fn of_systemd(socket: OwnedFd) -> Self {
        // It has a file, too, which is not ours to remove.
        let file = match socket::local_name(socket.as_fd()) {
            Some(UnixName::Path(path)) => {
                std::fs::symlink_metadata(&path).ok().map(|file| (path, file.ino()))
            }
            _ => None,
        };
        Made { socket, file, listens: true }
    }
}

/// What a listener is called in messages: its address as bound, with the port that the kernel chose.
fn name(address: &Address, socket: BorrowedFd<'_>, has_file: bool) -> String {
    let bound = socket::local_address(socket).ok().flatten().filter(|_| !has_file);
    match (address, bound) {
        (_, None) => address.to_string(),
        (Address::Scoped(ip, name, _), Some(bound)) => {
            Address::Scoped(*ip, name.clone(), bound.port()).to_string()
        }
        (Address::Any(_), Some(bound)) => Address::Any(bound.port()).to_string(),
        (Address::Udp(_), Some(bound)) => Address::Udp(bound).to_string(),
        (_, Some(bound)) => bound.to_string(),
    }
}

/// All listeners of the supervisor.
#[derive(Debug)]
pub(super) struct Listeners {
    /// By what was asked for, so that a reload finds what is open. A listener that no service uses any more is closed.
    open: HashMap<WantedListener, Vec<Weak<Listener>>>,
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
        let mut open: HashMap<WantedListener, Vec<Weak<Listener>>> = HashMap::new();
        // A Unix socket that is closing has no way to it any more; its path is for another.
        let is_to_be_found =
            |listener: &&Rc<Listener>| listener.holds_address() || listener.standing() == Standing::Open;
        for listener in listeners.iter().filter(is_to_be_found) {
            open.entry(listener.wanted().clone()).or_default().push(Rc::downgrade(listener));
        }
        let is_closing = |listener: &&Rc<Listener>| listener.standing() == Standing::Closing;
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
            let wanted = WantedListener::new(address, &service.name);
            let mut known: Vec<_> =
                self.open.get(&wanted).into_iter().flatten().filter_map(Weak::upgrade).collect();
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
            match self.make(&wanted, &service.socket, &service.socket_access) {
                Ok(fresh) => {
                    self.open.insert(wanted, fresh.iter().map(Rc::downgrade).collect());
                    all.extend(fresh);
                }
                Err(error) => missing.push(error),
            }
        }
        if let Some(datagrams) = all.iter().find(|listener| listener.is_datagram() && !service.wait) {
            missing.push(ListenError::new(datagrams.address(), Cause::Datagrams));
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
            self.open.get_mut(listener.wanted()).filter(|_| is_covered || !listener.holds_address())
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

    /// New listeners at an address: one, or those that systemd has passed by this name.
    fn make(
        &mut self,
        wanted: &WantedListener,
        options: &SocketOptions,
        access: &SocketAccess,
    ) -> Result<Vec<Rc<Listener>>, ListenError> {
        let address = &wanted.address;
        let sockets = self.sockets(address, options, access)?;
        let wrap = |Made { socket, file, listens }: Made| {
            let name = name(address, socket.as_fd(), file.is_some());
            let listener = Listener::new(socket, wanted.clone(), name, file, self.systemd.clone());
            if listens {
                listener.begin(options);
            }
            listener.prepare(options, access)?;
            Ok(Rc::new(listener))
        };
        sockets.into_iter().map(wrap).collect()
    }

    /// The sockets at an address: bound now, or left there by the supervisor before this one, or passed by systemd.
    fn sockets(
        &mut self,
        address: &Address,
        options: &SocketOptions,
        access: &SocketAccess,
    ) -> Result<Vec<Made>, ListenError> {
        let failed = |cause| ListenError::new(address, cause);
        let io_failed = |error| failed(Cause::of(address, error));
        let set_options = |socket: BorrowedFd<'_>| listener_options::set_before_bind(socket, options);
        let left = self.left(address);
        let at_port = |port: u16, left: Option<OwnedFd>, bind: &Bind<'_>| {
            let made = left.map_or_else(|| self.listen(port, options.backlog, bind), |left| Ok((left, true)));
            made.map(|(socket, listens)| Made { socket, file: None, listens }).map_err(io_failed)
        };
        let made = match address {
            Address::Tcp(tcp) => {
                at_port(tcp.port(), left, &|shares| socket::bind_tcp(*tcp, shares, &set_options))?
            }
            Address::Scoped(ip, name, port) => at_port(*port, left, &|shares| {
                let index =
                    interface::index_of(name).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
                let address = SocketAddrV6::new(*ip, *port, 0, index).into();
                socket::bind_tcp(address, shares, &set_options)
            })?,
            Address::Any(port) => {
                at_port(*port, left, &|shares| socket::bind_any(*port, shares, &set_options))?
            }
            Address::Udp(udp) => {
                let bind = || socket::bind_udp(*udp, &set_options);
                let socket = left.map_or_else(bind, Ok).map_err(io_failed)?;
                Made { socket, file: None, listens: false }
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
                Made { socket, file: Some((path.clone(), file.inode())), listens: true }
            }
            Address::Abstract(name) => {
                let bind = || socket::listen_abstract(name, options.backlog);
                Made { socket: left.map_or_else(bind, Ok).map_err(io_failed)?, file: None, listens: true }
            }
            Address::Activated(name) => {
                let passed = self.passed(name).map_err(failed)?;
                return Ok(passed.into_iter().map(Made::of_systemd).collect());
            }
        };
        Ok(vec![made])
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
    let address = passed.clone().next()?.address();
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
