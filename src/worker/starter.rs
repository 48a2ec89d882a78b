//! From a client that has been let in to a process that serves it, at once or in one of several tries: fork may say `EAGAIN`
//! or `ENOMEM`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::children::{Child, Leaf, Output, OutputPipes};
use super::context::{Context, Newcomer, WorkerSlot};
use super::leaves::Leaves;
use super::token::Token;
use crate::admission::Admission;
use crate::child::{self, ChildSpec, Conn, WarmStart};
use crate::client::Connection;
use crate::ipc::reports::{FailureWord, Reports, Step};
use crate::pace::Backoff;
use crate::scoreboard::Scoreboard;
use crate::spare::Pool;
use crate::sys::child_fds::ReservedFds;
use crate::sys::epoll::Interest;
use crate::sys::fork::{Birthplace, ChildStack, ForkedChild};
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;
use crate::sys::warm::{self, Scaffold};

/// How long an accepted connection waits for a process before it is closed.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Makes processes.
#[derive(Debug)]
pub(super) struct Starter {
    stack: ChildStack,
    reserved: ReservedFds,
    /// If what programs say on stderr becomes records.
    pipes: Option<OutputPipes>,
    leaves: Leaves,
    /// How many connections and spares there were; each gets the next number.
    numbers: u64,
    waiting: Option<Unstarted>,
}

/// A client that has been let in, and waits for its process. Meanwhile nobody else is.
#[derive(Debug)]
struct Unstarted {
    admitted: Admitted,
    until: Monotonic,
    backoff: Backoff,
}

/// A client that has been let in.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) slot: WorkerSlot,
    socket: OwnedFd,
    pub(super) connection: Connection,
}

/// What has become of a try to start a process.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each connection")]
pub(super) enum Started {
    Process(Pid, Child<&'static Scoreboard>),
    /// There will be another.
    Later,
    /// It was the last: why there is none.
    Never(Admitted, String),
}

/// What a child forked for a connection begins with.
type Start = (&'static ChildSpec, OwnedFd, Conn, Option<OwnedFd>, &'static Admission);

fn serve_in_fork(child: ForkedChild, (spec, socket, conn, stderr, admission): Start) -> u8 {
    // A program has none of it.
    if let Some(error) = if spec.execs() { None } else { admission.forget_bans().err() } {
        spec.fail(Some(socket.as_fd()), &(Step::Descriptors, error));
    }
    child::serve_in_fork(child, spec, socket, &conn, stderr.as_ref().map(AsFd::as_fd))
}

impl Starter {
    /// With a stack of its children's, and the numbers of descriptors that they need.
    pub(super) fn new(stack: ChildStack, pipes: Option<OutputPipes>, leaves: Leaves) -> io::Result<Self> {
        Ok(Starter { stack, reserved: ReservedFds::new()?, pipes, leaves, numbers: 0, waiting: None })
    }

    /// The cgroup of a process that has been reaped, and whether what it has left there was killed.
    pub(super) fn put_back(&mut self, leaf: Leaf, is_dying: bool) {
        match is_dying {
            true => self.leaves.put_back_dying(&leaf),
            false => self.leaves.put_back(Some(leaf)),
        }
    }

    /// Whether somebody waits for a process.
    pub(super) fn is_busy(&self) -> bool {
        self.waiting.is_some()
    }

    /// When to [`Starter::retry`].
    pub(super) fn next_try(&self) -> Option<Monotonic> {
        self.waiting.as_ref()?.backoff.until()
    }

    /// Starts the process of a client that has been let in just now.
    pub(super) fn begin(&mut self, newcomer: Newcomer, pool: &Pool, cx: &Context) -> Started {
        let admitted = self.admit(newcomer, cx);
        self.launch(admitted, pool, cx)
    }

    /// Gives a client a number, and notes it in its row.
    pub(super) fn admit(&mut self, newcomer: Newcomer, cx: &Context) -> Admitted {
        let Newcomer { slot, socket, client } = newcomer;
        self.numbers += 1;
        let until = cx.plan.service.admission.deadlines.until(&client);
        let connection = Connection { number: self.numbers, client, until };
        slot.note(Some(&connection));
        Admitted { slot, socket, connection }
    }

    /// Starts the process of one that has been admitted.
    pub(super) fn launch(&mut self, admitted: Admitted, pool: &Pool, cx: &Context) -> Started {
        self.start(admitted, pool, cx, |starter, admitted, _| starter.wait(admitted))
    }

    /// Tries again for who waits, if it is time or something has ended `just_now`.
    pub(super) fn retry(&mut self, pool: &Pool, cx: &Context, just_now: bool) -> Option<Started> {
        let now = Monotonic::now();
        let waiting = self.waiting.take_if(|waiting| just_now || waiting.backoff.is_over(now))?;
        let Unstarted { admitted, until, mut backoff } = waiting;
        Some(self.start(admitted, pool, cx, |starter, admitted, error| {
            if until <= now {
                let reason = format!("no process could be made for {} s: {error}", START_TIMEOUT.as_secs());
                return Started::Never(admitted, reason);
            }
            backoff.failed(now);
            starter.waiting = Some(Unstarted { admitted, until, backoff });
            Started::Later
        }))
    }

    fn wait(&mut self, admitted: Admitted) -> Started {
        let now = Monotonic::now();
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        backoff.failed(now);
        self.waiting = Some(Unstarted { admitted, until: now + START_TIMEOUT, backoff });
        Started::Later
    }

    /// Gives up who waits.
    pub(super) fn give_up(&mut self) -> Option<Admitted> {
        self.waiting.take().map(|waiting| waiting.admitted)
    }

    /// Starts it, or does what is to be done if that `failed`.
    fn start(
        &mut self,
        admitted: Admitted,
        pool: &Pool,
        cx: &Context,
        failed: impl FnOnce(&mut Self, Admitted, io::Error) -> Started,
    ) -> Started {
        let output = || self.pipes.as_ref().map(OutputPipes::make).transpose();
        let (output, stderr) = match cx.spec.vacate(admitted.slot.index()).and_then(|()| output()) {
            Ok(output) => output.unzip(),
            Err(error) => return failed(self, admitted, error),
        };
        let own = pool.keeps_all().then(Reports::create).transpose();
        let (reports, own) = match own {
            Ok(own) => own.unzip(),
            Err(error) => return failed(self, admitted, error),
        };
        let leaf = match self.leaves.take() {
            Ok(leaf) => leaf,
            // It would not be what it is to be: nobody waits for that.
            Err(error) => return Started::Never(admitted, error.to_string()),
        };
        let Admitted { slot, socket, connection } = admitted;
        let origin = Birthplace { record: slot.pid_word(), cgroup: leaf.as_ref().map(Leaf::place) };
        let (spec, id) = (cx.spec, cx.id(connection.number));
        let conn = Conn { id, slot: slot.index(), client: connection.client };
        let failure = FailureWord::default();
        let program = spec.program(&conn, socket.as_fd()).filter(|_| spec.may_share_memory());
        let (made, socket) = match (program, own) {
            (None, Some(own)) => {
                let (pipes, first) = ((stderr, own), (socket, connection));
                pool.make_for((conn.slot, id), first, pipes, &self.stack, origin)
            }
            (Some(program), _) => {
                let (stderr, reserved) = (stderr.as_ref().map(AsFd::as_fd), &self.reserved);
                let made = self.stack.run_until_exec(origin, &|child| {
                    child::serve_sharing(child, spec, socket.as_fd(), stderr, &program, reserved, &failure)
                });
                self.reserved.clear();
                (made, socket)
            }
            (None, None) => {
                let mut start: Start = (spec, socket, conn, stderr, cx.admission);
                let made = self.stack.fork(origin, serve_in_fork, &mut start);
                (made, start.1)
            }
        };
        match made {
            Ok(pid) => {
                let output = output.map(|pipe| listen_to(pid, pipe, cx));
                // The worker's copy of the connection closes here, unless somebody has to ask about it.
                let kept = cx.keeps_connections.then(|| socket.into());
                let connections = if reports.is_some() { cx.plan.service.connections_per_child } else { 1 };
                let child =
                    Child::serving(slot, id, connection, connections).with_output(output).with_kept(kept);
                let child = child.with_waited(Monotonic::now() - connection.client.accepted);
                let child = child.with_failure(failure.get()).with_reports(reports);
                Started::Process(pid, child.with_leaf(leaf))
            }
            Err(error) => {
                self.leaves.failed(leaf, &error);
                failed(self, Admitted { slot, socket, connection }, error)
            }
        }
    }

    /// Makes a spare.
    pub(super) fn make_spare(
        &mut self,
        slot: WorkerSlot,
        pool: &mut Pool,
        cx: &Context,
    ) -> io::Result<(Pid, Child<&'static Scoreboard>)> {
        cx.spec.vacate(slot.index())?;
        let (output, stderr) = self.pipes.as_ref().map(OutputPipes::make).transpose()?.unzip();
        let (reports, own) = pool.serves_several().then(Reports::create).transpose()?.unzip();
        let id = cx.id(self.numbers + 1);
        let leaf = self.leaves.take()?;
        let origin = Birthplace { record: slot.pid_word(), cgroup: leaf.as_ref().map(Leaf::place) };
        let made = pool.make(&slot, id, (stderr, own), &self.stack, origin);
        let connections = cx.plan.service.connections_per_child;
        let (pid, child) = self.ahead(made, slot, connections, (leaf, output), cx)?;
        Ok((pid, child.with_reports(reports)))
    }
}

impl Starter {
    /// Starts a program that is to wait for its connection; with it comes the link by which it gets that.
    pub(super) fn start_warm(
        &mut self,
        slot: WorkerSlot,
        scaffold: Scaffold,
        cx: &Context,
    ) -> io::Result<(Pid, Child<&'static Scoreboard>, OwnedFd)> {
        cx.spec.vacate(slot.index())?;
        let (output, stderr) = self.pipes.as_ref().map(OutputPipes::make).transpose()?.unzip();
        let (link, theirs) = warm::link()?;
        let leaf = self.leaves.take()?;
        let origin = Birthplace { record: slot.pid_word(), cgroup: leaf.as_ref().map(Leaf::place) };
        let mut start = WarmStart { spec: cx.spec, scaffold, slot: slot.index(), link: theirs, stderr };
        let made = self.stack.fork(origin, child::start_warm, &mut start);
        let (pid, child) = self.ahead(made, slot, 1, (leaf, output), cx)?;
        Ok((pid, child, link))
    }

    /// The child that was made ahead of its connection, or why there is none.
    fn ahead(
        &mut self,
        made: io::Result<Pid>,
        slot: WorkerSlot,
        connections: u32,
        (leaf, output): (Option<Leaf>, Option<OwnedFd>),
        cx: &Context,
    ) -> io::Result<(Pid, Child<&'static Scoreboard>)> {
        let pid = match made {
            Ok(pid) => pid,
            Err(error) => {
                self.leaves.failed(leaf, &error);
                return Err(error);
            }
        };
        self.numbers += 1;
        let output = output.map(|pipe| listen_to(pid, pipe, cx));
        let child = Child::spare(slot, cx.id(self.numbers), connections);
        Ok((pid, child.with_output(output).with_leaf(leaf)))
    }
}

fn listen_to(pid: Pid, pipe: OwnedFd, cx: &Context) -> Output {
    let output = Output::new(pipe);
    // Without it the lines are read when the process ends.
    let _ = cx.poller.add(output.descriptor(), Interest::Read, Token::Output(pid).into());
    output
}
