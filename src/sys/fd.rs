//! Descriptors: exact tables for children, pipes, blocking mode.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, openat};
use nix::poll::{PollFd, PollTimeout};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use super::check;
use super::time::Monotonic;

/// What poll(2) waits for.
pub(crate) use nix::poll::PollFlags;

/// A pipe, closed on exec: the end to read, which does not block, and the end to write, which does.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Gives a pipe room for `bytes`, rounded up, if it has less; pipe(7).
///
/// # Errors
///
/// `EPERM` above `/proc/sys/fs/pipe-max-size`.
pub(crate) fn set_pipe_room(pipe: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let wanted = i32::try_from(bytes).unwrap_or(i32::MAX);
    if fcntl(pipe, FcntlArg::F_GETPIPE_SZ)? < wanted {
        fcntl(pipe, FcntlArg::F_SETPIPE_SZ(wanted))?;
    }
    Ok(())
}

/// Bytes that wait to be read from a pipe; 0 if the kernel does not tell.
pub(crate) fn unread(pipe: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to a live local.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Opens `/dev/null` for fds 0, 1 and 2 where they are closed, so that no socket is ever given one of these numbers.
pub(crate) fn fill_standard() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    if null.as_raw_fd() <= 2 {
        let _stays_open = std::os::fd::IntoRawFd::into_raw_fd(null);
        return fill_standard();
    }
    Ok(())
}

/// Puts `/dev/null` on fds 0 and 1: this process and its children read nothing there, and what they say is for nobody.
pub(crate) fn silence_standard() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    (0..=1).try_for_each(|number| put(null.as_fd(), number))
}

/// Takes over descriptor `number`, which this process was started with; closed on exec from now on.
///
/// That mark says whose it is: all that this process opens is closed on exec, so what is not came over the exec that started
/// it, and nobody has taken it yet.
///
/// # Errors
///
/// `EBADF` if there is no such descriptor; `InvalidInput` if it has been taken, is of this process's own, or is a standard one.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD touches no memory, and changes nothing.
    let flags = check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    if number <= 2 || flags & libc::FD_CLOEXEC != 0 {
        let text = format!("this process was not started with descriptor {number}, or has taken it already");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // SAFETY: fcntl with F_SETFD touches no memory.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and nobody's: see above. Only `keep_over_exec` takes the mark from what has an owner, while it
    // is borrowed and nothing else runs.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The directory of this process's descriptors, /proc/self/fd. Kept open: two thirds of what a look there costs is the way.
#[derive(Debug)]
pub(crate) struct OwnFds(OwnedFd);

impl OwnFds {
    /// # Errors
    ///
    /// What open(2) says: above all that there is no /proc.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(OwnFds(nix::fcntl::open("/proc/self/fd", flags, Mode::empty())?))
    }

    /// Opens anew what a descriptor of this process stands for, to be read and written.
    pub(crate) fn open_both_ways(&self, fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let mut name = [0; 16];
        let mut rest = &mut name[..];
        write!(rest, "{}", fd.as_raw_fd())?;
        let length = 16 - rest.len();
        let name = OsStr::from_bytes(name.get(..length).unwrap_or_default());
        Ok(openat(&self.0, name, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)
    }
}

/// The number of a descriptor, as another program that this process starts or becomes will find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct FdNumber(RawFd);

impl FdNumber {
    /// The number that it has here.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Self {
        FdNumber(fd.as_raw_fd())
    }

    /// The number that [`super::child_fds::hand_over`] gives to the descriptor at this place.
    pub(crate) fn at_place(place: usize) -> Self {
        FdNumber(RawFd::try_from(place).ok().and_then(|place| place.checked_add(3)).unwrap_or(-1))
    }

    /// Takes the descriptor that this process has found there: see [`inherited`].
    pub(crate) fn take(self) -> io::Result<OwnedFd> {
        inherited(self.0)
    }
}

/// Does `exec` with these kept open over it. It comes back only if that has failed; then all is as it was.
pub(super) fn keep_over_exec(kept: &[BorrowedFd<'_>], exec: impl FnOnce() -> io::Error) -> io::Error {
    let mark = |fd: &BorrowedFd<'_>, flags| fcntl(*fd, FcntlArg::F_SETFD(flags)).map(|_| ());
    let unmarked = kept.iter().try_for_each(|fd| mark(fd, FdFlag::empty()));
    let error = unmarked.map_or_else(Into::into, |()| exec());
    for fd in kept {
        // It fails for no descriptor that is open.
        let _ = mark(fd, FdFlag::FD_CLOEXEC);
    }
    error
}

/// Keeps a descriptor open for as long as this process is there, so that children can be told of it.
pub(crate) fn for_ever(fd: OwnedFd) -> BorrowedFd<'static> {
    let owner: &'static OwnedFd = Box::leak(Box::new(fd));
    owner.as_fd()
}

/// Lets go of what `place` stands for: from now on it is another of `by`, closed on exec. The number stays taken.
pub(crate) fn replace(place: BorrowedFd<'_>, by: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: dup3 on numbers touches no memory. Both are open, and stay so.
    check(unsafe { libc::dup3(by.as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) })?;
    Ok(())
}

/// Makes a descriptor a copy of this one, kept over an exec; of what it was before, nobody of this process is left.
pub(super) fn put(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 on numbers touches no memory. The standard descriptors stay open, and nobody owns them.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
    Ok(())
}

/// Waits until one of `events` can be had, an error or a hang-up, for no longer than `timeout`; empty if nothing came.
pub(crate) fn poll(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    timeout: Option<Duration>,
) -> io::Result<PollFlags> {
    let until = timeout.filter(|time| !time.is_zero()).map(|time| Monotonic::now() + time);
    let mut left = timeout;
    let mut fds = [PollFd::new(fd, events)];
    loop {
        let wait =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match nix::poll::poll(&mut fds, wait) {
            Err(Errno::EINTR) => {}
            // The longest that poll(2) waits, 24 days, and not long enough.
            Ok(0) if wait == PollTimeout::MAX => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(fds[0].revents().unwrap_or(PollFlags::empty())),
        }
        left = until.map(|until| until - Monotonic::now()).or(left);
    }
}

/// Reads once, read(2).
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::unistd::read(fd, buffer)?)
}

/// Writes once, write(2).
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(nix::unistd::write(fd, bytes)?)
}

/// Writes as much as a pipe has room for that blocks, and does not wait.
///
/// # Errors
///
/// `EAGAIN` if there is no room now.
pub(crate) fn write_now(pipe: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    if poll(pipe, PollFlags::POLLOUT, Some(Duration::ZERO))?.is_empty() {
        return Err(Errno::EAGAIN.into());
    }
    // What poll(2) calls writable has room for so much, pipe(7); more would wait.
    write(pipe, &bytes[..bytes.len().min(libc::PIPE_BUF)])
}

/// Writes a message of at most `PIPE_BUF` bytes, whole: waits for room in a pipe that does not block, but for no longer
/// than `patience`.
///
/// # Errors
///
/// `EPIPE` if nobody can read it any more, `TimedOut`.
pub(crate) fn write_message(
    pipe: BorrowedFd<'_>,
    message: &[u8],
    patience: Option<Duration>,
) -> io::Result<()> {
    let until = patience.map(|patience| Monotonic::now() + patience);
    loop {
        match nix::unistd::write(pipe, message) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN) => {
                let left = until.map(|until| until - Monotonic::now());
                if left == Some(Duration::ZERO) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                poll(pipe, PollFlags::POLLOUT, left)?;
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Has all who share this open file write at its end, fcntl(2), `O_APPEND`.
pub(crate) fn append(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_APPEND))?;
    Ok(())
}

/// Sets or clears O_NONBLOCK, which belongs to the open file description and so to all who share it.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) == on {
        return Ok(());
    }
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Opens what this stands for anew, to be read, as a loader does that is told to.
pub(crate) fn open_again(fd: BorrowedFd<'_>) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Whether that would be found, without a descriptor for it.
pub(crate) fn is_found_again(fd: BorrowedFd<'_>) -> io::Result<()> {
    std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).map(drop)
}

/// The end of a pipe to read, with an open file description of its own that does not block, proc_pid_fd(5).
pub(crate) fn reopen_nonblocking(pipe: BorrowedFd<'_>) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn what_came_over_an_exec_is_taken_once_and_nothing_else_is() {
        let (own, _write) = pipe().unwrap();
        assert_eq!(inherited(own.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(inherited(2).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(inherited(RawFd::MAX).unwrap_err().raw_os_error(), Some(libc::EBADF));
        // As an exec leaves it: open, kept, and without an owner.
        let number = nix::unistd::dup(&own).unwrap().into_raw_fd();
        let taken = inherited(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert_eq!(inherited(number).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn an_exec_that_fails_keeps_nothing() {
        let (own, _write) = pipe().unwrap();
        let error = keep_over_exec(&[own.as_fd()], || {
            assert_eq!(fcntl(&own, FcntlArg::F_GETFD), Ok(0));
            io::ErrorKind::NotFound.into()
        });
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(fcntl(&own, FcntlArg::F_GETFD), Ok(libc::FD_CLOEXEC));
    }

    #[test]
    fn a_number_that_is_let_go_of_stays_taken() {
        let (read, write) = pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        replace(write.as_fd(), null.as_fd()).unwrap();
        // Children of other tests may have a copy for a moment.
        set_nonblocking(read.as_fd(), false).unwrap();
        assert_eq!(nix::unistd::read(&read, &mut [0]), Ok(0), "nobody can write to the pipe any more");
        assert_eq!(fcntl(&write, FcntlArg::F_GETFD), Ok(libc::FD_CLOEXEC));
    }
}
