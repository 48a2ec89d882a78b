//! Reading a PROXY header off a connection: not a byte more, and without waiting.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::{Parsed, ProxiedClient, ProxyError, parse};

/// The longest header that is taken. The fields of version 2 can be longer, with certificates in them.
const LONGEST: usize = 4096;

/// Most headers come in one piece and fit in here.
const FIRST_READ: usize = 512;

/// A header of which a part may have come.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Taken off the connection; empty as long as nothing came in pieces.
    bytes: Vec<u8>,
}

/// What a reading has led to.
#[derive(Debug)]
pub(crate) enum Read {
    /// The rest has not come yet.
    More,
    /// All of it has been taken: whose connection it is, and how many bytes that took.
    Client(ProxiedClient, usize),
    /// It is no header.
    Wrong(ProxyError),
    /// The proxy has closed the connection, before it sent anything at all or later.
    Gone {
        /// It had begun to send.
        begun: bool,
    },
}

impl Reading {
    /// Takes what has come. As long as the header is not complete all of it is header; what is looked at first and then
    /// taken is never the client's.
    pub(crate) fn advance(&mut self, connection: BorrowedFd<'_>) -> Read {
        let mut buffer = [0; FIRST_READ];
        loop {
            let seen = match receive(connection, &mut buffer, MsgFlags::MSG_PEEK) {
                Ok(0) => return Read::Gone { begun: !self.bytes.is_empty() },
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(Errno::EAGAIN) => return Read::More,
                Err(_) => return Read::Gone { begun: !self.bytes.is_empty() },
            };
            let before = self.bytes.len();
            let parsed = if before == 0 {
                parse(seen, LONGEST)
            } else {
                self.bytes.extend_from_slice(seen);
                parse(&self.bytes, LONGEST)
            };
            let wanted = match parsed {
                Ok(Parsed::Header(header)) => header.length.saturating_sub(before),
                Ok(Parsed::NeedMore(_)) => seen.len(),
                Err(error) => return Read::Wrong(error),
            };
            if before == 0 && matches!(parsed, Ok(Parsed::NeedMore(_))) {
                self.bytes.extend_from_slice(seen);
            }
            // They are there: nobody else reads.
            let taken =
                buffer.get_mut(..wanted).map_or(Ok(0), |place| receive(connection, place, MsgFlags::empty()));
            match (parsed, taken) {
                (_, Err(_)) => return Read::Gone { begun: true },
                (Ok(Parsed::Header(header)), Ok(_)) => {
                    return Read::Client(header.client, header.length);
                }
                // The end of what was looked at may have been the end of the buffer.
                _ => {}
            }
        }
    }
}

fn receive(connection: BorrowedFd<'_>, buffer: &mut [u8], flags: MsgFlags) -> nix::Result<usize> {
    loop {
        match recv(connection.as_raw_fd(), buffer, flags | MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 80\r\n";

    fn v2(fields: usize) -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
        let fields = if fields == 0 { 0 } else { fields.max(3) };
        header.extend(u16::try_from(12 + fields).unwrap().to_be_bytes());
        header.extend([192, 0, 2, 7, 192, 0, 2, 1, 0x9c, 0x40, 0, 80]);
        if fields > 0 {
            // A field of no meaning.
            header.push(0xee);
            header.extend(u16::try_from(fields - 3).unwrap().to_be_bytes());
            header.extend(vec![7; fields - 3]);
        }
        header
    }

    /// Sends a header and the client's first words in pieces of this size, reading after each.
    fn read_in_pieces(header: &[u8], size: usize) {
        let (mut proxy, mut server) = UnixStream::pair().unwrap();
        let mut reading = Reading::default();
        let all = [header, b"hello"].concat();
        let mut pieces = all.chunks(size);
        let (client, length) = loop {
            proxy.write_all(pieces.next().unwrap()).unwrap();
            match reading.advance(server.as_fd()) {
                Read::More => {}
                Read::Client(client, length) => break (client, length),
                other => panic!("{other:?}"),
            }
        };
        pieces.for_each(|piece| proxy.write_all(piece).unwrap());
        drop(proxy);
        let ProxiedClient::Tcp { source, destination } = client else { panic!("{client:?}") };
        assert_eq!(
            (source.to_string(), destination.to_string()),
            ("192.0.2.7:40000".into(), "192.0.2.1:80".into())
        );
        assert_eq!(length, header.len());
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"hello");
    }

    #[test]
    fn the_header_is_taken_exactly_however_it_is_cut() {
        for header in [V1.to_vec(), v2(0), v2(40), v2(700), v2(4000)] {
            for size in [1, 2, 3, 7, 16, 41, 500, 511, 512, 513, 10_000] {
                read_in_pieces(&header, size);
            }
        }
    }

    #[test]
    fn what_is_no_header_stays_on_the_connection() {
        let (mut proxy, mut server) = UnixStream::pair().unwrap();
        proxy.write_all(b"GET / HTTP/1.0\r\n").unwrap();
        assert!(matches!(Reading::default().advance(server.as_fd()), Read::Wrong(ProxyError::NotProxy)));
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"G");
    }

    #[test]
    fn an_end_before_the_header_is_told_from_one_within() {
        for (text, begun) in [(&b""[..], false), (b"PROXY TC", true)] {
            let (mut proxy, server) = UnixStream::pair().unwrap();
            let mut reading = Reading::default();
            assert!(matches!(reading.advance(server.as_fd()), Read::More));
            proxy.write_all(text).unwrap();
            drop(proxy);
            let Read::Gone { begun: found } = reading.advance(server.as_fd()) else { panic!("not gone") };
            assert_eq!(found, begun);
        }
    }

    #[test]
    fn a_header_that_is_too_long_is_refused_at_once() {
        let (mut proxy, server) = UnixStream::pair().unwrap();
        proxy.write_all(&v2(5000)[..16]).unwrap();
        let read = Reading::default().advance(server.as_fd());
        assert!(matches!(read, Read::Wrong(ProxyError::TooLong { .. })), "{read:?}");
    }
}
