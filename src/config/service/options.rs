//! `options`: a handler's own section, in the handler's own types.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::checked::{Job, Sandbox, ServiceConfig};
use crate::config::diagnostic::nearest;
use crate::config::document::Section;
use crate::config::machine::Machine;
use crate::config::value::{Fault, Faults, TomlValue, decode, plain};
use crate::handler::{AnyHandler, Application};
use crate::shared::Declared;

/// The options of a service as TOML, its handler having read them without a complaint; empty if there are none.
pub(super) fn of(
    name: &str,
    section: &Section<'_>,
    job: &Job,
    machine: &Machine<'_>,
) -> Result<String, Faults> {
    let written = section.table.iter().find(|(key, _)| key.get_ref() == "options");
    let handler = match job {
        Job::Handler(handler) => machine.application.find(handler),
        Job::Exec(_) => None,
    };
    let Some(handler) = handler else {
        return match written {
            Some((key, _)) => {
                let fault = Fault::new(
                    key.span(),
                    "options can do nothing: they are a handler's, and this is a program",
                );
                Err(fault
                    .help(
                        "remove options; a program gets its arguments by exec, and variables by environment",
                    )
                    .into())
            }
            None => Ok(String::new()),
        };
    };
    let (at, table) = match written.map(|(key, value)| (key.span(), value.get_ref())) {
        Some((at, DeValue::Table(table))) => (at, table.clone()),
        // It has been said that it must be one.
        Some(_) => return Ok(String::new()),
        None if section.partial => return Ok(String::new()),
        None => (section.header.clone(), DeTable::new()),
    };
    let faults = check(handler, &format!("[service.{name}.options]"), at.clone(), table.clone());
    if !faults.is_empty() {
        return Err(faults);
    }
    if table.is_empty() {
        return Ok(String::new());
    }
    let table: toml::Table = decode(&Spanned::new(at.clone(), DeValue::Table(table)))?;
    toml::to_string(&table)
        .map_err(|error| Fault::new(at, format!("the options cannot be handed to a worker: {error}")).into())
}

/// Whether the handler for this job starts threads.
pub(super) fn starts_threads(job: Option<&Job>, application: &Application) -> bool {
    let Some(Job::Handler(name)) = job else { return false };
    application.find(name).is_some_and(AnyHandler::starts_threads)
}

/// What the processes of the handler for this job share.
pub(super) fn shared(
    job: Option<&Job>,
    sandbox: Option<&Sandbox>,
    section: &Section<'_>,
    application: &Application,
) -> Result<Declared, Fault> {
    let Some(Job::Handler(name)) = job else { return Ok(Declared::NOTHING) };
    let declared = application.declared(name).map_err(|why| {
        Fault::new(section.header.clone(), format!("the handler \"{name}\" cannot share anything: {why}"))
            .help("the program has to declare it otherwise")
    })?;
    if !declared.is_empty() && sandbox.is_some_and(|sandbox| sandbox.pid_namespace) {
        let at = section.table.iter().find(|(key, _)| key.get_ref() == "sandbox");
        let at = at.map_or_else(|| section.header.clone(), |(key, _)| key.span());
        let message = format!(
            "pid_namespace cannot be where connections share state, as those of \"{name}\" do: their locks know who has them by the \
             numbers of processes"
        );
        return Err(Fault::new(at, message).help("remove pid_namespace"));
    }
    Ok(declared.clone())
}

/// Whether the service, as another version of this program has checked it, can be served by this one.
pub(crate) fn can_serve(service: &ServiceConfig, application: &Application) -> Result<(), String> {
    let Job::Handler(name) = &service.job else { return Ok(()) };
    let handler = application.find(name).ok_or_else(|| format!("it has no handler \"{name}\""))?;
    if application.declared(name)? != &service.shared {
        return Err(format!(
            "what connections of \"{name}\" share is declared otherwise there; a restart is needed, and begins with new memory"
        ));
    }
    let table = DeTable::parse(&service.options).map_err(|error| error.message().to_owned())?;
    let at = table.span();
    match check(handler, &format!("[service.{}.options]", service.name), at, table.into_inner()).first() {
        Some(fault) => Err(fault.message.clone()),
        None => Ok(()),
    }
}

/// Everything that is wrong with the table, as far as one key does not hide another's fault.
fn check(handler: &dyn AnyHandler, header: &str, at: Range<usize>, mut table: DeTable<'_>) -> Faults {
    let mut faults = Faults::new();
    if let Some(known) = handler.known_options() {
        for (key, _) in &table {
            if !known.contains(&key.get_ref().as_ref()) {
                faults.push(unknown(key.get_ref(), key.span(), known, header));
            }
        }
        table = table.into_iter().filter(|(key, _)| known.contains(&key.get_ref().as_ref())).collect();
    }
    // serde stops at the first fault: with what it found taken out, it finds the next.
    let mut taken_out: Vec<String> = Vec::new();
    loop {
        let mut ignored = Vec::new();
        let value = Spanned::new(at.clone(), DeValue::Table(table.clone()));
        let Err(error) = handler.try_options(value, &mut |path| ignored.push(path)) else {
            faults.extend(ignored.into_iter().map(|path| nobody_reads(&path, &table, &at, header)));
            break;
        };
        let (message, help) = match error.message().split_once('\n') {
            Some((message, help)) => (message, Some(help.to_owned())),
            None => (error.message(), None),
        };
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        if missing.is_some_and(|key| taken_out.iter().any(|taken| taken == key)) {
            break;
        }
        let of_all = missing.is_some() && error.span().is_none_or(|span| span == at);
        let culprit = || {
            let key = match at.is_empty() {
                // On a command line they all stand at one place.
                true => table.iter().map(|(key, _)| key.get_ref().clone().into_owned()).find(|key| {
                    let without = without(&table, key, &at);
                    handler.try_options(without, &mut |_| ()).map_err(|error| error.message().to_owned())
                        != Err(error.message().to_owned())
                }),
                false => error.span().and_then(|span| key_at(&table, &span)),
            };
            error.span().zip(key)
        };
        let culprit = if of_all { None } else { culprit() };
        let Some((span, key)) = culprit else {
            let fault = match missing {
                Some(key) => Fault::new(at, format!("\"{key}\" is missing in {header}"))
                    .help(format!("add {key} = … there")),
                None => Fault { help, ..Fault::new(at, format!("{header}: {}", plain(message))) },
            };
            faults.push(fault);
            break;
        };
        let message = match missing {
            Some(inner) => format!("\"{inner}\" is missing in \"{key}\""),
            None => format!("\"{key}\": {}", plain(message)),
        };
        faults.push(Fault { help, ..Fault::new(span, message) });
        table = table.into_iter().filter(|(other, _)| *other.get_ref() != key).collect();
        taken_out.push(key);
    }
    faults.dedup();
    faults
}

fn unknown(name: &str, span: Range<usize>, known: &[&str], header: &str) -> Fault {
    let help = match (known, nearest(name, known.iter().copied())) {
        ([], _) => "this handler has no options".to_owned(),
        (_, Some(near)) => format!("did you mean \"{near}\"?"),
        (_, None) => format!("the keys of {header} are {}", known.join(", ")),
    };
    Fault::new(span, format!("unknown key \"{name}\" in {header}")).help(help)
}

fn without<'a>(table: &DeTable<'a>, key: &str, at: &Range<usize>) -> TomlValue<'a> {
    let others = table.clone().into_iter().filter(|(other, _)| other.get_ref() != key);
    Spanned::new(at.clone(), DeValue::Table(others.collect()))
}

/// A key further in that nobody reads.
fn nobody_reads(path: &[String], table: &DeTable<'_>, at: &Range<usize>, header: &str) -> Fault {
    let span = span_of(path, table).unwrap_or_else(|| at.clone());
    let name = path.last().map(String::as_str).unwrap_or_default();
    let fault = Fault::new(span, format!("unknown key \"{name}\" in {header}: {}", path.join(".")));
    fault.help("remove it")
}

/// Where the key is that such a path leads to.
fn span_of(path: &[String], table: &DeTable<'_>) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    if rest.is_empty() { Some(key.span()) } else { span_in(rest, value) }
}

fn span_in(path: &[String], value: &TomlValue<'_>) -> Option<Range<usize>> {
    match value.get_ref() {
        DeValue::Table(table) => span_of(path, table),
        DeValue::Array(entries) => {
            let (index, rest) = path.split_first()?;
            span_in(rest, entries.get(index.parse::<usize>().ok()?)?)
        }
        _ => None,
    }
}

/// The key whose value, or which itself, has something at this place.
fn key_at(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let found = table.iter().find(|(key, value)| holds(key.span()) || holds(value.span()));
    found.map(|(key, _)| key.get_ref().clone().into_owned())
}
