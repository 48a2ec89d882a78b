//! The files of systemd: sections, assignments, continued lines, drop-ins, words of a command line.

use std::collections::BTreeMap;
use std::time::Duration;

/// The assignments of a unit and its drop-ins, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnitFile {
    entries: Vec<Assignment>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) section: String,
    pub(crate) key: String,
    pub(crate) value: String,
}

impl Assignment {
    /// As it is written.
    pub(crate) fn written(&self) -> String {
        format!("{}={}", self.key, self.value)
    }
}

/// More lines than any unit has.
const MOST_ENTRIES: usize = 10_000;

impl UnitFile {
    /// Adds a file, as a drop-in if there is one already.
    pub(crate) fn add(&mut self, text: &str) {
        let mut section = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let trimmed = line.trim_start();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            let mut whole = trimmed.to_owned();
            while let Some(begun) = continued(&whole) {
                let begun = begun.to_owned();
                // A comment does not end what is continued.
                let next = lines.by_ref().find(|next| !next.trim_start().starts_with(['#', ';']));
                match next {
                    Some(next) if begun.len() < 65_536 => whole = format!("{begun} {}", next.trim_start()),
                    _ => whole = begun,
                }
            }
            let whole = whole.trim_end();
            if let Some(name) = whole.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.to_owned();
            } else if let Some((key, value)) =
                whole.split_once('=').filter(|_| self.entries.len() < MOST_ENTRIES)
            {
                let (section, key, value) = (section.clone(), key.trim().to_owned(), value.trim().to_owned());
                self.entries.push(Assignment { section, key, value });
            }
        }
    }

    /// The assignments of a section, without those that an empty one has reset.
    pub(crate) fn of<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a Assignment> {
        let entries = || self.entries.iter().enumerate().filter(move |(_, entry)| entry.section == section);
        let empty = entries().filter(|(_, entry)| entry.value.is_empty());
        let resets: BTreeMap<&str, usize> = empty.map(|(index, entry)| (entry.key.as_str(), index)).collect();
        entries().filter_map(move |(index, entry)| {
            let is_reset = || resets.get(entry.key.as_str()).is_some_and(|reset| *reset > index);
            (!entry.value.is_empty() && !is_reset()).then_some(entry)
        })
    }

    /// The last assignment to a key.
    pub(crate) fn last<'a>(&'a self, section: &'a str, key: &str) -> Option<&'a str> {
        self.of(section).filter(|entry| entry.key == key).last().map(|entry| entry.value.as_str())
    }

    /// All values of a key.
    pub(crate) fn all<'a>(&'a self, section: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.of(section).filter(move |entry| entry.key == key).map(|entry| entry.value.as_str())
    }
}

/// What goes on in the next line: not if the backslash at the end is one that another has escaped.
fn continued(line: &str) -> Option<&str> {
    let backslashes = line.bytes().rev().take_while(|byte| *byte == b'\\').count();
    line.strip_suffix('\\').filter(|_| backslashes % 2 == 1)
}

/// What systemd takes as yes and no.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

/// What a backslash does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// What it does in C; one that is not known stays as it is written.
    Kept,
    /// The same, but one that is not known spoils the line.
    Strict,
    /// What stands behind it is meant itself.
    Plain,
}

/// The words of a command line, with its quotes and escapes taken away; `None` if a quote is not closed.
pub(crate) fn words(line: &str) -> Option<Vec<String>> {
    split(line, Escapes::Kept).map(|words| words.into_iter().map(|(word, _)| word).collect())
}

/// The words of the command lines that lone semicolons separate, systemd.service(5) COMMAND LINES.
pub(crate) fn commands(line: &str) -> Option<Vec<Vec<String>>> {
    let mut commands = vec![Vec::new()];
    for (word, written) in split(line, Escapes::Kept)? {
        let word = if written == "\\;" { ";".to_owned() } else { word };
        match commands.last_mut() {
            Some(last) if written != ";" => last.push(word),
            _ => commands.push(Vec::new()),
        }
    }
    commands.retain(|command| !command.is_empty());
    Some(commands)
}

/// The words of an assignment to `Environment=`; `None` if systemd would leave it out as not valid.
pub(crate) fn assigned(line: &str) -> Option<Vec<String>> {
    split(line, Escapes::Strict).map(|words| words.into_iter().map(|(word, _)| word).collect())
}

/// The words of a variable that is a word of a command line.
pub(crate) fn variable_words(value: &str) -> Option<Vec<String>> {
    split(value, Escapes::Plain).map(|words| words.into_iter().map(|(word, _)| word).collect())
}

/// The words, each also as it is written. As `extract_first_word()` of systemd, whose quotes may begin within a word.
fn split(line: &str, escapes: Escapes) -> Option<Vec<(String, &str)>> {
    const SPACES: [char; 4] = [' ', '\t', '\n', '\r'];
    let mut words = Vec::new();
    // Bytes, as an escape may be one that is no character.
    let mut word: Option<(usize, Vec<u8>)> = None;
    let mut quote = None;
    let mut rest = line;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    while let Some(character) = rest.chars().next() {
        let at = line.len() - rest.len();
        rest = &rest[character.len_utf8()..];
        match (character, quote) {
            (space, None) if SPACES.contains(&space) => {
                words.extend(word.take().map(|(begin, bytes)| (text(&bytes), &line[begin..at])));
                continue;
            }
            (end, Some(begin)) if end == begin => quote = None,
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert((at, Vec::new()));
            }
            ('\\', _) => {
                let (_, bytes) = word.get_or_insert((at, Vec::new()));
                match (unescaped(rest).filter(|_| escapes != Escapes::Plain), rest.chars().next()) {
                    (Some((escaped, length)), _) => {
                        bytes.extend(escaped);
                        rest = &rest[length..];
                    }
                    (None, Some(_)) if escapes == Escapes::Strict => return None,
                    (None, Some(next)) => {
                        if escapes == Escapes::Kept {
                            bytes.push(b'\\');
                        }
                        bytes.extend(next.to_string().bytes());
                        rest = &rest[next.len_utf8()..];
                    }
                    (None, None) if escapes == Escapes::Kept && quote.is_none() => bytes.push(b'\\'),
                    (None, None) => return None,
                }
            }
            _ => word.get_or_insert((at, Vec::new())).1.extend(character.to_string().bytes()),
        }
    }
    words.extend(word.map(|(begin, bytes)| (text(&bytes), &line[begin..])));
    quote.is_none().then_some(words)
}

/// What is meant by an escape, and how long it is without its backslash: `cunescape_one()` of systemd.
fn unescaped(rest: &str) -> Option<(Vec<u8>, usize)> {
    let code = |digits: std::ops::Range<usize>, radix: u32| {
        let digits = rest.get(digits).filter(|digits| digits.chars().all(|digit| digit.is_digit(radix)))?;
        u32::from_str_radix(digits, radix).ok().filter(|code| *code != 0)
    };
    let byte = |code: Option<u32>, length| Some((vec![u8::try_from(code?).ok()?], length));
    let character = |length: usize| {
        let character = char::from_u32(code(1..length, 16)?)?;
        Some((character.to_string().into_bytes(), length))
    };
    let simple = match rest.chars().next()? {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' => b'\\',
        '"' => b'"',
        '\'' => b'\'',
        's' => b' ',
        'x' => return byte(code(1..3, 16), 3),
        'u' => return character(5),
        'U' => return character(9),
        '0'..='7' => return byte(code(0..3, 8), 3),
        _ => return None,
    };
    Some((vec![simple], 1))
}

/// Seconds of a time span, as "2min 30s"; `None` if it is none, `Some(None)` for infinity.
pub(crate) fn span(value: &str) -> Option<Option<u64>> {
    let duration = duration(value, 1_000_000)?;
    Some(duration.map(|duration| duration.as_secs() + u64::from(duration.subsec_nanos() > 0)))
}

/// A time span, systemd.time(7), where a number alone counts so many microseconds; `None` if it is none, `Some(None)` for infinity.
pub(crate) fn duration(value: &str, alone: u64) -> Option<Option<Duration>> {
    let mut rest = value.trim();
    if rest == "infinity" {
        return Some(None);
    }
    let mut all: u64 = 0;
    loop {
        let (whole, after) = digits(rest);
        let (part, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        let behind = after;
        let after = behind.trim_start();
        let letters = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let unit = match after.get(..letters)? {
            // As "12.34.56".
            "" if behind == after && !after.is_empty() => return None,
            "" => alone,
            letters => UNITS.iter().find(|(names, _)| names.contains(&letters))?.1,
        };
        let whole = if whole.is_empty() { 0 } else { super::model::number(whole)? };
        let part = part.get(..part.len().min(9))?;
        let ten = u128::from(10_u64.pow(u32::try_from(part.len()).ok()?));
        let part = u128::from(unit) * u128::from(super::model::number(part).unwrap_or(0)) / ten;
        all = all.checked_add(whole.checked_mul(unit)?)?.checked_add(u64::try_from(part).ok()?)?;
        rest = after.get(letters..)?.trim_start();
        if rest.is_empty() {
            return Some(Some(Duration::from_micros(all)));
        }
    }
}

/// The units of time spans, in microseconds.
const UNITS: [(&[&str], u64); 9] = [
    (&["usec", "us", "\u{b5}s", "\u{3bc}s"], 1),
    (&["msec", "ms"], 1_000),
    (&["seconds", "second", "sec", "s"], 1_000_000),
    (&["minutes", "minute", "min", "m"], 60_000_000),
    (&["hours", "hour", "hr", "h"], 3_600_000_000),
    (&["days", "day", "d"], 86_400_000_000),
    (&["weeks", "week", "w"], 604_800_000_000),
    (&["months", "month", "M"], 2_629_800_000_000),
    (&["years", "year", "y"], 31_557_600_000_000),
];

/// The digits at the beginning, and what follows.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// A number of bytes, as "64M" or "1.5G", in powers of 1024.
pub(crate) fn size(value: &str) -> Option<u64> {
    let (whole, after) = digits(value);
    let (part, after) = after.strip_prefix('.').map_or(("", after), digits);
    let after = if after == "B" { "" } else { after };
    let power = ["", "K", "M", "G", "T", "P", "E"].iter().position(|unit| *unit == after)?;
    let unit = 1024_u64.checked_pow(u32::try_from(power).ok()?)?;
    let part = part.get(..part.len().min(9))?;
    let ten = u128::from(10_u64.pow(u32::try_from(part.len()).ok()?));
    let part = u128::from(unit) * u128::from(super::model::number(part).unwrap_or(0)) / ten;
    super::model::number(whole)?.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}
