//! The deadlines of a worker's connections: `first_byte_timeout` and `idle_timeout` of programs, whose connections it
//! keeps copies of, and `max_lifetime` of all. A handler's process looks after its bytes itself, see
//! [`crate::child::watch`].
//!
//! TERM, then KILL, go to the process group. Each connection is in the [agenda](super::agenda); when nothing in it is due,
//! nobody wakes up.

use std::os::fd::AsFd;
use std::time::Duration;

use super::Worker;
use super::children::Child;
use super::timers::{Timer, TimerKind};
use crate::admission::{ActivityWatch, Deadline, Deadlines, GRACE, Verdict};
use crate::child::watch::EXIT_CODE as TIMED_OUT;
use crate::client::Client;
use crate::config::{Job, Service};
use crate::sys::signal::Signal;
use crate::sys::socket::Peer;
use crate::sys::tcp_info::TcpInfo;
use crate::sys::wait::{self, Ended, Ending, Pid};
use crate::sys::{process, stream, time};

/// Whether a copy of each connection is kept until its program has ended.
pub(super) fn keeps_connections(service: &Service) -> bool {
    let execs = matches!(service.job, Job::Exec(_));
    execs && (service.count_bytes || service.admission.deadlines.are_of_bytes())
}

impl Worker {
    fn deadlines(&self) -> Deadlines {
        self.plan.service.admission.deadlines
    }

    /// Whether it has to know at once who was called.
    pub(super) fn must_hear(&self) -> bool {
        let deadlines = self.deadlines();
        deadlines.lifetime.is_some() || (self.spec.execs() && deadlines.are_of_bytes())
    }

    /// A process has been given a connection, or will go on to it.
    pub(super) fn watch(&mut self, pid: Pid, client: &Client) {
        if let Some(time) = self.deadlines().lifetime {
            let several = self.children.get_mut(pid).is_some_and(|connection| connection.several);
            // One that serves several knows when it begins another; told from outside, it could have begun it just now.
            let time = if several { time.saturating_add(GRACE) } else { time };
            let at = client.accepted_usec.saturating_add(usec(time));
            self.plan_for(Timer { at, pid, number: client.number, task: TimerKind::End });
        }
        self.watch_bytes(pid);
    }

    /// Begins to watch a connection whose process is known to have it, and of which there is a copy.
    pub(super) fn watch_bytes(&mut self, pid: Pid) {
        let deadlines = self.deadlines().of_bytes();
        let can_be_watched = |connection: &&mut Child| {
            let Child { kept, waits, watch, client, .. } = &**connection;
            // The kernel counts nothing of a Unix socket.
            kept.is_some() && !waits && watch.is_none() && matches!(client.peer, Peer::Ip(_))
        };
        let Some(connection) = self.children.get_mut(pid).filter(can_be_watched) else { return };
        let Client { number, accepted_usec, .. } = connection.client;
        let watch = ActivityWatch::new(accepted_usec).behind(connection.header_length());
        if let Some(at) = watch.first_look(&deadlines) {
            connection.watch = Some(watch);
            self.plan_for(Timer { at, pid, number, task: TimerKind::Look });
        }
    }

    fn plan_for(&mut self, entry: Timer) {
        let live = &self.children;
        self.timers.put(entry, live.len(), |pid, number| live.expects(pid, number));
    }

    /// Until something is due.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let at = self.timers.next()?;
        Some(Duration::from_micros(at.saturating_sub(time::monotonic_usec())))
    }

    /// Does what is due.
    pub(super) fn keep_deadlines(&mut self) {
        while self.timers.next().is_some() {
            let (now, live) = (time::monotonic_usec(), &self.children);
            match self.timers.take_due(now, |pid, number| live.expects(pid, number)) {
                Some(Timer { pid, number, task: TimerKind::Look, .. }) => self.look_at(pid, number, now),
                Some(Timer { pid, number, task: TimerKind::End, .. }) => self.end_of_life(pid, number),
                Some(Timer { pid, task: TimerKind::Kill, .. }) => process::signal_group(pid, Signal::SIGKILL),
                None => return,
            }
        }
    }

    fn look_at(&mut self, pid: Pid, number: u64, now: u64) {
        let deadlines = self.deadlines().of_bytes();
        let Some(connection) = self.children.get_mut(pid).filter(|connection| connection.timed_out.is_none())
        else {
            return;
        };
        let Child { kept: Some(kept), watch: Some(watch), .. } = connection else { return };
        let motion = TcpInfo::of(kept.as_fd()).ok().and_then(|info| info.motion);
        match watch.judge(&deadlines, now, motion) {
            Verdict::Over(deadline) => self.expire(pid, number, deadline),
            Verdict::LookAt(at) => self.plan_for(Timer { at, pid, number, task: TimerKind::Look }),
            Verdict::Free => {}
        }
    }

    fn end_of_life(&mut self, pid: Pid, number: u64) {
        // What it has served may have ended.
        self.hear_reports();
        let is_it = |connection: &&mut Child| connection.client.number == number && !connection.waits;
        let Some(connection) = self.children.get_mut(pid).filter(is_it) else { return };
        if connection.several {
            // It should have ended itself.
            connection.timed_out = Some(Deadline::Lifetime);
            process::signal_group(pid, Signal::SIGKILL);
        } else {
            self.expire(pid, number, Deadline::Lifetime);
        }
    }

    fn expire(&mut self, pid: Pid, number: u64, deadline: Deadline) {
        let Some(connection) = self.children.get_mut(pid) else { return };
        // One that has ended by itself was in time.
        if connection.timed_out.is_some() || wait::has_ended(pid) {
            return;
        }
        connection.timed_out = Some(deadline);
        if let Some(kept) = &connection.kept {
            stream::give_up_after(kept.as_fd(), GRACE);
        }
        process::signal_group(pid, Signal::SIGTERM);
        let at = time::monotonic_usec().saturating_add(usec(GRACE));
        self.plan_for(Timer { at, pid, number, task: TimerKind::Kill });
    }

    /// Reaps one child. Of a program's process group nothing is left behind.
    pub(super) fn reap_one(&self) -> Option<Ended> {
        if !self.spec.execs() {
            return wait::reap().ok().flatten();
        }
        let pid = wait::ended()?;
        process::kill_rest_of_group(pid);
        wait::wait_for(pid).ok().flatten()
    }
}

impl Child {
    /// The deadline that has ended it, if one has.
    pub(super) fn timeout(&self, ending: Ending) -> Option<Deadline> {
        let said = self.said_timeout.filter(|_| ending == Ending::Exited(TIMED_OUT));
        self.timed_out.or(said)
    }
}

fn usec(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
