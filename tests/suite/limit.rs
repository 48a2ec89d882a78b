//! Limits: of the configuration, of processes, of descriptors.

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::client::{closed, connect, echo, exchange, silent_for, try_echo};
use crate::support::{A_WHILE, PATIENCE, Preforkd, Running, by_itself, eventually, limit, proc, root, sure};

/// Clients that connect at once and report when they are served.
struct Crowd {
    served: Receiver<TcpStream>,
}

impl Crowd {
    fn of(number: usize, address: SocketAddr) -> Self {
        let (sender, served) = channel();
        for _ in 0..number {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut stream = connect(address);
                if try_echo(&mut stream, b"x").is_ok() {
                    let _ = sender.send(stream);
                }
            });
        }
        Self { served }
    }

    /// The next that is served; waits for it.
    fn next(&self) -> TcpStream {
        self.served.recv_timeout(PATIENCE).expect("a client that is served")
    }

    /// Nobody else is served for a while.
    #[track_caller]
    fn rest_waits(&self) {
        assert!(self.served.recv_timeout(A_WHILE).is_err(), "one more than the limit was served");
    }
}

#[test]
fn max_connections_is_exact_over_all_workers_and_the_rest_waits() {
    let server =
        Preforkd::serve(&["--workers", "3", "--max-connections", "5"], "127.0.0.1:0", &["echo"]).start();
    let crowd = Crowd::of(9, server.address());
    let mut served: Vec<_> = (0..5).map(|_| crowd.next()).collect();
    crowd.rest_waits();
    assert_eq!((server.count("active"), server.count("max_connections")), (5, 5));
    assert_eq!(server.connections().len(), 5);
    for _ in 0..4 {
        drop(served.remove(0)); // each end lets one in
        served.push(crowd.next());
        crowd.rest_waits();
        assert_eq!(server.connections().len(), 5);
    }
    drop(served);
    eventually("none is left", || server.count("active") == 0);
    assert_eq!(server.count("completed"), 9);
}

#[test]
fn a_limit_of_one_serves_one_after_the_other() {
    let server =
        Preforkd::serve(&["--workers", "2", "--max-connections", "1"], "127.0.0.1:0", &["echo"]).start();
    let crowd = Crowd::of(20, server.address());
    for _ in 0..20 {
        let stream = crowd.next();
        assert_eq!(server.connections().len(), 1);
        drop(stream);
    }
}

#[test]
fn max_connections_is_exact_after_workers_were_killed() {
    let server =
        Preforkd::serve(&["--workers", "2", "--max-connections", "4"], "127.0.0.1:0", &["echo"]).start();
    let crowd = Crowd::of(8, server.address());
    let mut served: Vec<_> = (0..4).map(|_| crowd.next()).collect();
    for worker in server.workers() {
        server.replace_worker(worker);
    }
    crowd.rest_waits();
    assert_eq!(server.count("active"), 4);
    for _ in 0..4 {
        drop(served.remove(0));
        served.push(crowd.next());
        crowd.rest_waits();
    }
    for worker in server.workers() {
        server.replace_worker(worker);
    }
    drop(served);
    eventually("none is left", || server.count("active") == 0);
    // And the whole limit is there again.
    let crowd = Crowd::of(6, server.address());
    let served: Vec<_> = (0..4).map(|_| crowd.next()).collect();
    crowd.rest_waits();
    drop(served);
    crowd.next();
    crowd.next();
}

#[test]
fn a_limit_holds_over_a_reload() {
    let address = crate::support::address::fresh();
    let config = |limit: u32| {
        format!(
            "[service.e]\nlisten = [\"{address}\"]\nhandler = \"echo\"\nworkers = 2\nmax_connections = {limit}\n"
        )
    };
    let server = Preforkd::run(&config(3)).start();
    let crowd = Crowd::of(6, address);
    let mut served: Vec<_> = (0..3).map(|_| crowd.next()).collect();
    server.configure(&config(4));
    server.reload_ok();
    served.push(crowd.next());
    crowd.rest_waits();
    assert_eq!(server.connections().len(), 4);
    served.clear();
    crowd.next();
    crowd.next();
}

#[test]
fn an_address_that_is_given_up_is_free_although_all_slots_are_taken() {
    let (address, other) = (crate::support::address::fresh(), crate::support::address::fresh());
    let service =
        |address| format!("[service.a]\nlisten = [\"{address}\"]\nhandler = \"echo\"\nmax_connections = 2\n");
    let server = Preforkd::run(&service(address)).start();
    let mut served = [connect(address), connect(address)];
    served.iter_mut().for_each(|stream| echo(stream, b"x"));
    server.configure(&service(other));
    server.reload_ok();
    eventually("the old address is closed", || proc::listeners(address).is_empty());
    served.iter_mut().for_each(|stream| echo(stream, b"y"));
}

#[test]
fn an_address_can_be_taken_up_again_while_what_was_queued_on_it_waits() {
    let (address, other) = (crate::support::address::fresh(), crate::support::address::fresh());
    let service = |name, address| {
        format!(
            "[service.{name}]\nlisten = [\"{address}\"]\nhandler = \"echo\"\nmax_connections = 1\nworkers = 2\n"
        )
    };
    let server = Preforkd::run(&service("a", address)).start();
    let mut served = connect(address);
    echo(&mut served, b"x");
    let mut queued = connect(address);
    server.configure(&service("b", other));
    server.reload_ok();
    server.configure(&service("c", address));
    server.reload_ok();
    echo(&mut queued, b"y"); // by who has the address now
    drop(queued);
    assert_eq!(exchange(address, b"new"), b"new");
    echo(&mut served, b"z");
}

#[test]
fn a_limit_holds_for_a_service_that_was_removed_and_comes_back() {
    let (address, other) = (crate::support::address::fresh(), crate::support::address::fresh());
    let service = |name, address| {
        format!("[service.{name}]\nlisten = [\"{address}\"]\nhandler = \"echo\"\nmax_connections = 2\n")
    };
    let (with, without) = (service("a", address) + &service("b", other), service("b", other));
    let server = Preforkd::run(&with).start();
    for killed in [false, true] {
        let crowd = Crowd::of(2, address);
        let served = [crowd.next(), crowd.next()];
        if killed {
            server.workers().into_iter().for_each(|worker| server.replace_worker(worker));
        }
        server.configure(&without);
        server.reload_ok();
        server.configure(&with);
        server.reload_ok();
        assert_eq!(server.count("active"), 2, "they live on");
        let crowd = Crowd::of(1, address);
        crowd.rest_waits();
        drop(served);
        drop(crowd.next());
        eventually("none is left", || server.count("active") == 0);
    }
    assert_eq!((server.count("accepted"), server.count("completed")), (6, 6));
}

/// A preforkd that may have so many processes, because it is a user without rights who has no others.
fn with_processes(uid: u32, processes: u32) -> Running {
    Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).by_user(uid, processes).start()
}

/// Connects clients until one is not served because fork fails; the served ones and that one.
fn fill(server: &Running) -> (Vec<TcpStream>, TcpStream) {
    let mut served = Vec::new();
    loop {
        let mut stream = connect(server.address());
        std::io::Write::write_all(&mut stream, b"x").unwrap();
        if silent_for(&mut stream, Duration::from_millis(500)) {
            return (served, stream);
        }
        assert!(served.len() < 20, "RLIMIT_NPROC limits nothing");
        served.push(stream);
    }
}

#[test]
fn a_connection_waits_for_a_fork_that_fails_and_is_served_later() {
    if !root("a full process table") {
        return;
    }
    let server = with_processes(61_101, 5);
    let (mut served, mut waiting) = fill(&server);
    assert!(!served.is_empty());
    drop(served.pop());
    let mut answer = [0];
    std::io::Read::read_exact(&mut waiting, &mut answer).expect("served when there is a process again");
    assert_eq!(&answer, b"x");
    echo(&mut waiting, b"y");
    drop((served, waiting));
    eventually("the slots are given back", || server.count("active") == 0);
    assert_eq!(exchange(server.address(), b"z"), b"z");
}

#[test]
fn a_connection_that_no_fork_is_found_for_is_closed_and_recorded() {
    if !root("a full process table") {
        return;
    }
    let server = with_processes(61_102, 5);
    let (served, mut waiting) = fill(&server);
    let ticks = worker_ticks(&server);
    let start = Instant::now();
    assert!(closed(&mut waiting), "it is closed after a bounded time");
    let spent = worker_ticks(&server) - ticks;
    let seconds = start.elapsed().as_secs() + 1;
    assert!(spent < 10 * seconds, "{spent} ticks in {seconds} s: it spins while it waits");
    server.log.wait("record", |line| line.contains("not started"));
    let active = u64::try_from(served.len()).unwrap();
    eventually("its slot is given back", || server.count("active") == active);
    drop(served);
    eventually("all slots are given back", || server.count("active") == 0);
    assert_eq!(exchange(server.address(), b"z"), b"z");
}

#[test]
fn a_stop_serves_what_is_queued_behind_a_fork_that_fails() {
    if !root("a full process table") {
        return;
    }
    let server = with_processes(61_104, 5);
    let (mut served, mut waiting) = fill(&server);
    let mut queued = connect(server.address());
    std::io::Write::write_all(&mut queued, b"q").unwrap();
    let addresses = server.tcp_addresses();
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.log.wait("the drain", |line| line.contains("accepting no more"));
    let mut answer = [0];
    drop(served.pop());
    std::io::Read::read_exact(&mut waiting, &mut answer).expect("served when there is a process again");
    drop(waiting);
    std::io::Read::read_exact(&mut queued, &mut answer).expect("what was queued is served too");
    drop((served, queued));
    server.left_nothing(&addresses);
}

fn worker_ticks(server: &Running) -> u64 {
    server.workers().iter().map(|worker| proc::process(*worker).unwrap().ticks).sum()
}

#[test]
fn a_worker_without_descriptors_waits_without_spinning_and_goes_on_by_itself() {
    let options = [&["--workers", "1"], by_itself()].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let worker = server.worker();
    let mut first = connect(server.address());
    echo(&mut first, b"x");
    let limits =
        sure(&["prlimit", "--pid", &worker.to_string(), "--nofile", "--noheadings", "--output", "SOFT,HARD"]);
    let limits: Vec<&str> = limits.split_whitespace().collect();
    let set = |soft: &str| {
        let nofile = format!("--nofile={soft}:{}", limits[1]);
        limit(worker, &nofile);
    };
    // accept(2) takes the lowest free number, and that one is now too high.
    set(&proc::lowest_free(worker).to_string());
    let mut waiting = connect(server.address());
    std::io::Write::write_all(&mut waiting, b"y").unwrap();
    let ticks = worker_ticks(&server);
    assert!(silent_for(&mut waiting, Duration::from_secs(2)), "it was served or closed without a descriptor");
    let spent = worker_ticks(&server) - ticks;
    assert!(spent < 20, "{spent} of 200 ticks: it spins");
    assert_eq!(server.workers(), [worker], "the worker is the same");
    echo(&mut first, b"meanwhile");

    set(limits[0]);
    let mut answer = [0];
    std::io::Read::read_exact(&mut waiting, &mut answer).expect("served when there is a descriptor again");
    assert_eq!(&answer, b"y");
    assert_eq!(exchange(server.address(), b"z"), b"z");
}
