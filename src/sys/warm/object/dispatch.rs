//! The kernel hands every system call of the program to this object, until the program has its connection: Syscall User
//! Dispatch, Documentation/admin-guide/syscall-user-dispatch.rst.
//!
//! A call raises SIGSYS. The handler makes it in the program's place, or waits for the connection there. When that has come,
//! dispatch is off, signals are as the program believes them to be, and the call is made again, by the program itself. Nothing is
//! left between it and the kernel.
//!
//! SIGSYS must get through all the time, so what the program does about it is only remembered. Its own signal handlers run
//! as they would, also in the middle of a call that is made here; so this handler blocks nothing, and keeps nothing over a call
//! but what is in its frame.

use core::ffi::{c_int, c_void};
use core::ptr::addr_of_mut;

use crate::calls::{self, Ruling};
use crate::carry::{self, Carried};
use crate::kernel::{self, MASK_BYTES, call, number};
use crate::{FAILED, Orientation, WARM, WorkerLink};

const SIGSYS: u64 = 31;
/// Its bit in a mask of signals.
const SYS_BIT: u64 = 1 << (SIGSYS - 1);
const SIGKILL_AND_SIGSTOP: u64 = 1 << 8 | 1 << 18;
/// `SA_SIGINFO | SA_NODEFER | SA_RESTORER`.
const FLAGS: u64 = 4 | 0x4000_0000 | 0x0400_0000;
/// `si_code` of a call that was handed over.
const SYS_USER_DISPATCH: c_int = 2;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Said for a call of 32 bits.
const ANOTHER_TABLE: i64 = -1;
const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
const SIG_IGN: u64 = 1;

/// `struct kernel_sigaction`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SignalAction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// The beginning of siginfo_t, as SIGSYS has it.
#[repr(C)]
pub(crate) struct CallInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    address: u64,
    number: c_int,
    architecture: u32,
}

/// `struct ucontext` with `struct sigcontext_64` in it.
#[repr(C)]
pub(crate) struct CallFrame {
    flags: u64,
    link: u64,
    /// The alternate stack; it is what it says here again when the handler returns.
    stack: [u64; 3],
    registers: Registers,
    segments: u64,
    fault: [u64; 4],
    floating: u64,
    reserved: [u64; 8],
    /// What is blocked when the handler returns.
    mask: u64,
}

#[repr(C)]
struct Registers {
    r8: u64,
    r9: u64,
    r10: u64,
    r11_to_r15: [u64; 5],
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    flags: u64,
}

const _: () = assert!(core::mem::offset_of!(CallFrame, mask) == 296);

struct Dispatch {
    link: *mut WorkerLink,
    told: Orientation,
    files: calls::ProgramFiles,
    calls: u64,
    /// What the program believes SIGSYS to do.
    action: SignalAction,
    /// It believes that it has blocked it.
    is_blocked: bool,
    /// The signals in whose handlers it believes it to be blocked.
    in_masks: u64,
}

static mut DISPATCH: Dispatch = Dispatch {
    link: core::ptr::null_mut(),
    told: Orientation::NONE,
    files: calls::ProgramFiles::NONE,
    calls: 0,
    action: SignalAction { handler: 0, flags: 0, restorer: 0, mask: 0 },
    is_blocked: false,
    in_masks: 0,
};

/// What the kernel looks at for every call: all are handed over but those of this object.
static BLOCK: u8 = 1;

/// From now on until the program waits, its calls are handed over.
pub(crate) fn begin(link: &mut WorkerLink, mut told: Orientation) {
    told.link = out_of_the_way(told.link);
    told.object = out_of_the_way(told.object);
    link.descriptor = told.link;
    // SAFETY: nothing else runs in this process yet, and nothing but this file knows of it.
    let dispatch = unsafe { &mut *addr_of_mut!(DISPATCH) };
    dispatch.files = calls::ProgramFiles::new(&told);
    dispatch.link = link;
    dispatch.told = told;
    dispatch.calls = told.calls;
    dispatch.is_blocked = told.flags & Orientation::BLOCKS_SYS != 0;
    let own = SignalAction {
        handler: on_call as *const c_void as u64,
        flags: FLAGS,
        restorer: kernel::preforkd_restorer as *const c_void as u64,
        mask: 0,
    };
    let before = &raw mut dispatch.action as u64;
    call(number::RT_SIGACTION, [SIGSYS, &raw const own as u64, before, MASK_BYTES, 0, 0]);
    if told.flags & Orientation::IGNORES_SYS != 0 {
        dispatch.action.handler = SIG_IGN;
    }
    let (start, length) = kernel::gate();
    let on = [PR_SET_SYSCALL_USER_DISPATCH, 1, start, length, &raw const BLOCK as u64, 0];
    let result = call(number::PRCTL, on);
    if result != 0 {
        link.tell(FAILED, -result as c_int, 0);
        kernel::exit(71);
    }
}

/// Moves a descriptor to where programs do not look for theirs. They get the lowest that are free.
fn out_of_the_way(descriptor: c_int) -> c_int {
    const F_DUPFD_CLOEXEC: u64 = 1030;
    let mut limit = [0u64; 2];
    call(number::GETRLIMIT, [kernel::RLIMIT_NOFILE, limit.as_mut_ptr() as u64, 0, 0, 0, 0]);
    if descriptor as u64 >= limit[0] {
        return descriptor;
    }
    let least = limit[0].clamp(2, 240) - 2;
    match call(number::FCNTL, [descriptor as u64, F_DUPFD_CLOEXEC, least, 0, 0, 0]) {
        moved @ 0.. => {
            call(number::CLOSE, [descriptor as u64, 0, 0, 0, 0, 0]);
            moved as c_int
        }
        _ => descriptor,
    }
}

/// The handler of SIGSYS.
extern "C" fn on_call(_: c_int, info: &CallInfo, context: &mut CallFrame) {
    // SAFETY: there is one thread, and who interrupts this handler changes only what he would change after it, too.
    let dispatch = unsafe { &mut *addr_of_mut!(DISPATCH) };
    if info.code != SYS_USER_DISPATCH {
        // A filter of the sandbox, or somebody's kill(2), which would end it.
        kernel::exit(128 + SIGSYS);
    }
    dispatch.calls += 1;
    let number = i64::from(info.number);
    let Registers { rdi, rsi, rdx, r10, r8, r9, .. } = context.registers;
    let arguments = [rdi, rsi, rdx, r10, r8, r9];
    let verdict = match number {
        _ if info.architecture != AUDIT_ARCH_X86_64 => Ruling::Stop,
        // SAFETY: it is the program that returns from a handler of its own, whose frame its stack pointer is at.
        15 => unsafe { kernel::preforkd_return(context.registers.rsp) },
        number::RT_SIGACTION => dispatch.set_action(arguments),
        number::RT_SIGPROCMASK => dispatch.set_mask(arguments, context),
        number::SIGALTSTACK => set_stack(arguments, context),
        number::EXECVE => dispatch.become_another(arguments),
        _ => dispatch.files.judge(number, arguments),
    };
    context.registers.rax = match verdict {
        Ruling::Pass => call(number, arguments) as u64,
        Ruling::Answer(answer) => answer as u64,
        Ruling::Stop => {
            let is_ours = info.architecture == AUDIT_ARCH_X86_64;
            dispatch.wait(if is_ours { number } else { ANOTHER_TABLE }, context);
            // `syscall` has two bytes, and so has `int 0x80`.
            context.registers.rip -= 2;
            number as u64
        }
    };
}

impl Dispatch {
    /// Waits for the connection, and leaves everything as if this had never been there.
    fn wait(&mut self, at: i64, context: &mut CallFrame) {
        let all = u64::MAX;
        call(number::RT_SIGPROCMASK, [2, &raw const all as u64, 0, MASK_BYTES, 0, 0]);
        // SAFETY: it was set at the beginning, and nobody else has it.
        let link = unsafe { &mut *self.link };
        let room = self.files.make_room();
        link.tell(WARM, at as c_int, self.calls);
        let (connection, _) = link.receive();
        self.files.put(connection, room);
        call(number::PRCTL, [PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0, 0]);
        call(number::RT_SIGACTION, [SIGSYS, &raw const self.action as u64, 0, MASK_BYTES, 0, 0]);
        for signal in (1..=64).filter(|signal| self.in_masks & 1 << (signal - 1) != 0) {
            let mut action = SignalAction { handler: 0, flags: 0, restorer: 0, mask: 0 };
            call(number::RT_SIGACTION, [signal, 0, &raw mut action as u64, MASK_BYTES, 0, 0]);
            action.mask |= SYS_BIT;
            call(number::RT_SIGACTION, [signal, &raw const action as u64, 0, MASK_BYTES, 0, 0]);
        }
        if self.is_blocked {
            context.mask |= SYS_BIT;
        }
    }

    /// execve(2). What is ignored and what is blocked stays so.
    fn become_another(&self, arguments: [u64; 6]) -> Ruling {
        let ignores = if self.action.handler == SIG_IGN { Orientation::IGNORES_SYS } else { 0 };
        let blocks = if self.is_blocked { Orientation::BLOCKS_SYS } else { 0 };
        let same = self.told.flags & !(Orientation::IGNORES_SYS | Orientation::BLOCKS_SYS);
        let flags = same | ignores | blocks;
        let told = Orientation { flags, calls: self.calls, places: self.files.after_exec(), ..self.told };
        match carry::execute(arguments, &told) {
            Carried::Failed(errno) => Ruling::Answer(errno),
            Carried::Not => Ruling::Stop,
        }
    }

    /// rt_sigaction(2). SIGSYS must stay this object's, and must not be blocked by another's handler.
    fn set_action(&mut self, [signal, new, old, bytes, ..]: [u64; 6]) -> Ruling {
        if bytes != MASK_BYTES {
            return Ruling::Answer(kernel::EINVAL);
        }
        let (new, old) = (new as *const SignalAction, old as *mut SignalAction);
        // The kernel reads the new one first, and then looks at the signal.
        if !new.is_null() && call(number::RT_SIGACTION, [0, new as u64, 0, MASK_BYTES, 0, 0]) == kernel::EFAULT {
            return Ruling::Answer(kernel::EFAULT);
        }
        // SAFETY: the kernel has just read it there.
        let wanted = if new.is_null() { None } else { Some(unsafe { new.read_unaligned() }) };
        if signal == SIGSYS {
            let before = self.action;
            self.action = wanted.unwrap_or(before);
            // Of any signal, to see whether it can be written there.
            let result = call(number::RT_SIGACTION, [1, 0, old as u64, MASK_BYTES, 0, 0]);
            if result == 0 && !old.is_null() {
                // SAFETY: the kernel has just written there.
                unsafe { old.write_unaligned(before) };
            }
            return Ruling::Answer(result);
        }
        let bit = 1u64.checked_shl(signal.wrapping_sub(1) as u32).unwrap_or(0);
        let set = wanted.map(|action| SignalAction { mask: action.mask & !SYS_BIT, ..action });
        let set_at = set.as_ref().map_or(0, |action| &raw const *action as u64);
        let result = call(number::RT_SIGACTION, [signal, set_at, old as u64, MASK_BYTES, 0, 0]);
        if result == 0 {
            if !old.is_null() && self.in_masks & bit != 0 {
                // SAFETY: the kernel has just written there.
                unsafe { (*old).mask |= SYS_BIT };
            }
            if let Some(action) = wanted {
                self.in_masks = if action.mask & SYS_BIT != 0 { self.in_masks | bit } else { self.in_masks & !bit };
            }
        }
        Ruling::Answer(result)
    }

    /// rt_sigprocmask(2). What is blocked is set when the handler returns.
    fn set_mask(&mut self, [how, new, old, bytes, ..]: [u64; 6], context: &mut CallFrame) -> Ruling {
        let before = context.mask & !SYS_BIT | if self.is_blocked { SYS_BIT } else { 0 };
        let mut after = before;
        if bytes != MASK_BYTES {
            return Ruling::Answer(kernel::EINVAL);
        }
        if new != 0 {
            if !kernel::is_readable(new, MASK_BYTES) {
                return Ruling::Answer(kernel::EFAULT);
            }
            // SAFETY: it can be read there.
            let set = unsafe { (new as *const u64).read_unaligned() };
            after = match how as c_int {
                0 => before | set,
                1 => before & !set,
                2 => set,
                _ => return Ruling::Answer(kernel::EINVAL),
            };
        }
        self.is_blocked = after & SYS_BIT != 0;
        context.mask = after & !(SYS_BIT | SIGKILL_AND_SIGSTOP);
        if old != 0 {
            if call(number::RT_SIGPROCMASK, [0, 0, old, MASK_BYTES, 0, 0]) != 0 {
                return Ruling::Answer(kernel::EFAULT);
            }
            // SAFETY: the kernel has just written there.
            unsafe { (old as *mut u64).write_unaligned(before) };
        }
        Ruling::Answer(0)
    }
}

/// sigaltstack(2). It would be undone when the handler returns.
fn set_stack(arguments: [u64; 6], context: &mut CallFrame) -> Ruling {
    let result = call(number::SIGALTSTACK, arguments);
    if result == 0 && arguments[0] != 0 {
        // SAFETY: the kernel has just read it there.
        context.stack = unsafe { (arguments[0] as *const [u64; 3]).read_unaligned() };
    }
    Ruling::Answer(result)
}
