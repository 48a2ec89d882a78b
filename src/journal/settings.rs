//! `[log]`: where records go, and which.

use serde::{Deserialize, Serialize};

/// `[log]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogSettings {
    /// Where records go.
    pub(crate) target: LogTarget,
    /// The least important level that is still written.
    pub(crate) level: Level,
}

/// Where log records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogTarget {
    /// The journal if stderr is connected to it (`$JOURNAL_STREAM`), else stderr.
    Auto,
    /// journald's native protocol.
    Journal,
    /// Standard error.
    Stderr,
    /// RFC 5424 to `/dev/log`.
    Syslog,
}

/// How important a record is; the numbers are syslog's severities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub(crate) enum Level {
    /// Something does not work and somebody must act.
    Error = 3,
    /// Something is wrong; preforkd goes on by itself.
    Warning = 4,
    /// Normal, and rare enough to be noticed.
    Notice = 5,
    /// Normal: one record per connection.
    Info = 6,
    /// For those who look for a fault.
    Debug = 7,
}

/// Which connections of a service get a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Records {
    /// Every one.
    All,
    /// Those that did not end with exit status 0.
    Failures,
    /// None.
    None,
}
