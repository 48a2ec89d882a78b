//! The instructions of filters that are written by hand, and how filters become one: seccomp(2).

use crate::sys::seccomp::Instruction;

pub(super) const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(super) const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
pub(super) const GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
pub(super) const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
pub(super) const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Where the number of a call is in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;

/// What ends with `EPERM`, and with `ENOSYS`.
pub(super) const FORBIDDEN: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
pub(super) const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Where the lower half of an argument is, which comes first on the machines that we build for.
pub(super) const fn argument(place: u32) -> u32 {
    16 + 8 * place
}

pub(super) fn load(k: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k }
}

pub(super) fn end(k: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k }
}

/// At this place: goes on at one of two others, which are behind it.
pub(super) fn compare(place: usize, k: u32, equal: usize, other: usize) -> Instruction {
    let [jt, jf] = [equal, other].map(|to| (to - place - 1) as u8);
    Instruction { code: EQUAL, jt, jf, k }
}

/// One filter in place of two: what the first allows is for the second to say. So of two of which one asks somebody, that is the
/// second: whom he tells to go on has come past what the other denies.
pub(super) fn followed_by(mut first: Vec<Instruction>, second: &[Instruction]) -> Vec<Instruction> {
    for (behind, instruction) in first.iter_mut().rev().enumerate() {
        if (instruction.code, instruction.k) == (RETURN, libc::SECCOMP_RET_ALLOW) {
            *instruction = Instruction { code: JUMP, jt: 0, jf: 0, k: behind as u32 };
        }
    }
    first.extend(second);
    first
}

#[cfg(test)]
mod tests {
    use super::super::filter::tests::{ALLOW, NATIVE, verdict};
    use super::*;

    #[test]
    fn what_either_of_two_filters_denies_is_denied_by_the_one_that_they_become() {
        // Denies a call, and allows others in two places.
        let denying = |call, verdict| {
            vec![
                load(NUMBER),
                compare(1, call, 3, 2),
                end(ALLOW),
                compare(3, call, 4, 5),
                end(verdict),
                end(ALLOW),
            ]
        };
        let both = followed_by(denying(7, FORBIDDEN), &denying(8, UNKNOWN));
        let other = followed_by(both.clone(), &denying(7, libc::SECCOMP_RET_USER_NOTIF));
        for program in [both, other] {
            for (call, wanted) in [(6, ALLOW), (7, FORBIDDEN), (8, UNKNOWN), (9, ALLOW)] {
                assert_eq!(verdict(&program, NATIVE, call, []), wanted, "{call}");
            }
        }
        let alone = followed_by(Vec::new(), &denying(7, FORBIDDEN));
        assert_eq!(verdict(&alone, NATIVE, 7, []), FORBIDDEN);
    }
}
