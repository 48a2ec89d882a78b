//! `preforkd kill`: ends connections.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::ask::ask;
use crate::client::{ConnectionId, NoConnectionId};
use crate::control::Request;
use crate::exit;
use crate::handler::Title;

/// `kill [--control PATH] ID…`.
pub(super) fn command(title: Title) -> Command {
    Command::new("kill")
        .about("End connections")
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("10s"))
        .arg(
            Arg::new("id")
                .value_name("ID")
                .required(true)
                .num_args(1..)
                .value_parser(|text: &str| {
                    text.parse::<ConnectionId>()
                        .map_err(|error: NoConnectionId| format!("\"{text}\" {error}"))
                })
                .help("Which, as \"preforkd connections\" and the log name them"),
        )
}

/// So many are named in one call, which has a longest.
const IDS: usize = 1000;

/// Exits with 0 if all of them were there, and have been told to end.
pub(super) fn run(matches: &ArgMatches, title: Title) -> ExitCode {
    let ids: Vec<ConnectionId> = matches.get_many("id").unwrap_or_default().copied().collect();
    let mut code = ExitCode::from(exit::OK);
    for ids in ids.chunks(IDS) {
        let told = ask(matches, title, &Request::Kill { ids: ids.to_vec() }, exit::UNAVAILABLE, None);
        if told != ExitCode::from(exit::OK) {
            code = told;
        }
    }
    code
}
