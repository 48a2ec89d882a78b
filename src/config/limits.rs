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

/// One entry of the table.
pub(crate) fn limit(
    key: &toml::Spanned<toml::de::DeString<'_>>,
    value: &TomlValue<'_>,
) -> Result<Limit, Fault> {
    let name = key.get_ref().as_ref();
    let kind = LimitKind::named(name).map_err(|why| {
        let names = KINDS.map(|kind| kind.name);
        let help = match nearest(name, names) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => format!("the limits are those of setrlimit(2): {}", names.join(", ")),
        };
        Fault::new(key.span(), why).help(help)
    })?;
    amount(kind.unit, value)
        .map(|value| Limit { kind, value })
        .map_err(|fault| Fault { help: Some(kind.unit.right(name)), ..fault })
}

fn amount(unit: Unit, value: &TomlValue<'_>) -> Result<u64, Fault> {
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
        Unit::Count => None,
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Limit, Fault> {
        let table = toml::de::DeTable::parse(text).unwrap();
        let (key, value) = table.get_ref().iter().next().unwrap();
        limit(key, value)
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
            ("cpu = \"1M\"", "duration"),
            ("rttime = \"x\"", "microseconds"),
        ] {
            let fault = read(text).unwrap_err();
            assert!(fault.help.as_ref().is_some_and(|shown| shown.contains(help)), "{text}: {fault:?}");
        }
    }
}
