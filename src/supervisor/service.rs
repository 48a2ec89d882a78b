//! A service, as the supervisor keeps it.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::listeners::Listener;
use crate::admission::sources::Sources;
use crate::admission::{Admission, PrefixSets};
use crate::config;
use crate::scoreboard::{Count, CountUp, Counts, Owner, Scoreboard};
use crate::sys::socket::Peer;

/// A service of a generation.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) config: config::ServiceConfig,
    /// What its workers get of it: all but the lists of its admission.
    pub(super) for_workers: config::ServiceConfig,
    /// Those, as all its workers map them.
    pub(super) prefixes: OwnedFd,
    /// The generation that brought this configuration.
    pub(super) generation: u64,
    pub(super) service_state: Rc<ServiceState>,
    /// Who gets in, and what their connections' ends cost.
    pub(super) admission: Admission,
    pub(super) listeners: Vec<Rc<Listener>>,
    pub(super) back_off: BackOff,
}

impl Service {
    /// The service as `generation` has it; without workers yet.
    pub(super) fn new(
        config: config::ServiceConfig,
        generation: u64,
        service_state: Rc<ServiceState>,
        listeners: Vec<Rc<Listener>>,
    ) -> io::Result<Self> {
        let policy = &config.admission;
        let prefixes = PrefixSets::freeze(&policy.rules, &policy.proxies, &policy.penalties.exempt)?;
        let for_workers = config.without_lists();
        let admission = Admission::new(policy, PrefixSets::open(prefixes.as_fd())?);
        let back_off = BackOff::default();
        Ok(Service {
            config,
            for_workers,
            prefixes,
            generation,
            service_state,
            admission,
            listeners,
            back_off,
        })
    }

    /// Counts the connections of `owner` by source as this configuration wants it; they may have been counted by other
    /// prefixes, or not at all. Not for a worker that has this configuration: one of its processes that serve several may
    /// have ended a connection of which the worker does not know yet, and would be counted for it until the next.
    pub(super) fn recount(&self, owner: Owner) {
        let limits = self.config.admission.source;
        if limits.max_connections.is_some() {
            let sources = self.service_state.scoreboard.sources();
            self.service_state.scoreboard.recount(owner, |connection| match connection.client.peer {
                Peer::Ip(address) => Some(sources.source(limits.source_of(address.ip()))),
                Peer::Unix(_) => None,
            });
        }
    }
}

/// What a service keeps through all its generations: its slots, what it knows of its sources, and the counters of workers that are gone.
#[derive(Debug)]
pub(super) struct ServiceState {
    pub(super) name: String,
    pub(super) scoreboard: Rc<Scoreboard>,
    pub(super) file: OwnedFd,
    pub(super) sources_file: OwnedFd,
    pub(super) gone: std::cell::Cell<Counts>,
}

impl ServiceState {
    /// With `limit` slots, all free.
    pub(super) fn new(name: &str, limit: u32) -> io::Result<Rc<Self>> {
        let (sources, sources_file) = Sources::create()?;
        let (scoreboard, file) = Scoreboard::create(sources)?;
        scoreboard.set_limit(limit);
        Ok(Rc::new(ServiceState {
            name: name.to_owned(),
            scoreboard: Rc::new(scoreboard),
            file,
            sources_file,
            gone: std::cell::Cell::default(),
        }))
    }

    /// What another program left to this one.
    pub(super) fn resume(
        name: String,
        file: OwnedFd,
        slot_freed: OwnedFd,
        sources_file: OwnedFd,
        gone: Counts,
    ) -> io::Result<Rc<Self>> {
        let sources = Sources::open(sources_file.as_fd())?;
        let scoreboard = Rc::new(Scoreboard::open(file.as_fd(), slot_freed, sources)?);
        Ok(Rc::new(ServiceState { name, scoreboard, file, sources_file, gone: std::cell::Cell::new(gone) }))
    }

    /// Adds to the counters of workers that are gone.
    pub(super) fn add(&self, change: impl FnOnce(&mut Counts)) {
        let mut totals = self.gone.get();
        change(&mut totals);
        self.gone.set(totals);
    }
}

impl CountUp for ServiceState {
    fn count(&self, what: Count) {
        self.add(|counts| counts.count(what));
    }
}

/// A service as its adopted connections hold it.
#[derive(Debug, Clone)]
pub(super) struct Adopter(pub(super) Rc<ServiceState>);

impl Deref for Adopter {
    type Target = Scoreboard;

    fn deref(&self) -> &Scoreboard {
        &self.0.scoreboard
    }
}

/// When to start the next worker after some have died before they ever worked.
///
/// A worker that had come as far as accepting is replaced at once, however often: who can crash connections must not be
/// able to slow a service down.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    pause: Duration,
    until: Option<Instant>,
}

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

impl BackOff {
    /// A worker died before it worked; returns how long the next one waits.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        self.pause = (self.pause * 2).clamp(FIRST, LONGEST);
        self.until = Some(now + self.pause);
        self.pause
    }

    /// A worker works.
    pub(super) fn succeeded(&mut self) {
        *self = BackOff::default();
    }

    /// When the next worker may be started, if not at once.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether a worker may be started now. The length of the next pause is kept until one works.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
        }
        self.until.is_none()
    }
}
