//! Command lines of socat(1) that listen, and serve each client with a program or pass him on.
//!
//! An address of socat is a type, its parameters, and options. What preforkd does itself becomes keys. What only socat does, such as
//! a terminal for the program or a connection to elsewhere, it goes on doing, as the program of each connection.

use super::model::{ImportedService, Takeover, list, number, quoted};
use super::names::ServiceNames;
use super::place::{self, Host};
use super::script::ScriptWord;

/// One of its two addresses.
struct SocatAddress {
    kind: String,
    parameters: Vec<String>,
    options: Vec<SocatOption>,
}

/// `NAME` or `NAME=VALUE`.
struct SocatOption {
    name: String,
    value: Option<String>,
    /// As it is written, with its quotes.
    written: String,
}

/// Where it listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listens {
    Tcp(Option<Host>),
    Unix,
    Abstract,
    /// In a way that preforkd does not.
    Otherwise,
}

/// Whether the words after "socat" have it listen.
pub(super) fn listens(words: &[ScriptWord]) -> bool {
    let mut addresses = words.iter().map(|word| word.text.as_str()).filter(|word| !word.starts_with('-'));
    addresses.any(|word| SocatAddress::parse(word).listens().is_some())
}

/// Its program, where it is the program of each connection.
const SOCAT: &str = "/usr/bin/socat";

const ONLY_THE_SCRIPT_KNOWS: &str =
    "only the script itself knows what this is; write the value in its place, and import again";

impl SocatAddress {
    fn parse(text: &str) -> Self {
        let mut parts = parts(text, &[',']).into_iter();
        let head = parts.next().unwrap_or_default();
        let mut words = self::parts(&head, &[':']).into_iter();
        let kind = words.next().unwrap_or_default();
        let parameters = words.map(|word| bare(&word)).collect();
        let options = parts.filter(|part| !part.is_empty()).map(|written| {
            let (name, value) = match written.split_once('=') {
                Some((name, value)) => (name, Some(bare(value))),
                None => (written.as_str(), None),
            };
            SocatOption { name: name.to_ascii_lowercase(), value, written: written.clone() }
        });
        let options = options.collect();
        SocatAddress { kind: kind.to_ascii_uppercase(), parameters, options }
    }

    fn listens(&self) -> Option<Listens> {
        Some(match self.kind.as_str() {
            "TCP-LISTEN" | "TCP-L" => Listens::Tcp(None),
            "TCP4-LISTEN" | "TCP4-L" => Listens::Tcp(Some(Host::V4)),
            "TCP6-LISTEN" | "TCP6-L" => Listens::Tcp(Some(Host::V6)),
            "UNIX-LISTEN" | "UNIX-L" => Listens::Unix,
            "ABSTRACT-LISTEN" | "ABSTRACT-L" => Listens::Abstract,
            kind if kind.ends_with("-LISTEN") || kind.ends_with("-L") || kind.ends_with("-RECVFROM") => {
                Listens::Otherwise
            }
            _ => return None,
        })
    }

    fn option(&self, names: &[&str]) -> Option<&SocatOption> {
        self.options.iter().rfind(|option| names.contains(&option.name.as_str()))
    }
}

impl SocatOption {
    /// Whether it is on, as `reuseaddr`, `reuseaddr=1` and `ipv6only=0` say it.
    fn is_on(&self) -> bool {
        self.value.as_deref() != Some("0")
    }
}

fn is_program(kind: &str) -> bool {
    ["EXEC", "SYSTEM", "SHELL"].iter().any(|program| program.eq_ignore_ascii_case(kind))
}

/// Splits at what is in no quotes and no brackets, and leaves these as they are.
fn parts(text: &str, at: &[char]) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut open: Vec<char> = Vec::new();
    let mut is_escaped = false;
    for character in text.chars() {
        let ends = open.last() == Some(&character);
        let is_quoted = matches!(open.last(), Some('\'' | '"'));
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if ends => {
                open.pop();
            }
            '\'' | '"' if !is_quoted => open.push(character),
            '(' if !is_quoted => open.push(')'),
            '[' if !is_quoted => open.push(']'),
            '{' if !is_quoted => open.push('}'),
            _ if open.is_empty() && at.contains(&character) => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts
}

/// Without its quotes.
fn bare(text: &str) -> String {
    let mut result = String::new();
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => result.push('\n'),
                Some('t') => result.push('\t'),
                Some('r') => result.push('\r'),
                Some(other) => result.push(other),
                None => {}
            },
            '\'' | '"' if quote.is_none() => quote = Some(character),
            _ if quote == Some(character) => quote = None,
            _ => result.push(character),
        }
    }
    result
}

/// Who the programs are to be, as far as the command line says it.
#[derive(Debug, Default)]
pub(super) struct SocatUser {
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
}

/// In which directory it is started.
#[derive(Debug, Clone, Copy)]
pub(super) enum StartedIn<'a> {
    Known(&'a str),
    /// A unit says it elsewhere, or it is /.
    Unit,
    /// Where whoever ran the script was.
    Unknown,
}

/// Reads the words after "socat".
pub(super) fn read(
    service: &mut ImportedService,
    words: &[ScriptWord],
    from: StartedIn<'_>,
    names: &ServiceNames,
) -> SocatUser {
    let mut reading = SocatReading {
        service,
        names,
        directory: if let StartedIn::Known(directory) = from { Some(directory.to_owned()) } else { None },
        is_anywhere: matches!(from, StartedIn::Unknown),
        kept: Vec::new(),
        changes: Vec::new(),
        why_kept: Vec::new(),
        identity: SocatUser::default(),
    };
    reading.command(words);
    reading.identity
}

struct SocatReading<'a> {
    service: &'a mut ImportedService,
    names: &'a ServiceNames,
    directory: Option<String>,
    /// Nobody knows where it is started.
    is_anywhere: bool,
    /// Its own options that only it knows what to do with, and those of its connection.
    kept: Vec<String>,
    changes: Vec<String>,
    /// What it has to go on doing.
    why_kept: Vec<&'static str>,
    identity: SocatUser,
}

impl SocatReading<'_> {
    fn command(&mut self, words: &[ScriptWord]) {
        if let Some(open) = words.iter().find(|word| word.is_open) {
            self.service.refused(&open.text, ONLY_THE_SCRIPT_KNOWS);
            return;
        }
        let mut words = words.iter().map(|word| word.text.as_str()).peekable();
        while let Some(word) = words.next_if(|word| word.starts_with('-') && word.len() > 1) {
            if !self.general(word, &mut words) {
                return;
            }
        }
        let addresses: Vec<&str> = words.collect();
        let [first, second] = addresses[..] else {
            self.service.refused(addresses.join(" "), "socat takes two addresses");
            return;
        };
        let (one, other) = (SocatAddress::parse(first), SocatAddress::parse(second));
        let (listener, target, written) = match (one.listens(), other.listens()) {
            (Some(_), Some(_)) => {
                self.service.refused(
                    format!("{first} {second}"),
                    "nobody serves the clients of the second one: write two services",
                );
                return;
            }
            (Some(_), None) => (one, other, second),
            (None, _) => (other, one, first),
        };
        self.listen(&listener);
        self.serve(&target, written);
    }

    /// An option of its own; false if what follows cannot be told.
    fn general<'w>(&mut self, word: &'w str, words: &mut impl Iterator<Item = &'w str>) -> bool {
        let letter = word.chars().nth(1).unwrap_or_default();
        let rest: String = word.chars().skip(2).collect();
        let with_value = matches!(letter, 't' | 'T' | 'b' | 'L' | 'W')
            || word == "-lf"
            || word == "-lp"
            || word == "-r"
            || word == "-R";
        let is_apart = matches!(word, "-lf" | "-lp") || rest.is_empty();
        let value = if with_value && is_apart { words.next().map(str::to_owned) } else { None };
        let written = [Some(word.to_owned()), value].into_iter().flatten().collect::<Vec<_>>();
        let text = written.join(" ");
        match letter {
            'd' | 'D' | 'l' => {
                self.service.dropped(text, "preforkd logs every connection, to the journal or to stderr");
            }
            'v' | 'x' | 'r' | 'R' => {
                self.service.dropped(text, "what is moved is shown nowhere: preforkd does not see it");
            }
            'T' => {
                self.kept.extend(written);
                self.why_kept.push("who says nothing for so long is let go by socat");
                self.service.same(text, "socat goes on doing it");
            }
            'u' | 'U' => {
                self.kept.extend(written);
                self.why_kept.push("only one direction is passed on");
                self.service.same(text, "socat goes on doing it");
            }
            't' | 'b' | 'g' | 's' | 'S' | 'h' => {
                self.service.dropped(text, "the program has the connection itself");
            }
            'L' | 'W' => self.service.dropped(text, "preforkd has its port for itself"),
            '4' | '6' => self.service.dropped(text, "the address says it"),
            _ => {
                self.service.refused(text, "this option is not known; see what it does");
                return false;
            }
        }
        true
    }

    fn listen(&mut self, address: &SocatAddress) {
        let written = [std::slice::from_ref(&address.kind), address.parameters.as_slice()].concat().join(":");
        let Some(parameter) = address.parameters.first().filter(|_| address.parameters.len() == 1) else {
            self.service.refused(written, "it is not known where this listens");
            return;
        };
        match address.listens() {
            Some(Listens::Tcp(family)) => self.listen_at_port(&written, family, parameter, address),
            Some(Listens::Unix) if !parameter.starts_with('/') => {
                self.service.refused(written, "write the whole path of the socket");
            }
            Some(Listens::Unix) => {
                self.service.listen.push(place::unix(parameter));
                self.service.about("listen", Takeover::Exact, &written, "");
                self.name(parameter.rsplit('/').next().and_then(|name| name.split('.').next()).unwrap_or("unix"));
            }
            Some(Listens::Abstract) => {
                self.service.listen.push(format!("unix:@{parameter}"));
                self.service.about("listen", Takeover::Exact, &written, "");
                self.name(parameter);
            }
            Some(Listens::Otherwise) | None if address.kind.contains("SSL") => self.service.guarded(
                written,
                "preforkd speaks no TLS: have socat, stunnel or haproxy accept it, and pass it on to this service at a Unix socket",
            ),
            Some(Listens::Otherwise) | None => self.service.refused(
                written,
                "preforkd listens for TCP and at Unix sockets; for datagrams it has wait = true, where the program gets the socket itself",
            ),
        }
        let is_unix = matches!(address.listens(), Some(Listens::Unix));
        if address.option(&["fork"]).is_none() {
            self.service.like(
                "no fork",
                "socat serves one client and ends; preforkd serves all of them, at the same time",
            );
        }
        if address.option(&["max-children"]).is_none() {
            self.service
                .like("no max-children", "preforkd has a limit of 1000; write max_connections for more");
        }
        address.options.iter().for_each(|option| self.listening(option, is_unix));
    }

    fn name(&mut self, name: &str) {
        if self.service.name.is_empty() {
            self.service.name = name.to_owned();
        }
    }

    fn listen_at_port(&mut self, written: &str, family: Option<Host>, port: &str, address: &SocatAddress) {
        let pf = address.option(&["pf", "protocol-family"]).and_then(|option| option.value.as_deref());
        let family = match pf {
            Some("ip4" | "ipv4" | "inet" | "inet4" | "2") => Some(Host::V4),
            Some("ip6" | "ipv6" | "inet6" | "10") => Some(Host::V6),
            _ => family,
        };
        let only = address.option(&["ipv6only", "ipv6-v6only", "v6only"]);
        let bind = address.option(&["bind"]).and_then(|option| option.value.clone());
        let host = match &bind {
            Some(host) => Host::written(host),
            // One at every address of IPv6 takes those of IPv4 along, ipv6(7).
            None if family == Some(Host::V6) && only.is_none_or(|only| !only.is_on()) => Some(Host::Both),
            None => {
                if family.is_none() {
                    self.service.like("no pf", "socat before 1.8 listens at addresses of IPv4 only");
                }
                Some(family.unwrap_or(Host::Both))
            }
        };
        match host {
            Some(host) => place::listen(self.service, written, host, port, false, self.names),
            None => self.service.refused(
                format!("bind={}", bind.unwrap_or_default()),
                "the host is no address; write its address",
            ),
        }
        let name = number(port)
            .map_or_else(|| port.to_owned(), |port| self.names.name(u16::try_from(port).unwrap_or(0)));
        self.name(&name);
    }

    /// An option of the address that listens.
    fn listening(&mut self, option: &SocatOption, is_unix: bool) {
        let service = &mut *self.service;
        let written = option.written.as_str();
        let value = option.value.clone().unwrap_or_default();
        match option.name.as_str() {
            "fork" => service.same(written, "each connection has a process of its own"),
            "reuseaddr" | "so-reuseaddr" | "reuseport" | "so-reuseport" => {
                service.same(written, "preforkd can always begin again at its address");
            }
            // listen_at_port has said why.
            "bind" if Host::written(&value).is_none() => (),
            "bind" | "pf" | "protocol-family" | "ipv6only" | "ipv6-v6only" | "v6only" | "type"
            | "so-type" | "prototype" => {
                service.dropped(written, "the address says it");
            }
            "backlog" if number(&value).is_some_and(|backlog| backlog > 0) => {
                service.exact(written, "backlog", value);
            }
            "max-children" if number(&value).is_some_and(|most| most > 0) => {
                service.exact(written, "max_connections", value);
            }
            "range" => match place::prefix(&value.replacen(
                ':',
                "/",
                usize::from(!value.contains('/') && value.contains('.')),
            )) {
                Some(prefix) => service.exact(written, "allow", list([prefix])),
                None => service
                    .guarded(written, "write allow with the addresses, as in allow = [\"192.0.2.0/24\"]"),
            },
            "tcpwrap" | "tcpwrappers" | "libwrap" | "allow-table" | "hosts-allow" | "deny-table"
            | "hosts-deny" | "tcpwrap-etc" | "tcpwrap-dir" => {
                service
                    .guarded(written, "preforkd does not read hosts.allow(5) for it; write allow and deny");
            }
            "lowport" | "sourceport" | "sp" => {
                service.guarded(written, "preforkd does not look at the port of a client; take this option away, or have a firewall do it");
            }
            "su" | "substuser" | "su-d" | "substuser-delayed" | "setuid" | "setuid-early" | "su-e"
            | "substuser-early" => self.identity.user = Some(value),
            "setgid" | "setgid-early" => self.identity.group = Some(value),
            "chroot" | "chroot-early" => service
                .refused(written, "the program is looked for inside: write chroot, and see preforkd.toml(5)"),
            "mode" | "perm" if is_unix && u32::from_str_radix(&value, 8).is_ok_and(|mode| mode <= 0o777) => {
                service.exact(written, "socket_mode", quoted(&format!("{:0>4}", value)));
            }
            "user" | "uid" | "owner" if is_unix => service.exact(written, "socket_user", quoted(&value)),
            "group" | "gid" if is_unix => service.exact(written, "socket_group", quoted(&value)),
            "user" | "uid" | "owner" | "group" | "gid" | "mode" | "perm" => {
                service.dropped(written, "a port has no owner");
            }
            "unlink" | "unlink-early" | "unlink-close" => {
                service.same(written, "preforkd takes away what another process has left at its path");
            }
            "umask" => service.exact(written, "umask", quoted(&format!("{value:0>3}"))),
            "nodelay" | "tcp-nodelay" => match option.is_on() {
                true => service.same(written, "nodelay is the default"),
                false => service.exact(written, "nodelay", "false"),
            },
            "keepalive" | "so-keepalive" if option.is_on() => service.exact(written, "keepalive", "true"),
            "interface" | "so-bindtodevice" | "bindtodevice" | "if" => {
                service.exact(written, "interface", quoted(&value));
            }
            "retry" | "interval" | "forever" | "listen-timeout" | "accept-timeout" | "cloexec"
            | "nonblock" | "o-nonblock" | "pktinfo" | "ip-pktinfo" => {
                service.dropped(written, "preforkd serves until it is stopped");
            }
            "crlf" | "crnl" | "cr" => {
                self.changes.push(written.to_owned());
                self.why_kept.push("it changes the ends of lines");
                service.same(written, "socat goes on doing it");
            }
            "rcvbuf" | "so-rcvbuf" | "sndbuf" | "so-sndbuf" | "linger" | "so-linger" | "mss" | "maxseg"
            | "tcp-maxseg" | "end-close" | "ignoreeof" | "shut-down" | "shut-close" | "shut-none"
            | "shut-null" | "null-eof" => {
                service.like(
                    written,
                    "the kernel's defaults hold, and the program sees the end of its client itself",
                );
            }
            _ => service.refused(
                written,
                "this option is not known; see what it does, and take it away if nothing is lost",
            ),
        }
    }

    /// The address that serves.
    fn serve(&mut self, address: &SocatAddress, written: &str) {
        let command = address.parameters.first().cloned().unwrap_or_default();
        match address.kind.as_str() {
            "-" | "STDIO" | "STDIN" | "STDOUT" | "FD" => {
                self.service
                    .refused(written, "there is no terminal that clients could talk to; name a program");
                return;
            }
            "PIPE" | "ECHO" if address.parameters.is_empty() => {
                self.service.exact(written, "handler", quoted("echo"));
                return;
            }
            "EXEC" | "SYSTEM" | "SHELL" if command.is_empty() => {
                self.service.refused(written, "no program");
                return;
            }
            kind if is_program(kind) && address.parameters.len() > 1 => {
                let instead = "socat cuts a command at a colon that is in no quotes: write it with quotes, or without what is lost";
                self.service.refused(written, instead);
                return;
            }
            kind if is_program(kind) => {}
            _ => self.why_kept.push("it passes the connection on"),
        }
        let mut left = Vec::new();
        if address.option(&["pty", "openpty", "ptmx"]).is_some() {
            self.why_kept.push("it gives the program a terminal");
        }
        if address.option(&["fdin", "fdout"]).is_some() {
            self.why_kept.push("the program has its connection at another descriptor");
        }
        for option in &address.options {
            if !is_program(&address.kind) || !self.serving(option) {
                left.push(option.written.clone());
            }
        }
        let words = match address.kind.as_str() {
            "EXEC" => self.program(&command),
            _ => ["/bin/sh", "-c", &command].map(str::to_owned).to_vec(),
        };
        let is_relative = |program: &&String| program.contains('/') && !program.starts_with('/');
        if self.directory.is_none() {
            let script =
                place::relative_script(words.iter().map(String::as_str)).filter(|_| self.is_anywhere);
            match words.first().filter(is_relative).map(String::as_str).or(script) {
                Some(program) => self.service.refused(program, place::FROM_WHERE),
                None => self
                    .service
                    .like("no cd", "programs run in /; write working_directory if it has to be another"),
            }
        }
        let (head, _) = written.split_at(parts(written, &[',']).first().map_or(written.len(), String::len));
        if self.why_kept.is_empty() {
            self.service.exact(head, "exec", list(&words));
            if address.option(&["login", "dash"]).is_some() {
                let name = words.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
                self.service.exact("login", "argv0", quoted(&format!("-{name}")));
            }
            self.service.like(
                "SOCAT_PEERADDR and the like",
                "the program finds REMOTE_ADDR and REMOTE_PORT in its environment instead, see preforkd.toml(5)",
            );
        } else {
            let target = [&[head.to_owned()], left.as_slice()].concat().join(",");
            let mut exec = vec![SOCAT.to_owned()];
            exec.append(&mut self.kept);
            exec.push([&["STDIO".to_owned()], self.changes.as_slice()].concat().join(","));
            exec.push(target);
            let why = self.why_kept.join(", ");
            self.service.near(
                written,
                "exec",
                list(&exec),
                format!("socat is the program of each connection, as {why}; SOCAT_PEERADDR is not set"),
            );
        }
    }

    /// An option of the program; false if socat has to see it.
    fn serving(&mut self, option: &SocatOption) -> bool {
        let service = &mut *self.service;
        let written = option.written.as_str();
        let value = option.value.clone().unwrap_or_default();
        match option.name.as_str() {
            "su" | "substuser" | "su-d" | "substuser-delayed" | "setuid" => self.identity.user = Some(value),
            "setgid" => self.identity.group = Some(value),
            _ if !self.why_kept.is_empty() => return false,
            "stderr" => service.exact(written, "stderr", quoted("connection")),
            "chdir" | "cd" if value.starts_with('/') => {
                service.exact(written, "working_directory", quoted(&value));
            }
            "umask" => service.exact(written, "umask", quoted(&format!("{value:0>3}"))),
            "path" => service.entries(written, "environment", [("PATH", quoted(&value))]),
            "login" | "dash" | "nofork" | "socketpair" | "pipes" | "commtype" => {
                service.same(written, "the program has the connection itself at stdin and stdout");
            }
            "setsid" | "setpgid" | "ctty" | "sigint" | "sigquit" | "sighup" | "sane" | "raw" | "rawer"
            | "echo" | "cfmakeraw" | "icanon" | "iexten" | "isig" => {
                service.dropped(written, "there is no terminal, and a connection process is alone already");
            }
            "end-close" | "shut-down" | "shut-close" | "shut-none" | "shut-null" | "ignoreeof" => {
                service.like(written, "the program sees the end of its client itself");
            }
            _ => service.refused(
                written,
                "this option is not known; see what it does, and take it away if nothing is lost",
            ),
        }
        true
    }

    /// The words of a command, which has quotes of its own; from where the script is.
    fn program(&self, command: &str) -> Vec<String> {
        let words = parts(command, &[' ']).into_iter().filter(|word| !word.is_empty());
        let mut words: Vec<String> = words.map(|word| bare(&word)).collect();
        if let (Some(program), Some(directory)) = (words.first_mut(), &self.directory) {
            if program.contains('/') && !program.starts_with('/') {
                *program =
                    format!("{}/{}", directory.trim_end_matches('/'), program.trim_start_matches("./"));
            }
        }
        words
    }
}
