//! The keys of the configuration, from their table.

use std::fmt::Write;

use super::markup::{bold, emphasis, plain, sentence};
use crate::config::key::{Key, Kind};

/// Every key of a section that there is: what it means, what it may be, its default and an example.
pub(super) fn list<D>(keys: &[Key<D>]) -> String {
    let mut text = String::new();
    for key in keys.iter().filter(|key| key.decode.is_some()) {
        let default = key.default.map(|value| format!(" Default: {}.", bold(value))).unwrap_or_default();
        let flag = key.flag.map(|flag| format!("++\nWith *serve*: {}", bold(&format!("--{flag}"))));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} = {}\n\t{} {}.{default}++\nFor example: {}{}\n",
            bold(key.name),
            emphasis(key.placeholder),
            sentence(key.doc),
            kind(key.kind),
            bold(&format!("{} = {}", key.name, key.example)),
            flag.unwrap_or_default()
        );
    }
    text
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "A string",
        Kind::Number => "A whole number",
        Kind::Boolean => "*true* or *false*",
        Kind::List => "A string, or an array of strings",
        Kind::Table | Kind::Options => "A table",
        Kind::TableOrFalse => "A table, or *false*",
    }
}

/// The keys that this version refuses.
pub(super) fn to_come<D>(keys: &[Key<D>]) -> String {
    let names = keys.iter().filter(|key| key.decode.is_none()).map(|key| plain(key.name));
    names.collect::<Vec<_>>().join(", ")
}
