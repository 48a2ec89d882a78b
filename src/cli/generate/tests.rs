//! The pages of packaging/man as they are.

use super::*;
use crate::config::keys::{LOG, SERVICE, SUPERVISOR};

fn application() -> Application {
    crate::builtin::preforkd().into_application()
}

fn pages() -> Vec<(String, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/man");
    let target = tempfile::tempdir().unwrap();
    manual(&source, target.path(), &application()).unwrap();
    let files = fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().into(), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn page(name: &str) -> String {
    pages().into_iter().find(|(page, _)| page == name).unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn every_command_has_a_page() {
    let pages = pages();
    for command in preforkd(&application()).get_subcommands().filter(|command| command.get_name() != "help") {
        let name = command.get_name();
        let heading = format!("\n## preforkd {name}\n");
        let described = pages.iter().filter(|(_, text)| text.contains(&heading)).count();
        assert_eq!(described, 1, "{name}");
        let found = pages.iter().any(|(page, _)| *page == format!("preforkd-{name}.8"))
            || pages.iter().any(|(page, _)| *page == format!("preforkd-{name}.8.scd"));
        assert!(found, "man preforkd-{name}");
    }
}

#[test]
fn every_key_is_in_the_manual() {
    let page = page("preforkd.toml.5.scd");
    let set = SERVICE.iter().filter(|key| key.decode.is_some()).map(|key| key.name);
    for name in set.chain(SUPERVISOR.iter().map(|key| key.name)).chain(LOG.iter().map(|key| key.name)) {
        let heading = format!("\n*{}* = ", markup::plain(name));
        assert_eq!(page.matches(&heading).count(), 1, "{name}");
    }
    for key in SERVICE.iter().filter(|key| key.decode.is_none()) {
        assert!(page.contains(&markup::plain(key.name)), "{}", key.name);
    }
}

#[test]
fn everything_is_filled_in() {
    for (name, text) in pages() {
        assert!(!text.lines().any(|line| line.starts_with('@')), "{name}");
        assert!(!text.contains("@VERSION@") && !text.contains("@PREFORKD"), "{name}");
    }
    let error =
        expand::page("x.8.scd", "text\n@nonsense@\n", Path::new("."), &preforkd(&application())).unwrap_err();
    assert_eq!(error.to_string(), "x.8.scd: there is nothing to fill in for \"@nonsense@\"");
}

#[test]
fn nothing_in_a_text_is_markup() {
    assert_eq!(markup::plain("a_b *c* [d]"), "a\\_b \\*c\\* \\[d\\]");
}

#[test]
fn completions_know_the_commands() {
    let target = tempfile::tempdir().unwrap();
    completions(target.path(), &application()).unwrap();
    for file in ["preforkd", "_preforkd", "preforkd.fish"] {
        let text = fs::read_to_string(target.path().join(file)).unwrap();
        assert!(text.contains("reload") && text.contains("max-connections"), "{file}");
    }
}
