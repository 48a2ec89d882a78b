//! A connection as its worker sees it, from the listener to the record: a slot, an accept, perhaps a proxy's header, the
//! decision, a process; then what that process reports, and its death.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use super::acceptor::Accepted;
use super::children::rest::{self, GroupRest, LeafRest};
use super::children::{Child, Departed};
use super::context::{Newcomer, WorkerSlot};
use super::starter::{Admitted, Started};
use super::{Worker, headers};
use crate::admission::Refusal;
use crate::admission::proxy::{ProxiedClient, Read};
use crate::client::{Client, ProxyHeader};
use crate::ipc::orders::{LeftOver, WorkerReport};
use crate::ipc::reports::{ChildReport, ExitNote, FAILED_TO_BEGIN};
use crate::journal::{Level, MessageId, Remote};
use crate::scoreboard::{Count, CountUp};
use crate::sys::fork::Pids;
use crate::sys::signal::Signal;
use crate::sys::socket::{self, Peer};
use crate::sys::time::Monotonic;
use crate::sys::wait::{self, Ended, Ending, Pid};

impl Worker {
    /// Takes one connection. If epoll has reported the listener it will again, at once, as long as its queue is not
    /// empty; so signals, orders and other listeners have their turn, and other workers their share.
    pub(super) fn accept_from(&mut self, index: usize) {
        if self.waited.is_used() {
            return self.start_program(index);
        }
        if self.starter.is_busy() {
            // Not forgotten: a listener that is being emptied is not watched.
            return self.acceptor.more(index);
        }
        let slot = match self.slots.take(!self.never_waits()) {
            Ok(slot) => slot,
            Err(_) if self.acceptor.close_if_empty(index) => return,
            Err(why) => match self.overloaded(index, why) {
                Some(slot) => slot,
                None => return,
            },
        };
        let left = match self.acceptor.accept(index) {
            Accepted::Connection(socket, peer) => {
                self.greet(Newcomer { slot, socket, client: Client::now(peer) })
            }
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
        if let Some(slot) = left.filter(|_| self.reserves() && !self.pool.waits()) {
            self.slots.keep(slot);
        }
    }

    /// Accepts from listeners that epoll will not report, or not soon enough.
    pub(super) fn accept_unasked(&mut self) {
        if self.starter.is_busy() {
            return;
        }
        let due = self.acceptor.due(Monotonic::now());
        if due.is_empty() || self.serve_soon() {
            return;
        }
        due.into_iter().for_each(|index| self.accept_from(index));
    }

    /// Begins with a connection, if it is known whose it is. Gives the slot back if nobody needs it.
    fn greet(&mut self, newcomer: Newcomer) -> Option<WorkerSlot> {
        if !self.cx.admission.is_proxy(newcomer.client.peer) {
            return self.admit(newcomer);
        }
        if let Some((newcomer, read)) = self.headers.begin(newcomer, &self.cx.poller) {
            self.believe(newcomer, &read);
        }
        None
    }

    /// Something has come from a proxy.
    pub(super) fn hear_proxy(&mut self, number: u64) {
        if self.starter.is_busy() {
            return self.headers.hold(number, &self.cx.poller);
        }
        if let Some((newcomer, read)) = self.headers.advance(number, &self.cx.poller) {
            self.believe(newcomer, &read);
        }
    }

    /// Hears proxies again that had to wait, and gives up those that let us wait.
    pub(super) fn tend_proxies(&mut self) {
        if self.headers.is_empty() {
            return;
        }
        if !self.starter.is_busy() {
            self.headers.resume(&self.cx.poller);
        }
        while let Some(newcomer) = self.headers.expired(&self.cx.poller) {
            let text = format!("no whole PROXY header within {} s", headers::HEADER_TIMEOUT.as_secs());
            self.disbelieve(newcomer.client.peer, &io::Error::new(io::ErrorKind::TimedOut, text));
        }
    }

    fn believe(&mut self, mut newcomer: Newcomer, read: &Read) {
        let (named, length) = match *read {
            Read::Client(client, length) => (client, length),
            Read::Wrong(ref error) => return self.disbelieve(newcomer.client.peer, error),
            Read::Gone { begun: true } => {
                return self
                    .disbelieve(newcomer.client.peer, &"the connection ended within the PROXY header");
            }
            // A check whether the port is open.
            Read::Gone { begun: false } | Read::More => return,
        };
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        let client = &mut newcomer.client;
        let own = ProxyHeader { length, names_client: false, called: None };
        client.header = Some(match named {
            ProxiedClient::Tcp { source, destination } => {
                // Version 1 has no LOCAL, and HAProxy's checks name the two ends of their own connection instead. The
                // source alone does not tell: a transparent proxy connects from the address of its client.
                let called = || socket::local_address(newcomer.socket.as_fd()).ok().flatten();
                if client.peer == Peer::Ip(source) && called() == Some(destination) {
                    own
                } else {
                    client.peer = Peer::Ip(source);
                    ProxyHeader { length, names_client: true, called: Some(destination) }
                }
            }
            ProxiedClient::Local | ProxiedClient::Unix | ProxiedClient::Unknown => own,
        });
        // If it is not let in, its slot is free as of now.
        self.admit(newcomer);
    }

    fn disbelieve(&mut self, proxy: Peer, why: &dyn std::fmt::Display) {
        self.refuse(Refusal::Header);
        if self.refusals.complains() {
            let warn =
                |text: fmt::Arguments<'_>| self.cx.event(Level::Warning, Some(MessageId::Refused), text);
            match proxy {
                Peer::Ip(proxy) => warn(format_args!(
                    "the proxy {}: {why}; if it is none, take it out of proxy_protocol_from",
                    proxy.ip()
                )),
                Peer::Unix(_) => warn(format_args!(
                    "the proxy {}: {why}; if clients connect to the Unix socket themselves, take \"unix:\" out of \
                     proxy_protocol_from",
                    Remote::from(proxy)
                )),
            }
        }
    }

    /// Lets a client in, or not; then the slot is free.
    fn admit(&mut self, mut newcomer: Newcomer) -> Option<WorkerSlot> {
        let warm = self.warm_process().map(|(pid, child)| (pid, child.slot().index()));
        // Where it is counted, it is until its process has ended.
        let counted = (self.cx.scoreboard.sources(), warm.map_or(newcomer.slot.index(), |(_, place)| place));
        match self.cx.admission.check(&mut newcomer.client, newcomer.socket.as_fd(), Some(counted)) {
            Ok(()) => {
                self.cx.counters.count(Count::Accepted);
                let newcomer = match warm {
                    None => {
                        self.warm.found_none();
                        newcomer
                    }
                    Some((pid, _)) => match self.give_to_warm(pid, newcomer) {
                        Ok(left) => return Some(left),
                        Err(newcomer) => newcomer,
                    },
                };
                let started = self.starter.begin(newcomer, &self.pool, &self.cx);
                self.started(started);
                None
            }
            Err(why) => {
                self.turn_away(why, newcomer.socket);
                Some(newcomer.slot)
            }
        }
    }

    /// Tries again to start the process that is waited for, if it is time or something has ended `just_now`.
    pub(super) fn retry_start(&mut self, just_now: bool) {
        if let Some(started) = self.starter.retry(&self.pool, &self.cx, just_now) {
            self.started(started);
        }
    }

    pub(super) fn started(&mut self, started: Started) {
        if self.waited.is_used() {
            self.program_started(&started);
        }
        match started {
            Started::Process(pid, child) => self.children.insert(pid, child),
            Started::Later => {}
            Started::Never(admitted, reason) => self.not_started(&admitted, &reason),
        }
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

    /// Counts a connection that was not let in.
    pub(super) fn refuse(&mut self, why: Refusal) {
        self.cx.counters.count_refused(why);
        self.refusals.collect(why);
    }

    /// Writes what was refused since the last report, if it is time or `at_once`.
    pub(super) fn report_refusals(&mut self, at_once: bool) {
        let collected = if at_once { self.refusals.rest() } else { self.refusals.due() };
        if let Some(collected) = collected {
            self.cx.event(Level::Notice, Some(MessageId::Refused), format_args!("{collected}"));
        }
    }

    pub(super) fn exhausted(&mut self, index: usize, error: &io::Error) {
        let address = self.cx.plan.listeners.get(index).map_or("", |listener| &listener.name);
        self.acceptor.exhausted(&self.cx.log, &self.cx.plan.service.name, address, error);
    }

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
            self.hear_last(&ended);
            self.vacate(ended.pid);
            self.ended(&ended);
        }
        if any {
            // What just ended may have left room for the process that is wanted.
            self.pool.slot_freed();
            self.warm.slot_freed();
            self.retry_start(true);
        }
    }

    /// Reaps one child. What a program leaves behind in its cgroup or process group is killed, or reported.
    fn reap_one(&mut self) -> Option<Ended> {
        let pid = wait::ended()?;
        let (execs, kill_mode) = (self.cx.spec.execs(), self.cx.plan.service.kill_mode);
        let has_own_pids = self.cx.spec.pids() == Pids::Own;
        // Not of a program, which could leave it too.
        let note = if execs && !has_own_pids { None } else { ExitNote::of(pid) };
        if !execs {
            let is_its_own = |note: &ExitNote| !matches!(note, ExitNote::Killed(_));
            note.filter(is_its_own).into_iter().for_each(|note| self.children.note(pid, note));
        }
        let leaf = self.children.take_leaf(pid);
        let group = (execs && leaf.is_none()).then(|| rest::end(pid, kill_mode));
        let ended = wait::wait_for(pid).ok().flatten().map(|ended| ExitNote::correct(note, ended));
        let in_group = |rest: GroupRest| Some((LeftOver::Group(pid), rest.left(pid)?));
        let left = match leaf.map(|leaf| rest::end_leaf(leaf, kill_mode)) {
            None => group.and_then(in_group),
            Some(LeafRest::Nobody(leaf)) => {
                self.starter.put_back(leaf, false);
                None
            }
            Some(LeafRest::Killed(leaf)) => {
                self.starter.put_back(leaf, true);
                None
            }
            Some(LeafRest::Left(number, kill_after)) => Some((LeftOver::Leaf(number), kill_after)),
        };
        if let Some((whom, kill_after)) = left {
            self.link.report(&WorkerReport::LeftBehind { whom, kill_after });
        }
        ended
    }

    /// Ends what a process has left behind that has been reaped, while it has its slot, if it had a user of its own.
    fn vacate(&self, pid: Pid) {
        let Some(child) = self.children.get(pid) else { return };
        if let Err(error) = self.cx.spec.vacate(child.slot().index()) {
            self.cx.event(
                Level::Warning,
                None,
                format_args!("what connection {} has left behind cannot be killed: {error}", child.id()),
            );
        }
    }

    fn ended(&mut self, ended: &Ended) {
        let child = self.children.get(ended.pid).filter(|_| self.waited.is_used());
        let failure = child.and_then(Child::failure);
        let departed = self.children.ended(ended, &self.cx.books(), &self.cx.poller);
        if self.waited.is_used() {
            self.program_ended(ended, failure);
        }
        self.pool.remove(ended.pid);
        if let Some(Departed::Connection) = departed {
            self.warm.connection_ended();
        }
        match departed {
            // A program has a layout of its own, anew with each exec.
            Some(Departed::Connection) if ended.ending.is_crash() && !self.cx.spec.execs() => {
                self.link.report_once(&WorkerReport::NeedsRenewal);
            }
            Some(Departed::Spare { failure }) if self.warm.were_wanted() => {
                self.lost_warm(ended, failure);
            }
            Some(Departed::Spare { failure }) => self.lost_spare(ended, failure),
            Some(Departed::Connection) if ended.ending.is_by_filter() => self.say_why_killed(),
            Some(Departed::Connection) | None => {}
        }
    }

    /// Whoever sees the first of such records shall know what to do about it; a program may go on to do it.
    fn say_why_killed(&mut self) {
        if !self.said_why_killed && self.cx.spec.filters_calls() {
            self.said_why_killed = true;
            self.cx.event(
                Level::Warning,
                None,
                format_args!(
                    "the filter of system calls kills programs of 32 bits that another one starts; \
                     sandbox = {{ system_calls = \"any\" }} lets them run"
                ),
            );
        }
    }

    /// Hears what spares have taken, and what has become of connections.
    pub(super) fn hear_reports(&mut self) {
        // First: a report may be about what was taken.
        self.hear_spares();
        let mut refused = Vec::new();
        self.reports.read(|pid, report| match report {
            ChildReport::Failed(failure) => self.children.failed(pid, failure),
            ChildReport::Refused(why) => refused.push(why),
            // Who has this to say has a pipe of its own.
            ChildReport::Ended(_) => {}
        });
        refused.into_iter().for_each(|why| self.refuse(why));
    }

    /// Hears what a process has said before it ended.
    fn hear_last(&mut self, ended: &Ended) {
        if self.pool.is_used() || ended.ending == Ending::Exited(FAILED_TO_BEGIN) {
            self.hear_reports();
        }
        if self.pool.serves_several() {
            self.hear_rest(ended.pid);
        }
    }
}
