//! What a process can change about itself, and ending processes.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};

use super::wait::Pid;
use super::{check, fd};

/// What setrlimit(2) limits.
pub(crate) use nix::sys::resource::Resource;

/// Ends this process without running destructors or flushing: both belong to the parent it was forked from.
#[inline]
pub(crate) fn exit(code: u8) -> ! {
    // SAFETY: does not return and touches no memory.
    unsafe { libc::_exit(i32::from(code)) }
}

/// The number of this process.
pub(crate) fn id() -> Pid {
    nix::unistd::getpid().as_raw()
}

/// The number of its parent.
pub(crate) fn parent() -> Pid {
    nix::unistd::getppid().as_raw()
}

/// What others call this process, once it has learnt that: 0 before.
static OUTER_ID: AtomicI32 = AtomicI32::new(0);

/// The number of this process, or if it is in a namespace of processes of its own, that of the first process in there, for those
/// who have made it.
pub(crate) fn outer_id() -> Pid {
    match OUTER_ID.load(Ordering::Relaxed) {
        0 => id(),
        outer => outer,
    }
}

/// In the first process of a namespace: learns what it is called outside, which is where /proc is from. Its children know it, too.
pub(crate) fn learn_outer_id() -> io::Result<()> {
    let link = std::fs::read_link("/proc/self")?;
    let outer = link.to_str().and_then(|number| number.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    OUTER_ID.store(outer, Ordering::Relaxed);
    Ok(())
}

/// In a process that needs it again and again, and that has no children who do: keeps what [`outer_id`] says, rather than ask
/// the kernel each time.
pub(crate) fn keep_outer_id() {
    OUTER_ID.store(outer_id(), Ordering::Relaxed);
}

/// Makes this process inherit the descendants of its children that die, prctl(2).
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Has the kernel kill this process when its parent ends from now on, prctl(2).
pub(crate) fn end_with_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

/// The name that ps(1) shows, at most 15 bytes.
pub(crate) fn set_name(name: &CStr) {
    // Only a label: a failure changes nothing.
    let _ = nix::sys::prctl::set_name(name);
}

/// Leaves the terminal and the process group of the supervisor, so that ^C and `kill -GROUP` reach only that.
pub(crate) fn new_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    Ok(())
}

/// Makes this process the leader of a process group of its own.
pub(crate) fn new_group() -> io::Result<()> {
    Ok(nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0))?)
}

/// By what this process tells its own calls from those of programs, see [`mark_calls`]; 0 if nobody has to know.
static MARK: AtomicU64 = AtomicU64::new(0);

/// From now on, kill(2), clone3(2) and SO_LINGER's setsockopt(2) have this number as their sixth argument, which the kernel does not look
/// at. A filter that this process has in common with its programs can: they have not its memory.
pub(crate) fn mark_calls(mark: u64) {
    MARK.store(mark, Ordering::Relaxed);
}

/// What such a call has there.
pub(super) fn mark() -> u64 {
    MARK.load(Ordering::Relaxed)
}

fn send(pid: Pid, signal: Option<Signal>) -> Result<(), Errno> {
    let signal = signal.map_or(0, |signal| signal as libc::c_int);
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_kill, pid, signal, 0, 0, 0, mark()) }).map(drop)
}

/// Signals the process group of `leader`, and `leader` alone if it has not made its group yet, or has left it.
///
/// The caller must be the one who reaps `leader` and must not have reaped it: only then can the number not belong to
/// another process.
pub(crate) fn signal_group(leader: Pid, signal: Signal) {
    if leader <= 1 {
        return;
    }
    let is_sent = send(-leader, Some(signal)) != Err(Errno::ESRCH);
    // It may go from one group to another as often as it likes, and have left somebody in its own. What kills may come twice.
    if !is_sent || signal == Signal::SIGKILL || group_of(leader) != Some(leader) {
        let _ = send(leader, Some(signal));
    }
}

/// Kills what is left of the group of a process that has ended, and that the caller has not reaped.
pub(crate) fn kill_rest_of_group(leader: Pid) {
    if leader > 1 {
        // It fails if the leader never made its group, or who is left may not be killed by us.
        let _ = send(-leader, Some(Signal::SIGKILL));
    }
}

/// Whether somebody is in this process group, dead or alive.
pub(crate) fn is_group(group: Pid) -> bool {
    group > 1 && send(-group, None) != Err(Errno::ESRCH)
}

/// The process group of a child that has not been reaped.
pub(crate) fn group_of(pid: Pid) -> Option<Pid> {
    nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid))).ok().map(nix::unistd::Pid::as_raw)
}

/// The session of a process that is there. A child that has not been reaped is there.
pub(crate) fn session_of(pid: Pid) -> Option<Pid> {
    nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).ok().map(nix::unistd::Pid::as_raw)
}

/// Whether there is such a process, whosever it is.
pub(crate) fn exists(pid: Pid) -> bool {
    send(pid, None) != Err(Errno::ESRCH)
}

/// Signals one process; the caller must be the one who reaps it, as with [`signal_group`].
pub(crate) fn signal_process(pid: Pid, signal: Signal) {
    if pid > 1 {
        let _ = send(pid, Some(signal));
    }
}

/// What proc(5) says that a process does, to go on a sentence that begins with it.
pub(crate) fn what_it_does(pid: Pid) -> String {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    // The name in parentheses may have spaces.
    let state = read("stat").and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
    match state {
        Some('T') => format!("is stopped; kill -CONT {pid} has it go on"),
        Some('t') => "is stopped by a debugger".to_owned(),
        Some('D') => {
            let place =
                read("wchan").filter(|place| place.len() > 1).unwrap_or_else(|| "the kernel".to_owned());
            format!("waits in {place}, perhaps for a file system")
        }
        Some('Z' | 'X') => "is dead, and its parent has not noticed".to_owned(),
        Some('R') => "is busy".to_owned(),
        Some(_) => "waits, but not for this".to_owned(),
        None => "cannot be looked at".to_owned(),
    }
}

/// Whether `pid` is a child of this process that has not been reaped, dead or alive.
pub(crate) fn is_child(pid: Pid) -> bool {
    let Ok(id) = libc::id_t::try_from(pid) else { return false };
    if pid <= 1 {
        return false;
    }
    // SAFETY: siginfo_t is plain data, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a live local that the kernel writes; WNOWAIT leaves the child as it is.
    unsafe { libc::waitid(libc::P_PID, id, &mut info, flags) == 0 }
}

/// Whether a process comes of this one; `None` if it, or one between, is no more. What comes of this one can be seen by it, in
/// whatever namespace of users this one is; so what is there and cannot be seen does not.
pub(crate) fn is_descendant(pid: Pid) -> Option<bool> {
    if pid == id() { Some(true) } else { child_above(pid).map(|above| above.is_some()) }
}

/// Which child of this process another comes of, or is, with the same answers.
pub(crate) fn child_above(pid: Pid) -> Option<Option<Pid>> {
    /// More are not below each other in any tree of this kind.
    const DEEPEST: u32 = 1000;
    let mut pid = pid;
    for _ in 0..DEEPEST {
        if pid <= 1 {
            return Some(None);
        }
        // proc_pid_stat(5). The name in parentheses may have spaces.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return exists(pid).then_some(None);
        };
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        if parent == id() {
            return Some(Some(pid));
        }
        pid = parent;
    }
    None
}

/// Whether a process has this socket as one of its descriptors; false if that cannot be seen.
pub(crate) fn has_socket(pid: Pid, socket: BorrowedFd<'_>) -> bool {
    let Ok(socket) = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())) else {
        return false;
    };
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    // proc_pid_fd(5): "socket:[INODE]".
    descriptors.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link == socket))
}

/// The same of the children of a process.
pub(crate) fn have_socket(parent: Pid, socket: BorrowedFd<'_>) -> bool {
    // proc_pid_task(5). If that cannot be seen, they may well have it.
    let Ok(children) = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")) else {
        return true;
    };
    children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).any(|pid| has_socket(pid, socket))
}

/// The children of this process that are still there, from /proc; empty where the kernel does not tell.
pub(crate) fn children() -> Vec<Pid> {
    std::fs::read_to_string("/proc/thread-self/children")
        .map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
        .unwrap_or_default()
}

/// Becoming another user starts here: takes these supplementary groups, if that is this process's to choose.
pub(crate) fn take_groups(groups: &[u32]) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        // SAFETY: `groups` is readable for its length.
        Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    }
    Ok(())
}

/// Goes on: the group, for real, effective and saved id.
pub(crate) fn become_group(gid: u32) -> io::Result<()> {
    set_group_ids([gid; 3])
}

/// Real, effective and saved user of this process: the system call itself. That of glibc and musl asks all threads to do the
/// same and waits for them, and in a child of clone(2) those are its parent's: nptl(7), "C library/kernel differences".
fn set_user_ids([real, effective, saved]: [u32; 3]) -> io::Result<()> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, real, effective, saved) })?;
    Ok(())
}

/// The same of groups.
fn set_group_ids([real, effective, saved]: [u32; 3]) -> io::Result<()> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, real, effective, saved) })?;
    Ok(())
}

/// Ends it: the user, for real, effective and saved id, and makes sure that there is no way back.
pub(crate) fn become_user(uid: u32) -> io::Result<()> {
    set_user_ids([uid; 3])?;
    drop_capabilities()?;
    if uid == 0 { Ok(()) } else { is_root_for_good_no_more() }
}

/// In a worker that has the right to: becomes `user` in what it does, and stays `own` for who would do something to it, with
/// these capabilities of those that it has, and no other.
///
/// Who may signal, trace or limit a process is asked by its real and saved user, kill(2), ptrace(2), prlimit(2); what it may
/// do itself, by its effective one. So it can end processes of `user` and they cannot touch it; and each of its children
/// can become `user` altogether without a capability, as it is one of the three that setresuid(2) lets anybody choose from.
pub(crate) fn stand_before(
    own: (u32, u32),
    user: (u32, u32),
    group_of_files: Option<u32>,
    kept: impl FnOnce() -> Capabilities,
) -> io::Result<()> {
    let (uid, gid) = own;
    set_group_ids([gid, user.1, gid])?;
    if let Some(group) = group_of_files {
        nix::unistd::setfsgid(Gid::from_raw(group));
    }
    let keep_permitted = |yes: usize| {
        // SAFETY: prctl takes numbers only here.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, yes, 0_usize, 0_usize, 0_usize) })
    };
    keep_permitted(1)?;
    set_user_ids([uid, user.0, uid])?;
    keep_permitted(0)?;
    // What it may do without any, it can try now.
    let kept = Capabilities(kept().0 & capabilities()?.permitted.0);
    set_capabilities(kept)?;
    if kept.0 & Capabilities::SETUID.0 == 0 {
        is_root_for_good_no_more()?;
    }
    Ok(())
}

/// In a child of one that stands before `user` without any capability: becomes this user altogether. None of the three of the
/// parent is root.
pub(crate) fn become_all_of(user: u32) -> io::Result<()> {
    set_user_ids([user; 3])
}

fn is_root_for_good_no_more() -> io::Result<()> {
    const AS_IT_IS: u32 = u32::MAX;
    match set_user_ids([AS_IT_IS, 0, AS_IT_IS]) {
        Ok(()) => Err(io::Error::other("root's identity could be taken back")),
        Err(_) => Ok(()),
    }
}

/// In a child of a worker that may be any user: becomes this one, for real, effective and saved id, and gives up every
/// capability, which the kernel leaves to who was not root.
///
/// # Errors
///
/// Also if they cannot be given up: who has them is anybody.
pub(crate) fn become_one_of_many((uid, gid): (u32, u32)) -> io::Result<()> {
    become_group(gid)?;
    set_user_ids([uid; 3])?;
    set_capabilities(Capabilities::NONE)?;
    is_root_for_good_no_more()
}

/// Whether a process is this user, dead or alive: getpriority(2), which asks for the real one.
pub(crate) fn has_processes(uid: u32) -> bool {
    Errno::clear();
    // SAFETY: takes numbers only. -1 is a priority, too.
    let found = unsafe { libc::getpriority(libc::PRIO_USER, uid) } != -1;
    found || Errno::last() != Errno::ESRCH
}

/// No user has such a number, nor a container: "Users, Groups, UIDs and GIDs on systemd Systems". With that of a process added, nobody
/// else has it at the same time.
const NOBODY_ELSE: u32 = 0x8000_0000;

/// The user that this process can be for a moment, and no other.
pub(crate) fn lone_user() -> u32 {
    NOBODY_ELSE | id().unsigned_abs()
}

/// In a process that may be any user, and is none of those that it is called for: kills all processes of this one, wherever they have
/// gone. There is no other way to reach all of them while they make new ones, kill(2).
///
/// Meanwhile it has this user's effective id, and none of the others by which that could reach it: kill(2) asks for the sender's
/// effective and real id, and for the receiver's real and saved one. Nor has it CAP_KILL, with which all would mean all.
pub(crate) fn kill_user(uid: u32) -> io::Result<()> {
    let before = capabilities()?;
    let (own, alone) = (nix::unistd::getuid().as_raw(), lone_user());
    if uid == 0 || own == 0 || uid == own {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    set_effective(before, Capabilities(before.effective.0 & !Capabilities::KILL.0))?;
    let killed = match capabilities()?.effective.0 & Capabilities::KILL.0 {
        0 => set_user_ids([alone, uid, alone]).and_then(|()| {
            // The answer is whether there was anybody.
            let _ = send(-1, Some(Signal::SIGKILL));
            set_user_ids([own; 3])
        }),
        _ => Err(Errno::EPERM.into()),
    };
    set_effective(before, before.effective)?;
    killed
}

/// Does something with files of this user, as one of whom this process is: it has him beside its effective user, or may become
/// others.
pub(crate) fn with_files_of<T>(user: u32, work: impl FnOnce() -> T) -> T {
    // It has no error; then the work has.
    let own = nix::unistd::setfsuid(Uid::from_raw(user));
    let done = work();
    nix::unistd::setfsuid(own);
    done
}

/// Its files are those of its effective user again.
pub(crate) fn forget_files_of_others() {
    nix::unistd::setfsuid(nix::unistd::geteuid());
}

/// Sets of capabilities(7), as linux/capability.h numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    pub(crate) const NONE: Self = Capabilities(0);
    pub(crate) const DAC_READ_SEARCH: Self = Capabilities(1 << 2);
    pub(crate) const KILL: Self = Capabilities(1 << 5);
    pub(crate) const SETGID: Self = Capabilities(1 << 6);
    pub(crate) const SETUID: Self = Capabilities(1 << 7);
    pub(crate) const SYS_CHROOT: Self = Capabilities(1 << 18);
    pub(crate) const SYS_ADMIN: Self = Capabilities(1 << 21);
    pub(crate) const SYS_NICE: Self = Capabilities(1 << 23);

    /// These, and those if there is reason for them.
    #[must_use]
    pub(crate) fn and(self, more: Self, if_so: bool) -> Self {
        if if_so { Capabilities(self.0 | more.0) } else { self }
    }
}

/// What this process may, and what it could take back.
#[derive(Debug, Clone, Copy)]
struct CapabilitySets {
    effective: Capabilities,
    permitted: Capabilities,
    inheritable: Capabilities,
}

/// Whose group one has to be in to see the processes of others in /proc; `None` if they are not hidden: proc(5), "hidepid".
pub(crate) fn group_that_sees_others() -> Option<u32> {
    group_that_sees(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

fn group_that_sees(mounts: &str) -> Option<u32> {
    // proc_pid_mountinfo(5): the fifth field is where, and after "-" come type, source and options. The last one is on top.
    let is_proc = |line: &&str| line.split(' ').nth(4) == Some("/proc") && line.contains(" - proc ");
    let options = mounts.lines().rfind(is_proc)?.rsplit(' ').next()?;
    let value = |name: &str| options.split(',').find_map(|option| option.strip_prefix(name));
    let is_hidden = value("hidepid=").is_some_and(|value| !["0", "off"].contains(&value));
    is_hidden.then(|| value("gid=").and_then(|gid| gid.parse().ok()).unwrap_or(0))
}

/// Whether this process is root, and may become any other user.
pub(crate) fn may_become_others() -> bool {
    let wanted = Capabilities::SETUID.and(Capabilities::SETGID, true).0;
    nix::unistd::geteuid().is_root() && capabilities().is_ok_and(|sets| sets.effective.0 & wanted == wanted)
}

/// No exec gives this process, or what comes of it, any capability again, as far as it may decide that: capabilities(7), the
/// bounding set.
pub(crate) fn bound_capabilities() {
    // Beyond the last there is none, and without CAP_SETPCAP none can be dropped.
    (0..64_usize).all(|number| {
        // SAFETY: prctl takes numbers only here.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0_usize, 0_usize, 0_usize) == 0 }
    });
}

/// linux/capability.h: the version with two words for each set, and 0 for this process.
const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

fn capabilities() -> io::Result<CapabilitySets> {
    let mut header = CAPABILITIES;
    // Effective, permitted and inheritable, twice.
    let mut words = [0u32; 6];
    // SAFETY: the kernel reads the header, or writes another version to it, and writes both words of each set, capget(2).
    if unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), words.as_mut_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let set = |place: usize| Capabilities(u64::from(words[place]) | u64::from(words[place + 3]) << 32);
    Ok(CapabilitySets { effective: set(0), permitted: set(1), inheritable: set(2) })
}

/// This process has these, of those that it had, and hands on none.
pub(crate) fn set_capabilities(kept: Capabilities) -> io::Result<()> {
    // SAFETY: prctl takes numbers only here.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    write_capabilities(CapabilitySets { effective: kept, permitted: kept, inheritable: Capabilities::NONE })
}

/// Of those that it could take back, this process has these.
fn set_effective(sets: CapabilitySets, effective: Capabilities) -> io::Result<()> {
    write_capabilities(CapabilitySets { effective, ..sets })
}

fn write_capabilities(sets: CapabilitySets) -> io::Result<()> {
    let CapabilitySets { effective, permitted, inheritable } = sets;
    let half = |shift: u32| [effective, permitted, inheritable].map(|set| (set.0 >> shift) as u32);
    let (mut header, words) = (CAPABILITIES, [half(0), half(32)]);
    // SAFETY: both arrays are as large as the kernel expects for this version. It reads them; to a header whose version it
    // does not know, it writes the one that it wants, capset(2).
    match unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), words.as_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// In a process that is not root: gives up all capabilities, those too that an exec would hand on.
///
/// A unit's filter of system calls may refuse it, with EPERM: then whoever gave the process a capability has meant it for all,
/// as systemd/drop-ins/ports-below-1024.conf says.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    match set_capabilities(Capabilities::NONE) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied && has_capabilities() => Err(error),
        _ => Ok(()),
    }
}

/// Whether this process is not root and has a capability to give up; true if that cannot be found out.
pub(crate) fn has_capabilities() -> bool {
    // An ambient capability is permitted and inheritable too.
    !nix::unistd::geteuid().is_root()
        && capabilities().map_or(true, |sets| sets.permitted.0 | sets.inheritable.0 != 0)
}

/// From now on no exec gives this process, or what comes of it, a privilege that it has not: prctl(2),
/// `PR_SET_NO_NEW_PRIVS`.
pub(crate) fn gain_no_privileges() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_usize, 0_usize, 0_usize, 0_usize) })?;
    Ok(())
}

/// What this machine is called.
pub(crate) fn host_name() -> OsString {
    nix::unistd::gethostname().unwrap_or_default()
}

/// The user that has started this process.
pub(crate) fn user_id() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// The user as whom this process may do what it may.
pub(crate) fn effective_user_id() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Whether this process is this user.
pub(crate) fn is_user(uid: u32) -> bool {
    nix::unistd::geteuid().as_raw() == uid
}

/// Whether it is this user and no other, so that it can be stopped by whoever is him.
pub(crate) fn is_only_user(uid: u32) -> bool {
    is_user(uid) && user_id() == uid
}

/// Makes `path` the root directory, and the working directory too: until then the old root is within reach.
pub(crate) fn change_root(path: &Path) -> io::Result<()> {
    nix::unistd::chroot(path)?;
    std::env::set_current_dir("/")
}

/// Sets the file mode creation mask.
pub(crate) fn set_umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}

/// Sets the nice value of this process.
pub(crate) fn set_nice(value: i32) -> io::Result<()> {
    // SAFETY: touches no memory; 0 is this process.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) })?;
    Ok(())
}

/// Sets soft and hard limit of `resource`; `u64::MAX` is "unlimited".
pub(crate) fn set_limit(resource: Resource, value: u64) -> io::Result<()> {
    Ok(setrlimit(resource, value, value)?)
}

/// Lets `resource` be set to so much later, though this process could not do so then; its soft limit stays.
pub(crate) fn allow_limit(resource: Resource, value: u64) -> io::Result<()> {
    let (soft, hard) = getrlimit(resource)?;
    if value > hard { Ok(setrlimit(resource, soft, value)?) } else { Ok(()) }
}

/// The nice value of this process.
pub(crate) fn nice() -> i32 {
    // SAFETY: touches no memory; 0 is this process. The least is what a failure would look like.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Bytes of a page of memory.
pub(crate) fn page_size() -> u64 {
    // SAFETY: sysconf takes a number and touches no memory.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Soft and hard limit of `resource` for this process.
pub(crate) fn limits(resource: Resource) -> io::Result<(u64, u64)> {
    Ok(getrlimit(resource)?)
}

/// Soft and hard limit on the descriptors of this process.
pub(crate) fn descriptor_limits() -> io::Result<(u64, u64)> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?)
}

/// Sets both.
pub(crate) fn set_descriptor_limits((soft, hard): (u64, u64)) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?)
}

/// Lets this process have as many descriptors as its hard limit allows; returns what it had.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = descriptor_limits()?;
    set_descriptor_limits((hard, hard))?;
    Ok(soft)
}

/// Takes that back, for a child.
pub(crate) fn restore_descriptor_limit(soft: u64) -> io::Result<()> {
    let (_, hard) = descriptor_limits()?;
    set_descriptor_limits((soft.min(hard), hard))
}

/// Replaces this process by the program `path`, with these descriptors open in it too; returns only if that fails.
pub(crate) fn exec_keeping(
    kept: &[BorrowedFd<'_>],
    path: &CStr,
    arguments: &[impl AsRef<CStr>],
    environment: &[impl AsRef<CStr>],
) -> io::Error {
    fd::keep_over_exec(kept, || exec(path, arguments, environment))
}

/// Replaces this process by the program `path`; returns only if that fails.
pub(crate) fn exec(
    path: &CStr,
    arguments: &[impl AsRef<CStr>],
    environment: &[impl AsRef<CStr>],
) -> io::Error {
    let done: Result<Infallible, Errno> = nix::unistd::execve(path, arguments, environment);
    match done {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::group_that_sees;

    #[test]
    fn who_sees_hidden_processes_is_what_the_mount_says() {
        let mounts = |options: &str| {
            format!(
                "22 1 0:20 / / rw - ext4 /dev/a rw\n25 22 0:24 / /proc rw,nosuid shared:5 - proc proc {options}\n"
            )
        };
        for (options, group) in [
            ("rw", None),
            ("rw,hidepid=0", None),
            ("rw,hidepid=off", None),
            ("rw,hidepid=2", Some(0)),
            ("rw,hidepid=invisible,subset=pid", Some(0)),
            ("rw,gid=7,hidepid=ptraceable", Some(7)),
        ] {
            assert_eq!(group_that_sees(&mounts(options)), group, "{options}");
        }
        let covered = mounts("rw,hidepid=2") + &mounts("rw");
        assert_eq!(group_that_sees(&covered), None);
        assert_eq!(group_that_sees(""), None);
    }
}
