//! The words of a run script, as far as they can be known without running it: sh and execline.

mod lexer;

use std::collections::{BTreeMap, BTreeSet};

use lexer::{Lexer, ScriptToken};

/// A word, and whether all of it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ScriptWord {
    /// What only the script itself can find out is left as it is: `$NAME`, and a command in backquotes.
    pub(crate) text: String,
    /// There is such in it.
    pub(crate) is_open: bool,
}

/// A command of a script. What is done under a condition stands between [`THEN`] and [`FI`], which are commands of one word; [`ELSE`]
/// begins what is done otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScriptCommand {
    pub(crate) line: usize,
    pub(crate) words: Vec<ScriptWord>,
    /// What was done with its output.
    pub(crate) redirections: Vec<String>,
}

pub(crate) const THEN: &str = "then";
pub(crate) const ELSE: &str = "else";
pub(crate) const FI: &str = "fi";
/// What has no effect on what follows [`SUBSHELL_END`].
pub(crate) const SUBSHELL: &str = "(";
pub(crate) const SUBSHELL_END: &str = ")";

/// More than any script has.
const MOST_WORDS: usize = 20_000;
const MOST_VARIABLES: usize = 500;
const MOST_FRAMES: usize = 64;
const LONGEST_VALUE: usize = 1024;

/// By their names.
type ScriptVariables = BTreeMap<String, ScriptWord>;

/// The commands of a script.
pub(crate) fn commands(text: &str) -> Vec<ScriptCommand> {
    let first = text.lines().next().unwrap_or_default();
    if first.starts_with("#!") && first.contains("execline") {
        return chain(text);
    }
    let mut reading = ShellReading::default();
    reading.read(text);
    reading.commands
}

/// Of the text of a word, the user whose number it is: `` `id -u USER` ``, or with `-g` that of his group.
pub(crate) fn account(text: &str, flag: char) -> Option<&str> {
    let words: Vec<&str> = backquoted(text)?.split_whitespace().collect();
    let is_flag = |word: &str| {
        word.strip_prefix('-').is_some_and(|word| word.trim_matches(['r', 'n']).starts_with(flag))
    };
    match words[..] {
        [id, word, user] if is_called(id, "id") && is_flag(word) => Some(user),
        _ => None,
    }
}

/// Of the text of a word, the file from which it is read, and whether only its first line is.
pub(crate) fn file_of(command: &str) -> Option<(&str, bool)> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        [cat, file] if is_called(cat, "cat") => Some((file, false)),
        [head, "-1" | "-n1", file] | [head, "-n", "1", file] if is_called(head, "head") => Some((file, true)),
        _ => None,
    }
}

fn is_called(word: &str, name: &str) -> bool {
    word.rsplit('/').next() == Some(name)
}

fn backquoted(text: &str) -> Option<&str> {
    text.strip_prefix('`')?.strip_suffix('`').filter(|inside| !inside.contains('`'))
}

/// All of an execline script is one command.
fn chain(text: &str) -> Vec<ScriptCommand> {
    let mut lexer = Lexer::new(text, false);
    let mut words = Vec::new();
    let mut first = 0;
    while let Some(token) = lexer.next(&mut ScriptVariables::new()) {
        if words.is_empty() {
            first = lexer.line();
        }
        if let ScriptToken::Word { word, .. } = token {
            words.push(word);
        }
        if words.len() > MOST_WORDS {
            break;
        }
    }
    vec![ScriptCommand { line: first, words, redirections: Vec::new() }]
}

/// What is between a keyword and its end.
#[derive(Debug)]
struct Frame {
    kind: FrameKind,
    /// The variables before it.
    before: ScriptVariables,
    /// How many branches have begun.
    branches: usize,
    /// The variables after each of its branches that goes on after it.
    outcomes: Vec<ScriptVariables>,
    /// One of its branches is taken in any case.
    is_complete: bool,
    /// The branch that is being read ends the script.
    has_ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FrameKind {
    If,
    Case,
    Loop,
    Function,
    Group,
    Subshell,
    /// What follows `&&` and `||`.
    List,
}

/// Where in a `case` the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patterns {
    Outside,
    /// In a pattern, which may be one that everything matches.
    Inside {
        is_any: bool,
    },
}

#[derive(Debug)]
struct ShellReading {
    commands: Vec<ScriptCommand>,
    /// The command that is being read.
    command: ScriptCommand,
    variables: ScriptVariables,
    exported: BTreeSet<String>,
    frames: Vec<Frame>,
    patterns: Patterns,
    /// A function's name was read, and its body follows.
    is_function: bool,
    count: usize,
}

impl Default for ShellReading {
    fn default() -> Self {
        ShellReading {
            commands: Vec::new(),
            command: ScriptCommand { line: 0, words: Vec::new(), redirections: Vec::new() },
            variables: ScriptVariables::new(),
            exported: BTreeSet::new(),
            frames: Vec::new(),
            patterns: Patterns::Outside,
            is_function: false,
            count: 0,
        }
    }
}

/// What stands before a command and is none.
const BEFORE_CONDITIONS: [&str; 5] = ["if", "elif", "while", "until", "!"];

impl ShellReading {
    fn read(&mut self, text: &str) {
        let mut lexer = Lexer::new(text, true);
        while let Some(token) = lexer.next(&mut self.variables) {
            for (written, value) in lexer.guesses() {
                let words =
                    [":", &written, &value].map(|text| ScriptWord { text: text.to_owned(), is_open: false });
                self.commands.push(ScriptCommand {
                    line: lexer.line(),
                    words: words.to_vec(),
                    redirections: Vec::new(),
                });
            }
            if self.command.words.is_empty() {
                self.command.line = lexer.line();
            }
            self.count += 1;
            if self.count > MOST_WORDS
                || self.variables.len() > MOST_VARIABLES
                || self.frames.len() > MOST_FRAMES
            {
                break;
            }
            if let Patterns::Inside { is_any } = self.patterns {
                self.pattern(&token, is_any);
                continue;
            }
            match token {
                ScriptToken::Word { word, is_quoted } => self.word(word, is_quoted),
                ScriptToken::Redirection(operator) => self.redirection(&operator, &mut lexer),
                ScriptToken::Operator(operator) if self.is_test() => {
                    self.command.words.push(ScriptWord { text: operator, is_open: false });
                }
                ScriptToken::Operator(operator) => self.operator(&operator, &mut lexer),
            }
        }
        self.end_of_list();
    }

    /// Whether the command is a `[[` that has not ended.
    fn is_test(&self) -> bool {
        let mut words = self.command.words.iter().map(|word| word.text.as_str());
        let first = words.find(|word| !BEFORE_CONDITIONS.contains(word));
        first == Some("[[") && !words.any(|word| word == "]]")
    }

    fn pattern(&mut self, token: &ScriptToken, was_any: bool) {
        match token {
            ScriptToken::Operator(operator) if operator == ")" => {
                self.patterns = Patterns::Outside;
                self.branch(was_any);
            }
            ScriptToken::Word { word, is_quoted: false } if word.text == "esac" => {
                self.patterns = Patterns::Outside;
                self.end(FrameKind::Case);
            }
            ScriptToken::Word { word, is_quoted } => {
                let is_any = was_any || (word.text == "*" && !is_quoted);
                self.patterns = Patterns::Inside { is_any };
            }
            _ => (),
        }
    }

    fn redirection(&mut self, operator: &str, lexer: &mut Lexer) {
        let mut written = operator.to_owned();
        if lexer.has_word() {
            if let Some(ScriptToken::Word { word, .. }) = lexer.next(&mut self.variables) {
                if matches!(operator.trim_start_matches(|c: char| c.is_ascii_digit()), "<<" | "<<-") {
                    lexer.skip_document(&word.text, operator.ends_with('-'));
                }
                written.push_str(&word.text);
            }
        }
        self.command.redirections.push(written);
    }

    fn operator(&mut self, operator: &str, lexer: &mut Lexer) {
        match operator {
            "&&" | "||" => {
                self.end_of_command();
                if self.frames.last().is_none_or(|frame| frame.kind != FrameKind::List) {
                    self.begin(FrameKind::List);
                    self.first_branch();
                }
            }
            "|" | "|&" => {
                if !self.command.words.is_empty() {
                    self.command.redirections.push("|".to_owned());
                }
                self.end_of_command();
            }
            "(" => match self.command.words.as_slice() {
                [] => {
                    self.begin(FrameKind::Subshell);
                    self.mark(SUBSHELL);
                }
                // A list of bash.
                [.., last] if last.text.ends_with('=') => {
                    let name = last.text.trim_end_matches('=').trim_end_matches('+').to_owned();
                    while let Some(token) = lexer.next(&mut self.variables) {
                        if token == ScriptToken::Operator(")".to_owned()) {
                            break;
                        }
                    }
                    if is_name(&name) {
                        self.command.words.pop();
                        self.assign(&name, opened(&name));
                    }
                }
                _ if lexer.takes(')') => {
                    self.command.words.clear();
                    self.is_function = true;
                }
                _ => (),
            },
            ")" => {
                self.end_of_list();
                self.end(FrameKind::Subshell);
            }
            ";;" | ";&" | ";;&" => {
                self.end_of_list();
                self.patterns = Patterns::Inside { is_any: false };
            }
            _ => self.end_of_list(),
        }
    }

    fn word(&mut self, word: ScriptWord, is_quoted: bool) {
        if !self.command.words.is_empty() || is_quoted {
            let is_function = word.text == "{"
                && matches!(self.command.words.as_slice(), [first, _] if first.text == "function");
            if is_function {
                self.command.words.clear();
                self.is_function = true;
                return self.word(word, false);
            }
            let begins_patterns =
                word.text == "in" && self.command.words.len() == 2 && self.command.words[0].text == "case";
            self.command.words.push(word);
            if begins_patterns {
                self.end_of_command();
                self.begin(FrameKind::Case);
                self.patterns = Patterns::Inside { is_any: false };
            }
            return;
        }
        match word.text.as_str() {
            "if" => {
                self.begin(FrameKind::If);
                self.command.words.push(word);
            }
            "then" => {
                self.end_of_list();
                // After elif it has begun.
                if self.frames.last().is_some_and(|frame| frame.kind == FrameKind::If && frame.branches == 0)
                {
                    self.first_branch();
                }
            }
            "elif" | "else" => {
                self.end_of_list();
                self.branch(word.text == "else");
                if word.text == "elif" {
                    self.command.words.push(word);
                }
            }
            "fi" => {
                self.end_of_list();
                self.end(FrameKind::If);
            }
            "while" | "until" | "for" | "select" => {
                self.begin(FrameKind::Loop);
                self.command.words.push(word);
            }
            "do" => self.end_of_list(),
            "done" => {
                self.end_of_list();
                self.end(FrameKind::Loop);
            }
            "esac" => {
                self.end_of_list();
                self.end(FrameKind::Case);
            }
            "{" if std::mem::take(&mut self.is_function) => {
                self.begin(FrameKind::Function);
                self.first_branch();
            }
            "{" => self.begin(FrameKind::Group),
            "}" => {
                self.end_of_list();
                let kind = self.frames.last().map_or(FrameKind::Group, |frame| frame.kind);
                if matches!(kind, FrameKind::Group | FrameKind::Function) {
                    self.end(kind);
                }
            }
            _ => self.command.words.push(word),
        }
    }

    fn mark(&mut self, keyword: &str) {
        let word = ScriptWord { text: keyword.to_owned(), is_open: false };
        self.commands.push(ScriptCommand {
            line: self.command.line,
            words: vec![word],
            redirections: Vec::new(),
        });
    }

    fn begin(&mut self, kind: FrameKind) {
        let before = self.variables.clone();
        let frame =
            Frame { kind, before, branches: 0, outcomes: Vec::new(), is_complete: false, has_ended: false };
        self.frames.push(frame);
    }

    /// What follows is done under the condition that was read.
    fn first_branch(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            // A condition may set variables, too.
            if frame.kind == FrameKind::If {
                frame.before.clone_from(&self.variables);
            }
            frame.branches = 1;
            frame.has_ended = false;
        }
        self.mark(THEN);
    }

    /// The next branch of an `if` or a `case`; `is_last` if it is taken whenever the others are not.
    fn branch(&mut self, is_last: bool) {
        let Some(frame) =
            self.frames.last_mut().filter(|frame| matches!(frame.kind, FrameKind::If | FrameKind::Case))
        else {
            return;
        };
        frame.is_complete |= is_last;
        if frame.branches == 0 {
            return self.first_branch();
        }
        frame.branches += 1;
        let variables = std::mem::replace(&mut self.variables, frame.before.clone());
        if !std::mem::take(&mut frame.has_ended) {
            frame.outcomes.push(variables);
        }
        self.mark(ELSE);
    }

    /// The end of a frame: what its branches have made of a variable is known if all of them have made the same.
    fn end(&mut self, kind: FrameKind) {
        if self.frames.last().is_none_or(|frame| frame.kind != kind) {
            return;
        }
        let Some(mut frame) = self.frames.pop() else { return };
        match kind {
            FrameKind::Group if frame.has_ended => return self.ends(),
            FrameKind::Group => return,
            FrameKind::Subshell => {
                self.variables = frame.before;
                return self.mark(SUBSHELL_END);
            }
            _ => (),
        }
        if !frame.has_ended {
            frame.outcomes.push(std::mem::take(&mut self.variables));
        }
        if !frame.is_complete {
            frame.outcomes.push(frame.before.clone());
        }
        self.variables = merged(frame.outcomes).unwrap_or(frame.before);
        if frame.branches > 0 {
            self.mark(FI);
        }
    }

    fn end_of_list(&mut self) {
        self.end_of_command();
        while self.frames.last().is_some_and(|frame| frame.kind == FrameKind::List) {
            self.end(FrameKind::List);
        }
    }

    fn end_of_command(&mut self) {
        let next = ScriptCommand { line: self.command.line, words: Vec::new(), redirections: Vec::new() };
        let mut command = std::mem::replace(&mut self.command, next);
        let own =
            command.words.iter().take_while(|word| BEFORE_CONDITIONS.contains(&word.text.as_str())).count();
        let words = command.words.get(own..).unwrap_or_default();
        let Some(first) = words.first().map(|word| word.text.clone()) else { return };
        if words.iter().all(|word| assignment(word).is_some()) {
            let assignments: Vec<(String, ScriptWord)> = words.iter().filter_map(assignment).collect();
            assignments.into_iter().for_each(|(name, value)| self.assign(&name, value));
            return;
        }
        let named: Vec<ScriptWord> = words.iter().skip(1).cloned().collect();
        match first.as_str() {
            "export" => {
                for (index, word) in named.iter().enumerate() {
                    match assignment(word) {
                        Some((name, value)) => {
                            self.exported.remove(&name);
                            self.assign(&name, value);
                            self.exported.insert(name);
                        }
                        None => {
                            self.exported.insert(word.text.clone());
                            if let Some(known) = self.variables.get(&word.text) {
                                command.words[own + 1 + index] = exported(&word.text, known);
                            }
                        }
                    }
                }
            }
            "local" | "readonly" | "declare" | "typeset" => {
                for word in &named {
                    match assignment(word) {
                        Some((name, value)) => self.assign(&name, value),
                        None if is_name(&word.text) && first != "readonly" => {
                            self.assign(&word.text, opened(&word.text));
                        }
                        None => (),
                    }
                }
                return;
            }
            "read" | "getopts" | "mapfile" | "for" | "select" => {
                for word in
                    named.iter().take(if matches!(first.as_str(), "for" | "select") { 1 } else { 100 })
                {
                    if is_name(&word.text) {
                        self.assign(&word.text, opened(&word.text));
                    }
                }
            }
            "unset" => {
                for word in &named {
                    self.variables.insert(word.text.clone(), ScriptWord::default());
                }
            }
            "eval" => self.variables.iter_mut().for_each(|(name, value)| *value = opened(name)),
            "exit" | "return" => self.ends(),
            "exec" if !named.is_empty() => self.ends(),
            _ => (),
        }
        self.commands.push(command);
    }

    /// What follows in this branch is never done.
    fn ends(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.has_ended = true;
        }
    }

    fn assign(&mut self, name: &str, value: ScriptWord) {
        if self.exported.contains(name) {
            let words =
                vec![ScriptWord { text: "export".to_owned(), is_open: false }, exported(name, &value)];
            self.commands.push(ScriptCommand { line: self.command.line, words, redirections: Vec::new() });
        }
        let value = if value.text.len() > LONGEST_VALUE { opened(name) } else { value };
        self.variables.insert(name.to_owned(), value);
    }
}

/// A variable of which only the script itself knows the value.
fn opened(name: &str) -> ScriptWord {
    ScriptWord { text: format!("${name}"), is_open: true }
}

fn exported(name: &str, value: &ScriptWord) -> ScriptWord {
    ScriptWord { text: format!("{name}={}", value.text), is_open: value.is_open }
}

/// What a variable is after one of these, whichever it was.
fn merged(outcomes: Vec<ScriptVariables>) -> Option<ScriptVariables> {
    let mut outcomes = outcomes.into_iter();
    let mut all = outcomes.next()?;
    for outcome in outcomes {
        let names: BTreeSet<String> = all.keys().chain(outcome.keys()).cloned().collect();
        for name in names {
            if all.get(&name) != outcome.get(&name) {
                let open = opened(&name);
                all.insert(name, open);
            }
        }
    }
    Some(all)
}

/// `NAME=VALUE`; with `+=`, what was before is not looked at.
fn assignment(word: &ScriptWord) -> Option<(String, ScriptWord)> {
    let (name, value) = word.text.split_once('=')?;
    let value = ScriptWord { text: value.to_owned(), is_open: word.is_open };
    match name.strip_suffix('+') {
        Some(name) if is_name(name) => Some((name.to_owned(), opened(name))),
        None if is_name(name) => Some((name.to_owned(), value)),
        _ => None,
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
