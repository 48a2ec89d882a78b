//! The scoreboard of a service, in memory that its workers and the supervisor share: who holds which of its slots, and
//! what each worker has counted.

mod counters;
#[cfg(test)]
mod property;
mod rows;

pub(crate) use counters::{Count, CountPlace, CountUp, CountedTime, Counters, Counts, TimeCounts, micros};
pub(crate) use rows::{NoSlot, Overdue, Owner, Processes, Row, RowState, Scoreboard, Slot};
