//! The supervisor's side: never blocks, reads a bounded request, writes an answer when there is one.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::{Answer, LONGEST_REQUEST, Request};
use crate::exit;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::socket;

/// More clients than this wait in the queue.
const CLIENTS: usize = 32;

/// Names a client between its request and its answer.
pub(crate) type ClientId = u64;

/// The control socket and who is connected to it.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
    first_token: u64,
}

#[derive(Debug)]
struct Client {
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
        "cannot make the control socket {path}: {source}; choose another path by control_socket or --control"
    )]
    Io {
        /// The socket.
        path: String,
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
}

impl Server {
    /// Listens at `path`. Its events carry `first_token` and the tokens after it; a socket that a dead supervisor left
    /// there is replaced.
    pub(crate) fn open(path: &Path, first_token: u64, poller: &Poller) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: path.display().to_string(), source };
        if UnixStream::connect(path).is_ok() {
            return Err(OpenError::InUse(path.display().to_string()));
        }
        let listener = bind(path).map_err(failed)?;
        let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
        poller.add(listener.as_fd(), Interest::Read, first_token).map_err(failed)?;
        Ok(Server { listener, path: path.to_owned(), inode, clients: BTreeMap::new(), next: 1, first_token })
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Handles an event. A request is for the caller to answer, now or later.
    pub(crate) fn handle(&mut self, token: u64, poller: &Poller) -> Option<(ClientId, Request)> {
        let id = token.checked_sub(self.first_token)?;
        if id == 0 {
            self.accept(poller);
            return None;
        }
        let client = self.clients.get_mut(&id)?;
        let result = if client.asked { client.write().map(|()| None) } else { client.read() };
        match result {
            Ok(None) => None,
            Ok(Some(request)) => {
                // Not watched while its answer is being made: it may have shut down its side, which is no fault.
                let _ = poller.remove(client.stream.as_fd());
                Some((id, request))
            }
            Err(Gone) => {
                self.drop_client(id, poller);
                None
            }
        }
    }

    /// Answers a client, who may have gone.
    pub(crate) fn answer(&mut self, id: ClientId, answer: &Answer, poller: &Poller) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.answer = serde_json::to_vec(answer).unwrap_or_default();
        client.answer.push(b'\n');
        let unfinished = client.write().is_ok()
            && poller.add(client.stream.as_fd(), Interest::Write, self.first_token + id).is_ok();
        if !unfinished {
            self.drop_client(id, poller);
        }
    }

    /// The socket, its path and inode, and the descriptors of `clients`, for a program that goes on from here.
    pub(crate) fn parts(&self, clients: &[ClientId]) -> (BorrowedFd<'_>, &Path, u64, Vec<BorrowedFd<'_>>) {
        let streams =
            clients.iter().filter_map(|id| self.clients.get(id)).map(|client| client.stream.as_fd());
        (self.listener.as_fd(), &self.path, self.inode, streams.collect())
    }

    /// The server that another program left in this process.
    pub(crate) fn resume(
        socket: OwnedFd,
        path: PathBuf,
        inode: u64,
        first_token: u64,
        poller: &Poller,
    ) -> io::Result<Self> {
        let listener = UnixListener::from(socket);
        poller.add(listener.as_fd(), Interest::Read, first_token)?;
        Ok(Server { listener, path, inode, clients: BTreeMap::new(), next: 1, first_token })
    }

    /// A client that waits for an answer.
    pub(crate) fn resume_client(&mut self, socket: OwnedFd) -> ClientId {
        let id = self.next;
        self.next += 1;
        let stream = UnixStream::from(socket);
        self.clients.insert(id, Client { stream, request: Vec::new(), asked: true, answer: Vec::new() });
        id
    }

    fn accept(&mut self, poller: &Poller) {
        while self.clients.len() < CLIENTS {
            let Ok((stream, _)) = self.listener.accept() else { return };
            // The mode of the socket file has said so already, unless somebody changed it.
            let allowed = socket::peer_credentials(stream.as_fd())
                .is_ok_and(|peer| peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw());
            let id = self.next;
            self.next += 1;
            let watched = allowed
                && stream.set_nonblocking(true).is_ok()
                && poller.add(stream.as_fd(), Interest::Read, self.first_token + id).is_ok();
            if watched {
                let client = Client { stream, request: Vec::new(), asked: false, answer: Vec::new() };
                self.clients.insert(id, client);
            }
        }
        // Too many at once: the one that has waited longest to ask anything makes room.
        if let Some(id) = self.clients.iter().find(|(_, client)| !client.asked).map(|(id, _)| *id) {
            self.drop_client(id, poller);
        }
    }

    fn drop_client(&mut self, id: ClientId, poller: &Poller) {
        if let Some(client) = self.clients.remove(&id) {
            let _ = poller.remove(client.stream.as_fd());
        }
    }

    /// Takes the socket out of the file system, before this is dropped and if it is still ours.
    pub(crate) fn close(&mut self, poller: &Poller) {
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.drop_client(id, poller);
        }
        let _ = poller.remove(self.listener.as_fd());
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Who connects between these two lines is asked for its user all the same.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The client has gone, or has its answer, or talks nonsense.
#[derive(Debug)]
struct Gone;

impl Client {
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
            if self.asked || self.request.len() > LONGEST_REQUEST {
                return Err(Gone);
            }
            if let Some(line) = self.request.strip_suffix(b"\n") {
                self.asked = true;
                return serde_json::from_slice(line).map(Some).map_err(|_| Gone);
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
