//! The machine that a configuration is checked against: what is asked of it.

pub(super) mod accounts;
mod credentials;
pub(super) mod executable;
pub(super) mod files;
pub(super) mod lookup;
pub(super) mod named;
pub(crate) mod socket_file;

use std::fmt;
use std::path::Path;

use crate::handler::Application;
use crate::sys::process;

pub(crate) use accounts::{Accounts, KnownUser, known_user};
pub(crate) use credentials::CredentialStore;

/// The machine that a configuration is checked against.
pub(crate) struct Machine<'a> {
    /// Its users and groups.
    pub(crate) accounts: Accounts,
    /// The program, with its handlers.
    pub(crate) application: &'a Application,
    /// Where relative program paths start, on a command line.
    pub(crate) current: Option<&'a Path>,
    /// Where secrets are.
    pub(crate) credentials: CredentialStore,
    /// Whether preforkd is root there, and may become any other user.
    pub(crate) becomes_others: bool,
    /// Hears what will be waited for, before it is: a file server or another program may never answer.
    pub(crate) waits_for: &'a dyn Fn(fmt::Arguments<'_>),
}

impl<'a> Machine<'a> {
    /// Says that a user or group will be looked up.
    pub(super) fn waits_for_account(&self, name: &str) {
        (self.waits_for)(format_args!("\"{name}\" in /etc/passwd, /etc/group and what getent asks"));
    }

    /// This one, for this program.
    pub(crate) fn with(application: &'a Application) -> Self {
        let (accounts, credentials) = (Accounts::default(), CredentialStore::of_environment());
        let becomes_others = process::may_become_others();
        Machine { accounts, application, current: None, credentials, becomes_others, waits_for: &|_| () }
    }
}
