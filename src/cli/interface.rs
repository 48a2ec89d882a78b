//! `preforkd interface`: what can be asked at the control socket.

use std::process::ExitCode;

use clap::Command;

use super::output::say;
use crate::control::interface::CONTROL_TEXT;
use crate::handler::Title;

/// `interface`.
pub(super) fn command(title: Title) -> Command {
    Command::new("interface").about(format!(
        "Print what programs can ask {} at its control socket, as the varlink interface org.preforkd.Control",
        title.name
    ))
}

/// Prints it.
pub(super) fn run() -> ExitCode {
    say(CONTROL_TEXT.trim_end())
}
