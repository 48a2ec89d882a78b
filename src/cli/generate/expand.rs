//! Fills in the pages: a line `@what@` becomes what the tables say, everything else stays.

use std::fs;
use std::path::Path;

use clap::Command;

use super::{GenerateError, commands, keys, messages};
use crate::config::keys::{LOG, SERVICE, SUPERVISOR};

/// The page as scdoc(1) takes it; `root` is where the files are that it shows.
pub(super) fn page(
    name: &str,
    source: &str,
    root: &Path,
    preforkd: &Command,
) -> Result<String, GenerateError> {
    let mut page = String::with_capacity(2 * source.len());
    for line in source.lines() {
        match line.strip_prefix('@').and_then(|line| line.strip_suffix('@')) {
            Some(what) => {
                let text = fill(what, root, preforkd);
                let text =
                    text.ok_or_else(|| GenerateError::Unknown { page: name.into(), line: line.into() })?;
                page.push_str(text.trim_end());
            }
            None => page.push_str(&line.replace("@VERSION@", env!("CARGO_PKG_VERSION"))),
        }
        page.push('\n');
    }
    Ok(page)
}

fn fill(what: &str, root: &Path, preforkd: &Command) -> Option<String> {
    match what.split_once(' ') {
        None if what == "commands" => Some(commands::overview(preforkd)),
        None if what == "messages" => Some(messages::list()),
        Some(("commands", page)) => commands::of(page, preforkd),
        Some(("names", page)) => commands::names(page, preforkd),
        Some(("keys", "supervisor")) => Some(keys::list(SUPERVISOR)),
        Some(("keys", "log")) => Some(keys::list(LOG)),
        Some(("keys", "service")) => Some(keys::list(SERVICE)),
        Some(("keys", "to come")) => Some(keys::to_come(SERVICE)),
        // A whole file, for a block of code, where nothing but a backslash means something.
        Some(("file", path)) => Some(fs::read_to_string(root.join(path)).ok()?.replace('\\', "\\\\")),
        _ => None,
    }
}
