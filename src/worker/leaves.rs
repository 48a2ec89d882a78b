//! The cgroups of a worker's connections: made when they are needed, and used again when nobody is in them any more.

use std::io;
use std::path::PathBuf;

use allocator_api2::vec::Vec;

use super::children::Leaf;
use crate::config::TreeLimits;
use crate::sys::cgroup;
use crate::sys::dontfork::DontForkAlloc;

/// The cgroups of a worker that are not in use.
#[derive(Debug)]
pub(super) struct Leaves {
    /// Where they are made; without it there are none.
    home: Option<PathBuf>,
    limits: TreeLimits,
    /// Those in which nobody is.
    free: Vec<Leaf, DontForkAlloc>,
    /// The numbers of those in which all have been killed, and may be dying still. They are not used again.
    dying: Vec<u32, DontForkAlloc>,
    /// How many were ever made.
    made: u32,
}

/// How many of the dying are looked at when one is made; they die soon.
const LOOKED_AT: usize = 4;

impl Leaves {
    /// Those below this directory, with these limits.
    pub(super) fn new(home: Option<PathBuf>, limits: TreeLimits) -> Self {
        let (free, dying) = (Vec::new_in(DontForkAlloc::new()), Vec::new_in(DontForkAlloc::new()));
        Leaves { home, limits, free, dying, made: 0 }
    }

    /// One for a new process; `None` if it gets none.
    pub(super) fn take(&mut self) -> io::Result<Option<Leaf>> {
        let Some(home) = &self.home else { return Ok(None) };
        if let Some(leaf) = self.free.pop() {
            return Ok(Some(leaf));
        }
        let home = home.clone();
        // It cannot be removed as long as somebody is in it.
        for place in (0..self.dying.len()).rev().take(LOOKED_AT) {
            let is_gone = |number: &u32| cgroup::remove(&home.join(number.to_string()));
            if self.dying.get(place).is_some_and(is_gone) {
                self.dying.swap_remove(place);
            }
        }
        self.made += 1;
        Leaf::make(&home.join(self.made.to_string()), self.made, &self.limits).map(Some)
    }

    /// No process could be made in it.
    pub(super) fn failed(&mut self, leaf: Option<Leaf>, error: &io::Error) {
        match error.kind() {
            // It has nothing to do with that.
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => self.put_back(leaf),
            // The next try is made in another. Whoever has our user can do this to us, and no sandbox keeps him from it.
            io::ErrorKind::PermissionDenied => {
                let _ = self.home.as_deref().map(cgroup::mend);
            }
            _ => {}
        }
    }

    /// Nobody is in it.
    pub(super) fn put_back(&mut self, leaf: Option<Leaf>) {
        let Some(leaf) = leaf else { return };
        if leaf.is_worn(&self.limits) {
            return self.dying.push(leaf.number());
        }
        self.free.push(leaf);
    }

    /// All that is in it has been killed.
    pub(super) fn put_back_dying(&mut self, leaf: &Leaf) {
        self.dying.push(leaf.number());
    }
}
