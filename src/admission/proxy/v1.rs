//! Version 1, a line of text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{Header, LONGEST_V1, Parsed, ProxiedClient, ProxyError, need, tcp};

pub(super) const SIGNATURE: &[u8] = b"PROXY ";

/// The shortest header of all: `PROXY UNKNOWN`, CR LF.
const SHORTEST: usize = 15;

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    let seen = bytes.get(..LONGEST_V1).unwrap_or(bytes);
    let end = seen.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(seen.len());
    let (text, rest) = seen.split_at(end);
    if text.len() + 2 > LONGEST_V1 {
        return Err(ProxyError::Endless);
    }
    match rest {
        [] => Ok(need(bytes, shortest(text)?)),
        // A line that is no header is refused at its CR: nobody waits for the LF of a lie.
        [b'\r'] => client(text).map(|_| Parsed::NeedMore(1)),
        [b'\r', b'\n', ..] => Ok(Parsed::Header(Header { client: client(text)?, length: end + 2 })),
        _ => Err(ProxyError::LineEnd),
    }
}

/// The fewest bytes, CR LF included, of a line that begins like this.
fn shortest(text: &[u8]) -> Result<usize, ProxyError> {
    let mut words = text.get(SIGNATURE.len()..).unwrap_or_default().split(|byte| *byte == b' ');
    let protocol = words.next().unwrap_or_default();
    let address = match protocol {
        b"TCP4" => "0.0.0.0".len(),
        b"TCP6" => "::".len(),
        begun if [&b"TCP4"[..], b"TCP6", b"UNKNOWN"].iter().any(|name| name.starts_with(begun)) => {
            return Ok((text.len() + 2).max(SHORTEST));
        }
        _ => return Err(ProxyError::Words),
    };
    let least = [address, address, 1, 1];
    let missing: usize = match words.clone().count() {
        0 => least.iter().map(|word| 1 + word).sum(),
        begun => {
            let to_come: usize = least.iter().skip(begun).map(|word| 1 + word).sum();
            to_come + usize::from(text.last() == Some(&b' '))
        }
    };
    Ok(text.len() + missing + 2)
}

/// Whose connection a line is about; it comes without its end.
fn client(line: &[u8]) -> Result<ProxiedClient, ProxyError> {
    let text = line.get(SIGNATURE.len()..).ok_or(ProxyError::LineEnd)?;
    // Whatever else is on such a line is to be ignored.
    if text == b"UNKNOWN" || text.starts_with(b"UNKNOWN ") {
        return Ok(ProxiedClient::Unknown);
    }
    let text = std::str::from_utf8(text).map_err(|_| ProxyError::Words)?;
    let mut words = text.split(' ');
    let mut next = || words.next().ok_or(ProxyError::Words);
    let (protocol, source, destination, from, to) = (next()?, next()?, next()?, next()?, next()?);
    if words.next().is_some() {
        return Err(ProxyError::Words);
    }
    let (source, destination) = match protocol {
        "TCP4" => (address::<Ipv4Addr>(source)?, address::<Ipv4Addr>(destination)?),
        "TCP6" => (address::<Ipv6Addr>(source)?, address::<Ipv6Addr>(destination)?),
        _ => return Err(ProxyError::Words),
    };
    Ok(tcp(SocketAddr::new(source, port(from)?), SocketAddr::new(destination, port(to)?)))
}

/// The library takes exactly what the specification does: no leading zeros, no zones.
fn address<A: FromStr + Into<IpAddr>>(text: &str) -> Result<IpAddr, ProxyError> {
    text.parse::<A>().map(Into::into).map_err(|_| ProxyError::Address)
}

fn port(text: &str) -> Result<u16, ProxyError> {
    let canonical = text == "0" || text.starts_with(|c: char| matches!(c, '1'..='9'));
    text.parse().ok().filter(|_| canonical).ok_or(ProxyError::Port)
}
