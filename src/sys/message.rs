//! Sockets that carry messages between processes, and descriptors.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::socket::{
    self as nixsock, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, setsockopt, sockopt,
};

use super::exposed::{self, ExposedSocket};

/// A pair of connected sockets that keep messages apart, do not block and are closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(nixsock::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Gives what is sent and not yet received room for `bytes`, socket(7).
pub(crate) fn set_room(socket: BorrowedFd<'_>, bytes: usize) {
    // The kernel takes what net.core.wmem_max allows of it.
    let _ = setsockopt(&socket, sockopt::SndBuf, &bytes);
}

/// Sends one message; never raises SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    nixsock::send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

/// Receives one message; 0 bytes are the end. What does not fit is lost.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nixsock::recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?)
}

/// Sends one message with a copy of a descriptor, unix(7); never raises SIGPIPE.
///
/// # Errors
///
/// `WouldBlock` if nobody reads; `ETOOMANYREFS` if this user has sent too many that nobody has read.
pub(crate) fn send_copy(socket: BorrowedFd<'_>, message: &[u8], copied: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [copied.as_raw_fd()];
    let control = [nixsock::ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    nixsock::sendmsg::<()>(socket.as_raw_fd(), &[io::IoSlice::new(message)], &control, flags, None)?;
    Ok(())
}

/// Sends an empty message with a copy of a descriptor to who has bound `path`, without waiting; never raises SIGPIPE.
///
/// # Errors
///
/// As [`send_copy`], and what sendto(2) says of a path.
pub(crate) fn send_copy_to(socket: BorrowedFd<'_>, path: &Path, copied: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [copied.as_raw_fd()];
    let control = [nixsock::ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    nixsock::sendmsg(socket.as_raw_fd(), &[], &control, flags, Some(&UnixAddr::new(path)?))?;
    Ok(())
}

/// Sends one datagram to the socket at this path, or of the abstract name after `@`, with a copy of a descriptor if there
/// is one to send. Never waits.
///
/// # Errors
///
/// `WouldBlock` if the other side reads nothing; `ETOOMANYREFS` as for [`send_copy`].
pub(crate) fn send_to(name: &OsStr, message: &[u8], copied: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name)?,
        None => UnixAddr::new(name)?,
    };
    let socket = nixsock::socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let descriptors: Vec<_> = copied.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [nixsock::ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    nixsock::sendmsg(socket.as_raw_fd(), &[io::IoSlice::new(message)], control, flags, Some(&address))?;
    Ok(())
}

/// Receives one message and the descriptor that came with it, closed on exec; what does not fit is lost.
pub(crate) fn receive_copy(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let mut room = exposed::room_for_descriptors();
    let mut parts = [io::IoSliceMut::new(buffer)];
    let received = nixsock::recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let mut copy = None;
    for descriptor in exposed::descriptors(&received)? {
        match copy {
            None => copy = Some(descriptor),
            // Nobody here sends more than one.
            Some(_) => drop(ExposedSocket::from(descriptor)),
        }
    }
    Ok((received.bytes, copy))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::stream;

    #[test]
    fn a_copy_of_a_connection_goes_from_process_to_process() {
        let (to, from) = pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        send_copy(to.as_fd(), b"hello", server.as_fd()).unwrap();
        send(to.as_fd(), b"alone").unwrap();
        drop(server);
        let mut buffer = [0; 8];
        let (length, copy) = receive_copy(from.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        let mut copy = TcpStream::from(copy.unwrap());
        copy.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        assert!(stream::is_connection(copy.as_fd()));
        stream::end(copy.as_fd());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert!(matches!(receive_copy(from.as_fd(), &mut buffer), Ok((5, None))));
        let nothing = receive_copy(from.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }
}
