use std::sync::atomic::Ordering::Relaxed;

use super::atomic::{AtomicU32, AtomicU64};

/// The row that this process counts in: 0 is nobody's and everybody's, the others belong to slots.
static ROW: AtomicU32 = AtomicU32::new(0);

/// From now on this process counts in the row of this slot.
pub(super) fn take_row(slot: u32) {
    ROW.store(slot.saturating_add(1), Relaxed);
}

/// What processes count, a row for each slot, so that no two write to the same line of cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) cells: &'static [AtomicU64],
    /// Cells from one row to the next.
    pub(super) stride: usize,
    /// No slot from here on has ever counted: to look at its row would take memory.
    pub(super) used: Option<&'static AtomicU64>,
}

impl Rows {
    /// No memory yet.
    pub(super) const NONE: Rows = Rows { cells: &[], stride: 1, used: None };

    /// This process's cell of a column; that of row 0 if its own is beyond the memory.
    fn own(&self, column: usize) -> Option<&AtomicU64> {
        let row = ROW.load(Relaxed) as usize;
        self.cell(row, column).or_else(|| self.cell(0, column))
    }

    /// This slot is going to count.
    pub(super) fn use_slot(&self, slot: u32) {
        let beyond = u64::from(slot) + 1;
        if let Some(used) = self.used.filter(|used| used.load(Relaxed) < beyond) {
            used.fetch_max(beyond, Relaxed);
        }
    }

    /// The cell of a slot.
    pub(super) fn of_slot(&self, slot: u32, column: usize) -> Option<&AtomicU64> {
        self.cell(slot as usize + 1, column)
    }

    fn cell(&self, row: usize, column: usize) -> Option<&AtomicU64> {
        self.cells.get(row.checked_mul(self.stride)?.checked_add(column)?)
    }

    fn sum(&self, column: usize) -> u64 {
        let used = self.used.map_or(0, |used| used.load(Relaxed));
        let rows = usize::try_from(used).unwrap_or(usize::MAX).saturating_add(1);
        let column = self.cells.iter().skip(column).step_by(self.stride).take(rows);
        column.fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }
}

/// A number that only grows, such as of pages served.
///
/// Each process counts in a place of its own, that of its slot, so counting costs what it costs without sharing: about 5 ns,
/// however many count. When a process dies, what it counted stays in its slot, and the next process of that slot counts on
/// from there. So nothing has to be carried over, and no death at any instruction can lose a count or count it twice.
///
/// May be used in every process and thread. Memory order is relaxed: a reader that has seen a count has not therefore seen
/// what was done before it.
///
/// ```
/// use preforkd::shared::Shared;
///
/// let hits = Shared::new(100, |layout| layout.counter("hits"))?;
/// hits.add(1);
/// hits.add(2);
/// assert_eq!(hits.sum(), 3);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Counter {
    pub(super) rows: Rows,
    pub(super) column: usize,
}

impl Default for Counter {
    /// Nothing yet: what is counted is not.
    fn default() -> Self {
        Counter { rows: Rows::NONE, column: 0 }
    }
}

impl Counter {
    /// Counts `count` more. After 2<sup>64</sup> it begins again at 0.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let bytes = Shared::new(100, |layout| layout.counter("bytes"))?;
    /// bytes.add(512);
    /// bytes.add(3);
    /// assert_eq!(bytes.sum(), 515);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn add(&self, count: u64) {
        if let Some(cell) = self.rows.own(self.column) {
            cell.fetch_add(count, Relaxed);
        }
    }

    /// What all processes have counted since the memory was made. Looks at each slot that was ever in use, about 1 ns each; what is counted meanwhile
    /// may be in it or not, and a later sum is never less.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let hits = Shared::new(100, |layout| layout.counter("hits"))?;
    /// hits.begin(2);
    /// hits.add(1);
    /// // The process of this slot has died, and another has it now:
    /// hits.ended(2);
    /// hits.begin(2);
    /// hits.add(1);
    /// assert_eq!(hits.sum(), 2);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn sum(&self) -> u64 {
        self.rows.sum(self.column)
    }
}

/// A number that goes up and down with what processes are doing, such as of users in a room.
///
/// Each process has a share of its own, that of its slot, and the gauge is the sum of all. When a process has died, however it
/// died, its share is taken out of it by the one that reaps it: the worker, or the supervisor if that has died as well
/// ([`Shared::ended`](super::Shared::ended)). So what a process was doing when it was killed is not counted for ever.
///
/// What is added by a process that has no slot, such as a worker, stays until it is taken back.
///
/// May be used in every process and thread, with relaxed order, as a [`Counter`].
///
/// ```
/// use preforkd::shared::Shared;
///
/// let talking = Shared::new(100, |layout| layout.gauge("talking"))?;
/// talking.add(2);
/// talking.add(-1);
/// assert_eq!(talking.sum(), 1);
/// # Ok::<(), preforkd::shared::SharedError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Gauge {
    pub(super) rows: Rows,
    pub(super) column: usize,
}

impl Default for Gauge {
    /// Nothing yet: what is counted is not.
    fn default() -> Self {
        Gauge { rows: Rows::NONE, column: 0 }
    }
}

impl Gauge {
    /// Adds to the share of this process; a negative number takes away. Beyond what an `i64` can be it begins again at the other end.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let talking = Shared::new(100, |layout| layout.gauge("talking"))?;
    /// talking.add(1);
    /// // … it talks …
    /// talking.add(-1);
    /// assert_eq!(talking.sum(), 0);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn add(&self, change: i64) {
        if let Some(cell) = self.rows.own(self.column) {
            cell.fetch_add(change as u64, Relaxed);
        }
    }

    /// Sets the share of this process. Those without a slot have one share between them, so who sets it overwrites the others'.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let open = Shared::new(100, |layout| layout.gauge("open"))?;
    /// open.begin(0);
    /// open.set(3);
    /// open.set(2);
    /// // In another process:
    /// open.begin(1);
    /// open.set(5);
    /// assert_eq!(open.sum(), 7);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn set(&self, share: i64) {
        if let Some(cell) = self.rows.own(self.column) {
            cell.store(share as u64, Relaxed);
        }
    }

    /// The sum of all shares, which looks at each slot that was ever in use, about 1 ns each. It is of no one moment: what changes
    /// meanwhile may be in it or not.
    ///
    /// ```
    /// use preforkd::shared::Shared;
    ///
    /// let talking = Shared::new(100, |layout| layout.gauge("talking"))?;
    /// talking.begin(2);
    /// talking.add(1);
    /// assert_eq!(talking.sum(), 1);
    /// // The process of this slot has been killed:
    /// talking.ended(2);
    /// assert_eq!(talking.sum(), 0);
    /// # Ok::<(), preforkd::shared::SharedError>(())
    /// ```
    pub fn sum(&self) -> i64 {
        self.rows.sum(self.column) as i64
    }
}
