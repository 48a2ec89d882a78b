//! What could not be served is tried again: after ever longer pauses, and at once when the kernel has another address.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::changes::Change;
use super::generation::DownService;
use super::loader::{Checked, Loader, ReadingTask};
use super::rollout::Purpose;
use super::{ConfigSource, EventSource, Supervisor};
use crate::config::Tolerance;
use crate::pace::Backoff;
use crate::sys::addresses;
use crate::sys::epoll::{Interest, Poller};
use crate::sys::time::Monotonic;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// When to try again, and who tells that it may be sooner.
#[derive(Debug)]
pub(super) struct Recovery {
    backoff: Backoff,
    /// Where the kernel tells of new addresses. Where it may not, only the pauses count.
    news: Option<OwnedFd>,
}

impl Default for Recovery {
    fn default() -> Self {
        Recovery { backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), news: None }
    }
}

impl Recovery {
    /// When to try next, if something is to be tried.
    pub(super) fn next_try(&self) -> Option<Monotonic> {
        self.backoff.until()
    }

    /// There is news about addresses: the next try is due now, and those that follow it soon.
    pub(super) fn hear(&mut self, now: Monotonic) {
        if self.news.as_ref().is_some_and(|news| addresses::take_news(news.as_fd())) {
            self.backoff.succeeded();
            self.backoff.due_at(now);
        }
    }

    /// There is something to try. True if it is time.
    fn is_due(&mut self, now: Monotonic, poller: &Poller) -> bool {
        if self.backoff.until().is_none() {
            self.listen(poller);
            self.backoff.failed(now);
        }
        self.backoff.is_over(now)
    }

    fn listen(&mut self, poller: &Poller) {
        let watch =
            |news: &OwnedFd| poller.add(news.as_fd(), Interest::Read, EventSource::Addresses.into()).is_ok();
        self.news = self.news.take().or_else(|| addresses::listen().ok().filter(watch));
    }

    /// Everything is served.
    fn rest(&mut self, poller: &Poller) {
        self.backoff.succeeded();
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
        if self.state.generation.is_whole() {
            return self.recovery.rest(&self.poller);
        }
        if !self.recovery.is_due(now, &self.poller) || !self.changes.are_idle() {
            return;
        }
        self.recovery.backoff.failed(now);
        if !self.state.generation.down().values().any(|down| down.config.is_none()) {
            return self.try_again();
        }
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
                self.state.generation.renew(&name, DownService { config: None, reason });
            }
            for service in config.services {
                let name = service.name.clone();
                let reason = "it is about to be tried".to_owned();
                self.state.generation.renew(&name, DownService { config: Some(service), reason });
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
