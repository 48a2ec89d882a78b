//! Landlock domains, landlock(7): what a process and all that comes of it may still do. Rulesets are made by the crate of that
//! name; here is what a child does with one, and without a word that allocates.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// linux/landlock.h.
const CREATE_RULESET_VERSION: libc::c_ulong = 1;

/// The version of the kernel's interface.
///
/// # Errors
///
/// `ENOSYS` or `EOPNOTSUPP` if there is no Landlock in this kernel, `EPERM` if a filter of system calls is before it.
pub(crate) fn version() -> io::Result<i32> {
    // SAFETY: with this flag the kernel reads no attributes.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    if version < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(version).unwrap_or(i32::MAX)) }
}

/// Puts this process into a new domain of its own, below that in which it is. There is no way out.
///
/// # Errors
///
/// `EPERM` if it could gain privileges, see [`super::process::gain_no_privileges`].
pub(crate) fn enter(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a descriptor and flags, and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
