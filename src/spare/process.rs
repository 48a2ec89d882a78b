//! A spare: a connection process that is made ahead and waits for its connection itself.
//!
//! Nobody sends it a signal to make it go: a signal could come when it has just accepted. It is held by a leash instead,
//! a pipe with the worker at the other end. A byte in it is for one spare, whichever reads it; its end, which comes by
//! itself when the worker dies, is for all. And none goes without having looked once more: with `EPOLLEXCLUSIVE` it may
//! be the only one that was woken for a connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;

use super::{copies, events};
use crate::admission::sources::{SlotIndex, Sources};
use crate::admission::{ActivityWatch, Seat};
use crate::child::{ChildSpec, Conn, Failed, PreparedJob, watch};
use crate::client::{Client, ConnectionId};
use crate::ipc::reports::{Served, Step};
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fd;
use crate::sys::fork::ForkedChild;
use crate::sys::socket::{self, Peer};
use crate::sys::{memory, process, time};

/// What a spare is told before it begins to wait.
#[derive(Debug)]
pub(crate) struct SpareContext {
    /// What every connection process of the service needs.
    pub(crate) spec: &'static ChildSpec,
    /// Where it waits.
    pub(crate) listeners: &'static [BorrowedFd<'static>],
    /// All descriptors that it needs, in the order of their numbers.
    pub(crate) kept: &'static [BorrowedFd<'static>],
    /// The end that a spare watches.
    pub(crate) leash: BorrowedFd<'static>,
    /// Where it says that it has been called.
    pub(crate) calls: BorrowedFd<'static>,
    /// An eventfd that wakes the worker.
    pub(crate) bell: BorrowedFd<'static>,
    /// Whether it rings when it is called; not every spare does.
    pub(crate) rings: bool,
    /// Where it sends a copy of its connection, if it becomes a program.
    pub(crate) copies: Option<BorrowedFd<'static>>,
    /// The name of its first connection.
    pub(crate) id: ConnectionId,
    /// Whether it serves more than one.
    pub(crate) again: Option<Again>,
    /// The memory of the sources and its slot, if who gets in depends on them.
    pub(crate) sources: Option<(BorrowedFd<'static>, SlotIndex)>,
    /// Where its program's stderr goes.
    pub(crate) stderr: Option<OwnedFd>,
}

/// How a spare goes on after its first connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Again {
    /// How many connections it serves; `None` for as many as come.
    pub(crate) connections: Option<u32>,
}

const LEASH: u64 = u64::MAX;

/// How long a spare rests when the kernel has no descriptor or memory for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Waits for a connection and serves it, or for one after the other; the whole life of a spare.
pub(crate) fn wait(child: ForkedChild, post: SpareContext) -> u8 {
    let (spec, again) = (post.spec, post.again);
    let begun = spec.confine(post.stderr.as_ref().map(AsFd::as_fd)).and_then(|()| Spare::begin(child, post));
    let result = begun.and_then(|mut spare| match again {
        None => spare.serve_once(),
        Some(again) => spare.serve_several(again),
    });
    match result {
        Ok(()) => 0,
        Err(failed) => spec.fail(&failed),
    }
}

/// A connection, who called, and when.
type Accepted = (OwnedFd, Peer, u64);

struct Spare {
    child: ForkedChild,
    post: SpareContext,
    poller: Poller,
    sources: Option<(Sources, SlotIndex)>,
    /// The next connection is the last, or there is none.
    leaves: bool,
}

impl Spare {
    fn begin(child: ForkedChild, mut post: SpareContext) -> Result<Self, Failed> {
        let failed = |error| (Step::Wait, error);
        // Its number is 2 by now, and is closed with the others.
        drop(post.stderr.take());
        fd::close_all_but(child, post.kept).map_err(failed)?;
        let poller = Poller::new().map_err(failed)?;
        for (listener, token) in post.listeners.iter().zip(0..) {
            poller.add(*listener, Interest::ReadExclusive, token).map_err(failed)?;
        }
        poller.add(post.leash, Interest::ReadExclusive, LEASH).map_err(failed)?;
        // So that the pages with the clock are there when a connection comes.
        time::monotonic_usec();
        let open = |(memory, place): (BorrowedFd<'static>, SlotIndex)| Ok((Sources::open(memory)?, place));
        let sources = post.sources.map(open).transpose().map_err(failed)?;
        Ok(Spare { child, post, poller, sources, leaves: false })
    }

    /// Returns if it was told to go and nobody had called.
    fn serve_once(&mut self) -> Result<(), Failed> {
        let Some((connection, peer, accepted_usec)) = self.wait(0)? else { return Ok(()) };
        let call = Conn { peer, accepted_usec, called: None, header: 0, id: self.post.id };
        // Nothing of a stranger runs where this memory is.
        self.sources = None;
        let spec = self.post.spec;
        spec.run(self.child, connection, &call)
    }

    /// Serves connections until it was told to go, or has had enough. What one leaves behind in this process, the next
    /// will find: that is what was asked for.
    fn serve_several(&mut self, again: Again) -> Result<(), Failed> {
        let spec = self.post.spec;
        spec.confinement.limit_descriptors()?;
        let PreparedJob::Handler(builtin) = spec.job else { return self.serve_once() };
        let mut cpu = time::cpu_usec();
        for n in 0..again.connections.unwrap_or(u32::MAX).min(ConnectionId::PER_PROCESS) {
            let Some((connection, _, accepted_usec)) = self.wait(n)? else { return Ok(()) };
            let (deadlines, reporter) = (spec.deadlines, spec.reporter);
            let (code, traffic) =
                watch::serve(builtin, connection, ActivityWatch::new(accepted_usec), deadlines, reporter);
            if let Some((sources, place)) = &self.sources {
                sources.leave(*place);
            }
            let now = time::cpu_usec();
            reporter.ended(Served { code, traffic, cpu_usec: now.saturating_sub(cpu) });
            memory::ring(self.post.bell);
            cpu = now;
            // Nobody was woken in its place while it served.
            if self.leaves || self.is_told_to_go() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits for its `n`th connection; `None` if it was told to go and nobody had called.
    fn wait(&mut self, n: u32) -> Result<Option<Accepted>, Failed> {
        let failed = |error| (Step::Wait, error);
        loop {
            match self.poller.wait_for_one().map_err(failed)? {
                None => {}
                Some(LEASH) if self.is_told_to_go() => return self.look_once_more(n).map_err(failed),
                Some(LEASH) => {}
                Some(token) => {
                    let listener = self.post.listeners.get(token as usize).copied();
                    if let Some(taken) = listener.and_then(|listener| self.accept(listener, n)) {
                        return Ok(Some(taken));
                    }
                }
            }
        }
    }

    fn is_told_to_go(&self) -> bool {
        match nix::unistd::read(self.post.leash, &mut [0]) {
            Ok(_) => true,
            // Another was faster.
            Err(error) => !matches!(error, Errno::EAGAIN | Errno::EINTR),
        }
    }

    /// Not watched any more, a listener wakes somebody else for who comes from now on.
    fn look_once_more(&mut self, n: u32) -> io::Result<Option<Accepted>> {
        self.leaves = true;
        for listener in self.post.listeners {
            self.poller.remove(*listener)?;
            if let Some(accepted) = self.accept(*listener, n) {
                // The listener may be about to be closed.
                socket::make_hear(accepted.0.as_fd());
                return Ok(Some(accepted));
            }
        }
        Ok(None)
    }

    fn accept(&self, listener: BorrowedFd<'_>, n: u32) -> Option<Accepted> {
        match socket::accept(listener) {
            Ok((connection, peer)) => {
                let accepted_usec = time::monotonic_usec();
                let seat = self.sources.as_ref().map(|(sources, place)| Seat { sources, place: *place });
                if let Err(why) = self.post.spec.gate().admit(peer, accepted_usec, seat) {
                    self.post.spec.reporter.refused(why);
                    memory::ring(self.post.bell);
                    return None;
                }
                self.note(&connection, peer, accepted_usec, n);
                Some((connection, peer, accepted_usec))
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock && !socket::is_passing(&error) {
                    std::thread::sleep(EXHAUSTED);
                }
                None
            }
        }
    }

    /// Killed before this, it has died waiting, and the connection with it.
    fn note(&self, connection: &OwnedFd, peer: Peer, accepted_usec: u64, n: u32) {
        let number = self.post.id.nth(n).number;
        let client = Client { number, accepted_usec, peer };
        events::call(self.post.calls, process::id(), &client);
        if let (Some(copies), Peer::Ip(_)) = (self.post.copies, peer) {
            copies::send_copy(copies, process::id(), number, connection.as_fd());
        }
        if self.post.rings {
            memory::ring(self.post.bell);
        }
    }
}
