//! A service, as the supervisor keeps it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::credentials::{InstalledCredentials, StagedCredentials};
use super::kept::{Kept, contradiction};
use super::listen_error::ListenError;
use super::listener::Listener;
use crate::admission::bans::BanTable;
use crate::admission::sources::Sources;
use crate::admission::{Admission, CallerSets};
use crate::client::Connection;
use crate::config::{Address, CREDENTIALS_VARIABLE, ServiceConfig};
use crate::control::Unreachable;
use crate::pace::Backoff;
use crate::scoreboard::{CountPlace, CountUp, Counts, Owner, Scoreboard};
use crate::shared::SharedFile;
use crate::sys::fd::FdNumber;
use crate::sys::time::{Monotonic, UnixTime};
use crate::worker::children::InForce;

/// The pauses before the next worker after some have died before they ever worked.
///
/// A worker that had come as far as accepting is replaced at once, however often: who can crash connections must not be
/// able to slow a service down.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A service of a generation.
#[derive(Debug)]
pub(super) struct Service {
    config: ServiceConfig,
    /// The generation that brought this configuration.
    generation: u64,
    /// What workers get of it: all but the lists of its admission.
    for_workers: ServiceConfig,
    /// Those, as all its workers map them.
    prefixes: OwnedFd,
    state: Rc<ServiceState>,
    admission: Admission,
    listeners: Vec<Rc<Listener>>,
    missing: Vec<MissingAddress>,
    /// Its credentials, until it comes into force.
    staged: RefCell<Option<StagedCredentials>>,
    /// Of workers that cannot begin.
    pub(super) backoff: Backoff,
    /// Why the last one could not.
    trouble: Option<String>,
}

/// An address of a service at which there is no listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MissingAddress {
    pub(super) address: Address,
    /// Why, as a sentence for the log.
    pub(super) reason: String,
}

impl From<&ListenError> for MissingAddress {
    fn from(error: &ListenError) -> Self {
        MissingAddress { address: error.address().clone(), reason: error.to_string() }
    }
}

impl Service {
    /// The service as `generation` has it, without workers yet. Its credentials are `staged`, or in force already.
    pub(super) fn new(
        config: ServiceConfig,
        generation: u64,
        state: Rc<ServiceState>,
        listeners: Vec<Rc<Listener>>,
        missing: Vec<MissingAddress>,
        staged: Option<StagedCredentials>,
    ) -> io::Result<Self> {
        let policy = &config.admission;
        let prefixes = CallerSets::freeze(&policy.rules, &policy.proxies, &policy.penalties.exempt)?;
        let mut for_workers = config.for_workers();
        if !config.credentials.is_empty() {
            let installed = state.credentials.borrow();
            let installed = installed.as_ref().map(InstalledCredentials::place);
            let place = staged.as_ref().map(StagedCredentials::place).or(installed);
            let place = place.map(|place| place.to_string_lossy().into_owned());
            for_workers.environment.extend(place.map(|place| (CREDENTIALS_VARIABLE.to_owned(), place)));
        }
        let admission = Admission::new(policy, CallerSets::open(prefixes.as_fd())?, None);
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let trouble = None;
        Ok(Service {
            config,
            generation,
            for_workers,
            prefixes,
            state,
            admission,
            listeners,
            missing,
            staged: RefCell::new(staged),
            backoff,
            trouble,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn config(&self) -> &ServiceConfig {
        &self.config
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn for_workers(&self) -> &ServiceConfig {
        &self.for_workers
    }

    pub(super) fn prefixes(&self) -> BorrowedFd<'_> {
        self.prefixes.as_fd()
    }

    pub(super) fn state(&self) -> &Rc<ServiceState> {
        &self.state
    }

    /// What concerns the ends of its connections.
    pub(super) fn in_force(&self) -> InForce<'_> {
        InForce { admission: &self.admission, records: self.config.records }
    }

    pub(super) fn listeners(&self) -> &[Rc<Listener>] {
        &self.listeners
    }

    /// A worker could not begin, for this reason; returns the pause before the next.
    pub(super) fn cannot_begin(&mut self, reason: String, now: Monotonic) -> Duration {
        self.trouble = Some(reason);
        self.backoff.failed(now)
    }

    /// A worker accepts.
    pub(super) fn has_begun(&mut self) {
        self.trouble = None;
        self.backoff.succeeded();
    }

    /// Why its workers cannot begin, if that is so.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Its addresses at which there is no listener.
    pub(super) fn missing(&self) -> &[MissingAddress] {
        &self.missing
    }

    /// The addresses at which nobody can reach it, as the kernel and the file system say now.
    pub(super) fn unreachable(&self) -> Vec<Unreachable> {
        let missing = self.missing.iter().map(|missing| Unreachable {
            address: missing.address.to_string(),
            reason: missing.reason.clone(),
        });
        missing.chain(self.lost()).collect()
    }

    /// Those among them that have a listener all the same.
    pub(super) fn lost(&self) -> impl Iterator<Item = Unreachable> {
        self.listeners.iter().filter_map(|listener| {
            let reason = listener.why_unreachable()?.to_string();
            Some(Unreachable { address: listener.name().to_owned(), reason })
        })
    }

    /// Its addresses are as they have to be; nothing hinders it from going on in the next generation.
    pub(super) fn is_reachable(&self) -> bool {
        self.listeners.iter().all(|listener| listener.is_reachable())
    }

    /// Lets go of its listeners, because everything ends.
    pub(super) fn let_go(&mut self) {
        self.listeners.clear();
    }

    /// Its workers are about to accept.
    pub(super) fn begin(&self) {
        self.listeners.iter().for_each(|listener| listener.begin(&self.config.socket));
    }

    /// Its configuration is in force from now on. Returns what is not as it should be; it was tried out before, but the
    /// world has gone on.
    pub(super) fn comes_into_force(&self) -> Vec<String> {
        self.state.scoreboard.set_limit(self.config.slots());
        self.blocks();
        self.shares();
        let credentials = self.state.use_credentials(self.staged.take());
        let put_to_use = |listener: &Rc<Listener>| {
            listener.put_to_use(&self.config.socket, &self.config.socket_access).err()
        };
        let failures = self.listeners.iter().filter_map(put_to_use).map(|error| error.to_string());
        let credentials = credentials.map_err(|error| format!("its credentials cannot be renewed: {error}"));
        failures.chain(credentials.err()).collect()
    }

    /// Its listeners block or not, as who has them expects it: a program that had one may have left it otherwise.
    pub(super) fn blocks(&self) {
        if !self.config.wait {
            self.listeners.iter().for_each(|listener| listener.never_blocks());
        }
    }

    /// What its connections share is in the memory for that from now on.
    pub(super) fn shares(&self) {
        self.state.scoreboard.shared().declare(&self.config.shared);
    }

    /// Counts the connections of `owner` by source as this configuration wants it; they may have been counted by other
    /// prefixes, or not at all. Not for a worker that has this configuration: one of its processes that serve several may
    /// have ended a connection of which the worker does not know yet, and would be counted for it until the next.
    pub(super) fn recount(&self, owner: Owner) {
        let limits = self.config.admission.source;
        if limits.max_connections.is_some() {
            let sources = self.state.scoreboard.sources();
            let source_of = |connection: &Connection| limits.source_of(connection.client.peer);
            self.state.scoreboard.recount(owner, |connection| Some(sources.source(source_of(connection))));
        }
    }
}

/// What a service keeps through all its generations: its slots, what it knows of its sources, and the counters of workers
/// that are gone.
#[derive(Debug)]
pub(super) struct ServiceState {
    pub(super) name: String,
    pub(super) scoreboard: Rc<Scoreboard>,
    pub(super) file: OwnedFd,
    pub(super) sources_file: OwnedFd,
    pub(super) bans: BanTable,
    gone: Cell<Counts>,
    /// The most that was told of each counter.
    told: Cell<Counts>,
    /// When its counters began.
    created: UnixTime,
    /// It serves, and balancers are to send no more.
    lameduck: Cell<bool>,
    /// It has no workers, whatever its configuration says, and clients wait in its queue.
    paused: Cell<bool>,
    credentials: RefCell<Option<InstalledCredentials>>,
}

/// The same, as it is saved.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedServiceState {
    name: String,
    scoreboard: FdNumber,
    slot_freed: FdNumber,
    sources: FdNumber,
    shared: FdNumber,
    bans: FdNumber,
    gone: Counts,
    told: Counts,
    created: UnixTime,
    lameduck: bool,
    paused: bool,
    credentials: Option<PathBuf>,
}

impl ServiceState {
    /// With `limit` slots, all free.
    fn new(name: &str, limit: u32) -> io::Result<Rc<Self>> {
        let (sources, sources_file) = Sources::create()?;
        let (scoreboard, file) = Scoreboard::create(sources)?;
        let scoreboard = scoreboard.of_supervisor();
        scoreboard.set_limit(limit);
        Ok(Rc::new(ServiceState {
            name: name.to_owned(),
            scoreboard: Rc::new(scoreboard),
            file,
            sources_file,
            bans: BanTable::create()?,
            gone: Cell::default(),
            told: Cell::default(),
            created: UnixTime::now(),
            lameduck: Cell::new(false),
            paused: Cell::new(false),
            credentials: RefCell::default(),
        }))
    }

    pub(super) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> SavedServiceState {
        SavedServiceState {
            name: self.name.clone(),
            scoreboard: kept.keep(self.file.as_fd()),
            slot_freed: kept.keep(self.scoreboard.slot_freed()),
            sources: kept.keep(self.sources_file.as_fd()),
            shared: kept.keep(self.scoreboard.shared().descriptor()),
            bans: kept.keep(self.bans.file()),
            gone: self.gone.get(),
            told: self.told.get(),
            created: self.created,
            lameduck: self.lameduck.get(),
            paused: self.paused.get(),
            credentials: self.credentials.borrow().as_ref().map(|installed| installed.place().to_owned()),
        }
    }

    fn resume(saved: SavedServiceState) -> io::Result<Rc<Self>> {
        let SavedServiceState {
            name,
            scoreboard,
            slot_freed,
            sources,
            shared,
            bans,
            gone,
            told,
            created,
            lameduck,
            paused,
            credentials,
        } = saved;
        let bans = BanTable::open(bans.take()?)?;
        let (file, sources_file) = (scoreboard.take()?, sources.take()?);
        let sources = Sources::open(sources_file.as_fd())?;
        let shared = SharedFile::open(shared.take()?);
        let scoreboard =
            Rc::new(Scoreboard::open(file.as_fd(), slot_freed.take()?, sources, shared)?.of_supervisor());
        let credentials = RefCell::new(credentials.map(InstalledCredentials::at));
        let (gone, told) = (Cell::new(gone), Cell::new(told));
        let (lameduck, paused) = (Cell::new(lameduck), Cell::new(paused));
        Ok(Rc::new(ServiceState {
            name,
            scoreboard,
            file,
            sources_file,
            bans,
            gone,
            told,
            created,
            lameduck,
            paused,
            credentials,
        }))
    }

    /// Has these credentials in force instead of what was; on an error that stays.
    fn use_credentials(&self, staged: Option<StagedCredentials>) -> io::Result<()> {
        let Some(staged) = staged else {
            self.credentials.take();
            return Ok(());
        };
        let place = staged.put_to_use()?;
        self.credentials.borrow_mut().get_or_insert_with(|| InstalledCredentials::at(place));
        Ok(())
    }

    /// Whether it is to have no workers for now.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Whether it is to have workers from now on.
    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.set(paused);
    }

    /// Whether balancers are to send no more, though it serves.
    pub(super) fn is_lameduck(&self) -> bool {
        self.lameduck.get()
    }

    /// Whether that is so from now on.
    pub(super) fn set_lameduck(&self, lameduck: bool) {
        self.lameduck.set(lameduck);
    }

    /// When its counters began.
    pub(super) fn created(&self) -> UnixTime {
        self.created
    }

    /// What to tell of these counters. They were read while workers count, who may have taken something from one place
    /// and not have counted it at the other yet, or have died between: of what was told once, nothing is taken back.
    pub(super) fn tell(&self, counts: Counts) -> Counts {
        let counts = counts.at_least(self.told.get());
        self.told.set(counts);
        counts
    }

    /// The counters of workers that are gone.
    pub(super) fn gone(&self) -> Counts {
        self.gone.get()
    }

    /// Adds to them.
    pub(super) fn add(&self, change: impl FnOnce(&mut Counts)) {
        let mut totals = self.gone.get();
        change(&mut totals);
        self.gone.set(totals);
    }
}

impl CountUp for ServiceState {
    fn add_at(&self, place: CountPlace, more: u64) {
        self.add(|counts| counts.add_at(place, more));
    }
}

/// The states of all services, those of removed services included while a worker or connection of theirs lives.
#[derive(Debug, Default)]
pub(super) struct ServiceStates(BTreeMap<String, Weak<ServiceState>>);

impl ServiceStates {
    /// The state of a service: as long as a connection of it lives, the same, though the service was removed meanwhile.
    pub(super) fn of(&mut self, config: &ServiceConfig) -> io::Result<Rc<ServiceState>> {
        self.0.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = self.0.get(&config.name).and_then(Weak::upgrade) {
            return Ok(state);
        }
        let state = ServiceState::new(&config.name, config.slots())?;
        self.0.insert(config.name.clone(), Rc::downgrade(&state));
        Ok(state)
    }

    /// All of which something lives, by name.
    pub(super) fn alive(&self) -> impl Iterator<Item = Rc<ServiceState>> {
        self.0.values().filter_map(Weak::upgrade)
    }

    /// Takes over what another program has saved. It stays as long as somebody has it who is in the second part.
    pub(super) fn resume(saved: Vec<SavedServiceState>) -> io::Result<(Self, Vec<Rc<ServiceState>>)> {
        let all: io::Result<Vec<_>> = saved.into_iter().map(ServiceState::resume).collect();
        let all = all?;
        let by_name = all.iter().map(|state| (state.name.clone(), Rc::downgrade(state)));
        Ok((ServiceStates(by_name.collect()), all))
    }

    /// The state of a service that the saved state names.
    pub(super) fn of_saved(&self, name: &str) -> io::Result<Rc<ServiceState>> {
        self.0.get(name).and_then(Weak::upgrade).ok_or_else(contradiction)
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
