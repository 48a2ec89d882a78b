//! The name of a connection.

use std::fmt;

/// Names one connection in the log, in `PREFORKD_CONNECTION` and on the control socket.
///
/// It is never used twice: `run` differs between two supervisors, `worker` between the workers of one supervisor, and
/// `number` between the connections of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId {
    /// 24 random bits of the supervisor.
    pub(crate) run: u32,
    /// The worker's serial number.
    pub(crate) worker: u32,
    /// Counted by the worker, from 1.
    pub(crate) number: u64,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}-{}-{}", self.run & 0xff_ffff, self.worker, self.number)
    }
}
