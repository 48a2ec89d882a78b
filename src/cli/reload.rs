//! `preforkd reload`: tells the running service to reload, and waits for the verdict.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::output::{complain, say};
use crate::control::{Answer, Request, client};
use crate::exit;

/// `reload [--control PATH]`.
pub(super) fn command() -> Command {
    Command::new("reload")
        .about("Put the configuration on disk in force, and say whether it is")
        .arg(super::control_argument())
}

/// Exits with 0 only if the new configuration is in force.
pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    match client::ask(&super::control_path(matches), &Request::Reload) {
        Ok(Answer::Done(text)) => {
            say(format_args!("{text}"));
            ExitCode::from(exit::OK)
        }
        Ok(Answer::Refused(reason)) => {
            complain(format_args!("{reason}\npreforkd: not reloaded; what was in force still is"));
            ExitCode::from(exit::CONFIG)
        }
        Ok(Answer::Status(_)) => {
            complain(format_args!(
                "preforkd: the running preforkd did not understand; is it of another version?"
            ));
            ExitCode::from(exit::UNAVAILABLE)
        }
        Err(error) => super::unanswered(&error),
    }
}
