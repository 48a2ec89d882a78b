//! The keys of a `.service`.

use std::collections::BTreeMap;

use super::UnitReading;
use crate::import::model::{ImportedService, Takeover, list, number, quoted, table};
use crate::import::unit_file::{Assignment, UnitFile, boolean, span, words};

/// What a unit says of files.
#[derive(Debug, Default)]
pub(super) struct Protects {
    system: Option<String>,
    home: Option<String>,
    writable: Vec<String>,
    written: Vec<String>,
}

const SPECIFIERS: &str = "preforkd knows no specifiers but %t, %p, %N, %S, %E and %%; write it whole";
const INSTANCE: &str =
    "%i and the like stand for the connection: programs find it in REMOTE_ADDR and PREFORKD_CONNECTION";

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
            (None, Some(true)) => self.service.guarded("DynamicUser=yes", "name a user"),
            (Some(user), _) => match self.pair.specified(user) {
                Some(user) => self.service.exact(format!("User={user}"), "user", quoted(&user)),
                None => self.service.refused(format!("User={user}"), "name a user"),
            },
            (None, _) => {
                self.service.exact("no User=: root", "user", quoted("root"));
                self.service.about("user", Takeover::Exact, "SECURITY", "think whether it has to be root");
            }
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
            match self.pair.specified(&entry.value) {
                Some(value) if takes(self.service, &entry, &value) => (),
                Some(value) => self.service_key(&entry.key, &value, &entry.written(), unit),
                None if entry.key == "ExecStart" => (),
                None => self.service.refused(entry.written(), self.of_whom(SPECIFIERS)),
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
        let Some(mut command) = words(rest) else {
            self.service.refused(&written, "a quote is not closed");
            return None;
        };
        let mut variables = BTreeMap::new();
        for line in unit.all("Service", "Environment") {
            let pairs = words(line).unwrap_or_default();
            variables.extend(
                pairs
                    .iter()
                    .filter_map(|pair| pair.split_once('='))
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
        }
        variables.extend(self.pair.environment.iter().map(|(name, value)| (name.clone(), value.clone())));
        let mut why = Vec::new();
        if !marks.contains(':') {
            let Some(new) = expanded(command, &variables, &mut why) else {
                let instead =
                    "an environment file that is not here would say what a variable is; write its words";
                self.service.refused(&written, instead);
                return None;
            };
            command = new;
        }
        let specified: Option<Vec<String>> = command.iter().map(|word| self.pair.specified(word)).collect();
        let Some(mut command) = specified else {
            self.service.refused(&written, self.of_whom(INSTANCE));
            return None;
        };
        if marks.contains('@') && command.len() > 1 {
            let zeroth = command.remove(1);
            self.service.exact(
                format!("@, the program's name for itself, {zeroth}"),
                "argv0",
                quoted(&zeroth),
            );
        }
        if command.is_empty() || command.iter().any(|word| word == ";") {
            self.service.refused(&written, "one program, with its arguments");
            return None;
        }
        if marks.contains('-') {
            why.push("preforkd goes on whatever a program's exit status is".to_owned());
        }
        Some(Command { written, words: command, variables, why })
    }

    /// `StandardInput=` and the others.
    fn descriptors(&mut self, unit: &UnitFile) {
        let input = unit.last("Service", "StandardInput").unwrap_or("null");
        let output = unit.last("Service", "StandardOutput").unwrap_or("inherit");
        let error = unit.last("Service", "StandardError").unwrap_or("inherit");
        let has_input = input == "socket";
        let service = &mut *self.service;
        if has_input {
            service.same(format!("StandardInput={input}"), "");
            match output {
                "inherit" | "socket" => service.same(format!("StandardOutput={output}"), ""),
                _ => service.refused(format!("StandardOutput={output}"), "stdout is the client; have a script redirect it: exec = [\"/bin/sh\", \"-c\", \"exec PROGRAM >&2\"]"),
            }
        } else if self.accepts && output == "socket" {
            service.same("StandardOutput=socket", "");
            service.like(format!("StandardInput={input}"), "descriptor 0 is the client, too");
        } else if self.accepts {
            if output != "inherit" {
                service.like(format!("StandardOutput={output}"), "it is what descriptor 2 is");
            }
            service.exact(
                format!("StandardInput={input}: the connection is descriptor 3"),
                "connection",
                quoted("listen-fds"),
            );
        } else {
            service.same(format!("StandardInput={input}"), "the program finds the socket by LISTEN_FDS");
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
            (false, "inherit" | "journal" | "syslog" | "kmsg" | "journal+console") => {
                service.same(format!("StandardError={error}"), "each line is a record of the log");
            }
            (false, _) => service.like(format!("StandardError={error}"), "to the log"),
        }
    }

    pub(super) fn service_key(&mut self, key: &str, value: &str, written: &str, unit: &UnitFile) {
        let yes = boolean(value) == Some(true);
        let service = &mut *self.service;
        match key {
            "ExecStart" | "StandardInput" | "StandardOutput" | "StandardError" | "User" | "DynamicUser" | "IPAddressAllow"
            | "IPAddressDeny" => (),
            "Group" => service.exact(written, "group", quoted(value)),
            "SupplementaryGroups" => service.like(written, "preforkd gives the groups that /etc/group gives the user; add it there"),
            "Environment" => {
                let pairs = words(value).unwrap_or_default();
                let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
                service.entries(written, "environment", pairs.map(|(name, value)| (name, quoted(value))));
            }
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
            "RuntimeMaxSec" => match span(value).flatten() {
                Some(seconds) if seconds > 0 => service.exact(written, "max_lifetime", quoted(&format!("{seconds}s"))),
                _ => service.same(written, "no limit"),
            },
            "KillMode" => match value {
                "process" | "none" => service.exact(written, "kill_mode", quoted("process")),
                _ => service.same(written, "what a program leaves behind is killed"),
            },
            "TimeoutStopSec" => service.dropped(written, "drain_timeout of [supervisor] says how long connections may go on at the end"),
            "Type" => match value {
                "simple" | "exec" | "oneshot" | "idle" => service.same(written, ""),
                _ => service.dropped(written, "a program that has a connection is started, and that is all; it must not go to the background"),
            },
            "MemoryMax" | "MemoryHigh" | "MemoryLimit" | "TasksMax" | "CPUWeight" => cgroup_limit(service, key, value, written),
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
            "StateDirectory" | "CacheDirectory" | "LogsDirectory" | "RuntimeDirectory" => {
                let parent = match key {
                    "StateDirectory" => "/var/lib",
                    "CacheDirectory" => "/var/cache",
                    "LogsDirectory" => "/var/log",
                    _ => "/run",
                };
                self.protects.writable.extend(value.split_whitespace().map(|name| format!("-{parent}/{name}")));
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
            "RestrictNamespaces" | "LockPersonality" | "RestrictRealtime" | "RestrictSUIDSGID" | "SystemCallArchitectures"
            | "SystemCallErrorNumber" | "ProtectControlGroups" | "ProtectKernelTunables" | "PrivateDevices" | "PrivateUsers"
            | "PrivateMounts" | "PrivateIPC" | "ProtectProc" | "ProcSubset" | "RemoveIPC" | "DevicePolicy" | "DeviceAllow" | "KeyringMode"
            | "RestrictAddressFamilies" | "CapabilityBoundingSet" | "InaccessiblePaths" | "InaccessibleDirectories" | "ReadOnlyPaths"
            | "ReadOnlyDirectories" | "NoExecPaths" | "ExecPaths" | "TemporaryFileSystem" | "AppArmorProfile" | "SELinuxContext"
            | "SmackProcessLabel" | "RestrictFileSystems" | "SecureBits" | "NetworkNamespacePath" | "RestrictNetworkInterfaces"
            | "MountFlags" | "UtmpIdentifier" => match boolean(value) {
                Some(false) => service.same(written, "it is off"),
                _ => service.lost(written, "LESS CONFINED THAN BEFORE: preforkd has no such key; sandbox = { read = …, write = …, network = … } may do as much"),
            },
            "PrivateTmp" | "PrivateNetwork" | "PrivatePIDs" | "MemoryDenyWriteExecute" | "ProtectKernelModules" | "ProtectKernelLogs"
            | "ProtectClock" | "ProtectHostname" => service.same(written, "it is off"),
            "AmbientCapabilities" => service.refused(written, "preforkd gives a program no capabilities; have it start as root and give them up"),
            "BindPaths" | "BindReadOnlyPaths" | "RootImage" | "MountImages" | "ExtensionImages" => {
                service.refused(written, "preforkd mounts nothing; mount it before, and name it in chroot");
            }
            "LoadCredential" | "SetCredential" | "LoadCredentialEncrypted" | "SetCredentialEncrypted" | "ImportCredential" => {
                service.refused(written, "write it into preforkd.service, and its name into credentials");
            }
            "PAMName" | "TTYPath" => service.refused(written, "preforkd begins no session; have the program do it"),
            "ExecStartPre" | "ExecStartPost" | "ExecStopPost" | "ExecStop" | "ExecCondition" => {
                service.refused(written, "preforkd runs nothing before or after a program; do it once, in a unit of its own before preforkd.service, or in a script that ends with exec");
            }
            "ExecReload" | "Restart" | "RestartSec" | "RemainAfterExit" | "SuccessExitStatus" | "PIDFile" | "TimeoutSec"
            | "TimeoutStartSec" | "PermissionsStartOnly" | "SyslogIdentifier" | "SyslogFacility" | "SyslogLevel" | "NotifyAccess"
            | "WatchdogSec" | "GuessMainPID" | "StandardInputText" | "Sockets" | "IgnoreSIGPIPE" | "SendSIGHUP" | "KillSignal" | "BusName"
            | "SyslogLevelPrefix" | "NonBlocking" | "StartLimitInterval" | "StartLimitBurst" | "TimerSlackNSec" | "UnsetEnvironment"
            | "CPUAccounting" | "MemoryAccounting" | "TasksAccounting" | "IOAccounting" | "IPAccounting" | "Delegate" | "RestartPreventExitStatus" => {
                service.dropped(written, "it is about a daemon, and this program has one connection");
            }
            "OOMScoreAdjust" | "OOMPolicy" | "Slice" | "CPUQuota" | "CPUSchedulingPolicy" | "CPUSchedulingPriority" | "IOSchedulingClass"
            | "IOSchedulingPriority" | "IOWeight" | "CPUShares" | "CPUAffinity" | "BlockIOWeight" | "ManagedOOMSwap" | "ManagedOOMMemoryPressure" => {
                service.like(written, "preforkd has limits and nice; write this into preforkd.service for all of its services");
            }
            _ => service.refused(written, "this key of systemd.exec(5) is not known; see what it does, and take the # away"),
        }
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

fn cgroup_limit(service: &mut ImportedService, key: &str, value: &str, written: &str) {
    let name = match key {
        "TasksMax" => "tasks",
        "CPUWeight" => "cpu_weight",
        _ => "memory",
    };
    if value == "infinity" {
        return service.same(written, "no limit");
    }
    let digits = value.trim_end_matches(['K', 'M', 'G']);
    match number(digits) {
        Some(_) if name == "memory" => service.entries(written, "limits", [(name, quoted(value))]),
        Some(count) if digits == value => service.entries(written, "limits", [(name, count.to_string())]),
        _ => service.lost(written, format!("write limits = {{ {name} = … }} with a number")),
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
    let digits = value.trim_end_matches(['K', 'M', 'G']);
    match (number(digits), name) {
        (Some(seconds), "cpu") if digits == value => {
            service.entries(written, "limits", [(name, quoted(&format!("{seconds}s")))]);
        }
        (Some(count), _) if digits == value => {
            service.entries(written, "limits", [(name, count.to_string())]);
        }
        (Some(_), _) => service.entries(written, "limits", [(name, quoted(value))]),
        (None, _) => service.refused(written, "write a number"),
    }
}

/// A command with its variables filled in; `None` if one is not known.
fn expanded(
    command: Vec<String>,
    variables: &BTreeMap<String, String>,
    why: &mut Vec<String>,
) -> Option<Vec<String>> {
    let mut result = Vec::new();
    for word in command {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        // A variable that is a word of its own becomes as many words as it has.
        if let Some(name) = word.strip_prefix('$').filter(|name| is_name(name)) {
            let value = variables.get(name)?;
            result.extend(words(value)?);
            why.push(format!("${name} as it is now"));
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
                whole.push_str(variables.get(name)?);
                why.push(format!("${{{name}}} as it is now"));
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
