//! Making spares, and losing them.

use std::time::{Duration, Instant};

use super::children::Child;
use super::{Worker, penalties};
use crate::client::Client;
use crate::ipc::reports::{ChildReport, Served};
use crate::journal::{Exit, Level};
use crate::scoreboard::{Count, NoSlot};
use crate::spare::copies::Copies;
use crate::spare::process::{self, Again, SpareContext};
use crate::sys::wait::{self, Ended, Ending, Pid};

impl Worker {
    /// When the next spare is to be made.
    pub(super) fn next_spare(&self) -> Option<Instant> {
        self.pool.next().filter(|_| self.acceptor.is_open())
    }

    /// Makes one spare, if one is missing. Not more: somebody may be calling.
    pub(super) fn make_spare(&mut self) {
        if self.pending.is_some() || !self.acceptor.is_open() || !self.pool.is_due() {
            return;
        }
        let Some(lines) = self.pool.lines() else { return };
        let Ok(output) = self.output_pipe() else { return self.pool.rest() };
        let slot = match self.reserved.take().map_or_else(|| self.claim(), Ok) {
            Ok(slot) => slot,
            Err(NoSlot::Full) => return self.pool.rest_until_bell(),
            Err(NoSlot::OverLoweredLimit) => return self.pool.rest(),
        };
        let number = self.connections + 1;
        let (output, stderr) = output.unzip();
        let mut post = SpareContext {
            spec: self.spec,
            listeners: self.listeners,
            kept: self.kept,
            leash: lines.leash,
            calls: lines.calls,
            bell: lines.bell,
            rings: lines.rings || self.must_hear(),
            copies: self.copies.as_ref().map(Copies::descriptor),
            id: self.id(number),
            again: self.again(),
            sources: self.sources.map(|memory| (memory, slot.place())),
            stderr,
        };
        match self.nursery.fork(slot.pid_word(), process::wait, &mut post) {
            Ok(pid) => {
                self.connections = number;
                self.pool.add(pid, &lines);
                let output = output.map(|read| self.listen_to(pid, read));
                let client = Client { number, ..Client::NOBODY };
                let connection = Child::new(slot, client, output);
                self.children.insert(pid, Child { waits: true, several: post.again.is_some(), ..connection });
            }
            Err(_) => self.pool.rest(),
        }
    }

    /// How spares go on after their first connection, if they do.
    fn again(&self) -> Option<Again> {
        let connections = match self.plan.service.connections_per_child {
            1 => return None,
            0 => None,
            connections => Some(connections),
        };
        Some(Again { connections })
    }

    /// Learns what has become of connections from the processes that serve several.
    pub(super) fn hear_reports(&mut self) {
        // SpareEvents first: a report may be about one of them.
        self.hear_spares();
        let (mut ended, mut refused) = (Vec::new(), Vec::new());
        self.reports.read(|pid, report| match report {
            ChildReport::Ended(served) => ended.push((pid, served)),
            ChildReport::Refused(why) => refused.push(why),
            report => self.children.note(pid, report),
        });
        refused.into_iter().for_each(|why| self.refuse(why));
        for (pid, served) in ended {
            self.end_one_of_several(pid, served);
        }
    }

    fn end_one_of_several(&mut self, pid: Pid, served: Served) {
        let count_next = || self.counters.count(Count::Accepted);
        let ended = self.children.end(pid, count_next).or_else(|| {
            // It was called, and served, since we listened.
            self.hear_spares();
            self.children.end(pid, || self.counters.count(Count::Accepted))
        });
        // The end of a connection that never began is a handler's lie.
        let Some((client, waits)) = ended else { return };
        self.counters.count(Count::Completed);
        if waits {
            self.pool.add_again(pid);
        }
        let ending = Ending::Exited(served.code);
        let cpu = Duration::from_micros(served.cpu_usec);
        let bytes = (served.traffic.received, served.traffic.sent);
        let ended = Ended { pid, ending, cpu, ..Ended::default() };
        self.record(&client, &ended, Exit::Ended(ending), Some(bytes));
        self.punish(&client, penalties::offence(ending, false));
    }

    /// Learns which spares have been called.
    fn hear_spares(&mut self) {
        // Counted before it is noted: a worker that dies in between has lost a connection, and not won one.
        let (has_deadlines, mut called, mut kept) = (self.must_hear(), Vec::new(), Vec::new());
        self.pool.listen(|pid, client| {
            if has_deadlines {
                called.push((pid, *client));
            }
            // One that was stopped and let in somebody after all the others had gone: the supervisor counts anew.
            self.reported_retired = false;
            self.children.call(pid, client, || self.counters.count(Count::Accepted))
        });
        if let Some(copies) = &self.copies {
            copies.read(|pid, process, copy| {
                if self.children.keep(pid, process, copy) && has_deadlines {
                    kept.push(pid);
                }
            });
        }
        called.into_iter().for_each(|(pid, client)| self.watch(pid, &client));
        kept.into_iter().for_each(|pid| self.watch_bytes(pid));
    }

    /// A child that has been stopped; who has none that waits does not ask.
    pub(super) fn stopped_spare(&self) -> Option<Pid> {
        if self.pool.waits() { wait::stopped() } else { None }
    }

    /// A spare has ended that nobody had called.
    pub(super) fn lose_spare(&mut self, connection: &Child, ended: &Ended) {
        if self.pool.is_dismissed() || ended.ending == Ending::Exited(0) {
            return self.pool.has_left();
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
