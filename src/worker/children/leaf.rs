//! The cgroup of a connection, with all that comes of its process: what it uses, and its end.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::config::TreeLimits;
use crate::sys::cgroup::{self, Cgroup, TreeUsage};
use crate::sys::fork::InCgroup;

/// The file that limits swap.
const SWAP: &str = "memory.swap.max";

/// What had been used in a cgroup at a time.
#[derive(Debug, Clone, Copy, Default)]
struct UsedBefore {
    cpu: Duration,
    io: Option<(u64, u64)>,
}

/// A cgroup in which one process at a time begins.
#[derive(Debug)]
pub(crate) struct Leaf {
    number: u32,
    cgroup: Cgroup,
    /// What had been used in it before; nothing is known of that if another process has made it.
    before: Option<UsedBefore>,
    /// All that was in it has been killed at once. From Linux 6.14 on, and where that was taken back to older ones, a process
    /// that begins in such a cgroup is killed too: clone3(2) compares how often with the cgroup of its parent.
    is_spent: Cell<bool>,
    /// Its memory is limited.
    has_memory_limit: bool,
}

impl Leaf {
    /// A new one, with this number in its name.
    ///
    /// # Errors
    ///
    /// That it cannot be made, or limits not be set; then there is none.
    pub(crate) fn make(path: &Path, number: u32, limits: &TreeLimits) -> io::Result<Self> {
        let failed = |what: &str, error: &io::Error| {
            io::Error::new(error.kind(), format!("cannot {what} of its cgroup: {error}"))
        };
        cgroup::make(path).map_err(|error| failed("make the directory", &error))?;
        let limited = Leaf::open(path, number).map_err(|error| failed("open the files", &error)).and_then(
            |mut leaf| {
                for (file, value) in limits.files() {
                    match leaf.cgroup.write(file, &value.to_string()) {
                        // Where swap is not accounted for there is none to be limited.
                        Err(error) if error.kind() == io::ErrorKind::NotFound && file == SWAP => {}
                        result => result.map_err(|error| failed(&format!("set {file}"), &error))?,
                    }
                }
                leaf.cgroup.watch_memory();
                let before = UsedBefore { io: leaf.cgroup.io(), ..UsedBefore::default() };
                Ok(Leaf { before: Some(before), has_memory_limit: limits.memory.is_some(), ..leaf })
            },
        );
        limited.inspect_err(|_| {
            cgroup::remove(path);
        })
    }

    /// One that another process has made.
    pub(crate) fn open(path: &Path, number: u32) -> io::Result<Self> {
        let cgroup = Cgroup::open(path)?;
        Ok(Leaf { number, cgroup, before: None, is_spent: Cell::new(false), has_memory_limit: false })
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Where a process begins that is to be in it.
    pub(crate) fn place(&self) -> InCgroup<'_> {
        self.cgroup.place()
    }

    /// Whether nobody is in it any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.cgroup.is_populated().is_ok_and(|is_populated| !is_populated)
    }

    /// Whether more of its memory limit is taken than a new connection should find gone: the cache of files stays, as long as
    /// nobody else needs the memory.
    pub(crate) fn is_worn(&self, limits: &TreeLimits) -> bool {
        let is_worn = |limit| self.cgroup.number("memory.current").is_ok_and(|taken| taken > limit / 4);
        limits.memory.is_some_and(is_worn)
    }

    /// Kills all that is in it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.is_spent.set(true);
        self.cgroup.kill()
    }

    /// Whether no process can begin in it any more.
    pub(crate) fn is_spent(&self) -> bool {
        self.is_spent.get()
    }

    /// What was used in it since the last time, if that is known.
    pub(crate) fn usage(&mut self) -> Option<TreeUsage> {
        let cgroup = &self.cgroup;
        let before = self.before?;
        let now = UsedBefore { cpu: cgroup.cpu().ok()?, io: before.io.and_then(|_| cgroup.io()) };
        let since = |((read, written), (read_before, written_before)): ((u64, u64), (u64, u64))| {
            (read.saturating_sub(read_before), written.saturating_sub(written_before))
        };
        let ran_out_of_memory = self.has_memory_limit && cgroup.ran_out_of_memory();
        if ran_out_of_memory {
            // The next one to begin in it would seem to have done so, too.
            self.is_spent.set(true);
        }
        let usage = TreeUsage {
            cpu: now.cpu.saturating_sub(before.cpu),
            peak_memory: cgroup.peak_memory(),
            io: now.io.zip(before.io).map(since),
            ran_out_of_memory,
        };
        self.before = Some(now);
        self.cgroup.begin_anew();
        Some(usage)
    }
}
