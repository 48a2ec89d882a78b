//! Asking the running preforkd for something that it does or refuses.

use std::process::ExitCode;

use clap::ArgMatches;

use super::output::{complain, say, say_pieces};
use crate::control::{Answer, ControlError, Request, client};
use crate::exit;
use crate::handler::Title;

/// Asks, waits, and prints the answer. Exits with 0 only if it was done, and with `code` if it was refused; `aftermath` is
/// said then, on a line of its own.
pub(super) fn ask(
    matches: &ArgMatches,
    title: Title,
    request: &Request,
    code: u8,
    aftermath: Option<&str>,
) -> ExitCode {
    let name = title.name;
    match client::ask(&super::control_path(matches, title), request, super::patience(matches)) {
        Ok(Answer::Done(text)) => say(text),
        Ok(Answer::Failed(reason)) => {
            match aftermath {
                Some(aftermath) => complain(format_args!("{reason}\n{name}: {aftermath}")),
                None => complain(format_args!("{name}: {reason}")),
            }
            ExitCode::from(refused(&reason, code))
        }
        Ok(_) => not_understood(title),
        Err(error) => super::unanswered(&error, title),
    }
}

/// Asks for a list, and prints the pieces that `text` makes of the answer and of what was found `meanwhile`.
pub(super) fn show<T>(
    matches: &ArgMatches,
    title: Title,
    request: &Request,
    meanwhile: impl FnOnce() -> T,
    text: impl FnOnce(Answer, T) -> Option<serde_json::Result<Vec<Vec<u8>>>>,
) -> ExitCode {
    let (path, patience) = (super::control_path(matches, title), super::patience(matches));
    match client::ask_and(&path, request, patience, meanwhile) {
        Ok((Answer::Failed(reason), _)) => {
            complain(format_args!("{}: {reason}", title.name));
            ExitCode::from(refused(&reason, exit::USAGE))
        }
        Ok((answer, found)) => match text(answer, found) {
            None => not_understood(title),
            Some(Err(_)) => ExitCode::from(exit::SOFTWARE),
            Some(Ok(text)) => say_pieces(&text),
        },
        Err(error) => super::unanswered(&error, title),
    }
}

/// The code for a refusal: that it is not now is no fault of what was asked, whose code is `otherwise`.
fn refused(reason: &ControlError, otherwise: u8) -> u8 {
    match reason {
        ControlError::NotNow { .. } => exit::UNAVAILABLE,
        _ => otherwise,
    }
}

/// Says that the answer is one to something else.
pub(super) fn not_understood(title: Title) -> ExitCode {
    let name = title.name;
    complain(format_args!("{name}: the running {name} did not understand; is it of another version?"));
    ExitCode::from(exit::UNAVAILABLE)
}
