//! Pairs of systemd's units: a `.socket` and the `.service` that it starts. And a `.service` alone that starts a server which
//! another module reads.

mod known;
mod server;
mod service;
mod socket;
mod specifier;

use std::collections::BTreeMap;

use crate::import::model::{Imported, ImportedService};
use crate::import::names::ServiceNames;
use crate::import::unit_file::{Assignment, UnitFile, boolean};

pub(crate) use server::{read_server, starts_a_server};
use service::Protects;
use specifier::Of;

/// A pair as it was found, or a service alone.
#[derive(Debug, Default)]
pub(crate) struct UnitPair {
    /// The name of the first unit without its ending.
    pub(crate) name: String,
    /// The file of that.
    pub(crate) place: String,
    pub(crate) socket: UnitFile,
    /// The service, if it was found, and the names it was looked for by.
    pub(crate) service: Option<UnitFile>,
    pub(crate) service_name: String,
    /// What the environment files say that could be read.
    pub(crate) environment: BTreeMap<String, String>,
}

impl UnitPair {
    /// Whether there is a service alone, which has no connection.
    fn is_alone(&self) -> bool {
        self.service_name.is_empty()
    }
}

/// The name of the service unit that a socket starts.
pub(crate) fn service_of(name: &str, socket: &UnitFile) -> String {
    if accepts(socket) {
        let prefix = name.split('@').next().unwrap_or_default();
        return format!("{prefix}@.service");
    }
    let written = socket.last("Socket", "Service").map(|service| {
        let pair = UnitPair { name: name.to_owned(), ..UnitPair::default() };
        pair.specify(service, Of::Socket).unwrap_or_else(|_| service.to_owned())
    });
    written.unwrap_or_else(|| format!("{name}.service"))
}

fn accepts(socket: &UnitFile) -> bool {
    socket.last("Socket", "Accept").and_then(boolean).unwrap_or(false)
}

/// The pair as a service of preforkd.
pub(crate) fn read(pair: &UnitPair, names: &ServiceNames, imported: &mut Imported) {
    let mut service = ImportedService::new(pair.name.trim_end_matches('@'), pair.place.clone());
    if is_of_systemd(pair) {
        service.refused(
            format!("{}.socket", pair.name),
            "this socket belongs to systemd itself; leave it there",
        );
        for entry in pair.socket.of("Socket") {
            service.dropped(entry.written(), "it stays with systemd");
        }
        imported.services.push(service);
        return;
    }
    let accepts = accepts(&pair.socket);
    let mut reading = UnitReading {
        pair,
        service: &mut service,
        accepts,
        range: next_range(imported),
        protects: Protects::default(),
    };
    reading.socket(names);
    match &pair.service {
        Some(unit) => reading.program(unit),
        None => {
            let instead = format!(
                "{} was not found beside the socket; name the directory that has it",
                pair.service_name
            );
            reading.service.refused(pair.service_name.clone(), instead);
        }
    }
    if !accepts {
        of_one_program(pair, &mut service, imported);
    }
    imported.services.push(service);
}

const ONE_PROGRAM: &str = "systemd gives all of these sockets to one program, preforkd starts a program for each, with that socket alone: \
                           leave it to systemd, or, if the program may run several times, take the # away";

/// With `Accept=no`, one program gets the sockets of all units that name it, systemd.socket(5) Service= and systemd.service(5) Sockets=.
fn of_one_program(pair: &UnitPair, service: &mut ImportedService, imported: &mut Imported) {
    let listens = pair.socket.of("Socket").filter(|entry| entry.key.starts_with("Listen"));
    let listens: Vec<String> = listens.map(Assignment::written).collect();
    if listens.len() > 1 {
        service.refused(listens.join(" "), ONE_PROGRAM);
    }
    let own = format!("{}.socket", pair.name);
    let others = pair.service.iter().flat_map(|unit| unit.all("Service", "Sockets"));
    let others: Vec<String> = others
        .flat_map(|names| names.split_whitespace())
        .filter_map(|name| pair.specified(name).filter(|name| *name != own))
        .collect();
    if !others.is_empty() {
        service.refused(format!("Sockets={}", others.join(" ")), ONE_PROGRAM);
    }
    for other in imported.services.iter_mut().filter(|other| other.names(ACCEPT_NO)) {
        if started(other) == pair.service_name {
            other.refused(format!("{} of {own}, too", pair.service_name), ONE_PROGRAM);
            service.refused(format!("{} of {}, too", pair.service_name, other.place), ONE_PROGRAM);
        }
    }
}

const ACCEPT_NO: &str = "Accept=no";

/// Which service the socket starts that this was read from.
fn started(service: &ImportedService) -> String {
    let written = service.notes.iter().find_map(|note| note.construct.strip_prefix("Service="));
    written.map_or_else(|| format!("{}.service", service.name), str::to_owned)
}

fn is_of_systemd(pair: &UnitPair) -> bool {
    pair.name.starts_with("systemd-")
        || pair.socket.all("Socket", "ListenStream").any(|path| path.starts_with("/run/systemd/"))
}

/// Numbers of users that no service before has.
fn next_range(imported: &Imported) -> u32 {
    let taken = imported
        .services
        .iter()
        .filter(|service| service.keys.get("user").is_some_and(|user| user.contains("range")));
    70_000 + 1000 * u32::try_from(taken.count()).unwrap_or(0)
}

struct UnitReading<'a> {
    pair: &'a UnitPair,
    service: &'a mut ImportedService,
    accepts: bool,
    range: u32,
    protects: Protects,
}

impl UnitReading<'_> {
    fn about_unit(&mut self, entry: &Assignment) {
        match entry.key.as_str() {
            "Description" | "Documentation" | "SourcePath" => {
                self.service.dropped(entry.written(), "it is for people");
            }
            key if key.starts_with("Condition") || key.starts_with("Assert") => {
                self.service
                    .like(entry.written(), "preforkd has no conditions: the service is served always");
            }
            "Conflicts" => {
                self.service.like(entry.written(), "stop that unit yourself: both would want the port");
            }
            "Wants" | "Requires" | "Requisite" | "BindsTo" | "BindTo" | "Upholds" => self.needs(entry),
            "OnFailure" | "OnSuccess" | "FailureAction" | "SuccessAction" | "StartLimitAction" => {
                self.service
                    .like(entry.written(), "nothing is done when a program ends; the log says how it has");
            }
            "RequiresMountsFor" | "WantsMountsFor" => self.service.like(
                entry.written(),
                "say it in a drop-in of preforkd.service, which is started without it otherwise",
            ),
            "JoinsNamespaceOf" => {
                self.service.like(entry.written(), "programs share no namespace with that unit");
            }
            _ => self
                .service
                .dropped(entry.written(), "preforkd.service itself is started and ordered by its unit"),
        }
    }

    /// Services that were started because of this one, as those that make its keys: nothing else may start them.
    fn needs(&mut self, entry: &Assignment) {
        let own = &self.pair.service_name;
        let services: Vec<&str> =
            entry.value.split_whitespace().filter(|name| name.ends_with(".service") && name != own).collect();
        match services.is_empty() {
            true => self
                .service
                .dropped(entry.written(), "preforkd.service itself is started and ordered by its unit"),
            false => self.service.like(
                entry.written(),
                format!(
                    "nothing here starts that: enable it, or systemctl add-wants preforkd.service {}",
                    services.join(" ")
                ),
            ),
        }
    }
}
