//! Programs that are started ahead of their connections.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far a program is started ahead of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WarmPoint {
    /// Until nothing of it has run but its loader.
    Start,
    /// Until it asks the kernel for its connection, or for anything that others would notice.
    Spare,
}

/// What holds of programs that are started ahead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WarmSettings {
    /// Where they wait.
    pub(crate) point: WarmPoint,
    /// One that has waited for so long is replaced.
    pub(crate) max_age: Duration,
    /// When one of these changes, all are replaced.
    pub(crate) watch: Vec<PathBuf>,
    /// Why none can be, so that all are started when their connection is there.
    pub(crate) obstacle: Option<String>,
}
