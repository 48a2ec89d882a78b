//! The keys of a `.socket`.

use super::UnitReading;
use crate::import::model::{ImportedService, Takeover, list, number, quoted};
use crate::import::names::ServiceNames;
use crate::import::place::{self, Host};
use crate::import::unit_file::{Assignment, UnitFile, boolean, span};

const OPTION: &str = "preforkd leaves this to the kernel";

impl UnitReading<'_> {
    pub(super) fn socket(&mut self, names: &ServiceNames) {
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
            let Some(value) = self.pair.specified(&entry.value) else {
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
