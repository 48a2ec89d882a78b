//! What several processes of preforkd share: identifiers, and memory.

mod id;

pub(crate) use id::ConnectionId;
