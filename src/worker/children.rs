//! The living children of a worker, by pid.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use hashbrown::HashMap;

use super::greeting::ProxyHeader;
use super::output::Output;
use crate::admission::{ActivityWatch, Deadline};
use crate::client::{Client, Traffic, process_of};
use crate::ipc::reports::{ChildReport, Failure};
use crate::scoreboard::Slot;
use crate::sys::dontfork::DontForkAlloc;
use crate::sys::tcp_info::TcpInfo;
use crate::sys::wait::Pid;

/// What a worker keeps of a connection that has its process, or of a spare.
#[derive(Debug)]
pub(super) struct Child {
    /// Gives itself back when this is dropped.
    pub(super) slot: Slot,
    /// Of a spare, only the number that its connection will have.
    pub(super) client: Client,
    /// Made ahead, and nobody has called it yet.
    pub(super) waits: bool,
    /// Serves one connection after the other.
    pub(super) several: bool,
    pub(super) output: Option<Output>,
    /// The connection of a program, which does not count what it moves.
    pub(super) kept: Option<OwnedFd>,
    /// What a proxy has told.
    pub(super) header: Option<ProxyHeader>,
    /// Who has called a process that serves several, before the end of the last was reported.
    pub(super) to_come: VecDeque<Client>,
    /// Why the process could not begin, as it said itself.
    pub(super) failure: Option<Failure>,
    /// What its handler said that it has moved.
    pub(super) traffic: Option<Traffic>,
    /// The deadline that it said was behind it.
    pub(super) said_timeout: Option<Deadline>,
    /// What is known of the connection that was kept, if it has deadlines.
    pub(super) watch: Option<ActivityWatch>,
    /// The deadline for which it was told to end.
    pub(super) timed_out: Option<Deadline>,
}

impl Child {
    pub(super) fn new(slot: Slot, client: Client, output: Option<Output>) -> Self {
        Child {
            slot,
            client,
            waits: false,
            several: false,
            output,
            kept: None,
            header: None,
            to_come: VecDeque::new(),
            failure: None,
            traffic: None,
            said_timeout: None,
            watch: None,
            timed_out: None,
        }
    }

    /// How many bytes of it were the header of a proxy.
    pub(super) fn header_length(&self) -> u64 {
        self.header.map_or(0, |header| header.length as u64)
    }

    /// Whether it is nobody's but a proxy's own, or of somebody whom the proxy does not name.
    pub(super) fn is_of_proxy(&self) -> bool {
        self.header.is_some_and(|header| header.called.is_none())
    }

    /// Bytes from and to the client, if somebody knows.
    pub(super) fn bytes(&self) -> Option<(u64, u64)> {
        let said = self.traffic.map(|traffic| (traffic.received, traffic.sent));
        let counted = || TcpInfo::of(self.kept.as_ref()?.as_fd()).ok();
        said.or_else(|| counted().map(|info| (info.received.saturating_sub(self.header_length()), info.sent)))
    }
}

/// More than the pipe of calls holds no honest process can be ahead.
const FURTHEST_AHEAD: usize = 1 << 16;

/// The ledger: exactly the children of this worker that have not been reaped.
#[derive(Debug)]
pub(super) struct Children(ByPid);

type ByPid = HashMap<Pid, Child, hashbrown::DefaultHashBuilder, DontForkAlloc>;

/// Room that is made at the start, so that the path of a connection does not allocate in ordinary times.
const ROOM: u32 = 4096;

impl Children {
    pub(super) fn with_room_for(connections: u32) -> Self {
        Children(ByPid::with_capacity_in(connections.min(ROOM) as usize, DontForkAlloc::new()))
    }

    pub(super) fn insert(&mut self, pid: Pid, connection: Child) {
        self.0.insert(pid, connection);
    }

    pub(super) fn remove(&mut self, pid: Pid) -> Option<Child> {
        self.0.remove(&pid)
    }

    /// Keeps the connection of a program that was a spare, whether or not it is known yet that it was called. False if it
    /// has none.
    pub(super) fn keep(&mut self, pid: Pid, process: u64, copy: OwnedFd) -> bool {
        let is_its_own = |spare: &&mut Child| {
            process_of(spare.client.number) == process && !spare.several && spare.kept.is_none()
        };
        let spare = self.0.get_mut(&pid).filter(is_its_own);
        spare.map(|spare| spare.kept = Some(copy)).is_some()
    }

    /// A spare says that it has been called. What one that serves a single connection says, it said before it served a
    /// stranger. True if that is now its connection, and not one to come after the report of another's end.
    /// `begin` is called before it counts as a connection.
    pub(super) fn call(&mut self, pid: Pid, client: &Client, begin: impl FnOnce()) -> bool {
        let is_its_own = |spare: &&mut Child| {
            process_of(spare.client.number) == process_of(client.number) && client.number != 0
        };
        match self.0.get_mut(&pid).filter(is_its_own) {
            Some(spare) if spare.waits => {
                begin();
                spare.client = *client;
                spare.waits = false;
                spare.slot.note(client);
                true
            }
            Some(spare) if spare.several && spare.to_come.len() < FURTHEST_AHEAD => {
                spare.to_come.push_back(*client);
                false
            }
            _ => false,
        }
    }

    /// A connection has ended, and its process waits or has gone on to the next. Returns who had called, and whether it
    /// waits.
    pub(super) fn end(&mut self, pid: Pid, begin_next: impl FnOnce()) -> Option<(Client, bool)> {
        let has_one = |connection: &&mut Child| connection.several && !connection.waits;
        let connection = self.0.get_mut(&pid).filter(has_one)?;
        let next = connection.to_come.pop_front();
        let ended = connection.client;
        let nobody = Client { number: process_of(ended.number), ..Client::NOBODY };
        connection.client = next.unwrap_or(nobody);
        connection.waits = next.is_none();
        if next.is_some() {
            begin_next();
        }
        connection.slot.note(next.as_ref().unwrap_or(&Client::NOBODY));
        Some((ended, connection.waits))
    }

    /// Notes what a process said about itself.
    pub(super) fn note(&mut self, pid: Pid, report: ChildReport) {
        if let Some(connection) = self.0.get_mut(&pid) {
            match report {
                ChildReport::Failed(failure) => connection.failure = Some(failure),
                ChildReport::Served(traffic) => connection.traffic = Some(traffic),
                ChildReport::TimedOut(deadline, traffic) => {
                    (connection.said_timeout, connection.traffic) = (Some(deadline), Some(traffic));
                }
                // See `end`.
                ChildReport::Ended(_) | ChildReport::Refused(_) => {}
            }
        }
    }

    /// One that has not been reaped.
    pub(super) fn get_mut(&mut self, pid: Pid) -> Option<&mut Child> {
        self.0.get_mut(&pid)
    }

    /// Whether this process serves this connection, or will after the one whose end it has not reported yet.
    pub(super) fn expects(&self, pid: Pid, number: u64) -> bool {
        self.0.get(&pid).is_some_and(|connection| {
            // Who waits has the number of its first connection.
            (connection.client.number == number && !connection.waits)
                || connection.to_come.iter().any(|client| client.number == number)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.0.keys().copied()
    }
}
