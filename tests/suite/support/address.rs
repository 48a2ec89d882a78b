//! Addresses that no other test uses.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering};

/// A loopback address of its own, with a port that is never handed to a client.
pub(crate) fn fresh() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // Several runs may be under way on one machine.
    let run = std::process::id();
    let (network, port) = (u8::try_from(run % 100 + 100).unwrap(), u16::try_from(run / 100 % 1000).unwrap());
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, network, high, low), 7007 + port))
}

/// A port of its own, for who listens at every address: all others have one port, each at an address of its own.
pub(crate) fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let run = u16::try_from(std::process::id() % 400).unwrap();
    10_000 + run * 50 + NEXT.fetch_add(1, Ordering::Relaxed) % 50
}

/// The source address with this number, out of a network for clients: so many that ports never run out.
pub(crate) fn source(number: u32) -> Ipv4Addr {
    let [_, _, high, low] = (number % 60_000 + 1).to_be_bytes();
    Ipv4Addr::new(127, 80, high, low)
}
