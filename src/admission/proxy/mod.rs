//! The PROXY protocol, versions 1 and 2, as in HAProxy's `doc/proxy-protocol.txt`.
//!
//! The caller reads; this only looks at bytes. It never asks for a byte beyond the header, so a caller that reads just
//! what it is asked for leaves the first byte of the client to the handler, wherever the network cuts the stream. One
//! that peeks (`MSG_PEEK`) may offer more, and then takes [`Header::length`] bytes off the socket, no more; with
//! `SO_RCVLOWAT` at what is there plus [`Parsed::NeedMore`] it is not woken before another look can tell anything.

mod reader;
mod v1;
mod v2;

use std::net::SocketAddr;

pub(crate) use reader::{Read, Reading};

/// The longest header of version 1, with its CR LF; also the shortest buffer that is of use.
pub(crate) const LONGEST_V1: usize = 107;
/// The longest header that version 2 can announce.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) const LONGEST_V2: usize = 16 + 65535;

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The beginning of a header, which has at least so many more bytes; never 0.
    NeedMore(usize),
    /// A header.
    Header(Header),
}

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Whose connection it is.
    pub(crate) client: ProxiedClient,
    /// How many bytes it has.
    pub(crate) length: usize,
}

/// Whose connection it is, in the proxy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxiedClient {
    /// A TCP client's. IPv4-mapped addresses are IPv4 here.
    Tcp {
        /// The client.
        source: SocketAddr,
        /// What it called.
        destination: SocketAddr,
    },
    /// The proxy's own, a health check: the real addresses are the right ones.
    Local,
    /// A client's of a Unix socket of the proxy, which has no address.
    Unix,
    /// The proxy does not say, or it is nothing that arrives over TCP: the real addresses have to do.
    Unknown,
}

/// Why the bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The first bytes are of no version.
    #[error("there is no PROXY header")]
    NotProxy,
    /// Version 1 without its end.
    #[error("the PROXY header of version 1 has no CR LF within {LONGEST_V1} bytes")]
    Endless,
    /// A CR or LF by itself.
    #[error("the PROXY header of version 1 has a CR or LF by itself")]
    LineEnd,
    /// Not `PROXY TCP4 A B C D`, word for word.
    #[error("the PROXY header of version 1 is malformed")]
    Words,
    /// An address that is none of its family.
    #[error("the PROXY header of version 1 has a wrong address")]
    Address,
    /// A port that is none.
    #[error("the PROXY header of version 1 has a wrong port")]
    Port,
    /// Version 2's signature, and another version.
    #[error("the PROXY header has version {0}")]
    Version(u8),
    /// Neither LOCAL nor PROXY.
    #[error("the PROXY header has the unknown command {0}")]
    Command(u8),
    /// No family or protocol of the specification.
    #[error("the PROXY header has the unknown family and protocol {0:#04x}")]
    Family(u8),
    /// Longer than the caller takes.
    #[error("the PROXY header has {length} bytes, more than the {limit} that are taken")]
    TooLong {
        /// What it announces, its first 16 bytes included.
        length: usize,
        /// What the caller takes.
        limit: usize,
    },
    /// The addresses do not fit in.
    #[error("the PROXY header is too short for its addresses")]
    TooShort,
    /// A TLV that does not fit in.
    #[error("a field of the PROXY header goes beyond its end")]
    Field,
    /// Not the checksum of these bytes.
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
}

/// Looks at all bytes so far. `limit` is the longest header that the caller takes; version 1 is never longer than
/// [`LONGEST_V1`].
pub(crate) fn parse(bytes: &[u8], limit: usize) -> Result<Parsed, ProxyError> {
    if begins(bytes, v1::SIGNATURE) {
        v1::parse(bytes)
    } else if begins(bytes, v2::SIGNATURE) {
        v2::parse(bytes, limit)
    } else {
        Err(ProxyError::NotProxy)
    }
}

/// Whether the bytes are, or may become, something that begins with the signature.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(byte, wanted)| byte == wanted)
}

/// The bytes are too few; there will be `least` at least.
fn need(bytes: &[u8], least: usize) -> Parsed {
    Parsed::NeedMore(least.saturating_sub(bytes.len()).max(1))
}

/// A TCP client's.
fn tcp(source: SocketAddr, destination: SocketAddr) -> ProxiedClient {
    let unmapped = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    ProxiedClient::Tcp { source: unmapped(source), destination: unmapped(destination) }
}

#[cfg(test)]
mod tests;
