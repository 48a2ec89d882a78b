//! The keys of a `.service`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::specifier::Of;
use super::{UnitReading, known};
use crate::import::model::{ImportedService, Takeover, list, number, quoted, table};
use crate::import::unit_file::{
    Assignment, UnitFile, assigned, boolean, commands, duration, size, variable_words,
};

/// What a unit says of files.
#[derive(Debug, Default)]
pub(super) struct Protects {
    system: Option<String>,
    home: Option<String>,
    writable: Vec<String>,
    written: Vec<String>,
}

/// Keys in which specifiers count, as far as their values count here.
const SPECIFIED: [&str; 13] = [
    "ExecStart",
    "Group",
    "Environment",
    "EnvironmentFile",
    "WorkingDirectory",
    "RootDirectory",
    "ReadWritePaths",
    "ReadWriteDirectories",
    "StateDirectory",
    "CacheDirectory",
    "LogsDirectory",
    "RuntimeDirectory",
    "ConfigurationDirectory",
];

pub(super) const DYNAMIC_USER: &str =
    "name a user: one that nobody else has, made by sysusers.d, as \"u NAME\" in /etc/sysusers.d/NAME.conf";

/// In microseconds.
const SECOND: u64 = 1_000_000;

pub(super) const NO_SPAN: &str = "that is no time span of systemd.time(7); write it in seconds";

/// What `ExecStart=` starts.
pub(super) struct Command {
    pub(super) written: String,
    pub(super) words: Vec<String>,
    /// What it finds in its environment, as far as that is known.
    pub(super) variables: BTreeMap<String, String>,
    /// In which way it is not the same.
    pub(super) why: Vec<String>,
}

impl UnitReading<'_> {
    pub(super) fn program(&mut self, unit: &UnitFile) {
        let starts: Vec<&str> = unit.all("Service", "ExecStart").collect();
        match starts[..] {
            [] => self.service.refused("no ExecStart=", "name the program"),
            [line] => self.exec(line, unit),
            _ => self.service.refused("more than one ExecStart=", "write a script that does both"),
        }
        self.descriptors(unit);
        let (user, dynamic) =
            (unit.last("Service", "User"), unit.last("Service", "DynamicUser").and_then(boolean));
        match (user, dynamic) {
            (_, Some(true)) if self.accepts => {
                let count =
                    self.service.keys.get("max_connections").and_then(|count| number(count)).unwrap_or(64);
                let last = u64::from(self.range) + count - 1;
                let value = table([("range", quoted(&format!("{}-{last}", self.range)))]);
                let why =
                    "each connection has a user of its own; see that this machine gives nobody these numbers";
                self.service.near("DynamicUser=yes", "user", value, why);
            }
            (None, Some(true)) => self.service.guarded("DynamicUser=yes", DYNAMIC_USER),
            (Some(user), _) => match self.pair.specify(user, Of::Service) {
                Ok(user) => self.service.exact(format!("User={user}"), "user", quoted(&user)),
                Err(letter) => {
                    let instead = self.instead(letter, Of::Service);
                    self.service.refused(format!("User={user}"), instead);
                }
            },
            (None, _) => {
                self.service.exact("no User=: root", "user", quoted("root"));
                self.service.about("user", Takeover::Exact, "SECURITY", "think whether it has to be root");
            }
        }
        match dynamic {
            Some(true) if user.is_some() && !self.accepts => self.service.like(
                "DynamicUser=yes",
                "that user has to be there: sysusers.d makes it, as \"u NAME\" in /etc/sysusers.d/NAME.conf",
            ),
            Some(false) => self.service.same("DynamicUser=no", ""),
            _ => (),
        }
        self.keys(unit, |_, _, _| false);
    }

    /// All keys, but for those that `takes` takes; and what all of them say of files.
    pub(super) fn keys(
        &mut self,
        unit: &UnitFile,
        takes: impl Fn(&mut ImportedService, &Assignment, &str) -> bool,
    ) {
        for entry in unit.of("Service").cloned().collect::<Vec<_>>() {
            let value = match SPECIFIED.contains(&entry.key.as_str()) {
                true => self.pair.specify(&entry.value, Of::Service),
                false => Ok(entry.value.clone()),
            };
            match value {
                Ok(value) if takes(self.service, &entry, &value) => (),
                Ok(value) => self.service_key(&entry.key, &value, &entry.written(), unit),
                Err(_) if entry.key == "ExecStart" => (),
                Err(letter) => self.service.refused(entry.written(), self.instead(letter, Of::Service)),
            }
        }
        self.files();
        for entry in unit.of("Unit") {
            self.about_unit(entry);
        }
    }

    /// The program of `ExecStart=`.
    fn exec(&mut self, line: &str, unit: &UnitFile) {
        let Some(Command { written, words, why, .. }) = self.command(line, unit) else { return };
        match why.is_empty() {
            true => self.service.exact(written, "exec", list(&words)),
            false => self.service.near(written, "exec", list(&words), why.join("; ")),
        }
    }

    /// The command line of `ExecStart=`; `None` if it has been refused.
    pub(super) fn command(&mut self, line: &str, unit: &UnitFile) -> Option<Command> {
        let written = format!("ExecStart={line}");
        let rest = line.trim_start_matches(['-', '@', ':', '+', '!', '|']);
        let marks = &line[..line.len() - rest.len()];
        if marks.contains(['+', '!', '|']) {
            self.service.refused(
                &written,
                "+, ! and | start it with other rights than the unit says; say with user who it is to be",
            );
            return None;
        }
        let Some(mut commands) = commands(rest) else {
            self.service.refused(&written, "a quote is not closed");
            return None;
        };
        if commands.len() != 1 {
            self.service.refused(&written, "one program, with its arguments");
            return None;
        }
        // Specifiers count when the unit is read, variables only when the program is started.
        let words: Result<Vec<String>, char> =
            commands.remove(0).iter().map(|word| self.pair.specify(word, Of::Service)).collect();
        let mut command = match words {
            Ok(words) => words,
            Err(letter) => {
                self.service.refused(&written, self.instead(letter, Of::Service));
                return None;
            }
        };
        let variables = self.variables(unit);
        let mut why = Vec::new();
        if !marks.contains(':') {
            let absent = self.absent(unit);
            let Some(new) = expanded(command, &variables, absent.as_deref(), &mut why) else {
                let instead =
                    "an environment file that is not here would say what a variable is; write its words";
                self.service.refused(&written, instead);
                return None;
            };
            command = new;
        }
        if marks.contains('@') && command.len() > 1 {
            let zeroth = command.remove(1);
            self.service.exact(
                format!("@, the program's name for itself, {zeroth}"),
                "argv0",
                quoted(&zeroth),
            );
        }
        if command.is_empty() {
            self.service.refused(&written, "it names no program");
            return None;
        }
        if marks.contains('-') {
            why.push("preforkd goes on whatever a program's exit status is".to_owned());
        }
        Some(Command { written, words: command, variables, why })
    }

    /// What the program finds in its environment, as far as that is known.
    fn variables(&self, unit: &UnitFile) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        for line in unit.all("Service", "Environment") {
            let pairs = assigned(line).unwrap_or_default();
            let pairs = pairs.iter().filter_map(|pair| self.pair.specified(pair));
            variables.extend(pairs.filter_map(|pair| {
                pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
            }));
        }
        let of_files = self.pair.environment.iter();
        variables.extend(of_files.map(|(name, value)| (name.clone(), value.clone())));
        variables
    }

    /// The environment files, if there is none that was read, or that has to be there: then there may be none.
    fn absent(&self, unit: &UnitFile) -> Option<String> {
        let files: Vec<&str> = unit.all("Service", "EnvironmentFile").collect();
        let may_be_absent = !files.is_empty() && files.iter().all(|file| file.starts_with('-'));
        (may_be_absent && self.pair.environment.is_empty())
            .then(|| files.iter().map(|file| file.trim_start_matches('-')).collect::<Vec<_>>().join(", "))
    }

    /// `StandardInput=` and the others.
    fn descriptors(&mut self, unit: &UnitFile) {
        let input = unit.last("Service", "StandardInput").unwrap_or("null");
        let output = unit.last("Service", "StandardOutput").unwrap_or("inherit");
        let error = unit.last("Service", "StandardError").unwrap_or("inherit");
        let has_input = input == "socket";
        let service = &mut *self.service;
        if has_input {
            match self.accepts {
                true => service.same("StandardInput=socket", ""),
                false => service.like(
                    "StandardInput=socket",
                    "descriptors 0 and 1 are the socket, as there, but it is not descriptor 3 as well: a program that looks for LISTEN_FDS needs connection = \"listen-fds\"",
                ),
            }
            match output {
                "inherit" | "socket" => service.same(format!("StandardOutput={output}"), ""),
                _ => service.refused(format!("StandardOutput={output}"), "stdout is the client; have a script redirect it: exec = [\"/bin/sh\", \"-c\", \"exec PROGRAM >&2\"]"),
            }
        } else if self.accepts && output == "socket" {
            service.same("StandardOutput=socket", "");
            service.like(format!("StandardInput={input}"), "descriptor 0 is the client, too");
        } else {
            let what = if self.accepts { "the connection" } else { "the socket" };
            match output {
                "inherit" => (),
                "socket" => service.like("StandardOutput=socket", "to the log, not to the socket"),
                _ if is_log(output) && (error == "inherit" || is_log(error)) => {
                    service.same(format!("StandardOutput={output}"), "each line is a record of the log");
                }
                _ => service.like(format!("StandardOutput={output}"), "it is what descriptor 2 is"),
            }
            let construct = format!("StandardInput={input}: {what} is descriptor 3");
            service.exact(construct, "connection", quoted("listen-fds"));
        }
        let is_client = (has_input || output == "socket")
            && (error == "socket"
                || error == "inherit" && (output == "socket" || has_input && output == "inherit"));
        match (is_client, error) {
            (true, _) if !self.accepts => {
                service.like(format!("StandardError={error}"), "to the log, not to the socket");
            }
            (true, _) => {
                service.exact(format!("StandardError={error}: the client"), "stderr", quoted("connection"));
            }
            (false, "null") => service.exact("StandardError=null", "stderr", quoted("null")),
            (false, error) if error == "inherit" || is_log(error) => {
                service.same(format!("StandardError={error}"), "each line is a record of the log");
            }
            (false, _) => service.like(format!("StandardError={error}"), "to the log"),
        }
    }

    pub(super) fn service_key(&mut self, key: &str, value: &str, written: &str, unit: &UnitFile) {
        let yes = boolean(value) == Some(true);
        let is_oneshot = unit.last("Service", "Type") == Some("oneshot");
        let service = &mut *self.service;
        match key {
            "ExecStart" | "StandardInput" | "StandardOutput" | "StandardError" | "User" | "DynamicUser" | "IPAddressAllow"
            | "IPAddressDeny" => (),
            "Group" => service.exact(written, "group", quoted(value)),
            "SupplementaryGroups" => service.like(written, "preforkd gives the groups that /etc/group gives the user; add it there"),
            "Environment" => match assigned(value) {
                Some(pairs) => {
                    let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
                    service.entries(written, "environment", pairs.map(|(name, value)| (name, quoted(value))));
                }
                None => service.refused(written, "a quote or an escape of it is wrong, and systemd leaves it out; write it right, or remove it"),
            },
            "EnvironmentFile" => {
                let files = unit.all("Service", "EnvironmentFile").filter_map(|file| self.pair.specified(file));
                service.exact(written, "environment_file", list(files.collect::<Vec<_>>()));
            }
            "WorkingDirectory" => match value.strip_prefix('-').unwrap_or(value) {
                path if path.starts_with('/') => service.exact(written, "working_directory", quoted(path)),
                _ => service.refused(written, "write the directory"),
            },
            "RootDirectory" => service.exact(written, "chroot", quoted(value)),
            "UMask" => match u32::from_str_radix(value, 8) {
                Ok(mask) if mask <= 0o777 => service.exact(written, "umask", quoted(&format!("{mask:03o}"))),
                _ => service.refused(written, "write an octal number"),
            },
            "Nice" => match value.parse::<i8>() {
                Ok(nice) if (-20..20).contains(&nice) => service.exact(written, "nice", nice.to_string()),
                _ => service.refused(written, "write a number from -20 to 19"),
            },
            "RuntimeMaxSec" if is_oneshot => {
                service.dropped(written, "it is of no account with Type=oneshot; TimeoutStartSec= would be");
            }
            "RuntimeMaxSec" => lifetime(service, value, written),
            // Of a program that is over when it has started, that is how long it may run.
            "TimeoutStartSec" | "TimeoutSec" if is_oneshot && duration(value, SECOND) != Some(Some(Duration::ZERO)) => {
                lifetime(service, value, written);
            }
            "TimeoutStartSec" | "TimeoutSec" => service.dropped(written, "a program that has been started serves; drain_timeout of [supervisor] says how long one may go on at the end"),
            "KillMode" => match value {
                "process" | "none" => service.exact(written, "kill_mode", quoted("process")),
                _ => service.same(written, "what a program leaves behind is killed"),
            },
            "ExitType" if value == "cgroup" => {
                service.near(written, "kill_mode", quoted("process"), "what a program leaves behind goes on, and preforkd does not count it");
            }
            "ExitType" => service.same(written, ""),
            "TimeoutStopSec" => service.dropped(written, "drain_timeout of [supervisor] says how long connections may go on at the end"),
            "KillSignal" if value.trim_start_matches("SIG") == "TERM" => service.same(written, ""),
            "KillSignal" => service.like(written, "preforkd sends TERM"),
            "SendSIGKILL" if !yes => service.like(written, "preforkd sends KILL to what goes on after TERM"),
            "SendSIGKILL" => service.same(written, ""),
            "SendSIGHUP" if yes => service.like(written, "preforkd sends TERM alone"),
            "SendSIGHUP" => service.same(written, "it is off"),
            // preforkd gives a program SIGPIPE as it is by default, systemd ignored unless told otherwise.
            "IgnoreSIGPIPE" if yes => service.like(written, "SIGPIPE ends a program here, unless it ignores that itself"),
            "IgnoreSIGPIPE" => service.same(written, ""),
            "NonBlocking" if yes && unit.last("Service", "StandardInput") != Some("socket") => {
                service.like(written, "the socket is blocking here: a program that has to be sure of that sets O_NONBLOCK itself");
            }
            "NonBlocking" => service.same(written, "the socket is blocking"),
            "StandardInputText" | "StandardInputData" => match unit.last("Service", "StandardInput") {
                Some("data") => service.refused(written, "preforkd gives a program no text; have a script do it: exec = [\"/bin/sh\", \"-c\", \"exec PROGRAM <FILE\"]"),
                _ => service.dropped(written, "it counts with StandardInput=data alone"),
            },
            // Read beside the socket's, as they say of what one program gets.
            "Sockets" => service.dropped(written, "the socket that is named is its own"),
            "Type" => self.start_type(value, written, unit),
            "MemoryMax" | "MemoryHigh" | "MemoryLimit" | "TasksMax" | "CPUWeight" => cgroup_limit(service, key, value, written, unit),
            _ if key.starts_with("Limit") => rlimit(service, key, value, written),
            "ProtectSystem" => {
                self.protects.system = Some(value.to_owned());
                self.protects.written.push(written.to_owned());
            }
            "ProtectHome" => {
                self.protects.home = Some(value.to_owned());
                self.protects.written.push(written.to_owned());
            }
            "ReadWritePaths" | "ReadWriteDirectories" => {
                self.protects.writable.extend(value.split_whitespace().map(|path| path.trim_start_matches('+').to_owned()));
                self.protects.written.push(written.to_owned());
            }
            "StateDirectory" | "CacheDirectory" | "LogsDirectory" | "RuntimeDirectory" | "ConfigurationDirectory" => {
                let parent = match key {
                    "StateDirectory" => "/var/lib",
                    "CacheDirectory" => "/var/cache",
                    "LogsDirectory" => "/var/log",
                    "ConfigurationDirectory" => "/etc",
                    _ => "/run",
                };
                // A name may have a symbolic link behind a colon.
                let names = value.split_whitespace().map(|name| name.split(':').next().unwrap_or_default());
                self.protects.writable.extend(names.map(|name| format!("-{parent}/{name}")));
                service.like(written, "preforkd makes no directories; tmpfiles.d does");
            }
            "NoNewPrivileges" => match yes {
                true => service.same(written, "always so"),
                false => add_sandbox(service, written, "no_new_privs", "false", ""),
            },
            "PrivateTmp" if yes || value == "disconnected" => {
                add_sandbox(service, written, "private_tmp", "true", "each connection has its own, in memory, of 64M at most");
            }
            "PrivateNetwork" if yes => add_sandbox(service, written, "network_namespace", "true", ""),
            "PrivatePIDs" if yes => add_sandbox(service, written, "pid_namespace", "true", ""),
            "MemoryDenyWriteExecute" if yes => add_sandbox(service, written, "write_execute", "false", ""),
            "SystemCallFilter" => add_sandbox(
                service,
                written,
                "system_calls",
                &quoted("service"),
                "preforkd's list, without what administers the machine, is near @system-service; look whether more was forbidden",
            ),
            "ProtectKernelModules" | "ProtectKernelLogs" | "ProtectClock" | "ProtectHostname" if yes => {
                service.like(written, "no program of a sandbox may make these system calls");
            }
            "PrivateTmp" | "PrivateNetwork" | "PrivatePIDs" | "MemoryDenyWriteExecute" | "ProtectKernelModules" | "ProtectKernelLogs"
            | "ProtectClock" | "ProtectHostname" => service.same(written, "it is off"),
            "AmbientCapabilities" => service.refused(written, "preforkd gives a program no capabilities; have it start as root and give them up"),
            "ExecStartPre" | "ExecStartPost" | "ExecStopPost" | "ExecStop" | "ExecStopPre" | "ExecCondition" => {
                self.beside(key, value, written);
            }
            _ if key.starts_with("X-") => service.dropped(written, "systemd leaves it out, too"),
            _ if known::say(service, key, value, written) => (),
            _ => service.refused(written, "no key of a service, as systemd.directives(7) has them, that is known here; see what it does, and take the # away"),
        }
    }

    /// `Type=`.
    fn start_type(&mut self, value: &str, written: &str, unit: &UnitFile) {
        let goes_on = matches!(unit.last("Service", "KillMode"), Some("process" | "none"));
        let service = &mut *self.service;
        match (value, self.accepts) {
            ("simple" | "exec" | "oneshot" | "idle", _) => service.same(written, ""),
            ("forking", true) if goes_on => service.like(
                written,
                "what has gone to the background goes on, and preforkd neither counts nor ends it",
            ),
            ("forking", true) => service.refused(
                written,
                "the connection ends with the program, and what has gone to the background is killed: have it stay in the foreground, or set kill_mode = \"process\"",
            ),
            ("forking", false) => service.refused(
                written,
                "a program that goes to the background has ended for preforkd, which starts the next beside it: have it stay in the foreground, which most have an option for",
            ),
            (_, true) => service.dropped(written, "a program that has a connection is started, and that is all"),
            (_, false) => service.like(
                written,
                "a program counts as started at once, and finds no NOTIFY_SOCKET to say that it is ready",
            ),
        }
    }

    /// A command beside the program.
    fn beside(&mut self, key: &str, value: &str, written: &str) {
        let bare = value.trim_start_matches(['-', '@', ':', '+', '!', '|']);
        let words = commands(bare).unwrap_or_default();
        let program = words.first().and_then(|words| words.first()).map_or("", String::as_str);
        let program = program.rsplit('/').next().unwrap_or_default();
        let instead = match (key, program) {
            // What preforkd does anyway when it ends.
            ("ExecStop", "kill" | "pkill" | "killall") => {
                return self.service.like(written, "preforkd sends TERM, and KILL later");
            }
            ("ExecStartPre", "mkdir" | "install" | "chown" | "chmod" | "touch" | "ln") => {
                "preforkd runs nothing before or after a program: have tmpfiles.d make it, or below /run RuntimeDirectory= of a drop-in of preforkd.service".to_owned()
            }
            ("ExecStartPre", _) => format!(
                "preforkd runs nothing before or after a program: run {program} once, by ExecStartPre= of a drop-in of preforkd.service, or in a script that ends with exec"
            ),
            ("ExecCondition", _) => {
                "preforkd has no conditions: have a script look for it, and end with exec".to_owned()
            }
            _ => format!(
                "preforkd runs nothing before or after a program: have a script run the program, and then {program}"
            ),
        };
        self.service.refused(written, instead);
    }

    /// `ProtectSystem=`, `ProtectHome=` and what may be written all the same.
    fn files(&mut self) {
        let protects = std::mem::take(&mut self.protects);
        let system = protects.system.as_deref().unwrap_or("no");
        let home = protects.home.as_deref().unwrap_or("no");
        let (has_system, has_home) = (boolean(system) != Some(false), boolean(home) != Some(false));
        if !has_system && !has_home {
            return;
        }
        const HOMES: [&str; 2] = ["-/home", "-/root"];
        const ALL: [&str; 19] = [
            "-/bin", "-/boot", "-/dev", "-/efi", "-/etc", "-/lib", "-/lib64", "-/media", "-/mnt", "-/opt",
            "-/proc", "-/run", "-/sbin", "-/srv", "-/sys", "-/tmp", "-/usr", "-/var", "-/nix",
        ];
        let read_only: &[&str] = match system {
            _ if !has_system => &[],
            "strict" => &ALL,
            "full" => &["-/bin", "-/boot", "-/efi", "-/etc", "-/lib", "-/lib64", "-/sbin", "-/usr", "-/nix"],
            _ => &["-/bin", "-/boot", "-/efi", "-/lib", "-/lib64", "-/sbin", "-/usr", "-/nix"],
        };
        let hidden = has_home && home != "read-only";
        let seen: Vec<&str> = ALL.into_iter().chain(HOMES.into_iter().filter(|_| !hidden)).collect();
        let always: &[&str] = &["-/dev", "-/proc", "-/sys"];
        let is_writable = |path: &&str| match () {
            () if always.contains(path) => true,
            () if HOMES.contains(path) => !has_home && system != "strict",
            () => !read_only.contains(path),
        };
        let mut writable: Vec<String> = seen.iter().copied().filter(is_writable).map(str::to_owned).collect();
        writable.extend(
            protects.writable.iter().filter(|path| path.trim_start_matches('-').starts_with('/')).map(
                |path| {
                    let path = path.trim_start_matches('-');
                    format!("-{path}")
                },
            ),
        );
        let written = protects.written.join(", ");
        let why = "as lists of what may be used, by Landlock: what is not below a usual directory of / cannot be used at all";
        add_sandbox(self.service, &written, "read", &list(&seen), why);
        add_sandbox(self.service, &written, "write", &list(&writable), "");
        add_sandbox(self.service, &written, "execute", &list(&seen), "");
    }
}

/// Adds to the table of the sandbox.
fn add_sandbox(service: &mut ImportedService, written: &str, key: &str, value: &str, why: &str) {
    let table = match service.keys.get("sandbox").and_then(|table| table.strip_suffix(" }")) {
        Some(table) if table.contains(&format!(" {key} = ")) => return,
        Some(table) => format!("{table}, {key} = {value} }}"),
        None => format!("{{ {key} = {value} }}"),
    };
    match why.is_empty() {
        true => service.exact(written, "sandbox", table),
        false => service.near(written, "sandbox", table, why),
    }
}

/// A limit that is nearly the same.
fn near_limit(service: &mut ImportedService, written: &str, name: &str, value: String, why: &str) {
    service.entries(written, "limits", [(name, value)]);
    if let Some(note) = service.notes.last_mut() {
        note.verdict = Takeover::Near;
        note.why = why.to_owned();
    }
}

fn is_log(output: &str) -> bool {
    ["journal", "syslog", "kmsg", "journal+console", "syslog+console", "kmsg+console"].contains(&output)
}

fn lifetime(service: &mut ImportedService, value: &str, written: &str) {
    match duration(value, SECOND) {
        None => service.refused(written, NO_SPAN),
        Some(None) => service.same(written, "no limit"),
        Some(Some(Duration::ZERO)) => {
            service.refused(written, "that would end a program at once; write its seconds, or remove it");
        }
        Some(Some(time)) if time.subsec_nanos() == 0 => {
            service.exact(written, "max_lifetime", quoted(&format!("{}s", time.as_secs())));
        }
        Some(Some(time)) => {
            let value = quoted(&format!("{}ms", time.as_nanos().div_ceil(1_000_000)));
            service.exact(written, "max_lifetime", value);
        }
    }
}

fn cgroup_limit(service: &mut ImportedService, key: &str, value: &str, written: &str, unit: &UnitFile) {
    let name = match key {
        "TasksMax" => "tasks",
        "CPUWeight" => "cpu_weight",
        _ => "memory",
    };
    if value == "infinity" {
        return service.same(written, "no limit");
    }
    if key == "CPUWeight" && value == "idle" {
        return near_limit(service, written, name, "1".to_owned(), "the least share that there is");
    }
    let digits = value.trim_end_matches(['K', 'M', 'G']);
    let value = match (number(digits), size(value)) {
        (Some(_), Some(_)) if name == "memory" => quoted(value),
        (None, Some(size)) if name == "memory" => size.to_string(),
        (Some(count), _) if digits == value => count.to_string(),
        _ => return service.lost(written, format!("write limits = {{ {name} = … }} with a number")),
    };
    match key {
        "MemoryHigh" if unit.last("Service", "MemoryMax").is_some_and(|most| most != "infinity") => {
            service.like(written, "nothing is slowed down before MemoryMax= ends it");
        }
        "MemoryHigh" => {
            near_limit(
                service,
                written,
                name,
                value,
                "who needs more is ended, where systemd slows him down",
            );
        }
        _ => service.entries(written, "limits", [(name, value)]),
    }
}

fn rlimit(service: &mut ImportedService, key: &str, value: &str, written: &str) {
    let name = key.trim_start_matches("Limit").to_ascii_lowercase();
    let known = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let Some(name) = known.into_iter().find(|known| *known == name) else {
        return service.dropped(written, "Linux has no such limit any more");
    };
    // A soft and a hard one; a program may raise the first, so the second is what limits it.
    let value = value.rsplit(':').next().unwrap_or_default();
    if value == "infinity" {
        return service.same(written, "no limit");
    }
    let value_in_toml = match name {
        "cpu" => match duration(value, SECOND).flatten() {
            Some(time) => quoted(&format!("{}s", time.as_nanos().div_ceil(1_000_000_000))),
            None => return service.refused(written, NO_SPAN),
        },
        "rttime" => match duration(value, 1).flatten() {
            Some(time) => time.as_micros().to_string(),
            None => return service.refused(written, NO_SPAN),
        },
        // With a sign it is the niceness itself, from 19 to -20: getrlimit(2).
        "nice" if value.starts_with(['+', '-']) => match value.parse::<i8>() {
            Ok(nice) if (-20..20).contains(&nice) => (20 - nice).to_string(),
            _ => return service.refused(written, "write a number from -20 to +19"),
        },
        _ => match (number(value), size(value)) {
            (Some(count), _) => count.to_string(),
            (None, Some(_)) if COUNTS.contains(&name) => return count_of_size(service, name, value, written),
            (None, Some(_)) if number(value.trim_end_matches(['K', 'M', 'G'])).is_some() => quoted(value),
            (None, Some(size)) => size.to_string(),
            (None, None) => return service.refused(written, "write a number"),
        },
    };
    service.entries(written, "limits", [(name, value_in_toml)]);
}

/// Limits that are no bytes.
const COUNTS: [&str; 5] = ["nice", "nofile", "nproc", "rtprio", "sigpending"];

/// systemd.exec(5) has K, M and G for limits of bytes alone.
fn count_of_size(service: &mut ImportedService, name: &'static str, value: &str, written: &str) {
    let count = size(value).unwrap_or_default();
    let why = "systemd knows such a unit for bytes only, and may leave it out";
    near_limit(service, written, name, count.to_string(), why);
}

/// A command with its variables filled in; `None` if one is not known. If the files that would say it are absent, it is empty.
fn expanded(
    command: Vec<String>,
    variables: &BTreeMap<String, String>,
    absent: Option<&str>,
    why: &mut Vec<String>,
) -> Option<Vec<String>> {
    let mut result = Vec::new();
    let mut valued = |name: &str, written: String| match (variables.get(name), absent) {
        (Some(value), _) => {
            why.push(format!("{written} as it is now"));
            Some(value.as_str())
        }
        (None, Some(files)) => {
            why.push(format!(
                "{written} is empty as long as there is no {files}; if there is, write its words"
            ));
            Some("")
        }
        (None, None) => None,
    };
    for word in command {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        // A variable that is a word of its own becomes as many words as it has.
        if let Some(name) = word.strip_prefix('$').filter(|name| is_name(name)) {
            result.extend(variable_words(valued(name, format!("${name}"))?)?);
            continue;
        }
        let mut whole = String::new();
        let mut rest = word.as_str();
        while let Some(at) = rest.find('$') {
            whole.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                whole.push('$');
                rest = after;
            } else if let Some((name, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
                whole.push_str(valued(name, format!("${{{name}}}"))?);
                rest = after;
            } else {
                whole.push('$');
            }
        }
        whole.push_str(rest);
        result.push(whole);
    }
    Some(result)
}
