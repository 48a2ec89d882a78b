//! inetd.conf of the BSDs, Debian's openbsd-inetd and GNU inetutils.

use std::path::Path;

use super::hosts_access::HostsAccess;
use super::model::{Imported, ImportedService, Takeover, list, number, quoted};
use super::names::ServiceNames;
use super::place::{self, Host};

/// What a line may refer to.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) names: &'a ServiceNames,
    pub(crate) hosts: &'a HostsAccess,
}

/// A line that is one service, with all that continues it.
struct ServiceLine {
    number: usize,
    text: String,
    off: Option<String>,
}

/// All services of a text; `file` is its name for places.
pub(crate) fn parse(file: &str, text: &str, around: &Surroundings<'_>) -> Imported {
    let mut imported = Imported::default();
    let mut default_host = None;
    for line in service_lines(file, text, &mut imported) {
        let place = format!("{file}:{}", line.number);
        let fields = fields(&line.text);
        match fields[..] {
            // It says for what follows at which address.
            [host] if host.ends_with(':') && line.off.is_none() => {
                let host = host.trim_end_matches(':');
                default_host = (host != "*").then(|| host.to_owned());
                imported.add_note(
                    &place,
                    Takeover::Exact,
                    &line.text,
                    "it is in the listen of what follows",
                    false,
                );
            }
            [name, "on" | "off", ..] | [name, _, "on" | "off", ..] if line.text.contains('=') => {
                let mut service = ImportedService::new(name, place);
                service.refused(
                    &line.text,
                    "NetBSD's notation of keys and values; write it as a line of six fields, and import that",
                );
                imported.services.push(service);
            }
            [name, kind, protocol, wait, user, server, ref arguments @ ..] => {
                let mut service = ImportedService::new("", place);
                service.off = line.off;
                let words = InetdLine { name, kind, protocol, wait, user, server, arguments };
                words.read(&mut service, default_host.as_deref(), around);
                merge(service, &mut imported.services);
            }
            _ => imported.add_note(
                &place,
                Takeover::Refused,
                &line.text,
                "a service has at least six fields: service, type, protocol, wait, user, program",
                false,
            ),
        }
    }
    imported
}

/// The fields of a line. From the program on, one that begins with a quote goes on to the next such quote, if that ends a word: where
/// it does not, nobody means a quote.
fn fields(text: &str) -> Vec<&str> {
    let mut fields = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let ends = |at: &usize| rest[*at..].chars().nth(1).is_none_or(char::is_whitespace);
        let quote = rest.chars().next().filter(|first| fields.len() >= 6 && matches!(first, '"' | '\''));
        let end = quote.and_then(|quote| Some(rest[1..].find(quote)? + 1).filter(ends)).map(|end| end + 1);
        let (field, after) =
            rest.split_at(end.or_else(|| rest.find(char::is_whitespace)).unwrap_or(rest.len()));
        fields.push(field);
        rest = after.trim_start();
    }
    fields
}

/// What is between the quotes of a field that is all in quotes.
fn bare(field: &str) -> Option<&str> {
    ['"', '\''].iter().find_map(|quote| field.strip_prefix(*quote)?.strip_suffix(*quote))
}

/// Whether a text looks like a line of inetd.conf.
fn is_service(text: &str) -> bool {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let starts = |word: &str, starts: &[&str]| starts.iter().any(|start| word.starts_with(start));
    matches!(fields[..], [_, kind, protocol, wait, _, _, ..]
        if starts(kind, &["stream", "dgram", "raw", "rdm", "seqpacket"])
            && starts(protocol, &["tcp", "udp", "unix", "rpc/", "faith/"])
            && starts(wait, &["wait", "nowait"]))
}

fn service_lines(file: &str, text: &str, imported: &mut Imported) -> Vec<ServiceLine> {
    let mut lines: Vec<ServiceLine> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let place = || format!("{file}:{number}");
        if line.trim().is_empty() {
            continue;
        }
        if let Some(policy) = line.strip_prefix("#@") {
            let why = "an IPsec policy of KAME; set it with ip xfrm or the firewall";
            imported.add_note(&place(), Takeover::Dropped, policy, why, true);
        } else if let Some(comment) = line.trim_start().strip_prefix('#') {
            // update-inetd(8) of Debian marks what a package or an administrator has switched off.
            let (off, rest) = [("<off>#", "switched off by update-inetd"), ("disabled#", "disabled")]
                .iter()
                .find_map(|(mark, why)| Some((*why, comment.strip_prefix(mark)?)))
                .unwrap_or(("a comment", comment));
            let rest = rest.trim_start_matches(['#', ' ', '\t']);
            if is_service(rest) {
                lines.push(ServiceLine { number, text: rest.to_owned(), off: Some(off.to_owned()) });
            }
        } else if line.starts_with(".include") {
            imported.add_note(&place(), Takeover::Refused, line, "import those files by their names", false);
        } else if line.starts_with([' ', '\t']) && !is_service(line) {
            match lines.last_mut().filter(|last| last.off.is_none() && last.text.len() < 65_536) {
                Some(last) => {
                    last.text.push(' ');
                    last.text.push_str(line.trim());
                }
                None => lines.push(ServiceLine { number, text: line.trim().to_owned(), off: None }),
            }
        } else {
            lines.push(ServiceLine { number, text: line.trim().to_owned(), off: None });
        }
    }
    lines
}

/// The same service in both families is one.
fn merge(service: ImportedService, services: &mut Vec<ImportedService>) {
    let is_same = |other: &&mut ImportedService| {
        other.name == service.name
            && other.keys == service.keys
            && other.off == service.off
            && !other.is_refused()
            && !service.is_refused()
            && !other.listen.iter().any(|address| service.listen.contains(address))
    };
    match services.iter_mut().find(is_same) {
        Some(other) => {
            other.listen.extend(service.listen);
            let more = service.notes.into_iter().filter(|note| note.key == Some("listen"));
            other.notes.extend(more.collect::<Vec<_>>());
        }
        None => services.push(service),
    }
}

/// The fields of a line.
struct InetdLine<'a> {
    name: &'a str,
    kind: &'a str,
    protocol: &'a str,
    wait: &'a str,
    user: &'a str,
    server: &'a str,
    arguments: &'a [&'a str],
}

/// What a protocol says of the sockets.
struct InetdFamily {
    is_udp: bool,
    hosts: Vec<Host>,
}

impl InetdLine<'_> {
    fn read(&self, service: &mut ImportedService, default_host: Option<&str>, around: &Surroundings<'_>) {
        let (kind, more) = self.kind.split_once(',').unwrap_or((self.kind, ""));
        if !more.is_empty() {
            let (backlog, filter) = more.split_once(':').unwrap_or((more, ""));
            match number(backlog) {
                Some(backlog) => service.exact(self.kind, "backlog", backlog.to_string()),
                None => service.dropped(self.kind, "preforkd has a queue of 4096"),
            }
            if !filter.is_empty() {
                service
                    .dropped(filter, "an accept filter of the BSDs; defer_accept = \"10s\" is the nearest");
            }
        }
        let is_inside = self.server == "internal";
        let listens = self.listens(kind, service, default_host, around);
        if !listens && !service.is_refused() {
            service.refused(self.name, "there is no address in it");
        }
        let is_udp = self.protocol.starts_with("udp");
        self.waits(kind, is_inside, service);
        if is_inside {
            self.inside(is_udp, service);
        } else {
            self.user(service);
            self.program(service, around);
            stderr(service, "inetd");
        }
    }

    /// Fills in name and listen.
    fn listens(
        &self,
        kind: &str,
        service: &mut ImportedService,
        default_host: Option<&str>,
        around: &Surroundings<'_>,
    ) -> bool {
        let construct = format!("{} {} {}", self.name, self.kind, self.protocol);
        let (protocol, options) = self.protocol.split_once(',').unwrap_or((self.protocol, ""));
        if !options.is_empty() {
            service.dropped(options, "the kernel sizes the buffers of sockets by itself");
        }
        if protocol == "unix" || self.name.starts_with('/') {
            let stem = Path::new(self.name).file_stem().and_then(|stem| stem.to_str()).unwrap_or("unix");
            service.name = stem.to_owned();
            if kind != "stream" {
                service.refused(&construct, "preforkd has no datagrams at Unix sockets; leave it to systemd");
                return false;
            }
            service.listen.push(place::unix(self.name));
            service.about(
                "listen",
                Takeover::Near,
                construct,
                "inetd made the file by its umask; here socket_mode says who may connect",
            );
            service.exact("the file's mode with a umask of 022", "socket_mode", quoted("0755"));
            return true;
        }
        let (written_host, name) = match self.name.rsplit_once(':') {
            Some((host, name)) => (Some(host), name),
            None => (default_host, self.name),
        };
        let (family, is_known) = family(protocol);
        service.name = match number(name) {
            Some(port) => around.names.name(u16::try_from(port).unwrap_or(0)),
            None => name.to_owned(),
        };
        if protocol.starts_with("rpc/") {
            service.refused(
                &construct,
                "a service of Sun RPC, which is found by rpcbind; run it as a daemon of its own",
            );
        } else if name.contains('/') {
            service.refused(&construct, "a service behind tcpmux; give it a port of its own");
        } else if !is_known || !matches!((kind, family.is_udp), ("stream", false) | ("dgram", true)) {
            service.refused(
                &construct,
                "preforkd serves streams over TCP and at Unix sockets, and datagrams over UDP; run it as a daemon of its own",
            );
        }
        if service.is_refused() {
            return false;
        }
        let written: Vec<&str> = written_host.map(|hosts| hosts.split(',').collect()).unwrap_or_default();
        let mut hosts = Vec::new();
        for host in written.into_iter().map(|host| host.trim_matches(' ')).filter(|host| !host.is_empty()) {
            match Host::written(host) {
                Some(Host::Both) => hosts.extend(family.hosts.clone()),
                Some(host) => hosts.push(host),
                None => {
                    let instead =
                        format!("{host} is no address; write its address, as in \"192.0.2.1:{name}\"");
                    service.refused(&construct, instead);
                    return false;
                }
            }
        }
        if hosts.is_empty() {
            hosts = family.hosts;
        }
        for host in hosts {
            place::listen(service, &construct, host, name, family.is_udp, around.names);
        }
        let others = match protocol {
            "tcp" => {
                "IPv4 only, as Debian's and the BSDs' inetd has it; GNU inetd listens at IPv6, too: that would be \"*:PORT\""
            }
            "tcp6" => {
                "IPv6 only, as Debian's and the BSDs' inetd has it; those of Solaris, GNU and busybox listen at IPv4, too: that would be \"*:PORT\""
            }
            _ => return true,
        };
        if written_host.is_none() {
            service.about("listen", Takeover::Near, protocol, others);
        }
        true
    }

    fn waits(&self, kind: &str, is_inside: bool, service: &mut ImportedService) {
        let (word, limits) = match self.wait.find(['.', ':', '/']) {
            Some(at) => self.wait.split_at(at),
            None => (self.wait, ""),
        };
        let waits = match word {
            "wait" => true,
            "nowait" => false,
            _ => {
                service.refused(self.wait, "write wait or nowait");
                return;
            }
        };
        let construct = format!("{kind} {}", self.wait);
        match (waits, kind) {
            _ if is_inside => service.same(construct, "a built-in service"),
            (true, _) => service.exact(construct, "wait", "true"),
            (false, "dgram") => {
                service.near(
                    construct,
                    "wait",
                    "true",
                    "the program gets the socket, not one datagram: it has to read by itself",
                );
            }
            (false, _) => service.same(construct, "a process for each connection"),
        }
        let mut limits = limits.chars();
        match limits.next() {
            Some('.' | ':') => service.like(
                format!("{}: at most so many a minute, or the port is closed for ten", self.wait),
                "preforkd never closes a port; rate_per_source limits each client instead, as in rate_per_source = \"60/m\"",
            ),
            Some('/') => self.free_bsd(limits.as_str(), waits || is_inside, service),
            _ => (),
        }
    }

    /// `/max-child[/max-connections-per-ip-per-minute[/max-child-per-ip]]`.
    fn free_bsd(&self, limits: &str, is_single: bool, service: &mut ImportedService) {
        let keys = ["max_connections", "rate_per_source", "max_connections_per_source"];
        for (key, written) in keys.into_iter().zip(limits.split('/')) {
            let construct = format!("{}: {key} {written}", self.wait);
            match number(written) {
                Some(0) => service.same(construct, "no limit"),
                Some(_) if is_single && key == "max_connections" => {
                    service.same(construct, "there is one process");
                }
                Some(_) if is_single => service.like(construct, "there is no such limit for it"),
                Some(count) if key == "rate_per_source" => service.near(
                    construct,
                    key,
                    quoted(&format!("{count}/m burst {count}")),
                    "counted by a bucket that fills all the time, not anew each minute",
                ),
                Some(count) => service.exact(construct, key, count.to_string()),
                None => service.refused(construct, "write numbers after wait or nowait"),
            }
        }
    }

    fn user(&self, service: &mut ImportedService) {
        let (account, class) = self.user.split_once('/').unwrap_or((self.user, ""));
        if !class.is_empty() {
            service.dropped(
                format!("login class {class}"),
                "Linux has none; limits and nice say what such a class did",
            );
        }
        match account.split_once(':').or_else(|| account.rsplit_once('.')) {
            Some((user, group)) if !user.is_empty() && !group.is_empty() => {
                let verdict = if account.contains(':') {
                    ""
                } else {
                    "a user's name may have a dot, too; then write it whole"
                };
                if verdict.is_empty() {
                    service.exact(account, "user", quoted(user));
                } else {
                    service.near(account, "user", quoted(user), verdict);
                }
                service.exact(format!("group {group}"), "group", quoted(group));
            }
            _ if account.is_empty() => service.refused(self.user, "write a user"),
            _ => service.exact(account, "user", quoted(account)),
        }
    }

    fn inside(&self, is_udp: bool, service: &mut ImportedService) {
        let name = self.name.rsplit(':').next().unwrap_or_default();
        let name = number(name).map_or(name, |port| match port {
            7 => "echo",
            9 => "discard",
            13 => "daytime",
            19 => "chargen",
            37 => "time",
            _ => name,
        });
        if is_udp {
            service.refused(
                format!("{name} internal over UDP"),
                "anybody could have the answers sent to somebody else; serve it over TCP, or not at all",
            );
            return;
        }
        match name {
            "echo" | "discard" | "chargen" | "daytime" | "time" => {
                service.exact(format!("{name} internal"), "handler", quoted(name));
                service.dropped(
                    format!("user {}", self.user),
                    "a built-in service needs nobody's rights: where preforkd is root, it is a user whom nobody else is",
                );
            }
            "auth" | "ident" => service.refused(
                format!("{name} internal"),
                "preforkd has no ident service; run one with exec, such as oidentd, or leave the port closed",
            ),
            "tcpmux" => service
                .refused("tcpmux internal", "preforkd has no tcpmux; give each service a port of its own"),
            _ => service.refused(format!("{name} internal"), "preforkd has no built-in service of this name"),
        }
    }

    fn program(&self, service: &mut ImportedService, around: &Surroundings<'_>) {
        let command = std::iter::once(self.server).chain(self.arguments.iter().copied()).collect::<Vec<_>>();
        let construct = command.join(" ");
        let comment = self.arguments.iter().position(|word| word.starts_with('#'));
        let arguments = &self.arguments[..comment.unwrap_or(self.arguments.len())];
        let file_name =
            |path: &str| Path::new(path).file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let is_tcpd = file_name(self.server).as_deref() == Some("tcpd");
        let (path, zeroth, rest): (String, Option<&str>, &[&str]) = match (is_tcpd, arguments) {
            (true, []) => {
                service.refused(construct, "tcpd without a program; name it");
                return;
            }
            (true, [program, rest @ ..]) => {
                // What is no path is in the directory that tcpd was built for, REAL_DAEMON_DIR.
                let path = if program.starts_with('/') {
                    (*program).to_owned()
                } else {
                    format!("/usr/sbin/{program}")
                };
                (path, Some(*program), rest)
            }
            (false, []) => (self.server.to_owned(), None, &[]),
            (false, [zeroth, ..]) if zeroth.starts_with('-') => (self.server.to_owned(), None, arguments),
            (false, [zeroth, rest @ ..]) => (self.server.to_owned(), Some(*zeroth), rest),
        };
        let words: Vec<&str> = rest.iter().map(|word| bare(word).unwrap_or(word)).collect();
        let has_quotes = rest.iter().any(|word| bare(word).is_some());
        let exec = list(std::iter::once(path.as_str()).chain(words));
        if has_quotes {
            service.about(
                "exec",
                Takeover::Near,
                "quotes",
                format!(
                    "they hold words together, as in the inetds of FreeBSD, NetBSD and GNU; in those of OpenBSD, Debian and busybox they are \
                     characters like others: there it was {}",
                    list(std::iter::once(path.as_str()).chain(rest.iter().flat_map(|word| word.split_whitespace())))
                ),
            );
        }
        if comment.is_some() {
            let why = "inetd takes what follows the # for arguments; here it is a comment";
            service.about("exec", Takeover::Near, &construct, why);
        }
        if is_tcpd {
            service.near(&construct, "exec", exec, "the program itself, without tcpd");
            tcpd(service, &path, zeroth.unwrap_or_default(), rest, around.hosts);
        } else if zeroth.is_none() && !rest.is_empty() {
            let why = "the program's own name is missing before its arguments, and inetd takes the first one for it; here it is an argument";
            service.near(&construct, "exec", exec, why);
        } else if has_quotes || comment.is_some() {
            service.keys.insert("exec", exec);
        } else if rest.iter().any(|word| word.contains(['"', '\''])) {
            service.near(
                &construct,
                "exec",
                exec,
                "quotes that hold no whole word are part of it, as in the inetds of OpenBSD, Debian and busybox; others may take them out",
            );
        } else {
            service.exact(&construct, "exec", exec);
        }
        if !path.contains('/') {
            service.about(
                "exec",
                Takeover::Near,
                &path,
                "a bare name is looked for in PATH; inetd looked in /",
            );
        }
        let differs = zeroth.is_some_and(|zeroth| zeroth != path);
        if let Some(zeroth) = zeroth.filter(|_| differs) {
            service.exact(format!("the program's name for itself, {zeroth}"), "argv0", quoted(zeroth));
        }
    }
}

/// Descriptor 2 of a program.
pub(crate) fn stderr(service: &mut ImportedService, of: &str) {
    match service.waits() {
        true => service.like(
            "descriptor 2 is the socket",
            format!("with {of}; here what the program says to stderr is in the log"),
        ),
        false => {
            let construct = format!("descriptor 2 is the client's, as {of} has it");
            service.exact(construct, "stderr", quoted("connection"));
        }
    }
}

/// What becomes of the rules of tcpd.
fn tcpd(service: &mut ImportedService, path: &str, zeroth: &str, rest: &[&str], hosts: &HostsAccess) {
    let daemon = Path::new(zeroth).file_name().and_then(|name| name.to_str()).unwrap_or(zeroth);
    let rules = hosts.about(daemon);
    if !rules.is_empty() {
        let argv0 = if zeroth.starts_with('/') { path } else { zeroth };
        service.guarded(
            format!("rules of tcpd: {}", rules.join(", ")),
            format!(
                "preforkd does not read them; write them as allow and deny, or keep tcpd: exec = {}, argv0 = {}",
                list(std::iter::once("/usr/sbin/tcpd").chain(rest.iter().copied())),
                quoted(argv0)
            ),
        );
    } else if hosts.files.is_empty() {
        service.lost(
            format!("tcpd, rules for {daemon}"),
            "hosts.allow and hosts.deny were not found beside this file; if the machine has rules there, they do not count any \
             more: write them as allow and deny",
        );
    } else {
        service.same(
            format!("tcpd, rules for {daemon}"),
            format!("{} have none about it", hosts.files.join(" and ")),
        );
    }
}

/// The sockets of a protocol, and whether it is known.
fn family(protocol: &str) -> (InetdFamily, bool) {
    let (is_udp, hosts) = match protocol {
        "tcp" | "tcp4" | "tcp/ttcp" => (false, vec![Host::V4]),
        "tcp6" | "tcp6only" => (false, vec![Host::V6]),
        "tcp46" => (false, vec![Host::Both]),
        "udp" | "udp4" => (true, vec![Host::V4]),
        "udp6" | "udp6only" => (true, vec![Host::V6]),
        "udp46" => (true, vec![Host::V4, Host::V6]),
        other => return (InetdFamily { is_udp: other.contains("udp"), hosts: Vec::new() }, false),
    };
    (InetdFamily { is_udp, hosts }, true)
}

/// Whether a text has a line of inetd.conf, be it a comment.
pub(crate) fn has_service(text: &str) -> bool {
    text.lines()
        .any(|line| is_service(line.trim_start_matches("#<off>#").trim_start_matches(['#', ' ', '\t'])))
}
