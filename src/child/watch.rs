//! The watch that a handler's process keeps on its own deadlines.
//!
//! Of a program's connection the worker keeps a copy and asks the kernel about it. Of a handler's it keeps none: each fork
//! would copy them all. So a handler's process has a timer, see [`alarm`], and costs its worker nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::call::{CallOutcome, HandlerCall};
use super::{Conn, closing};
use crate::admission::{ActivityWatch, Deadlines, TERM_TO_KILL, Verdict};
use crate::client::Traffic;
use crate::handler::Progress;
use crate::ipc::reports::ExitNote;
use crate::pace::LINGER_TIME;
use crate::sys::alarm::{self, OnAlarm};
use crate::sys::socket::{self, Peer};
use crate::sys::tcp_info::{Activity, TcpInfo};
use crate::sys::time::Monotonic;
use crate::sys::{process, stream};

/// With this code a handler's process ends that has found a deadline behind it: timeout(1)'s.
pub(crate) const TIMED_OUT: u8 = 124;

/// A process that watches its own connection.
struct SelfWatch<'a> {
    connection: BorrowedFd<'a>,
    /// What the handler itself has counted: of a Unix socket the kernel counts nothing.
    progress: &'a Progress,
    header_length: u64,
    deadlines: Deadlines,
    watch: ActivityWatch,
}

impl SelfWatch<'_> {
    /// As the kernel would say it, when the last byte was moved so long ago.
    fn own_count(&self, age: Duration) -> Activity {
        let Traffic { received, sent } = self.progress.traffic();
        let ms = u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
        Activity { received: received + self.header_length, acked: sent, since_data_ms: ms, since_ack_ms: ms }
    }
}

impl OnAlarm for SelfWatch<'_> {
    fn ring(&mut self) -> Option<Duration> {
        let now = Monotonic::now();
        let info = match self.progress.moved() {
            Some(_) => None,
            None => TcpInfo::of(self.connection).ok(),
        };
        let activity = match self.progress.moved() {
            Some(moved) => Some(self.own_count(now - moved)),
            None => info.and_then(|info| info.activity),
        };
        match self.watch.judge(&self.deadlines, now, activity) {
            Verdict::Over(deadline) => {
                stream::give_up_after(self.connection, TERM_TO_KILL);
                // If it serves several, it is killed later.
                let traffic = closing::finish(self.connection, now + LINGER_TIME).map(|counted| Traffic {
                    received: counted.received.saturating_sub(self.header_length),
                    ..counted
                });
                stream::end(self.connection);
                ExitNote::TimedOut(deadline, traffic.unwrap_or_else(|| self.progress.traffic())).leave();
                process::exit(TIMED_OUT)
            }
            Verdict::LookAt(next) => Some(next - now),
            Verdict::Free => None,
        }
    }
}

/// Serves one client as [`HandlerCall::serve`] does, and ends this process when a deadline has passed. Without one, it costs
/// nothing. Whoever watches that, it will be ended at `lives_until`.
#[inline]
pub(crate) fn serve(
    call: HandlerCall,
    connection: OwnedFd,
    conn: &Conn,
    deadlines: Deadlines,
    lives_until: Monotonic,
) -> CallOutcome {
    let client = &conn.client;
    let watch = ActivityWatch::new(client);
    let header_length = client.header_length();
    // Before somebody kills it who thinks that it still serves.
    let until = match deadlines.until(client) {
        Monotonic::NEVER => Monotonic::NEVER,
        until => until + LINGER_TIME,
    };
    // It has just been accepted: no clock, and no question to the kernel, is needed yet.
    let Some(first) = watch.first_look(&deadlines).map(|at| at - client.accepted) else {
        let progress = Progress::default();
        let outcome = call.serve((connection.as_fd(), &progress), (conn.id, client), lives_until);
        return close(connection, header_length, outcome, &progress, until);
    };
    let connection_fd = connection.as_fd();
    // Behind a proxy it may be a Unix socket, too.
    let is_unix = matches!(client.peer, Peer::Unix(_)) || client.header.is_some() && is_unix(connection_fd);
    let progress = if is_unix { Progress::timed(client.accepted) } else { Progress::default() };
    let mut watcher =
        SelfWatch { connection: connection_fd, progress: &progress, header_length, deadlines, watch };
    let served = alarm::during(&mut watcher, first, || {
        call.serve((connection.as_fd(), &progress), (conn.id, client), lives_until)
    });
    match served {
        Ok(outcome) => close(connection, header_length, outcome, &progress, until),
        // Who cannot be watched is not served for ever.
        Err(_) => CallOutcome { code: crate::exit::OS, traffic: Traffic::default() },
    }
}

/// Closes a connection that has been served.
#[inline]
fn close(
    connection: OwnedFd,
    header_length: u64,
    outcome: CallOutcome,
    progress: &Progress,
    until: Monotonic,
) -> CallOutcome {
    let mut said = outcome.traffic;
    // What is asked for most connections costs a fraction of what tells more.
    let is_over = progress.is_at_end() && !progress.is_shared();
    if is_over && stream::unacknowledged(connection.as_fd()) == Some(0) {
        return outcome;
    }
    if progress.is_shared() {
        said.received = TcpInfo::of(connection.as_fd())
            .map_or(said.received, |info| info.received.saturating_sub(header_length));
    }
    CallOutcome { traffic: closing::close(connection, header_length, said, until), ..outcome }
}

fn is_unix(connection: BorrowedFd<'_>) -> bool {
    matches!(socket::local_address(connection), Ok(None))
}
