//! A generation on its way.

use std::time::Duration;

use super::generation::{DownService, Generation};
use super::purpose::Purpose;
use super::service::Service;
use crate::config::Address;
use crate::control::server::{ClientId, ControlServer};
use crate::sys::time::Monotonic;

/// How long a new generation may take to get ready.
pub(super) const ROLLOUT_LIMIT: Duration = Duration::from_secs(30);

/// How many of its workers a generation may lose to signals before it is given up.
const LOSSES: u32 = 32;

/// A generation on its way.
#[derive(Debug)]
pub(super) struct Rollout {
    /// With the services that are new.
    pub(super) next: Generation,
    /// Names of services that stay as they are.
    pub(super) kept: Vec<String>,
    pub(super) purpose: Purpose,
    /// The control socket, if that is another.
    pub(super) control: Option<ControlServer>,
    /// Who waits for it.
    pub(super) clients: Vec<ClientId>,
    stage: RolloutStage,
    deadline: Monotonic,
    losses: u32,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RolloutStage {
    /// Workers get ready.
    Preparing,
    /// Workers begin to accept.
    Opening,
}

impl Rollout {
    /// Of a generation that has no services yet.
    pub(super) fn begin(
        next: Generation,
        purpose: Purpose,
        control: Option<ControlServer>,
        clients: Vec<ClientId>,
    ) -> Self {
        Rollout {
            next,
            kept: Vec::new(),
            purpose,
            control,
            clients,
            stage: RolloutStage::Preparing,
            deadline: Monotonic::now() + ROLLOUT_LIMIT,
            losses: 0,
        }
    }

    pub(super) fn stage(&self) -> RolloutStage {
        self.stage
    }

    /// All its workers are ready; now they begin to accept.
    pub(super) fn open(&mut self) {
        self.stage = RolloutStage::Opening;
    }

    pub(super) fn deadline(&self) -> Monotonic {
        self.deadline
    }

    /// Whether its time is over. It gets as much again, for what is left of it then.
    pub(super) fn is_late(&mut self, now: Monotonic) -> bool {
        let is_late = self.deadline <= now;
        if is_late {
            self.deadline = now + ROLLOUT_LIMIT;
        }
        is_late
    }

    /// It loses one more worker. Whether these are too many.
    pub(super) fn loses_too_many(&mut self) -> bool {
        self.losses += 1;
        self.losses > LOSSES
    }

    /// Whether it has something to serve that is new.
    pub(super) fn serves(&self) -> bool {
        self.next.services().len() > 0
    }

    /// Whether it may come into force without a listener at this address of a service. A start may, unless `strict_start`
    /// forbids it; later, only what was missing before.
    pub(super) fn tolerates(&self, before: &Generation, service: &str, address: &Address) -> bool {
        let was_missing =
            |service: &Service| service.missing().iter().any(|missing| missing.address == *address);
        let was_down = |down: &DownService| match &down.config {
            Some(config) => config.listen.contains(address),
            None => self.purpose == Purpose::Recovery,
        };
        match self.purpose {
            Purpose::Start => self.is_lenient(),
            Purpose::Reload | Purpose::Upgrade | Purpose::Recovery => {
                before.service(service).is_some_and(was_missing)
                    || before.down().get(service).is_some_and(was_down)
            }
        }
    }

    /// Whether a start may leave out what cannot be served.
    pub(super) fn is_lenient(&self) -> bool {
        !self.next.settings().supervisor.strict_start
    }

    /// Whether this is its number, and so that of its workers.
    pub(super) fn is_generation(&self, number: u64) -> bool {
        self.next.number() == number
    }
}
