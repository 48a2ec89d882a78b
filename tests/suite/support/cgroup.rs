//! A cgroup that is a test's own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Preforkd, eventually, skip};

/// A cgroup of version 2, which goes with all that is in it.
pub(crate) struct Delegated(PathBuf);

impl Delegated {
    /// One below that of this process, in which these controllers limit what is below; `None`, and said aloud, if this machine
    /// has no such thing.
    pub(crate) fn new(controllers: &[&str]) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let Some(above) = own() else {
            skip("a cgroup of version 2 of one's own is needed; tests/kernels/run has it");
            return None;
        };
        let on = std::fs::read_to_string(above.join("cgroup.subtree_control")).unwrap_or_default();
        for controller in controllers {
            let enable = || std::fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"));
            if !on.split_whitespace().any(|word| word == *controller) && enable().is_err() {
                skip(&format!("the {controller} controller is needed; tests/kernels/run has it"));
                return None;
            }
        }
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = above.join(format!("preforkd-test-{}-{number}", std::process::id()));
        if std::fs::create_dir(&path).is_err() || !path.join("cgroup.kill").exists() {
            skip("a cgroup of version 2 of one's own is needed; tests/kernels/run has it");
            return None;
        }
        Some(Delegated(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Delegates it to this user.
    pub(crate) fn give_to(&self, user: u32) {
        for path in [self.0.clone(), self.0.join("cgroup.procs"), self.0.join("cgroup.subtree_control")] {
            nix::unistd::chown(&path, Some(user.into()), None).unwrap();
        }
    }

    /// Has it start in there.
    pub(crate) fn run(&self, config: &str) -> Preforkd {
        self.enter(Preforkd::run(&owning(config)))
    }

    pub(crate) fn enter(&self, preforkd: Preforkd) -> Preforkd {
        preforkd.after(&format!("echo $$ >{}/cgroup.procs", self.0.display()))
    }

    /// Has it start in there as this user, if we are root.
    pub(crate) fn enter_then(&self, preforkd: Preforkd, user: u32) -> Preforkd {
        let inside = preforkd.own_copy();
        let uid = user.to_string();
        if !nix::unistd::geteuid().is_root() {
            return self.enter(inside);
        }
        nix::unistd::chown(inside.dir(), Some(user.into()), Some(user.into())).unwrap();
        self.enter(inside).under(&["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"])
    }

    /// The directories of the workers of a service.
    pub(crate) fn workers(&self, service: &str) -> Vec<PathBuf> {
        below(&self.0.join(format!("service-{service}")))
    }

    /// The cgroups of connections of all its workers, free or not.
    pub(crate) fn leaves(&self, service: &str) -> Vec<PathBuf> {
        let leaves = self.workers(service).into_iter().flat_map(|worker| below(&worker));
        leaves.filter(|leaf| !leaf.ends_with("worker")).collect()
    }

    /// Has nothing limited below it any more.
    pub(crate) fn release_controllers(&self) {
        release(&self.0);
    }

    /// Nothing but the cgroup of the supervisor is left.
    pub(crate) fn is_tidy(&self) -> bool {
        below(&self.0).iter().all(|path| path.ends_with("supervisor"))
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        std::fs::write(self.0.join("cgroup.kill"), "1").unwrap();
        eventually("nobody is in it", || {
            std::fs::read_to_string(self.0.join("cgroup.events")).unwrap().contains("populated 0")
        });
        remove(&self.0);
    }
}

fn release(path: &Path) {
    below(path).iter().for_each(|path| release(path));
    let file = path.join("cgroup.subtree_control");
    for controller in std::fs::read_to_string(&file).unwrap().split_whitespace() {
        std::fs::write(&file, format!("-{controller}")).unwrap();
    }
}

fn remove(path: &Path) {
    below(path).iter().for_each(|path| remove(path));
    let _ = std::fs::remove_dir(path);
}

/// A configuration for one that was started in a cgroup of its own.
pub(crate) fn owning(config: &str) -> String {
    format!("[supervisor]\ncgroup = \"own\"\n{config}")
}

/// The cgroups below one.
pub(crate) fn below(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// That of this process.
fn own() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let top = mounts.lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields.get(2) == Some(&"cgroup2")).then(|| fields[1].to_owned())
    })?;
    Some(format!("{top}{}", of("self")?).into())
}

/// The path of the cgroup of a process.
pub(crate) fn of(pid: impl std::fmt::Display) -> Option<String> {
    let told = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    told.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}
