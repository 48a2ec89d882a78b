//! How long a connection may take.

use std::fmt;

/// A deadline that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Deadline {
    /// `first_byte_timeout`
    FirstByte,
    /// `idle_timeout`
    Idle,
    /// `max_lifetime`
    Lifetime,
}

impl Deadline {
    /// All of them, at the places that their numbers say.
    pub(crate) const ALL: [Deadline; 3] = [Deadline::FirstByte, Deadline::Idle, Deadline::Lifetime];
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Deadline::FirstByte => "first_byte",
            Deadline::Idle => "idle",
            Deadline::Lifetime => "lifetime",
        })
    }
}
