//! The attributes of a section of xinetd, and what their lines leave them at.

use std::collections::BTreeMap;

use crate::import::model::Takeover;

/// One line of a section: its attribute, its operator, its values.
#[derive(Debug, Clone)]
pub(super) struct Attribute {
    name: String,
    operator: char,
    values: Vec<String>,
}

/// A line, if it is one of an attribute.
pub(super) fn attribute(line: &str) -> Option<Attribute> {
    let at = line.find('=')?;
    let (before, values) = (&line[..at], &line[at + 1..]);
    let (name, operator) = match before.strip_suffix(['+', '-']) {
        Some(name) => (name, if before.ends_with('+') { '+' } else { '-' }),
        None => (before, '='),
    };
    let name = name.trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return None;
    }
    let values = values.split_whitespace().map(str::to_owned).collect();
    // All words are compared by strcasecmp(3), EQ() in xinetd's defs.h.
    Some(Attribute { name: name.to_ascii_lowercase(), operator, values })
}

impl Attribute {
    pub(super) fn written(&self) -> String {
        let operator = if self.operator == '=' { String::new() } else { self.operator.to_string() };
        format!("{} {operator}= {}", self.name, self.values.join(" ")).trim_end().to_owned()
    }
}

/// Why a line of a section has not the effect that it seems to have; identify_attribute() in xinetd's parse.c.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unheeded {
    Unknown,
    NotOfDefaults,
    Second,
    Operator,
    /// It has its effect, and takes away that of a line before.
    Replaces,
}

impl Unheeded {
    pub(super) fn why(self) -> &'static str {
        match self {
            Unheeded::Unknown => "xinetd does not know it either, and ignores it",
            Unheeded::NotOfDefaults => "xinetd ignores it in defaults; write it in each service",
            Unheeded::Second => "it is set already: xinetd keeps the first, and ignores this",
            Unheeded::Operator => "xinetd takes = alone for it, and ignores this",
            Unheeded::Replaces => {
                "in a service = replaces what lines before said, as in xinetd; += would add to it"
            }
        }
    }

    pub(super) fn verdict(self) -> Takeover {
        if self == Unheeded::Replaces { Takeover::Near } else { Takeover::Dropped }
    }
}

/// The attributes of a section, as their operators leave them.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings(pub(super) BTreeMap<String, AttributeValues>);

/// The values of an attribute; if they only add, those of `defaults` are before them.
#[derive(Debug, Clone, Default)]
pub(super) struct AttributeValues {
    pub(super) values: Vec<String>,
    adds: bool,
    removed: Vec<String>,
    pub(super) is_default: bool,
}

/// What a service may have: service_attributes in xinetd's parse.c, and mdns of versions before.
const OF_SERVICE: [&str; 44] = [
    "socket_type",
    "protocol",
    "wait",
    "user",
    "group",
    "server",
    "server_args",
    "instances",
    "log_on_success",
    "log_on_failure",
    "log_type",
    "only_from",
    "no_access",
    "access_times",
    "type",
    "rpc_version",
    "rpc_number",
    "id",
    "env",
    "port",
    "passenv",
    "flags",
    "nice",
    "redirect",
    "banner",
    "bind",
    "per_source",
    "groups",
    "banner_success",
    "banner_fail",
    "cps",
    "disable",
    "max_load",
    "rlimit_as",
    "rlimit_cpu",
    "rlimit_data",
    "rlimit_files",
    "rlimit_rss",
    "rlimit_stack",
    "v6only",
    "deny_time",
    "umask",
    "libwrap",
    "mdns",
];

/// What defaults may have: default_attributes there.
const OF_DEFAULTS: [&str; 20] = [
    "log_type",
    "log_on_success",
    "log_on_failure",
    "disabled",
    "no_access",
    "only_from",
    "instances",
    "passenv",
    "banner",
    "bind",
    "per_source",
    "groups",
    "banner_success",
    "banner_fail",
    "cps",
    "enabled",
    "max_load",
    "v6only",
    "umask",
    "mdns",
];

/// Lists that operators change; of all others, the first line counts.
fn is_list(name: &str, is_default: bool) -> bool {
    match name {
        "only_from" | "no_access" | "log_on_success" | "log_on_failure" | "passenv" => true,
        "env" => !is_default,
        "log_type" | "disabled" | "enabled" => is_default,
        _ => false,
    }
}

impl Settings {
    pub(super) fn set(&mut self, attribute: &Attribute, is_default: bool) -> Option<Unheeded> {
        let name = match attribute.name.as_str() {
            "interface" => "bind",
            name => name,
        };
        match is_default {
            true if !OF_DEFAULTS.contains(&name) && OF_SERVICE.contains(&name) => {
                return Some(Unheeded::NotOfDefaults);
            }
            true if !OF_DEFAULTS.contains(&name) => return Some(Unheeded::Unknown),
            false if !OF_SERVICE.contains(&name) => return Some(Unheeded::Unknown),
            _ => (),
        }
        let is_new = !self.0.contains_key(name);
        if !is_list(name, is_default) {
            if !is_new {
                return Some(Unheeded::Second);
            }
            if attribute.operator != '=' {
                return Some(Unheeded::Operator);
            }
        }
        let entry = self.0.entry(name.to_owned()).or_default();
        entry.is_default = is_default;
        match attribute.operator {
            '-' => {
                entry.values.retain(|value| !attribute.values.contains(value));
                entry.removed.extend(attribute.values.iter().cloned());
                entry.adds |= is_new;
            }
            '=' if !is_default => {
                let was = std::mem::take(entry);
                entry.values = attribute.values.clone();
                return (!was.values.is_empty()).then_some(Unheeded::Replaces);
            }
            _ => {
                entry.values.extend(attribute.values.iter().cloned());
                entry.adds |= is_new;
            }
        }
        None
    }

    pub(super) fn over(mut self, defaults: &Settings) -> Settings {
        for (name, default) in &defaults.0 {
            match self.0.get_mut(name) {
                None => {
                    self.0.insert(name.clone(), default.clone());
                }
                Some(own) if own.adds => {
                    let kept = default.values.iter().filter(|value| !own.removed.contains(value));
                    own.values = kept.cloned().chain(own.values.iter().cloned()).collect();
                }
                Some(_) => (),
            }
        }
        self
    }

    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.values.first().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str, value: &str) -> bool {
        self.0
            .get(name)
            .is_some_and(|setting| setting.values.iter().any(|word| word.eq_ignore_ascii_case(value)))
    }
}
