//! Filters of system calls, seccomp(2).
#![allow(unsafe_code)]

use std::io;

use super::check;

/// An instruction of a filter.
pub(crate) type Instruction = libc::sock_filter;

/// Has this process, and all that comes of it, ask the kernel for what `program` allows only. There is no way back.
///
/// By prctl(2), which older filters of systemd let through where they do not seccomp(2).
///
/// # Errors
///
/// `EACCES` if it could gain privileges, see [`super::process::gain_no_privileges`]; `EINVAL` without filters in this kernel.
pub(crate) fn install(program: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The kernel reads it, whatever the type says.
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` describes instructions that outlive the call, which copies them.
    check(unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0_usize, 0_usize)
    })?;
    Ok(())
}

/// Whether this kernel has filters.
pub(crate) fn is_there() -> bool {
    // SAFETY: without a filter there is nothing to read. A kernel that has them finds fault with the address, prctl(2).
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::null::<u8>(), 0_usize, 0_usize)
    };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}
