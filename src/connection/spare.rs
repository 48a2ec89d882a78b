//! A spare: a connection process that is made ahead and waits for its connection itself.
//!
//! Nobody sends it a signal to make it go: a signal could come when it has just accepted. It is held by a leash instead,
//! a pipe with the worker at the other end. A byte in it is for one spare, whichever reads it; its end, which comes by
//! itself when the worker dies, is for all. And none goes without having looked once more: with `EPOLLEXCLUSIVE` it may
//! be the only one that was woken for a connection.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;

use super::report::Stage;
use super::{Call, Failed, Preparation, SharedMemory};
use crate::shared::{Board, Caller, ConnectionId, Count, Place, Tally};
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fd::{self, Passed};
use crate::sys::socket::{self, Peer};
use crate::sys::{memory, process, time};

/// What a spare is told before it begins to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Post {
    /// What every connection process of the service needs.
    pub(crate) preparation: &'static Preparation,
    /// Its slot is on it.
    pub(crate) board: &'static Board,
    /// The worker's counters.
    pub(crate) tally: &'static Tally,
    /// Where it waits.
    pub(crate) listeners: &'static [Passed],
    /// The end that a spare watches.
    pub(crate) leash: Passed,
    /// An eventfd that wakes the worker.
    pub(crate) doorbell: Passed,
    /// With so few spares left that wait, the worker is woken.
    pub(crate) low: u64,
    /// Its slot, which the worker has taken for it.
    pub(crate) slot: Place,
    /// The name of its connection.
    pub(crate) id: ConnectionId,
    /// Where its program's stderr goes.
    pub(crate) stderr: Option<Passed>,
}

const LEASH: u64 = u64::MAX;

/// How long a spare rests when the kernel has no descriptor or memory for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Waits for a connection and serves it; the whole life of a spare.
pub(crate) fn wait(post: Post) -> ! {
    let waited = post.preparation.settle(post.stderr).and_then(|()| {
        let connection = post.wait()?;
        if connection.is_some() {
            SharedMemory { board: post.board, tally: post.tally }.abandon()?;
        }
        Ok(connection)
    });
    match waited {
        Ok(Some((connection, peer))) => {
            let call = Call { connection: Passed::new(connection.as_fd()), peer, id: post.id };
            post.preparation.take(&call, post.preparation.program(&call).as_deref())
        }
        Ok(None) => process::exit(0),
        Err(failed) => post.preparation.fail(&failed),
    }
}

impl Post {
    /// `None` if it was told to go and nobody had called.
    fn wait(&self) -> Result<Option<(OwnedFd, Peer)>, Failed> {
        let failed = |error| (Stage::Wait, error);
        let mut kept: Vec<_> = self.listeners.iter().map(|listener| listener.borrow()).collect();
        kept.extend([self.leash, self.doorbell].map(Passed::borrow));
        kept.push(self.preparation.reporter.descriptor());
        fd::close_all_but(&mut kept).map_err(failed)?;
        let mut poller = Poller::new().map_err(failed)?;
        for (listener, token) in self.listeners.iter().zip(0..) {
            poller.add(listener.borrow(), Interest::ReadExclusive, token).map_err(failed)?;
        }
        poller.add(self.leash.borrow(), Interest::ReadExclusive, LEASH).map_err(failed)?;
        // So that the page is there when a connection comes.
        self.board.note(self.slot, &Caller::NOBODY);
        loop {
            match poller.wait_for_one().map_err(failed)? {
                None => {}
                Some(LEASH) if self.is_told_to_go() => return self.look_once_more(&poller).map_err(failed),
                Some(LEASH) => {}
                Some(token) => {
                    let listener = self.listeners.get(token as usize).copied();
                    if let Some(taken) = listener.and_then(|listener| self.accept(listener)) {
                        return Ok(Some(taken));
                    }
                }
            }
        }
    }

    fn is_told_to_go(&self) -> bool {
        match nix::unistd::read(self.leash.borrow(), &mut [0]) {
            Ok(_) => true,
            // Another was faster.
            Err(error) => !matches!(error, Errno::EAGAIN | Errno::EINTR),
        }
    }

    /// Not watched any more, a listener wakes somebody else for who comes from now on.
    fn look_once_more(&self, poller: &Poller) -> io::Result<Option<(OwnedFd, Peer)>> {
        for listener in self.listeners {
            poller.remove(listener.borrow())?;
            if let Some((connection, peer)) = self.accept(*listener) {
                // The listener may be about to be closed.
                socket::make_hear(connection.as_fd());
                return Ok(Some((connection, peer)));
            }
        }
        Ok(None)
    }

    fn accept(&self, listener: Passed) -> Option<(OwnedFd, Peer)> {
        match socket::accept(listener.borrow()) {
            Ok((connection, peer)) => {
                self.note(peer);
                Some((connection, peer))
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock && !socket::is_passing(&error) {
                    std::thread::sleep(EXHAUSTED);
                }
                None
            }
        }
    }

    /// Killed in the middle of this, it is one that died waiting, or one whose connection ended with it.
    fn note(&self, peer: Peer) {
        let left = self.tally.spare_gone();
        self.tally.count(Count::Accepted);
        let caller = Caller { number: self.id.number, accepted_usec: time::monotonic_usec(), peer };
        self.board.note(self.slot, &caller);
        if left <= self.low {
            memory::ring(self.doorbell.borrow());
        }
    }
}
