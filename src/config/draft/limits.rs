//! The table `limits`.

use toml::de::DeValue;

use crate::config::checked::limits::{KINDS, Limit, LimitKind, TREE_KINDS, TreeLimits, Unit};
use crate::config::diagnostic::nearest;
use crate::config::value::{Fault, TomlValue, parse_duration, parse_size, whole};

/// One entry of the table: what limits each process, or the whole tree, in which it is set.
pub(super) fn limit(
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
    let DeValue::String(text) = value.get_ref() else {
        if unit == Unit::Weight {
            return whole::<1, 10_000, u64>(value);
        }
        return whole::<0, { i64::MAX }, u64>(value);
    };
    if text == "unlimited" && unit != Unit::Weight {
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
    let amount = amount.filter(|amount| unit != Unit::Weight || (1..=10_000).contains(amount));
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
            // As a flag says it.
            ("cpu_weight = \"50\"", "memory cpu io"),
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
            ("cpu_weight = \"0\"", "from 1 to 10000"),
            ("cpu_weight = \"unlimited\"", "from 1 to 10000"),
            ("cpu_weigth = 1", "did you mean \"cpu_weight\"?"),
            ("cpu = \"1M\"", "duration"),
            ("rttime = \"x\"", "microseconds"),
        ] {
            let fault = read(text).unwrap_err();
            assert!(fault.help.as_ref().is_some_and(|shown| shown.contains(help)), "{text}: {fault:?}");
        }
    }
}
