//! The way from a path to a configuration.

use std::path::Path;

use super::Config;
use super::assemble::assemble;
use super::diagnostic::{Diagnostic, Diagnostics, Place, Severity};
use super::document::{parse, sections};
use super::service::Machine;
use super::source::{ConfigFile, read};

/// A configuration that can be used.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// It.
    pub(crate) config: Config,
    /// What somebody should look at all the same.
    pub(crate) warnings: Diagnostics,
}

/// Reads the main file and its drop-ins and checks them against a machine; on failure, says everything that is wrong.
pub(crate) fn load(path: &Path, machine: &Machine<'_>) -> Result<Loaded, Diagnostics> {
    let mut problems = Diagnostics::default();
    let sources = read(path, machine, &mut problems);
    check(path, &sources, machine, problems)
}

/// [`load`] of a text; `path` is for messages.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn load_text(path: &Path, text: &[u8], machine: &Machine<'_>) -> Result<Loaded, Diagnostics> {
    let mut problems = Diagnostics::default();
    let source = super::source::decode(path.to_owned(), 0, text, &mut problems);
    check(path, &[source], machine, problems)
}

/// What the files say, checked; `problems` has what could not be read.
fn check(
    path: &Path,
    sources: &[ConfigFile],
    machine: &Machine<'_>,
    mut problems: Diagnostics,
) -> Result<Loaded, Diagnostics> {
    let trees = sources.iter().map(|source| parse(source, &mut problems)).collect();
    let unreadable = problems.errors() > 0;
    let mut found = Diagnostics::default();
    let sections = sections(trees, &mut found);
    let config = assemble(&sections, machine, &mut found);
    problems.add_elsewhere(found);
    if sections.services.is_empty() && !unreadable {
        problems.push(nothing_to_do(path));
    }
    problems.sort();
    match config {
        Some(config) if problems.errors() == 0 => Ok(Loaded { config, warnings: problems }),
        _ => Err(problems),
    }
}

fn nothing_to_do(path: &Path) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        place: Place { name: path.display().to_string(), position: None, order: (0, usize::MAX) },
        message: "no service is defined".into(),
        note: None,
        help: Some(
            "add a section [service.NAME] here, or in a file preforkd.d/NAME.toml beside this one".into(),
        ),
    }
}
