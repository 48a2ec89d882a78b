//! The control socket: requests, answers, and both ends of it.
//!
//! What is said there is varlink, <https://varlink.org>: calls and replies in JSON, each ended by a NUL. What can be asked is in
//! `org.preforkd.Control.varlink`, and who may ask it is decided for each call ([`access`]).

mod access;
mod answer;
pub(crate) mod client;
mod error;
pub(crate) mod interface;
mod request;
pub(crate) mod server;
mod session;
mod socket;
mod times;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use self::answer::Answer;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::answer::check_answer;
pub(crate) use self::error::{ControlError, Right};
pub(crate) use self::request::Request;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::request::check_calls;
use crate::admission::SourceName;
use crate::client::ConnectionId;
use crate::sys::time::UnixTime;
use crate::sys::wait::Pid;

pub(crate) use times::TimesStatus;

/// Clients that are kept out by hand. Fields are added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BanStatus {
    pub(crate) source: SourceName,
    /// `None` for all.
    pub(crate) service: Option<String>,
    #[serde(rename = "since_unix_ms")]
    pub(crate) since: UnixTime,
    /// `None` until it is lifted.
    #[serde(rename = "until_unix_ms")]
    pub(crate) until: Option<UnixTime>,
    /// How long that is from now.
    pub(crate) left_s: Option<u64>,
}

/// A connection that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionStatus {
    pub(crate) id: ConnectionId,
    pub(crate) service: String,
    /// The address of the client without its port, or its user.
    pub(crate) source: SourceName,
    /// The client as the log has it.
    pub(crate) client: String,
    /// That is an address, and the other end of its socket: no proxy has named it.
    #[serde(default)]
    pub(crate) is_direct: bool,
    /// Its process; `None` while there is none yet, or no more.
    pub(crate) pid: Option<Pid>,
    /// How long ago it was accepted.
    pub(crate) age_ms: u64,
    /// It was told to end.
    pub(crate) is_ending: bool,
}

/// `status --json`. Fields are added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it, and the manual explains them")]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) generation: u64,
    pub(crate) uptime_s: u64,
    /// When it was started.
    pub(crate) since_unix_ms: UnixTime,
    pub(crate) state: Condition,
    /// What is waited for, while something is being changed.
    pub(crate) waits_for: Option<String>,
    pub(crate) reloads: Reloads,
    pub(crate) last_reload: Option<LastReload>,
    pub(crate) upgrades: u64,
    /// How many bans there are.
    pub(crate) bans: u64,
    pub(crate) log_records_dropped: u64,
    /// Those of the supervisor among them.
    pub(crate) own_log_records_dropped: u64,
    pub(crate) services: Vec<ServiceStatus>,
}

/// What the supervisor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Condition {
    /// Not serving yet.
    Starting,
    /// Serving.
    Running,
    /// A new generation is being made.
    Reloading,
    /// Accepts no more; connections go on.
    Draining,
    /// Connections are being ended.
    Ending,
}

/// How reloads went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reloads {
    /// Came into force.
    pub(crate) ok: u64,
    /// Were rejected.
    pub(crate) failed: u64,
}

/// What has become of a reload, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it, and the manual explains them")]
pub(crate) struct LastReload {
    pub(crate) ok: bool,
    pub(crate) unix_ms: UnixTime,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it, and the manual explains them")]
pub(crate) struct ServiceStatus {
    pub(crate) name: String,
    /// As bound: with the port that the kernel chose.
    pub(crate) listen: Vec<String>,
    /// It accepts nobody until it is resumed.
    pub(crate) paused: bool,
    /// It serves, and balancers are to send no more until it is resumed.
    pub(crate) lameduck: bool,
    /// Why it is not served; `None` if it is.
    pub(crate) down: Option<String>,
    /// With `wait`: why its program is not started for a while, though somebody calls.
    pub(crate) resting: Option<String>,
    /// The addresses at which nobody can reach it, as the kernel and the file system say now.
    pub(crate) unreachable: Vec<Unreachable>,
    pub(crate) workers: Vec<WorkerStatus>,
    /// Workers that died and were not told to.
    pub(crate) workers_died: u64,
    pub(crate) spares: u32,
    /// Spares that are programs which have been started, and could have a connection now.
    pub(crate) warm: u64,
    /// Why there are none of these, though they are asked for.
    pub(crate) cold: Option<String>,
    /// Connection processes, those of dead and draining workers included.
    pub(crate) active: u32,
    /// Those that are counted for their source; 0 without `max_connections_per_source`.
    pub(crate) counted: u32,
    pub(crate) max_connections: u32,
    /// Processes that programs have left behind.
    pub(crate) left_behind: u32,
    /// What its connection processes may not do; `None` if that is all that their user may.
    pub(crate) sandbox: Option<CageStatus>,
    /// Connections that wait to be accepted; of TCP only.
    pub(crate) queued: u64,
    /// The same by listener, with how many may wait.
    pub(crate) queues: Vec<QueueStatus>,
    /// Since when it is counted what follows; `None` if nothing was yet.
    pub(crate) counted_since_unix_ms: Option<UnixTime>,
    pub(crate) accepted: u64,
    pub(crate) completed: u64,
    pub(crate) refused: Refused,
    pub(crate) timeouts: u64,
    pub(crate) crashes: u64,
    pub(crate) penalties: u64,
    /// Sources that wait now, for the end of theirs.
    pub(crate) penalized: u32,
    pub(crate) cpu_us: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) log_records_dropped: u64,
    /// From accept to the end.
    pub(crate) durations: TimesStatus,
    /// From accept until a process had the connection.
    pub(crate) waits: TimesStatus,
    /// Connections of warm programs.
    pub(crate) served_warm: u64,
    /// From the start of a program until it was warm.
    pub(crate) warm_ups: TimesStatus,
}

/// The queue of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it, and the manual explains them")]
pub(crate) struct QueueStatus {
    pub(crate) listen: String,
    pub(crate) queued: u32,
    pub(crate) limit: u32,
}

/// What the sandbox of a service comes to on this kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CageStatus {
    /// What holds, in words.
    pub(crate) in_force: Vec<String>,
    /// What does not, and why.
    pub(crate) missing: Vec<String>,
}

impl fmt::Display for CageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_force.join("; "))?;
        match self.missing.is_empty() {
            true => Ok(()),
            false => write!(f, "; not here: {}", self.missing.join("; ")),
        }
    }
}

/// An address at which nobody can reach a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it, and the manual explains them")]
pub(crate) struct Unreachable {
    pub(crate) address: String,
    pub(crate) reason: String,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nobody can reach {}: {}", self.address, self.reason)
    }
}

/// Connections that were not served, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it, and the manual explains them")]
pub(crate) struct Refused {
    pub(crate) limit: u64,
    pub(crate) source_limit: u64,
    pub(crate) rate: u64,
    pub(crate) access: u64,
    pub(crate) penalty: u64,
    pub(crate) header: u64,
    pub(crate) banned: u64,
}

impl Refused {
    /// For whatever reason.
    pub(crate) fn all(&self) -> u64 {
        let Refused { limit, source_limit, rate, access, penalty, header, banned } = *self;
        [limit, source_limit, rate, access, penalty, header, banned].into_iter().fold(0, u64::saturating_add)
    }
}

/// One worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it, and the manual explains them")]
pub(crate) struct WorkerStatus {
    pub(crate) pid: i32,
    pub(crate) generation: u64,
    pub(crate) state: WorkerState,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WorkerState {
    /// Getting ready.
    Starting,
    /// Ready, and waiting for the rest of its generation.
    Ready,
    /// In its accept loop.
    Accepting,
    /// Accepts no more; its connections go on.
    Draining,
}
