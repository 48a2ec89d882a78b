//! xinetd.conf and the files of xinetd.d.

mod addresses;
mod settings;

use std::path::Path;

use super::hosts_access::HostsAccess;
use super::inetd;
use super::model::{Imported, ImportedService, Takeover, list, number, quoted};
use super::names::ServiceNames;
use super::place::{self, Host};
use addresses::{addresses, is_within};
use settings::{Attribute, Settings, Unheeded, attribute};

/// What is between braces.
#[derive(Debug, Clone)]
struct Block {
    /// `None` of `defaults`.
    service: Option<String>,
    place: String,
    attributes: Vec<Attribute>,
}

/// A file that is read beside another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Include {
    File(String),
    Directory(String),
}

/// What the files say, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    imported: Imported,
}

/// The longest line that xinetd takes, and more than anybody has services.
const LONGEST_LINE: usize = 16 * 1024;
const MOST_BLOCKS: usize = 10_000;

impl Blocks {
    /// Reads one file, and says what it includes.
    pub(crate) fn read(&mut self, file: &str, text: &str) -> Vec<Include> {
        let mut includes = Vec::new();
        let mut open: Option<Block> = None;
        let mut is_begun = false;
        for (index, line) in text.lines().enumerate() {
            let place = format!("{file}:{}", index + 1);
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let mut refuse =
                |why: &str| self.imported.add_note(&place, Takeover::Refused, trimmed, why, false);
            if trimmed.len() > LONGEST_LINE {
                refuse("the line is longer than xinetd takes");
                continue;
            }
            if let Some(block) = open.as_mut().filter(|_| is_begun) {
                if trimmed.starts_with('}') {
                    self.blocks.extend(open.take());
                } else {
                    match attribute(trimmed) {
                        Some(attribute) => block.attributes.push(attribute),
                        None => refuse("no attribute: write NAME = VALUE"),
                    }
                }
                continue;
            }
            if trimmed.starts_with('{') {
                is_begun = true;
                continue;
            }
            let words: Vec<&str> = trimmed.split_whitespace().collect();
            let has_brace = trimmed.ends_with('{');
            is_begun = has_brace;
            match words[..] {
                ["service", name, ..] if self.blocks.len() < MOST_BLOCKS => {
                    let service = Some(name.trim_end_matches('{').to_owned());
                    open = Some(Block { service, place, attributes: Vec::new() });
                }
                ["defaults" | "defaults{", ..] => {
                    open = Some(Block { service: None, place, attributes: Vec::new() });
                }
                ["include", path, ..] => includes.push(Include::File(path.to_owned())),
                ["includedir", path, ..] => includes.push(Include::Directory(path.to_owned())),
                // Half of the files for capture-the-flag games have one too many.
                ["}"] => self.imported.add_note(&place, Takeover::Dropped, "}", "it closes nothing", false),
                _ => refuse("neither service, defaults, include nor includedir"),
            }
        }
        if let Some(block) = open {
            self.imported.add_note(
                &block.place,
                Takeover::Refused,
                "a section without its }",
                "add it",
                false,
            );
        }
        includes
    }

    /// Something that could not be read.
    pub(crate) fn refuse(&mut self, place: &str, construct: &str, why: &str) {
        self.imported.add_note(place, Takeover::Refused, construct, why, false);
    }

    /// The services, with what `defaults` says.
    pub(crate) fn services(self, names: &ServiceNames, hosts: &HostsAccess) -> Imported {
        let Blocks { blocks, mut imported } = self;
        let mut defaults = Settings::default();
        for (index, block) in blocks.iter().filter(|block| block.service.is_none()).enumerate() {
            if index > 0 {
                let why = "xinetd takes the first defaults alone";
                imported.add_note(&block.place, Takeover::Dropped, "defaults", why, false);
                continue;
            }
            for attribute in &block.attributes {
                if let Some(why) = defaults.set(attribute, true) {
                    imported.add_note(&block.place, why.verdict(), &attribute.written(), why.why(), false);
                }
            }
        }
        for block in blocks {
            let Some(name) = block.service else { continue };
            let mut settings = Settings::default();
            let mut service = ImportedService::new(&name, block.place);
            for attribute in &block.attributes {
                match settings.set(attribute, false) {
                    Some(why @ Unheeded::Replaces) => service.like(attribute.written(), why.why()),
                    Some(why) => service.dropped(attribute.written(), why.why()),
                    None => (),
                }
            }
            let all = settings.over(&defaults);
            let mut reading =
                XinetdReading { service: &mut service, all, name: &name, is_udp: false, waits: false };
            reading.read(names, hosts);
            imported.services.push(service);
        }
        imported
    }
}

/// A service that is being made of its attributes.
struct XinetdReading<'a> {
    service: &'a mut ImportedService,
    all: Settings,
    name: &'a str,
    is_udp: bool,
    waits: bool,
}

/// Which only say what is logged.
const NEVER_CLOSED: &str =
    "preforkd never closes a port; rate_per_source limits each client, as in rate_per_source = \"60/m\"";

impl XinetdReading<'_> {
    fn read(&mut self, names: &ServiceNames, hosts: &HostsAccess) {
        let id = self.all.first("id").map(str::to_owned);
        self.service.name = id.unwrap_or_else(|| self.name.to_owned());
        self.switch();
        let protocol = self.all.first("protocol").map(str::to_ascii_lowercase);
        let kind = self.all.first("socket_type").map(str::to_ascii_lowercase);
        self.is_udp =
            protocol.as_deref().map_or(kind.as_deref() == Some("dgram"), |name| name.starts_with("udp"));
        self.waits = self.all.has("wait", "yes");
        let is_inside = self.all.has("type", "INTERNAL");
        self.listen(names);
        if is_inside {
            self.inside();
        } else {
            self.program();
        }
        let all = self.all.clone();
        for (name, setting) in &all.0 {
            let written = format!("{name} = {}", setting.values.join(" "));
            let written = match setting.is_default {
                true => format!("{} (of defaults)", written.trim_end()),
                false => written.trim_end().to_owned(),
            };
            self.attribute(name, &setting.values, &written, is_inside);
        }
        self.access();
        if !is_inside && !self.service.is_refused() {
            inetd::stderr(self.service, "xinetd");
        }
        self.libwrap(hosts);
    }

    fn switch(&mut self) {
        let id = self.service.name.clone();
        let disable = self.all.first("disable").map(str::to_owned);
        // For what is neither yes nor no, xinetd switches the service off, too.
        if let Some(disable) = disable.filter(|disable| !disable.eq_ignore_ascii_case("no")) {
            self.service.off = Some(format!("disable = {disable}"));
        } else if self.all.has("disabled", &id) {
            self.service.off = Some("named by disabled of defaults".to_owned());
        } else if self.all.0.contains_key("enabled") && !self.all.has("enabled", &id) {
            self.service.off = Some("not named by enabled of defaults".to_owned());
        }
    }

    fn listen(&mut self, names: &ServiceNames) {
        let kind = self.all.first("socket_type").unwrap_or("stream").to_ascii_lowercase();
        let service = &mut *self.service;
        for (refused, instead) in [
            ("RPC", "a service of Sun RPC, which is found by rpcbind; run it as a daemon of its own"),
            ("TCPMUX", "a service behind tcpmux; give it a port of its own"),
            ("TCPMUXPLUS", "a service behind tcpmux; give it a port of its own"),
        ] {
            if self.all.has("type", refused) {
                service.refused(format!("type = {refused}"), instead);
                return;
            }
        }
        if !matches!((kind.as_str(), self.is_udp), ("stream", false) | ("dgram", true)) {
            service.refused(
                format!("socket_type = {kind}"),
                "preforkd serves streams over TCP and datagrams over UDP; run it as a daemon of its own",
            );
            return;
        }
        // Of both flags IPv6 counts, with the addresses of IPv4 along: service_attr_check() of xinetd's confparse.c.
        let is_v4 = self.all.has("flags", "IPv4")
            || self.all.first("protocol").is_some_and(|name| name.ends_with('4'));
        let is_v6 = self.all.has("flags", "IPv6")
            || self.all.first("protocol").is_some_and(|name| name.ends_with('6'));
        let only_v6 = self.all.has("v6only", "yes");
        let bind = self.all.first("bind").map(str::to_owned);
        let host = match bind.as_deref() {
            Some(bind) => match Host::written(bind) {
                Some(Host::V6) if !only_v6 => Host::Both,
                Some(host) => host,
                None => {
                    let instead = "no address; write its address, as in \"192.0.2.1:PORT\"";
                    service.refused(format!("bind = {bind}"), instead);
                    return;
                }
            },
            None if is_v6 && !only_v6 => Host::Both,
            None if is_v4 && !is_v6 => Host::V4,
            None if only_v6 => Host::V6,
            None => Host::Both,
        };
        let port = self.all.first("port").unwrap_or(self.name).to_owned();
        let mut construct = match self.all.first("port") {
            Some(port) => format!("port = {port}"),
            None => format!("service {}", self.name),
        };
        if let Some(bind) = bind {
            construct.push_str(&format!(", bind = {bind}"));
        }
        place::listen(service, &construct, host, &port, self.is_udp, names);
        match (self.waits, self.is_udp) {
            _ if self.all.has("type", "INTERNAL") => {
                service.same(format!("wait, socket_type = {kind}"), "a built-in service");
            }
            (true, _) => service.exact(format!("wait = yes, socket_type = {kind}"), "wait", "true"),
            (false, true) => service.near(
                "wait = no, socket_type = dgram",
                "wait",
                "true",
                "the program gets the socket, not one datagram: it has to read by itself",
            ),
            (false, false) => {
                service.same(format!("wait = no, socket_type = {kind}"), "a process for each connection");
            }
        }
    }

    fn inside(&mut self) {
        let service = &mut *self.service;
        match self.name {
            _ if self.is_udp => service.refused(
                format!("type = INTERNAL, {} over UDP", self.name),
                "anybody could have the answers sent to somebody else; serve it over TCP, or not at all",
            ),
            "echo" | "discard" | "chargen" | "daytime" | "time" => {
                service.exact(
                    format!("type = INTERNAL, service {}", self.name),
                    "handler",
                    quoted(self.name),
                );
            }
            _ => service.refused(
                format!("type = INTERNAL, service {}", self.name),
                "preforkd has no built-in service of this name; its own state is in preforkd status",
            ),
        }
    }

    fn program(&mut self) {
        if let Some(redirect) = self.all.0.get("redirect") {
            let target = redirect.values.join(":");
            self.service.refused(
                format!("redirect = {}", redirect.values.join(" ")),
                format!(
                    "preforkd passes nothing on; run socat: exec = {}",
                    list(["/usr/bin/socat", "-", &format!("TCP:{target}")])
                ),
            );
            return;
        }
        let Some(server) = self.all.first("server").map(str::to_owned) else {
            self.service.refused("no server", "name the program");
            return;
        };
        let arguments =
            self.all.0.get("server_args").map(|setting| setting.values.clone()).unwrap_or_default();
        let names_itself = self.all.has("flags", "NAMEINARGS");
        let base =
            Path::new(&server).file_name().and_then(|name| name.to_str()).unwrap_or(&server).to_owned();
        let mut construct = format!("server = {server}");
        if !arguments.is_empty() {
            construct.push_str(&format!(", server_args = {}", arguments.join(" ")));
        }
        let (zeroth, rest) = match arguments.split_first() {
            Some((zeroth, rest)) if names_itself => (zeroth.clone(), rest),
            _ => (base.clone(), &arguments[..]),
        };
        let has_quotes = rest.iter().any(|word| word.contains(['"', '\'', '\\']));
        let comment = rest.iter().position(|word| word.starts_with('#'));
        let rest = &rest[..comment.unwrap_or(rest.len())];
        let exec = list(std::iter::once(&server).chain(rest));
        if base == "tcpd" {
            let zeroth_path = if zeroth.starts_with('/') { zeroth } else { format!("/usr/sbin/{zeroth}") };
            let exec = list(std::iter::once(&zeroth_path).chain(rest));
            self.service.near(construct, "exec", exec, "the program itself, without tcpd");
            self.service.lost(
                "tcpd",
                "the rules of hosts.allow and hosts.deny do not count any more; write them as allow and deny",
            );
            return;
        }
        match (comment, has_quotes) {
            (Some(_), _) => {
                let why = "xinetd takes what follows the # for arguments; here it is a comment";
                self.service.near(construct, "exec", exec, why);
            }
            (None, true) => {
                let why = "quotes and backslashes are part of the arguments, as in xinetd";
                self.service.near(construct, "exec", exec, why);
            }
            (None, false) => self.service.exact(construct, "exec", exec),
        }
        if zeroth != server {
            self.service.exact(format!("the program's name for itself, {zeroth}"), "argv0", quoted(&zeroth));
        }
    }

    /// Every attribute that is not the business of another function.
    fn attribute(&mut self, name: &str, values: &[String], written: &str, is_inside: bool) {
        let first = values.first().map(String::as_str).unwrap_or_default();
        let comment = values.iter().position(|value| value.starts_with('#'));
        let is_program = !is_inside;
        let single = self.is_udp || self.waits;
        let service = &mut *self.service;
        if let Some(at) = comment.filter(|at| *at > 0 && !matches!(name, "server" | "server_args")) {
            let comment = values[at..].join(" ");
            service.like(
                format!("{name}: {comment}"),
                "xinetd knows no comments at the end of a line; here it is taken for one",
            );
        }
        let setting = comment.map_or(values, |at| &values[..at]);
        match name {
            "port" | "bind" | "socket_type" | "wait" | "server" | "server_args" | "redirect" | "only_from" | "no_access" => (),
            "protocol" | "v6only" => service.about("listen", Takeover::Exact, written, ""),
            "id" => service.same(written, "the name of the service"),
            "type" if self.all.has("type", "UNLISTED") => service.same(written, "the port is written"),
            "type" => (),
            "disable" if first.eq_ignore_ascii_case("no") => service.same(written, "it is served"),
            "disable" | "disabled" | "enabled" => service.same(written, "it is served or not as this says"),
            "user" if is_program => match first {
                "" => service.refused(written, "name a user"),
                user => {
                    let groups = self.all.has("groups", "yes");
                    match groups {
                        true => service.exact(written, "user", quoted(user)),
                        false => service.near(
                            written,
                            "user",
                            quoted(user),
                            "with all groups of this user; xinetd without groups = yes gives none but the first",
                        ),
                    }
                }
            },
            "user" | "group" if is_inside => {
                service.dropped(written, "a built-in service needs nobody's rights, and gets none");
            }
            "group" => service.exact(written, "group", quoted(first)),
            "groups" => service.same(written, "preforkd gives a user all groups that he has"),
            "instances" | "per_source" if single => {
                service.same(written, "with wait there is one process");
            }
            "instances" | "per_source" => {
                let key = if name == "instances" { "max_connections" } else { "max_connections_per_source" };
                match number(first) {
                    Some(count) if count > 0 => {
                        service.exact(written, key, count.to_string());
                        if name == "instances" {
                            service.exact("xinetd closes a connection beyond instances", "overload", quoted("refuse"));
                        }
                    }
                    _ if is_unlimited(first) && name == "instances" => {
                        service.like(written, "preforkd has a limit of 1000; write max_connections for more");
                    }
                    _ if is_unlimited(first) => service.same(written, "no limit"),
                    _ => service.refused(written, "write a number"),
                }
            }
            "cps" => service.like(written, NEVER_CLOSED),
            "max_load" => service.lost(written, "preforkd does not look at the load; max_connections bounds what can be there at once"),
            "nice" if is_program => match first.parse::<i8>() {
                Ok(nice) if (-20..20).contains(&nice) => service.exact(written, "nice", nice.to_string()),
                _ => service.refused(written, "write a number from -20 to 19"),
            },
            "umask" if is_program => match u32::from_str_radix(first, 8) {
                Ok(mask) if mask <= 0o777 => service.exact(written, "umask", quoted(&format!("{mask:03o}"))),
                _ => service.refused(written, "write an octal number"),
            },
            _ if name.starts_with("rlimit_") => limit(service, name, first, written),
            "env" if is_program => environment(service, written, setting),
            "passenv" if first.is_empty() => service.same(written, "nothing is passed on"),
            "passenv" => service.like(written, "preforkd passes nothing of its own environment on; write environment = { NAME = \"VALUE\" }"),
            "flags" => flags(service, setting),
            "log_type" | "log_on_success" | "log_on_failure" => {
                let is_ident = setting.iter().any(|value| value == "USERID");
                let why = match is_ident {
                    true => "preforkd logs every connection; it never asks the client's machine for a user (USERID)",
                    false => "preforkd logs every connection, to one log for all services",
                };
                service.dropped(written, why);
            }
            "banner" | "banner_success" => {
                service.refused(written, "preforkd says nothing before the program; have a script print it: exec = [\"/bin/sh\", \"-c\", \"cat FILE; exec PROGRAM\"]");
            }
            "banner_fail" => service.dropped(
                written,
                "who is refused is told nothing; overload = \"refuse\" with refuse_message = \"TEXT\" tells those for whom there is no room",
            ),
            "access_times" => service.guarded(written, "preforkd serves all day; have a timer call preforkd pause and preforkd resume, and take the # away"),
            "deny_time" => service.guarded(written, "penalties = { … } is what preforkd has for who did wrong"),
            "mdns" => service.dropped(written, "preforkd announces nothing; avahi-daemon has files for that"),
            "libwrap" => service.dropped(written, "preforkd does not read hosts.allow and hosts.deny"),
            "rpc_version" | "rpc_number" => service.dropped(written, "it belongs to a service of Sun RPC"),
            _ => service.dropped(written, "it is about programs, and a built-in service is none"),
        }
    }

    fn access(&mut self) {
        let mut allowed = Vec::new();
        for (attribute, key) in [("only_from", "allow"), ("no_access", "deny")] {
            let Some(setting) = self.all.0.get(attribute).cloned() else { continue };
            let values = &setting.values;
            let comment = values.iter().position(|value| value.starts_with('#')).filter(|at| *at > 0);
            let values = &values[..comment.unwrap_or(values.len())];
            let written = format!("{attribute} = {}", values.join(" ")).trim_end().to_owned();
            if self.waits || self.is_udp {
                self.service.guarded(written, "with wait the program gets the socket, and preforkd sees nobody who calls (nor did xinetd); say it with nftables");
                continue;
            }
            let mut prefixes = Vec::new();
            let mut faults = Vec::new();
            let mut why_near = Vec::new();
            for value in values {
                match addresses(value) {
                    Ok(found) => prefixes.extend(found),
                    Err(why) => faults.push(format!("{value}: {why}")),
                }
                if value.eq_ignore_ascii_case("localhost") {
                    why_near.push("localhost by its addresses; xinetd asks whether the address of who calls has this name");
                }
            }
            if !faults.is_empty() {
                self.service.guarded(&written, format!("{}; write {key} with addresses", faults.join("; ")));
            } else if prefixes.is_empty() && key == "allow" {
                self.service.exact(written, "deny", list(["0.0.0.0/0", "::/0"]));
            } else if !prefixes.is_empty() {
                if key == "allow" && prefixes.iter().any(|prefix| prefix == "0.0.0.0/0") {
                    why_near
                        .push("every address of IPv4, and with it none of IPv6: add \"::/0\" if they may");
                }
                if key == "allow" {
                    allowed.clone_from(&prefixes);
                } else if allowed.iter().any(|allow| prefixes.iter().any(|deny| is_within(allow, deny))) {
                    why_near.push(
                        "of two prefixes around an address the longer counts, as xinetd.conf(5) has it; xinetd itself turns away who is in \
                         both",
                    );
                }
                match why_near.is_empty() {
                    true => self.service.exact(written, key, list(&prefixes)),
                    false => self.service.near(written, key, list(&prefixes), why_near.join("; ")),
                }
            }
        }
    }

    fn libwrap(&mut self, hosts: &HostsAccess) {
        let server = self.all.first("server").unwrap_or(self.name);
        let daemon = self.all.first("libwrap").map_or_else(
            || Path::new(server).file_name().and_then(|name| name.to_str()).unwrap_or(server).to_owned(),
            str::to_owned,
        );
        let rules = hosts.about(&daemon);
        if !rules.is_empty() && !self.all.has("flags", "NOLIBWRAP") {
            self.service.guarded(
                format!("rules of libwrap: {}", rules.join(", ")),
                "xinetd may heed them, preforkd does not read them; write them as allow and deny",
            );
        }
    }
}

fn flags(service: &mut ImportedService, values: &[String]) {
    for flag in values {
        let written = format!("flags = {flag}");
        match flag.to_ascii_uppercase().as_str() {
            "IPV4" | "IPV6" => service.about("listen", Takeover::Exact, written, ""),
            "REUSE" => service.same(written, "always so"),
            "NORETRY" => service.dropped(
                written,
                "preforkd tries again when the machine has no room for a process: nobody is turned away",
            ),
            "NAMEINARGS" => service.about("exec", Takeover::Exact, written, ""),
            "NODELAY" => service.same(written, "nodelay is the default"),
            "KEEPALIVE" => service.exact(written, "keepalive", "true"),
            "NOLIBWRAP" => service.same(written, "preforkd does not read hosts.allow"),
            "IDONLY" => service.guarded(
                written,
                "preforkd never asks the client's machine for a user; let in by allow and deny",
            ),
            "INTERCEPT" => {
                service.guarded(written, "preforkd does not look at each packet; say it with nftables");
            }
            "SENSOR" => {
                service.guarded(written, "preforkd has penalties and bans, and no port that is a trap");
            }
            "LABELED" => service.guarded(written, "preforkd sets no SELinux context by the client's"),
            _ => service.refused(written, "this flag of xinetd is not known"),
        }
    }
}

fn is_unlimited(value: &str) -> bool {
    value.eq_ignore_ascii_case("UNLIMITED")
}

/// The pairs of env. For a word without = xinetd switches the service off, and quotes are characters like others.
fn environment(service: &mut ImportedService, written: &str, words: &[String]) {
    let mut pairs = Vec::new();
    let mut has_quotes = false;
    for word in words {
        let Some((name, value)) = word.split_once('=') else {
            let instead = format!(
                "xinetd switches a service off for a word without =, as {word} is; write environment = {{ NAME = \"VALUE\" }}"
            );
            return service.refused(written, instead);
        };
        has_quotes |= word.contains(['"', '\'']);
        let bare = |text: &str| text.replace(['"', '\''], "");
        pairs.push((bare(name), quoted(&bare(value))));
    }
    if pairs.is_empty() {
        return;
    }
    service.entries(written, "environment", pairs.iter().map(|(name, value)| (name.as_str(), value.clone())));
    if has_quotes {
        let why = "xinetd takes the quotes for part of names and values; here they are left out";
        service.about("environment", Takeover::Near, written, why);
    }
}

fn limit(service: &mut ImportedService, name: &str, value: &str, written: &str) {
    let key = match name {
        "rlimit_as" => "as",
        "rlimit_cpu" => "cpu",
        "rlimit_data" => "data",
        "rlimit_files" => "nofile",
        "rlimit_stack" => "stack",
        "rlimit_rss" => {
            return service.dropped(
                written,
                "Linux has no such limit any more; limits = { memory = \"64M\" } is what there is",
            );
        }
        _ => return service.refused(written, "preforkd has no such limit; see limits in preforkd.toml(5)"),
    };
    if is_unlimited(value) {
        return service.same(written, "no limit");
    }
    let value = value.to_ascii_uppercase();
    let unit = value.chars().last().filter(|unit| matches!(unit, 'K' | 'M'));
    let amount = number(value.trim_end_matches(['K', 'M']));
    let Some(amount) = amount.filter(|amount| *amount > 0) else {
        return service.refused(written, "write a number, with K or M behind it if need be");
    };
    let new = match (key, unit) {
        ("cpu", _) => quoted(&format!("{amount}s")),
        (_, Some(unit)) => quoted(&format!("{amount}{unit}")),
        (_, None) => amount.to_string(),
    };
    service.entries(written, "limits", [(key, new)]);
}
