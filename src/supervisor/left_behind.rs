//! What programs leave behind: processes of their cgroups that go on when they have ended, or without a cgroup of their groups.
//! They are this process's children by then, since it is the subreaper, or become it before the last of them ends.
//!
//! A group's number is its leader's, who has been reaped: it stands for the group as long as somebody is in it. So nothing is
//! done to a group without a child of ours in it, who cannot go before it is reaped here. A cgroup is removed when nobody is in
//! it.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::cgroup::{self, Cgroup};
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::time::Monotonic;
use crate::sys::wait::Pid;

/// When it is tried again to kill what is in a cgroup, if that could not be done.
const RETRY: Duration = Duration::from_secs(1);

/// The groups that are left behind, by their numbers, and the cgroups, by their directories.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct LeftBehind {
    groups: BTreeMap<Pid, LeftGroup>,
    cgroups: BTreeMap<PathBuf, Remains>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LeftGroup {
    /// That it is in: its worker's. Where another group has the number by now, that is in another.
    session: Pid,
    rest: Remains,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Remains {
    service: String,
    /// When it is killed; `None` if it may go on.
    kill_at: Option<Monotonic>,
}

impl Remains {
    fn is_due(&self, now: Monotonic) -> bool {
        self.kill_at.is_some_and(|at| at <= now)
    }

    fn hurry(&mut self, kill_at: Monotonic) {
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
    }
}

impl LeftBehind {
    /// A program of a service has left this group of that session behind. A worker may have said so that was captured: what
    /// is no group, or known as another's, is nothing.
    pub(super) fn add(&mut self, service: &str, (group, session): (Pid, Pid), kill_at: Option<Monotonic>) {
        let is_known =
            |left: &LeftGroup| left.session != session && alive().any(|it| it == (group, left.session));
        if process::is_group(group) && !self.groups.get(&group).is_some_and(is_known) {
            let rest = Remains { service: service.to_owned(), kill_at };
            self.groups.insert(group, LeftGroup { session, rest });
        }
    }

    /// A program of a service has left behind what is in this cgroup, and if it is to be killed is told to end. The same is
    /// true of what a worker says about that.
    pub(super) fn add_cgroup(&mut self, service: &str, directory: PathBuf, kill_at: Option<Monotonic>) {
        // They may have ended since. It cannot be removed as long as somebody is in it.
        if !cgroup::remove(&directory) {
            if kill_at.is_some() {
                tell_to_end(&directory);
            }
            self.cgroups.insert(directory, Remains { service: service.to_owned(), kill_at });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.cgroups.is_empty()
    }

    /// How many processes a service has left behind.
    pub(super) fn count(&self, service: &str) -> u32 {
        let is_its_own = |left: &Remains| left.service == service;
        let cgroups = self.cgroups.iter().filter(|(_, left)| is_its_own(left));
        let in_cgroups: usize = cgroups.filter_map(|(path, _)| Some(open(path)?.processes().len())).sum();
        let is_in_group = |(group, session): &(Pid, Pid)| {
            self.groups.get(group).is_some_and(|left| left.session == *session && is_its_own(&left.rest))
        };
        let in_groups = match self.groups.values().any(|left| is_its_own(&left.rest)) {
            true => alive().filter(is_in_group).count(),
            false => 0,
        };
        (in_cgroups + in_groups) as u32
    }

    /// Somebody has been reaped who was none of a worker's: forgets the groups and cgroups that nobody is in any more.
    pub(super) fn forget_gone(&mut self) {
        self.forget_gone_groups();
        // It cannot be removed as long as somebody is in it.
        self.cgroups.retain(|path, _| !cgroup::remove(path));
    }

    fn forget_gone_groups(&mut self) {
        if !self.groups.is_empty() {
            let alive: HashSet<(Pid, Pid)> = alive().collect();
            self.groups.retain(|group, left| alive.contains(&(*group, left.session)));
        }
    }

    /// When something is to be killed.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.groups
            .values()
            .map(|left| &left.rest)
            .chain(self.cgroups.values())
            .filter_map(|left| left.kill_at)
            .min()
    }

    /// Kills those whose time is over.
    pub(super) fn tend(&mut self, now: Monotonic) {
        if self.groups.values().any(|left| left.rest.is_due(now)) {
            self.forget_gone_groups();
            for (group, left) in self.groups.iter_mut().filter(|(_, left)| left.rest.is_due(now)) {
                left.rest.kill_at = None;
                process::kill_rest_of_group(*group);
            }
        }
        for (path, left) in self.cgroups.iter_mut().filter(|(_, left)| left.is_due(now)) {
            let killed = Cgroup::open(path).and_then(|cgroup| cgroup.kill());
            let is_gone = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
            left.kill_at = if killed.map_or_else(is_gone, |()| true) { None } else { Some(now + RETRY) };
        }
    }

    /// Has those end whose service has, and kills them at this time.
    pub(super) fn end(&mut self, kill_at: Monotonic, has_ended: impl Fn(&str) -> bool) {
        if self.groups.values().any(|left| has_ended(&left.rest.service)) {
            self.forget_gone_groups();
            for (group, left) in self.groups.iter_mut().filter(|(_, left)| has_ended(&left.rest.service)) {
                left.rest.hurry(kill_at);
                process::signal_group(*group, Signal::SIGTERM);
            }
        }
        for (path, left) in self.cgroups.iter_mut().filter(|(_, left)| has_ended(&left.service)) {
            left.hurry(kill_at);
            tell_to_end(path);
        }
    }
}

/// The groups and sessions of all children of this process.
fn alive() -> impl Iterator<Item = (Pid, Pid)> {
    process::children()
        .into_iter()
        .filter_map(|pid| Some((process::group_of(pid)?, process::session_of(pid)?)))
}

fn tell_to_end(cgroup: &Path) {
    open(cgroup).iter().for_each(|cgroup| cgroup.signal(Signal::SIGTERM));
}

fn open(path: &Path) -> Option<Cgroup> {
    Cgroup::open(path).ok()
}
