//! Asking the running preforkd for something that it does or refuses.

use std::process::ExitCode;

use clap::ArgMatches;

use super::output::{complain, say};
use crate::control::{Answer, Request, client};
use crate::exit;

/// Asks, waits, and prints the answer. Exits with 0 only if it was done, and with `code` if it was refused; `aftermath` is
/// said then, on a line of its own.
pub(super) fn ask(matches: &ArgMatches, request: &Request, code: u8, aftermath: Option<&str>) -> ExitCode {
    match client::ask(&super::control_path(matches), request, super::patience(matches)) {
        Ok(Answer::Done(text)) => {
            say(format_args!("{text}"));
            ExitCode::from(exit::OK)
        }
        Ok(Answer::Refused(reason)) => {
            match aftermath {
                Some(aftermath) => complain(format_args!("{reason}\npreforkd: {aftermath}")),
                None => complain(format_args!("preforkd: {reason}")),
            }
            ExitCode::from(code)
        }
        Ok(Answer::Status(_) | Answer::Connections(_)) => not_understood(),
        Err(error) => super::unanswered(&error),
    }
}

/// Says that the answer is one to something else.
pub(super) fn not_understood() -> ExitCode {
    complain("preforkd: the running preforkd did not understand; is it of another version?");
    ExitCode::from(exit::UNAVAILABLE)
}
