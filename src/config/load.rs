//! The way from a path to a configuration.

use std::path::Path;

use super::assemble::{Tolerance, assemble};
use super::checked::Config;
use super::diagnostic::{Diagnostic, Diagnostics, Place, Severity};
use super::document::{parse, sections};
use super::draft::keys::SERVICE;
use super::machine::Machine;
use super::source::{ConfigFile, Snapshot, read};

/// A configuration that can be used.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// It.
    pub(crate) config: Config,
    /// What somebody should look at all the same.
    pub(crate) warnings: Diagnostics,
}

/// Reads the main file and its drop-ins and checks them against a machine; on failure, says everything that is wrong.
pub(crate) fn load(path: &Path, tolerance: &Tolerance, machine: &Machine<'_>) -> Result<Loaded, Diagnostics> {
    let mut problems = Diagnostics::default();
    let sources = read(path, machine.application.title.name, machine.waits_for, &mut problems);
    check(path, &sources, tolerance, machine, problems)
}

/// [`load`] of files as they were read before.
pub(crate) fn check_again(
    path: &Path,
    snapshot: &Snapshot,
    tolerance: &Tolerance,
    machine: &Machine<'_>,
) -> Result<Loaded, Diagnostics> {
    let mut problems = Diagnostics::default();
    let sources = snapshot.files(&mut problems);
    check(path, &sources, tolerance, machine, problems)
}

/// [`load`] of a text; `path` is for messages.
pub(crate) fn load_text(
    path: &Path,
    text: &[u8],
    tolerance: &Tolerance,
    machine: &Machine<'_>,
) -> Result<Loaded, Diagnostics> {
    let mut problems = Diagnostics::default();
    let source = super::source::decode(path.to_owned(), 0, text, &mut problems);
    check(path, &[source], tolerance, machine, problems)
}

/// What the files say, checked; `problems` has what could not be read.
fn check(
    path: &Path,
    sources: &[ConfigFile],
    tolerance: &Tolerance,
    machine: &Machine<'_>,
    mut problems: Diagnostics,
) -> Result<Loaded, Diagnostics> {
    let trees = sources.iter().map(|source| parse(source, &mut problems)).collect();
    let unreadable = problems.errors() > 0;
    let mut found = Diagnostics::default();
    let is_of_service = |name: &str| SERVICE.iter().any(|key| key.name == name);
    let sections = sections(trees, &is_of_service, &mut found);
    let config = assemble(&sections, tolerance, machine, &mut found);
    problems.add_elsewhere(found);
    if sections.services.is_empty() && !unreadable {
        problems.push(nothing_to_do(path, machine.application.title.name));
    }
    problems.sort();
    match config {
        Some(mut config) if problems.errors() == 0 => {
            if !config.unavailable.reasons.is_empty() {
                config.unavailable.snapshot = Snapshot::of(sources);
            }
            Ok(Loaded { config, warnings: problems })
        }
        _ => Err(problems),
    }
}

fn nothing_to_do(path: &Path, program: &str) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        place: Place { name: path.display().to_string(), position: None, order: (0, usize::MAX) },
        message: "no service is defined".into(),
        note: None,
        help: Some(format!(
            "add a section [service.NAME] here, or in a file {program}.d/NAME.toml beside this one"
        )),
        may_pass: false,
    }
}
