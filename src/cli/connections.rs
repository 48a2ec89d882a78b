//! `preforkd connections`: who is connected, and what each costs.
//!
//! The supervisor says what it knows of each. What its process uses, and what has moved, this command asks the kernel for,
//! so that it is not the supervisor that has to look at ten thousand processes. Who may not look there sees less.
//! It asks for the sockets while the supervisor looks, and several processes look at the others.

use std::io::Write;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use super::ask::show;
use super::sockets::Sockets;
use crate::admission::SourceName;
use crate::client::ConnectionId;
use crate::control::{Answer, ConnectionStatus, Request, client};
use crate::handler::Title;
use crate::journal::is_special;
use crate::sys::divided;
use crate::sys::usage::ProcReader;

/// `connections [--json] [--service NAME] [--source PREFIX] [--control PATH]`.
pub(super) fn command(title: Title) -> Command {
    Command::new("connections")
        .about("Show the connections that live")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One line of JSON, for programs"))
        .arg(Arg::new("service").long("service").value_name("NAME").help("Of this service only"))
        .arg(
            Arg::new("source")
                .long("source")
                .value_name("SOURCE")
                .value_parser(super::source)
                .help("Of clients in this prefix only, or of user:NAME"),
        )
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("10s"))
}

/// A connection, with what the kernel knows of it.
#[derive(Debug, Serialize)]
struct ShownConnection<'a> {
    id: ConnectionId,
    service: &'a str,
    source: String,
    client: &'a str,
    state: &'static str,
    age_s: f64,
    idle_s: Option<f64>,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    pid: Option<i32>,
    cpu_ms: Option<u64>,
    memory_kb: Option<u64>,
    command: Option<String>,
}

/// For fewer no further process is worth its start.
const PER_PROCESS: usize = 500;

/// Prints the connections of the running supervisor.
pub(super) fn run(matches: &ArgMatches, title: Title) -> ExitCode {
    let request = Request::Connections {
        service: matches.get_one("service").cloned(),
        source: matches.get_one("source").copied(),
    };
    // Or all is asked for, and who asks hears in a moment why there is no answer.
    let (path, patience) = (super::control_path(matches, title), super::patience(matches));
    let services = match client::ask(&path, &Request::Status, patience) {
        Ok(Answer::Status(status)) => status.services,
        _ => Vec::new(),
    };
    let text = |answer, sockets: Sockets| {
        let Answer::Connections(found) = answer else { return None };
        Some(match matches.get_flag("json") {
            true => json(&found, &sockets),
            false => table(&found, &sockets),
        })
    };
    show(matches, title, &request, || Sockets::of(&services), text)
}

fn json(found: &[ConnectionStatus], sockets: &Sockets) -> serde_json::Result<Vec<Vec<u8>>> {
    let head = b"{\"connections\":[".to_vec();
    let mut pieces = pieces(head, found, sockets, |row, text| {
        serde_json::to_writer(&mut *text, &row)?;
        text.push(b',');
        Ok(())
    })?;
    // Instead of the comma after the last.
    if let Some(last) = pieces.last_mut() {
        if last.last() == Some(&b',') {
            last.pop();
        }
        last.extend(b"]}");
    }
    Ok(pieces)
}

/// The head and the rows as `write` makes them. That it takes a look at each process makes it worth several.
fn pieces(
    head: Vec<u8>,
    found: &[ConnectionStatus],
    sockets: &Sockets,
    write: impl Fn(&ShownConnection<'_>, &mut Vec<u8>) -> serde_json::Result<()> + Sync,
) -> serde_json::Result<Vec<Vec<u8>>> {
    let rows = divided::work(found, PER_PROCESS, |part| {
        let (mut text, mut processes) = (Vec::new(), ProcReader::new());
        part.iter().try_for_each(|found| write(&row(found, sockets, &mut processes), &mut text))?;
        Ok(text)
    })?;
    Ok([head].into_iter().chain(rows).collect())
}

fn row<'a>(
    found: &'a ConnectionStatus,
    sockets: &Sockets,
    processes: &mut ProcReader,
) -> ShownConnection<'a> {
    let usage = found.pid.and_then(|pid| processes.usage_of(pid));
    let info = sockets
        .direct(found)
        .or_else(|| sockets.inode_of(found, processes).and_then(|inode| sockets.of_inode(inode)));
    ShownConnection {
        id: found.id,
        service: &found.service,
        source: address(found.source),
        client: &found.client,
        state: if found.is_ending { "ending" } else { "serving" },
        age_s: seconds(found.age_ms),
        idle_s: info.map(|info| seconds(u64::from(info.since_data_ms).min(found.age_ms))),
        bytes_in: info.map(|info| info.received),
        bytes_out: info.map(|info| info.acked),
        pid: found.pid,
        cpu_ms: usage.as_ref().map(|usage| u64::try_from(usage.cpu.as_millis()).unwrap_or(u64::MAX)),
        memory_kb: usage.as_ref().map(|usage| usage.memory_kib),
        command: usage.map(|usage| usage.command),
    }
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn table(found: &[ConnectionStatus], sockets: &Sockets) -> serde_json::Result<Vec<Vec<u8>>> {
    let width = |head: &str, of: fn(&ConnectionStatus) -> usize| {
        found.iter().map(of).chain([head.len()]).max().unwrap_or(0)
    };
    let (id, service, client) = (
        width("ID", |found| found.id.to_string().len()),
        width("SERVICE", |found| found.service.len()),
        width("CLIENT", |found| found.client.len()),
    );
    let head = format!(
        "{:id$}  {:service$}  {:client$} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  COMMAND",
        "ID", "SERVICE", "CLIENT", "AGE", "IDLE", "IN", "OUT", "CPU", "MEMORY"
    );
    pieces(head.into_bytes(), found, sockets, |row, text| {
        let cpu = row.cpu_ms.map(|cpu| format!("{:.2}s", seconds(cpu)));
        let command = row.command.as_deref().map(safe);
        write!(
            text,
            "\n{:id$}  {:service$}  {:client$} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  {}{}",
            row.id.to_string(),
            row.service,
            row.client,
            time(row.age_s),
            known(row.idle_s.map(time)),
            known(row.bytes_in.map(size)),
            known(row.bytes_out.map(size)),
            known(cpu),
            known(row.memory_kb.map(|kib| size(kib.saturating_mul(1024)))),
            if row.state == "ending" { "(ending) " } else { "" },
            known(command),
        )
        .map_err(serde_json::Error::io)
    })
}

/// A single address without the length of a prefix.
pub(super) fn address(source: SourceName) -> String {
    let mut text = source.to_string();
    let address = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128"));
    text.truncate(address.map_or(text.len(), str::len));
    text
}

/// A stranger may have chosen the words of a command line.
pub(super) fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match is_special(character) {
            true => safe.extend(character.escape_default()),
            false => safe.push(character),
        }
    }
    safe
}

pub(super) fn known(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

pub(super) fn time(seconds: f64) -> String {
    match seconds as u64 {
        0..60 => format!("{seconds:.1}s"),
        whole @ 60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        whole @ 3600..86400 => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
        whole => format!("{}d{:02}h", whole / 86400, whole / 3600 % 24),
    }
}

pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "K", "M", "G"] {
        if value < 1024.0 {
            return if unit.is_empty() { bytes.to_string() } else { format!("{value:.1}{unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1}T")
}
