//! Asking the running preforkd for something that it does or refuses.

use std::process::ExitCode;

use clap::ArgMatches;

use super::output::{complain, say};
use crate::control::{Answer, Request, client};
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
        Ok(Answer::Done(text)) => {
            say(format_args!("{text}"));
            ExitCode::from(exit::OK)
        }
        Ok(Answer::Refused(reason)) => {
            match aftermath {
                Some(aftermath) => complain(format_args!("{reason}\n{name}: {aftermath}")),
                None => complain(format_args!("{name}: {reason}")),
            }
            ExitCode::from(code)
        }
        Ok(Answer::Status(_) | Answer::Connections(_) | Answer::Bans(_)) => not_understood(title),
        Err(error) => super::unanswered(&error, title),
    }
}

/// Says that the answer is one to something else.
pub(super) fn not_understood(title: Title) -> ExitCode {
    let name = title.name;
    complain(format_args!("{name}: the running {name} did not understand; is it of another version?"));
    ExitCode::from(exit::UNAVAILABLE)
}
