//! The listeners: bound by the supervisor or passed by systemd, kept open for as long as a generation wants them.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use serde::{Deserialize, Serialize};

use super::port_owner;
use super::saved::{Kept, contradiction};
use super::systemd::{ActivatedSockets, Systemd};
use crate::config::{
    Account, Address, Keepalive, ServiceConfig, SocketAccess, SocketKind, SocketOptions, socket_file,
};
use crate::exit;
use crate::sys::access::{Access, AccessError, HeldSocket};
use crate::sys::fd::{self, FdNumber};
use crate::sys::interface;
use crate::sys::options::{self, Probes};
use crate::sys::socket::{self, UnixName};

/// A listening socket. It closes when the last service that uses it lets go.
#[derive(Debug)]
pub(crate) struct Listener {
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

impl Listener {
    /// What it is called in messages: the address as bound, with the port that the kernel chose.
    pub(crate) fn name(&self) -> &str {
        &self.record.name
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// How many connections wait to be accepted.
    pub(crate) fn queued(&self) -> u32 {
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
    pub(crate) fn leave(&self) {
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
            Ok(None) => SocketKind::Unix,
            Ok(Some(_)) | Err(_) => SocketKind::Tcp,
        }
    }

    fn is_tcp(&self) -> bool {
        matches!(self.record.address, Address::Tcp(_) | Address::Scoped(..) | Address::Any(_))
    }

    /// Whether it listens at every address of this machine.
    pub(super) fn is_wildcard(&self) -> bool {
        let bound = socket::local_address(self.descriptor()).ok().flatten();
        bound.is_some_and(|bound| bound.ip().is_unspecified())
    }

    /// Whether nobody else can have its address before it is closed: others find a Unix socket by its file.
    fn holds_address(&self) -> bool {
        self.is_tcp() || matches!(self.record.address, Address::Abstract(_))
    }

    /// Whether it is what it was when it was made. A Unix socket whose file somebody has removed or replaced is reached by
    /// nobody any more, nor is one that somebody has shut down; another has to be made.
    pub(super) fn is_reachable(&self) -> bool {
        !self.why_unreachable().is_some_and(|why| why.asks_for_another())
    }

    /// Why nobody can reach it, if that is so, as the kernel and the file system say now.
    pub(super) fn why_unreachable(&self) -> Option<WhyUnreachable> {
        if !socket::is_listener(self.descriptor()) {
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
        if self.kind() == SocketKind::Tcp {
            try_before_bind(options).map_err(Cause::Io)?;
        }
        let Some((path, inode)) = self.record.file.as_ref().filter(|_| self.is_ours()) else { return Ok(()) };
        let file = held(path, *inode).map_err(Cause::Io)?;
        file.try_out(path, wanted(access)).map_err(|error| Cause::access(error, access))
    }

    /// Has a service use it from now on, as a reload may have changed it; it may have been closing. It is used also if
    /// its file cannot be given to whom it should be.
    pub(crate) fn put_to_use(
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
        // It cannot fail on a socket that listens, nor on one whose port is shared by those who have it.
        let _ = socket::start_listening(self.descriptor(), options.backlog);
    }

    fn prepare(&self, options: &SocketOptions, access: &SocketAccess) -> Result<(), ListenError> {
        let set = match self.record.file.is_none() && self.kind() == SocketKind::Tcp {
            true => set_options(self.descriptor(), options, self.is_ours()),
            false => Ok(()),
        };
        if self.record.standing.replace(Standing::Open) != Standing::Open && self.is_ours() {
            self.systemd.store(&self.record.address, self.descriptor());
        }
        let failed = |cause| ListenError { address: self.record.address.clone(), cause };
        set.map_err(|error| failed(Cause::Io(error)))?;
        let Some((path, inode)) = self.record.file.as_ref().filter(|_| self.is_ours()) else { return Ok(()) };
        let set =
            |file: HeldSocket| file.set(path, wanted(access)).map_err(|error| Cause::access(error, access));
        let set = held(path, *inode).map_err(Cause::Io).and_then(set);
        set.map_err(failed)
    }
}

/// An option that cannot be set, as a key says it.
#[derive(Debug, thiserror::Error)]
#[error("{key} cannot be set: {source}; {help}")]
struct OptionError {
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

/// What is set before bind(2).
fn set_before_bind(socket: BorrowedFd<'_>, wanted: &SocketOptions) -> io::Result<()> {
    set_of_bind(socket, wanted, true)
}

/// The same; of a socket that is not ours, what nobody asks for stays as it is.
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

/// All that a TCP listener is to have, whatever it had before. What a socket unit says of its own sockets stays unless a key
/// says something else.
fn set_options(socket: BorrowedFd<'_>, wanted: &SocketOptions, is_ours: bool) -> io::Result<()> {
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

/// Whether what bind(2) asks for can be set at all, on a socket that is for nothing else.
fn try_before_bind(wanted: &SocketOptions) -> io::Result<()> {
    if wanted.interface.is_none() && !wanted.transparent && wanted.mark == 0 {
        return Ok(());
    }
    set_before_bind(socket::probe()?.as_fd(), wanted)
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

impl Drop for Listener {
    fn drop(&mut self) {
        self.settle();
        if self.record.standing.get() != Standing::Left && self.is_ours() {
            // systemd closes its copy when it comes to it.
            socket::stop_listening(self.descriptor());
        }
    }
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
    fn asks_for_another(self) -> bool {
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

/// Why an address cannot be listened on.
#[derive(Debug)]
pub(crate) struct ListenError {
    address: Address,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    InUse(Option<String>),
    NotPassed(Vec<String>),
    NoListener,
    /// A Unix socket's path is at fault, and this is how.
    Path(io::Error, String),
    Access(String),
    /// What a key asks of it.
    Demand(String),
    Io(io::Error),
}

impl Cause {
    fn of(address: &Address, error: io::Error) -> Self {
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

    fn access(error: AccessError, access: &SocketAccess) -> Self {
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
            Cause::Demand(_) => exit::CONFIG,
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
                    "cannot listen on {address}: what systemd passed is no listening stream socket; use ListenStream= and Accept=no"
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
        Address::Tcp(tcp) => tcp.port(),
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

/// What a key asks of the sockets that systemd has passed, if they are not of the kind for it.
fn unmet(service: &ServiceConfig, open: &[Rc<Listener>]) -> Option<ListenError> {
    let passed = open.iter().filter(|listener| !listener.is_ours());
    let address = passed.clone().next()?.record.address.clone();
    let ours = service.listen.iter().filter_map(|address| match address {
        Address::Tcp(_) | Address::Scoped(..) | Address::Any(_) => Some(SocketKind::Tcp),
        Address::Unix(_) | Address::Abstract(_) => Some(SocketKind::Unix),
        Address::Activated(_) => None,
    });
    let kinds: Vec<_> = passed.map(|listener| listener.kind()).chain(ours).collect();
    let why = service.passed.object(&kinds)?;
    Some(ListenError { address, cause: Cause::Demand(why) })
}
/// Makes a socket that is bound to an address; told whether it shares its port.
type Bind<'a> = dyn Fn(bool) -> io::Result<OwnedFd> + 'a;

/// All listeners of the supervisor.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// By address, so that a reload finds what is open. A listener that no service uses any more is closed.
    open: HashMap<Address, Vec<Weak<Listener>>>,
    passed: ActivatedSockets,
    systemd: Systemd,
}

impl Listeners {
    /// With the sockets that systemd passed, by their names.
    pub(crate) fn new(passed: ActivatedSockets, systemd: Systemd) -> Self {
        Listeners { open: HashMap::new(), passed, systemd }
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
        Ok(Listeners { open, passed: ActivatedSockets { named, stored: HashMap::new() }, systemd })
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
    pub(crate) fn close_left(&mut self) {
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
        // A worker that waits in accept hears nothing else.
        let is_usable = is_right
            && socket::is_listener(socket.as_fd())
            && fd::set_nonblocking(socket.as_fd(), true).is_ok();
        is_usable.then_some(socket)
    }

    /// The listeners of `service`: those that are open already, and new ones; and the addresses at which there is none.
    pub(crate) fn open(&mut self, service: &ServiceConfig) -> (Vec<Rc<Listener>>, Vec<ListenError>) {
        self.open.retain(|_, listeners| listeners.iter().any(|listener| listener.strong_count() > 0));
        let (mut all, mut missing) = (Vec::new(), Vec::new());
        for address in &service.listen {
            let mut known: Vec<_> =
                self.open.get(address).into_iter().flatten().filter_map(Weak::upgrade).collect();
            // Before another of the same name is stored.
            known.iter().filter(|listener| !listener.is_reachable()).for_each(|lost| lost.settle());
            known.retain(|listener| listener.is_reachable());
            if !known.is_empty() {
                let failed = |cause| ListenError { address: address.clone(), cause };
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
        if let Some(error) = unmet(service, &all) {
            // Whom it would let in, or not, is not what was written.
            all.retain(|listener: &Rc<Listener>| listener.is_ours());
            missing.push(error);
        }
        (all, missing)
    }

    /// Takes a listener out of use: what is queued can be taken, nothing more comes. A service that wants the address
    /// before the last worker is done with it gets the same TCP listener again, since nobody could bind another.
    /// False if the socket outlives us and should be left as it is. Who looks for it finds one of `wildcards` at once.
    pub(super) fn close(&mut self, listener: &Rc<Listener>, wildcards: &[Rc<Listener>]) -> bool {
        let covers = |other: &Rc<Listener>| socket::covers(other.descriptor(), listener.descriptor());
        let is_covered = listener.is_tcp() && wildcards.iter().any(covers);
        if let Some(open) =
            self.open.get_mut(&listener.record.address).filter(|_| is_covered || !listener.holds_address())
        {
            open.retain(|other| !std::ptr::eq(other.as_ptr(), Rc::as_ptr(listener)));
        }
        listener.turn_newcomers_away(is_covered)
    }

    fn all_open(&self) -> impl Iterator<Item = Rc<Listener>> {
        self.open.values().flatten().filter_map(Weak::upgrade)
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
        self.all_open().any(|listener| has(listener.descriptor()))
            || self.passed.stored.values().any(|listener| has(listener.as_fd()))
    }

    /// Lets all of ours share their ports, or no more.
    pub(super) fn share_ports(&self, share: bool) {
        self.all_open().for_each(|listener| socket::share_port(listener.descriptor(), share));
        self.passed.stored.values().for_each(|listener| socket::share_port(listener.as_fd(), share));
    }

    fn make(
        &mut self,
        address: &Address,
        options: &SocketOptions,
        access: &SocketAccess,
    ) -> Result<Vec<Rc<Listener>>, ListenError> {
        let failed = |cause| ListenError { address: address.clone(), cause };
        let io_failed = |error| failed(Cause::of(address, error));
        let left = self.left(address);
        let mut listens = true;
        let (sockets, file) = match address {
            Address::Tcp(tcp) => {
                let bind =
                    |shares| socket::bind_tcp(*tcp, shares, &|socket| set_before_bind(socket, options));
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
                    socket::bind_tcp(address, shares, &|socket| set_before_bind(socket, options))
                };
                let made =
                    left.map_or_else(|| self.listen(*port, options.backlog, &bind), |left| Ok((left, true)));
                let (socket, is_listening) = made.map_err(io_failed)?;
                listens = is_listening;
                (vec![socket], None)
            }
            Address::Any(port) => {
                let bind =
                    |shares| socket::bind_any(*port, shares, &|socket| set_before_bind(socket, options));
                let made =
                    left.map_or_else(|| self.listen(*port, options.backlog, &bind), |left| Ok((left, true)));
                let (socket, is_listening) = made.map_err(io_failed)?;
                listens = is_listening;
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
            if !socket::is_listener(socket.as_fd()) {
                return Err(Cause::NoListener);
            }
            fd::set_nonblocking(socket.as_fd(), true).map_err(Cause::Io)?;
            copies.push(socket.try_clone().map_err(Cause::Io)?);
        }
        Ok(copies)
    }
}
