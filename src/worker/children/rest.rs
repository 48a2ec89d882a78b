//! What is left of the process group of a program that has ended.

use std::time::Duration;

use crate::config::KillMode;
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::wait::Pid;

/// What has been done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupRest {
    /// It is dead.
    Killed,
    /// It has been told to end, and gets KILL after this time.
    Told(Duration),
    /// It may go on.
    Spared,
}

/// Does what is to be done when the leader of a group has ended, and has not been reaped: until then the number is its own.
pub(crate) fn end(leader: Pid, mode: KillMode) -> GroupRest {
    match mode {
        KillMode::Group { grace: Duration::ZERO } => {
            process::kill_rest_of_group(leader);
            GroupRest::Killed
        }
        KillMode::Group { grace } => {
            process::signal_group(leader, Signal::SIGTERM);
            GroupRest::Told(grace)
        }
        KillMode::Process => GroupRest::Spared,
    }
}

impl GroupRest {
    /// After the leader has been reaped: when what is left of its group is to be killed, if something is.
    pub(crate) fn left(self, leader: Pid) -> Option<Option<Duration>> {
        match self {
            GroupRest::Killed => None,
            GroupRest::Told(grace) => process::is_group(leader).then_some(Some(grace)),
            GroupRest::Spared => process::is_group(leader).then_some(None),
        }
    }
}
