//! `preforkd pause`, `resume`, `drain` and `lameduck`: services that accept nobody, or are to be sent nobody, for a while.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};

use super::ask::ask;
use crate::control::Request;
use crate::exit;
use crate::handler::Title;

/// `pause SERVICE`.
pub(super) fn pause_command(title: Title) -> Command {
    command(
        title,
        "pause",
        "Have a service accept nobody; clients wait in its queue, connections go on",
        "10s",
    )
    .arg(service().required(true))
}

/// `resume [SERVICE]`.
pub(super) fn resume_command(title: Title) -> Command {
    command(title, "resume", "Have a service, or all, accept again after pause, drain or lameduck", "10s")
        .arg(service())
}

/// `drain [SERVICE]`.
pub(super) fn drain_command(title: Title) -> Command {
    command(title, "drain", "Pause a service, or all, and wait until their connections have ended", "1h")
        .arg(service())
}

/// `lameduck [--wait DURATION] SERVICE`.
pub(super) fn lameduck_command(title: Title) -> Command {
    command(
        title,
        "lameduck",
        "Have a service serve on, but balancers told to send it no more clients",
        "10s",
    )
    .arg(service().required(true))
    .arg(
        Arg::new("wait")
            .long("wait")
            .value_name("DURATION")
            .value_parser(super::duration)
            .help("Return only so long after that, when balancers have heard of it"),
    )
}

fn command(title: Title, name: &'static str, about: &'static str, patience: &'static str) -> Command {
    Command::new(name).about(about).arg(super::control_argument(title)).arg(super::timeout_argument(patience))
}

fn service() -> Arg {
    Arg::new("service").value_name("SERVICE").help("Its name, as in [service.NAME]")
}

fn named(matches: &ArgMatches) -> Option<String> {
    matches.get_one("service").cloned()
}

/// Exits with 0 if it accepts nobody any more.
pub(super) fn pause(matches: &ArgMatches, title: Title) -> ExitCode {
    ask(matches, title, &Request::Pause { service: named(matches) }, exit::UNAVAILABLE, None)
}

/// Exits with 0 if balancers that ask are told so from now on.
pub(super) fn lameduck(matches: &ArgMatches, title: Title) -> ExitCode {
    let Some(service) = named(matches) else { return ExitCode::from(exit::USAGE) };
    let code = ask(matches, title, &Request::Lameduck { service }, exit::UNAVAILABLE, None);
    if let Some(wait) = matches.get_one::<Duration>("wait").filter(|_| code == ExitCode::from(exit::OK)) {
        std::thread::sleep(*wait);
    }
    code
}

/// Exits with 0 if it will accept.
pub(super) fn resume(matches: &ArgMatches, title: Title) -> ExitCode {
    ask(matches, title, &Request::Resume { service: named(matches) }, exit::UNAVAILABLE, None)
}

/// Exits with 0 if it has no connections any more.
pub(super) fn drain(matches: &ArgMatches, title: Title) -> ExitCode {
    ask(matches, title, &Request::Drain { service: named(matches) }, exit::UNAVAILABLE, None)
}
