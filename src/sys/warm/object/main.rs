//! What is loaded into a program that is started ahead of its connection, by `LD_PRELOAD`; build.rs makes it.
//!
//! It runs before the program's `main`. For `warm = "start"` it waits there until its worker hands it a connection, and puts that
//! on the descriptors where the program has a placeholder until then. For `warm = "spare"` it has the kernel stop every system
//! call first ([`dispatch`]), and waits at the first that is not known to be private to the process ([`calls`]). Then it is done:
//! nothing of it is called again.
//!
//! It stands in a stranger's process, so it uses nothing of that: no library, no allocation, no descriptor but its own two. It
//! trusts what its worker says. If the worker is gone, it ends the process: nobody would ever call.
#![no_std]
#![allow(unsafe_code)]

mod calls;
mod carry;
mod dispatch;
mod kernel;

use core::arch::global_asm;
use core::ffi::{c_char, c_int};
use core::ptr::{self, addr_of_mut};

use kernel::{call, exit, number};

global_asm!(
    ".pushsection .text.preforkd_nearby,\"ax\",@progbits",
    // By a weak symbol: there are programs without libc.
    ".weak environ",
    ".hidden preforkd_environ",
    ".globl preforkd_environ",
    "preforkd_environ:",
    "mov rax, [rip + environ@GOTPCREL]",
    "ret",
    // What the compiler calls. libc's are not called: it may not be there, or not be ready.
    ".hidden memcpy",
    ".globl memcpy",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".hidden memset",
    ".globl memset",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".hidden strlen",
    ".globl strlen",
    "strlen:",
    "mov rax, -1",
    "2:",
    "inc rax",
    "cmp byte ptr [rdi + rax], 0",
    "jne 2b",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    /// Where the program's environment is, environ(7); null where there is no libc.
    safe fn preforkd_environ() -> *mut *mut *mut c_char;
}

/// What this process was started with, beside its program's own variables: the numbers of [`Orientation`], with commas between.
const MARK: &[u8] = b"PREFORKD_WARM=";
/// A place for a variable of the connection, and room.
const ROOM: &[u8] = b"PREFORKD_ROOM=";
const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// The variables of a connection are never longer, see `environment::describe`.
const LONGEST: usize = 8192;

/// The link to the worker.
struct WorkerLink {
    descriptor: c_int,
    /// What the worker has said.
    said: [u8; LONGEST],
}

/// What this object was told: by the worker, or by itself in the program that has become this one.
#[derive(Clone, Copy)]
struct Orientation {
    link: c_int,
    /// The file that it was loaded from.
    object: c_int,
    flags: u64,
    /// How many calls the program has made before it became this one.
    calls: u64,
    /// Where the connection is to be, a bit for each descriptor.
    places: [u64; MOST_DESCRIPTORS / 64],
    /// What getsockname(2) says of every connection.
    address: SocketAddress,
}

impl Orientation {
    /// The program's start is to go on.
    const GOES_ON: u64 = 1;
    /// It ignores SIGSYS.
    const IGNORES_SYS: u64 = 2;
    /// It has blocked SIGSYS.
    const BLOCKS_SYS: u64 = 4;
    /// Not all connections are of the family and protocol that the placeholder has.
    const FAMILIES_DIFFER: u64 = 8;

    const NONE: Orientation =
        Orientation { link: -1, object: -1, flags: 0, calls: 0, places: [0; MOST_DESCRIPTORS / 64], address: NO_ADDRESS };
}

/// A struct sockaddr_in or sockaddr_in6, or nothing.
type SocketAddress = [u64; 4];
const NO_ADDRESS: SocketAddress = [0; 4];

/// Descriptors beyond are not followed.
const MOST_DESCRIPTORS: usize = 256;

static mut LINK: WorkerLink = WorkerLink { descriptor: -1, said: [0; LONGEST] };

/// What the worker is told: `sys::warm::Warming`.
#[repr(C)]
struct Tidings {
    kind: u32,
    detail: c_int,
    calls: u64,
    cpu_us: u64,
}

/// It waits for the connection, at this system call, after so many.
const WARM: u32 = 1;
/// It cannot, for this errno.
const FAILED: u32 = 2;

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) = begin;

/// The first thing that runs in this process after the loader. Only glibc's loader passes arguments.
extern "C" fn begin(_: c_int, _: *mut *mut c_char, passed: *mut *mut c_char) {
    let environ = preforkd_environ();
    // SAFETY: one pointer, which libc has set before it calls constructors.
    let variables = if environ.is_null() { ptr::null_mut() } else { unsafe { *environ } };
    // Where this one comes before libc's own, or there is none, glibc has passed what it is.
    let variables = if variables.is_null() { passed } else { variables };
    let Some(told) = learn(variables) else { return };
    // SAFETY: nothing else runs in this process yet, and nothing but this object knows of it.
    let link = unsafe { &mut *addr_of_mut!(LINK) };
    link.descriptor = told.link;
    // SAFETY: as above; the loader has done with them.
    let own = unsafe { own_strings(variables) };
    if told.flags & Orientation::GOES_ON != 0 {
        fill(variables, own, &mut []);
        return dispatch::begin(link, told);
    }
    let files = calls::ProgramFiles::new(&told);
    let room = files.make_room();
    link.tell(WARM, 0, 0);
    let (connection, length) = link.receive();
    files.put(connection, room);
    fill(variables, own, link.said.get_mut(..length).unwrap_or_default());
}

/// Finds what this object was told; `None` if nothing.
fn learn(variables: *mut *mut c_char) -> Option<Orientation> {
    let mut place = variables;
    // SAFETY: an array of strings that ends with a null pointer, environ(7).
    while let Some(variable) = unsafe { next(place) } {
        // SAFETY: one of its strings.
        let Some(value) = (unsafe { after(variable, MARK) }) else {
            // SAFETY: not beyond the null pointer.
            place = unsafe { place.add(1) };
            continue;
        };
        let mut numbers = [0; 12];
        let mut rest = value;
        for number in &mut numbers {
            // SAFETY: within the same string.
            (*number, rest) = unsafe { whole(rest) };
        }
        let [link, object, flags, calls, first, second, third, fourth, address @ ..] = numbers;
        let (link, object, places) = (link as c_int, object as c_int, [first, second, third, fourth]);
        return Some(Orientation { link, object, flags, calls, places, address });
    }
    None
}

impl WorkerLink {
    /// Says how far it has come.
    fn tell(&self, kind: u32, detail: c_int, calls: u64) {
        let message = Tidings { kind, detail, calls, cpu_us: kernel::cpu_us() };
        let (at, length) = (&raw const message as u64, size_of::<Tidings>() as u64);
        // If it cannot be said there is nobody, which comes out when the answer is waited for.
        call(number::SENDTO, [self.descriptor as u64, at, length, kernel::MSG_NOSIGNAL, 0, 0]);
    }

    /// Waits for the connection, and how long what is said of it is. It is none if there was no room for it: then the program
    /// has closed it everywhere.
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
            let room = size_of::<Rights>() as u64;
            let mut header = [0, 0, &raw const parts as u64, 1, &raw mut rights as u64, room, 0];
            let flags = kernel::MSG_CMSG_CLOEXEC;
            let length =
                call(number::RECVMSG, [self.descriptor as u64, &raw mut header as u64, flags, 0, 0, 0]);
            match length {
                kernel::EINTR => {}
                // SAFETY: the kernel has written it, if there is one.
                1.. => return (unsafe { ptr::read_volatile(&raw const rights.descriptor) }, length as usize),
                _ => exit(0),
            }
        }
    }
}

/// Puts what is said of the connection, strings that end with NUL each, into the environment, and takes out of it what is this
/// object's. They are copied to where that was, which leaves one string behind the other from the first argument on, as the kernel
/// puts them there: programs write their titles over all of it, and find its end by the last variable, see prctl(2), `PR_SET_MM`.
fn fill<'a>(variables: *mut *mut c_char, own: &'a mut [u8], mut said: &'a mut [u8]) {
    let places = own.as_mut_ptr_range();
    if let Some(place) = own.get_mut(..said.len()) {
        place.copy_from_slice(said);
        said = place;
    }
    let (mut from, mut to) = (variables, variables);
    // SAFETY: an array of strings that ends with a null pointer, environ(7). `to` is never beyond `from`.
    unsafe {
        while let Some(mut variable) = next(from) {
            from = from.add(1);
            if places.contains(&variable.cast()) || is_own(variable) {
                let Some(end) = said.iter().position(|byte| *byte == 0) else { continue };
                let (one, rest) = core::mem::take(&mut said).split_at_mut(end + 1);
                (variable, said) = (one.as_mut_ptr().cast(), rest);
            }
            *to = variable;
            to = to.add(1);
        }
        *to = ptr::null_mut();
    }
}

/// Where this object's own variables are, one behind the other, and nothing is any more.
///
/// # Safety
///
/// An array of strings that ends with a null pointer. The loader has read them, and nobody else refers to these.
unsafe fn own_strings(variables: *mut *mut c_char) -> &'static mut [u8] {
    let (mut start, mut length) = (ptr::null_mut::<c_char>(), 0);
    let mut place = variables;
    // SAFETY: as the caller says.
    unsafe {
        while let Some(variable) = next(place) {
            place = place.add(1);
            if !is_own(variable) {
                continue;
            }
            if length == 0 {
                start = variable;
            }
            // A constructor that ran before may have set others.
            if variable == start.wrapping_add(length) {
                length += core::ffi::CStr::from_ptr(variable).count_bytes() + 1;
            }
        }
    }
    if start.is_null() {
        return &mut [];
    }
    // SAFETY: those strings.
    let own = unsafe { core::slice::from_raw_parts_mut(start.cast::<u8>(), length) };
    own.fill(0);
    own
}

/// # Safety
///
/// It ends with NUL.
unsafe fn is_own(variable: *mut c_char) -> bool {
    // SAFETY: as the caller says.
    unsafe { [MARK, PRELOAD, ROOM].iter().any(|name| after(variable, name).is_some()) }
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
unsafe fn whole(text: *mut c_char) -> (u64, *mut c_char) {
    let (mut number, mut place) = (0u64, text);
    // SAFETY: not beyond the end.
    unsafe {
        while (*place as u8).is_ascii_digit() {
            number = number.wrapping_mul(10).wrapping_add(u64::from(*place as u8 - b'0'));
            place = place.add(1);
        }
        if *place as u8 == b',' {
            place = place.add(1);
        }
    }
    (number, place)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(70)
}
