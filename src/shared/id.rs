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
    /// Counted by the worker, from 1; of a process that serves several connections, see [`ConnectionId::nth`].
    pub(crate) number: u64,
}

/// The bits of a number that tell the process; those above count its connections, from 0.
const PROCESS_BITS: u32 = 40;

impl ConnectionId {
    /// How many connections one process can have names for.
    pub(crate) const PER_PROCESS: u32 = 1 << (u64::BITS - PROCESS_BITS);

    /// The name of a later connection of the same process.
    pub(crate) fn nth(self, n: u32) -> Self {
        ConnectionId { number: process_of(self.number) | u64::from(n) << PROCESS_BITS, ..self }
    }
}

/// The part of a number that all connections of a process have in common.
pub(crate) fn process_of(number: u64) -> u64 {
    number & ((1 << PROCESS_BITS) - 1)
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}-{}-{}", self.run & 0xff_ffff, self.worker, process_of(self.number))?;
        match self.number >> PROCESS_BITS {
            0 => Ok(()),
            n => write!(f, ".{n}"),
        }
    }
}
