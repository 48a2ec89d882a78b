//! Command lines of nc that listen and start programs: nmap's ncat(1), and the nc of busybox. Other kinds of nc serve one client.

use super::{ChainReading, base};
use crate::import::model::{list, number, quoted};
use crate::import::place::{self, Host};
use crate::import::script::ScriptWord;

/// What its own command line says.
#[derive(Debug, Default)]
struct NcatWords {
    /// That of ncat, in whose command lines a program is one word.
    is_ncat: bool,
    listens: bool,
    stays: bool,
    host: Option<String>,
    port: Option<String>,
    family: Option<Host>,
    program: Option<NcatProgram>,
    most: Option<String>,
    allow: Vec<String>,
    deny: Vec<String>,
    /// What preforkd has nothing for, and what to do instead; a protection or not.
    refused: Vec<(String, &'static str, bool)>,
    notes: Vec<(String, &'static str)>,
}

#[derive(Debug)]
enum NcatProgram {
    Words(Vec<String>),
    Shell(String),
}

/// Whether the words after nc have it listen and start programs.
pub(super) fn serves(words: &[ScriptWord]) -> bool {
    let all = read("nc", words);
    all.listens && all.program.is_some()
}

const NO_TLS: &str = "preforkd speaks no TLS: have stunnel or haproxy accept it, and pass it on to this service at a Unix socket";

/// Options of both with a value.
const WITH_VALUE: &str = "pecmwidoxsgGIqOTX";

fn read(name: &str, words: &[ScriptWord]) -> NcatWords {
    let mut all = NcatWords { is_ncat: base(name) == "ncat", ..NcatWords::default() };
    let mut free = Vec::new();
    let mut words = words.iter().map(|word| word.text.as_str());
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix("--").filter(|long| !long.is_empty()) {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            all.is_ncat = true;
            all.long(name, value, &mut words);
            continue;
        }
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty() && *letters != "-")
        else {
            if word != "--" {
                free.push(word.to_owned());
            }
            continue;
        };
        for (index, letter) in letters.char_indices() {
            if !WITH_VALUE.contains(letter) {
                // For nc of busybox, a second -l says that it stays.
                all.stays |= letter == 'k' || letter == 'l' && all.listens;
                all.flag(letter);
                continue;
            }
            let rest = letters.get(index + letter.len_utf8()..).unwrap_or_default();
            let value = if rest.is_empty() { words.next().unwrap_or_default() } else { rest };
            if letter == 'e' && !all.is_ncat {
                // With busybox, all that follows is the program's.
                let program: Vec<String> =
                    std::iter::once(value).chain(words.by_ref()).map(str::to_owned).collect();
                all.program = Some(NcatProgram::Words(program));
            } else {
                all.value(letter, value);
            }
            break;
        }
    }
    let mut free = free.into_iter();
    match (free.next(), free.next(), free.next()) {
        (one, None, _) if all.port.is_none() => all.port = one,
        (host, None, _) => all.host = all.host.take().or(host),
        (host, port, None) => (all.host, all.port) = (all.host.take().or(host), port),
        (Some(host), _, _) => all.refused.push((host, "nc takes an address and a port", false)),
        _ => (),
    }
    all
}

impl NcatWords {
    fn long<'w>(&mut self, name: &str, value: Option<&str>, words: &mut impl Iterator<Item = &'w str>) {
        let letter = match name {
            "listen" => 'l',
            "keep-open" => 'k',
            "udp" => 'u',
            "unixsock" => 'U',
            "nodns" => 'n',
            "verbose" => 'v',
            "crlf" => 'C',
            "telnet" => 't',
            "source-port" => 'p',
            "exec" => 'e',
            "sh-exec" => 'c',
            "max-conns" => 'm',
            "wait" => 'w',
            "idle-timeout" => 'i',
            "delay" => 'd',
            "output" => 'o',
            "hex-dump" => 'x',
            "source" => 's',
            "allow" | "deny" | "allowfile" | "denyfile" | "lua-exec" | "ssl-cert" | "ssl-key"
            | "ssl-ciphers" | "ssl-trustfile" | "proxy" | "proxy-auth" | "proxy-type" => {
                let value = value.or_else(|| words.next()).unwrap_or_default();
                return self.with_value(name, value);
            }
            _ => {
                let written = format!("--{name}");
                match name {
                    _ if name.starts_with("ssl") => self.refused.push((written, NO_TLS, true)),
                    "no-shutdown" | "append-output" => {
                        self.notes.push((written, "the program has the connection itself"));
                    }
                    "broker" | "chat" => {
                        self.refused.push((
                            written,
                            "nobody passes on what clients say to each other",
                            false,
                        ));
                    }
                    _ => self.refused.push((written, "this option is not known; see what it does", false)),
                }
                return;
            }
        };
        if WITH_VALUE.contains(letter) {
            let value = value.or_else(|| words.next()).unwrap_or_default();
            self.value(letter, value);
        } else {
            self.flag(letter);
            self.stays |= letter == 'k';
        }
    }

    fn with_value(&mut self, name: &str, value: &str) {
        let addresses = || value.split(',').map(str::to_owned);
        match name {
            "allow" => self.allow.extend(addresses()),
            "deny" => self.deny.extend(addresses()),
            "allowfile" | "denyfile" => self.refused.push((
                format!("--{name} {value}"),
                "write allow and deny with the addresses of this file",
                true,
            )),
            _ if name.starts_with("ssl") => self.refused.push((format!("--{name} {value}"), NO_TLS, true)),
            _ => self.refused.push((format!("--{name} {value}"), "preforkd has nothing like it", false)),
        }
    }

    fn flag(&mut self, letter: char) {
        let written = format!("-{letter}");
        match letter {
            'l' => self.listens = true,
            'k' => (),
            '4' => self.family = Some(Host::V4),
            '6' => self.family = Some(Host::V6),
            'n' => self.notes.push((written, "preforkd never asks for names")),
            'v' => self.notes.push((written, "preforkd logs every connection")),
            'u' => self.refused.push((
                written,
                "datagrams: with wait = true and listen = \"udp:…\" a program gets the socket, and reads by itself",
                false,
            )),
            'U' => self.refused.push((written, "write listen = \"unix:PATH\"", false)),
            'C' => self.refused.push((written, "nobody changes the ends of lines; socat with crlf would", false)),
            _ => self.refused.push((written, "this option is not known; see what it does", false)),
        }
    }

    fn value(&mut self, letter: char, value: &str) {
        let written = format!("-{letter} {value}");
        match letter {
            'p' => self.port = Some(value.to_owned()),
            's' => self.host = Some(value.to_owned()),
            // Cut at spaces, and run by no shell.
            'e' => self.program = Some(NcatProgram::Words(value.split_whitespace().map(str::to_owned).collect())),
            'c' => self.program = Some(NcatProgram::Shell(value.to_owned())),
            'm' => self.most = Some(value.to_owned()),
            'w' => self.notes.push((written, "when it listens it does not wait")),
            'o' | 'x' => self.notes.push((written, "what is moved is shown nowhere: preforkd does not see it")),
            'i' => self.refused.push((
                written,
                "preforkd does not see who is silent; max_lifetime bounds how long a connection lasts, socat -T does this",
                false,
            )),
            _ => self.refused.push((written, "this option is not known; see what it does", false)),
        }
    }
}

impl ChainReading<'_> {
    /// False if it is none that could be served.
    pub(super) fn netcat(&mut self, name: &str) -> bool {
        let words: Vec<ScriptWord> = self.words.by_ref().collect();
        if let Some(open) = words.iter().find(|word| word.is_open) {
            self.service.refused(&open.text, super::ONLY_THE_SCRIPT_KNOWS);
            return false;
        }
        let NcatWords {
            is_ncat, stays, host, port, family, program, most, allow, deny, refused, notes, ..
        } = read(name, &words);
        let service = &mut *self.service;
        if !stays {
            let instead = "without -k (or -ll) it serves one client and ends; write -k if it is to serve all, and import again";
            service.refused(format!("{name} without -k"), instead);
        }
        notes.into_iter().for_each(|(written, why)| service.dropped(written, why));
        for (written, instead, is_loss) in refused {
            match is_loss {
                true => service.guarded(written, instead),
                false => service.refused(written, instead),
            }
        }
        let port = port.unwrap_or_else(|| "31337".to_owned());
        let written =
            [Some(name), host.as_deref(), Some(&port)].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let at = match &host {
            Some(host) => Host::written(host),
            None => Some(family.unwrap_or(Host::Both)),
        };
        match at {
            Some(host) => place::listen(service, &written, host, &port, false, self.names),
            None => service.refused(&written, "the host is no address; write its address"),
        }
        if service.name.is_empty() {
            service.name = number(&port)
                .map_or_else(|| port.clone(), |port| self.names.name(u16::try_from(port).unwrap_or(0)));
        }
        match (most.as_deref(), is_ncat) {
            (Some(most), _) if number(most).is_some_and(|most| most > 0) => {
                service.exact(format!("-m {most}"), "max_connections", most);
            }
            (Some(most), _) => service.refused(format!("-m {most}"), "write a number"),
            (None, true) => {
                service.exact("100 connections at once, the default of ncat", "max_connections", "100");
            }
            (None, false) => {
                service.like(
                    "nc of busybox has no limit",
                    "preforkd has one of 1000; write max_connections for more",
                );
            }
        }
        if is_ncat {
            service.exact("ncat closes a connection beyond that", "overload", quoted("refuse"));
        }
        for (key, addresses) in [("allow", allow), ("deny", deny)] {
            let prefixes: Option<Vec<String>> =
                addresses.iter().map(|address| place::prefix(address)).collect();
            let written = format!("--{key} {}", addresses.join(","));
            match prefixes {
                Some(prefixes) if prefixes.is_empty() => (),
                Some(prefixes) => service.exact(written, key, list(prefixes)),
                None => service.guarded(
                    written,
                    format!("write {key} with addresses, as in {key} = [\"192.0.2.0/24\"]"),
                ),
            }
        }
        match program {
            Some(NcatProgram::Words(words)) if words.is_empty() => service.refused("-e", "no program"),
            Some(NcatProgram::Words(words)) if is_ncat || words.len() > 1 || !words[0].contains(' ') => {
                let written = format!("-e {}", words.join(" "));
                self.keep_program(&written, &words);
            }
            // Of ncat, whose other name nc is, it is a command line; of busybox, one name.
            Some(NcatProgram::Words(words)) => {
                let cut: Vec<String> =
                    words.iter().flat_map(|word| word.split_whitespace()).map(str::to_owned).collect();
                self.service.like(format!("-e {}", words.join(" ")), "cut at its spaces, as ncat does");
                self.keep_program(&format!("-e {}", words.join(" ")), &cut);
            }
            Some(NcatProgram::Shell(command)) => {
                self.service.exact(format!("-c {command}"), "exec", list(["/bin/sh", "-c", &command]));
            }
            None => service.refused(name, "no program: name one with -e"),
        }
        self.service.like(
            "NCAT_REMOTE_ADDR and the like",
            "the program finds REMOTE_ADDR and REMOTE_PORT in its environment instead, see preforkd.toml(5)",
        );
        true
    }

    fn keep_program(&mut self, written: &str, words: &[String]) {
        self.service.exact(written, "exec", list(words));
        self.find_script(words.iter().map(String::as_str));
    }
}
