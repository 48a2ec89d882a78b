//! What ends: reports of connection processes, and their deaths.

use super::Worker;
use super::children::Departed;
use super::starter::Admitted;
use crate::ipc::orders::WorkerReport;
use crate::ipc::reports::{ChildReport, Served};
use crate::journal::Level;
use crate::scoreboard::{Count, CountUp};
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::wait::{self, Ended, Ending, Pid};

impl Worker {
    /// Reaps all that have ended.
    pub(super) fn reap(&mut self) {
        if !self.cx.signals.take(Signal::SIGCHLD) {
            return;
        }
        // Who has none that waits does not ask.
        while let Some(pid) = if self.pool.waits() { wait::stopped() } else { None } {
            if self.pool.remove(pid) {
                // As good as dead: it may have been the only one that was woken for a connection.
                self.look();
            }
        }
        let mut any = false;
        while let Some(ended) = self.reap_one() {
            any = true;
            self.hear_reports();
            self.ended(&ended);
        }
        if any {
            self.cx.counters.set(Count::RecordsDropped, self.cx.log.dropped());
            // What just ended may have left room for the process that is wanted.
            self.pool.slot_freed();
            self.retry_start(true);
        }
    }

    /// Reaps one child. Of a program's process group nothing is left behind.
    fn reap_one(&self) -> Option<Ended> {
        if !self.cx.spec.execs() {
            return wait::reap().ok().flatten();
        }
        let pid = wait::ended()?;
        process::kill_rest_of_group(pid);
        wait::wait_for(pid).ok().flatten()
    }

    fn ended(&mut self, ended: &Ended) {
        let departed = self.children.ended(ended, &self.cx.books(), &self.cx.poller);
        self.pool.remove(ended.pid);
        match departed {
            // A program has a layout of its own, anew with each exec.
            Some(Departed::Connection) if ended.ending.is_crash() && !self.cx.spec.execs() => {
                self.link.report_once(&WorkerReport::NeedsRenewal);
            }
            Some(Departed::Spare { failure, is_spent }) => self.lost_spare(ended, failure, is_spent),
            Some(Departed::Connection) | None => {}
        }
    }

    /// A spare has ended that nobody had taken.
    fn lost_spare(&mut self, ended: &Ended, failure: Option<String>, is_spent: bool) {
        if is_spent && ended.ending == Ending::Exited(0) {
            return;
        }
        if self.pool.is_dismissed() || ended.ending == Ending::Exited(0) {
            return self.pool.has_left();
        }
        // It may have been the only one that was woken for a connection.
        self.look();
        self.pool.failed();
        let reason = failure.unwrap_or_else(|| ended.ending.to_string());
        self.cx.event(
            Level::Warning,
            None,
            format_args!("spare {} died before it had a connection: {reason}", ended.pid),
        );
    }

    /// Hears what spares have taken, and what has become of connections.
    pub(super) fn hear_reports(&mut self) {
        // First: a report may be about what was taken.
        self.hear_spares();
        let (mut served, mut refused) = (Vec::new(), Vec::new());
        self.reports.read(|pid, report| match report {
            ChildReport::Ended(one) => served.push((pid, one)),
            ChildReport::Refused(why) => refused.push(why),
            report => self.children.note(pid, report),
        });
        refused.into_iter().for_each(|why| self.refuse(why));
        served.into_iter().for_each(|(pid, served)| self.served_one_of_several(pid, &served));
    }

    fn served_one_of_several(&mut self, pid: Pid, served: &Served) {
        let waits = self.children.served(pid, served, &self.cx.books()).or_else(|| {
            // It was taken, and served, since we listened.
            self.hear_spares();
            self.children.served(pid, served, &self.cx.books())
        });
        if waits == Some(true) {
            self.pool.add_again(pid);
        }
    }

    fn hear_spares(&mut self) {
        let Worker { pool, children, cx, link, .. } = self;
        let mut copies = Vec::new();
        // Counted before it is noted: a worker that dies in between has lost a connection, and not won one.
        pool.hear(
            |pid, connection| {
                // One that was stopped and let in somebody after all the others had gone: the supervisor counts anew.
                link.has_more_to_retire();
                children.taken(pid, connection, || cx.counters.count(Count::Accepted))
            },
            |pid, process, copy| copies.push((pid, process, copy)),
        );
        copies.into_iter().for_each(|(pid, process, copy)| children.keep(pid, process, copy));
    }

    /// Writes the record of a connection that never got a process, and closes it.
    pub(super) fn not_started(&mut self, admitted: &Admitted, reason: &str) {
        let connection = &admitted.connection;
        self.cx.books().not_started(
            self.cx.id(connection.number),
            &connection.client,
            reason,
            &admitted.slot,
        );
    }
}
