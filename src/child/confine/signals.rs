//! Filters about signals alone, where Landlock does not keep them in: what a worker shares with programs becomes one with that of their
//! sandbox, and what each handler has of its own is few instructions long, since the kernel tries all system calls on a filter when it is
//! installed.

use landlock::ABI;

use super::filter::{OWNER_COMMANDS, OWNER_REQUESTS, SIGNAL_SCOPE, number};
use super::instructions::{FORBIDDEN, NUMBER, argument, compare, end, load};
use crate::config::{CallSet, Job, Sandbox};
use crate::sys::seccomp::Instruction;
use crate::sys::wait::Pid;

/// What sends a signal to whom a number names, and nothing else.
const SIGNALS: [&str; 5] = ["kill", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "tkill"];

/// Where Landlock does not: has a handler's process signal nobody but itself, which abort(3) does. Beside the filter that it
/// shares with its worker, which has to signal others; 30 µs.
#[derive(Debug)]
pub(super) struct Silence([Instruction; 21]);

impl Silence {
    /// For this job and sandbox, if it needs one.
    pub(super) fn new(sandbox: &Sandbox, job: &Job, landlock: ABI) -> Option<Self> {
        let is_wanted = landlock < SIGNAL_SCOPE
            && matches!(job, Job::Handler(_))
            && sandbox.system_calls.base == CallSet::Service;
        if is_wanted { Silence::compile() } else { None }
    }

    fn compile() -> Option<Self> {
        /// Places of instructions.
        const OF_FCNTL: usize = 10;
        const OF_IOCTL: usize = 14;
        const OF_TGKILL: usize = 17;
        const DENY: usize = 19;
        const ALLOW: usize = 20;
        let number = |name| number(name).map(|number| number as u32);
        let mut program = [load(NUMBER); 21];
        let mut compare = |place, k, equal, other| program[place] = compare(place, k, equal, other);
        for (index, name) in SIGNALS.into_iter().enumerate() {
            compare(index + 1, number(name)?, DENY, index + 2);
        }
        compare(6, number("fcntl")?, OF_FCNTL, 7);
        compare(7, number("ioctl")?, OF_IOCTL, 8);
        compare(8, number("tgkill")?, OF_TGKILL, 9);
        compare(OF_FCNTL + 1, OWNER_COMMANDS[0] as u32, DENY, OF_FCNTL + 2);
        compare(OF_FCNTL + 2, OWNER_COMMANDS[1] as u32, DENY, OF_FCNTL + 3);
        compare(OF_FCNTL + 3, OWNER_COMMANDS[2] as u32, DENY, ALLOW);
        compare(OF_IOCTL + 1, OWNER_REQUESTS[0] as u32, DENY, OF_IOCTL + 2);
        compare(OF_IOCTL + 2, OWNER_REQUESTS[1] as u32, DENY, ALLOW);
        compare(Self::OWN, 0, ALLOW, DENY);
        program[9] = end(libc::SECCOMP_RET_ALLOW);
        program[OF_FCNTL] = load(argument(1));
        program[OF_IOCTL] = load(argument(1));
        program[OF_TGKILL] = load(argument(0));
        program[DENY] = end(FORBIDDEN);
        program[ALLOW] = end(libc::SECCOMP_RET_ALLOW);
        Some(Silence(program))
    }

    /// The instruction that compares with a process's own number.
    const OWN: usize = 18;

    /// For the process with this number.
    pub(super) fn of(&self, pid: Pid) -> [Instruction; 21] {
        let mut program = self.0;
        program[Self::OWN].k = pid as u32;
        program
    }
}

/// For a worker and the programs that come of it, behind the filter of their sandbox: who signals somebody by his number waits for
/// the worker to say whether he may, and who has a process join a group by its number. The worker may, and knows its own calls by `mark`,
/// see [`crate::sys::process::mark_calls`].
pub(super) fn asking(worker: Pid, mark: u64) -> Option<Vec<Instruction>> {
    /// Places of instructions.
    const OF_OTHERS: usize = 9;
    const OF_THREADS: usize = 11;
    const OF_GROUP: usize = 13;
    const IS_MARKED: usize = 15;
    const ASK: usize = 19;
    const ALLOW: usize = 20;
    let number = |name| number(name).map(|number| number as u32);
    let mut program = vec![load(NUMBER); 21];
    let mut compare = |place, k, equal, other| program[place] = compare(place, k, equal, other);
    let calls = [
        ("kill", OF_OTHERS),
        ("tkill", OF_THREADS),
        ("tgkill", OF_THREADS),
        ("rt_sigqueueinfo", OF_THREADS),
        ("rt_tgsigqueueinfo", OF_THREADS),
        ("setpgid", OF_GROUP),
    ];
    for (place, (name, to)) in (1..).zip(calls) {
        compare(place, number(name)?, to, place + 1);
    }
    // 0 is who calls, or his group. The worker's own number is forbidden to all others.
    compare(OF_OTHERS + 1, 0, ALLOW, OF_THREADS + 1);
    compare(OF_THREADS + 1, worker as u32, ALLOW, IS_MARKED);
    compare(OF_GROUP + 1, 0, ALLOW, ASK);
    compare(IS_MARKED + 1, mark as u32, IS_MARKED + 2, ASK);
    compare(IS_MARKED + 3, (mark >> 32) as u32, ALLOW, ASK);
    program[7] = end(libc::SECCOMP_RET_ALLOW);
    program[8] = end(libc::SECCOMP_RET_ALLOW);
    program[OF_OTHERS] = load(argument(0));
    program[OF_THREADS] = load(argument(0));
    program[OF_GROUP] = load(argument(1));
    program[IS_MARKED] = load(argument(5));
    program[IS_MARKED + 2] = load(argument(5) + 4);
    program[ASK] = end(libc::SECCOMP_RET_USER_NOTIF);
    program[ALLOW] = end(libc::SECCOMP_RET_ALLOW);
    Some(program)
}

/// Whom a call of [`asking`] means: a process, or if the number is negative a group. A group to be joined is that of a process.
pub(crate) fn meant(call: i64, arguments: &[u64; 6]) -> Option<Pid> {
    let [first, second, ..] = arguments.map(|argument| argument as u32 as Pid);
    let is = |name| number(name) == Some(call);
    if is("setpgid") {
        return Some(second);
    }
    ["kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"].into_iter().any(is).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::filter::tests::{ALLOW, EPERM, NATIVE, verdict};
    use super::*;

    fn call(name: &str) -> u32 {
        u32::try_from(number(name).unwrap()).unwrap()
    }

    #[test]
    fn a_handler_signals_itself_alone() {
        let silence = Silence::compile().unwrap().of(4711);
        for (name, arguments, wanted) in [
            ("read", [0; 3], ALLOW),
            ("sendto", [0; 3], ALLOW),
            ("kill", [4711, 6, 0], EPERM),
            ("tkill", [4711, 6, 0], EPERM),
            ("rt_sigqueueinfo", [4711, 6, 0], EPERM),
            ("rt_tgsigqueueinfo", [4711, 4711, 6], EPERM),
            ("pidfd_send_signal", [4711, 6, 0], EPERM),
            ("tgkill", [4711, 4711, 6], ALLOW),
            ("tgkill", [4712, 4712, 6], EPERM),
            ("fcntl", [0, 4, 0], ALLOW),
            ("fcntl", [0, 8, 4711], EPERM),
            ("fcntl", [0, 10, 9], EPERM),
            ("fcntl", [0, 15, 9], EPERM),
            ("ioctl", [0, 0x541b, 0], ALLOW),
            ("ioctl", [0, 0x8901, 0], EPERM),
            ("ioctl", [0, 0x8902, 0], EPERM),
        ] {
            assert_eq!(verdict(&silence, NATIVE, call(name), arguments), wanted, "{name} {arguments:?}");
        }
    }

    #[test]
    fn who_means_somebody_by_his_number_asks_unless_he_is_the_worker() {
        const ASK: u32 = libc::SECCOMP_RET_USER_NOTIF;
        let mark = 0x1234_5678_9abc_def0;
        let program = asking(4711, mark).unwrap();
        let marked = |mark| [5, 9, 0, 0, 0, mark];
        for (name, arguments, wanted) in [
            ("kill", [0, 15, 0, 0, 0, 0], ALLOW),
            ("kill", [4711, 15, 0, 0, 0, 0], ALLOW),
            ("kill", [5, 15, 0, 0, 0, 0], ASK),
            ("kill", [u64::from(-5_i32 as u32), 15, 0, 0, 0, 0], ASK),
            ("kill", marked(mark), ALLOW),
            ("kill", marked(mark ^ 1), ASK),
            ("kill", marked(mark ^ 1 << 63), ASK),
            ("tkill", [5, 9, 0, 0, 0, 0], ASK),
            ("tgkill", [5, 6, 9, 0, 0, 0], ASK),
            ("tgkill", [4711, 4711, 6, 0, 0, 0], ALLOW),
            ("rt_sigqueueinfo", [5, 9, 1, 0, 0, 0], ASK),
            ("rt_tgsigqueueinfo", [5, 6, 9, 1, 0, 0], ASK),
            ("setpgid", [5, 0, 0, 0, 0, 0], ALLOW),
            ("setpgid", [0, 5, 0, 0, 0, 0], ASK),
            ("getpid", [5; 6], ALLOW),
        ] {
            assert_eq!(verdict(&program, NATIVE, call(name), arguments), wanted, "{name} {arguments:?}");
        }
        assert_eq!(meant(call("kill").into(), &[u64::from(-5_i32 as u32), 9, 0, 0, 0, 0]), Some(-5));
        assert_eq!(meant(call("setpgid").into(), &[0, 5, 0, 0, 0, 0]), Some(5));
        assert_eq!(meant(call("getpid").into(), &[5; 6]), None);
    }
}
