//! From TOML values to numbers, durations, sizes and choices.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::diagnostic::{Diagnostic, Place, Severity, nearest};

/// A TOML value and where it is.
pub(crate) type TomlValue<'a> = Spanned<DeValue<'a>>;

/// What is wrong with a stretch of a section; [`super::source::Origin::error`] makes a diagnostic of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where.
    pub(crate) span: Range<usize>,
    /// What.
    pub(crate) message: String,
    /// Another place that has to do with it.
    pub(crate) note: Option<String>,
    /// What would be right.
    pub(crate) help: Option<String>,
    /// It is something that this machine does not have now; nothing need be wrong with what is written.
    pub(crate) may_pass: bool,
}

impl Fault {
    /// The fault as an error at `place`.
    pub(crate) fn at(self, place: Place) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            place,
            message: self.message,
            note: self.note,
            help: self.help,
            may_pass: self.may_pass,
        }
    }

    /// Without help yet.
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Fault { span, message: message.into(), note: None, help: None, may_pass: false }
    }

    /// Of the machine, which may be another the next time.
    pub(crate) fn of_machine(self) -> Self {
        Fault { may_pass: true, ..self }
    }

    /// Says what would be right.
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Fault { help: Some(help.into()), ..self }
    }

    /// Names another place.
    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        Fault { note: Some(note.into()), ..self }
    }
}

/// All that is wrong with one value.
pub(crate) type Faults = Vec<Fault>;

/// What comes of keeping a value.
pub(crate) type Applied = Result<(), Faults>;

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        vec![fault]
    }
}

/// Deserialises one value, with the error at the part of it that is wrong.
pub(crate) fn decode<'a, T: Deserialize<'a>>(value: &TomlValue<'a>) -> Result<T, Fault> {
    T::deserialize(ValueDeserializer::from(value.clone())).map_err(|error| {
        let span = error.span().unwrap_or_else(|| value.span());
        let (message, help) = match error.message().split_once('\n') {
            Some((message, help)) => (plain(message), Some(help.to_owned())),
            None => (plain(error.message()), None),
        };
        Fault { span, message, note: None, help, may_pass: false }
    })
}

/// serde's "invalid type: A, expected B" in plain words.
pub(super) fn plain(message: &str) -> String {
    let wrong = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) {
        Some((found, expected)) => format!("{found} where {expected} is expected"),
        None => message.to_owned(),
    }
}

/// A text.
pub(crate) fn text(value: &TomlValue<'_>) -> Result<String, Fault> {
    decode(value)
}

/// A table.
pub(super) fn table<'v, 'a>(value: &'v TomlValue<'a>) -> Result<&'v DeTable<'a>, Faults> {
    let what = value.get_ref().type_str();
    let wrong = || Fault::new(value.span(), format!("{what} where a table is expected")).into();
    value.get_ref().as_table().ok_or_else(wrong)
}

/// The entries of an array; a single value is an array of one.
pub(crate) fn one_or_more<'v, 'a>(value: &'v TomlValue<'a>) -> Vec<&'v TomlValue<'a>> {
    match value.get_ref() {
        DeValue::Array(entries) => entries.iter().collect(),
        _ => vec![value],
    }
}

/// `f` of each entry; the faults of all entries if there is any.
pub(crate) fn collect<I, T>(
    entries: impl IntoIterator<Item = I>,
    mut f: impl FnMut(I) -> Result<T, Fault>,
) -> Result<Vec<T>, Faults> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for entry in entries {
        match f(entry) {
            Ok(value) => good.push(value),
            Err(fault) => bad.push(fault),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

/// One of some words.
pub(crate) fn choice<T: Copy>(value: &TomlValue<'_>, words: &[(&'static str, T)]) -> Result<T, Fault> {
    let text = text(value)?;
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*meaning);
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let help = match nearest(&text, words.iter().map(|(word, _)| *word)) {
        Some(word) => format!("did you mean \"{word}\"? The values: {}", all.join(", ")),
        None => format!("write one of {}", all.join(", ")),
    };
    Err(Fault::new(value.span(), format!("\"{text}\" is no value of this key")).help(help))
}

/// A whole number in a range.
pub(crate) struct Whole<const MIN: i64, const MAX: i64>(pub(crate) i64);

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any<const MIN: i64, const MAX: i64>;
        impl<const MIN: i64, const MAX: i64> Visitor<'_> for Any<MIN, MAX> {
            type Value = i64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<i64, E> {
                if (MIN..=MAX).contains(&number) {
                    Ok(number)
                } else {
                    Err(E::invalid_value(de::Unexpected::Signed(number), &self))
                }
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<i64, E> {
                Err(E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }
        }
        deserializer.deserialize_any(Any::<MIN, MAX>).map(Whole)
    }
}

/// A whole number in a range, as the type that holds the range.
pub(crate) fn whole<const MIN: i64, const MAX: i64, T: TryFrom<i64>>(
    value: &TomlValue<'_>,
) -> Result<T, Fault> {
    let Whole(number) = decode::<Whole<MIN, MAX>>(value)?;
    T::try_from(number).map_err(|_| Fault::new(value.span(), format!("{number} is too large")))
}

/// `"500ms"`, `"30s"`, `"5m"`, `"1h"`.
///
/// humantime knows more than that, "1M" for a month among it, which next to sizes is a trap.
pub(crate) fn duration(value: &TomlValue<'_>) -> Result<Duration, Fault> {
    const RIGHT: &str = "write a whole number and its unit, as in \"500ms\", \"30s\", \"5m\" or \"1h\"";
    let text = text(value).map_err(|fault| match value.get_ref() {
        DeValue::Integer(_) => Fault::new(value.span(), "a duration needs a unit").help(RIGHT),
        _ => fault.help(RIGHT),
    })?;
    parse_duration(&text)
        .ok_or_else(|| Fault::new(value.span(), format!("\"{text}\" is no duration")).help(RIGHT))
}

/// A duration from its text.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_number(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// A number of bytes: `"64K"`, `"1M"`, `"1G"`, `"1T"`, powers of 1024, or without a unit.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// A file mode creation mask.
pub(crate) fn umask(value: &TomlValue<'_>) -> Result<u32, Fault> {
    octal(value, "file mode mask", "022")
}

/// A file mode.
pub(crate) fn file_mode(value: &TomlValue<'_>) -> Result<u32, Fault> {
    octal(value, "file mode", "0660")
}

/// An octal number up to 777. A decimal number is refused: 22 would be 026.
fn octal(value: &TomlValue<'_>, what: &str, example: &str) -> Result<u32, Fault> {
    let right = || format!("write an octal number up to 777, as in \"{example}\" or 0o{example}");
    let digits: Cow<'_, str> = match value.get_ref() {
        DeValue::String(text) => text.strip_prefix("0o").unwrap_or(text).into(),
        DeValue::Integer(number) if number.radix() == 8 => number.as_str().into(),
        DeValue::Integer(number) => {
            let digits = number.to_string();
            let is_octal =
                number.radix() == 10 && u32::from_str_radix(&digits, 8).is_ok_and(|mask| mask <= 0o777);
            let right = if is_octal { format!("write \"{digits:0>3}\" or 0o{digits:0>3}") } else { right() };
            return Err(Fault::new(value.span(), format!("{digits} is not octal")).help(right));
        }
        other => {
            let message = format!("{} where an octal number is expected", other.type_str());
            return Err(Fault::new(value.span(), message).help(right()));
        }
    };
    let octal = !digits.is_empty() && digits.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let mask = octal.then(|| u32::from_str_radix(&digits, 8).ok()).flatten();
    mask.filter(|&mask| mask <= 0o777)
        .ok_or_else(|| Fault::new(value.span(), format!("\"{digits}\" is no {what}")).help(right()))
}

/// The first NUL byte in a value, table keys included: no path, argument or name can have one.
pub(crate) fn find_nul(value: &TomlValue<'_>) -> Option<Range<usize>> {
    match value.get_ref() {
        DeValue::String(text) => text.contains('\0').then(|| value.span()),
        DeValue::Array(entries) => entries.iter().find_map(find_nul),
        DeValue::Table(entries) => entries.iter().find_map(|(key, value)| {
            if key.get_ref().contains('\0') { Some(key.span()) } else { find_nul(value) }
        }),
        _ => None,
    }
}

/// Keeps a decoded value; where it is wrong, its default does not hold either.
pub(crate) fn set<T>(place: &mut Option<T>, value: Result<T, Fault>) -> Applied {
    *place = None;
    *place = Some(value?);
    Ok(())
}

/// An absolute path.
pub(super) fn path(value: &TomlValue<'_>) -> Result<Spanned<PathBuf>, Fault> {
    let path = text(value)?;
    if path.starts_with('/') {
        return Ok(Spanned::new(value.span(), path.into()));
    }
    Err(Fault::new(value.span(), format!("\"{path}\" is not an absolute path"))
        .help("write a path that starts with /"))
}

/// A text that may also be a number, as user ids are.
pub(crate) fn name_or_number(value: &TomlValue<'_>) -> Result<String, Fault> {
    match value.get_ref() {
        DeValue::Integer(number) => Ok(number.to_string()),
        _ => text(value),
    }
}

/// A user's or group's number. The largest is none: setresuid(2) takes it as "leave it as it is", which would be root.
pub(super) fn id(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|&id| id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> TomlValue<'_> {
        DeValue::parse(text).unwrap()
    }

    #[test]
    fn durations() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "30", "-1s", "+1s", "1.5s", "30 s", "1M", "1d", "1h30m", "99999999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(duration(&value("30")).unwrap_err().message, "a duration needs a unit");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("64K", 65536), ("1M", 1 << 20), ("2G", 2 << 30), ("1T", 1 << 40)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "K", "1k", "1KB", "-1", "1 M", "99999999T"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn masks_are_octal() {
        for (text, mask) in
            [("\"022\"", 0o22), ("\"0o27\"", 0o27), ("0o77", 0o77), ("\"0\"", 0), ("\"777\"", 0o777)]
        {
            assert_eq!(umask(&value(text)), Ok(mask), "{text}");
        }
        for text in ["22", "0x12", "\"\"", "\"8\"", "\"+7\"", "\"1000\"", "true"] {
            assert!(umask(&value(text)).is_err(), "{text}");
        }
        assert_eq!(umask(&value("22")).unwrap_err().help.unwrap(), "write \"022\" or 0o022");
    }

    #[test]
    fn numbers_have_a_range() {
        assert_eq!(whole::<1, 1024, u16>(&value("1024")), Ok(1024));
        for text in ["0", "1025", "-1", "1.5", "\"4\"", "18446744073709551615", "99999999999999999999999999"]
        {
            let fault = whole::<1, 1024, u16>(&value(text)).unwrap_err();
            assert!(fault.message.ends_with("where a whole number from 1 to 1024 is expected"), "{fault:?}");
        }
    }
}
