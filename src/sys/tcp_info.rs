//! What the kernel knows of a TCP connection: `TCP_INFO`, tcp(7).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// struct tcp_info of linux/tcp.h as far as it is used here; libc's ends before what Linux 4.19 added.
#[repr(C)]
struct Raw {
    state: u8,
    bytes: [u8; 7],
    before_unacked: [u32; 4],
    unacked: u32,
    sacked: u32,
    before_last_data_sent: [u32; 3],
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
    before_bytes_acked: [u32; 15],
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 2],
    notsent_bytes: u32,
    before_bytes_sent: [u32; 13],
    bytes_sent: u64,
    bytes_retrans: u64,
}

const _: () = assert!(std::mem::offset_of!(Raw, bytes_sent) == 200, "linux/tcp.h");
const _: () = assert!(std::mem::offset_of!(Raw, bytes_acked) == 120, "linux/tcp.h");

/// A connection or a listener, at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpInfo {
    /// Bytes from the client, read or not.
    pub(crate) received: u64,
    /// Bytes to the client that it has acknowledged.
    pub(crate) acked: u64,
    /// Bytes to the client, acknowledged, on their way or still to be sent.
    written: u64,
    /// Whether the client has ended its half.
    pub(crate) end_has_come: bool,
    /// Whether nothing will move any more: both halves have ended, or it was reset.
    pub(crate) is_closed: bool,
    /// Of a listener, how many connections wait in its queue.
    pub(crate) unacked: u32,
    /// Of a listener, how many may.
    pub(crate) sacked: u32,
    /// Milliseconds since data came or was sent last, retransmissions too.
    pub(crate) since_data_ms: u32,
    /// What tells whether the connection is in use, from Linux 4.1 on.
    pub(crate) activity: Option<Activity>,
}

/// Two counters that only a living client moves, and when it was last heard.
///
/// `tcpi_last_data_sent` would not do: it moves with each retransmission, so a client that is gone would look alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Bytes from the client, the end of its stream among them.
    pub(crate) received: u64,
    /// Bytes that the client has acknowledged.
    pub(crate) acked: u64,
    /// Milliseconds since its last data.
    pub(crate) since_data_ms: u32,
    /// Milliseconds since its last acknowledgement of whatever.
    pub(crate) since_ack_ms: u32,
}

impl TcpInfo {
    /// Whether the client has acknowledged all that was written.
    pub(crate) fn has_all(&self) -> bool {
        self.acked >= self.written
    }

    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` and the like if it is no TCP socket.
    pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
        // SAFETY: plain numbers, for which zero is a value.
        let mut raw: Raw = unsafe { std::mem::zeroed() };
        let mut length = size_of::<Raw>() as libc::socklen_t;
        let place = (&raw mut raw).cast();
        // SAFETY: both describe live locals; the kernel writes no more than `length`, and less if it knows less.
        let result = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &mut length)
        };
        check(result)?;
        Ok(TcpInfo::from_raw(&raw, length as usize))
    }

    /// From what the kernel has written elsewhere, in as many bytes as it knows.
    pub(super) fn from_bytes(bytes: &[u8]) -> TcpInfo {
        // SAFETY: plain numbers, for which zero is a value.
        let mut raw: Raw = unsafe { std::mem::zeroed() };
        let length = bytes.len().min(size_of::<Raw>());
        // SAFETY: both are of that length at least, plain bytes, and apart from each other.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut raw).cast(), length) };
        TcpInfo::from_raw(&raw, length)
    }

    /// The first `length` bytes are the kernel's.
    fn from_raw(raw: &Raw, length: usize) -> TcpInfo {
        // The end of the client's stream takes a number in the sequence, which the kernel counts as a byte.
        let end = u64::from(END_HAS_COME.contains(&raw.state));
        let unsent = u64::from(raw.notsent_bytes);
        let is_told = length >= std::mem::offset_of!(Raw, segments);
        let activity = is_told.then_some(Activity {
            received: raw.bytes_received,
            acked: raw.bytes_acked,
            since_data_ms: raw.last_data_recv,
            since_ack_ms: raw.last_ack_recv,
        });
        // The end of our stream is a byte for the kernel, too, when it is acknowledged, and as long as it is not sent.
        let written = raw.bytes_sent.saturating_sub(raw.bytes_retrans).saturating_add(unsent);
        TcpInfo {
            received: raw.bytes_received.saturating_sub(end),
            acked: raw.bytes_acked.min(written),
            written,
            end_has_come: end == 1,
            is_closed: raw.state == CLOSED,
            unacked: raw.unacked,
            sacked: raw.sacked,
            since_data_ms: raw.last_data_recv.min(raw.last_data_sent),
            activity,
        }
    }
}

/// `TCP_CLOSE`.
const CLOSED: u8 = 7;

/// `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK` and `TCP_CLOSING` of net/tcp_states.h. After a reset
/// the state is `TCP_CLOSE` too, and the count may be one too low.
const END_HAS_COME: [u8; 5] = [6, 7, 8, 9, 11];

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn bytes_are_counted_without_the_ends_of_streams() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let counts = |server: &TcpStream| {
            let info = TcpInfo::of(server.as_fd()).unwrap();
            (info.received, info.acked)
        };
        assert_eq!(counts(&server), (0, 0));
        client.write_all(&[0; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[0; 70]).unwrap();
        client.read_exact(&mut [0; 70]).unwrap();
        while !TcpInfo::of(server.as_fd()).unwrap().has_all() {}
        assert_eq!(counts(&server), (1000, 70));
        client.shutdown(Shutdown::Write).unwrap();
        server.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(counts(&server), (1000, 70));
        server.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(counts(&server), (1000, 70));
    }
    #[test]
    fn only_what_the_client_does_moves_a_counter() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let counts = || {
            let activity = TcpInfo::of(server.as_fd()).unwrap().activity.unwrap();
            (activity.received, activity.acked)
        };
        assert_eq!(counts(), (0, 0), "a new connection has no past");
        client.write_all(&[0; 10]).unwrap();
        assert_eq!(counts(), (10, 0), "unread bytes count");
        (&server).write_all(&[0; 20]).unwrap();
        client.read_exact(&mut [0; 20]).unwrap();
        assert_eq!(counts(), (10, 20));
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(counts().0, 11, "the end is a byte");
        server.read_exact(&mut [0; 10]).unwrap();
    }
}
