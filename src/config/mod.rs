//! The configuration: from TOML text or `serve` flags to checked values.
//!
//! It goes one way, and each step knows only those before it:
//!
//! 1. text: [`source`] reads files, [`document`] cuts them into sections;
//! 2. [`draft`]: what is written, decoded key by key;
//! 3. [`machine`]: what is asked of this machine;
//! 4. [`service`]: what a draft means on it;
//! 5. [`assemble`]: all services together;
//! 6. [`load`] for files and [`flags`] for a command line do all of it.
//!
//! What comes out is in [`checked`].

/// The one place that says it, as the literal that the table of keys needs.
macro_rules! control_socket {
    () => {
        "/run/preforkd/control.sock"
    };
}

mod address;
mod assemble;
mod checked;
mod diagnostic;
mod document;
mod draft;
pub(crate) mod flags;
pub(crate) mod key;
mod load;
mod machine;
mod open;
pub(crate) mod service;
mod source;
#[cfg(test)]
pub(crate) mod tests;
mod value;

pub(crate) use address::Address;
pub(crate) use assemble::{Tolerance, clash};
pub(crate) use checked::{
    Account, AllowedFiles, AllowedPath, CREDENTIALS_VARIABLE, CallSet, CgroupUse, Config, ControlAccess,
    Controller, Credentials, DEFAULT_PROGRAM_PATH, FileUse, Job, Keepalive, KillMode, Limit, Network,
    PRIVATE_DIRECTORIES, Passing, Sandbox, ServiceConfig, SocketAccess, SocketKind, SocketOptions,
    StderrTarget, SupervisorConfig, TreeLimits, Unavailable, UserIds, WarmPoint, WarmSettings, WorkerIds,
};
#[cfg(test)]
pub(crate) use checked::{Program, SystemCalls};
pub(crate) use diagnostic::{Diagnostic, Diagnostics, Severity};
pub(crate) use document::{check_name, make_name};
pub(crate) use draft::keys;
pub(crate) use load::{Loaded, check_again, load, load_text};
pub(crate) use machine::{Accounts, CredentialStore, KnownUser, Machine, known_user, socket_file};
pub(crate) use open::open_file;
pub(crate) use service::can_serve;
pub(crate) use source::Snapshot;
pub(crate) use value::parse_duration;
