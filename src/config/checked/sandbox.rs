//! What a connection process may not do, whoever has taken it over.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a connection process may not do. With any of it, it gains no privileges by an exec, prctl(2),
/// `PR_SET_NO_NEW_PRIVS`, and a wall is between it and its siblings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// The files that it may use; `None` leaves that to their permissions.
    pub(crate) files: Option<AllowedFiles>,
    /// Whom it may call.
    pub(crate) network: Network,
    /// It serves datagrams: each answer comes from a socket that has to be bound.
    pub(crate) serves_datagrams: bool,
    /// What it may ask the kernel for.
    pub(crate) system_calls: SystemCalls,
    /// Whether it may execute memory that it has written.
    pub(crate) write_execute: bool,
    /// How many bytes each of [`PRIVATE_DIRECTORIES`] may take, if its service has its own.
    pub(crate) private_tmp: Option<u64>,
    /// Whether it finds a network without anybody in it.
    pub(crate) network_namespace: bool,
    /// Whether it has a namespace of processes, in which all end with it.
    pub(crate) pid_namespace: bool,
    /// Whether a kernel that cannot do all of it is an error.
    pub(crate) required: bool,
}

/// Files and directories with all that is below them, as they are named inside `chroot`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AllowedFiles {
    /// To be read.
    pub(crate) read: Vec<AllowedPath>,
    /// To be read, written, made and removed.
    pub(crate) write: Vec<AllowedPath>,
    /// To be read and executed.
    pub(crate) execute: Vec<AllowedPath>,
}

/// An entry of a list of paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AllowedPath {
    pub(crate) path: PathBuf,
    /// It may be missing.
    pub(crate) is_optional: bool,
}

/// Whom a connection process may call, besides the client that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    /// Nobody.
    None,
    /// Others, but none may call it.
    Client,
    /// Others, and they it.
    Any,
}

/// What a connection process may ask the kernel for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SystemCalls {
    pub(crate) base: CallSet,
    /// Besides what the base allows, by name.
    pub(crate) allow: Vec<String>,
    /// Not, though the base allows it.
    pub(crate) deny: Vec<String>,
}

/// Sets of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CallSet {
    /// The few that a handler needs; whoever asks for another is killed.
    Handler,
    /// Those that services need; what only administers the machine, or is the usual way out of a cage, fails.
    Service,
    /// All.
    Any,
}

/// Where temporary files are, file-hierarchy(7).
pub(crate) const PRIVATE_DIRECTORIES: [&str; 2] = ["/tmp", "/var/tmp"];

impl AllowedFiles {
    /// Everything.
    pub(crate) fn root() -> Self {
        AllowedFiles { read: vec![AllowedPath::of(Path::new("/"))], ..AllowedFiles::default() }
    }

    /// All of them with what may be done to them.
    pub(crate) fn lists(&self) -> [(FileUse, &[AllowedPath]); 3] {
        [(FileUse::Read, &self.read), (FileUse::Write, &self.write), (FileUse::Execute, &self.execute)]
    }
}

/// What may be done to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileUse {
    Read,
    Write,
    Execute,
}

impl AllowedPath {
    /// This one, which has to be there.
    pub(crate) fn of(path: &Path) -> Self {
        AllowedPath { path: path.to_owned(), is_optional: false }
    }

    /// Where it is outside.
    pub(crate) fn outside(&self, chroot: Option<&Path>) -> PathBuf {
        match chroot {
            Some(root) => root.join(self.path.strip_prefix("/").unwrap_or(&self.path)),
            None => self.path.clone(),
        }
    }
}
