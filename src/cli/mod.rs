//! The command line; one file a command.

use std::process::ExitCode;

/// Runs the `preforkd` command with this process's arguments and environment.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(crate::exit::SOFTWARE)
}
