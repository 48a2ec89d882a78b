//! The processes that serve several connections, and when the worker hears what they have done.
//!
//! To be woken for each connection costs as much as a process needs to serve it. So after something was heard the worker is
//! not woken by them for a moment, and hears all of that moment together. As long as it does not know whether a spare waits
//! it waits for connections too, behind the spares: of those that sleep the first is woken, and it has come last.
//!
//! When more have come than there are processes, they are queued, and are served soon if those that there are go on as
//! fast as they do: they lack the processor, and another process would not have it sooner. So the worker sees now and then how
//! fast they take whoever is queued, and takes him itself, and makes a process for him, if that would be too long.

use std::io;
use std::time::Duration;

use super::Worker;
use super::token::Token;
use crate::ipc::reports::{ChildReport, OwnPipe, READS_AT_ONCE};
use crate::journal::Level;
use crate::sys::epoll::Interest;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;

/// So late a record may be.
const PAUSE: Duration = Duration::from_millis(50);

/// So long a spare has for who is queued, before the worker takes him.
const PRECEDENCE: Duration = Duration::from_millis(1);

/// Who will be queued for longer than this, as fast as spares take others, is taken by the worker.
const LONGEST_QUEUE: Duration = Duration::from_millis(10);

/// How often it is seen how fast they do, while somebody is queued.
const LOOK: Duration = Duration::from_millis(5);

/// A shorter time says nothing about that.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);

/// How often it is asked who has something to say, with 32 of them at a time, before others have their turn.
const ROUNDS: usize = 64;

/// Whether the worker is woken by them.
#[derive(Debug)]
pub(super) struct Hearing {
    /// The worker need not know at once.
    pauses: bool,
    until: Option<Monotonic>,
    pace: Pace,
}

/// How fast spares take who is queued.
#[derive(Debug, Default)]
struct Pace {
    /// When it was looked at last, and how many had been taken by then.
    looked: Monotonic,
    taken: u64,
    /// How many were taken in the time before, and how long that was.
    last: (u32, Duration),
}

impl Pace {
    fn look(&mut self, now: Monotonic, taken: u64) {
        let time = now - self.looked;
        if time >= SHORTEST_LOOK {
            let number = u32::try_from(taken.saturating_sub(self.taken)).unwrap_or(u32::MAX);
            *self = Pace { looked: now, taken, last: (number, time) };
        }
    }

    /// Whether so many are taken soon, if it goes on like this.
    fn is_enough_for(&self, queued: u32) -> bool {
        let (number, time) = self.last;
        time.saturating_mul(queued) <= LONGEST_QUEUE.saturating_mul(number)
    }
}

impl Hearing {
    pub(super) fn new(pauses: bool) -> Self {
        Hearing { pauses, until: None, pace: Pace::default() }
    }

    /// Whether what the worker knows of them is not what is.
    pub(super) fn pauses_now(&self) -> bool {
        self.until.is_some()
    }

    /// When they are heard without an event.
    pub(super) fn next(&self) -> Option<Monotonic> {
        self.until
    }
}

impl Worker {
    /// One of them has something to say, or few of them wait.
    pub(super) fn hear_several(&mut self) -> io::Result<()> {
        self.hear_who_is_ready();
        if self.hearing.pauses && self.hearing.until.is_none() {
            self.hearing.until = Some(Monotonic::now() + PAUSE);
            self.be_woken_by_several(false)?;
        }
        self.count_several();
        Ok(())
    }

    /// All that they have said has been heard.
    fn count_several(&mut self) {
        // Some of those that have said that they wait have been taken meanwhile.
        self.hear_spares();
        let pauses = self.hearing.pauses_now();
        if pauses {
            self.hearing.pace.look(Monotonic::now(), self.pool.taken());
        }
        // Who is queued is to be served first, and there are enough of them if he is.
        self.pool.count(pauses, pauses && self.acceptor.is_queued());
    }

    /// Hears them if their pause is over.
    pub(super) fn tend_several(&mut self) -> io::Result<()> {
        let Some(until) = self.hearing.until else { return Ok(()) };
        let now = Monotonic::now();
        if now < until {
            return Ok(());
        }
        let goes_on = self.hear_who_is_ready();
        self.hearing.until = goes_on.then_some(now + PAUSE);
        self.be_woken_by_several(!goes_on)?;
        self.count_several();
        // Behind those that were made meanwhile.
        self.acceptor.step_back(&self.cx.poller)?;
        if !goes_on && self.pool.waits() {
            // It may have been the one that was woken, and waits no more.
            self.acceptor.pause(PRECEDENCE);
        }
        Ok(())
    }

    /// Whether a connection, of which epoll has told the worker, is a spare's that waits. If it is not taken soon, the worker
    /// takes it.
    pub(super) fn leaves_to_spares(&mut self) -> bool {
        if !self.hearing.pauses_now() {
            return false;
        }
        if self.serve_soon() {
            return true;
        }
        self.hear_who_is_ready();
        let leaves = self.pool.waits();
        if leaves {
            self.acceptor.pause(PRECEDENCE);
        }
        leaves
    }

    /// Whether spares will soon have taken all who are queued. Then the worker leaves them to these until its next look.
    pub(super) fn serve_soon(&mut self) -> bool {
        if !self.hearing.pauses_now() {
            return false;
        }
        self.hear_spares();
        self.hearing.pace.look(Monotonic::now(), self.pool.taken());
        // Nobody knows how many are queued at a Unix socket.
        let queued = self.acceptor.queued();
        let soon = queued > 0 && self.hearing.pace.is_enough_for(queued);
        if soon {
            self.acceptor.pause(LOOK);
        }
        soon
    }

    /// From now on nothing is heard late.
    pub(super) fn end_pauses(&mut self) {
        self.hearing = Hearing::new(false);
        self.pool.count(false, false);
        // It fails for nothing that is watched.
        let _ = self.be_woken_by_several(true);
    }

    fn be_woken_by_several(&self, is_woken: bool) -> io::Result<()> {
        let Some(pipes) = self.children.pipes() else { return Ok(()) };
        let interest = if is_woken { Interest::Read } else { Interest::Nothing };
        self.cx.poller.change(pipes, interest, Token::Several.into())
    }

    /// Whether anybody had something to say.
    fn hear_who_is_ready(&mut self) -> bool {
        // First: what they report may be about what they were taken for.
        self.hear_spares();
        let mut has_heard = false;
        for _ in 0..ROUNDS {
            let Some(pids) = self.children.who_reports() else { break };
            has_heard = true;
            for pid in pids {
                let found = self.hear_rest(pid);
                self.kill_if_it_lies(pid, found);
            }
        }
        has_heard
    }

    fn kill_if_it_lies(&self, pid: Pid, found: OwnPipe) {
        if found == OwnPipe::Abused && self.children.kill(pid) {
            self.cx.event(
                Level::Warning,
                None,
                format_args!("process {pid} has reported what cannot be, and is killed"),
            );
        }
    }

    /// Hears all that processes have said by now that serve several connections.
    pub(super) fn hear_all_that_serve_several(&mut self) {
        self.hear_spares();
        for pid in self.children.that_serve_several() {
            let found = self.hear_rest(pid);
            self.kill_if_it_lies(pid, found);
        }
    }

    fn hear_own(&mut self, pid: Pid) -> OwnPipe {
        let mut heard = Vec::new();
        let found = self.children.read_reports(pid, |report| heard.push(report));
        let are_true = heard.into_iter().all(|report| match report {
            ChildReport::Refused(why) => {
                self.refuse(why);
                true
            }
            ChildReport::Ended(served) => self.served_one_of_several(pid, &served),
            // A spare that has a connection has begun.
            ChildReport::Failed(failure) => {
                let may_be = self.children.may_not_have_begun(pid);
                if may_be {
                    self.children.failed(pid, failure);
                }
                may_be
            }
        });
        if are_true { found } else { OwnPipe::Abused }
    }

    /// All that there is now. One that was captured may never stop, nor those that it has left the pipe to.
    pub(super) fn hear_rest(&mut self, pid: Pid) -> OwnPipe {
        let mut found = OwnPipe::Heard;
        (0..READS_AT_ONCE).all(|_| {
            found = self.hear_own(pid);
            found == OwnPipe::Heard
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_queued_is_left_to_those_who_will_soon_have_served_him() {
        let at = |ms: u64| Monotonic::from_nanos(1_000_000 * (1000 + ms));
        let mut pace = Pace::default();
        pace.look(at(0), 7);
        assert!(!pace.is_enough_for(1), "they have taken 7 in a second");
        pace.look(at(5), 57);
        assert!(pace.is_enough_for(100) && !pace.is_enough_for(101), "10 each millisecond");
        pace.look(at(5), 58);
        assert!(pace.is_enough_for(100), "a moment says nothing");
        pace.look(at(10), 57);
        assert!(!pace.is_enough_for(1), "none is taken any more");
        pace.look(at(15), u64::MAX);
        assert!(pace.is_enough_for(u32::MAX));
    }
}
