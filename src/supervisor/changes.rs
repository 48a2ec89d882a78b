//! What is being changed, one thing at a time, and who waits for his turn.

use super::loader::Loader;
use super::purpose::Purpose;
use super::rollout::Rollout;
use super::trial::Trial;
use crate::control::server::ClientId;
use crate::sys::time::Monotonic;

/// A change under way, and those that are wanted after it.
#[derive(Debug, Default)]
pub(super) struct PendingChanges {
    under_way: Option<Change>,
    /// Who asked for a reload while one was under way: they get one of their own, of what the files say then.
    reload: Option<Vec<ClientId>>,
    /// Who asked for an upgrade while something else was under way.
    upgrade: Option<Vec<ClientId>>,
}

/// A change.
#[derive(Debug)]
pub(super) enum Change {
    /// A configuration is read, for a reload.
    Reading(Loader),
    /// A new generation is on its way.
    RollingOut(Box<Rollout>),
    /// The program on disk is being tried.
    Trying(Trial),
}

impl PendingChanges {
    /// Begins one, when there is none.
    pub(super) fn begin(&mut self, change: Change) {
        debug_assert!(self.under_way.is_none(), "one change at a time");
        self.under_way = Some(change);
    }

    /// Whether a configuration is being read, or a generation is on its way.
    pub(super) fn are_of_configuration(&self) -> bool {
        matches!(self.under_way, Some(Change::Reading(_) | Change::RollingOut(_)))
    }

    /// What the configuration is being read or a generation made for.
    pub(super) fn purpose(&self) -> Option<Purpose> {
        match self.under_way.as_ref()? {
            Change::Reading(loader) => Some(loader.purpose()),
            Change::RollingOut(rollout) => Some(rollout.purpose),
            Change::Trying(_) => None,
        }
    }

    /// What is waited for outside this process.
    pub(super) fn waits_for(&self) -> Option<String> {
        match self.under_way.as_ref()? {
            Change::Reading(loader) => Some(loader.waits_for().to_owned()),
            Change::RollingOut(_) => None,
            Change::Trying(_) => Some("the program on disk to say that it can go on from here".to_owned()),
        }
    }

    /// Whether nothing is being changed.
    pub(super) fn are_idle(&self) -> bool {
        self.under_way.is_none()
    }

    pub(super) fn loader(&mut self) -> Option<&mut Loader> {
        match &mut self.under_way {
            Some(Change::Reading(loader)) => Some(loader),
            _ => None,
        }
    }

    pub(super) fn rollout(&self) -> Option<&Rollout> {
        match &self.under_way {
            Some(Change::RollingOut(rollout)) => Some(rollout),
            _ => None,
        }
    }

    pub(super) fn rollout_mut(&mut self) -> Option<&mut Rollout> {
        match &mut self.under_way {
            Some(Change::RollingOut(rollout)) => Some(rollout),
            _ => None,
        }
    }

    pub(super) fn trial(&mut self) -> Option<&mut Trial> {
        match &mut self.under_way {
            Some(Change::Trying(trial)) => Some(trial),
            _ => None,
        }
    }

    /// Ends the change under way, for whatever follows.
    pub(super) fn end(&mut self) -> Option<Change> {
        self.under_way.take()
    }

    /// When the change under way is given up.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.under_way.as_ref().map(|change| match change {
            Change::Reading(loader) => loader.deadline(),
            Change::RollingOut(rollout) => rollout.deadline(),
            Change::Trying(trial) => trial.deadline(),
        })
    }

    /// These want a reload when the change under way has ended.
    pub(super) fn want_reload(&mut self, clients: Vec<ClientId>) {
        self.reload.get_or_insert_default().extend(clients);
    }

    /// These want an upgrade when nothing else is under way.
    pub(super) fn want_upgrade(&mut self, clients: Vec<ClientId>) {
        self.upgrade.get_or_insert_default().extend(clients);
    }

    /// Who wants a reload that need not wait any more, if somebody does.
    pub(super) fn take_reload(&mut self) -> Option<Vec<ClientId>> {
        if self.are_of_configuration() { None } else { self.reload.take() }
    }

    /// Who wants an upgrade that need not wait any more, if somebody does.
    pub(super) fn take_upgrade(&mut self) -> Option<Vec<ClientId>> {
        if self.are_idle() { self.upgrade.take() } else { None }
    }

    /// Those who wait for a reload, and will not hear of it; it still comes.
    pub(super) fn take_who_waits_for_reload(&mut self) -> Vec<ClientId> {
        self.reload.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All who wait for something that will not come.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = ClientId> {
        [self.reload.take(), self.upgrade.take()].into_iter().flatten().flatten()
    }
}
