//! `preforkd check`: says everything that is wrong with a configuration.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::explain::{self, Explained, Subject};
use super::output::{complain, say};
use crate::config::{self, CredentialStore, Diagnostics, Machine, Tolerance};
use crate::exit;
use crate::handler::{Application, Title};

/// `check [--config PATH] [--explain WHO]`.
pub(crate) fn command(title: Title) -> Command {
    Command::new("check")
        .about("Say everything that is wrong with a configuration, and where")
        .arg(config_argument(title))
        .arg(
            Arg::new("explain").long("explain").value_name("WHO").value_parser(explain::parse).help(
                "Say what would meet this address, or user:NAME, at each service, and which line decides; or what its sandbox is",
            ),
        )
}

/// `--config PATH`, for every command that reads the configuration.
pub(crate) fn config_argument(title: Title) -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .default_value(title.config_path().into_os_string())
        .help(format!("The main configuration file; {}.d/*.toml beside it is read, too", title.name))
}

/// Checks, prints the verdict, and says with which code to exit.
pub(crate) fn run(matches: &ArgMatches, application: &Application) -> ExitCode {
    let path = matches.get_one("config").cloned().unwrap_or_else(|| application.title.config_path());
    let path: &Path = &path;
    // Who checks by hand is not given what the unit is.
    let credentials = CredentialStore::of_environment().of_another();
    let machine = Machine { credentials, ..Machine::with(application) };
    match config::load(path, &Tolerance::none(), &machine) {
        Ok(loaded) => {
            show(&loaded.warnings);
            match matches.get_one::<Subject>("explain") {
                Some(subject) => {
                    let services = loaded.config.services.iter();
                    let explained: Vec<_> =
                        services.map(|service| Explained { service, subject }.to_string()).collect();
                    if explained.is_empty() { ExitCode::from(exit::OK) } else { say(explained.join("\n")) }
                }
                None => {
                    let services = count(loaded.config.services.len(), "service");
                    say(format_args!("{}: {services}, no errors", path.display()))
                }
            }
        }
        Err(problems) => {
            show(&problems);
            complain(format_args!("{}: {}", path.display(), count(problems.errors(), "error")));
            ExitCode::from(exit::CONFIG)
        }
    }
}

/// Prints every diagnostic to stderr.
pub(crate) fn show(diagnostics: &Diagnostics) {
    diagnostics.iter().for_each(complain);
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
