//! The files of a configuration, read.

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use super::diagnostic::{Diagnostic, Diagnostics, Place, Position, Severity};
use super::open::open_file;
use super::value::{Fault, Faults};

/// The files of a configuration as they were read, to be checked again on a machine that has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot(Vec<(PathBuf, String)>);

impl Snapshot {
    pub(super) fn of(files: &[ConfigFile]) -> Self {
        Snapshot(files.iter().map(|file| (file.path.clone(), file.text.clone())).collect())
    }

    pub(super) fn files(&self, problems: &mut Diagnostics) -> Vec<ConfigFile> {
        let files = self.0.iter().enumerate();
        files.map(|(order, (path, text))| decode(path.clone(), order, text.as_bytes(), problems)).collect()
    }
}

/// Larger files are a mistake, `/dev/zero` for instance.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The text of a file.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// Its path, as messages show it.
    pub(crate) path: PathBuf,
    /// Its text.
    pub(crate) text: String,
    /// The text without the lines of `mended`.
    pub(crate) whole: String,
    /// Syntax errors that would have made the parser overlook the rest of the file.
    pub(crate) mended: Faults,
    /// The main file is 0, drop-ins follow.
    pub(crate) order: usize,
}

impl ConfigFile {
    /// The place of a span.
    pub(crate) fn place(&self, span: &Range<usize>) -> Place {
        // Spans come from the parser and fall on character boundaries, but a wrong marker is better than a panic.
        let start = floor(&self.text, span.start);
        let end = floor(&self.text, span.end).max(start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |newline| start + newline);
        Place {
            name: self.path.display().to_string(),
            position: Some(Position {
                line: self.text[..start].matches('\n').count() + 1,
                column: self.text[line_start..start].chars().count() + 1,
                width: self.text[start..end.min(line_end)].chars().count(),
                text: self.text[line_start..line_end].to_owned(),
            }),
            order: (self.order, start),
        }
    }
}

fn floor(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// Reads the main file and the drop-ins of this program beside it; what cannot be read is reported and left out.
pub(crate) fn read(
    main: &Path,
    program: &str,
    waits_for: &dyn Fn(fmt::Arguments<'_>),
    problems: &mut Diagnostics,
) -> Vec<ConfigFile> {
    let mut sources = Vec::new();
    let drop_ins = main.parent().unwrap_or(Path::new("")).join(format!("{program}.d"));
    let mut paths = vec![main.to_owned()];
    waits_for(format_args!("{}", drop_ins.display()));
    match list(&drop_ins) {
        Ok(found) => paths.extend(found),
        Err(error) => problems.push(whole_file(&drop_ins, 1, Severity::Error, reason(&error))),
    }
    for (order, path) in paths.into_iter().enumerate() {
        waits_for(format_args!("{}", path.display()));
        match read_file(&path) {
            Ok((bytes, mode)) => {
                if mode & 0o002 != 0 {
                    problems.push(Diagnostic {
                        help: Some(format!("chmod o-w {}", path.display())),
                        ..whole_file(
                            &path,
                            order,
                            Severity::Warning,
                            "everybody may write to this file".into(),
                        )
                    });
                }
                sources.push(decode(path, order, &bytes, problems));
            }
            Err(error) => problems.push(whole_file(&path, order, Severity::Error, reason(&error))),
        }
    }
    sources
}

/// `*.toml` by name; names that start with a dot are none (shells and package managers hide them, too).
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_file(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let file = open_file(path)?;
    let mode = file.metadata()?.mode();
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok((bytes, mode))
}

fn reason(error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    };
    format!("cannot read the configuration: {why}")
}

fn whole_file(path: &Path, order: usize, severity: Severity, message: String) -> Diagnostic {
    let place = Place { name: path.display().to_string(), position: None, order: (order, 0) };
    Diagnostic { severity, place, message, note: None, help: None, may_pass: false }
}

/// The bytes as text; TOML is UTF-8.
pub(super) fn decode(path: PathBuf, order: usize, bytes: &[u8], problems: &mut Diagnostics) -> ConfigFile {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let (whole, mended) = mend(&text);
    let source = ConfigFile { path, text, whole, mended, order };
    if let Err(error) = std::str::from_utf8(bytes) {
        let at = error.valid_up_to();
        let fault = Fault::new(at..at + char::REPLACEMENT_CHARACTER.len_utf8(), "this is not UTF-8")
            .help("save the file in UTF-8");
        let place = source.place(&fault.span);
        problems.push(fault.at(place));
    }
    source
}

/// Blanks the lines of keys without a value: at such a line toml 1.2 gives up its tree, and with it every later error.
fn mend(text: &str) -> (String, Faults) {
    let (_, errors) = DeTable::parse_recoverable(text);
    let faults: Faults =
        errors.iter().filter(|error| error.message().starts_with("key with no value")).map(syntax).collect();
    let line_of = |offset: usize| {
        text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
    };
    let broken: Vec<usize> = faults.iter().map(|fault| line_of(fault.span.start)).collect();
    let blank =
        |line: &str| line.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect::<String>();
    let lines = text.split_inclusive('\n').enumerate();
    let whole = lines
        .map(|(number, line)| if broken.contains(&number) { blank(line) } else { line.to_owned() })
        .collect();
    (whole, faults)
}

/// A syntax error of the parser.
pub(crate) fn syntax(error: &toml::de::Error) -> Fault {
    Fault::new(error.span().unwrap_or_default(), format!("TOML syntax: {}", error.message()))
}

/// Where a section was written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// In a file; spans are byte offsets.
    File(&'a ConfigFile),
    /// On a command line; spans are numbers in this list of flags.
    Flags(&'a [String]),
}

impl<'a> Origin<'a> {
    /// The place of a span.
    pub(crate) fn place(&self, span: &Range<usize>) -> Place {
        match self {
            Origin::File(source) => source.place(span),
            Origin::Flags(flags) => Place {
                name: flags.get(span.start).cloned().unwrap_or_default(),
                position: None,
                order: (0, span.start),
            },
        }
    }

    /// The file or flag of a span that starts here.
    pub(crate) fn name(&self, start: usize) -> Cow<'a, str> {
        match self {
            Origin::File(source) => source.path.to_string_lossy(),
            Origin::Flags(flags) => flags.get(start).map(String::as_str).unwrap_or_default().into(),
        }
    }

    /// The lines of spans that start here, from 1; flags have none. One pass over the file if they ascend: a list may
    /// have thousands of entries.
    pub(crate) fn lines(&self, starts: impl Iterator<Item = usize>) -> Vec<Option<u32>> {
        let text = match self {
            Origin::File(source) => source.text.as_bytes(),
            Origin::Flags(_) => return starts.map(|_| None).collect(),
        };
        let (mut at, mut line) = (0, 1);
        let lines = starts.map(|start| {
            if start < at {
                (at, line) = (0, 1);
            }
            let between = text.get(at..start).unwrap_or_default();
            line += between.iter().filter(|byte| **byte == b'\n').count();
            at = start;
            u32::try_from(line).ok()
        });
        lines.collect()
    }

    /// The fault as an error at its place.
    pub(crate) fn error(&self, fault: Fault) -> Diagnostic {
        let place = self.place(&fault.span);
        fault.at(place)
    }
}
