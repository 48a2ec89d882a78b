//! Clients that connect without pause.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};

use super::client::try_echo;
use super::{PATIENCE, eventually};

/// How many there are.
pub(crate) const CLIENTS: usize = 32;

/// Clients that connect, echo and close until they are told to stop.
pub(crate) struct Load {
    clients: Vec<JoinHandle<Vec<(Instant, String)>>>,
    stopping: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

/// What became of their connections.
pub(crate) struct Result {
    /// How many were served from beginning to end.
    pub(crate) served: usize,
    /// The others: when it happened, and what.
    pub(crate) hurt: Vec<(Instant, String)>,
}

impl Load {
    /// Starts them against a port.
    pub(crate) fn on(port: u16) -> Self {
        let (stopping, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let start = |_| {
            let (stopping, served) = (Arc::clone(&stopping), Arc::clone(&served));
            // A thread is in the network of the one that starts it, network_namespaces(7).
            std::thread::spawn(move || client(port, &stopping, &served))
        };
        let clients = (0..CLIENTS).map(start).collect();
        let load = Self { clients, stopping, served };
        load.wait_progress();
        load
    }

    /// Waits until each client on average has been served a few times more.
    #[track_caller]
    pub(crate) fn wait_progress(&self) {
        let before = self.served.load(Ordering::Relaxed);
        eventually("clients are served", || self.served.load(Ordering::Relaxed) >= before + 4 * CLIENTS);
    }

    /// Ends them.
    pub(crate) fn stop(self) -> Result {
        self.stopping.store(true, Ordering::Relaxed);
        let hurt = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        Result { served: self.served.load(Ordering::Relaxed), hurt }
    }
}

impl Result {
    /// How many were refused.
    pub(crate) fn refused(&self) -> usize {
        self.hurt.iter().filter(|(_, what)| what.contains("ConnectionRefused")).count()
    }

    /// How often what happened.
    pub(crate) fn counts(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = [("connect: ConnectionRefused", 0)].into();
        for (_, what) in &self.hurt {
            *counts.entry(what).or_default() += 1;
        }
        let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        format!("{} served, {}", self.served, counts.join(", "))
    }
}

fn client(port: u16, stopping: &AtomicBool, served: &AtomicUsize) -> Vec<(Instant, String)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut hurt = Vec::new();
    while !stopping.load(Ordering::Relaxed) {
        // So many addresses that ports never run out.
        let [_, _, high, low] = (NUMBER.fetch_add(1, Ordering::Relaxed) / 16 % 60_000 + 1).to_be_bytes();
        match one_connection(Ipv4Addr::new(127, 80, high, low), port) {
            Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
            Err((step, kind)) => hurt.push((Instant::now(), format!("{step}: {kind:?}"))),
        }
        if hurt.len() > 10_000 {
            break;
        }
    }
    hurt
}

fn one_connection(source: Ipv4Addr, port: u16) -> std::result::Result<(), (&'static str, ErrorKind)> {
    let mut stream = connect_from(source, port).map_err(|error| ("connect", error.kind()))?;
    try_echo(&mut stream).map_err(|error| ("echo", error.kind()))?;
    stream.shutdown(Shutdown::Write).map_err(|error| ("shutdown", error.kind()))?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(("end", ErrorKind::InvalidData)),
        Err(error) => Err(("end", error.kind())),
    }
}

fn connect_from(source: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Without it the bind takes a port that no other client may use, whatever it connects to; ip(7).
    socket::setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    socket::connect(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
