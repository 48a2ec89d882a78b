//! A `.service` that starts a server of which there are command lines elsewhere, too: socat, tcpserver and the like.

use std::collections::BTreeMap;

use super::service::{Command, DYNAMIC_USER};
use super::{Protects, UnitPair, UnitReading, next_range};
use crate::import::model::{Imported, ImportedService, quoted};
use crate::import::names::ServiceNames;
use crate::import::script::{ScriptCommand, ScriptWord};
use crate::import::ucspi::{self, Beside, RunAs, ServerStart};
use crate::import::unit_file::{Assignment, UnitFile, boolean, words};

/// More than one are refused; to see that one is there, no more are looked at.
const MOST_STARTS: usize = 16;

/// Whether the program of a service alone is such a server.
pub(crate) fn starts_a_server(pair: &UnitPair) -> bool {
    let Some(unit) = &pair.service else { return false };
    let mut unheard = ImportedService::new("", String::new());
    let mut starts = |line: &str| {
        match reading(pair, &mut unheard, 0).command(line, unit) {
            Some(command) => ucspi::starts_a_server(started(&command.words), &command.variables),
            // Why not is said when it is read.
            None => ucspi::starts_a_server(started(&words(line).unwrap_or_default()), &BTreeMap::new()),
        }
    };
    unit.all("Service", "ExecStart").take(MOST_STARTS).any(&mut starts)
}

/// As a script would have it: systemd has taken its quotes away.
fn started(words: &[String]) -> ScriptCommand {
    let words = words.iter().map(|word| ScriptWord { text: word.clone(), is_open: false }).collect();
    ScriptCommand { line: 0, words, redirections: Vec::new() }
}

/// The services of such a unit.
pub(crate) fn read_server(
    pair: &UnitPair,
    names: &ServiceNames,
    beside: &dyn Beside,
    imported: &mut Imported,
) {
    let Some(unit) = &pair.service else { return };
    let mut service = ImportedService::new(&pair.name, pair.place.clone());
    let range = next_range(imported);
    let starts: Vec<&str> = unit.all("Service", "ExecStart").collect();
    // Only of a oneshot there may be several, systemd.service(5) ExecStart=.
    let is_oneshot = unit.last("Service", "Type") == Some("oneshot");
    let commands: Vec<Command> = match starts[..] {
        [] => {
            service.refused("no ExecStart=", "name the program");
            Vec::new()
        }
        [_, _, ..] if !is_oneshot || starts.len() > MOST_STARTS => {
            service.refused("more than one ExecStart=", "import a file with each command line");
            Vec::new()
        }
        _ => {
            starts.iter().filter_map(|line| reading(pair, &mut service, range).command(line, unit)).collect()
        }
    };
    let user = unit.last("Service", "User");
    let user = user.and_then(|user| pair.specified(user));
    let user = RunAs::from_start(user);
    let mut found: Vec<(ImportedService, Option<&Command>)> = Vec::new();
    for command in &commands {
        let start = ServerStart {
            origin: &|_| pair.place.clone(),
            name: Some(&pair.name),
            user: user.clone(),
            variables: &command.variables,
            prepare: &|service| reading(pair, service, range).environment(unit),
        };
        let services = ucspi::services(vec![started(&command.words)], &start, names, beside);
        if services.is_empty() {
            let instead = "with its variables filled in it is no server that can be read; write its words";
            service.refused(&command.written, instead);
        }
        found.extend(services.into_iter().map(|service| (service, Some(command))));
    }
    // Not some of them in silence without the others.
    if service.is_refused() || found.is_empty() {
        reading(pair, &mut service, range).environment(unit);
        found = vec![(service, commands.first())];
    }
    for (mut service, command) in found {
        if let Some(Command { written, why, .. }) = command {
            match why.is_empty() {
                true => service.same(written, "word by word, above"),
                false => service.like(written, why.join("; ")),
            }
        }
        if commands.len() > 1 {
            service.like(
                "Type=oneshot",
                "systemd starts the next only when the one before has ended, preforkd serves all",
            );
        }
        reading(pair, &mut service, range).of_server(unit);
        imported.services.push(service);
    }
}

fn reading<'a>(pair: &'a UnitPair, service: &'a mut ImportedService, range: u32) -> UnitReading<'a> {
    UnitReading { pair, service, accepts: true, range, protects: Protects::default() }
}

impl UnitReading<'_> {
    /// What the command line finds, and may take away.
    fn environment(&mut self, unit: &UnitFile) {
        for entry in unit.of("Service").filter(|entry| is_environment(&entry.key)) {
            if let Some(value) = self.pair.specified(&entry.value) {
                self.service_key(&entry.key, &value, &entry.written(), unit);
            }
        }
    }

    /// What the unit says beside its command line: what holds for the server, and for what it starts.
    fn of_server(&mut self, unit: &UnitFile) {
        if self.service.keys.contains_key("allow") || self.service.keys.contains_key("deny") {
            for entry in unit.of("Service").filter(|entry| entry.key.starts_with("IPAddress")) {
                self.service.guarded(entry.written(), "the server looks at who calls itself, and both have to let him in; put it into allow and deny");
            }
        } else {
            self.addresses(&self.pair.socket);
        }
        let user = unit.last("Service", "User").and_then(|user| self.pair.specified(user));
        let its = user.as_deref().map_or_else(|| quoted("root"), quoted);
        let is_its = self.service.keys.get("user") == Some(&its);
        if let Some(user) = user.map(|user| format!("User={user}")) {
            match is_its {
                true => self.service.same(user, "its programs were that user, too"),
                false => {
                    self.service.dropped(user, "of the server itself: it makes its programs another user");
                }
            }
        }
        if unit.last("Service", "DynamicUser").and_then(boolean) == Some(true) {
            self.service.guarded("DynamicUser=yes", DYNAMIC_USER);
        }
        // Of two lines of the unit the later counts, of the unit and the command line this.
        let changed: Vec<&str> = unit
            .of("Service")
            .filter_map(|entry| changed_later(&entry.key).filter(|key| has(self.service, key)))
            .chain((!is_its || self.service.keys.contains_key("group")).then_some("group"))
            .collect();
        let last_error = unit.last("Service", "StandardError");
        self.keys(unit, |service, entry, value| {
            if let Some(key) = changed_later(&entry.key).filter(|key| changed.contains(key)) {
                service.dropped(entry.written(), format!("its command line says what {key} is, after this"));
                return true;
            }
            if entry.key == "StandardError" && last_error != Some(&entry.value) {
                service.dropped(entry.written(), "a later line says something else");
                return true;
            }
            of_server_alone(service, entry, value)
        });
        for entry in unit.of("Install") {
            self.about_unit(entry);
        }
    }
}

/// What is about the server, of which there is none with preforkd.
fn of_server_alone(service: &mut ImportedService, entry: &Assignment, value: &str) -> bool {
    let written = entry.written();
    if is_environment(&entry.key) {
        if !service.names(&written) {
            service.dropped(written, "its command line takes the environment away");
        }
        return true;
    }
    match entry.key.as_str() {
        "StandardError" => match value {
            "null" => service.exact(written, "stderr", quoted("null")),
            "inherit" | "journal" | "syslog" | "kmsg" | "journal+console" => {
                service.same(written, "each line is a record of the log");
            }
            _ => service.like(written, "to the log"),
        },
        "StandardInput" | "StandardOutput" => {
            service.dropped(written, "of the server itself: programs have their connection");
        }
        "Type" | "KillMode" | "KillSignal" | "SendSIGKILL" | "SendSIGHUP" | "NonBlocking" | "ExitType"
        | "WatchdogSec" | "PIDFile" | "TimeoutStartSec" | "TimeoutSec" | "TimeoutStopSec" | "Sockets" => {
            service.dropped(written, "it is about the server itself");
        }
        "RuntimeMaxSec" => {
            service.like(written, "after that the server would be started anew; preforkd goes on");
        }
        "MemoryMax" | "MemoryHigh" | "MemoryLimit" | "TasksMax" | "CPUWeight" => {
            service.like(
                written,
                "for all connections together: write it into preforkd.service, or limits for each connection",
            );
        }
        "AmbientCapabilities" | "CapabilityBoundingSet"
            if is_to_bind(value) && service.keys.get("user") != Some(&quoted("root")) =>
        {
            service.dropped(written, "it is preforkd that binds the port; programs have no capability");
        }
        _ => return false,
    }
    true
}

fn is_to_bind(value: &str) -> bool {
    value.split_whitespace().all(|name| name == "CAP_NET_BIND_SERVICE")
}

/// The key of what a unit's key says, if a command line may say it, too.
fn changed_later(key: &str) -> Option<&'static str> {
    Some(match key {
        "UMask" => "umask",
        "Nice" => "nice",
        "WorkingDirectory" => "working_directory",
        "StandardError" => "stderr",
        "Group" => "group",
        "LimitAS" => "limits.as",
        "LimitCORE" => "limits.core",
        "LimitCPU" => "limits.cpu",
        "LimitDATA" => "limits.data",
        "LimitFSIZE" => "limits.fsize",
        "LimitMEMLOCK" => "limits.memlock",
        "LimitNOFILE" => "limits.nofile",
        "LimitNPROC" => "limits.nproc",
        "LimitSTACK" => "limits.stack",
        _ => return None,
    })
}

fn has(service: &ImportedService, key: &str) -> bool {
    match key.split_once('.') {
        Some((table, name)) => {
            service.keys.get(table).is_some_and(|table| table.contains(&format!(" {name} = ")))
        }
        None => service.keys.contains_key(key),
    }
}

fn is_environment(key: &str) -> bool {
    ["Environment", "EnvironmentFile"].contains(&key)
}
