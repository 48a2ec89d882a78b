//! A connection process: gets its identity and its limits, runs one handler or program, exits.
//!
//! It is forked with all signals blocked and its parent's descriptors. The order of the steps matters: what needs
//! privilege comes before the change of user, what the parent still owns is closed before anything of a stranger runs,
//! and signals are let through last.

mod environment;
mod failure;
mod identity;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use crate::config::{Builtin, Job, Service, Stderr};
use crate::handler;
use crate::shared::ConnectionId;
use crate::sys::signal::Signals;
use crate::sys::socket::Peer;
use crate::sys::{fd, process, signal};

pub(crate) use failure::{EXIT_CODE as FAILED_TO_BEGIN, Failure, Failures};

use environment::Environment;
use failure::{Reporter, Stage};
use identity::Cage;

/// All that can be prepared before there is a connection. Made once by each worker.
#[derive(Debug)]
pub(crate) struct Preparation {
    cage: Cage,
    job: PreparedJob,
    null: Option<OwnedFd>,
}

#[derive(Debug)]
enum PreparedJob {
    Handler(Builtin),
    Exec { path: CString, arguments: Vec<CString>, environment: Environment },
}

/// One connection, as the worker hands it to its process.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    /// The socket; blocking.
    pub(crate) connection: BorrowedFd<'a>,
    /// Who called.
    pub(crate) peer: Peer,
    /// Its name.
    pub(crate) id: ConnectionId,
    /// Where lines to stderr go that shall become records.
    pub(crate) stderr: Option<BorrowedFd<'a>>,
}

impl Preparation {
    /// Prepares for the connections of `service`, in a worker.
    ///
    /// # Errors
    ///
    /// A NUL byte in a path, argument or variable; a `/dev/null` that cannot be opened.
    pub(crate) fn new(service: &Service) -> io::Result<Self> {
        let (job, restore_descriptor_limit) = match &service.job {
            Job::Handler(builtin) => (PreparedJob::Handler(*builtin), false),
            Job::Exec(program) => {
                let path = CString::new(program.path.as_os_str().as_bytes())?;
                let arguments: Result<_, _> =
                    program.arguments.iter().map(|text| CString::new(text.as_str())).collect();
                let environment = Environment::new(&service.name, &service.environment)?;
                (PreparedJob::Exec { path, arguments: arguments?, environment }, true)
            }
        };
        let null = match service.stderr {
            Stderr::Null => Some(std::fs::File::options().write(true).open("/dev/null")?.into()),
            Stderr::Log | Stderr::Inherit => None,
        };
        let cage = Cage::new(&service.identity, &service.limits, restore_descriptor_limit)?;
        Ok(Preparation { cage, job, null })
    }

    /// Whether each connection needs a pipe for what its program says on stderr.
    pub(crate) fn execs(&self) -> bool {
        matches!(self.job, PreparedJob::Exec { .. })
    }

    /// In a forked child: becomes what a connection process would be, and exits. So a user that cannot be taken or a
    /// limit that cannot be set is known before the first connection.
    pub(crate) fn rehearse(&self, failures: &Failures) -> ! {
        if let Err((stage, error)) = self.cage.enter() {
            Reporter::new(failures).report(stage, &error);
            process::exit(failure::EXIT_CODE);
        }
        process::exit(0)
    }
}

/// Serves one connection, in a forked child, and exits.
pub(crate) fn serve(preparation: &Preparation, call: &Call<'_>, signals: &Signals, failures: &Failures) -> ! {
    let reporter = Reporter::new(failures);
    let (stage, error) = match &preparation.job {
        PreparedJob::Handler(builtin) => match become_handler(preparation, call, signals) {
            Ok(connection) => process::exit(handler::serve(*builtin, connection)),
            Err(failed) => failed,
        },
        PreparedJob::Exec { path, arguments, environment } => {
            become_program(preparation, call, signals, path, arguments, environment)
        }
    };
    reporter.report(stage, &error);
    process::exit(failure::EXIT_CODE)
}

type Failed = (Stage, io::Error);

fn become_handler(preparation: &Preparation, call: &Call<'_>, signals: &Signals) -> Result<OwnedFd, Failed> {
    preparation.cage.enter()?;
    let stderr = preparation.null.as_ref().map(AsFd::as_fd);
    fd::standard(call.connection, stderr).map_err(|error| (Stage::Descriptors, error))?;
    signal::forget_handlers(signals);
    signal::unblock_all().map_err(|error| (Stage::Signals, error))?;
    // Last, since it closes the way to report: from here on there is only the handler.
    fd::close_others().map_err(|error| (Stage::Descriptors, error))?;
    Ok(fd::connection_of_this_process())
}

fn become_program(
    preparation: &Preparation,
    call: &Call<'_>,
    signals: &Signals,
    path: &CStr,
    arguments: &[CString],
    environment: &Environment,
) -> Failed {
    let prepare = || -> Result<Vec<CString>, Failed> {
        let variables = environment.for_call(call);
        preparation.cage.enter()?;
        let stderr = preparation.null.as_ref().map(AsFd::as_fd).or(call.stderr);
        fd::standard(call.connection, stderr).map_err(|error| (Stage::Descriptors, error))?;
        fd::close_others_on_exec().map_err(|error| (Stage::Descriptors, error))?;
        // Before they are unblocked: the worker's handler would swallow a SIGTERM that is meant for the program.
        // Ignored signals there are none, the worker has seen to that.
        signal::forget_handlers(signals);
        signal::unblock_all().map_err(|error| (Stage::Signals, error))?;
        Ok(variables)
    };
    match prepare() {
        Ok(variables) => (Stage::Exec, process::exec(path, arguments, &variables)),
        Err(failed) => failed,
    }
}
