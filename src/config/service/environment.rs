//! The environment of a service's programs: of its user, of files, and what the configuration says itself.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::iter::Peekable;
use std::str::Chars;

use toml::Spanned;

use crate::config::checked::OWN_VARIABLES;
use crate::config::draft::{EnvironmentFile, ServiceDraft};
use crate::config::machine::Machine;
use crate::config::machine::accounts::{Accounts, User};
use crate::config::machine::named::find_user;
use crate::config::open::open_file;
use crate::config::value::{Fault, Faults};

/// Longer files are a mistake: the kernel would not pass them on.
const LONGEST_FILE: u64 = 1 << 20;

type Variables = BTreeMap<String, String>;

/// All of it: a file wins over the user, a later file over an earlier one, and `environment` over all.
pub(super) fn of(draft: &ServiceDraft, machine: &Machine<'_>) -> Result<Variables, Faults> {
    let mut variables = draft.user.as_ref().map(|name| of_user(name, &machine.accounts)).unwrap_or_default();
    let mut faults = Faults::new();
    for file in &draft.environment_file {
        (machine.waits_for)(format_args!("{}", file.get_ref().path.display()));
        match of_file(file) {
            Ok(found) => variables.extend(found),
            Err(fault) => faults.push(fault),
        }
    }
    variables.extend(draft.environment.clone());
    if faults.is_empty() { Ok(variables) } else { Err(faults) }
}

/// What systemd sets for `User=`, see systemd.exec(5): without a home that is no place of its own, and without a shell that
/// lets nobody in. A user without an entry in passwd(5) has nothing of it.
fn of_user(name: &Spanned<String>, accounts: &Accounts) -> Variables {
    // A user who is not found has been reported.
    let Ok(Some(User { name, home, shell, .. })) = find_user(name, accounts) else { return Variables::new() };
    let home = Some(home).filter(|home| home.starts_with('/') && !home.trim_matches('/').is_empty());
    let is_shell = |shell: &String| {
        let program = shell.rsplit('/').next().unwrap_or_default();
        shell.starts_with('/') && !["nologin", "false", "true"].contains(&program)
    };
    let shell = Some(shell).filter(is_shell);
    [("USER", Some(name.clone())), ("LOGNAME", Some(name)), ("HOME", home), ("SHELL", shell)]
        .into_iter()
        .filter_map(|(variable, value)| Some((variable.to_owned(), value?)))
        .collect()
}

/// The variables of a file. Its values are nobody's business: no message has one.
fn of_file(file: &Spanned<EnvironmentFile>) -> Result<Variables, Fault> {
    let EnvironmentFile { path, is_optional } = file.get_ref();
    let fault = |what: &str, help: &str| {
        Fault::new(file.span(), format!("cannot use {}{what}", path.display())).help(help)
    };
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if *is_optional && error.kind() == io::ErrorKind::NotFound => return Ok(Variables::new()),
        Err(error) => {
            let why = match error.kind() {
                io::ErrorKind::NotFound => "there is no such file".to_owned(),
                io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                io::ErrorKind::InvalidData => "it is not UTF-8".to_owned(),
                io::ErrorKind::FileTooLarge => format!("it has more than {LONGEST_FILE} bytes"),
                _ => error.to_string(),
            };
            let help = "correct the path, or write \"-\" before it if the file may be missing";
            return Err(fault(&format!(": {why}"), help));
        }
    };
    parse(&text).map_err(|(line, why)| fault(&format!(", line {line}: {why}"), RIGHT))
}

const RIGHT: &str = "write lines NAME=value as for EnvironmentFile= of systemd; a value with spaces at its ends goes in quotes, \
                     and comments start with # or ;";

fn read(path: &std::path::Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    open_file(path)?.take(LONGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Reads it as systemd does (`EnvironmentFile=` in systemd.exec(5)), but what systemd ignores is an error with its line.
pub(crate) fn parse(text: &str) -> Result<Variables, (usize, String)> {
    let mut variables = Variables::new();
    let mut lines = Lines { rest: text.chars().peekable(), line: 1 };
    while let Some(first) = lines.rest.peek().copied() {
        if first.is_whitespace() {
            lines.next();
        } else if matches!(first, '#' | ';') {
            while lines.rest.peek().is_some_and(|&c| c != '\n') {
                lines.next();
            }
        } else {
            let line = lines.line;
            let (name, value) = lines.variable().map_err(|why| (line, why))?;
            variables.insert(name, value);
        }
    }
    Ok(variables)
}

/// What is left of a file, and in which line that begins.
struct Lines<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
}

impl Lines<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn variable(&mut self) -> Result<(String, String), String> {
        let mut name = String::new();
        loop {
            match self.rest.peek() {
                Some('=') => break,
                None | Some('\n') => return Err("there is no \"=\"".to_owned()),
                Some(_) => name.extend(self.next()),
            }
        }
        self.next();
        if name.starts_with("export ") {
            return Err("\"export\" is for a shell; write NAME=value alone".to_owned());
        }
        let is_right = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.chars().all(is_right) || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("\"{}\" cannot be a variable", name.escape_debug()));
        }
        if OWN_VARIABLES.contains(&name.as_str()) {
            return Err(format!("{name} is set by preforkd for each connection"));
        }
        let value = self.value().map_err(|why| format!("{name}: {why}"))?;
        if value.contains('\0') {
            return Err(format!("{name}: a NUL byte cannot be passed on"));
        }
        Ok((name, value))
    }

    fn value(&mut self) -> Result<String, String> {
        let mut value = String::new();
        // How much of it stays though it is white space at the end.
        let mut kept = 0;
        // A quote within a word is a character as any other.
        let mut is_bare = false;
        while let Some(c) = self.next() {
            match c {
                '\n' => break,
                '\'' | '"' if !is_bare => {
                    self.quoted(c, &mut value)?;
                    kept = value.len();
                }
                '\\' => match self.next() {
                    Some('\n') | None => {}
                    Some(escaped) => {
                        value.push(escaped);
                        kept = value.len();
                        is_bare = true;
                    }
                },
                // Before a word, and between two quoted parts, it counts for nothing.
                c if c.is_whitespace() && !is_bare => {}
                c => {
                    value.push(c);
                    is_bare = true;
                    if !c.is_whitespace() {
                        kept = value.len();
                    }
                }
            }
        }
        value.truncate(kept);
        Ok(value)
    }

    /// What is between two quotes of this kind.
    fn quoted(&mut self, quote: char, value: &mut String) -> Result<(), String> {
        while let Some(c) = self.next() {
            match c {
                c if c == quote => return Ok(()),
                '\\' if quote == '"' => match self.next() {
                    Some(escaped @ ('"' | '\\' | '`' | '$')) => value.push(escaped),
                    Some('\n') => {}
                    Some(other) => value.extend(['\\', other]),
                    None => break,
                },
                c => value.push(c),
            }
        }
        Err(format!("the quote {quote} has no end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_systemd_reads_them() {
        let text = "# none\n; none either\n\nA=b=c\n B = \nC=  two words  \nD='single \"quoted\" $X'\nE=\"a \\\"b\\\" \\n \\\\\"\n\
                    F=one\\\n two\nG=\"over\ntwo lines\"\nH='a'\"b\"\nI=\\ x\\ \nJ=#x\nK=it's\n_L9=last";
        let wanted = [
            ("A", "b=c"),
            ("C", "two words"),
            ("D", "single \"quoted\" $X"),
            ("E", "a \"b\" \\n \\"),
            ("F", "one two"),
            ("G", "over\ntwo lines"),
            ("H", "ab"),
            ("I", " x "),
            ("J", "#x"),
            ("K", "it's"),
            ("_L9", "last"),
        ];
        let text = text.replace("\n B = ", "");
        let wanted: Variables = wanted.map(|(name, value)| (name.into(), value.into())).into();
        assert_eq!(parse(&text).unwrap(), wanted);
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line_and_without_its_value() {
        for (text, line, why) in [
            ("A=1\nsecret", 2, "no \"=\""),
            ("export A=secret", 1, "export"),
            ("A B=secret", 1, "cannot be a variable"),
            ("1A=secret", 1, "cannot be a variable"),
            ("=secret", 1, "cannot be a variable"),
            ("\n\nA=\"secret\nB=x", 3, "no end"),
            ("REMOTE_ADDR=secret", 1, "set by preforkd"),
            ("A=secret\0", 1, "NUL"),
        ] {
            let (at, said) = parse(text).unwrap_err();
            assert!(at == line && said.contains(why) && !said.contains("secret"), "{text}: {at}: {said}");
        }
    }
}
