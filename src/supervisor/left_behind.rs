//! What programs leave behind: processes of their groups that go on when they have ended. They are this process's children by
//! then, since it is the subreaper.
//!
//! A group's number is its leader's, who has been reaped: it stands for the group as long as somebody is in it. So nothing is
//! done to a group without a child of ours in it, who cannot go before it is reaped here.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;

/// The groups that are left behind, by their numbers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct LeftBehind(BTreeMap<Pid, LeftGroup>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LeftGroup {
    service: String,
    /// That it is in: its worker's. Where another group has the number by now, that is in another.
    session: Pid,
    /// When it is killed; `None` if it may go on.
    kill_at: Option<Monotonic>,
}

impl LeftBehind {
    /// A program of a service has left this group of that session behind. A worker may have said so that was captured: what
    /// is no group, or known as another's, is nothing.
    pub(super) fn add(&mut self, service: &str, (group, session): (Pid, Pid), kill_at: Option<Monotonic>) {
        let is_known =
            |left: &LeftGroup| left.session != session && alive().any(|it| it == (group, left.session));
        if process::is_group(group) && !self.0.get(&group).is_some_and(is_known) {
            self.0.insert(group, LeftGroup { service: service.to_owned(), session, kill_at });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many processes a service has left behind.
    pub(super) fn count(&self, service: &str) -> u32 {
        if self.0.values().all(|group| group.service != service) {
            return 0;
        }
        let is_its_own = |(group, session): &(Pid, Pid)| {
            self.0.get(group).is_some_and(|left| left.session == *session && left.service == service)
        };
        alive().filter(is_its_own).count() as u32
    }

    /// Somebody has been reaped who was none of a worker's: forgets the groups that nobody is in any more.
    pub(super) fn forget_gone(&mut self) {
        if !self.0.is_empty() {
            let alive: HashSet<(Pid, Pid)> = alive().collect();
            self.0.retain(|group, left| alive.contains(&(*group, left.session)));
        }
    }

    /// When a group is to be killed.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.0.values().filter_map(|group| group.kill_at).min()
    }

    /// Kills those whose time is over.
    pub(super) fn tend(&mut self, now: Monotonic) {
        let due = |group: &LeftGroup| group.kill_at.is_some_and(|at| at <= now);
        if !self.0.values().any(due) {
            return;
        }
        self.forget_gone();
        for (group, left) in self.0.iter_mut().filter(|(_, left)| due(left)) {
            left.kill_at = None;
            process::kill_rest_of_group(*group);
        }
    }

    /// Has those end whose service has, and kills them at this time.
    pub(super) fn end(&mut self, kill_at: Monotonic, has_ended: impl Fn(&str) -> bool) {
        if self.0.values().all(|group| !has_ended(&group.service)) {
            return;
        }
        self.forget_gone();
        for (group, left) in self.0.iter_mut().filter(|(_, left)| has_ended(&left.service)) {
            left.kill_at = Some(left.kill_at.map_or(kill_at, |at| at.min(kill_at)));
            process::signal_group(*group, Signal::SIGTERM);
        }
    }
}

/// The groups and sessions of all children of this process.
fn alive() -> impl Iterator<Item = (Pid, Pid)> {
    process::children()
        .into_iter()
        .filter_map(|pid| Some((process::group_of(pid)?, process::session_of(pid)?)))
}
