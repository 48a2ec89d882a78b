//! The table `limits`.

use serde::Serialize;
use serde::de::{self, Deserialize, Deserializer};
use toml::de::DeValue;

use super::Limit;
use super::diagnostic::nearest;
use super::value::{Fault, TomlValue, parse_duration, parse_size, whole};
use crate::sys::process::Resource;

/// In which unit setrlimit(2) counts, and so what else than a number may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
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
    unit: Unit,
}

const fn kind(name: &'static str, resource: Resource, unit: Unit) -> LimitKind {
    LimitKind { name, resource, unit }
}

const KINDS: [LimitKind; 14] = [
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
    fn named(name: &str) -> Result<Self, String> {
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
const TREE_KINDS: [(&str, Unit, u64); 3] =
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
    fn set(&mut self, name: &str, value: Option<u64>) -> bool {
        match name {
            "memory" => self.memory = value,
            "tasks" => self.tasks = value,
            "cpu_weight" => self.cpu_weight = value,
            _ => return false,
        }
        true
    }
}

/// One entry of the table: what limits each process, or the whole tree, in which it is set.
pub(crate) fn limit(
    key: &toml::Spanned<toml::de::DeString<'_>>,
    value: &TomlValue<'_>,
    tree: &mut TreeLimits,
) -> Result<Option<Limit>, Fault> {
    let name = key.get_ref().as_ref();
    let right = |unit: Unit| move |fault| Fault { help: Some(unit.right(name)), ..fault };
    if let Some((_, unit, least)) = TREE_KINDS.into_iter().find(|(known, ..)| *known == name) {
        let value = amount(unit, value).map_err(right(unit))?;
        if value < least {
            let fault = Fault::new(key.span(), format!("{name} = {value} would let no connection begin"));
            return Err(fault.help(unit.right(name)));
        }
        tree.set(name, (value != u64::MAX).then_some(value));
        return Ok(None);
    }
    let kind = LimitKind::named(name).map_err(|why| {
        let names: Vec<_> =
            KINDS.iter().map(|kind| kind.name).chain(TREE_KINDS.map(|(name, ..)| name)).collect();
        let help = match nearest(name, names.iter().copied()) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => format!("the limits are those of setrlimit(2), and of cgroups: {}", names.join(", ")),
        };
        Fault::new(key.span(), why).help(help)
    })?;
    let value = amount(kind.unit, value).map_err(right(kind.unit))?;
    Ok(Some(Limit { kind, value }))
}

fn amount(unit: Unit, value: &TomlValue<'_>) -> Result<u64, Fault> {
    if unit == Unit::Weight {
        return whole::<1, 10_000, u64>(value);
    }
    let DeValue::String(text) = value.get_ref() else {
        return whole::<0, { i64::MAX }, u64>(value);
    };
    if text == "unlimited" {
        return Ok(u64::MAX);
    }
    let number = text.parse().ok().filter(|_| text.starts_with(|c: char| c.is_ascii_digit()));
    let amount = number.or_else(|| match unit {
        Unit::Bytes => parse_size(text),
        // A limit of 0 would kill at once what "500ms" means to let live.
        Unit::Seconds => parse_duration(text).map(|time| time.as_millis().div_ceil(1000)).and_then(narrow),
        Unit::Micros => parse_duration(text).map(|time| time.as_micros()).and_then(narrow),
        Unit::Count | Unit::Weight => None,
    });
    amount.ok_or_else(|| Fault::new(value.span(), format!("\"{text}\" is no value of this limit")))
}

fn narrow(wide: u128) -> Option<u64> {
    wide.try_into().ok()
}

impl Unit {
    fn right(self, name: &str) -> String {
        match self {
            Unit::Bytes => {
                format!("\"{name}\" is a size as in \"64K\" or \"1G\", a number of bytes, or \"unlimited\"")
            }
            Unit::Seconds => {
                format!("\"{name}\" is a duration as in \"10s\", a number of seconds, or \"unlimited\"")
            }
            Unit::Micros => {
                format!("\"{name}\" is a duration as in \"50ms\", a number of microseconds, or \"unlimited\"")
            }
            Unit::Count => format!("\"{name}\" is a number or \"unlimited\""),
            Unit::Weight => format!("\"{name}\" is a number from 1 to 10000; without it, it is 100"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_both(text: &str) -> Result<(Option<Limit>, TreeLimits), Fault> {
        let table = toml::de::DeTable::parse(text).unwrap();
        let (key, value) = table.get_ref().iter().next().unwrap();
        let mut tree = TreeLimits::default();
        Ok((limit(key, value, &mut tree)?, tree))
    }

    fn read(text: &str) -> Result<Limit, Fault> {
        read_both(text).map(|(limit, _)| limit.unwrap())
    }

    #[test]
    fn those_of_a_tree_are_apart_and_name_their_controllers() {
        for (text, controllers) in [
            ("memory = \"64M\"", "memory io"),
            ("tasks = 8", "memory pids io"),
            ("cpu_weight = 10000", "memory cpu io"),
            ("tasks = \"unlimited\"", "memory io"),
            ("nproc = 8", "memory io"),
        ] {
            let (limit, tree) = read_both(text).unwrap();
            assert_eq!(limit.is_some(), text.starts_with("nproc"), "{text}");
            let names: Vec<_> = tree.controllers().map(|controller| controller.name).collect();
            assert_eq!(names.join(" "), controllers, "{text}");
        }
    }

    #[test]
    fn each_limit_has_its_unit() {
        for (text, value) in [
            ("nofile = 64", 64),
            ("nofile = \"64\"", 64),
            ("as = \"64K\"", 65536),
            ("core = 0", 0),
            ("cpu = \"500ms\"", 1),
            ("cpu = \"2m\"", 120),
            ("rttime = \"50ms\"", 50_000),
            ("stack = \"unlimited\"", u64::MAX),
        ] {
            assert_eq!(read(text).map(|limit| limit.value), Ok(value), "{text}");
        }
    }

    #[test]
    fn an_error_says_what_would_be_right() {
        for (text, help) in [
            ("nofiles = 1", "did you mean \"nofile\"?"),
            ("zzz = 1", "setrlimit(2)"),
            ("nofile = \"1K\"", "is a number or \"unlimited\""),
            ("nofile = -1", "is a number or \"unlimited\""),
            ("as = \"10s\"", "size"),
            ("as = true", "size"),
            ("memory = \"1K\"", "size"),
            ("tasks = 0", "is a number"),
            ("cpu_weight = 10001", "from 1 to 10000"),
            ("cpu_weigth = 1", "did you mean \"cpu_weight\"?"),
            ("cpu = \"1M\"", "duration"),
            ("rttime = \"x\"", "microseconds"),
        ] {
            let fault = read(text).unwrap_err();
            assert!(fault.help.as_ref().is_some_and(|shown| shown.contains(help)), "{text}: {fault:?}");
        }
    }
}
