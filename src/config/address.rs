//! Where a service listens.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One entry of `listen`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Address {
    /// `192.0.2.1:7` or `[2001:db8::1]:7`. An IPv6 wildcard takes IPv6 only, so `[::]:7` and `0.0.0.0:7` go together.
    Tcp(SocketAddr),
    /// `[fe80::1%eth0]:7`: a link-local address at the interface of this name, whichever number that has.
    Scoped(Ipv6Addr, String, u16),
    /// `*:7`: every address of this machine, of whichever family there is.
    Any(u16),
    /// `udp:192.0.2.1:69` or `udp:[2001:db8::1]:69`: a datagram socket, of which a service with `wait` makes something.
    Udp(SocketAddr),
    /// `unix:/run/x.sock`; the path is absolute.
    Unix(PathBuf),
    /// `unix:@NAME`: a name of the abstract namespace, unix(7), without its `@`.
    Abstract(String),
    /// `fd:NAME`: a listening socket that systemd passes under that name.
    Activated(String),
}

impl Address {
    /// Whether the kernel is to choose a port.
    pub(crate) fn has_any_port(&self) -> bool {
        match self {
            Address::Tcp(address) | Address::Udp(address) => address.port() == 0,
            Address::Scoped(_, _, port) | Address::Any(port) => *port == 0,
            Address::Unix(_) | Address::Abstract(_) | Address::Activated(_) => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Scoped(ip, interface, port) => write!(f, "[{ip}%{interface}]:{port}"),
            Address::Any(port) => write!(f, "*:{port}"),
            Address::Udp(address) => write!(f, "udp:{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{name}"),
            Address::Activated(name) => write!(f, "fd:{name}"),
        }
    }
}

/// Why a text is no address, and what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct AddressError(pub(crate) String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        if let Some(name) = text.strip_prefix("fd:") {
            return passed(name);
        }
        if let Some(address) = text.strip_prefix("udp:") {
            return udp(address);
        }
        // Not `parse`, which takes a sign.
        let digits = text.strip_prefix("*:").filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(port) = digits.and_then(|port| port.parse().ok()) {
            return Ok(Address::Any(port));
        }
        if let Some((ip, interface, port)) = scoped(text) {
            return link_local(ip, interface, port);
        }
        text.parse().map_err(|_| AddressError(tcp_hint(text))).and_then(tcp)
    }
}

/// The parts of `[fe80::1%eth0]:7`, if the interface is no number.
fn scoped(text: &str) -> Option<(Ipv6Addr, &str, u16)> {
    let (ip, rest) = text.strip_prefix('[')?.split_once('%')?;
    let (interface, port) = rest.rsplit_once("]:")?;
    let is_number = interface.bytes().all(|byte| byte.is_ascii_digit());
    (!is_number).then_some((ip.parse().ok()?, interface, port.parse().ok()?))
}

fn link_local(ip: Ipv6Addr, interface: &str, port: u16) -> Result<Address, AddressError> {
    // dev_valid_name() in the kernel's net/core/dev.c.
    if interface.len() > 15
        || interface.contains(|c: char| c.is_ascii_whitespace() || ['/', ':', '\0'].contains(&c))
    {
        return Err(AddressError(format!(
            "no address: \"{interface}\" cannot be the name of an interface; ip link shows them"
        )));
    }
    if !ip.is_unicast_link_local() {
        return Err(AddressError(format!(
            "no link-local address, and only these have an interface; write \"[{ip}]:{port}\""
        )));
    }
    Ok(Address::Scoped(ip, interface.to_owned(), port))
}

fn tcp(address: SocketAddr) -> Result<Address, AddressError> {
    let port = address.port();
    let SocketAddr::V6(v6) = address else { return Ok(Address::Tcp(address)) };
    if let Some(ip) = v6.ip().to_ipv4_mapped() {
        // The sockets of an IPv6 address take IPv6 only, and bind(2) would say no more than EADDRNOTAVAIL.
        let right = if ip.is_unspecified() { format!("*:{port}") } else { format!("{ip}:{port}") };
        return Err(AddressError(format!("an IPv4 address in the form of an IPv6 one; write \"{right}\"")));
    }
    if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 {
        return Err(AddressError(format!(
            "a link-local address, which is another one at every interface; write \"[{}%INTERFACE]:{port}\" with the interface \
             that ip -6 addr shows it at, as in \"[{}%eth0]:{port}\"",
            v6.ip(),
            v6.ip()
        )));
    }
    Ok(Address::Tcp(address))
}

fn udp(text: &str) -> Result<Address, AddressError> {
    if let Some(port) = text.strip_prefix("*:").filter(|port| port.parse::<u16>().is_ok()) {
        // Who answers from a socket of both families answers IPv4 by the address of the machine, not by the one that was called.
        return Err(AddressError(format!(
            "of both families, and a datagram socket is of one; write \"udp:0.0.0.0:{port}\" and \"udp:[::]:{port}\", or one of them"
        )));
    }
    if let Some((ip, interface, port)) = scoped(text) {
        return Err(AddressError(format!(
            "an address with the name of an interface, and a datagram socket has that by number or by a key; write \"udp:[::]:{port}\" with interface = \"{interface}\", or \
             \"udp:[{ip}%NUMBER]:{port}\""
        )));
    }
    let of_udp = |hint: String| {
        AddressError(hint.replace("write \"*:", "write \"0.0.0.0:").replace("write \"", "write \"udp:"))
    };
    let address: SocketAddr = text.parse().map_err(|_| of_udp(tcp_hint(text)))?;
    tcp(address).map(|_| Address::Udp(address)).map_err(|AddressError(hint)| of_udp(hint))
}

/// How much of `sun_path`, which has 108 bytes, is a path without its NUL, or an abstract name without the one before it.
const LONGEST_UNIX_NAME: usize = 107;

fn unix(path: &str) -> Result<Address, AddressError> {
    if let Some(name) = path.strip_prefix('@') {
        return abstract_name(name);
    }
    if !path.starts_with('/') {
        let right = "a Unix socket needs an absolute path, as in \"unix:/run/x.sock\", or an abstract name, as in \"unix:@x\"";
        Err(AddressError(right.into()))
    } else if path.len() > LONGEST_UNIX_NAME {
        let length = path.len();
        Err(AddressError(format!(
            "the path has {length} bytes, and a Unix socket's at most {LONGEST_UNIX_NAME}"
        )))
    } else if path.contains('\0') {
        Err(AddressError("a path cannot contain a NUL byte".into()))
    } else {
        Ok(Address::Unix(PathBuf::from(path)))
    }
}

fn abstract_name(name: &str) -> Result<Address, AddressError> {
    if name.is_empty() {
        // The kernel would choose one, and nobody would know it.
        Err(AddressError("the name is missing after the \"@\", as in \"unix:@x\"".into()))
    } else if name.len() > LONGEST_UNIX_NAME {
        let length = name.len();
        Err(AddressError(format!(
            "the name has {length} bytes, and an abstract one at most {LONGEST_UNIX_NAME}"
        )))
    } else if name.contains('\0') {
        Err(AddressError("a name cannot contain a NUL byte".into()))
    } else {
        Ok(Address::Abstract(name.to_owned()))
    }
}

fn passed(name: &str) -> Result<Address, AddressError> {
    // The rules of FileDescriptorName= in systemd.socket(5).
    if name.is_empty() || name.len() > 255 || name.contains(|c: char| c.is_ascii_control() || c == ':') {
        return Err(AddressError(
            "\"fd:\" is followed by the FileDescriptorName= of a systemd socket, as in \"fd:web\"".into(),
        ));
    }
    Ok(Address::Activated(name.to_owned()))
}

fn tcp_hint(text: &str) -> String {
    let example = if let Ok(port) = text.trim_start_matches(['*', ':']).parse::<u16>() {
        format!("write \"*:{port}\" for every address of this machine")
    } else if let Some((host, port)) = unbracketed(text) {
        format!("an IPv6 address goes in brackets: write \"[{host}]:{port}\"")
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        // `::1:80` may be meant as either.
        let brackets = if ip.is_ipv6() { "; an IPv6 address goes in brackets" } else { "" };
        format!("the port is missing: write \"{}\"{brackets}", SocketAddr::new(ip, 7))
    } else if text.starts_with('/') {
        format!("write \"unix:{text}\" for a Unix socket")
    } else if text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_err()) {
        "the port is a number from 0 to 65535, as in \"127.0.0.1:7007\"".to_owned()
    } else {
        "write an IP address and a port, as in \"127.0.0.1:7007\", \"[::1]:7007\" or \"*:7007\", \"unix:/PATH\", \"unix:@NAME\", \
         \"fd:NAME\" or \"udp:127.0.0.1:7007\" (names are not looked up)"
            .to_owned()
    };
    format!("not an address to listen on; {example}")
}

/// `::1:80` is an address without a port, too, but nobody means that.
fn unbracketed(text: &str) -> Option<(Ipv6Addr, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    Some((host.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_being_written_and_read() {
        for text in [
            "127.0.0.1:7",
            "[::1]:0",
            "*:7",
            "*:0",
            "[fe80::1%3]:9",
            "[fe80::1%br-lan.1]:9",
            "unix:/run/x.sock",
            "unix:@x y",
            "udp:127.0.0.1:69",
            "udp:[::]:69",
            "udp:[fe80::1%3]:69",
            "fd:web",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_error_says_what_would_be_right() {
        for (text, hint) in [
            (":80", "\"*:80\""),
            ("*80", "\"*:80\""),
            ("*:+80", "every address"),
            ("*:99999", "0 to 65535"),
            ("[::ffff:127.0.0.1]:80", "\"127.0.0.1:80\""),
            ("[::ffff:0.0.0.0]:80", "\"*:80\""),
            ("[2001:db8::1%eth0]:80", "\"[2001:db8::1]:80\""),
            ("[fe80::1%sixteen-letters-]:80", "ip link"),
            ("[fe80::1]:80", "\"[fe80::1%INTERFACE]:80\""),
            ("127.0.0.1", "127.0.0.1:7"),
            ("::1:80", "goes in brackets"),
            ("/run/x", "unix:/run/x"),
            ("unix:run/x", "absolute"),
            ("unix:@", "the name is missing"),
            (&format!("unix:@{}", "x".repeat(108)), "has 108 bytes"),
            ("127.0.0.1:http", "0 to 65535"),
            ("localhost:80", "names are not looked up"),
            ("fd:", "FileDescriptorName"),
            ("udp:*:69", "\"udp:0.0.0.0:69\" and \"udp:[::]:69\""),
            ("udp:[fe80::1%eth0]:69", "interface = \"eth0\""),
            ("udp:69", "\"udp:0.0.0.0:69\""),
            ("udp:[::ffff:127.0.0.1]:69", "\"udp:127.0.0.1:69\""),
            ("udp:127.0.0.1", "\"udp:127.0.0.1:7\""),
            ("udp:localhost:69", "names are not looked up"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
