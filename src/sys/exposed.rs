//! Sockets in which strangers have a part: closing one must not wait for what they have made of it.
//!
//! close(2) of a TCP socket waits for its peer if somebody has asked for that (`SO_LINGER`, socket(7)), on one that does not block, too,
//! and the option belongs to all who have the socket. Over a Unix socket it can come from anybody who may connect: whoever receives
//! or throws away a message closes the descriptors in it that he has no room for (`SCM_RIGHTS`, unix(7)). A process that is ending does
//! not wait: `PF_EXITING`, inet_release() in the kernel's net/ipv4/af_inet.c.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{self as nixsock, MsgFlags, RecvMsg, sockopt};

use super::fork::fork;
use super::socket::{is_queue_empty, stop_listening};
use super::{child_fds, fd, options, stream};

/// The most descriptors in one message, `SCM_MAX_FD` in the kernel's include/net/scm.h.
const MOST_DESCRIPTORS: usize = 253;

/// One of them, which is closed without waiting.
#[derive(Debug)]
pub(crate) struct ExposedSocket {
    socket: ManuallyDrop<OwnedFd>,
    /// Whether somebody was queued when it stopped to listen. Of one that has, poll(2) always says that somebody is there.
    had_queue: Cell<Option<bool>>,
}

impl From<OwnedFd> for ExposedSocket {
    fn from(socket: OwnedFd) -> Self {
        ExposedSocket { socket: ManuallyDrop::new(socket), had_queue: Cell::new(None) }
    }
}

impl AsFd for ExposedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ExposedSocket {
    /// As [`stop_listening`].
    pub(crate) fn stop_listening(&self) {
        self.had_queue.set(Some(!is_queue_empty(self.as_fd())));
        stop_listening(self.as_fd());
    }
}

impl Drop for ExposedSocket {
    /// Closes it without waiting for what others have made of it.
    fn drop(&mut self) {
        // SAFETY: nobody uses it again: this is the end of its owner.
        let socket = unsafe { ManuallyDrop::take(&mut self.socket) };
        match domain(socket.as_fd()) {
            Some(libc::AF_UNIX)
                if self.had_queue.get().unwrap_or_else(|| may_hold_descriptors(socket.as_fd())) =>
            {
                close_elsewhere(vec![socket]);
            }
            Some(libc::AF_INET | libc::AF_INET6) => forget_linger(socket.as_fd()),
            _ => {}
        }
    }
}

/// Nobody waits, unless somebody asks for it again.
fn forget_linger(socket: BorrowedFd<'_>) {
    stream::set_linger(socket, libc::linger { l_onoff: 0, l_linger: 0 });
}

fn domain(socket: BorrowedFd<'_>) -> Option<libc::c_int> {
    options::get(socket, libc::SOL_SOCKET, libc::SO_DOMAIN).ok()
}

/// Whether something is unread, or may be on a connection that nobody has accepted.
fn may_hold_descriptors(socket: BorrowedFd<'_>) -> bool {
    match nixsock::getsockopt(&socket, sockopt::AcceptConn) {
        Ok(true) => !is_queue_empty(socket),
        _ => fd::unread(socket) > 0,
    }
}

/// Closes descriptors in a process that ends. Where none can be made, here.
pub(crate) fn close_elsewhere(descriptors: Vec<OwnedFd>) {
    // Enough where nobody else has them, and where no process can be made.
    descriptors.iter().for_each(|descriptor| forget_linger(descriptor.as_fd()));
    let Ok((ours, theirs)) = fd::pipe() else { return };
    let mut kept: Vec<_> = descriptors.iter().map(AsFd::as_fd).chain([ours.as_fd()]).collect();
    kept.sort_by_key(AsRawFd::as_raw_fd);
    // Whoever closes last would wait: that is to be the child.
    let _ = fork(|child| {
        let _ = child_fds::close_standard_and_all_but(child, &kept);
        let _ = fd::poll(ours.as_fd(), fd::PollFlags::POLLIN, None);
        0
    });
    drop(descriptors);
    drop(theirs);
}

/// Receives bytes that have come over a Unix socket, and whether descriptors came with them, which nobody here takes. Never waits.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let mut room = room_for_descriptors();
    let mut parts = [io::IoSliceMut::new(buffer)];
    let received = nixsock::recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let (bytes, unwanted) = (received.bytes, descriptors(&received)?);
    let came = !unwanted.is_empty();
    if came {
        close_elsewhere(unwanted);
    }
    Ok((bytes, came))
}

/// For as many as a message may have: what there is no room for is closed while it is received.
pub(super) fn room_for_descriptors() -> Vec<u8> {
    nix::cmsg_space!([libc::c_int; MOST_DESCRIPTORS])
}

/// Those that came with a message.
pub(super) fn descriptors<S>(received: &RecvMsg<'_, '_, S>) -> io::Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    for message in received.cmsgs()? {
        if let nixsock::ControlMessageOwned::ScmRights(descriptors) = message {
            // SAFETY: the kernel has just given us these.
            all.extend(descriptors.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    Ok(all)
}
