//! The keys of a `.socket`.

use super::service::NO_SPAN;
use super::specifier::Of;
use super::{ACCEPT_NO, UnitReading, known};
use crate::import::model::{ImportedService, Takeover, list, number, quoted};
use crate::import::names::ServiceNames;
use crate::import::place::{self, Host};
use crate::import::unit_file::{Assignment, UnitFile, boolean, span};

/// Keys in which specifiers count, as far as their values count here.
const SPECIFIED: [&str; 7] = [
    "ListenStream",
    "ListenDatagram",
    "BindToDevice",
    "FileDescriptorName",
    "Service",
    "SocketGroup",
    "SocketUser",
];

const OF_DATAGRAMS: &str = "it is about datagrams, and this socket has connections";

const OPTION: &str = "preforkd leaves this to the kernel";

impl UnitReading<'_> {
    pub(super) fn socket(&mut self, names: &ServiceNames) {
        let socket = &self.pair.socket;
        let only_v6 = socket.last("Socket", "BindIPv6Only") == Some("ipv6-only");
        match self.accepts {
            true => self.service.same("Accept=yes", "a process for each connection"),
            false => {
                let unit = self.pair.service.as_ref();
                let is_input = unit.and_then(|unit| unit.last("Service", "StandardInput")) == Some("socket");
                let named = if is_input { "" } else { ", which LISTEN_FDNAMES calls listener" };
                let why = format!(
                    "one program gets the listening socket{named}; when it ends, it is started again by the next who calls"
                );
                self.service.near(ACCEPT_NO, "wait", "true", why);
            }
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
        let says_rights = ["PassRights", "AcceptFileDescriptors"]
            .into_iter()
            .any(|key| socket.last("Socket", key).is_some());
        if self.accepts && has_unix(socket) && !says_rights {
            self.service.like(
                "PassRights=yes, the default",
                "clients cannot send descriptors; with pass_rights = true they can",
            );
        }
        for entry in &entries {
            let value = match SPECIFIED.contains(&entry.key.as_str()) {
                true => self.pair.specify(&entry.value, Of::Socket),
                false => Ok(entry.value.clone()),
            };
            match value {
                Ok(value) => self.socket_key(&entry.key, &value, &entry.written(), only_v6, names),
                Err(letter) => self.service.refused(entry.written(), self.instead(letter, Of::Socket)),
            }
        }
        self.addresses(socket);
        for entry in socket.of("Install").chain(socket.of("Unit")) {
            self.about_unit(entry);
        }
    }

    fn socket_key(&mut self, key: &str, value: &str, written: &str, only_v6: bool, names: &ServiceNames) {
        let accepts = self.accepts;
        let has_unix = has_unix(&self.pair.socket);
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
            "Accept" | "IPAddressAllow" | "IPAddressDeny" => (),
            "MaxConnections" if accepts => (),
            "MaxConnections" => service.same(written, "with Accept=no there is no such limit"),
            "BindIPv6Only" => service.about("listen", Takeover::Exact, written, ""),
            "Service" => service.same(format!("Service={value}"), "the unit whose program it is"),
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
                let is_on = self.pair.socket.last("Socket", "KeepAlive").and_then(boolean) == Some(true);
                keepalive(service, key, value, written, is_on);
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
                None => service.refused(written, NO_SPAN),
                Some(0) => service.same(written, "nothing is deferred"),
                Some(seconds) => service.exact(written, "defer_accept", quoted(&format!("{seconds}s"))),
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
            "FileDescriptorName" if accepts => {
                service.dropped(written, "a connection is called connection, whatever this says");
            }
            "FileDescriptorName" if value == "listener" => service.same(written, ""),
            "FileDescriptorName" => service.like(
                written,
                "it is called listener here: a program that looks for the name in LISTEN_FDNAMES does not find it",
            ),
            "RemoveOnStop"
            | "FlushPending"
            | "TimeoutSec"
            | "Writable"
            | "PassFileDescriptorsToExec"
            | "DeferTrigger"
            | "DeferTriggerMaxSec"
            | "Timestamping" => service.dropped(written, "it is about systemd's own keeping of the socket"),
            // Over TCP there are none.
            "AcceptFileDescriptors" | "PassRights" if !has_unix => service.same(written, "it is about Unix sockets"),
            "AcceptFileDescriptors" | "PassRights" => match boolean(value) {
                Some(false) => service.exact(written, "pass_rights", "false"),
                _ => service.exact(written, "pass_rights", "true"),
            },
            "KeepAlive" | "FreeBind" | "Transparent" | "Broadcast" | "PassCredentials" | "PassPIDFD" | "PassSecurity"
            | "PassPacketInfo"
                if !yes =>
            {
                service.same(written, "it is off by default");
            }
            "Broadcast" | "PassPacketInfo" if !self.pair.socket.of("Socket").any(|entry| entry.key == "ListenDatagram") => {
                service.dropped(written, OF_DATAGRAMS);
            }
            // Who has connected the kernel says anyway, unix(7) SO_PEERCRED; with SO_PASSCRED it says also who has sent what.
            "PassCredentials" | "PassPIDFD" => service.like(
                written,
                "programs have SO_PEERCRED and SO_PEERPIDFD; one that reads SCM_CREDENTIALS or SCM_PIDFD has to ask for them itself",
            ),
            "Broadcast" | "PassSecurity" | "PassPacketInfo" => {
                service.refused(written, "preforkd does not set this on a socket; have the program do it");
            }
            "Priority" | "IPTTL" | "ReceiveBuffer" | "SendBuffer" | "TCPCongestion" | "PipeSize" => {
                service.dropped(written, OPTION);
            }
            "Symlinks" => service.refused(written, "make the link by tmpfiles.d"),
            "SELinuxContextFromNet" if !yes => service.same(written, "it is off"),
            "SELinuxContextFromNet" | "SmackLabel" | "SmackLabelIPIn" | "SmackLabelIPOut" => {
                service.guarded(written, "preforkd sets no security context");
            }
            "SocketProtocol" => {
                service.refused(written, "preforkd listens over TCP and UDP alone; leave this to systemd");
            }
            "MessageQueueMaxMessages" | "MessageQueueMessageSize" => {
                service.dropped(written, "it is about message queues");
            }
            _ if key.starts_with("Exec") => {
                service.refused(written, "preforkd runs nothing before it listens; do it in a unit of its own, before preforkd.service");
            }
            _ if key.starts_with("X-") => service.dropped(written, "systemd leaves it out, too"),
            // systemd.exec(5): execution settings of a socket unit are for its own commands.
            _ if known::is_of_programs(key) => {
                service.dropped(written, "it is about commands of the socket unit itself, of ExecStartPre= and the like");
            }
            _ => service.refused(
                written,
                "this key of systemd.socket(5) is not known; see what it does, and take the # away",
            ),
        }
    }

    /// `IPAddressAllow=` counts before `IPAddressDeny=`, and what neither names is let in.
    pub(super) fn addresses(&mut self, socket: &UnitFile) {
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
}

/// Whether it listens at a Unix socket.
fn has_unix(socket: &UnitFile) -> bool {
    socket.all("Socket", "ListenStream").any(|address| address.starts_with(['/', '@', '%']))
}

fn keepalive(service: &mut ImportedService, key: &str, value: &str, written: &str, is_on: bool) {
    if span(value) == Some(Some(0)) {
        return service.same(written, "as the kernel has it");
    }
    let (name, value) = match (key, span(value).flatten()) {
        ("KeepAliveTimeSec", Some(seconds)) => ("idle", quoted(&format!("{seconds}s"))),
        ("KeepAliveIntervalSec", Some(seconds)) => ("interval", quoted(&format!("{seconds}s"))),
        ("KeepAliveProbes", _) if number(value).is_some() => ("count", value.to_owned()),
        ("KeepAliveProbes", _) => return service.refused(written, "write a number"),
        _ => return service.refused(written, NO_SPAN),
    };
    let table = match service.keys.get("keepalive").and_then(|table| table.strip_suffix(" }")) {
        Some(table) => format!("{table}, {name} = {value} }}"),
        None => format!("{{ {name} = {value} }}"),
    };
    match is_on {
        true => service.exact(written, "keepalive", table),
        false => service.near(
            written,
            "keepalive",
            table,
            "without KeepAlive=yes only a program that asks for keepalives has them; here all have",
        ),
    }
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
    // systemd.socket(5): "[x]:y%dev".
    let (address, interface) =
        value.split_once('%').map_or((value, None), |(address, name)| (address, Some(name)));
    let found = match address.rsplit_once(':') {
        None => number(address).map(|_| (both, address)),
        Some((host, port)) => {
            Host::written(host).map(|host| (if host == Host::V6 { both } else { host }, port))
        }
    };
    match (found, interface) {
        (Some((Host::One(ip), port)), Some(interface)) if ip.is_ipv6() && number(port).is_some() => {
            let prefix = if is_udp { "udp:" } else { "" };
            service.listen.push(format!("{prefix}[{ip}%{interface}]:{port}"));
            service.about("listen", Takeover::Exact, written, "");
        }
        (Some((host, port)), None) => {
            place::listen(service, written, host, port, is_udp, names);
            if is_udp && host == Host::Both {
                of_both_families(service);
            }
        }
        _ => service.refused(written, "preforkd listens at addresses of IPv4 and IPv6, at paths and abstract names; leave this to systemd"),
    }
}

/// systemd has one socket of datagrams for both, and one program.
fn of_both_families(service: &mut ImportedService) {
    if let Some(note) = service.notes.last_mut().filter(|note| note.verdict == Takeover::Exact) {
        note.verdict = Takeover::Near;
        note.why = "a socket for each family, and a program for each".to_owned();
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
