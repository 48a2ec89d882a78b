//! Two words that a process leaves to its parent, beside its exit code.
//!
//! They are its limit `RLIMIT_LOCKS`, which Linux has enforced nowhere since 2.4.25, setrlimit(2). The kernel keeps the limits
//! of a process until it has been reaped, and each has its own: no descriptor, no memory and no queue is shared, so nobody
//! can fill it, nobody has to wait, and what is there was said by who it is about. (Another process of the same user can
//! change it, as it can send it signals.) A pipe for each would cost every fork a descriptor more for each that lives.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;

use nix::errno::Errno;

use super::check;
use super::wait::Pid;

/// The first is never greater than the second, which is never all ones. Of each the kernel keeps as many bits as its own
/// words have.
pub(crate) type ExitWords = [u64; 2];

const UNSET: ExitWords = [u64::MAX, u64::MAX];

/// Makes sure that children of this process will have room for any words.
///
/// # Errors
///
/// `EPERM`: it was started with less, and may not change that.
pub(crate) fn make_room() -> io::Result<()> {
    if own()? == UNSET { Ok(()) } else { set(UNSET) }
}

/// Leaves them, in place of those that were left before; also in a signal handler.
///
/// # Errors
///
/// `EPERM` if the second is greater than before: once and for all is what they are for.
#[inline]
pub(crate) fn leave(words: ExitWords) -> io::Result<()> {
    set(words)
}

/// What a child has left that was not reaped yet; `None` if that is nothing, or cannot be had.
pub(crate) fn of(child: Pid) -> Option<ExitWords> {
    let words = match get(child) {
        // Of another user. What is refused here, /proc tells everybody: proc_pid_limits(5).
        Err(Errno::EPERM) => shown(child)?,
        words => words.ok()?,
    };
    (words != UNSET).then_some(words)
}

fn own() -> io::Result<ExitWords> {
    Ok(get(0)?)
}

fn set([soft, hard]: ExitWords) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a live local that the kernel reads.
    check(unsafe { libc::setrlimit64(libc::RLIMIT_LOCKS, &limit) })?;
    Ok(())
}

fn get(pid: Pid) -> nix::Result<ExitWords> {
    let mut limit = MaybeUninit::<libc::rlimit64>::uninit();
    // SAFETY: nothing is set, and the kernel writes one rlimit to a live local.
    let result = unsafe { libc::prlimit64(pid, libc::RLIMIT_LOCKS, std::ptr::null(), limit.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: it succeeded, so it is written.
    let limit = unsafe { limit.assume_init() };
    Ok([limit.rlim_cur, limit.rlim_max])
}

fn shown(pid: Pid) -> Option<ExitWords> {
    let mut text = [0; 4096];
    let length = File::open(format!("/proc/{pid}/limits")).and_then(|mut file| file.read(&mut text)).ok()?;
    parse(std::str::from_utf8(text.get(..length)?).ok()?)
}

/// From `/proc/PID/limits`.
fn parse(text: &str) -> Option<ExitWords> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max file locks "))?;
    let mut words = line.split_ascii_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some([words.next()??, words.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fork::fork;
    use crate::sys::process;
    use crate::sys::wait::{self, Ending};

    const WORDS: ExitWords = [7, 1 << 63 | 9];

    #[test]
    fn a_dead_child_has_left_its_words_and_nobody_elses() {
        let leaving = |words: Option<ExitWords>| {
            fork(move |_| u8::from(words.is_some_and(|words| leave(words).is_err()))).unwrap()
        };
        let children = [leaving(Some(WORDS)), leaving(None), leaving(Some([0, 0]))];
        children.into_iter().for_each(wait::await_end);
        assert_eq!(children.map(of), [Some(WORDS), None, Some([0, 0])]);
        assert_eq!(children.map(shown), [Some(WORDS), Some(UNSET), Some([0, 0])]);
        for child in children {
            assert_eq!(wait::wait_for(child).unwrap().unwrap().ending, Ending::Exited(0));
            assert_eq!(of(child), None, "it is gone");
        }
        assert_eq!(own().unwrap(), UNSET);
    }

    #[test]
    fn those_of_another_user_can_be_had_too() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let child = fork(|_| {
            let became = process::become_group(61_234).and_then(|()| process::become_user(61_234));
            u8::from(became.and_then(|()| leave(WORDS)).is_err())
        });
        let child = child.unwrap();
        wait::await_end(child);
        assert_eq!(of(child), Some(WORDS));
        assert_eq!(shown(child), Some(WORDS));
        assert_eq!(wait::wait_for(child).unwrap().unwrap().ending, Ending::Exited(0));
    }

    #[test]
    fn what_is_no_limit_is_no_word() {
        for text in [
            "",
            "Max file locks ",
            "Max file locks  7",
            "Max file locks  x y locks",
            "Max file size  1 2 bytes",
        ] {
            assert_eq!(parse(text), None);
        }
    }
}
