//! The live connections of a worker, by pid.

use std::collections::HashMap;

use super::output::Output;
use crate::connection::Failure;
use crate::shared::{Caller, Slot};
use crate::sys::wait::Pid;

/// What a worker keeps of a connection that has its process.
#[derive(Debug)]
pub(super) struct Connection {
    /// Gives itself back when this is dropped.
    #[allow(dead_code, reason = "held for its drop")]
    pub(super) slot: Slot,
    pub(super) caller: Caller,
    pub(super) output: Option<Output>,
    /// Why the process could not begin, as it said itself.
    pub(super) failure: Option<Failure>,
}

/// The ledger: exactly the children of this worker that have not been reaped.
#[derive(Debug)]
pub(super) struct Live(HashMap<Pid, Connection>);

/// Room that is made at the start, so that the path of a connection does not allocate in ordinary times.
const ROOM: u32 = 4096;

impl Live {
    pub(super) fn with_room_for(connections: u32) -> Self {
        Live(HashMap::with_capacity(connections.min(ROOM) as usize))
    }

    pub(super) fn insert(&mut self, pid: Pid, connection: Connection) {
        self.0.insert(pid, connection);
    }

    pub(super) fn remove(&mut self, pid: Pid) -> Option<Connection> {
        self.0.remove(&pid)
    }

    /// Notes what a process said about itself.
    pub(super) fn fail(&mut self, pid: Pid, failure: Failure) {
        if let Some(connection) = self.0.get_mut(&pid) {
            connection.failure = Some(failure);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.0.keys().copied()
    }
}
