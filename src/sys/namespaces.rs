//! Namespaces of this process, namespaces(7).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::check;

/// Of what there is a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Namespace {
    User = libc::CLONE_NEWUSER,
    Mounts = libc::CLONE_NEWNS,
    Network = libc::CLONE_NEWNET,
    /// This process stays where it is; its children do not.
    Processes = libc::CLONE_NEWPID,
}

/// Leaves that which this process shares with others for one of its own.
pub(crate) fn leave(what: Namespace) -> io::Result<()> {
    // SAFETY: a number, and no memory. There is one thread.
    check(unsafe { libc::unshare(what as libc::c_int) })?;
    Ok(())
}

/// Leaves the namespace of users for one in which this process's own user and group exist and no others, and in which it has all
/// capabilities.
pub(crate) fn become_sole_user() -> io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    leave(Namespace::User)?;
    // user_namespaces(7): who has no privilege outside may map groups only if nobody in there can drop one.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Mounts that are made from now on in this namespace are seen nowhere else; those that are made elsewhere are seen here.
pub(crate) fn keep_mounts() -> io::Result<()> {
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_SLAVE, None)
}

/// Covers a directory, as it is named inside `root`, with an empty one in memory that everybody may write to, and that takes so
/// many bytes. False if there is no such directory.
pub(crate) fn cover(root: &Path, directory: &Path, bytes: u64) -> io::Result<bool> {
    let Some(place) = directory_inside(root, directory)? else { return Ok(false) };
    let place = CString::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    // An entry takes memory, too: as many as there are pages.
    let options = CString::new(format!("mode=1777,size={bytes},nr_inodes={}", (bytes / 4096).max(16)))?;
    mount(c"tmpfs", &place, Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NODEV, Some(&options))?;
    Ok(true)
}

/// What is inside another root than this process's own may be somebody else's, so no link is followed there. By steps, since
/// `RestrictSUIDSGID=` of systemd hides openat2(2).
fn directory_inside(root: &Path, directory: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open =
        |at: BorrowedFd<'_>, name: &Path, flags| match nix::fcntl::openat(at, name, flags, Mode::empty()) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                let text = format!("{} in {} is no directory", directory.display(), root.display());
                Err(io::Error::new(io::ErrorKind::NotADirectory, text))
            }
            Err(error) => Err(error.into()),
        };
    let mut place: OwnedFd = nix::fcntl::open(root, flags, Mode::empty())?;
    if root == Path::new("/") {
        return open(place.as_fd(), directory, flags);
    }
    for name in directory.components().filter(|part| matches!(part, Component::Normal(_))) {
        match open(place.as_fd(), name.as_ref(), flags | OFlag::O_NOFOLLOW)? {
            Some(found) => place = found,
            None => return Ok(None),
        }
    }
    Ok(Some(place))
}

fn mount(
    source: &CStr,
    place: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let text = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let options = text(options).cast::<c_void>();
    // SAFETY: all of them are strings that outlive the call, or null where the kernel takes that.
    check(unsafe { libc::mount(source.as_ptr(), place.as_ptr(), text(kind), flags, options) })?;
    Ok(())
}
