//! The checked configuration: what the rest of the program gets, and the values in it.
//!
//! Everything in these types has been checked: users are resolved to ids, programs and directories exist. A worker gets
//! its [`ServiceConfig`] serialised, as the supervisor checked it, and never reads a file of the configuration itself.
//! What needs no check is in a draft already as it is here.

pub(super) mod credentials;
pub(super) mod limits;
pub(super) mod passed;
mod sandbox;
mod warm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::source::Snapshot;
use crate::admission::Policy;
use crate::journal::{LogSettings, Records};
use crate::shared::Declared;

pub(crate) use credentials::{Credentials, VARIABLE as CREDENTIALS_VARIABLE};
pub(crate) use limits::{Controller, Limit, TreeLimits};
pub(crate) use passed::{PassedDemands, SocketKind};
pub(crate) use sandbox::{
    AllowedFiles, AllowedPath, CallSet, FileUse, Network, PRIVATE_DIRECTORIES, Sandbox, SystemCalls,
};
pub(crate) use warm::{WarmPoint, WarmSettings};

/// What an exec'ed program finds in `PATH` unless `environment` says otherwise.
pub(crate) const DEFAULT_PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables that each connection process finds set, or unset if unknown; `environment` cannot set them.
pub(crate) const OWN_VARIABLES: [&str; 20] = [
    "PROTO",
    "TCPREMOTEIP",
    "TCPREMOTEPORT",
    "TCPLOCALIP",
    "TCPLOCALPORT",
    "IPCLOCALPATH",
    "IPCREMOTEPATH",
    "IPCREMOTEPID",
    "IPCREMOTEEUID",
    "IPCREMOTEEGID",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "PREFORKD_SERVICE",
    "PREFORKD_CONNECTION",
    "TCPREMOTEHOST",
    "TCPREMOTEINFO",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    CREDENTIALS_VARIABLE,
];

/// A whole configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// `[supervisor]`.
    pub(crate) supervisor: SupervisorConfig,
    /// `[log]`.
    pub(crate) log: LogSettings,
    /// `[service.NAME]`, in the order of their names.
    pub(crate) services: Vec<ServiceConfig>,
    /// Those that this machine cannot serve now.
    pub(crate) unavailable: Unavailable,
}

/// Services that name what this machine does not have now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unavailable {
    /// By name, what it is, as a sentence for the log.
    pub(crate) reasons: BTreeMap<String, String>,
    /// The files that say what these services are; empty if there are none.
    pub(crate) snapshot: Snapshot,
}

/// `[supervisor]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SupervisorConfig {
    /// Where the control socket is; `None` means that there is none (`serve` without `--control`).
    pub(crate) control_socket: Option<PathBuf>,
    /// Who may use it besides root and the user of the supervisor.
    pub(crate) control_access: ControlAccess,
    /// How long connections may go on after `TERM` before they are ended.
    pub(crate) drain_timeout: Duration,
    /// Whether a start fails if one service cannot be served.
    pub(crate) strict_start: bool,
    /// Whether each connection gets a cgroup.
    pub(crate) cgroup: CgroupUse,
}

/// Who may use the control socket besides root and the user of the supervisor: `control_access`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControlAccess {
    /// Who owns it; may do everything.
    pub(crate) user: Option<Account>,
    /// The group that may see what goes on.
    pub(crate) look: Option<Account>,
    /// The group that may do everything.
    pub(crate) act: Option<Account>,
}

/// What is done with the cgroup in which the supervisor is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupUse {
    /// It is divided if whoever manages it has marked it as delegated.
    #[default]
    Auto,
    /// It is divided: nobody else manages it.
    Own,
    /// It is left alone.
    None,
}

/// `[service.NAME]`: what is served, where, and how its connection processes look.
///
/// Two equal values need no new generation on reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceConfig {
    /// The NAME: letters, digits, `-`, `_` and `.`, at most 64, starting with a letter or digit.
    pub(crate) name: String,
    /// At least one, none twice.
    pub(crate) listen: Vec<Address>,
    /// What serves a connection.
    pub(crate) job: Job,
    /// What its handler is told besides, in TOML; it has read it without a complaint.
    pub(crate) options: String,
    /// Whether its handler starts threads or processes.
    pub(crate) starts_threads: bool,
    /// What its processes share.
    pub(crate) shared: Declared,
    /// Its program gets the listeners themselves, one process each.
    pub(crate) wait: bool,
    /// Worker processes that share the listeners; 1 to 1024.
    pub(crate) workers: u16,
    /// Connection processes forked ahead, for the whole service.
    pub(crate) spare: u32,
    /// If these are programs that have been started already, and wait: how far they go. `None` if they are not started.
    pub(crate) warm: Option<WarmSettings>,
    /// Connections that one of them serves before it is renewed; 0 for as many as come.
    pub(crate) connections_per_child: u32,
    /// Live connections over all workers; 1 to 1,000,000.
    pub(crate) max_connections: u32,
    /// Who gets in, how many of them, and how long they may stay.
    pub(crate) admission: Policy,
    /// Who a connection process is and where it stands.
    pub(crate) identity: Identity,
    /// Added to what a program finds in its environment; that of its user and of files is in it.
    pub(crate) environment: BTreeMap<String, String>,
    /// What its programs find in files of their own; only the supervisor has it.
    pub(crate) credentials: Credentials,
    /// What a connection process may not do; `None` leaves it what its user may.
    pub(crate) sandbox: Option<Sandbox>,
    /// Resource limits of a connection process.
    pub(crate) limits: Vec<Limit>,
    /// Those of it and all that comes of it together.
    pub(crate) tree_limits: TreeLimits,
    /// What becomes of what a program leaves behind.
    pub(crate) kill_mode: KillMode,
    /// Whether the connection of a program is kept until the program has ended, for its counts.
    pub(crate) count_bytes: bool,
    /// Where the stderr of a program goes.
    pub(crate) stderr: StderrTarget,
    /// Which records of its connections are written.
    pub(crate) records: Records,
    /// Socket options.
    pub(crate) socket: SocketOptions,
    /// Who may use the files of its Unix sockets.
    pub(crate) socket_access: SocketAccess,
    /// What is asked of the sockets that systemd passes.
    pub(crate) passed: PassedDemands,
}

/// How many programs may have listeners of a service: as many as there could be, for each has one of its own.
const LISTENERS: u32 = 1024;

impl ServiceConfig {
    /// How many slots it has.
    pub(crate) fn slots(&self) -> u32 {
        if self.wait { LISTENERS } else { self.max_connections }
    }

    /// What a worker gets: without the lists of its admission, and without secrets.
    pub(crate) fn for_workers(&self) -> Self {
        ServiceConfig {
            admission: self.admission.without_lists(),
            name: self.name.clone(),
            listen: self.listen.clone(),
            job: self.job.clone(),
            options: self.options.clone(),
            shared: self.shared.clone(),
            identity: self.identity.clone(),
            socket: self.socket.clone(),
            environment: self.environment.clone(),
            credentials: Credentials::new(),
            sandbox: self.sandbox.clone(),
            limits: self.limits.clone(),
            socket_access: self.socket_access.clone(),
            passed: PassedDemands::default(),
            warm: self.warm.clone(),
            ..*self
        }
    }
}

/// What serves a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Job {
    /// The handler with this name.
    Handler(String),
    /// A program with the connection on its fds 0 and 1.
    Exec(Program),
}

/// A program to exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// The file, absolute (inside `chroot` if there is one); found in `PATH` if the configuration gave a bare name.
    pub(crate) path: PathBuf,
    /// argv, with argv\[0\] as it was written.
    pub(crate) arguments: Vec<String>,
    /// How it gets its connection.
    pub(crate) passing: Passing,
}

/// What becomes of the process group of a program that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KillMode {
    /// It is killed: told to end, if it has some time for it.
    Group { grace: Duration },
    /// It goes on, without the client, until its service ends.
    Process,
}

impl KillMode {
    /// Whether something of the group may go on when its program has ended.
    pub(crate) fn leaves_some(self) -> bool {
        self != KillMode::Group { grace: Duration::ZERO }
    }
}

/// How a program gets its connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Passing {
    /// On descriptors 0 and 1.
    #[default]
    Stdio,
    /// On descriptor 3, as sd_listen_fds(3) has it.
    ListenFds,
}

/// Who a connection process is and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The user, group and supplementary groups to become; `None` keeps those of the supervisor.
    pub(crate) user: Option<UserIds>,
    /// Who its workers are, if they are to be somebody else than the supervisor.
    pub(crate) worker: Option<WorkerIds>,
    /// The new root directory.
    pub(crate) chroot: Option<PathBuf>,
    /// The working directory, inside `chroot` if there is one; `/` without it.
    pub(crate) working_directory: Option<PathBuf>,
    /// The file mode creation mask.
    pub(crate) umask: u32,
    /// The nice value, -20 to 19.
    pub(crate) nice: Option<i32>,
}

/// Resolved ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserIds {
    /// The name or number in the configuration, for messages.
    pub(crate) name: String,
    /// Whether the configuration names it; where it does not, a handler is somebody who has nothing.
    pub(crate) is_named: bool,
    /// The `group` of the configuration, if there is one.
    pub(crate) group: Option<String>,
    /// `setresuid`.
    pub(crate) uid: u32,
    /// `setresgid`.
    pub(crate) gid: u32,
    /// `setgroups`.
    pub(crate) groups: Vec<u32>,
    /// Each of its processes is a user whom no other is, counted from `uid`.
    pub(crate) range: Option<UserRange>,
}

/// Users of a service, one for each slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserRange {
    /// How many there are, at least one.
    pub(crate) count: u32,
    /// The group of each has its number.
    pub(crate) with_groups: bool,
}

impl UserIds {
    /// User and group of the process that has this slot; of who has none, the last of the range. `None` for a slot that the range is
    /// too short for.
    pub(crate) fn of_slot(&self, slot: Option<u32>) -> Option<(u32, u32)> {
        let Some(UserRange { count, with_groups }) = self.range else { return Some((self.uid, self.gid)) };
        let last = count.checked_sub(1)?;
        let place = slot.unwrap_or(last);
        let uid = self.uid.checked_add(place).filter(|_| place <= last)?;
        Some((uid, if with_groups { uid } else { self.gid }))
    }

    /// All groups that its processes may have as their own.
    pub(crate) fn groups(&self) -> std::ops::RangeInclusive<u32> {
        if self.range.is_some_and(|range| range.with_groups) { self.users() } else { self.gid..=self.gid }
    }

    /// All users that its processes may be.
    pub(crate) fn users(&self) -> std::ops::RangeInclusive<u32> {
        self.uid..=self.uid.saturating_add(self.range.map_or(0, |range| range.count.saturating_sub(1)))
    }
}

/// Who a worker is, beside the user of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerIds {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Where the stderr of a program goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StderrTarget {
    /// Each line becomes a log record of the connection.
    Log,
    /// The stderr of the supervisor.
    Inherit,
    /// `/dev/null`.
    Null,
    /// The client.
    Connection,
}

/// Socket options of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketOptions {
    /// `listen(2)`'s backlog; the kernel caps it at `net.core.somaxconn`.
    pub(crate) backlog: u32,
    /// `TCP_NODELAY` on connections.
    pub(crate) nodelay: bool,
    /// How idle connections are probed.
    pub(crate) keepalive: Keepalive,
    /// Connections are accepted with their first byte, or after so many seconds.
    pub(crate) defer_accept: u32,
    /// The only interface by which connections come.
    pub(crate) interface: Option<String>,
    /// Addresses need not be there yet.
    pub(crate) freebind: bool,
    /// Connections to other addresses are taken, too.
    pub(crate) transparent: bool,
    /// The type of service of what is sent.
    pub(crate) tos: u8,
    /// The mark of what is sent, for routing and firewall.
    pub(crate) mark: u32,
}

/// How idle connections are probed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keepalive {
    /// Whether they are at all.
    pub(crate) is_on: bool,
    /// Seconds until the first probe; as the machine has it without, and so for what follows.
    pub(crate) idle: Option<u32>,
    /// Seconds from one to the next.
    pub(crate) interval: Option<u32>,
    /// How many without an answer end the connection.
    pub(crate) count: Option<u32>,
}

/// Who may use the files of a service's Unix sockets: `socket_user`, `socket_group` and `socket_mode`; and for what: `pass_rights`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketAccess {
    /// The owner; `None` for the user of the supervisor.
    pub(crate) user: Option<Account>,
    /// `None` for the group of the supervisor, or of a directory that hands its own on.
    pub(crate) group: Option<Account>,
    /// As of chmod(2).
    pub(crate) mode: u32,
    /// Clients may send descriptors.
    pub(crate) passes_rights: bool,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// The name or number in the configuration, for messages.
    pub(crate) name: String,
    pub(crate) id: u32,
}
