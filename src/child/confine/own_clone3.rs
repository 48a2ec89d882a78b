//! clone3(2) for a worker whose children are told that there is none: a filter does not see its flags, and without it no child can
//! begin in a cgroup.

use super::filter::number;
use super::instructions::{NUMBER, UNKNOWN, argument, compare, end, load};
use crate::config::{CallSet, Sandbox};
use crate::sys::seccomp::Instruction;

const CLONE3: &str = "clone3";

/// Whether the worker itself would be told that there is none, by the filter that it shares.
pub(super) fn is_denied(sandbox: &Sandbox) -> bool {
    let calls = &sandbox.system_calls;
    calls.base == CallSet::Service && !calls.allow.iter().any(|name| name == CLONE3)
}

/// The same sandbox for a worker that makes its children by it: they have [`denied`] beside it, or it is followed by [`marked`].
pub(super) fn allowed(sandbox: &Sandbox) -> Sandbox {
    let mut sandbox = sandbox.clone();
    sandbox.system_calls.allow.push(CLONE3.to_owned());
    sandbox
}

/// What a child adds to the filter of its worker. Four instructions: the kernel tries all system calls on a filter when it is
/// installed, and this costs a connection a tenth of the whole. Calls of other architectures have not come past the other.
pub(super) fn denied() -> Vec<Instruction> {
    let number = number(CLONE3).and_then(|number| u32::try_from(number).ok()).unwrap_or(u32::MAX);
    vec![load(NUMBER), compare(1, number, 2, 3), end(UNKNOWN), end(libc::SECCOMP_RET_ALLOW)]
}

/// For a worker and its children at once: there is one for whoever knows `mark`, see [`crate::sys::process::mark_calls`]. A program
/// does not, since it has not the memory of its worker; a handler would.
pub(super) fn marked(mark: u64) -> Vec<Instruction> {
    /// Places of instructions.
    const DENY: usize = 6;
    const ALLOW: usize = 7;
    let number = number(CLONE3).and_then(|number| u32::try_from(number).ok()).unwrap_or(u32::MAX);
    vec![
        load(NUMBER),
        compare(1, number, 2, ALLOW),
        load(argument(5)),
        compare(3, mark as u32, 4, DENY),
        load(argument(5) + 4),
        compare(5, (mark >> 32) as u32, ALLOW, DENY),
        end(UNKNOWN),
        end(libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::filter::tests::{ALLOW, ENOSYS, NATIVE, verdict};
    use super::*;

    #[test]
    fn a_child_has_none_and_a_worker_has_its_own() {
        let [clone3, clone] = [CLONE3, "clone"].map(|name| u32::try_from(number(name).unwrap()).unwrap());
        let mark = 0x1234_5678_9abc_def0;
        for (program, call, marked, wanted) in [
            (denied(), clone3, mark, ENOSYS),
            (denied(), clone, 0, ALLOW),
            (marked(mark), clone3, mark, ALLOW),
            (marked(mark), clone3, 0, ENOSYS),
            (marked(mark), clone3, mark ^ 1, ENOSYS),
            (marked(mark), clone3, mark ^ 1 << 63, ENOSYS),
            (marked(mark), clone, 0, ALLOW),
        ] {
            let arguments = [mark, mark, mark, mark, mark, marked];
            assert_eq!(verdict(&program, NATIVE, call, arguments), wanted, "{call} {marked:x}");
        }
    }
}
