//! The worker processes: making them, and what is known of each.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::ledger::{InheritedFds, Kept, WorkerEntry};
use super::service::{Service, ServiceState};
use crate::control::WorkerState;
use crate::exit;
use crate::ipc::orders::{self, Heard, Order, Plan, WorkerReport};
use crate::scoreboard::Counters;
use crate::spare::events::SpareEvents;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::fork::fork;
use crate::sys::signal::Signal;
use crate::sys::wait::Pid;
use crate::sys::{fd, memory, message, process};

use super::listeners::Listener;

/// What a worker keeps of the supervisor's environment: how to tell whether stderr is the journal. Nothing of it
/// reaches a connection process.
const KEPT: [&str; 2] = ["JOURNAL_STREAM", "INVOCATION_ID"];

/// How long a worker may take to get ready; a disk may be slow.
pub(super) const PREPARATION: Duration = Duration::from_secs(30);

/// How long a worker lives at least, though it be worn.
const SHORTEST_LIFE: Duration = Duration::from_millis(100);

/// One worker.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    pub(super) pid: Pid,
    pub(super) service: String,
    pub(super) generation: u64,
    pub(super) state: WorkerState,
    pub(super) service_state: Rc<ServiceState>,
    pub(super) listeners: Vec<Rc<Listener>>,
    pub(super) counters: Counters,
    /// The memory of the counters, for the program after an upgrade.
    tally_file: OwnedFd,
    /// What its spares have said and it has not read.
    pub(super) calls: Rc<SpareEvents>,
    /// How many spares it keeps.
    spares: u32,
    /// How many connections each of its processes serves; 0 for as many as come.
    pub(super) connections: u32,
    /// It asked to be replaced by one with another address-space layout.
    pub(super) needs_renewal: bool,
    /// It was asked whether it is well and has not answered.
    pub(super) is_asked: bool,
    pub(super) started: Instant,
    /// What it said when it gave up.
    pub(super) complaint: Option<String>,
    link: OwnedFd,
}

impl WorkerProcess {
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
        process::signal_process(self.pid, Signal::SIGKILL);
    }

    /// What it has to say.
    pub(super) fn hear(&self) -> Heard<WorkerReport> {
        orders::hear(self.link.as_fd())
    }

    /// What it had to say before it died.
    pub(super) fn hear_last_words(&mut self) {
        while let Heard::Message(report) = self.hear() {
            match report {
                WorkerReport::Failed(complaint) => self.complaint = Some(complaint),
                WorkerReport::Accepting => self.state = WorkerState::Accepting,
                WorkerReport::Retired => self.state = WorkerState::Draining,
                WorkerReport::Ready | WorkerReport::NeedsRenewal | WorkerReport::Well => {}
            }
        }
    }

    /// When a worn worker may be replaced: not before it has lived for a while, so that who crashes handlers as fast as
    /// he can does not keep us busy with making workers.
    fn renewal(&self) -> Option<Instant> {
        self.needs_renewal.then(|| self.started + SHORTEST_LIFE)
    }

    /// Whether it serves, or will, and is not about to be replaced.
    fn stays(&self) -> bool {
        let now = Instant::now();
        self.state != WorkerState::Draining && self.renewal().is_none_or(|at| now < at)
    }

    pub(super) fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Tells it to end when its connections have; of `closing` listeners it takes what is queued first.
    pub(super) fn retire(&mut self, closing: &[Rc<Listener>]) {
        let is_closing = |listener: &Rc<Listener>| closing.iter().any(|other| Rc::ptr_eq(listener, other));
        let empty =
            (0..).zip(&self.listeners).filter(|(_, listener)| is_closing(listener)).map(|(i, _)| i).collect();
        self.state = WorkerState::Draining;
        self.order(&Order::Retire { empty });
    }
}

/// All workers, by serial number.
#[derive(Debug)]
pub(super) struct Workers {
    workers: BTreeMap<u32, WorkerProcess>,
    /// Services whose workers are to look whether something is queued.
    to_look: BTreeSet<String>,
    next: u32,
    run: u32,
    /// The soft RLIMIT_NOFILE that workers get: what the supervisor was started with.
    descriptor_limit: u64,
}

impl Workers {
    /// Nobody yet. `run` is the first part of connection ids.
    pub(super) fn new(run: u32, descriptor_limit: u64) -> Self {
        Workers::resume(run, 1, descriptor_limit)
    }

    /// Nobody yet, after an upgrade: `next` is the first serial number that no worker has had.
    pub(super) fn resume(run: u32, next: u32, descriptor_limit: u64) -> Self {
        Workers { workers: BTreeMap::new(), to_look: BTreeSet::new(), next, run, descriptor_limit }
    }

    pub(super) fn run(&self) -> u32 {
        self.run
    }

    pub(super) fn descriptor_limit(&self) -> u64 {
        self.descriptor_limit
    }

    pub(super) fn next_serial(&self) -> u32 {
        self.next
    }

    /// All workers, for the ledger.
    pub(super) fn entries<'a>(
        &'a self,
        indices: &mut impl FnMut(&'a [Rc<Listener>]) -> Vec<usize>,
        kept: &mut Kept<'a>,
    ) -> Vec<WorkerEntry> {
        let mut entry = |(serial, worker): (&u32, &'a WorkerProcess)| WorkerEntry {
            serial: *serial,
            pid: worker.pid,
            service: worker.service.clone(),
            generation: worker.generation,
            state: worker.state,
            spares: worker.spares,
            connections: worker.connections,
            needs_renewal: worker.needs_renewal,
            listeners: indices(&worker.listeners),
            link: kept.keep(worker.link.as_fd()),
            counters: kept.keep(worker.tally_file.as_fd()),
            calls: kept.keep(worker.calls.descriptor()),
        };
        self.workers.iter().map(&mut entry).collect()
    }

    /// Takes a worker over that another program started.
    pub(super) fn take_over(
        &mut self,
        entry: WorkerEntry,
        service_state: Rc<ServiceState>,
        listeners: Vec<Rc<Listener>>,
        taken: &mut InheritedFds,
        poller: &Poller,
    ) -> io::Result<()> {
        let (link, tally_file) = (taken.take(entry.link)?, taken.take(entry.counters)?);
        poller.add(link.as_fd(), Interest::Read, u64::from(entry.serial))?;
        let worker = WorkerProcess {
            pid: entry.pid,
            service: entry.service,
            generation: entry.generation,
            state: entry.state,
            service_state,
            listeners,
            counters: Counters::open(tally_file.as_fd())?,
            tally_file,
            calls: Rc::new(SpareEvents::open(taken.take(entry.calls)?)),
            spares: entry.spares,
            connections: entry.connections,
            needs_renewal: entry.needs_renewal,
            is_asked: false,
            started: Instant::now(),
            complaint: None,
            link,
        };
        self.workers.insert(entry.serial, worker);
        Ok(())
    }

    /// Starts a worker of `service`. It reports [`WorkerReport::Ready`], and unless it shall `begin` at once, it waits.
    pub(super) fn spawn(
        &mut self,
        service: &Service,
        log: crate::journal::LogSettings,
        begin: bool,
        poller: &Poller,
    ) -> io::Result<()> {
        let serial = self.next;
        let spares = self.share_of_spares(service);
        let (link, far_end) = message::pair()?;
        let (counters, tally_file) = Counters::create()?;
        let (calls, calls_to_come) = SpareEvents::create(spares)?;
        let plan = Plan {
            service: service.for_workers.clone(),
            listeners: service.listeners.iter().map(|listener| listener.name().to_owned()).collect(),
            spares,
            log,
            run: self.run,
            serial,
        };
        let plan = memory::sealed(c"preforkd-plan", &plan.encode()?)?;
        let service_state = &service.service_state;
        let mut handover = vec![
            far_end.as_fd(),
            plan.as_fd(),
            service_state.file.as_fd(),
            service_state.scoreboard.slot_freed(),
            tally_file.as_fd(),
        ];
        handover.extend([calls.descriptor(), calls_to_come.descriptor(), service_state.sources_file.as_fd()]);
        handover.push(service.prefixes.as_fd());
        handover.extend(service.listeners.iter().map(|listener| listener.descriptor()));
        let pid = exec_worker(&service.config.name, &handover, self.descriptor_limit)?;
        self.next += 1;
        let worker = WorkerProcess {
            pid,
            service: service.config.name.clone(),
            generation: service.generation,
            state: WorkerState::Starting,
            service_state: Rc::clone(service_state),
            listeners: service.listeners.clone(),
            counters,
            tally_file,
            calls: Rc::new(calls),
            started: Instant::now(),
            spares,
            connections: service.config.connections_per_child,
            needs_renewal: false,
            is_asked: false,
            complaint: None,
            link,
        };
        let watched = poller.add(worker.link(), Interest::Read, u64::from(serial));
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
    fn share_of_spares(&self, service: &Service) -> u32 {
        let serving = self.of(&service.config.name, service.generation).filter(|worker| worker.stays());
        let (workers, spares) = serving.fold((0, 0), |(n, sum), worker| (n + 1, sum + worker.spares));
        let missing = u32::from(service.config.workers).saturating_sub(workers).max(1);
        service.config.spare.saturating_sub(spares).div_ceil(missing)
    }

    pub(super) fn get_mut(&mut self, serial: u32) -> Option<&mut WorkerProcess> {
        self.workers.get_mut(&serial)
    }

    /// Takes a worker that has died off the list.
    pub(super) fn remove(&mut self, pid: Pid) -> Option<(u32, WorkerProcess)> {
        let serial = self.workers.iter().find(|(_, worker)| worker.pid == pid).map(|(serial, _)| *serial)?;
        self.workers.remove_entry(&serial)
    }

    pub(super) fn has(&self, pid: Pid) -> bool {
        self.workers.values().any(|worker| worker.pid == pid)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &WorkerProcess)> {
        self.workers.iter().map(|(serial, worker)| (*serial, worker))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut WorkerProcess)> {
        self.workers.iter_mut().map(|(serial, worker)| (*serial, worker))
    }

    /// How many workers serve, or will, in this generation of a service.
    pub(super) fn serving(&self, service: &str, generation: u64) -> usize {
        self.of(service, generation).filter(|worker| worker.stays()).count()
    }

    /// When the next worn worker is to be replaced.
    pub(super) fn next_renewal(&self) -> Option<Instant> {
        let now = Instant::now();
        let pending = |worker: &WorkerProcess| {
            worker.renewal().filter(|&at| worker.state == WorkerState::Accepting && now < at)
        };
        self.workers.values().filter_map(pending).min()
    }

    /// Ends workers that have not got ready in time, but for a generation on its way, which has a deadline of its own.
    /// Returns when to look again.
    pub(super) fn end_overdue(&mut self, but: Option<u64>, now: Instant) -> Option<Instant> {
        let prepares = |worker: &&WorkerProcess| {
            matches!(worker.state, WorkerState::Starting | WorkerState::Ready)
                && Some(worker.generation) != but
        };
        let (late, early): (Vec<_>, Vec<_>) =
            self.workers.values().filter(prepares).partition(|worker| worker.started + PREPARATION <= now);
        late.iter().for_each(|worker| worker.kill());
        early.iter().map(|worker| worker.started + PREPARATION).min()
    }

    /// A new worker accepts: a worn one of its service and generation can go.
    pub(super) fn relieve(&mut self, service: &str, generation: u64) {
        let now = Instant::now();
        let worn = |worker: &&mut WorkerProcess| {
            worker.service == service
                && worker.generation == generation
                && worker.state == WorkerState::Accepting
                && worker.renewal().is_some_and(|at| at <= now)
        };
        if let Some(worker) = self.workers.values_mut().find(worn) {
            worker.retire(&[]);
        }
    }

    /// How many workers of this generation of a service are in their accept loop.
    pub(super) fn accepting(&self, service: &str, generation: u64) -> usize {
        self.of(service, generation).filter(|worker| worker.state == WorkerState::Accepting).count()
    }

    fn of(&self, service: &str, generation: u64) -> impl Iterator<Item = &WorkerProcess> {
        self.workers
            .values()
            .filter(move |worker| worker.generation == generation && worker.service == service)
    }

    /// Will have the workers of a service look whether something is queued.
    pub(super) fn look(&mut self, service: &str) {
        if !self.to_look.contains(service) {
            self.to_look.insert(service.to_owned());
        }
    }

    /// Has them look: once, though a thousand spares have died. A link has room for a few hundred orders, and who takes
    /// none is ended.
    pub(super) fn send_looks(&mut self) {
        let services = std::mem::take(&mut self.to_look);
        let accepting = |worker: &&WorkerProcess| {
            worker.state == WorkerState::Accepting && services.contains(&worker.service)
        };
        for worker in self.workers.values().filter(accepting) {
            worker.order(&Order::Look);
        }
    }

    /// Sends an order to all workers of a generation.
    pub(super) fn order_generation(&self, generation: u64, order: &Order) {
        for worker in self.workers.values().filter(|worker| worker.generation == generation) {
            worker.order(order);
        }
    }
}

/// Runs this program again as a worker.
fn exec_worker(service: &str, handover: &[BorrowedFd<'_>], descriptor_limit: u64) -> io::Result<Pid> {
    let arguments = [CString::new(orders::COMMAND)?, CString::new(service)?];
    // glibc's rseq(2) area is written by the kernel each time that a process is moved or interrupted, and is another
    // page to copy for every connection.
    let mut environment = vec![CString::from(c"GLIBC_TUNABLES=glibc.pthread.rseq=0")];
    for name in KEPT {
        if let Ok(value) = std::env::var(name) {
            environment.push(CString::new(format!("{name}={value}"))?);
        }
    }
    exec_self(&arguments, &environment, handover, descriptor_limit)
}

/// Forks and runs this program again, in a session of its own, with `handover` from fd 3 on and every signal blocked.
pub(super) fn exec_self(
    arguments: &[CString],
    environment: &[CString],
    handover: &[BorrowedFd<'_>],
    descriptor_limit: u64,
) -> io::Result<Pid> {
    let program = CString::from(c"/proc/self/exe");
    let arguments: Vec<&CStr> =
        [c"preforkd"].into_iter().chain(arguments.iter().map(AsRef::as_ref)).collect();
    fork(|child| {
        // What goes wrong here, the supervisor learns by the exit code.
        let prepared = process::new_session()
            .and_then(|()| fd::hand_over(child, handover))
            .and_then(|()| process::restore_descriptor_limit(descriptor_limit));
        if prepared.is_ok() {
            let _ = process::exec(&program, &arguments, environment);
        }
        exit::OS
    })
}
