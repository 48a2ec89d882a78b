//! The watch that a handler's process keeps on its own deadlines.
//!
//! Of a program's connection the worker keeps a copy and asks the kernel about it. Of a handler's it keeps none: each fork
//! would copy them all. So a handler's process has a timer, see [`alarm`], and costs its worker nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::handler;
use crate::admission::{ActivityWatch, Deadlines, GRACE, Verdict};
use crate::client::Traffic;
use crate::config::Builtin;
use crate::ipc::reports::Reporter;
use crate::sys::alarm::{self, OnAlarm};
use crate::sys::tcp_info::TcpInfo;
use crate::sys::{process, stream, time};

/// With this code a handler's process ends that has found a deadline behind it: timeout(1)'s.
pub(crate) const EXIT_CODE: u8 = 124;

/// A process that watches its own connection.
struct SelfWatch<'a> {
    connection: BorrowedFd<'a>,
    reporter: Reporter,
    deadlines: Deadlines,
    watch: ActivityWatch,
}

impl OnAlarm for SelfWatch<'_> {
    fn ring(&mut self) -> Option<Duration> {
        let now = time::monotonic_usec();
        // It fails if this is no TCP.
        let info = TcpInfo::of(self.connection).ok();
        match self.watch.judge(&self.deadlines, now, info.and_then(|info| info.motion)) {
            Verdict::Over(deadline) => {
                let traffic = info.map(|info| Traffic {
                    received: info.received.saturating_sub(self.watch.header),
                    sent: info.sent,
                });
                self.reporter.timed_out(deadline, traffic.unwrap_or_default());
                stream::give_up_after(self.connection, GRACE);
                process::exit(EXIT_CODE)
            }
            Verdict::LookAt(next) => Some(Duration::from_micros(next.saturating_sub(now))),
            Verdict::Free => None,
        }
    }
}

/// Serves one client as [`handler::serve`] does, and ends this process when a deadline has passed. Without one, it costs
/// nothing.
#[inline]
pub(crate) fn serve(
    builtin: Builtin,
    connection: OwnedFd,
    watch: ActivityWatch,
    deadlines: Deadlines,
    reporter: Reporter,
) -> (u8, Traffic) {
    // A connection has just been accepted: no clock, and no question to the kernel, is needed yet.
    let first = watch.first_look(&deadlines).map(|at| at.saturating_sub(watch.began));
    let Some(first) = first.map(Duration::from_micros) else { return handler::serve(builtin, connection) };
    let mut watcher = SelfWatch { connection: connection.as_fd(), reporter, deadlines, watch };
    // Who cannot be watched is not served for ever.
    let served = alarm::during(&mut watcher, first, || handler::serve_on(builtin, connection.as_fd()));
    drop(connection);
    served.unwrap_or((crate::exit::OS, Traffic::default()))
}
