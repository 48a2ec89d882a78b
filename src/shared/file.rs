use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::error::SharedError;
use super::{Layout, Plan};
use crate::sys::memory;

/// What is declared as shared state, without any memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Declared {
    /// A line each.
    text: String,
    /// Where the row of the first slot begins, and how long a row is, in bytes.
    rows: u64,
    stride: u64,
    /// Where gauges are in a row, in bytes.
    gauges: Vec<u64>,
}

impl Declared {
    /// Nothing.
    pub(crate) const NOTHING: Declared =
        Declared { text: String::new(), rows: 0, stride: 0, gauges: Vec::new() };

    /// What this function declares.
    ///
    /// # Errors
    ///
    /// [`SharedError::Declaration`].
    pub(crate) fn by(declare: impl Fn(&mut Layout)) -> Result<Self, SharedError> {
        let plan = Plan::new(&declare)?;
        if plan.layout.text().is_empty() {
            return Ok(Declared::NOTHING);
        }
        let stride = plan.stride() as u64 * 8;
        Ok(Declared {
            text: plan.layout.text().to_owned(),
            rows: plan.layout.end() as u64 + stride,
            stride,
            gauges: plan.layout.gauges().iter().map(|column| *column as u64 * 8).collect(),
        })
    }

    /// Whether nothing is.
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

/// The memory of a service's shared state as those have it who do not use it: the supervisor, which keeps it, and workers.
#[derive(Debug)]
pub(crate) struct SharedFile {
    file: File,
    /// What is in it, if anything.
    declared: RefCell<Declared>,
    /// To look into a `RefCell` is to write, and a worker that writes for each connection has a page copied.
    has_gauges: Cell<bool>,
}

impl SharedFile {
    /// Empty memory, which the first worker fills that has something to share.
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self::open(memory::create(c"preforkd-shared", 0)?))
    }

    /// That of another process.
    pub(crate) fn open(file: OwnedFd) -> Self {
        SharedFile { file: file.into(), declared: RefCell::default(), has_gauges: Cell::default() }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Says what is in it.
    pub(crate) fn declare(&self, declared: &Declared) {
        self.has_gauges.set(!declared.gauges.is_empty());
        declared.clone_into(&mut self.declared.borrow_mut());
    }

    /// The process that had this slot is dead: takes its share out of all gauges. Without a mapping: most have no gauge.
    pub(crate) fn ended(&self, slot: u32) {
        if !self.has_gauges.get() {
            return;
        }
        let declared = self.declared.borrow();
        for gauge in &declared.gauges {
            let cell = declared.rows + u64::from(slot) * declared.stride + gauge;
            // There is memory for it, or nothing was counted there.
            let _ = self.file.write_all_at(&[0; 8], cell);
        }
    }
}
