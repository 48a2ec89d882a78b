//! From characters to words and operators, with what is known of variables filled in: sh(1p), 2.2 to 2.7.

use std::collections::VecDeque;

use super::{ScriptVariables, ScriptWord, is_name};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ScriptToken {
    Word {
        word: ScriptWord,
        /// Some of it was in quotes: it is no keyword.
        is_quoted: bool,
    },
    /// A newline is one, too.
    Operator(String),
    /// It takes the word that follows.
    Redirection(String),
}

pub(super) struct Lexer {
    characters: Vec<char>,
    at: usize,
    line: usize,
    /// Whether it is sh, which has operators and variables.
    expands: bool,
    /// How deep in substitutions.
    depth: usize,
    queue: VecDeque<ScriptToken>,
    /// The last lines of here-documents that begin after this line, and whether tabs before them do not count.
    documents: Vec<(String, bool)>,
    guesses: Vec<(String, String)>,
    /// How much may come of variables yet.
    budget: usize,
}

/// A word that is being read, and those before it that came of the same variable.
#[derive(Default)]
struct Pending {
    word: ScriptWord,
    is_quoted: bool,
    before: Vec<ScriptToken>,
}

impl Pending {
    fn push(&mut self, text: &str, is_open: bool) {
        self.word.text.push_str(text);
        self.word.is_open |= is_open;
    }

    fn end(&mut self) {
        let (word, is_quoted) = (std::mem::take(&mut self.word), std::mem::take(&mut self.is_quoted));
        if is_quoted || word.is_open || !word.text.is_empty() {
            self.before.push(ScriptToken::Word { word, is_quoted });
        }
    }

    /// The value of a variable: outside of quotes each word of it is a word, but not in an assignment.
    fn value(&mut self, value: &ScriptWord, in_quotes: bool, budget: &mut usize) {
        *budget = budget.saturating_sub(value.text.len());
        if *budget == 0 {
            return self.push("$", true);
        }
        let is_assignment = self.word.text.split_once('=').is_some_and(|(name, _)| is_name(name));
        if in_quotes || value.is_open || is_assignment {
            return self.push(&value.text, value.is_open);
        }
        let mut parts = value.text.split(char::is_whitespace);
        self.push(parts.next().unwrap_or_default(), false);
        for part in parts {
            self.end();
            self.push(part, false);
        }
    }
}

/// Deeper substitutions are not looked into.
const DEEPEST: usize = 4;
/// In longer ones nobody finds an end.
const LONGEST: usize = 65_536;

impl Lexer {
    pub(super) fn new(text: &str, expands: bool) -> Self {
        Lexer {
            characters: text.chars().collect(),
            at: 0,
            line: 1,
            expands,
            depth: 0,
            queue: VecDeque::new(),
            documents: Vec::new(),
            guesses: Vec::new(),
            budget: 1 << 20,
        }
    }

    /// The line that is being read.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Defaults of variables that were taken since the last call, and their values.
    pub(super) fn guesses(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.guesses)
    }

    /// A here-document begins after this line, and ends with this one.
    pub(super) fn skip_document(&mut self, end: &str, strips_tabs: bool) {
        self.documents.push((end.to_owned(), strips_tabs));
    }

    /// Whether a word follows on this line.
    pub(super) fn has_word(&mut self) -> bool {
        self.skip_blanks();
        !self.queue.is_empty() || self.peek().is_some_and(|next| next != '\n' && !is_operator(next))
    }

    /// Goes over this character, if it is next.
    pub(super) fn takes(&mut self, wanted: char) -> bool {
        self.skip_blanks();
        let is_next = self.peek() == Some(wanted);
        if is_next {
            self.bump();
        }
        is_next
    }

    fn peek(&self) -> Option<char> {
        self.characters.get(self.at).copied()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += 1;
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(index, wanted)| self.characters.get(self.at + index) == Some(&wanted))
    }

    fn skip_blanks(&mut self) {
        loop {
            match self.peek() {
                Some('\n') if self.expands => return,
                Some(space) if space.is_whitespace() => {
                    self.bump();
                }
                Some('\\') if self.starts_with("\\\n") => {
                    self.bump();
                    self.bump();
                }
                Some('#') => {
                    while self.peek().is_some_and(|next| next != '\n') {
                        self.bump();
                    }
                }
                _ => return,
            }
        }
    }

    fn rest_of_line(&mut self) -> String {
        let mut line = String::new();
        while let Some(next) = self.bump().filter(|next| *next != '\n') {
            line.push(next);
        }
        line
    }

    pub(super) fn next(&mut self, variables: &mut ScriptVariables) -> Option<ScriptToken> {
        loop {
            if let Some(token) = self.queue.pop_front() {
                return Some(token);
            }
            self.skip_blanks();
            let next = self.peek()?;
            if self.expands && next == '\n' {
                self.bump();
                for (end, strips_tabs) in std::mem::take(&mut self.documents) {
                    while self.peek().is_some() {
                        let line = self.rest_of_line();
                        if (if strips_tabs { line.trim_start_matches('\t') } else { &line }) == end {
                            break;
                        }
                    }
                }
                return Some(ScriptToken::Operator("\n".to_owned()));
            }
            if self.expands && is_operator(next) && !self.starts_with("<(") && !self.starts_with(">(") {
                return Some(self.operator(""));
            }
            let token = self.word(variables);
            self.queue.extend(token);
        }
    }

    fn operator(&mut self, descriptor: &str) -> ScriptToken {
        const REDIRECTIONS: [&str; 12] =
            ["&>>", "&>", ">>", ">&", ">|", ">", "<<<", "<<-", "<<", "<&", "<>", "<"];
        const OTHERS: [&str; 10] = ["&&", "&", "||", "|&", "|", ";;&", ";;", ";&", ";", "("];
        let find = |all: &[&'static str]| all.iter().copied().find(|operator| self.starts_with(operator));
        let (redirection, other) = (find(&REDIRECTIONS), find(&OTHERS));
        let operator = redirection.or(other).unwrap_or(")");
        self.at += operator.len();
        match redirection {
            Some(operator) => ScriptToken::Redirection(format!("{descriptor}{operator}")),
            None => ScriptToken::Operator(operator.to_owned()),
        }
    }

    fn word(&mut self, variables: &mut ScriptVariables) -> Vec<ScriptToken> {
        let mut pending = Pending::default();
        while let Some(next) = self.peek() {
            match next {
                '\'' => {
                    self.bump();
                    pending.is_quoted = true;
                    while let Some(next) = self.bump().filter(|next| *next != '\'') {
                        pending.word.text.push(next);
                    }
                }
                '"' => {
                    self.bump();
                    pending.is_quoted = true;
                    self.in_quotes(&mut pending, variables);
                }
                '\\' => {
                    self.bump();
                    if let Some(next) = self.bump().filter(|next| *next != '\n') {
                        pending.is_quoted = true;
                        pending.word.text.push(next);
                    }
                }
                '`' | '$' => self.substitution(&mut pending, false, variables),
                '<' | '>' if self.expands && self.characters.get(self.at + 1) == Some(&'(') => {
                    self.at += 2;
                    let inside = self.until(')', Some('('));
                    pending.push(&format!("{next}({inside})"), true);
                }
                _ if next.is_whitespace() => break,
                '<' | '>' if self.expands => {
                    let text = &pending.word.text;
                    let is_descriptor = !pending.is_quoted
                        && !text.is_empty()
                        && text.bytes().all(|byte| byte.is_ascii_digit());
                    if is_descriptor {
                        let descriptor = std::mem::take(&mut pending.word.text);
                        let operator = self.operator(&descriptor);
                        pending.before.push(operator);
                    }
                    break;
                }
                _ if self.expands && is_operator(next) => break,
                _ => {
                    self.bump();
                    pending.word.text.push(next);
                }
            }
        }
        pending.end();
        pending.before
    }

    fn in_quotes(&mut self, pending: &mut Pending, variables: &mut ScriptVariables) {
        while let Some(next) = self.peek() {
            match next {
                '"' => {
                    self.bump();
                    return;
                }
                '\\' => {
                    self.bump();
                    match self.bump() {
                        Some('\n') if self.expands => (),
                        Some(next) => {
                            if self.expands && !matches!(next, '$' | '`' | '"' | '\\') {
                                pending.word.text.push('\\');
                            }
                            pending.word.text.push(next);
                        }
                        None => (),
                    }
                }
                '`' | '$' => self.substitution(pending, true, variables),
                _ => {
                    self.bump();
                    pending.word.text.push(next);
                }
            }
        }
    }

    /// What is before this character, which is gone over; inside of it, another may open that ends with the same.
    fn until(&mut self, close: char, open: Option<char>) -> String {
        let mut depth = 0usize;
        let mut quote = None;
        let mut inside = String::new();
        while let Some(next) = self.bump() {
            if inside.len() > LONGEST {
                self.at = self.characters.len();
                break;
            }
            match next {
                _ if quote == Some(next) => quote = None,
                _ if quote.is_some() => (),
                '\'' | '"' if open.is_some() => quote = Some(next),
                _ if next == close && depth == 0 => break,
                _ if next == close => depth -= 1,
                _ if Some(next) == open => depth += 1,
                _ => (),
            }
            inside.push(next);
        }
        inside
    }

    /// From `` ` `` or `$`.
    fn substitution(&mut self, pending: &mut Pending, in_quotes: bool, variables: &mut ScriptVariables) {
        if self.bump() == Some('`') {
            let inside = self.until('`', None);
            return self.command(pending, &inside, variables);
        }
        if !self.expands {
            // execline's own variables.
            return pending.push("$", true);
        }
        match self.peek() {
            Some('(') if self.starts_with("((") => {
                self.at += 1;
                let inside = self.until(')', Some('('));
                pending.push(&format!("$({inside})"), true);
            }
            Some('(') => {
                self.at += 1;
                let inside = self.until(')', Some('('));
                self.command(pending, &inside, variables);
            }
            Some('{') => {
                self.at += 1;
                let inside = self.until('}', Some('{'));
                self.parameter(pending, &inside, in_quotes, variables);
            }
            Some(first) if first.is_ascii_alphabetic() || first == '_' => {
                let mut name = String::new();
                while let Some(next) = self.peek().filter(|next| next.is_ascii_alphanumeric() || *next == '_')
                {
                    name.push(next);
                    self.bump();
                }
                match variables.get(&name) {
                    Some(known) => pending.value(known, in_quotes, &mut self.budget),
                    None => pending.push(&format!("${name}"), true),
                }
            }
            Some(special) if special.is_ascii_digit() || "?!$#@*-".contains(special) => {
                self.bump();
                pending.push(&format!("${special}"), true);
            }
            _ => pending.push("$", false),
        }
    }

    /// What is between the braces of `${…}`.
    fn parameter(
        &mut self,
        pending: &mut Pending,
        inside: &str,
        in_quotes: bool,
        variables: &mut ScriptVariables,
    ) {
        let length = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
        let (name, rest) = inside.split_at(length);
        let (counts_empty, operator) = match rest.strip_prefix(':') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let known = variables.get(name).cloned();
        let default = operator
            .strip_prefix(['-', '='])
            .or_else(|| operator.strip_prefix('?').map(|_| ""))
            .filter(|_| !name.is_empty());
        match (known, default) {
            (Some(known), _) if rest.is_empty() => pending.value(&known, in_quotes, &mut self.budget),
            (Some(known), Some(_)) if known.is_open => pending.push(&format!("${{{inside}}}"), true),
            (Some(known), Some(_)) if !counts_empty || !known.text.is_empty() => {
                pending.value(&known, in_quotes, &mut self.budget);
            }
            (known, Some(default)) if !operator.starts_with('?') => {
                let value =
                    self.inner(default, variables).filter(|words| words.iter().all(|word| !word.is_open));
                let Some(words) = value else { return pending.push(&format!("${{{inside}}}"), true) };
                let text = words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ");
                let value = ScriptWord { text, is_open: false };
                if known.is_none() {
                    self.guesses.push((format!("${{{inside}}}"), value.text.clone()));
                }
                if operator.starts_with('=') {
                    variables.insert(name.to_owned(), value.clone());
                }
                pending.value(&value, in_quotes, &mut self.budget);
            }
            _ => pending.push(&format!("${{{inside}}}"), true),
        }
    }

    /// A command whose output is meant. What it says only the script can find out, but its words may be known.
    fn command(&mut self, pending: &mut Pending, inside: &str, variables: &mut ScriptVariables) {
        let read = inside.trim_start().strip_prefix('<').map(|file| format!("cat {file}"));
        let words = self.inner(read.as_deref().unwrap_or(inside), variables);
        let known = words.filter(|words| words.iter().all(|word| !word.is_open && !word.text.contains('`')));
        let text =
            known.map(|words| words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" "));
        pending.push(&format!("`{}`", text.as_deref().unwrap_or(inside)), true);
    }

    /// The words of one command, without what is done with its errors.
    fn inner(&mut self, text: &str, variables: &mut ScriptVariables) -> Option<Vec<ScriptWord>> {
        if self.depth >= DEEPEST {
            return None;
        }
        let mut inner = Lexer { depth: self.depth + 1, budget: self.budget, ..Lexer::new(text, true) };
        let mut words = Vec::new();
        while let Some(token) = inner.next(variables) {
            match token {
                ScriptToken::Word { word, .. } => words.push(word),
                ScriptToken::Redirection(operator) if operator.starts_with("2>") => {
                    inner.next(variables);
                }
                _ => return None,
            }
        }
        self.guesses.append(&mut inner.guesses);
        self.budget = inner.budget;
        Some(words)
    }
}

fn is_operator(character: char) -> bool {
    matches!(character, '|' | '&' | ';' | '<' | '>' | '(' | ')')
}
