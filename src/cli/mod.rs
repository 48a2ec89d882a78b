//! The command line; one file a command.

mod ask;
mod ban;
pub(crate) mod check;
mod connections;
mod explain;
#[cfg(feature = "generate")]
pub(crate) mod generate;
mod import;
mod interface;
mod kill;
mod metrics;
pub(crate) mod output;
mod pause;
mod reload;
mod run;
mod serve;
pub(crate) mod serve_args;
mod sockets;
mod status;
#[cfg(feature = "top")]
mod top;
mod unban;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command, value_parser};

use crate::admission::SourceName;
use crate::admission::prefix::PrefixError;
use crate::config::{self, check_name, parse_duration};
use crate::handler::{Application, Title};
use crate::ipc::orders;
use crate::{exit, supervisor, sys, worker};

/// Does what this process was started for, by its arguments, and says with which code it is to exit.
pub(crate) fn main(mut application: Application) -> ExitCode {
    metrics::equip(&mut application);
    // Before anything is allocated that a worker does not need: each of its children copies it.
    if std::env::args_os().nth(1).is_some_and(|command| command == orders::COMMAND) {
        return ExitCode::from(worker::run(application));
    }
    if std::env::args_os().nth(1).is_some_and(|command| command == supervisor::TRIAL_COMMAND) {
        return ExitCode::from(supervisor::trial(&application, faults(&application)));
    }
    if std::env::args_os().nth(1).is_some_and(|command| command == supervisor::LOAD_COMMAND) {
        return ExitCode::from(supervisor::load(&application));
    }
    // What is started is waited for, and a parent may have ignored this, which survives an exec: then nobody's end is told, wait(2).
    sys::signal::hear_of_children();
    let name = application.title.name;
    if let Err(error) = sys::fd::fill_standard() {
        output::complain(format_args!("{name}: cannot open /dev/null: {error}"));
        return ExitCode::from(exit::OS);
    }
    if let Err(why) = faults(&application) {
        output::complain(format_args!("{name}: {why}"));
        return ExitCode::from(exit::SOFTWARE);
    }
    match command(&application).try_get_matches() {
        Ok(matches) => dispatch(&matches, &application),
        Err(error) => {
            // Help and version are no errors, and go to stdout.
            let printed = error.print();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => output::written(printed),
                _ => ExitCode::from(exit::USAGE),
            }
        }
    }
}

/// What the program itself has done wrong before it came here.
fn faults(application: &Application) -> Result<(), String> {
    check_name(application.title.name).map_err(|why| format!("Server::new(): {why}"))?;
    if application.handlers().next().is_none() {
        return Err("no handler was given to the Server: add .handler(NAME, …) before .main()".to_owned());
    }
    sys::threads::must_be_alone("before Server::main()").map_err(|error| error.to_string())
}

fn command(application: &Application) -> Command {
    let title = application.title;
    let command = Command::new(title.name)
        .version(title.long_version())
        .about(application.about)
        .subcommand_required(true)
        .subcommand(run::command(title))
        .subcommand(serve_args::command(application))
        .subcommand(check::command(title))
        .subcommand(import::command(title))
        .subcommand(interface::command(title))
        .subcommand(reload::command(title))
        .subcommand(status::command(title))
        .subcommand(connections::command(title))
        .subcommand(kill::command(title))
        .subcommand(pause::pause_command(title))
        .subcommand(pause::resume_command(title))
        .subcommand(pause::drain_command(title))
        .subcommand(pause::lameduck_command(title))
        .subcommand(metrics::command(title))
        .subcommand(upgrade::command(title))
        .subcommand(ban::ban_command(title))
        .subcommand(ban::bans_command(title))
        .subcommand(unban::command(title));
    #[cfg(feature = "top")]
    let command = command.subcommand(top::command(title));
    command
}

fn dispatch(matches: &ArgMatches, application: &Application) -> ExitCode {
    let title = application.title;
    match matches.subcommand() {
        Some(("run", matches)) => run::run(matches, application),
        Some(("serve", matches)) => serve::run(matches, application),
        Some(("check", matches)) => check::run(matches, application),
        Some(("import", matches)) => import::run(matches, application),
        Some(("interface", _)) => interface::run(),
        Some(("reload", matches)) => reload::run(matches, title),
        Some(("status", matches)) => status::run(matches, title),
        Some(("connections", matches)) => connections::run(matches, title),
        Some(("pause", matches)) => pause::pause(matches, title),
        Some(("resume", matches)) => pause::resume(matches, title),
        Some(("drain", matches)) => pause::drain(matches, title),
        Some(("lameduck", matches)) => pause::lameduck(matches, title),
        Some(("kill", matches)) => kill::run(matches, title),
        Some(("metrics", matches)) => metrics::run(matches, application),
        Some(("upgrade", matches)) => upgrade::run(matches, title),
        Some(("ban", matches)) => ban::ban(matches, title),
        Some(("bans", matches)) => ban::bans(matches, title),
        Some(("unban", matches)) => unban::run(matches, title),
        #[cfg(feature = "top")]
        Some(("top", matches)) => top::run(matches, title),
        _ => ExitCode::from(exit::USAGE),
    }
}

/// `--control PATH`, for the commands that talk to a running supervisor.
fn control_argument(title: Title) -> Arg {
    Arg::new("control")
        .long("control")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .default_value(title.control_path().into_os_string())
        .help(format!("The control socket of the running {}", title.name))
}

/// `--timeout DURATION`, for the same.
fn timeout_argument(default: &'static str) -> Arg {
    Arg::new("timeout")
        .long("timeout")
        .value_name("DURATION")
        .value_parser(duration)
        .default_value(default)
        .help("How long to wait for the answer")
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("write a whole number and its unit, as in \"500ms\", \"30s\" or \"5m\"")
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

fn control_path(matches: &ArgMatches, title: Title) -> PathBuf {
    matches.get_one("control").cloned().unwrap_or_else(|| title.control_path())
}

/// Prints why there is no answer, and says with which code to exit.
fn unanswered(error: &crate::control::client::AskError, title: Title) -> ExitCode {
    output::complain(format_args!("{}: {error}", title.name));
    ExitCode::from(error.exit_code())
}

/// Prints why the supervisor ended, and says with which code to exit.
fn ended(result: Result<(), crate::supervisor::Fatal>, title: Title) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(exit::OK),
        Err(fatal) => {
            output::complain(format_args!("{}: {fatal}", title.name));
            ExitCode::from(fatal.code())
        }
    }
}
