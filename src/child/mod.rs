//! A connection process: gets its identity and its limits, runs one handler or program, exits. Nothing here runs elsewhere.
//!
//! It is made with all signals blocked and its parent's descriptors, for a connection or [ahead of one](crate::spare). The
//! order of the steps matters:
//!
//! | step | | why then |
//! |---|---|---|
//! | map | a spare maps the memory of the sources | its limits may leave no room for it |
//! | enter | process group, umask, nice, limits, chroot, user, capabilities, working directory | what needs privilege comes first, in the order in which each takes away what the next does without |
//! | | a Landlock domain | the directory may be one that rules do not name |
//! | | stderr, signals to their defaults, unblocked | the worker's handlers would swallow a signal that is meant for this process |
//! | | a filter of system calls | it lets pass what the steps below need |
//! | | a spare waits, accepts, and is asked by [`crate::admission`] | |
//! | close | of a program all but 0, 1, 2, on exec | nothing of a stranger has run yet |
//! | seal | the limit of descriptors | accept(2) takes some that a handler or program need not have |
//! | close | of a handler what the parent still owns, and what its process has reported by | it may fail until here, and is captured from here on |
//! | run | the handler, or execve(2) | |
//!
//! With a namespace of processes, all of it is done by the child of the one that is made, see [`init`].
//!
//! All but the last is rehearsed by each worker before it is ready, for a fork, an exec and a spare alike.

pub(crate) mod call;
pub(crate) mod closing;
pub(crate) mod confine;
mod environment;
mod init;
pub(crate) mod watch;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::admission::Deadlines;
use crate::admission::sources::SlotIndex;
use crate::client::{Client, ConnectionId, Traffic};
use crate::config::{Job, Passing, ServiceConfig, StderrTarget, WarmPoint, WorkerIds};
use crate::exit;
use crate::ipc::reports::{self, ExitNote, Failure, FailureWord, Reporter, Step};
use crate::sys::child_fds::{self, ReservedFds};
use crate::sys::exec::Image;
use crate::sys::fork::{ForkedChild, Pids, SharingChild};
use crate::sys::signal::{self, Signals};
use crate::sys::warm::Scaffold;
use crate::sys::{process, stream};

use call::{CallOutcome, HandlerCall, PreparedHandler};
use confine::Confinement;
use confine::cage::SignalGuard;
use confine::namespaces::OwnNamespaces;

/// All that can be prepared before there is a connection. Made once by each worker, and kept for its whole life.
#[derive(Debug)]
pub(crate) struct ChildSpec {
    confinement: Confinement,
    job: PreparedJob,
    null: Option<OwnedFd>,
    /// Whether stderr is the client's, too.
    says_errors_to_client: bool,
    /// What it gets is a listener, which others will have after it.
    waits: bool,
    signals: &'static Signals,
    reporter: Reporter,
    deadlines: Deadlines,
    pids: Pids,
}

#[derive(Debug)]
enum PreparedJob {
    Handler(HandlerCall),
    Exec(PreparedProgram),
}

#[derive(Debug)]
struct PreparedProgram {
    /// Never waited for: there is one thread. A cell would keep children from having it, see [`crate::sys::fork`].
    image: Mutex<Image>,
    /// What it gets as its stdin, if that is not the connection.
    stdin: Option<OwnedFd>,
    /// Variables tell it of its connection. Not where most of them are started before: what is not always there helps nobody.
    is_told: bool,
}

/// One connection, as its process finds it beside its descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conn {
    pub(crate) id: ConnectionId,
    pub(crate) slot: SlotIndex,
    pub(crate) client: Client,
}

/// At which step it went wrong, and how.
pub(crate) type Failed = (Step, io::Error);

impl ChildSpec {
    /// Prepares for the connections of `service`, in a worker that has these namespaces. `handler` is what serves them, if no
    /// program does, and has been prepared. `signals` are those that the worker handles; `has_cgroup` says whether each has a
    /// cgroup of its own.
    ///
    /// # Errors
    ///
    /// There is no handler; a NUL byte in a path, argument or variable; a `/dev/null` that cannot be opened.
    pub(crate) fn new(
        service: &ServiceConfig,
        namespaces: OwnNamespaces,
        handler: Option<PreparedHandler>,
        signals: &'static Signals,
        reporter: Reporter,
        has_cgroup: bool,
    ) -> io::Result<Self> {
        let (job, restore_descriptor_limit) = match &service.job {
            Job::Handler(_) => {
                let PreparedHandler { handler, shared } = handler.ok_or(io::ErrorKind::NotFound)?;
                (
                    PreparedJob::Handler(HandlerCall {
                        handler,
                        shared,
                        has_stderr: handler.has_stderr(),
                        is_caged: service.sandbox.is_some(),
                    }),
                    false,
                )
            }
            Job::Exec(program) => {
                let path = CString::new(program.path.as_os_str().as_bytes())?;
                let arguments: Result<_, _> =
                    program.arguments.iter().map(|text| CString::new(text.as_str())).collect();
                let constant = environment::constant(&service.name, &service.environment)?;
                let image = Mutex::new(Image::new(path, arguments?, constant));
                let stdin = match program.passing {
                    Passing::Stdio => None,
                    Passing::ListenFds => Some(std::fs::File::open("/dev/null")?.into()),
                };
                let point = service.warm.as_ref().map(|warm| warm.point);
                let is_told = point != Some(WarmPoint::Spare);
                (PreparedJob::Exec(PreparedProgram { image, stdin, is_told }), true)
            }
        };
        let null = match service.stderr {
            StderrTarget::Null => Some(std::fs::File::options().write(true).open("/dev/null")?.into()),
            StderrTarget::Log | StderrTarget::Inherit | StderrTarget::Connection => None,
        };
        let confinement = Confinement::new(service, namespaces, restore_descriptor_limit, has_cgroup)?;
        let deadlines = service.admission.deadlines;
        let says_errors_to_client = service.stderr == StderrTarget::Connection;
        let pids = if namespaces.processes { Pids::Own } else { Pids::Shared };
        let waits = service.wait;
        Ok(ChildSpec {
            confinement,
            job,
            null,
            says_errors_to_client,
            waits,
            signals,
            reporter,
            deadlines,
            pids,
        })
    }

    /// Whether connections are for a program.
    pub(crate) fn execs(&self) -> bool {
        matches!(self.job, PreparedJob::Exec(_))
    }

    /// Whether it is filtered what its children ask the kernel for.
    pub(crate) fn filters_calls(&self) -> bool {
        self.confinement.filters_calls()
    }

    /// Whether a child may share the worker's memory until it has become its program, and the worker wait for that. Not
    /// if it is somebody else's by then: he could stop it, and so the worker. Nor if it has to know its own number, which
    /// is there when it is.
    pub(crate) fn may_share_memory(&self) -> bool {
        !self.confinement.is_somebody_else() && self.stdin().is_none() && self.pids == Pids::Shared
    }

    /// In which namespace of processes its children begin.
    pub(crate) fn pids(&self) -> Pids {
        self.pids
    }

    /// In a child with this slot, or one that tries it: does `work`, in a process beside this one if this is the first of a namespace.
    pub(crate) fn in_its_place<F: FnOnce(ForkedChild) -> u8 + Send>(
        &self,
        child: ForkedChild,
        slot: Option<SlotIndex>,
        work: F,
    ) -> u8 {
        match self.pids {
            Pids::Shared => work(child),
            Pids::Own => init::attend(child, self, slot, work),
        }
    }

    /// What a program gets as its stdin, if that is not the connection.
    pub(crate) fn stdin(&self) -> Option<BorrowedFd<'_>> {
        match &self.job {
            PreparedJob::Exec(program) => program.stdin.as_ref().map(AsFd::as_fd),
            PreparedJob::Handler(_) => None,
        }
    }

    /// In the worker: kills who has been left behind by a connection with this slot, if each has a user of its own.
    pub(crate) fn vacate(&self, slot: SlotIndex) -> io::Result<()> {
        self.confinement.vacate(slot.index())
    }

    /// Whether what a child writes to stderr may be for somebody.
    pub(crate) fn has_stderr(&self) -> bool {
        match &self.job {
            PreparedJob::Handler(call) => call.has_stderr,
            PreparedJob::Exec(_) => true,
        }
    }

    /// Whether stderr is the client's, too.
    pub(crate) fn says_errors_to_client(&self) -> bool {
        self.says_errors_to_client
    }

    /// How long a connection may take.
    pub(crate) fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// Where its children report.
    pub(crate) fn reporter(&self) -> Reporter {
        self.reporter
    }

    /// In a forked child: does all that a connection process does before its handler or program, for a connection that
    /// there is not, and exits. So a user that cannot be taken or a limit that cannot be set is known before the first.
    pub(crate) fn rehearse(&self, child: ForkedChild) -> u8 {
        self.in_its_place(child, None, |child| {
            let ready =
                self.enter(None, None).and_then(|()| self.close(child, None)).and_then(|()| self.seal());
            self.rehearsed(ready)
        })
    }

    /// How a rehearsal ends: as a handler's process does.
    pub(crate) fn rehearsed(&self, ready: Result<(), Failed>) -> u8 {
        match ready {
            Ok(()) => {
                ExitNote::Served(Traffic::default()).leave();
                0
            }
            Err(failed) => self.fail(None, &failed),
        }
    }

    /// Before the rehearsal, in a worker that is root and need not be: gives that up.
    pub(crate) fn step_down(&mut self, own: WorkerIds) -> Result<(), Failed> {
        self.confinement.step_down(own, self.pids == Pids::Own)
    }

    /// After the rehearsal: the worker goes as far towards what its children are as that takes nothing from it.
    pub(crate) fn preapply(&mut self) -> io::Result<SignalGuard> {
        self.confinement.preapply()
    }

    /// In a child with this slot, or one that tries it: the first phase, all that needs privilege and no connection.
    pub(crate) fn enter(
        &self,
        slot: Option<SlotIndex>,
        stderr: Option<BorrowedFd<'_>>,
    ) -> Result<(), Failed> {
        self.confinement.enter(slot.map(SlotIndex::index))?;
        if let Some(stderr) = self.null.as_ref().map(AsFd::as_fd).or(stderr) {
            child_fds::standard_error(stderr).map_err(|error| (Step::Descriptors, error))?;
        }
        // Before they are unblocked: the worker's handler would swallow a SIGTERM that is meant for this process.
        // Ignored signals there are none, the worker has seen to that.
        signal::forget_handlers(self.signals);
        signal::unblock_all().map_err(|error| (Step::Signals, error))?;
        self.confinement.close()
    }

    /// In a child: makes the connection its stderr, if that is to be the client's.
    fn tell_client(&self, connection: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
        match connection.filter(|_| self.says_errors_to_client) {
            Some(connection) => {
                child_fds::standard_error(connection).map_err(|error| (Step::Descriptors, error))
            }
            None => Ok(()),
        }
    }

    /// In a child: leaves it the connection, or where there is none what it reports by; and on exec nothing but its standard
    /// descriptors.
    fn close(&self, child: ForkedChild, connection: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
        if self.execs() {
            self.tell_client(connection)?;
        }
        let closed = match &self.job {
            PreparedJob::Handler(call) => {
                let kept = [connection.unwrap_or(self.reporter.descriptor())];
                if call.has_stderr {
                    child_fds::close_all_but(child, &kept, None)
                } else {
                    // Its stderr would be ours, where a line of it passes for one of preforkd.
                    child_fds::close_standard_and_all_but(child, &kept)
                }
            }
            PreparedJob::Exec(PreparedProgram { stdin: None, .. }) => connection
                .map_or(Ok(()), child_fds::standard)
                .and_then(|()| child_fds::close_others_on_exec()),
            PreparedJob::Exec(PreparedProgram { stdin: Some(stdin), .. }) => connection
                .map_or(Ok(()), |connection| child_fds::standard_and_first(stdin.as_fd(), connection)),
        };
        closed.map_err(|error| (Step::Descriptors, error))
    }

    /// In a child: the second phase, the last step before a handler or program.
    pub(crate) fn seal(&self) -> Result<(), Failed> {
        self.confinement.seal()
    }

    /// The program for this connection, unless a handler serves it.
    pub(crate) fn program(&self, conn: &Conn, connection: BorrowedFd<'_>) -> Option<MutexGuard<'_, Image>> {
        let PreparedJob::Exec(program) = &self.job else { return None };
        let mut image = program.image.lock().unwrap_or_else(PoisonError::into_inner);
        match program.is_told {
            true => environment::describe(conn, connection, program.stdin.is_some(), &mut image),
            false => image.clear(),
        }
        Some(image)
    }

    /// In a child that has entered: serves one connection, and exits.
    pub(crate) fn run(&self, child: ForkedChild, connection: OwnedFd, conn: &Conn) -> ! {
        let close = || self.close(child, Some(connection.as_fd()));
        let ready = match self.job {
            // It has nothing to report by once all is closed. What it has as 2 is below no limit of less.
            PreparedJob::Handler(_) => {
                self.tell_client(Some(connection.as_fd())).and_then(|()| self.seal()).and_then(|()| close())
            }
            // Nor is what it has as 3.
            PreparedJob::Exec(_) => close().and_then(|()| self.seal()),
        };
        if let Err(failed) = ready {
            self.fail(Some(connection.as_fd()), &failed);
        }
        match self.job {
            PreparedJob::Handler(call) => {
                let until = self.deadlines.until(&conn.client);
                self.begin_sharing(conn.slot);
                // Its lifetime is its worker's matter.
                let outcome = watch::serve(call, connection, conn, self.deadlines.of_bytes(), until);
                outcome.note().leave();
                process::exit(outcome.code)
            }
            PreparedJob::Exec(_) => {
                let error = self.program(conn, connection.as_fd()).map(|image| image.exec());
                let error = error.unwrap_or(io::ErrorKind::NotFound.into());
                self.fail(Some(connection.as_fd()), &(Step::Exec, error))
            }
        }
    }

    /// What is told of a connection to the program that is to serve it, each variable with its NUL, as [`ChildSpec::program`]
    /// has it.
    pub(crate) fn variables(
        &self,
        conn: &Conn,
        connection: BorrowedFd<'_>,
        say: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let program = self.program(conn, connection).ok_or(io::ErrorKind::NotFound)?;
        say(program.changing())
    }

    /// In a child of a handler: what it counts from now on is counted in this slot.
    pub(crate) fn begin_sharing(&self, slot: SlotIndex) {
        if let PreparedJob::Handler(HandlerCall { shared: Some(shared), .. }) = self.job {
            shared.begin(slot.index());
        }
    }

    /// In a child that has entered: serves one connection of several, with a handler. What it leaves behind in this
    /// process, the next will find: that is what was asked for. After a panic there is no next. `None` if it is for a program.
    pub(crate) fn run_once_more(&self, connection: OwnedFd, conn: &Conn) -> Option<CallOutcome> {
        let PreparedJob::Handler(call) = self.job else { return None };
        let until = self.deadlines.until(&conn.client);
        let outcome = watch::serve(call, connection, conn, self.deadlines, until);
        if outcome.code == exit::PANICKED {
            outcome.note().leave();
            process::exit(outcome.code);
        }
        Some(outcome)
    }

    /// In a child with memory of its own: says at which step it went wrong, and exits.
    pub(crate) fn fail(&self, connection: Option<BorrowedFd<'_>>, (step, error): &Failed) -> ! {
        // The client is not to wait until there is room for the report.
        connection.into_iter().filter(|_| !self.waits).for_each(stream::end);
        self.reporter.failed(Failure::new(*step, error));
        process::exit(reports::FAILED_TO_BEGIN)
    }
}

/// Serves one connection with `program`, in a child that shares the worker's memory and descriptors, while that waits.
/// `stderr` is where lines go that shall become records, `program` what [`ChildSpec::program`] has told; why it fails is in
/// `failure` then.
pub(crate) fn serve_sharing(
    child: SharingChild,
    spec: &ChildSpec,
    connection: BorrowedFd<'_>,
    stderr: Option<BorrowedFd<'_>>,
    program: &Image,
    reserved: &ReservedFds,
    failure: &FailureWord,
) -> ! {
    let ready = match reserved.own_table(child, [Some(connection), stderr]) {
        Ok((child, [connection, stderr])) => {
            spec.enter(None, stderr).and_then(|()| spec.close(child, connection)).and_then(|()| spec.seal())
        }
        Err(error) => Err((Step::Descriptors, error)),
    };
    let (step, error) = ready.err().unwrap_or_else(|| (Step::Exec, program.exec()));
    failure.set(Failure::new(step, &error));
    process::exit(reports::FAILED_TO_BEGIN)
}

/// What a program is started with that is to be warm.
#[derive(Debug)]
pub(crate) struct WarmStart {
    pub(crate) spec: &'static ChildSpec,
    pub(crate) scaffold: Scaffold,
    pub(crate) slot: SlotIndex,
    /// Where it gets its connection.
    pub(crate) link: OwnedFd,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Becomes a program that waits for its connection, in a child with memory of its own.
pub(crate) fn start_warm(child: ForkedChild, start: WarmStart) -> u8 {
    let WarmStart { spec, scaffold, slot, link, stderr } = start;
    // By move: in a first process of a namespace, which closes everything, nobody owns what the other one needs.
    spec.in_its_place(child, Some(slot), move |child| {
        let stderr = stderr.as_ref().map(AsFd::as_fd);
        let ready = spec
            .enter(Some(slot), stderr)
            .and_then(|()| spec.close(child, Some(scaffold.placeholder())))
            .and_then(|()| spec.seal());
        let failed = ready.err().unwrap_or_else(|| {
            let PreparedJob::Exec(program) = &spec.job else {
                return (Step::Exec, io::ErrorKind::NotFound.into());
            };
            let mut image = program.image.lock().unwrap_or_else(PoisonError::into_inner);
            (Step::Exec, scaffold.exec(&mut image, link.as_fd()))
        });
        spec.fail(None, &failed)
    })
}

/// Serves one connection, in a child with memory of its own, and exits.
pub(crate) fn serve_in_fork(
    child: ForkedChild,
    spec: &ChildSpec,
    connection: OwnedFd,
    conn: &Conn,
    stderr: Option<BorrowedFd<'_>>,
) -> u8 {
    spec.in_its_place(child, Some(conn.slot), |child| match spec.enter(Some(conn.slot), stderr) {
        Ok(()) => spec.run(child, connection, conn),
        Err(failed) => spec.fail(Some(connection.as_fd()), &failed),
    })
}
