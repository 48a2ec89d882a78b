//! `preforkd upgrade`: the running service goes on as the program that is now on disk.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::output::{complain, say};
use crate::control::{Answer, Request, client};
use crate::exit;

/// `upgrade [--control PATH]`.
pub(super) fn command() -> Command {
    Command::new("upgrade")
        .about("Have the running preforkd go on as the program on disk: same pid, listeners and connections")
        .arg(super::control_argument())
}

/// Exits with 0 only if the workers of the new program serve.
pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    match client::ask(&super::control_path(matches), &Request::Upgrade) {
        Ok(Answer::Done(text)) => {
            say(format_args!("{text}"));
            ExitCode::from(exit::OK)
        }
        Ok(Answer::Refused(reason)) => {
            complain(format_args!("{reason}\npreforkd: not upgraded; what was running still is"));
            ExitCode::from(exit::OS)
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
