//! clone3(2) with a stack for the child, which no libc offers: the child comes back from the system call on another stack than
//! the one it was called from, so it cannot return, and the instructions that follow are ours.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;

use super::process;
use super::wait::Pid;

/// What a child begins with. It never returns; the type is that of clone(3).
pub(super) type Begin = extern "C" fn(*mut c_void) -> libc::c_int;

/// `struct clone_args` of linux/sched.h, as it has been since Linux 5.7.
#[derive(Debug, Default)]
#[repr(C, align(8))]
pub(super) struct CloneArguments {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    /// Its lowest address.
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

impl CloneArguments {
    /// `CLONE_INTO_CGROUP`, which libc gives a type that is too small for it.
    pub(super) const INTO_CGROUP: u64 = 1 << 33;
}

/// Makes a child that does `begin(argument)` on the stack that is given.
///
/// # Errors
///
/// Those of clone3(2), and `ENOSYS` on an architecture for which nobody has written the instructions.
///
/// # Safety
///
/// There is a stack, its end is a multiple of 16, and no process that shares this memory is using it. `begin` never returns,
/// and `argument` is what it was written for.
pub(super) unsafe fn clone3(
    arguments: &CloneArguments,
    begin: Begin,
    argument: *mut c_void,
) -> io::Result<Pid> {
    debug_assert!(arguments.stack != 0 && (arguments.stack + arguments.stack_size) % 16 == 0);
    // SAFETY: the caller's promise.
    let result = unsafe { call(arguments, process::mark(), begin, argument) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(result as Pid) }
}

/// Makes a child on a copy of this process's own stack: both come back, the child with 0.
///
/// # Errors
///
/// Those of clone3(2).
///
/// # Safety
///
/// The arguments name no stack, and do not have the child share this memory. The child returns into no frame but the caller's.
pub(super) unsafe fn clone3_on_same_stack(arguments: &CloneArguments) -> io::Result<Pid> {
    debug_assert!(arguments.stack == 0 && arguments.flags & libc::CLONE_VM as u64 == 0);
    // SAFETY: the caller's promise; the kernel reads the arguments.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, arguments, size_of::<CloneArguments>(), 0, 0, 0, process::mark())
    };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as Pid) }
}

/// The system call, with `mark` as its sixth argument; what it leaves in the register of its result.
#[cfg(target_arch = "x86_64")]
unsafe fn call(arguments: &CloneArguments, mark: u64, begin: Begin, argument: *mut c_void) -> isize {
    let mut result = libc::SYS_clone3 as isize;
    // SAFETY: the parent sees a system call that changes memory, rax, rcx and r11. The child has 0 in rax and its parent's
    // other registers, but for the stack pointer; it never leaves this block.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp", // the outermost frame
            "mov rdi, {argument}",
            "call {begin}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            begin = in(reg) begin,
            inout("rax") result,
            in("rdi") arguments,
            in("rsi") size_of::<CloneArguments>(),
            in("r9") mark,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// The system call, with `mark` as its sixth argument; what it leaves in the register of its result.
#[cfg(target_arch = "aarch64")]
unsafe fn call(arguments: &CloneArguments, mark: u64, begin: Begin, argument: *mut c_void) -> isize {
    let mut result = (&raw const *arguments) as isize;
    // SAFETY: the parent sees a system call that changes memory and x0. The child has 0 in x0 and its parent's other
    // registers, but for the stack pointer; it never leaves this block.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr", // the outermost frame
            "mov x0, {argument}",
            "blr {begin}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            begin = in(reg) begin,
            inout("x0") result,
            in("x1") size_of::<CloneArguments>(),
            in("x5") mark,
            in("x8") libc::SYS_clone3,
        );
    }
    result
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn call(_: &CloneArguments, _: u64, _: Begin, _: *mut c_void) -> isize {
    -(libc::ENOSYS as isize)
}
