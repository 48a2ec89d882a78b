//! What was imported, as TOML with a comment for every construct.

use super::model::{Imported, ImportedService, Note};
use crate::journal::is_special;

/// The order of keys in a section.
const ORDER: [&str; 42] = [
    "listen",
    "wait",
    "handler",
    "exec",
    "argv0",
    "connection",
    "user",
    "group",
    "chroot",
    "working_directory",
    "umask",
    "nice",
    "environment",
    "environment_file",
    "max_connections",
    "overload",
    "max_connections_per_source",
    "rate_per_source",
    "allow",
    "deny",
    "max_lifetime",
    "limits",
    "sandbox",
    "stderr",
    "kill_mode",
    "backlog",
    "nodelay",
    "keepalive",
    "defer_accept",
    "interface",
    "freebind",
    "transparent",
    "tos",
    "mark",
    "socket_user",
    "socket_group",
    "socket_mode",
    "pass_rights",
    "refuse_message",
    "spare",
    "workers",
    "log",
];

/// The longest construct that is shown whole.
const LONGEST: usize = 300;

/// How much is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style<'a> {
    /// The program and its version.
    pub(crate) program: &'a str,
    /// What was read.
    pub(crate) sources: &'a str,
    /// Services that were off are printed as if they had been on.
    pub(crate) with_off: bool,
}

/// Text that can be in a comment.
pub(crate) fn tame(text: &str) -> String {
    let mut result = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == LONGEST {
            result.push('…');
            break;
        }
        match character {
            '\\' => result.push('\\'),
            '\t' => result.push(' '),
            _ if is_special(character) => result.extend(character.escape_unicode()),
            _ => result.push(character),
        }
    }
    result
}

/// A note in one line.
pub(crate) fn line(note: &Note) -> String {
    let loss = if note.is_loss { "WARNING, PROTECTION LOST: " } else { "" };
    let why = if note.why.is_empty() { String::new() } else { format!(": {}", tame(&note.why)) };
    format!("{}: {loss}{}{why}", note.verdict.word(), tame(&note.construct))
}

/// Whether a service is printed so that it will be served.
pub(crate) fn is_active(service: &ImportedService, style: Style<'_>) -> bool {
    !service.is_refused() && (service.off.is_none() || style.with_off)
}

/// The whole of it.
pub(crate) fn write(imported: &Imported, style: Style<'_>) -> String {
    let mut text = format!("# Imported by {} from {}.\n", style.program, tame(style.sources));
    text.push_str(
        "#\n\
         # Every construct has a verdict: exact; near, and how it differs; dropped, and why that does not matter; refused, and what to do\n\
         # instead. Only what says WARNING leaves somebody without a protection. A service of which something is refused is commented out,\n\
         # and so is one that was off: its lines begin with \"#\" and no space.\n\
         #\n\
         # near: of all services: preforkd keeps each program in a sandbox, in which it gains no rights by setuid; if one calls su, sudo or\n\
         #   the like, give it sandbox = { no_new_privs = false }.\n\
         # near: of all services: a program's environment is PATH, the connection's own variables, and what environment says.\n\
         # near: of all services: what a program leaves behind is killed when it has ended, unless kill_mode says \"process\".\n\
         # near: of all services: a limit of 1000 connections where none is written, and a queue of 4096.\n",
    );
    for (place, note) in &imported.notes {
        text.push_str(&format!("\n# {}: {}\n", tame(place), line(note)));
    }
    for service in &imported.services {
        text.push('\n');
        section(service, style, &mut text);
    }
    text
}

fn section(service: &ImportedService, style: Style<'_>, text: &mut String) {
    let mark = if is_active(service, style) { "" } else { "#" };
    text.push_str(&format!("# {}", tame(&service.place)));
    match &service.off {
        Some(off) if style.with_off => text.push_str(&format!(", was off ({})", tame(off))),
        Some(off) => text.push_str(&format!(", off ({})", tame(off))),
        None => (),
    }
    if service.is_refused() {
        text.push_str(", not taken over: see what is refused");
    }
    text.push('\n');
    text.push_str(&format!("{mark}[service.{}]\n", header(&service.name)));
    let value = |key: &str| match key {
        "listen" if service.listen.is_empty() => None,
        "listen" => Some(super::model::list(&service.listen)),
        _ => service.keys.get(key).cloned(),
    };
    for key in ORDER {
        let Some(value) = value(key) else { continue };
        for note in service.notes.iter().filter(|note| note.key == Some(key)) {
            text.push_str(&format!("# {}\n", line(note)));
        }
        text.push_str(&format!("{mark}{key} = {value}\n"));
    }
    let has_key = |note: &Note| note.key.is_some_and(|key| value(key).is_some());
    for note in service.notes.iter().filter(|note| !has_key(note)) {
        text.push_str(&format!("# {}\n", line(note)));
    }
}

/// A dot in a name would be a table of its own.
fn header(name: &str) -> String {
    if name.contains('.') { super::model::quoted(name) } else { name.to_owned() }
}
