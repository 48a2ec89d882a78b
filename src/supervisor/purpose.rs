//! What a change of the configuration in force is for.

/// Why there is a new generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// There was none before.
    Start,
    /// The configuration may have changed.
    Reload,
    /// The program has.
    Upgrade,
    /// What could not be served may be served now.
    Recovery,
}
