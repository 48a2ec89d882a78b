//! What processes use, as /proc tells anybody who may look.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::fd;
use super::process::page_size;
use super::wait::Pid;

/// What a process has used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Processor time of it, and of its children that have been waited for.
    pub(crate) cpu: Duration,
    /// Its resident memory in KiB.
    pub(crate) memory_kib: u64,
    /// Its command line, or in brackets its name if it has none.
    pub(crate) command: String,
}

/// A command line is cut off here; the line of numbers is shorter by far.
const LONGEST: usize = 64 << 10;

/// The number of a process and its name, which has up to 63 bytes, end before this.
const LONGEST_NAME: usize = 80;

/// USER_HZ, which is the same on all that we build for.
const TICK: Duration = Duration::from_millis(10);

/// Reads that of many processes.
#[derive(Debug)]
pub(crate) struct ProcReader {
    /// /proc, so that it is not looked up for each; `None` where there is none.
    directory: Option<OwnedFd>,
    path: String,
    /// The name and the command line of processes that others were forked from; `None` if exec gave it its name.
    parents: HashMap<Pid, Option<(String, String)>>,
    buffer: Vec<u8>,
}

/// What is read of /proc/PID/stat, proc_pid_stat(5).
struct Stat {
    name: String,
    parent: Pid,
    cpu: Duration,
    memory_kib: u64,
}

impl ProcReader {
    pub(crate) fn new() -> Self {
        ProcReader {
            directory: File::open("/proc").ok().map(OwnedFd::from),
            path: String::new(),
            parents: HashMap::new(),
            buffer: vec![0; LONGEST],
        }
    }

    /// What this process has used; `None` if there is none, or it has ended.
    pub(crate) fn usage_of(&mut self, pid: Pid) -> Option<Usage> {
        let Stat { name, parent, cpu, memory_kib } = self.stat(pid)?;
        let command = self.command_of_fork(parent, &name).unwrap_or_else(|| self.command(pid, &name));
        Some(Usage { cpu, memory_kib, command })
    }

    /// The inodes of the sockets that a process has open; none if the caller may not look.
    pub(crate) fn sockets_of(&self, pid: Pid) -> Vec<u64> {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
        let inode = |entry: std::fs::DirEntry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        };
        entries.flatten().filter_map(inode).collect()
    }

    fn stat(&mut self, pid: Pid) -> Option<Stat> {
        let text = self.read(pid, "stat")?;
        // The name may have anything in it; what follows it are numbers.
        let end = text.iter().take(LONGEST_NAME).rposition(|byte| *byte == b')')?;
        let begin = text.iter().position(|byte| *byte == b'(')?;
        let name = String::from_utf8_lossy(text.get(begin + 1..end)?).into_owned();
        let (mut ticks, mut pages, mut parent) = (0_u64, None, None);
        // The state is the field 3, ppid 4, utime, stime, cutime and cstime 14 to 17, rss 24.
        for (number, field) in (3..=24).zip(text.get(end + 2..)?.split(|byte| *byte == b' ')) {
            match number {
                3 if field == b"Z" => return None,
                4 => parent = decimal(field).and_then(|parent| Pid::try_from(parent).ok()),
                14..=17 => ticks = ticks.saturating_add(decimal(field).unwrap_or(0)),
                24 => pages = decimal(field),
                _ => {}
            }
        }
        Some(Stat {
            name,
            parent: parent?,
            cpu: TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX)),
            memory_kib: pages?.saturating_mul(page_size()) / 1024,
        })
    }

    /// The command line of `parent`, if that has the same name and chose it itself: exec(2) would have given its child
    /// that of a file. So that of ten thousand handlers is read once.
    fn command_of_fork(&mut self, parent: Pid, name: &str) -> Option<String> {
        if !self.parents.contains_key(&parent) {
            let its_name = self.stat(parent)?.name;
            let command = self.command(parent, &its_name);
            let file = command.split([' ', ':']).next()?.rsplit('/').next()?;
            let chosen = (!file.starts_with(&its_name)).then_some((its_name, command));
            self.parents.insert(parent, chosen);
        }
        let (its_name, command) = self.parents.get(&parent)?.as_ref()?;
        (its_name == name).then(|| command.clone())
    }

    /// Its words, or in brackets its name if it has none.
    fn command(&mut self, pid: Pid, name: &str) -> String {
        let words = self.read(pid, "cmdline").unwrap_or_default();
        let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        match words.join(" ").trim() {
            "" => format!("[{name}]"),
            command => command.to_owned(),
        }
    }

    /// As much of a file as there is room for, in one call: these give no less than there is, and their length is no help.
    fn read(&mut self, pid: Pid, file: &str) -> Option<&[u8]> {
        self.path.clear();
        write!(self.path, "{pid}/{file}").ok()?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(self.directory.as_ref()?, self.path.as_str(), flags, Mode::empty()).ok()?;
        let length = fd::read(file.as_fd(), &mut self.buffer).ok()?;
        self.buffer.get(..length)
    }
}

/// Negative numbers are none that is looked for.
fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn this_process_is_known_and_none_is_not() {
        let mut processes = ProcReader::new();
        let usage = processes.usage_of(std::process::id() as Pid).unwrap();
        assert!(usage.memory_kib > 500, "{usage:?}");
        assert_eq!(usage.command, std::env::args().collect::<Vec<_>>().join(" "));
        assert_eq!(processes.usage_of(-1), None);
    }

    #[test]
    fn a_program_has_its_own_command_line_and_a_fork_that_of_its_parent() {
        // The inner shell is a fork, since it has more to do.
        let script = "(read line; :); :";
        let mut shell = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let mut processes = ProcReader::new();
        let line = format!("sh -c {script}");
        let children = format!("/proc/{0}/task/{0}/children", shell.id());
        let fork = loop {
            let children = std::fs::read_to_string(&children).unwrap();
            if let Ok(pid) = children.trim().parse() {
                break processes.usage_of(pid).unwrap().command;
            }
            std::thread::yield_now();
        };
        // Not before: the kernel says that an exec has happened a moment before it says of what.
        let own = processes.usage_of(shell.id() as Pid).unwrap().command;
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!([own, fork], [line.clone(), line]);
    }
}
