//! What the tests share.

pub(crate) mod client;
pub(crate) mod container;
pub(crate) mod failure;
pub(crate) mod load;
#[path = "../../suite/support/page.rs"]
pub(crate) mod page;
pub(crate) mod service;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) use container::Container;

/// How long anything may take before the test fails; nothing takes this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a test looks for something that must not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);

/// Waits for a state of which nobody tells: it looks every few milliseconds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of which only ASCII is looked for.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Says something in one piece: two releases say it at the same time.
pub(crate) fn say(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
}

/// The name of the release that a root directory is of.
pub(crate) fn release_of(root: &Path) -> String {
    let name = root.file_name().unwrap().to_str().unwrap();
    name.split('-').next().unwrap().to_owned()
}
