//! Version 2, binary.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Header, Parsed, ProxiedClient, ProxyError, need, tcp};
use crate::admission::crc32c;

pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What is before the addresses: signature, version and command, family and protocol, length of the rest.
const FIXED: usize = 16;

/// `PP2_TYPE_CRC32C`
const CRC32C: u8 = 0x03;

/// The upper half of the 14th byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AddressFamily {
    Unspecified,
    Inet,
    Inet6,
    Unix,
}

/// The lower half of the 14th byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Unspecified,
    Stream,
    Datagram,
}

impl AddressFamily {
    /// The bytes of both addresses, with their ports.
    fn width(self) -> usize {
        match self {
            AddressFamily::Unspecified => 0,
            AddressFamily::Inet => 12,
            AddressFamily::Inet6 => 36,
            AddressFamily::Unix => 216,
        }
    }
}

pub(super) fn parse(bytes: &[u8], limit: usize) -> Result<Parsed, ProxyError> {
    let local = bytes.get(SIGNATURE.len()).map(|byte| is_local(*byte)).transpose()?;
    // Of LOCAL the family is ignored.
    let kind = match (local, bytes.get(13)) {
        (Some(false), Some(byte)) => kind(*byte)?,
        _ => (AddressFamily::Unspecified, Protocol::Unspecified),
    };
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else {
        return Ok(need(bytes, FIXED));
    };
    let announced = match fixed {
        [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    let length = FIXED + announced;
    if length > limit {
        return Err(ProxyError::TooLong { length, limit });
    }
    if kind.1 != Protocol::Unspecified && announced < kind.0.width() {
        return Err(ProxyError::TooShort);
    }
    let Some(block) = rest.get(..announced) else { return Ok(need(bytes, length)) };
    let client = if local == Some(true) { ProxiedClient::Local } else { client(kind, block)? };
    check(bytes.get(..length).unwrap_or_default(), kind)?;
    Ok(Parsed::Header(Header { client, length }))
}

/// The 13th byte.
fn is_local(byte: u8) -> Result<bool, ProxyError> {
    match (byte >> 4, byte & 0xf) {
        (2, 0) => Ok(true),
        (2, 1) => Ok(false),
        (2, command) => Err(ProxyError::Command(command)),
        (version, _) => Err(ProxyError::Version(version)),
    }
}

/// The 14th byte.
fn kind(byte: u8) -> Result<(AddressFamily, Protocol), ProxyError> {
    let family = match byte >> 4 {
        0 => AddressFamily::Unspecified,
        1 => AddressFamily::Inet,
        2 => AddressFamily::Inet6,
        3 => AddressFamily::Unix,
        _ => return Err(ProxyError::Family(byte)),
    };
    let protocol = match byte & 0xf {
        0 => Protocol::Unspecified,
        1 => Protocol::Stream,
        2 => Protocol::Datagram,
        _ => return Err(ProxyError::Family(byte)),
    };
    Ok((family, protocol))
}

fn client(kind: (AddressFamily, Protocol), block: &[u8]) -> Result<ProxiedClient, ProxyError> {
    match kind {
        (AddressFamily::Inet, Protocol::Stream) => {
            let [source, destination] = pair::<4>(block)?;
            let [from, to] = ports(block, AddressFamily::Inet)?;
            Ok(tcp(
                SocketAddr::new(Ipv4Addr::from(source).into(), from),
                SocketAddr::new(Ipv4Addr::from(destination).into(), to),
            ))
        }
        (AddressFamily::Inet6, Protocol::Stream) => {
            let [source, destination] = pair::<16>(block)?;
            let [from, to] = ports(block, AddressFamily::Inet6)?;
            Ok(tcp(
                SocketAddr::new(Ipv6Addr::from(source).into(), from),
                SocketAddr::new(Ipv6Addr::from(destination).into(), to),
            ))
        }
        (AddressFamily::Unix, Protocol::Stream) => Ok(ProxiedClient::Unix),
        // "not required to implement other ones, provided that it automatically falls back to the UNSPEC mode"
        _ => Ok(ProxiedClient::Unknown),
    }
}

/// The two addresses that a block begins with.
fn pair<const WIDTH: usize>(block: &[u8]) -> Result<[[u8; WIDTH]; 2], ProxyError> {
    let (source, rest) = block.split_first_chunk().ok_or(ProxyError::TooShort)?;
    let (destination, _) = rest.split_first_chunk().ok_or(ProxyError::TooShort)?;
    Ok([*source, *destination])
}

/// The two ports that addresses end with.
fn ports(block: &[u8], family: AddressFamily) -> Result<[u16; 2], ProxyError> {
    match block.get(..family.width()) {
        Some([.., a, b, c, d]) => Ok([u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])]),
        _ => Err(ProxyError::TooShort),
    }
}

/// Walks over the TLVs after the addresses and verifies the checksum if there is one.
fn check(header: &[u8], (family, protocol): (AddressFamily, Protocol)) -> Result<(), ProxyError> {
    let start = if protocol == Protocol::Unspecified { FIXED } else { FIXED + family.width() };
    match find_checksum(header, start) {
        Ok(None) => Ok(()),
        Ok(Some(at)) => verify(header, at),
        // What follows an unspecified address, or LOCAL, need not be TLVs: it is to be skipped.
        Err(_) if protocol == Protocol::Unspecified || family == AddressFamily::Unspecified => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where the value of the checksum is.
fn find_checksum(header: &[u8], start: usize) -> Result<Option<usize>, ProxyError> {
    let (mut at, mut found) = (start, None);
    while at < header.len() {
        let Some([kind, high, low]) = header.get(at..).and_then(|rest| rest.first_chunk()) else {
            return Err(ProxyError::Field);
        };
        let value = at + 3;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind == CRC32C {
            if length != 4 || found.is_some() {
                return Err(ProxyError::Field);
            }
            found = Some(value);
        }
        at = value + length;
    }
    if at == header.len() { Ok(found) } else { Err(ProxyError::Field) }
}

/// The checksum is over the whole header, with zeros in its own place.
fn verify(header: &[u8], at: usize) -> Result<(), ProxyError> {
    let (head, rest) = header.split_at_checked(at).ok_or(ProxyError::Field)?;
    let (sum, tail) = rest.split_first_chunk().ok_or(ProxyError::Field)?;
    let right = crc32c::checksum([head, &[0; 4], tail]) == u32::from_be_bytes(*sum);
    if right { Ok(()) } else { Err(ProxyError::Checksum) }
}
