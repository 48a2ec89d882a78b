//! Programs that get a listener itself, `wait = true`: a listener that nobody has is watched, and never read; who calls there
//! has the program started, which has the listener until it ends.
//!
//! One process has it, whatever has become of its worker: a program that an older worker has started, or a dead one, is in a
//! row of the scoreboard, with what tells its listener from others. While there is such a row nobody starts another.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Worker;
use super::context::Newcomer;
use super::starter::Started;
use crate::client::Client;
use crate::ipc::orders::WorkerReport;
use crate::ipc::reports::{FAILED_TO_BEGIN, Failure};
use crate::journal::Level;
use crate::pace::Backoff;
use crate::scoreboard::{Count, CountUp};
use crate::sys::fd;
use crate::sys::socket;
use crate::sys::time::Monotonic;
use crate::sys::wait::{Ended, Ending, Pid};

/// A program that ends sooner, has taken nothing, and leaves somebody waiting, would be started again and again.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// The pauses after such ends. The listener stays open: whoever calls meanwhile is queued.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The first after a good end that leaves more connections queued than there were: nobody can tell whether one of them was
/// taken. The longest is the first of the others.
const FIRST_GENTLE_PAUSE: Duration = Duration::from_millis(10);

const EXITS_AT_ONCE: &str =
    "its program exits 0 at once, and somebody waits (one that takes a connection and ends needs no wait)";

/// When to look again whether somebody else's program still has a listener, though no slot was said to be free. Two workers that
/// have stood back for each other do not do so at the same time again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(37);

/// The listeners of a service with `wait`; none of another.
#[derive(Debug, Default)]
pub(super) struct Waited {
    listeners: Vec<WaitedListener>,
    /// The listener whose program is being started.
    starting: Option<usize>,
    /// No program is to have one any more.
    is_over: bool,
    /// The supervisor knows that a program rests.
    reported: bool,
}

#[derive(Debug)]
struct WaitedListener {
    cookie: u64,
    program: Option<Running>,
    backoff: Backoff,
    /// Of programs that end well and may have taken something.
    gentle: Backoff,
    /// Who was queued when one of them had ended, the last time.
    callers: Option<Vec<SocketAddr>>,
    /// Its pause is not over.
    is_resting: bool,
    /// Somebody else's program has it; when to look again.
    look_at: Option<Monotonic>,
}

/// A program that has a listener.
#[derive(Debug)]
struct Running {
    /// `None` until there is a process.
    pid: Option<Pid>,
    begun: Monotonic,
    /// What had been taken from the listener before.
    taken: Taken,
}

/// What tells whether something was taken from a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    last_read: Option<(i64, i64)>,
    queued: u32,
}

impl Taken {
    fn of(listener: BorrowedFd<'_>) -> Self {
        Taken { last_read: socket::last_read(listener), queued: socket::queued(listener) }
    }

    /// Whether something was since. Of a queue that has grown or stayed nobody can tell.
    fn has_more_than(self, before: Taken, listener: BorrowedFd<'_>) -> bool {
        match socket::is_datagram(listener) {
            true => self.last_read != before.last_read,
            false => self.queued < before.queued,
        }
    }
}

impl WaitedListener {
    /// What it did last was to fail, as far as is known.
    fn has_failed(&self) -> bool {
        self.backoff.until().is_some() || self.gentle.until().is_some()
    }

    /// A program has it, whosever that is, or rests.
    fn is_held(&self) -> bool {
        self.program.is_some() || self.is_resting || self.look_at.is_some()
    }
}

impl Waited {
    /// For these listeners, whose programs nobody has started yet.
    pub(super) fn new(listeners: &[BorrowedFd<'static>]) -> Self {
        let place = |listener: &BorrowedFd<'static>| {
            // From now on the kernel notes what is read.
            let _ = socket::last_read(*listener);
            WaitedListener {
                cookie: socket::cookie(*listener),
                program: None,
                backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
                gentle: Backoff::new(FIRST_GENTLE_PAUSE, FIRST_PAUSE),
                callers: None,
                is_resting: false,
                look_at: None,
            }
        };
        Waited { listeners: listeners.iter().map(place).collect(), ..Waited::default() }
    }

    /// Whether this is a service with `wait`.
    pub(super) fn is_used(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Whether a program has a listener, or is about to.
    pub(super) fn has_programs(&self) -> bool {
        self.starting.is_some() || self.listeners.iter().any(|place| place.program.is_some())
    }

    /// When [`Worker::tend_waited`] has something to do without an event.
    pub(super) fn next(&self) -> Option<Monotonic> {
        let next = |place: &WaitedListener| match &place.program {
            Some(program) => place.has_failed().then(|| program.begun + SHORTEST_LIFE),
            None if place.is_resting => place.backoff.until().max(place.gentle.until()),
            None => place.look_at,
        };
        self.listeners.iter().filter(|_| !self.is_over).filter_map(next).min()
    }

    /// Whether this listener is not to be watched.
    fn is_held(&self, index: usize) -> bool {
        self.is_over || self.listeners.get(index).is_none_or(WaitedListener::is_held)
    }

    /// The program that was to be started has this process, or none.
    fn started(&mut self, pid: Option<Pid>) -> Option<usize> {
        let index = self.starting.take()?;
        let place = self.listeners.get_mut(index)?;
        match (&mut place.program, pid) {
            (Some(program), Some(pid)) => program.pid = Some(pid),
            _ => place.program = None,
        }
        Some(index)
    }

    /// The listener that this process had, and since when.
    fn take(&mut self, pid: Pid) -> Option<(usize, Running)> {
        let has_it =
            |place: &WaitedListener| place.program.as_ref().is_some_and(|program| program.pid == Some(pid));
        let index = self.listeners.iter().position(has_it)?;
        Some((index, self.listeners.get_mut(index)?.program.take()?))
    }

    /// The program of this listener has failed at once; or has ended well, and may have taken something. How long it rests.
    fn failed(&mut self, index: usize, is_certain: bool) -> Option<Duration> {
        let (place, now) = (self.listeners.get_mut(index)?, Monotonic::now());
        place.is_resting = true;
        Some(if is_certain { place.backoff.failed(now) } else { place.gentle.failed(now) })
    }

    fn succeeded(&mut self, index: usize) {
        if let Some(place) = self.listeners.get_mut(index) {
            place.backoff.succeeded();
            place.gentle.succeeded();
            place.callers = None;
        }
    }

    /// The queue of a listener has not become shorter: whether one who was in it the last time is no more. `None` if the kernel
    /// does not tell who is in it.
    fn has_taken_one(&mut self, index: usize, listener: BorrowedFd<'_>) -> Option<bool> {
        let now = socket::queued_callers(listener)?;
        let place = self.listeners.get_mut(index)?;
        // The first time it may have.
        let before = place.callers.replace(now.clone());
        Some(before.is_none_or(|before| before.iter().any(|caller| !now.contains(caller))))
    }

    /// A program that ends at once has taken something again.
    fn succeeded_again(&mut self, index: usize) {
        if let Some(place) = self.listeners.get_mut(index) {
            place.backoff.succeeded();
            place.gentle.succeeded();
        }
    }

    fn rests(&self) -> bool {
        self.listeners.iter().any(WaitedListener::has_failed)
    }
}

impl Worker {
    /// Somebody calls at this listener: starts its program, unless one has it.
    pub(super) fn start_program(&mut self, index: usize) {
        self.acceptor.nothing_more(index);
        if self.starter.is_busy() {
            return self.acceptor.more(index);
        }
        let now = Monotonic::now();
        let Some(listener) = self.acceptor.socket(index).filter(|_| self.acceptor.is_open()) else { return };
        if self.waited.is_held(index) || socket::is_queue_empty(listener) || self.is_taken(index, now) {
            return;
        }
        let slot = match self.slots.take(true) {
            Ok(slot) => slot,
            Err(why) => return self.wait_for_slot(why),
        };
        let stands_back_for = self.stands_back_for();
        let Some(place) = self.waited.listeners.get_mut(index) else { return };
        // Who reads it waits for what comes. It belongs to nobody else now who could be kept waiting by that.
        let socket = fd::set_nonblocking(listener, false).and_then(|()| listener.try_clone_to_owned());
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => return self.exhausted(index, &error),
        };
        let client = Client::of_listener(place.cookie);
        let admitted = self.starter.admit(Newcomer { slot, socket, client }, &self.cx);
        // In this order: of two who do so at once, one at least sees the other.
        if self.cx.scoreboard.has_listener(place.cookie, Some(admitted.slot.index())) {
            place.look_at = Some(now + stands_back_for);
            return self.acceptor.hold(index, true);
        }
        place.program = Some(Running { pid: None, begun: now, taken: Taken::of(listener) });
        self.waited.starting = Some(index);
        self.acceptor.hold(index, true);
        self.cx.counters.count(Count::Accepted);
        let started = self.starter.launch(admitted, &self.pool, &self.cx);
        self.started(started);
    }

    fn stands_back_for(&self) -> Duration {
        LOOK_AGAIN + STEP * (self.cx.plan.serial % 16)
    }

    /// Whether somebody else's program has a listener. If so, it is looked at again when that may have ended.
    fn is_taken(&mut self, index: usize, now: Monotonic) -> bool {
        let at = now + self.stands_back_for();
        let Some(place) = self.waited.listeners.get_mut(index) else { return true };
        let is_taken = || self.cx.scoreboard.has_listener(place.cookie, None);
        if !is_taken() {
            return false;
        }
        self.cx.scoreboard.want();
        // It may have ended before that was said.
        let is_taken = is_taken();
        if is_taken {
            place.look_at = Some(at);
            self.acceptor.hold(index, true);
        }
        is_taken
    }

    /// Watches listeners again whose time has come.
    pub(super) fn tend_waited(&mut self) {
        if !self.waited.is_used() {
            return;
        }
        let now = Monotonic::now();
        for (place, index) in self.waited.listeners.iter_mut().zip(0..) {
            place.look_at = place.look_at.filter(|at| now < *at);
            place.is_resting = place.is_resting && !(place.backoff.is_over(now) && place.gentle.is_over(now));
            self.acceptor.hold(index, place.is_held() || self.waited.is_over);
            // It lives.
            if place.has_failed()
                && place.program.as_ref().is_some_and(|program| program.begun + SHORTEST_LIFE <= now)
            {
                place.backoff.succeeded();
                place.gentle.succeeded();
            }
        }
        self.tell_that_all_work();
    }

    /// A slot was freed: perhaps that of somebody else's program.
    pub(super) fn look_for_listeners(&mut self) {
        for place in &mut self.waited.listeners {
            place.look_at = place.look_at.map(|_| Monotonic::from_nanos(0));
        }
    }

    /// A program is there, or will never be.
    pub(super) fn program_started(&mut self, started: &Started) {
        match started {
            Started::Later => {}
            Started::Process(pid, _) => drop(self.waited.started(Some(*pid))),
            Started::Never(_, reason) => {
                if let Some(index) = self.waited.started(None) {
                    self.rest(index, &format!("its program could not be started: {reason}"), true);
                }
            }
        }
    }

    /// A process has ended; if it had a listener, that is free.
    pub(super) fn program_ended(&mut self, ended: &Ended, failure: Option<Failure>) {
        let Some((index, program)) = self.waited.take(ended.pid) else { return };
        let Some(listener) = self.acceptor.socket(index) else { return };
        if socket::disconnect(listener) {
            self.cx.event(
                Level::Warning,
                None,
                format_args!("its program has left the socket connected to somebody; it takes all again"),
            );
        }
        let is_short = Monotonic::now() - program.begun < SHORTEST_LIFE;
        let has_taken = || Taken::of(listener).has_more_than(program.taken, listener);
        if !self.waited.is_over && is_short && !socket::is_queue_empty(listener) && !has_taken() {
            let is_stream = !socket::is_datagram(listener);
            let how = match (ended.ending, failure) {
                (Ending::Exited(FAILED_TO_BEGIN), Some(failure)) => failure.explain(&self.cx.plan.service),
                (ending, _) => match self.waited.has_taken_one(index, listener).filter(|_| is_stream) {
                    Some(true) => {
                        self.waited.succeeded_again(index);
                        return self.tell_that_all_work();
                    }
                    None if is_stream && ending == Ending::Exited(0) => {
                        return self.rest(index, EXITS_AT_ONCE, false);
                    }
                    Some(false) | None => format!("its program {ending} at once, and has taken nothing"),
                },
            };
            return self.rest(index, &how, true);
        }
        self.waited.succeeded(index);
        self.tell_that_all_work();
    }

    fn tell_that_all_work(&mut self) {
        if self.waited.reported && !self.waited.rests() {
            self.waited.reported = false;
            self.link.report(&WorkerReport::Works);
        }
    }

    /// The program of this listener is not started again for a while.
    fn rest(&mut self, index: usize, why: &str, is_certain: bool) {
        let Some(pause) = self.waited.failed(index, is_certain) else { return };
        // Of what is not certain the log hears once, when it has gone on for a while.
        if !is_certain && (pause < FIRST_PAUSE || self.waited.reported) {
            return;
        }
        let address = self.cx.plan.listeners.get(index).map_or("", |listener| &listener.name);
        let seconds = pause.as_secs();
        let text =
            format!("{address}: {why}; the address stays open, and it is started again in {seconds} s");
        self.cx.event(Level::Warning, None, format_args!("{text}"));
        self.waited.reported = true;
        self.link.report(&WorkerReport::rests(&text));
    }

    /// No program is to have a listener any more; who has one is told to end.
    pub(super) fn end_programs(&mut self) {
        if !self.waited.is_used() {
            return;
        }
        self.waited.is_over = true;
        if let Some(admitted) = self.starter.give_up() {
            self.waited.started(None);
            self.not_started(&admitted, "the service is ending");
        }
        self.children.end_programs(|_| true);
    }
}
