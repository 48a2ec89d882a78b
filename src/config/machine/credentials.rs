//! Where secrets are that systemd gave to preforkd.

use std::env;
use std::path::PathBuf;

use crate::config::checked::credentials::VARIABLE;

/// Where this process finds credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CredentialStore {
    /// In this directory.
    Directory(PathBuf),
    /// Nobody gave it any.
    Absent,
    /// Only the process that serves is given them, and this is none.
    Elsewhere,
}

impl CredentialStore {
    /// That of this process.
    pub(crate) fn of_environment() -> Self {
        env::var_os(VARIABLE).map_or(CredentialStore::Absent, |path| CredentialStore::Directory(path.into()))
    }

    /// The same, in a process that checks for another.
    pub(crate) fn of_another(self) -> Self {
        if self == CredentialStore::Absent { CredentialStore::Elsewhere } else { self }
    }
}
