//! `preforkd unban`: lifts penalties.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::ask::ask;
use crate::admission::Prefix;
use crate::control::Request;
use crate::exit;

/// `unban [--control PATH] [--service NAME] PREFIX`.
pub(super) fn command() -> Command {
    let prefix =
        |text: &str| text.parse::<Prefix>().map_err(|why| format!("\"{text}\" {why}; {}", why.help(text)));
    Command::new("unban")
        .about("Lift the penalties of an address or prefix")
        .arg(super::control_argument())
        .arg(super::timeout_argument("10s"))
        .arg(Arg::new("service").long("service").value_name("NAME").help("At this service only"))
        .arg(
            Arg::new("prefix")
                .value_name("PREFIX")
                .required(true)
                .value_parser(prefix)
                .help("Whose: every source that has an address in common with it"),
        )
}

/// Exits with 0 if nobody there has a penalty any more.
pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let Some(prefix) = matches.get_one("prefix").copied() else { return ExitCode::from(exit::USAGE) };
    let request = Request::Unban { prefix, service: matches.get_one("service").cloned() };
    ask(matches, &request, exit::USAGE, None)
}
