//! The command line; one file a command.
#![allow(dead_code)] // until `main` calls them

pub(crate) mod check;
pub(crate) mod output;
pub(crate) mod serve_args;

use std::process::ExitCode;

/// Runs the `preforkd` command with this process's arguments and environment.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(crate::exit::SOFTWARE)
}
