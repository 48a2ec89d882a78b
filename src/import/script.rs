//! The words of a run script, as far as they can be known without running it: sh and execline.

use std::collections::BTreeMap;

/// A word, and whether all of it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScriptWord {
    pub(crate) text: String,
    /// Something of it only the script itself can find out.
    pub(crate) is_open: bool,
}

/// A command of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScriptCommand {
    pub(crate) line: usize,
    pub(crate) words: Vec<ScriptWord>,
    /// What was done with its output.
    pub(crate) redirections: Vec<String>,
}

/// More than any script has.
const MOST_WORDS: usize = 20_000;

/// The commands of a script.
pub(crate) fn commands(text: &str) -> Vec<ScriptCommand> {
    let first = text.lines().next().unwrap_or_default();
    if first.starts_with("#!") && first.contains("execline") { chain(text) } else { shell(text) }
}

/// All of an execline script is one command.
fn chain(text: &str) -> Vec<ScriptCommand> {
    let mut words = Vec::new();
    let mut first = 0;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with('#') {
            continue;
        }
        let of_line = split(line, &BTreeMap::new(), false);
        if first == 0 && !of_line.is_empty() {
            first = index + 1;
        }
        words.extend(of_line);
        if words.len() > MOST_WORDS {
            break;
        }
    }
    vec![ScriptCommand { line: first, words, redirections: Vec::new() }]
}

fn shell(text: &str) -> Vec<ScriptCommand> {
    let mut variables = BTreeMap::new();
    let mut commands = Vec::new();
    let mut whole = String::new();
    let mut begun = 0;
    let mut count = 0;
    for (index, line) in text.lines().enumerate() {
        if whole.is_empty() {
            begun = index + 1;
        }
        let line = if whole.is_empty() && line.trim_start().starts_with('#') { "" } else { line };
        if let Some(start) = line.trim_end().strip_suffix('\\').filter(|_| whole.len() < 65_536) {
            whole.push_str(start);
            whole.push(' ');
            continue;
        }
        whole.push_str(line);
        let words = split(&whole, &variables, true);
        whole.clear();
        count += words.len();
        if count > MOST_WORDS {
            break;
        }
        let mut words = words.into_iter().peekable();
        // Assignments of the shell, each on a line of its own.
        let mut rest = Vec::new();
        while let Some(word) = words.next() {
            match word.text.split_once('=').filter(|(name, _)| rest.is_empty() && is_name(name)) {
                Some((name, value)) if words.peek().is_none() || !rest.is_empty() => {
                    variables.insert(
                        name.to_owned(),
                        ScriptWord { text: value.to_owned(), is_open: word.is_open },
                    );
                }
                _ => rest.push(word),
            }
        }
        commands.extend(pipeline(rest, begun));
    }
    commands
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Cuts a line at what ends a command, and takes redirections out.
fn pipeline(words: Vec<ScriptWord>, line: usize) -> Vec<ScriptCommand> {
    let mut commands = Vec::new();
    let mut command = ScriptCommand { line, words: Vec::new(), redirections: Vec::new() };
    for word in words {
        match word.text.as_str() {
            "|" | "&" | ";" | "&&" | "||" => {
                if word.text == "|" {
                    command.redirections.push("|".to_owned());
                }
                let next = ScriptCommand { line, words: Vec::new(), redirections: Vec::new() };
                commands.push(std::mem::replace(&mut command, next));
            }
            text if text.starts_with(['>', '<']) || text.starts_with("2>") || text.starts_with("1>") => {
                command.redirections.push(text.to_owned());
            }
            _ => command.words.push(word),
        }
    }
    commands.push(command);
    commands.retain(|command| !command.words.is_empty());
    commands
}

/// Splits as sh does, with its quotes; what only it can find out is left as it is, and open.
fn split(line: &str, variables: &BTreeMap<String, ScriptWord>, expands: bool) -> Vec<ScriptWord> {
    let characters: Vec<char> = line.chars().collect();
    let mut words: Vec<ScriptWord> = Vec::new();
    let mut word: Option<ScriptWord> = None;
    let mut quote: Option<char> = None;
    let mut at = 0;
    while let Some(&character) = characters.get(at) {
        at += 1;
        let current = |word: &mut Option<ScriptWord>, text: &str, is_open: bool| {
            let word = word.get_or_insert_with(|| ScriptWord { text: String::new(), is_open: false });
            word.text.push_str(text);
            word.is_open |= is_open;
        };
        match (character, quote) {
            ('\'', None) | ('"', None) => {
                quote = Some(character);
                current(&mut word, "", false);
            }
            (end, Some(begin)) if end == begin => quote = None,
            ('\\', None | Some('"')) => {
                if let Some(next) = characters.get(at) {
                    current(&mut word, &next.to_string(), false);
                    at += 1;
                }
            }
            ('`', None | Some('"')) => {
                let end = characters
                    .iter()
                    .skip(at)
                    .position(|c| *c == '`')
                    .map_or(characters.len(), |end| at + end);
                let inside: String = characters.get(at..end).unwrap_or_default().iter().collect();
                substituted(&mut word, &inside, current);
                at = end + 1;
            }
            ('$', None | Some('"')) if expands => {
                let rest: String = characters.get(at..).unwrap_or_default().iter().collect();
                if let Some(inside) = rest.strip_prefix('(') {
                    let length = inside.find(')').unwrap_or(inside.len());
                    let inside = inside.get(..length).unwrap_or_default();
                    substituted(&mut word, inside, current);
                    at += inside.chars().count() + 2;
                    continue;
                }
                let (name, length) = match rest.strip_prefix('{') {
                    Some(inside) => {
                        let length = inside.find('}').unwrap_or(inside.len());
                        let inside = inside.get(..length).unwrap_or_default();
                        (inside.to_owned(), inside.chars().count() + 2)
                    }
                    None => {
                        let name: String =
                            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                        let length = name.len();
                        (name, length)
                    }
                };
                match variables.get(&name) {
                    Some(known) if quote.is_none() && !known.is_open && known.text.contains(' ') => {
                        let mut parts = known.text.split_whitespace();
                        current(&mut word, parts.next().unwrap_or_default(), known.is_open);
                        for part in parts {
                            words.extend(word.take());
                            current(&mut word, part, known.is_open);
                        }
                    }
                    Some(known) => current(&mut word, &known.text, known.is_open),
                    None => current(&mut word, &format!("${name}"), true),
                }
                at += length;
            }
            // execline's own variables.
            ('$', None | Some('"')) => current(&mut word, "$", true),
            ('#', None) if word.is_none() => break,
            (separator @ ('|' | ';' | '&'), None) if expands => {
                let is_descriptor =
                    separator == '&' && word.as_ref().is_some_and(|word| word.text.ends_with('>'));
                if is_descriptor {
                    current(&mut word, "&", false);
                } else {
                    words.extend(word.take());
                    words.push(ScriptWord { text: separator.to_string(), is_open: false });
                }
            }
            (space, None) if space.is_whitespace() => words.extend(word.take()),
            _ => current(&mut word, &character.to_string(), false),
        }
    }
    words.extend(word);
    words
}

/// What a command in a command says, if that is known: the numbers of a user stand for his name.
fn substituted(
    word: &mut Option<ScriptWord>,
    inside: &str,
    current: impl Fn(&mut Option<ScriptWord>, &str, bool),
) {
    let inner: Vec<&str> = inside.split_whitespace().collect();
    match inner[..] {
        ["id" | "/usr/bin/id", "-u" | "-g" | "-ur" | "-gr", user] if !user.contains('$') => {
            current(word, user, false);
        }
        _ => current(word, &format!("`{inside}`"), true),
    }
}
