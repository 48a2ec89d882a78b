//! Children by pid, and what becomes of their connections: those of a worker, and in the supervisor those that it has adopted
//! from workers that are dead.
//!
//! The deadlines of a connection are kept here. Of a program's the worker keeps a copy of the connection and asks the
//! kernel about it; a handler's process looks after its bytes itself, see [`crate::child::watch`]. TERM, then KILL, go to
//! the process group, and KILL to the whole cgroup if there is one. When no deadline has come, nobody wakes up.

mod closes;
mod end;
mod leaf;
mod output;
pub(crate) mod rest;
mod timers;

use std::collections::VecDeque;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use hashbrown::HashMap;

use crate::admission::{ActivityWatch, Deadline, Deadlines, EndCause, TERM_TO_KILL, Verdict};
use crate::child::closing::LONGEST_CLOSE;
use crate::child::watch::TIMED_OUT;
use crate::client::{Client, Connection, ConnectionId, process_of};
use crate::exit;
use crate::ipc::reports::{ChildReport, ExitNote, FAILED_TO_BEGIN, Failure, OwnPipe, Reports, Served};
use crate::journal::{Exit, LeftOut, OutputLine};
use crate::scoreboard::{Overdue, Row, Scoreboard, Slot};
use crate::sys::cgroup::TreeUsage;
use crate::sys::dontfork::DontForkAlloc;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::exposed::ExposedSocket;
use crate::sys::fork::Pids;
use crate::sys::signal::Signal;
use crate::sys::socket::Peer;
use crate::sys::tcp_info::TcpInfo;
use crate::sys::time::Monotonic;
use crate::sys::wait::{self, Ended, Ending, Pid};
use crate::sys::{process, stream};

use closes::{Close, Closed, Closes};
use end::{Finished, How};
use output::{PipeState, Said};
use timers::{Timer, TimerKind, Timers};

pub(crate) use end::{Books, InForce};
pub(crate) use leaf::Leaf;
pub(crate) use output::{Output, OutputPipes};

/// A process that has, or waits for, a connection, and what is kept of it until it is reaped.
#[derive(Debug)]
pub(crate) struct Child<S: Deref<Target = Scoreboard>> {
    slot: Slot<S>,
    /// The name of its connection; of a spare, that of its first.
    id: ConnectionId,
    /// What it serves; `None` while it waits.
    connection: Option<Connection>,
    several: Option<Several>,
    /// What it writes to stderr, if that becomes records.
    output: Option<Output>,
    /// The connection of a program, which does not count what it moves.
    kept: Option<ExposedSocket>,
    /// What is known of the connection that is kept, if it has deadlines.
    watch: Option<ActivityWatch>,
    overdue: Option<Overdue>,
    /// Why it could not begin, as it says itself.
    failure: Option<Failure>,
    /// What its handler has left about itself.
    note: Option<ExitNote>,
    /// Its cgroup, until it has ended.
    leaf: Option<Leaf>,
    /// What was used there, when it has ended.
    usage: Option<TreeUsage>,
    /// How long its connection was accepted before it had it. A spare accepts itself.
    waited: Option<Duration>,
    /// It was made when its connection was there, which it may not have begun to serve.
    made_for_it: bool,
    /// Of a program that was started before its connection was there, the processor time that it had used by then.
    warm: Option<Duration>,
}

/// Of a process that serves one connection after the other.
#[derive(Debug)]
struct Several {
    /// How many more it serves; `None` for as many as come.
    left: Option<u32>,
    /// What it has served, as what came after tells, and has not reported yet.
    ended: VecDeque<Connection>,
    /// Where it reports; `None` if its worker did not make it.
    reports: Option<Reports>,
}

/// When it is looked whether a program has its connection yet: as often as it is old, within these bounds.
const FIRST_HOLD: Duration = Duration::from_millis(100);
const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// Among what is watched, what is not a process.
const WAKE: u64 = 0;

/// More than the pipe of events holds no honest process can be ahead.
const FURTHEST_AHEAD: usize = 1 << 16;

impl<S: Deref<Target = Scoreboard>> Child<S> {
    /// One that serves a connection, which its row shows, and others after it if it is to serve more than this one.
    pub(crate) fn serving(slot: Slot<S>, id: ConnectionId, connection: Connection, connections: u32) -> Self {
        Child { connection: Some(connection), made_for_it: true, ..Child::spare(slot, id, connections) }
    }

    /// One that somebody else has made, as its row shows it.
    pub(crate) fn adopted(slot: Slot<S>, worker: ConnectionId, connections: u32, row: &Row) -> Self {
        let number = row.connection.map_or(0, |connection| connection.number);
        let spare = Child::spare(slot, ConnectionId { number, ..worker }, connections);
        Child { connection: row.connection, overdue: row.overdue, waited: None, ..spare }
    }

    /// A spare that will serve so many connections, 0 for as many as come; its first will be called `id`, or is not known
    /// if the number of that is 0.
    pub(crate) fn spare(slot: Slot<S>, id: ConnectionId, connections: u32) -> Self {
        let left = (connections != 0).then_some(connections);
        let several = (connections != 1).then(|| Several { left, ended: VecDeque::new(), reports: None });
        Child {
            slot,
            id,
            connection: None,
            several,
            output: None,
            kept: None,
            watch: None,
            overdue: None,
            failure: None,
            note: None,
            leaf: None,
            usage: None,
            waited: Some(Duration::ZERO),
            made_for_it: false,
            warm: None,
        }
    }

    /// The same, with how long its connection has waited for it.
    pub(crate) fn with_waited(self, waited: Duration) -> Self {
        Child { waited: Some(waited), ..self }
    }

    /// The same, with what it writes to stderr.
    pub(crate) fn with_output(self, output: Option<Output>) -> Self {
        Child { output, ..self }
    }

    /// The same, with where it reports if it serves several.
    pub(crate) fn with_reports(mut self, reports: Option<Reports>) -> Self {
        if let Some(several) = &mut self.several {
            several.reports = reports;
        }
        self
    }

    /// The same, with what it has served before, if it serves several.
    pub(crate) fn with_ended(mut self, ended: impl Iterator<Item = Connection>) -> Self {
        if let Some(several) = &mut self.several {
            several.ended.extend(ended);
        }
        self
    }

    /// The same, with its connection.
    pub(crate) fn with_kept(self, kept: Option<ExposedSocket>) -> Self {
        Child { kept, ..self }
    }

    /// The same, with why it could not begin, if that is known already.
    pub(crate) fn with_failure(self, failure: Option<Failure>) -> Self {
        Child { failure, ..self }
    }

    /// The same, with the cgroup in which it has begun.
    pub(crate) fn with_leaf(self, leaf: Option<Leaf>) -> Self {
        Child { leaf, ..self }
    }

    /// Why it could not begin, if that is known.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Whether it has a listener.
    fn has_listener(&self) -> bool {
        self.connection.is_some_and(|connection| connection.client.is_listener())
    }

    pub(crate) fn slot(&self) -> &Slot<S> {
        &self.slot
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    /// What it has served, and has not reported yet.
    pub(crate) fn ended(&self) -> impl Iterator<Item = Connection> {
        self.several.iter().flat_map(|several| several.ended.iter().copied())
    }

    /// How many connections it may still serve, with the one that it has; 0 for as many as come.
    pub(crate) fn connections(&self) -> u32 {
        self.several.as_ref().map_or(1, |several| several.left.map_or(0, |left| left.max(2)))
    }

    /// Whether it waits for a connection.
    pub(crate) fn waits(&self) -> bool {
        self.connection.is_none()
    }

    fn name(&self, connection: &Connection) -> ConnectionId {
        ConnectionId { number: connection.number, ..self.id }
    }

    fn how(&self, ending: Ending) -> How<'static> {
        let said = self.note.and_then(ExitNote::deadline).filter(|_| ending == Ending::Exited(TIMED_OUT));
        let failure = self.failure.filter(|_| ending == Ending::Exited(FAILED_TO_BEGIN));
        let said = said.map(EndCause::Deadline);
        let cause = self.overdue.map(|overdue| overdue.cause).or(said);
        match (cause.filter(|cause| *cause != EndCause::Service), failure) {
            (Some(EndCause::Deadline(deadline)), _) => How::Exit(Exit::TimedOut(deadline)),
            (Some(EndCause::Operator | EndCause::Service), _) => How::Exit(Exit::Killed),
            (None, Some(failure)) => How::Failed(failure),
            (None, None) if self.has_panicked(ending) => How::Exit(Exit::Panicked),
            (None, None) => How::Exit(Exit::Ended(ending)),
        }
    }

    fn has_panicked(&self, ending: Ending) -> bool {
        ending == Ending::Exited(exit::PANICKED) && matches!(self.note, Some(ExitNote::Panicked(_)))
    }

    /// Enters those of its connections, before this one or all, of which no report will come.
    fn enter_lost(&self, several: &mut Several, before: Option<u64>, books: &Books<'_>) {
        while several.ended.front().is_some_and(|first| Some(first.number) != before) {
            let Some(lost) = several.ended.pop_front() else { return };
            let (ended, how) = (Ended::default(), How::Exit(Exit::Lost));
            let (id, client, waited) = (self.name(&lost), lost.client, self.waited);
            let (bytes, usage, warm, slot) = (None, None, false, &self.slot);
            books.enter(&Finished { id, client, ended, how, bytes, usage, waited, warm, slot });
        }
    }
}

/// What a process was that has ended.
#[derive(Debug)]
pub(crate) enum Departed {
    /// It had a connection, which is entered in the books.
    Connection,
    /// A spare that nobody had taken.
    Spare {
        /// Why it could not begin, if it said so.
        failure: Option<String>,
    },
}

/// Children by pid: exactly those that have not been reaped; and the connections of those that have, until they are closed.
#[derive(Debug)]
pub(crate) struct Children<S: Deref<Target = Scoreboard>> {
    by_pid: ByPid<S>,
    timers: Timers,
    closes: Closes<S>,
    /// When they have to be over, since all is ending.
    closes_until: Monotonic,
    /// The closes that are to be looked at.
    due: Vec<u64>,
    /// Those that the kernel is asked about.
    deadlines: Deadlines,
    /// A connection is let go of when its program has closed it.
    lets_go: bool,
    /// Each is the first process of a namespace, and the connection is its child's.
    are_inits: bool,
    /// Watches what those report that serve several connections.
    pipes: Option<Poller>,
}

/// Room that is made at the start, so that the path of a connection does not allocate in ordinary times.
const EXPECTED_CONNECTIONS: u32 = 4096;

impl<S: Deref<Target = Scoreboard>> Children<S> {
    /// With room for so many connections, which have these deadlines.
    pub(crate) fn new(connections: u32, deadlines: Deadlines) -> Self {
        Children {
            by_pid: HashMap::with_capacity_in(
                connections.min(EXPECTED_CONNECTIONS) as usize,
                DontForkAlloc::new(),
            ),
            timers: Timers::new(deadlines != Deadlines::default()),
            closes: Closes::new(),
            closes_until: Monotonic::NEVER,
            due: Vec::new(),
            deadlines: deadlines.of_bytes(),
            lets_go: false,
            are_inits: false,
            pipes: None,
        }
    }

    /// The same, of processes that serve several connections each, and call by this eventfd if few of them wait.
    pub(crate) fn serving_several(self, wake: BorrowedFd<'_>) -> io::Result<Self> {
        let pipes = Poller::new()?;
        pipes.add(wake, Interest::ReadEdge, WAKE)?;
        Ok(Children { pipes: Some(pipes), ..self })
    }

    /// The same, but a program that closes its connection and goes on has ended it.
    pub(crate) fn letting_go(self, lets_go: bool) -> Self {
        Children { lets_go, ..self }
    }

    /// The same, of processes that begin in this namespace of processes.
    pub(crate) fn in_pids(self, pids: Pids) -> Self {
        Children { are_inits: pids == Pids::Own, ..self }
    }

    pub(crate) fn insert(&mut self, pid: Pid, child: Child<S>) {
        let reports = child.several.as_ref().and_then(|several| several.reports.as_ref());
        if let (Some(reports), Some(pipes)) = (reports, &self.pipes) {
            // Without it they are read when it ends, or a deadline is over.
            let _ = pipes.add(reports.descriptor(), Interest::Read, u64::from(pid.unsigned_abs()));
        }
        self.by_pid.insert(pid, child);
        self.plan(pid);
    }

    pub(crate) fn get(&self, pid: Pid) -> Option<&Child<S>> {
        self.by_pid.get(&pid)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Pid, &Child<S>)> {
        self.by_pid.iter().map(|(pid, child)| (*pid, child))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_pid.is_empty() && self.closes.is_empty()
    }

    /// Ends all of them with their process groups: SIGTERM, and SIGKILL after this time. Connections are not kept open for
    /// longer either.
    pub(crate) fn end_all(&mut self, kill_after: Duration) {
        let kill_at = Monotonic::now() + kill_after;
        self.closes_until = self.closes_until.min(kill_at);
        self.closes.hurry(kill_at);
        for number in self.closes.numbers() {
            self.put_close(number, kill_at);
        }
        for pid in self.by_pid.keys().copied().collect::<Vec<_>>() {
            self.tell_to_end(pid, kill_after, kill_at);
        }
    }

    fn tell_to_end(&mut self, pid: Pid, kill_after: Duration, kill_at: Monotonic) {
        if kill_after.is_zero() {
            return self.kill_all_of(pid);
        }
        process::signal_group(pid, Signal::SIGTERM);
        self.put(pid, kill_at, TimerKind::Kill);
    }

    /// Kills a process with all that has come of it: what is in its cgroup, or without one in its process group.
    fn kill_all_of(&self, pid: Pid) {
        let leaf = self.by_pid.get(&pid).and_then(|child| child.leaf.as_ref());
        if leaf.is_none_or(|leaf| leaf.kill().is_err()) {
            process::signal_group(pid, Signal::SIGKILL);
        }
    }

    /// A spare says what it has taken; one that serves a single connection has said so before it served a stranger.
    /// `begin` is called before that counts as a connection. False if this is no such spare.
    pub(crate) fn taken(&mut self, pid: Pid, connection: &Connection, begin: impl FnOnce()) -> bool {
        let process = process_of(connection.number);
        let is_its_own = |child: &&mut Child<S>| [0, process].contains(&process_of(child.id.number));
        let Some(child) = self.by_pid.get_mut(&pid).filter(is_its_own) else { return false };
        match (child.connection, &mut child.several) {
            (None, _) => {}
            // It has come to the end of the one before, and the report of that is on its way.
            (Some(before), Some(several)) if several.ended.len() < FURTHEST_AHEAD => {
                several.ended.push_back(before);
            }
            _ => return false,
        }
        begin();
        child.id.number = connection.number;
        child.connection = Some(*connection);
        child.waited = Some(Duration::ZERO);
        child.made_for_it = false;
        child.slot.note(Some(connection));
        self.plan(pid);
        true
    }

    /// What a process has served that nobody can report: who listened to it is dead.
    pub(crate) fn enter_unreported(&mut self, pid: Pid, books: &Books<'_>) {
        let Some(child) = self.by_pid.get_mut(&pid) else { return };
        if let Some(mut several) = child.several.take() {
            child.enter_lost(&mut several, None, books);
            child.several = Some(several);
        }
    }

    /// A program that was warm has got this connection, which its row shows already. It had used so much processor time.
    pub(crate) fn given(&mut self, pid: Pid, connection: &Connection, cpu: Duration) {
        self.taken(pid, connection, || ());
        let Some(child) = self.by_pid.get_mut(&pid) else { return };
        child.waited = Some(Monotonic::now() - connection.client.accepted);
        child.warm = Some(cpu);
        // What was used there before is not the connection's.
        if let Some(leaf) = &mut child.leaf {
            leaf.usage();
        }
    }

    /// Gives a process that has not got its connection another slot for as long as it lives, and returns that which it had.
    pub(crate) fn exchange_slot(&mut self, pid: Pid, slot: Slot<S>) -> Slot<S> {
        let Some(child) = self.by_pid.get_mut(&pid) else { return slot };
        slot.note_process(Some(pid));
        let before = std::mem::replace(&mut child.slot, slot);
        before.note_process(None);
        before
    }

    /// Keeps the connection of a program that was a spare, whether or not it is known yet that it was taken.
    pub(crate) fn keep(&mut self, pid: Pid, process: u64, copy: ExposedSocket) {
        let is_its_own = |child: &&mut Child<S>| {
            process_of(child.id.number) == process && child.several.is_none() && child.kept.is_none()
        };
        if let Some(child) = self.by_pid.get_mut(&pid).filter(is_its_own) {
            child.kept = Some(copy);
            self.watch_bytes(pid);
        }
    }

    /// A process that serves several reports the end of one. Returns whether it waits for the next; `None` if nothing is
    /// known of that connection, so that it is a lie, or was taken since somebody listened.
    pub(crate) fn served(&mut self, pid: Pid, served: &Served, books: &Books<'_>) -> Option<bool> {
        let number = served.connection.number;
        let child = self.by_pid.get_mut(&pid)?;
        let mut several = child.several.take()?;
        let is_it = |connection: &Connection| connection.number == number;
        let is_current = child.connection.as_ref().is_some_and(is_it);
        let known = is_current || several.ended.iter().any(is_it);
        if known {
            child.enter_lost(&mut several, Some(number), books);
        }
        // What was heard counts, and not what a handler says that it was.
        let connection = match (known, is_current) {
            (false, _) => None,
            (true, true) => child.connection.take(),
            (true, false) => several.ended.pop_front(),
        };
        several.left = several.left.map(|left| left.saturating_sub(u32::from(known)));
        let is_last = several.left == Some(0);
        child.several = Some(several);
        let connection = connection?;
        let ending = Ending::Exited(served.code);
        let ended = Ended { pid, ending, cpu: served.cpu, ..Ended::default() };
        let bytes = Some((served.traffic.received, served.traffic.sent));
        let (id, client, slot) = (child.name(&connection), connection.client, &child.slot);
        let how = How::Exit(Exit::Ended(ended.ending));
        let (usage, waited) = (None, child.waited);
        books.enter(&Finished { id, client, ended, how, bytes, usage, waited, warm: false, slot });
        if is_current {
            child.slot.note(None);
        }
        Some(is_current && !is_last)
    }

    /// Whether a process may not have begun to serve, as far as is known.
    pub(crate) fn may_not_have_begun(&self, pid: Pid) -> bool {
        self.by_pid.get(&pid).is_some_and(|child| child.waits() || child.made_for_it)
    }

    /// A process could not begin, as it says itself.
    pub(crate) fn failed(&mut self, pid: Pid, failure: Failure) {
        if let Some(child) = self.by_pid.get_mut(&pid) {
            child.failure = Some(failure);
        }
    }

    /// A handler's process has ended, and has left this about itself.
    pub(crate) fn note(&mut self, pid: Pid, note: ExitNote) {
        if let Some(child) = self.by_pid.get_mut(&pid) {
            child.note = Some(note);
        }
    }

    /// A process has ended: its cgroup, with what may be left in it.
    pub(crate) fn take_leaf(&mut self, pid: Pid) -> Option<Leaf> {
        let child = self.by_pid.get_mut(&pid)?;
        let mut leaf = child.leaf.take()?;
        // One that served several has told of each.
        child.usage = leaf.usage().filter(|_| child.several.is_none());
        Some(leaf)
    }

    /// Those that serve several connections.
    pub(crate) fn that_serve_several(&self) -> Vec<Pid> {
        self.iter().filter(|(_, child)| child.several.is_some()).map(|(pid, _)| pid).collect()
    }

    /// Some of what a process says that serves several connections.
    pub(crate) fn read_reports(&self, pid: Pid, take: impl FnMut(ChildReport)) -> OwnPipe {
        let several = self.by_pid.get(&pid).and_then(|child| child.several.as_ref());
        let Some(reports) = several.and_then(|several| several.reports.as_ref()) else {
            return OwnPipe::Silent;
        };
        let found = reports.read_own(pid, take);
        if found == OwnPipe::Closed {
            self.stop_watching(reports);
        }
        found
    }

    fn stop_watching(&self, reports: &Reports) {
        if let Some(pipes) = &self.pipes {
            let _ = pipes.remove(reports.descriptor());
        }
    }

    /// Has something to read when one of those that serve several connections has something to say, or called.
    pub(crate) fn pipes(&self) -> Option<BorrowedFd<'_>> {
        self.pipes.as_ref().map(AsFd::as_fd)
    }

    /// Some of those that have something to say; `None` if nothing is to be heard now.
    pub(crate) fn who_reports(&mut self) -> Option<Vec<Pid>> {
        let mut is_silent = true;
        let ready = self.pipes.as_mut()?.ready().inspect(|_| is_silent = false);
        let pids = ready.filter(|token| *token != WAKE).map(|token| token as Pid).collect();
        (!is_silent).then_some(pids)
    }

    /// Kills a process with all that has come of it; false if it is none of these.
    pub(crate) fn kill(&self, pid: Pid) -> bool {
        let is_ours = self.by_pid.contains_key(&pid);
        if is_ours {
            self.kill_all_of(pid);
        }
        is_ours
    }

    /// Lines from a program that is still running.
    pub(crate) fn read_output(&mut self, pid: Pid, books: &Books<'_>, poller: &Poller) {
        let Some(child) = self.by_pid.get_mut(&pid) else { return };
        let id = child.connection.as_ref().map_or(child.id, |connection| child.name(connection));
        let Some(output) = &mut child.output else { return };
        let now = Monotonic::now();
        if output.read(now, &mut |said| write(books, id, pid, said)) == PipeState::Closed {
            let _ = poller.remove(output.descriptor());
            child.output = None;
        }
    }

    /// A process has been reaped: the last lines of its stderr, and when its connection is closed the record of that, and
    /// its slot back. `None` if it was no child of these.
    pub(crate) fn ended(&mut self, ended: &Ended, books: &Books<'_>, poller: &Poller) -> Option<Departed> {
        let mut child = self.by_pid.remove(&ended.pid)?;
        let kept = child.kept.take();
        let output = child.output.take();
        let (mut several, child) = (child.several.take(), child);
        if let Some(reports) = several.as_ref().and_then(|several| several.reports.as_ref()) {
            self.stop_watching(reports);
        }
        if let Some(mut output) = output {
            let id = child.connection.as_ref().map_or(child.id, |connection| child.name(connection));
            let _ = poller.remove(output.descriptor());
            output.drain(Monotonic::now(), &mut |said| write(books, id, ended.pid, said));
        }
        several.iter_mut().for_each(|several| child.enter_lost(several, None, books));
        let Some(connection) = child.connection else {
            let failure = child.failure.map(|failure| books.explain(failure));
            return Some(Departed::Spare { failure });
        };
        match kept {
            Some(kept) => self.begin_close((child, connection, kept), ended, books, poller),
            None => {
                let traffic = child.note.map(ExitNote::traffic);
                let bytes = traffic.map(|traffic| (traffic.received, traffic.sent));
                enter(&child, &connection, ended, bytes, books);
            }
        }
        Some(Departed::Connection)
    }

    fn begin_close(
        &mut self,
        whose: (Child<S>, Connection, ExposedSocket),
        ended: &Ended,
        books: &Books<'_>,
        poller: &Poller,
    ) {
        let (now, until) = (Monotonic::now(), whose.1.until);
        // Whose time is over is not given as much again.
        let longest = if whose.0.overdue.is_some() { TERM_TO_KILL } else { LONGEST_CLOSE };
        let lives_until = if until == Monotonic::NEVER { until } else { until.max(now) + TERM_TO_KILL };
        let until = (now + longest).min(lives_until).min(self.closes_until);
        let number = whose.1.number;
        match self.closes.begin(Close::new(whose, *ended, now, until), now, poller) {
            Closed::Now(close) => finish(&close, books),
            Closed::Later(at) => at.into_iter().for_each(|at| self.put_close(number, at)),
        }
    }

    /// Looks at the connection with this number, whose program has ended. True if it has been closed, with its record, and
    /// its slot is free.
    pub(crate) fn tend_close(&mut self, number: u64, books: &Books<'_>, poller: &Poller) -> bool {
        match self.closes.look(number, Monotonic::now(), poller) {
            Some(Closed::Now(close)) => finish(&close, books),
            Some(Closed::Later(Some(at))) => self.put_close(number, at),
            Some(Closed::Later(None)) | None => {}
        }
        !self.closes.has(number)
    }

    /// The closes that it is time to look at.
    pub(crate) fn due_closes(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.due)
    }

    /// When something is due.
    pub(crate) fn next_deadline(&self) -> Option<Monotonic> {
        self.timers.next()
    }

    /// Does what is due: looks at connections, and ends those whose time is over.
    pub(crate) fn tend(&mut self) {
        while self.timers.next().is_some() {
            let (now, by_pid) = (Monotonic::now(), &self.by_pid);
            let closes = &self.closes;
            let due = self.timers.take_due(now, |pid, number| is_wanted(by_pid, closes, pid, number));
            let Some(Timer { pid, kind, number, .. }) = due else { return };
            match kind {
                TimerKind::Look => self.look_at(pid, now),
                TimerKind::Hold => self.look_whether_it_holds(pid, now),
                TimerKind::End => self.end(pid, EndCause::Deadline(Deadline::Lifetime), now),
                TimerKind::Kill if self.is_ended_alone(pid) => process::signal_process(pid, Signal::SIGKILL),
                TimerKind::Kill => self.kill_all_of(pid),
                TimerKind::Close => self.due.push(number),
            }
        }
    }

    /// Plans what the deadlines of a connection ask for, which has just begun or been taken over.
    fn plan(&mut self, pid: Pid) {
        let Some(child) = self.by_pid.get(&pid) else { return };
        let Some(Connection { until, .. }) = child.connection else { return };
        match child.overdue {
            Some(overdue) => self.put(pid, overdue.kill_at, TimerKind::Kill),
            // One that serves several knows when it begins another; told from outside, it could have begun it just now.
            None if until != Monotonic::NEVER && child.several.is_some() => {
                self.put(pid, until + TERM_TO_KILL, TimerKind::End);
            }
            None if until != Monotonic::NEVER => self.put(pid, until, TimerKind::End),
            None => {}
        }
        self.watch_bytes(pid);
    }

    /// Begins to watch a connection that a process is known to have, and of which there is a copy.
    fn watch_bytes(&mut self, pid: Pid) {
        if self.lets_go && self.by_pid.get(&pid).is_some_and(|child| child.kept.is_some()) {
            self.put(pid, Monotonic::now() + FIRST_HOLD, TimerKind::Hold);
        }
        let can_be_watched = |child: &&mut Child<S>| {
            // The kernel counts nothing of a Unix socket.
            let is_ip = |connection: &Connection| matches!(connection.client.peer, Peer::Ip(_));
            child.kept.is_some() && child.watch.is_none() && child.connection.as_ref().is_some_and(is_ip)
        };
        let Some(child) = self.by_pid.get_mut(&pid).filter(can_be_watched) else { return };
        let watch = child.connection.as_ref().map(|connection| ActivityWatch::new(&connection.client));
        let first = watch.and_then(|watch| watch.first_look(&self.deadlines));
        if let Some(at) = first {
            child.watch = watch;
            self.put(pid, at, TimerKind::Look);
        }
    }

    fn put(&mut self, pid: Pid, at: Monotonic, kind: TimerKind) {
        let number = self.by_pid.get(&pid).map_or(0, number_served);
        self.put_timer(Timer { at, pid, number, kind });
    }

    fn put_close(&mut self, number: u64, at: Monotonic) {
        self.put_timer(Timer { at, pid: NOBODY, number, kind: TimerKind::Close });
    }

    fn put_timer(&mut self, timer: Timer) {
        let (by_pid, closes) = (&self.by_pid, &self.closes);
        let is_wanted = |pid, number| is_wanted(by_pid, closes, pid, number);
        self.timers.put(timer, by_pid.len() + closes.len(), is_wanted);
    }

    fn look_at(&mut self, pid: Pid, now: Monotonic) {
        let Some(child) = self.by_pid.get_mut(&pid).filter(|child| child.overdue.is_none()) else { return };
        let (Some(kept), Some(watch)) = (&child.kept, &mut child.watch) else { return };
        let activity = TcpInfo::of(kept.as_fd()).ok().and_then(|info| info.activity);
        match watch.judge(&self.deadlines, now, activity) {
            Verdict::Over(deadline) => self.end(pid, EndCause::Deadline(deadline), now),
            Verdict::LookAt(at) => self.put(pid, at, TimerKind::Look),
            Verdict::Free => {}
        }
    }

    /// The kernel tells nobody that one of two who have a socket has closed it.
    fn look_whether_it_holds(&mut self, pid: Pid, now: Monotonic) {
        let Some(child) = self.by_pid.get_mut(&pid).filter(|_| !wait::has_ended(pid)) else { return };
        let Some(kept) = &child.kept else { return };
        let holds = match self.are_inits {
            false => process::has_socket(pid, kept.as_fd()),
            true => process::have_socket(pid, kept.as_fd()),
        };
        if holds {
            let age = now - child.connection.map_or(now, |connection| connection.client.accepted);
            self.put(pid, now + age.clamp(FIRST_HOLD, LONGEST_HOLD), TimerKind::Hold);
        } else {
            child.kept = None;
        }
    }

    /// Ends the connection with this number by hand; false if no process has it.
    pub(crate) fn end_by_hand(&mut self, is_it: impl Fn(ConnectionId) -> bool) -> bool {
        let has_it = |(_, child): &(Pid, &Child<S>)| {
            child.connection.is_some_and(|connection| is_it(child.name(&connection)))
        };
        let found = self.iter().find(has_it).map(|(pid, _)| pid).filter(|pid| !wait::has_ended(*pid));
        if let Some(pid) = found {
            self.end(pid, EndCause::Operator, Monotonic::now());
        }
        found.is_some()
    }

    /// Ends the connections of all clients that are meant by hand.
    pub(crate) fn end_those(&mut self, is_meant: impl Fn(&Child<S>, &Client) -> bool) {
        let is_one = |child: &Child<S>| child.connection.is_some_and(|one| is_meant(child, &one.client));
        let found: Vec<_> = self.iter().filter(|(_, child)| is_one(child)).map(|(pid, _)| pid).collect();
        for pid in found {
            self.end(pid, EndCause::Operator, Monotonic::now());
        }
    }

    /// Tells programs to end that have a listener. What they do for others in processes of their own goes on, unless the kill mode
    /// of the service ends it with them.
    pub(crate) fn end_programs(&mut self, is_meant: impl Fn(&Child<S>) -> bool) {
        let is_one = |child: &Child<S>| child.has_listener() && is_meant(child);
        let found: Vec<_> = self.iter().filter(|(_, child)| is_one(child)).map(|(pid, _)| pid).collect();
        for pid in found {
            self.end(pid, EndCause::Service, Monotonic::now());
        }
    }

    /// Whether its own process alone is to end, and not what has come of that.
    fn is_ended_alone(&self, pid: Pid) -> bool {
        let overdue = self.by_pid.get(&pid).and_then(|child| child.overdue);
        overdue.is_some_and(|overdue| overdue.cause == EndCause::Service)
            && self.closes_until == Monotonic::NEVER
    }

    /// Tells a process to end, for the sake of its connection.
    fn end(&mut self, pid: Pid, cause: EndCause, now: Monotonic) {
        let Some(child) = self.by_pid.get_mut(&pid) else { return };
        // One that has ended by itself was in time.
        if child.overdue.is_some() || wait::has_ended(pid) {
            return;
        }
        // One that serves several should have ended itself when its deadline came.
        let had_time = child.several.is_some() && cause != EndCause::Operator;
        let grace = if had_time { Duration::ZERO } else { TERM_TO_KILL };
        if let Some(kept) = &child.kept {
            stream::give_up_after(kept.as_fd(), TERM_TO_KILL);
        }
        let overdue = Overdue { cause, kill_at: now + grace };
        child.overdue = Some(overdue);
        child.slot.note_overdue(overdue);
        if cause == EndCause::Service {
            process::signal_process(pid, Signal::SIGTERM);
            return self.put(pid, overdue.kill_at, TimerKind::Kill);
        }
        self.tell_to_end(pid, grace, overdue.kill_at);
    }
}

/// The pid of a process that is no more.
const NOBODY: Pid = 0;

type ByPid<S> = HashMap<Pid, Child<S>, hashbrown::DefaultHashBuilder, DontForkAlloc>;

/// Whether an entry of the timers is about something that there is.
fn is_wanted<S: Deref<Target = Scoreboard>>(
    by_pid: &ByPid<S>,
    closes: &Closes<S>,
    pid: Pid,
    number: u64,
) -> bool {
    if pid == NOBODY { closes.has(number) } else { serves(by_pid.get(&pid), number) }
}

fn finish<S: Deref<Target = Scoreboard>>(close: &Close<S>, books: &Books<'_>) {
    enter(&close.child, &close.connection, &close.ended, close.bytes(), books);
}

/// Enters the end of the last connection of a process.
fn enter<S: Deref<Target = Scoreboard>>(
    child: &Child<S>,
    connection: &Connection,
    ended: &Ended,
    bytes: Option<(u64, u64)>,
    books: &Books<'_>,
) {
    let (id, client, how) = (child.name(connection), connection.client, child.how(ended.ending));
    let (usage, waited, slot) = (child.usage, child.waited, &child.slot);
    let ended = Ended { cpu: ended.cpu.saturating_sub(child.warm.unwrap_or_default()), ..*ended };
    let warm = child.warm.is_some();
    books.enter(&Finished { id, client, ended, how, bytes, usage, waited, warm, slot });
}

/// The number of the connection that this child serves; 0 while it waits for one.
fn number_served<S: Deref<Target = Scoreboard>>(child: &Child<S>) -> u64 {
    child.connection.map_or(0, |connection| connection.number)
}

/// Whether this child still does what it did when `number` was that of its connection.
fn serves<S: Deref<Target = Scoreboard>>(child: Option<&Child<S>>, number: u64) -> bool {
    child.is_some_and(|child| number_served(child) == number)
}

fn write(books: &Books<'_>, id: ConnectionId, pid: Pid, said: Said<'_>) {
    let service = books.service;
    let text = match said {
        Said::Line(text) => Ok(text),
        Said::LeftOut(lines) => Err(LeftOut { lines, allowed: output::LINES_IN_WINDOW, per: output::WINDOW }),
    };
    books.log.output(&OutputLine { service, id, pid, text });
}
