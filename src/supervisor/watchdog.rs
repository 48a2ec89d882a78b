//! The watchdog: systemd hears that all is well only while every worker answers.

use std::time::Duration;

use super::Supervisor;
use super::state::State;
use super::systemd::Systemd;
use crate::journal::{Level, Log, MessageId};
use crate::scoreboard::Count;
use crate::sys::time::Monotonic;

/// When to look after the workers next. Without a watchdog nothing wakes the supervisor when nothing happens.
#[derive(Debug)]
pub(super) struct Watchdog {
    interval: Duration,
    next: Monotonic,
    /// Connections accepted up to the last look, and when that was.
    accepted: (u64, Monotonic),
    /// What systemd was told last.
    told: String,
}

impl Watchdog {
    /// As systemd wants it: asked at one interval, a worker that has not answered by the next is dead by the one after,
    /// and its successor has answered before systemd loses patience.
    pub(super) fn new(systemd: &Systemd) -> Option<Self> {
        let now = Monotonic::now();
        let interval = systemd.watchdog()?.max(Duration::from_millis(40)) / 4;
        Some(Watchdog { interval, next: now, accepted: (0, now), told: String::new() })
    }

    /// When it is time again.
    pub(super) fn next(&self) -> Monotonic {
        self.next
    }

    fn tell_rate(&mut self, state: &State, systemd: &Systemd, now: Monotonic) {
        let accepted = state.accepted();
        let (before, then) = std::mem::replace(&mut self.accepted, (accepted, now));
        let rate = accepted.saturating_sub(before) as f64 / (now - then).as_secs_f64().max(0.001);
        let status = format!("{}, {rate:.1}/s, {}", state.summary(), state.history.of_reloads());
        if status != self.told {
            systemd.status(&status);
            self.told = status;
        }
    }
}

impl State {
    /// Asks every worker whether it is well, and ends those who did not answer last time; false if there are such.
    fn ask_workers(&mut self, log: &Log) -> bool {
        let mut all_well = true;
        for worker in self.workers.iter_mut() {
            if !worker.answers_watchdog() {
                all_well = false;
                log.event(
                    Level::Error,
                    Some(MessageId::WorkerDied),
                    Some(worker.service()),
                    format_args!("worker {} does not answer; ending it", worker.pid()),
                );
                worker.kill();
            }
        }
        all_well
    }

    /// All connections that were ever accepted.
    fn accepted(&self) -> u64 {
        self.services.alive().map(|service| self.totals(&service).get(Count::Accepted)).sum()
    }
}

impl Supervisor {
    /// Looks after the workers if it is time, and tells systemd.
    pub(super) fn watch(&mut self, now: Monotonic) {
        let is_running = self.is_running();
        let Some(watch) = self.watchdog.as_mut().filter(|watch| watch.next <= now) else { return };
        watch.next = now + watch.interval;
        if self.state.ask_workers(&self.log) {
            self.systemd.alive();
        }
        if is_running {
            watch.tell_rate(&self.state, &self.systemd, now);
        }
    }
}
