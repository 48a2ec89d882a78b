//! The worker processes: making them, and what is known of each.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cgroups::{Cgroups, WorkerCgroups};
use super::closing_listeners::ClosingListeners;
use super::event_source::EventSource;
use super::kept::Kept;
use super::listener::{self, Listener, ListenerTable};
use super::service::{Service, ServiceState, ServiceStates};
use crate::exit;
use crate::ipc::orders::{
    self, Handover, Heard, LeftOver, Order, Plan, PlannedListener, WorkerFds, WorkerReport,
};
use crate::journal::LogSettings;
use crate::scoreboard::{Counters, Counts};
use crate::spare::events::SpareEvents;
use crate::sys::child_fds;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fd::FdNumber;
use crate::sys::fork::{InCgroup, Pids, fork_into};
use crate::sys::signal::Signal;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;
use crate::sys::{message, process};

/// What a worker keeps of the supervisor's environment: how to tell whether stderr is the journal. Nothing of it
/// reaches a connection process.
const KEPT: [&str; 2] = ["JOURNAL_STREAM", "INVOCATION_ID"];

/// How long a worker may take to get ready; a disk may be slow.
const PREPARATION: Duration = Duration::from_secs(30);

/// How long a worker lives at least, though it be worn.
const SHORTEST_LIFE: Duration = Duration::from_millis(100);

/// How many messages spares that serve several connections each can leave that their worker does not hear at once: 256 KiB.
const SAID_WHILE_UNHEARD: u32 = 4096;

/// What a worker belongs to whose generation was given up.
const NO_GENERATION: u64 = 0;

/// How far a worker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum WorkerStage {
    /// It gets ready.
    Starting,
    /// It waits for the rest of its generation.
    Ready,
    /// It is in its accept loop.
    Accepting,
    /// It accepts no more; its connections go on.
    Draining,
}

/// What is known of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct WorkerRecord {
    serial: u32,
    pid: Pid,
    service: String,
    generation: u64,
    stage: WorkerStage,
    /// How many spares it keeps.
    spares: u32,
    /// How many connections each of its processes serves; 0 for as many as come.
    connections: u32,
    /// It asked to be replaced by one with another address-space layout.
    needs_renewal: bool,
    /// It hands connections to processes that were made ahead: none of those accepts.
    #[serde(default)]
    hands_over: bool,
    /// Programs of its service get the listeners.
    waits: bool,
    /// Why one of them is not started for a while.
    resting: Option<String>,
    started: Monotonic,
}

/// One worker.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    record: WorkerRecord,
    service_state: Rc<ServiceState>,
    listeners: Vec<Rc<Listener>>,
    counters: Counters,
    /// The memory of the counters, for the program after an upgrade.
    counters_file: OwnedFd,
    /// What its spares have said and it has not read.
    spare_events: Rc<SpareEvents>,
    looks: Looks,
    /// What it said when it gave up.
    complaint: Option<String>,
    /// What it reported to have been left behind before it died.
    left: Vec<(LeftOver, Option<Duration>)>,
    link: OwnedFd,
}

/// A worker as it is saved.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedWorker {
    record: WorkerRecord,
    listeners: Vec<usize>,
    link: FdNumber,
    counters: FdNumber,
    spare_events: FdNumber,
}

/// The requests to look at the queues: one at a time, though a thousand spares have died. A link has room for a few hundred
/// orders, and who takes none is ended.
#[derive(Debug, Default)]
struct Looks {
    last: u32,
    /// It has not been answered.
    unanswered: Option<u32>,
    /// There is reason for one more.
    again: bool,
    /// The one that the watchdog found unanswered when it came by.
    watched: Option<u32>,
}

impl Looks {
    /// There is reason to look: the request to send, if it can be sent now.
    fn want(&mut self) -> Option<Order> {
        if self.unanswered.is_some() {
            self.again = true;
            return None;
        }
        self.last = self.last.wrapping_add(1);
        self.unanswered = Some(self.last);
        Some(Order::Look { request: self.last })
    }

    /// An answer has come: the next request, if there is reason for one.
    fn answered(&mut self, request: u32) -> Option<Order> {
        if self.unanswered != Some(request) {
            return None;
        }
        self.unanswered = None;
        if std::mem::take(&mut self.again) { self.want() } else { None }
    }

    /// The watchdog comes by: false if what it saw unanswered last time still is. Otherwise there is something to answer
    /// until it comes again.
    fn watch(&mut self) -> (bool, Option<Order>) {
        if self.unanswered.is_some() && self.watched == self.unanswered {
            return (false, None);
        }
        let order = self.want();
        self.watched = self.unanswered;
        (true, order)
    }
}

impl WorkerProcess {
    /// Its number among all workers of this supervisor, never used twice.
    pub(super) fn serial(&self) -> u32 {
        self.record.serial
    }

    pub(super) fn pid(&self) -> Pid {
        self.record.pid
    }

    pub(super) fn service(&self) -> &str {
        &self.record.service
    }

    pub(super) fn generation(&self) -> u64 {
        self.record.generation
    }

    pub(super) fn stage(&self) -> WorkerStage {
        self.record.stage
    }

    /// Whether it has not come as far as accepting.
    pub(super) fn prepares(&self) -> bool {
        matches!(self.record.stage, WorkerStage::Starting | WorkerStage::Ready)
    }

    pub(super) fn service_state(&self) -> &Rc<ServiceState> {
        &self.service_state
    }

    /// How many connections each of its processes serves; 0 for as many as come.
    pub(super) fn connections(&self) -> u32 {
        self.record.connections
    }

    /// Whether processes that it has made ahead have no other way to a connection than from it.
    pub(super) fn hands_over(&self) -> bool {
        self.record.hands_over
    }

    /// What it has counted.
    pub(super) fn counted(&self) -> Counts {
        self.counters.totals()
    }

    /// What its spares have said and it has not read.
    pub(super) fn spare_events(&self) -> &Rc<SpareEvents> {
        &self.spare_events
    }

    /// What it reported to have been left behind before it died.
    pub(super) fn left(&self) -> &[(LeftOver, Option<Duration>)] {
        &self.left
    }

    /// What it said when it gave up.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// Sends an order. A worker that takes none any more hangs; killed, it will be reaped and replaced. So will one
    /// whose order was lost for want of memory.
    pub(super) fn order(&self, order: &Order) {
        // One that has hung up is about to end, or is killed when that is heard.
        let has_ended = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        };
        if orders::tell(self.link.as_fd(), order).is_err_and(|error| !has_ended(&error)) {
            self.kill();
        }
    }

    /// Ends the process; its connections go on.
    pub(super) fn kill(&self) {
        process::signal_process(self.record.pid, Signal::SIGKILL);
    }

    /// What it had to say before it died.
    pub(super) fn hear_last_words(&mut self) {
        while let Heard::Message(report) = orders::hear(self.link.as_fd()) {
            match report {
                WorkerReport::Failed(complaint) => self.complaint = Some(complaint),
                WorkerReport::Accepting => self.record.stage = WorkerStage::Accepting,
                WorkerReport::Retired => self.record.stage = WorkerStage::Draining,
                WorkerReport::LeftBehind { whom, kill_after } => self.left.push((whom, kill_after)),
                WorkerReport::Ready
                | WorkerReport::NeedsRenewal
                | WorkerReport::Looked { .. }
                | WorkerReport::Rests(_)
                | WorkerReport::Works => {}
            }
        }
    }

    /// When a worn worker may be replaced: not before it has lived for a while, so that who crashes handlers as fast as
    /// he can does not keep us busy with making workers.
    fn renewal(&self) -> Option<Monotonic> {
        self.record.needs_renewal.then(|| self.record.started + SHORTEST_LIFE)
    }

    /// Whether it serves, or will, and is not about to be replaced.
    fn stays(&self, now: Monotonic) -> bool {
        self.record.stage != WorkerStage::Draining && self.renewal().is_none_or(|at| now < at)
    }

    /// Its link, to be watched.
    pub(super) fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Tells it to end when its connections have; of `closing` listeners it takes what is queued first.
    pub(super) fn retire(&mut self, closing: &ClosingListeners) {
        let empty = (0..)
            .zip(&self.listeners)
            .filter(|(_, listener)| closing.has(listener))
            .map(|(i, _)| i)
            .collect();
        self.record.stage = WorkerStage::Draining;
        self.order(&Order::Retire { empty, handshakes: closing.handshakes() });
    }

    /// The same, for one that accepts or is about to.
    pub(super) fn retire_unless_it_has(&mut self) {
        if self.record.stage != WorkerStage::Draining {
            self.retire(&ClosingListeners::default());
        }
    }

    /// If it has been retired: tells it to end programs that have a listener, and to start none any more.
    pub(super) fn end_programs(&self) {
        if self.record.waits && self.record.stage == WorkerStage::Draining {
            self.order(&Order::EndPrograms);
        }
    }

    /// Why a program that is to have a listener is not started for a while.
    pub(super) fn resting(&self) -> Option<&str> {
        let is_in_use = self.record.stage != WorkerStage::Draining;
        self.record.resting.as_deref().filter(|_| is_in_use)
    }

    /// Whether it, or a spare of it, may still accept.
    pub(super) fn has_listeners(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Its generation is given up. It ends with its connections, if it has accepted some already. The next generation has
    /// the same number, and must neither wait for it nor fail with it.
    pub(super) fn dismiss(&mut self) {
        self.retire(&ClosingListeners::default());
        self.end_programs();
        self.record.generation = NO_GENERATION;
    }

    /// The watchdog comes by; false if it hangs: it had time to answer since the last time.
    pub(super) fn answers_watchdog(&mut self) -> bool {
        let (is_well, order) = self.looks.watch();
        order.iter().for_each(|order| self.order(order));
        // It answers when it is ready, for which there is another limit.
        is_well || self.prepares()
    }

    fn look(&mut self) {
        self.looks.want().iter().for_each(|order| self.order(order));
    }
}

/// What a worker has said, or that it will say no more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It has come as far as accepting.
    Accepts,
    /// It accepts no more.
    Retired,
    /// A program has left somebody behind.
    LeftBehind { whom: LeftOver, kill_after: Option<Duration> },
    /// Of no interest but to this module.
    Other,
    /// Nothing more, for now or for ever.
    Nothing,
}

/// What all workers have in common.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct WorkerSettings {
    /// The first part of connection ids.
    pub(super) run: u32,
    /// The first serial number that no worker has had.
    next: u32,
    /// The soft RLIMIT_NOFILE that workers get: what the supervisor was started with.
    descriptor_limit: u64,
}

/// All workers, by serial number.
#[derive(Debug)]
pub(super) struct Workers {
    settings: WorkerSettings,
    workers: BTreeMap<u32, WorkerProcess>,
    /// Services whose workers are to look whether something is queued.
    to_look: BTreeSet<String>,
}

impl Workers {
    /// Nobody yet. `run` is the first part of connection ids.
    pub(super) fn new(run: u32, descriptor_limit: u64) -> Self {
        let settings = WorkerSettings { run, next: 1, descriptor_limit };
        Workers { settings, workers: BTreeMap::new(), to_look: BTreeSet::new() }
    }

    pub(super) fn settings(&self) -> WorkerSettings {
        self.settings
    }

    /// The soft RLIMIT_NOFILE of who is started by this supervisor.
    pub(super) fn descriptor_limit(&self) -> u64 {
        self.settings.descriptor_limit
    }

    /// The workers as they are saved.
    pub(super) fn save<'a>(
        &'a self,
        listeners: &mut ListenerTable<'a>,
        kept: &mut Kept<'a>,
    ) -> Vec<SavedWorker> {
        let save = |worker: &'a WorkerProcess| SavedWorker {
            record: worker.record.clone(),
            listeners: listeners.places(&worker.listeners),
            link: kept.keep(worker.link()),
            counters: kept.keep(worker.counters_file.as_fd()),
            spare_events: kept.keep(worker.spare_events.descriptor()),
        };
        self.workers.values().map(save).collect()
    }

    /// Takes over the workers of another program.
    pub(super) fn resume(
        settings: WorkerSettings,
        saved: Vec<SavedWorker>,
        states: &ServiceStates,
        all_listeners: &[Rc<Listener>],
        poller: &Poller,
    ) -> io::Result<Self> {
        let mut workers = Workers { settings, workers: BTreeMap::new(), to_look: BTreeSet::new() };
        for SavedWorker { record, listeners: places, link, counters, spare_events } in saved {
            let (link, counters_file) = (link.take()?, counters.take()?);
            let serial = record.serial;
            poller.add(link.as_fd(), Interest::Read, EventSource::Worker(serial).into())?;
            let worker = WorkerProcess {
                service_state: states.of_saved(&record.service)?,
                listeners: listener::pick(all_listeners, &places)?,
                counters: Counters::open(counters_file.as_fd())?,
                counters_file,
                spare_events: Rc::new(SpareEvents::open(spare_events.take()?)),
                looks: Looks::default(),
                complaint: None,
                left: Vec::new(),
                link,
                record,
            };
            workers.workers.insert(serial, worker);
        }
        Ok(workers)
    }

    /// Starts a worker of `service`. It reports [`WorkerReport::Ready`], and unless it shall `begin` at once, it waits.
    pub(super) fn spawn(
        &mut self,
        service: &Service,
        log: LogSettings,
        begin: bool,
        cgroups: &mut Cgroups,
        poller: &Poller,
    ) -> io::Result<()> {
        let (serial, started) = (self.settings.next, Monotonic::now());
        let spares = self.share_of_spares(service, started);
        let (link, far_end) = message::pair()?;
        let (counters, counters_file) = Counters::create()?;
        let messages = if service.config().connections_per_child == 1 { spares } else { SAID_WHILE_UNHEARD };
        let (spare_events, spare_events_writer) = SpareEvents::create(messages)?;
        let own_spare_events = spare_events.own()?;
        let cgroup = cgroups.prepare(service.config(), serial)?;
        let service_state = service.state();
        let mut handover = Handover::new(far_end.as_fd());
        let fds = WorkerFds {
            scoreboard: handover.add(service_state.file.as_fd()),
            slot_freed: handover.add(service_state.scoreboard.slot_freed()),
            counters: handover.add(counters_file.as_fd()),
            spare_events: handover.add(spare_events.descriptor()),
            spare_events_writer: handover.add(spare_events_writer.descriptor()),
            sources: handover.add(service_state.sources_file.as_fd()),
            shared: handover.add(service_state.scoreboard.shared().descriptor()),
            bans: handover.add(service_state.bans.to_read()),
            prefixes: handover.add(service.prefixes()),
        };
        let listeners = service.listeners().iter().map(|listener| PlannedListener {
            name: listener.name().to_owned(),
            fd: handover.add(listener.descriptor()),
        });
        let plan = Plan {
            listeners: listeners.collect(),
            service: service.for_workers().clone(),
            spares,
            log,
            run: self.settings.run,
            serial,
            cgroups: cgroup.as_ref().map(|cgroup| cgroup.home.clone()),
            fds,
        };
        let plan = plan.write()?;
        let handover = handover.complete(plan.as_fd());
        let own = cgroup.as_ref().map(WorkerCgroups::own);
        let pid = exec_worker(service.name(), own, &handover, self.settings.descriptor_limit)
            .inspect_err(|_| cgroups.worker_is_gone())?;
        self.settings.next += 1;
        let record = WorkerRecord {
            serial,
            pid,
            service: service.name().to_owned(),
            generation: service.generation(),
            stage: WorkerStage::Starting,
            spares,
            connections: service.config().connections_per_child,
            needs_renewal: false,
            hands_over: service.config().warm.as_ref().is_some_and(|warm| warm.obstacle.is_none()),
            waits: service.config().wait,
            resting: None,
            started,
        };
        let worker = WorkerProcess {
            record,
            service_state: Rc::clone(service_state),
            listeners: service.listeners().to_vec(),
            counters,
            counters_file,
            spare_events: Rc::new(own_spare_events),
            looks: Looks::default(),
            complaint: None,
            left: Vec::new(),
            link,
        };
        let watched = poller.add(worker.link(), Interest::Read, EventSource::Worker(serial).into());
        if begin {
            worker.order(&Order::Accept);
        }
        if watched.is_err() {
            // It is deaf to us; as a dead one it is replaced.
            worker.kill();
        }
        self.workers.insert(serial, worker);
        Ok(())
    }

    /// What a new worker of `service` is to keep of the service's spares, so that all together keep them all.
    fn share_of_spares(&self, service: &Service, now: Monotonic) -> u32 {
        let serving = self.of(service.name(), service.generation()).filter(|worker| worker.stays(now));
        let (workers, spares) = serving.fold((0, 0), |(n, sum), worker| (n + 1, sum + worker.record.spares));
        let missing = u32::from(service.config().workers).saturating_sub(workers).max(1);
        service.config().spare.saturating_sub(spares).div_ceil(missing)
    }

    /// Hears one message of a worker, and notes what it says.
    pub(super) fn hear(&mut self, serial: u32, poller: &Poller) -> News {
        let Some(worker) = self.workers.get_mut(&serial) else { return News::Nothing };
        match orders::hear(worker.link()) {
            Heard::Silence => return News::Nothing,
            Heard::End => {
                let _ = poller.remove(worker.link());
                // It is dead, or about to be; reaping it does the rest. One that only hung up would accept for ever.
                if worker.record.stage != WorkerStage::Draining {
                    worker.kill();
                }
                return News::Nothing;
            }
            Heard::Nonsense => {
                worker.kill();
                return News::Nothing;
            }
            Heard::Message(WorkerReport::Ready) => {
                if worker.record.stage == WorkerStage::Starting {
                    worker.record.stage = WorkerStage::Ready;
                }
            }
            Heard::Message(WorkerReport::Accepting) => {
                if worker.record.stage != WorkerStage::Draining {
                    worker.record.stage = WorkerStage::Accepting;
                    // Since it said so, another may have been woken for somebody and be gone, and it was not told to look.
                    worker.look();
                }
                return News::Accepts;
            }
            Heard::Message(WorkerReport::Retired) => {
                worker.record.stage = WorkerStage::Draining;
                // A removed address must be free again although an old connection lives on.
                worker.listeners.clear();
                return News::Retired;
            }
            Heard::Message(WorkerReport::Failed(complaint)) => worker.complaint = Some(complaint),
            Heard::Message(WorkerReport::LeftBehind { whom, kill_after }) => {
                return News::LeftBehind { whom, kill_after };
            }
            Heard::Message(WorkerReport::NeedsRenewal) => worker.record.needs_renewal = true,
            Heard::Message(WorkerReport::Rests(why)) => worker.record.resting = Some(why),
            Heard::Message(WorkerReport::Works) => worker.record.resting = None,
            Heard::Message(WorkerReport::Looked { request }) => {
                let next = worker.looks.answered(request);
                next.iter().for_each(|order| worker.order(order));
            }
        }
        News::Other
    }

    pub(super) fn get(&self, serial: u32) -> Option<&WorkerProcess> {
        self.workers.get(&serial)
    }

    /// Takes a worker that has died off the list.
    pub(super) fn remove(&mut self, pid: Pid) -> Option<WorkerProcess> {
        let serial = self.iter().find(|worker| worker.pid() == pid)?.serial();
        self.workers.remove(&serial)
    }

    pub(super) fn has(&self, pid: Pid) -> bool {
        self.iter().any(|worker| worker.pid() == pid)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// All of them, in the order of their serial numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &WorkerProcess> {
        self.workers.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut WorkerProcess> {
        self.workers.values_mut()
    }

    /// All of a service, whatever their generation.
    pub(super) fn of_service(&self, service: &str) -> impl Iterator<Item = &WorkerProcess> {
        self.iter().filter(move |worker| worker.service() == service)
    }

    /// All of a generation.
    pub(super) fn of_generation(&self, generation: u64) -> impl Iterator<Item = &WorkerProcess> {
        self.iter().filter(move |worker| worker.generation() == generation)
    }

    fn of(&self, service: &str, generation: u64) -> impl Iterator<Item = &WorkerProcess> {
        self.of_generation(generation).filter(move |worker| worker.service() == service)
    }

    /// How many workers serve, or will, in this generation of a service.
    pub(super) fn serving(&self, service: &str, generation: u64, now: Monotonic) -> usize {
        self.of(service, generation).filter(|worker| worker.stays(now)).count()
    }

    /// How many workers of this generation of a service are in their accept loop.
    pub(super) fn accepting(&self, service: &str, generation: u64) -> usize {
        self.of(service, generation).filter(|worker| worker.stage() == WorkerStage::Accepting).count()
    }

    /// When something is due that no event tells of, after `now`: a worn worker is to be replaced, or one that prepares is
    /// late. A generation on its way has a deadline of its own.
    pub(super) fn next_deadline(&self, on_its_way: Option<u64>, now: Monotonic) -> Option<Monotonic> {
        let renewal =
            |worker: &WorkerProcess| worker.renewal().filter(|_| worker.stage() == WorkerStage::Accepting);
        let renewals = self.iter().filter_map(renewal);
        renewals.chain(self.late_at(on_its_way).map(|(_, at)| at)).filter(|at| now < *at).min()
    }

    /// Ends workers that have not got ready in time, but for a generation on its way.
    pub(super) fn end_overdue(&self, on_its_way: Option<u64>, now: Monotonic) {
        self.late_at(on_its_way).filter(|(_, at)| *at <= now).for_each(|(worker, _)| worker.kill());
    }

    fn late_at(&self, on_its_way: Option<u64>) -> impl Iterator<Item = (&WorkerProcess, Monotonic)> {
        self.iter()
            .filter(move |worker| worker.prepares() && Some(worker.generation()) != on_its_way)
            .map(|worker| (worker, worker.record.started + PREPARATION))
    }

    /// A new worker accepts: a worn one of its service and generation can go.
    pub(super) fn relieve(&mut self, service: &str, generation: u64, now: Monotonic) {
        let worn = |worker: &&mut WorkerProcess| {
            worker.service() == service
                && worker.generation() == generation
                && worker.stage() == WorkerStage::Accepting
                && worker.renewal().is_some_and(|at| at <= now)
        };
        if let Some(worker) = self.workers.values_mut().find(worn) {
            worker.retire(&ClosingListeners::default());
        }
    }

    /// Will have the workers of a service look whether something is queued.
    pub(super) fn look(&mut self, service: &str) {
        if !self.to_look.contains(service) {
            self.to_look.insert(service.to_owned());
        }
    }

    /// Has them look, also those that retire and have not emptied a listener yet.
    pub(super) fn send_looks(&mut self) {
        let services = std::mem::take(&mut self.to_look);
        let may_accept = |worker: &&mut WorkerProcess| {
            let may = match worker.stage() {
                WorkerStage::Starting | WorkerStage::Ready => false,
                WorkerStage::Accepting => true,
                WorkerStage::Draining => worker.has_listeners(),
            };
            may && services.contains(worker.service())
        };
        self.workers.values_mut().filter(may_accept).for_each(WorkerProcess::look);
    }
}

/// Runs this program again as a worker.
fn exec_worker(
    service: &str,
    cgroup: Option<InCgroup<'_>>,
    handover: &[BorrowedFd<'_>],
    descriptor_limit: u64,
) -> io::Result<Pid> {
    let arguments = [CString::new(orders::COMMAND)?, CString::new(service)?];
    // glibc's rseq(2) area is written by the kernel each time that a process is moved or interrupted, and is another
    // page to copy for every connection.
    let mut environment = vec![CString::from(c"GLIBC_TUNABLES=glibc.pthread.rseq=0")];
    for name in KEPT {
        if let Ok(value) = std::env::var(name) {
            environment.push(CString::new(format!("{name}={value}"))?);
        }
    }
    exec_self(&arguments, &environment, cgroup, handover, descriptor_limit)
}

/// What this program was started as, without its directory: what all of its processes are called.
pub(super) fn own_name() -> CString {
    let started_as = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&started_as).file_name().map(|name| name.as_bytes().to_vec());
    name.and_then(|name| CString::new(name).ok()).unwrap_or_else(|| c"preforkd".to_owned())
}

/// Forks and runs this program again, in a session of its own, and in this cgroup if there is one, with `handover` from fd 3 on
/// and every signal blocked.
pub(super) fn exec_self(
    arguments: &[CString],
    environment: &[CString],
    cgroup: Option<InCgroup<'_>>,
    handover: &[BorrowedFd<'_>],
    descriptor_limit: u64,
) -> io::Result<Pid> {
    let program = CString::from(c"/proc/self/exe");
    let name = own_name();
    let arguments: Vec<&CStr> =
        [name.as_c_str()].into_iter().chain(arguments.iter().map(AsRef::as_ref)).collect();
    fork_into(Pids::Shared, cgroup, |child| {
        // What goes wrong here, the supervisor learns by the exit code.
        let prepared = process::new_session()
            .and_then(|()| child_fds::hand_over(child, handover))
            .and_then(|()| process::restore_descriptor_limit(descriptor_limit));
        if prepared.is_ok() {
            let _ = process::exec(&program, &arguments, environment);
        }
        exit::OS
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(order: Option<&Order>) -> Option<u32> {
        match order {
            Some(Order::Look { request }) => Some(*request),
            _ => None,
        }
    }

    #[test]
    fn one_look_is_asked_for_at_a_time_and_none_is_forgotten() {
        let mut looks = Looks::default();
        assert_eq!([(); 3].map(|()| request(looks.want().as_ref())), [Some(1), None, None]);
        assert_eq!(looks.answered(7), None);
        assert_eq!(request(looks.answered(1).as_ref()), Some(2));
        assert_eq!(looks.answered(1), None);
        assert_eq!(looks.answered(2), None);
        assert_eq!(request(looks.want().as_ref()), Some(3));
    }

    #[test]
    fn the_watchdog_gives_time_until_it_comes_again() {
        let mut looks = Looks::default();
        let (is_well, order) = looks.watch();
        assert_eq!((is_well, request(order.as_ref())), (true, Some(1)));
        assert_eq!(looks.answered(1), None);
        assert_eq!(request(looks.want().as_ref()), Some(2));
        // The one before was answered; it has had no time for this one.
        assert_eq!(looks.watch(), (true, None));
        assert_eq!(looks.watch(), (false, None));
        assert_eq!(request(looks.answered(2).as_ref()), Some(3));
        assert!(looks.watch().0);
    }
}
