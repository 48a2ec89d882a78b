//! Who gets in. Asked by a worker, and by a spare before a stranger's code runs in it.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::Policy;

use super::sources::{Bucket, Penalty, Punished, SlotIndex, Sources};
use super::{Offence, Penalties, Prefix, PrefixSet, Prefixes, Refusal, SourceLimits};
use crate::sys::socket::Peer;

/// The admission of a service, ready to be asked. Asking allocates nothing.
#[derive(Debug)]
pub(crate) struct Admission {
    rules: Option<PrefixSet>,
    proxies: Option<PrefixSet>,
    exempt: Option<PrefixSet>,
    limits: SourceLimits,
    bucket: Option<Bucket>,
    penalties: Penalties,
}

/// Where a connection is counted for its source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat<'a> {
    /// The sources of the service.
    pub(crate) sources: &'a Sources,
    /// The slot of the connection.
    pub(crate) place: SlotIndex,
}

impl Admission {
    pub(crate) fn new(admission: &Policy) -> io::Result<Self> {
        let bucket = admission.source.rate.map(|rate| Bucket {
            interval: (rate.per.duration().as_nanos() / u128::from(rate.count.max(1))) as u64,
            burst: rate.burst,
        });
        Ok(Admission {
            rules: admission.rules.outline()?,
            proxies: admission.proxies.outline()?,
            exempt: admission.penalties.exempt.outline()?,
            limits: admission.source,
            bucket,
            penalties: Penalties { exempt: Prefixes::default(), ..admission.penalties.clone() },
        })
    }

    /// Whether it asks for more than the address.
    pub(crate) fn knows_sources(&self) -> bool {
        self.limits.max_connections.is_some() || self.bucket.is_some() || !self.penalties.amounts.is_empty()
    }

    /// Whether this is a proxy that says for whom it calls.
    pub(crate) fn is_proxy(&self, peer: Peer) -> bool {
        match peer {
            Peer::Ip(address) => self.proxies.as_ref().is_some_and(|proxies| proxies.says(address.ip())),
            Peer::Unix(_) => false,
        }
    }

    /// Lets a client in, or not; if so it is counted for its source until [`Sources::leave`]. `usec` is CLOCK_MONOTONIC
    /// in microseconds. Who comes through a Unix socket is let in by its directory.
    pub(crate) fn admit(&self, peer: Peer, usec: u64, seat: Option<Seat<'_>>) -> Result<(), Refusal> {
        let Peer::Ip(address) = peer else { return Ok(()) };
        let address = address.ip();
        if self.rules.as_ref().is_some_and(|rules| !rules.says(address)) {
            return Err(Refusal::Access);
        }
        match seat.filter(|_| self.knows_sources()) {
            Some(seat) => self.charge(address, usec, seat),
            None => Ok(()),
        }
    }

    /// Concurrency comes before the rate: who waits for his own connections to end does not lose tokens meanwhile.
    fn charge(&self, address: IpAddr, usec: u64, Seat { sources, place }: Seat<'_>) -> Result<(), Refusal> {
        let source = sources.source(self.limits.source_of(address));
        let now = usec.saturating_mul(1000);
        if !self.penalties.amounts.is_empty() && sources.waits(source, now) && !self.is_exempt(address) {
            return Err(Refusal::Penalty);
        }
        if let Some(limit) = self.limits.max_connections {
            sources.enter(place, source, limit).map_err(|_| Refusal::SourceLimit)?;
        }
        if self.bucket.is_some_and(|bucket| !sources.take_token(source, bucket, now)) {
            sources.leave(place);
            return Err(Refusal::Rate);
        }
        Ok(())
    }

    fn is_exempt(&self, address: IpAddr) -> bool {
        self.exempt.as_ref().is_some_and(|exempt| exempt.says(address))
    }

    /// Punishes the source of a client for an offence, if the service has a penalty for it. `usec` is now. Returns the
    /// source, the penalty, and what has become of it.
    pub(crate) fn punish(
        &self,
        peer: Peer,
        offence: Offence,
        usec: u64,
        sources: &Sources,
    ) -> Option<(Prefix, Duration, Punished)> {
        let Peer::Ip(address) = peer else { return None };
        let amount = self.penalties.amount(offence)?;
        if self.is_exempt(address.ip()) {
            return None;
        }
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let penalty = Penalty {
            amount: nanos(amount),
            threshold: nanos(self.penalties.threshold),
            longest: nanos(self.penalties.longest),
        };
        let source = self.limits.source_of(address.ip());
        let punished = sources.punish(sources.source(source), &penalty, usec.saturating_mul(1000));
        Some((source, amount, punished))
    }
}
