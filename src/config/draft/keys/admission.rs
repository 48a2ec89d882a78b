//! The keys of admission in the table of keys.

use crate::config::draft::{ServiceDraft, admission};
use crate::config::key::{Key, Kind};

pub(super) const OVERLOAD: Key<ServiceDraft> = Key {
    name: "overload",
    flag: Some("overload"),
    kind: Kind::Text,
    placeholder: "WHAT",
    default: Some("\"queue\""),
    example: "\"refuse\"",
    doc: "What meets a connection beyond max_connections: queue lets it wait in the backlog, refuse sends it refuse_message \
          and closes it, reset resets it; one beyond max_connections_per_source or rate_per_source cannot wait, and with queue \
          it is closed",
    decode: Some(|draft, value| admission::overload(&mut draft.admission, value)),
};

pub(super) const REFUSE_MESSAGE: Key<ServiceDraft> = Key {
    name: "refuse_message",
    flag: Some("refuse-message"),
    kind: Kind::Text,
    placeholder: "TEXT",
    default: None,
    example: "\"busy, try again later\"",
    doc: "What is sent to a connection that overload = refuse closes for lack of room: beyond max_connections, \
          max_connections_per_source or rate_per_source; at most 512 bytes",
    decode: Some(|draft, value| admission::refuse_message(&mut draft.admission, value)),
};

pub(super) const ALLOW: Key<ServiceDraft> = Key {
    name: "allow",
    flag: Some("allow"),
    kind: Kind::List,
    placeholder: "WHO",
    default: None,
    example: "[\"192.0.2.0/24\", \"2001:db8::/32\"]",
    doc: "Who is let in, and with it nobody else: prefixes of addresses, and at Unix sockets user:NAME and group:NAME; of \
          allow and deny the longest prefix decides, the user before his groups, and deny on a tie",
    decode: Some(|draft, value| admission::allow(&mut draft.admission, value)),
};

pub(super) const DENY: Key<ServiceDraft> = Key {
    name: "deny",
    flag: Some("deny"),
    kind: Kind::List,
    placeholder: "WHO",
    default: None,
    example: "\"192.0.2.7\"",
    doc: "Who is refused, as in allow; of the two the longest prefix decides, the user before his groups, and deny on a tie",
    decode: Some(|draft, value| admission::deny(&mut draft.admission, value)),
};

pub(super) const MAX_CONNECTIONS_PER_SOURCE: Key<ServiceDraft> = Key {
    name: "max_connections_per_source",
    flag: Some("max-connections-per-source"),
    kind: Kind::Number,
    placeholder: "N",
    default: None,
    example: "10",
    doc: "Live connections of one source, over all workers; a source is an address, or at a Unix socket a user",
    decode: Some(|draft, value| admission::max_connections_per_source(&mut draft.admission, value)),
};

pub(super) const RATE_PER_SOURCE: Key<ServiceDraft> = Key {
    name: "rate_per_source",
    flag: Some("rate-per-source"),
    kind: Kind::Text,
    placeholder: "RATE",
    default: None,
    example: "\"10/s burst 20\"",
    doc: "New connections of one source: a number per s, m or h, and how many may come at once",
    decode: Some(|draft, value| admission::rate_per_source(&mut draft.admission, value)),
};

pub(super) const SOURCE_PREFIX_V4: Key<ServiceDraft> = Key {
    name: "source_prefix_v4",
    flag: Some("source-prefix-v4"),
    kind: Kind::Number,
    placeholder: "N",
    default: Some("32"),
    example: "24",
    doc: "How much of an IPv4 address is its source",
    decode: Some(|draft, value| admission::source_prefix_v4(&mut draft.admission, value)),
};

pub(super) const SOURCE_PREFIX_V6: Key<ServiceDraft> = Key {
    name: "source_prefix_v6",
    flag: Some("source-prefix-v6"),
    kind: Kind::Number,
    placeholder: "N",
    default: Some("64"),
    example: "56",
    doc: "How much of an IPv6 address is its source",
    decode: Some(|draft, value| admission::source_prefix_v6(&mut draft.admission, value)),
};

pub(super) const PENALTIES: Key<ServiceDraft> = Key {
    name: "penalties",
    flag: Some("penalties"),
    kind: Kind::Table,
    placeholder: "OFFENCE=DURATION",
    default: None,
    example: "{ crash = \"1m\", timeout = \"10s\", 77 = \"5m\" }",
    doc: "What a source has to wait for: crash (its connection process crashed), timeout (a deadline ended its connection), \
          or an exit status of its connection process",
    decode: Some(|draft, value| admission::penalties(&mut draft.admission, value)),
};

pub(super) const PENALTY_THRESHOLD: Key<ServiceDraft> = Key {
    name: "penalty_threshold",
    flag: Some("penalty-threshold"),
    kind: Kind::Text,
    placeholder: "DURATION",
    default: Some("\"15s\""),
    example: "\"0s\"",
    doc: "How much of penalties has to come together until a source is refused, then for as long as they last",
    decode: Some(|draft, value| admission::penalty_threshold(&mut draft.admission, value)),
};

pub(super) const PENALTY_LIMIT: Key<ServiceDraft> = Key {
    name: "penalty_limit",
    flag: Some("penalty-limit"),
    kind: Kind::Text,
    placeholder: "DURATION",
    default: Some("\"10m\""),
    example: "\"1h\"",
    doc: "How much of penalties can come together",
    decode: Some(|draft, value| admission::penalty_limit(&mut draft.admission, value)),
};

pub(super) const PENALTY_EXEMPT: Key<ServiceDraft> = Key {
    name: "penalty_exempt",
    flag: Some("penalty-exempt"),
    kind: Kind::List,
    placeholder: "WHO",
    default: None,
    example: "[\"192.0.2.0/24\"]",
    doc: "Who never has a penalty, as in allow: such as monitoring, or many users behind one address",
    decode: Some(|draft, value| admission::penalty_exempt(&mut draft.admission, value)),
};

pub(super) const FIRST_BYTE_TIMEOUT: Key<ServiceDraft> = Key {
    name: "first_byte_timeout",
    flag: Some("first-byte-timeout"),
    kind: Kind::Text,
    placeholder: "DURATION",
    default: None,
    example: "\"10s\"",
    doc: "How long a client may take to send its first byte; for programs over TCP",
    decode: Some(|draft, value| admission::first_byte_timeout(&mut draft.admission, value)),
};

pub(super) const IDLE_TIMEOUT: Key<ServiceDraft> = Key {
    name: "idle_timeout",
    flag: Some("idle-timeout"),
    kind: Kind::Text,
    placeholder: "DURATION",
    default: None,
    example: "\"5m\"",
    doc: "How long a connection may be without a byte in either direction; for programs over TCP",
    decode: Some(|draft, value| admission::idle_timeout(&mut draft.admission, value)),
};

pub(super) const MAX_LIFETIME: Key<ServiceDraft> = Key {
    name: "max_lifetime",
    flag: Some("max-lifetime"),
    kind: Kind::Text,
    placeholder: "DURATION",
    default: None,
    example: "\"1h\"",
    doc: "How long a connection may take, all in all",
    decode: Some(|draft, value| admission::max_lifetime(&mut draft.admission, value)),
};

pub(super) const PROXY_PROTOCOL_FROM: Key<ServiceDraft> = Key {
    name: "proxy_protocol_from",
    flag: Some("proxy-protocol-from"),
    kind: Kind::List,
    placeholder: "WHO",
    default: None,
    example: "[\"192.0.2.10\", \"192.0.2.11\"]",
    doc: "The proxies whose PROXY header, version 1 or 2, is required and believed: prefixes of addresses, and unix: for \
          whoever may connect to a Unix socket",
    decode: Some(|draft, value| admission::proxy_protocol_from(&mut draft.admission, value)),
};
