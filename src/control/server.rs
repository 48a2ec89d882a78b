//! The supervisor's side: never blocks, reads a bounded request, writes an answer when there is one.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, LONGEST_REQUEST, Request};
use crate::config::socket_file;
use crate::exit;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fd::FdNumber;
use crate::sys::time::Monotonic;
use crate::sys::{process, socket};

/// More clients than this wait in the queue.
const CLIENTS: usize = 32;

/// How many may wait in it.
const BACKLOG: u32 = 128;

/// How often it is tried to accept without a descriptor to accept with.
const RETRY: Duration = Duration::from_secs(1);

/// Names a client between its request and its answer.
pub(crate) type ClientId = u64;

/// The control socket and who is connected to it.
#[derive(Debug)]
pub(crate) struct ControlServer {
    listener: UnixListener,
    file: SocketFile,
    clients: BTreeMap<ClientId, Session>,
    next: ClientId,
    first_token: u64,
    /// Whether newcomers are accepted; not before it is in force, nor while there is no room.
    watched: bool,
    /// Makes room for a client that is to be turned away when there is no other descriptor left. Without it the client
    /// would stay queued, and epoll would report it without end.
    reserve: Option<OwnedFd>,
    next_try: Option<Monotonic>,
}

/// Where a control socket is, and whose file is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// A server as it is saved, for a program that goes on from here.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedServer {
    listener: FdNumber,
    file: SocketFile,
    /// Who waits for an answer.
    waiting: Vec<FdNumber>,
    /// Who has connected and not asked yet.
    newcomers: Vec<FdNumber>,
}

#[derive(Debug)]
struct Session {
    stream: UnixStream,
    request: Vec<u8>,
    asked: bool,
    answer: Vec<u8>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Somebody answers there.
    #[error(
        "another preforkd already answers at the control socket {0}; stop it, or choose another path by control_socket or --control"
    )]
    InUse(String),
    /// The system says no.
    #[error(
        "cannot make the control socket {path}: {obstacle}; another path is chosen by control_socket or --control"
    )]
    Io {
        /// The socket.
        path: String,
        /// What is in the way.
        obstacle: String,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// With which code to exit.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            OpenError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                exit::NOT_PERMITTED
            }
            _ => exit::OS,
        }
    }

    /// Whether nobody could make it there.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, OpenError::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

impl ControlServer {
    /// Listens at `path`; who comes waits until [`Server::begin`]. Its events carry `first_token` and the tokens after
    /// it; a socket that a dead supervisor left there is replaced.
    pub(crate) fn open(path: &Path, first_token: u64) -> Result<Self, OpenError> {
        let failed = |source| {
            let obstacle = socket_file::obstacle(path, &source).unwrap_or_else(|| source.to_string());
            OpenError::Io { path: path.display().to_string(), obstacle, source }
        };
        socket::remove_stale(path).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => OpenError::InUse(path.display().to_string()),
            _ => failed(error),
        })?;
        let listener = bind(path).map_err(failed)?;
        let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(ControlServer::at(listener, SocketFile { path: path.to_owned(), inode }, first_token))
    }

    fn at(listener: UnixListener, file: SocketFile, first_token: u64) -> Self {
        ControlServer {
            listener,
            file,
            clients: BTreeMap::new(),
            next: first_token + 1,
            first_token,
            watched: false,
            reserve: reserve(),
            next_try: None,
        }
    }

    /// Accepts clients from now on.
    pub(crate) fn begin(&mut self, poller: &Poller) {
        self.watch(true, poller);
    }

    fn watch(&mut self, on: bool, poller: &Poller) {
        let listener = self.listener.as_fd();
        let done = match (self.watched, on) {
            (false, true) => poller.add(listener, Interest::Read, self.first_token),
            (true, false) => poller.remove(listener),
            _ => Ok(()),
        };
        if done.is_ok() {
            self.watched = on;
            self.next_try = None;
        }
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    /// Whether who connects to its path finds it: somebody may have removed or replaced the file.
    pub(crate) fn is_reachable(&self) -> bool {
        std::fs::symlink_metadata(&self.file.path).is_ok_and(|file| file.ino() == self.file.inode)
    }

    /// Handles an event. A request is for the caller to answer, now or later.
    pub(crate) fn handle(&mut self, token: u64, poller: &Poller) -> Option<(ClientId, Request)> {
        if token == self.first_token {
            self.accept(poller);
            return None;
        }
        let id = token;
        let client = self.clients.get_mut(&id)?;
        let result = if client.asked { client.write().map(|()| None) } else { client.read() };
        match result {
            Ok(None) => None,
            Ok(Some(request)) => {
                // Not watched while its answer is being made: it may have shut down its side, which is no fault.
                let _ = poller.remove(client.stream.as_fd());
                if request == Request::Status || !is_served_here(&client.stream) {
                    return Some((id, request));
                }
                let why = "a connection process may ask for the status, and for nothing else";
                self.answer(id, &Answer::Refused(why.to_owned()), poller);
                None
            }
            Err(Gone) => {
                self.drop_client(id, poller);
                None
            }
        }
    }

    /// The user of a client.
    pub(crate) fn user_of(&self, id: ClientId) -> Option<u32> {
        let peer = self.clients.get(&id).map(|client| socket::peer_credentials(client.stream.as_fd()));
        peer.and_then(Result::ok).map(|peer| peer.uid)
    }

    /// Answers a client, who may have gone.
    pub(crate) fn answer(&mut self, id: ClientId, answer: &Answer, poller: &Poller) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.answer = serde_json::to_vec(answer).unwrap_or_default();
        client.answer.push(b'\n');
        let unfinished =
            client.write().is_ok() && poller.add(client.stream.as_fd(), Interest::Write, id).is_ok();
        if !unfinished {
            self.drop_client(id, poller);
        }
    }

    /// As it is saved; `waiting` wait for an answer, and of the others those are kept of whose request nothing was read.
    pub(crate) fn save<'a>(
        &'a self,
        waiting: &[ClientId],
        mut keep: impl FnMut(BorrowedFd<'a>) -> FdNumber,
    ) -> SavedServer {
        let is_new = |client: &&Session| !client.asked && client.request.is_empty();
        let newcomers = self.clients.values().filter(is_new);
        let waiting = waiting.iter().filter_map(|id| self.clients.get(id));
        SavedServer {
            listener: keep(self.listener.as_fd()),
            file: self.file.clone(),
            waiting: waiting.map(|client| keep(client.stream.as_fd())).collect(),
            newcomers: newcomers.map(|client| keep(client.stream.as_fd())).collect(),
        }
    }

    /// The server that another program left in this process, in force, and who waits for an answer.
    pub(crate) fn resume(
        saved: SavedServer,
        first_token: u64,
        poller: &Poller,
    ) -> io::Result<(Self, Vec<ClientId>)> {
        let SavedServer { listener, file, waiting, newcomers } = saved;
        let mut server = ControlServer::at(UnixListener::from(listener.take()?), file, first_token);
        server.begin(poller);
        let waiting: io::Result<Vec<_>> =
            waiting.into_iter().map(|client| Ok(server.resume_client(client.take()?))).collect();
        let waiting = waiting?;
        for newcomer in newcomers {
            server.resume_newcomer(newcomer.take()?, poller);
        }
        Ok((server, waiting))
    }

    /// A client that waits for an answer.
    fn resume_client(&mut self, socket: OwnedFd) -> ClientId {
        let id = self.next;
        self.next += 1;
        let stream = UnixStream::from(socket);
        self.clients.insert(id, Session { stream, request: Vec::new(), asked: true, answer: Vec::new() });
        id
    }

    /// A client that has not asked yet.
    fn resume_newcomer(&mut self, socket: OwnedFd, poller: &Poller) {
        let id = self.resume_client(socket);
        if let Some(client) = self.clients.get_mut(&id) {
            client.asked = false;
            if poller.add(client.stream.as_fd(), Interest::Read, id).is_err() {
                self.clients.remove(&id);
            }
        }
    }

    fn accept(&mut self, poller: &Poller) {
        if self.clients.len() >= CLIENTS {
            self.make_room(poller);
        }
        while self.clients.len() < CLIENTS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.turn_away(poller),
            };
            // The mode of the socket file has said so already, unless somebody changed it.
            let allowed = socket::peer_credentials(stream.as_fd())
                .is_ok_and(|peer| peer.uid == 0 || process::is_user(peer.uid));
            let id = self.next;
            self.next += 1;
            let watched = allowed
                && stream.set_nonblocking(true).is_ok()
                && poller.add(stream.as_fd(), Interest::Read, id).is_ok();
            if watched {
                let client = Session { stream, request: Vec::new(), asked: false, answer: Vec::new() };
                self.clients.insert(id, client);
            }
        }
    }

    /// Too many at once: the one that has waited longest to ask anything makes room; if all have asked, the next waits.
    fn make_room(&mut self, poller: &Poller) {
        match self.clients.iter().find(|(_, client)| !client.asked).map(|(id, _)| *id) {
            Some(id) => self.drop_client(id, poller),
            None => self.watch(false, poller),
        }
    }

    /// There is no descriptor for the client at the head of the queue: accepts it with the reserve, and closes it.
    fn turn_away(&mut self, poller: &Poller) {
        let had_reserve = self.reserve.take().is_some();
        let turned_away = had_reserve && self.listener.accept().is_ok();
        self.reserve = reserve();
        if !turned_away {
            // Not even that: until a client goes, and with it a descriptor, or somebody else lets go of one.
            self.watch(false, poller);
            self.next_try = Some(Monotonic::now() + RETRY);
        }
    }

    /// When to look again whether there is a descriptor.
    pub(crate) fn next_try(&self) -> Option<Monotonic> {
        self.next_try
    }

    /// Looks, if it is time.
    pub(crate) fn tend(&mut self, now: Monotonic, poller: &Poller) {
        if self.next_try.is_some_and(|at| at <= now) {
            self.next_try = Some(now + RETRY);
            self.watch(true, poller);
        }
    }

    fn drop_client(&mut self, id: ClientId, poller: &Poller) {
        if let Some(client) = self.clients.remove(&id) {
            let _ = poller.remove(client.stream.as_fd());
            self.watch(true, poller);
        }
    }

    /// Takes the socket out of the file system, before this is dropped and if it is still ours.
    pub(crate) fn close(&mut self, poller: &Poller) {
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.drop_client(id, poller);
        }
        self.watch(false, poller);
        if self.is_reachable() {
            let _ = std::fs::remove_file(&self.file.path);
        }
    }
}

fn reserve() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let socket = socket::bind_unix(path, 0o600)?;
    socket::start_listening(socket.as_fd(), BACKLOG)?;
    Ok(socket.into())
}

/// The client has gone, or has its answer, or talks nonsense.
#[derive(Debug)]
pub(crate) struct Gone;

/// The request in the bytes so far, or `None` as long as its line has no end. What follows the line is nothing to us, no
/// matter whether it comes with the line or after it.
pub(crate) fn understand(bytes: &[u8]) -> Result<Option<Request>, Gone> {
    let seen = bytes.get(..LONGEST_REQUEST).unwrap_or(bytes);
    match seen.iter().position(|byte| *byte == b'\n') {
        Some(end) => serde_json::from_slice(&seen[..end]).map(Some).map_err(|_| Gone),
        None if bytes.len() > LONGEST_REQUEST => Err(Gone),
        None => Ok(None),
    }
}

impl Session {
    fn read(&mut self) -> Result<Option<Request>, Gone> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Gone),
                Ok(length) => self.request.extend(buffer.iter().take(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Err(Gone),
            }
            if self.asked {
                return Err(Gone);
            }
            if let Some(request) = understand(&self.request)? {
                self.asked = true;
                return Ok(Some(request));
            }
        }
    }

    /// Err when all is written, too: there is nothing more to do for this client.
    fn write(&mut self) -> Result<(), Gone> {
        while !self.answer.is_empty() {
            match self.stream.write(&self.answer) {
                Ok(0) => return Err(Gone),
                Ok(length) => {
                    self.answer.drain(..length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
        Err(Gone)
    }
}
/// Whether the client is a process that this one serves connections by, or was started by such a process. It may have this
/// process's user, and with it the right to connect.
fn is_served_here(stream: &UnixStream) -> bool {
    match socket::peer_credentials(stream.as_fd()) {
        // Who is not of this user is root, and not one of this process's: that would have root as its user then.
        Ok(peer) if !process::is_user(peer.uid) => false,
        // Outside this process's namespace, which is above it.
        Ok(peer) if peer.pid == 0 => false,
        // One that is gone already may have been any. Where that could only be a process of root's, it has had other ways.
        Ok(peer) => process::is_descendant(peer.pid).unwrap_or(!process::is_user(0)),
        Err(_) => true,
    }
}
