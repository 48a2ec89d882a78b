//! What processes use, as /proc tells anybody who may look.

use std::path::PathBuf;
use std::time::Duration;

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

/// USER_HZ, which is the same on all that we build for.
const TICK: Duration = Duration::from_millis(10);

/// What this process has used; `None` if there is none, or it has ended.
pub(crate) fn of(pid: Pid) -> Option<Usage> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let stat = std::fs::read_to_string(directory.join("stat")).ok()?;
    // The name may have anything in it.
    let (head, fields) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = fields.split(' ').collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    if fields.first() == Some(&"Z") {
        return None;
    }
    // utime, stime, cutime and cstime are the fields 14 to 17 of proc_pid_stat(5), rss is 24; the third is the first here.
    let ticks = (11..15).filter_map(number).fold(0, u64::saturating_add);
    let memory = number(21)?.saturating_mul(page_size()) / 1024;
    let words = std::fs::read(directory.join("cmdline")).unwrap_or_default();
    let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let command = words.join(" ").trim().to_owned();
    Some(Usage {
        cpu: TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX)),
        memory_kib: memory,
        command: if command.is_empty() { format!("[{name}]") } else { command },
    })
}

/// The inodes of the sockets that a process has open; none if the caller may not look.
pub(crate) fn sockets_of(pid: Pid) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let inode = |entry: std::fs::DirEntry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.flatten().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_known_and_none_is_not() {
        let usage = of(std::process::id() as Pid).unwrap();
        assert!(usage.memory_kib > 500, "{usage:?}");
        assert!(!usage.command.is_empty());
        assert_eq!(of(-1), None);
    }
}
