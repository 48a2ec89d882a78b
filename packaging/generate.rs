//! Writes the sources of the manual pages and the shell completions; `packaging/build-deb` runs it.

use std::process::ExitCode;

fn main() -> ExitCode {
    preforkd::generate()
}
