//! What a server's processes cost: CPU time and memory.

use std::fs;
use std::time::Duration;

/// Where the figures come from. A cgroup counts every process that was ever in it; the tree of processes misses those whose
/// parent ignored their end, wait(2).
#[derive(Default)]
pub(crate) struct Meter {
    cpu: Option<String>,
    memory: Option<String>,
    pid: Option<u32>,
}

impl Meter {
    /// Takes its options off the front of the words.
    pub(crate) fn take(words: &mut Vec<&str>) -> Self {
        let mut meter = Meter::default();
        while words.len() > 1 && words[0].starts_with("--") {
            match words[0] {
                "--cpu" => meter.cpu = Some(words[1].to_owned()),
                "--memory" => meter.memory = Some(words[1].to_owned()),
                _ => meter.pid = words[1].parse().ok(),
            }
            words.drain(..2);
        }
        meter
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        if let Some(file) = &self.cpu {
            let text = fs::read_to_string(file).ok()?;
            return match text.split_once("usage_usec ") {
                Some((_, rest)) => Some(Duration::from_micros(rest.lines().next()?.parse().ok()?)),
                None => Some(Duration::from_nanos(text.trim().parse().ok()?)), // cpuacct.usage
            };
        }
        let ticks: u64 = tree(self.pid?).iter().map(|process| process.ticks).sum();
        Some(Duration::from_millis(ticks * 10)) // USER_HZ is 100 on every Linux that we build for
    }

    /// Bytes in use: with a cgroup those of the kernel for it, too; else PSS.
    pub(crate) fn memory(&self) -> Option<u64> {
        if let Some(file) = &self.memory {
            return fs::read_to_string(file).ok()?.trim().parse().ok();
        }
        let pids = self.processes()?;
        Some(pids.iter().filter_map(|pid| rollup(*pid, "Pss:")).sum::<u64>() * 1024)
    }

    /// Minor faults, that is pages touched, of each of the newest processes: the median.
    pub(crate) fn faults(&self) -> Option<u64> {
        let mut processes = tree(self.pid?);
        processes.sort_unstable_by_key(|process| process.start);
        let mut faults: Vec<u64> = processes.iter().rev().take(100).map(|process| process.faults).collect();
        faults.sort_unstable();
        faults.get(faults.len() / 2).copied()
    }

    fn processes(&self) -> Option<Vec<u32>> {
        Some(tree(self.pid?).iter().map(|process| process.pid).collect())
    }
}

/// Private memory of a worker in KiB and its anonymous pages, whose entries a fork copies. The worker is the first child of
/// the process, or itself if it has none.
pub(crate) fn worker(pid: u32) -> String {
    // Until the process of the first connection is gone.
    std::thread::sleep(Duration::from_millis(200));
    let worker = tree(pid).iter().find(|process| process.parent == pid).map_or(pid, |process| process.pid);
    let field = |name| rollup(worker, name);
    // Not Private_Clean: what a file holds is shared or not by how many happen to run it.
    match (field("Private_Dirty:"), field("Anonymous:")) {
        (Some(dirty), Some(anonymous)) => format!("{dirty}\t{}", anonymous / 4),
        _ => "-\t-".to_owned(),
    }
}

/// A line of /proc/PID/smaps_rollup, in KiB.
fn rollup(pid: u32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

struct Process {
    pid: u32,
    parent: u32,
    start: u64,
    faults: u64,
    ticks: u64,
}

impl Process {
    /// proc_pid_stat(5); the name may hold anything, so fields are counted from behind it.
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Process {
            pid,
            parent: u32::try_from(number(4)?).ok()?,
            faults: number(10)?,
            ticks: (14..=17).map(number).sum::<Option<u64>>()?,
            start: number(22)?,
        })
    }
}

/// A process and all below it.
fn tree(root: u32) -> Vec<Process> {
    let Ok(directory) = fs::read_dir("/proc") else { return Vec::new() };
    let mut others: Vec<Process> = directory
        .filter_map(|entry| Process::read(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect();
    let mut members = Vec::new();
    let mut parents = vec![root];
    members
        .extend(others.iter().position(|process| process.pid == root).map(|place| others.swap_remove(place)));
    while !parents.is_empty() {
        let (children, rest): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|process| parents.contains(&process.parent));
        parents = children.iter().map(|process| process.pid).collect();
        members.extend(children);
        others = rest;
    }
    members
}
