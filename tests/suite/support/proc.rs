//! What the kernel tells about processes and sockets.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::Signal;

/// A process, from /proc/PID/stat.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) name: String,
    /// `R`, `S`, `T`, `Z`, …
    pub(crate) state: char,
    /// User and system time, in ticks of 1/100 s.
    pub(crate) ticks: u64,
    /// When it started; with the pid, this is one process for ever.
    pub(crate) start: u64,
}

/// The process with this pid, dead but unreaped ones included.
pub(crate) fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = tail.split(' ').collect();
    let number = |index: usize| fields[index].parse::<u64>().unwrap();
    Some(Process {
        pid,
        parent: fields[1].parse().unwrap(),
        name: head.split_once('(')?.1.to_owned(),
        state: fields[0].chars().next()?,
        ticks: number(11) + number(12),
        start: number(19),
    })
}

/// Stops a process, and waits until it has stopped: the signal is only the beginning of that.
pub(crate) fn stop(pid: i32) {
    kill(pid, Signal::SIGSTOP);
    super::eventually("it is stopped", || process(pid).is_some_and(|process| process.state == 'T'));
}

/// Everything below this process.
pub(crate) fn descendants(ancestor: i32) -> Vec<Process> {
    let all: Vec<Process> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect();
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in &all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            found.push((*child).clone());
            parents.push(child.pid);
        }
    }
    found
}

/// The children of a process that has one thread, the dead among them, without a look at all others.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Whether it runs, stopped or not; a zombie does not.
pub(crate) fn lives(pid: i32) -> bool {
    process(pid).is_some_and(|process| process.state != 'Z' && process.state != 'X')
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn kill(pid: i32, signal: Signal) {
    assert!(pid > 1, "a pid of ours");
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// What its open descriptors are, by number; empty for a process that is gone.
pub(crate) fn descriptors(pid: i32) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, std::fs::read_link(&path).ok()?))
        })
        .collect();
    found.sort();
    found
}

/// How many descriptors it has open when it waits for what comes next: whoever asks for the status has the answer before the
/// supervisor closes its end.
pub(crate) fn descriptors_at_rest(pid: i32) -> usize {
    super::eventually("it waits", || process(pid).is_none_or(|process| process.state == 'S'));
    descriptors(pid).len()
}

/// Whether it is told by epoll(7) of what happens to this inode.
pub(crate) fn watches(pid: i32, inode: u64) -> bool {
    let of_inode = format!("ino:{inode:x} ");
    let watches = |number: u32| {
        let known = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        known.lines().any(|line| line.starts_with("tfd:") && line.contains(&of_inode))
    };
    descriptors(pid).into_iter().any(|(number, _)| watches(number))
}

/// The lowest descriptor that it has not in use.
pub(crate) fn lowest_free(pid: i32) -> u32 {
    let used: HashSet<u32> = descriptors(pid).into_iter().map(|(number, _)| number).collect();
    (0..).find(|number| !used.contains(number)).unwrap()
}

/// The inodes of the sockets that listen on this TCP address; two sockets on one address are two.
pub(crate) fn listeners(address: SocketAddr) -> Vec<u64> {
    let (file, wanted) = match address {
        SocketAddr::V4(v4) => ("tcp", format!("{:08X}:{:04X}", u32::from(*v4.ip()).swap_bytes(), v4.port())),
        SocketAddr::V6(v6) => {
            let words = v6.ip().octets();
            let ip: String = words
                .chunks(4)
                .map(|word| format!("{:08X}", u32::from_le_bytes(word.try_into().unwrap())))
                .collect();
            ("tcp6", format!("{ip}:{:04X}", v6.port()))
        }
    };
    let read = || listening(&format!("/proc/net/{file}"));
    // It is read piece by piece; if others come and go meanwhile, one may be there twice or be passed over.
    let found = (0..3).flat_map(|_| read()).filter(|(local, _)| *local == wanted);
    let mut inodes: Vec<u64> = found.map(|(_, inode)| inode).collect();
    inodes.sort_unstable();
    inodes.dedup();
    inodes
}

/// The sockets that listen, in this table of the kernel: their addresses, as the table has them, and inodes. They stand before
/// all others, of which there may be many thousands.
pub(crate) fn listening(table: &str) -> Vec<(String, u64)> {
    const LISTEN: &str = "0A";
    let Ok(table) = File::open(table) else { return Vec::new() };
    let rows = BufReader::new(table).lines().map(Result::unwrap).skip(1);
    let rows = rows.map(|row| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let listening = rows.take_while(|row| row[3] == LISTEN);
    listening.map(|row| (row[1].clone(), row[9].parse().unwrap())).collect()
}

/// Does something, in Python, to a listener over IPv4 of this process: to `s`, a copy of its descriptor by pidfd_getfd(2).
pub(crate) fn to_listener(pid: i32, listen: SocketAddr, what: &str) {
    let script = format!(
        "import os, socket, sys\n\
         pid, port = int(sys.argv[1]), int(sys.argv[2])\n\
         import ctypes\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         pidfd = os.pidfd_open(pid)\n\
         for name in os.listdir(f'/proc/{{pid}}/fd'):\n\
         \x20   if not os.readlink(f'/proc/{{pid}}/fd/{{name}}').startswith('socket:'): continue\n\
         \x20   fd = libc.syscall(438, pidfd, int(name), 0)\n\
         \x20   if fd < 0: continue\n\
         \x20   s = socket.socket(fileno=fd)\n\
         \x20   if s.family == socket.AF_INET and s.getsockname()[1] == port: {what}\n"
    );
    let (pid, port) = (pid.to_string(), listen.port().to_string());
    super::sure(&["python3", "-c", &script, &pid, &port]);
}
