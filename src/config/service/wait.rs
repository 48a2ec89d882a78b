//! `wait = true`: what it cannot go with, and what cannot go without it.

use toml::Spanned;

use crate::config::address::Address;
use crate::config::document::Section;
use crate::config::draft::ServiceDraft;
use crate::config::value::Fault;

/// Keys about connections that preforkd accepts, or sees the bytes of: what they would ask of a program that accepts by
/// itself, and what to do instead.
const OF_CONNECTIONS: [(&str, &str, &str); 22] = [
    ("spare", SPARES, REMOVE),
    ("connections_per_child", SPARES, REMOVE),
    ("warm", SPARES, REMOVE),
    ("warm_max_age", SPARES, REMOVE),
    ("warm_watch", SPARES, REMOVE),
    ("workers", "one worker watches the socket, and one program has it", REMOVE),
    ("max_connections", "one program has the socket, and how many it serves is its own matter", OWN),
    ("max_connections_per_source", NOT_SEEN, OWN),
    ("rate_per_source", NOT_SEEN, OWN),
    ("source_prefix_v4", NOT_SEEN, OWN),
    ("source_prefix_v6", NOT_SEEN, OWN),
    ("allow", NOT_SEEN, FIREWALL),
    ("deny", NOT_SEEN, FIREWALL),
    ("penalties", NOT_SEEN, OWN),
    ("penalty_threshold", NOT_SEEN, OWN),
    ("penalty_limit", NOT_SEEN, OWN),
    ("penalty_exempt", NOT_SEEN, OWN),
    ("overload", QUEUED, OWN),
    ("refuse_message", QUEUED, OWN),
    ("proxy_protocol_from", NOT_SEEN, "have the program read the header, or remove wait"),
    ("first_byte_timeout", NOT_SEEN, LIFETIME),
    ("idle_timeout", NOT_SEEN, LIFETIME),
];

const SPARES: &str = "a process ahead would have the socket, and nobody has called yet";
const NOT_SEEN: &str = "the program gets the socket itself, and preforkd sees nobody who calls";
const QUEUED: &str = "the program gets the socket itself, and who calls waits in the kernel's queue";
const REMOVE: &str = "remove it";
const OWN: &str = "remove it, and see what limits the program has of its own; or remove wait, if the program can take one connection";
const FIREWALL: &str = "say it with nftables, or with the program's own options; or remove wait, if the program can take one connection";
const LIFETIME: &str = "remove it, and think of max_lifetime, which is how long the program may run";

/// Values with which a key asks for nothing that would not be so anyway.
const HARMLESS: [(&str, &str); 6] = [
    ("spare", "0"),
    ("connections_per_child", "1"),
    ("warm", "\"no\""),
    ("workers", "1"),
    ("max_connections", "1"),
    ("overload", "\"queue\""),
];

/// What of a service cannot be, because it waits for its program or does not.
pub(super) fn faults(section: &Section<'_>, draft: &ServiceDraft) -> Vec<Fault> {
    if !draft.wait {
        return without(section, draft);
    }
    let mut faults = Vec::new();
    let mut fault = |key: &str, message: &str, help: &str| {
        let span = section.span(key);
        faults.extend(span.map(|span| Fault::new(span, message).help(help)));
    };
    fault(
        "handler",
        "wait = true is for programs: a handler is given connections, and none is accepted for it",
        "run a program with exec, or remove wait",
    );
    for (key, why, help) in OF_CONNECTIONS {
        if !is_harmless(section, key) {
            fault(key, &format!("{key} can do nothing with wait = true: {why}"), help);
        }
    }
    if draft.count_bytes == Some(true) {
        fault("count_bytes", &format!("count_bytes can do nothing with wait = true: {NOT_SEEN}"), REMOVE);
    }
    if let Some(range) = &draft.user_range {
        let message = "a range of users can do nothing with wait = true: one program has the socket, and one user is enough";
        faults.push(Fault::new(range.span(), message).help("write one user"));
    }
    let has_stream = |address: &Spanned<Address>| !matches!(address.get_ref(), Address::Udp(_));
    if !draft.listen.iter().any(has_stream) {
        let backlog = section.span("backlog").filter(|_| !draft.listen.is_empty());
        let message = "backlog can do nothing: a datagram socket has no queue of connections";
        faults.extend(backlog.map(|span| {
            Fault::new(span, message).help("remove it; net.core.rmem_default says how much is queued")
        }));
    }
    faults
}

/// A socket of datagrams has no connections that could be accepted.
fn without(section: &Section<'_>, draft: &ServiceDraft) -> Vec<Fault> {
    let udp = draft.listen.iter().filter(|address| matches!(address.get_ref(), Address::Udp(_)));
    let is_handler = section.span("handler").is_some();
    let fault = |address: &Spanned<Address>| {
        let message = format!("{} has no connections that could be accepted", address.get_ref());
        Fault::new(address.span(), message).help(match is_handler {
            true => "a handler serves connections; a program that serves datagrams is run with exec and wait = true",
            false => "add wait = true: one program gets the socket itself",
        })
    };
    udp.map(fault).collect()
}

/// What is written of this key asks for nothing.
fn is_harmless(section: &Section<'_>, key: &str) -> bool {
    let harmless = HARMLESS.iter().filter(|(name, _)| *name == key);
    let written = section.table.get(key);
    written.is_some_and(|written| harmless.clone().any(|(_, value)| says(written.get_ref(), value)))
}

fn says(written: &toml::de::DeValue<'_>, value: &str) -> bool {
    match written {
        toml::de::DeValue::Integer(number) => number.as_str() == value,
        toml::de::DeValue::String(text) => format!("\"{text}\"") == value,
        _ => false,
    }
}
