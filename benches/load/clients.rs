//! The clients.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use crate::meter::Meter;
use crate::results::Clients;

/// A line, as Apache's mod_echo waits for its end.
pub(crate) const MESSAGE: &[u8; 16] = b"0123456789abcde\n";

/// A connection that takes longer is an error, so that a service that hangs does not hang this.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// A service that does not echo so soon after its start is none.
const START: Duration = Duration::from_secs(10);

/// Every error, by the step and its kind.
#[derive(Default)]
pub(crate) struct Errors(BTreeMap<String, u64>);

impl Errors {
    pub(crate) fn count(&mut self, step: &str, error: &io::Error) {
        let kind = error
            .raw_os_error()
            .map_or(format!("{:?}", error.kind()), |code| format!("{:?}", Errno::from_raw(code)));
        self.count_as(step, &kind);
    }

    fn count_as(&mut self, step: &str, kind: &str) {
        *self.0.entry(format!("{step}-{kind}")).or_default() += 1;
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors: Vec<_> = self.0.iter().map(|(kind, number)| format!("{kind}:{number}")).collect();
        f.write_str(if errors.is_empty() { "-".to_owned() } else { errors.join(",") }.as_str())
    }
}

/// What was measured.
pub(crate) struct Figures {
    time: Duration,
    latencies: Vec<Duration>,
    cpu: Option<Duration>,
    errors: Errors,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.latencies.len();
        write!(f, "{:.1}", number as f64 / self.time.as_secs_f64())?;
        for percentile in [50.0, 99.0, 99.9] {
            let index = (number as f64 * percentile / 100.0) as usize;
            let latency = self.latencies.get(index.min(number.saturating_sub(1)));
            write!(f, "\t{}", latency.map_or("-".to_owned(), |latency| latency.as_micros().to_string()))?;
        }
        let cpu = self.cpu.filter(|_| number > 0).map(|cpu| cpu.as_secs_f64() * 1e6 / number as f64);
        write!(f, "\t{}", cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.1}")))?;
        write!(f, "\t{}", self.errors)
    }
}

/// One connection, from connect to close.
struct Client {
    stream: TcpStream,
    start: Instant,
    step: Step,
    /// It closes once it has its answer.
    leaves: bool,
}

enum Step {
    Connecting,
    Echoing(usize),
    Ending,
}

/// Runs so many clients for so long; each begins a new connection when its last has ended.
pub(crate) fn run(service: SocketAddrV4, clients: Clients, time: Duration, meter: &Meter) -> Figures {
    let Clients { leave, number } = clients;
    let number = number as usize;
    let poller = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut figures = Figures { time, latencies: Vec::new(), cpu: None, errors: Errors::default() };
    let mut sources = sources();
    let mut begin = |errors: &mut Errors, slot: usize| {
        Client::begin(&poller, slot, sources.next().unwrap(), service, leave)
            .map_err(|error| errors.count("connect", &error))
            .ok()
    };
    let mut clients: Vec<Option<Client>> = (0..number).map(|_| None).collect();
    let mut events = vec![EpollEvent::empty(); number];
    let cpu = meter.cpu();
    let start = Instant::now();
    let mut swept = start;
    for (slot, client) in clients.iter_mut().enumerate() {
        *client = begin(&mut figures.errors, slot);
    }
    while start.elapsed() < time {
        let ready = poller.wait(&mut events, EpollTimeout::from(100_u8)).unwrap_or(0);
        for event in &events[..ready] {
            let slot = usize::try_from(event.data()).unwrap();
            let Some(client) = &mut clients[slot] else { continue };
            match client.go_on() {
                Ok(false) => continue,
                Ok(true) => figures.latencies.push(client.start.elapsed()),
                Err(error) => figures.errors.count(client.step.name(), &error),
            }
            clients[slot] = begin(&mut figures.errors, slot);
        }
        // Who could not begin tries again a little later: a server that is gone must not keep this busy.
        if swept.elapsed() > Duration::from_millis(100) {
            swept = Instant::now();
            for (slot, client) in clients.iter_mut().enumerate() {
                let late = client.as_ref().is_some_and(|client| client.start.elapsed() > TIMEOUT);
                if late {
                    let step = client.as_ref().map_or("connect", |client| client.step.name());
                    figures.errors.count(step, &io::ErrorKind::TimedOut.into());
                }
                if late || client.is_none() {
                    *client = begin(&mut figures.errors, slot);
                }
            }
        }
    }
    figures.time = start.elapsed();
    figures.cpu = cpu.zip(meter.cpu()).map(|(before, after)| after.saturating_sub(before));
    // Who has waited for long when time is up counts as well.
    let long = (time * 9 / 10).min(Duration::from_secs(1));
    for client in clients.iter().flatten().filter(|client| client.start.elapsed() > long) {
        figures.errors.count_as(client.step.name(), "unanswered");
    }
    figures.latencies.sort_unstable();
    figures
}

impl Client {
    fn begin(
        poller: &Epoll,
        slot: usize,
        source: Ipv4Addr,
        service: SocketAddrV4,
        leaves: bool,
    ) -> io::Result<Self> {
        let start = Instant::now();
        let stream = TcpStream::from(open(source, service, true)?);
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        poller.add(&stream, EpollEvent::new(events, slot as u64))?;
        Ok(Client { stream, start, step: Step::Connecting, leaves })
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
                // What it leaves behind is closed with it.
                got if before + got == MESSAGE.len() && self.leaves => return Ok(true),
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

/// A socket that is connected, or connecting.
pub(crate) fn open(source: Ipv4Addr, service: SocketAddrV4, nonblocking: bool) -> io::Result<OwnedFd> {
    let mut flags = SockFlag::SOCK_CLOEXEC;
    flags.set(SockFlag::SOCK_NONBLOCK, nonblocking);
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    // The port is chosen by connect, for source and destination together; ip(7).
    setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    match connect(fd.as_raw_fd(), &SockaddrIn::from(service)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

/// Source addresses in turn, so many that ports in TIME_WAIT never run out.
pub(crate) fn sources() -> impl Iterator<Item = Ipv4Addr> {
    (0_u32..)
        .map(|number| number.wrapping_add(std::process::id() * 64) % 60_000 + 256)
        .map(|number| Ipv4Addr::from(0x7f50_0000 + number))
}

/// Waits until the service echoes; says why if that is in vain.
pub(crate) fn wait_for(service: SocketAddrV4, pid: &str) -> Result<(), String> {
    let deadline = Instant::now() + START;
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return Err("it ended at once".to_owned());
        }
        let echoed = TcpStream::connect(service).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(MESSAGE)?;
            let mut answer = [0; MESSAGE.len()];
            stream.read_exact(&mut answer)?;
            if &answer == MESSAGE { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
        });
        match echoed {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(format!("it does not echo: {error}")),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
