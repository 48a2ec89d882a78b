//! Clients.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, sockopt};

use super::{PATIENCE, text};

/// A connection over TCP on which nothing blocks for ever.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("connect {address}: {error}"));
    patient(stream)
}

/// A connection from this address; with many of them ports do not run out.
pub(crate) fn connect_from(source: Ipv4Addr, address: SocketAddr) -> io::Result<TcpStream> {
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Without it the bind takes a port that no other client may use, whatever it connects to; ip(7).
    socket::setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(source, 0)))?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(patient(TcpStream::from(fd)))
}

/// A connection over a Unix socket on which nothing blocks for ever.
pub(crate) fn connect_unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("connect {path:?}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Whether connecting is refused.
pub(crate) fn refused(address: SocketAddr) -> bool {
    matches!(TcpStream::connect(address), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Connects, sends this, says that there is no more, and returns all of the answer.
pub(crate) fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    finish(connect(address), request)
}

/// The same on a connection that is there already.
pub(crate) fn finish(mut stream: TcpStream, request: &[u8]) -> Vec<u8> {
    stream.write_all(request).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// The same over a Unix socket.
pub(crate) fn exchange_unix(path: &Path, request: &[u8]) -> Vec<u8> {
    let mut stream = connect_unix(path);
    stream.write_all(request).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// All that a service says without being asked.
pub(crate) fn listen_to(address: SocketAddr) -> String {
    text(&exchange(address, b""))
}

/// Sends this and waits until the same has come back: then a connection process is behind it.
pub(crate) fn echo(stream: &mut TcpStream, message: &[u8]) {
    try_echo(stream, message).unwrap();
}

/// The same, for connections that may be hurt.
pub(crate) fn try_echo(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer)?;
    if answer == message { Ok(()) } else { Err(io::Error::other("another answer")) }
}

/// Whether nothing comes for a while: the service has neither answered nor closed.
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

/// Goes away with a reset.
pub(crate) fn reset(stream: TcpStream) {
    // A linger time of 0 makes close(2) send a reset, socket(7).
    let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    socket::setsockopt(&stream, sockopt::Linger, &now).unwrap();
    drop(stream);
}
