//! `preforkd unban`: lifts bans and penalties.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::ask::ask;
use crate::control::Request;
use crate::exit;
use crate::handler::Title;

/// `unban [--control PATH] [--service NAME] SOURCE`.
pub(super) fn command(title: Title) -> Command {
    Command::new("unban")
        .about("Lift the bans and penalties of an address, a prefix or a user")
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("10s"))
        .arg(Arg::new("service").long("service").value_name("NAME").help("At this service only"))
        .arg(Arg::new("source").value_name("SOURCE").required(true).value_parser(super::source).help(
            "Whose: penalties of all that have an address in common with this prefix, or user:NAME; bans of \
                     those that lie within",
        ))
}

/// Exits with 0 if nobody there has a ban or a penalty any more.
pub(super) fn run(matches: &ArgMatches, title: Title) -> ExitCode {
    let Some(source) = matches.get_one("source").copied() else { return ExitCode::from(exit::USAGE) };
    let request = Request::Unban { source, service: matches.get_one("service").cloned() };
    ask(matches, title, &request, exit::USAGE, None)
}
