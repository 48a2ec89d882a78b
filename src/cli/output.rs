//! Writing to stdout and stderr.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::exit;

/// Writes `text` and a newline to stdout, and says with which code to exit.
pub(crate) fn say(text: impl Display) -> ExitCode {
    written(writeln!(io::stdout().lock(), "{text}"))
}

/// Writes these pieces, one after the other, and a newline to stdout, and says with which code to exit.
pub(crate) fn say_pieces(pieces: &[Vec<u8>]) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let all = pieces.iter().try_for_each(|piece| stdout.write_all(piece));
    let all = all.and_then(|()| stdout.write_all(b"\n"));
    drop(stdout);
    written(all)
}

/// What is on its way to stdout has to come there: a file that is cut off where the disk was full must not look like the whole. Who has
/// stopped to read has what he wanted.
pub(crate) fn written(so_far: io::Result<()>) -> ExitCode {
    match so_far.and_then(|()| io::stdout().lock().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(format_args!("cannot write to stdout: {error}"));
            ExitCode::from(exit::OS)
        }
        _ => ExitCode::from(exit::OK),
    }
}

/// Writes `text` and a newline to stderr, in one piece.
pub(crate) fn complain(text: impl Display) {
    let line = format!("{text}\n");
    // There is nowhere else to say that it cannot be said.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}
