//! A list of prefixes from the configuration, each with the place where it was written.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Prefix;
use super::prefix_set::ListDraft;
use super::table::PrefixTable;

/// A prefix as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed<'a> {
    /// It.
    pub(crate) prefix: Prefix,
    /// Where.
    pub(crate) place: WrittenAt<'a>,
}

/// Where a prefix was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrittenAt<'a> {
    /// The file, or the flag of a command line.
    pub(crate) name: &'a str,
    /// The line in the file, from 1; a flag has none.
    pub(crate) line: Option<u32>,
}

/// Prefixes with longest-prefix match. Where they were written is no part of what they do: two lists are equal if their
/// prefixes are, so that a line that moves makes no new generation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub(crate) struct Prefixes {
    written: Written,
    table: PrefixTable,
}

/// What a list is written as in a worker's plan; the table is made again from it, so that it cannot be a wrong one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Written {
    names: Vec<String>,
    entries: Vec<WrittenPrefix>,
}

/// The prefix, the number of its file's name, and the line; 0 for none.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct WrittenPrefix(Prefix, u32, u32);

impl Prefixes {
    /// The list of these; of two equal prefixes the first counts.
    pub(crate) fn new<'a>(listed: impl IntoIterator<Item = Listed<'a>>) -> Self {
        let mut written = Written::default();
        for Listed { prefix, place } in listed {
            // There are as many names as files with prefixes of one service: one, as a rule.
            let known = written.names.iter().position(|name| name == place.name);
            let name = known.unwrap_or_else(|| {
                written.names.push(place.name.to_owned());
                written.names.len() - 1
            });
            let name = u32::try_from(name).unwrap_or(u32::MAX);
            written.entries.push(WrittenPrefix(prefix, name, place.line.unwrap_or(0)));
        }
        written.into()
    }

    /// The longest prefix that has the address, and its place in the list.
    pub(crate) fn find(&self, address: IpAddr) -> Option<(usize, Listed<'_>)> {
        let index = self.table.find(address)?;
        Some((index, self.get(index)?))
    }

    /// Whether an address has one of the prefixes, to be asked often.
    pub(super) fn answers(&self) -> ListDraft {
        self.answers_by(|place| place.is_some())
    }

    /// Yes or no for every address, by the place in the list of the longest prefix that has it.
    pub(super) fn answers_by(&self, says: impl Fn(Option<usize>) -> bool) -> ListDraft {
        self.table.answers(says)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.written.entries.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.written.entries.len()
    }

    fn get(&self, index: usize) -> Option<Listed<'_>> {
        let WrittenPrefix(prefix, name, line) = *self.written.entries.get(index)?;
        let name = self.written.names.get(usize::try_from(name).ok()?)?;
        Some(Listed { prefix, place: WrittenAt { name, line: (line > 0).then_some(line) } })
    }
}

impl From<Written> for Prefixes {
    fn from(written: Written) -> Self {
        let table = PrefixTable::new(written.entries.iter().map(|entry| entry.0));
        Prefixes { written, table }
    }
}

impl From<Prefixes> for Written {
    fn from(prefixes: Prefixes) -> Self {
        prefixes.written
    }
}

impl PartialEq for Prefixes {
    fn eq(&self, other: &Self) -> bool {
        let prefixes = |list: &Self| list.written.entries.iter().map(|entry| entry.0).collect::<Vec<_>>();
        prefixes(self) == prefixes(other)
    }
}

impl Eq for Prefixes {}

impl fmt::Display for WrittenAt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.name),
            None => f.write_str(self.name),
        }
    }
}
