//! What a page of the manual says that should be done, as it stands there: files, and commands with their answers.

use std::path::Path;

/// One thing to do.
pub(crate) enum Step {
    /// A block below a line `_PATH_:`.
    File { path: String, text: String },
    /// A line of a block that begins with "# " (root's) or "$ " (anybody's), and the lines after it.
    Command { is_root: bool, command: String, answer: String },
}

/// The sections of a page that have something to do, each by its heading, in their order.
pub(crate) fn sections(page: &str) -> Vec<(String, Vec<Step>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("packaging/man").join(page);
    let source = std::fs::read_to_string(&path).unwrap().replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    let mut sections: Vec<(String, Vec<Step>)> = Vec::new();
    let mut before = "";
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if let Some(heading) = line.strip_prefix("# ") {
            sections.push((heading.to_owned(), Vec::new()));
        } else if line == "```" {
            let mut text = String::new();
            for line in lines.by_ref().take_while(|line| *line != "```") {
                match line.strip_prefix("@file ").and_then(|line| line.strip_suffix('@')) {
                    Some(file) => text += &std::fs::read_to_string(root.join(file)).unwrap(),
                    // scdoc(5): a backslash stands for the character after it.
                    None => text += &(line.replace("\\\\", "\\") + "\n"),
                }
            }
            let (_, steps) = sections.last_mut().unwrap();
            match before.strip_prefix('_').and_then(|line| line.strip_suffix("_:")) {
                Some(path) => steps.push(Step::File { path: path.to_owned(), text }),
                None => commands(&text, steps),
            }
        }
        if !line.is_empty() {
            before = line;
        }
    }
    sections.retain(|(_, steps)| !steps.is_empty());
    sections
}

fn commands(block: &str, steps: &mut Vec<Step>) {
    for line in block.lines() {
        let typed = [("# ", true), ("$ ", false)]
            .iter()
            .find_map(|(prompt, is_root)| Some((line.strip_prefix(prompt)?.to_owned(), *is_root)));
        match (typed, steps.last_mut()) {
            (Some((command, is_root)), _) => {
                steps.push(Step::Command { is_root, command, answer: String::new() });
            }
            (None, Some(Step::Command { answer, .. })) => *answer += &format!("{line}\n"),
            (None, _) => panic!("{line:?} is neither in a file nor a command, nor an answer"),
        }
    }
}

/// Whether this is what the page shows; "..." there is anything.
pub(crate) fn answers(said: &str, shown: &str) -> bool {
    let mut pieces = shown.split("...");
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = said.strip_prefix(first) else { return false };
    let mut last = None;
    for piece in pieces {
        if let Some(piece) = last.replace(piece) {
            let Some((_, after)) = rest.split_once(piece) else { return false };
            rest = after;
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}
