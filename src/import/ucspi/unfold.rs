//! Commands that another command has as its argument: `sh -c 'COMMANDS'`, `su USER -c 'COMMANDS'`.

use std::collections::BTreeMap;

use super::{base, is_server, server_of};
use crate::import::script::{ScriptCommand, ScriptWord, commands};

/// Deeper ones are not looked into.
const DEEPEST: usize = 4;

/// The commands that a command is, if it has a shell run one that starts a server; or itself. These variables are in the environment.
pub(super) fn unfolded(command: ScriptCommand, variables: &BTreeMap<String, String>) -> Vec<ScriptCommand> {
    let known = variables.iter().filter(|(_, value)| !value.contains(['\'', '\n']));
    let known: String = known.map(|(name, value)| format!("{name}='{value}'\n")).collect();
    at_depth(command, &known, DEEPEST)
}

fn at_depth(command: ScriptCommand, known: &str, depth: usize) -> Vec<ScriptCommand> {
    let Some((before, text)) = shell(&command.words).filter(|_| depth > 0) else { return vec![command] };
    let inner: Vec<ScriptCommand> = commands(&format!("{known}{}", text.text))
        .into_iter()
        .flat_map(|inner| at_depth(inner, known, depth - 1))
        .collect();
    if !inner.iter().any(|inner| is_server(&inner.words)) {
        return vec![command];
    }
    let placed = inner.into_iter().map(|mut inner| {
        if text.is_open {
            // What was open outside looks like what a quote keeps inside.
            inner.words.iter_mut().for_each(|word| word.is_open |= word.text.contains(['$', '`']));
        }
        if is_server(&inner.words) {
            inner.words.splice(0..0, before.iter().cloned());
            inner.redirections.extend(command.redirections.iter().cloned());
        }
        inner.line = command.line;
        inner
    });
    placed.collect()
}

/// What stands before a shell, or says for whom it is, and the text that it runs.
fn shell(words: &[ScriptWord]) -> Option<(Vec<ScriptWord>, ScriptWord)> {
    let is_shell =
        |word: &ScriptWord| matches!(base(&word.text), "sh" | "bash" | "dash" | "ash" | "ksh" | "zsh");
    let is_su = |word: &ScriptWord| matches!(base(&word.text), "su" | "runuser");
    let stops = |word: &ScriptWord| is_shell(word) || is_su(word) || server_of(&word.text).is_some();
    let place = words.iter().position(stops)?;
    let (before, rest) = words.split_at(place);
    let (name, rest) = rest.split_first()?;
    if is_shell(name) {
        let mut flags = rest.iter().take_while(|word| word.text.starts_with('-'));
        let flag = flags.position(|word| word.text.ends_with('c') && !word.text.starts_with("--"))?;
        return Some((before.to_vec(), rest.get(flag + 1)?.clone()));
    }
    is_su(name).then(|| su(before, name, rest)).flatten()
}

/// su(1) and runuser(1).
fn su(
    before: &[ScriptWord],
    name: &ScriptWord,
    words: &[ScriptWord],
) -> Option<(Vec<ScriptWord>, ScriptWord)> {
    let (mut user, mut text) = (None, None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.text.as_str() {
            "-c" | "--command" => text = words.next().cloned(),
            "-u" | "--user" => user = words.next().cloned(),
            "-s" | "--shell" | "-g" | "--group" | "-G" | "--supp-group" => {
                words.next();
            }
            flag if flag.starts_with('-') => text = flag.strip_prefix("--command=").map(known).or(text),
            _ if user.is_none() => user = Some(word.clone()),
            _ => (),
        }
    }
    let user = user.unwrap_or_else(|| known("root"));
    Some((before.iter().chain([name, &user]).cloned().collect(), text?))
}

fn known(text: &str) -> ScriptWord {
    ScriptWord { text: text.to_owned(), is_open: false }
}
