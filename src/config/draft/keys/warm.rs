//! The keys about warm programs in the table of keys.

use crate::config::draft::{ServiceDraft, warm};
use crate::config::key::{Key, Kind};

pub(super) const WARM: Key<ServiceDraft> = Key {
    name: "warm",
    flag: Some("warm"),
    kind: Kind::Text,
    placeholder: "HOW",
    default: Some("\"no\""),
    example: "\"start\"",
    doc: "Whether the spares of a program are the program itself, started ahead of its connection: start has it wait before its \
          main function, spare when it first asks for its connection; then it has no variables that tell of the client",
    decode: Some(|draft, value| warm::decode(&mut draft.warm, value)),
};

pub(super) const WARM_MAX_AGE: Key<ServiceDraft> = Key {
    name: "warm_max_age",
    flag: Some("warm-max-age"),
    kind: Kind::Text,
    placeholder: "DURATION",
    default: Some("\"10m\""),
    example: "\"1h\"",
    doc: "How long a warm program may wait; then another takes its place",
    decode: Some(|draft, value| warm::decode_max_age(&mut draft.warm, value)),
};

pub(super) const WARM_WATCH: Key<ServiceDraft> = Key {
    name: "warm_watch",
    flag: Some("warm-watch"),
    kind: Kind::List,
    placeholder: "PATH",
    default: None,
    example: "[\"/srv/report.py\"]",
    doc: "Files and directories; when one of them changes, all warm programs of the service are replaced at once",
    decode: Some(|draft, value| warm::decode_watch(&mut draft.warm, value)),
};
