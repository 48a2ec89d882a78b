//! A worker: accepts, admits, forks, reaps, and writes one record per connection.
//!
//! It is exec'ed by the supervisor and serves one service. Of a connection it reads
//! nothing but the header of a proxy that it was told to believe. When its supervisor
//! is gone it accepts no more and ends with its last connection.

mod acceptor;
mod children;
mod deadlines;
mod greeting;
mod headers;
mod linger;
mod output;
mod overload;
mod penalties;
mod pending;
mod serve;
mod spares;
mod timers;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::admission::sources::Sources;
use crate::admission::{Deadlines, Overload};
use crate::child::ChildSpec;
use crate::config::Service;
use crate::exit;
use crate::ipc::reports::{ChildReport, Reports};
use crate::journal::Log;
use crate::scoreboard::{Counters, Scoreboard, Slot};
use crate::spare::copies::Copies;
use crate::spare::events::{SpareEvents, SpareEventsWriter};
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fd::{self, ReservedFds};
use crate::sys::fork::{ChildStack, exclude_stacks_from_fork, fork};
use crate::sys::signal::{self, Signal, Signals, Wakers};
use crate::sys::{memory, process, wait};

use crate::admission::Refusals;
use crate::ipc::orders::{self, Heard, Order, Plan, WorkerFds, WorkerReport};
use crate::spare::pool::Pool;
use acceptor::Acceptor;
use children::Children;
use headers::Headers;
use linger::LingeringCloses;
use pending::Pending;
use timers::Timers;

/// Tokens of the poller: the link, the bell, the doorbell of spares, listeners from 3 on, and from `OUTPUTS` on the pid of a connection
/// process whose stderr has something to read.
const LINK: u64 = 0;
const BELL: u64 = 1;
const DOORBELL: u64 = 2;
const LISTENERS: u64 = 3;
const OUTPUTS: u64 = 1 << 32;
/// From here on connections whose PROXY header has not come yet.
const HEADERS: u64 = 1 << 48;
/// From here on clients that were refused and have not hung up.
const LINGERING: u64 = 1 << 49;

/// How long the dead wait for who calls next. To be woken for each of them would delay the connection that follows; a
/// program's end is not delayed, since its client waits for it.
const PATIENCE: Duration = Duration::from_millis(2);

/// While one after the other calls, the dead of so many connections are buried together.
const AT_ONCE: u32 = 8;

/// Runs a worker; the whole life of its process. Returns the exit code.
pub(crate) fn run() -> u8 {
    let Ok(handover) = WorkerFds::take() else {
        return exit::USAGE;
    };
    let Ok(link) = handover.link.try_clone() else {
        return exit::OS;
    };
    let result = Worker::prepare(handover).and_then(|mut worker| worker.work());
    match result {
        Ok(()) => exit::OK,
        Err(error) => {
            // If the supervisor is gone, there is nobody left to tell.
            let _ = orders::tell(link.as_fd(), &WorkerReport::Failed(error.to_string()));
            if error.kind() == io::ErrorKind::PermissionDenied { exit::NOT_PERMITTED } else { exit::OS }
        }
    }
}

/// What children use too lives for ever and is only borrowed here: their parent's stack, with this on it, is not theirs.
struct Worker {
    plan: Plan,
    log: Log,
    poller: Poller,
    link: Option<OwnedFd>,
    scoreboard: &'static Scoreboard,
    counters: Counters,
    spec: &'static ChildSpec,
    listeners: &'static [BorrowedFd<'static>],
    /// What spares keep of this worker's descriptors.
    kept: &'static [BorrowedFd<'static>],
    /// The memory of the sources, for spares, if they need it.
    sources: Option<BorrowedFd<'static>>,
    nursery: ChildStack,
    desk: ReservedFds,
    reports: Reports,
    /// Of the connections of spares that become programs, if they are wanted.
    copies: Option<Copies>,
    timers: Timers,
    acceptor: Acceptor,
    pool: Pool,
    refusals: Refusals,
    headers: Headers,
    lingering: LingeringCloses,
    children: Children,
    /// For the next connection, in a service with spares: see [`Worker::has_room`].
    reserved: Option<Slot>,
    /// An accepted connection for which there was no process yet.
    pending: Option<Pending>,
    connections: u64,
    /// How many have called just now, without a pause; the next may be about to.
    in_a_row: u32,
    reported_retired: bool,
    reported_renewal: bool,
}

impl Worker {
    fn prepare(handover: WorkerFds) -> io::Result<Self> {
        fd::fill_standard()?;
        signal::all_to_default();
        let signals = Signals::install(&[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT])?;
        process::set_name(c"preforkd-worker");
        let mut plan = Plan::read(handover.plan)?;
        let log = Log::open(plan.log);
        let sources = Sources::open(handover.sources.as_fd())?;
        let sources_file = fd::for_ever(handover.sources);
        let scoreboard = for_ever(Scoreboard::open(handover.scoreboard.as_fd(), handover.bell, sources)?);
        let counters = Counters::open(handover.counters.as_fd())?;
        let listeners: io::Result<Vec<_>> =
            (0..plan.listeners.len()).map(|index| Ok(fd::for_ever(WorkerFds::listener(index)?))).collect();
        let listeners = listeners?;
        let reports = Reports::new()?;
        let mut spec = ChildSpec::new(&plan.service, signals, &reports)?;
        rehearse(&plan.service, &spec, &reports)?;
        plan.service.admission.forget_lists();
        spec.preapply();
        process::raise_descriptor_limit()?;
        if !spec.execs() {
            signal::ignore_broken_pipes();
        }
        let (calls, to_come) =
            (SpareEvents::open(handover.calls), SpareEventsWriter::open(handover.calls_to_come));
        let all_ring = plan.service.admission.overload != Overload::Queue;
        let pool = Pool::new(plan.spares, all_ring, calls, to_come)?;
        let sends_copies = plan.spares > 0 && deadlines::keeps_connections(&plan.service);
        let copies = sends_copies.then(Copies::new).transpose()?;
        let sources = spec.gate().knows_sources().then_some(sources_file);
        let optional: Vec<_> = sources.into_iter().chain(copies.as_ref().map(Copies::descriptor)).collect();
        let mut kept = [&listeners[..], &pool.descriptors(), &[spec.reporter()], &optional].concat();
        kept.sort_unstable_by_key(AsRawFd::as_raw_fd);
        let poller = Poller::new()?;
        poller.add(handover.link.as_fd(), Interest::Read, LINK)?;
        poller.add(scoreboard.bell(), Interest::ReadEdge, BELL)?;
        poller.add(pool.doorbell(), Interest::ReadEdge, DOORBELL)?;
        let nursery = ChildStack::new()?;
        exclude_stacks_from_fork()?;
        memory::trim();
        orders::tell(handover.link.as_fd(), &WorkerReport::Ready)?;
        Ok(Worker {
            copies,
            timers: Timers::new(plan.service.admission.deadlines != Deadlines::default()),
            children: Children::with_room_for(plan.service.max_connections),
            plan,
            log,
            poller,
            link: Some(handover.link),
            scoreboard,
            counters,
            spec: for_ever(spec),
            acceptor: Acceptor::new(&listeners)?,
            listeners: Vec::leak(listeners),
            kept: Vec::leak(kept),
            sources,
            nursery,
            desk: ReservedFds::new()?,
            reports,
            pool,
            refusals: Refusals::default(),
            headers: Headers::default(),
            lingering: LingeringCloses::new(),
            reserved: None,
            pending: None,
            connections: 0,
            in_a_row: 0,
            reported_retired: false,
            reported_renewal: false,
        })
    }

    fn work(&mut self) -> io::Result<()> {
        while !self.is_done() {
            if self.plan.spares > 0 {
                self.hear_reports();
                // Before the next event, which may be long in coming: the last spare may just have been called.
                self.report_retirement();
            }
            let held_up = self.pending.is_some() || self.pool.waits() || !self.has_room();
            self.acceptor.watch(&self.poller, held_up)?;
            let called = self.wait()?;
            let signals = self.spec.signals();
            if signals.take(Signal::SIGQUIT) {
                self.end_connections(true);
            }
            if signals.take(Signal::SIGTERM) | signals.take(Signal::SIGINT) {
                self.retire(&[]);
            }
            self.report_refusals(false);
            self.reap();
            self.keep_deadlines();
            self.retry_pending();
            self.tend_proxies();
            self.lingering.tend(&self.poller);
            self.accept_unasked();
            if !called {
                self.make_spare();
            }
            self.report_retirement();
        }
        self.report_refusals(true);
        Ok(())
    }

    /// Waits for what comes next, and does what it asks for; true if it was a connection.
    fn wait(&mut self) -> io::Result<bool> {
        let signals = self.spec.signals();
        let hurry = self.timeout();
        let patient = self.in_a_row > 0 && self.acceptor.is_watched() && hurry != Some(Duration::ZERO);
        let (timeout, wakers) = match patient {
            true => (Some(hurry.map_or(PATIENCE, |hurry| hurry.min(PATIENCE))), Wakers::NoChildren),
            false => (hurry, Wakers::All),
        };
        // Who does not really wait is not interrupted: without this signals would have no turn.
        let mut busy = timeout == Some(Duration::ZERO);
        let mut called = false;
        for token in self.poller.wait(timeout, signals, wakers)? {
            busy = true;
            match token {
                LINK => self.follow_orders(),
                BELL => self.slot_freed(),
                DOORBELL => {}
                refused if refused >= LINGERING => self.lingering.hear(refused, &self.poller),
                proxy if proxy >= HEADERS => self.hear_proxy(proxy),
                pid if pid >= OUTPUTS => self.read_output((pid - OUTPUTS) as wait::Pid),
                listener => {
                    called = true;
                    self.accept_from((listener - LISTENERS) as usize);
                }
            }
        }
        // A new process often waits for this one's processor: what can wait is done after it, for several at once.
        self.in_a_row = if called && !self.spec.execs() { self.in_a_row.wrapping_add(1) } else { 0 };
        if busy && self.in_a_row % AT_ONCE == 0 {
            signals.fetch_pending();
        }
        Ok(called)
    }

    fn slot_freed(&mut self) {
        self.acceptor.slot_freed();
        self.pool.slot_freed();
    }

    fn is_done(&self) -> bool {
        let serves = !self.children.is_empty() || self.pending.is_some() || !self.headers.is_empty();
        self.acceptor.is_closed() && !serves && self.lingering.is_empty()
    }

    fn timeout(&self) -> Option<Duration> {
        // Nothing is accepted while a connection waits for its process.
        let next = match &self.pending {
            Some(pending) => Some(pending.next_try()),
            None => [self.acceptor.wakes_at(), self.next_spare(), self.refusals.report_at()]
                .into_iter()
                .flatten()
                .min(),
        };
        let next = next.into_iter().chain(self.headers.expires_at()).chain(self.lingering.wakes_at()).min();
        let next = next.map(|instant| instant.saturating_duration_since(Instant::now()));
        [next, self.next_deadline()].into_iter().flatten().min()
    }

    fn follow_orders(&mut self) {
        while let Some(link) = &self.link {
            match orders::hear(link.as_fd()) {
                Heard::Message(Order::Accept) => {
                    self.acceptor.open();
                    self.report(&WorkerReport::Accepting);
                }
                Heard::Message(Order::Look) => self.look(),
                Heard::Message(Order::Answer) => {
                    self.report(&WorkerReport::Well);
                    // Whoever was woken for a connection may be stopped or stuck.
                    self.look();
                }
                Heard::Message(Order::Retire { empty }) => self.retire(&empty),
                Heard::Message(Order::End { at_once }) => self.end_connections(at_once),
                Heard::Silence => return,
                Heard::End | Heard::Nonsense => {
                    let _ = self.poller.remove(link.as_fd());
                    self.link = None;
                    self.log.warning(
                        Some(&self.plan.service.name),
                        format_args!("the supervisor is gone; worker {} accepts no more", std::process::id()),
                    );
                    self.retire(&[]);
                }
            }
        }
    }

    fn report(&self, report: &WorkerReport) {
        if let Some(link) = &self.link {
            // A supervisor that is gone is noticed by the end of the link.
            let _ = orders::tell(link.as_fd(), report);
        }
    }

    /// Sees whether something is queued that nobody was woken for.
    fn look(&mut self) {
        self.acceptor.look();
        self.let_a_spare_look();
    }

    fn retire(&mut self, empty: &[usize]) {
        self.dismiss_spares();
        self.acceptor.retire(empty, &self.poller);
    }

    fn dismiss_spares(&mut self) {
        self.pool.dismiss();
        self.reserved = None;
        // From now on all of them are heard at once: whom they still let in, the supervisor has to count anew.
        let _ = self.poller.add(self.pool.calls(), Interest::ReadEdge, DOORBELL);
    }

    fn report_retirement(&mut self) {
        // An address is free when they have gone as well.
        if self.acceptor.is_closed() && !self.pool.is_leaving() && !self.reported_retired {
            self.reported_retired = true;
            self.report(&WorkerReport::Retired);
        }
    }

    fn end_connections(&mut self, at_once: bool) {
        self.dismiss_spares();
        self.acceptor.close(&self.poller);
        self.headers.clear();
        self.lingering.clear(&self.poller);
        let signal = if at_once { Signal::SIGKILL } else { Signal::SIGTERM };
        for pid in self.children.pids() {
            process::signal_group(pid, signal);
        }
        if let Some(pending) = self.pending.take() {
            self.not_started(&pending, "the service is ending");
        }
    }
}

/// What is leaked here ends with the process.
fn for_ever<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Goes once through what every connection process does before its handler or program.
fn rehearse(service: &Service, spec: &ChildSpec, reports: &Reports) -> io::Result<()> {
    let pid = fork(|_| spec.rehearse())?;
    let ended = wait::wait_for(pid)?;
    let mut failure = None;
    reports.read(|_, said| match said {
        ChildReport::Failed(reason) => failure = Some(reason),
        ChildReport::Served(_)
        | ChildReport::Ended(_)
        | ChildReport::Refused(_)
        | ChildReport::TimedOut(..) => {}
    });
    match (failure, ended.map(|ended| ended.ending)) {
        (Some(failure), _) => Err(io::Error::new(failure.kind(), failure.explain(service))),
        (None, Some(wait::Ending::Exited(0))) => Ok(()),
        (None, ending) => {
            let ending = ending.map_or_else(|| "unknown".to_owned(), |ending| ending.to_string());
            Err(io::Error::other(format!("a rehearsal of a connection process ended: {ending}")))
        }
    }
}
