//! Making spares, and losing them.

use std::os::fd::AsFd;
use std::time::Instant;

use super::Worker;
use super::live::Connection;
use crate::config::Level;
use crate::connection::spare::{self, Post};
use crate::shared::{Caller, NoSlot};
use crate::sys::fd::Passed;
use crate::sys::wait::{self, Ended, Ending, Pid};

impl Worker {
    /// When the next spare is to be made.
    pub(super) fn next_spare(&self) -> Option<Instant> {
        self.pool.next().filter(|_| self.intake.is_open())
    }

    /// Makes one spare, if one is missing. Not more: somebody may be calling.
    pub(super) fn make_spare(&mut self) {
        if self.pending.is_some() || !self.intake.is_open() || !self.pool.is_due() {
            return;
        }
        let Some((leash, doorbell)) = self.pool.lines() else { return };
        let Ok(output) = self.output_pipe() else { return self.pool.rest() };
        let slot = match self.reserved.take().map_or_else(|| self.claim(), Ok) {
            Ok(slot) => slot,
            Err(NoSlot::Full) => return self.pool.rest_until_bell(),
            Err(NoSlot::Crowded) => return self.pool.rest(),
        };
        let number = self.connections + 1;
        let post = Post {
            preparation: self.preparation,
            board: self.board,
            tally: self.tally,
            listeners: self.listeners,
            leash,
            doorbell,
            low: self.pool.low(),
            slot: slot.place(),
            id: self.id(number),
            stderr: output.as_ref().map(|(_, write)| Passed::new(write.as_fd())),
        };
        // Before it can be called, which it counts itself.
        self.tally.spare_waits();
        match self.nursery.fork(slot.pid_word(), spare::wait, post) {
            Ok(pid) => {
                self.connections = number;
                self.pool.add(pid, slot.place());
                let output = output.map(|(read, _)| self.listen_to(pid, read));
                let caller = Caller { number, ..Caller::NOBODY };
                let connection = Connection::new(slot, caller, output);
                self.live.insert(pid, Connection { was_spare: true, ..connection });
            }
            Err(_) => {
                self.tally.spare_gone();
                self.pool.rest();
            }
        }
    }

    /// A child that has been stopped; who has none that waits does not ask.
    pub(super) fn stopped_spare(&self) -> Option<Pid> {
        if self.pool.waits() { wait::stopped() } else { None }
    }

    /// A spare has ended that nobody had called.
    pub(super) fn lose_spare(&mut self, connection: &Connection, ended: &Ended) {
        self.tally.spare_gone();
        if self.pool.is_dismissed() || ended.ending == Ending::Exited(0) {
            return;
        }
        // It may have been the only one that was woken for a connection.
        self.look();
        self.pool.rest();
        let reason = connection.failure.map(|failure| failure.explain(&self.plan.service));
        let reason = reason.unwrap_or_else(|| ended.ending.to_string());
        self.log.event(
            Level::Warning,
            None,
            Some(&self.plan.service.name),
            format_args!("spare {} died before it had a connection: {reason}", ended.pid),
        );
    }
}
