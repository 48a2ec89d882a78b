//! Addresses: where a service listens, and whom it lets in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::model::{ImportedService, Takeover};
use super::names::ServiceNames;

/// At which address of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Every address, of both families.
    Both,
    /// Every address of IPv4.
    V4,
    /// Every address of IPv6.
    V6,
    One(IpAddr),
}

impl Host {
    /// The host that is written as an address, with or without brackets, or as localhost.
    pub(crate) fn written(text: &str) -> Option<Host> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        match bare {
            "localhost" => return Some(Host::One(Ipv4Addr::LOCALHOST.into())),
            "*" => return Some(Host::Both),
            _ => (),
        }
        match bare.parse::<IpAddr>().ok()? {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Some(Host::V4),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some(Host::V6),
            ip => Some(Host::One(ip.to_canonical())),
        }
    }

    /// The entries of `listen` for this port.
    pub(crate) fn listen(self, port: u16, is_udp: bool) -> Vec<String> {
        let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port).to_string();
        let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).to_string();
        let of_tcp = match self {
            // A datagram socket is of one family.
            Host::Both if is_udp => vec![v4, v6],
            Host::Both => vec![format!("*:{port}")],
            Host::V4 => vec![v4],
            Host::V6 => vec![v6],
            Host::One(ip) => vec![SocketAddr::new(ip, port).to_string()],
        };
        let prefix = if is_udp { "udp:" } else { "" };
        of_tcp.into_iter().map(|address| format!("{prefix}{address}")).collect()
    }
}

/// Has the service listen at a port that is named or numbered.
pub(crate) fn listen(
    service: &mut ImportedService,
    construct: &str,
    host: Host,
    port: &str,
    is_udp: bool,
    names: &ServiceNames,
) {
    let protocol = if is_udp { "udp" } else { "tcp" };
    match names.port(port, protocol) {
        Some(found) => {
            service.listen.extend(host.listen(found.number, is_udp));
            match found.is_of_machine {
                true => service.about("listen", Takeover::Exact, construct, ""),
                false => service.about(
                    "listen",
                    Takeover::Near,
                    construct,
                    format!(
                        "/etc/services does not have {port}/{protocol}; {} is what others have for it",
                        found.number
                    ),
                ),
            }
        }
        None => service.refused(
            construct,
            format!("nobody knows the port of {port}/{protocol}: /etc/services does not have it; write listen = \"*:PORT\""),
        ),
    }
}

/// A prefix as xinetd, tcprules and systemd write it, as far as it names addresses: `10.1.2.3`, `10.0.0.0/8`, `2001:db8::/32`.
pub(crate) fn prefix(text: &str) -> Option<String> {
    let (ip, length) = match text.split_once('/') {
        Some((ip, length)) => (ip, Some(length)),
        None => (text, None),
    };
    let ip: IpAddr = ip.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => most,
        Some(length) if length.contains('.') => {
            let mask = u32::from(length.parse::<Ipv4Addr>().ok()?);
            let ones = mask.leading_ones();
            (ip.is_ipv4() && mask.checked_shl(ones).unwrap_or(0) == 0).then_some(ones)?
        }
        Some(length) => length.parse::<u32>().ok().filter(|length| *length <= most)?,
    };
    Some(format!("{}/{length}", network(ip, length)))
}

/// The first address of the prefix around one.
pub(crate) fn network(ip: IpAddr, length: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(length)).unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(length)).unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}

/// What to do about a path that begins nowhere.
pub(crate) const FROM_WHERE: &str =
    "from which directory is not known here; write the whole path of the program";

/// Of the words of a program, the script that an interpreter is to find where it is started.
pub(crate) fn relative_script<'w>(words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let mut words = words.into_iter();
    let name = words.next()?.rsplit('/').next()?.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let is_interpreter = matches!(
        name,
        "python"
            | "pypy"
            | "perl"
            | "ruby"
            | "node"
            | "php"
            | "lua"
            | "sage"
            | "sh"
            | "bash"
            | "dash"
            | "java"
    );
    let script =
        words.find(|word| *word == "-c" || *word == "-e" || *word == "-m" || !word.starts_with('-'))?;
    let is_path = !script.starts_with(['-', '/', '$']) && script.contains(['.', '/']);
    (is_interpreter && is_path).then_some(script)
}

/// The entry of `listen` for a Unix socket.
pub(crate) fn unix(path: &str) -> String {
    format!("unix:{path}")
}
