//! Sections → a checked configuration.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::address::Address;
use super::checked::{Config, SupervisorConfig, Unavailable};
use super::diagnostic::{Diagnostic, Diagnostics, Place, nearest};
use super::document::{Section, Sections};
use super::draft::keys::{LOG, SERVICE, SUPERVISOR};
use super::draft::{LogDraft, ServiceDraft, SupervisorDraft};
use super::key::{Key, Kind};
use super::machine::Machine;
use super::service::{self, control, identity, roles, warm};
use super::source::{Origin, syntax};
use super::value::{Fault, find_nul};
use crate::handler::Application;
use crate::journal::LogSettings;

/// Which services may need what this machine does not have now: a program, a directory, a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Tolerance {
    /// These, and nothing else may be wrong.
    Of(BTreeSet<String>),
    /// Any, unless `strict_start` forbids it.
    OfAny,
}

impl Tolerance {
    /// None may.
    pub(crate) fn none() -> Self {
        Tolerance::Of(BTreeSet::new())
    }

    fn includes(&self, service: &str, strict_start: bool) -> bool {
        match self {
            Tolerance::Of(names) => names.contains(service),
            Tolerance::OfAny => !strict_start,
        }
    }
}

/// All sections, checked one by one and against each other; what is wrong goes to `problems`, and then there may be none.
pub(crate) fn assemble(
    sections: &Sections<'_>,
    tolerance: &Tolerance,
    machine: &Machine<'_>,
    problems: &mut Diagnostics,
) -> Option<Config> {
    let mut supervisor = SupervisorDraft::default();
    for section in [&defaults(SUPERVISOR)].into_iter().chain(&sections.supervisor) {
        apply(section, SUPERVISOR, "[supervisor]", &mut supervisor, problems);
    }
    let mut log = LogDraft::default();
    for section in [&defaults(LOG)].into_iter().chain(&sections.log) {
        apply(section, LOG, "[log]", &mut log, problems);
    }
    let is_written = |section: &Section<'_>| section.span("control_socket").is_some();
    if !sections.supervisor.iter().any(is_written) {
        supervisor.control_socket = Some(machine.application.title.control_path());
    }
    let strict_start = supervisor.strict_start.unwrap_or_default();
    let (mut services, mut unavailable) = (Vec::new(), BTreeMap::new());
    let mut tolerated = Vec::new();
    let control = supervisor.control_socket.iter().cloned().map(Address::Unix);
    let mut taken: Vec<_> = control.map(|address| TakenAddress { address, owner: None }).collect();
    let defaults = defaults(SERVICE);
    let own_defaults = own_defaults(machine.application, problems);
    for (name, section) in &sections.services {
        let section = &with_defaults(section, &own_defaults);
        let mut draft = ServiceDraft::default();
        let header = format!("[service.{name}]");
        for section in [&defaults, section] {
            apply(section, SERVICE, &header, &mut draft, problems);
        }
        let doubts = draft
            .admission
            .doubts(section.origin)
            .into_iter()
            .chain(service::doubts(name, section, &draft, machine));
        doubts.for_each(|fault| problems.push(section.origin.error(fault).into_warning()));
        take(name, section.origin, &draft, &mut taken, problems);
        match service::resolve(name, section, draft, machine) {
            Ok(service) => {
                let doubts = service.iter().flat_map(|service| warm::doubts(section, service));
                doubts.for_each(|fault| problems.push(section.origin.error(fault).into_warning()));
                services.extend(service);
            }
            Err(faults) => {
                let may_pass = faults.iter().all(|fault| fault.may_pass);
                let errors = faults.into_iter().map(|fault| section.origin.error(fault));
                if may_pass && tolerance.includes(name, strict_start) {
                    let errors: Vec<_> = errors.collect();
                    unavailable.extend(errors.first().map(|first| (name.clone(), first.reason())));
                    tolerated.extend(errors);
                } else {
                    errors.for_each(|error| problems.push(error));
                }
            }
        }
    }
    // Where something else is wrong, nothing starts, and all has to be said.
    let is_usable = problems.errors() == 0;
    for error in tolerated {
        problems.push(if is_usable { error.into_warning() } else { error });
    }
    services.sort_by(|a, b| a.name.cmp(&b.name));
    for (name, section) in &sections.services {
        let fault = identity::range_of_others(name, section, &services);
        fault.into_iter().for_each(|fault| problems.push(section.origin.error(fault)));
    }
    roles::assign_workers(&mut services, machine);
    let written = sections.supervisor.iter().rev().find(|section| section.span("control_access").is_some());
    let control_access = match control::resolve(&supervisor.control_access, &services, machine) {
        Ok(access) => access,
        Err(faults) => {
            let origin = written.map_or(Origin::Flags(&[]), |section| section.origin);
            faults.into_iter().for_each(|fault| problems.push(origin.error(fault)));
            return None;
        }
    };
    Some(Config {
        supervisor: SupervisorConfig {
            control_socket: supervisor.control_socket,
            control_access,
            drain_timeout: supervisor.drain_timeout?,
            strict_start,
            cgroup: supervisor.cgroup.unwrap_or_default(),
        },
        log: LogSettings { target: log.target?, level: log.level? },
        services,
        unavailable: Unavailable { reasons: unavailable, ..Unavailable::default() },
    })
}

/// What holds where nothing is written, as if it were.
fn defaults<D>(keys: &[Key<D>]) -> Section<'static> {
    let written = keys.iter().filter_map(|key| {
        let value = DeValue::parse(key.default?).ok()?.into_inner();
        Some((Spanned::new(0..0, Cow::Borrowed(key.name)), Spanned::new(0..0, value)))
    });
    Section { origin: Origin::Flags(&[]), header: 0..0, partial: false, table: written.collect() }
}

/// What holds by the program where nothing is written; what is wrong with that goes to `problems`.
fn own_defaults(application: &Application, problems: &mut Diagnostics) -> DeTable<'static> {
    let mut table = match DeTable::parse(application.defaults) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            problems.push(own_fault(application, syntax(&error)));
            DeTable::new()
        }
    };
    let section = Section { origin: Origin::Flags(&[]), header: 0..0, partial: false, table: table.clone() };
    let mut found = Diagnostics::default();
    apply(&section, SERVICE, "Server::defaults()", &mut ServiceDraft::default(), &mut found);
    found.iter().for_each(|found| {
        let fault = Fault { help: found.help.clone(), ..Fault::new(0..0, found.message.clone()) };
        problems.push(own_fault(application, fault));
    });
    if found.errors() > 0 {
        table.clear();
    }
    if let Some(only) = application.only_handler() {
        let value = Spanned::new(0..0, DeValue::String(only.into()));
        table.entry(Spanned::new(0..0, "handler".into())).or_insert(value);
    }
    table
}

fn own_fault(application: &Application, fault: Fault) -> Diagnostic {
    let name = format!("defaults of {} itself", application.title.name);
    fault.at(Place { name, position: None, order: (usize::MAX, 0) })
}

/// The section as if the defaults stood in it, unless it is a program's.
fn with_defaults<'a>(section: &Section<'a>, defaults: &DeTable<'static>) -> Section<'a> {
    let Section { origin, ref header, partial, ref table } = *section;
    let mut table = table.clone();
    if section.span("exec").is_none() && !partial {
        for (key, value) in defaults.iter().filter(|(key, _)| section.span(key.get_ref()).is_none()) {
            table.insert(Spanned::new(header.clone(), key.get_ref().clone()), moved(value, header));
        }
    }
    Section { origin, header: header.clone(), partial, table }
}

/// The same value, all of it at this place.
pub(super) fn moved<'a>(value: &Spanned<DeValue<'a>>, to: &Range<usize>) -> Spanned<DeValue<'a>> {
    let moved_value = match value.get_ref() {
        DeValue::Array(entries) => DeValue::Array(entries.iter().map(|entry| moved(entry, to)).collect()),
        DeValue::Table(entries) => {
            let entry = |(key, value): (&Spanned<Cow<'a, str>>, _)| {
                (Spanned::new(to.clone(), key.get_ref().clone()), moved(value, to))
            };
            DeValue::Table(entries.iter().map(entry).collect())
        }
        other => other.clone(),
    };
    Spanned::new(to.clone(), moved_value)
}

/// Gives every key of a section to its function in the table.
fn apply<D>(section: &Section<'_>, keys: &[Key<D>], header: &str, draft: &mut D, problems: &mut Diagnostics) {
    for (name, value) in &section.table {
        let known = keys.iter().find(|key| key.name == name.get_ref().as_ref());
        let faults = match known {
            None => vec![unknown(name.get_ref(), name.span(), keys, header)],
            Some(key) => match (key.decode, find_nul(value)) {
                (None, _) => vec![later(key.name, name.span())],
                (_, Some(span)) => vec![Fault::new(span, "a NUL byte cannot be passed on").help("remove it")],
                (Some(decode), None) => match decode(draft, value) {
                    Ok(()) => continue,
                    Err(faults) => faults.into_iter().map(|fault| help(fault, key, section.origin)).collect(),
                },
            },
        };
        faults.into_iter().for_each(|fault| problems.push(section.origin.error(fault)));
    }
}

/// A fault that has no help of its own shows the key with a right value.
fn help<D>(fault: Fault, key: &Key<D>, origin: Origin<'_>) -> Fault {
    if fault.help.is_some() {
        return fault;
    }
    match (origin, key.flag) {
        (Origin::File(_), _) => fault.help(format!("for example: {} = {}", key.name, key.example)),
        (Origin::Flags(_), Some(flag))
            if !matches!(key.kind, Kind::Table | Kind::TableOrFalse | Kind::Options | Kind::List) =>
        {
            fault.help(format!("for example: --{flag} {}", key.example.trim_matches('"')))
        }
        (Origin::Flags(_), _) => fault,
    }
}

fn later(name: &str, span: std::ops::Range<usize>) -> Fault {
    Fault::new(span, format!("\"{name}\" is not supported by this version"))
        .help("remove it, and do not rely on what it promises")
}

fn unknown<D>(name: &str, span: std::ops::Range<usize>, keys: &[Key<D>], header: &str) -> Fault {
    let names = || keys.iter().filter(|key| key.decode.is_some()).map(|key| key.name);
    let help = match nearest(name, keys.iter().map(|key| key.name)) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("the keys of {header} are {}", names().collect::<Vec<_>>().join(", ")),
    };
    Fault::new(span, format!("unknown key \"{name}\" in {header}")).help(help)
}

/// An address that a service has, or preforkd itself.
struct TakenAddress {
    address: Address,
    /// The service, and where it says so; `None` for the control socket.
    owner: Option<(String, Place)>,
}

/// Reports addresses that another service, or the same one, has already.
fn take(
    name: &str,
    origin: Origin<'_>,
    draft: &ServiceDraft,
    taken: &mut Vec<TakenAddress>,
    problems: &mut Diagnostics,
) {
    for address in &draft.listen {
        let place = origin.place(&address.span());
        let is_in_the_way = |other: &&TakenAddress| {
            let is_its_own = other.owner.as_ref().is_some_and(|(owner, _)| owner == name);
            clash(&other.address, address.get_ref()) || is_its_own && other.address == *address.get_ref()
        };
        if let Some(other) = taken.iter().find(is_in_the_way) {
            let same = &other.address == address.get_ref();
            let message = if same {
                format!("{} is listened on a second time", other.address)
            } else {
                format!("{} overlaps with {}", address.get_ref(), other.address)
            };
            let note = match &other.owner {
                Some((service, place)) => format!("service \"{service}\" has it at {place}"),
                None => "it is the control socket of preforkd itself".to_owned(),
            };
            let fault = Fault::new(address.span(), message).note(note).help("every address can be used once");
            problems.push(origin.error(fault));
        }
        taken
            .push(TakenAddress { address: address.get_ref().clone(), owner: Some((name.to_owned(), place)) });
    }
}

/// Whether the kernel would refuse to have both. Port 0 is a different one for each service.
pub(crate) fn clash(a: &Address, b: &Address) -> bool {
    let wildcard = |address: &SocketAddr| address.ip().is_unspecified();
    match (a, b) {
        (Address::Any(any), Address::Any(port)) => any == port && *any != 0,
        (Address::Any(any), Address::Scoped(_, _, port))
        | (Address::Scoped(_, _, port), Address::Any(any)) => any == port && *any != 0,
        (Address::Tcp(wide), Address::Scoped(_, _, port))
        | (Address::Scoped(_, _, port), Address::Tcp(wide)) => {
            *port == wide.port() && *port != 0 && wide.is_ipv6() && wildcard(wide)
        }
        (Address::Any(any), Address::Tcp(address)) | (Address::Tcp(address), Address::Any(any)) => {
            *any == address.port() && *any != 0
        }
        (Address::Tcp(a), Address::Tcp(b)) | (Address::Udp(a), Address::Udp(b)) => {
            a.port() == b.port()
                && a.port() != 0
                && a.is_ipv4() == b.is_ipv4()
                && (a == b || wildcard(a) || wildcard(b))
        }
        (Address::Unix(a), Address::Unix(b)) => is_same_file(a, b),
        _ => a == b,
    }
}

/// Whether both are one file, by whatever way: the directories that there are tell.
fn is_same_file(a: &Path, b: &Path) -> bool {
    let in_directory =
        |path: &Path| Some((path.parent()?.canonicalize().ok()?, path.file_name()?.to_owned()));
    a == b || in_directory(a).is_some_and(|place| in_directory(b) == Some(place))
}
