//! Spares, connection processes made ahead of their connection: both sides of them.

pub(crate) mod copies;
pub(crate) mod events;
pub(crate) mod pool;
pub(crate) mod process;
