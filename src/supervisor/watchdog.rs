//! The watchdog: systemd hears that all is well only while every worker answers.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::ending::Phase;
use super::status::plural;
use super::systemd::Systemd;
use crate::control::WorkerState;
use crate::ipc::orders::Order;
use crate::journal::{Level, MessageId};
use crate::scoreboard::Count;

/// When to look after the workers next. Without a watchdog nothing wakes the supervisor when nothing happens.
#[derive(Debug)]
pub(super) struct Watchdog {
    interval: Duration,
    next: Instant,
    /// Connections accepted up to the last look, and when that was.
    accepted: (u64, Instant),
    /// What systemd was told last.
    told: String,
}

impl Watchdog {
    /// As systemd wants it: asked at one interval, a worker that has not answered by the next is dead by the one after,
    /// and its successor has answered before systemd loses patience.
    pub(super) fn new(systemd: &Systemd) -> Option<Self> {
        let now = Instant::now();
        let interval = systemd.watchdog()?.max(Duration::from_millis(40)) / 4;
        Some(Watchdog { interval, next: now, accepted: (0, now), told: String::new() })
    }

    /// When it is time again.
    pub(super) fn next(&self) -> Instant {
        self.next
    }
}

impl Supervisor {
    /// Asks every worker whether it is well, ends those who did not answer last time, and tells systemd.
    pub(super) fn watch(&mut self, now: Instant) {
        let Some(mut watch) = self.watch.take() else { return };
        if watch.next <= now {
            watch.next = now + watch.interval;
            if self.ask_workers() {
                self.systemd.alive();
            }
            if matches!(self.phase, Phase::Running) {
                self.tell_rate(&mut watch, now);
            }
        }
        self.watch = Some(watch);
    }

    /// False if somebody has not answered.
    fn ask_workers(&mut self) -> bool {
        let mut all_well = true;
        for (_, worker) in self.workers.iter_mut() {
            let prepares = matches!(worker.state, WorkerState::Starting | WorkerState::Ready);
            if !worker.is_asked {
                worker.is_asked = true;
                worker.order(&Order::Answer);
            } else if !prepares {
                all_well = false;
                self.log.event(
                    Level::Error,
                    Some(MessageId::WorkerDied),
                    Some(&worker.service),
                    format_args!("worker {} does not answer; ending it", worker.pid),
                );
                worker.kill();
            }
        }
        all_well
    }

    fn tell_rate(&mut self, watch: &mut Watchdog, now: Instant) {
        let accepted: u64 = self
            .service_states()
            .map(|(name, service_state)| self.totals(name, &service_state).get(Count::Accepted))
            .sum();
        let (before, then) = std::mem::replace(&mut watch.accepted, (accepted, now));
        let elapsed = now.saturating_duration_since(then).as_secs_f64().max(0.001);
        let rate = accepted.saturating_sub(before) as f64 / elapsed;
        let status = format!("{}, {rate:.1}/s, {}", self.summary(), self.last_reload());
        if status != watch.told {
            self.systemd.status(&status);
            watch.told = status;
        }
    }

    fn last_reload(&self) -> String {
        let (ok, failed) = (self.reloads.ok, self.reloads.failed);
        match (ok, failed) {
            (0, 0) => "never reloaded".to_owned(),
            (_, 0) => format!("{ok} {}", plural(ok as usize, "reload")),
            _ if self.last_reload_failed => format!("the last of {} reloads was rejected", ok + failed),
            _ => format!("{ok} {}, {failed} rejected", plural(ok as usize, "reload")),
        }
    }
}
