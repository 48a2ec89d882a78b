//! What the kernel lets somebody do with a file, as far as it can be known before.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::statfs::statfs;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, faccessat};

/// Whether this process may execute a file, or enter a directory, access control lists and capabilities included.
pub(crate) fn may_execute(path: &Path) -> bool {
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok()
}

/// The same for writing, or for connecting to a socket.
pub(crate) fn may_write(path: &Path) -> bool {
    faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
}

/// Whether the mode of a file is all that decides: it has no access control list, acl(5), and no server is asked.
pub(crate) fn mode_decides(path: &Path) -> bool {
    !has_list(path) && !is_remote(path)
}

/// Whether no program can be started from the file system that the file is on.
pub(crate) fn is_noexec(path: &Path) -> bool {
    statvfs(path).is_ok_and(|mount| mount.flags().contains(FsFlags::ST_NOEXEC))
}

/// Whether a program gets capabilities from its file, capabilities(7).
pub(crate) fn has_capabilities(path: &Path) -> bool {
    has_attribute(path, c"security.capability")
}

fn has_list(path: &Path) -> bool {
    has_attribute(path, c"system.posix_acl_access")
}

/// True as well of what has no name that could be asked about.
fn has_attribute(path: &Path, name: &CStr) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return true };
    // SAFETY: both strings end with NUL, and a size of 0 has nothing written.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    length > 0
}

/// statfs(2): NFS, SMB (three of them), Ceph, 9P, Coda, AFS (two of them), Lustre, FUSE.
const REMOTE: [u32; 11] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x0102_1997,
    0x7375_7245,
    0x5346_414f,
    0x6b41_4653,
    0x0bd0_0bd0,
    0x6573_5546,
];

fn is_remote(path: &Path) -> bool {
    // The magic numbers have 32 bits, whatever the field has.
    statfs(path).map_or(true, |system| REMOTE.contains(&(system.filesystem_type().0 as u32)))
}
