//! A process that makes the system calls that a test wants: as if a stranger had taken it over, by ptrace(2).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What became of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done(i64),
    Refused(Errno),
    /// It has killed who made it.
    Killed(Signal),
    Exited(i32),
}

/// syscall; int3; int 0x80; int3; and a loop for ever.
const CODE: [u8; 8] = [0x0f, 0x05, 0xcc, 0xcd, 0x80, 0xcc, 0xeb, 0xfe];
const NATIVE: u64 = 0;
const FOREIGN: u64 = 3;
const LOOP: u64 = 6;

/// Such a process. When it is dropped, it goes on with what it did before.
pub(crate) struct Captive {
    pid: Pid,
    /// Where it was, and what stood there.
    registers: user_regs_struct,
    code: [u8; 8],
    /// Memory of its own.
    room: u64,
    used: u64,
    lives: bool,
}

impl Captive {
    /// Takes over a process, wherever it waits. Only the thread that has done so can have it do something.
    pub(crate) fn take(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACEFORK).unwrap();
        ptrace::interrupt(pid).unwrap();
        wait_for_stop(pid);
        let registers = ptrace::getregs(pid).unwrap();
        let mut captive = Captive { pid, registers, code: [0; 8], room: 0, used: 0, lives: true };
        let memory = captive.memory();
        memory.read_exact_at(&mut captive.code, registers.rip).unwrap();
        memory.write_all_at(&CODE, registers.rip).unwrap();
        // PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS.
        let Outcome::Done(room) = captive.call(9, [0, 1 << 16, 3, 0x22, u64::MAX, 0]) else {
            panic!("it has no memory");
        };
        captive.room = u64::try_from(room).unwrap();
        captive
    }

    fn memory(&self) -> File {
        File::options().read(true).write(true).open(PathBuf::from(format!("/proc/{}/mem", self.pid))).unwrap()
    }

    /// Puts bytes into its memory; where they are, until the next sixteen pages of them.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> u64 {
        if self.used + bytes.len() as u64 > 1 << 16 {
            self.used = 0;
        }
        let at = self.room + self.used;
        self.memory().write_all_at(bytes, at).unwrap();
        self.used += (bytes.len() as u64).next_multiple_of(16);
        at
    }

    /// The same with a string of C.
    pub(crate) fn put_text(&mut self, text: &str) -> u64 {
        self.put(format!("{text}\0").as_bytes())
    }

    /// Has it make a system call, by number.
    pub(crate) fn call(&mut self, number: i64, arguments: [u64; 6]) -> Outcome {
        self.call_by(NATIVE, number, arguments)
    }

    /// The same as a program of 32 bits does.
    pub(crate) fn call_of_32_bits(&mut self, number: i64, arguments: [u64; 6]) -> Outcome {
        self.call_by(FOREIGN, number, arguments)
    }

    fn call_by(&mut self, entry: u64, number: i64, arguments: [u64; 6]) -> Outcome {
        assert!(self.lives, "it is dead");
        let mut registers = self.registers;
        registers.rip += entry;
        registers.rax = number as u64;
        // Nothing is to be restarted.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
        if entry == FOREIGN {
            [registers.rbx, registers.rcx, registers.rdx] = [arguments[0], arguments[1], arguments[2]];
        }
        ptrace::setregs(self.pid, registers).unwrap();
        let mut signal = None;
        loop {
            ptrace::cont(self.pid, signal).unwrap();
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => break,
                // What interrupts it, such as its alarm, is not what is tried.
                WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => signal = None,
                WaitStatus::Signaled(_, signal, _) => {
                    self.lives = false;
                    return Outcome::Killed(signal);
                }
                WaitStatus::Exited(_, code) => {
                    self.lives = false;
                    return Outcome::Exited(code);
                }
                other => panic!("{other:?}"),
            }
        }
        let result = ptrace::getregs(self.pid).unwrap().rax as i64;
        match result {
            -4095..=-1 => Outcome::Refused(Errno::from_raw(i32::try_from(-result).unwrap())),
            _ => Outcome::Done(result),
        }
    }

    /// What it forked has come under control as well: has it wait for ever, without anybody.
    pub(crate) fn let_loose(child: i32) {
        let child = Pid::from_raw(child);
        wait_for_stop(child);
        let mut registers = ptrace::getregs(child).unwrap();
        // Where it has come from; it stands behind the call.
        registers.rip += LOOP - NATIVE - 2;
        registers.orig_rax = u64::MAX;
        ptrace::setregs(child, registers).unwrap();
        ptrace::detach(child, None).unwrap();
    }

    /// Whether it still lives.
    pub(crate) fn lives(&self) -> bool {
        self.lives
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        if self.lives {
            self.memory().write_all_at(&self.code, self.registers.rip).unwrap();
            ptrace::setregs(self.pid, self.registers).unwrap();
            ptrace::detach(self.pid, None).unwrap();
        }
    }
}

fn wait_for_stop(pid: Pid) {
    let status = waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(matches!(status, WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)), "{status:?}");
}
