//! Calls to the kernel: every one that this object makes is made by the same few instructions, which is what lets the kernel
//! tell them from the program's.

use core::arch::global_asm;
use core::ffi::c_long;

global_asm!(
    ".pushsection .text.preforkd_gate,\"ax\",@progbits",
    ".hidden preforkd_gate",
    ".hidden preforkd_call",
    ".hidden preforkd_return",
    ".hidden preforkd_restorer",
    ".hidden preforkd_gate_end",
    ".globl preforkd_gate",
    ".globl preforkd_call",
    ".globl preforkd_return",
    ".globl preforkd_restorer",
    ".globl preforkd_gate_end",
    "preforkd_gate:",
    // (number, six arguments): makes a call.
    "preforkd_call:",
    "mov rax, rdi",
    "mov rdi, [rsi]",
    "mov rdx, [rsi + 16]",
    "mov r10, [rsi + 24]",
    "mov r8, [rsi + 32]",
    "mov r9, [rsi + 40]",
    "mov rsi, [rsi + 8]",
    "syscall",
    "ret",
    // (stack pointer): returns from a signal handler whose frame is there, sigreturn(2).
    "preforkd_return:",
    "mov rsp, rdi",
    // What returns from the handler of this object; the kernel has put the stack pointer there.
    "preforkd_restorer:",
    "mov eax, 15",
    "syscall",
    // The kernel looks at the address behind a call.
    "ud2",
    "preforkd_gate_end:",
    ".popsection",
);

unsafe extern "C" {
    fn preforkd_call(number: c_long, arguments: *const [u64; 6]) -> c_long;
    pub(crate) fn preforkd_return(stack: u64) -> !;
    pub(crate) fn preforkd_restorer();
    static preforkd_gate: u8;
    static preforkd_gate_end: u8;
}

/// Where the instructions are, and how many bytes they take.
pub(crate) fn gate() -> (u64, u64) {
    let (start, end) = (&raw const preforkd_gate as u64, &raw const preforkd_gate_end as u64);
    (start, end - start)
}

/// System calls, asm/unistd_64.h.
pub(crate) mod number {
    pub(crate) const CLOSE: i64 = 3;
    pub(crate) const POLL: i64 = 7;
    pub(crate) const RT_SIGACTION: i64 = 13;
    pub(crate) const RT_SIGPROCMASK: i64 = 14;
    pub(crate) const PREAD64: i64 = 17;
    pub(crate) const DUP2: i64 = 33;
    pub(crate) const SENDTO: i64 = 44;
    pub(crate) const RECVMSG: i64 = 47;
    pub(crate) const GETSOCKNAME: i64 = 51;
    pub(crate) const GETSOCKOPT: i64 = 55;
    pub(crate) const EXECVE: i64 = 59;
    pub(crate) const FCNTL: i64 = 72;
    pub(crate) const GETRLIMIT: i64 = 97;
    pub(crate) const GETRUSAGE: i64 = 98;
    pub(crate) const SIGALTSTACK: i64 = 131;
    pub(crate) const PRCTL: i64 = 157;
    pub(crate) const FGETXATTR: i64 = 193;
    pub(crate) const EXIT_GROUP: i64 = 231;
    pub(crate) const OPENAT: i64 = 257;
    pub(crate) const NEWFSTATAT: i64 = 262;
    pub(crate) const PPOLL: i64 = 271;
    pub(crate) const DUP3: i64 = 292;
    pub(crate) const CLOSE_RANGE: i64 = 436;
}

pub(crate) const ENOENT: i64 = -2;
pub(crate) const EINTR: i64 = -4;
pub(crate) const EBADF: i64 = -9;
pub(crate) const EACCES: i64 = -13;
pub(crate) const EFAULT: i64 = -14;
pub(crate) const EEXIST: i64 = -17;
pub(crate) const ENOTDIR: i64 = -20;
pub(crate) const EINVAL: i64 = -22;
pub(crate) const ENODATA: i64 = -61;
pub(crate) const EOPNOTSUPP: i64 = -95;
/// Of a mask of signals, for the kernel.
pub(crate) const MASK_BYTES: u64 = 8;
pub(crate) const MSG_NOSIGNAL: u64 = 0x4000;
pub(crate) const MSG_CMSG_CLOEXEC: u64 = 0x4000_0000;
pub(crate) const RLIMIT_NOFILE: u64 = 7;

/// Processor time of this process, in microseconds.
pub(crate) fn cpu_us() -> u64 {
    // struct rusage: user and system time come first, each in seconds and microseconds.
    let mut usage = [0u64; 18];
    call(number::GETRUSAGE, [0, usage.as_mut_ptr() as u64, 0, 0, 0, 0]);
    (usage[0] + usage[2]) * 1_000_000 + usage[1] + usage[3]
}

/// Whether so many bytes, at least 8 and not more than a page, can be read there. A program's mistake is an error of the call that it
/// makes, and nothing that ends it.
pub(crate) fn is_readable(at: u64, length: u64) -> bool {
    // rt_sigprocmask(2) reads a mask before it looks at what is to be done with it.
    let is_word = |at| call(number::RT_SIGPROCMASK, [u64::MAX, at, 0, MASK_BYTES, 0, 0]) == EINVAL;
    at != 0 && is_word(at) && at.checked_add(length.saturating_sub(8)).is_some_and(is_word)
}

pub(crate) fn call(number: i64, arguments: [u64; 6]) -> i64 {
    // SAFETY: what callers pass is their own, or what the program has asked for itself.
    unsafe { preforkd_call(number, &arguments) }
}

pub(crate) fn exit(code: u64) -> ! {
    loop {
        call(number::EXIT_GROUP, [code, 0, 0, 0, 0, 0]);
    }
}
