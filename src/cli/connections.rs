//! `preforkd connections`: who is connected, and what each costs.
//!
//! The supervisor says what it knows of each. What its process uses, and what has moved, this command asks the kernel for,
//! so that it is not the supervisor that has to look at ten thousand processes. Who may not look there sees less.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use super::ask::show;
use crate::admission::SourceName;
use crate::control::{Answer, ConnectionStatus, Request};
use crate::handler::Title;
use crate::journal::is_special;
use crate::sys::sock_diag::TcpTable;
use crate::sys::tcp_info::TcpInfo;
use crate::sys::usage::{ProcReader, Usage};

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
struct ShownConnection {
    id: String,
    service: String,
    source: String,
    client: String,
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

#[derive(Debug, Serialize)]
struct ShownConnections {
    connections: Vec<ShownConnection>,
}

/// Prints the connections of the running supervisor.
pub(super) fn run(matches: &ArgMatches, title: Title) -> ExitCode {
    let request = Request::Connections {
        service: matches.get_one("service").cloned(),
        source: matches.get_one("source").copied(),
    };
    let list = |answer| match answer {
        Answer::Connections(connections) => {
            let sockets = TcpTable::of_machine().unwrap_or_default();
            let mut processes = ProcReader::new();
            let connections =
                connections.into_iter().map(|found| row(found, &sockets, &mut processes)).collect();
            Some(ShownConnections { connections })
        }
        _ => None,
    };
    show(matches, title, &request, list, |shown| render(&shown.connections))
}

fn row(found: ConnectionStatus, sockets: &TcpTable, processes: &mut ProcReader) -> ShownConnection {
    let usage = found.pid.and_then(|pid| processes.usage_of(pid));
    let info = direct(&found, sockets)
        .or_else(|| inode_of(&found, sockets, processes).and_then(|inode| sockets.of_inode(inode)));
    let Usage { cpu, memory_kib, command } = match usage {
        Some(usage) => usage,
        None => return ShownConnection::bare(found, info),
    };
    ShownConnection {
        cpu_ms: Some(u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX)),
        memory_kb: Some(memory_kib),
        command: Some(command),
        ..ShownConnection::bare(found, info)
    }
}

/// The socket of a connection whose client is its other end. Unlike its inode, that takes no look at its process.
pub(super) fn direct<'a>(found: &ConnectionStatus, sockets: &'a TcpTable) -> Option<&'a TcpInfo> {
    found.is_direct.then(|| found.client.parse().ok()).flatten().and_then(|client| sockets.of_peer(client))
}

/// The inode of the socket that its process has open, if this user may look.
pub(super) fn inode_of(
    found: &ConnectionStatus,
    sockets: &TcpTable,
    processes: &mut ProcReader,
) -> Option<u64> {
    let is_tcp = matches!(found.source, SourceName::Prefix(_)) && !sockets.is_empty();
    let pid = found.pid.filter(|_| is_tcp)?;
    processes.sockets_of(pid).into_iter().find(|inode| sockets.of_inode(*inode).is_some())
}

impl ShownConnection {
    /// Without what its process uses.
    fn bare(found: ConnectionStatus, info: Option<&TcpInfo>) -> Self {
        ShownConnection {
            id: found.id.to_string(),
            service: found.service,
            source: address(found.source),
            client: found.client,
            state: if found.is_ending { "ending" } else { "serving" },
            age_s: seconds(found.age_ms),
            idle_s: info.map(|info| seconds(u64::from(info.since_data_ms).min(found.age_ms))),
            bytes_in: info.map(|info| info.received),
            bytes_out: info.map(|info| info.acked),
            pid: found.pid,
            cpu_ms: None,
            memory_kb: None,
            command: None,
        }
    }
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn render(rows: &[ShownConnection]) -> String {
    let width = |head: &str, of: fn(&ShownConnection) -> &str| {
        rows.iter().map(|row| of(row).len()).chain([head.len()]).max().unwrap_or(0)
    };
    let (id, service, client) = (
        width("ID", |row| &row.id),
        width("SERVICE", |row| &row.service),
        width("CLIENT", |row| &row.client),
    );
    let mut text = format!(
        "{:id$}  {:service$}  {:client$} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  COMMAND\n",
        "ID", "SERVICE", "CLIENT", "AGE", "IDLE", "IN", "OUT", "CPU", "MEMORY"
    );
    for row in rows {
        let cpu = row.cpu_ms.map(|cpu| format!("{:.2}s", seconds(cpu)));
        let command = row.command.as_deref().map(safe);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:id$}  {:service$}  {:client$} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  {}{}",
            row.id,
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
        );
    }
    text
}

/// A single address without the length of a prefix.
pub(super) fn address(source: SourceName) -> String {
    let text = source.to_string();
    text.strip_suffix("/32").or_else(|| text.strip_suffix("/128")).unwrap_or(&text).to_owned()
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
