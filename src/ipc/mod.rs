//! What the processes of preforkd say to each other: supervisor and worker, connection process and worker.

pub(crate) mod orders;
pub(crate) mod reports;
