//! Pairs of systemd's units: a `.socket` and the `.service` that it starts.

use std::collections::BTreeMap;

use super::model::{Imported, ImportedService, Takeover, list, number, quoted, table};
use super::names::ServiceNames;
use super::place::{self, Host};
use super::unit_file::{Assignment, UnitFile, boolean, span, words};

/// A pair as it was found.
#[derive(Debug, Default)]
pub(crate) struct UnitPair {
    /// The name of the socket unit without its ending.
    pub(crate) name: String,
    /// The file of the socket unit.
    pub(crate) place: String,
    pub(crate) socket: UnitFile,
    /// The service, if it was found, and the names it was looked for by.
    pub(crate) service: Option<UnitFile>,
    pub(crate) service_name: String,
    /// What the environment files say that could be read.
    pub(crate) environment: BTreeMap<String, String>,
}

/// The name of the service unit that a socket starts.
pub(crate) fn service_of(name: &str, socket: &UnitFile) -> String {
    let accepts = accepts(socket);
    match socket.last("Socket", "Service") {
        Some(service) if !accepts => service.to_owned(),
        _ if accepts => format!("{name}@.service"),
        _ => format!("{name}.service"),
    }
}

fn accepts(socket: &UnitFile) -> bool {
    socket.last("Socket", "Accept").and_then(boolean).unwrap_or(false)
}

/// The pair as a service of preforkd.
pub(crate) fn read(pair: &UnitPair, names: &ServiceNames, imported: &mut Imported) {
    let mut service = ImportedService::new(pair.name.trim_end_matches('@'), pair.place.clone());
    if is_of_systemd(pair) {
        service.refused(
            format!("{}.socket", pair.name),
            "this socket belongs to systemd itself; leave it there",
        );
        for entry in pair.socket.of("Socket") {
            service.dropped(entry.written(), "it stays with systemd");
        }
        imported.services.push(service);
        return;
    }
    let accepts = accepts(&pair.socket);
    let mut reading = UnitReading {
        pair,
        service: &mut service,
        accepts,
        range: next_range(imported),
        protects: Protects::default(),
    };
    reading.socket(names);
    match &pair.service {
        Some(unit) => reading.program(unit),
        None => {
            let instead = format!(
                "{} was not found beside the socket; name the directory that has it",
                pair.service_name
            );
            reading.service.refused(pair.service_name.clone(), instead);
        }
    }
    imported.services.push(service);
}

fn is_of_systemd(pair: &UnitPair) -> bool {
    pair.name.starts_with("systemd-")
        || pair.socket.all("Socket", "ListenStream").any(|path| path.starts_with("/run/systemd/"))
}

/// Numbers of users that no service before has.
fn next_range(imported: &Imported) -> u32 {
    let taken = imported
        .services
        .iter()
        .filter(|service| service.keys.get("user").is_some_and(|user| user.contains("range")));
    70_000 + 1000 * u32::try_from(taken.count()).unwrap_or(0)
}

/// What a unit says of files.
#[derive(Debug, Default)]
struct Protects {
    system: Option<String>,
    home: Option<String>,
    writable: Vec<String>,
    written: Vec<String>,
}

struct UnitReading<'a> {
    pair: &'a UnitPair,
    service: &'a mut ImportedService,
    accepts: bool,
    range: u32,
    protects: Protects,
}

const OPTION: &str = "preforkd leaves this to the kernel";

impl UnitReading<'_> {
    fn socket(&mut self, names: &ServiceNames) {
        let socket = &self.pair.socket;
        let only_v6 = socket.last("Socket", "BindIPv6Only") == Some("ipv6-only");
        match self.accepts {
            true => self.service.same("Accept=yes", "a process for each connection"),
            false => self.service.near(
                "Accept=no",
                "wait",
                "true",
                "one program gets the listening socket, as descriptor 0 and as LISTEN_FDS; when it ends, it is started again by the next who calls",
            ),
        }
        if self.accepts {
            let most = socket.last("Socket", "MaxConnections").and_then(number);
            let construct = most.map_or_else(
                || "MaxConnections=64, the default".to_owned(),
                |most| format!("MaxConnections={most}"),
            );
            self.service.exact(construct, "max_connections", most.unwrap_or(64).max(1).to_string());
            self.service.exact(
                "systemd closes a connection beyond MaxConnections=",
                "overload",
                quoted("refuse"),
            );
        }
        let entries: Vec<Assignment> = socket.of("Socket").cloned().collect();
        let has_file =
            entries.iter().any(|entry| entry.key == "ListenStream" && entry.value.starts_with(['/', '%']));
        let has_mode = socket.last("Socket", "SocketMode").is_some();
        if has_file && !has_mode {
            self.service.exact("SocketMode=0666, the default", "socket_mode", quoted("0666"));
        }
        for entry in &entries {
            let Some(value) = self.specified(&entry.value) else {
                self.service.refused(
                    entry.written(),
                    "preforkd knows no specifiers but %t, %p, %N, %n, %S and %%; write it whole",
                );
                continue;
            };
            self.socket_key(&entry.key, &value, &entry.written(), only_v6, names);
        }
        self.addresses(socket);
        for entry in socket.of("Install").chain(socket.of("Unit")) {
            self.about_unit(entry);
        }
    }

    fn about_unit(&mut self, entry: &Assignment) {
        match entry.key.as_str() {
            "Description" | "Documentation" | "SourcePath" => {
                self.service.dropped(entry.written(), "it is for people");
            }
            key if key.starts_with("Condition") || key.starts_with("Assert") => {
                self.service
                    .like(entry.written(), "preforkd has no conditions: the service is served always");
            }
            "Conflicts" => {
                self.service.like(entry.written(), "stop that unit yourself: both would want the port");
            }
            _ => self
                .service
                .dropped(entry.written(), "preforkd.service itself is started and ordered by its unit"),
        }
    }

    /// With the specifiers that are known here.
    fn specified(&self, value: &str) -> Option<String> {
        let mut result = String::new();
        let mut characters = value.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                result.push(character);
                continue;
            }
            match characters.next()? {
                '%' => result.push('%'),
                't' => result.push_str("/run"),
                'S' => result.push_str("/var/lib"),
                'C' => result.push_str("/var/cache"),
                'L' => result.push_str("/var/log"),
                'E' => result.push_str("/etc"),
                'T' => result.push_str("/tmp"),
                'V' => result.push_str("/var/tmp"),
                'p' | 'N' => result.push_str(self.pair.name.trim_end_matches('@')),
                _ => return None,
            }
        }
        Some(result)
    }

    fn socket_key(&mut self, key: &str, value: &str, written: &str, only_v6: bool, names: &ServiceNames) {
        let accepts = self.accepts;
        let service = &mut *self.service;
        let yes = boolean(value) == Some(true);
        let by_number = |service: &mut ImportedService, key: &'static str| match number(value) {
            Some(count) => service.exact(written, key, count.to_string()),
            None => service.refused(written, "write a number"),
        };
        match key {
            "ListenStream" => stream(service, value, written, only_v6, names),
            "ListenDatagram" if value.starts_with(['/', '@']) => {
                service.refused(written, "preforkd has no datagrams at Unix sockets; leave it to systemd");
            }
            "ListenDatagram" => datagram(service, value, written, only_v6, accepts, names),
            _ if key.starts_with("Listen") => {
                service.refused(
                    written,
                    "preforkd listens over TCP, UDP and at Unix sockets; leave this to systemd",
                );
            }
            "Accept" | "MaxConnections" | "IPAddressAllow" | "IPAddressDeny" => (),
            "BindIPv6Only" => service.about("listen", Takeover::Exact, written, ""),
            "Service" => service.same(written, "the unit whose program it is"),
            "MaxConnectionsPerSource" if !accepts => {
                service.same(written, "with Accept=no there is no such limit");
            }
            "MaxConnectionsPerSource" if number(value) == Some(0) => service.same(written, "no limit"),
            "MaxConnectionsPerSource" => by_number(service, "max_connections_per_source"),
            "Backlog" => by_number(service, "backlog"),
            "Mark" => by_number(service, "mark"),
            "KeepAlive" if yes => {
                if !service.keys.contains_key("keepalive") {
                    service.exact(written, "keepalive", "true");
                }
            }
            "KeepAliveTimeSec" | "KeepAliveIntervalSec" | "KeepAliveProbes" => {
                keepalive(service, key, value, written);
            }
            "NoDelay" => match yes {
                true => service.same(written, "nodelay is the default"),
                false => service.exact(written, "nodelay", "false"),
            },
            "FreeBind" if yes => service.exact(written, "freebind", "true"),
            "Transparent" if yes => service.exact(written, "transparent", "true"),
            "BindToDevice" => service.exact(written, "interface", quoted(value)),
            "IPTOS" => service.exact(
                written,
                "tos",
                number(value).map_or_else(|| quoted(value), |number| quoted(&number.to_string())),
            ),
            "DeferAcceptSec" => match span(value).flatten() {
                Some(seconds) if seconds > 0 => {
                    service.exact(written, "defer_accept", quoted(&format!("{seconds}s")));
                }
                _ => service.same(written, "nothing is deferred"),
            },
            "SocketUser" => service.exact(written, "socket_user", quoted(value)),
            "SocketGroup" => service.exact(written, "socket_group", quoted(value)),
            "SocketMode" => match u32::from_str_radix(value, 8) {
                Ok(mode) if mode <= 0o777 => {
                    service.exact(written, "socket_mode", quoted(&format!("{mode:04o}")));
                }
                _ => service.refused(written, "write an octal number"),
            },
            "DirectoryMode" => service.like(
                written,
                "the directory of the socket has to be there: RuntimeDirectory= or tmpfiles.d makes it",
            ),
            "TriggerLimitIntervalSec" | "TriggerLimitBurst" | "PollLimitIntervalSec" | "PollLimitBurst" => {
                service.dropped(written, "preforkd never gives a listener up");
            }
            "ReusePort" => service
                .dropped(written, "the port is preforkd's alone, so that nobody takes connections from it"),
            "RemoveOnStop"
            | "FlushPending"
            | "FileDescriptorName"
            | "TimeoutSec"
            | "Writable"
            | "PassFileDescriptorsToExec"
            | "DeferTrigger"
            | "DeferTriggerMaxSec"
            | "Timestamping" => service.dropped(written, "it is about systemd's own keeping of the socket"),
            "KeepAlive"
            | "FreeBind"
            | "Transparent"
            | "Broadcast"
            | "PassCredentials"
            | "PassPIDFD"
            | "PassSecurity"
            | "PassPacketInfo"
            | "PassRights"
            | "AcceptFileDescriptors" => match yes {
                false => service.same(written, "it is off by default"),
                true => {
                    service
                        .refused(written, "preforkd does not set this on a socket; have the program do it");
                }
            },
            "Priority" | "IPTTL" | "ReceiveBuffer" | "SendBuffer" | "TCPCongestion" | "PipeSize" => {
                service.dropped(written, OPTION);
            }
            "Symlinks" => service.refused(written, "make the link by tmpfiles.d"),
            "SELinuxContextFromNet" | "SmackLabel" | "SmackLabelIPIn" | "SmackLabelIPOut" => {
                service.guarded(written, "preforkd sets no security context");
            }
            _ if key.starts_with("Exec") => {
                service.refused(written, "preforkd runs nothing before it listens; do it in a unit of its own, before preforkd.service");
            }
            _ => service.refused(
                written,
                "this key of systemd.socket(5) is not known; see what it does, and take the # away",
            ),
        }
    }

    /// `IPAddressAllow=` counts before `IPAddressDeny=`, and what neither names is let in.
    fn addresses(&mut self, socket: &UnitFile) {
        let entries = |key: &'static str| -> Vec<String> {
            let of_service = self.pair.service.iter().flat_map(|unit| unit.all("Service", key));
            let all = socket.all("Socket", key).chain(of_service);
            all.flat_map(|value| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
        };
        let (allow, deny) = (entries("IPAddressAllow"), entries("IPAddressDeny"));
        if allow.is_empty() && deny.is_empty() {
            return;
        }
        let written = format!("IPAddressAllow={} IPAddressDeny={}", allow.join(" "), deny.join(" "));
        let both = (prefixes(&allow), prefixes(&deny));
        let (Some(allowed), Some(denied)) = both else {
            self.service.guarded(written, "not all of it are addresses; write allow and deny");
            return;
        };
        if !self.accepts {
            self.service.guarded(
                written,
                "the program gets the socket, and preforkd sees nobody who calls; say it with nftables",
            );
            return;
        }
        let why =
            "for who calls; what the program itself sends is not looked at, see sandbox = { network = … }";
        let denies_all = ["0.0.0.0/0", "::/0"].iter().all(|all| denied.iter().any(|prefix| prefix == all));
        match (allowed.is_empty(), denies_all) {
            (true, _) => self.service.near(written, "deny", list(&denied), why),
            (false, true) => self.service.near(written, "allow", list(&allowed), why),
            (false, false) => {
                let outside: Vec<&String> =
                    denied.iter().filter(|prefix| !allowed.contains(prefix)).collect();
                let why = "the longest prefix decides here, and IPAddressAllow= before all; look whether that is the same";
                self.service.near(&written, "deny", list(outside), why);
                self.service.near(
                    written,
                    "allow",
                    list(allowed.iter().map(String::as_str).chain(["0.0.0.0/0", "::/0"])),
                    why,
                );
            }
        }
    }

    fn program(&mut self, unit: &UnitFile) {
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
            (Some(user), _) => match self.specified(user) {
                Some(user) => self.service.exact(format!("User={user}"), "user", quoted(&user)),
                None => self.service.refused(format!("User={user}"), "name a user"),
            },
            (None, _) => {
                self.service.exact("no User=: root", "user", quoted("root"));
                self.service.about("user", Takeover::Exact, "SECURITY", "think whether it has to be root");
            }
        }
        for entry in unit.of("Service").cloned().collect::<Vec<_>>() {
            match self.specified(&entry.value) {
                Some(value) => self.service_key(&entry.key, &value, &entry.written(), unit),
                None if entry.key == "ExecStart" => (),
                None => self.service.refused(
                    entry.written(),
                    "preforkd knows no specifiers but %t, %p, %N, %S, %E and %%; write it whole",
                ),
            }
        }
        self.files();
        for entry in unit.of("Unit") {
            self.about_unit(entry);
        }
    }

    /// The command line of `ExecStart=`.
    fn exec(&mut self, line: &str, unit: &UnitFile) {
        let written = format!("ExecStart={line}");
        let rest = line.trim_start_matches(['-', '@', ':', '+', '!', '|']);
        let marks = &line[..line.len() - rest.len()];
        if marks.contains(['+', '!', '|']) {
            self.service.refused(
                &written,
                "+, ! and | start it with other rights than the unit says; say with user who it is to be",
            );
            return;
        }
        let Some(mut command) = words(rest) else {
            self.service.refused(&written, "a quote is not closed");
            return;
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
                return;
            };
            command = new;
        }
        let specified: Option<Vec<String>> = command.iter().map(|word| self.specified(word)).collect();
        let Some(mut command) = specified else {
            self.service.refused(&written, "%i and the like stand for the connection: programs find it in REMOTE_ADDR and PREFORKD_CONNECTION");
            return;
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
            return;
        }
        if marks.contains('-') {
            why.push("preforkd goes on whatever a program's exit status is".to_owned());
        }
        match why.is_empty() {
            true => self.service.exact(written, "exec", list(&command)),
            false => self.service.near(written, "exec", list(&command), why.join("; ")),
        }
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

    fn service_key(&mut self, key: &str, value: &str, written: &str, unit: &UnitFile) {
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
                let files: Vec<&str> = unit.all("Service", "EnvironmentFile").collect();
                service.exact(written, "environment_file", list(files));
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
                false => service.exact(written, "sandbox", table([("no_new_privs", "false".to_owned())])),
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

fn keepalive(service: &mut ImportedService, key: &str, value: &str, written: &str) {
    let (name, value) = match (key, span(value).flatten()) {
        ("KeepAliveTimeSec", Some(seconds)) => ("idle", quoted(&format!("{seconds}s"))),
        ("KeepAliveIntervalSec", Some(seconds)) => ("interval", quoted(&format!("{seconds}s"))),
        ("KeepAliveProbes", _) if number(value).is_some() => ("count", value.to_owned()),
        _ => return service.refused(written, "write a number"),
    };
    let table = match service.keys.get("keepalive").and_then(|table| table.strip_suffix(" }")) {
        Some(table) => format!("{table}, {name} = {value} }}"),
        None => format!("{{ {name} = {value} }}"),
    };
    service.exact(written, "keepalive", table);
}

fn stream(service: &mut ImportedService, value: &str, written: &str, only_v6: bool, names: &ServiceNames) {
    if value.starts_with(['/', '@']) {
        service.listen.push(place::unix(value));
        service.about("listen", Takeover::Exact, written, "");
        return;
    }
    internet(service, value, written, only_v6, false, names);
}

fn datagram(
    service: &mut ImportedService,
    value: &str,
    written: &str,
    only_v6: bool,
    accepts: bool,
    names: &ServiceNames,
) {
    if accepts {
        service.refused(
            written,
            "datagrams have no connections that could be accepted; systemd does not start this either",
        );
        return;
    }
    internet(service, value, written, only_v6, true, names);
}

fn internet(
    service: &mut ImportedService,
    value: &str,
    written: &str,
    only_v6: bool,
    is_udp: bool,
    names: &ServiceNames,
) {
    let both = if only_v6 { Host::V6 } else { Host::Both };
    let (address, interface) =
        value.split_once('%').map_or((value, None), |(address, name)| (address, Some(name)));
    let found = match address.rsplit_once(':') {
        None => number(address).map(|_| (both, address)),
        Some((host, port)) => {
            Host::written(host).map(|host| (if host == Host::V6 { both } else { host }, port))
        }
    };
    match found {
        Some((Host::One(ip), port)) if interface.is_some() && !is_udp => {
            let interface = interface.unwrap_or_default();
            service.listen.push(format!("[{ip}%{interface}]:{port}"));
            service.about("listen", Takeover::Exact, written, "");
        }
        Some((host, port)) if interface.is_none() => place::listen(service, written, host, port, is_udp, names),
        _ => service.refused(written, "preforkd listens at addresses of IPv4 and IPv6, at paths and abstract names; leave this to systemd"),
    }
}

/// The prefixes of `IPAddressAllow=`; `None` if one is no address.
fn prefixes(entries: &[String]) -> Option<Vec<String>> {
    let mut prefixes = Vec::new();
    for entry in entries {
        match entry.as_str() {
            "any" => prefixes.extend(["0.0.0.0/0".to_owned(), "::/0".to_owned()]),
            "localhost" => prefixes.extend(["127.0.0.0/8".to_owned(), "::1/128".to_owned()]),
            "link-local" => prefixes.extend(["169.254.0.0/16".to_owned(), "fe80::/64".to_owned()]),
            "multicast" => (),
            other => prefixes.push(place::prefix(other)?),
        }
    }
    prefixes.dedup();
    Some(prefixes)
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
