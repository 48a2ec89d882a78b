//! The journal's catalog says something about every message id, and about nothing else.

use std::collections::BTreeSet;

const CATALOG: &str = include_str!("../../../systemd/preforkd.catalog");
/// As text, because a list beside the table could miss a row.
const TABLE: &str = include_str!("../message_id.rs");

fn is_id(word: &str) -> bool {
    word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn the_catalog_is_the_table() {
    let table: BTreeSet<&str> = TABLE.split('"').filter(|word| is_id(word)).collect();
    let headings: Vec<&str> = CATALOG.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
    let catalog: BTreeSet<&str> = headings.iter().copied().collect();
    assert!(!table.is_empty());
    assert_eq!(catalog, table);
    assert_eq!(headings.len(), catalog.len(), "an id is there twice");
}

#[test]
fn every_entry_is_whole() {
    for entry in CATALOG.split("\n-- ").skip(1) {
        let (head, body) = entry.split_once("\n\n").expect(entry);
        let id = head.lines().next().unwrap_or_default();
        assert!(is_id(id), "{id}");
        assert!(head.lines().any(|line| line.starts_with("Subject: ")), "{id}");
        assert!(head.contains("\nDefined-By: preforkd\nDocumentation: man:"), "{id}");
        assert!(!body.trim().is_empty(), "{id}");
    }
}
