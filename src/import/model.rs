//! What every format is read into: services, and what came of each construct.

use std::collections::BTreeMap;

/// How a construct is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// preforkd does the same.
    Exact,
    /// It does nearly the same; the note says how it differs.
    Near,
    /// It is left out; the note says why that does no harm, or whom it leaves without protection.
    Dropped,
    /// Its service cannot be served as it is; the note says what to do instead.
    Refused,
}

impl Takeover {
    /// As the output has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Takeover::Exact => "exact",
            Takeover::Near => "near",
            Takeover::Dropped => "dropped",
            Takeover::Refused => "refused",
        }
    }
}

/// A construct and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) verdict: Takeover,
    /// As it is written in the original.
    pub(crate) construct: String,
    /// How it differs, why it does not matter, what to do instead; empty if there is nothing to say.
    pub(crate) why: String,
    /// The key that stands for it now.
    pub(crate) key: Option<&'static str>,
    /// A protection is lost.
    pub(crate) is_loss: bool,
}

/// A service as it will be printed.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImportedService {
    pub(crate) name: String,
    /// The file and line of the original.
    pub(crate) place: String,
    /// Why it was not served in the original.
    pub(crate) off: Option<String>,
    /// Where it listens.
    pub(crate) listen: Vec<String>,
    /// The other keys, each with its value in TOML.
    pub(crate) keys: BTreeMap<&'static str, String>,
    /// The entries of those that are tables, in the order in which they came.
    tables: BTreeMap<&'static str, Vec<(String, String)>>,
    pub(crate) notes: Vec<Note>,
}

impl ImportedService {
    /// Without anything yet.
    pub(crate) fn new(name: &str, place: String) -> Self {
        ImportedService { name: name.to_owned(), place, ..ImportedService::default() }
    }

    fn note(&mut self, verdict: Takeover, construct: impl Into<String>, why: impl Into<String>) -> &mut Note {
        self.notes.push(Note {
            verdict,
            construct: construct.into(),
            why: why.into(),
            key: None,
            is_loss: false,
        });
        let last = self.notes.len() - 1;
        &mut self.notes[last]
    }

    /// A key that does the same as the construct.
    pub(crate) fn exact(
        &mut self,
        construct: impl Into<String>,
        key: &'static str,
        value: impl Into<String>,
    ) {
        self.keys.insert(key, value.into());
        self.note(Takeover::Exact, construct, "").key = Some(key);
    }

    /// Entries of a key that is a table, each in place of one of its name: they do the same as the construct.
    pub(crate) fn entries<'e>(
        &mut self,
        construct: impl Into<String>,
        key: &'static str,
        entries: impl IntoIterator<Item = (&'e str, String)>,
    ) {
        let all = self.tables.entry(key).or_default();
        for (name, value) in entries {
            match all.iter_mut().find(|(known, _)| known == name) {
                Some((_, old)) => *old = value,
                None => all.push((name.to_owned(), value)),
            }
        }
        let whole = table(all.iter().map(|(name, value)| (name.as_str(), value.clone())));
        self.exact(construct, key, whole);
    }

    /// What was written before has no effect any more.
    pub(crate) fn forget(&mut self, key: &'static str) {
        self.tables.remove(key);
        self.keys.remove(key);
        self.notes.retain(|note| note.key != Some(key));
    }

    /// A key that does nearly the same.
    pub(crate) fn near(
        &mut self,
        construct: impl Into<String>,
        key: &'static str,
        value: impl Into<String>,
        why: impl Into<String>,
    ) {
        self.keys.insert(key, value.into());
        self.note(Takeover::Near, construct, why).key = Some(key);
    }

    /// A note about a key that is set already, or `listen`.
    pub(crate) fn about(
        &mut self,
        key: &'static str,
        verdict: Takeover,
        construct: impl Into<String>,
        why: impl Into<String>,
    ) {
        self.note(verdict, construct, why).key = Some(key);
    }

    /// What holds in preforkd without a key.
    pub(crate) fn same(&mut self, construct: impl Into<String>, why: impl Into<String>) {
        self.note(Takeover::Exact, construct, why);
    }

    /// What is nearly so without a key.
    pub(crate) fn like(&mut self, construct: impl Into<String>, why: impl Into<String>) {
        self.note(Takeover::Near, construct, why);
    }

    pub(crate) fn dropped(&mut self, construct: impl Into<String>, why: impl Into<String>) {
        self.note(Takeover::Dropped, construct, why);
    }

    pub(crate) fn refused(&mut self, construct: impl Into<String>, instead: impl Into<String>) {
        self.note(Takeover::Refused, construct, instead);
    }

    /// A protection that is not there any more, though the service is served.
    pub(crate) fn lost(&mut self, construct: impl Into<String>, why: impl Into<String>) {
        self.note(Takeover::Dropped, construct, why).is_loss = true;
    }

    /// A protection without which the service is not served.
    pub(crate) fn guarded(&mut self, construct: impl Into<String>, instead: impl Into<String>) {
        self.note(Takeover::Refused, construct, instead).is_loss = true;
    }

    /// Whether this construct has a verdict.
    pub(crate) fn names(&self, construct: &str) -> bool {
        self.notes.iter().any(|note| note.construct == construct)
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.notes.iter().any(|note| note.verdict == Takeover::Refused)
    }

    /// Whether its program gets the listening socket.
    pub(crate) fn waits(&self) -> bool {
        self.keys.contains_key("wait")
    }
}

/// All that came of the files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Imported {
    pub(crate) services: Vec<ImportedService>,
    /// What belongs to no service, with its place.
    pub(crate) notes: Vec<(String, Note)>,
}

impl Imported {
    /// What came of other files, after this.
    pub(crate) fn extend(&mut self, other: Imported) {
        self.services.extend(other.services);
        self.notes.extend(other.notes);
    }

    pub(crate) fn add_note(
        &mut self,
        place: &str,
        verdict: Takeover,
        construct: &str,
        why: &str,
        is_loss: bool,
    ) {
        let (construct, why) = (construct.to_owned(), why.to_owned());
        self.notes.push((place.to_owned(), Note { verdict, construct, why, key: None, is_loss }));
    }
}

/// A string of TOML.
pub(crate) fn quoted(text: &str) -> String {
    let mut result = String::with_capacity(text.len() + 2);
    result.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => result.extend(['\\', character]),
            '\n' => result.push_str("\\n"),
            '\t' => result.push_str("\\t"),
            _ if crate::journal::is_special(character) => {
                result.push_str(&format!("\\U{:08X}", u32::from(character)));
            }
            _ => result.push(character),
        }
    }
    result.push('"');
    result
}

/// An array of strings of TOML.
pub(crate) fn list<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| quoted(text.as_ref())).collect();
    format!("[{}]", texts.join(", "))
}

/// An inline table of TOML; the values are TOML already.
pub(crate) fn table<'a>(entries: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let is_bare = |key: &str| {
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    let entries: Vec<String> = entries
        .into_iter()
        .map(|(key, value)| match is_bare(key) {
            true => format!("{key} = {value}"),
            false => format!("{} = {value}", quoted(key)),
        })
        .collect();
    format!("{{ {} }}", entries.join(", "))
}

/// A whole number that is written with digits only.
pub(crate) fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}
