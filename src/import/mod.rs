//! Other super-servers' configurations as one of preforkd: inetd.conf, xinetd, pairs of systemd's units, command lines of tcpserver,
//! tcpsvd, s6 and socat.
//!
//! Each format has a parser of its own, from text to [`model`]; [`writer`] makes TOML of that. What is read is anybody's: all sizes have
//! bounds, and includes an end.

mod client_rules;
mod files;
mod hosts_access;
mod inetd;
mod model;
mod names;
mod place;
mod script;
mod socat;
mod systemd;
#[cfg(test)]
mod tests;
mod ucspi;
mod unit_file;
mod writer;
mod xinetd;

use std::collections::BTreeSet;
use std::path::Path;

use crate::config::{self, Accounts, Address, CredentialStore, Machine, Tolerance, check_name, make_name};
use crate::handler::Application;

pub(crate) use files::{FORMATS, ImportError, ImportRequest, SourceFormat};
pub(crate) use model::{Imported, ImportedService};
pub(crate) use writer::{Style, is_active, line, tame, write};

/// More services than anybody has.
const MOST_SERVICES: usize = 5000;

/// All that the paths say. A service that preforkd could not serve as it is printed is refused.
pub(crate) fn import(
    request: &ImportRequest<'_>,
    style: Style<'_>,
    application: &Application,
) -> Result<Imported, ImportError> {
    let mut imported = files::read(request)?;
    finish(&mut imported, style, application);
    Ok(imported)
}

/// Gives each service a name of its own, and refuses those that would be errors of the configuration.
fn finish(imported: &mut Imported, style: Style<'_>, application: &Application) {
    imported.services.truncate(MOST_SERVICES);
    let mut names = BTreeSet::new();
    let mut taken: Vec<(String, String)> = Vec::new();
    for service in &mut imported.services {
        name(service, &mut names);
        valid(service, application);
        if !is_active(service, style) {
            continue;
        }
        let clash = service.listen.iter().find_map(|address| {
            let other = taken.iter().find(|(other, _)| clash(other, address))?;
            Some((address.clone(), other.clone()))
        });
        match clash {
            Some((address, (other, owner))) => {
                let instead = format!(
                    "service {owner} has {other} already; give one of them another port, or remove it"
                );
                service.refused(address, instead);
            }
            None => {
                taken.extend(service.listen.iter().map(|address| (address.clone(), service.name.clone())));
            }
        }
    }
}

fn clash(one: &str, other: &str) -> bool {
    match (one.parse::<Address>(), other.parse::<Address>()) {
        (Ok(one), Ok(other)) => config::clash(&one, &other),
        _ => one == other,
    }
}

/// A name that is allowed, and nobody else's.
fn name(service: &mut ImportedService, names: &mut BTreeSet<String>) {
    let wanted = match check_name(&service.name) {
        Ok(()) => service.name.clone(),
        Err(_) => make_name(&service.name),
    };
    let mut name = wanted.clone();
    let mut number = 2;
    if names.contains(&name) && service.listen.iter().any(|address| address.starts_with("udp:")) {
        name = format!("{}-udp", wanted.chars().take(58).collect::<String>());
    }
    while !names.insert(name.clone()) {
        let start: String = wanted.chars().take(58).collect();
        name = format!("{start}-{number}");
        number += 1;
    }
    service.name = name;
}

/// Whether this version has `wait`.
fn knows_wait() -> bool {
    config::keys::SERVICE.iter().any(|key| key.name == "wait" && key.decode.is_some())
}

/// A machine of which nothing is known: whether programs and users exist is for check to say.
fn strange(application: &Application) -> Machine<'_> {
    let none = Path::new("/proc/self/none");
    let accounts = Accounts { passwd: none.into(), group: none.into(), getent: None };
    let credentials = CredentialStore::of_environment();
    Machine { accounts, credentials, ..Machine::with(application) }
}

/// Refuses what preforkd itself would.
fn valid(service: &mut ImportedService, application: &Application) {
    if service.is_refused() {
        return;
    }
    if service.keys.values().chain(&service.listen).any(|value| value.contains('\u{fffd}')) {
        service.refused("bytes that are not UTF-8", "TOML is UTF-8; give the file another name");
        return;
    }
    let program = service.keys.get("exec").and_then(|exec| exec.strip_prefix("[\"")?.split('"').next());
    if let Some(program) =
        program.filter(|program| program.contains('/') && !program.starts_with('/')).map(str::to_owned)
    {
        service.refused(program, place::FROM_WHERE);
        return;
    }
    if service.waits() && !knows_wait() {
        return;
    }
    let imported = Imported { services: vec![service.clone()], ..Imported::default() };
    let text = write(&imported, Style { program: "", sources: "", with_off: true });
    if let Err(problems) = config::load_text(
        Path::new(&service.place),
        text.as_bytes(),
        &Tolerance::OfAny,
        &strange(application),
    ) {
        // Of the machine that it is imported on nothing is known; with other faults, what it lacks is said, too.
        let errors = problems
            .iter()
            .filter(|problem| problem.severity == config::Severity::Error && !problem.may_pass);
        for problem in errors.take(3) {
            let help = problem.help.clone().unwrap_or_default();
            service.refused(problem.message.clone(), help);
        }
    }
}

/// Takes a text for each format, and panics if what is printed would not do.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn try_out(text: &str, application: &Application) {
    let style = Style { program: "preforkd", sources: "text", with_off: true };
    for mut imported in files::of_text(text) {
        finish(&mut imported, style, application);
        let printed = write(&imported, style);
        assert!(!printed.contains(['\u{1b}', '\r', '\0']), "{printed:?}");
        let Some((head, sections)) = printed.split_once("\n[service.") else { continue };
        // What waits is known to a later version only.
        let is_known = |section: &&str| knows_wait() || !section.contains("\nwait = true");
        let known: Vec<&str> = sections.split("\n[service.").filter(is_known).collect();
        if known.is_empty() {
            continue;
        }
        let whole = format!("{head}\n[service.{}", known.join("\n[service."));
        let problems = config::load_text(
            Path::new("imported"),
            whole.as_bytes(),
            &Tolerance::OfAny,
            &strange(application),
        )
        .err();
        assert!(problems.is_none(), "{}\n{whole}", problems.unwrap_or_default());
    }
}
