//! The manual and the shell completions, from the command line's definitions and the tables of the configuration and the
//! log. For a package; the daemon is built without it.

mod commands;
mod expand;
mod keys;
mod markup;
mod messages;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::cli::output::complain;
use crate::exit;
use crate::handler::Application;

/// Runs the `generate` command with this process's arguments.
#[must_use]
pub(crate) fn main(application: &Application) -> ExitCode {
    match command().try_get_matches() {
        Ok(matches) => match run(&matches, application) {
            Ok(()) => ExitCode::from(exit::OK),
            Err(error) => {
                complain(format_args!("generate: {error}"));
                ExitCode::from(exit::SOFTWARE)
            }
        },
        Err(error) => {
            let _ = error.print();
            ExitCode::from(exit::USAGE)
        }
    }
}

fn command() -> Command {
    let directory = |name: &'static str| Arg::new(name).required(true).value_parser(value_parser!(PathBuf));
    Command::new("generate")
        .about("Write what a package of preforkd needs besides the program")
        .subcommand_required(true)
        .subcommand(
            Command::new("man")
                .about("Fill in the pages of SOURCE, for scdoc(1) to make manual pages of")
                .arg(directory("SOURCE"))
                .arg(directory("TARGET")),
        )
        .subcommand(
            Command::new("completions").about("Completions for bash, zsh and fish").arg(directory("TARGET")),
        )
}

fn run(matches: &ArgMatches, application: &Application) -> Result<(), GenerateError> {
    let path = |matches: &ArgMatches, name| matches.get_one::<PathBuf>(name).cloned().unwrap_or_default();
    match matches.subcommand() {
        Some(("man", matches)) => manual(&path(matches, "SOURCE"), &path(matches, "TARGET"), application),
        Some(("completions", matches)) => completions(&path(matches, "TARGET"), application),
        _ => Ok(()),
    }
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
enum GenerateError {
    /// A file or directory.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of a page asks for something that does not exist.
    #[error("{page}: there is nothing to fill in for \"{line}\"")]
    Unknown {
        /// The page.
        page: String,
        /// The line.
        line: String,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> GenerateError {
    let path = path.to_owned();
    |source| GenerateError::File { path, source }
}

/// The command line as `preforkd --help` has it, with the names that usage texts need.
fn preforkd(application: &Application) -> Command {
    let mut command = super::command(application);
    command.build();
    command
}

/// Every `*.scd` of `source`, filled in, and for each command the name of its page.
fn manual(source: &Path, target: &Path, application: &Application) -> Result<(), GenerateError> {
    fs::create_dir_all(target).map_err(at(target))?;
    let preforkd = preforkd(application);
    // The pages are in packaging/man.
    let root = source.join("../..");
    for entry in fs::read_dir(source).map_err(at(source))? {
        let path = entry.map_err(at(source))?.path();
        if path.extension().is_none_or(|extension| extension != "scd") {
            continue;
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let page = expand::page(&name, &fs::read_to_string(&path).map_err(at(&path))?, &root, &preforkd)?;
        let out = target.join(&name);
        fs::write(&out, page).map_err(at(&out))?;
    }
    for (alias, page) in commands::aliases(&preforkd) {
        let out = target.join(alias);
        fs::write(&out, format!(".so man8/{page}\n")).map_err(at(&out))?;
    }
    Ok(())
}

fn completions(target: &Path, application: &Application) -> Result<(), GenerateError> {
    fs::create_dir_all(target).map_err(at(target))?;
    for (shell, name) in
        [(Shell::Bash, "preforkd"), (Shell::Zsh, "_preforkd"), (Shell::Fish, "preforkd.fish")]
    {
        let out = target.join(name);
        let mut file = File::create(&out).map_err(at(&out))?;
        clap_complete::generate(shell, &mut super::command(application), "preforkd", &mut file);
    }
    Ok(())
}
