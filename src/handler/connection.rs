//! A connection, as its handler has it.

use std::fmt::{self, Write as _};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixSocketAddr, UnixStream};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use crate::client::{Client, ConnectionId, Traffic, Zoned};
use crate::pace::LINGER_TIME;
use crate::sys::fd::{self, PollFlags};
use crate::sys::socket::{self, Peer};
use crate::sys::stream;
use crate::sys::time::Monotonic;

/// A client's connection, over TCP or a Unix socket: what is read comes from the client, what is written goes to it.
///
/// It is read and written as it is, without a buffer; [`write!`] and [`writeln!`] send what they format in one piece, if
/// that is no longer than 512 bytes. Calls that a signal interrupts are repeated, and a client that is gone is an error, never
/// a `SIGPIPE`. What is moved is counted, for the record and for `idle_timeout`.
///
/// As of a [`TcpStream`], a shared reference is enough to read and write, so that there can be a buffer in front of it:
///
/// ```no_run
/// # use preforkd::{Connection, Server};
/// use std::io::{BufRead, BufReader, Write};
///
/// fn count_lines(client: &mut Connection) -> std::io::Result<()> {
///     let client = &*client;
///     for (number, line) in BufReader::new(client).lines().enumerate() {
///         writeln!(&mut &*client, "{}: {}", number + 1, line?)?;
///     }
///     Ok(())
/// }
///
/// Server::new("lines").handler("lines", count_lines).main();
/// ```
///
/// It can be used in the process of the connection only, and is there only while [`serve`](crate::Handler::serve) runs.
pub struct ClientConnection<'a> {
    socket: BorrowedFd<'a>,
    progress: &'a Progress,
    id: ConnectionId,
    client: &'a Client,
    until: Monotonic,
}

/// What was called. It is shown as `192.0.2.1:7007`, `[2001:db8::1]:7007`, a path, `@name` in the abstract namespace, or `unnamed`.
///
/// ```
/// use preforkd::LocalAddress;
/// use std::os::unix::net::SocketAddr;
///
/// let called = LocalAddress::Ip("[2001:db8::1]:7007".parse()?);
/// assert_eq!(called.to_string(), "[2001:db8::1]:7007");
/// let called = LocalAddress::Unix(SocketAddr::from_pathname("/run/guestbook.sock")?);
/// assert_eq!(called.to_string(), "/run/guestbook.sock");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LocalAddress {
    /// An address of this machine.
    Ip(SocketAddr),
    /// A Unix socket, by its path or its name in the abstract namespace.
    Unix(UnixSocketAddr),
}

/// The connection again, in std's types: see [`Connection::stream`](ClientConnection::stream).
///
/// ```
/// use preforkd::Stream;
/// use std::io::{self, Read};
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
///
/// fn be_patient(stream: &Stream, time: Option<Duration>) -> io::Result<()> {
///     match stream {
///         Stream::Tcp(stream) => stream.set_read_timeout(time),
///         Stream::Unix(stream) => stream.set_read_timeout(time),
///         _ => Ok(()),
///     }
/// }
///
/// let (mut here, _there) = UnixStream::pair()?;
/// be_patient(&Stream::Unix(here.try_clone()?), Some(Duration::from_millis(5)))?;
/// assert_eq!(here.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
/// # Ok::<(), io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Of a Unix socket.
    Unix(UnixStream),
}

/// In which directions a connection is ready, or is waited for: see [`Connection::wait`](ClientConnection::wait).
///
/// ```
/// use preforkd::Readiness;
///
/// let ready = Readiness { read: true, write: false };
/// assert_eq!(ready, Readiness::READ);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// A read would not block: there are bytes, the end of the stream, or an error.
    pub read: bool,
    /// A write would not block: there is room, or an error.
    pub write: bool,
}

impl Readiness {
    /// To read.
    ///
    /// ```no_run
    /// # use preforkd::{Connection, Readiness};
    /// # fn serve(client: &mut Connection) -> std::io::Result<()> {
    /// // Whether the client says something within a second, or hangs up.
    /// let ready = client.wait(Readiness::READ, Some(std::time::Duration::from_secs(1)))?.read;
    /// # Ok(())
    /// # }
    /// ```
    pub const READ: Readiness = Readiness { read: true, write: false };
    /// To write.
    ///
    /// ```no_run
    /// # use preforkd::{Connection, Readiness};
    /// # fn serve(client: &mut Connection) -> std::io::Result<()> {
    /// // Whether the client takes what it is sent, now.
    /// let keeps_up = client.wait(Readiness::WRITE, Some(std::time::Duration::ZERO))?.write;
    /// # Ok(())
    /// # }
    /// ```
    pub const WRITE: Readiness = Readiness { read: false, write: true };
    /// Either.
    ///
    /// ```no_run
    /// # use preforkd::{Connection, Readiness};
    /// # fn serve(client: &mut Connection) -> std::io::Result<()> {
    /// let ready = client.wait(Readiness::EITHER, None)?;
    /// assert!(ready.read || ready.write);
    /// # Ok(())
    /// # }
    /// ```
    pub const EITHER: Readiness = Readiness { read: true, write: true };
}

impl<'a> ClientConnection<'a> {
    /// The connection of a process that serves it.
    pub(crate) fn new(
        socket: BorrowedFd<'a>,
        progress: &'a Progress,
        id: ConnectionId,
        client: &'a Client,
        until: Monotonic,
    ) -> Self {
        ClientConnection { socket, progress, id, client, until }
    }
}

impl ClientConnection<'_> {
    /// Who is at the other end: behind a proxy that `proxy_protocol_from` believes, whom that has named.
    ///
    /// No system call.
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::{Connection, Peer};
    /// use std::io::{self, Write};
    ///
    /// fn greet(client: &mut Connection) -> io::Result<()> {
    ///     match client.peer() {
    ///         Peer::Ip(address) => writeln!(client, "hello {}", address.ip()),
    ///         Peer::Unix(Some(who)) => writeln!(client, "hello user {}", who.uid),
    ///         Peer::Unix(None) => Ok(()),
    ///     }
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(greet, "", |answer| assert_eq!(answer, "hello 127.0.0.1\n")) }
    /// ```
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.client.peer
    }

    /// What the client has called: behind a proxy that is believed, what that has named.
    ///
    /// # Errors
    ///
    /// What getsockname(2) says; for a Unix socket, that there is no descriptor left.
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::{Connection, LocalAddress};
    /// use std::io::{self, Write};
    ///
    /// fn guide(client: &mut Connection) -> io::Result<()> {
    ///     match client.local()? {
    ///         LocalAddress::Ip(address) if address.port() == 7 => writeln!(client, "this is the old port"),
    ///         called => writeln!(client, "this is {called}"),
    ///     }
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(guide, "", |answer| assert!(answer.starts_with("this is 127.0.0.1:"), "{answer}")) }
    /// ```
    pub fn local(&self) -> io::Result<LocalAddress> {
        if let Some(called) = self.client.header.and_then(|header| header.called) {
            return Ok(LocalAddress::Ip(called));
        }
        match socket::local_address(self.socket)? {
            Some(address) => Ok(LocalAddress::Ip(address)),
            None => Ok(LocalAddress::Unix(UnixStream::from(self.socket.try_clone_to_owned()?).local_addr()?)),
        }
    }

    /// What the connection is called in the log, `PREFORKD_CONNECTION`. No other has ever had it. No system call.
    ///
    /// ```no_run
    /// use preforkd::Connection;
    /// use std::fs::File;
    /// use std::io;
    ///
    /// /// With `sandbox = { write = ["/srv/letters"] }`.
    /// fn keep(client: &mut Connection) -> io::Result<()> {
    ///     let mut file = File::create_new(format!("/srv/letters/{}", client.id()))?;
    ///     io::copy(client, &mut file).map(drop)
    /// }
    /// ```
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// When `max_lifetime` will end it; `None` without one. (`first_byte_timeout` and `idle_timeout` depend on what is moved.)
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::Connection;
    /// use std::io::{self, Write};
    /// use std::time::Instant;
    ///
    /// fn warn(client: &mut Connection) -> io::Result<()> {
    ///     let Some(deadline) = client.deadline() else { return Ok(()) };
    ///     let left = deadline.saturating_duration_since(Instant::now());
    ///     writeln!(client, "you have {} s", left.as_secs())
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(warn, "", |answer| assert_eq!(answer, "")) }
    /// ```
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let left = (self.until != Monotonic::NEVER).then(|| self.until - Monotonic::now())?;
        Instant::now().checked_add(left)
    }

    /// Reads what has come, without waiting, recv(2) with `MSG_DONTWAIT`. How many bytes; 0 are the end of what the client says.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing has; else as [`Read::read`].
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::Connection;
    /// use std::io;
    ///
    /// /// Whether the client wants no more of it: it has sent something, or hung up.
    /// fn is_enough(client: &Connection) -> io::Result<bool> {
    ///     match client.read_now(&mut [0; 64]) {
    ///         Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
    ///         read => read.map(|_| true),
    ///     }
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(|client: &mut Connection| { use std::io::Write; client.wait(preforkd::Readiness::READ, None)?; let enough = is_enough(client)?; writeln!(client, "{enough}") }, "x", |answer| assert_eq!(answer, "true\n")) }
    /// ```
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.count_received(buffer.len(), stream::receive_now(self.socket, buffer))
    }

    /// Writes what there is room for, without waiting, send(2) with `MSG_DONTWAIT`. How many bytes, which may be fewer than there are.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is none; else as [`Write::write`].
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::Connection;
    /// use std::io;
    ///
    /// /// What the client has no room for stays here.
    /// fn send(client: &Connection, queue: &mut Vec<u8>) -> io::Result<()> {
    ///     match client.write_now(queue) {
    ///         Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
    ///         sent => drop(queue.drain(..sent?)),
    ///     }
    ///     Ok(())
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(|client: &mut Connection| { let mut queue = b"hello".to_vec(); send(client, &mut queue)?; assert!(queue.is_empty()); Ok(()) }, "", |answer| assert_eq!(answer, "hello")) }
    /// ```
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        self.count_sent(stream::send_now(self.socket, bytes))
    }

    /// Waits until the connection can be read or written, whichever is `wanted` and comes first, for no longer than this; with
    /// `None` as long as it takes. Neither is true if nothing came.
    ///
    /// # Errors
    ///
    /// What poll(2) says.
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::{Connection, Readiness};
    /// use std::io::{self, Write};
    /// use std::time::Duration;
    ///
    /// fn greet_the_silent(client: &mut Connection) -> io::Result<()> {
    ///     let ready = client.wait(Readiness::READ, Some(Duration::from_secs(3)))?;
    ///     if ready.read { Ok(()) } else { writeln!(client, "say something") }
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(greet_the_silent, "x", |answer| assert_eq!(answer, "")) }
    /// ```
    pub fn wait(&self, wanted: Readiness, timeout: Option<Duration>) -> io::Result<Readiness> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, wanted.read);
        events.set(PollFlags::POLLOUT, wanted.write);
        let ready = fd::poll(self.socket, events, timeout)?;
        // The next call says which error, and that somebody has hung up.
        let failed = ready.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL);
        Ok(Readiness {
            read: wanted.read && (failed || ready.contains(PollFlags::POLLIN)),
            write: wanted.write && (failed || ready.contains(PollFlags::POLLOUT)),
        })
    }

    /// Says that nothing more will be written, shutdown(2) with `SHUT_WR`; the client finds the end of the stream. It can still
    /// be read.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the client is gone.
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::Connection;
    /// use std::io::{self, Read, Write};
    ///
    /// /// A client that reads to the end has the question then, and answers.
    /// fn ask(client: &mut Connection) -> io::Result<String> {
    ///     client.write_all(b"What is your name?")?;
    ///     client.end_writing()?;
    ///     io::read_to_string(client.take(80))
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(|client: &mut Connection| { assert_eq!(ask(client)?, "Ada"); Ok(()) }, "Ada", |answer| assert_eq!(answer, "What is your name?")) }
    /// ```
    pub fn end_writing(&self) -> io::Result<()> {
        stream::end_sending(self.socket)
    }

    /// [Ends writing](ClientConnection::end_writing), and throws away what the client sends until it hangs up, for 2 s at most.
    ///
    /// It is not needed that an answer arrives: a connection is closed only when its client has all. It gives a client that is still
    /// sending the time to be done with it.
    ///
    /// A close with input unread, or input that comes after it, makes the kernel answer with RST, and RST may overtake
    /// the answer that is still on its way (RFC 1122, 4.2.2.13; RFC 2525, 2.17).
    ///
    /// # Errors
    ///
    /// What shutdown(2), poll(2) and recv(2) say.
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::Connection;
    /// use std::io::{self, Read, Write};
    ///
    /// fn take_a_little(client: &mut Connection) -> io::Result<()> {
    ///     let mut letter = Vec::new();
    ///     if client.take(1000).read_to_end(&mut letter)? == 1000 {
    ///         writeln!(client, "too long")?;
    ///         return client.finish();
    ///     }
    ///     writeln!(client, "{} bytes", letter.len())
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(take_a_little, &"x".repeat(5000), |answer| assert_eq!(answer, "too long\n")) }
    /// ```
    pub fn finish(&self) -> io::Result<()> {
        self.end_writing()?;
        let deadline = Monotonic::now() + LINGER_TIME;
        let mut scrap = [0; 1024];
        loop {
            let left = deadline - Monotonic::now();
            if left.is_zero() || !self.wait(Readiness::READ, Some(left))?.read {
                return Ok(());
            }
            match self.read_now(&mut scrap) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // poll(2) may be wrong.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The same connection in std's type, for a library that wants one; both can be used, and it is closed when both are gone.
    ///
    /// What is moved through it is not seen here. Over TCP the record then has what the kernel has counted, and `idle_timeout` goes by
    /// that in any case. Of a Unix socket the kernel counts nothing: what is moved so is not in the record, and is idle.
    ///
    /// # Errors
    ///
    /// What fcntl(2), `F_DUPFD`, says: there is no descriptor left.
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// use preforkd::{Connection, Stream};
    /// use std::io;
    ///
    /// fn serve(client: &mut Connection) -> io::Result<()> {
    ///     match client.stream()? {
    ///         Stream::Tcp(stream) => speak_tls(stream),
    ///         _ => Err(io::Error::other("this is for TCP")),
    ///     }
    /// }
    /// # fn speak_tls(_: std::net::TcpStream) -> io::Result<()> { Ok(()) }
    /// # fn main() -> std::process::ExitCode { run_example(serve, "", |answer| assert_eq!(answer, "")) }
    /// ```
    pub fn stream(&self) -> io::Result<Stream> {
        let copy = self.socket.try_clone_to_owned()?;
        self.progress.is_shared.store(true, Relaxed);
        Ok(match socket::local_address(self.socket)? {
            Some(_) => Stream::Tcp(copy.into()),
            None => Stream::Unix(copy.into()),
        })
    }

    fn count_received(&self, room: usize, received: io::Result<usize>) -> io::Result<usize> {
        let length = received?;
        if length == 0 && room > 0 {
            self.progress.is_at_end.store(true, Relaxed);
        }
        self.progress.add(&self.progress.received, length);
        Ok(length)
    }

    fn count_sent(&self, sent: io::Result<usize>) -> io::Result<usize> {
        let length = sent?;
        self.progress.add(&self.progress.sent, length);
        Ok(length)
    }
}

impl Read for &ClientConnection<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.count_received(buffer.len(), stream::receive(self.socket, buffer))
    }
}

impl Write for &ClientConnection<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.count_sent(stream::send(self.socket, bytes))
    }

    /// As std has it, but with its code where the rest of a connection's is: packaging/hot.ld.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write(bytes)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                length => bytes = bytes.get(length..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// In one piece, if it is short: a client would else get a packet for each word.
    fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> io::Result<()> {
        let mut pieces = Pieces { to: self, buffer: [0; PIECE], length: 0, result: Ok(()) };
        let formatted = pieces.write_fmt(text);
        if formatted.is_ok() {
            pieces.flush();
        }
        let Pieces { result, .. } = pieces;
        result?;
        formatted.map_err(|_| io::Error::other("what was to be written could not be formatted"))
    }
}

impl Read for ClientConnection<'_> {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for ClientConnection<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&*self).write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> io::Result<()> {
        (&*self).write_fmt(text)
    }
}

impl AsFd for ClientConnection<'_> {
    /// To be waited for with others. What is moved by it is not counted, see [`Connection::stream`](ClientConnection::stream).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket
    }
}

impl fmt::Debug for ClientConnection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &format_args!("{}", self.id))
            .field("peer", &format_args!("{}", self.peer()))
            .finish_non_exhaustive()
    }
}

/// As long as a formatted text is sent in one piece.
const PIECE: usize = 512;

/// Collects what is formatted.
struct Pieces<'a> {
    to: &'a ClientConnection<'a>,
    buffer: [u8; PIECE],
    length: usize,
    result: io::Result<()>,
}

impl Pieces<'_> {
    fn flush(&mut self) {
        let collected = self.buffer.get(..self.length).unwrap_or_default();
        self.result = (&mut &*self.to).write_all(collected);
        self.length = 0;
    }
}

impl fmt::Write for Pieces<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let room = self.buffer.get_mut(self.length..).unwrap_or_default();
            let length = room.len().min(rest.len());
            let (now, later) = rest.split_at(length);
            room.iter_mut().zip(now).for_each(|(place, byte)| *place = *byte);
            self.length += length;
            rest = later;
            if self.length == PIECE {
                self.flush();
                if self.result.is_err() {
                    return Err(fmt::Error);
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LocalAddress::Ip(address) if address.is_ipv4() => address.fmt(f),
            LocalAddress::Ip(address) => write!(f, "[{}]:{}", Zoned(*address), address.port()),
            LocalAddress::Unix(name) => match (name.as_pathname(), name.as_abstract_name()) {
                (Some(path), _) => path.display().fmt(f),
                (_, Some(name)) => write!(f, "@{}", name.escape_ascii()),
                _ => f.write_str("unnamed"),
            },
        }
    }
}

/// What has been moved so far. A signal handler of this process may read it at any time.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    received: AtomicU64,
    sent: AtomicU64,
    /// When a byte moved last, in nanoseconds; `None` if nobody asks.
    moved: Option<AtomicU64>,
    /// Bytes may move that are not seen here.
    is_shared: AtomicBool,
    /// The end of what the client says has been read.
    is_at_end: AtomicBool,
}

impl Progress {
    /// With the time of the last byte, for a connection that began `at`.
    pub(crate) fn timed(at: Monotonic) -> Self {
        Progress { moved: Some(at.nanos().into()), ..Progress::default() }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { received: self.received.load(Relaxed), sent: self.sent.load(Relaxed) }
    }

    /// When a byte moved last, if that is kept.
    pub(crate) fn moved(&self) -> Option<Monotonic> {
        self.moved.as_ref().map(|moved| Monotonic::from_nanos(moved.load(Relaxed)))
    }

    /// Whether only the kernel knows what has been moved.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared.load(Relaxed)
    }

    /// Whether all has been read that the client will ever have said.
    pub(crate) fn is_at_end(&self) -> bool {
        self.is_at_end.load(Relaxed)
    }

    /// Only one adds, so that two steps are enough; of threads that write at once some may not be counted.
    fn add(&self, count: &AtomicU64, length: usize) {
        count.store(count.load(Relaxed) + length as u64, Relaxed);
        if let Some(moved) = self.moved.as_ref().filter(|_| length > 0) {
            moved.store(Monotonic::now().nanos(), Relaxed);
        }
    }
}
