//! Access control lists of files, acl(5): one more user may read what is the owner's alone.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::check;

/// linux/posix_acl_xattr.h and linux/posix_acl.h.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NOBODY: u32 = u32::MAX;

const READ: u16 = 4;
const WRITE: u16 = 2;
const EXECUTE: u16 = 1;

/// Has this user read a file, or list and enter a directory, as its owner may, who alone changes the directory. The group and all
/// others may nothing.
///
/// # Errors
///
/// `EOPNOTSUPP` if the file system has no such lists; as of fsetxattr(2) otherwise.
pub(crate) fn let_read(file: &File, uid: u32) -> io::Result<()> {
    let (read, own) = match file.metadata()?.is_dir() {
        true => (READ | EXECUTE, READ | EXECUTE | WRITE),
        false => (READ, READ),
    };
    // In the order of acl_valid(3).
    let entries = [
        (USER_OBJ, own, NOBODY),
        (USER, read, uid),
        (GROUP_OBJ, 0, NOBODY),
        (MASK, read, NOBODY),
        (OTHER, 0, NOBODY),
    ];
    let mut list = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    // SAFETY: the name ends with NUL, and `list` has as many bytes as is said.
    check(unsafe {
        libc::fsetxattr(
            file.as_raw_fd(),
            c"system.posix_acl_access".as_ptr(),
            list.as_ptr().cast(),
            list.len(),
            0,
        )
    })?;
    Ok(())
}
