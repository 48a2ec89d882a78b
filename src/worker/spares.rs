//! The spares of a worker: when one is made, what they have taken, and what is done when one is lost.

use super::Worker;
use crate::ipc::reports::Served;
use crate::journal::Level;
use crate::scoreboard::{Count, CountUp, NoSlot};
use crate::spare::copies::Copied;
use crate::sys::time::Monotonic;
use crate::sys::wait::{Ended, Ending, Pid};

impl Worker {
    /// Makes one spare, if one is missing. Not more: somebody may be coming.
    pub(super) fn make_spare(&mut self) {
        let is_due = self.pool.next().is_some_and(|next| next <= Monotonic::now());
        if self.starter.is_busy() || !self.acceptor.is_open() || !is_due {
            return;
        }
        match self.slots.take(!self.never_waits()) {
            Ok(slot) => match self.starter.make_spare(slot, &mut self.pool, &self.cx) {
                Ok((pid, spare)) => self.children.insert(pid, spare),
                Err(_) => self.pool.failed(),
            },
            Err(NoSlot::Full) => self.pool.wait_for_slot(),
            Err(NoSlot::OverLoweredLimit) => self.pool.failed(),
        }
    }

    /// Has a spare see whether something is queued, if only spares have slots for it.
    pub(super) fn let_a_spare_look(&mut self) {
        if self.pool.waits() && !self.acceptor.takes() && self.acceptor.is_queued() {
            self.pool.wake_one();
        }
    }

    pub(super) fn hear_spares(&mut self) {
        let Worker { pool, children, cx, link, lingering, .. } = self;
        let mut copies = Vec::new();
        // Counted before it is noted: a worker that dies in between has lost a connection, and not won one.
        pool.hear(
            |pid, connection| {
                // One that was stopped and let in somebody after all the others had gone: the supervisor counts anew.
                link.has_more_to_retire();
                children.taken(pid, connection, || cx.counters.count(Count::Accepted))
            },
            |copied| copies.push(copied),
        );
        for copied in copies {
            match copied {
                Copied::Program { pid, process, connection } => children.keep(pid, process, connection),
                Copied::Refused(connection) => lingering.keep(connection, &cx.poller),
            }
        }
    }

    /// False if it cannot be true.
    pub(super) fn served_one_of_several(&mut self, pid: Pid, served: &Served) -> bool {
        let waits = self.children.served(pid, served, &self.cx.books()).or_else(|| {
            // It was taken, and served, since we listened.
            self.hear_spares();
            self.children.served(pid, served, &self.cx.books())
        });
        if waits == Some(true) {
            self.pool.add_again(pid);
        }
        waits.is_some()
    }

    /// A spare has ended that nobody had taken.
    pub(super) fn lost_spare(&mut self, ended: &Ended, failure: Option<String>) {
        // It has served all that it was to serve, or was told to go.
        if self.pool.is_dismissed() || ended.ending == Ending::Exited(0) {
            return;
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
}
