//! Writing to stdout and stderr. A reader that is gone is no reason to panic, so errors are ignored.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes `text` and a newline to stdout.
pub(crate) fn say(text: impl Display) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Writes these pieces, one after the other, and a newline to stdout.
pub(crate) fn say_pieces(pieces: &[Vec<u8>]) {
    let mut stdout = io::stdout().lock();
    let _ = pieces
        .iter()
        .try_for_each(|piece| stdout.write_all(piece))
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
}

/// Writes `text` and a newline to stderr, in one piece.
pub(crate) fn complain(text: impl Display) {
    let line = format!("{text}\n");
    let _ = io::stderr().lock().write_all(line.as_bytes());
}
