//! The ledger: all that the supervisor knows, as one program image leaves it to the next.
//!
//! On an upgrade the process stays and its program is replaced: pid, children and descriptors remain, memory does not.
//! What must not be forgotten goes into a sealed memory file. The next program may be of another version, so all of it
//! is checked: a number of a descriptor is taken once and must be open, an index must have something at its place.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::listeners::Standing;
use crate::admission::sources::SlotIndex;
use crate::config;
use crate::control::{Reloads, WorkerState};
use crate::scoreboard::Counts;
use crate::sys::fd;
use crate::sys::wait::Pid;

/// The version of this ledger, of the scoreboard's layout and of the messages to workers. It changes when a program of
/// another version could misread one of them; then a restart is needed.
const VERSION: u32 = 4;

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ledger {
    version: u32,
    pub(super) run: u32,
    pub(super) next_serial: u32,
    pub(super) descriptor_limit: u64,
    pub(super) generation: u64,
    pub(super) reloads: Reloads,
    pub(super) upgrades: u64,
    pub(super) started_usec: u64,
    pub(super) settings: config::SupervisorConfig,
    pub(super) log: crate::journal::LogSettings,
    pub(super) control: Option<ControlEntry>,
    pub(super) passed: BTreeMap<String, Vec<Descriptor>>,
    pub(super) listeners: Vec<ListenerEntry>,
    pub(super) service_states: Vec<ServiceStateEntry>,
    pub(super) services: Vec<ServiceEntry>,
    pub(super) workers: Vec<WorkerEntry>,
    pub(super) adopted: Vec<AdoptedEntry>,
    pub(super) late: Vec<LateEntry>,
}

/// The number of a descriptor that stays open over the exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Descriptor(RawFd);

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ControlEntry {
    pub(super) listener: Descriptor,
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    /// Who waits for the upgrade.
    pub(super) clients: Vec<Descriptor>,
    /// Who has connected and not asked yet.
    pub(super) newcomers: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListenerEntry {
    pub(super) socket: Descriptor,
    pub(super) address: config::Address,
    pub(super) name: String,
    pub(super) file: Option<(PathBuf, u64)>,
    pub(super) standing: Standing,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServiceStateEntry {
    pub(super) service: String,
    pub(super) scoreboard: Descriptor,
    pub(super) bell: Descriptor,
    pub(super) sources: Descriptor,
    pub(super) gone: Counts,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServiceEntry {
    pub(super) config: config::ServiceConfig,
    pub(super) generation: u64,
    pub(super) listeners: Vec<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerEntry {
    pub(super) serial: u32,
    pub(super) pid: Pid,
    pub(super) service: String,
    pub(super) generation: u64,
    pub(super) state: WorkerState,
    pub(super) spares: u32,
    pub(super) connections: u32,
    pub(super) needs_renewal: bool,
    pub(super) listeners: Vec<usize>,
    pub(super) link: Descriptor,
    pub(super) counters: Descriptor,
    pub(super) calls: Descriptor,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AdoptedEntry {
    pub(super) pid: Pid,
    pub(super) service: String,
    pub(super) worker: u32,
    /// Its row has the rest.
    pub(super) slot: SlotIndex,
    pub(super) connections: u32,
}

/// A dead worker of which spares wait.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LateEntry {
    pub(super) service: String,
    pub(super) worker: u32,
    pub(super) calls: Descriptor,
}

impl Ledger {
    /// A ledger of this version, for the client to fill.
    pub(super) fn new(
        run: u32,
        settings: config::SupervisorConfig,
        log: crate::journal::LogSettings,
    ) -> Self {
        Ledger {
            version: VERSION,
            run,
            next_serial: 1,
            descriptor_limit: 1024,
            generation: 0,
            reloads: Reloads::default(),
            upgrades: 0,
            started_usec: 0,
            settings,
            log,
            control: None,
            passed: BTreeMap::new(),
            listeners: Vec::new(),
            service_states: Vec::new(),
            services: Vec::new(),
            workers: Vec::new(),
            adopted: Vec::new(),
            late: Vec::new(),
        }
    }

    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads a ledger, of whatever version wrote it.
    pub(super) fn read(file: OwnedFd) -> io::Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let mut text = Vec::new();
        File::from(file).read_to_end(&mut text)?;
        let head: Head = serde_json::from_slice(&text)?;
        if head.version != VERSION {
            let text = format!(
                "this program keeps its ledger in version {VERSION}, the running one in {}; a restart is needed",
                head.version
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        Ok(serde_json::from_slice(&text)?)
    }
}

/// The descriptors that stay open over the exec.
#[derive(Debug, Default)]
pub(super) struct Kept<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Kept<'a> {
    /// Keeps one more.
    pub(super) fn keep(&mut self, fd: BorrowedFd<'a>) -> Descriptor {
        self.0.push(fd);
        Descriptor(fd.as_raw_fd())
    }

    pub(super) fn descriptors(&self) -> &[BorrowedFd<'a>] {
        &self.0
    }
}

/// The descriptors that came over the exec, each to be taken once.
#[derive(Debug, Default)]
pub(super) struct InheritedFds(HashSet<Descriptor>);

impl InheritedFds {
    /// Takes one over.
    ///
    /// # Errors
    ///
    /// It has been taken already, is one of the standard three, or is not open.
    pub(super) fn take(&mut self, descriptor: Descriptor) -> io::Result<OwnedFd> {
        if descriptor.0 <= 2 || !self.0.insert(descriptor) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ledger names a descriptor twice"));
        }
        fd::inherited(descriptor.0)
    }
}

/// A descriptor of this process by its number in text, as the environment has it.
pub(super) fn descriptor_text(fd: &OwnedFd) -> String {
    fd.as_fd().as_raw_fd().to_string()
}
