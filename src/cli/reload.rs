//! `preforkd reload`: tells the running service to reload, and waits for the verdict.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::ask::ask;
use crate::control::Request;
use crate::exit;
use crate::handler::Title;

/// `reload [--control PATH]`.
pub(super) fn command(title: Title) -> Command {
    Command::new("reload")
        .about("Put the configuration on disk in force, and say whether it is")
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("3m"))
}

/// Exits with 0 only if the new configuration is in force.
pub(super) fn run(matches: &ArgMatches, title: Title) -> ExitCode {
    ask(matches, title, &Request::Reload, exit::CONFIG, Some("not reloaded; what was in force still is"))
}
