//! A list of callers from the configuration, each with the place where it was written.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::answers::{Answers, ListDraft};
use super::table::PrefixTable;
use super::{Caller, LocalUser};

/// A caller as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed<'a> {
    /// It.
    pub(crate) caller: Caller,
    /// Where.
    pub(crate) place: WrittenAt<'a>,
}

/// Where a caller was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrittenAt<'a> {
    /// The file, or the flag of a command line.
    pub(crate) name: &'a str,
    /// The line in the file, from 1; a flag has none.
    pub(crate) line: Option<u32>,
}

/// Callers. Of those that are an address the longest prefix decides, of those that are a user he before his groups. Where
/// they were written is no part of what they do: two lists are equal if their callers are, so that a line that moves makes no
/// new generation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub(crate) struct Callers {
    written: Written,
    table: PrefixTable,
}

/// What a list is written as in a worker's plan; the table is made again from it, so that it cannot be a wrong one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Written {
    names: Vec<String>,
    entries: Vec<WrittenCaller>,
}

/// The caller, the number of its file's name, and the line; 0 for none.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct WrittenCaller(Caller, u32, u32);

impl Callers {
    /// The list of these; of two equal callers the first counts.
    pub(crate) fn new<'a>(listed: impl IntoIterator<Item = Listed<'a>>) -> Self {
        let mut written = Written::default();
        for Listed { caller, place } in listed {
            // There are as many names as files with callers of one service: one, as a rule.
            let known = written.names.iter().position(|name| name == place.name);
            let name = known.unwrap_or_else(|| {
                written.names.push(place.name.to_owned());
                written.names.len() - 1
            });
            let name = u32::try_from(name).unwrap_or(u32::MAX);
            written.entries.push(WrittenCaller(caller, name, place.line.unwrap_or(0)));
        }
        written.into()
    }

    /// The longest prefix that has the address, and its place in the list.
    pub(crate) fn find(&self, address: IpAddr) -> Option<(usize, Listed<'_>)> {
        let index = self.table.find(address)?;
        Some((index, self.get(index)?))
    }

    /// What decides for a user, and its place in the list.
    pub(crate) fn find_user(&self, user: &LocalUser<'_>) -> Option<(usize, Listed<'_>)> {
        let first =
            |is_it: &dyn Fn(Caller) -> bool| self.written.entries.iter().position(|entry| is_it(entry.0));
        let index = first(&|caller| caller == Caller::User(user.uid))
            .or_else(|| first(&|caller| matches!(caller, Caller::Group(gid) if user.groups.contains(&gid))))
            .or_else(|| first(&|caller| caller == Caller::Unix))?;
        Some((index, self.get(index)?))
    }

    /// Whether somebody is in the list, to be asked often.
    pub(super) fn answers(&self) -> ListDraft {
        self.answers_by(|place| place.is_some())
    }

    /// Yes or no for everybody, by the place in the list of what decides for him.
    pub(super) fn answers_by(&self, says: impl Fn(Option<usize>) -> bool) -> ListDraft {
        let (mut users, mut groups) = (Answers::default(), Answers::default());
        let mut others = says(None);
        for (place, entry) in self.written.entries.iter().enumerate() {
            match entry.0 {
                Caller::Prefix(_) => {}
                Caller::User(uid) => users.add(uid, says(Some(place))),
                Caller::Group(gid) => groups.add(gid, says(Some(place))),
                Caller::Unix => others = says(Some(place)),
            }
        }
        let (v4, v6) = self.table.changes(says);
        ListDraft { v4, v6, users, groups, others }
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
        let WrittenCaller(caller, name, line) = *self.written.entries.get(index)?;
        let name = self.written.names.get(usize::try_from(name).ok()?)?;
        Some(Listed { caller, place: WrittenAt { name, line: (line > 0).then_some(line) } })
    }
}

impl From<Written> for Callers {
    fn from(written: Written) -> Self {
        let table = PrefixTable::new(written.entries.iter().map(|entry| entry.0.prefix()));
        Callers { written, table }
    }
}

impl From<Callers> for Written {
    fn from(prefixes: Callers) -> Self {
        prefixes.written
    }
}

impl PartialEq for Callers {
    fn eq(&self, other: &Self) -> bool {
        let callers = |list: &Self| list.written.entries.iter().map(|entry| entry.0).collect::<Vec<_>>();
        callers(self) == callers(other)
    }
}

impl Eq for Callers {}

impl fmt::Display for WrittenAt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.name),
            None => f.write_str(self.name),
        }
    }
}
