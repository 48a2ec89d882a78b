//! What is done to a connection, by whoever serves it and from outside.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self as nixsock, MsgFlags, setsockopt, sockopt};

use super::process;

/// Closes a TCP connection by a reset, with nothing left behind, whatever was under way. Another is just closed.
pub(crate) fn reset(connection: OwnedFd) {
    set_linger(connection.as_fd(), libc::linger { l_onoff: 1, l_linger: 0 });
    drop(connection);
}

/// How long who closes a connection last waits for its client. The system call itself, which a filter knows as ours by its mark.
pub(super) fn set_linger(connection: BorrowedFd<'_>, linger: libc::linger) {
    let (level, name, length) = (libc::SOL_SOCKET, libc::SO_LINGER, size_of::<libc::linger>());
    // SAFETY: the kernel reads a live local of this length. An error is for what cannot linger.
    unsafe {
        let at = &raw const linger;
        libc::syscall(libc::SYS_setsockopt, connection.as_raw_fd(), level, name, at, length, process::mark())
    };
}

/// Waits for bytes and takes them; 0 are the end of the stream.
pub(crate) fn receive(connection: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(connection, buffer, MsgFlags::empty())
}

/// Takes what has come.
///
/// # Errors
///
/// `WouldBlock` if nothing has.
pub(crate) fn receive_now(connection: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(connection, buffer, MsgFlags::MSG_DONTWAIT)
}

/// As [`receive_now`], but leaves it there.
pub(crate) fn peek_now(connection: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(connection, buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK)
}

#[inline]
fn receive_with(connection: BorrowedFd<'_>, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
    uninterrupted(|| nixsock::recv(connection.as_raw_fd(), buffer, flags))
}

/// Sends some of it, waiting for room; never raises SIGPIPE.
pub(crate) fn send(connection: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    send_with(connection, bytes, MsgFlags::empty())
}

/// Sends as much as there is room for.
///
/// # Errors
///
/// `WouldBlock` if there is none.
pub(crate) fn send_now(connection: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    send_with(connection, bytes, MsgFlags::MSG_DONTWAIT)
}

#[inline]
fn send_with(connection: BorrowedFd<'_>, bytes: &[u8], flags: MsgFlags) -> io::Result<usize> {
    uninterrupted(|| nixsock::send(connection.as_raw_fd(), bytes, flags | MsgFlags::MSG_NOSIGNAL))
}

#[inline]
fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Ends what this end has to say.
pub(crate) fn end_sending(connection: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nixsock::shutdown(connection.as_raw_fd(), nixsock::Shutdown::Write)?)
}

/// Whether an error says that the other end or the way to it is no longer there: tcp(7), ip(7), unix(7).
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPIPE
                | libc::ECONNRESET
                | libc::ECONNABORTED
                | libc::ENOTCONN
                | libc::ETIMEDOUT
                | libc::EHOSTUNREACH
                | libc::EHOSTDOWN
                | libc::ENETUNREACH
                | libc::ENETDOWN
        )
    )
}

/// Sends the last words and the end of the stream; does not block, and never raises SIGPIPE. What finds no room is lost.
pub(crate) fn send_last(connection: BorrowedFd<'_>, words: &[u8]) -> io::Result<()> {
    // With MSG_MORE both go in one packet, where there are packets.
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_MORE;
    nixsock::send(connection.as_raw_fd(), words, MsgFlags::from_bits_retain(flags))?;
    end_sending(connection)
}

/// What is left of what the other end sends, when some of it was thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing has come yet.
    Nothing,
    /// There may be more.
    More,
    /// Nothing more will come.
    End,
}

/// Throws away what has come from the other end, about this much at most, without blocking. Returns how much that was.
pub(crate) fn discard(connection: BorrowedFd<'_>, most: usize) -> (usize, Rest) {
    let mut scrap = std::mem::MaybeUninit::<[u8; 16 * 1024]>::uninit();
    // For TCP, MSG_TRUNC means that nothing is copied, tcp(7).
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    let mut discarded = 0;
    while discarded < most {
        // SAFETY: the kernel writes at most the length of the buffer, and nobody reads it.
        let received = unsafe {
            libc::recv(connection.as_raw_fd(), scrap.as_mut_ptr().cast(), size_of_val(&scrap), flags)
        };
        match received {
            0 => return (discarded, Rest::End),
            1.. => discarded += received.unsigned_abs(),
            _ => {
                let kind = io::Error::last_os_error().kind();
                let waits = matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                return (discarded, if waits { Rest::Nothing } else { Rest::End });
            }
        }
    }
    (discarded, Rest::More)
}

/// How many bytes the other end has not acknowledged, or over a Unix socket not read: tcp(7), `SIOCOUTQ`. `None` if the kernel
/// does not tell.
pub(crate) fn unacknowledged(connection: BorrowedFd<'_>) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is the same number, writes one int, to a live local.
    let result = unsafe { libc::ioctl(connection.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    usize::try_from(bytes).ok().filter(|_| result == 0)
}

/// Whether `fd` is a stream over TCP or a Unix socket, and no listener.
pub(crate) fn is_connection(fd: BorrowedFd<'_>) -> bool {
    let has = |option: libc::c_int, wanted: libc::c_int| {
        let mut value: libc::c_int = 0;
        let mut length = size_of::<libc::c_int>() as libc::socklen_t;
        let place = (&raw mut value).cast();
        // SAFETY: both describe live locals that the kernel writes.
        let result =
            unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, place, &mut length) };
        result == 0 && value == wanted
    };
    has(libc::SO_TYPE, libc::SOCK_STREAM)
        && (has(libc::SO_PROTOCOL, libc::IPPROTO_TCP) || has(libc::SO_DOMAIN, libc::AF_UNIX))
        && has(libc::SO_ACCEPTCONN, 0)
}

/// Has the kernel keep what the client does not take for no longer than this, closed or not. Without it, who never reads
/// keeps a full buffer for minutes after its connection was closed.
pub(crate) fn give_up_after(connection: BorrowedFd<'_>, time: Duration) {
    let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    // It is no TCP connection if it fails.
    let _ = setsockopt(&connection, sockopt::TcpUserTimeout, &ms);
}

/// Ends both directions for whoever has this connection; what was sent before still goes out.
pub(crate) fn end(connection: BorrowedFd<'_>) {
    // The client may have gone.
    let _ = nixsock::shutdown(connection.as_raw_fd(), nixsock::Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::socket::is_queue_empty;

    fn last_words<S: Read + Write>(mut client: S, server: impl AsFd + Into<OwnedFd>, hang_up: impl Fn(&S)) {
        client.write_all(&[7; 100_000]).unwrap();
        send_last(server.as_fd(), b"busy").unwrap();
        let mut words = String::new();
        client.read_to_string(&mut words).unwrap();
        assert_eq!(words, "busy");
        while is_readable(server.as_fd()) {
            assert_ne!(discard(server.as_fd(), 1 << 16).1, Rest::End);
        }
        client.write_all(b"x").unwrap();
        hang_up(&client);
        while discard(server.as_fd(), 1 << 16).1 != Rest::End {}
        reset(server.into());
        assert_eq!(client.read(&mut [0]).map_err(|error| error.kind()).unwrap_or(0), 0);
    }

    fn is_readable(socket: BorrowedFd<'_>) -> bool {
        !is_queue_empty(socket)
    }

    #[test]
    fn last_words_arrive_whatever_the_client_has_sent() {
        let (client, server) = UnixStream::pair().unwrap();
        last_words(client, server, |client| client.shutdown(std::net::Shutdown::Write).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        last_words(client, server, |client| client.shutdown(std::net::Shutdown::Write).unwrap());
    }

    #[test]
    fn only_a_connection_is_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_connection(listener.as_fd()));
        assert!(is_connection(UnixStream::pair().unwrap().0.as_fd()));
        assert!(!is_connection(std::os::unix::net::UnixDatagram::pair().unwrap().0.as_fd()));
        assert!(!is_connection(std::fs::File::open("/dev/null").unwrap().as_fd()));
    }
}
