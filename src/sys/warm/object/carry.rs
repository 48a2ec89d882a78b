//! A program that becomes another one before it has its connection, as env(1) and scripts that end with `exec` do.
//!
//! The other gets this object, too, and what it has to know: it is as far into its start as the first was. What this could not be
//! loaded into (see ld.so(8), `LD_PRELOAD`) is not started before the connection is there.

use core::ffi::c_int;
use core::ptr::addr_of_mut;

use crate::kernel::{self, call, number};
use crate::{MARK, Orientation, PRELOAD};

/// What becomes of the call.
pub(crate) enum Carried {
    /// It has failed, as it would without this object.
    Failed(i64),
    /// The program makes it when it has its connection.
    Not,
}

/// Variables beyond are not carried.
const MOST: usize = 1024;
/// The kernel follows so many scripts.
const SCRIPTS: u32 = 5;
/// The kernel looks at so many bytes of a file.
const HEAD: usize = 256;
const LONGEST_MARK: usize = 320;
const LONGEST_PRELOAD: usize = 64;

/// Too large for a signal's stack.
struct Room {
    /// A signal handler of the program may make such a call, too, in the middle of one.
    is_used: bool,
    variables: [u64; MOST + 3],
    mark: [u8; LONGEST_MARK],
    preload: [u8; LONGEST_PRELOAD],
}

static mut ROOM: Room =
    Room { is_used: false, variables: [0; MOST + 3], mark: [0; LONGEST_MARK], preload: [0; LONGEST_PRELOAD] };

/// execve(2). Does not return if it could be done.
pub(crate) fn execute(arguments: [u64; 6], told: &Orientation) -> Carried {
    match may_become(arguments[0], SCRIPTS) {
        // env(1) and shells go on to the next directory then.
        Err(errno @ (kernel::ENOENT | kernel::ENOTDIR)) => return Carried::Failed(errno),
        Err(_) => return Carried::Not,
        Ok(()) => {}
    }
    // SAFETY: there is one thread, and who interrupts it here goes no further than this.
    let room = unsafe { &mut *addr_of_mut!(ROOM) };
    if core::mem::replace(&mut room.is_used, true) {
        return Carried::Not;
    }
    let carried = execute_with(room, arguments, told);
    room.is_used = false;
    carried
}

fn execute_with(room: &mut Room, [path, argv, envp, ..]: [u64; 6], told: &Orientation) -> Carried {
    let Some(count) = variables(envp, &mut room.variables) else { return Carried::Not };
    let mut preload = Spelling { bytes: &mut room.preload, length: 0 };
    preload.add(PRELOAD);
    preload.add(b"/proc/self/fd/");
    preload.number(told.object as u64);
    preload.add(b"\0");
    let mut mark = Spelling { bytes: &mut room.mark, length: 0 };
    mark.add(MARK);
    let numbers = [told.link as u64, told.object as u64, told.flags, told.calls];
    let numbers = numbers.iter().chain(&told.places).chain(&told.address);
    for (place, number) in numbers.enumerate() {
        mark.add(if place == 0 { b"" } else { b"," });
        mark.number(*number);
    }
    mark.add(b"\0");
    let own = [room.preload.as_ptr() as u64, room.mark.as_ptr() as u64, 0];
    for (place, variable) in room.variables.iter_mut().skip(count).zip(own) {
        *place = variable;
    }
    for descriptor in [told.link, told.object] {
        close_on_exec(descriptor, false);
    }
    let result = call(number::EXECVE, [path, argv, room.variables.as_ptr() as u64, 0, 0, 0]);
    for descriptor in [told.link, told.object] {
        close_on_exec(descriptor, true);
    }
    match result {
        kernel::ENOENT | kernel::ENOTDIR | kernel::EACCES => Carried::Failed(result),
        // What these two variables are too much for may do without them.
        _ => Carried::Not,
    }
}

fn close_on_exec(descriptor: c_int, closes: bool) {
    const F_SETFD: u64 = 2;
    call(number::FCNTL, [descriptor as u64, F_SETFD, u64::from(closes), 0, 0, 0]);
}

/// The variables that the program passes on, and how many; none that are this object's or load another.
fn variables(envp: u64, room: &mut [u64; MOST + 3]) -> Option<usize> {
    for (count, place) in room.iter_mut().take(MOST).enumerate() {
        let at = envp.checked_add(8 * count as u64)?;
        if !kernel::is_readable(at, 8) {
            return None;
        }
        // SAFETY: it has just been found to be readable.
        let variable = unsafe { (at as *const u64).read_unaligned() };
        if variable == 0 {
            return Some(count);
        }
        if !kernel::is_readable(variable, 8) {
            return None;
        }
        let text = variable as *mut core::ffi::c_char;
        // SAFETY: the program says that it is a string.
        if unsafe { crate::after(text, PRELOAD).is_some() || crate::after(text, MARK).is_some() } {
            return None;
        }
        *place = variable;
    }
    None
}

/// Whether this object would be loaded into the program at `path`, or into the one that interprets it; or why it cannot be looked at.
/// As `config::machine::executable::loads_nothing`.
fn may_become(path: u64, left: u32) -> Result<(), i64> {
    const O_RDONLY_CLOEXEC: u64 = 0o2000000;
    const AT_FDCWD: u64 = -100i64 as u64;
    let mut status = [0u64; 18];
    let found = call(number::NEWFSTATAT, [AT_FDCWD, path, status.as_mut_ptr() as u64, 0, 0, 0]);
    if found < 0 {
        return Err(found);
    }
    // struct stat: a regular file, without set-user-ID and set-group-ID. Another might be a FIFO, whose opening waits.
    if status[3] as u32 & 0o176000 != 0o100000 {
        return Err(kernel::EACCES);
    }
    let file = call(number::OPENAT, [AT_FDCWD, path, O_RDONLY_CLOEXEC, 0, 0, 0]);
    if file < 0 {
        return Err(kernel::EACCES);
    }
    let may = may_be(file as u64, left);
    call(number::CLOSE, [file as u64, 0, 0, 0, 0, 0]);
    may.ok_or(kernel::EACCES)
}

fn may_be(file: u64, left: u32) -> Option<()> {
    const CAPABILITIES: &[u8] = b"security.capability\0";
    let mut head = [0u8; HEAD];
    let length = read_at(file, &mut head, 0)?;
    if head.starts_with(b"#!") {
        let line = head.get_mut(2..length)?;
        let end = line.iter().position(|byte| *byte == b'\n' || *byte == 0)?;
        let is_blank = |byte: &u8| matches!(*byte, b' ' | b'\t');
        let start = line.iter().take(end).position(|byte| !is_blank(byte))?;
        let end = line.iter().take(end).skip(start).position(is_blank).map_or(end, |length| start + length);
        *line.get_mut(end)? = 0;
        let interpreter = line.get(start..)?.as_ptr() as u64;
        return may_become(interpreter, left.checked_sub(1)?).ok();
    }
    let has = call(number::FGETXATTR, [file, CAPABILITIES.as_ptr() as u64, 0, 0, 0, 0]);
    if has != kernel::ENODATA && has != kernel::EOPNOTSUPP {
        return None;
    }
    // Of 64 bits, little-endian; ET_EXEC or ET_DYN, for x86-64.
    let is_ours = head.starts_with(b"\x7fELF\x02\x01") && matches!(word(&head, 16)?, 2 | 3) && word(&head, 18)? == 62;
    let table = u64::from_ne_bytes(*head.get(32..40)?.first_chunk()?);
    // Entries of the program header table are never of another size, elf(5).
    if !is_ours || word(&head, 54)? != 56 {
        return None;
    }
    const PT_INTERP: u32 = 3;
    (0..u64::from(word(&head, 56)?)).find_map(|number| {
        let mut kind = [0; 4];
        read_at(file, &mut kind, table.checked_add(56 * number)?)?;
        (u32::from_ne_bytes(kind) == PT_INTERP).then_some(())
    })
}

fn word(head: &[u8; HEAD], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*head.get(at..at + 2)?.first_chunk()?))
}

fn read_at(file: u64, room: &mut [u8], at: u64) -> Option<usize> {
    usize::try_from(call(number::PREAD64, [file, room.as_mut_ptr() as u64, room.len() as u64, at, 0, 0])).ok()
}

struct Spelling<'a> {
    bytes: &'a mut [u8],
    length: usize,
}

impl Spelling<'_> {
    fn add(&mut self, more: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.length).zip(more) {
            *place = *byte;
        }
        self.length += more.len();
    }

    fn number(&mut self, number: u64) {
        if number > 9 {
            self.number(number / 10);
        }
        self.add(&[b'0' + (number % 10) as u8]);
    }
}
