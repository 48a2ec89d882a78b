//! Under load: reloads, killed workers and a stop, and no client that notices more than it must.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::support::client::{connect_from, try_echo};
use crate::support::{Preforkd, Running, address, eventually, proc, root, say};

pub(crate) const CLIENTS: usize = 64;
const RELOADS: usize = 20;
const KILLS: usize = 20;

/// How often a connection ended in which way.
pub(crate) type Counts = BTreeMap<String, usize>;

/// 64 clients that connect, echo and close without pause, until they are refused.
pub(crate) struct Load {
    clients: Vec<JoinHandle<Counts>>,
    /// Whether `TERM` was sent, after which a client may be refused.
    pub(crate) stopping: Arc<AtomicBool>,
}

impl Load {
    pub(crate) fn on(service: SocketAddr) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let start = |_| {
            let stopping = Arc::clone(&stopping);
            std::thread::spawn(move || client(service, &stopping))
        };
        let clients = (0..CLIENTS).map(start).collect();
        Self { clients, stopping }
    }

    pub(crate) fn counts(self) -> Counts {
        let mut sum = Counts::new();
        for client in self.clients {
            for (outcome, number) in client.join().unwrap() {
                *sum.entry(outcome).or_default() += number;
            }
        }
        sum
    }
}

fn client(service: SocketAddr, stopping: &AtomicBool) -> Counts {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut counts = Counts::new();
    loop {
        let source = address::source(NUMBER.fetch_add(1, Ordering::Relaxed) / 16);
        let outcome = match one_connection(source, service) {
            Ok(()) => "ok".to_owned(),
            Err((step, kind)) => format!("{step}: {kind:?}"),
        };
        let refused = outcome == "connect: ConnectionRefused";
        // What began before TERM may meet what comes after it.
        let after = stopping.load(Ordering::SeqCst);
        let outcome = if after && outcome != "ok" { format!("{outcome} after TERM") } else { outcome };
        *counts.entry(outcome).or_default() += 1;
        if refused {
            return counts;
        }
    }
}

fn one_connection(source: std::net::Ipv4Addr, service: SocketAddr) -> Result<(), (&'static str, ErrorKind)> {
    let mut stream = connect_from(source, service).map_err(|error| ("connect", error.kind()))?;
    try_echo(&mut stream, b"sixteen bytes ok").map_err(|error| ("echo", error.kind()))?;
    stream.shutdown(Shutdown::Write).map_err(|error| ("shutdown", error.kind()))?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(("end", ErrorKind::InvalidData)),
        Err(error) => Err(("end", error.kind())),
    }
}

fn config(address: SocketAddr, generation: usize) -> String {
    format!(
        "[service.echo]\nlisten = [\"{address}\"]\nhandler = \"echo\"\nworkers = 2\n\
         max_connections = {}\n",
        500 + generation
    )
}

/// Kills a worker, and waits until it is replaced.
fn kill_one(server: &Running, number: usize) {
    let workers = server.workers();
    server.replace_worker(workers[number % workers.len()]);
}

#[test]
fn nobody_is_refused_or_reset_by_reloads_killed_workers_and_a_stop() {
    let address = address::fresh();
    under_load(Preforkd::run(&config(address, 0)), address);
}

#[test]
fn nobody_is_refused_or_reset_either_without_privileges() {
    if root("to be somebody else") {
        let address = address::fresh();
        under_load(Preforkd::run(&config(address, 0)).by_user(61_103, 10_000), address);
    }
}

fn under_load(server: Preforkd, address: SocketAddr) {
    let server = server.start();
    let watch = server.watch_zombies();
    let load = Load::on(address);

    for number in 1..=RELOADS {
        server.configure(&config(address, number));
        server.reload_ok();
    }
    let completed = server.count("completed");
    for number in 0..KILLS {
        kill_one(&server, number);
    }
    eventually("the load goes on", || server.count("completed") > completed);
    load.stopping.store(true, Ordering::SeqCst);
    server.signal(Signal::SIGTERM);
    server.left_nothing(&[address]);
    assert!(proc::listeners(address).is_empty());
    drop(watch);

    let counts = load.counts();
    say(&format!("{CLIENTS} clients, {RELOADS} reloads, {KILLS} killed workers, one TERM: {counts:?}"));
    assert_eq!(counts["connect: ConnectionRefused after TERM"], CLIENTS, "{counts:?}");
    // A worker that is killed between accept and fork takes the one connection with it that it holds.
    let hurt: usize =
        ["echo: UnexpectedEof", "echo: ConnectionReset"].iter().filter_map(|kind| counts.get(*kind)).sum();
    assert!(hurt <= KILLS, "{hurt} connections were hurt by {KILLS} killed workers: {counts:?}");
    let expected =
        ["ok", "connect: ConnectionRefused after TERM", "echo: UnexpectedEof", "echo: ConnectionReset"];
    let others: Vec<_> = counts.keys().filter(|outcome| !expected.contains(&outcome.as_str())).collect();
    assert!(others.is_empty(), "{counts:?}");
}
