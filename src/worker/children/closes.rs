//! Connections whose program has ended, and which are closed when their clients have what it wrote.

use std::ops::Deref;
use std::os::fd::AsFd;
use std::time::Duration;

use hashbrown::HashMap;

use super::Child;
use crate::child::closing::{Closing, Found};
use crate::client::{Connection, Traffic};
use crate::scoreboard::Scoreboard;
use crate::sys::dontfork::DontForkAlloc;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::exposed::ExposedSocket;
use crate::sys::stream;
use crate::sys::time::Monotonic;
use crate::sys::wait::Ended;
use crate::worker::token::Token;

/// How long a client has to hang up before it is watched: most do so as soon as they have read.
const WATCH_DELAY: Duration = Duration::from_millis(1);

/// What is kept of a connection until it is closed.
#[derive(Debug)]
pub(super) struct Close<S: Deref<Target = Scoreboard>> {
    pub(super) child: Child<S>,
    pub(super) connection: Connection,
    pub(super) ended: Ended,
    kept: ExposedSocket,
    closing: Closing,
    watched: bool,
    /// When it is looked at without news; that is planned once.
    planned: Monotonic,
}

/// What has become of a close.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are closed at once, and nothing is allocated for that")]
pub(super) enum Closed<S: Deref<Target = Scoreboard>> {
    /// The client has all, or does not want it.
    Now(Close<S>),
    /// It is looked at again then, at the latest; `None` if that is planned already.
    Later(Option<Monotonic>),
}

/// Those that are under way, by the number of the connection: their processes are no more.
#[derive(Debug)]
pub(super) struct Closes<S: Deref<Target = Scoreboard>>(
    HashMap<u64, Close<S>, hashbrown::DefaultHashBuilder, DontForkAlloc>,
);

impl<S: Deref<Target = Scoreboard>> Close<S> {
    /// Of a connection whose program has ended; takes until then at the latest.
    pub(super) fn new(
        (child, connection, kept): (Child<S>, Connection, ExposedSocket),
        ended: Ended,
        now: Monotonic,
        until: Monotonic,
    ) -> Self {
        let closing = Closing::new(now, until);
        Close { child, connection, ended, kept, closing, watched: false, planned: Monotonic::NEVER }
    }

    /// Bytes from and to the client, if this is TCP.
    pub(super) fn bytes(&self) -> Option<(u64, u64)> {
        let header = self.connection.client.header_length();
        let Traffic { received, sent } = self.closing.counted()?;
        Some((received.saturating_sub(header), sent))
    }

    /// Ends it for a process, too, that has left the group and kept the connection.
    fn end(&self, poller: &Poller) {
        if self.watched {
            let _ = poller.remove(self.kept.as_fd());
        }
        stream::end(self.kept.as_fd());
    }
}

impl<S: Deref<Target = Scoreboard>> Closes<S> {
    pub(super) fn new() -> Self {
        Closes(HashMap::new_in(DontForkAlloc::new()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn has(&self, number: u64) -> bool {
        self.0.contains_key(&number)
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        self.0.keys().copied().collect()
    }

    /// Begins one. If the client has all and says nothing, it is over at once.
    pub(super) fn begin(&mut self, mut close: Close<S>, now: Monotonic, poller: &Poller) -> Closed<S> {
        if close.closing.look(close.kept.as_fd(), now) == Found::Over {
            close.end(poller);
            return Closed::Now(close);
        }
        // The client may have gone.
        let _ = stream::end_sending(close.kept.as_fd());
        close.planned = now + WATCH_DELAY;
        let planned = close.planned;
        self.0.insert(close.connection.number, close);
        Closed::Later(Some(planned))
    }

    /// Looks at one, since there is news of it or it is time; `None` if it is none of these.
    pub(super) fn look(&mut self, number: u64, now: Monotonic, poller: &Poller) -> Option<Closed<S>> {
        let close = self.0.get_mut(&number)?;
        if close.planned <= now {
            close.planned = Monotonic::NEVER;
        }
        let at = match close.closing.look(close.kept.as_fd(), now) {
            Found::Over => {
                let close = self.0.remove(&number)?;
                close.end(poller);
                return Some(Closed::Now(close));
            }
            Found::Later(at) => at,
        };
        if !close.watched {
            let token = Token::Closing(number);
            close.watched = poller.add(close.kept.as_fd(), Interest::AnyEdge, token.into()).is_ok();
        }
        let is_sooner = at < close.planned;
        if is_sooner {
            close.planned = at;
        }
        Some(Closed::Later(is_sooner.then_some(at)))
    }

    /// All of them take until then, if that is earlier.
    pub(super) fn hurry(&mut self, until: Monotonic) {
        self.0.values_mut().for_each(|close| {
            close.closing.hurry(until);
            close.planned = until.min(close.planned);
        });
    }
}
