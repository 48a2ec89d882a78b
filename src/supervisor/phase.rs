//! The phases of a supervisor's life. At the end: drain, then end what is left, then make sure that nothing is.

use std::rc::Rc;
use std::time::Duration;

use super::closing_listeners::ClosingListeners;
use super::listener::Listener;
use super::wording::plural;
use super::workers::WorkerProcess;
use super::{Fatal, Supervisor};
use crate::control::Condition;
use crate::ipc::orders::Order;
use crate::journal::{Level, MessageId};
use crate::sys::signal::Signal;
use crate::sys::time::Monotonic;
use crate::sys::{process, wait};

/// How long connections have between SIGTERM and SIGKILL.
pub(super) const KILL_AFTER: Duration = Duration::from_secs(2);

/// How long workers have after that: one that does not obey is killed, which makes its connections ours to kill.
const WORKERS_END_AFTER: Duration = Duration::from_secs(2);

/// How often systemd is told how far the drain is.
const TICK: Duration = Duration::from_secs(1);

/// How much longer each telling makes systemd wait.
const EXTENSION: Duration = Duration::from_secs(15);

/// How long what is left at the end may take to die: somebody may fork faster than we kill, or be in a system call that no
/// signal ends.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked after.
const LAST_TICK: Duration = Duration::from_millis(1);

/// Where the supervisor is in its life.
#[derive(Debug)]
pub(super) enum Phase {
    /// The first generation is being made.
    Starting,
    /// Serving.
    Running,
    /// Accepts no more; connections go on until `until`.
    Draining { until: Monotonic, tick: Monotonic },
    /// Connections are being ended; workers that are left at `kill_workers` are killed.
    Ending { kill_after: Duration, kill_workers: Monotonic },
    /// There is no going on.
    Failed(Fatal),
}

/// What comes after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Nobody: what is queued is served, then the listeners are closed.
    Nothing,
    /// Another supervisor, to whom systemd gives the listeners and what is queued on them.
    Successor,
}

impl Phase {
    /// When it needs attention.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        match self {
            Phase::Starting | Phase::Running | Phase::Failed(_) => None,
            Phase::Draining { until, tick } => Some(*until.min(tick)),
            Phase::Ending { kill_workers, .. } => Some(*kill_workers),
        }
    }

    /// Why nothing can be changed, if nothing can.
    pub(super) fn why_not_running(&self) -> Option<&'static str> {
        match self {
            Phase::Running => None,
            Phase::Starting => Some("preforkd has not begun to serve yet; ask again when it has"),
            Phase::Draining { .. } | Phase::Ending { .. } | Phase::Failed(_) => {
                Some("preforkd is ending, and accepts nobody any more; start it again")
            }
        }
    }

    /// As `status` shows it.
    pub(super) fn condition(&self, reloading: bool) -> Condition {
        match self {
            Phase::Starting => Condition::Starting,
            Phase::Running if reloading => Condition::Reloading,
            Phase::Running => Condition::Running,
            Phase::Draining { .. } => Condition::Draining,
            Phase::Ending { .. } | Phase::Failed(_) => Condition::Ending,
        }
    }
}

impl Supervisor {
    /// Whether it serves, and is to go on with it.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// The first generation is in force.
    pub(super) fn begin_running(&mut self) {
        self.phase = Phase::Running;
    }

    /// There is no going on, and nothing to drain.
    pub(super) fn fail(&mut self, fatal: Fatal) {
        self.phase = Phase::Failed(fatal);
    }

    /// Why there is no going on, if that is so.
    pub(super) fn take_failure(&mut self) -> Option<Fatal> {
        match std::mem::replace(&mut self.phase, Phase::Starting) {
            Phase::Failed(fatal) => Some(fatal),
            phase => {
                self.phase = phase;
                None
            }
        }
    }

    /// TERM or INT, or the signal of a restart.
    pub(super) fn begin_end(&mut self, after: After, now: Monotonic) {
        match self.phase {
            Phase::Starting | Phase::Running => self.begin_drain(after, now),
            Phase::Draining { .. } | Phase::Ending { .. } => self.end_at_once(now),
            Phase::Failed(_) => {}
        }
    }

    fn begin_drain(&mut self, after: After, now: Monotonic) {
        self.systemd.stopping();
        self.give_up_changes("preforkd is ending");
        self.give_up_drains("preforkd is ending");
        let until = now + self.state.generation.settings().supervisor.drain_timeout;
        self.phase = Phase::Draining { until, tick: now };
        self.log.event(
            Level::Notice,
            Some(MessageId::DrainBegun),
            None,
            format_args!("accepting no more; {}", self.state.summary()),
        );
        let state = &mut self.state;
        let all: Vec<Rc<Listener>> = state.generation.listeners().cloned().collect();
        let closing = match after {
            After::Nothing => state.listeners.close(all.iter(), &[]),
            After::Successor => {
                all.iter().for_each(|listener| listener.leave());
                ClosingListeners::default()
            }
        };
        state.generation.services_mut().for_each(|service| service.let_go());
        state.workers.iter_mut().for_each(|worker| worker.retire(&closing));
        state.workers.iter().for_each(WorkerProcess::end_programs);
        state.adopted.end_programs(None);
    }

    /// TERM a second time, or QUIT.
    pub(super) fn end_at_once(&mut self, now: Monotonic) {
        if matches!(self.phase, Phase::Starting | Phase::Running) {
            self.begin_drain(After::Nothing, now);
        }
        // To begin again with each signal would put it off for ever.
        if !matches!(self.phase, Phase::Ending { kill_after: Duration::ZERO, .. } | Phase::Failed(_)) {
            self.end_connections(Duration::ZERO, now);
        }
    }

    /// Does what has become due at the end.
    pub(super) fn advance_end(&mut self, now: Monotonic) {
        match self.phase {
            Phase::Draining { until, .. } if until <= now => {
                self.log.event(
                    Level::Warning,
                    Some(MessageId::DrainEnded),
                    None,
                    format_args!("drain_timeout is over; ending what is left: {}", self.state.summary()),
                );
                self.end_connections(KILL_AFTER, now);
            }
            Phase::Draining { until, tick } if tick <= now => {
                self.phase = Phase::Draining { until, tick: now + TICK };
                self.tell_progress(until - now);
            }
            Phase::Ending { kill_workers, .. } if kill_workers <= now => {
                self.phase =
                    Phase::Ending { kill_after: Duration::ZERO, kill_workers: now + WORKERS_END_AFTER };
                self.systemd.extend(EXTENSION);
                self.state.workers.iter().for_each(|worker| worker.kill());
                self.end_adopted();
            }
            _ => {}
        }
    }

    fn tell_progress(&self, left: Duration) {
        let live = self.state.live();
        let noun = plural(live as usize, "connection");
        self.systemd.extend(EXTENSION);
        self.systemd
            .status(&format!("draining: {live} {noun} left, ended in {} s at the latest", left.as_secs()));
    }

    fn end_connections(&mut self, kill_after: Duration, now: Monotonic) {
        self.systemd.extend(EXTENSION);
        self.phase = Phase::Ending { kill_after, kill_workers: now + kill_after + WORKERS_END_AFTER };
        self.state.workers.iter().for_each(|worker| worker.order(&Order::End { kill_after }));
        self.end_adopted();
    }

    /// Ends the connections of dead workers as those of live ones are being ended.
    pub(super) fn end_adopted(&mut self) {
        if let Phase::Ending { kill_after, .. } = self.phase {
            self.state.adopted.end_all(kill_after);
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Ending { .. })
            && self.state.workers.is_empty()
            && self.state.adopted.is_empty()
    }

    /// Ends and reaps every process that is left below this one: workers of a start that failed, and what connection
    /// processes have left behind. It goes with us, as it does when systemd ends a unit. The children of what is killed
    /// become ours, and are killed in turn.
    pub(super) fn leave_nothing(&mut self) {
        let now = Monotonic::now();
        let until = now + LAST_PATIENCE;
        let is_in_a_hurry = matches!(self.phase, Phase::Ending { kill_after: Duration::ZERO, .. });
        let left = &mut self.state.left_behind;
        let kill_at = if left.is_empty() || is_in_a_hurry { now } else { now + KILL_AFTER };
        left.end(kill_at, |_| true);
        loop {
            let children = process::children();
            if children.is_empty() {
                break;
            }
            if until < Monotonic::now() {
                self.log.warning(None, format_args!("processes that do not die are left: {children:?}"));
                break;
            }
            if kill_at <= Monotonic::now() {
                children.iter().for_each(|pid| process::signal_process(*pid, Signal::SIGKILL));
            }
            while let Ok(Some(_)) = wait::reap() {}
            std::thread::sleep(LAST_TICK);
        }
        self.state.cgroups.end();
        self.state.credentials.remove();
        self.state.control.close(&self.poller);
    }
}
