//! The programs of a worker that are started ahead of their connections, and wait: when one is started, which are replaced, and
//! how one gets its connection.
//!
//! They have no listener. The worker accepts and lets in, as for any program, and hands the connection over by a link that only
//! the two have, see [`crate::sys::warm`]. Who finds none warm has his program started, as without them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use syscalls::Sysno;

use super::Worker;
use super::children::Child;
use super::context::{Context, Newcomer, WorkerSlot};
use super::token::Token;
use crate::child::Conn;
use crate::client::{Connection, process_of};
use crate::config::{WarmPoint, WarmSettings};
use crate::journal::Level;
use crate::scoreboard::{Count, CountUp, CountedTime, NoSlot};
use crate::spare::Pauses;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::error_text;
use crate::sys::time::Monotonic;
use crate::sys::wait::{Ended, Pid};
use crate::sys::warm::{self, Scaffold, Warming};
use crate::sys::watch::WatchedFiles;

/// The pauses after one could not be started, or has ended without a connection. Meanwhile clients are served as without.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// For how long after a connection was given away nobody is started in the place of its program, unless that ends before. A new
/// process is often run before one that has been woken, and a start of an interpreter takes all the time that it is given: the program
/// would not have answered yet.
const HEAD_START: Duration = Duration::from_millis(10);

/// For how many times as long as a start takes clients without a pause put the next one off, and for how long at most.
const STARTS_PUT_OFF: u32 = 10;
const LONGEST_PUT_OFF: Duration = Duration::from_secs(1);

/// What a start may take beside its processor time where there are processors enough.
const SLACK: Duration = Duration::from_micros(500);

/// How long one may take until it is warm.
const LONGEST_START: Duration = Duration::from_secs(60);

/// The first pause after one has taken longer: that has cost more than one that could not be started.
const PAUSE_AFTER_SLOW: Duration = LONGEST_START;

/// The warm programs of a worker.
#[derive(Debug)]
pub(super) struct WarmPrograms {
    /// How many are to wait; 0 if there are to be none.
    size: usize,
    /// There were to be some when this worker began.
    were_wanted: bool,
    max_age: Duration,
    scaffold: Option<Scaffold>,
    watch: Option<WatchedFiles>,
    /// In the order in which they were started.
    programs: Vec<WarmProgram>,
    pauses: Pauses,
    /// One that has a connection is to answer first.
    held_until: Option<Monotonic>,
    pressure: Pressure,
    /// One was not ready in time: until one is, no more than one is being started.
    one_by_one: bool,
    /// There is no slot for one.
    until_slot_freed: bool,
    /// The log knows that they fail, and has not been told that they do not any more.
    said_why: bool,
    /// The log knows where they wait.
    said_where: bool,
}

/// A program that waits, or will.
#[derive(Debug)]
struct WarmProgram {
    pid: Pid,
    link: OwnedFd,
    started: Monotonic,
    /// When it is warm: the processor time that it had used by then.
    warm: Option<Duration>,
}

impl WarmPrograms {
    /// None yet; with these `settings`, so many are to be. Done before the worker gives up what it may watch files with.
    pub(super) fn new(
        settings: Option<&WarmSettings>,
        size: u32,
        listeners: &[BorrowedFd<'_>],
        is_stderr: bool,
    ) -> io::Result<Self> {
        let settings = settings.filter(|settings| settings.obstacle.is_none());
        let scaffold = settings
            .filter(|_| !listeners.is_empty())
            .map(|settings| Scaffold::new(listeners, is_stderr, settings.point == WarmPoint::Spare))
            .transpose()?;
        let watched = settings.map(|settings| &settings.watch).filter(|watched| !watched.is_empty());
        let size = if scaffold.is_some() { size as usize } else { 0 };
        Ok(WarmPrograms {
            size,
            were_wanted: size > 0,
            max_age: settings.map_or(Duration::ZERO, |settings| settings.max_age),
            scaffold,
            watch: watched.map(|watched| WatchedFiles::new(watched)).transpose()?,
            programs: Vec::with_capacity(size),
            pauses: Pauses::new(FIRST_PAUSE, LONGEST_PAUSE),
            held_until: None,
            pressure: Pressure::default(),
            one_by_one: false,
            until_slot_freed: false,
            said_why: false,
            said_where: false,
        })
    }

    /// To be watched for changes of files.
    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(WatchedFiles::descriptor)
    }

    /// Whether there are to be any.
    pub(super) fn is_used(&self) -> bool {
        self.size > 0
    }

    /// Whether there were to be any when this worker began: those may still end.
    pub(super) fn were_wanted(&self) -> bool {
        self.were_wanted
    }

    /// The one that is to have the next connection.
    fn next_to_serve(&self) -> Option<Pid> {
        self.programs.iter().find(|program| program.warm.is_some()).map(|program| program.pid)
    }

    fn count_warm(&self, cx: &Context) {
        let warm = self.programs.iter().filter(|program| program.warm.is_some()).count();
        cx.counters.set(Count::Warm, warm as u64);
    }

    /// When [`Worker::tend_warm`] has something to do without an event.
    pub(super) fn next(&self) -> Option<Monotonic> {
        let ends = self.programs.iter().map(|program| self.until(program));
        ends.chain(self.start_due()).min()
    }

    /// When the next is to be started; `None` if none is missing, or none can be.
    fn start_due(&self) -> Option<Monotonic> {
        let missing = self.size.saturating_sub(self.programs.len());
        let is_tried = || self.one_by_one && self.programs.iter().any(|program| program.warm.is_none());
        if missing == 0 || self.until_slot_freed || is_tried() {
            return None;
        }
        // When more are called for than come after, there is no use in waiting.
        let held = self.held_until.filter(|_| 2 * missing <= self.size + 1);
        [held, self.pressure.until, Some(self.pauses.next())].into_iter().flatten().max()
    }

    /// A client has come, and found none.
    pub(super) fn found_none(&mut self) {
        if self.is_used() {
            self.pressure.felt(Monotonic::now());
        }
    }

    /// One has been given its connection.
    fn gave(&mut self) {
        let now = Monotonic::now();
        if self.held_until.is_none_or(|held| held <= now) {
            self.held_until = Some(now + HEAD_START);
        }
    }

    /// A connection has ended.
    pub(super) fn connection_ended(&mut self) {
        self.held_until = None;
    }

    /// When this one has taken too long to become warm, or is too old.
    fn until(&self, program: &WarmProgram) -> Monotonic {
        program.started + if program.warm.is_some() { self.max_age } else { LONGEST_START }
    }

    /// There may be a slot.
    pub(super) fn slot_freed(&mut self) {
        self.until_slot_freed = false;
    }

    /// Ends one, to have its slot. At the end of its link it goes.
    pub(super) fn let_one_go(&mut self) {
        if let Some(place) = self.programs.iter().position(|program| program.warm.is_some()) {
            self.programs.remove(place);
            self.until_slot_freed = true;
        }
    }

    fn take(&mut self, pid: Pid) -> Option<WarmProgram> {
        let place = self.programs.iter().position(|program| program.pid == pid)?;
        Some(self.programs.remove(place))
    }

    fn was_not_ready(&mut self) {
        self.pauses.failed_slowly(PAUSE_AFTER_SLOW);
        self.one_by_one = true;
    }

    fn became_warm(&mut self, pid: Pid, cpu: Duration, poller: &Poller) -> Option<Duration> {
        let program = self.programs.iter_mut().find(|program| program.pid == pid)?;
        program.warm = Some(cpu);
        // It says nothing more, and wakes nobody.
        let _ = poller.remove(program.link.as_fd());
        self.pauses.made();
        (self.one_by_one, self.said_why) = (false, false);
        let took = Monotonic::now() - program.started;
        // Who has had a processor for himself takes little more than he uses.
        self.pressure.start_takes = if took > 2 * cpu + SLACK { took } else { Duration::ZERO };
        Some(took)
    }
}

/// Clients who come without a pause and find none warm, where the processors have no time left. Each that is started for a later one
/// costs more than a start for one who is there, takes the time from those, and has them find none warm; so the next waits for a pause in
/// which it can become warm.
#[derive(Debug, Default)]
struct Pressure {
    /// How long the last start has taken; nothing before the first, or if it has not had to wait for a processor.
    start_takes: Duration,
    since: Option<Monotonic>,
    until: Option<Monotonic>,
}

impl Pressure {
    fn felt(&mut self, now: Monotonic) {
        let is_over = self.until.is_none_or(|until| until <= now);
        let since = self.since.filter(|_| !is_over).unwrap_or(now);
        let most = (self.start_takes * STARTS_PUT_OFF).min(LONGEST_PUT_OFF);
        self.since = Some(since);
        self.until = Some((now + self.start_takes).min(since + most));
    }
}

impl Worker {
    /// Starts one program, if one is missing. Not more: somebody may be coming.
    pub(super) fn start_warm(&mut self) {
        let is_due = self.warm.start_due().is_some_and(|due| due <= Monotonic::now());
        if !is_due || self.starter.is_busy() || !self.acceptor.is_open() {
            return;
        }
        let Some(scaffold) = self.warm.scaffold else { return };
        let slot = match self.slots.take_another(!self.never_waits()) {
            Ok(slot) => slot,
            Err(NoSlot::Full) => return self.warm.until_slot_freed = true,
            Err(NoSlot::OverLoweredLimit) => return self.warm.pauses.failed(),
        };
        let started = Monotonic::now();
        match self.starter.start_warm(slot, scaffold, &self.cx) {
            Ok((pid, child, link)) => {
                // Without it, it is never known to be warm, and replaced.
                let _ = self.cx.poller.add(link.as_fd(), Interest::Read, Token::Warm(pid).into());
                self.children.insert(pid, child);
                self.warm.programs.push(WarmProgram { pid, link, started, warm: None });
            }
            Err(_) => self.warm.pauses.failed(),
        }
    }

    /// A program that is being started has something to say.
    pub(super) fn hear_warm(&mut self, pid: Pid) {
        let Some(program) = self.warm.programs.iter().find(|program| program.pid == pid) else { return };
        match warm::hear(program.link.as_fd()) {
            Ok(Warming::Failed(errno)) => {
                self.start_cold("the kernel, or a filter of system calls, does not let them be warm", errno);
            }
            Ok(Warming::Unreachable(errno)) => {
                self.start_cold("nothing can be loaded by /proc/self/fd", errno);
            }
            Ok(Warming::Warm { cpu, at, calls }) => {
                if calls > 0 && !std::mem::replace(&mut self.warm.said_where, true) {
                    let name = usize::try_from(at)
                        .map(|number| Sysno::new(number).map_or("an unknown one", |call| call.name()));
                    let place = match name {
                        Ok(name) => format!("the system call {name}"),
                        // Those have other numbers.
                        Err(_) => "a system call of 32 bits".to_owned(),
                    };
                    self.cx.event(
                        Level::Info,
                        None,
                        format_args!("its program is warm at {place}, after {calls} of them"),
                    );
                }
                if let Some(time) = self.warm.became_warm(pid, cpu, &self.cx.poller) {
                    self.cx.counters.count_time(CountedTime::WarmUp, time);
                }
                self.warm.count_warm(&self.cx);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It has ended, or lost what it was to say this with.
            Err(_) => {
                let _ = self.cx.poller.remove(program.link.as_fd());
                self.children.kill(pid);
            }
        }
    }

    /// None can ever be warm.
    fn start_cold(&mut self, why: &str, errno: i32) {
        self.end_warm();
        (self.warm.size, self.warm.scaffold) = (0, None);
        self.cx.event(
            Level::Warning,
            None,
            format_args!(
                "its programs are started when their connections are there: {why}: {}",
                error_text(errno)
            ),
        );
    }

    /// Replaces those that are too old, or do not become warm.
    pub(super) fn tend_warm(&mut self) {
        let now = Monotonic::now();
        while let Some(place) = self.warm.programs.iter().position(|one| self.warm.until(one) <= now) {
            let program = self.warm.programs.remove(place);
            if program.warm.is_none() {
                self.children.kill(program.pid);
                self.warm.was_not_ready();
                let seconds = LONGEST_START.as_secs();
                self.say_why_cold(format_args!(
                    "its program was not ready for a connection within {seconds} s"
                ));
            }
            self.warm.count_warm(&self.cx);
        }
    }

    /// A file has changed that they may have read.
    pub(super) fn renew_warm(&mut self) {
        if self.warm.watch.as_ref().is_some_and(WatchedFiles::has_changed) {
            self.end_warm();
            self.cx.event(
                Level::Info,
                None,
                format_args!("a file has changed: its warm programs are replaced"),
            );
        }
    }

    /// Ends all of them: those that wait see the end of their links, and the others have served nobody.
    pub(super) fn end_warm(&mut self) {
        for program in self.warm.programs.drain(..) {
            if program.warm.is_none() {
                self.children.kill(program.pid);
            }
        }
        self.warm.count_warm(&self.cx);
    }

    /// One has ended that had no connection. It is not in the list if it was to end.
    pub(super) fn lost_warm(&mut self, ended: &Ended, failure: Option<String>) {
        // It may have said why.
        self.hear_warm(ended.pid);
        let Some(program) = self.warm.take(ended.pid) else { return };
        self.warm.pauses.failed();
        self.warm.count_warm(&self.cx);
        let how = failure.unwrap_or_else(|| format!("its program {}", ended.ending));
        match program.warm {
            Some(_) => self.say_why_cold(format_args!("{how} while it waited for a connection")),
            None => self.say_why_cold(format_args!("{how} before it was ready for a connection")),
        }
    }

    fn say_why_cold(&mut self, why: std::fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.warm.said_why, true) {
            self.cx.event(
                Level::Warning,
                None,
                format_args!(
                    "{why}; until one is warm again, programs are started when their connections are there"
                ),
            );
        }
    }

    /// The process that is to serve the next client, if one is warm, and the slot that it has.
    pub(super) fn warm_process(&self) -> Option<(Pid, &Child<&'static crate::scoreboard::Scoreboard>)> {
        let pid = self.warm.next_to_serve()?;
        Some((pid, self.children.get(pid)?))
    }

    /// Gives a client who has been let in, and counted in the slot of this process, to it. Returns the slot that is left, or
    /// the client if the process has gone.
    pub(super) fn give_to_warm(&mut self, pid: Pid, newcomer: Newcomer) -> Result<WorkerSlot, Newcomer> {
        let Newcomer { slot, socket, client } = newcomer;
        let (Some(program), Some(child)) = (self.warm.take(pid), self.children.get(pid)) else {
            return Err(Newcomer { slot, socket, client });
        };
        self.warm.count_warm(&self.cx);
        let (id, place) = (child.id(), child.slot());
        let until = self.cx.plan.service.admission.deadlines.until(&client);
        let connection = Connection { number: id.number, client, until };
        // First: who finds this worker dead has to know what that process serves.
        place.note(Some(&connection));
        let conn = Conn { id, slot: place.index(), client };
        let give = |variables: &[u8]| warm::give(program.link.as_fd(), variables, socket.as_fd());
        if self.cx.spec.variables(&conn, socket.as_fd(), give).is_err() {
            place.note(None);
            self.children.kill(pid);
            let slot = self.children.exchange_slot(pid, slot);
            return Err(Newcomer { slot, socket, client });
        }
        self.warm.gave();
        self.cx.counters.count(Count::ServedWarm);
        self.children.given(pid, &connection, program.warm.unwrap_or_default());
        if self.cx.keeps_connections {
            self.children.keep(pid, process_of(id.number), socket.into());
        }
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(size: usize, waiting: usize) -> WarmPrograms {
        let mut warm = WarmPrograms::new(None, 0, &[], false).unwrap();
        warm.size = size;
        warm.programs = (0..waiting)
            .map(|number| WarmProgram {
                pid: number as Pid + 1,
                link: std::fs::File::open("/dev/null").unwrap().into(),
                started: Monotonic::now(),
                warm: Some(Duration::ZERO),
            })
            .collect();
        warm
    }

    #[test]
    fn who_has_been_given_a_connection_is_let_go_on_before_another_is_started() {
        let mut warm = programs(4, 3);
        let at_once = warm.pauses.next();
        assert_eq!(warm.start_due(), Some(at_once), "at the beginning");
        warm.gave();
        let held = warm.start_due().unwrap();
        assert!(held > at_once);
        // Others do not put it off for ever.
        warm.gave();
        assert_eq!(warm.start_due(), Some(held));
        warm.connection_ended();
        assert_eq!(warm.start_due(), Some(at_once));
    }

    #[test]
    fn after_one_was_not_ready_in_time_another_is_tried_alone_and_much_later() {
        let poller = Poller::new().unwrap();
        let mut warm = programs(4, 0);
        let before = Monotonic::now();
        // All have been started at once.
        (0..4).for_each(|_| warm.was_not_ready());
        let due = warm.start_due().unwrap();
        assert!(due >= before + PAUSE_AFTER_SLOW && due <= Monotonic::now() + PAUSE_AFTER_SLOW);
        warm.programs = programs(4, 1).programs;
        warm.programs[0].warm = None;
        assert_eq!(warm.start_due(), None, "one is tried");
        assert!(warm.became_warm(1, Duration::ZERO, &poller).is_some());
        assert!(warm.start_due().is_some(), "it is warm");
        warm.pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        warm.programs[0].warm = None;
        assert!(warm.start_due().is_some_and(|due| due <= Monotonic::now()), "several again");
    }

    #[test]
    fn clients_without_a_pause_put_the_next_start_off_but_not_for_ever() {
        let mut warm = programs(4, 0);
        warm.found_none();
        assert!(warm.start_due().unwrap() <= Monotonic::now(), "nobody knows yet that one has to wait");
        let at = |milliseconds: u64| Monotonic::from_nanos(1_000_000 * milliseconds);
        let mut pressure = Pressure { start_takes: Duration::from_millis(5), ..Pressure::default() };
        let mut put_off = Vec::new();
        for now in (100..160).step_by(3) {
            pressure.felt(at(now));
            put_off.push(pressure.until.unwrap());
        }
        assert_eq!(put_off[..2], [at(105), at(108)]);
        assert_eq!(put_off.iter().filter(|until| **until == at(150)).count(), 2);
        assert_eq!(put_off[17..19], [at(156), at(159)], "it begins anew");
        pressure.start_takes = Duration::from_secs(5);
        pressure.felt(at(10_000));
        assert_eq!(pressure.until, Some(at(11_000)));
    }

    #[test]
    fn where_more_are_called_for_than_come_after_nobody_waits() {
        for (size, waiting, is_held) in
            [(1, 0, true), (2, 1, true), (2, 0, false), (16, 8, true), (16, 7, false)]
        {
            let mut warm = programs(size, waiting);
            let at_once = warm.pauses.next();
            warm.gave();
            assert_eq!(warm.start_due() > Some(at_once), is_held, "{waiting} of {size}");
        }
        let mut warm = programs(4, 4);
        warm.gave();
        assert_eq!(warm.start_due(), None);
        warm.programs.clear();
        warm.until_slot_freed = true;
        assert_eq!(warm.start_due(), None);
    }
}
