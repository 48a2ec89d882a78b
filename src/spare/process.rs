//! A spare: a connection process that is made ahead and waits for its connection itself.
//!
//! Nobody sends it a signal to make it go: a signal could come when it has just accepted. It is held by a leash instead,
//! a pipe with the worker at the other end. A byte in it is for one spare, whichever reads it; its end, which comes by
//! itself when the worker dies, is for all. And none goes without having looked once more: with `EPOLLEXCLUSIVE` it may
//! be the only one that was woken for a connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{copies, events};
use crate::admission::Admission;
use crate::admission::sources::{SlotIndex, Sources};
use crate::child::call::CallOutcome;
use crate::child::{ChildSpec, Conn, Failed};
use crate::client::{Client, Connection, ConnectionId};
use crate::ipc::reports::{Served, Step};
use crate::pace::EXHAUSTED_PAUSE;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fork::ForkedChild;
use crate::sys::socket;
use crate::sys::time::{self, Monotonic};
use crate::sys::{child_fds, fd, memory, process};

/// What is the same for all spares of a worker.
#[derive(Debug)]
pub(crate) struct SpareSpec {
    /// What every connection process of the service needs.
    pub(crate) child: &'static ChildSpec,
    pub(crate) admission: &'static Admission,
    /// Where they wait.
    pub(crate) listeners: Vec<BorrowedFd<'static>>,
    /// All descriptors that they need, in the order of their numbers.
    pub(crate) kept: Vec<BorrowedFd<'static>>,
    /// The end that a spare watches.
    pub(crate) leash: BorrowedFd<'static>,
    /// Where a spare says that it has been taken.
    pub(crate) events: BorrowedFd<'static>,
    /// An eventfd that wakes the worker.
    pub(crate) wake: BorrowedFd<'static>,
    /// Where a spare sends a copy of its connection, if it becomes a program.
    pub(crate) copies: Option<BorrowedFd<'static>>,
    /// Where it hands over the connection of a client that it has told why it is refused.
    pub(crate) refused: Option<BorrowedFd<'static>>,
    /// The memory of the sources, if who gets in depends on them.
    pub(crate) sources: Option<BorrowedFd<'static>>,
    /// What takes the place of the standard descriptors, which are the supervisor's; not of what errors are said to.
    pub(crate) null: Option<BorrowedFd<'static>>,
    /// How many connections a spare serves, one after the other.
    pub(crate) connections: u32,
}

/// What a spare is told before it begins to wait.
#[derive(Debug)]
pub(crate) struct SpareContext {
    pub(crate) spec: &'static SpareSpec,
    /// The name of its first connection.
    pub(crate) id: ConnectionId,
    pub(crate) slot: SlotIndex,
    /// Whether it wakes the worker when it is taken; not every spare does.
    pub(crate) wakes: bool,
    /// Where its program's stderr goes.
    pub(crate) stderr: Option<OwnedFd>,
    /// Where it reports, if it is to serve several connections.
    pub(crate) reports: Option<OwnedFd>,
    /// What it is made for: its first connection, which its worker has let in and knows of.
    pub(crate) first: Option<(OwnedFd, Connection)>,
}

const LEASH: u64 = u64::MAX;

/// How many connections that are not let in a spare takes from a queue before it goes; others may have forgotten them.
const LAST_LOOKS: usize = 4096;

/// Waits for a connection and serves it, or for one after the other; the whole life of a spare.
pub(crate) fn wait(child: ForkedChild, context: SpareContext) -> u8 {
    let spec = context.spec;
    spec.child.in_its_place(child, Some(context.slot), |child| {
        let slot = context.slot;
        let begun = Spare::begin(child, context, Some(slot));
        let result = begun.and_then(|mut spare| match spec.connections {
            1 => spare.serve_once(),
            connections => spare.serve_several(connections),
        });
        match result {
            Ok(()) => 0,
            Err(failed) => spec.child.fail(None, &failed),
        }
    })
}

/// The same, but its first connection is there already.
pub(crate) fn serve_and_wait(
    child: ForkedChild,
    (mut context, first): (SpareContext, (OwnedFd, Connection)),
) -> u8 {
    context.first = Some(first);
    wait(child, context)
}

/// In a forked child: does all that a spare does but wait for a connection.
pub(crate) fn rehearse(child: ForkedChild, spec: &'static SpareSpec) -> u8 {
    let id = ConnectionId { run: 0, worker: 0, number: 0 };
    let context = SpareContext {
        spec,
        id,
        slot: SlotIndex::at(0),
        wakes: false,
        stderr: None,
        reports: None,
        first: None,
    };
    spec.child.in_its_place(child, None, |child| {
        spec.child.rehearsed(Spare::begin(child, context, None).and_then(|_| spec.child.seal()))
    })
}

/// What a try to accept has led to.
enum Attempt {
    /// A client that is let in.
    Taken(OwnedFd, Connection),
    /// One that is not, or that is gone again; there may be more.
    Other,
    /// Nobody.
    Nothing,
}

struct Spare {
    child: ForkedChild,
    context: SpareContext,
    poller: Poller,
    sources: Option<Sources>,
    /// The next connection is the last, or there is none.
    leaves: bool,
}

impl Spare {
    fn begin(child: ForkedChild, mut context: SpareContext, slot: Option<SlotIndex>) -> Result<Self, Failed> {
        let failed = |error| (Step::Wait, error);
        let spec = context.spec;
        // First: what it says from now on is nobody else's.
        if let Some(own) = context.reports.take() {
            spec.child.reporter().replace(own.as_fd()).map_err(failed)?;
        }
        // Before the limits, which may have no room for it.
        let sources = spec.sources.map(Sources::open).transpose().map_err(failed)?;
        let stderr = context.stderr.take();
        spec.child.enter(slot, stderr.as_ref().map(AsFd::as_fd))?;
        // Its number is 2 by now, and is closed with the others.
        drop(stderr);
        if let Some(null) = spec.null {
            let errors = || if spec.child.has_stderr() { Ok(()) } else { child_fds::standard_error(null) };
            child_fds::standard(null).and_then(|()| errors()).map_err(failed)?;
        }
        let first = context.first.as_ref().map(|(socket, _)| socket.as_fd());
        child_fds::close_all_but(child, &spec.kept, first).map_err(failed)?;
        let poller = Poller::new().map_err(failed)?;
        for (listener, token) in spec.listeners.iter().zip(0..) {
            poller.add(*listener, Interest::ReadExclusive, token).map_err(failed)?;
        }
        poller.add(spec.leash, Interest::ReadExclusive, LEASH).map_err(failed)?;
        // So that the pages with the clock and the bans are there when a connection comes.
        Monotonic::now();
        spec.admission.warm_up();
        Ok(Spare { child, context, poller, sources, leaves: false })
    }

    /// Returns if it was told to go and nobody had come.
    fn serve_once(&mut self) -> Result<(), Failed> {
        let Some((socket, connection)) = self.wait(0)? else { return Ok(()) };
        // Nothing of a stranger runs where this memory is; a program has none of this.
        self.sources = None;
        if !self.context.spec.child.execs() {
            self.context.spec.admission.forget_bans().map_err(|error| (Step::Wait, error))?;
        }
        let conn = Conn { id: self.context.id, slot: self.context.slot, client: connection.client };
        self.context.spec.child.run(self.child, socket, &conn)
    }

    /// Serves connections until it was told to go, or has served `connections` (0 for as many as come).
    fn serve_several(&mut self, connections: u32) -> Result<(), Failed> {
        let child = self.context.spec.child;
        child.seal()?;
        child.begin_sharing(self.context.slot);
        process::keep_outer_id();
        let most = if connections == 0 { ConnectionId::PER_PROCESS } else { connections };
        let most = most.min(ConnectionId::PER_PROCESS);
        let mut before = time::cpu();
        for n in 0..most {
            let next = match self.context.first.take() {
                None => self.wait(n)?,
                first => first,
            };
            let Some((socket, connection)) = next else { return Ok(()) };
            let conn =
                Conn { id: self.context.id.nth(n), slot: self.context.slot, client: connection.client };
            let Some(CallOutcome { code, traffic }) = child.run_once_more(socket, &conn) else {
                return Err((Step::Exec, io::ErrorKind::Unsupported.into()));
            };
            if let Some(sources) = &self.sources {
                sources.leave(self.context.slot);
            }
            let now = time::cpu();
            let cpu = now.saturating_sub(std::mem::replace(&mut before, now));
            let served = Served { connection, code, traffic, cpu };
            child.reporter().ended(served);
            // Nobody was woken in its place while it served. Who goes anyway leaves the word to another.
            if self.leaves || n + 1 == most || self.is_told_to_go() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits for its `n`th connection; `None` if it was told to go and nobody had come.
    fn wait(&mut self, n: u32) -> Result<Option<(OwnedFd, Connection)>, Failed> {
        let failed = |error| (Step::Wait, error);
        loop {
            match self.poller.wait_for_one().map_err(failed)? {
                None => {}
                Some(LEASH) if self.is_told_to_go() => return self.look_once_more(n).map_err(failed),
                Some(LEASH) => {}
                Some(token) => {
                    let listener = self.context.spec.listeners.get(token as usize).copied();
                    let attempt = listener.map_or(Attempt::Nothing, |listener| self.accept(listener, n));
                    if let Attempt::Taken(socket, connection) = attempt {
                        return Ok(Some((socket, connection)));
                    }
                }
            }
        }
    }

    fn is_told_to_go(&self) -> bool {
        match fd::read(self.context.spec.leash, &mut [0]) {
            Ok(_) => true,
            // Another was faster.
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    /// Not watched any more, a listener wakes somebody else for who comes from now on.
    fn look_once_more(&mut self, n: u32) -> io::Result<Option<(OwnedFd, Connection)>> {
        self.leaves = true;
        for listener in &self.context.spec.listeners {
            self.poller.remove(*listener)?;
            for _ in 0..LAST_LOOKS {
                match self.accept(*listener, n) {
                    Attempt::Taken(socket, connection) => return Ok(Some((socket, connection))),
                    Attempt::Other => {}
                    Attempt::Nothing => break,
                }
            }
        }
        Ok(None)
    }

    fn accept(&self, listener: BorrowedFd<'_>, n: u32) -> Attempt {
        let SpareContext { spec, slot, .. } = &self.context;
        match socket::accept(listener) {
            Ok((socket, peer)) => {
                let mut client = Client::now(peer);
                let counted = self.sources.as_ref().map(|sources| (sources, *slot));
                if let Err(why) = spec.admission.check(&mut client, socket.as_fd(), counted) {
                    // It is not to wait until the worker can hear of it; but only the worker can wait until it has heard.
                    if let Some(said) = spec.admission.turn_away(why, socket) {
                        copies::hand_over(spec.refused, said.as_fd());
                    }
                    spec.child.reporter().refused(why, spec.wake);
                    return Attempt::Other;
                }
                let number = self.context.id.nth(n).number;
                let until = spec.child.deadlines().until(&client);
                let connection = Connection { number, client, until };
                self.tell(socket.as_fd(), &connection);
                Attempt::Taken(socket, connection)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Attempt::Nothing,
            Err(error) if socket::is_passing(&error) => Attempt::Other,
            Err(_) => {
                std::thread::sleep(EXHAUSTED_PAUSE);
                Attempt::Nothing
            }
        }
    }

    /// Killed before this, it has died waiting, and the connection with it.
    fn tell(&self, socket: BorrowedFd<'_>, connection: &Connection) {
        let spec = self.context.spec;
        events::tell(spec.events, process::outer_id(), connection);
        if let Some(copies) = spec.copies {
            copies::send_copy(copies, process::outer_id(), connection.number, socket);
        }
        if self.context.wakes {
            memory::ring(spec.wake);
        }
    }
}
