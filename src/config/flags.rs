//! The way from the command line of `serve` to a configuration.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::assemble::{Tolerance, assemble, moved};
use super::checked::Config;
use super::diagnostic::Diagnostics;
use super::document::{Section, Sections};
use super::key::{Kind, Part};
use super::machine::Machine;
use super::source::Origin;
use super::value::Fault;

/// A key that a command line gives.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    /// What messages call it: `--workers`, `ADDRESS`.
    pub(crate) label: String,
    /// Its section.
    pub(crate) part: Part,
    /// Its name in TOML.
    pub(crate) key: &'static str,
    /// How its texts become a value.
    pub(crate) kind: Kind,
    /// What was written, as often as it was written.
    pub(crate) texts: Vec<String>,
}

/// A configuration of one service.
pub(crate) fn from_flags(name: &str, given: &[Given], machine: &Machine<'_>) -> Result<Config, Diagnostics> {
    let labels: Vec<String> = given.iter().map(|flag| flag.label.clone()).collect();
    let mut problems = Diagnostics::default();
    let mut part = |part| {
        let origin = Origin::Flags(&labels);
        let mut table = DeTable::new();
        for (index, flag) in given.iter().enumerate().filter(|(_, flag)| flag.part == part) {
            // A span in flags is the number of the flag, so that every fault finds its name.
            match value(flag, index) {
                Ok(value) => {
                    table.insert(Spanned::new(index..index, Cow::Borrowed(flag.key)), value);
                }
                Err(fault) => problems.push(origin.error(fault)),
            }
        }
        Section { origin, header: 0..0, partial: false, table }
    };
    let sections = Sections {
        supervisor: vec![part(Part::Supervisor)],
        log: vec![part(Part::Log)],
        services: vec![(name.to_owned(), part(Part::Service))],
    };
    let config = assemble(&sections, &Tolerance::none(), machine, &mut problems);
    problems.sort();
    match config {
        Some(mut config) if problems.errors() == 0 => {
            // Somebody is looking.
            config.supervisor.strict_start = true;
            // Its default is for a file.
            config
                .supervisor
                .control_socket
                .take_if(|_| given.iter().all(|flag| flag.key != "control_socket"));
            Ok(config)
        }
        _ => Err(problems),
    }
}

/// The texts of a flag as the TOML value that a file would have.
fn value(flag: &Given, index: usize) -> Result<Spanned<DeValue<'_>>, Fault> {
    let span = index..index;
    let string = |text| Spanned::new(span.clone(), DeValue::String(Cow::Borrowed(text)));
    let last = flag.texts.last().map(String::as_str).unwrap_or_default();
    let value = match flag.kind {
        Kind::Text => return Ok(string(last)),
        // As a table it is written as in a file.
        Kind::Boolean if last.trim_start().starts_with('{') => return Ok(any(last, &span)),
        Kind::Number | Kind::Boolean => scalar(last, flag.kind),
        Kind::List => DeValue::Array(flag.texts.iter().map(|text| string(text.as_str())).collect()),
        Kind::Table | Kind::Options => {
            let mut table = DeTable::new();
            for text in &flag.texts {
                let (name, value) = named(text, index, "NAME=VALUE")?;
                let value = match flag.kind {
                    Kind::Options => any(value, &span),
                    _ => string(value),
                };
                table.insert(Spanned::new(span.clone(), Cow::Borrowed(name)), value);
            }
            DeValue::Table(table)
        }
        Kind::TableOrFalse if flag.texts.iter().all(|text| text == "false") => DeValue::Boolean(false),
        Kind::TableOrFalse => {
            let mut table = DeTable::new();
            for text in &flag.texts {
                let (name, value) = named(text, index, "NAME=VALUE, or false alone")?;
                let value = structured(value, &span);
                let name = Spanned::new(span.clone(), Cow::Borrowed(name));
                let value = match table.remove(&name) {
                    Some(before) => joined(before, value),
                    None => value,
                };
                table.insert(name, value);
            }
            DeValue::Table(table)
        }
    };
    Ok(Spanned::new(span.clone(), value))
}

fn named<'a>(text: &'a str, index: usize, right: &str) -> Result<(&'a str, &'a str), Fault> {
    text.split_once('=').ok_or_else(|| {
        Fault::new(index..index, format!("\"{text}\" has no \"=\"")).help(format!("write {right}"))
    })
}

/// A value of TOML; any other text is a text.
fn any<'a>(text: &'a str, span: &Range<usize>) -> Spanned<DeValue<'a>> {
    let value = DeValue::parse(text).map_or(DeValue::String(Cow::Borrowed(text)), Spanned::into_inner);
    moved(&Spanned::new(span.clone(), value), span)
}

/// A boolean, list or table of TOML; any other text is a text, a number, too.
fn structured<'a>(text: &'a str, span: &Range<usize>) -> Spanned<DeValue<'a>> {
    let value = any(text, span);
    let inner = value.get_ref();
    if inner.is_bool() || inner.is_array() || inner.is_table() {
        return value;
    }
    Spanned::new(span.clone(), DeValue::String(Cow::Borrowed(text)))
}

/// One list of both.
fn joined<'a>(before: Spanned<DeValue<'a>>, more: Spanned<DeValue<'a>>) -> Spanned<DeValue<'a>> {
    let span = before.span();
    let entries = [before, more].into_iter().flat_map(|value| match value.into_inner() {
        DeValue::Array(entries) => entries.into_iter().collect(),
        other => vec![Spanned::new(span.clone(), other)],
    });
    Spanned::new(span.clone(), DeValue::Array(entries.collect()))
}

/// A number or boolean; any other text stays a text, for the key's own function to say what is wrong.
fn scalar(text: &str, kind: Kind) -> DeValue<'_> {
    let parsed = DeValue::parse(text).ok().map(Spanned::into_inner).filter(|value| match kind {
        Kind::Number => value.is_integer(),
        _ => value.is_bool(),
    });
    parsed.unwrap_or(DeValue::String(Cow::Borrowed(text)))
}
