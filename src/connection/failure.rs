//! How a connection process tells its worker that it could not become what it should.
//!
//! One pipe for all of a worker's children, closed on exec: a message is smaller than PIPE_BUF, so two never mix, and no
//! connection pays for it. A handler or program does not have it any more.

use std::fs::File;
use std::io::{self, Read, Write};

use crate::config::{Job, Service};
use crate::sys::fd;
use crate::sys::wait::Pid;

/// With this code a connection process ends that could not begin.
pub(crate) const EXIT_CODE: u8 = 126;

/// What it was about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// setpgid(2).
    Group = 1,
    /// setpriority(2).
    Nice,
    /// setrlimit(2).
    Limits,
    /// chroot(2).
    Root,
    /// chdir(2).
    Directory,
    /// setgroups(2), setresgid(2), setresuid(2).
    User,
    /// dup2(2), close_range(2).
    Descriptors,
    /// sigprocmask(2).
    Signals,
    /// execve(2).
    Exec,
}

impl Stage {
    const ALL: [Stage; 9] = [
        Stage::Group,
        Stage::Nice,
        Stage::Limits,
        Stage::Root,
        Stage::Directory,
        Stage::User,
        Stage::Descriptors,
        Stage::Signals,
        Stage::Exec,
    ];

    fn attempt(self) -> &'static str {
        match self {
            Stage::Group => "cannot make a process group",
            Stage::Nice => "cannot set nice",
            Stage::Limits => "cannot set limits",
            Stage::Root => "cannot enter chroot",
            Stage::Directory => "cannot enter working_directory",
            Stage::User => "cannot become user",
            Stage::Descriptors => "cannot arrange descriptors",
            Stage::Signals => "cannot unblock signals",
            Stage::Exec => "cannot start",
        }
    }
}

/// Why a connection process could not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    stage: Stage,
    errno: i32,
}

impl Failure {
    /// What kind of error it was.
    pub(crate) fn kind(self) -> io::ErrorKind {
        io::Error::from_raw_os_error(self.errno).kind()
    }

    /// For the record: what could not be done, to what, and why.
    pub(crate) fn explain(self, service: &Service) -> String {
        let identity = &service.identity;
        let object = match (self.stage, &service.job) {
            (Stage::Exec, Job::Exec(program)) => Some(program.path.display().to_string()),
            (Stage::Root, _) => identity.chroot.as_ref().map(|path| path.display().to_string()),
            (Stage::Directory, _) => {
                identity.working_directory.as_ref().map(|path| path.display().to_string())
            }
            (Stage::User, _) => identity.user.as_ref().map(|user| user.name.clone()),
            _ => None,
        };
        let reason = nix::errno::Errno::from_raw(self.errno).desc();
        match object {
            Some(object) => format!("{} {object}: {reason}", self.stage.attempt()),
            None => format!("{}: {reason}", self.stage.attempt()),
        }
    }
}

/// The pipe, in the worker.
#[derive(Debug)]
pub(crate) struct Failures {
    read: File,
    write: File,
}

const LENGTH: usize = 12;

impl Failures {
    /// A new pipe.
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = fd::pipe()?;
        Ok(Failures { read: read.into(), write: write.into() })
    }

    /// The next message, if there is one. A process writes it before it ends, so it is there when it is reaped.
    pub(crate) fn next(&self) -> Option<(Pid, Failure)> {
        let mut message = [0; LENGTH];
        if (&self.read).read(&mut message).ok()? != LENGTH {
            return None;
        }
        let (pid, rest) = message.split_first_chunk::<4>()?;
        let (errno, rest) = rest.split_first_chunk::<4>()?;
        let stage = Stage::ALL.into_iter().find(|stage| Some(&(*stage as u8)) == rest.first())?;
        Some((Pid::from_ne_bytes(*pid), Failure { stage, errno: i32::from_ne_bytes(*errno) }))
    }
}

/// The pipe, in a connection process.
#[derive(Debug)]
pub(super) struct Reporter<'a>(&'a Failures);

impl<'a> Reporter<'a> {
    pub(super) fn new(failures: &'a Failures) -> Self {
        Reporter(failures)
    }

    /// Says what went wrong. If not even that works, the exit code has to do.
    pub(super) fn report(&self, stage: Stage, error: &io::Error) {
        let mut message = [0; LENGTH];
        let pid = Pid::try_from(std::process::id()).unwrap_or(0);
        message[..4].copy_from_slice(&pid.to_ne_bytes());
        message[4..8].copy_from_slice(&error.raw_os_error().unwrap_or(0).to_ne_bytes());
        message[8] = stage as u8;
        let _ = (&self.0.write).write(&message);
    }
}
