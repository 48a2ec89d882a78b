//! A worker: accepts, admits, forks, reaps, and writes one record per connection.
//!
//! It is exec'ed by the supervisor and serves one service. Of a connection it reads
//! nothing but the header of a proxy that it was told to believe. When its supervisor
//! is gone it accepts no more and ends with its last connection.

mod acceptor;
mod asked;
pub(crate) mod children;
mod connection;
mod context;
mod headers;
mod leaves;
mod linger;
mod link;
mod room;
mod several;
mod spares;
mod starter;
mod token;
mod waited;
mod warm;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::admission::bans::BannedClients;
use crate::admission::sources::{MAX_SLOTS, Sources};
use crate::admission::{Admission, CallerSets, Overload, Refusals};
use crate::child::ChildSpec;
use crate::child::call::PreparedHandler;
use crate::child::confine::namespaces::OwnNamespaces;
use crate::config::{Job, ServiceConfig, StderrTarget};
use crate::exit;
use crate::handler::Application;
use crate::ipc::orders::{Heard, ListenerSet, Order, Plan, WorkerReport, take_plan};
use crate::ipc::reports::{ChildReport, ExitNote, Failure, Reporter, Reports};
use crate::journal::{Level, Log};
use crate::scoreboard::{Counters, Owner, Scoreboard};
use crate::shared::SharedFile;
use crate::spare::events::{SpareEvents, SpareEventsWriter};
use crate::spare::{Pool, Setup};
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fork::{ChildStack, exclude_stacks_from_fork, fork_into};
use crate::sys::signal::{self, Signal, Signals, Wakers};
use crate::sys::socket;
use crate::sys::threads::must_be_alone;
use crate::sys::time::Monotonic;
use crate::sys::wait::{self, Pid};
use crate::sys::{fd, memory, process};

use acceptor::Acceptor;
use asked::SignalQuestions;
use children::{Children, Leaf, OutputPipes};
use context::Context;
use headers::Headers;
use leaves::Leaves;
use linger::LingeringCloses;
use link::Link;
use room::Slots;
use several::Hearing;
use starter::Starter;
use token::Token;
use waited::Waited;
use warm::WarmPrograms;

/// How long the dead wait for who calls next. To be woken for each of them would delay the connection that follows; a
/// program's end is not delayed, since its client waits for it.
const REAP_DELAY: Duration = Duration::from_millis(2);

/// While one after the other calls, the dead of so many connections are buried together.
const REAPED_AT_ONCE: u32 = 8;

/// Runs a worker; the whole life of its process. Returns the exit code.
pub(crate) fn run(application: Application) -> u8 {
    let Ok((link, plan)) = take_plan() else {
        return exit::USAGE;
    };
    // The supervisor kills whoever hangs up, and takes who was killed for one to be replaced: so it hears the end of the link from the
    // kernel, when this process has exited with its own code.
    let Ok(last_words) = link.try_clone().map(|link| for_ever(Link::new(link))) else {
        return exit::OS;
    };
    match Worker::prepare(link, plan, application).and_then(|mut worker| worker.work()) {
        Ok(()) => exit::OK,
        Err(error) => {
            last_words.report(&WorkerReport::failed(&error));
            if error.kind() == io::ErrorKind::PermissionDenied { exit::NOT_PERMITTED } else { exit::OS }
        }
    }
}

/// A worker is made of owners: each keeps its own state, and is told what happens.
struct Worker {
    cx: Context,
    link: Link,
    /// What connection processes say before they have a connection.
    reports: Reports,
    acceptor: Acceptor,
    slots: Slots,
    headers: Headers,
    refusals: Refusals,
    lingering: LingeringCloses,
    starter: Starter,
    waited: Waited,
    children: Children<&'static Scoreboard>,
    pool: Pool,
    warm: WarmPrograms,
    hearing: Hearing,
    asked: Option<SignalQuestions>,
    /// The log has been told what killed a program by its filter.
    said_why_killed: bool,
}

impl Worker {
    fn prepare(link: OwnedFd, mut plan: Plan, application: Application) -> io::Result<Self> {
        fd::fill_standard()?;
        must_be_alone("before Server::main()")?;
        signal::all_to_default();
        let handled = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];
        let signals: &Signals = for_ever(Signals::install(&handled)?);
        process::set_name(c"preforkd-worker");
        let log = Log::open(plan.log, application.title.name).gathering();
        let sources_file = fd::for_ever(plan.fds.sources.take()?);
        let sources = Sources::open(sources_file)?;
        let shared = SharedFile::open(plan.fds.shared.take()?);
        let scoreboard = plan.fds.scoreboard.take()?;
        let scoreboard: &Scoreboard =
            for_ever(Scoreboard::open(scoreboard.as_fd(), plan.fds.slot_freed.take()?, sources, shared)?);
        scoreboard.shared().declare(&plan.service.shared);
        let counters = Counters::open(plan.fds.counters.take()?.as_fd())?;
        let listeners: io::Result<Vec<BorrowedFd<'static>>> =
            plan.listeners.iter().map(|listener| Ok(fd::for_ever(listener.fd.take()?))).collect();
        let listeners = listeners?;
        let (reports, reporter) = Reports::create()?;
        let prefixes = CallerSets::open(plan.fds.prefixes.take()?.as_fd())?;
        // Spares ask it by themselves.
        let banned = BannedClients::open(plan.fds.bans.take()?.as_fd(), plan.spares > 0)?;
        let admission: &Admission = for_ever(Admission::new(&plan.service.admission, prefixes, Some(banned)));
        // Before anything is opened that its children shall have, and before it is somebody else.
        let identity = &plan.service.identity;
        let namespaces = OwnNamespaces::enter(plan.service.sandbox.as_ref(), identity.chroot.as_deref())?;
        if namespaces.hide_users() && listeners.iter().any(|listener| is_unix(*listener)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, HIDDEN_USERS));
        }
        if namespaces.processes || matches!(plan.service.job, Job::Handler(_)) {
            ExitNote::make_room()?;
        }
        let handler = prepare_handler(&plan.service, application, scoreboard.shared())?;
        // An upgrade may have made it another one than it was when the configuration was read.
        plan.service.starts_threads = handler.is_some_and(|prepared| prepared.handler.starts_threads());
        let (reporter, has_cgroup) = (Reporter::for_ever(reporter), plan.cgroups.is_some());
        let mut spec = ChildSpec::new(&plan.service, namespaces, handler, signals, reporter, has_cgroup)?;
        let warm = WarmPrograms::new(
            plan.service.warm.as_ref(),
            plan.spares,
            &listeners,
            spec.says_errors_to_client(),
        )?;
        if let Some(own) = plan.service.identity.worker {
            spec.step_down(own).map_err(|(step, error)| {
                let failure = Failure::new(step, &error);
                io::Error::new(failure.kind(), failure.explain(&plan.service))
            })?;
        }
        let mut leaves = Leaves::new(plan.cgroups.clone(), plan.service.tree_limits);
        let leaf = leaves.take()?;
        let place = leaf.as_ref().map(Leaf::place);
        let rehearsal = fork_into(spec.pids(), place, |child| spec.rehearse(child))
            .map_err(|error| cannot_begin(&error))?;
        passed(&plan.service, rehearsal, &reports)?;
        let guard = spec.preapply()?;
        let spec: &ChildSpec = for_ever(spec);
        let service = &plan.service;
        let deadlines = service.admission.deadlines;
        let execs = matches!(service.job, Job::Exec(_));
        // Until the program has ended, or if nothing else asks for that, until it has closed it.
        let keeps_connections = execs && !service.wait;
        let lets_go = keeps_connections
            && !(service.count_bytes || deadlines.are_of_bytes() || service.kill_mode.leaves_some());
        // Who is refused, and when a connection has to end, depends on who was taken.
        let all_wake = service.admission.overload != Overload::Queue
            || deadlines.lifetime.is_some()
            || (execs && deadlines.are_of_bytes());
        let pool = Pool::new(Setup {
            // What waits for the connections of this service are programs.
            size: if warm.is_used() { 0 } else { plan.spares },
            connections: service.connections_per_child,
            all_wake,
            child: spec,
            admission,
            listeners: listeners.clone(),
            sources: admission.knows_sources().then_some(sources_file),
            events: SpareEvents::open(plan.fds.spare_events.take()?),
            writer: SpareEventsWriter::open(plan.fds.spare_events_writer.take()?),
            sends_copies: keeps_connections,
        })?;
        if let Some(rehearsal) = pool.rehearse(place) {
            passed(service, rehearsal.map_err(|error| cannot_begin(&error))?, &reports)?;
        }
        leaves.put_back(leaf);
        process::raise_descriptor_limit()?;
        if !execs {
            signal::ignore_broken_pipes();
        }
        let poller = Poller::new()?;
        poller.add(link.as_fd(), Interest::Read, Token::Link.into())?;
        poller.add(scoreboard.slot_freed(), Interest::ReadEdge, Token::SlotFreed.into())?;
        let mut children =
            Children::new(plan.service.max_connections, deadlines).letting_go(lets_go).in_pids(spec.pids());
        if pool.serves_several() {
            children = children.serving_several(pool.wake())?;
        }
        match children.pipes() {
            Some(pipes) => poller.add(pipes, Interest::Read, Token::Several.into())?,
            None => poller.add(pool.wake(), Interest::ReadEdge, Token::SpareTaken.into())?,
        }
        let asked = SignalQuestions::new(guard, &log, &service.name);
        if let Some(asked) = &asked {
            poller.add(asked.as_fd(), Interest::Read, Token::Asked.into())?;
        }
        if let Some(files) = warm.watched() {
            poller.add(files, Interest::Read, Token::WarmFiles.into())?;
        }
        let pipes = (spec.has_stderr() && service.stderr == StderrTarget::Log).then(OutputPipes::new);
        let stack = ChildStack::new()?.into_pids(spec.pids());
        exclude_stacks_from_fork(service.starts_threads)?;
        memory::trim();
        let link = Link::new(link);
        link.try_report(&WorkerReport::Ready)?;
        Ok(Worker {
            link,
            reports,
            acceptor: Acceptor::new(&listeners)?,
            slots: Slots::new(scoreboard, Owner::worker(plan.serial)),
            headers: Headers::default(),
            refusals: Refusals::default(),
            lingering: LingeringCloses::new(),
            starter: Starter::new(stack, pipes, leaves)?,
            waited: if plan.service.wait { Waited::new(&listeners) } else { Waited::default() },
            children,
            hearing: Hearing::new(!all_wake),
            pool,
            warm,
            asked,
            said_why_killed: false,
            cx: Context {
                plan,
                log,
                poller,
                counters,
                scoreboard,
                admission,
                spec,
                signals,
                keeps_connections,
            },
        })
    }

    fn work(&mut self) -> io::Result<()> {
        while !self.is_done() {
            if self.pool.is_used() {
                self.hear_reports();
                // Before the next event, which may be long in coming: the last spare may just have been taken.
                self.report_retirement();
            }
            let leaves_it_to_spares = self.pool.waits() && !self.hearing.pauses_now();
            let held_up = self.starter.is_busy() || leaves_it_to_spares || !self.has_room();
            // Of two who wait in the same way only one is woken: that must not be a worker in place of somebody's program.
            let how = if self.waited.is_used() { Interest::Read } else { Interest::ReadExclusive };
            self.acceptor.watch(&self.cx.poller, held_up, how)?;
            self.cx.write_records();
            let called = self.wait()?;
            if self.cx.signals.take(Signal::SIGQUIT) {
                self.end_connections(Duration::ZERO);
            }
            if self.cx.signals.take(Signal::SIGTERM) | self.cx.signals.take(Signal::SIGINT) {
                self.retire(&ListenerSet::default(), Duration::ZERO);
            }
            self.report_refusals(false);
            self.reap();
            self.keep_deadlines();
            self.retry_start(false);
            self.tend_proxies();
            self.lingering.tend(&self.cx.poller);
            self.tend_waited();
            self.tend_several()?;
            self.pool.tend();
            self.tend_warm();
            self.accept_unasked();
            if !called {
                self.make_spare();
                self.start_warm();
            }
            self.report_retirement();
        }
        self.report_refusals(true);
        self.cx.write_records();
        Ok(())
    }

    /// Waits for what comes next, and does what it asks for; true if it was a connection.
    fn wait(&mut self) -> io::Result<bool> {
        let signals = self.cx.signals;
        let hurry = self.timeout();
        let patient = self.acceptor.is_in_a_row() && hurry != Some(Duration::ZERO);
        let (timeout, wakers) = match patient {
            true => (Some(hurry.map_or(REAP_DELAY, |hurry| hurry.min(REAP_DELAY))), Wakers::NoChildren),
            false => (hurry, Wakers::All),
        };
        // Who does not really wait is not interrupted: without this signals would have no turn.
        let mut busy = timeout == Some(Duration::ZERO);
        let mut called = false;
        for token in self.cx.poller.wait(timeout, signals, wakers)? {
            busy = true;
            match Token::from(token) {
                Token::Link => self.follow_orders(),
                Token::SlotFreed => self.slot_freed(),
                Token::SpareTaken => {}
                Token::Lingering(place) => self.lingering.hear(place, &self.cx.poller),
                Token::Header(number) => self.hear_proxy(number),
                Token::Closing(number) => self.tend_close(number),
                Token::Several => self.hear_several()?,
                Token::Warm(pid) => self.hear_warm(pid),
                Token::WarmFiles => self.renew_warm(),
                Token::Asked => self.asked.as_ref().map_or((), SignalQuestions::answer),
                Token::Output(pid) => {
                    self.children.read_output(pid, &self.cx.books(), &self.cx.poller);
                }
                Token::Listener(index) => {
                    if !self.leaves_to_spares() {
                        called = true;
                        self.accept_from(index);
                    }
                }
            }
        }
        // A new process often waits for this one's processor: what can wait is done after it, for several at once.
        let in_a_row = self.acceptor.count_in_a_row(called && !self.cx.spec.execs());
        if busy && in_a_row % REAPED_AT_ONCE == 0 {
            signals.fetch_pending();
        }
        Ok(called)
    }

    fn keep_deadlines(&mut self) {
        let is_due = self.children.next_deadline().is_some_and(|at| at <= Monotonic::now());
        if is_due && self.pool.serves_several() {
            // What one of several connections was to end for may be over.
            self.hear_all_that_serve_several();
        }
        self.children.tend();
        self.children.due_closes().into_iter().for_each(|number| self.tend_close(number));
    }

    fn tend_close(&mut self, number: u64) {
        if self.children.tend_close(number, &self.cx.books(), &self.cx.poller) {
            self.pool.slot_freed();
        }
    }

    fn slot_freed(&mut self) {
        self.acceptor.slot_freed();
        self.look_for_listeners();
        self.pool.slot_freed();
        self.warm.slot_freed();
    }

    fn is_done(&self) -> bool {
        let serves = !self.children.is_empty() || self.starter.is_busy() || !self.headers.is_empty();
        self.acceptor.is_closed() && !serves && self.lingering.is_empty()
    }

    fn timeout(&self) -> Option<Duration> {
        // Nothing is accepted while a connection waits for its process.
        let next = match self.starter.next_try() {
            Some(at) => Some(at),
            None => {
                let ahead = self.pool.next().into_iter().chain(self.warm.next()).min();
                let ahead = ahead.filter(|_| self.acceptor.is_open());
                [self.acceptor.wakes_at(), ahead, self.refusals.report_at()].into_iter().flatten().min()
            }
        };
        let others = [
            self.headers.expires_at(),
            self.lingering.wakes_at(),
            self.children.next_deadline(),
            self.waited.next(),
            self.hearing.next(),
            self.pool.tends_at(),
        ];
        let next = next.into_iter().chain(others.into_iter().flatten()).min();
        next.map(|at| at - Monotonic::now())
    }

    fn follow_orders(&mut self) {
        loop {
            match self.link.hear() {
                Heard::Message(Order::Accept) => {
                    self.acceptor.open();
                    self.link.report(&WorkerReport::Accepting);
                }
                Heard::Message(Order::Look { request }) => {
                    self.link.report(&WorkerReport::Looked { request });
                    self.slot_freed();
                    self.look();
                }
                Heard::Message(Order::Retire { empty, handshakes }) => self.retire(&empty, handshakes),
                Heard::Message(Order::Kill { number }) => {
                    // A spare may have taken it just now.
                    self.hear_reports();
                    self.children.end_by_hand(|id| id.number == number);
                }
                Heard::Message(Order::KillSource { source, before }) => {
                    // As above.
                    self.hear_reports();
                    self.children.end_those(|_, client| client.accepted < before && source.has(client));
                }
                Heard::Message(Order::End { kill_after }) => self.end_connections(kill_after),
                Heard::Message(Order::EndPrograms) => self.end_programs(),
                Heard::Silence => return,
                Heard::End | Heard::Nonsense => {
                    let _ = self.link.descriptor().map(|link| self.cx.poller.remove(link));
                    self.link.close();
                    let pid = std::process::id();
                    self.cx.event(
                        Level::Warning,
                        None,
                        format_args!("the supervisor is gone; worker {pid} accepts no more"),
                    );
                    self.retire(&ListenerSet::default(), Duration::ZERO);
                    // Who comes after it starts another.
                    self.end_programs();
                }
            }
        }
    }

    /// Sees whether something is queued that nobody was woken for.
    fn look(&mut self) {
        self.acceptor.look();
        self.let_a_spare_look();
    }

    fn retire(&mut self, empty: &ListenerSet, handshakes: Duration) {
        self.dismiss_spares();
        if self.waited.is_used() {
            // What is queued is its program's.
            return self.acceptor.close(&self.cx.poller);
        }
        self.acceptor.retire(empty, handshakes, &self.cx.poller);
    }

    fn dismiss_spares(&mut self) {
        self.pool.dismiss();
        self.end_warm();
        self.end_pauses();
        self.slots.release();
        // From now on all of them are heard at once: whom they still let in, the supervisor has to count anew.
        let _ = self.cx.poller.add(self.pool.events(), Interest::ReadEdge, Token::SpareTaken.into());
    }

    fn report_retirement(&mut self) {
        // An address is free when they have gone as well.
        if self.acceptor.is_closed() && !self.pool.is_leaving() && !self.waited.has_programs() {
            self.link.report_once(&WorkerReport::Retired);
        }
    }

    fn end_connections(&mut self, kill_after: Duration) {
        self.dismiss_spares();
        self.acceptor.close(&self.cx.poller);
        self.end_programs();
        self.headers.clear();
        self.lingering.clear(&self.cx.poller);
        self.children.end_all(kill_after);
        if let Some(admitted) = self.starter.give_up() {
            self.not_started(&admitted, "the service is ending");
        }
    }
}

/// Has the handler of a service read its options and prepare; `None` if a program serves it.
fn prepare_handler(
    service: &ServiceConfig,
    application: Application,
    memory: &SharedFile,
) -> io::Result<Option<PreparedHandler>> {
    let Job::Handler(name) = &service.job else { return Ok(None) };
    let unknown = || io::Error::other(format!("this program has no handler \"{name}\""));
    let mut handler = application.into_handler(name).ok_or_else(unknown)?;
    let cannot_share =
        |why| io::Error::other(format!("what the handler \"{name}\" shares is not to be had: {why}"));
    let shared = match service.shared.is_empty() {
        true => None,
        false => {
            let shared = handler.share_in(memory.descriptor(), MAX_SLOTS).map_err(cannot_share)?;
            Some(for_ever(shared))
        }
    };
    handler
        .prepare(&service.options)
        .map_err(|why| io::Error::other(format!("the handler \"{name}\" cannot prepare: {why}")))?;
    must_be_alone(&format!("while the handler \"{name}\" prepared"))?;
    if handler.has_stderr() {
        // Its children have the same, so that no file of theirs gets one of these numbers.
        fd::silence_standard()?;
    }
    Ok(Some(PreparedHandler { handler: Box::leak(handler), shared }))
}

/// What is leaked here ends with the process.
fn for_ever<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

const HIDDEN_USERS: &str = "who calls at a Unix socket could not be told from others where only one user exists, as in the namespaces \
                            of who is not root; take private_tmp, network_namespace and pid_namespace out of sandbox, or have \
                            preforkd run as root with CAP_SYS_ADMIN";

fn is_unix(listener: BorrowedFd<'_>) -> bool {
    matches!(socket::local_address(listener), Ok(None))
}

fn cannot_begin(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot make a connection process: {error}"))
}

/// Waits for a rehearsal, and says why it has failed.
fn passed(service: &ServiceConfig, rehearsal: Pid, reports: &Reports) -> io::Result<()> {
    wait::await_end(rehearsal);
    let note = ExitNote::of(rehearsal);
    let ended = wait::wait_for(rehearsal)?;
    let mut failure = None;
    reports.read(|_, report| {
        if let ChildReport::Failed(reason) = report {
            failure = Some(reason);
        }
    });
    match (failure, ended.map(|ended| ended.ending)) {
        (Some(failure), _) => Err(io::Error::new(failure.kind(), failure.explain(service))),
        (None, Some(wait::Ending::Exited(0))) if note.is_none() && matches!(service.job, Job::Handler(_)) => {
            let why = "what connection processes leave at their end cannot be read: that takes /proc, or CAP_SYS_RESOURCE if \
                       they are another user";
            Err(io::Error::other(why))
        }
        (None, Some(wait::Ending::Exited(0))) => Ok(()),
        (None, ending) => {
            let ending = ending.map_or_else(|| "unknown".to_owned(), |ending| ending.to_string());
            Err(io::Error::other(format!("a rehearsal of a connection process ended: {ending}")))
        }
    }
}
