//! Tests that others wrote for other super-servers, unchanged, with preforkd in their place and what its import makes of their
//! configuration. others/README.md says where they are from, and what of others' tests is not here, and why.

use std::path::Path;
use std::process::Output;

use super::moved::{fetched, on_stage, packages};
use crate::support::{BINARY, root, text, write};

/// Runs a test of somebody; nothing if it cannot be run here.
fn others(whose: &str, test: &str) -> Option<Output> {
    if !root(test) {
        return None;
    }
    let packages = packages(test)?;
    let others = fetched("others", "tests/suite/others/fetch", test)?;
    let dir = tempfile::Builder::new().prefix("preforkd-test-").tempdir().unwrap();
    write(&dir.path().join("users"), "");
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/others/run");
    let words = [&run, &packages, Path::new(BINARY), dir.path(), &others, Path::new(whose), Path::new(test)];
    Some(on_stage(&words))
}

fn log(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// GNU's test of its inetd: a service at two addresses, of which each HUP makes others.
#[test]
fn inetd_of_inetutils() {
    let Some(output) = others("inetutils", "inetd.sh") else { return };
    assert!(output.status.success(), "{}", log(&output));
    // It passes, too, where it finds nothing to test.
    assert!(text(&output.stderr).contains("generation 6"), "{}", log(&output));
}

/// systemd's test of a limit for each user of a Unix socket.
#[test]
fn connections_per_source_of_systemd() {
    let Some(output) = others("systemd", "TEST-74-AUX-UTILS.socket.sh") else { return };
    assert!(output.status.success(), "{}", log(&output));
}

/// systemd's test of a pause after some connections: it fails, as here everybody is served, and on nothing else.
#[test]
fn poll_limit_of_systemd_is_not_kept() {
    let Some(output) = others("systemd", "TEST-07-PID1.poll-limit.sh") else { return };
    let log = log(&output);
    assert!(log.contains("# dropped: PollLimitBurst=3: preforkd never gives a listener up"), "{log}");
    let last = log.lines().rfind(|line| line.starts_with("+ ")).unwrap();
    let counts = last.strip_prefix("+ test ").and_then(|counts| counts.split_once(" -le "));
    let (accepted, most) = counts.unwrap_or_else(|| panic!("{log}"));
    assert!(!output.status.success() && accepted.parse::<u32>().unwrap() >= 100 && most.len() == 1, "{log}");
}
