//! The path of a connection through its worker: a slot, an accept, a fork; and at the end the reaping and the record.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::acceptor::Accepted;
use super::children::Child;
use super::greeting::Guest;
use super::output::{Output, PipeState};
use super::pending::Pending;
use super::{OUTPUTS, Worker, deadlines, penalties};
use crate::admission::Refusal;
use crate::child::{self, ChildSpec, Conn};
use crate::client::{Client, ConnectionId};
use crate::config::Stderr;
use crate::ipc::orders::WorkerReport;
use crate::ipc::reports::FAILED_TO_BEGIN;
use crate::journal::{ConnectionRecord, Exit, Level, MessageId, OutputLine};
use crate::scoreboard::{Count, NoSlot, Owner, Slot};
use crate::sys::epoll::Interest;
use crate::sys::fd;
use crate::sys::fork::ForkedChild;
use crate::sys::signal::Signal;
use crate::sys::stream;
use crate::sys::wait::{Ended, Ending, Pid};

/// What a child forked for a connection begins with.
type Start = (&'static ChildSpec, OwnedFd, Conn, Option<OwnedFd>);

fn serve_in_fork(child: ForkedChild, (spec, connection, call, stderr): Start) -> u8 {
    child::serve_in_fork(child, spec, connection, &call, stderr.as_ref().map(AsFd::as_fd))
}

impl Worker {
    /// Takes one connection. If epoll has reported the listener it will again, at once, as long as its queue is not
    /// empty; so signals, orders and other listeners have their turn, and other workers their share.
    pub(super) fn accept_from(&mut self, index: usize) {
        if self.pending.is_some() {
            // Not forgotten: a listener that is being emptied is not watched.
            return self.acceptor.more(index);
        }
        let slot = match self.reserved.take().map_or_else(|| self.claim(), Ok) {
            Ok(slot) => slot,
            Err(_) if self.acceptor.close_if_empty(index) => return,
            Err(why) => match self.overloaded(index, why) {
                Some(slot) => slot,
                None => return,
            },
        };
        let left = match self.acceptor.accept(index) {
            Accepted::Connection(connection, peer) => self.greet(slot, connection, peer),
            Accepted::Lost => Some(slot),
            Accepted::Nothing => {
                self.acceptor.nothing_more(index);
                Some(slot)
            }
            Accepted::Exhausted(error) => {
                self.exhausted(index, &error);
                Some(slot)
            }
        };
        // Given back, it would ring for another worker, which finds nothing either and rings for this one.
        if left.is_some() && self.reserves() && !self.pool.waits() {
            self.reserved = left;
        }
    }

    /// Counts a connection that was not let in; it is closed already.
    pub(super) fn refuse(&mut self, why: Refusal) {
        self.counters.count_refused(why);
        self.refusals.collect(why);
    }

    /// Writes what was refused since the last report, if it is time or `at_once`.
    pub(crate) fn report_refusals(&mut self, at_once: bool) {
        let collected = if at_once { self.refusals.rest() } else { self.refusals.due() };
        if let Some(collected) = collected {
            let (id, service) = (Some(MessageId::Refused), Some(self.plan.service.name.as_str()));
            self.log.event(Level::Notice, id, service, format_args!("{collected}"));
        }
    }

    /// Whether a slot is claimed before a connection comes.
    fn reserves(&self) -> bool {
        self.plan.service.spare > 0 && self.acceptor.is_open()
    }

    /// Whether this worker can take a connection if it is woken for one.
    ///
    /// With `EPOLLEXCLUSIVE` only one of all that wait is woken. Without spares a worker that then finds all slots taken
    /// has robbed nobody. But slots may be taken by spares of other workers, which could have served; so where there are
    /// spares, who has no slot does not wait.
    pub(super) fn has_room(&mut self) -> bool {
        if !self.reserves() || !self.acceptor.takes() || self.reserved.is_some() {
            return true;
        }
        match self.claim() {
            Ok(slot) => self.reserved = Some(slot),
            Err(why) => self.wait_for_slot(why),
        }
        self.reserved.is_some()
    }

    /// Has a spare see whether something is queued, if only spares have slots for it.
    pub(super) fn let_a_spare_look(&mut self) {
        if self.pool.waits() && !self.acceptor.takes() && self.acceptor.is_queued() {
            self.pool.wake_one();
        }
    }

    /// Accepts from listeners that epoll will not report, or not soon enough.
    pub(super) fn accept_unasked(&mut self) {
        if self.pending.is_some() {
            return;
        }
        for index in self.acceptor.due(Instant::now()) {
            self.accept_from(index);
        }
    }

    pub(super) fn claim(&self) -> Result<Slot, NoSlot> {
        let owner = Owner::worker(self.plan.serial);
        self.scoreboard.claim(owner).or_else(|why| {
            if self.never_waits() {
                return Err(why);
            }
            self.scoreboard.want();
            self.scoreboard.claim(owner)
        })
    }

    /// Begins with a client that has been let in.
    pub(super) fn begin(&mut self, slot: Slot, guest: Guest) {
        self.connections += 1;
        self.counters.count(Count::Accepted);
        let client =
            Client { number: self.connections, accepted_usec: guest.accepted_usec, peer: guest.peer };
        slot.note(&client);
        self.start(Pending::new(slot, guest.connection, client, guest.header));
    }

    /// Makes the connection process, or keeps the connection for another try.
    fn start(&mut self, mut pending: Pending) {
        let (output, stderr) = match self.output_pipe() {
            Ok(output) => output.unzip(),
            Err(error) => return self.keep(pending, error),
        };
        let call = Conn {
            peer: pending.client.peer,
            accepted_usec: pending.client.accepted_usec,
            called: pending.header.and_then(|header| header.called),
            header: pending.header.map_or(0, |header| header.length as u64),
            id: self.id(pending.client.number),
        };
        let (record, spec) = (pending.slot.pid_word(), self.spec);
        let made = if spec.execs() && spec.may_share_memory() {
            let connection = pending.connection.as_fd();
            let program = spec.program(&call, connection);
            let (program, desk) = (program.as_deref(), &self.desk);
            let stderr = stderr.as_ref().map(AsFd::as_fd);
            let made = self.nursery.run_until_exec(record, &|child| {
                child::serve_sharing(child, spec, connection, stderr, program, desk)
            });
            self.desk.clear();
            made
        } else {
            let mut start = (spec, pending.connection, call, stderr);
            let made = self.nursery.fork(record, serve_in_fork, &mut start);
            pending.connection = start.1;
            made
        };
        match made {
            Ok(pid) => {
                let Pending { slot, connection, client, header, .. } = pending;
                let output = output.map(|read| self.listen_to(pid, read));
                // The worker's copy of the connection closes here, unless somebody has to ask about it.
                let kept = Some(connection).filter(|_| deadlines::keeps_connections(&self.plan.service));
                self.children.insert(pid, Child { kept, header, ..Child::new(slot, client, output) });
                self.watch(pid, &client);
            }
            Err(error) => self.keep(pending, error),
        }
    }

    /// A pipe for what a program says on stderr, if that becomes records.
    pub(super) fn output_pipe(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        let wanted = self.spec.execs() && self.plan.service.stderr == Stderr::Log;
        wanted.then(fd::pipe).transpose()
    }

    pub(super) fn listen_to(&self, pid: Pid, pipe: OwnedFd) -> Output {
        let output = Output::new(pipe);
        // Without it the lines are read when the process ends.
        let _ = self.poller.add(output.descriptor(), Interest::Read, OUTPUTS + pid as u64);
        output
    }

    fn keep(&mut self, mut pending: Pending, error: io::Error) {
        if pending.failed(error) {
            self.pending = Some(pending);
        } else {
            let reason = pending.reason();
            self.not_started(&pending, &reason);
        }
    }

    pub(super) fn retry_pending(&mut self) {
        if let Some(pending) = self.pending.take_if(|pending| pending.next_try() <= Instant::now()) {
            self.start(pending);
        }
    }

    /// Writes the record of a connection that never got a process, and closes it.
    pub(super) fn not_started(&mut self, pending: &Pending, reason: &str) {
        self.counters.count(Count::Completed);
        let nothing = Ended::default();
        self.record(&pending.client, &nothing, Exit::NotStarted(reason), None);
    }

    pub(super) fn reap(&mut self) {
        if !self.spec.signals().take(Signal::SIGCHLD) {
            return;
        }
        while let Some(pid) = self.stopped_spare() {
            if self.pool.remove(pid) {
                // As good as dead: it may have been the only one that was woken for a connection.
                self.look();
            }
        }
        let mut any = false;
        while let Some(ended) = self.reap_one() {
            any = true;
            self.hear_reports();
            if let Some(connection) = self.children.remove(ended.pid) {
                self.finish(connection, &ended);
            }
        }
        if any {
            self.counters.set(Count::RecordsDropped, self.log.dropped());
            // What just ended may have left room for the process that is wanted.
            self.pool.slot_freed();
            if let Some(pending) = self.pending.take() {
                self.start(pending);
            }
        }
    }

    /// A connection process has ended: the last lines of its stderr, its record, and its slot back.
    fn finish(&mut self, mut connection: Child, ended: &Ended) {
        if let Some(output) = &mut connection.output {
            let _ = self.poller.remove(output.descriptor());
            let id = self.id(connection.client.number);
            output.drain(&mut |text| self.write_line(id, ended.pid, text));
        }
        self.pool.remove(ended.pid);
        if connection.waits {
            return self.lose_spare(&connection, ended);
        }
        self.counters.count(Count::Completed);
        if ended.ending.is_crash() {
            self.counters.count(Count::Crashes);
            // A program has a layout of its own, anew with each exec.
            if !self.spec.execs() && !std::mem::replace(&mut self.reported_renewal, true) {
                self.report(&WorkerReport::NeedsRenewal);
            }
        }
        let bytes = connection.bytes();
        // The client is not to wait for the record, nor for a process that has left the group and kept the connection.
        connection.kept.take().inspect(|kept| stream::end(kept.as_fd()));
        let failed = ended.ending == Ending::Exited(FAILED_TO_BEGIN);
        let failure = connection.failure.filter(|_| failed);
        let reason = failure.map(|failure| failure.explain(&self.plan.service));
        let timeout = connection.timeout(ended.ending).inspect(|_| self.counters.count(Count::Timeouts));
        let exit = match (timeout, reason.as_deref()) {
            (Some(deadline), _) => Exit::TimedOut(deadline),
            (None, Some(reason)) => Exit::NotStarted(reason),
            (None, None) => Exit::Ended(ended.ending),
        };
        self.record(&connection.client, ended, exit, bytes);
        // Nobody is punished for a check of a proxy, whose source may be that of others.
        if reason.is_none() && !connection.is_of_proxy() {
            self.punish(&connection.client, penalties::offence(ended.ending, timeout.is_some()));
        }
    }

    /// Lines from a program that is still running.
    pub(super) fn read_output(&mut self, pid: Pid) {
        let Some(mut connection) = self.children.remove(pid) else { return };
        let id = self.id(connection.client.number);
        if let Some(mut output) = connection.output.take() {
            if output.read(&mut |text| self.write_line(id, pid, text)) == PipeState::Closed {
                let _ = self.poller.remove(output.descriptor());
            } else {
                connection.output = Some(output);
            }
        }
        self.children.insert(pid, connection);
    }

    fn write_line(&self, id: ConnectionId, pid: Pid, text: &[u8]) {
        self.log.output(&OutputLine { service: &self.plan.service.name, id, pid, text });
    }

    pub(super) fn record(&self, client: &Client, ended: &Ended, exit: Exit<'_>, bytes: Option<(u64, u64)>) {
        let id = self.id(client.number);
        let record = ConnectionRecord::new(&self.plan.service.name, id, client, ended, exit);
        self.log.connection(&ConnectionRecord { bytes, ..record });
    }

    pub(super) fn id(&self, number: u64) -> ConnectionId {
        ConnectionId { run: self.plan.run, worker: self.plan.serial, number }
    }
}
