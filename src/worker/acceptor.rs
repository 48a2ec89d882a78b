//! The listeners of a worker, and when it takes connections from them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::token::Token;
use crate::ipc::orders::ListenerSet;
use crate::journal::{Level, Log, MessageId};
use crate::pace::{EXHAUSTED_PAUSE, Every};
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fd;
use crate::sys::socket::{self, Peer};
use crate::sys::time::Monotonic;

/// How often a listener is looked at while handshakes are under way that began before it was to be emptied.
const HANDSHAKE_PAUSE: Duration = Duration::from_millis(20);

/// How long until the same complaint is written again.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// What an accept brought.
#[derive(Debug)]
pub(super) enum Accepted {
    /// A connection.
    Connection(OwnedFd, Peer),
    /// A client that was gone again, or a fault of the network that says nothing about the listener.
    Lost,
    /// The queue is empty.
    Nothing,
    /// The kernel cannot give a connection now.
    Exhausted(io::Error),
}

#[derive(Debug)]
struct WorkerListener {
    /// `None` when this worker takes no more from it.
    socket: Option<BorrowedFd<'static>>,
    watched: bool,
    /// To be closed as soon as its queue is empty.
    emptying: bool,
    /// To be tried without waiting for epoll, until its queue is empty.
    due: bool,
    /// Not to be watched for now: a program has it, or rests.
    held: bool,
}

impl WorkerListener {
    /// To learn by an accept that the queue is empty takes a slot, and until there is one the address would answer
    /// nobody.
    fn close_if_empty(&mut self, null: &File) -> bool {
        let close = self.emptying && self.socket.is_none_or(socket::is_queue_empty);
        if close {
            self.close(null);
        }
        close
    }

    /// Spares know its number, which must not become another's.
    fn close(&mut self, null: &File) {
        // It fails for no descriptors that are open.
        let _ = self.socket.take().map(|socket| fd::replace(socket, null.as_fd()));
    }
}

/// The listeners, and what keeps them waiting.
#[derive(Debug)]
pub(super) struct Acceptor {
    listeners: Vec<WorkerListener>,
    null: File,
    open: bool,
    full: bool,
    /// When to look although no slot was said to be free.
    look_at: Option<Monotonic>,
    paused_until: Option<Monotonic>,
    /// A listener that is being emptied stays open until then: a client that has been answered takes itself for connected.
    handshakes_until: Option<Monotonic>,
    complaint: Every,
    /// How many have come just now, without a pause; the next may be about to.
    in_a_row: u32,
}

impl Acceptor {
    /// Takes nothing until [`Acceptor::open`].
    pub(super) fn new(sockets: &[BorrowedFd<'static>]) -> io::Result<Self> {
        let listener = |&socket| WorkerListener {
            socket: Some(socket),
            watched: false,
            emptying: false,
            due: false,
            held: false,
        };
        Ok(Acceptor {
            listeners: sockets.iter().map(listener).collect(),
            null: File::open("/dev/null")?,
            open: false,
            full: false,
            look_at: None,
            paused_until: None,
            handshakes_until: None,
            complaint: Every::new(COMPLAINT_INTERVAL),
            in_a_row: 0,
        })
    }

    /// Begins to take connections.
    pub(super) fn open(&mut self) {
        self.open = true;
    }

    /// Whether connections are taken, now or when what is in the way has gone.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether connections are taken now.
    pub(super) fn takes(&self) -> bool {
        self.open && !self.full && self.paused_until.is_none()
    }

    /// Whether a connection waits at one of the listeners.
    pub(super) fn is_queued(&self) -> bool {
        let mut sockets = self.listeners.iter().filter_map(|listener| listener.socket);
        sockets.any(|socket| !socket::is_queue_empty(socket))
    }

    /// How many connections wait there, as far as the kernel tells.
    pub(super) fn queued(&self) -> u32 {
        let sockets = self.listeners.iter().filter_map(|listener| listener.socket);
        sockets.map(socket::queued).fold(0, u32::saturating_add)
    }

    /// Whether a listener is to be tried without an event.
    pub(super) fn is_due(&self) -> bool {
        self.listeners.iter().any(|listener| listener.due)
    }

    /// Whether connections have come without a pause, and epoll tells of the next.
    pub(super) fn is_in_a_row(&self) -> bool {
        self.in_a_row > 0 && self.listeners.iter().any(|listener| listener.watched)
    }

    /// One more has come without a pause, or none; returns how many have.
    pub(super) fn count_in_a_row(&mut self, came: bool) -> u32 {
        self.in_a_row = if came { self.in_a_row.wrapping_add(1) } else { 0 };
        self.in_a_row
    }

    /// Whether nothing will be taken any more.
    pub(super) fn is_closed(&self) -> bool {
        self.listeners.iter().all(|listener| listener.socket.is_none())
    }

    /// Makes epoll watch exactly the listeners that may be accepted from now.
    pub(super) fn watch(&mut self, poller: &Poller, held_up: bool, how: Interest) -> io::Result<()> {
        let wanted = self.takes() && !held_up;
        for (listener, index) in self.listeners.iter_mut().zip(0..) {
            let Some(socket) = listener.socket else { continue };
            let wanted = wanted && !listener.held;
            // Written only when it changes: what is written here is another page to copy for the next child.
            if wanted == listener.watched {
                continue;
            }
            match wanted {
                true => poller.add(socket, how, Token::Listener(index).into())?,
                false => poller.remove(socket)?,
            }
            listener.watched = wanted;
        }
        Ok(())
    }

    /// Stops watching; who then watches again is behind all who wait already.
    pub(super) fn step_back(&mut self, poller: &Poller) -> io::Result<()> {
        for listener in self.listeners.iter_mut().filter(|listener| listener.watched) {
            listener.socket.map_or(Ok(()), |socket| poller.remove(socket))?;
            listener.watched = false;
        }
        Ok(())
    }

    /// A listener that is open.
    pub(super) fn socket(&self, index: usize) -> Option<BorrowedFd<'static>> {
        self.listeners.get(index).and_then(|listener| listener.socket)
    }

    /// Whether this listener is left alone for now.
    pub(super) fn hold(&mut self, index: usize, held: bool) {
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.held = held;
        }
    }

    /// Takes the next connection from a listener.
    pub(super) fn accept(&mut self, index: usize) -> Accepted {
        let Some(listener) = self.listeners.get_mut(index) else { return Accepted::Nothing };
        let Some(socket) = listener.socket else { return Accepted::Nothing };
        if !self.open && !listener.emptying {
            return Accepted::Nothing;
        }
        match socket::accept(socket) {
            Ok((connection, peer)) => Accepted::Connection(connection, peer),
            // Somebody has shut it down, and what was queued is gone.
            Err(error) if listener.emptying && error.kind() == io::ErrorKind::InvalidInput => {
                listener.close(&self.null);
                Accepted::Nothing
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // It is not watched any more, see `retire`.
                match self.handshakes_until {
                    _ if !listener.emptying => {}
                    None => listener.close(&self.null),
                    Some(_) => self.pause(HANDSHAKE_PAUSE),
                }
                Accepted::Nothing
            }
            Err(error) if socket::is_passing(&error) => Accepted::Lost,
            Err(error) => Accepted::Exhausted(error),
        }
    }

    /// Whether nothing is queued on a listener.
    pub(super) fn is_empty(&self, index: usize) -> bool {
        let socket = self.listeners.get(index).and_then(|listener| listener.socket);
        socket.is_none_or(socket::is_queue_empty)
    }

    /// Closes a listener that is being emptied if nothing is queued on it and nothing more will be.
    pub(super) fn close_if_empty(&mut self, index: usize) -> bool {
        let listener = self.listeners.get_mut(index).filter(|_| self.handshakes_until.is_none());
        listener.is_some_and(|listener| listener.close_if_empty(&self.null))
    }

    /// Its queue was empty: from now on epoll knows better.
    pub(super) fn nothing_more(&mut self, index: usize) {
        if let Some(listener) = self.listeners.get_mut(index).filter(|listener| listener.due) {
            listener.due = false;
        }
    }

    /// Tries this listener again before the next wait.
    pub(super) fn more(&mut self, index: usize) {
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.due = true;
        }
    }

    /// All slots are taken.
    pub(super) fn pause_until_slot_freed(&mut self) {
        self.full = true;
    }

    /// The same, but not for longer than this.
    pub(super) fn pause_until_slot_freed_or(&mut self, time: Duration) {
        (self.full, self.look_at) = (true, Some(Monotonic::now() + time));
    }

    /// A slot may be free.
    pub(super) fn slot_freed(&mut self) {
        if std::mem::take(&mut self.full) {
            self.look_at = None;
            self.look();
        }
    }

    /// Takes nothing for a while, at least.
    pub(super) fn pause(&mut self, time: Duration) {
        let until = Monotonic::now() + time;
        self.paused_until = Some(self.paused_until.map_or(until, |before| before.max(until)));
    }

    /// When [`Acceptor::due`] will have something without an event.
    pub(super) fn wakes_at(&self) -> Option<Monotonic> {
        if self.is_due() && !self.full && self.paused_until.is_none() {
            return Some(Monotonic::now());
        }
        [self.paused_until, self.look_at, self.handshakes_until].into_iter().flatten().min()
    }

    /// The listeners to try now although epoll has not reported them.
    pub(super) fn due(&mut self, now: Monotonic) -> Vec<usize> {
        if self.paused_until.is_some_and(|end| end <= now) {
            self.paused_until = None;
            self.look();
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.slot_freed();
        }
        if self.handshakes_until.is_some_and(|end| end <= now) {
            self.handshakes_until = None;
            self.listeners
                .iter_mut()
                .for_each(|listener| listener.due |= !listener.close_if_empty(&self.null));
        }
        if self.full || self.paused_until.is_some() {
            return Vec::new();
        }
        let due = |(index, listener): (usize, &WorkerListener)| listener.due.then_some(index);
        self.listeners.iter().enumerate().filter_map(due).collect()
    }

    /// Takes no more connections, but for what is queued on the listeners in `empty`, or will be in the time that
    /// `handshakes` have.
    pub(super) fn retire(&mut self, empty: &ListenerSet, handshakes: Duration, poller: &Poller) {
        self.open = false;
        if !handshakes.is_zero() {
            self.handshakes_until = Some(Monotonic::now() + handshakes);
        }
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let Some(socket) = listener.socket else { continue };
            if std::mem::take(&mut listener.watched) {
                // Closing would not do it: the listener lives on in other processes, epoll(7).
                let _ = poller.remove(socket);
            }
            if empty.contains(index) {
                (listener.emptying, listener.due) = (true, true);
                if self.handshakes_until.is_none() {
                    listener.close_if_empty(&self.null);
                }
            } else if !listener.emptying {
                listener.close(&self.null);
            }
        }
    }

    /// Takes no more connections, queued or not.
    pub(super) fn close(&mut self, poller: &Poller) {
        self.retire(&ListenerSet::default(), Duration::ZERO, poller);
        for listener in &mut self.listeners {
            listener.close(&self.null);
        }
    }

    /// The kernel cannot give a connection now: accepting rests. Writes why, not more often than once in ten seconds.
    pub(super) fn exhausted(&mut self, log: &Log, service: &str, address: &str, error: &io::Error) {
        self.pause(EXHAUSTED_PAUSE);
        if self.complaint.is_due(Monotonic::now()) {
            log.event(
                Level::Warning,
                Some(MessageId::AcceptPaused),
                Some(service),
                format_args!("cannot accept on {address}: {error}; connections stay queued, trying again"),
            );
        }
    }

    /// Tries every listener before the next wait.
    pub(super) fn look(&mut self) {
        for listener in &mut self.listeners {
            listener.due = true;
        }
    }
}
