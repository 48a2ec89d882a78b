//! The end: drain, then end what is left, then make sure that nothing is.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::status::plural;
use crate::control::State;
use crate::ipc::orders::Order;
use crate::journal::{Level, MessageId};
use crate::sys::signal::Signal;
use crate::sys::{process, wait};

/// How long connections have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first generation is being made.
    Starting,
    /// Serving.
    Running,
    /// Accepts no more; connections go on until `until`.
    Draining { until: Instant, tick: Instant },
    /// Connections are being ended; if some are left at `next`, in the next harder way.
    Ending { means: Means, next: Instant },
}

/// What comes after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Nobody: what is queued is served, then the listeners are closed.
    Nothing,
    /// Another supervisor, to whom systemd gives the listeners and what is queued on them.
    Successor,
}

/// How connections are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// SIGTERM to each process group.
    Term,
    /// SIGKILL to each process group.
    Kill,
    /// SIGKILL to workers that do not obey, which makes their connections ours to kill.
    KillWorkers,
}

impl Phase {
    /// When it needs attention.
    pub(super) fn next(&self) -> Option<Instant> {
        match *self {
            Phase::Starting | Phase::Running => None,
            Phase::Draining { until, tick } => Some(until.min(tick)),
            Phase::Ending { next, .. } => Some(next),
        }
    }

    /// As `status` shows it.
    pub(super) fn state(&self, reloading: bool) -> State {
        match self {
            Phase::Starting => State::Starting,
            Phase::Running if reloading => State::Reloading,
            Phase::Running => State::Running,
            Phase::Draining { .. } => State::Draining,
            Phase::Ending { .. } => State::Ending,
        }
    }
}

impl Supervisor {
    pub(super) fn begin_drain(&mut self, after: After) {
        let now = Instant::now();
        self.systemd.stopping();
        self.give_up_rollout("preforkd is ending");
        self.give_up_upgrade("preforkd is ending");
        self.phase = Phase::Draining { until: now + self.settings.drain_timeout, tick: now };
        self.log.event(
            Level::Notice,
            Some(MessageId::DrainBegun),
            None,
            format_args!("accepting no more; {}", self.summary()),
        );
        let all = std::mem::take(&mut self.services);
        let closing = match after {
            After::Nothing => self.close_unused(&all),
            After::Successor => {
                all.values().flat_map(|service| &service.listeners).for_each(|listener| listener.leave());
                Vec::new()
            }
        };
        self.services = all;
        for service in self.services.values_mut() {
            service.listeners.clear();
        }
        for (_, worker) in self.workers.iter_mut() {
            worker.retire(&closing);
        }
    }

    /// TERM a second time, or QUIT.
    pub(super) fn end_at_once(&mut self) {
        if matches!(self.phase, Phase::Starting | Phase::Running) {
            self.begin_drain(After::Nothing);
        }
        if !self.is_killing() {
            self.end_by(Means::Kill, Instant::now());
        }
    }

    /// Whether the next step only takes its time; to begin again with each signal would put it off for ever.
    fn is_killing(&self) -> bool {
        matches!(self.phase, Phase::Ending { means: Means::Kill | Means::KillWorkers, .. })
    }

    /// Does what has become due at the end.
    pub(super) fn advance_end(&mut self, now: Instant) {
        match self.phase {
            Phase::Draining { until, .. } if until <= now => {
                self.log.event(
                    Level::Warning,
                    Some(MessageId::DrainEnded),
                    None,
                    format_args!("drain_timeout is over; ending what is left: {}", self.summary()),
                );
                self.end_by(Means::Term, now);
            }
            Phase::Draining { until, tick } if tick <= now => {
                self.phase = Phase::Draining { until, tick: now + TICK };
                self.tell_progress(until.saturating_duration_since(now));
            }
            Phase::Ending { means, next } if next <= now => {
                let harder = match means {
                    Means::Term => Means::Kill,
                    Means::Kill | Means::KillWorkers => Means::KillWorkers,
                };
                self.end_by(harder, now);
            }
            _ => {}
        }
    }

    fn tell_progress(&self, left: Duration) {
        let live = self.live();
        let noun = plural(live as usize, "connection");
        self.systemd.extend(EXTENSION);
        self.systemd
            .status(&format!("draining: {live} {noun} left, ended in {} s at the latest", left.as_secs()));
    }

    fn end_by(&mut self, means: Means, now: Instant) {
        self.systemd.extend(EXTENSION);
        self.phase = Phase::Ending { means, next: now + GRACE };
        for (_, worker) in self.workers.iter() {
            match means {
                Means::Term => worker.order(&Order::End { at_once: false }),
                Means::Kill => worker.order(&Order::End { at_once: true }),
                Means::KillWorkers => worker.kill(),
            }
        }
        self.signal_adopted();
    }

    /// Ends the connections of dead workers as those of live ones are being ended.
    pub(super) fn signal_adopted(&self) {
        match self.phase {
            Phase::Ending { means: Means::Term, .. } => self.adopted.signal(Signal::SIGTERM),
            Phase::Ending { .. } => self.adopted.signal(Signal::SIGKILL),
            _ => {}
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Ending { .. })
            && self.workers.is_empty()
            && self.adopted.is_empty()
    }

    /// Ends and reaps every process that is left below this one: workers of a start that failed, and what connection
    /// processes have left behind. It goes with us, as it does when systemd ends a unit. The children of what is killed
    /// become ours, and are killed in turn.
    pub(super) fn leave_nothing(&mut self) {
        let begun = Instant::now();
        loop {
            let children = process::children();
            if children.is_empty() {
                break;
            }
            if begun.elapsed() > LAST_PATIENCE {
                self.log.warning(None, format_args!("processes that do not die are left: {children:?}"));
                break;
            }
            children.iter().for_each(|pid| process::signal_process(*pid, Signal::SIGKILL));
            while let Ok(Some(_)) = wait::reap() {}
            std::thread::sleep(LAST_TICK);
        }
        if let Some(control) = &mut self.control {
            control.close(&self.poller);
        }
    }
}
