//! `preforkd connections` and `preforkd kill`.

use std::rc::Rc;

use super::Supervisor;
use super::service::{Service, ServiceState};
use super::state::State;
use super::wording::by;
use super::workers::WorkerProcess;
use crate::admission::SourceName;
use crate::client::{Client, ConnectionId};
use crate::control::{Answer, ConnectionStatus, ControlError};
use crate::ipc::orders::Order;
use crate::journal::{Level, MessageId, Remote};
use crate::scoreboard::{Owner, Row};
use crate::sys::time::Monotonic;

impl Supervisor {
    /// The connections that live, of one service or all, of the clients that are meant by `source` or all.
    pub(super) fn connections(&self, service: Option<&str>, source: Option<SourceName>) -> Answer {
        if let Some(answer) = self.unknown_service(service) {
            return answer;
        }
        let now = Monotonic::now();
        let mut found = Vec::new();
        let is_meant = |state: &Rc<ServiceState>| service.is_none_or(|wanted| wanted == state.name);
        for service_state in self.state.services.alive().filter(is_meant) {
            for (id, client, row) in self.state.connections_of(&service_state) {
                let its_source = SourceName::of_client(client.peer);
                if source.is_none_or(|wanted| !client.is_listener() && its_source.overlaps(&wanted)) {
                    found.push(ConnectionStatus {
                        id,
                        service: service_state.name.clone(),
                        source: its_source,
                        client: self.state.caller(&service_state.name, &client),
                        is_direct: client.is_direct(),
                        pid: row.pid,
                        age_ms: u64::try_from((now - client.accepted).as_millis()).unwrap_or(u64::MAX),
                        is_ending: row.overdue.is_some(),
                    });
                }
            }
        }
        Answer::Connections(found)
    }

    /// Refuses a request that is about a service that there is not.
    pub(super) fn unknown_service(&self, service: Option<&str>) -> Option<Answer> {
        let (generation, name) = (&self.state.generation, service?);
        let is_known = generation.service(name).is_some()
            || generation.down().contains_key(name)
            || self.state.services.alive().any(|state| state.name == name);
        if is_known {
            return None;
        }
        let services = generation.services().map(|service| service.name().to_owned()).collect();
        Some(Answer::Failed(ControlError::NoSuchService { service: name.to_owned(), services }))
    }

    /// Ends these connections, as `user` has asked: TERM to the process group, KILL a little later.
    pub(super) fn kill(&mut self, ids: &[ConnectionId], user: Option<u32>) -> Answer {
        let by = by(user);
        let (mut told, mut unknown, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for id in ids {
            let Some((service, client)) = self.state.end_by_hand(*id) else {
                unknown.push(format!("there is no connection {id} (any more)"));
                missing.push(*id);
                continue;
            };
            let remote = Remote::from(&client);
            let what = format!("connection {id} from {remote} is told to end");
            self.log.event(
                Level::Notice,
                Some(MessageId::ConnectionKilled),
                Some(&service),
                format_args!("{what}, by {by}"),
            );
            told.push(format!("{service}: {what}"));
        }
        match unknown.is_empty() {
            true => Answer::Done(told.join("\n")),
            false => {
                let reason = [told, unknown].concat().join("\n");
                Answer::Failed(ControlError::NoSuchConnection { ids: missing, reason })
            }
        }
    }
}

impl State {
    /// A client as the log has it; for a program that has a listener, where that is.
    fn caller(&self, service: &str, client: &Client) -> String {
        let remote = Remote::from(client);
        if !client.is_listener() {
            return remote.to_string();
        }
        let listeners = self.generation.service(service).map_or(&[][..], Service::listeners);
        match listeners.iter().find(|listener| listener.has_cookie(client.listener)) {
            Some(listener) => format!("{remote} at {}", listener.name()),
            None => remote.to_string(),
        }
    }

    /// The connections of a service, as its rows show them.
    fn connections_of(&self, service: &ServiceState) -> Vec<(ConnectionId, Client, Row)> {
        let run = self.workers.settings().run;
        let workers = self.workers.of_service(&service.name).map(WorkerProcess::serial);
        let owners =
            workers.map(|serial| (Owner::worker(serial), Some(serial))).chain([(Owner::SUPERVISOR, None)]);
        let mut found = Vec::new();
        for (owner, serial) in owners {
            for row in service.scoreboard.held_by(owner) {
                let Some(connection) = row.connection else { continue };
                let number = connection.number;
                let id = match serial {
                    Some(worker) => Some(ConnectionId { run, worker, number }),
                    None => row.pid.and_then(|pid| self.adopted.id_of(pid, number)),
                };
                found.extend(id.map(|id| (id, connection.client, row)));
            }
        }
        found.sort_by_key(|(_, client, _)| client.accepted);
        found
    }

    /// Tells a connection to end; of which service and client it is, or `None` if there is none of this name.
    fn end_by_hand(&mut self, wanted: ConnectionId) -> Option<(String, Client)> {
        let find = |state: &Rc<ServiceState>| {
            let found = self.connections_of(state).into_iter().find(|(id, ..)| *id == wanted);
            found.map(|(_, client, _)| (state.name.clone(), client))
        };
        let found = self.services.alive().find_map(|state| find(&state))?;
        match self.workers.get(wanted.worker) {
            Some(worker) => worker.order(&Order::Kill { number: wanted.number }),
            None => {
                self.adopted.end_by_hand(wanted);
            }
        }
        Some(found)
    }
}
