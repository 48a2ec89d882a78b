//! The saved state: all that the supervisor knows, as one program image leaves it to the next.
//!
//! On an upgrade the process stays and its program is replaced: pid, children and descriptors remain, memory does not.
//! What must not be forgotten goes into a sealed memory file. The next program may be of another version, so all of it
//! is checked: a number of a descriptor is taken once and must be open, an index must have something at its place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::adopted::{AdoptedRecord, SavedLateEvents};
use super::bans::SavedBan;
use super::cgroups::Cgroups;
use super::credentials::CredentialFiles;
use super::generation::{GenerationSettings, SavedDown, SavedService};
use super::history::History;
use super::left_behind::LeftBehind;
use super::listener::SavedListener;
use super::service::SavedServiceState;
use super::workers::{SavedWorker, WorkerSettings};
use crate::config::ServiceConfig;
use crate::control::server::SavedServer;
use crate::sys::fd::FdNumber;
use crate::sys::memory;

/// The version of this file, of the scoreboard's layout and of the messages to workers. It changes when a program of
/// another version could misread one of them; then a restart is needed.
const VERSION: u32 = 12;

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) history: History,
    pub(super) generation: GenerationSettings,
    pub(super) services: Vec<SavedService>,
    pub(super) down: SavedDown,
    pub(super) bans: Vec<SavedBan>,
    pub(super) states: Vec<SavedServiceState>,
    pub(super) credentials: CredentialFiles,
    pub(super) listeners: Vec<SavedListener>,
    /// What systemd's socket units passed, by name.
    pub(super) passed: BTreeMap<String, Vec<FdNumber>>,
    pub(super) worker_settings: WorkerSettings,
    pub(super) workers: Vec<SavedWorker>,
    pub(super) adopted: Vec<AdoptedRecord>,
    pub(super) late: Vec<SavedLateEvents>,
    pub(super) left_behind: LeftBehind,
    pub(super) cgroups: Cgroups,
    pub(super) control: Option<SavedServer>,
}

/// What the file begins with, in every version.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
}

/// The whole of it.
#[derive(Debug, Serialize, Deserialize)]
struct Versioned {
    version: u32,
    state: Saved,
}

impl Saved {
    /// As a sealed memory file.
    pub(super) fn write(self) -> io::Result<OwnedFd> {
        let content = serde_json::to_vec(&Versioned { version: VERSION, state: self })?;
        memory::sealed(c"preforkd-state", &content)
    }

    /// The services as they were checked.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceConfig> {
        self.services.iter().map(SavedService::config)
    }

    /// Reads what a program of whatever version wrote. No descriptor is taken yet.
    ///
    /// # Errors
    ///
    /// `Unsupported` if it is of another version; `InvalidData` if it is no such file.
    pub(super) fn read(file: OwnedFd) -> io::Result<Self> {
        let mut text = Vec::new();
        File::from(file).read_to_end(&mut text)?;
        let Head { version } = serde_json::from_slice(&text)?;
        if version != VERSION {
            let text = format!(
                "this program keeps its state in version {VERSION}, the running one in {version}; a restart is needed"
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        Ok(serde_json::from_slice::<Versioned>(&text)?.state)
    }
}

/// For the fuzz targets: what is read means the same when it is written again.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_saved(content: &[u8]) {
    let read = |content: &[u8]| memory::sealed(c"preforkd-state", content).and_then(Saved::read);
    if let Ok(saved) = read(content) {
        let first = serde_json::to_vec(&Versioned { version: VERSION, state: saved }).unwrap_or_default();
        let again = read(&first).map(|state| serde_json::to_vec(&Versioned { version: VERSION, state }).ok());
        assert_eq!(again.ok().flatten(), Some(first));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;
    use crate::config::{CgroupUse, ControlAccess, SupervisorConfig};
    use crate::journal::{Level, LogSettings, LogTarget};
    use crate::supervisor::listeners::Listeners;
    use crate::supervisor::systemd::Systemd;
    use crate::sys::fd;

    fn nothing() -> Saved {
        Saved {
            history: History::begin(),
            generation: GenerationSettings {
                number: 3,
                supervisor: SupervisorConfig {
                    control_socket: None,
                    control_access: ControlAccess::default(),
                    drain_timeout: Duration::ZERO,
                    strict_start: false,
                    cgroup: CgroupUse::Auto,
                },
                log: LogSettings { target: LogTarget::Stderr, level: Level::Info },
            },
            services: Vec::new(),
            down: SavedDown::default(),
            bans: Vec::new(),
            states: Vec::new(),
            credentials: CredentialFiles::default(),
            listeners: Vec::new(),
            passed: BTreeMap::new(),
            worker_settings: serde_json::from_str(r#"{"run": 1, "next": 2, "descriptor_limit": 3}"#).unwrap(),
            workers: Vec::new(),
            adopted: Vec::new(),
            late: Vec::new(),
            left_behind: LeftBehind::default(),
            cgroups: Cgroups::begin(CgroupUse::None, 1).unwrap(),
            control: None,
        }
    }

    fn file(content: &[u8]) -> OwnedFd {
        memory::sealed(c"test", content).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let saved = nothing();
        let history = saved.history.clone();
        let read = Saved::read(saved.write().unwrap()).unwrap();
        assert_eq!((read.history, read.generation.number), (history, 3));
    }

    #[test]
    fn another_version_needs_a_restart_and_garbage_is_no_state() {
        for other in [r#"{"version": 4, "run": 7}"#, r#"{"version": 13, "state": null}"#] {
            let error = Saved::read(file(other.as_bytes())).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert!(error.to_string().ends_with("a restart is needed"), "{error}");
        }
        let mut whole = Vec::new();
        File::from(nothing().write().unwrap()).read_to_end(&mut whole).unwrap();
        for end in 0..whole.len() {
            assert!(Saved::read(file(&whole[..end])).is_err(), "{end}");
        }
        for text in ["", "[]", "{}", r#"{"version": -1}"#, r#"{"version": 12, "state": {}}"#, "\0\u{1}"] {
            assert!(Saved::read(file(text.as_bytes())).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_of_what_was_not_passed_is_an_error() {
        let (own, _) = fd::pipe().unwrap();
        let never_open = 1 << 20;
        for wrong in [own.as_raw_fd(), 0, 2, -1, never_open] {
            let number = serde_json::from_str(&format!("[{wrong}]")).unwrap();
            let passed = BTreeMap::from([("web".to_owned(), number)]);
            assert!(Listeners::resume(passed, &[], Systemd::default()).is_err(), "{wrong}");
        }
    }
}
