//! What several processes of preforkd share: identifiers, and memory.

mod board;
mod caller;
mod calls;
mod copies;
mod deadline;
mod id;
#[cfg(test)]
mod property;
mod sources;
mod tally;

pub(crate) use board::{Board, NoSlot, Owner, Place, Processes, Slot};
pub(crate) use caller::Caller;
pub(crate) use calls::{Calls, CallsToCome, call};
pub(crate) use copies::{Copies, send_copy};
pub(crate) use deadline::Deadline;
pub(crate) use id::{ConnectionId, process_of};
pub(crate) use sources::{Bucket, Penalty, Punished, Source, Sources};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod message {
    //! The bytes of a call, for the fuzz targets.
    pub(crate) use super::calls::{decode, encode};
}
pub(crate) use tally::{Count, Tally, Totals};
