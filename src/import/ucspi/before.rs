//! What stands before a server on its command line, or in its script: programs that change something and go on, and commands that
//! have ended when it starts.

use super::{ChainReading, ONLY_THE_SCRIPT_KNOWS, SuperServer, base, server_of};
use crate::import::model::{number, quoted};
use crate::import::script::{ELSE, FI, SUBSHELL, SUBSHELL_END, ScriptCommand, ScriptWord, THEN, file_of};

const UNTIL_STOPPED: &str = "preforkd serves until it is stopped";

const NO_DIRECTORY_OF_VARIABLES: &str = "preforkd reads no such directories; write NAME=value lines into a file, and its path into environment_file";

/// In which branches of a script a command is: of each condition around it, and the branch.
#[derive(Debug, Clone, Default)]
pub(super) struct BranchPath {
    steps: Vec<BranchStep>,
    count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BranchStep {
    condition: usize,
    branch: usize,
    is_subshell: bool,
}

/// How a command is related to a server after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// Where the server is started, it was run before.
    Before,
    /// It is in another branch, and never run with the server.
    Apart,
    /// Perhaps it was run.
    Perhaps,
    /// It was run, and what it has changed has ended.
    InSubshell,
}

impl BranchPath {
    /// Goes into what this command begins or ends, if it is no command but a keyword.
    pub(super) fn follow(&mut self, command: &ScriptCommand) -> bool {
        let [word] = command.words.as_slice() else { return false };
        match word.text.as_str() {
            keyword @ (THEN | SUBSHELL) => {
                self.count += 1;
                self.steps.push(BranchStep {
                    condition: self.count,
                    branch: 0,
                    is_subshell: keyword == SUBSHELL,
                });
            }
            ELSE => {
                if let Some(last) = self.steps.last_mut() {
                    last.branch += 1;
                }
            }
            FI | SUBSHELL_END => {
                self.steps.pop();
            }
            _ => return false,
        }
        true
    }

    /// What a command before, in that place, is to a server in this.
    pub(super) fn relation(&self, other: &BranchPath) -> Relation {
        let common = self.steps.iter().zip(&other.steps).take_while(|(one, other)| one == other).count();
        match (self.steps.get(common), other.steps.get(common)) {
            (_, None) => Relation::Before,
            (Some(one), Some(other)) if one.condition == other.condition => Relation::Apart,
            (_, Some(other)) if other.is_subshell => Relation::InSubshell,
            _ => Relation::Perhaps,
        }
    }
}

impl ChainReading<'_> {
    /// What stands before the server, whose name is given back: programs that change something and go on.
    pub(super) fn before(&mut self) -> Option<(SuperServer, String)> {
        while let Some(word) = self.next() {
            if let Some(server) = server_of(&word.text) {
                return Some((server, word.text));
            }
            let text = word.text.as_str();
            match base(text) {
                "exec" | "fghack" | "pgrphack" | "setsid" | "s6-setsid" | "nohup" | "command" | "busybox" => {
                    self.service.dropped(text, "a connection process of preforkd is alone already");
                }
                "if" | "elif" | "while" | "until" | "!" => self.service.dropped(text, UNTIL_STOPPED),
                "su" | "runuser" => {
                    let skips = |flag: &str, reading: &mut Self| {
                        if reading.peek().is_some_and(|word| word.text == flag) {
                            reading.next();
                        }
                    };
                    skips("-u", self);
                    self.identity.whole = self.known(text);
                    skips("--", self);
                }
                "sudo" => match self.peek().is_some_and(|word| word.text == "-u") {
                    true => {
                        self.next();
                        self.identity.whole = self.known("sudo -u");
                    }
                    false => self.service.dropped(text, "preforkd is started by root"),
                },
                "env" | "exec-c" | "emptyenv" => {
                    let is_emptied = matches!(self.peek().map(|word| word.text.as_str()), Some("-" | "-i"));
                    if is_emptied {
                        self.next();
                    }
                    if is_emptied || text != "env" {
                        self.service.forget("environment");
                        self.service.forget("environment_file");
                    }
                    self.service.same(text, "programs have no environment but PATH and what is written");
                }
                _ if text.contains('=') && !word.is_open => {
                    if let Some((name, value)) = text.split_once('=') {
                        self.service.entries(text, "environment", [(name, quoted(value))]);
                    }
                }
                "softlimit" | "s6-softlimit" => self.softlimit(),
                "chpst" => self.chpst(),
                "s6-applyuidgid" => self.applyuidgid(),
                "setuidgid" | "s6-setuidgid" => self.identity.whole = self.known(text),
                "envuidgid" => self.identity.named = self.known(text),
                "s6-envuidgid" => self.envuidgid(),
                "envdir" | "s6-envdir" => {
                    if let Some(directory) = self.known(text) {
                        self.service.refused(format!("{text} {directory}"), NO_DIRECTORY_OF_VARIABLES);
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
                        self.go_to(&format!("{text} {directory}"), &directory);
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
                    self.nice(&nice.unwrap_or_else(|| "10".to_owned()));
                }
                _ => self.service.refused(text, "preforkd does not know what this program does to the server; say it with keys, or put it before the program"),
            }
        }
        self.service.refused("", "there is no server in it");
        None
    }

    /// `s6-applyuidgid [-z] [-u UID] [-g GID] [-G GIDLIST] [-U]`: with -U by the environment, as s6-envuidgid left it.
    fn applyuidgid(&mut self) {
        let (mut user, mut group) = (None, None);
        while let Some(flag) = self.flag_of_s6() {
            let letter = flag.chars().nth(1).unwrap_or_default();
            let written = format!("s6-applyuidgid {flag}");
            let value = match (letter, flag.get(2..).filter(|rest| !rest.is_empty())) {
                ('u' | 'g' | 'G', None) => self.known(&written),
                ('u' | 'g' | 'G', Some(value)) => Some(value.to_owned()),
                _ => None,
            };
            match letter {
                'u' => user = value,
                'g' => group = value,
                'G' => self.service.like(written, "preforkd gives the groups that /etc/group gives the user"),
                'U' => match self.identity.named.take() {
                    Some(name) => user = Some(name),
                    None => self.service.refused(written, "the user is in the environment; write user"),
                },
                'z' => self.service.same(written, "UID and GID are not in the environment"),
                _ => self.service.refused(written, "this option is not known; see what it does"),
            }
        }
        self.identity.whole = match (user, group) {
            (Some(user), Some(group)) => Some(format!("{user}:{group}")),
            (Some(user), None) => Some(user),
            (None, Some(group)) => {
                self.identity.group = Some(group);
                return;
            }
            (None, None) => return,
        };
    }

    /// `s6-envuidgid [-u | -g | -B] [-n] [-i | -D UID:GID] ACCOUNT`.
    fn envuidgid(&mut self) {
        while let Some(flag) = self.flag_of_s6() {
            let written = format!("s6-envuidgid {flag}");
            match flag.chars().nth(1).unwrap_or_default() {
                'D' => {
                    let default = match flag.get(2..).filter(|rest| !rest.is_empty()) {
                        Some(value) => Some(value.to_owned()),
                        None => self.known(&written),
                    };
                    let written = format!("s6-envuidgid -D {}", default.unwrap_or_default());
                    self.service.like(written, "for a user who is not there; with preforkd he has to be");
                }
                'i' | 'n' | 'B' => self.service.same(written, "the user has to be there"),
                _ => self.service.refused(
                    written,
                    "a user without a group, or a group without a user; write user and group",
                ),
            }
        }
        self.identity.named = self.known("s6-envuidgid");
    }

    /// The next option of a program of s6.
    fn flag_of_s6(&mut self) -> Option<String> {
        let flag = self
            .peek()
            .map(|word| word.text.clone())
            .filter(|word| word.starts_with('-') && word.len() > 1)?;
        self.next();
        (flag != "--").then_some(flag)
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
            self.limit(&format!("softlimit -{letter} {value}"), letter, &value);
        }
    }

    /// A limit as softlimit has it, and chpst.
    fn limit(&mut self, written: &str, letter: char, value: &str) {
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
            'r' => return self.service.dropped(written, "Linux has no such limit any more"),
            _ => &[],
        };
        match (keys, number(value)) {
            ([], _) | (_, None) => {
                self.service.refused(written, "write limits in its place, see preforkd.toml(5)");
            }
            (keys, Some(amount)) => {
                let value = |key: &str| match key {
                    "cpu" => quoted(&format!("{amount}s")),
                    _ => amount.to_string(),
                };
                self.service.entries(written, "limits", keys.iter().map(|key| (*key, value(key))));
            }
        }
    }

    /// runit's chpst(8).
    fn chpst(&mut self) {
        while let Some(word) =
            self.peek().map(|word| word.text.clone()).filter(|word| word.starts_with('-') && word.len() > 1)
        {
            self.next();
            if word == "--" {
                break;
            }
            let letters: Vec<char> = word.chars().skip(1).collect();
            for (index, letter) in letters.iter().enumerate() {
                let written = format!("chpst -{letter}");
                match letter {
                    'v' | 'P' => {
                        self.service.dropped(written, "a connection process of preforkd is alone already");
                    }
                    '0' | '1' | '2' => {
                        self.service
                            .dropped(written, "stdin and stdout are the connection, and stderr is the log");
                    }
                    _ => {
                        let rest: String = letters.get(index + 1..).unwrap_or_default().iter().collect();
                        let value = if rest.is_empty() { self.known(&written) } else { Some(rest) };
                        if let Some(value) = value {
                            self.change(*letter, &value);
                        }
                        break;
                    }
                }
            }
        }
    }

    fn change(&mut self, letter: char, value: &str) {
        let written = format!("chpst -{letter} {value}");
        match letter {
            'u' => {
                let (user, group) = self.user_and_groups(&written, value);
                self.identity.whole = group.map(|group| format!("{user}:{group}")).or(Some(user));
            }
            'U' => self.identity.named = Some(value.to_owned()),
            'n' => self.nice(value),
            'C' => self.go_to(&written, value),
            'm' | 'd' | 'o' | 'p' | 'f' | 'c' | 't' => self.limit(&written, letter, value),
            'e' => self.service.refused(written, NO_DIRECTORY_OF_VARIABLES),
            'b' => self.service.dropped(written, "the name by which the server was called"),
            'l' | 'L' => self.service.dropped(written, "preforkd has its port for itself"),
            '/' => self
                .service
                .refused(written, "the program is looked for inside: write chroot, and see preforkd.toml(5)"),
            _ => self.service.refused(written, "this option is not known; see what it does"),
        }
    }

    fn nice(&mut self, nice: &str) {
        match nice.parse::<i8>().ok().filter(|nice| (-20..20).contains(nice)) {
            Some(nice) => self.service.exact(format!("nice {nice}"), "nice", nice.to_string()),
            None => self.service.refused(format!("nice {nice}"), "write a number from -20 to 19"),
        }
    }

    fn go_to(&mut self, written: &str, directory: &str) {
        self.directory = Some(directory.to_owned());
        match directory.starts_with('/') {
            true => self.service.exact(written, "working_directory", quoted(directory)),
            false => self.service.refused(written, "write working_directory"),
        }
    }

    /// Words with the lines in them of files that can be read now.
    pub(super) fn filled(&mut self, words: &[ScriptWord]) -> Vec<ScriptWord> {
        words.iter().map(|word| if word.is_open { self.with_lines(word) } else { word.clone() }).collect()
    }

    fn with_lines(&mut self, word: &ScriptWord) -> ScriptWord {
        let mut text = String::new();
        let mut is_open = false;
        for (index, part) in word.text.split('`').enumerate() {
            if index % 2 == 0 {
                is_open |= part.contains('$');
                text.push_str(part);
                continue;
            }
            let written = format!("`{part}`");
            let file = file_of(part);
            let content = file.and_then(|(file, _)| self.beside.text(&self.place(file)));
            let line = content.as_deref().and_then(|content| {
                let mut lines = content.trim_end().lines();
                let line = lines.next().unwrap_or_default();
                let is_whole = file.is_some_and(|(_, only_first)| only_first) || lines.next().is_none();
                (is_whole && line.len() < 1024 && !line.contains(char::is_whitespace)).then_some(line)
            });
            match line {
                Some(line) => {
                    text.push_str(line);
                    let why = format!("{line} as it is now");
                    if !self.service.names(&written) {
                        self.service.like(written, why);
                    }
                }
                None => {
                    text.push_str(&written);
                    is_open = true;
                }
            }
        }
        if is_open { word.clone() } else { ScriptWord { text, is_open } }
    }

    /// A command of the script that has ended when the server starts.
    pub(super) fn command_before(&mut self, command: &ScriptCommand, relation: Relation) {
        let mut words = command.words.iter();
        let Some(first) = words.next().map(|word| word.text.as_str()) else { return };
        let words: Vec<&ScriptWord> = words.collect();
        let written = command.words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ");
        let is_known = !words.iter().any(|word| word.is_open);
        let changes = matches!(first, "cd" | "umask" | "export" | "ulimit" | "unset");
        match relation {
            Relation::Apart => return,
            Relation::InSubshell if changes => return,
            Relation::Perhaps if changes => {
                let instead = "the script does it under a condition; write what comes of it as a key, or take the condition away and import again";
                return self.service.refused(written, instead);
            }
            _ => (),
        }
        match (first, words.as_slice()) {
            ("exit" | "return" | "true" | "false" | ":", []) | ("exit" | "return", _) => (),
            (":", [written, value]) if written.text.starts_with("${") => {
                let why = format!("\"{}\", unless the environment of the script says otherwise", value.text);
                if !self.service.names(&written.text) {
                    self.service.like(&written.text, why);
                }
            }
            (":", _) => (),
            ("echo" | "printf", _) if command.redirections.iter().all(|to| to.ends_with(">&2")) => {
                self.service.dropped(written, "it is for whoever starts the script");
            }
            ("." | "source", _) => {
                self.service.like(written, "what it sets is not known; values that are written in the script hold, unless it sets others");
            }
            ("if" | "elif" | "case" | "[" | "[[" | "test", _) => {
                self.service.like(written, "preforkd asks nothing before it serves: see whether this is so");
            }
            ("for" | "select", _) => {
                self.service.like(written, "what is done for each of these is read once");
            }
            ("exec", []) => self.service.dropped(
                [&["exec".to_owned()], command.redirections.as_slice()].concat().join(" "),
                "what the program says to stderr is in the log, with its connection",
            ),
            ("while" | "until" | "done" | "sleep" | "wait", _) => self.service.dropped(written, UNTIL_STOPPED),
            ("set", _) => self.service.dropped(written, "it is about the script alone"),
            ("cd", [directory]) if is_known => self.go_to(&written, &directory.text),
            ("umask", [mask]) if is_known => match u32::from_str_radix(&mask.text, 8) {
                Ok(mask) if mask <= 0o777 => {
                    self.service.exact(written, "umask", quoted(&format!("{mask:03o}")));
                }
                _ => self.service.refused(written, "write umask"),
            },
            ("export", pairs) if is_known && pairs.iter().all(|pair| pair.text.contains('=')) => {
                let pairs = pairs.iter().filter_map(|pair| pair.text.split_once('='));
                self.service.entries(written, "environment", pairs.map(|(name, value)| (name, quoted(value))));
            }
            ("unset", names) => {
                let is_set = |name: &&&ScriptWord| self.service.keys.get("environment").is_some_and(|table| table.contains(&format!("{} = ", name.text)));
                match names.iter().find(is_set) {
                    Some(_) => self.service.refused(written, "it takes away what was exported; write environment without it"),
                    None => self.service.same(written, "programs have no environment but PATH and what is written"),
                }
            }
            ("export", _) => self.service.refused(written, format!("{ONLY_THE_SCRIPT_KNOWS}, or write environment")),
            ("cd" | "umask", _) => {
                self.service.refused(written, "only the script itself knows what this is; write working_directory or umask");
            }
            ("ulimit", _) => self.service.refused(written, "write limits, see preforkd.toml(5)"),
            _ => self.service.like(
                written,
                "preforkd runs nothing before it serves: put this into ExecStartPre= of its unit, if it is needed",
            ),
        }
    }

    /// `[:]USER[:GROUP…]` of tcpsvd and chpst.
    pub(super) fn user_and_groups(&mut self, written: &str, value: &str) -> (String, Option<String>) {
        let mut names = value.strip_prefix(':').unwrap_or(value).split(':').map(str::to_owned);
        let (user, group) = (names.next().unwrap_or_default(), names.next());
        if names.next().is_some() {
            self.service.like(written, "preforkd gives the groups that /etc/group gives the user");
        }
        (user, group)
    }
}
