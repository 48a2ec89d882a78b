//! What another program answers, if it does so in time.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::time::Monotonic;

/// More is no answer.
const LONGEST: usize = 16 << 20;

/// How often a program is looked at that has closed its stdout and not ended yet.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// How it went.
#[derive(Debug)]
pub(crate) enum Answered {
    /// It ended well; its stdout.
    Said(Vec<u8>),
    /// It ended otherwise.
    Failed,
    /// It had not ended in time, and was killed.
    Late,
}

/// Runs a program whose only output is its stdout, and waits for its end, at most `limit`.
///
/// # Errors
///
/// It cannot be started, or says too much.
pub(crate) fn of(command: &mut Command, limit: Duration) -> io::Result<Answered> {
    let deadline = Monotonic::now() + limit;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let answered =
        child.stdout.take().map_or(Ok(Answered::Failed), |stdout| listen(&mut child, stdout, deadline));
    if !matches!(answered, Ok(Answered::Said(_) | Answered::Failed)) {
        let _ = child.kill();
        let _ = child.wait();
    }
    answered
}

fn listen(child: &mut Child, mut stdout: ChildStdout, deadline: Monotonic) -> io::Result<Answered> {
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if !is_readable(&stdout, deadline)? {
            return Ok(Answered::Late);
        }
        match stdout.read(&mut piece)? {
            0 => break,
            length => said.extend_from_slice(piece.get(..length).unwrap_or_default()),
        }
        if said.len() > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    while Monotonic::now() < deadline {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(Answered::Said(said)),
            Some(_) => return Ok(Answered::Failed),
            None => std::thread::sleep(POLL_INTERVAL),
        }
    }
    Ok(Answered::Late)
}

fn is_readable(stdout: &ChildStdout, deadline: Monotonic) -> io::Result<bool> {
    loop {
        let left = deadline - Monotonic::now();
        if left.is_zero() {
            return Ok(false);
        }
        let millis = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let mut wanted = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, PollTimeout::from(millis)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}
