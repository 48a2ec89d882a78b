//! Connection processes that wait for their connection: `spare = N`.

mod death;
mod served;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::SocketAddr;

use crate::support::client::{connect, connect_from, echo, exchange, finish, silent_for};
use crate::support::{A_WHILE, Preforkd, Running, address, eventually, proc};

/// A configuration with one service, of which `keys` say what it does.
fn service(address: SocketAddr, keys: &str) -> String {
    format!("[service.one]\nlisten = [\"{address}\"]\n{keys}\n")
}

/// Waits until there are so many spares and so many connections, and nothing is lost or counted twice. While connections
/// live, up to half of the spares may be missing: a worker is not woken for each that is called.
fn settled(server: &Running, spares: u64, active: u64) {
    let least = if active == 0 { spares } else { spares / 2 };
    eventually(&format!("{spares} spares, {active} active, not {}", server.service()), || {
        let service = server.service();
        let count = |name: &str| service[name].as_u64().unwrap();
        (least..=spares).contains(&count("spares"))
            && count("active") == active
            && count("accepted") == count("completed") + count("active")
    });
}

/// Those that wait, as /proc shows them: they have an epoll instance, and who serves has none.
fn waiting(server: &Running) -> BTreeSet<i32> {
    let waits = |pid: &i32| {
        let descriptors = proc::descriptors(*pid);
        descriptors.iter().any(|(_, target)| target.to_str() == Some("anon_inode:[eventpoll]"))
    };
    server.connections().into_iter().map(|process| process.pid).filter(waits).collect()
}

/// The same, when as many do as the status says.
fn all_waiting(server: &Running) -> BTreeSet<i32> {
    eventually("all spares wait", || waiting(server).len() as u64 == server.count("spares"));
    waiting(server)
}

/// The record of the connection with this client.
fn record(server: &Running, client: SocketAddr) -> String {
    let from = format!(" from {client}: ");
    server.log.wait("the record", |line| line.contains(&from))
}

/// The pid in a record.
fn pid(record: &str) -> i32 {
    let (_, tail) = record.rsplit_once("(pid ").unwrap_or_else(|| panic!("no pid: {record}"));
    tail.split([',', ')']).next().unwrap().parse().unwrap()
}

/// Exchanges something, and returns the pid of who served it.
fn served_by(server: &Running, address: SocketAddr) -> i32 {
    let stream = connect(address);
    let client = stream.local_addr().unwrap();
    assert_eq!(finish(stream, b"x"), b"x");
    pid(&record(server, client))
}

#[test]
fn a_connection_is_served_by_a_process_that_waited_for_it() {
    let server = Preforkd::serve(&["--spare", "8", "--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    let _watch = server.watch_zombies();
    for _ in 0..20 {
        settled(&server, 8, 0);
        let before = all_waiting(&server);
        let pid = served_by(&server, server.address());
        assert!(before.contains(&pid), "{pid} is not among {before:?}");
    }
    settled(&server, 8, 0);
    assert_eq!((server.count("accepted"), server.count("completed")), (20, 20));
    assert_eq!(server.count("crashes"), 0);
}

#[test]
fn spares_are_not_active_and_those_that_serve_are_not_spares() {
    let server = Preforkd::serve(&["--spare", "4", "--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    settled(&server, 4, 0);
    let mut streams = Vec::new();
    for number in 1..=10 {
        let mut stream = connect(server.address());
        echo(&mut stream, b"x");
        streams.push(stream);
        settled(&server, 4, number);
        let processes = || server.connections().len() as u64;
        eventually("as many processes", || processes() == server.count("spares") + number);
    }
    drop(streams);
    settled(&server, 4, 0);
}

#[test]
fn a_unix_socket_and_several_listeners_have_spares_too() {
    let tcp = address::fresh();
    let server = Preforkd::run(&format!(
        "[service.one]\nlisten = [\"{tcp}\", \"unix:DIR/service.sock\"]\nhandler = \"echo\"\nspare = 2\nworkers = 1\n"
    ))
    .start();
    let path = server.dir().join("service.sock");
    for _ in 0..5 {
        settled(&server, 2, 0);
        let before = all_waiting(&server);
        assert!(before.contains(&served_by(&server, tcp)));
        settled(&server, 2, 0);
        let before = all_waiting(&server);
        let mark = server.log.mark();
        assert_eq!(crate::support::client::exchange_unix(&path, b"u"), b"u");
        let uid = format!(" from uid {}", nix::unistd::geteuid());
        let record = server.log.wait_after(mark, "the record", |line| line.contains(&uid));
        assert!(before.contains(&pid(&record)), "{record}");
    }
}

/// Serves one after the other as slots are freed, and never has more processes than that.
fn limit_is_exact(workers: &str) {
    const LIMIT: usize = 5;
    let options = ["--max-connections", "5", "--spare", "8", "--workers", workers];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    settled(&server, 5, 0);
    for _ in 0..3 {
        let mut served = Vec::new();
        while served.len() < LIMIT {
            let mut stream = connect(server.address());
            echo(&mut stream, b"x");
            served.push(stream);
            assert!(server.connections().len() <= LIMIT, "{:?}", server.connections());
        }
        settled(&server, 0, 5);
        let mut sixth = connect(server.address());
        sixth.write_all(b"6").unwrap();
        assert!(silent_for(&mut sixth, A_WHILE), "the sixth is served");
        drop(served.pop());
        let mut answer = [0];
        sixth.read_exact(&mut answer).expect("the sixth is served when there is room");
        assert!(server.connections().len() <= LIMIT, "{:?}", server.connections());
        drop((served, sixth));
        settled(&server, 5, 0);
    }
}

#[test]
fn spares_and_connections_together_keep_to_the_limit() {
    limit_is_exact("1");
}

#[test]
fn spares_and_connections_of_several_workers_together_keep_to_the_limit() {
    // A worker that gets no spare for want of a slot must not be woken in the place of another's spare.
    limit_is_exact("2");
    limit_is_exact("4");
}

#[test]
fn a_burst_is_served_whole() {
    let options = ["--spare", "4", "--workers", "2"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let _watch = server.watch_zombies();
    settled(&server, 4, 0);
    for round in 0..3 {
        let mut streams: Vec<_> = (0..200)
            .map(|number| connect_from(address::source(round * 200 + number), server.address()).unwrap())
            .collect();
        streams.iter_mut().for_each(|stream| echo(stream, b"all at once"));
        eventually("all are active", || server.count("active") == 200);
        drop(streams);
        settled(&server, 4, 0);
    }
    assert_eq!((server.count("accepted"), server.count("completed")), (600, 600));
}

#[test]
fn a_reload_replaces_the_spares() {
    let address = address::fresh();
    let config = |spare: u32| service(address, &format!("handler = \"echo\"\nworkers = 2\nspare = {spare}"));
    let server = Preforkd::run(&config(2)).start();
    settled(&server, 2, 0);
    let mut held = connect(address);
    echo(&mut held, b"x");
    settled(&server, 2, 1);
    let old = all_waiting(&server);
    server.configure(&config(6));
    server.reload_ok();
    eventually("the old spares are gone", || old.iter().all(|pid| !proc::lives(*pid)));
    settled(&server, 6, 1);
    for _ in 0..10 {
        assert!(!old.contains(&served_by(&server, address)));
    }
    echo(&mut held, b"goes on");
    drop(held);
    settled(&server, 6, 0);
    server.configure(&config(0));
    server.reload_ok();
    settled(&server, 0, 0);
    assert_eq!(exchange(address, b"without"), b"without");
    let mut warnings = server.log.all();
    warnings.retain(|line| line.contains("spare"));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn an_address_that_is_given_up_is_free_although_spares_waited_there() {
    let (address, other) = (address::fresh(), address::fresh());
    let keys = "handler = \"echo\"\nspare = 4";
    let server = Preforkd::run(&service(address, keys)).start();
    let mut held = connect(address);
    echo(&mut held, b"x");
    for _ in 0..5 {
        server.configure(&service(other, keys));
        server.reload_ok();
        eventually("it is free", || proc::listeners(address).is_empty());
        echo(&mut held, b"goes on");
        server.configure(&service(address, keys));
        server.reload_ok();
        assert_eq!(exchange(address, b"y"), b"y");
    }
}

#[test]
fn nothing_wakes_up_when_nothing_happens() {
    let server = Preforkd::serve(&["--workers", "2", "--spare", "8"], "127.0.0.1:0", &["echo"]).start();
    settled(&server, 8, 0);
    exchange(server.address(), b"x");
    settled(&server, 8, 0);
    let wakeups = || -> Vec<String> {
        let pids = server.processes().into_iter().map(|process| process.pid);
        pids.map(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let lines = status.lines().filter(|line| line.starts_with("voluntary_ctxt_switches"));
            format!("{pid} {}", lines.collect::<String>())
        })
        .collect()
    };
    // The last question for the status may still be on its way out.
    eventually("nobody wakes up for a while", || {
        let before = wakeups();
        std::thread::sleep(A_WHILE);
        before.len() == 11 && before == wakeups()
    });
}

/// Connections of the rest of this process's address that are served and held.
fn held(server: &Running, number: usize) -> Vec<std::net::TcpStream> {
    let mut held: Vec<_> = (0..number).map(|_| connect(server.address())).collect();
    held.iter_mut().for_each(|stream| echo(stream, b"x"));
    held
}

#[test]
fn spares_can_begin_with_little_memory_also_where_sources_have_limits() {
    let sources: [&[&str]; 4] = [
        &["--max-connections-per-source", "5"],
        &["--rate-per-source", "1/h burst 5"],
        &["--penalties", "crash=10m", "--max-connections-per-source", "5"],
        &["--max-connections-per-source", "5", "--connections-per-child", "0"],
    ];
    for (number, source) in sources.into_iter().enumerate() {
        let options = [&["--spare", "4", "--workers", "1", "--limits", "as=24M"], source].concat();
        for job in [&["echo"][..], &["--", "/bin/cat"]] {
            if job.len() > 1 && number == 3 {
                continue; // a program has its own process for each connection
            }
            let server = Preforkd::serve(&options, "127.0.0.1:0", job).start();
            settled(&server, 4, 0);
            let before = all_waiting(&server);
            assert_eq!(before.len(), 4);
            let held = held(&server, 5);
            let mut sixth = connect(server.address());
            // Who is refused may see a reset at either.
            let _ = sixth.write_all(b"x");
            assert!(!matches!(sixth.read(&mut [0]), Ok(1..)), "a sixth connection");
            let clients: Vec<_> = held.iter().map(|stream| stream.local_addr().unwrap()).collect();
            drop(held);
            let pids: Vec<_> = clients.into_iter().map(|client| pid(&record(&server, client))).collect();
            assert!(pids.iter().any(|pid| before.contains(pid)), "{pids:?} are not among {before:?}");
            if number == 3 {
                // Those that were made meanwhile wait beside those that wait again.
                eventually("all wait", || server.count("active") == 0 && server.count("spares") >= 4);
            } else {
                settled(&server, 4, 0);
            }
            assert_eq!(server.log.count(|line| line.contains("spare")), 0, "{:?}", server.log.all());
        }
    }
}
