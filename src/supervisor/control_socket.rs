//! The control socket in force, and what follows from what clients ask for.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use super::bans::WantedBan;
use super::event_source::EventSource;
use super::pause::AtRest;
use super::{Fatal, Supervisor};
use crate::config::ControlAccess;
use crate::control::interface::{self, ServiceInfo};
use crate::control::server::{ClientId, ControlServer, OpenError, SavedServer};
use crate::control::{Answer, ControlError, Request, Right};
use crate::journal::Level;
use crate::sys::epoll::Poller;
use crate::sys::fd::FdNumber;
use crate::sys::time::Monotonic;

/// The server in force, and how many there have been: their clients' names must differ, since an answer must not reach a
/// client of another one.
#[derive(Debug, Default)]
pub(super) struct ControlSocket {
    server: Option<ControlServer>,
    opened: u64,
}

/// So many clients may come to one server.
const CLIENTS_BITS: u32 = 40;

impl ControlSocket {
    /// Makes another one, which is not in force yet.
    fn open(&mut self, path: &Path, access: &ControlAccess) -> Result<ControlServer, OpenError> {
        let first = self.first_client();
        ControlServer::open(path, access, first)
    }

    fn first_client(&mut self) -> ClientId {
        self.opened += 1;
        EventSource::Control(self.opened << CLIENTS_BITS).into()
    }

    /// Whether there is one at this path, and clients find it there.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.server.as_ref().is_some_and(|server| server.path() == path && server.is_reachable())
    }

    /// Another one comes into force.
    pub(super) fn replace(&mut self, mut new: ControlServer, poller: &Poller) {
        new.begin(poller);
        if let Some(mut old) = self.server.replace(new) {
            old.close(poller);
        }
    }

    /// Others may use it from now on. Who may not is told so, whatever becomes of the file.
    pub(super) fn set_access(&mut self, access: &ControlAccess) -> io::Result<()> {
        self.server.as_mut().map_or(Ok(()), |server| server.set_access(access))
    }

    pub(super) fn answer(&mut self, client: ClientId, answer: &Answer, poller: &Poller) {
        if let Some(server) = &mut self.server {
            server.answer(client, answer, poller);
        }
    }

    /// The user of a client that has asked for something.
    fn user_of(&self, client: ClientId) -> Option<u32> {
        self.server.as_ref().and_then(|server| server.user_of(client)).map(|(uid, _)| uid)
    }

    /// The same, if he is neither root nor the user of this process.
    fn delegate(&self, client: ClientId) -> Option<u32> {
        let user = self.server.as_ref().and_then(|server| server.user_of(client));
        user.filter(|(_, is_master)| !is_master).map(|(uid, _)| uid)
    }

    fn handle(&mut self, token: u64, poller: &Poller) -> Option<(ClientId, Request)> {
        self.server.as_mut()?.handle(token, poller)
    }

    pub(super) fn tend(&mut self, now: Monotonic, poller: &Poller) {
        if let Some(server) = &mut self.server {
            server.tend(now, poller);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.server.as_ref().and_then(ControlServer::next_deadline)
    }

    pub(super) fn close(&mut self, poller: &Poller) {
        if let Some(server) = &mut self.server {
            server.close(poller);
        }
    }

    /// As it is saved; `clients` wait for an answer.
    pub(super) fn save<'a>(
        &'a self,
        clients: &[ClientId],
        keep: impl FnMut(BorrowedFd<'a>) -> FdNumber,
    ) -> Option<SavedServer> {
        self.server.as_ref().map(|server| server.save(clients, keep))
    }

    /// The one that another program has saved, and the clients that wait for an answer.
    pub(super) fn resume(
        saved: Option<SavedServer>,
        access: &ControlAccess,
        poller: &Poller,
    ) -> io::Result<(Self, Vec<ClientId>)> {
        let mut control = ControlSocket::default();
        let Some(saved) = saved else { return Ok((control, Vec::new())) };
        let (server, clients) = ControlServer::resume(saved, access, control.first_client(), poller)?;
        control.server = Some(server);
        Ok((control, clients))
    }
}

impl Supervisor {
    /// Another control socket, which is not in force yet. There is none where nobody asked for one by name and nothing can be
    /// written, as in a container whose root is read-only.
    pub(super) fn open_control(
        &mut self,
        path: &Path,
        access: &ControlAccess,
    ) -> Result<Option<ControlServer>, Fatal> {
        match self.state.control.open(path, access) {
            Ok(server) => Ok(Some(server)),
            Err(error) if error.is_read_only() && path == self.invocation.title.control_path() => {
                self.log.warning(None, format_args!("{error}; serving without, so that no command can ask"));
                Ok(None)
            }
            Err(error) => Err(Fatal { code: error.exit_code(), text: error.to_string() }),
        }
    }

    /// Something has happened at the control socket.
    pub(super) fn serve_control(&mut self, token: u64) {
        let Some((client, request)) = self.state.control.handle(token, &self.poller) else { return };
        let user = self.state.control.user_of(client);
        if let Some(uid) = self.state.control.delegate(client).filter(|_| request.needs() == Some(Right::Act))
        {
            // Root and the user of this process could have done it in other ways; of others an account is kept.
            self.log.event(Level::Notice, None, None, format_args!("uid {uid} asks: {}", request.name()));
        }
        let answer = match request {
            Request::Reload => return self.reload(vec![client]),
            Request::Upgrade => return self.upgrade(vec![client]),
            Request::Pause { service } => return self.pause(service, client, AtRest::Accepting),
            Request::Drain { service } => return self.pause(service, client, AtRest::Connections),
            Request::Info => Answer::Info(ServiceInfo::of(self.invocation.title)),
            Request::Description { interface } => match interface::description(&interface) {
                Some(text) => Answer::Description(text.to_owned()),
                None => Answer::Failed(ControlError::InterfaceNotFound { interface }),
            },
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Connections { service, source } => self.connections(service.as_deref(), source),
            Request::Bans { service } => self.list_bans(service.as_deref()),
            Request::Ban { source, service, for_ms, kill } => {
                let lasts = for_ms.map(Duration::from_millis);
                self.ban(WantedBan { source, service, lasts, kill }, user)
            }
            Request::Unban { source, service } => self.unban(source, service.as_deref(), user),
            Request::Kill { ids } => self.kill(&ids, user),
            Request::Lameduck { service } => self.make_lameduck(&service),
            Request::Resume { service } => self.resume_services(service.as_deref()),
        };
        self.answer([client], &answer);
    }

    /// Tells all these clients the same.
    pub(super) fn answer(&mut self, clients: impl IntoIterator<Item = ClientId>, answer: &Answer) {
        for client in clients {
            self.state.control.answer(client, answer, &self.poller);
        }
    }
}
