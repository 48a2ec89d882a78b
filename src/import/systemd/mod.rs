//! Pairs of systemd's units: a `.socket` and the `.service` that it starts. And a `.service` alone that starts a server which
//! another module reads.

mod server;
mod service;
mod socket;

use std::collections::BTreeMap;

use crate::import::model::{Imported, ImportedService};
use crate::import::names::ServiceNames;
use crate::import::unit_file::{Assignment, UnitFile, boolean};

pub(crate) use server::{read_server, starts_a_server};
use service::Protects;

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
    /// Of which a service is an instance: what stands behind the @ in its name.
    fn instance(&self) -> Option<&str> {
        self.name.split_once('@').map(|(_, instance)| instance).filter(|instance| !instance.is_empty())
    }

    /// With the specifiers that are known here.
    pub(crate) fn specified(&self, value: &str) -> Option<String> {
        let mut result = String::new();
        let mut characters = value.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                result.push(character);
                continue;
            }
            match characters.next()? {
                '%' => result.push('%'),
                't' => result.push_str("/run"),
                'S' => result.push_str("/var/lib"),
                'C' => result.push_str("/var/cache"),
                'L' => result.push_str("/var/log"),
                'E' => result.push_str("/etc"),
                'T' => result.push_str("/tmp"),
                'V' => result.push_str("/var/tmp"),
                'p' | 'N' if self.instance().is_none() => {
                    result.push_str(self.name.trim_end_matches('@'));
                }
                'p' => result.push_str(self.name.split('@').next().unwrap_or_default()),
                'N' => result.push_str(&self.name),
                'i' | 'I' => result.push_str(self.instance()?),
                _ => return None,
            }
        }
        Some(result)
    }

    /// Whether there is a service alone, which has no connection.
    fn is_alone(&self) -> bool {
        self.service_name.is_empty()
    }
}

/// The name of the service unit that a socket starts.
pub(crate) fn service_of(name: &str, socket: &UnitFile) -> String {
    let accepts = accepts(socket);
    match socket.last("Socket", "Service") {
        Some(service) if !accepts => service.to_owned(),
        _ if accepts => format!("{name}@.service"),
        _ => format!("{name}.service"),
    }
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
    imported.services.push(service);
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
            _ => self
                .service
                .dropped(entry.written(), "preforkd.service itself is started and ordered by its unit"),
        }
    }

    /// What is to be done about a specifier that is not known.
    fn of_whom(&self, in_a_pair: &'static str) -> &'static str {
        match self.pair.is_alone() && self.pair.name.ends_with('@') {
            true => {
                "%i is the name of an instance: import the link by which that is enabled, as multi-user.target.wants/NAME@INSTANCE.service"
            }
            false => in_a_pair,
        }
    }
}
