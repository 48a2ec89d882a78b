//! `preforkd serve`: one service without a file.

use std::process::ExitCode;

use clap::ArgMatches;

use super::output::complain;
use super::{check, serve_args};
use crate::exit;
use crate::handler::Application;
use crate::supervisor::{self, ConfigSource, Resumed};

/// Serves until told to end.
pub(super) fn run(matches: &ArgMatches, application: &Application) -> ExitCode {
    let title = application.title;
    let source = match supervisor::take_up(ConfigSource::CommandLine, false, title) {
        Resumed::Ended(result) => return super::ended(result, title),
        Resumed::NotAnUpgrade(source) => source,
    };
    match serve_args::config(matches, application) {
        Ok(config) => super::ended(supervisor::run(config, source, true, title), title),
        Err(problems) => {
            check::show(&problems);
            complain(format_args!("{}", serve_args::command(application).render_usage()));
            ExitCode::from(exit::USAGE)
        }
    }
}
