//! What is left of a program that has ended: in its cgroup, or without one in its process group.

use std::time::Duration;

use super::Leaf;
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

/// What has become of a cgroup whose process has ended.
#[derive(Debug)]
pub(crate) enum LeafRest {
    /// Nobody is in it.
    Nobody(Leaf),
    /// All that is in it has been killed.
    Killed(Leaf),
    /// Somebody is in that with this number, and is to be told to end and to get KILL after this time, or may go on. A worker
    /// leaves that to the supervisor: where Landlock knows no scope of signals, its filter keeps it from signalling by a
    /// descriptor, and a number may be another's by the time.
    Left(u32, Option<Duration>),
}

/// Does what is to be done about a cgroup when its process has been reaped.
pub(crate) fn end_leaf(leaf: Leaf, mode: KillMode) -> LeafRest {
    if leaf.is_empty() && !leaf.is_spent() {
        return LeafRest::Nobody(leaf);
    }
    let left = |grace| LeafRest::Left(leaf.number(), grace);
    match mode {
        _ if leaf.is_spent() && leaf.is_empty() => LeafRest::Killed(leaf),
        KillMode::Group { grace: Duration::ZERO } if leaf.kill().is_ok() => LeafRest::Killed(leaf),
        KillMode::Group { grace } => left(Some(grace)),
        KillMode::Process => left(None),
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
