//! The commands, from their definitions for clap.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

use super::markup::{bold, emphasis, plain, sentence};

/// The pages that describe commands. Which one a command is on follows from its arguments, so none can be forgotten.
const PAGES: [&str; 4] = ["preforkd-run.8", "preforkd-serve.8", "preforkd-import.8", "preforkd-control.8"];

fn page_of(command: &Command) -> &'static str {
    let [run, serve, import, control] = PAGES;
    let talks = |argument: &Arg| argument.get_id() == "control" && !argument.get_default_values().is_empty();
    if command.get_name() == "serve" {
        serve
    } else if command.get_name() == "import" {
        import
    } else if command.get_name() == "interface" || command.get_arguments().any(talks) {
        control
    } else {
        run
    }
}

fn visible(preforkd: &Command) -> impl Iterator<Item = &Command> {
    preforkd.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

fn on<'a>(page: &str, preforkd: &'a Command) -> Option<impl Iterator<Item = &'a Command>> {
    let page = PAGES.into_iter().find(|known| known.strip_suffix(".8") == Some(page))?;
    Some(visible(preforkd).filter(move |command| page_of(command) == page))
}

/// `preforkd-NAME.8`, and the page it stands for, for every command that is not the name of its page.
pub(super) fn aliases(preforkd: &Command) -> Vec<(String, &'static str)> {
    let names =
        visible(preforkd).map(|command| (format!("preforkd-{}.8", command.get_name()), page_of(command)));
    names.filter(|(name, page)| name != page).collect()
}

/// A line for each command.
pub(super) fn overview(preforkd: &Command) -> String {
    let mut text = String::new();
    for command in visible(preforkd) {
        let page = page_of(command).trim_end_matches(".8");
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "*preforkd {}*\n\t{} {}(8)\n",
            plain(command.get_name()),
            sentence(&about),
            bold(page)
        );
    }
    text
}

/// The names of the commands on a page, as its NAME section lists them.
pub(super) fn names(page: &str, preforkd: &Command) -> Option<String> {
    let names: Vec<String> = on(page, preforkd)?.map(|command| bold(command.get_name())).collect();
    Some(names.join(", "))
}

/// The commands on a page: how each is called, and its arguments.
pub(super) fn of(page: &str, preforkd: &Command) -> Option<String> {
    Some(on(page, preforkd)?.map(whole).collect())
}

fn whole(command: &Command) -> String {
    let mut text = format!("## preforkd {}\n\n", command.get_name());
    let usage = command.clone().render_usage().to_string();
    let lines: Vec<String> =
        usage.trim_start_matches("Usage:").lines().map(|line| bold(line.trim())).collect();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = writeln!(text, "{}\n\n{}\n", lines.join("++\n"), sentence(&about));
    for argument in command.get_arguments().filter(|argument| is_documented(argument)) {
        text.push_str(&described(argument));
    }
    text
}

/// Not `--help`, which every command has.
fn is_documented(argument: &Arg) -> bool {
    !argument.is_hide_set() && !matches!(argument.get_action(), ArgAction::Help | ArgAction::Version)
}

fn described(argument: &Arg) -> String {
    let values: Vec<String> =
        argument.get_value_names().unwrap_or_default().iter().map(|name| emphasis(name)).collect();
    let takes_value = argument.get_action().takes_values();
    let name = match argument.get_long() {
        Some(long) if takes_value => format!("{} {}", bold(&format!("--{long}")), values.join(" ")),
        Some(long) => bold(&format!("--{long}")),
        None if values.is_empty() => emphasis(argument.get_id().as_str()),
        None => values.join(" "),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let mut text = sentence(&help);
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if takes_value && !defaults.is_empty() {
        let _ = write!(text, " Default: {}", plain(&defaults.join(" ")));
    }
    format!("{name}\n\t{text}\n\n")
}
