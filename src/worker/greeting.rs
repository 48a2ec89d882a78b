//! From accept to admission: whose connection it is, and whether he gets in.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::Worker;
use super::headers::{self, AwaitingHeader};
use crate::admission::proxy::{ProxiedClient, Read, Reading};
use crate::admission::{Refusal, Seat};
use crate::journal::{Level, MessageId};
use crate::scoreboard::Slot;
use crate::sys::socket::{self, Peer};
use crate::sys::time;

/// A client that has been let in.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) connection: OwnedFd,
    pub(super) peer: Peer,
    pub(super) accepted_usec: u64,
    /// What a proxy has told.
    pub(super) header: Option<ProxyHeader>,
}

/// What the header of a proxy has told, and how long it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProxyHeader {
    /// What the client has called.
    pub(super) called: Option<SocketAddr>,
    pub(super) length: usize,
}

impl Worker {
    /// Finds out whose connection this is, and begins with it if he gets in. Gives the slot back if nobody needs it.
    pub(super) fn greet(&mut self, slot: Slot, connection: OwnedFd, peer: Peer) -> Option<Slot> {
        let accepted_usec = time::monotonic_usec();
        if !self.spec.gate().is_proxy(peer) {
            return self.welcome(slot, Guest { connection, peer, accepted_usec, header: None }, true);
        }
        let reading = Reading::default();
        let mut newcomer = AwaitingHeader { slot, connection, peer, accepted_usec, reading };
        match newcomer.reading.advance(newcomer.connection.as_fd()) {
            Read::More => self.headers.add(newcomer, &self.poller),
            read => self.believe(newcomer, &read),
        }
        None
    }

    /// Something has come from a proxy.
    pub(super) fn hear_proxy(&mut self, token: u64) {
        if self.pending.is_some() {
            return self.headers.hold(token, &self.poller);
        }
        let heard = self.headers.advance(token, &self.poller, |newcomer| {
            match newcomer.reading.advance(newcomer.connection.as_fd()) {
                Read::More => None,
                read => Some(read),
            }
        });
        if let Some((newcomer, read)) = heard {
            self.believe(newcomer, &read);
        }
    }

    /// Hears proxies again that had to wait, and gives up those that let us wait.
    pub(super) fn tend_proxies(&mut self) {
        if self.headers.is_empty() {
            return;
        }
        if self.pending.is_none() {
            self.headers.resume(&self.poller);
        }
        while let Some(newcomer) = self.headers.expired(&self.poller) {
            let late = io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no whole PROXY header within {} s", headers::PATIENCE.as_secs()),
            );
            self.disbelieve(newcomer.peer, &late);
        }
    }

    fn believe(&mut self, newcomer: AwaitingHeader, read: &Read) {
        let AwaitingHeader { slot, connection, peer, accepted_usec, .. } = newcomer;
        let for_itself = names_both_ends(read, &connection, peer);
        let guest = |peer, called, length| {
            let header = Some(ProxyHeader { called, length });
            Guest { connection, peer, accepted_usec, header }
        };
        match *read {
            Read::ProxiedClient(ProxiedClient::Tcp { source, destination }, length) if !for_itself => {
                // If he is not let in, the slot is free as of now.
                self.welcome(slot, guest(Peer::Ip(source), Some(destination), length), true);
            }
            // The proxy itself, or somebody who has no address. It is trusted; its checks must not fail because of a
            // limit that is meant for clients.
            Read::ProxiedClient(_, length) => {
                self.welcome(slot, guest(peer, None, length), false);
            }
            Read::Wrong(ref error) => self.disbelieve(peer, error),
            Read::Gone { begun: true } => {
                self.disbelieve(peer, &"the connection ended within the PROXY header");
            }
            // A check whether the port is open.
            Read::Gone { begun: false } | Read::More => {}
        }
    }

    fn welcome(&mut self, slot: Slot, guest: Guest, limited: bool) -> Option<Slot> {
        let seat = Seat { sources: self.scoreboard.sources(), place: slot.place() };
        let admitted = match limited {
            true => self.spec.gate().admit(guest.peer, guest.accepted_usec, Some(seat)),
            false => Ok(()),
        };
        match admitted {
            Ok(()) => {
                self.begin(slot, guest);
                None
            }
            Err(why) => {
                self.refuse(why);
                Some(slot)
            }
        }
    }

    fn disbelieve(&mut self, proxy: Peer, why: &dyn std::fmt::Display) {
        self.refuse(Refusal::Header);
        if self.refusals.complains() {
            let Peer::Ip(proxy) = proxy else { return };
            self.log.event(
                Level::Warning,
                Some(MessageId::Refused),
                Some(&self.plan.service.name),
                format_args!(
                    "the proxy {}: {why}; if it is none, take it out of proxy_protocol_from",
                    proxy.ip()
                ),
            );
        }
    }
}

/// Whether a header names just the two ends of its own connection. Version 1 has no LOCAL, and HAProxy's checks say this
/// instead. The source alone does not tell: a transparent proxy calls from the address of its client.
fn names_both_ends(read: &Read, connection: &OwnedFd, peer: Peer) -> bool {
    let Read::ProxiedClient(ProxiedClient::Tcp { source, destination }, _) = *read else { return false };
    let called = || socket::local_address(connection.as_fd()).ok().flatten();
    peer == Peer::Ip(source) && called() == Some(destination)
}
