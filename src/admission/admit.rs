//! The one decision: who gets in. A worker asks it, and a spare before a stranger's code runs in it.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::sources::{Bucket, Penalty, Punished, SlotIndex, Sources};
use super::{Offence, Overload, Penalties, Policy, Prefix, PrefixSets, Prefixes, Refusal, SourceLimits};
use crate::client::Client;
use crate::sys::socket::Peer;
use crate::sys::stream;
use crate::sys::time::Monotonic;

/// The admission of a service, ready to be asked. Asking allocates nothing.
#[derive(Debug)]
pub(crate) struct Admission {
    prefixes: PrefixSets,
    limits: SourceLimits,
    bucket: Option<Bucket>,
    penalties: Penalties,
    overload: Overload,
}

impl Admission {
    /// By this policy, and its lists as [`PrefixSets::freeze`] has made them: those in the policy are not asked.
    pub(crate) fn new(policy: &Policy, prefixes: PrefixSets) -> Self {
        let bucket = policy
            .source
            .rate
            .map(|rate| Bucket { interval: rate.per.duration() / rate.count.max(1), burst: rate.burst });
        let penalties = Penalties { exempt: Prefixes::default(), ..policy.penalties.clone() };
        Admission { prefixes, limits: policy.source, bucket, penalties, overload: policy.overload.clone() }
    }

    /// Whether it asks for more than the address.
    pub(crate) fn knows_sources(&self) -> bool {
        self.limits.max_connections.is_some() || self.bucket.is_some() || !self.penalties.amounts.is_empty()
    }

    /// Whether this is a proxy that says for whom it connects.
    pub(crate) fn is_proxy(&self, peer: Peer) -> bool {
        match peer {
            Peer::Ip(address) => self.prefixes.has_proxy(address.ip()),
            Peer::Unix(_) => false,
        }
    }

    /// Lets a client in, or not. With the sources of the service and the slot of the connection it is counted for its
    /// source, if it gets in, until [`Sources::leave`]. A proxy that connects for itself is trusted: its checks must not
    /// fail because of a limit that is meant for clients. Who comes through a Unix socket is let in by its directory.
    pub(crate) fn check(
        &self,
        client: &Client,
        counted: Option<(&Sources, SlotIndex)>,
    ) -> Result<(), Refusal> {
        let Peer::Ip(address) = client.peer else { return Ok(()) };
        if client.is_proxy() {
            return Ok(());
        }
        if !self.prefixes.allow(address.ip()) {
            return Err(Refusal::Access);
        }
        match counted.filter(|_| self.knows_sources()) {
            Some((sources, slot)) => self.charge(address.ip(), sources, slot),
            None => Ok(()),
        }
    }

    /// Concurrency comes before the rate: who waits for his own connections to end does not lose tokens meanwhile.
    fn charge(&self, address: IpAddr, sources: &Sources, slot: SlotIndex) -> Result<(), Refusal> {
        let source = sources.source(self.limits.source_of(address));
        let is_punished = || sources.waits(source, Monotonic::now()) && !self.is_exempt(address);
        if !self.penalties.amounts.is_empty() && is_punished() {
            return Err(Refusal::Penalty);
        }
        if let Some(limit) = self.limits.max_connections {
            sources.enter(slot, source, limit).map_err(|_| Refusal::SourceLimit)?;
        }
        if self.bucket.is_some_and(|bucket| !sources.take_token(source, bucket, Monotonic::now)) {
            sources.leave(slot);
            return Err(Refusal::Rate);
        }
        Ok(())
    }

    /// Whether who is refused for what his source takes is told so.
    pub(crate) fn tells_sources(&self) -> bool {
        matches!(&self.overload, Overload::Refuse { message } if !message.is_empty()) && self.knows_sources()
    }

    /// Ends the connection of a client that is refused: as `overload` says if that is for lack of room, or else without
    /// a word. Waits for nobody. Returns the connection if something was said that could be lost if it were closed now,
    /// before the client has read it.
    #[must_use]
    pub(crate) fn turn_away(&self, why: Refusal, connection: OwnedFd) -> Option<OwnedFd> {
        match &self.overload {
            _ if !why.is_for_lack_of_room() => None,
            Overload::Refuse { message } if !message.is_empty() => {
                stream::send_last(connection.as_fd(), message.as_bytes()).is_ok().then_some(connection)
            }
            Overload::Refuse { .. } | Overload::Queue => None,
            Overload::Reset => {
                stream::reset(connection);
                None
            }
        }
    }

    fn is_exempt(&self, address: IpAddr) -> bool {
        self.prefixes.exempt(address)
    }

    /// Punishes the source of a client for an offence, if the service has a penalty for it. A proxy is not punished for
    /// its own connection, since its prefix may be that of clients.
    pub(crate) fn punish(&self, client: &Client, offence: Offence, sources: &Sources) -> Option<Sentence> {
        let Peer::Ip(address) = client.peer else { return None };
        let amount = self.penalties.amount(offence)?;
        if client.is_proxy() || self.is_exempt(address.ip()) {
            return None;
        }
        let Penalties { threshold, longest, .. } = self.penalties;
        let source = self.limits.source_of(address.ip());
        let penalty = Penalty { amount, threshold, longest };
        let punished = sources.punish(sources.source(source), &penalty, Monotonic::now);
        Some(Sentence { source, offence, amount, threshold, punished })
    }
}

/// What a source has to suffer, for the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sentence {
    pub(crate) source: Prefix,
    pub(crate) offence: Offence,
    pub(crate) amount: Duration,
    pub(crate) threshold: Duration,
    pub(crate) punished: Punished,
}
