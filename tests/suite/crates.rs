//! Whose the crates are that the program is built of, for the Debian source package. What their files say of it is compared by
//! `packaging/build-source`, which takes longer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Where `cargo vendor` puts the crates of a `Cargo.lock`: only the newest of a name goes without its version.
fn vendored(lock: &str) -> BTreeSet<String> {
    let mut crates: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock.split("[[package]]\n").filter(|package| package.contains("\nsource = ")) {
        let value = |key: &str| package.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let name = value("name = ").trim_matches('"');
        crates.entry(name).or_default().push(value("version = ").trim_matches('"'));
    }
    let mut directories = BTreeSet::new();
    for (name, versions) in crates {
        directories.insert(name.to_owned());
        // The newest comes last.
        let older = versions.iter().rev().skip(1);
        directories.extend(older.map(|version| format!("{name}-{version}")));
    }
    directories
}

#[test]
fn debian_knows_whose_every_crate_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap();
    let copyright = std::fs::read_to_string(root.join("packaging/debian/copyright")).unwrap();
    let said = copyright.lines().filter_map(|line| line.strip_prefix("Files: vendor/"));
    let said: BTreeSet<_> = said.map(|files| files.trim_end_matches("/*").to_owned()).collect();
    let wanted = vendored(&lock);
    assert!(wanted.len() > 50, "{wanted:?}");
    let wrong: Vec<_> = wanted.symmetric_difference(&said).collect();
    assert!(wrong.is_empty(), "run packaging/build-source --copyright, and read what it changes: {wrong:?}");
}
