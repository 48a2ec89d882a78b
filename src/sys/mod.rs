//! Every system call that std does not wrap, and every `unsafe` block.
//!
//! A function here takes and returns owned or borrowed descriptors, reports errno as `io::Error`, and decides nothing.

pub(crate) mod access;
pub(crate) mod addresses;
pub(crate) mod alarm;
pub(crate) mod answer;
pub(crate) mod cgroup;
pub(crate) mod child_fds;
mod clone3;
pub(crate) mod divided;
pub(crate) mod dontfork;
pub(crate) mod epoll;
pub(crate) mod exec;
pub(crate) mod exit_words;
pub(crate) mod exposed;
pub(crate) mod fd;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod interface;
#[cfg(miri)]
mod interpreted;
#[cfg(test)]
pub(crate) mod kill_points;
pub(crate) mod landlock;
pub(crate) mod list;
pub(crate) mod memory;
pub(crate) mod message;
pub(crate) mod namespaces;
pub(crate) mod options;
pub(crate) mod path;
pub(crate) mod permission;
pub(crate) mod process;
pub(crate) mod robust;
pub(crate) mod seccomp;
pub(crate) mod signal;
pub(crate) mod sock_diag;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod tcp_info;
pub(crate) mod tcp_table;
pub(crate) mod threads;
pub(crate) mod time;
pub(crate) mod title;
pub(crate) mod usage;
pub(crate) mod wait;
pub(crate) mod warm;
pub(crate) mod watch;

use std::io;

/// The result of a call that answers -1 and sets errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What errno means, without its number.
pub(crate) fn error_text(errno: i32) -> &'static str {
    nix::errno::Errno::from_raw(errno).desc()
}
