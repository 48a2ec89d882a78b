//! The cgroups below that of this process, if it was delegated: one for each connection.
//!
//! | cgroup | who is in it | who makes it |
//! |---|---|---|
//! | `supervisor` | this process, and what it starts but for workers | it, at its start |
//! | `service-NAME/RUN-WORKER/worker` | a worker, from its first instruction | the supervisor, before the worker |
//! | `service-NAME/RUN-WORKER/N` | a connection process and all that comes of it | the worker, see [`crate::worker`] |
//!
//! The kernel lets a process make children in another cgroup if it may write to that and to what both have above them, which
//! is the worker's own directory: it can do so nowhere else, if it is somebody else than the supervisor. A directory goes when
//! its worker is dead and nobody is in it any more. Nothing but the kernel and the names keeps account of them, so a program
//! that takes over finds all of it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::client::ConnectionId;
use crate::config::{CgroupUse, Controller, ServiceConfig};
use crate::sys::cgroup;
use crate::sys::fork::{InCgroup, Pids, fork_into};
use crate::sys::wait::{self, Pid};
use crate::worker::children::Leaf;

/// The cgroup in which this process is.
const OWN: &str = "supervisor";
/// How many predecessors may have left processes in theirs that do not die.
const MOST_PREDECESSORS: u32 = 100;
/// That of a worker, in its directory.
const WORKER: &str = "worker";
/// What the directory of a service begins with: a file of the kernel's could have its name.
const SERVICE: &str = "service-";

/// Where cgroups are made, or why none are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Cgroups {
    setting: CgroupUse,
    /// The first part of connection ids.
    run: u32,
    home: Result<PathBuf, String>,
    /// It is there to be divided, but that cannot be done.
    is_refused: bool,
    /// There may be some of workers that are dead.
    is_stale: bool,
}

/// The cgroups of a new worker.
#[derive(Debug)]
pub(super) struct WorkerCgroups {
    /// Where it makes those of its connections.
    pub(super) home: PathBuf,
    /// Its own.
    own: File,
}

impl WorkerCgroups {
    /// Its own.
    pub(super) fn own(&self) -> InCgroup<'_> {
        InCgroup { directory: self.own.as_fd(), owner: None }
    }
}

impl Cgroups {
    /// Takes what was delegated, at the start.
    ///
    /// # Errors
    ///
    /// That it cannot be had, if the configuration says that it is there.
    pub(super) fn begin(setting: CgroupUse, run: u32) -> io::Result<Self> {
        let (home, is_refused) = match setting {
            CgroupUse::None => (Err("supervisor.cgroup is \"none\"".to_owned()), false),
            CgroupUse::Auto => match delegated() {
                Ok(home) => {
                    take(home).map_or_else(|error| (Err(error.to_string()), true), |home| (Ok(home), false))
                }
                Err(why) => (Err(why), false),
            },
            CgroupUse::Own => (Ok(take(own()?)?), false),
        };
        Ok(Cgroups { setting, run, home, is_refused, is_stale: false })
    }

    /// Why there are none though they were to be, if it is so.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.home.as_ref().err().filter(|_| self.is_refused).map(String::as_str)
    }

    /// What the configuration said at the start.
    pub(super) fn setting(&self) -> CgroupUse {
        self.setting
    }

    /// Whether each connection gets one.
    pub(super) fn are_made(&self) -> bool {
        self.home.is_ok()
    }

    /// In the program that goes on after an upgrade.
    pub(super) fn resumed(self) -> Self {
        Cgroups { is_stale: self.home.is_ok(), ..self }
    }

    /// Whether the limits of a service can be had, or why not, with the way out.
    pub(super) fn can_limit(&self, service: &ServiceConfig) -> Result<(), String> {
        match (&self.home, service.tree_limits.first()) {
            (Err(why), Some(name)) => Err(format!(
                "limits.{name} needs a cgroup for each connection, and there is none: {why}; with the drop-in cgroups.conf the \
                 unit has them, see preforkd.systemd(7)"
            )),
            (Ok(home), Some(_)) => {
                missing(home, service.tree_limits.controllers()).map_err(|error| error.to_string())
            }
            (_, None) => Ok(()),
        }
    }

    /// Makes those of a new worker; `None` if there are to be none.
    ///
    /// # Errors
    ///
    /// What mkdir(2) says, or that a controller cannot be had.
    pub(super) fn prepare(
        &mut self,
        service: &ServiceConfig,
        serial: u32,
    ) -> io::Result<Option<WorkerCgroups>> {
        self.can_limit(service).map_err(|text| io::Error::new(io::ErrorKind::Unsupported, text))?;
        let Ok(home) = self.home.clone() else { return Ok(None) };
        let made = self.make(&home, service, serial);
        self.is_stale |= made.is_err();
        made.map(Some)
    }

    fn make(&self, home: &Path, service: &ServiceConfig, serial: u32) -> io::Result<WorkerCgroups> {
        let above = home.join(format!("{SERVICE}{}", service.name));
        let directory = self.directory(home, &service.name, serial);
        let own = directory.join(WORKER);
        let failed = |what: &Path, error: &io::Error| {
            io::Error::new(error.kind(), format!("cannot make the cgroup {}: {error}", what.display()))
        };
        let owner = service.identity.worker.map(|worker| worker.uid);
        match std::fs::create_dir(&above) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&above, &error)),
            _ if owner.is_some() => cgroup::open_to_group(&above).map_err(|error| failed(&above, &error))?,
            _ => {}
        }
        // Directories of workers and what is in them: nobody who is in one makes another below it.
        cgroup::write(&above.join("cgroup.max.depth"), "2").map_err(|error| failed(&above, &error))?;
        // What could not be completed before.
        let _ = cgroup::remove(&directory);
        cgroup::make_for(&directory, owner).map_err(|error| failed(&directory, &error))?;
        std::fs::create_dir(&own).map_err(|error| failed(&own, &error))?;
        for path in [home, &above, &directory] {
            enable(path, service.tree_limits.controllers())?;
        }
        let opened = File::open(&own).map_err(|error| failed(&own, &error))?;
        Ok(WorkerCgroups { home: directory, own: opened })
    }

    fn directory(&self, home: &Path, service: &str, serial: u32) -> PathBuf {
        let run = ConnectionId { run: self.run, worker: serial, number: 0 }.of_worker();
        home.join(format!("{SERVICE}{service}")).join(run)
    }

    /// That with this number of a worker, dead or alive.
    pub(super) fn leaf(&self, service: &str, serial: u32, number: u32) -> Option<PathBuf> {
        let home = self.home.as_ref().ok()?;
        Some(self.directory(home, service, serial).join(number.to_string()))
    }

    /// The cgroup of a process that a worker has made and not reaped, as the kernel knows it.
    pub(super) fn leaf_of(&self, pid: Pid, service: &str, serial: u32) -> Option<Leaf> {
        self.home.as_ref().ok()?;
        let path = cgroup::of(Some(pid))?;
        let number = path.file_name()?.to_str()?.parse().ok()?;
        // It may be the supervisor's or the worker's, or one that is gone.
        if self.leaf(service, serial, number)? == path { Leaf::open(&path, number).ok() } else { None }
    }

    /// A worker is dead, or has not come to be.
    pub(super) fn worker_is_gone(&mut self) {
        self.is_stale = self.home.is_ok();
    }

    /// Removes those of dead workers in which nobody is any more. `is_alive` tells whether a worker is, by its number.
    pub(super) fn tidy(&mut self, is_alive: impl Fn(u32) -> bool) {
        let (Ok(home), true) = (&self.home, self.is_stale) else { return };
        self.is_stale = false;
        for service in services(home) {
            for worker in cgroup::below(&service) {
                let serial =
                    worker.file_name().and_then(|name| name.to_str()?.rsplit_once('-')?.1.parse().ok());
                if serial.is_none_or(|serial| !is_alive(serial)) && !cgroup::remove(&worker) {
                    self.is_stale = true;
                }
            }
            // It stays if something is in it.
            let _ = std::fs::remove_dir(&service);
        }
    }

    /// At the end: leaves the cgroup as it was found, so that whatever comes next can begin in it.
    pub(super) fn end(&mut self) {
        if let Ok(home) = &self.home {
            clear(home);
        }
    }
}

fn own() -> io::Result<PathBuf> {
    cgroup::of(None)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup of version 2 is to be seen here"))
}

fn delegated() -> Result<PathBuf, String> {
    let home = own().map_err(|error| error.to_string())?;
    match cgroup::is_delegated(&home) {
        true => Ok(home),
        false => Err(format!("{} was not delegated to preforkd", home.display())),
    }
}

/// Makes a cgroup this process's home: leaves it for one below, since none with controllers below it can have processes, and
/// removes what a predecessor has left that was killed.
fn take(home: PathBuf) -> io::Result<PathBuf> {
    let failed = |error: io::Error| {
        let way_out = match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => "; a unit needs ProtectControlGroups=no for that",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot use the cgroup {}: {error}{way_out}", home.display()))
    };
    // A new one, always: what begins below another whose processes were killed at once is killed, see Leaf.
    let old = cgroup::below(&home).filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(OWN))
    });
    for path in old {
        let _ = cgroup::remove(&path);
    }
    let names = [OWN.to_owned()].into_iter().chain((2..=MOST_PREDECESSORS).map(|n| format!("{OWN}-{n}")));
    let mut made = Err(io::ErrorKind::AlreadyExists.into());
    for name in names {
        let path = home.join(name);
        made = std::fs::create_dir(&path).map(|()| path);
        if made.as_ref().map_or_else(io::Error::kind, |_| io::ErrorKind::Other)
            != io::ErrorKind::AlreadyExists
        {
            break;
        }
    }
    let own = made.map_err(failed)?;
    if !own.join("cgroup.kill").exists() {
        let _ = std::fs::remove_dir(&own);
        return Err(failed(io::Error::other("Linux 5.14 is needed")));
    }
    let usable = begin_in(&own).and_then(|()| cgroup::enter(&own));
    if let Err(error) = usable {
        let _ = std::fs::remove_dir(&own);
        return Err(failed(error));
    }
    clear(&home);
    Ok(home)
}

/// Has a process begin in one, as connections will.
fn begin_in(cgroup: &Path) -> io::Result<()> {
    let directory = File::open(cgroup)?;
    let place = InCgroup { directory: directory.as_fd(), owner: None };
    let begun = fork_into(Pids::Shared, Some(place), |_| 0).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => {
            let text = "no process can begin in it, since clone3(2) is forbidden; a unit needs RestrictNamespaces=no for that, as in \
                        the drop-in cgroups.conf";
            io::Error::new(error.kind(), text)
        }
        _ => error,
    });
    wait::wait_for(begun?).map(|_| ())
}

/// Removes all cgroups of services in which nobody is, and has nothing of a controller below, if that can be.
fn clear(home: &Path) {
    for service in services(home) {
        let _ = cgroup::remove(&service);
    }
    let on = std::fs::read_to_string(home.join(SUBTREE)).unwrap_or_default();
    for controller in on.split_ascii_whitespace() {
        let _ = cgroup::write(&home.join(SUBTREE), &format!("-{controller}"));
    }
}

fn services(home: &Path) -> impl Iterator<Item = PathBuf> {
    let is_service = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(SERVICE))
    };
    cgroup::below(home).filter(is_service)
}

const SUBTREE: &str = "cgroup.subtree_control";

fn has(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|word| word == name)
}

/// Says which controller is needed and not there.
fn missing(cgroup: &Path, mut controllers: impl Iterator<Item = Controller>) -> io::Result<()> {
    let there = std::fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    let Some(Controller { name, .. }) =
        controllers.find(|controller| controller.is_needed && !has(&there, controller.name))
    else {
        return Ok(());
    };
    let text = format!(
        "the cgroup {} has no controller \"{name}\"; Delegate= of the unit must name it, as the drop-in cgroups.conf does",
        cgroup.display()
    );
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

/// Has the cgroups below one limited and counted by those of these controllers that are there.
fn enable(cgroup: &Path, controllers: impl Iterator<Item = Controller>) -> io::Result<()> {
    let there = std::fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    let on = std::fs::read_to_string(cgroup.join(SUBTREE))?;
    for Controller { name, is_needed } in controllers {
        if has(&on, name) || !has(&there, name) {
            continue;
        }
        // What only counts is done without.
        let enabled = cgroup::write(&cgroup.join(SUBTREE), &format!("+{name}"));
        if let (Err(error), true) = (enabled, is_needed) {
            let reason = match error.kind() {
                io::ErrorKind::ResourceBusy => "other processes than preforkd's are in it".to_owned(),
                _ => error.to_string(),
            };
            let text = format!(
                "cannot have the controller \"{name}\" below the cgroup {}: {reason}",
                cgroup.display()
            );
            return Err(io::Error::new(error.kind(), text));
        }
    }
    Ok(())
}
