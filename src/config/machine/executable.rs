//! What execve(2) will say about a file, known before the first connection.
//!
//! Where the kernel could decide otherwise than is known here, nothing is said.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::lookup::{Obstacle, Root};
use crate::config::checked::DEFAULT_PROGRAM_PATH;
use crate::config::open::open_file;
use crate::sys::{permission, process};

/// The kernel looks at so many bytes of a file, `BINPRM_BUF_SIZE`.
const HEAD: usize = 256;

/// So many scripts may be each other's interpreters before a program must be. Found out on Linux 6.18; the fifth is the last.
const SCRIPTS: usize = 5;

/// The longest path, `PATH_MAX`.
const LONGEST_PATH: u64 = 4096;

/// The most bytes of a program's table of segments that are looked at.
const LONGEST_TABLE: u64 = 64 * 1024;

/// Where a program is started, and with what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) root: Root<'a>,
    /// `environment`.
    pub(crate) environment: &'a BTreeMap<String, String>,
    /// `working_directory`, from where relative interpreters are looked up.
    pub(crate) directory: &'a Path,
}

impl Setting<'_> {
    /// The directories in which bare names are looked for.
    pub(crate) fn search_path(&self) -> &str {
        self.environment.get("PATH").map_or(DEFAULT_PROGRAM_PATH, String::as_str)
    }
}

/// How far a chain of starts may be followed.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// Scripts, by the kernel.
    scripts: usize,
    /// Programs, by env(1).
    starts: usize,
}

/// Why `path` cannot be started.
pub(crate) fn check(path: &Path, setting: Setting<'_>) -> Result<(), Obstacle> {
    check_nested(path, setting, Left { scripts: SCRIPTS, starts: SCRIPTS })
}

fn check_nested(path: &Path, setting: Setting<'_>, left: Left) -> Result<(), Obstacle> {
    let root = setting.root;
    let file = is_program(path, root)?;
    if let Some(obstacle) = root.refuses(&file, "execute") {
        return Err(obstacle);
    }
    if permission::is_noexec(&file) {
        let why = "its file system is mounted with noexec";
        return Err(Obstacle::new(why, "remount it with exec, or put the program elsewhere"));
    }
    // Who may start a program need not be able to read it.
    let Ok(open) = open_file(&file) else { return Ok(()) };
    let mut head = [0; HEAD];
    let Ok(length) = read_at(&open, &mut head, 0) else { return Ok(()) };
    let head = head.get(..length).unwrap_or_default();
    if head.starts_with(b"\x7fELF") {
        return elf(&open, head, setting);
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        return script(&file, line, length == HEAD, setting, left);
    }
    if registered_formats().any(|format| format.is(&file, head)) {
        Ok(())
    } else {
        Err(no_program(&file, head))
    }
}

/// A file that somebody may execute, seen from outside.
pub(crate) fn is_program(path: &Path, root: Root<'_>) -> Result<PathBuf, Obstacle> {
    let (file, metadata) = root.find(path, "install the program, or correct its path")?;
    let why = if metadata.is_dir() {
        "it is a directory"
    } else if !metadata.is_file() {
        "it is not a regular file"
    } else if metadata.permissions().mode() & 0o111 == 0 {
        return Err(Obstacle::new(
            "it is not executable",
            format!("chmod +x {}", root.outside(path).display()),
        ));
    } else {
        return Ok(file);
    };
    Err(Obstacle::new(why, "name a program"))
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(buffer.get_mut(length..).unwrap_or_default(), offset + length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// What the kernel knows no way to start.
fn no_program(file: &Path, head: &[u8]) -> Obstacle {
    let shown = file.display();
    if head.is_empty() {
        return Obstacle::new("it is empty", "install the program anew, or correct its path");
    }
    if head.starts_with(b"\xef\xbb\xbf#!") {
        let help = format!("remove it: sed -i '1s/^\\xef\\xbb\\xbf//' {shown}");
        return Obstacle::new(
            "a byte order mark stands before its #!, and the kernel knows it no more",
            help,
        );
    }
    let text = std::str::from_utf8(head).ok().or_else(|| {
        // The last character may have been cut.
        std::str::from_utf8(head.get(..head.len().saturating_sub(3)).unwrap_or_default()).ok()
    });
    let is_text = text.is_some_and(|text| !text.contains(|c: char| c.is_control() && !c.is_whitespace()));
    match text {
        Some(text) if is_text && text.trim_start().starts_with("#!") => {
            let help = "remove what stands before it: #! must be its first two bytes";
            Obstacle::new("its #! is not at its very beginning", help)
        }
        Some(_) if is_text => {
            let why = "it is a script without #!, which shells run, but the kernel does not";
            Obstacle::new(why, "add its interpreter as its first line, as in #!/bin/sh")
        }
        _ => Obstacle::new(
            "it is in no format that this kernel runs",
            "name a program, or a script that begins with #!",
        ),
    }
}

/// A script: `line` is what follows `#!`, and all that the kernel has of it if the file `goes_on`, `load_script` in the
/// kernel's binfmt_script.c.
fn script(file: &Path, line: &[u8], goes_on: bool, setting: Setting<'_>, left: Left) -> Result<(), Obstacle> {
    let end = line.iter().position(|&byte| byte == b'\n');
    let full = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = full.iter().position(|byte| !blank(byte)).unwrap_or(full.len());
    let to = full.iter().rposition(|byte| !blank(byte)).map_or(from, |last| last + 1);
    let name_end =
        full.iter().skip(from).position(|byte| blank(byte) || *byte == 0).map(|length| from + length);
    let name = full.get(from..name_end.unwrap_or(full.len())).unwrap_or_default();
    let argument = full.get(from + name.len()..to).unwrap_or_default();
    let shell = Obstacle::new("its first line names no interpreter", "write one after #!, as in #!/bin/sh");
    let printed = String::from_utf8_lossy(name);
    if name.is_empty() || name == b"\r" {
        return Err(shell);
    }
    if end.is_none() && goes_on && name_end.is_none() {
        let why = "its first line is longer than the 256 bytes that the kernel reads";
        return Err(Obstacle::new(why, "put its interpreter at a shorter path"));
    }
    let argument = argument.split(|&byte| byte == 0).next().unwrap_or_default().trim_ascii_start();
    let interpreter = setting.directory.join(std::ffi::OsStr::from_bytes(name));
    // perl(1) takes no offence at one behind its options.
    let is_perl = interpreter.file_name().is_some_and(|name| name.as_bytes().starts_with(b"perl"));
    let is_there = || setting.root.find(&interpreter, "").is_ok();
    if full.ends_with(b"\r") && !if argument.is_empty() { is_there() } else { is_perl } {
        let word = String::from_utf8_lossy(full.rsplit(blank).next().unwrap_or_default());
        let why = format!(
            "its first line ends with a carriage return, as in files from Windows, which becomes part of \"{word}\""
        );
        return Err(Obstacle::new(why, format!("sed -i 's/\\r$//' {}", file.display())));
    }
    if left.scripts <= 1 && is_script(&interpreter, setting) {
        let why = format!("its interpreter {printed} is the last of too many scripts");
        return Err(Obstacle::new(why, "name a program as interpreter"));
    }
    let nested = Left { scripts: left.scripts.saturating_sub(1), ..left };
    check_nested(&interpreter, setting, nested).map_err(|Obstacle { why, help }| {
        let relative = if name.starts_with(b"/") { "" } else { ", whose path is relative," };
        let inside = setting.root.inside();
        Obstacle::new(
            format!("its interpreter {printed}{relative} cannot be started{inside}: {why}"),
            match why.as_str() {
                "there is no such file" => "install it, or correct the first line of the script".to_owned(),
                _ => help,
            },
        )
    })?;
    if interpreter.file_name().is_some_and(|name| name == "env") {
        return by_env(argument, setting, left.starts);
    }
    Ok(())
}

fn is_script(path: &Path, setting: Setting<'_>) -> bool {
    let Ok(file) = is_program(path, setting.root) else { return false };
    let mut head = [0; 2];
    open_file(&file).and_then(|open| read_at(&open, &mut head, 0)).is_ok() && head == *b"#!"
}

/// What env(1) does with its only argument; it has all that stands behind its name as one.
fn by_env(argument: &[u8], setting: Setting<'_>, starts: usize) -> Result<(), Obstacle> {
    let Ok(name) = std::str::from_utf8(argument) else { return Ok(()) };
    if name.is_empty() || name.starts_with('-') || name.contains('=') {
        return Ok(());
    }
    let search = setting.search_path();
    if !name.contains('/') {
        // The program starts in a directory that is not ours.
        if search.split(':').any(|directory| !directory.starts_with('/')) {
            return Ok(());
        }
        return match in_path(name, setting) {
            Some(path) => check_named(name, &path, setting, starts),
            None if name.contains([' ', '\t']) => Err(Obstacle::new(
                format!("env takes \"{name}\" for the name of one program, and there is none in PATH"),
                format!("write #!/usr/bin/env -S {name}"),
            )),
            None => Err(Obstacle::new(
                format!("there is no program \"{name}\" for env in PATH{}", setting.root.inside()),
                format!("install it, or set PATH in environment; PATH is {search}"),
            )),
        };
    }
    check_named(name, &setting.directory.join(name), setting, starts)
}

fn check_named(name: &str, path: &Path, setting: Setting<'_>, starts: usize) -> Result<(), Obstacle> {
    // It may be a script for env again.
    let Some(starts) = starts.checked_sub(1) else { return Ok(()) };
    check_nested(path, setting, Left { scripts: SCRIPTS, starts }).map_err(|Obstacle { why, help }| {
        Obstacle::new(format!("what env starts for it, \"{name}\", cannot be started: {why}"), help)
    })
}

/// Where in `PATH` a program is; an empty or relative entry would be the working directory, execvp(3).
pub(crate) fn in_path(name: &str, setting: Setting<'_>) -> Option<PathBuf> {
    let directories = setting.search_path().split(':').filter(|directory| directory.starts_with('/'));
    directories
        .map(|directory| Path::new(directory).join(name))
        .find(|path| is_program(path, setting.root).is_ok())
}

/// What the variables of a connection, and the names of a script and its interpreter, may take.
const HEADROOM: u64 = 8 * 1024;

/// Where there is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooMuch {
    /// In `exec`.
    Arguments,
    /// In `environment`.
    Environment,
}

/// Whether arguments and environment are more than the kernel passes on, execve(2), with a soft limit on the stack of
/// `stack` bytes.
pub(crate) fn fits(
    arguments: &[String],
    environment: &BTreeMap<String, String>,
    stack: u64,
) -> Result<(), (TooMuch, Obstacle)> {
    // MAX_ARG_STRLEN, with the NUL.
    let longest = 32 * process::page_size();
    let variable = |name: &str, value: &str| (name.len() + 1 + value.len() + 1) as u64;
    for (number, argument) in arguments.iter().enumerate() {
        if argument.len() as u64 >= longest {
            let why = format!(
                "argument {number} has {} bytes, and the kernel passes at most {}",
                argument.len(),
                longest - 1
            );
            return Err((TooMuch::Arguments, Obstacle::new(why, "have the program read it from a file")));
        }
    }
    for (name, value) in environment {
        let length = variable(name, value);
        if length > longest {
            let why = format!(
                "the variable {name} has {} bytes with its name, and the kernel passes at most {}",
                length - 1,
                longest - 1
            );
            return Err((TooMuch::Environment, Obstacle::new(why, "have the program read it from a file")));
        }
    }
    let pointer = size_of::<usize>() as u64;
    let arguments: u64 = arguments.iter().map(|argument| argument.len() as u64 + 1 + pointer).sum();
    let environment: u64 = environment.iter().map(|(name, value)| variable(name, value) + pointer).sum();
    // A quarter of the stack; not more than three quarters of _STK_LIM, not less than ARG_MAX.
    let room = (stack / 4).clamp(128 << 10, 6 << 20);
    if arguments + environment + HEADROOM <= room {
        return Ok(());
    }
    let why = format!(
        "arguments and environment have {} bytes, and the kernel passes at most {room} less {HEADROOM} for what is said \
         of the connection",
        arguments + environment
    );
    let help = "have the program read them from a file, or raise limits.stack, of which they may be a quarter, up to 6M";
    let place = if arguments > environment { TooMuch::Arguments } else { TooMuch::Environment };
    Err((place, Obstacle::new(why, help)))
}

/// The fields of an ELF file that decide whether it can be started, elf(5).
struct Elf<'a> {
    head: &'a [u8],
    wide: bool,
    little: bool,
}

impl Elf<'_> {
    fn number(&self, bytes: &[u8]) -> u64 {
        let next = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        if self.little { bytes.iter().rev().fold(0, next) } else { bytes.iter().fold(0, next) }
    }

    fn field(&self, offset: usize, length: usize) -> u64 {
        self.number(self.head.get(offset..offset + length).unwrap_or_default())
    }

    fn is_complete(&self) -> bool {
        self.head.len() >= if self.wide { 64 } else { 52 }
    }

    fn kind(&self) -> u64 {
        self.field(16, 2)
    }

    fn machine(&self) -> u64 {
        self.field(18, 2)
    }

    /// Where the table of segments is, the size of an entry, and how many it has.
    fn table(&self) -> (u64, u64, u64) {
        match self.wide {
            true => (self.field(32, 8), self.field(54, 2), self.field(56, 2)),
            false => (self.field(28, 4), self.field(42, 2), self.field(44, 2)),
        }
    }
}

fn parse_elf(head: &[u8]) -> Elf<'_> {
    Elf { head, wide: head.get(4) == Some(&2), little: head.get(5) != Some(&2) }
}

/// Machines whose programs a kernel for another may run as well.
const COMPATIBLE: [(u64, u64); 5] = [(62, 3), (183, 40), (21, 20), (43, 2), (258, 258)];

/// `e_machine`, elf(5).
fn machine(number: u64) -> String {
    match number {
        3 => "i386".into(),
        8 => "mips".into(),
        20 | 21 => "powerpc".into(),
        22 => "s390".into(),
        40 => "arm".into(),
        62 => "x86-64".into(),
        183 => "aarch64".into(),
        243 => "riscv".into(),
        258 => "loongarch".into(),
        number => format!("number {number} of elf(5)"),
    }
}

fn elf(open: &File, head: &[u8], setting: Setting<'_>) -> Result<(), Obstacle> {
    let elf = parse_elf(head);
    let broken = || Obstacle::new("it is cut off", "install the program anew");
    if !elf.is_complete() {
        return Err(broken());
    }
    let mut own = [0; HEAD];
    let own_length = File::open("/proc/self/exe").and_then(|file| read_at(&file, &mut own, 0)).unwrap_or(0);
    let own = parse_elf(own.get(..own_length).unwrap_or_default());
    let (theirs, ours) = (elf.machine(), own.machine());
    let is_ours = theirs == ours && elf.little == own.little || COMPATIBLE.contains(&(ours, theirs));
    if own.is_complete() && !is_ours {
        if registered_formats().any(|format| format.is(Path::new(""), head)) {
            return Ok(());
        }
        let why = format!("it was built for another kind of machine, {}", machine(theirs));
        return Err(Obstacle::new(why, format!("install it for {}", machine(ours))));
    }
    // ET_EXEC and ET_DYN.
    if !matches!(elf.kind(), 2 | 3) {
        return Err(Obstacle::new("it is no whole program, but a part or a core of one", "name a program"));
    }
    let Some(loader) = loader(open, &elf) else { return Ok(()) };
    is_program(&loader, setting.root)
        .and_then(|file| setting.root.refuses(&file, "execute").map_or(Ok(()), Err))
        .map_err(|Obstacle { why, help }| {
            let (loader, inside) = (loader.display(), setting.root.inside());
            let help = match why.as_str() {
                "there is no such file" => {
                    "install it where the program looks for it; ldd shows all that it needs".into()
                }
                _ => help,
            };
            Obstacle::new(format!("the loader {loader} that it needs cannot be used{inside}: {why}"), help)
        })
}

/// The dynamic loader that the program names; the kernel starts it first.
fn loader(open: &File, elf: &Elf<'_>) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let (offset, size, count) = elf.table();
    let length = size.checked_mul(count).filter(|length| (1..=LONGEST_TABLE).contains(length))?;
    let mut table = vec![0; usize::try_from(length).ok()?];
    let read = read_at(open, &mut table, offset).ok()?;
    let mut segments = table.get(..read)?.chunks_exact(usize::try_from(size).ok()?);
    let segment =
        segments.find(|segment| segment.get(..4).is_some_and(|kind| elf.number(kind) == PT_INTERP))?;
    let field = |range: std::ops::Range<usize>| segment.get(range).map(|bytes| elf.number(bytes));
    let (start, length) =
        if elf.wide { (field(8..16)?, field(32..40)?) } else { (field(4..8)?, field(16..20)?) };
    let mut path = vec![0; usize::try_from(length.min(LONGEST_PATH)).ok()?];
    let read = read_at(open, &mut path, start).ok()?;
    let path = path.get(..read)?.split(|&byte| byte == 0).next()?;
    path.starts_with(b"/").then(|| PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}

/// Why the loader would load nothing into this program, or into the one that interprets it, beside what it names itself:
/// ld.so(8), `LD_PRELOAD`.
pub(crate) fn loads_nothing(path: &Path, setting: Setting<'_>) -> Option<String> {
    loads_nothing_nested(path, setting, SCRIPTS)
}

fn loads_nothing_nested(path: &Path, setting: Setting<'_>, left: usize) -> Option<String> {
    let shown = path.display();
    let file = is_program(path, setting.root).ok()?;
    let mut head = [0; HEAD];
    let read = open_file(&file).and_then(|open| Ok((read_at(&open, &mut head, 0)?, open)));
    let Ok((length, open)) = read else { return Some(format!("{shown} cannot be read")) };
    let head = head.get(..length).unwrap_or_default();
    if let (Some(line), Some(left)) = (head.strip_prefix(b"#!"), left.checked_sub(1)) {
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | 0);
        let name = line.trim_ascii_start().split(blank).next().unwrap_or_default();
        let interpreter = setting.directory.join(std::ffi::OsStr::from_bytes(name));
        return loads_nothing_nested(&interpreter, setting, left);
    }
    let elf = parse_elf(head);
    let mode = fs::metadata(&file).map_or(0, |metadata| metadata.permissions().mode());
    if !head.starts_with(b"\x7fELF") || !elf.is_complete() || !elf.wide || elf.machine() != 62 {
        Some(format!("{shown} is no program of 64 bits for x86-64"))
    } else if mode & 0o6000 != 0 {
        Some(format!("{shown} changes its user or group when it is started"))
    } else if permission::has_capabilities(&file) {
        Some(format!("{shown} gets capabilities when it is started"))
    } else if loader(&open, &elf).is_none() {
        Some(format!("{shown} is linked statically"))
    } else {
        None
    }
}

/// A format that somebody has told the kernel how to run, binfmt_misc in its documentation.
struct Format {
    extension: Option<String>,
    offset: usize,
    magic: Vec<u8>,
    mask: Option<Vec<u8>>,
}

impl Format {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if text.lines().next()? != "enabled" {
            return None;
        }
        let mut bytes = field("magic ").unwrap_or_default().as_bytes().chunks(2);
        let hex = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        Some(Format {
            extension: field("extension .").map(str::to_owned),
            offset: field("offset ").and_then(|number| number.parse().ok()).unwrap_or(0),
            magic: bytes.by_ref().map(hex).collect::<Option<_>>()?,
            mask: field("mask ").and_then(|mask| mask.as_bytes().chunks(2).map(hex).collect()),
        })
    }

    fn is(&self, file: &Path, head: &[u8]) -> bool {
        if let Some(extension) = &self.extension {
            return file.extension().is_some_and(|theirs| theirs == extension.as_str());
        }
        let mask = |at: usize| self.mask.as_ref().and_then(|mask| mask.get(at)).copied().unwrap_or(0xff);
        let same = |(at, byte): (usize, &u8)| {
            head.get(self.offset.saturating_add(at)).is_some_and(|theirs| (theirs ^ byte) & mask(at) == 0)
        };
        !self.magic.is_empty() && self.magic.iter().enumerate().all(same)
    }
}

fn registered_formats() -> impl Iterator<Item = Format> {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_name() != "register" && entry.file_name() != "status");
    entries.filter_map(|entry| Format::parse(&fs::read_to_string(entry.path()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_formats_are_told_by_their_magic_or_name() {
        let by_magic = "enabled\ninterpreter /usr/bin/x\nflags: \noffset 2\nmagic 7f45ff\nmask ffff00\n";
        let format = Format::parse(by_magic).unwrap();
        assert!(format.is(Path::new("x"), b"__\x7fE_more"));
        assert!(!format.is(Path::new("x"), b"__\x7fF_more") && !format.is(Path::new("x"), b"__\x7fE"));
        let by_name = Format::parse("enabled\ninterpreter /usr/bin/x\nflags: \nextension .jar\n").unwrap();
        assert!(by_name.is(Path::new("/x.jar"), b"") && !by_name.is(Path::new("/x"), b""));
        assert!(Format::parse("disabled\ninterpreter /usr/bin/x\nextension .jar\n").is_none());
        assert!(Format::parse("").is_none());
    }
}
