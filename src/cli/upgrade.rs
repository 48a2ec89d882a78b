//! `preforkd upgrade`: the running service goes on as the program that is now on disk.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::ask::ask;
use crate::control::Request;
use crate::exit;

/// `upgrade [--control PATH]`.
pub(super) fn command() -> Command {
    Command::new("upgrade")
        .about("Have the running preforkd go on as the program on disk: same pid, listeners and connections")
        .arg(super::control_argument())
        .arg(super::timeout_argument("3m"))
}

/// Exits with 0 only if the workers of the new program serve.
pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    ask(matches, &Request::Upgrade, exit::OS, Some("not upgraded; what was running still is"))
}
