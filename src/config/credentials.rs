//! The credentials of a service: secrets that systemd gave to preforkd, for the programs of one service.
//!
//! They are read with the configuration, so that a reload that names a wrong one is refused, and one after which they say
//! something else is a change. See <https://systemd.io/CREDENTIALS/>.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{env, fmt};

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::draft::ServiceDraft;
use super::files;
use super::lookup::reason;
use super::service::Machine;
use super::value::{Fault, Faults};

/// The variable in which systemd says where they are, and in which programs find it.
pub(crate) const VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// systemd passes no more than this on, of all of a unit's.
const LARGEST: u64 = 1 << 20;

/// What no message and no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(Vec<u8>);

impl Secret {
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

/// Credentials by name.
pub(crate) type Credentials = BTreeMap<String, Secret>;

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

/// Whether a credential can have this name: systemd's rule, which makes it the name of a file.
pub(super) fn is_name(name: &str) -> bool {
    let is_right = |c: char| c.is_ascii() && !c.is_ascii_control() && !matches!(c, '/' | ':');
    !name.is_empty() && name.len() <= 255 && name.chars().all(is_right) && !matches!(name, "." | "..")
}

/// Those that a service names.
pub(super) fn of(draft: &ServiceDraft, machine: &Machine<'_>) -> Result<Credentials, Faults> {
    let mut credentials = Credentials::new();
    let mut faults = Faults::new();
    for name in &draft.credentials {
        let directory = match &machine.credentials {
            CredentialStore::Directory(directory) => directory,
            CredentialStore::Absent => {
                let why = format!("{VARIABLE} is not set, so there are none");
                faults.push(unusable(name, &why).of_machine());
                continue;
            }
            // What `unknown` says.
            CredentialStore::Elsewhere => continue,
        };
        let path = directory.join(name.get_ref());
        (machine.waits_for)(format_args!("{}", path.display()));
        match read(&path) {
            Ok(secret) => {
                credentials.insert(name.get_ref().clone(), secret);
            }
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::NotFound => format!("there is none in {}", directory.display()),
                    io::ErrorKind::FileTooLarge => format!("it has more than {LARGEST} bytes"),
                    _ => format!("{}: {}", path.display(), reason(&error)),
                };
                faults.push(unusable(name, &why).of_machine());
            }
        }
    }
    if let (Some(chroot), Some(first)) = (&draft.chroot, draft.credentials.first()) {
        let message = format!("credentials would not be found inside chroot {}", chroot.get_ref().display());
        faults.push(Fault::new(first.span(), message).help("remove one of the two"));
    }
    if faults.is_empty() { Ok(credentials) } else { Err(faults) }
}

/// Credentials of which nothing can be said here.
pub(super) fn unknown(draft: &ServiceDraft, machine: &Machine<'_>) -> Option<Fault> {
    let first = draft.credentials.first().filter(|_| machine.credentials == CredentialStore::Elsewhere)?;
    let names: Vec<_> = draft.credentials.iter().map(|name| format!("\"{}\"", name.get_ref())).collect();
    let message = format!("whether there is {} is not known here: {VARIABLE} is not set", names.join(", "));
    Some(Fault::new(first.span(), message).help(HELP))
}

const HELP: &str =
    "only preforkd.service finds them: it needs a line LoadCredential=NAME:PATH each, see systemd.exec(5)";

fn unusable(name: &Spanned<String>, why: &str) -> Fault {
    Fault::new(name.span(), format!("cannot use the credential \"{}\": {why}", name.get_ref())).help(
        "add LoadCredential=NAME:PATH to preforkd.service by `systemctl edit preforkd`, and restart it: systemd.exec(5)",
    )
}

fn read(path: &Path) -> io::Result<Secret> {
    let mut bytes = Vec::new();
    files::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Secret(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_a_file_and_a_secret_is_never_shown() {
        for name in ["db", "tls.key", "a b", "-", "..."] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "é", "a\nb", &"x".repeat(256)] {
            assert!(!is_name(name), "{name}");
        }
        let secret = format!("{:?}", Secret(b"secret".to_vec()));
        assert_eq!(secret, "(6 bytes)");
    }
}
