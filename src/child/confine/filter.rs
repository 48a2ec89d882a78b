//! Filters of system calls: which there are, and how they are compiled.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::Path;

use landlock::ABI;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use syscalls::Sysno;

use super::instructions::{EQUAL, GREATER, JUMP, NUMBER, UNKNOWN, end, load};
use crate::config::{CallSet, Job, Network, Sandbox};
use crate::sys::process;
use crate::sys::seccomp::Instruction;
use crate::sys::wait::Pid;

/// All that a handler's process asks for, from the moment when its filter is there: what it needs to wait for its connection as a
/// spare, to serve it, to report and to end. Our program is linked statically, so this does not change with the user's libc.
const OF_HANDLERS: &[&str] = &[
    "accept4",
    "alarm",
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "close_range",
    "dup",
    "dup2",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "exit",
    "exit_group",
    "fstat",
    "futex",
    "getitimer",
    "getpeername",
    "getpid",
    "getrandom",
    "getrusage",
    "getsockname",
    "getsockopt",
    "gettid",
    "madvise",
    "mremap",
    "munmap",
    "nanosleep",
    "poll",
    "ppoll",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "restart_syscall",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_yield",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "setitimer",
    "setsockopt",
    "shutdown",
    "sigaltstack",
    "write",
    "writev",
];

/// What a service has no use for: what administers the machine, looks into other processes, or is the usual way out of a cage.
/// systemd's @system-service leaves out most of it, too, systemd.exec(5).
const NOT_OF_SERVICES: &[&str] = &[
    "_sysctl",
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount2",
    "uselib",
    "userfaultfd",
    "ustat",
    "vmsplice",
];

/// What changes files by their names or descriptors, and Landlock does not see; of truncate(2) not before its third version.
const CHANGES_OF_FILES: &[&str] = &[
    "chmod",
    "chown",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fremovexattr",
    "fsetxattr",
    "futimesat",
    "lchown",
    "lremovexattr",
    "lsetxattr",
    "removexattr",
    "removexattrat",
    "setxattr",
    "setxattrat",
    "truncate",
    "utime",
    "utimensat",
    "utimes",
];

/// System V's, of whose objects only making and finding takes a name: a number is enough for the rest, and numbers can be guessed.
const SYSTEM_V: &[&str] = &[
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "shmat",
    "shmctl",
    "shmget",
];

/// What libraries do without when they are told that it does not exist: the arguments of the first cannot be looked at, and
/// what is asked for by the others does not come by here.
const UNKNOWN_TO_SERVICES: &[&str] = &["clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"];

/// fcntl(2) that names who gets the signals of a descriptor, and which signal that is: SIGKILL, too.
pub(super) const OWNER_COMMANDS: [i32; 3] = [libc::F_SETOWN, F_SETSIG, F_SETOWN_EX];
/// linux/fcntl.h.
const F_SETSIG: i32 = 10;
/// linux/fcntl.h.
const F_SETOWN_EX: i32 = 15;
/// asm-generic/sockios.h: FIOSETOWN and SIOCSPGRP, which do the same.
pub(super) const OWNER_REQUESTS: [i32; 2] = [0x8901, 0x8902];

/// linux/personality.h.
const READ_IMPLIES_EXEC: i32 = 0x0040_0000;
/// linux/ioprio.h.
const IOPRIO_WHO_PGRP: u64 = 2;

/// sched.h: new namespaces.
const NAMESPACES: [i32; 8] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    // CLONE_NEWTIME.
    0x80,
];

/// What is said of a call: never, or if all conditions of one of these rules hold.
type CallRules = BTreeMap<i64, Vec<SeccompRule>>;

/// Whether a worker can live with the filter of its children, which then costs a connection nothing: to install one takes
/// 60 to 200 µs, as the kernel compiles it and tries all system calls on it.
pub(super) fn is_shared(sandbox: &Sandbox, job: &Job) -> bool {
    let calls = &sandbox.system_calls;
    let network = matches!(job, Job::Handler(_)) || sandbox.network == Network::Any;
    calls.base != CallSet::Handler && calls.deny.is_empty() && network
}

/// Whether what changes files is refused: who may write none has no use for it. Not where each connection would pay for it.
pub(super) fn changes_no_file(sandbox: &Sandbox, job: &Job) -> bool {
    is_shared(sandbox, job)
        && sandbox.system_calls.base == CallSet::Service
        && sandbox.files.as_ref().is_some_and(|files| files.write.is_empty())
}

/// Whether there is something to filter.
pub(super) fn is_needed(sandbox: &Sandbox) -> bool {
    let calls = &sandbox.system_calls;
    calls.base != CallSet::Any
        || sandbox.files.is_some()
        || !calls.deny.is_empty()
        || sandbox.network != Network::Any
        || !sandbox.write_execute
}

/// Whether this is a program of 32 bits: its system calls have other numbers.
pub(super) fn is_foreign(program: &Path) -> bool {
    let mut head = [0; 5];
    let read = File::open(program).and_then(|mut file| file.read_exact(&mut head));
    // elf(5): EI_CLASS is ELFCLASS32.
    read.is_ok() && head == *b"\x7fELF\x01"
}

/// From this version on, Landlock keeps signals within a domain.
pub(super) const SIGNAL_SCOPE: ABI = ABI::V6;

/// Where Landlock does not: keeps a program from its worker and the supervisor by their numbers. It must be able to signal what
/// it starts, and its siblings have numbers that nobody knows ahead: see [`super::signals::asking`]. Other ways to signal are closed.
fn guard(rules: &mut CallRules, worker: Pid, supervisor: Pid) {
    let group = |pid: Pid| process::group_of(pid).unwrap_or(pid);
    let number = |pid: Pid| u64::from(pid as u32);
    let pids = [worker, supervisor];
    // In a container, the supervisor may be process 1, and its group one that is not seen in there: 0.
    let groups = [worker, supervisor, group(supervisor)].into_iter().filter(|group| *group > 1);
    for pid in pids.map(number) {
        for (name, place) in
            [("kill", 0), ("tkill", 0), ("tgkill", 1), ("rt_sigqueueinfo", 0), ("rt_tgsigqueueinfo", 1)]
        {
            add(rules, name, &[equals(place, pid)]);
        }
    }
    // All that it may signal, too.
    for whom in groups.clone().map(|group| -group).chain([-1]) {
        add(rules, "kill", &[equals(0, number(whom))]);
    }
    // It could join a group, and signal its own.
    groups.for_each(|group| add(rules, "setpgid", &[equals(1, number(group))]));
    for command in [libc::F_SETOWN, F_SETOWN_EX] {
        add(rules, "fcntl", &[equals(1, mask(command))]);
    }
    OWNER_REQUESTS.into_iter().for_each(|request| add(rules, "ioctl", &[equals(1, mask(request))]));
    always(rules, &["pidfd_send_signal"]);
}

/// Whether programs ask their worker whom they may signal: where Landlock does not keep their signals in. In a namespace of
/// processes of its own they have no number, and who is another user signals nobody.
pub(super) fn asks_about_signals(sandbox: &Sandbox, job: &Job, landlock: ABI, has_own_user: bool) -> bool {
    landlock < SIGNAL_SCOPE
        && matches!(job, Job::Exec(_))
        && sandbox.system_calls.base == CallSet::Service
        && !sandbox.system_calls.allow.iter().any(|name| name == "kill")
        && !sandbox.pid_namespace
        && !has_own_user
}

/// The filter of a sandbox, beside a Landlock of this version. `has_own_user`: each process is a user whom no other is.
pub(super) fn compile(
    sandbox: &Sandbox,
    job: &Job,
    landlock: ABI,
    has_own_user: bool,
) -> io::Result<Vec<Instruction>> {
    let calls = &sandbox.system_calls;
    let mut rules = CallRules::new();
    let (otherwise, matched) = match calls.base {
        CallSet::Handler => (SeccompAction::KillProcess, SeccompAction::Allow),
        CallSet::Service | CallSet::Any => (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32)),
    };
    match calls.base {
        CallSet::Handler => {
            always(&mut rules, OF_HANDLERS);
            rules.extend(rule("fcntl", &OWNER_COMMANDS.map(|command| differs(1, mask(command)))));
            rules.extend(rule("ioctl", &OWNER_REQUESTS.map(|request| differs(1, mask(request)))));
            // Of this process only, and no code.
            rules.extend(rule("prlimit64", &[equals(0, 0)]));
            rules.extend(rule("mmap", &[lacks(2, libc::PROT_EXEC)]));
            rules.extend(rule("mprotect", &[lacks(2, libc::PROT_EXEC)]));
            calls.allow.iter().for_each(|name| always(&mut rules, &[name]));
            calls.deny.iter().filter_map(|name| number(name)).for_each(|number| {
                rules.remove(&number);
            });
        }
        CallSet::Service => {
            always(&mut rules, NOT_OF_SERVICES);
            for flag in NAMESPACES {
                add(&mut rules, "unshare", &[has(0, flag)]);
                // The worker makes its children in one; they have not the privilege that it takes.
                if flag != libc::CLONE_NEWPID || !(sandbox.pid_namespace && is_shared(sandbox, job)) {
                    add(&mut rules, "clone", &[has(0, flag)]);
                }
            }
            // Of others of its user as well, which Landlock does not see.
            add(&mut rules, "prlimit64", &[differs(0, 0), is_given(2)]);
            for name in ["sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"] {
                add(&mut rules, name, &[differs(0, 0)]);
            }
            for name in ["setpriority", "ioprio_set"] {
                add(&mut rules, name, &[differs(1, 0)]);
            }
            // 0 is who calls, and here all who have its user. (ioprio_set(2) takes it for root.)
            add(&mut rules, "setpriority", &[equals(0, u64::from(libc::PRIO_USER))]);
            // Here all in its group, and it may join any of its session, setpgid(2): a sibling's, its worker's.
            add(&mut rules, "setpriority", &[equals(0, u64::from(libc::PRIO_PGRP))]);
            add(&mut rules, "ioprio_set", &[equals(0, IOPRIO_WHO_PGRP)]);
            // Which machine there seems to be, is asked by 0xffffffff; 8 is that of 32 bits.
            let others = [differs(0, 0), differs(0, 8), differs(0, 0xffff_ffff)];
            add(&mut rules, "personality", &others);
            if asks_about_signals(sandbox, job, landlock, has_own_user) {
                guard(&mut rules, process::id(), process::parent());
            }
        }
        CallSet::Any => {}
    }
    if calls.base != CallSet::Handler {
        forbid_network(&mut rules, sandbox, landlock);
        if sandbox.files.is_some() {
            // A file that has no place in the tree could be executed.
            always(&mut rules, &["memfd_create"]);
        }
        if changes_no_file(sandbox, job) {
            always(&mut rules, CHANGES_OF_FILES);
        }
        if !sandbox.write_execute {
            // What is written to such a file could be mapped to be executed.
            always(&mut rules, &["memfd_create", "memfd_secret"]);
            // From then on what can be read can be executed, personality(2); 0xffffffff asks.
            add(&mut rules, "personality", &[has(0, READ_IMPLIES_EXEC), differs(0, 0xffff_ffff)]);
            add(&mut rules, "mmap", &[has(2, libc::PROT_EXEC), has(2, libc::PROT_WRITE)]);
            add(&mut rules, "mprotect", &[has(2, libc::PROT_EXEC)]);
            add(&mut rules, "pkey_mprotect", &[has(2, libc::PROT_EXEC)]);
            add(&mut rules, "shmat", &[has(2, libc::SHM_EXEC)]);
        }
        calls.allow.iter().filter_map(|name| number(name)).for_each(|number| {
            rules.remove(&number);
        });
        calls.deny.iter().for_each(|name| always(&mut rules, &[name]));
    }
    let before = if calls.base == CallSet::Service { prologue(&calls.allow) } else { Vec::new() };
    program(before, rules, (otherwise, matched))
}

/// Instructions that come before, and then these rules.
fn program(
    before: Vec<Instruction>,
    rules: CallRules,
    (otherwise, matched): (SeccompAction, SeccompAction),
) -> io::Result<Vec<Instruction>> {
    let failed = |error: seccompiler::BackendError| {
        io::Error::other(format!("cannot make a filter of system calls: {error}"))
    };
    let arch = TargetArch::try_from(ARCH).map_err(failed)?;
    let rules = rules.into_iter().collect();
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(failed)?;
    let compiled: seccompiler::BpfProgram = filter.try_into().map_err(failed)?;
    let mut program = before;
    program.extend(compiled.iter().map(|of| Instruction { code: of.code, jt: of.jt, jf: of.jf, k: of.k }));
    Ok(program)
}

/// For a worker that may be any user, and its children, beside the filter of their sandbox: has them be these users and groups and no
/// other, and make no namespace in which they could be others.
pub(super) fn only_users(
    users: &RangeInclusive<u32>,
    groups: &RangeInclusive<u32>,
    (own_users, own_group): ([u32; 2], u32),
) -> io::Result<Vec<Instruction>> {
    let mut rules = CallRules::new();
    let mut only = |name: &str, arguments: u8, range: &RangeInclusive<u32>, others: &[u32]| {
        // -1 leaves an id as it is, setresuid(2).
        let others = || others.iter().chain([&u32::MAX]);
        for argument in 0..arguments {
            let (first, last) = (u64::from(*range.start()), u64::from(*range.end()));
            for outside in
                [condition(argument, SeccompCmpOp::Lt, first), condition(argument, SeccompCmpOp::Gt, last)]
            {
                let differ = others().map(|id| differs(argument, u64::from(*id)));
                add(&mut rules, name, &[outside].into_iter().chain(differ).collect::<Vec<_>>());
            }
        }
    };
    for (name, arguments) in [("setuid", 1), ("setreuid", 2), ("setresuid", 3), ("setfsuid", 1)] {
        only(name, arguments, users, &own_users);
    }
    for (name, arguments) in [("setgid", 1), ("setregid", 2), ("setresgid", 3), ("setfsgid", 1)] {
        only(name, arguments, groups, &[own_group]);
    }
    always(&mut rules, &["setgroups", "setns"]);
    for name in ["clone", "unshare"] {
        add(&mut rules, name, &[has(0, libc::CLONE_NEWUSER)]);
    }
    let unknown = UNKNOWN_TO_SERVICES.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    program(prologue(&unknown), rules, (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32)))
}

/// Calls that are too new to be in a list do not exist, nor do those of x32, which have their own numbers: seccomp(2). glibc
/// goes another way if a call does not exist, and gives up if it is not permitted.
fn prologue(allowed: &[String]) -> Vec<Instruction> {
    let unknown = UNKNOWN_TO_SERVICES.iter().filter(|name| !allowed.iter().any(|allowed| allowed == *name));
    let unknown: Vec<_> = unknown.filter_map(|name| number(name)).collect();
    let last = Sysno::last().id() as u32;
    // What jumps, jumps to the return at the end, and who comes there by himself jumps over it.
    let mut program =
        vec![load(NUMBER), Instruction { code: GREATER, jt: unknown.len() as u8 + 1, jf: 0, k: last }];
    for (place, call) in unknown.iter().enumerate() {
        let jump = (unknown.len() - place) as u8;
        program.push(Instruction { code: EQUAL, jt: jump, jf: 0, k: *call as u32 });
    }
    program.push(Instruction { code: JUMP, jt: 0, jf: 0, k: 1 });
    program.push(end(UNKNOWN));
    program
}

/// What Landlock does not see of the network, or not yet.
fn forbid_network(rules: &mut CallRules, sandbox: &Sandbox, landlock: ABI) {
    match sandbox.network {
        Network::Any => {}
        Network::Client => {
            // A socket that is connected anew may listen at a port that the kernel chooses: Landlock does not see it.
            always(rules, &["listen"]);
            // A socket that is bound and cannot listen hears nobody over TCP, and others call a server of datagrams anyway.
            if landlock < ABI::V4 && !sandbox.serves_datagrams {
                always(rules, &["bind"]);
            }
        }
        // Its own connection could be connected to somebody else, connect(2). And what is shared by name is a way to others, too.
        Network::None => {
            // Also for a worker: to its log it sends datagrams, by a socket that it has before.
            always(rules, &["socket", "connect", "bind", "listen"]);
            always(rules, SYSTEM_V);
            always(rules, &["mq_open"]);
        }
    }
}

/// The number of a call on this architecture, if there is such a call.
pub(super) fn number(name: &str) -> Option<i64> {
    name.parse::<Sysno>().ok().map(|call| i64::from(call.id()))
}

fn always(rules: &mut CallRules, names: &[impl AsRef<str>]) {
    for number in names.iter().filter_map(|name| number(name.as_ref())) {
        // No rule is one that always holds.
        rules.insert(number, Vec::new());
    }
}

fn add(rules: &mut CallRules, name: &str, conditions: &[Option<SeccompCondition>]) {
    if let Some((number, more)) = rule(name, conditions) {
        match rules.get_mut(&number) {
            Some(rules) if rules.is_empty() => {}
            Some(rules) => rules.extend(more),
            None => {
                rules.insert(number, more);
            }
        }
    }
}

/// A rule about a call, if it and all conditions can be said.
fn rule(name: &str, conditions: &[Option<SeccompCondition>]) -> Option<(i64, Vec<SeccompRule>)> {
    let conditions = conditions.iter().cloned().collect::<Option<Vec<_>>>()?;
    Some((number(name)?, vec![SeccompRule::new(conditions).ok()?]))
}

fn condition(argument: u8, operation: SeccompCmpOp, value: u64) -> Option<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value).ok()
}

fn equals(argument: u8, value: u64) -> Option<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn differs(argument: u8, value: u64) -> Option<SeccompCondition> {
    condition(argument, SeccompCmpOp::Ne, value)
}

/// Not NULL.
fn is_given(argument: u8) -> Option<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0).ok()
}

fn has(argument: u8, flag: i32) -> Option<SeccompCondition> {
    let flag = mask(flag);
    condition(argument, SeccompCmpOp::MaskedEq(flag), flag)
}

fn lacks(argument: u8, flag: i32) -> Option<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(mask(flag)), 0)
}

/// The bits of a flag, of which the highest is no sign.
fn mask(flag: i32) -> u64 {
    u64::from(flag as u32)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::SystemCalls;

    pub(in crate::child::confine) const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    pub(in crate::child::confine) const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    pub(in crate::child::confine) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    /// What a filter answers, as the kernel runs it: seccomp(2), `struct seccomp_data`.
    pub(in crate::child::confine) fn verdict(
        program: &[Instruction],
        arch: u32,
        call: u32,
        arguments: impl IntoIterator<Item = u64>,
    ) -> u32 {
        let mut data = [call.to_ne_bytes(), arch.to_ne_bytes(), [0; 4], [0; 4]].concat();
        arguments.into_iter().for_each(|argument| data.extend(argument.to_ne_bytes()));
        data.resize(64, 0);
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            let jump = |taken: bool| usize::from(if taken { jt } else { jf });
            at += 1;
            match code {
                0x20 => a = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(a == k),
                0x25 => at += jump(a > k),
                0x35 => at += jump(a >= k),
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// AUDIT_ARCH_X86_64, and AUDIT_ARCH_I386.
    pub(in crate::child::confine) const NATIVE: u32 = 0xc000_003e;
    const FOREIGN: u32 = 0x4000_0003;

    fn sandbox(base: CallSet, network: Network) -> Sandbox {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Sandbox {
            files: None,
            network,
            serves_datagrams: false,
            system_calls: SystemCalls {
                base,
                allow: words(&["mount", "io_uring_setup"]),
                deny: words(&["chmod"]),
            },
            write_execute: false,
            private_tmp: None,
            network_namespace: false,
            pid_namespace: false,
            required: false,
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_filter_says_what_is_written() {
        let job = Job::Exec(crate::config::Program {
            path: "/bin/cat".into(),
            arguments: Vec::new(),
            passing: crate::config::Passing::Stdio,
        });
        let service = compile(&sandbox(CallSet::Service, Network::None), &job, ABI::V7, false).unwrap();
        let call = |name: &str| number(name).unwrap() as u32;
        let newest = Sysno::last().id() as u32;
        for (name, arguments, wanted) in [
            ("read", [0; 3], ALLOW),
            ("execve", [0; 3], ALLOW),
            ("ptrace", [0; 3], EPERM),
            ("mount", [0; 3], ALLOW),
            ("chmod", [0; 3], EPERM),
            ("socket", [1, 0, 0], EPERM),
            ("connect", [0; 3], EPERM),
            ("clone", [libc::SIGCHLD as u64, 0, 0], ALLOW),
            ("clone", [libc::CLONE_NEWUSER as u64 | libc::SIGCHLD as u64, 0, 0], EPERM),
            ("clone3", [0; 3], ENOSYS),
            ("io_uring_setup", [0; 3], ALLOW),
            ("io_uring_enter", [0; 3], ENOSYS),
            ("personality", [0xffff_ffff, 0, 0], ALLOW),
            ("personality", [0x0004_0000, 0, 0], EPERM),
            ("prlimit64", [0, 7, 1 << 40], ALLOW),
            ("prlimit64", [77, 7, 0], ALLOW),
            ("prlimit64", [77, 7, 1 << 40], EPERM),
            ("setpriority", [0, 0, 9], ALLOW),
            ("setpriority", [0, 77, 9], EPERM),
            ("setpriority", [1, 0, 9], EPERM),
            ("setpriority", [1 | 1 << 32, 0, 9], EPERM),
            ("setpriority", [2, 0, 9], EPERM),
            ("ioprio_set", [1, 0, 3 << 13], ALLOW),
            ("ioprio_set", [2, 0, 3 << 13], EPERM),
            ("shmget", [7, 4096, 0o1666], EPERM),
            ("shmat", [7, 0, 0], EPERM),
            ("shmdt", [0; 3], ALLOW),
            ("shmctl", [7, 0, 0], EPERM),
            ("semop", [7, 0, 1], EPERM),
            ("semtimedop", [7, 0, 1], EPERM),
            ("semctl", [7, 0, 0], EPERM),
            ("msgsnd", [7, 0, 1], EPERM),
            ("msgrcv", [7, 0, 1], EPERM),
            ("msgctl", [7, 0, 0], EPERM),
            ("mq_open", [0; 3], EPERM),
            ("memfd_create", [0; 3], EPERM),
            ("memfd_secret", [0; 3], EPERM),
            ("mmap", [0, 4096, 3], ALLOW),
            ("mmap", [0, 4096, 5], ALLOW),
            ("mmap", [0, 4096, 7], EPERM),
            ("mprotect", [0, 4096, 5], EPERM),
        ] {
            assert_eq!(verdict(&service, NATIVE, call(name), arguments), wanted, "{name} {arguments:?}");
        }
        // Too new, and of x32.
        for unknown in [newest + 1, 0x4000_0000 | call("read")] {
            assert_eq!(verdict(&service, NATIVE, unknown, [0; 3]), ENOSYS);
        }
        assert_eq!(verdict(&service, FOREIGN, 3, [0; 3]), KILL);
        assert_eq!(verdict(&service, NATIVE, call("kill"), [1, 9, 0]), ALLOW);

        let free = compile(&sandbox(CallSet::Any, Network::Any), &job, ABI::V7, false).unwrap();
        for (name, arguments, wanted) in [
            ("personality", [0xffff_ffff, 0, 0], ALLOW),
            ("personality", [0x0004_0000, 0, 0], ALLOW),
            ("personality", [0x0040_0000, 0, 0], EPERM),
            ("memfd_create", [0; 3], EPERM),
            ("shmat", [7, 0, 0], ALLOW),
            ("setpriority", [1, 0, 9], ALLOW),
        ] {
            assert_eq!(verdict(&free, NATIVE, call(name), arguments), wanted, "{name} {arguments:?}");
        }

        let many = only_users(&(70_000..=70_099), &(33..=33), ([991, 0x8000_0007], 992)).unwrap();
        for (name, arguments, wanted) in [
            ("setresuid", [70_000, 70_099, 70_050], ALLOW),
            ("setresuid", [991, 991, 991], ALLOW),
            ("setresuid", [0x8000_0007, 70_001, 0x8000_0007], ALLOW),
            ("setresuid", [u64::MAX, 70_001, u64::MAX], ALLOW),
            ("setresuid", [70_000, 70_000, 0], EPERM),
            ("setresuid", [70_000, 1000, 70_000], EPERM),
            ("setresuid", [70_100, 70_000, 70_000], EPERM),
            ("setresuid", [69_999, 70_000, 70_000], EPERM),
            ("setuid", [0; 3], EPERM),
            ("setuid", [1 << 32, 0, 0], EPERM),
            ("setreuid", [70_000, 0, 0], EPERM),
            ("setfsuid", [0; 3], EPERM),
            ("setresgid", [33, 33, 33], ALLOW),
            ("setresgid", [992, 992, 992], ALLOW),
            ("setresgid", [33, 0, 33], EPERM),
            ("setgid", [70_000, 0, 0], EPERM),
            ("setregid", [33, 0, 0], EPERM),
            ("setfsgid", [0; 3], EPERM),
            ("setgroups", [0; 3], EPERM),
            ("unshare", [0x1000_0000, 0, 0], EPERM),
            ("clone", [0x1000_0011, 0, 0], EPERM),
            ("clone", [0x11, 0, 0], ALLOW),
            ("read", [0; 3], ALLOW),
        ] {
            assert_eq!(verdict(&many, NATIVE, call(name), arguments), wanted, "{name} {arguments:?}");
        }
        assert_eq!(verdict(&many, NATIVE, 0x4000_0000 | call("setuid"), [0; 3]), ENOSYS);

        let (own, parent) = (process::id() as u64, process::parent() as u64);
        let group = process::group_of(process::parent()).unwrap() as u64;
        let older = compile(&sandbox(CallSet::Service, Network::Any), &job, ABI::V2, false).unwrap();
        for (name, arguments, wanted) in [
            ("kill", [4711, 9, 0], ALLOW),
            ("kill", [0, 9, 0], ALLOW),
            ("kill", [own, 9, 0], EPERM),
            ("kill", [own | 7 << 32, 9, 0], EPERM),
            ("kill", [own.wrapping_neg(), 9, 0], EPERM),
            ("kill", [parent, 0, 0], EPERM),
            ("kill", [group.wrapping_neg(), 0, 0], EPERM),
            ("kill", [u64::MAX, 9, 0], EPERM),
            ("tkill", [4711, 9, 0], ALLOW),
            ("tkill", [parent, 9, 0], EPERM),
            ("tgkill", [4711, 4711, 9], ALLOW),
            ("tgkill", [own, own, 9], EPERM),
            ("rt_sigqueueinfo", [own, 9, 0], EPERM),
            ("rt_tgsigqueueinfo", [parent, parent, 9], EPERM),
            ("pidfd_send_signal", [3, 9, 0], EPERM),
            ("setpgid", [0, 0, 0], ALLOW),
            ("setpgid", [0, own, 0], EPERM),
            ("fcntl", [3, 8, 4711], EPERM),
            ("fcntl", [3, 15, 0], EPERM),
            ("fcntl", [3, 4, own], ALLOW),
            ("ioctl", [3, 0x8902, 0], EPERM),
            ("ioctl", [3, 0x5401, 0], ALLOW),
        ] {
            assert_eq!(verdict(&older, NATIVE, call(name), arguments), wanted, "{name} {arguments:?}");
        }

        let handler = compile(&sandbox(CallSet::Handler, Network::None), &job, ABI::V7, false).unwrap();
        for (name, arguments, wanted) in [
            ("recvfrom", [0; 3], ALLOW),
            ("execve", [0; 3], KILL),
            ("openat", [0; 3], KILL),
            ("socket", [1, 0, 0], KILL),
            ("mount", [0; 3], ALLOW),
            ("mmap", [0, 4096, 3], ALLOW),
            ("mmap", [0, 4096, 5], KILL),
            ("prlimit64", [0, 7, 1], ALLOW),
            ("prlimit64", [77, 7, 1], KILL),
            ("kill", [77, 9, 0], KILL),
            ("fcntl", [0, 4, 0], ALLOW),
            ("fcntl", [0, 8, 77], KILL),
            ("fcntl", [0, 10, 9], KILL),
            ("fcntl", [0, 15, 9], KILL),
            ("ioctl", [0, 0x541b, 0], ALLOW),
            ("ioctl", [0, 0x8901, 9], KILL),
        ] {
            assert_eq!(verdict(&handler, NATIVE, call(name), arguments), wanted, "{name} {arguments:?}");
        }
    }
}
