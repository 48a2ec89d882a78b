//! What SECURITY.md says about tests: it names them, and they are there.

use std::collections::BTreeSet;
use std::path::Path;

/// The names of all tests below a directory, as cargo has them.
fn tests_below(root: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut found = BTreeSet::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let module = path.strip_prefix(&root).unwrap().with_extension("");
            let module = module.to_str().unwrap().trim_end_matches("/mod").replace('/', "::");
            let text = std::fs::read_to_string(&path).unwrap();
            for (at, attribute) in text.match_indices("#[test]\n") {
                let function = text[at + attribute.len()..].split_once("fn ").unwrap().1;
                let function = function.split('(').next().unwrap();
                // Further in, it stands in the file's module of tests.
                let inner = if text[..at].ends_with("\n    ") { "tests::" } else { "" };
                found.insert(format!("{module}::{inner}{function}"));
            }
        }
    }
    found
}

fn security() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md")).unwrap()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_it_names_is_there() {
    let text = security();
    let known: BTreeSet<_> = tests_below("tests/suite").into_iter().chain(tests_below("src")).collect();
    let named: BTreeSet<_> = quoted(&text).filter(|name| name.contains("::")).collect();
    assert!(named.len() > 20, "SECURITY.md names {} tests; is this how it still does?", named.len());
    let missing: Vec<_> = named.into_iter().filter(|name| !known.contains(*name)).collect();
    assert!(
        missing.is_empty(),
        "SECURITY.md names tests that are not there (renamed? then name the new ones): {missing:#?}"
    );
}

/// A promise without a test says so.
#[test]
fn every_lesson_has_a_test_or_says_that_it_has_none() {
    let text = security();
    let section = text.split_once("\n## What happened to others\n").expect("the section").1;
    let section = section.split("\n## ").next().unwrap();
    // However its lines are broken.
    let in_one_line = |lesson: &str| lesson.split_whitespace().collect::<Vec<_>>().join(" ");
    let lessons: Vec<_> = section.split("\n- ").skip(1).map(in_one_line).collect();
    assert!(lessons.len() >= 15, "{} lessons", lessons.len());
    let without = |lesson: &&String| {
        let is_tested = lesson.contains("Test: `") || lesson.contains("Tests: `");
        !is_tested && !lesson.contains("No test yet")
    };
    let untested: Vec<_> = lessons.iter().filter(without).collect();
    assert!(untested.is_empty(), "neither \"Test:\" nor \"No test yet\": {untested:#?}");
}
