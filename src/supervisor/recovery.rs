//! What could not be served is tried again: after ever longer pauses, and at once when the kernel has another address.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::changes::Change;
use super::event_source::EventSource;
use super::generation::{DownService, LONGEST_PAUSE};
use super::loader::{Checked, Loader, ReadingTask};
use super::purpose::Purpose;
use super::{ConfigSource, Supervisor};
use crate::config::Tolerance;
use crate::pace::Backoff;
use crate::sys::addresses;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::time::Monotonic;

const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Between tries of addresses where the kernel may not tell of them: they are cheap.
const DEAF_PAUSE: Duration = Duration::from_secs(1);

/// When to try again, and who tells that it may be sooner.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Of what can be tried by itself.
    tries: Backoff,
    /// Of what has to be looked for in files.
    readings: Backoff,
    /// Where the kernel tells of new addresses.
    news: Option<OwnedFd>,
}

impl Default for Recovery {
    fn default() -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Recovery { tries: backoff, readings: backoff, news: None }
    }
}

impl Recovery {
    /// When to try next, if something is to be tried.
    pub(super) fn next_try(&self) -> Option<Monotonic> {
        self.tries.until().into_iter().chain(self.readings.until()).min()
    }

    /// There is news about addresses: the next try is due now, and those that follow it soon.
    pub(super) fn hear(&mut self, now: Monotonic) {
        if self.news.as_ref().is_some_and(|news| addresses::take_news(news.as_fd())) {
            self.tries = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            self.tries.due_at(now);
        }
    }

    /// There is something to try. True if it is time.
    fn is_time_to_try(&mut self, now: Monotonic, poller: &Poller) -> bool {
        if self.tries.until().is_none() {
            self.news = addresses::listen().ok().filter(|news| {
                poller.add(news.as_fd(), Interest::Read, EventSource::Addresses.into()).is_ok()
            });
            if self.news.is_none() {
                self.tries = Backoff::new(FIRST_PAUSE, DEAF_PAUSE);
            }
            self.tries.failed(now);
        }
        self.tries.is_over(now)
    }

    /// There is something to look for. True if it is time.
    fn is_time_to_read(&mut self, now: Monotonic) -> bool {
        if self.readings.until().is_none() {
            self.readings.failed(now);
        }
        self.readings.is_over(now)
    }

    /// Nothing is to be tried.
    fn end_tries(&mut self, poller: &Poller) {
        self.tries = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        if let Some(news) = self.news.take() {
            let _ = poller.remove(news.as_fd());
        }
    }
}

impl Supervisor {
    /// Tries again what could not be served, if it is time and nothing else is being changed.
    pub(super) fn recover(&mut self, now: Monotonic) {
        if !self.is_running() {
            return;
        }
        let generation = &self.state.generation;
        let (has_to_try, has_to_read) = (generation.has_to_try(now), generation.has_to_read());
        if !has_to_try {
            self.recovery.end_tries(&self.poller);
        }
        if !has_to_read {
            self.recovery.readings.succeeded();
        }
        let reads = has_to_read && self.recovery.is_time_to_read(now);
        let tries = has_to_try && self.recovery.is_time_to_try(now, &self.poller);
        if !(reads || tries) || !self.changes.are_idle() {
            return;
        }
        if !reads {
            self.recovery.tries.failed(now);
            return self.try_again();
        }
        self.recovery.readings.failed(now);
        let ConfigSource::File { path, .. } = &self.invocation.source else { return };
        let task = ReadingTask {
            path: path.clone(),
            snapshot: Some(self.state.generation.snapshot().clone()),
            tolerance: Tolerance::OfAny,
        };
        let limit = self.state.workers.descriptor_limit();
        // Without a process to read it, the next pause is as good.
        if let Ok(loader) = Loader::begin(&task, Purpose::Recovery, Vec::new(), limit, &self.poller) {
            self.changes.begin(Change::Reading(loader));
        }
    }

    /// The files of the configuration in force have been checked against the machine as it is now. Of what came of it only
    /// what was not there before is taken: for the rest, what is in force counts.
    pub(super) fn try_checked(&mut self, outcome: Result<Checked, String>) {
        if let Ok(Checked { config, .. }) = outcome {
            for (name, reason) in config.unavailable.reasons {
                self.state.generation.renew(&name, DownService::unavailable(reason));
            }
            for service in config.services {
                let name = service.name.clone();
                let reason = "it is about to be tried".to_owned();
                self.state.generation.renew(&name, DownService::unserved(service, reason));
            }
        }
        self.try_again();
    }

    fn try_again(&mut self) {
        let config = self.state.generation.config();
        if let Err(error) = self.begin_rollout(config, Vec::new(), Purpose::Recovery) {
            self.log.debug(None, format_args!("what is down cannot be tried: {error}"));
        }
    }

    /// Gives up a try that is under way, because something else is wanted.
    pub(super) fn end_recovery(&mut self) {
        if self.changes.purpose() != Some(Purpose::Recovery) {
            return;
        }
        match self.changes.end() {
            Some(Change::Reading(loader)) => _ = loader.end(&self.poller),
            Some(Change::RollingOut(rollout)) => _ = self.dismiss(*rollout),
            Some(Change::Trying(_)) | None => {}
        }
    }
}
