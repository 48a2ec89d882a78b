//! The messages that have an id, from the journal's catalog.

use std::fmt::Write;

use super::markup::{bold, plain};

const CATALOG: &str = include_str!("../../../systemd/preforkd.catalog");

/// A line for each: its id and its subject.
pub(super) fn list() -> String {
    let mut text = String::new();
    let mut id = "";
    for line in CATALOG.lines() {
        if let Some(next) = line.strip_prefix("-- ") {
            id = next;
        } else if let Some(subject) = line.strip_prefix("Subject: ") {
            // Writing to a String cannot fail.
            let _ =
                writeln!(text, "{}\n\t{}\n", bold(id), plain(&subject.replace(" @PREFORKD_SERVICE@", "")));
        }
    }
    text
}
