//! The credentials of a service: secrets that systemd gave to preforkd, for the programs of one service.
//!
//! They are read with the configuration, so that a reload that names a wrong one is refused, and one after which they say
//! something else is a change. See <https://systemd.io/CREDENTIALS/>.

use std::io::{self, Read};
use std::path::Path;

use toml::Spanned;

use crate::config::checked::credentials::{Credentials, Secret, VARIABLE};
use crate::config::draft::ServiceDraft;
use crate::config::machine::lookup::reason;
use crate::config::machine::{CredentialStore, Machine};
use crate::config::open::open_file;
use crate::config::value::{Fault, Faults};

/// systemd passes no more than this on, of all of a unit's.
const LARGEST: u64 = 1 << 20;

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
    open_file(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Secret(bytes))
}
