//! SO_LINGER of programs: it seems to be set. Whoever closes a connection last waits as long as that says until the client has taken
//! all, socket(7), non-blocking or not: that is the worker, which keeps a copy. Nobody waits for a handler, whose connection its worker
//! does not have: at its exit the kernel does not, inet_release() in net/ipv4/af_inet.c.

use super::filter::number;
use super::instructions::{NUMBER, argument, compare, end, load};
use crate::config::{CallSet, Job, Sandbox};
use crate::sys::seccomp::Instruction;

const SETSOCKOPT: &str = "setsockopt";

/// Whether these connection processes have [`filter`] behind that of their sandbox.
pub(super) fn is_wanted(sandbox: &Sandbox, job: &Job) -> bool {
    let calls = &sandbox.system_calls;
    matches!(job, Job::Exec(_))
        && calls.base == CallSet::Service
        && !calls.allow.iter().any(|name| name == SETSOCKOPT)
}

/// An error would end programs that are in order. The worker, and a spare before its exec, reset connections so: they know `mark`, see
/// [`crate::sys::process::mark_calls`].
pub(super) fn filter(mark: u64) -> Vec<Instruction> {
    /// Places of instructions.
    const DONE: usize = 10;
    const ALLOW: usize = 11;
    let number = number(SETSOCKOPT).and_then(|number| u32::try_from(number).ok()).unwrap_or(u32::MAX);
    vec![
        load(NUMBER),
        compare(1, number, 2, ALLOW),
        load(argument(1)),
        compare(3, libc::SOL_SOCKET as u32, 4, ALLOW),
        load(argument(2)),
        compare(5, libc::SO_LINGER as u32, 6, ALLOW),
        load(argument(5)),
        compare(7, mark as u32, 8, DONE),
        load(argument(5) + 4),
        compare(9, (mark >> 32) as u32, ALLOW, DONE),
        end(libc::SECCOMP_RET_ERRNO),
        end(libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::filter::tests::{ALLOW, NATIVE, verdict};
    use super::*;

    #[test]
    fn a_program_seems_to_set_it_and_a_worker_does() {
        /// No error.
        const DONE: u32 = libc::SECCOMP_RET_ERRNO;
        let mark = 0x1234_5678_9abc_def0;
        let call = |name| u32::try_from(number(name).unwrap()).unwrap();
        let filter = filter(mark);
        for (name, arguments, wanted) in [
            ("setsockopt", [0, 1, 13, 7, 8, 0], DONE),
            ("setsockopt", [0, 1 | 1 << 32, 13 | 1 << 32, 7, 8, 0], DONE),
            ("setsockopt", [0, 1, 13, 7, 8, mark], ALLOW),
            ("setsockopt", [0, 1, 13, 7, 8, mark ^ 1], DONE),
            ("setsockopt", [0, 1, 13, 7, 8, mark ^ 1 << 63], DONE),
            ("setsockopt", [0, 1, 9, 7, 4, 0], ALLOW),
            ("setsockopt", [0, 6, 13, 7, 4, 0], ALLOW),
            ("getsockopt", [0, 1, 13, 7, 8, 0], ALLOW),
        ] {
            assert_eq!(verdict(&filter, NATIVE, call(name), arguments), wanted, "{name} {arguments:?}");
        }
    }
}
