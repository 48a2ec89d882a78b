//! Waiting for descriptors and signals at once: epoll_pwait(2).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;
use super::signal::{Signals, Wakers};

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Something to read, or a hang-up.
    Read,
    /// Something to read, and only some of the processes that wait for the same listener need to wake.
    ReadExclusive,
    /// Each new event once, read or not.
    ReadEdge,
    /// Each event once, whatever it is about: also that the other end has acknowledged the end of our stream, which is
    /// no other event.
    AnyEdge,
    /// Room to write.
    Write,
    /// Nothing for now.
    Nothing,
}

/// An epoll instance. A process makes its own; one inherited over a fork reports the parent's descriptors. Another can watch
/// it: it has something to read while one of its descriptors is ready.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    ready: [libc::epoll_event; 32],
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Poller {
    /// An instance that watches nothing.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: touches no memory.
        let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just given us this descriptor.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        Ok(Poller { epoll, ready: [libc::epoll_event { events: 0, u64: 0 }; 32] })
    }

    /// Watches `fd`; its events carry `token`.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, interest, token)
    }

    /// Watches what is watched for something else from now on.
    pub(crate) fn change(&self, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, interest, token)
    }

    /// Stops watching. Needed before a close wherever another process may hold the same open file description, epoll(7).
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, Interest::Read, 0)
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> io::Result<()> {
        let events = match interest {
            Interest::Read => libc::EPOLLIN,
            Interest::ReadExclusive => libc::EPOLLIN | libc::EPOLLEXCLUSIVE,
            Interest::ReadEdge => libc::EPOLLIN | libc::EPOLLET,
            Interest::AnyEdge => libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET,
            Interest::Write => libc::EPOLLOUT,
            Interest::Nothing => 0,
        };
        // EPOLLET is bit 31; the cast keeps the bits.
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: `event` is a live local that the kernel reads.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits for one event, for ever, and returns its token; `None` after a signal. Signals are as they are.
    pub(crate) fn wait_for_one(&mut self) -> io::Result<Option<u64>> {
        // SAFETY: `ready` has room for more than one event.
        match check(unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), self.ready.as_mut_ptr(), 1, -1) }) {
            Ok(count) => Ok(self.ready.first().filter(|_| count == 1).map(|event| event.u64)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The tokens of what is ready now, at most 32.
    pub(crate) fn ready(&mut self) -> impl Iterator<Item = u64> + use<> {
        let capacity = self.ready.len() as i32;
        // SAFETY: `ready` has room for `capacity` events.
        let found = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), self.ready.as_mut_ptr(), capacity, 0) };
        self.ready.map(|event| event.u64).into_iter().take(usize::try_from(found).unwrap_or(0))
    }

    /// Waits for an event, a handled signal or the timeout; returns the tokens of what is ready, at most 32.
    /// `None` waits for ever. A timeout is rounded up to a millisecond.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        signals: &Signals,
        wakers: Wakers,
    ) -> io::Result<impl Iterator<Item = u64> + use<>> {
        let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let capacity = self.ready.len() as i32;
        // SAFETY: `ready` has room for `capacity` events, and the mask is a live sigset_t.
        let result = unsafe {
            libc::epoll_pwait(
                self.epoll.as_raw_fd(),
                self.ready.as_mut_ptr(),
                capacity,
                timeout,
                signals.mask_while_waiting(wakers),
            )
        };
        let count = match check(result) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(self.ready.map(|event| event.u64).into_iter().take(count))
    }
}
