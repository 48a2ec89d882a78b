//! What is wrong with a configuration, and how it is shown.

use std::fmt;

use crate::journal::is_special;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but somebody should look.
    Warning,
}

/// Where a text was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file, or the flag of a command line.
    pub(crate) name: String,
    /// Where in the file; `None` for a whole file and for flags.
    pub(crate) position: Option<Position>,
    /// Sorts places: the file's or command line's number, then the offset in it.
    pub(crate) order: (usize, usize),
}

/// A stretch of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// From 1.
    pub(crate) line: usize,
    /// From 1, in characters.
    pub(crate) column: usize,
    /// In characters; may be 0 at the end of a line.
    pub(crate) width: usize,
    /// The whole line.
    pub(crate) text: String,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    /// How bad.
    pub(crate) severity: Severity,
    /// Where.
    pub(crate) place: Place,
    /// What.
    pub(crate) message: String,
    /// A second place that has to do with it.
    pub(crate) note: Option<String>,
    /// What would be right.
    pub(crate) help: Option<String>,
    /// As of [`super::value::Fault`]: it is something that this machine does not have now.
    pub(crate) may_pass: bool,
}

impl Diagnostic {
    /// As something that somebody should look at, and no more.
    pub(crate) fn into_warning(self) -> Self {
        Diagnostic { severity: Severity::Warning, ..self }
    }
}

/// Everything that is wrong, in the order of files and lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Adds one.
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    /// Adds those of `others` that are on no line about which something has been said already: after a syntax error, the
    /// rest of its line is a guess.
    pub(crate) fn add_elsewhere(&mut self, others: Diagnostics) {
        let line = |diagnostic: &Diagnostic| {
            Some((diagnostic.place.order.0, diagnostic.place.position.as_ref()?.line))
        };
        let taken: Vec<_> = self.list.iter().filter_map(line).collect();
        self.list.extend(
            others.list.into_iter().filter(|other| !line(other).is_some_and(|line| taken.contains(&line))),
        );
    }

    /// Sorts by file and line; of two at one place, the one found first stays first.
    pub(crate) fn sort(&mut self) {
        self.list.sort_by_key(|diagnostic| diagnostic.place.order);
    }

    /// How many errors there are, warnings not counted.
    pub(crate) fn errors(&self) -> usize {
        self.list.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count()
    }

    /// Each of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// Each of them, to say more about it.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Diagnostic> {
        self.list.iter_mut()
    }

    /// One line for a log or `systemctl`: the first error, and how many more there are.
    pub(crate) fn first_line(&self) -> String {
        let first = self.list.iter().find(|d| d.severity == Severity::Error).or(self.list.first());
        let Some(first) = first else {
            return String::from("no errors");
        };
        match self.errors().saturating_sub(1) {
            0 => first.headline(),
            1 => format!("{} (and 1 more error)", first.headline()),
            more => format!("{} (and {more} more errors)", first.headline()),
        }
    }
}

impl Diagnostic {
    /// `FILE:LINE:COLUMN: MESSAGE; HELP`, for a sentence that goes on.
    pub(crate) fn reason(&self) -> String {
        let help = self.help.as_ref().map(|help| format!("; {}", escape(help))).unwrap_or_default();
        format!("{}: {}{help}", self.place, escape(&self.message))
    }

    /// `FILE:LINE:COLUMN: error: MESSAGE; HELP`, for a log.
    pub(crate) fn line(&self) -> String {
        let more = [&self.note, &self.help].into_iter().flatten();
        more.fold(self.headline(), |line, more| format!("{line}; {}", escape(more)))
    }

    /// `FILE:LINE:COLUMN: error: MESSAGE`.
    pub(crate) fn headline(&self) -> String {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        format!("{}: {severity}: {}", self.place, escape(&self.message))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", escape(&self.name))?;
        match &self.position {
            Some(position) => write!(f, ":{}:{}", position.line, position.column),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline())?;
        if let Some(position) = &self.place.position {
            write!(f, "{position}")?;
        }
        if let Some(note) = &self.note {
            writeln!(f, "   note: {}", escape(note))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "   help: {}", escape(help))?;
        }
        Ok(())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.replace('\t', " ");
        let before: String = text.chars().take(self.column - 1).collect();
        let marked: String = text.chars().skip(self.column - 1).take(self.width).collect();
        // Escaping makes characters wider, so the marker is measured after it.
        let indent = escape(&before).chars().count();
        let width = escape(&marked).chars().count().max(1);
        writeln!(f, "{:>5} | {}", self.line, escape(text.trim_end()))?;
        writeln!(f, "      | {}{}", " ".repeat(indent), "^".repeat(width))
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.list.iter().try_for_each(|diagnostic| write!(f, "{diagnostic}"))
    }
}

/// Makes what a terminal would obey, and what reorders or hides text (CVE-2021-42574), visible.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => safe.push(c),
            c if is_special(c) => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// The candidate that `word` was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &str| strsim::normalized_damerau_levenshtein(word, candidate);
    candidates
        .into_iter()
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(message: &str, text: &str, column: usize, width: usize) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            place: Place {
                name: "/etc/x.toml".into(),
                position: Some(Position { line: 12, column, width, text: text.into() }),
                order: (0, 0),
            },
            message: message.into(),
            note: None,
            help: None,
            may_pass: false,
        }
    }

    #[test]
    fn control_characters_are_shown_and_the_marker_stays_below_its_text() {
        let shown = diagnostic("\u{1b}[2J is bad", "a = \"\u{1b}[2J\" # \u{202e}", 6, 4).to_string();
        assert_eq!(
            shown,
            "/etc/x.toml:12:6: error: \\u{1b}[2J is bad\n   12 | a = \"\\u{1b}[2J\" # \\u{202e}\n      |      ^^^^^^^^^\n"
        );
    }

    #[test]
    fn one_line_says_how_many_more() {
        let mut all = Diagnostics::default();
        assert_eq!(all.first_line(), "no errors");
        all.push(Diagnostic { severity: Severity::Warning, ..diagnostic("odd", "", 1, 0) });
        all.push(diagnostic("first", "", 1, 0));
        assert_eq!(all.first_line(), "/etc/x.toml:12:1: error: first");
        all.push(diagnostic("second", "", 1, 0));
        assert_eq!(all.first_line(), "/etc/x.toml:12:1: error: first (and 1 more error)");
        all.push(diagnostic("third", "", 1, 0));
        assert_eq!(all.first_line(), "/etc/x.toml:12:1: error: first (and 2 more errors)");
    }

    #[test]
    fn the_nearest_word_is_near() {
        let keys = ["workers", "user", "umask", "max_connections"];
        assert_eq!(nearest("max-conections", keys), Some("max_connections"));
        assert_eq!(nearest("worker", keys), Some("workers"));
        assert_eq!(nearest("zzz", keys), None);
    }
}
