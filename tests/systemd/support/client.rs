//! Clients. The thread of a test is in the network of its container, so they are ordinary ones.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::{PATIENCE, text};

/// A connection on which nothing blocks for ever.
#[track_caller]
pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap_or_else(|error| panic!("connect: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a line and waits until the same has come back: then a connection process is behind it.
#[track_caller]
pub(crate) fn echo(stream: &mut TcpStream) {
    try_echo(stream).unwrap();
}

/// The same, for connections that may be hurt.
pub(crate) fn try_echo(stream: &mut TcpStream) -> io::Result<()> {
    const LINE: &[u8] = b"sixteen bytes ok";
    stream.write_all(LINE)?;
    let mut answer = [0; LINE.len()];
    stream.read_exact(&mut answer)?;
    if answer == LINE { Ok(()) } else { Err(io::Error::other("another answer")) }
}

/// Connections that are served.
#[track_caller]
pub(crate) fn served(port: u16, number: usize) -> Vec<TcpStream> {
    let one = |_| {
        let mut stream = connect(port);
        echo(&mut stream);
        stream
    };
    (0..number).map(one).collect()
}

/// All that a service says to somebody who says nothing.
#[track_caller]
pub(crate) fn listen_to(port: u16) -> String {
    let mut stream = connect(port);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    text(&answer)
}

/// Whether nothing comes for this long: the service has neither answered nor closed.
pub(crate) fn silent_for(stream: &mut TcpStream, time: Duration) -> bool {
    stream.set_read_timeout(Some(time)).unwrap();
    let result = stream.read(&mut [0]);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether the next thing that comes is the end, by a close or a reset.
pub(crate) fn closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}
