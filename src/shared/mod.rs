//! What several processes of preforkd share: identifiers, and memory.

mod board;
mod id;
mod tally;

pub(crate) use board::{Board, Caller, NoSlot, Owner, Place, Slot};
pub(crate) use id::ConnectionId;
pub(crate) use tally::{Count, Tally, Totals};
