//! Limits of a connection process, and of all that comes of it.

use serde::Serialize;
use serde::de::{self, Deserialize, Deserializer};

use crate::sys::process::Resource;

/// In which unit setrlimit(2) counts, and so what else than a number may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Unit {
    Bytes,
    Seconds,
    Micros,
    Count,
    /// From 1 to 10,000, as of cgroups.
    Weight,
}

/// What setrlimit(2) limits. Its name stands for it in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub(crate) struct LimitKind {
    /// In `limits`.
    pub(crate) name: &'static str,
    /// For the kernel.
    pub(crate) resource: Resource,
    pub(in crate::config) unit: Unit,
}

const fn kind(name: &'static str, resource: Resource, unit: Unit) -> LimitKind {
    LimitKind { name, resource, unit }
}

pub(in crate::config) const KINDS: [LimitKind; 14] = [
    kind("as", Resource::RLIMIT_AS, Unit::Bytes),
    kind("core", Resource::RLIMIT_CORE, Unit::Bytes),
    kind("cpu", Resource::RLIMIT_CPU, Unit::Seconds),
    kind("data", Resource::RLIMIT_DATA, Unit::Bytes),
    kind("fsize", Resource::RLIMIT_FSIZE, Unit::Bytes),
    kind("memlock", Resource::RLIMIT_MEMLOCK, Unit::Bytes),
    kind("msgqueue", Resource::RLIMIT_MSGQUEUE, Unit::Bytes),
    kind("nice", Resource::RLIMIT_NICE, Unit::Count),
    kind("nofile", Resource::RLIMIT_NOFILE, Unit::Count),
    kind("nproc", Resource::RLIMIT_NPROC, Unit::Count),
    kind("rtprio", Resource::RLIMIT_RTPRIO, Unit::Count),
    kind("rttime", Resource::RLIMIT_RTTIME, Unit::Micros),
    kind("sigpending", Resource::RLIMIT_SIGPENDING, Unit::Count),
    kind("stack", Resource::RLIMIT_STACK, Unit::Bytes),
];

impl LimitKind {
    pub(in crate::config) fn named(name: &str) -> Result<Self, String> {
        let known = KINDS.into_iter().find(|kind| kind.name == name);
        known.ok_or_else(|| format!("there is no limit \"{name}\""))
    }
}

impl<'de> Deserialize<'de> for LimitKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        LimitKind::named(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl From<LimitKind> for &'static str {
    fn from(kind: LimitKind) -> Self {
        kind.name
    }
}

/// One resource limit; soft and hard value are the same. `u64::MAX` is "unlimited".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(crate) struct Limit {
    /// Of what.
    pub(crate) kind: LimitKind,
    /// In setrlimit(2)'s unit.
    pub(crate) value: u64,
}

/// What limits a connection process and all that comes of it together, by a cgroup of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(crate) struct TreeLimits {
    /// Bytes of memory, without swap.
    pub(crate) memory: Option<u64>,
    /// Processes and threads.
    pub(crate) tasks: Option<u64>,
    /// The share of the processors, against other connections of the same worker; without it is 100.
    pub(crate) cpu_weight: Option<u64>,
}

/// A controller of cgroups(7).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Controller {
    pub(crate) name: &'static str,
    /// A limit needs it; otherwise it only counts.
    pub(crate) is_needed: bool,
}

/// The limits of a tree: their names, in which unit, and at least how much.
pub(in crate::config) const TREE_KINDS: [(&str, Unit, u64); 3] =
    [("memory", Unit::Bytes, 1 << 16), ("tasks", Unit::Count, 1), ("cpu_weight", Unit::Weight, 1)];

impl TreeLimits {
    /// The name of one that is set.
    pub(crate) fn first(&self) -> Option<&'static str> {
        let set = [self.memory, self.tasks, self.cpu_weight];
        TREE_KINDS.iter().zip(set).find(|(_, value)| value.is_some()).map(|((name, ..), _)| *name)
    }

    /// What counts and limits them. Those that only limit are not there without a limit, since each makes a cgroup dearer.
    pub(crate) fn controllers(&self) -> impl Iterator<Item = Controller> + use<> {
        let needed = |name, is_needed: bool| is_needed.then_some(Controller { name, is_needed });
        [
            Some(Controller { name: "memory", is_needed: self.memory.is_some() }),
            needed("pids", self.tasks.is_some()),
            needed("cpu", self.cpu_weight.is_some()),
            Some(Controller { name: "io", is_needed: false }),
        ]
        .into_iter()
        .flatten()
    }

    /// The files of a cgroup by which they are set.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let file = |name| move |value| (name, value);
        // Swap would be more memory; and without a part of it the rest of a connection is of no use.
        let memory = self.memory.map(|memory| {
            [("memory.swap.max", 0), ("memory.oom.group", 1), ("memory.max", memory)].into_iter()
        });
        let others = [self.tasks.map(file("pids.max")), self.cpu_weight.map(file("cpu.weight"))];
        memory.into_iter().flatten().chain(others.into_iter().flatten())
    }

    /// Sets the one with this name; false if there is none.
    pub(in crate::config) fn set(&mut self, name: &str, value: Option<u64>) -> bool {
        match name {
            "memory" => self.memory = value,
            "tasks" => self.tasks = value,
            "cpu_weight" => self.cpu_weight = value,
            _ => return false,
        }
        true
    }
}
