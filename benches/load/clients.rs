//! The clients.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

const MESSAGE: &[u8; 16] = b"0123456789abcdef";

/// A connection that takes longer is an error, so that a service that hangs does not hang this.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What was measured.
pub(crate) struct Figures {
    time: Duration,
    latencies: Vec<Duration>,
    errors: BTreeMap<String, u64>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}", self.latencies.len() as f64 / self.time.as_secs_f64())?;
        for percentile in [50.0, 99.0, 99.9] {
            let index = (self.latencies.len() as f64 * percentile / 100.0) as usize;
            let latency = self.latencies.get(index.min(self.latencies.len().saturating_sub(1)));
            write!(f, "\t{}", latency.map_or(0, Duration::as_micros))?;
        }
        let errors: Vec<_> = self.errors.iter().map(|(kind, number)| format!("{kind}:{number}")).collect();
        write!(f, "\t{}", if errors.is_empty() { "-".to_owned() } else { errors.join(",") })
    }
}

/// One connection, from connect to close.
struct Client {
    stream: TcpStream,
    start: Instant,
    step: Step,
}

enum Step {
    Connecting,
    Echoing(usize),
    Ending,
}

/// Runs so many clients for so long; each begins a new connection when its last has ended.
pub(crate) fn run(service: SocketAddrV4, number: usize, time: Duration) -> Figures {
    wait_for(service);
    let poller = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut figures = Figures { time, latencies: Vec::new(), errors: BTreeMap::new() };
    let mut sources = sources();
    let mut begin = |figures: &mut Figures, slot: usize| loop {
        match Client::begin(&poller, slot, sources.next().unwrap(), service) {
            Ok(client) => return client,
            Err(error) => figures.error("connect", &error),
        }
    };
    let mut clients: Vec<Client> = (0..number).map(|slot| begin(&mut figures, slot)).collect();
    let start = Instant::now();
    let mut events = vec![EpollEvent::empty(); number];
    let mut swept = start;
    while start.elapsed() < time {
        let ready = poller.wait(&mut events, EpollTimeout::from(100_u8)).unwrap_or(0);
        for event in &events[..ready] {
            let slot = usize::try_from(event.data()).unwrap();
            match clients[slot].go_on() {
                Ok(false) => continue,
                Ok(true) => figures.latencies.push(clients[slot].start.elapsed()),
                Err(error) => figures.error(clients[slot].step.name(), &error),
            }
            clients[slot] = begin(&mut figures, slot);
        }
        if swept.elapsed() > Duration::from_secs(1) {
            swept = Instant::now();
            for (slot, client) in clients.iter_mut().enumerate() {
                if client.start.elapsed() > TIMEOUT {
                    figures.error(client.step.name(), &io::ErrorKind::TimedOut.into());
                    *client = begin(&mut figures, slot);
                }
            }
        }
    }
    figures.time = start.elapsed();
    figures.latencies.sort_unstable();
    figures
}

impl Figures {
    fn error(&mut self, step: &str, error: &io::Error) {
        let kind = error
            .raw_os_error()
            .map_or(format!("{:?}", error.kind()), |code| format!("{:?}", Errno::from_raw(code)));
        *self.errors.entry(format!("{step}-{kind}")).or_default() += 1;
    }
}

impl Client {
    fn begin(poller: &Epoll, slot: usize, source: Ipv4Addr, service: SocketAddrV4) -> io::Result<Self> {
        let start = Instant::now();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        // The port is chosen by connect, for source and destination together; ip(7).
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(service)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from(fd);
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        poller.add(&stream, EpollEvent::new(events, slot as u64))?;
        Ok(Client { stream, start, step: Step::Connecting })
    }

    /// As far as it goes without waiting; true when the connection has ended well.
    fn go_on(&mut self) -> io::Result<bool> {
        loop {
            match self.step() {
                Ok(done) if done => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    fn step(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64];
        match self.step {
            Step::Connecting => {
                if let Some(error) = self.stream.take_error()? {
                    return Err(error);
                }
                if self.stream.write(MESSAGE)? != MESSAGE.len() {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.step = Step::Echoing(0);
            }
            Step::Echoing(before) => match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got if before + got == MESSAGE.len() => {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.step = Step::Ending;
                }
                got => self.step = Step::Echoing(before + got),
            },
            Step::Ending => match self.stream.read(&mut buffer)? {
                0 => return Ok(true),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            },
        }
        Ok(false)
    }
}

impl Step {
    fn name(&self) -> &'static str {
        match self {
            Step::Connecting => "connect",
            Step::Echoing(_) => "echo",
            Step::Ending => "end",
        }
    }
}

/// Source addresses in turn, so many that ports in TIME_WAIT never run out.
fn sources() -> impl Iterator<Item = Ipv4Addr> {
    (0_u32..)
        .map(|number| number.wrapping_add(std::process::id() * 64) % 60_000 + 256)
        .map(|number| Ipv4Addr::from(0x7f50_0000 + number))
}

/// Waits until the service is there.
fn wait_for(service: SocketAddrV4) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = TcpStream::connect(service) {
        assert!(Instant::now() < deadline, "{service}: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
