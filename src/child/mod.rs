//! A connection process: gets its identity and its limits, runs one handler or program, exits.
//!
//! It is made with all signals blocked and its parent's descriptors, for a connection or [ahead of one](spare). The order
//! of the steps matters: what needs privilege comes before the change of user, what the parent still owns is closed
//! before anything of a stranger runs.

mod confine;
mod environment;
pub(crate) mod handler;
pub(crate) mod watch;

use std::ffi::CString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::admission::{ActivityWatch, Admission, Deadlines};
use crate::client::ConnectionId;
use crate::config::{Builtin, Job, Service, Stderr};
use crate::ipc::reports::{self, Reporter, Reports, Step};
use crate::sys::exec::Image;
use crate::sys::fd::{self, ReservedFds};
use crate::sys::fork::{ForkedChild, SharingChild};
use crate::sys::process;
use crate::sys::signal::{self, Signals};
use crate::sys::socket::Peer;

use confine::Confinement;

/// All that can be prepared before there is a connection. Made once by each worker, and kept for its whole life.
#[derive(Debug)]
pub(crate) struct ChildSpec {
    pub(crate) confinement: Confinement,
    pub(crate) job: PreparedJob,
    null: Option<OwnedFd>,
    signals: Signals,
    pub(crate) reporter: Reporter,
    gate: Admission,
    pub(crate) deadlines: Deadlines,
}

#[derive(Debug)]
pub(crate) enum PreparedJob {
    Handler(Builtin),
    /// Never waited for: there is one thread. A cell would keep children from having it, see [`crate::sys::fork`].
    Exec(Mutex<Image>),
}

/// One connection, as its process finds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conn {
    /// Who called.
    pub(crate) peer: Peer,
    /// When it was accepted: CLOCK_MONOTONIC in microseconds.
    pub(crate) accepted_usec: u64,
    /// What it called, if a proxy has said so.
    pub(crate) called: Option<SocketAddr>,
    /// How many bytes of it were the header of that proxy, and have been taken.
    pub(crate) header: u64,
    /// Its name.
    pub(crate) id: ConnectionId,
}

impl ChildSpec {
    /// Prepares for the connections of `service`, in a worker. `signals` are those that the worker handles.
    ///
    /// # Errors
    ///
    /// A NUL byte in a path, argument or variable; a `/dev/null` that cannot be opened.
    pub(crate) fn new(service: &Service, signals: Signals, reports: &Reports) -> io::Result<Self> {
        let (job, restore_descriptor_limit) = match &service.job {
            Job::Handler(builtin) => (PreparedJob::Handler(*builtin), false),
            Job::Exec(program) => {
                let path = CString::new(program.path.as_os_str().as_bytes())?;
                let arguments: Result<_, _> =
                    program.arguments.iter().map(|text| CString::new(text.as_str())).collect();
                let constant = environment::constant(&service.name, &service.environment)?;
                (PreparedJob::Exec(Mutex::new(Image::new(path, arguments?, constant))), true)
            }
        };
        let null = match service.stderr {
            Stderr::Null => Some(std::fs::File::options().write(true).open("/dev/null")?.into()),
            Stderr::Log | Stderr::Inherit => None,
        };
        let confinement = Confinement::new(&service.identity, &service.limits, restore_descriptor_limit)?;
        let (gate, deadlines) = (Admission::new(&service.admission)?, service.admission.deadlines);
        Ok(ChildSpec { confinement, job, null, signals, reporter: reports.reporter(), gate, deadlines })
    }

    /// Whether connections are for a program, which says things on stderr.
    pub(crate) fn execs(&self) -> bool {
        matches!(self.job, PreparedJob::Exec(_))
    }

    /// Whether a child may share the worker's memory until it has become its program, and the worker wait for that. Not
    /// if it is somebody else's by then: he could stop it, and so the worker.
    pub(crate) fn may_share_memory(&self) -> bool {
        !self.confinement.is_somebody_else()
    }

    /// Who gets in.
    pub(crate) fn gate(&self) -> &Admission {
        &self.gate
    }

    /// Where its children report.
    pub(crate) fn reporter(&self) -> BorrowedFd<'static> {
        self.reporter.descriptor()
    }

    /// The signals that the worker handles.
    pub(crate) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// In a forked child: becomes what a connection process would be, and exits. So a user that cannot be taken or a
    /// limit that cannot be set is known before the first connection.
    pub(crate) fn rehearse(&self) -> ! {
        match self.confinement.enter().and_then(|()| self.confinement.limit_descriptors()) {
            Ok(()) => process::exit(0),
            Err(failed) => self.fail(&failed),
        }
    }

    /// After the rehearsal: the worker goes as far towards what its children are as that takes nothing from it.
    pub(crate) fn preapply(&mut self) {
        self.confinement.preapply();
    }

    /// In a child: all that needs no connection.
    pub(crate) fn confine(&self, stderr: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
        self.confinement.enter()?;
        if let Some(stderr) = self.null.as_ref().map(AsFd::as_fd).or(stderr) {
            fd::standard_error(stderr).map_err(|error| (Step::Descriptors, error))?;
        }
        // Before they are unblocked: the worker's handler would swallow a SIGTERM that is meant for this process.
        // Ignored signals there are none, the worker has seen to that.
        signal::forget_handlers(&self.signals);
        signal::unblock_all().map_err(|error| (Step::Signals, error))
    }

    /// The program for this connection, unless a handler serves it.
    pub(crate) fn program(&self, call: &Conn, connection: BorrowedFd<'_>) -> Option<MutexGuard<'_, Image>> {
        let PreparedJob::Exec(image) = &self.job else { return None };
        let mut image = image.lock().unwrap_or_else(PoisonError::into_inner);
        environment::describe(call, connection, &mut image);
        Some(image)
    }

    /// In a child that has settled: serves one connection, and exits.
    pub(crate) fn run(&self, child: ForkedChild, connection: OwnedFd, call: &Conn) -> ! {
        let failed = match &self.job {
            PreparedJob::Handler(builtin) => self.handle(child, *builtin, connection, call),
            PreparedJob::Exec(_) => match self.program(call, connection.as_fd()) {
                Some(image) => self.become_program(&image, connection.as_fd()),
                None => (Step::Exec, io::ErrorKind::NotFound.into()),
            },
        };
        self.fail(&failed)
    }

    fn handle(&self, child: ForkedChild, builtin: Builtin, connection: OwnedFd, call: &Conn) -> Failed {
        let mut kept = [connection.as_fd(), self.reporter.descriptor()];
        kept.sort_unstable_by_key(AsRawFd::as_raw_fd);
        if let Err(error) = fd::close_all_but(child, &kept) {
            return (Step::Descriptors, error);
        }
        if let Err(failed) = self.confinement.limit_descriptors() {
            return failed;
        }
        // Its lifetime is its worker's matter.
        let deadlines = self.deadlines.of_bytes();
        let watch = ActivityWatch::new(call.accepted_usec).behind(call.header);
        let (code, traffic) = watch::serve(builtin, connection, watch, deadlines, self.reporter);
        self.reporter.served(traffic);
        process::exit(code)
    }

    fn become_program(&self, image: &Image, connection: BorrowedFd<'_>) -> Failed {
        let descriptors = fd::standard(connection).and_then(|()| fd::close_others_on_exec());
        if let Err(error) = descriptors {
            return (Step::Descriptors, error);
        }
        match self.confinement.limit_descriptors() {
            Ok(()) => (Step::Exec, image.exec()),
            Err(failed) => failed,
        }
    }

    pub(crate) fn fail(&self, (stage, error): &Failed) -> ! {
        self.reporter.failed(*stage, error);
        process::exit(reports::FAILED_TO_BEGIN)
    }
}

pub(crate) type Failed = (Step, io::Error);

/// Serves one connection with `program`, in a child that shares the worker's memory and descriptors, while that waits.
/// `stderr` is where lines go that shall become records, `program` what [`ChildSpec::program`] has told.
pub(crate) fn serve_sharing(
    child: SharingChild,
    spec: &ChildSpec,
    connection: BorrowedFd<'_>,
    stderr: Option<BorrowedFd<'_>>,
    program: Option<&Image>,
    desk: &ReservedFds,
) -> ! {
    let failed = match (desk.own_table(child, [Some(connection), stderr]), program) {
        (Ok((_, [Some(connection), stderr])), Some(image)) => match spec.confine(stderr) {
            Ok(()) => spec.become_program(image, connection),
            Err(failed) => failed,
        },
        (Err(error), _) => (Step::Descriptors, error),
        _ => (Step::Exec, io::ErrorKind::NotFound.into()),
    };
    spec.fail(&failed)
}

/// Serves one connection, in a child with memory of its own, and exits.
pub(crate) fn serve_in_fork(
    child: ForkedChild,
    spec: &ChildSpec,
    connection: OwnedFd,
    call: &Conn,
    stderr: Option<BorrowedFd<'_>>,
) -> ! {
    match spec.confine(stderr) {
        Ok(()) => spec.run(child, connection, call),
        Err(failed) => spec.fail(&failed),
    }
}
