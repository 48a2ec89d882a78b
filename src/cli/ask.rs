//! Asking the running preforkd for something that it does or refuses.

use std::process::ExitCode;

use clap::ArgMatches;
use serde::Serialize;

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
        Ok(Answer::Failed(reason)) => {
            match aftermath {
                Some(aftermath) => complain(format_args!("{reason}\n{name}: {aftermath}")),
                None => complain(format_args!("{name}: {reason}")),
            }
            ExitCode::from(code)
        }
        Ok(_) => not_understood(title),
        Err(error) => super::unanswered(&error, title),
    }
}

/// Asks for a list, and prints it as a table or with `--json` as that; `list` takes it from the answer.
pub(super) fn show<T: Serialize>(
    matches: &ArgMatches,
    title: Title,
    request: &Request,
    list: impl FnOnce(Answer) -> Option<T>,
    table: impl FnOnce(&T) -> String,
) -> ExitCode {
    match client::ask(&super::control_path(matches, title), request, super::patience(matches)) {
        Ok(Answer::Failed(reason)) => {
            complain(format_args!("{}: {reason}", title.name));
            ExitCode::from(exit::USAGE)
        }
        Ok(answer) => {
            let Some(list) = list(answer) else { return not_understood(title) };
            match matches.get_flag("json").then(|| serde_json::to_string(&list)) {
                None => say(table(&list).trim_end()),
                Some(Ok(line)) => say(line),
                Some(Err(_)) => return ExitCode::from(exit::SOFTWARE),
            }
            ExitCode::from(exit::OK)
        }
        Err(error) => super::unanswered(&error, title),
    }
}

/// Says that the answer is one to something else.
pub(super) fn not_understood(title: Title) -> ExitCode {
    let name = title.name;
    complain(format_args!("{name}: the running {name} did not understand; is it of another version?"));
    ExitCode::from(exit::UNAVAILABLE)
}
