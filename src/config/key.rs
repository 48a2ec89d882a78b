//! What a key is.

use super::value::{Applied, TomlValue};

/// A key of a section that is collected in a `D`.
pub(crate) struct Key<D: 'static> {
    /// In TOML.
    pub(crate) name: &'static str,
    /// The flag of `serve`, without its dashes; `None` for what is an argument there, or not supported yet.
    pub(crate) flag: Option<&'static str>,
    /// How the text of the flag becomes a TOML value.
    pub(crate) kind: Kind,
    /// What stands for the value in a usage text.
    pub(crate) placeholder: &'static str,
    /// What holds without it, in TOML; `None` if nothing does, or what `doc` says.
    pub(crate) default: Option<&'static str>,
    /// A right value, in TOML.
    pub(crate) example: &'static str,
    /// What it means, in one sentence without its full stop.
    pub(crate) doc: &'static str,
    /// What takes its value. `None` if the key is in the documentation, and what it promises does not exist yet: it is
    /// refused, because whoever writes it relies on it.
    pub(crate) decode: Option<Decoder<D>>,
}

/// What kind of TOML value a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string; the flag's text as it is.
    Text,
    /// An integer.
    Number,
    /// `true` or `false`.
    Boolean,
    /// An array of strings; the flag may be given several times.
    List,
    /// A table of texts; the flag is `NAME=VALUE` and may be given several times.
    Table,
    /// A table of any values, or `false`; the flag is as before, a name that comes again has a list, and a value may be written as
    /// in TOML.
    TableOrFalse,
    /// A table of any values; in the flag a value that is none of TOML's is a text.
    Options,
}

/// Decodes a value and keeps it.
pub(crate) type Decoder<D> = fn(&mut D, &TomlValue<'_>) -> Applied;

/// The section that a flag belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// `[supervisor]`.
    Supervisor,
    /// `[log]`.
    Log,
    /// `[service.NAME]`.
    Service,
}
