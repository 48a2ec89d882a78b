//! `preforkd upgrade`: the running service goes on as the program that is now on disk.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::ask::ask;
use crate::control::Request;
use crate::exit;
use crate::handler::Title;

/// `upgrade [--control PATH]`.
pub(super) fn command(title: Title) -> Command {
    Command::new("upgrade")
        .about(format!(
            "Have the running {} go on as the program on disk: same pid, listeners and connections",
            title.name
        ))
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("3m"))
}

/// Exits with 0 only if the workers of the new program serve.
pub(super) fn run(matches: &ArgMatches, title: Title) -> ExitCode {
    ask(matches, title, &Request::Upgrade, exit::OS, Some("not upgraded; what was running still is"))
}
