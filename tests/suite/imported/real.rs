//! Files that people really have.

use std::collections::BTreeSet;

use super::{faults, files, import};
use crate::support::text;

struct RealFile {
    /// The repository and the path.
    source: String,
    name: String,
    content: String,
}

/// Files that belong together, and what has to be said of them.
#[derive(Default)]
struct Group {
    files: Vec<RealFile>,
    printed: Vec<String>,
    complained: Vec<String>,
}

fn groups() -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for line in include_str!("real.txt").lines() {
        let header = line.strip_prefix("=== ").or_else(|| line.strip_prefix("--- "));
        if line.starts_with("=== ") {
            groups.push(Group::default());
        }
        let Some(group) = groups.last_mut() else { continue };
        if let Some((source, name)) = header.and_then(|header| header.split_once(" as ")) {
            let (source, name) = (source.to_owned(), name.to_owned());
            group.files.push(RealFile { source, name, content: String::new() });
        } else if let Some(printed) = line.strip_prefix("=> ") {
            group.printed.push(printed.to_owned());
        } else if let Some(complained) = line.strip_prefix("=! ") {
            group.complained.push(complained.to_owned());
        } else {
            let content = &mut group.files.last_mut().unwrap().content;
            content.push_str(line);
            content.push('\n');
        }
    }
    groups
}

/// Constructs of a file that a comment has to name.
fn constructs(file: &RealFile) -> Vec<String> {
    let is_unit = file.name.ends_with(".socket") || file.name.ends_with(".service");
    let is_inetd = file.name == "inetd.conf";
    let lines = file.content.lines().map(str::trim).filter(|line| !line.is_empty());
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    lines
        .flat_map(|line| match line.split_once('=') {
            // Its program and its arguments, but for what names the program itself.
            _ if is_inetd => match words(line.trim_start_matches("#<off>#").trim_start_matches(['#', ' '])) {
                words if words.len() > 5 && !words[5].is_empty() => words[3..6].to_vec(),
                _ => Vec::new(),
            },
            _ if line.starts_with(['#', '[', '{', '}']) => Vec::new(),
            Some((key, value)) if is_unit => match value {
                "" => Vec::new(),
                _ => vec![format!("{}=", key.trim())],
            },
            Some((key, _)) if !["run", "etc/", "peers/"].iter().any(|part| file.name.contains(part)) => {
                vec![format!("{} =", key.trim_end_matches('+').trim())]
            }
            _ => Vec::new(),
        })
        .collect()
}

#[test]
fn real_files_are_read() {
    let groups = groups();
    let sources: BTreeSet<&str> = groups
        .iter()
        .flat_map(|group| &group.files)
        .map(|file| file.source.as_str())
        .filter(|source| *source != "ours")
        .collect();
    assert!(sources.len() >= 60, "{}", sources.len());
    let mut wrong = Vec::new();
    for group in &groups {
        let written: Vec<(&str, &str)> =
            group.files.iter().map(|file| (file.name.as_str(), file.content.as_str())).collect();
        let written: Vec<(&str, String)> =
            written.into_iter().map(|(name, content)| (name, content.to_owned())).collect();
        let borrowed: Vec<(&str, &str)> =
            written.iter().map(|(name, content)| (*name, content.as_str())).collect();
        let directory = files(&borrowed);
        // A path of another machine is below its root.
        for (name, content) in &written {
            if content.contains("includedir xinetd.d") {
                let path = directory.path().join(name);
                let whole = content.replace("includedir xinetd.d", "includedir /xinetd.d");
                std::fs::write(path, whole).unwrap();
            }
        }
        let first = &group.files[0];
        let output = import(directory.path(), &["--all"], &first.name);
        let (printed, complained) = (text(&output.stdout), text(&output.stderr));
        let mut fault = |what: String| wrong.push(format!("{}: {what}", first.source));
        let expected = if complained.contains(": refused: ") { 78 } else { 0 };
        if output.status.code() != Some(expected) || printed.is_empty() {
            fault(format!("{}\n{complained}", output.status));
        }
        for part in group.printed.iter().filter(|part| !printed.contains(part.as_str())) {
            fault(format!("not printed: {part}\n{printed}"));
        }
        for part in group.complained.iter().filter(|part| !complained.contains(part.as_str())) {
            fault(format!("not complained of: {part}\n{complained}"));
        }
        let comments: String = printed.lines().filter(|line| line.starts_with('#')).collect();
        for construct in
            group.files.iter().flat_map(constructs).filter(|construct| !comments.contains(construct))
        {
            fault(format!("no verdict: {construct}\n{printed}"));
        }
        for problem in faults(&printed) {
            fault(format!("check: {problem}\n{printed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
