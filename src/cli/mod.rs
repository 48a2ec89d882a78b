//! The command line; one file a command.

mod ask;
pub(crate) mod check;
mod connections;
mod explain;
#[cfg(feature = "generate")]
pub(crate) mod generate;
mod kill;
pub(crate) mod output;
mod pause;
mod reload;
mod run;
mod serve;
pub(crate) mod serve_args;
mod status;
mod unban;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command, value_parser};

use crate::admission::SourceName;
use crate::admission::prefix::PrefixError;
use crate::child::handler;
use crate::config::{self, DEFAULT_CONTROL_SOCKET, parse_duration};
use crate::ipc::orders;
use crate::{exit, supervisor, sys, worker};

/// Runs the `preforkd` command with this process's arguments and environment.
///
/// Exits with the codes of sysexits(3head): 0, 64 for a wrong command line, 69 if no preforkd answers, 71 if the
/// system refuses, 77 if the user may not, 78 for a wrong configuration.
#[must_use]
pub fn main() -> ExitCode {
    // Before anything is allocated that a worker does not need: each of its children copies it.
    if std::env::args_os().nth(1).is_some_and(|command| command == orders::COMMAND) {
        return ExitCode::from(worker::run());
    }
    if std::env::args_os().nth(1).is_some_and(|command| command == supervisor::TRIAL_COMMAND) {
        return ExitCode::from(supervisor::trial());
    }
    if std::env::args_os().nth(1).is_some_and(|command| command == supervisor::LOAD_COMMAND) {
        return ExitCode::from(supervisor::load(&handler::NAMES));
    }
    if let Err(error) = sys::fd::fill_standard() {
        output::complain(format_args!("preforkd: cannot open /dev/null: {error}"));
        return ExitCode::from(exit::OS);
    }
    match command().try_get_matches() {
        Ok(matches) => dispatch(&matches),
        Err(error) => {
            // Help and version are no errors, and go to stdout.
            let code = match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
                _ => exit::USAGE,
            };
            let _ = error.print();
            ExitCode::from(code)
        }
    }
}

fn command() -> Command {
    Command::new("preforkd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A process of its own for every connection")
        .subcommand_required(true)
        .subcommand(run::command())
        .subcommand(serve_args::command())
        .subcommand(check::command())
        .subcommand(reload::command())
        .subcommand(status::command())
        .subcommand(connections::command())
        .subcommand(kill::command())
        .subcommand(pause::pause_command())
        .subcommand(pause::resume_command())
        .subcommand(pause::drain_command())
        .subcommand(upgrade::command())
        .subcommand(unban::command())
}

fn dispatch(matches: &ArgMatches) -> ExitCode {
    match matches.subcommand() {
        Some(("run", matches)) => run::run(matches),
        Some(("serve", matches)) => serve::run(matches),
        Some(("check", matches)) => check::run(matches),
        Some(("reload", matches)) => reload::run(matches),
        Some(("status", matches)) => status::run(matches),
        Some(("connections", matches)) => connections::run(matches),
        Some(("pause", matches)) => pause::pause(matches),
        Some(("resume", matches)) => pause::resume(matches),
        Some(("drain", matches)) => pause::drain(matches),
        Some(("kill", matches)) => kill::run(matches),
        Some(("upgrade", matches)) => upgrade::run(matches),
        Some(("unban", matches)) => unban::run(matches),
        _ => ExitCode::from(exit::USAGE),
    }
}

/// `--control PATH`, for the commands that talk to a running supervisor.
fn control_argument() -> Arg {
    Arg::new("control")
        .long("control")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .default_value(DEFAULT_CONTROL_SOCKET)
        .help("The control socket of the running preforkd")
}

/// `--timeout DURATION`, for the same.
fn timeout_argument(default: &'static str) -> Arg {
    Arg::new("timeout")
        .long("timeout")
        .value_name("DURATION")
        .value_parser(|text: &str| {
            parse_duration(text)
                .ok_or("write a whole number and its unit, as in \"500ms\", \"30s\" or \"5m\"")
        })
        .default_value(default)
        .help("How long to wait for the answer")
}

/// A source, as commands take it.
fn source(text: &str) -> Result<SourceName, String> {
    match text.strip_prefix("user:").filter(|name| *name != "?") {
        Some(name) => config::known_user(name).map(|user| SourceName::User(user.uid)),
        None => text.parse().map_err(|why: PrefixError| format!("\"{text}\" {why}; {}", why.help(text))),
    }
}

fn patience(matches: &ArgMatches) -> Duration {
    matches.get_one("timeout").copied().unwrap_or(Duration::MAX)
}

fn control_path(matches: &ArgMatches) -> PathBuf {
    matches.get_one("control").cloned().unwrap_or_else(|| DEFAULT_CONTROL_SOCKET.into())
}

/// Prints why there is no answer, and says with which code to exit.
fn unanswered(error: &crate::control::client::AskError) -> ExitCode {
    output::complain(format_args!("preforkd: {error}"));
    ExitCode::from(error.exit_code())
}

/// Prints why the supervisor ended, and says with which code to exit.
fn ended(result: Result<(), crate::supervisor::Fatal>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(exit::OK),
        Err(fatal) => {
            output::complain(format_args!("preforkd: {fatal}"));
            ExitCode::from(fatal.code())
        }
    }
}
