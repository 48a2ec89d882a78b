//! The path of a connection from its listener to a process: a slot, an accept, perhaps a proxy's header, the decision, a
//! fork. And what meets it when all slots are taken.
//!
//! Without spares a worker goes on watching, and refuses whoever comes while there is no slot. With spares it would be
//! woken in place of one that waits, perhaps another worker's; so there it does not watch, and looks now and then while
//! there is no slot. Either way a slot that has become free is taken first.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::acceptor::Accepted;
use super::starter::Started;
use super::{Newcomer, Worker, WorkerSlot, headers};
use crate::admission::proxy::{ProxiedClient, Read};
use crate::admission::{Overload, Refusal};
use crate::client::{Client, ProxyHeader};
use crate::journal::{Level, MessageId};
use crate::scoreboard::{Count, CountUp, NoSlot};
use crate::sys::socket::{self, Peer};
use crate::sys::stream;
use crate::sys::time::Monotonic;

/// How long to wait before another try where a limit was lowered below what lives.
const OVER_LOWERED_LIMIT: Duration = Duration::from_millis(50);

/// How often a worker looks for who is to be refused, where there are spares and none waits.
const LOOK: Duration = Duration::from_millis(10);

/// The same while a spare of another worker waits. When that is taken, its own worker looks.
const GLANCE: Duration = Duration::from_millis(100);

/// How many are refused before others have their turn.
const REFUSED_AT_ONCE: usize = 32;

impl Worker {
    /// Takes one connection. If epoll has reported the listener it will again, at once, as long as its queue is not
    /// empty; so signals, orders and other listeners have their turn, and other workers their share.
    pub(super) fn accept_from(&mut self, index: usize) {
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
        if !self.starter.is_busy() {
            for index in self.acceptor.due(Monotonic::now()) {
                self.accept_from(index);
            }
        }
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
            let text = format!("no whole PROXY header within {} s", headers::PATIENCE.as_secs());
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
        let Peer::Ip(proxy) = proxy else { return };
        if self.refusals.complains() {
            self.cx.event(
                Level::Warning,
                Some(MessageId::Refused),
                format_args!(
                    "the proxy {}: {why}; if it is none, take it out of proxy_protocol_from",
                    proxy.ip()
                ),
            );
        }
    }

    /// Lets a client in, or not; then the slot is free.
    fn admit(&mut self, newcomer: Newcomer) -> Option<WorkerSlot> {
        let counted = (self.cx.scoreboard.sources(), newcomer.slot.index());
        match self.cx.admission.check(&newcomer.client, Some(counted)) {
            Ok(()) => {
                self.cx.counters.count(Count::Accepted);
                let started = self.starter.begin(newcomer, &self.cx);
                self.started(started);
                None
            }
            Err(why) => {
                self.refuse(why);
                Some(newcomer.slot)
            }
        }
    }

    /// Tries again to start the process that is waited for, if it is time or something has ended `just_now`.
    pub(super) fn retry_start(&mut self, just_now: bool) {
        if let Some(started) = self.starter.retry(&self.cx, just_now) {
            self.started(started);
        }
    }

    fn started(&mut self, started: Started) {
        match started {
            Started::Process(pid, child) => self.children.insert(pid, child),
            Started::Later => {}
            Started::Never(admitted, reason) => self.not_started(&admitted, &reason),
        }
    }

    /// Counts a connection that was not let in; it is closed already.
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

    /// Whether this worker can take a connection if it is woken for one.
    pub(super) fn has_room(&mut self) -> bool {
        if !self.reserves() || !self.acceptor.takes() {
            return true;
        }
        let reserved = self.slots.reserve(!self.never_waits());
        reserved.map_err(|why| self.wait_for_slot(why)).is_ok()
    }

    /// Has a spare see whether something is queued, if only spares have slots for it.
    pub(super) fn let_a_spare_look(&mut self) {
        if self.pool.waits() && !self.acceptor.takes() && self.acceptor.is_queued() {
            self.pool.wake_one();
        }
    }

    /// Whether a slot is claimed before a connection comes.
    fn reserves(&self) -> bool {
        self.cx.plan.service.spare > 0 && self.acceptor.is_open()
    }

    /// There is no slot for who may wait at this listener. Returns one that has become free meanwhile.
    fn overloaded(&mut self, index: usize, why: NoSlot) -> Option<WorkerSlot> {
        if self.refuses() && self.room_elsewhere().is_none() {
            return self.refuse_queued(index);
        }
        self.wait_for_slot(why);
        self.let_a_spare_look();
        None
    }

    /// Rests until there may be a slot, or somebody to refuse.
    fn wait_for_slot(&mut self, why: NoSlot) {
        match why {
            _ if self.never_waits() => {}
            _ if self.refuses() && self.acceptor.is_due() => {
                self.acceptor.pause_until_slot_freed_or(Duration::ZERO);
            }
            _ if self.refuses() => {
                self.acceptor.pause_until_slot_freed_or(self.room_elsewhere().unwrap_or(LOOK));
            }
            NoSlot::Full => self.acceptor.pause_until_slot_freed(),
            NoSlot::OverLoweredLimit => self.acceptor.pause(OVER_LOWERED_LIMIT),
        }
    }

    /// Whether this worker need not hear of free slots, because it watches all the time.
    fn never_waits(&self) -> bool {
        self.refuses() && self.cx.plan.service.spare == 0
    }

    /// Whether clients are refused rather than left in the queue. Not those of a listener that is about to be closed:
    /// they called while this was another service.
    fn refuses(&self) -> bool {
        self.acceptor.is_open() && self.cx.plan.service.admission.overload != Overload::Queue
    }

    /// In a service with spares, whether another worker has room for who comes, and how soon to see whether it still has: a
    /// spare that waits has a slot, and so has one that is just being made, or a worker that is about to accept.
    fn room_elsewhere(&self) -> Option<Duration> {
        if self.cx.plan.service.spare == 0 {
            return None;
        }
        let processes = self.cx.scoreboard.processes();
        match (processes.spares, processes.claimed) {
            (0, 0) => None,
            (0, _) => Some(LOOK),
            _ => Some(GLANCE),
        }
    }

    fn refuse_queued(&mut self, index: usize) -> Option<WorkerSlot> {
        // What has ended just now may have left a slot.
        if !self.children.is_empty() {
            self.cx.signals.fetch_pending();
            self.reap();
        }
        for _ in 0..REFUSED_AT_ONCE {
            // In this order: who was queued before there was seen to be no room may be refused. Who comes later may have
            // seen that there is some again, and found a slot or a spare if he had come to another worker.
            if self.acceptor.is_empty(index) {
                self.acceptor.nothing_more(index);
                return None;
            }
            if let Ok(slot) = self.slots.take(!self.never_waits()) {
                return Some(slot);
            }
            if self.room_elsewhere().is_some() {
                self.wait_for_slot(NoSlot::Full);
                return None;
            }
            match self.acceptor.accept(index) {
                Accepted::Connection(socket, peer) => self.turn_away(socket, &Client::now(peer)),
                Accepted::Lost => {}
                Accepted::Nothing => {
                    self.acceptor.nothing_more(index);
                    return None;
                }
                Accepted::Exhausted(error) => {
                    self.exhausted(index, &error);
                    return None;
                }
            }
        }
        if !self.never_waits() {
            self.acceptor.more(index);
        }
        None
    }

    fn exhausted(&mut self, index: usize, error: &io::Error) {
        let address = self.cx.plan.listeners.get(index).map_or("", String::as_str);
        self.acceptor.exhausted(&self.cx.log, &self.cx.plan.service.name, address, error);
    }

    fn turn_away(&mut self, socket: std::os::fd::OwnedFd, client: &Client) {
        // Who would not be let in anyway is told nothing.
        if !self.cx.admission.is_proxy(client.peer) {
            if let Err(why) = self.cx.admission.check(client, None) {
                return self.refuse(why);
            }
        }
        self.refuse(Refusal::Limit);
        match &self.cx.plan.service.admission.overload {
            Overload::Queue => {}
            Overload::Refuse { message } => {
                self.lingering.say(message.as_bytes(), socket, &self.cx.poller);
            }
            Overload::Reset => stream::reset(socket),
        }
    }
}
