//! What CONTRIBUTING.md says about the shape of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The parts of `src/` from top to bottom: each may use those below it, and none above.
const ORDER: [&str; 20] = [
    "server",
    "builtin",
    "cli",
    "supervisor",
    "worker",
    "spare",
    "child",
    "control",
    "ipc",
    "scoreboard",
    "import",
    "config",
    "handler",
    "journal",
    "admission",
    "client",
    "pace",
    "shared",
    "sys",
    "exit",
];

/// What stands outside: it names the parts, or calls them for a tool.
const OUTSIDE: [&str; 4] = ["main", "lib", "fuzzing", "seeded"];

/// Every file of `src/` that is no test, by its path there, without its tests.
fn sources() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if ["tests", "property"].contains(&name) {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap().to_owned();
            let uncommented = code.lines().map(|line| line.split("//").next().unwrap());
            let uncommented = uncommented.collect::<Vec<_>>().join("\n");
            found.insert(path.strip_prefix(&root).unwrap().to_owned(), uncommented);
        }
    }
    found
}

/// The part that a file belongs to.
fn part(path: &Path) -> String {
    path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The parts that a file names: `crate::PART` and `crate::{PART, …}`.
fn named(text: &str) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let list = rest.strip_prefix('{').map_or(rest, |list| list.split('}').next().unwrap());
        let items = if rest.starts_with('{') { list.split(',').collect() } else { vec![list] };
        for item in items {
            let name: String =
                item.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            parts.insert(name);
        }
    }
    parts
}

#[test]
fn no_part_uses_one_above_it() {
    let place = |part: &str| ORDER.iter().position(|known| *known == part);
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let own = part(&path);
        if OUTSIDE.contains(&own.as_str()) {
            continue;
        }
        let Some(own_place) = place(&own) else {
            wrong.push(format!("{} is in no part that has a place in the order", path.display()));
            continue;
        };
        for used in named(&text).into_iter().filter(|used| *used != own) {
            // Items of the crate's root begin with capitals, and macros are no parts.
            if place(&used).is_some_and(|place| place <= own_place) {
                wrong.push(format!("{} uses {used}, which is above {own}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a file names of its folder and those around it, as paths from `src`: `super::NAME`, `crate::PART::NAME`, and lists of them.
fn files_named(path: &Path, text: &str) -> Vec<PathBuf> {
    let is_mod = path.ends_with("mod.rs");
    let here = if is_mod { path.parent().unwrap().to_owned() } else { path.with_extension("") };
    let mut named = Vec::new();
    for (at, _) in text.match_indices("::") {
        let start = text[..at]
            .rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
            .map_or(0, |at| at + 1);
        let mut place = here.clone();
        for word in text[start..at].split("::") {
            match word {
                "super" => _ = place.pop(),
                "crate" => place = PathBuf::new(),
                "self" => {}
                word => place.push(word),
            }
        }
        if !["super", "crate", "self"].iter().any(|first| text[start..].starts_with(first)) {
            continue;
        }
        let rest = &text[at + 2..];
        let list = rest.strip_prefix('{').and_then(|list| list.split('}').next()).unwrap_or(rest);
        let items: Vec<_> = if rest.starts_with('{') { list.split(',').collect() } else { vec![list] };
        for item in items {
            let name = item.trim().split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            named.push(place.join(name));
        }
    }
    named
}

/// Files of a folder do not need each other in a circle. Of a `mod.rs` those below it are parts, and may name what it declares.
#[test]
fn no_two_files_of_a_folder_need_each_other() {
    let sources = sources();
    let whole: Vec<_> = sources.keys().filter(|path| !path.ends_with("mod.rs")).cloned().collect();
    let file_of = |place: &Path| {
        place.ancestors().map(|place| place.with_extension("rs")).find(|file| whole.contains(file))
    };
    let uses: BTreeMap<&PathBuf, BTreeSet<PathBuf>> = whole
        .iter()
        .map(|path| {
            let named = files_named(path, &sources[path]).into_iter().filter_map(|place| file_of(&place));
            (path, named.filter(|other| other != path && other.parent() == path.parent()).collect())
        })
        .collect();
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 300, "what is looked at");
    for start in uses.keys() {
        let (mut seen, mut next) = (BTreeSet::new(), vec![*start]);
        while let Some(path) = next.pop() {
            for other in &uses[path] {
                assert!(other != *start, "{} needs {}, which needs it", start.display(), path.display());
                if seen.insert(other) {
                    next.push(other);
                }
            }
        }
    }
}

#[test]
fn one_name_stands_for_one_type() {
    let mut places: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for (path, text) in sources() {
        for line in text.lines() {
            // Inside a function or block that is not the file's or a module's, names are nobody else's.
            if line.starts_with("        ") {
                continue;
            }
            let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
            if !matches!(words.next(), Some("struct" | "enum" | "union" | "trait" | "type")) {
                continue;
            }
            let name = words.next().unwrap_or_default();
            let name: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
            // Of a trait's implementation.
            if line.starts_with(' ') && line.trim_start().starts_with("type ") {
                continue;
            }
            places.entry(name).or_default().insert(path.clone());
        }
    }
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "names of more than one type: {places:#?}");
}

#[test]
fn unsafe_stands_in_sys_only() {
    let elsewhere: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| !path.starts_with("sys") && text.contains("unsafe "))
        .map(|(path, _)| path)
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// Rust 1.85, which we promise, ends what it lends at the end of the statement, and clippy does not see it.
#[test]
fn no_variable_is_lent_words_that_are_put_together() {
    let lends = |text: &str| {
        let statements = text.split([';', '{', '}']).map(str::trim_start);
        let mut lending = statements.filter(|words| {
            let value = words.strip_prefix("let ").and_then(|words| words.split_once('='));
            value.is_some_and(|(_, value)| {
                value.trim_start().trim_start_matches("Body::Event(").starts_with("format_args!(")
            })
        });
        lending.next().map(str::to_owned)
    };
    assert!(lends("if count > 0 {\n    let text =\n        format_args!(\"{count} bans\");").is_some());
    let wrong: Vec<_> =
        sources().into_iter().filter_map(|(path, text)| Some((path, lends(&text)?))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// They show that what the library gives to its users is enough for them.
#[test]
fn built_in_services_use_nothing_but_the_library() {
    let public = ["Connection", "Handler", "NoOptions", "Readiness", "Server"];
    for (path, text) in sources().into_iter().filter(|(path, _)| path.starts_with("builtin")) {
        let inside: Vec<_> =
            named(&text).into_iter().filter(|name| !public.contains(&name.as_str())).collect();
        assert!(inside.is_empty(), "{} uses {inside:?}", path.display());
    }
}

/// A constant of libc, such as an errno, is no call.
#[test]
fn system_calls_stand_in_sys_only() {
    // `unix::` is std's.
    let calls = |text: &str| {
        let of_nix = text.match_indices("nix::").any(|(at, _)| !text[..at].ends_with('u'));
        let mut of_libc = text.match_indices("libc::").map(|(at, name)| &text[at + name.len()..]);
        of_nix || of_libc.any(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()))
    };
    let elsewhere: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| !path.starts_with("sys") && calls(text))
        .map(|(path, _)| path)
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}
