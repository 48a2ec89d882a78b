//! One client of the control socket: a call at a time, in the order in which they come, and the replies to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::access::ControlPeer;
use super::answer::Answer;
use super::error::ControlError;
use super::request::{Call, Manner, Request, Spoken, understand};
use crate::config::ControlAccess;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::exposed::ExposedSocket;
use crate::sys::fd::FdNumber;
use crate::sys::time::Monotonic;
use crate::sys::{exposed, stream};

/// So much is read at once.
const PIECE: usize = 16 * 1024;

/// Who takes nothing of a reply for so long gets no more of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client has gone, or talks nonsense, or is to go.
#[derive(Debug)]
pub(super) struct Gone;

/// A client.
#[derive(Debug)]
pub(super) struct Session {
    stream: ExposedSocket,
    pub(super) peer: ControlPeer,
    input: Vec<u8>,
    /// How the call under way wants its replies.
    call: Option<Manner>,
    output: Vec<u8>,
    /// So much of `output` is written.
    written: usize,
    /// It is over when all is written.
    is_last: bool,
    /// Since when nothing has been moved.
    since: Monotonic,
    watched: Option<Interest>,
}

/// A client as it is saved, with nothing left to be written.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedSession {
    stream: FdNumber,
    input: Vec<u8>,
    call: Option<Manner>,
    /// It cannot be seen any more of one that has ended.
    is_served_here: bool,
}

impl Session {
    pub(super) fn new(stream: OwnedFd) -> Self {
        Session {
            peer: ControlPeer::of(&stream),
            stream: stream.into(),
            input: Vec::new(),
            call: None,
            output: Vec::new(),
            written: 0,
            is_last: false,
            since: Monotonic::now(),
            watched: None,
        }
    }

    /// `None` while a reply is being written.
    pub(super) fn save<'a>(
        &'a self,
        keep: &mut impl FnMut(BorrowedFd<'a>) -> FdNumber,
    ) -> Option<SavedSession> {
        self.output.is_empty().then(|| SavedSession {
            stream: keep(self.stream.as_fd()),
            input: self.input.clone(),
            call: self.call,
            is_served_here: self.peer.is_served_here,
        })
    }

    pub(super) fn resume(saved: SavedSession) -> io::Result<Self> {
        let socket: OwnedFd = saved.stream.take()?;
        let mut session = Session::new(socket);
        session.input = saved.input;
        session.call = saved.call;
        session.peer.is_served_here = saved.is_served_here;
        Ok(session)
    }

    /// Whether it may ask this.
    pub(super) fn may(&self, request: &Request, access: &ControlAccess) -> Result<(), ControlError> {
        self.peer.may(request, access, &self.stream)
    }

    /// Whether it waits for a reply.
    pub(super) fn has_called(&self) -> bool {
        self.call.is_some()
    }

    /// Since when it could have called and has not; `None` if it has, also if that has not been read yet.
    pub(super) fn idle_since(&self) -> Option<Monotonic> {
        let has_sent = || stream::peek_now(self.stream.as_fd(), &mut [0]).is_ok_and(|length| length > 0);
        (self.call.is_none() && self.output.is_empty() && !has_sent()).then_some(self.since)
    }

    /// When it is over if nothing moves.
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        (!self.output.is_empty()).then(|| self.since + PATIENCE)
    }

    /// Goes on as far as that is possible at once: writes what is left, and takes one call.
    pub(super) fn advance(&mut self) -> Result<Option<Call>, Gone> {
        self.write()?;
        if !self.output.is_empty() || self.call.is_some() {
            return Ok(None);
        }
        if let Some(call) = self.next_call()? {
            return Ok(Some(call));
        }
        if self.output.is_empty() && self.read()? {
            return self.next_call();
        }
        Ok(None)
    }

    fn next_call(&mut self) -> Result<Option<Call>, Gone> {
        match understand(&self.input) {
            Ok(None) => Ok(None),
            Ok(Some((Spoken::Call(call), length))) => {
                self.input.drain(..length);
                self.call = Some(call.manner);
                Ok(Some(call))
            }
            Ok(Some((Spoken::Old, _))) => {
                self.input.clear();
                self.is_last = true;
                self.output = OLD_ANSWER.to_vec();
                self.write().map(|()| None)
            }
            Err(_) => Err(Gone),
        }
    }

    /// Whether something came.
    fn read(&mut self) -> Result<bool, Gone> {
        let mut piece = [0; PIECE];
        match exposed::receive(self.stream.as_fd(), &mut piece) {
            // Nobody who asks something sends a descriptor.
            Ok((0, _) | (_, true)) => Err(Gone),
            Ok((length, false)) => {
                self.input.extend(piece.iter().take(length));
                self.since = Monotonic::now();
                Ok(true)
            }
            Err(error) if is_for_later(&error) => Ok(false),
            Err(_) => Err(Gone),
        }
    }

    /// Replies to the call under way, if there is one.
    pub(super) fn reply(&mut self, answer: &Answer) -> Result<(), Gone> {
        let Some(manner) = self.call.take() else { return Ok(()) };
        self.output = answer.replies(manner);
        self.written = 0;
        self.since = Monotonic::now();
        self.write()
    }

    fn write(&mut self) -> Result<(), Gone> {
        while self.written < self.output.len() {
            match stream::send_now(self.stream.as_fd(), self.output.get(self.written..).unwrap_or_default()) {
                Ok(0) => return Err(Gone),
                Ok(length) => {
                    self.written += length;
                    self.since = Monotonic::now();
                }
                Err(error) if is_for_later(&error) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        self.output = Vec::new();
        self.written = 0;
        if self.is_last { Err(Gone) } else { Ok(()) }
    }

    /// Has the poller report what it waits for. While a call of it is under way that is nothing: it may have shut down its side,
    /// which is no fault.
    pub(super) fn watch(&mut self, token: u64, poller: &Poller) -> io::Result<()> {
        let has_call = || matches!(understand(&self.input), Ok(Some(_)) | Err(_));
        let wanted = if self.call.is_some() {
            None
        } else if !self.output.is_empty() || has_call() {
            // What has come already is no event any more; that there is room to write is one.
            Some(Interest::Write)
        } else {
            Some(Interest::Read)
        };
        let stream = self.stream.as_fd();
        match (self.watched, wanted) {
            (None, Some(interest)) => poller.add(stream, interest, token)?,
            (Some(_), None) => poller.remove(stream)?,
            (Some(before), Some(interest)) if before != interest => poller.change(stream, interest, token)?,
            _ => {}
        }
        self.watched = wanted;
        Ok(())
    }

    /// Before it is dropped: another process may have what is behind its descriptor.
    pub(super) fn forget(&mut self, poller: &Poller) {
        if self.watched.take().is_some() {
            let _ = poller.remove(self.stream.as_fd());
        }
    }
}

impl Drop for Session {
    /// Nobody puts in anything more, and what is left of it is closed with the stream.
    fn drop(&mut self) {
        stream::end(self.stream.as_fd());
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// As it understood its answers.
const OLD_ANSWER: &[u8] =
    b"{\"refused\":\"the running preforkd is newer than this command, and speaks varlink with it; use \
    the command that is installed with it\"}\n";
