//! `preforkd run`: the service, in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::check;
use super::output::complain;
use crate::exit;
use crate::handler::{Application, Title};
use crate::supervisor::{self, ConfigSource, Resumed};

/// `run [--config PATH] [--control PATH]`.
pub(super) fn command(title: Title) -> Command {
    Command::new("run")
        .about("Serve what the configuration says, in the foreground")
        .arg(check::config_argument(title))
        .arg(
            Arg::new("control")
                .long("control")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("Where the control socket is, instead of what the configuration says"),
        )
}

/// Serves until told to end.
pub(super) fn run(matches: &ArgMatches, application: &Application) -> ExitCode {
    let title = application.title;
    let path = matches.get_one("config").cloned().unwrap_or_else(|| title.config_path());
    let control: Option<PathBuf> = matches.get_one("control").cloned();
    let source = ConfigSource::File { path, control };
    let source = match supervisor::take_up(source, false, title) {
        Resumed::Ended(result) => return super::ended(result, title),
        Resumed::NotAnUpgrade(source) => source,
    };
    match source.load(application) {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|warning| complain(warning.line()));
            if loaded.config.services.is_empty() {
                let reasons = loaded.config.unavailable.reasons.iter();
                let reasons: Vec<_> = reasons.map(|(name, reason)| format!("{name}: {reason}")).collect();
                complain(format_args!("{}: nothing can be served: {}", title.name, reasons.join("; ")));
                return ExitCode::from(exit::CONFIG);
            }
            super::ended(supervisor::run(loaded.config, source, false, title), title)
        }
        Err(problems) => {
            check::show(&problems);
            complain(format_args!("{}: {}", title.name, problems.first_line()));
            ExitCode::from(exit::CONFIG)
        }
    }
}
