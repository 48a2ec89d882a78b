//! The files of systemd: sections, assignments, continued lines, drop-ins, words of a command line.

use std::collections::BTreeMap;

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
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            let mut whole = trimmed.to_owned();
            while let Some(begun) = whole.strip_suffix('\\') {
                let begun = begun.to_owned();
                // A comment does not end what is continued.
                let next = lines.by_ref().find(|next| !next.trim_start().starts_with(['#', ';']));
                match next {
                    Some(next) if begun.len() < 65_536 => whole = format!("{begun} {}", next.trim()),
                    _ => whole = begun,
                }
            }
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

/// What systemd takes as yes and no.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

/// The words of a line, with its quotes and escapes taken away; `None` if a quote is not closed.
pub(crate) fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', _) => {
                let escaped = match characters.next()? {
                    'n' => '\n',
                    't' => '\t',
                    's' => ' ',
                    other => other,
                };
                word.get_or_insert_default().push(escaped);
            }
            (end, Some(begin)) if end == begin => quote = None,
            (_, Some(_)) => word.get_or_insert_default().push(character),
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (space, None) if space.is_whitespace() => words.extend(word.take()),
            (_, None) => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// Seconds of a time span, as "2min 30s"; `None` if it is none, `Some(None)` for infinity.
pub(crate) fn span(value: &str) -> Option<Option<u64>> {
    if value == "infinity" {
        return Some(None);
    }
    let mut milliseconds: u64 = 0;
    let mut rest = value.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let amount = super::model::number(rest.get(..digits)?)?;
        rest = rest.get(digits..)?.trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match rest.get(..letters)? {
            "" | "s" | "sec" | "second" | "seconds" => 1000,
            "ms" | "msec" => 1,
            "m" | "min" | "minute" | "minutes" => 60_000,
            "h" | "hr" | "hour" | "hours" => 3_600_000,
            "d" | "day" | "days" => 86_400_000,
            _ => return None,
        };
        milliseconds = milliseconds.checked_add(amount.checked_mul(unit)?)?;
        rest = rest.get(letters..)?.trim_start();
    }
    Some(Some(milliseconds.div_ceil(1000)))
}
