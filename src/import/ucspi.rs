//! ScriptCommand lines of tcpserver, s6-tcpserver and s6-ipcserver, with what stands before them, from run scripts.

use std::path::Path;

use super::model::{Imported, ImportedService, Takeover, list, number, quoted, table};
use super::names::ServiceNames;
use super::place::{self, Host};
use super::script::{ScriptCommand, ScriptWord, commands};
use super::xinetd::add_limit;

/// A script and what lies beside it.
#[derive(Debug, Default)]
pub(crate) struct Script<'a> {
    pub(crate) file: &'a str,
    pub(crate) text: &'a str,
    /// The service by the directory of the script.
    pub(crate) name: Option<String>,
}

/// The text of a file that a command line names, if it can be read.
pub(crate) type Beside<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The services that a script starts.
pub(crate) fn parse(script: &Script<'_>, names: &ServiceNames, beside: Beside<'_>) -> Imported {
    let mut imported = Imported::default();
    for command in commands(script.text) {
        if !command.words.iter().any(|word| server_of(&word.text).is_some()) {
            continue;
        }
        let place = format!("{}:{}", script.file, command.line);
        let mut service = ImportedService::new(script.name.as_deref().unwrap_or_default(), place);
        let mut reading = ChainReading {
            service: &mut service,
            words: command.words.iter(),
            names,
            beside,
            identity: RunAs::default(),
        };
        reading.read(&command);
        if service.name.is_empty() {
            service.name = "service".to_owned();
        }
        imported.services.push(service);
    }
    imported
}

/// Whether a text is such a script.
pub(crate) fn is_script(text: &str) -> bool {
    text.split(|c: char| c.is_whitespace() || c == '"').any(|word| server_of(word).is_some())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SuperServer {
    Tcpserver,
    S6Tcp,
    S6Ipc,
}

fn server_of(word: &str) -> Option<SuperServer> {
    match base(word) {
        "tcpserver" => Some(SuperServer::Tcpserver),
        "s6-tcpserver" | "s6-tcpserver4" | "s6-tcpserver6" => Some(SuperServer::S6Tcp),
        "s6-ipcserver" => Some(SuperServer::S6Ipc),
        _ => None,
    }
}

fn base(word: &str) -> &str {
    Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or(word)
}

/// Who the programs are to be.
#[derive(Debug, Default)]
struct RunAs {
    /// Of setuidgid and the like before the server.
    whole: Option<String>,
    /// Of envuidgid, for `-U`.
    named: Option<String>,
    user: Option<String>,
    group: Option<String>,
}

struct ChainReading<'a, 'w> {
    service: &'a mut ImportedService,
    words: std::slice::Iter<'w, ScriptWord>,
    names: &'a ServiceNames,
    beside: Beside<'a>,
    identity: RunAs,
}

impl ChainReading<'_, '_> {
    fn read(&mut self, command: &ScriptCommand) {
        let Some(server) = self.before() else { return };
        let arguments = match server {
            SuperServer::Tcpserver => self.options("1UXpPhHrRoOdDqQv46se", "cxBgublutLIiakKE", server),
            SuperServer::S6Tcp => self.options("qQv1d46U", "cCbGgu", server),
            SuperServer::S6Ipc => self.options("qQv1dDpPU", "cCbGgua", server),
        };
        if !arguments {
            return;
        }
        match server {
            SuperServer::S6Ipc => self.path(),
            SuperServer::Tcpserver | SuperServer::S6Tcp => self.host_and_port(),
        }
        self.defaults(server);
        self.access_programs();
        self.program();
        self.who(server);
        for redirection in &command.redirections {
            self.service
                .dropped(redirection, "what the program says to stderr is in the log, with its connection");
        }
    }

    fn next(&mut self) -> Option<ScriptWord> {
        self.words.next().cloned()
    }

    fn peek(&self) -> Option<&ScriptWord> {
        self.words.as_slice().first()
    }

    /// A word that has to be there and be known.
    fn known(&mut self, of: &str) -> Option<String> {
        match self.next() {
            Some(word) if !word.is_open => Some(word.text),
            Some(word) => {
                let instead = "only the script itself knows what this is; write the value in its place, and import again";
                self.service.refused(format!("{of} {}", word.text), instead);
                None
            }
            None => {
                self.service.refused(of, "something is missing after it");
                None
            }
        }
    }

    /// What stands before the server: programs that change something and go on.
    fn before(&mut self) -> Option<SuperServer> {
        while let Some(word) = self.next() {
            if let Some(server) = server_of(&word.text) {
                return Some(server);
            }
            let text = word.text.as_str();
            match base(text) {
                "exec" | "fghack" | "pgrphack" | "setsid" | "s6-setsid" | "nohup" | "command" => {
                    self.service.dropped(text, "a connection process of preforkd is alone already");
                }
                "env" | "exec-c" | "emptyenv" => {
                    if matches!(self.peek().map(|word| word.text.as_str()), Some("-" | "-i")) {
                        self.next();
                    }
                    self.service.same(text, "programs have no environment but PATH and what is written");
                }
                _ if text.contains('=') && !word.is_open => {
                    if let Some((name, value)) = text.split_once('=') {
                        let value = table([(name, quoted(value))]);
                        self.service.exact(text, "environment", value);
                    }
                }
                "softlimit" => self.softlimit(),
                "s6-softlimit" => self.softlimit(),
                "setuidgid" | "s6-setuidgid" | "s6-applyuidgid" => self.identity.whole = self.known(text),
                "envuidgid" | "s6-envuidgid" => self.identity.named = self.known(text),
                "envdir" | "s6-envdir" => {
                    if let Some(directory) = self.known(text) {
                        self.service.refused(
                            format!("{text} {directory}"),
                            "preforkd reads no such directories; write NAME=value lines into a file, and its path into environment_file",
                        );
                    }
                }
                "fdmove" => {
                    let mut moved = text.to_owned();
                    while let Some(word) = self.peek().filter(|word| word.text == "-c" || number(&word.text).is_some()).cloned() {
                        moved.push_str(&format!(" {}", word.text));
                        self.next();
                    }
                    let why = match moved.split(' ').any(|number| number == "2") {
                        true => "what the program says to stderr is in the log, with its connection",
                        false => "preforkd tells systemd when it serves",
                    };
                    self.service.dropped(moved, why);
                }
                "cd" | "s6-cd" => {
                    if let Some(directory) = self.known(text) {
                        match directory.starts_with('/') {
                            true => self.service.exact(format!("{text} {directory}"), "working_directory", quoted(&directory)),
                            false => self.service.refused(format!("{text} {directory}"), "write working_directory"),
                        }
                    }
                }
                "nice" => {
                    let nice = match self.peek().map(|word| word.text.clone()) {
                        Some(flag) if flag == "-n" => {
                            self.next();
                            self.known("nice -n")
                        }
                        Some(flag) => flag.strip_prefix("-n").or_else(|| flag.strip_prefix('-')).map(|nice| {
                            self.next();
                            nice.to_owned()
                        }),
                        None => None,
                    };
                    let nice = nice.unwrap_or_else(|| "10".to_owned());
                    match nice.parse::<i8>().ok().filter(|nice| (-20..20).contains(nice)) {
                        Some(nice) => self.service.exact(format!("nice {nice}"), "nice", nice.to_string()),
                        None => self.service.refused(format!("nice {nice}"), "write a number from -20 to 19"),
                    }
                }
                _ => self.service.refused(text, "preforkd does not know what this program does to the server; say it with keys, or put it before the program"),
            }
        }
        self.service.refused("", "there is no server in it");
        None
    }

    fn softlimit(&mut self) {
        while let Some(flag) =
            self.peek().map(|word| word.text.clone()).filter(|word| word.starts_with('-') && word.len() > 1)
        {
            self.next();
            let (letter, value) =
                (flag.chars().nth(1).unwrap_or(' '), flag.chars().skip(2).collect::<String>());
            let value = match value.is_empty() {
                true => self.known(&format!("softlimit {flag}")),
                false => Some(value),
            };
            let Some(value) = value else { continue };
            let written = format!("softlimit -{letter} {value}");
            let keys: &[&str] = match letter {
                'm' => &["as", "data", "stack", "memlock"],
                'd' => &["data"],
                's' => &["stack"],
                'l' => &["memlock"],
                'a' => &["as"],
                'o' => &["nofile"],
                'p' => &["nproc"],
                'f' => &["fsize"],
                'c' => &["core"],
                't' => &["cpu"],
                'r' => {
                    self.service.dropped(written, "Linux has no such limit any more");
                    continue;
                }
                _ => &[],
            };
            match (keys, number(&value)) {
                ([], _) | (_, None) => {
                    self.service.refused(written, "write limits in its place, see preforkd.toml(5)");
                }
                (keys, Some(amount)) => {
                    for key in keys {
                        let value =
                            if *key == "cpu" { quoted(&format!("{amount}s")) } else { amount.to_string() };
                        add_limit(self.service, &written, key, &value);
                    }
                }
            }
        }
    }

    /// The options of the server; false if they cannot be made out.
    fn options(&mut self, flags: &str, with_value: &str, server: SuperServer) -> bool {
        while let Some(word) =
            self.peek().cloned().filter(|word| word.text.starts_with('-') && word.text.len() > 1)
        {
            self.next();
            if word.text == "--" {
                break;
            }
            let letters: Vec<char> = word.text.chars().skip(1).collect();
            for (index, letter) in letters.iter().enumerate() {
                if with_value.contains(*letter) {
                    let rest: String = letters.get(index + 1..).unwrap_or_default().iter().collect();
                    let value = match rest.is_empty() {
                        // The name of this host, which nobody needs to know.
                        true if *letter == 'l' => self.next().map(|word| word.text),
                        true => self.known(&format!("-{letter}")),
                        false if word.is_open && *letter != 'l' => {
                            let instead = "only the script itself knows what this is; write the value in its place, and import again";
                            self.service.refused(&word.text, instead);
                            None
                        }
                        false => Some(rest),
                    };
                    if let Some(value) = value {
                        self.option(*letter, &value, server);
                    }
                    break;
                }
                if !flags.contains(*letter) {
                    self.service.refused(
                        &word.text,
                        format!("-{letter} is no option that is known; see what it does"),
                    );
                    return false;
                }
                self.flag(*letter, server);
            }
        }
        true
    }

    fn flag(&mut self, letter: char, server: SuperServer) {
        let written = format!("-{letter}");
        let service = &mut *self.service;
        match (letter, server) {
            ('U', _) => match self.identity.named.take() {
                Some(name) => self.identity.user = Some(name),
                None => service.refused(written, "the user is in the environment; write user"),
            },
            ('X', _) => service.dropped(written, "the rules are in the configuration"),
            ('p' | 'P' | 'h' | 'H' | 'r' | 'R', SuperServer::Tcpserver) => {
                service.dropped(
                    written,
                    "preforkd never asks for names: TCPREMOTEHOST and TCPREMOTEINFO are not set",
                );
            }
            ('P', SuperServer::S6Ipc) => {
                service.like(written, "IPCREMOTEEUID and IPCREMOTEEGID are set all the same");
            }
            ('p', _) => service.same(written, "IPCREMOTEEUID and IPCREMOTEEGID are set"),
            ('D', SuperServer::Tcpserver) => service.same(written, "nodelay is the default"),
            ('d', SuperServer::Tcpserver) => {
                service.like(written, "with nodelay; write nodelay = false if small writes are to wait");
            }
            ('o' | 'O', _) => service.dropped(written, "options of IP are not looked at"),
            ('1', _) => service.dropped(written, "preforkd tells systemd when it serves"),
            ('4' | '6', _) => service.dropped(written, "the address says it"),
            _ => service.dropped(written, "it is about what is printed, and preforkd logs every connection"),
        }
    }

    fn option(&mut self, letter: char, value: &str, server: SuperServer) {
        let written = format!("-{letter} {value}");
        let service = &mut *self.service;
        match (letter, number(value)) {
            ('c', Some(count)) if count > 0 => service.exact(written, "max_connections", count.to_string()),
            ('C', Some(count)) if count > 0 => service.exact(written, "max_connections_per_source", count.to_string()),
            ('b', Some(count)) => service.exact(written, "backlog", count.max(1).to_string()),
            ('c' | 'C' | 'b', _) => service.refused(written, "write a number"),
            ('u', _) => self.identity.user = Some(value.to_owned()),
            ('g', _) => self.identity.group = Some(value.to_owned()),
            ('G', _) => service.like(written, "preforkd gives the groups that /etc/group gives the user"),
            ('a', _) if server == SuperServer::S6Ipc => match u32::from_str_radix(value, 8) {
                Ok(mode) if mode <= 0o777 => service.exact(written, "socket_mode", quoted(&format!("{mode:04o}"))),
                _ => service.refused(written, "write an octal number"),
            },
            ('l' | 't', _) => service.dropped(written, "preforkd never asks for names"),
            ('x', _) => self.rules(value),
            ('B', _) => service.refused(written, "preforkd says nothing before the program; have a script print it: exec = [\"/bin/sh\", \"-c\", \"printf TEXT; exec PROGRAM\"]"),
            ('I', _) => service.exact(written, "interface", quoted(value)),
            _ => service.refused(written, "this option is not known; see what it does"),
        }
    }

    /// Rules of tcprules(1), from the text beside the compiled file.
    fn rules(&mut self, file: &str) {
        let written = format!("-x {file}");
        let text = file.strip_suffix(".cdb").and_then(|text| Some((text, (self.beside)(text)?)));
        let Some((text, rules)) = text else {
            self.service.guarded(
                written,
                "the rules are compiled, and their text is not beside them; write them as allow and deny",
            );
            return;
        };
        match tcprules(&rules) {
            Ok((allow, deny)) => {
                for (key, prefixes) in [("allow", allow), ("deny", deny)] {
                    if !prefixes.is_empty() {
                        self.service.exact(format!("{written}, by {text}"), key, list(&prefixes));
                    }
                }
            }
            Err(line) => self.service.guarded(
                format!("{written}: {line}"),
                "a rule by name, or one that sets a variable for some clients: preforkd has neither; write allow and deny, and two services for two environments",
            ),
        }
    }

    fn host_and_port(&mut self) {
        let (Some(host), Some(port)) = (self.known("HOST"), self.known("PORT")) else { return };
        let written = format!("{host} {port}");
        let at = if host == "0" { Some(Host::V4) } else { Host::written(&host) };
        match at {
            Some(host) => place::listen(self.service, &written, host, &port, false, self.names),
            None => self.service.refused(written, "the host is no address; write its address"),
        }
        if self.service.name.is_empty() {
            self.service.name = match number(&port) {
                Some(port) => self.names.name(u16::try_from(port).unwrap_or(0)),
                None => port,
            };
        }
    }

    fn path(&mut self) {
        let Some(path) = self.known("PATH") else { return };
        if !path.starts_with('/') {
            self.service.refused(path, "write the whole path of the socket");
            return;
        }
        self.service.listen.push(place::unix(&path));
        self.service.about("listen", Takeover::Exact, &path, "");
        if !self.service.keys.contains_key("socket_mode") {
            self.service.exact("s6-ipcserver without -a: anybody may connect", "socket_mode", quoted("0777"));
        }
        if self.service.name.is_empty() {
            self.service.name =
                Path::new(&path).file_stem().and_then(|stem| stem.to_str()).unwrap_or("unix").to_owned();
        }
    }

    fn defaults(&mut self, server: SuperServer) {
        if !self.service.keys.contains_key("max_connections") {
            self.service.exact("40 connections at once, the default", "max_connections", "40");
        }
        self.service.same("who is beyond that waits", "overload = \"queue\" is the default");
        let _ = server;
    }

    /// Programs that look at the client and go on.
    fn access_programs(&mut self) {
        while let Some(word) = self.peek().map(|word| word.text.clone()) {
            let (with_value, is_access) = match base(&word) {
                "s6-tcpserver-access" => ("vltixBb", true),
                "s6-ipcserver-access" => ("vlix", true),
                _ => return,
            };
            let _ = is_access;
            self.next();
            let mut rules = None;
            while let Some(flag) = self
                .peek()
                .map(|word| word.text.clone())
                .filter(|word| word.starts_with('-') && word.len() > 1)
            {
                self.next();
                if flag == "--" {
                    break;
                }
                let letter = flag.chars().find(|letter| with_value.contains(*letter));
                let value = match letter {
                    Some(letter) if flag.ends_with(letter) => self.next().map(|word| word.text),
                    _ => Some(flag.chars().skip(2).collect()),
                };
                if flag.contains(['i', 'x']) {
                    rules = Some(format!("{word} {flag} {}", value.unwrap_or_default()));
                }
            }
            match rules {
                Some(rules) => self.service.guarded(rules, "preforkd does not read these rules; write them as allow and deny, or keep this program: put it before yours in exec"),
                None => self.service.like(word, "it looked up names, and preforkd does not: TCPREMOTEHOST is not set"),
            }
        }
    }

    fn program(&mut self) {
        let words: Vec<ScriptWord> = self.words.by_ref().cloned().collect();
        let written = words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ");
        if words.is_empty() {
            self.service.refused("no program", "name one");
        } else if words.iter().any(|word| word.is_open) {
            self.service.refused(written, "only the script itself knows what all of this is; write the values in its place, and import again");
        } else {
            self.service.exact(written, "exec", list(words.iter().map(|word| &word.text)));
        }
    }

    fn who(&mut self, server: SuperServer) {
        let RunAs { whole, named, user, group } = std::mem::take(&mut self.identity);
        let service = &mut *self.service;
        match (user, whole) {
            (Some(user), _) => service.exact(format!("user {user}"), "user", quoted(&user)),
            (None, Some(user)) => match user.split_once(':') {
                Some((user, group)) => {
                    service.exact(format!("user {user}"), "user", quoted(user));
                    service.exact(format!("group {group}"), "group", quoted(group));
                }
                None => {
                    let how = match server {
                        SuperServer::S6Ipc => {
                            "of the programs; the socket is preforkd's, as socket_user and socket_group say"
                        }
                        _ => "of the programs; the port is preforkd's, and may be below 1024",
                    };
                    service.near(format!("user {user}"), "user", quoted(&user), how);
                }
            },
            (None, None) => {
                service.exact("no -u: root", "user", quoted("root"));
                service.about("user", Takeover::Exact, "SECURITY", "think whether it has to be root");
            }
        }
        if let Some(group) = group {
            service.exact(format!("group {group}"), "group", quoted(&group));
        }
        if let Some(named) = named {
            service.refused(format!("envuidgid {named}"), "the program finds UID and GID in its environment; write environment = { UID = \"…\", GID = \"…\" } and user = \"root\"");
        }
    }
}

/// Whom rules let in and keep out; or the first of them that has no equal.
fn tcprules(text: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let (mut allow, mut deny) = (Vec::new(), Vec::new());
    let mut default = true;
    for line in text
        .lines()
        .take(100_000)
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let fault = || line.to_owned();
        let (address, instruction) = line.split_once(':').ok_or_else(fault)?;
        let is_allowed = match instruction {
            "allow" => true,
            "deny" => false,
            _ => return Err(fault()),
        };
        if address.is_empty() {
            default = is_allowed;
            continue;
        }
        let prefixes = rule_prefixes(address).ok_or_else(fault)?;
        if is_allowed { &mut allow } else { &mut deny }.extend(prefixes);
    }
    match default {
        // An allow list alone would deny the rest.
        true if !allow.is_empty() => allow.extend(["0.0.0.0/0".to_owned(), "::/0".to_owned()]),
        true => (),
        false if allow.is_empty() => deny = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
        false => (),
    }
    Ok((allow, deny))
}

/// `10.1.2.3`, `10.1.`, `10.1.2-5.`, `10.0.0.0/8`.
fn rule_prefixes(address: &str) -> Option<Vec<String>> {
    if address.contains('/') || address.contains("::") {
        return place::prefix(address).map(|prefix| vec![prefix]);
    }
    let is_start = address.ends_with('.');
    let parts: Vec<&str> = address.trim_end_matches('.').split('.').collect();
    if parts.is_empty() || parts.len() > 4 || (!is_start && parts.len() != 4) {
        return None;
    }
    let (last, before) = parts.split_last()?;
    let (low, high) = last.split_once('-').unwrap_or((last, last));
    let (low, high): (u8, u8) = (low.parse().ok()?, high.parse().ok()?);
    let before: Option<Vec<u8>> = before.iter().map(|part| part.parse().ok()).collect();
    let before = before?;
    let length = 8 * parts.len();
    let prefixes = (low..=high).map(|last| {
        let mut octets: Vec<String> = before.iter().map(u8::to_string).collect();
        octets.push(last.to_string());
        octets.resize(4, "0".to_owned());
        format!("{}/{length}", octets.join("."))
    });
    Some(prefixes.collect())
}
