//! Files cut into the sections that they define.

use std::borrow::Cow;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostics;
use super::source::{ConfigFile, Origin, syntax};
use super::value::{Fault, Faults};

/// One table of keys, and where it came from.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    /// What its spans refer to.
    pub(crate) origin: Origin<'a>,
    /// The header, for what is missing in it.
    pub(crate) header: Range<usize>,
    /// A syntax error in the same file may have swallowed keys, so nothing can be said to be missing.
    pub(crate) partial: bool,
    /// The keys.
    pub(crate) table: DeTable<'a>,
}

impl Section<'_> {
    /// Where the key is, even if its value is wrong.
    pub(crate) fn span(&self, wanted: &str) -> Option<Range<usize>> {
        self.table.iter().find(|(key, _)| key.get_ref() == wanted).map(|(key, _)| key.span())
    }
}

/// A file as a tree.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    origin: Origin<'a>,
    root: DeTable<'a>,
    partial: bool,
}

/// All sections of all files.
#[derive(Debug, Default)]
pub(crate) struct Sections<'a> {
    /// `[supervisor]`; a later one overrides the keys of an earlier one.
    pub(crate) supervisor: Vec<Section<'a>>,
    /// `[log]`, likewise.
    pub(crate) log: Vec<Section<'a>>,
    /// `[service.NAME]`, each name once.
    pub(crate) services: Vec<(String, Section<'a>)>,
}

/// The file as a tree, as far as its syntax lets one make out.
pub(crate) fn parse<'a>(source: &'a ConfigFile, problems: &mut Diagnostics) -> Tree<'a> {
    let origin = Origin::File(source);
    let (root, errors) = DeTable::parse_recoverable(&source.whole);
    let faults: Faults = source.mended.iter().cloned().chain(errors.iter().map(syntax)).collect();
    let partial = !faults.is_empty();
    faults.into_iter().for_each(|fault| problems.push(origin.error(fault)));
    Tree { origin, root: root.into_inner(), partial }
}

/// Sorts the tables of all files into sections; `is_of_service` knows the keys of a service.
pub(crate) fn sections<'a>(
    trees: Vec<Tree<'a>>,
    is_of_service: &dyn Fn(&str) -> bool,
    problems: &mut Diagnostics,
) -> Sections<'a> {
    let mut sections = Sections::default();
    for Tree { origin, root, partial } in trees {
        for (key, value) in root {
            let header = key.span();
            let section = |table| Section { origin, header: header.clone(), partial, table };
            match (key.get_ref().as_ref(), value.into_inner()) {
                ("supervisor", DeValue::Table(table)) => sections.supervisor.push(section(table)),
                ("log", DeValue::Table(table)) => sections.log.push(section(table)),
                ("service", DeValue::Table(table)) => services(section(table), &mut sections, problems),
                (name, _) => problems.push(origin.error(unknown_section(name, is_of_service(name), header))),
            }
        }
    }
    sections
}

fn unknown_section(name: &str, is_of_service: bool, span: Range<usize>) -> Fault {
    const SECTIONS: &str = "the sections are [supervisor], [log] and [service.NAME]";
    let fault = match name {
        "supervisor" | "log" => {
            return Fault::new(span, format!("{name} is a section")).help(format!("write [{name}]"));
        }
        "service" => return nameless(span),
        _ => Fault::new(span, format!("unknown section or key \"{name}\"")),
    };
    fault.help(if is_of_service {
        format!("\"{name}\" belongs into a [service.NAME] section")
    } else {
        SECTIONS.to_owned()
    })
}

fn nameless(span: Range<usize>) -> Fault {
    Fault::new(span, "a service needs a name").help("write [service.NAME], as in [service.git]")
}

/// The sections of `[service]`, which itself holds nothing else.
fn services<'a>(parent: Section<'a>, sections: &mut Sections<'a>, problems: &mut Diagnostics) {
    let Section { origin, partial, table, .. } = parent;
    for (key, value) in table {
        let header = key.span();
        let DeValue::Table(table) = value.into_inner() else {
            problems.push(origin.error(nameless(header)));
            continue;
        };
        let name = Cow::into_owned(key.into_inner());
        if let Err(why) = check_name(&name) {
            problems.push(origin.error(Fault::new(header.clone(), why).help(NAME_RULE)));
        }
        if let Some((_, first)) = sections.services.iter().find(|(other, _)| *other == name) {
            let first = first.origin.place(&first.header);
            let fault = Fault::new(header, format!("service \"{name}\" is defined a second time"))
                .note(format!("first defined at {first}"))
                .help("remove one of the two, or give it another name");
            problems.push(origin.error(fault));
            continue;
        }
        sections.services.push((name, Section { origin, header, partial, table }));
    }
}

const NAME_RULE: &str =
    "a name has letters, digits, \"-\", \"_\" and \".\", at most 64, and starts with a letter or digit";

pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.len() <= 64 && name.chars().all(allowed)
    {
        Ok(())
    } else {
        Err(format!("\"{name}\" cannot be the name of a service"))
    }
}

/// A valid service name that looks like `text`.
pub(crate) fn make_name(text: &str) -> String {
    let tame = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' }
    };
    let name: String = text.chars().map(tame).skip_while(|c| !c.is_ascii_alphanumeric()).take(64).collect();
    if name.is_empty() { "service".to_owned() } else { name }
}
