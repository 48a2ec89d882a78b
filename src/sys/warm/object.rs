//! What is loaded into a program that is started ahead of its connection, by `LD_PRELOAD`; build.rs makes it.
//!
//! It runs before the program's `main`, waits there until its worker hands it a connection, puts that on the descriptors where
//! the program has a placeholder until then, and is done: nothing of it is called again.
//!
//! It stands in a stranger's process, so it uses nothing of that: no library, no allocation, no descriptor but its own two. It
//! trusts what its worker says. If the worker is gone, it ends the process: nobody would ever call.
#![no_std]
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::ffi::{c_char, c_int, c_long};
use core::ptr::{self, addr_of_mut};

// Every call to the kernel that is made here, in one place.
global_asm!(
    ".pushsection .text.preforkd_gate,\"ax\",@progbits",
    ".hidden preforkd_call",
    ".globl preforkd_call",
    ".type preforkd_call,@function",
    "preforkd_call:", // (number, six arguments)
    "mov rax, rdi",
    "mov rdi, [rsi]",
    "mov rdx, [rsi + 16]",
    "mov r10, [rsi + 24]",
    "mov r8, [rsi + 32]",
    "mov r9, [rsi + 40]",
    "mov rsi, [rsi + 8]",
    "syscall",
    "ret",
    ".size preforkd_call, . - preforkd_call",
    ".popsection",
);

unsafe extern "C" {
    fn preforkd_call(number: c_long, arguments: *const [u64; 6]) -> c_long;
    /// The program's environment, environ(7); every libc has it.
    static mut environ: *mut *mut c_char;
}

/// System calls, of asm/unistd_64.h.
mod number {
    pub(crate) const CLOSE: i64 = 3;
    pub(crate) const DUP2: i64 = 33;
    pub(crate) const SENDTO: i64 = 44;
    pub(crate) const RECVMSG: i64 = 47;
    pub(crate) const GETRUSAGE: i64 = 98;
    pub(crate) const EXIT_GROUP: i64 = 231;
}

const EINTR: i64 = -4;
const MSG_NOSIGNAL: u64 = 0x4000;
const MSG_CMSG_CLOEXEC: u64 = 0x4000_0000;
const SCM_RIGHTS: c_int = 1;

/// What this process was started with, beside its program's own variables: `LINK,OBJECT[,e]`.
const MARK: &[u8] = b"PREFORKD_WARM=";
/// A place for a variable of the connection.
const ROOM: &[u8] = b"PREFORKD_ROOM=";
const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// The variables of a connection are never longer, see `environment::describe`.
const LONGEST: usize = 8192;

struct Guest {
    /// Where the worker is.
    link: c_int,
    /// The file that this was loaded from.
    object: c_int,
    /// The connection is its stderr, too.
    is_stderr: bool,
    /// What the worker has said.
    said: [u8; LONGEST],
}

static mut STATE: Guest = Guest { link: -1, object: -1, is_stderr: false, said: [0; LONGEST] };

/// What the worker is told: `sys::warm::Warming`.
#[repr(C)]
struct Tidings {
    kind: u32,
    detail: i32,
    calls: u64,
    cpu_us: u64,
}

const WARM: u32 = 1;

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) = begin;

/// The first thing that runs in this process after the loader. Only glibc passes arguments.
extern "C" fn begin(_: c_int, _: *mut *mut c_char, variables: *mut *mut c_char) {
    // SAFETY: one pointer, which libc has set before it calls constructors; or, where this one comes before libc's own,
    // glibc has passed what it is going to be.
    let variables = unsafe { if environ.is_null() { variables } else { environ } };
    // SAFETY: nothing else runs in this process yet.
    let state = unsafe { &mut *addr_of_mut!(STATE) };
    if !state.learn(variables) {
        return;
    }
    call(number::CLOSE, [state.object as u64, 0, 0, 0, 0, 0]);
    state.tell(WARM, 0, 0);
    let (connection, length) = state.receive();
    for place in 0..if state.is_stderr { 3 } else { 2 } {
        call(number::DUP2, [connection as u64, place, 0, 0, 0, 0]);
    }
    call(number::CLOSE, [connection as u64, 0, 0, 0, 0, 0]);
    call(number::CLOSE, [state.link as u64, 0, 0, 0, 0, 0]);
    let said = state.said.get_mut(..length).unwrap_or_default();
    fill(variables, said);
}

impl Guest {
    /// Finds what it was told, and takes it out of the environment; false if it was told nothing.
    fn learn(&mut self, variables: *mut *mut c_char) -> bool {
        let mut found = false;
        let mut place = variables;
        // SAFETY: an array of strings that ends with a null pointer, environ(7).
        while let Some(variable) = unsafe { next(place) } {
            // SAFETY: one of its strings.
            if let Some(mut value) = unsafe { after(variable, MARK) } {
                let mut take = || {
                    // SAFETY: within the same string.
                    let (number, rest) = unsafe { whole(value) };
                    value = rest;
                    number
                };
                (self.link, self.object) = (take(), take());
                // SAFETY: a byte of the string, its end at the latest.
                self.is_stderr = unsafe { *value } == b'e' as c_char;
                found = true;
                break;
            }
            // SAFETY: not beyond the null pointer.
            place = unsafe { place.add(1) };
        }
        found
    }

    /// Says how far it has come.
    fn tell(&self, kind: u32, detail: i32, calls: u64) {
        let message = Tidings { kind, detail, calls, cpu_us: cpu_us() };
        let (at, length) = (&raw const message as u64, size_of::<Tidings>() as u64);
        // If it cannot be said there is nobody, which comes out when the answer is waited for.
        call(number::SENDTO, [self.link as u64, at, length, MSG_NOSIGNAL, 0, 0]);
    }

    /// Waits for the connection, and how long what is said of it is.
    fn receive(&mut self) -> (c_int, usize) {
        #[repr(C)]
        struct Rights {
            length: usize,
            level: c_int,
            kind: c_int,
            descriptor: c_int,
            padding: c_int,
        }
        loop {
            let mut rights = Rights { length: 0, level: 0, kind: 0, descriptor: -1, padding: 0 };
            let parts = [&raw mut self.said as u64, LONGEST as u64];
            // struct msghdr, recvmsg(2).
            let mut header = [0, 0, &raw const parts as u64, 1, &raw mut rights as u64, size_of::<Rights>() as u64, 0];
            let length = call(number::RECVMSG, [self.link as u64, &raw mut header as u64, MSG_CMSG_CLOEXEC, 0, 0, 0]);
            match length {
                EINTR => {}
                // SAFETY: the kernel has written it.
                1.. if unsafe { ptr::read_volatile(&raw const rights.kind) } == SCM_RIGHTS => {
                    // SAFETY: as above.
                    let descriptor = unsafe { ptr::read_volatile(&raw const rights.descriptor) };
                    return (descriptor, length as usize);
                }
                _ => exit(0),
            }
        }
    }
}

/// Puts what is said of the connection, strings that end with NUL each, into the places that are kept for it, and takes out of
/// the environment what is this object's.
fn fill(variables: *mut *mut c_char, mut said: &mut [u8]) {
    let (mut from, mut to) = (variables, variables);
    // SAFETY: an array of strings that ends with a null pointer, environ(7). `to` is never beyond `from`.
    unsafe {
        while let Some(mut variable) = next(from) {
            from = from.add(1);
            if after(variable, MARK).is_some() {
                continue;
            }
            if after(variable, ROOM).is_some() {
                let Some(end) = said.iter().position(|byte| *byte == 0) else { continue };
                let (one, rest) = core::mem::take(&mut said).split_at_mut(end + 1);
                (variable, said) = (one.as_mut_ptr().cast(), rest);
            } else if let Some(files) = after(variable, PRELOAD) {
                // The first is this one; those behind it are the program's.
                let mut rest = files;
                while !matches!(*rest as u8, 0 | b':' | b' ') {
                    rest = rest.add(1);
                }
                if *rest == 0 {
                    continue;
                }
                let mut place = files;
                loop {
                    rest = rest.add(1);
                    *place = *rest;
                    if *rest == 0 {
                        break;
                    }
                    place = place.add(1);
                }
            }
            *to = variable;
            to = to.add(1);
        }
        *to = ptr::null_mut();
    }
}

/// # Safety
///
/// In an array of strings that ends with a null pointer, not beyond that.
unsafe fn next(place: *mut *mut c_char) -> Option<*mut c_char> {
    // SAFETY: as the caller says.
    let variable = unsafe { *place };
    if variable.is_null() { None } else { Some(variable) }
}

/// What follows a string's beginning, if it is this.
///
/// # Safety
///
/// It ends with NUL.
unsafe fn after(text: *mut c_char, beginning: &[u8]) -> Option<*mut c_char> {
    let mut place = text;
    for wanted in beginning {
        // SAFETY: NUL is in no beginning, so this stops at the end.
        if unsafe { *place } as u8 != *wanted {
            return None;
        }
        // SAFETY: as above.
        place = unsafe { place.add(1) };
    }
    Some(place)
}

/// A number and what follows it, without the comma between.
///
/// # Safety
///
/// It ends with NUL.
unsafe fn whole(text: *mut c_char) -> (c_int, *mut c_char) {
    let (mut number, mut place) = (0, text);
    // SAFETY: not beyond the end.
    unsafe {
        while (*place as u8).is_ascii_digit() {
            number = number * 10 + c_int::from(*place as u8 - b'0');
            place = place.add(1);
        }
        if *place as u8 == b',' {
            place = place.add(1);
        }
    }
    (number, place)
}

/// Processor time of this process, in microseconds.
fn cpu_us() -> u64 {
    // struct rusage: user and system time come first, each in seconds and microseconds.
    let mut usage = [0u64; 18];
    call(number::GETRUSAGE, [0, usage.as_mut_ptr() as u64, 0, 0, 0, 0]);
    (usage[0] + usage[2]) * 1_000_000 + usage[1] + usage[3]
}

fn call(number: i64, arguments: [u64; 6]) -> i64 {
    // SAFETY: what callers pass points to their own memory, and touches no descriptor but those of this object and the
    // placeholders.
    unsafe { preforkd_call(number, &arguments) }
}

fn exit(code: u64) -> ! {
    loop {
        call(number::EXIT_GROUP, [code, 0, 0, 0, 0, 0]);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(70)
}
