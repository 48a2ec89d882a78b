//! Cgroups of version 2, cgroups(7): which is whose, making and ending them, and what they have used.
//!
//! Nothing here moves a process into one but `enter`: that waits for some milliseconds, clone3(2) does not.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};

use super::fork::InCgroup;
use super::signal::Signal;
use super::wait::Pid;
use super::{check, process};

/// What proc(5) calls the hierarchy of version 2 in `/proc/PID/cgroup`.
const UNIFIED: &str = "0::";

/// Where the cgroups of version 2 are mounted that this process can see: the cgroup at the root of each, and its place.
fn mounts() -> Vec<(PathBuf, PathBuf)> {
    let Ok(text) = std::fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    let mount = |line: &str| {
        // proc_pid_mountinfo(5): six fields, some that are optional, a hyphen, the type.
        let (mount, rest) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        (rest.split(' ').next() == Some("cgroup2")).then(|| (unescaped(root).into(), unescaped(place).into()))
    };
    text.lines().filter_map(mount).collect()
}

/// Where they are mounted.
pub(crate) fn mount_points() -> Vec<PathBuf> {
    mounts().into_iter().map(|(_, place)| place).collect()
}

/// Without the octal escapes of proc_pid_mountinfo(5).
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.into_iter().fold(text.to_owned(), |text, (escape, char)| text.replace(escape, char))
}

/// The directory of the cgroup in which a process is, dead or alive as long as it is not reaped; `None` if that cannot be
/// seen from here.
pub(crate) fn of(pid: Option<Pid>) -> Option<PathBuf> {
    let who = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let told = std::fs::read_to_string(format!("/proc/{who}/cgroup")).ok()?;
    let path = told.lines().find_map(|line| line.strip_prefix(UNIFIED))?;
    let place = |(root, place): (PathBuf, PathBuf)| {
        let below = Path::new(path).strip_prefix(&root).ok()?;
        Some(if below.as_os_str().is_empty() { place } else { place.join(below) })
    };
    mounts().into_iter().find_map(place)
}

/// Whether who manages this cgroup has left all below it to whoever is in it, as systemd marks it: systemd.resource-control(5),
/// `Delegate=`.
pub(crate) fn is_delegated(cgroup: &Path) -> bool {
    // The second is for privileged eyes only.
    [c"user.delegate", c"trusted.delegate"].into_iter().any(|name| {
        let Ok(path) = CString::new(cgroup.as_os_str().as_bytes()) else { return false };
        let mut value = [0u8; 8];
        // SAFETY: both strings end with NUL, and the kernel writes no more than the length that it is given.
        let length =
            unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        usize::try_from(length).is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

/// Does something in a cgroup, if need be as whose it is: a worker that is no root any more, and so a supervisor that may not
/// write to all files, has cgroups of a user whom none of its connections is.
fn as_owner<T>(cgroup: &Path, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match work() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let owner = std::fs::metadata(cgroup).ok().and_then(|metadata| other(metadata.uid()));
            owner.map_or(Err(error), |owner| process::with_files_of(owner, work))
        }
        result => result,
    }
}

/// A user, if this process is not he.
fn other(user: u32) -> Option<u32> {
    Some(user).filter(|user| *user != process::effective_user_id())
}

/// Makes one that whoever is its parent's owner has made, and whom it lets in.
pub(crate) fn make(cgroup: &Path) -> io::Result<()> {
    let above = cgroup.parent().unwrap_or(cgroup);
    as_owner(above, || std::fs::create_dir(cgroup))
}

/// Lets whoever is in the group of a cgroup make others below it.
pub(crate) fn open_to_group(cgroup: &Path) -> io::Result<()> {
    std::fs::set_permissions(cgroup, std::fs::Permissions::from_mode(0o775))
}

/// Makes one for another user, in which this process can make others, too: in one that is [open](open_to_group) to the group
/// of both. To give it away would take a capability.
pub(crate) fn make_for(cgroup: &Path, owner: Option<u32>) -> io::Result<()> {
    as_user(owner, || {
        std::fs::create_dir(cgroup)?;
        owner.map_or(Ok(()), |_| open_to_group(cgroup))
    })
}

/// Moves this process into a cgroup.
pub(crate) fn enter(cgroup: &Path) -> io::Result<()> {
    write(&cgroup.join("cgroup.procs"), "0")
}

/// Writes to one of the files of a cgroup.
pub(crate) fn write(file: &Path, value: &str) -> io::Result<()> {
    // In one write(2), and never to a file that would have to be made.
    let open = || File::options().write(true).open(file);
    as_owner(file.parent().unwrap_or(file), open)?.write_all(value.as_bytes())
}

/// How deep cgroups below each other are looked for: nobody of ours makes so many.
const DEEPEST: u32 = 16;

/// Removes a cgroup and those below it, as far as nobody is in them; true if it is gone.
pub(crate) fn remove(cgroup: &Path) -> bool {
    remove_above(cgroup, DEEPEST)
}

fn remove_above(cgroup: &Path, depth: u32) -> bool {
    let remove = || as_owner(cgroup.parent().unwrap_or(cgroup), || std::fs::remove_dir(cgroup));
    let is_gone = || remove().map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true);
    if is_gone() {
        return true;
    }
    if depth > 0 {
        for child in below(cgroup) {
            let _ = remove_above(&child, depth - 1);
        }
    }
    is_gone()
}

/// The cgroups below this one.
pub(crate) fn below(cgroup: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// What cgroups and their files are made with.
const FILE_MODE: Mode = Mode::from_bits_truncate(0o644);
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o755);

/// Gives a cgroup of this user's back the modes that processes are made with below it.
pub(crate) fn mend(cgroup: &Path) -> io::Result<()> {
    let change = |path: &Path, mode: Mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode.bits()))
    };
    as_owner(cgroup, || {
        change(cgroup, DIRECTORY_MODE)?;
        change(&cgroup.join(PROCESSES), FILE_MODE)
    })
}

/// The file of processes, and the longest that is read of it: it is as long as its cgroup is populous.
const PROCESSES: &str = "cgroup.procs";
const MOST_READ: u64 = 1 << 20;

/// What all that was in a cgroup has used in a time, as far as its controllers and the kernel know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TreeUsage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// The most memory in bytes at one time, with the cache of its files and what the kernel has for it.
    pub(crate) peak_memory: Option<u64>,
    /// Bytes that came from and went to disks.
    pub(crate) io: Option<(u64, u64)>,
    /// The kernel has killed it, because there was no more memory for it.
    pub(crate) ran_out_of_memory: bool,
}

/// A cgroup that is open.
#[derive(Debug)]
pub(crate) struct Cgroup {
    directory: OwnedFd,
    /// Whose it is, if not this process's.
    owner: Option<u32>,
    events: File,
    cpu: File,
    /// The most memory since this was written to; `None` before Linux 6.12, where that cannot be.
    peak: Option<File>,
}

impl Cgroup {
    /// Opens one.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let directory = nix::fcntl::open(path, flags, Mode::empty())?;
        let owner = other(nix::sys::stat::fstat(directory.as_fd())?.st_uid);
        let own = |file| as_user(owner, || open(directory.as_fd(), file, OFlag::O_RDONLY));
        let (events, cpu) = (own("cgroup.events")?, own("cpu.stat")?);
        Ok(Cgroup { directory, owner, events, cpu, peak: None })
    }

    /// From now on tells the most memory of a time, if there is a controller that knows.
    pub(crate) fn watch_memory(&mut self) {
        self.peak = self.open_file("memory.peak", OFlag::O_RDWR).ok();
        self.begin_anew();
    }

    /// A new time begins for that.
    pub(crate) fn begin_anew(&mut self) {
        // Any word does it, for this descriptor alone: "memory.peak" in cgroups(7)'s cgroup-v2.rst.
        self.peak.take_if(|peak| peak.write_at(b"reset", 0).is_err());
    }

    /// The most memory of this time.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        let mut buffer = [0; 32];
        let length = self.peak.as_ref()?.read_at(&mut buffer, 0).ok()?;
        std::str::from_utf8(buffer.get(..length)?).ok()?.trim().parse().ok()
    }

    /// Bytes that all that ever was in it has read from and written to disks; nothing without the controller.
    pub(crate) fn io(&self) -> Option<(u64, u64)> {
        let mut text = String::new();
        self.open_file("io.stat", OFlag::O_RDONLY).ok()?.take(MOST_READ).read_to_string(&mut text).ok()?;
        // A line for each device: its number, and words with a number.
        let sum = |word: &str| -> u64 {
            let values = text
                .split_ascii_whitespace()
                .filter_map(|field| field.strip_prefix(word)?.parse::<u64>().ok());
            values.fold(0, u64::saturating_add)
        };
        Some((sum("rbytes="), sum("wbytes=")))
    }

    /// Whether the kernel has ever killed somebody in it for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let events = self.open_file("memory.events", OFlag::O_RDONLY);
        events.and_then(|events| number(&events, "oom_kill")).is_ok_and(|killed| killed > 0)
    }

    /// For a process that is to begin in it.
    pub(crate) fn place(&self) -> InCgroup<'_> {
        InCgroup { directory: self.directory.as_fd(), owner: self.owner }
    }

    fn open_file(&self, file: &str, flags: OFlag) -> io::Result<File> {
        as_user(self.owner, || open(self.directory.as_fd(), file, flags))
    }

    /// Whether somebody is alive in it, or just dying.
    pub(crate) fn is_populated(&self) -> io::Result<bool> {
        Ok(number(&self.events, "populated")? != 0)
    }

    /// User and system time of all that ever was in it.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        Ok(Duration::from_micros(number(&self.cpu, "usage_usec")?))
    }

    /// The number that is all that one of its files says.
    pub(crate) fn number(&self, file: &str) -> io::Result<u64> {
        let mut text = String::new();
        self.open_file(file, OFlag::O_RDONLY)?.take(64).read_to_string(&mut text)?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// Writes to one of its files.
    pub(crate) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let opened = match self.open_file(file, OFlag::O_WRONLY) {
            // Whoever has our user can take the permission from us, and no sandbox keeps him from it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let directory = self.directory.as_fd();
                let change = || fchmodat(directory, file, FILE_MODE, FchmodatFlags::FollowSymlink);
                as_user(self.owner, change)?;
                self.open_file(file, OFlag::O_WRONLY)
            }
            opened => opened,
        };
        opened?.write_all(value.as_bytes())
    }

    /// Kills all that is in it, whatever that has made meanwhile.
    ///
    /// # Errors
    ///
    /// `NotFound` before Linux 5.14.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// The processes in it that are alive.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let mut text = String::new();
        let read = self
            .open_file(PROCESSES, OFlag::O_RDONLY)
            .and_then(|file| file.take(MOST_READ).read_to_string(&mut text));
        // A process in a namespace of its own, that this one does not see, is 0.
        let pid = |line: &str| line.parse().ok().filter(|pid| *pid > 1);
        if read.is_ok() { text.lines().filter_map(pid).collect() } else { Vec::new() }
    }

    /// Signals each process in it.
    pub(crate) fn signal(&self, signal: Signal) {
        // Whoever dies meanwhile may leave his number to somebody outside. A descriptor stands for one process alone; if its
        // number is still among those inside when it is open, it was one of them, or is dead.
        let opened: Vec<_> =
            self.processes().into_iter().filter_map(|pid| Some((pid, open_process(pid).ok()?))).collect();
        let inside = self.processes();
        for (_, process) in opened.iter().filter(|(pid, _)| inside.contains(pid)) {
            signal_by_descriptor(process.as_fd(), signal);
        }
    }
}

fn as_user<T>(user: Option<u32>, work: impl FnOnce() -> T) -> T {
    match user {
        Some(user) => process::with_files_of(user, work),
        None => work(),
    }
}

fn open(directory: BorrowedFd<'_>, file: &str, flags: OFlag) -> io::Result<File> {
    Ok(openat(directory, file, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?.into())
}

/// The number that stands behind a word in a file with a word and a number in each line.
fn number(file: &File, word: &str) -> io::Result<u64> {
    let mut buffer = [0; 512];
    let length = file.read_at(&mut buffer, 0)?;
    let text = std::str::from_utf8(buffer.get(..length).unwrap_or_default()).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.parse().ok());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{word} is missing")))
}

fn open_process(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers, and touches no memory.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = check(process as libc::c_int)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(process) })
}

fn signal_by_descriptor(process: BorrowedFd<'_>, signal: Signal) {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo_t it takes numbers only. It fails if the process is dead.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as libc::c_int, none, 0)
    };
}
