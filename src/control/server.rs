//! The supervisor's side: never blocks, reads bounded calls, replies when there is an answer.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::Call;
use super::session::{Gone, SavedSession, Session};
use super::socket::{self, SocketFile};
use super::{Answer, Request};
use crate::config::ControlAccess;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::exposed::ExposedSocket;
use crate::sys::fd::FdNumber;
use crate::sys::socket::{accept, is_queue_empty};
use crate::sys::time::Monotonic;

pub(crate) use super::socket::OpenError;

/// More clients than this wait in the queue, if they are root's or of the supervisor's own user.
const CLIENTS: usize = 32;

/// So many others, of all users and of each, have a connection.
const GUESTS: usize = 32;
const GUESTS_OF_USER: usize = 8;

/// So many are accepted before others have their turn.
const ACCEPTED_AT_ONCE: usize = 32;

/// How often it is tried to accept without a descriptor to accept with.
const RETRY: Duration = Duration::from_secs(1);

/// Names a client between its request and its answer.
pub(crate) type ClientId = u64;

/// The control socket and who is connected to it.
#[derive(Debug)]
pub(crate) struct ControlServer {
    listener: ExposedSocket,
    file: SocketFile,
    access: ControlAccess,
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

/// A server as it is saved, for a program that goes on from here.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedServer {
    listener: FdNumber,
    file: SocketFile,
    /// Who waits for an answer.
    waiting: Vec<SavedSession>,
    /// Who has connected and waits for nothing.
    others: Vec<SavedSession>,
}

impl ControlServer {
    /// Listens at `path`; who comes waits until [`ControlServer::begin`]. Its events carry `first_token` and the tokens
    /// after it; a socket that a dead supervisor left there is replaced.
    pub(crate) fn open(path: &Path, access: &ControlAccess, first_token: u64) -> Result<Self, OpenError> {
        let (listener, file) = socket::open(path, access)?;
        Ok(ControlServer::at(listener, file, access, first_token))
    }

    fn at(listener: OwnedFd, file: SocketFile, access: &ControlAccess, first_token: u64) -> Self {
        ControlServer {
            listener: listener.into(),
            file,
            access: access.clone(),
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
        self.file.path()
    }

    /// Whether who connects to its path finds it.
    pub(crate) fn is_reachable(&self) -> bool {
        self.file.is_there()
    }

    /// Others may use it from now on, also of those who have connected.
    pub(crate) fn set_access(&mut self, access: &ControlAccess) -> io::Result<()> {
        if self.access == *access {
            return Ok(());
        }
        self.access = access.clone();
        self.file.let_in(access)
    }

    /// Handles an event. A request is for the caller to answer, now or later; who asks may ask it.
    pub(crate) fn handle(&mut self, token: u64, poller: &Poller) -> Option<(ClientId, Request)> {
        if token == self.first_token {
            self.accept(poller);
            return None;
        }
        let id = token;
        let client = self.clients.get_mut(&id)?;
        let called = match client.advance() {
            Ok(None) => None,
            Ok(Some(Call { request, .. })) => {
                let allowed =
                    request.and_then(|request| client.may(&request, &self.access).map(|()| request));
                match allowed {
                    Ok(request) => Some(request),
                    Err(failure) => {
                        self.answer(id, &Answer::Failed(failure), poller);
                        return None;
                    }
                }
            }
            Err(Gone) => {
                self.drop_client(id, poller);
                return None;
            }
        };
        if client.watch(id, poller).is_err() {
            self.drop_client(id, poller);
            return None;
        }
        // There may be room now.
        self.watch(true, poller);
        called.map(|request| (id, request))
    }

    /// The user of a client, and whether that is root or the user of this process.
    pub(crate) fn user_of(&self, id: ClientId) -> Option<(u32, bool)> {
        self.clients.get(&id).and_then(|client| Some((client.peer.uid?, client.peer.is_master)))
    }

    /// Answers a client, who may have gone.
    pub(crate) fn answer(&mut self, id: ClientId, answer: &Answer, poller: &Poller) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.reply(answer).is_err() || client.watch(id, poller).is_err() {
            self.drop_client(id, poller);
        } else {
            self.watch(true, poller);
        }
    }

    /// As it is saved; `waiting` wait for an answer. Of the others those are kept to whom nothing is being written.
    pub(crate) fn save<'a>(
        &'a self,
        waiting: &[ClientId],
        mut keep: impl FnMut(BorrowedFd<'a>) -> FdNumber,
    ) -> SavedServer {
        let others = self.clients.values().filter(|client| !client.has_called());
        let waiting = waiting.iter().filter_map(|id| self.clients.get(id));
        SavedServer {
            listener: keep(self.listener.as_fd()),
            file: self.file.clone(),
            waiting: waiting.filter_map(|client| client.save(&mut keep)).collect(),
            others: others.filter_map(|client| client.save(&mut keep)).collect(),
        }
    }

    /// The server that another program left in this process, in force, and who waits for an answer.
    pub(crate) fn resume(
        saved: SavedServer,
        access: &ControlAccess,
        first_token: u64,
        poller: &Poller,
    ) -> io::Result<(Self, Vec<ClientId>)> {
        let SavedServer { listener, file, waiting, others } = saved;
        let listener = listener.take()?;
        let mut server = ControlServer::at(listener, file, access, first_token);
        server.begin(poller);
        let waiting: io::Result<Vec<_>> =
            waiting.into_iter().map(|client| Ok(server.add(Session::resume(client)?, poller))).collect();
        for client in others {
            server.add(Session::resume(client)?, poller);
        }
        Ok((server, waiting?))
    }

    fn add(&mut self, mut client: Session, poller: &Poller) -> ClientId {
        let id = self.next;
        self.next += 1;
        if client.watch(id, poller).is_ok() {
            self.clients.insert(id, client);
        }
        id
    }

    fn accept(&mut self, poller: &Poller) {
        for _ in 0..ACCEPTED_AT_ONCE {
            // Else room would be made for nobody.
            if is_queue_empty(self.listener.as_fd()) {
                return;
            }
            if self.count(|client| client.peer.is_master) >= CLIENTS
                && !self.make_room(|client| client.peer.is_master, poller)
            {
                return self.watch(false, poller);
            }
            let client = match accept(self.listener.as_fd()) {
                Ok((stream, _)) => Session::new(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.turn_away(poller),
            };
            if client.peer.is_master || self.has_room_for_guest(client.peer.uid, poller) {
                self.add(client, poller);
            }
        }
    }

    fn count(&self, is_meant: impl Fn(&Session) -> bool) -> usize {
        self.clients.values().filter(|client| is_meant(client)).count()
    }

    /// Whether this user may have one connection more, as none of those is that root needs.
    fn has_room_for_guest(&mut self, uid: Option<u32>, poller: &Poller) -> bool {
        let is_guest = |client: &Session| !client.peer.is_master;
        let is_his = |client: &Session| is_guest(client) && client.peer.uid == uid;
        let has_his = self.count(is_his) < GUESTS_OF_USER || self.make_room(is_his, poller);
        has_his && (self.count(is_guest) < GUESTS || self.make_room(is_guest, poller))
    }

    /// The one of these makes room that has waited longest to call anything. False if all have called.
    fn make_room(&mut self, is_meant: impl Fn(&Session) -> bool, poller: &Poller) -> bool {
        let idle = |(id, client): (&ClientId, &Session)| Some((client.idle_since()?, *id));
        let longest = self.clients.iter().filter(|(_, client)| is_meant(client)).filter_map(idle).min();
        if let Some((_, id)) = longest {
            self.drop_client(id, poller);
        }
        longest.is_some()
    }

    /// There is no descriptor for the client at the head of the queue: accepts it with the reserve, and closes it.
    fn turn_away(&mut self, poller: &Poller) {
        let had_reserve = self.reserve.take().is_some();
        let turned_away =
            had_reserve && accept(self.listener.as_fd()).map(|(stream, _)| Session::new(stream)).is_ok();
        self.reserve = reserve();
        if !turned_away {
            // Not even that: until a client goes, and with it a descriptor, or somebody else lets go of one.
            self.watch(false, poller);
            self.next_try = Some(Monotonic::now() + RETRY);
        }
    }

    /// When to look again whether there is a descriptor, or whether somebody takes his reply.
    pub(crate) fn next_deadline(&self) -> Option<Monotonic> {
        self.clients.values().filter_map(Session::deadline).chain(self.next_try).min()
    }

    /// Looks, if it is time.
    pub(crate) fn tend(&mut self, now: Monotonic, poller: &Poller) {
        let is_late = |client: &Session| client.deadline().is_some_and(|deadline| deadline <= now);
        let late: Vec<_> =
            self.clients.iter().filter(|(_, client)| is_late(client)).map(|(id, _)| *id).collect();
        for id in late {
            self.drop_client(id, poller);
        }
        if self.next_try.is_some_and(|at| at <= now) {
            self.next_try = Some(now + RETRY);
            self.watch(true, poller);
        }
    }

    fn drop_client(&mut self, id: ClientId, poller: &Poller) {
        if let Some(mut client) = self.clients.remove(&id) {
            client.forget(poller);
            self.watch(true, poller);
        }
    }

    /// Takes the socket out of the file system, before this is dropped and if it is still ours.
    pub(crate) fn close(&mut self, poller: &Poller) {
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.drop_client(id, poller);
        }
        self.watch(false, poller);
        self.file.remove();
    }
}

fn reserve() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}
