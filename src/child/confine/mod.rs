//! Who a connection process is, where it stands, and what it may use.

pub(crate) mod cage;
mod filter;
mod instructions;
pub(crate) mod namespaces;
mod no_linger;
mod own_clone3;
pub(crate) mod signals;

use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Job, ServiceConfig, UserIds, WorkerIds};
use crate::ipc::reports::Step;
use crate::sys::process::{self, Capabilities, Resource};
use crate::sys::seccomp;

use cage::{Cage, SignalGuard};
use namespaces::OwnNamespaces;

/// What is set in every connection process before anything of a stranger runs.
#[derive(Debug)]
pub(crate) struct Confinement {
    user: Option<UserIds>,
    /// The worker itself has them.
    has_groups: bool,
    chroot: Option<PathBuf>,
    /// `None` once the worker itself stands there.
    directory: Option<PathBuf>,
    /// `None` once the worker itself has it.
    umask: Option<u32>,
    nice: Option<i32>,
    limits: Vec<(Resource, u64)>,
    /// Each has a cgroup of its own.
    has_cgroup: bool,
    /// What they leave at their end is read in /proc.
    leaves_notes: bool,
    /// The worker has stepped down before it.
    is_stood_before: bool,
    /// Whether there may be capabilities to give up.
    is_privileged: bool,
    /// The soft RLIMIT_NOFILE this worker was started with. A worker raises its own; a program that uses select(2)
    /// breaks with descriptors above 1023, so it gets the old one back.
    descriptors: Option<(u64, u64)>,
    cage: Option<Cage>,
}

impl Confinement {
    /// Prepares it, in a worker that has not raised its limits yet.
    pub(crate) fn new(
        service: &ServiceConfig,
        namespaces: OwnNamespaces,
        restore_descriptor_limit: bool,
        has_cgroup: bool,
    ) -> io::Result<Self> {
        let ServiceConfig { identity, limits, .. } = service;
        let own = limits.iter().any(|limit| limit.kind.resource == Resource::RLIMIT_NOFILE);
        let descriptors = match restore_descriptor_limit && !own {
            true => Some(process::descriptor_limits()?),
            false => None,
        };
        let mut limits: Vec<_> = limits.iter().map(|limit| (limit.kind.resource, limit.value)).collect();
        if is_alone(service) {
            limits.push((Resource::RLIMIT_NPROC, 0));
        }
        Ok(Confinement {
            user: identity.user.clone(),
            has_groups: false,
            chroot: identity.chroot.clone(),
            directory: Some(identity.working_directory.clone().unwrap_or_else(|| PathBuf::from("/"))),
            umask: Some(identity.umask),
            nice: identity.nice,
            limits,
            has_cgroup,
            leaves_notes: matches!(service.job, Job::Handler(_)),
            is_stood_before: false,
            is_privileged: true,
            descriptors,
            cage: Cage::new(service, namespaces, has_cgroup)?,
        })
    }

    /// In a worker that is root: gives up all that it does not need to make its children be what they are to be, before it
    /// makes the first, even to try it. There is no way back.
    ///
    /// It stands before them with a user of its own, whom they cannot reach, see [`process::stand_before`]; with their
    /// user as its only one they could stop or kill it where Landlock knows no scope of signals, before Linux 6.12. With a
    /// user of its own only, it would need CAP_SETUID, which is as good as root, and CAP_KILL.
    pub(crate) fn step_down(
        &mut self,
        own: WorkerIds,
        makes_namespaces: bool,
    ) -> Result<(), (Step, io::Error)> {
        let Some(user) = self.user.as_ref().filter(|user| user.uid != 0) else { return Ok(()) };
        let at = |stage| move |error: io::Error| (stage, error);
        for &(resource, value) in &self.limits {
            // Whether it may, the rehearsal tells.
            let _ = process::allow_limit(resource, value);
        }
        if !user.is_named && self.chroot.is_none() {
            // Nobody has asked for a user who may enter it.
            self.directory.take_if(|directory| std::env::set_current_dir(directory).is_ok());
        }
        // What is in a cage gains no privileges, so there is nobody else to be ended.
        let is_caged = self.cage.is_some();
        if is_caged {
            process::gain_no_privileges().map_err(at(Step::Privileges))?;
            process::bound_capabilities();
        }
        process::take_groups(&user.groups).map_err(at(Step::Groups))?;
        self.has_groups = true;
        // Each child is somebody else: that takes the right to be anybody, and to end them.
        let is_many = user.range.is_some();
        let seen = if is_many { (own.uid, own.gid) } else { (user.uid, user.gid) };
        let chroot = self.chroot.as_deref();
        let nice = self.nice;
        let kept = || {
            let is_hidden = |root: &Path| std::fs::metadata(root.join(".")).is_err();
            Capabilities::NONE
                .and(Capabilities::SYS_CHROOT, chroot.is_some())
                .and(Capabilities::DAC_READ_SEARCH, chroot.is_some_and(is_hidden))
                .and(Capabilities::SYS_NICE, nice.is_some_and(|nice| nice < process::nice()))
                .and(Capabilities::KILL, !is_caged || is_many)
                .and(Capabilities::SETUID, is_many)
                .and(Capabilities::SETGID, is_many)
                .and(Capabilities::SYS_ADMIN, makes_namespaces)
        };
        let group_of_files = if self.leaves_notes { process::group_that_sees_others() } else { None };
        process::stand_before((own.uid, own.gid), seen, group_of_files, kept).map_err(at(Step::User))?;
        self.is_stood_before = !is_many;
        if is_many && is_caged {
            let filter =
                filter::only_users(&user.users(), &user.groups(), ([own.uid, process::lone_user()], own.gid));
            filter.and_then(|filter| seccomp::install(&filter)).map_err(at(Step::Filter))?;
        }
        Ok(())
    }

    /// In the worker: makes sure that nobody is the user of this slot, whose process has been reaped, or is not there yet. Who has been
    /// left behind is killed.
    pub(crate) fn vacate(&self, slot: u32) -> io::Result<()> {
        let user = self.user.as_ref().filter(|user| user.range.is_some());
        let Some((uid, _)) = user.and_then(|user| user.of_slot(Some(slot))) else { return Ok(()) };
        if process::has_processes(uid) { process::kill_user(uid) } else { Ok(()) }
    }

    /// Has the worker itself go where its children will, as far as that takes nothing from it, so that they need not.
    pub(crate) fn preapply(&mut self) -> io::Result<SignalGuard> {
        self.umask.take().into_iter().for_each(process::set_umask);
        // A directory may be there for the user only, or only inside the chroot.
        if self.user.is_none() && self.chroot.is_none() {
            self.directory.take_if(|directory| std::env::set_current_dir(directory).is_ok());
        }
        self.is_privileged = process::has_capabilities();
        self.cage.as_mut().map_or(Ok(SignalGuard::Kernel), Cage::share)
    }

    /// Whether who enters it is somebody else than the worker.
    pub(crate) fn is_somebody_else(&self) -> bool {
        self.user.as_ref().is_some_and(|user| user.range.is_some() || !process::is_only_user(user.uid))
    }

    /// Whether there is a filter of system calls.
    pub(crate) fn filters_calls(&self) -> bool {
        self.cage.as_ref().is_some_and(Cage::filters_calls)
    }

    /// Enters it, in a connection process with this slot, or one that tries it, but for a low limit on descriptors. There is no way back.
    pub(crate) fn enter(&self, slot: Option<u32>) -> Result<(), (Step, io::Error)> {
        let at = |stage| move |error: io::Error| (stage, error);
        process::new_group().map_err(at(Step::Group))?;
        self.umask.into_iter().for_each(process::set_umask);
        if let Some(nice) = self.nice {
            process::set_nice(nice).map_err(at(Step::Nice))?;
        }
        for &(resource, value) in &self.limits {
            // Last, when it serves.
            if resource != Resource::RLIMIT_NOFILE || value >= UNTIL_SERVING {
                process::set_limit(resource, value).map_err(at(Step::Limits))?;
            }
        }
        if let Some(root) = &self.chroot {
            // Those of whom its cgroup is, so far.
            if self.has_cgroup {
                process::forget_files_of_others();
            }
            process::change_root(root).map_err(at(Step::Root))?;
        }
        self.take_identity(slot)?;
        // After the change of user: a directory that only root may enter is none to start a user's program in.
        self.directory.as_ref().map_or(Ok(()), std::env::set_current_dir).map_err(at(Step::Directory))?;
        self.cage.as_ref().map_or(Ok(()), Cage::enter)
    }

    /// In a child with this slot, or one that tries it: takes on the user and groups, and no privileges.
    pub(crate) fn take_identity(&self, slot: Option<u32>) -> Result<(), (Step, io::Error)> {
        let at = |stage| move |error: io::Error| (stage, error);
        if let Some(user) = self.user.as_ref().filter(|user| user.range.is_some()) {
            if !self.has_groups {
                process::take_groups(&user.groups).map_err(at(Step::Groups))?;
            }
            let own = user.of_slot(slot).ok_or((Step::User, io::ErrorKind::InvalidInput.into()))?;
            process::become_one_of_many(own).map_err(at(Step::User))?;
        } else if let Some(user) = &self.user {
            // In the one order that works.
            if !self.has_groups {
                process::take_groups(&user.groups).map_err(at(Step::Groups))?;
            }
            process::become_group(user.gid).map_err(at(Step::Gid))?;
            match self.is_stood_before && !self.is_privileged {
                true => process::become_all_of(user.uid),
                false => process::become_user(user.uid),
            }
            .map_err(at(Step::User))?;
        } else if self.is_privileged {
            process::drop_capabilities().map_err(at(Step::Privileges))?;
        }
        Ok(())
    }

    /// Closes the cage, in a process that has entered: from now on it may ask the kernel only for what a handler or program
    /// needs, and the steps that are left.
    pub(crate) fn close(&self) -> Result<(), (Step, io::Error)> {
        self.cage.as_ref().map_or(Ok(()), Cage::close)
    }

    /// Lowers the limit on descriptors: the last step. Before, accept(2) may need more than a handler or program gets.
    pub(crate) fn seal(&self) -> Result<(), (Step, io::Error)> {
        let configured = self.limits.iter().find(|(name, _)| *name == Resource::RLIMIT_NOFILE);
        match configured.map(|&(_, value)| (value, value)).or(self.descriptors) {
            Some(limits) => process::set_descriptor_limits(limits).map_err(|error| (Step::Limits, error)),
            None => Ok(()),
        }
    }
}

/// Whether connection processes of a service may start no other process: who has captured a handler that has no use for one would
/// outlive the connection by it. The limit counts threads, too.
fn is_alone(service: &ServiceConfig) -> bool {
    let is_limited = service.limits.iter().any(|limit| limit.kind.resource == Resource::RLIMIT_NPROC);
    matches!(service.job, Job::Handler(_))
        && !service.starts_threads
        && service.sandbox.is_some()
        && !is_limited
}

/// Who may have fewer descriptors may not until it serves: to accept takes some.
const UNTIL_SERVING: u64 = 256;
