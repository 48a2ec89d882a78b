//! The words that processes share, and what orders them: std's here, and loom's where orders are tested (`tests/loom`).

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, fence};
