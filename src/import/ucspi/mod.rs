//! Command lines of tcpserver, tcpsvd, s6-tcpserver, s6-ipcserver and socat, with what stands before them, from run scripts.

mod before;
mod ncat;
mod unfold;

use std::collections::BTreeMap;
use std::path::Path;

use before::BranchPath;

use crate::import::client_rules::{PeerFile, RuleLists, instructions, tcprules};
use crate::import::model::{Imported, ImportedService, Takeover, list, number, quoted};
use crate::import::names::ServiceNames;
use crate::import::place::{self, Host};
use crate::import::script::{ScriptCommand, ScriptWord, account, commands};
use crate::import::socat::{self, SocatUser, StartedIn};

/// A script and what lies beside it.
#[derive(Debug, Default)]
pub(crate) struct Script<'a> {
    pub(crate) file: &'a str,
    pub(crate) text: &'a str,
    /// The service by the directory of the script.
    pub(crate) name: Option<String>,
}

/// What a command line names, if it can be read.
pub(crate) trait Beside {
    /// The text of a file.
    fn text(&self, file: &str) -> Option<String>;

    /// The files of a directory of instructions for tcpsvd.
    fn peers(&self, directory: &str) -> Option<Vec<PeerFile>>;
}

/// The services that a script starts.
pub(crate) fn parse(script: &Script<'_>, names: &ServiceNames, beside: &dyn Beside) -> Imported {
    let origin = |line| format!("{}:{line}", script.file);
    let start = ServerStart {
        origin: &origin,
        name: script.name.as_deref(),
        user: RunAs::default(),
        variables: &BTreeMap::new(),
        prepare: &|_| (),
    };
    let services = services(commands(script.text), &start, names, beside);
    Imported { services, ..Imported::default() }
}

/// How commands are started.
pub(crate) struct ServerStart<'a> {
    /// Where the command of a line is written.
    pub(crate) origin: &'a dyn Fn(usize) -> String,
    /// What their services are called, if that is known.
    pub(crate) name: Option<&'a str>,
    /// By whom.
    pub(crate) user: RunAs,
    /// What is in their environment.
    pub(crate) variables: &'a BTreeMap<String, String>,
    /// With what.
    pub(crate) prepare: &'a dyn Fn(&mut ImportedService),
}

/// The services that these commands start.
pub(crate) fn services(
    commands: Vec<ScriptCommand>,
    start: &ServerStart<'_>,
    names: &ServiceNames,
    beside: &dyn Beside,
) -> Vec<ImportedService> {
    let mut services = Vec::new();
    let mut before = Vec::new();
    let mut path = BranchPath::default();
    let unfolded = |command| unfold::unfolded(command, start.variables);
    for command in commands.into_iter().flat_map(unfolded) {
        if path.follow(&command) {
            continue;
        }
        if !is_server(&command.words) {
            before.push((path.clone(), command));
            continue;
        }
        let mut service = ImportedService::new(start.name.unwrap_or_default(), (start.origin)(command.line));
        (start.prepare)(&mut service);
        let mut reading = ChainReading {
            service: &mut service,
            words: Vec::new().into_iter(),
            names,
            beside,
            identity: start.user.clone(),
            directory: None,
        };
        for (other, command) in before.iter().take(MOST_BEFORE) {
            let words = reading.filled(&command.words);
            let command = ScriptCommand { words, ..command.clone() };
            reading.command_before(&command, path.relation(other));
        }
        if before.len() > MOST_BEFORE {
            reading.service.refused(
                "what the script does before",
                "it is too much to be read; see whether the program needs it",
            );
        }
        reading.words = reading.filled(&command.words).into_iter();
        reading.read(&command);
        if service.name.is_empty() {
            service.name = "service".to_owned();
        }
        services.push(service);
    }
    services
}

/// More commands than a script has before its server.
const MOST_BEFORE: usize = 200;

/// Whether a text is such a script.
pub(crate) fn is_script(text: &str) -> bool {
    let is_server = |word: &str| {
        server_of(word).is_some_and(|server| server != SuperServer::Netcat)
            || (base(word) == "ncat" || base(word) == "nc") && text.contains(" -")
    };
    text.split(|c: char| c.is_whitespace() || "\"'(;`".contains(c)).any(is_server)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SuperServer {
    Tcpserver,
    Tcpsvd,
    S6Tcp,
    S6Ipc,
    Socat,
    /// nc of several kinds, where it goes on listening and starts programs.
    Netcat,
    /// One that preforkd cannot be instead of.
    Sslserver,
    Udpsvd,
}

fn server_of(word: &str) -> Option<SuperServer> {
    match base(word) {
        "tcpserver" => Some(SuperServer::Tcpserver),
        "tcpsvd" => Some(SuperServer::Tcpsvd),
        "s6-tcpserver" | "s6-tcpserver4" | "s6-tcpserver6" => Some(SuperServer::S6Tcp),
        "s6-ipcserver" => Some(SuperServer::S6Ipc),
        "socat" => Some(SuperServer::Socat),
        "ncat" | "nc" | "netcat" => Some(SuperServer::Netcat),
        "sslserver" | "s6-tlsserver" => Some(SuperServer::Sslserver),
        "udpsvd" => Some(SuperServer::Udpsvd),
        _ => None,
    }
}

/// Whether a command is one of a server, or a shell's that starts one.
pub(crate) fn starts_a_server(command: ScriptCommand, variables: &BTreeMap<String, String>) -> bool {
    unfold::unfolded(command, variables).iter().any(|command| is_server(&command.words))
}

/// Commands in which the name of a server starts none.
const ONLY_NAME_IT: [&str; 12] =
    ["[", "[[", "test", "echo", "printf", "which", "type", "export", "case", "for", "killall", "pkill"];

/// Whether a command is one of a server: socat and nc are clients, too.
fn is_server(words: &[ScriptWord]) -> bool {
    let mut texts = words.iter().map(|word| word.text.as_str());
    let first = texts.find(|word| !matches!(*word, "if" | "elif" | "while" | "until" | "!"));
    if first.is_some_and(|first| ONLY_NAME_IT.contains(&first))
        || matches!((first, texts.next()), (Some("command"), Some("-v")))
    {
        return false;
    }
    let server = words.iter().enumerate().find_map(|(place, word)| Some((place, server_of(&word.text)?)));
    let after = |place: usize| words.get(place + 1..).unwrap_or_default();
    match server {
        Some((place, SuperServer::Socat)) => socat::listens(after(place)),
        Some((place, SuperServer::Netcat)) => ncat::serves(after(place)),
        found => found.is_some(),
    }
}

/// Whether a value of -u or -g is the number of a user or of his group.
fn is_account(text: &str, letter: char) -> bool {
    matches!(letter, 'u' | 'g') && account(text, letter).is_some()
}

const ONLY_THE_SCRIPT_KNOWS: &str =
    "only the script itself knows what this is; write the value in its place, and import again";

fn base(word: &str) -> &str {
    Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or(word)
}

/// Who the programs are to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunAs {
    /// Of setuidgid and the like before the server.
    whole: Option<String>,
    /// Of envuidgid, for `-U`.
    named: Option<String>,
    user: Option<String>,
    group: Option<String>,
    /// Whose group it is, as `id -g` says it.
    group_of: Option<String>,
    /// Whoever starts the server says, too, in which directory.
    is_of_unit: bool,
}

impl RunAs {
    /// Whoever starts the server makes it this user before, with his groups.
    pub(crate) fn from_start(user: Option<String>) -> Self {
        RunAs { whole: user, is_of_unit: true, ..RunAs::default() }
    }
}

struct ChainReading<'a> {
    service: &'a mut ImportedService,
    words: std::vec::IntoIter<ScriptWord>,
    names: &'a ServiceNames,
    beside: &'a dyn Beside,
    identity: RunAs,
    /// Where the script has gone.
    directory: Option<String>,
}

impl ChainReading<'_> {
    fn read(&mut self, command: &ScriptCommand) {
        let Some((server, name)) = self.before() else { return };
        let is_read = match server {
            SuperServer::Socat => {
                self.socat();
                true
            }
            SuperServer::Netcat => self.netcat(&name),
            SuperServer::Sslserver => {
                self.service.guarded(
                    name,
                    "preforkd speaks no TLS: have stunnel or haproxy accept it, and pass it on to this service at a Unix socket",
                );
                false
            }
            SuperServer::Udpsvd => {
                self.service.refused(
                    name,
                    "it starts a program for each datagram; with preforkd a program gets the socket, and reads by itself: wait = true, \
                     listen = \"udp:…\"",
                );
                false
            }
            server => self.ucspi(server),
        };
        if !is_read {
            return;
        }
        self.who(server);
        for redirection in &command.redirections {
            self.service
                .dropped(redirection, "what the program says to stderr is in the log, with its connection");
        }
    }

    fn socat(&mut self) {
        let words: Vec<ScriptWord> = self.words.by_ref().collect();
        let from = match (&self.directory, self.identity.is_of_unit) {
            (Some(directory), _) => StartedIn::Known(directory),
            (None, true) => StartedIn::Unit,
            (None, false) => StartedIn::Unknown,
        };
        let SocatUser { user, group } = socat::read(self.service, &words, from, self.names);
        self.identity.user = user.or(self.identity.user.take());
        self.identity.group = group.or(self.identity.group.take());
    }

    /// False if the options cannot be made out.
    fn ucspi(&mut self, server: SuperServer) -> bool {
        let arguments = match server {
            SuperServer::Tcpserver => self.options("1UXpPhHrRoOdDqQv46se", "cxBgublutLIiakKE", server),
            SuperServer::Tcpsvd => self.options("hpEv", "cCbulixt", server),
            SuperServer::S6Tcp => self.options("qQv1d46U", "cCbGgu", server),
            _ => self.options("qQv1dDpPU", "cCbGgua", server),
        };
        if arguments {
            match server {
                SuperServer::S6Ipc => self.path(),
                _ => self.host_and_port(),
            }
            self.defaults(server);
            self.access_programs();
            self.program();
        }
        arguments
    }

    fn next(&mut self) -> Option<ScriptWord> {
        self.words.next()
    }

    fn peek(&self) -> Option<&ScriptWord> {
        self.words.as_slice().first()
    }

    /// A word that has to be there and be known.
    fn known(&mut self, of: &str) -> Option<String> {
        match self.next() {
            Some(word) if !word.is_open => Some(word.text),
            Some(word) => {
                self.service.refused(format!("{of} {}", word.text), ONLY_THE_SCRIPT_KNOWS);
                None
            }
            None => {
                self.service.refused(of, "something is missing after it");
                None
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
                        true if self.peek().is_some_and(|word| is_account(&word.text, *letter)) => {
                            self.next().map(|word| word.text)
                        }
                        true => self.known(&format!("-{letter}")),
                        false if word.is_open && *letter != 'l' && !is_account(&rest, *letter) => {
                            self.service.refused(&word.text, ONLY_THE_SCRIPT_KNOWS);
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
            ('E', SuperServer::Tcpsvd) => {
                service.like(written, "the variables about the connection are set all the same");
            }
            ('p' | 'P' | 'h' | 'H' | 'r' | 'R', SuperServer::Tcpserver | SuperServer::Tcpsvd) => {
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
        if let ('g', Some(user)) = (letter, account(value, letter)) {
            self.identity.group_of = Some(user.to_owned());
            return;
        }
        let value = account(value, letter).unwrap_or(value);
        match (letter, number(value)) {
            ('c', Some(count)) if count > 0 => service.exact(written, "max_connections", count.to_string()),
            ('C', None) if server == SuperServer::Tcpsvd => self.limit_and_message(&written, value),
            ('C', Some(count)) if count > 0 => service.exact(written, "max_connections_per_source", count.to_string()),
            ('b', Some(count)) => service.exact(written, "backlog", count.max(1).to_string()),
            ('c' | 'C' | 'b', _) => service.refused(written, "write a number"),
            ('u', _) if server == SuperServer::Tcpsvd => {
                let (user, group) = self.user_and_groups(&written, value);
                (self.identity.user, self.identity.group) = (Some(user), group);
            }
            ('u', _) => self.identity.user = Some(value.to_owned()),
            ('g', _) => self.identity.group = Some(value.to_owned()),
            ('G', _) => service.like(written, "preforkd gives the groups that /etc/group gives the user"),
            ('a', _) if server == SuperServer::S6Ipc => match u32::from_str_radix(value, 8) {
                Ok(mode) if mode <= 0o777 => service.exact(written, "socket_mode", quoted(&format!("{mode:04o}"))),
                _ => service.refused(written, "write an octal number"),
            },
            ('t', _) if server == SuperServer::Tcpsvd => {
                service.dropped(written, "the instructions are in the configuration, where none gets old");
            }
            ('l' | 't', _) => service.dropped(written, "preforkd never asks for names"),
            ('i', _) if server == SuperServer::Tcpsvd => self.instructions(value),
            ('x', _) if server == SuperServer::Tcpsvd => {
                service.guarded(written, "the instructions are compiled; write them as allow and deny");
            }
            ('x', _) => self.rules(value),
            ('B', _) => service.refused(written, "preforkd says nothing before the program; have a script print it: exec = [\"/bin/sh\", \"-c\", \"printf TEXT; exec PROGRAM\"]"),
            ('I', _) => service.exact(written, "interface", quoted(value)),
            _ => service.refused(written, "this option is not known; see what it does"),
        }
    }

    /// `N:MESSAGE` of tcpsvd.
    fn limit_and_message(&mut self, written: &str, value: &str) {
        match value.split_once(':').and_then(|(count, _)| number(count)).filter(|count| *count > 0) {
            Some(count) => self.service.near(
                written,
                "max_connections_per_source",
                count.to_string(),
                "who is beyond that is told nothing; refuse_message is for all who are refused",
            ),
            None => self.service.refused(written, "write a number"),
        }
    }

    /// Where something is that the server opens by this name.
    fn place(&self, name: &str) -> String {
        match &self.directory {
            Some(directory) => Path::new(directory).join(name).display().to_string(),
            None => name.to_owned(),
        }
    }

    /// A directory of instructions, from its files.
    fn instructions(&mut self, directory: &str) {
        let written = format!("-i {directory}");
        match self.beside.peers(&self.place(directory)).map(|files| instructions(&files)) {
            Some(Ok(rules)) => self.lists(&written, rules),
            Some(Err(fault)) => self.service.guarded(
                format!("{written}: {fault}"),
                "an instruction for some clients only: preforkd has none but allow and deny; write those, and two services for the rest",
            ),
            None => self.service.guarded(
                written,
                "the directory is not there, or cannot be read; --root says where the files of another machine are",
            ),
        }
    }

    fn lists(&mut self, written: &str, (allow, deny): RuleLists) {
        for (key, prefixes) in [("allow", allow), ("deny", deny)] {
            if !prefixes.is_empty() {
                self.service.exact(written, key, list(&prefixes));
            }
        }
    }

    /// Rules of tcprules(1), from the text beside the compiled file.
    fn rules(&mut self, file: &str) {
        let written = format!("-x {file}");
        let text =
            file.strip_suffix(".cdb").and_then(|text| Some((text, self.beside.text(&self.place(text))?)));
        let Some((text, rules)) = text else {
            self.service.guarded(
                written,
                "the rules are compiled, and their text is not beside them; write them as allow and deny",
            );
            return;
        };
        match tcprules(&rules) {
            Ok(rules) => self.lists(&format!("{written}, by {text}"), rules),
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
        let most = if server == SuperServer::Tcpsvd { 30 } else { 40 };
        if !self.service.keys.contains_key("max_connections") {
            self.service.exact(
                format!("{most} connections at once, the default"),
                "max_connections",
                most.to_string(),
            );
        }
        self.service.same("who is beyond that waits", "overload = \"queue\" is the default");
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
        let words: Vec<ScriptWord> = self.words.by_ref().collect();
        let written = words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ");
        if words.is_empty() {
            self.service.refused("no program", "name one");
        } else if words.iter().any(|word| word.is_open) {
            self.service.refused(written, "only the script itself knows what all of this is; write the values in its place, and import again");
        } else {
            self.service.exact(written, "exec", list(words.iter().map(|word| &word.text)));
            self.find_script(words.iter().map(|word| word.text.as_str()));
        }
    }

    /// Refuses a script that an interpreter is to find where nobody knows.
    fn find_script<'w>(&mut self, words: impl IntoIterator<Item = &'w str>) {
        let is_known = self.directory.is_some() || self.identity.is_of_unit;
        if let Some(script) = place::relative_script(words).filter(|_| !is_known) {
            self.service.refused(script, place::FROM_WHERE);
        }
    }

    fn who(&mut self, server: SuperServer) {
        let RunAs { whole, named, user, group, group_of, .. } = std::mem::take(&mut self.identity);
        let service = &mut *self.service;
        let is_named = user.is_some() || whole.is_some();
        if let Some(owner) = group_of {
            let written = format!("-g `id -g {owner}`");
            match user.as_deref() == Some(&*owner) {
                true => service.same(written, "the first group of the user, which is the default"),
                false => service.refused(
                    written,
                    format!(
                        "the first group of another user; write group = \"…\" with what id -gn {owner} says"
                    ),
                ),
            }
        }
        if is_named && matches!(server, SuperServer::Tcpserver | SuperServer::Tcpsvd) {
            service.like(
                "no other groups",
                "preforkd gives those that /etc/group gives the user; take them from him there",
            );
        }
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
                let nobody = if matches!(server, SuperServer::Socat | SuperServer::Netcat) {
                    "no su: root"
                } else {
                    "no -u: root"
                };
                service.exact(nobody, "user", quoted("root"));
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
