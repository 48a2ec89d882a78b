//! What the manual, the README and the examples show of two sides says the same on both.
//!
//! Each setting of a unit must have its key in the TOML beside it, with the same meaning, and each key a setting. On real
//! systemd, tests/systemd/accept.rs has the sides of preforkd.accept(7) serve the same clients.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Directives in their order, without those that concern systemd alone.
type Unit = Vec<(String, String)>;

/// The blocks of code in a file: fenced ones, or of a TOML file its whole text and the units in its comments.
fn blocks(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    if path.extension().is_some_and(|extension| extension == "toml") {
        let comment = |line: &str| line.strip_prefix("#   ").map(|line| format!("{line}\n"));
        return vec![text.lines().filter_map(comment).collect(), text];
    }
    text.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap().1.to_owned()).collect()
}

fn all_pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = ["packaging/man", "config", "config/examples"].map(|directory| {
        let entries = std::fs::read_dir(root.join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect::<Vec<_>>()
    });
    let mut pages = listed.concat();
    pages.push(root.join("README.md"));
    pages.sort();
    pages
}

fn unit(block: &str) -> Unit {
    let lines = block.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['[', '#']));
    let setting = |line: &str| {
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
        (name.to_owned(), value.to_owned())
    };
    lines.map(setting).filter(|(name, value)| name != "WantedBy" && !value.is_empty()).collect()
}

fn is_unit(block: &str) -> bool {
    ["[Socket]", "[Service]"].iter().any(|header| block.trim_start().starts_with(header))
}

/// The service in a block, and its name.
fn service(block: &str) -> (String, Table) {
    let table: Table = block.parse().unwrap_or_else(|error| panic!("{error}: {block}"));
    let services = table["service"].as_table().unwrap();
    assert_eq!(services.len(), 1, "{block}");
    let (name, service) = services.iter().next().unwrap();
    (name.clone(), service.as_table().unwrap().clone())
}

fn strings<'a>(words: impl IntoIterator<Item = &'a str>) -> Value {
    Value::Array(words.into_iter().map(Value::from).collect())
}

fn number(value: &str) -> Value {
    Value::Integer(value.parse().unwrap())
}

fn boolean(value: &str) -> Value {
    Value::Boolean(value == "yes")
}

/// What a unit with `Accept=yes` means, in keys; an unknown setting has no counterpart and fails.
fn counterpart(unit: &Unit) -> BTreeMap<String, Value> {
    let mut keys: BTreeMap<String, Value> = BTreeMap::new();
    let mut tables: BTreeMap<&str, Table> = BTreeMap::new();
    for (name, value) in unit {
        let value = value.as_str();
        let (key, value) = match name.as_str() {
            // BindIPv6Only=default: both families.
            "ListenStream" if value.parse::<u16>().is_ok() => ("listen", format!("*:{value}").into()),
            "ListenStream" if value.starts_with('/') => ("listen", format!("unix:{value}").into()),
            "ListenStream" => ("listen", value.into()),
            "Accept" => {
                assert_eq!(value, "yes");
                continue;
            }
            "MaxConnections" => {
                // systemd closes what is one too many.
                keys.insert("overload".to_owned(), "refuse".into());
                ("max_connections", number(value))
            }
            "MaxConnectionsPerSource" => ("max_connections_per_source", number(value)),
            "KeepAlive" => ("keepalive", boolean(value)),
            "NoDelay" => ("nodelay", boolean(value)),
            "Backlog" => ("backlog", number(value)),
            "SocketMode" => ("socket_mode", value.into()),
            "SocketUser" => ("socket_user", value.into()),
            "SocketGroup" => ("socket_group", value.into()),
            "ExecStart" => ("exec", strings(value.trim_start_matches('-').split(' '))),
            "StandardInput" => {
                assert_eq!(value, "socket");
                continue;
            }
            "StandardError" => ("stderr", if value == "journal" { "log" } else { value }.into()),
            "User" => ("user", value.into()),
            "Group" => ("group", value.into()),
            "RootDirectory" => ("chroot", value.into()),
            "WorkingDirectory" => ("working_directory", value.into()),
            "UMask" => ("umask", value.trim_start_matches('0').into()),
            "Nice" => ("nice", number(value)),
            "RuntimeMaxSec" => ("max_lifetime", value.into()),
            "Environment" => {
                let (name, value) = value.split_once('=').unwrap();
                tables.entry("environment").or_default().insert(name.to_owned(), value.into());
                continue;
            }
            name => {
                let limit = name.strip_prefix("Limit").unwrap_or_else(|| panic!("{name} has no counterpart"));
                tables.entry("limits").or_default().insert(limit.to_lowercase(), value.into());
                continue;
            }
        };
        assert!(keys.insert(key.to_owned(), value).is_none(), "{key} twice");
    }
    keys.extend(tables.into_iter().map(|(name, table)| (name.to_owned(), Value::Table(table))));
    keys
}

/// A key as it is compared: however its value may be written.
fn normal(key: &str, value: &Value) -> String {
    match value {
        Value::Table(table) => {
            let entries = table.iter().map(|(name, value)| format!("{name}={}", normal(name, value)));
            entries.collect::<Vec<_>>().join(" ")
        }
        Value::String(text) => match key {
            "umask" | "socket_mode" => text.trim_start_matches('0').to_owned(),
            // systemd counts seconds where there is no unit.
            "cpu" | "max_lifetime" => text.trim_end_matches('s').to_owned(),
            _ => text.clone(),
        },
        value => value.to_string(),
    }
}

fn assert_same(page: &Path, wanted: &BTreeMap<String, Value>, service: &Table) {
    let shown = |keys: &mut dyn Iterator<Item = (&String, &Value)>| {
        keys.map(|(key, value)| (key.clone(), normal(key, value))).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(shown(&mut wanted.iter()), shown(&mut service.iter()), "{}", page.display());
}

#[test]
fn both_sides_say_the_same() {
    let (mut accepting, mut passing) = (0, 0);
    for page in all_pages() {
        // There the other side is written by `preforkd import`, and tests/systemd/migration.rs calls both.
        if page.ends_with("preforkd.migration.7.scd") {
            continue;
        }
        let blocks = blocks(&page);
        let mut rest = blocks.iter().peekable();
        while let Some(block) = rest.next() {
            if !block.trim_start().starts_with("[Socket]") {
                continue;
            }
            let mut settings = unit(block);
            let what = page.display();
            let has = |settings: &Unit, name: &str| settings.iter().find(|(key, _)| key == name).cloned();
            if has(&settings, "Accept").is_some_and(|(_, value)| value == "yes") {
                let template = rest.next().filter(|block| is_unit(block));
                settings
                    .extend(unit(template.unwrap_or_else(|| panic!("{what}: no service beside the socket"))));
                let (_, service) = service(rest.next().unwrap_or_else(|| panic!("{what}: no TOML")));
                assert_same(&page, &counterpart(&settings), &service);
                accepting += 1;
            } else {
                // systemd listens, preforkd takes what has this name.
                let (_, name) =
                    has(&settings, "FileDescriptorName").unwrap_or_else(|| panic!("{what}: no name"));
                let (_, service) = service(rest.next().unwrap_or_else(|| panic!("{what}: no TOML")));
                assert_eq!(service["listen"].as_str(), Some(&*format!("fd:{name}")), "{what}");
                passing += 1;
            }
        }
    }
    assert_eq!(
        (accepting, passing),
        (1, 2),
        "a page that shows two sides was not found, or a new one needs its number here"
    );
}

/// What is shown of one side alone is right, too: each block of TOML is one that `check` reads.
#[test]
fn a_unit_that_says_more_is_noticed() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/man/preforkd.accept.7.scd");
    let blocks = blocks(&page);
    let wanted = |socket: &str| {
        let mut settings = unit(socket);
        settings.extend(unit(&blocks[1]));
        counterpart(&settings)
    };
    let (_, service) = service(&blocks[2]);
    assert_same(&page, &wanted(&blocks[0]), &service);
    let lost = blocks[0].replace("MaxConnectionsPerSource=10\n", "");
    assert!(!wanted(&lost).contains_key("max_connections_per_source"));
    let more = blocks[0].replace("Backlog=4096", "Backlog=4096\nNoDelay=yes");
    assert!(std::panic::catch_unwind(|| assert_same(&page, &wanted(&more), &service)).is_err());
}
