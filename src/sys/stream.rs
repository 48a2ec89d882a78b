//! What is done to an accepted connection, from outside of whoever serves it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{self as nixsock, setsockopt, sockopt};

/// Closes a TCP connection by a reset, with nothing left behind, whatever was under way. Another is just closed.
pub(crate) fn reset(connection: OwnedFd) {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(&connection, sockopt::Linger, &at_once);
    drop(connection);
}

/// Sends the last words and the end of the stream; does not block, and never raises SIGPIPE. What finds no room is lost.
pub(crate) fn send_last(connection: BorrowedFd<'_>, words: &[u8]) -> io::Result<()> {
    // With MSG_MORE both go in one packet, where there are packets.
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_MORE;
    nixsock::send(connection.as_raw_fd(), words, nixsock::MsgFlags::from_bits_retain(flags))?;
    Ok(nixsock::shutdown(connection.as_raw_fd(), nixsock::Shutdown::Write)?)
}

/// Throws away what has come from the other end, up to a bound, without blocking. True if nothing more will come.
pub(crate) fn discard(connection: BorrowedFd<'_>) -> bool {
    const READS_AT_ONCE: usize = 4;
    let mut scrap = std::mem::MaybeUninit::<[u8; 16 * 1024]>::uninit();
    // For TCP, MSG_TRUNC means that nothing is copied, tcp(7).
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    for _ in 0..READS_AT_ONCE {
        // SAFETY: the kernel writes at most the length of the buffer, and nobody reads it.
        let received = unsafe {
            libc::recv(connection.as_raw_fd(), scrap.as_mut_ptr().cast(), size_of_val(&scrap), flags)
        };
        match received {
            0 => return true,
            1.. => {}
            _ => {
                let kind = io::Error::last_os_error().kind();
                return !matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        }
    }
    false
}

/// Whether `fd` is a TCP socket that is, or was, connected.
pub(crate) fn is_tcp_connection(fd: BorrowedFd<'_>) -> bool {
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
        && has(libc::SO_PROTOCOL, libc::IPPROTO_TCP)
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
    use std::os::fd::AsFd;
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
            assert!(!discard(server.as_fd()));
        }
        client.write_all(b"x").unwrap();
        hang_up(&client);
        while !discard(server.as_fd()) {}
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
    fn only_a_tcp_connection_is_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_tcp_connection(listener.as_fd()));
        assert!(!is_tcp_connection(UnixStream::pair().unwrap().0.as_fd()));
        assert!(!is_tcp_connection(std::fs::File::open("/dev/null").unwrap().as_fd()));
    }
}
