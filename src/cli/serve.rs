//! `preforkd serve`: one service without a file.

use std::process::ExitCode;

use clap::ArgMatches;

use super::output::complain;
use super::{check, serve_args};
use crate::exit;
use crate::supervisor::{self, ConfigSource, Resumed};

/// Serves until told to end.
pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let source = match supervisor::take_up(ConfigSource::CommandLine, false) {
        Resumed::Ended(result) => return super::ended(result),
        Resumed::NotAnUpgrade(source) => source,
    };
    match serve_args::config(matches) {
        Ok(config) => super::ended(supervisor::run(config, source, true)),
        Err(problems) => {
            check::show(&problems);
            complain(format_args!("{}", serve_args::command().render_usage()));
            ExitCode::from(exit::USAGE)
        }
    }
}
