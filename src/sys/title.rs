//! What ps(1) shows for a process that does not have its first stack.
#![allow(unsafe_code)]

use std::fs;
use std::io;

/// struct `prctl_mm_map` of linux/prctl.h.
#[repr(C)]
struct Map {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Where on the stack of this process lies what the kernel has told it: its arguments and the auxiliary vector, which libc
/// looks into whenever a thread is started, getauxval(3). That is a page or two, which nobody writes.
pub(crate) fn start_of_auxv() -> io::Result<usize> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let start = field(&stat, 28)?;
    Ok(usize::try_from(start).unwrap_or(usize::MAX))
}

/// A field of proc_pid_stat(5). The name in parentheses is field 2 and may hold anything.
fn field(stat: &str, number: usize) -> io::Result<u64> {
    let fields = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?.1;
    let text = fields.split_ascii_whitespace().nth(number - 3).ok_or(io::ErrorKind::InvalidData)?;
    text.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Moves the command line that the kernel shows from the stack to memory that children have. Without it they would be
/// shown in brackets, as kernel threads are.
///
/// # Errors
///
/// `EINVAL` without `CONFIG_CHECKPOINT_RESTORE`. Nothing has changed then.
pub(crate) fn keep_for_children() -> io::Result<()> {
    let text = fs::read("/proc/self/cmdline")?.leak();
    let stat = fs::read_to_string("/proc/self/stat")?;
    let field = |number| field(&stat, number);
    let start = text.as_ptr() as u64;
    let end = start + text.len() as u64;
    // SAFETY: only asks where the break is.
    let brk = unsafe { libc::sbrk(0) } as u64;
    let map = Map {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk,
        start_stack: field(28)?,
        arg_start: start,
        arg_end: end,
        env_start: end,
        env_end: end,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    // SAFETY: the kernel reads the map. But for the arguments it says what is so already, and nothing in this process
    // depends on any of it.
    let result =
        unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of::<Map>(), 0) };
    super::check(result)?;
    Ok(())
}
