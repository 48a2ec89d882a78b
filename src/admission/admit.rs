//! The one decision: who gets in. A worker asks it, and a spare before a stranger's code runs in it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::bans::BannedClients;
use super::sources::{Bucket, Penalty, Punished, SlotIndex, Sources};
use super::{CallerSets, Callers, Offence, Overload, Penalties, Policy, Refusal, SourceLimits, SourceName};
use crate::client::Client;
use crate::sys::socket::Peer;
use crate::sys::stream;
use crate::sys::time::Monotonic;

/// The admission of a service, ready to be asked. Asking allocates nothing.
#[derive(Debug)]
pub(crate) struct Admission {
    callers: CallerSets,
    /// `None` where nobody is let in.
    banned: Option<BannedClients>,
    limits: SourceLimits,
    bucket: Option<Bucket>,
    penalties: Penalties,
    overload: Overload,
}

impl Admission {
    /// By this policy, and its lists as [`CallerSets::freeze`] has made them: those in the policy are not asked.
    pub(crate) fn new(policy: &Policy, callers: CallerSets, banned: Option<BannedClients>) -> Self {
        let bucket = policy
            .source
            .rate
            .map(|rate| Bucket { interval: rate.per.duration() / rate.count.max(1), burst: rate.burst });
        let penalties = Penalties { exempt: Callers::default(), ..policy.penalties.clone() };
        Admission {
            callers,
            banned,
            limits: policy.source,
            bucket,
            penalties,
            overload: policy.overload.clone(),
        }
    }

    /// In a child that asks no more, before anything of a stranger runs there: it knows no more who is banned.
    pub(crate) fn forget_bans(&self) -> io::Result<()> {
        self.banned.as_ref().map_or(Ok(()), BannedClients::forget)
    }

    /// Whether it asks for more than who somebody is.
    pub(crate) fn knows_sources(&self) -> bool {
        self.limits.max_connections.is_some() || self.bucket.is_some() || !self.penalties.amounts.is_empty()
    }

    /// Whether this is a proxy that says for whom it connects.
    pub(crate) fn is_proxy(&self, peer: Peer) -> bool {
        match peer {
            Peer::Ip(address) => self.callers.has_proxy(address.ip()),
            Peer::Unix(_) => self.callers.has_unix_proxies(),
        }
    }

    /// Lets a client in, or not, at whose other end `socket` is. With the sources of the service and the slot of the
    /// connection it is counted for its source, if it gets in, until [`Sources::leave`]. A proxy that connects for itself is
    /// trusted: its checks must not fail because of a limit that is meant for clients.
    pub(crate) fn check(
        &self,
        client: &mut Client,
        socket: BorrowedFd<'_>,
        counted: Option<(&Sources, SlotIndex)>,
    ) -> Result<(), Refusal> {
        if client.is_proxy() {
            return Ok(());
        }
        let allowed = match client.peer {
            Peer::Ip(address) => self.callers.allow(address.ip()),
            Peer::Unix(peer) => self.callers.allow_user(peer, socket),
        };
        if !allowed {
            return Err(Refusal::Access);
        }
        if self.banned.as_ref().is_some_and(|banned| banned.has(client.peer)) {
            return Err(Refusal::Banned);
        }
        if let (Peer::Unix(peer), false) = (client.peer, self.penalties.amounts.is_empty()) {
            // Whoever ends the connection cannot ask for his groups any more.
            client.is_exempt = self.callers.exempt_user(peer, Some(socket));
        }
        match counted.filter(|_| self.knows_sources()) {
            Some((sources, slot)) => self.charge(client, sources, slot),
            None => Ok(()),
        }
    }

    /// Concurrency comes before the rate: who waits for his own connections to end does not lose tokens meanwhile.
    fn charge(&self, client: &Client, sources: &Sources, slot: SlotIndex) -> Result<(), Refusal> {
        let source = sources.source(self.limits.source_of(client.peer));
        let is_punished = || sources.waits(source, Monotonic::now()) && !self.is_exempt(client);
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

    /// Touches what [`Admission::check`] will, so that no page of it is missing when a connection comes.
    pub(crate) fn warm_up(&self) {
        let nobody = Peer::Ip(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        let _ = self.banned.as_ref().map(|banned| banned.has(nobody));
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

    fn is_exempt(&self, client: &Client) -> bool {
        match client.peer {
            Peer::Ip(address) => self.callers.exempt(address.ip()),
            Peer::Unix(peer) => client.is_exempt || self.callers.exempt_user(peer, None),
        }
    }

    /// Punishes the source of a client for an offence, if the service has a penalty for it. A proxy is not punished for
    /// its own connection, since its source may be that of clients.
    pub(crate) fn punish(&self, client: &Client, offence: Offence, sources: &Sources) -> Option<Sentence> {
        let amount = self.penalties.amount(offence)?;
        if client.is_proxy() || self.is_exempt(client) {
            return None;
        }
        let Penalties { threshold, longest, .. } = self.penalties;
        let source = self.limits.source_of(client.peer);
        let penalty = Penalty { amount, threshold, longest };
        let punished = sources.punish(sources.source(source), &penalty, Monotonic::now);
        Some(Sentence { source, offence, amount, threshold, punished })
    }
}

/// What a source has to suffer, for the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sentence {
    pub(crate) source: SourceName,
    pub(crate) offence: Offence,
    pub(crate) amount: Duration,
    pub(crate) threshold: Duration,
    pub(crate) punished: Punished,
}
