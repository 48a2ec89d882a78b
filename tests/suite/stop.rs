//! The end: drain, and what ends at once.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid};

use crate::life::echo_service;
use crate::support::client::{closed, connect, echo, finish, refused, reset};
use crate::support::{A_WHILE, Preforkd, Running, address, eventually, proc, root};

#[test]
fn term_and_int_stop_accepting_and_wait_for_connections() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let address = address::fresh();
        let server = Preforkd::run(&echo_service(address, "workers = 2")).start();
        let mut streams = [connect(address), connect(address)];
        for stream in &mut streams {
            echo(stream, b"before");
        }
        let mark = server.notify.mark();
        server.signal(signal);
        for what in ["STOPPING=1", "STATUS=", "EXTEND_TIMEOUT_USEC="] {
            server.notify.wait_after(mark, what, |line| line.starts_with(what));
        }
        eventually("it stops accepting", || refused(address));
        for mut stream in streams {
            echo(&mut stream, b"after");
            assert_eq!(finish(stream, b"end"), b"end");
        }
        server.left_nothing(&[address]);
    }
}

#[test]
fn a_stop_without_connections_is_quick() {
    let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    let start = std::time::Instant::now();
    server.stop();
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_client_that_resets_while_its_listener_is_being_closed_holds_nobody_up() {
    let address = address::fresh();
    // One that writes nothing would learn nothing of it.
    let config = format!(
        "[service.discard]\nlisten = \"{address}\"\nhandler = \"discard\"\nworkers = 1\nmax_connections = 1\n\
         defer_accept = \"30s\"\n"
    );
    let server = Preforkd::run(&config).start();
    let [mut served, mut queued, mut late] = [(); 3].map(|()| connect(address));
    served.write_all(b"served").unwrap();
    eventually("it is served", || server.count("active") == 1);
    queued.write_all(b"queued").unwrap();
    server.signal(Signal::SIGTERM);
    eventually("the listener is being closed", || server.status()["state"] == "draining");
    // The handshake ends with the first byte, for a listener that defers.
    late.write_all(b"late").unwrap();
    reset(late);
    drop((served, queued));
    server.left_nothing(&[address]);
    server.log.wait("the end", |line| line == "ended");
    let all = server.log.all();
    assert!(!all.iter().any(|line| line.contains("drain_timeout")), "{all:#?}");
}

/// The worker need not know yet that it is being closed, nor a spare.
#[test]
fn a_client_that_resets_at_a_listener_that_is_closing_is_heard_by_whoever_accepts() {
    if !root("pidfd_getfd(2)") {
        return;
    }
    for way in ["", "spare = 2\n", "spare = 2\nconnections_per_child = 0\n"] {
        let address = address::fresh();
        let config = format!(
            "[service.discard]\nlisten = \"{address}\"\nhandler = \"discard\"\nworkers = 1\n{way}\
             defer_accept = \"30s\"\n"
        );
        let server = Preforkd::run(&config).start();
        let mut late = connect(address);
        // As its supervisor does it, and nobody has been told.
        proc::to_listener(server.pid(), address, "s.setsockopt(socket.IPPROTO_IP, 21, 255)");
        late.write_all(b"late").unwrap();
        eventually("it is served", || server.count("active") == 1);
        reset(late);
        eventually("it has ended", || server.count("active") == 0);
    }
}

/// A client that puts the end of its handshake off, as HAProxy does: for itself it is connected, for the kernel of the server
/// not yet, nor for 200 ms after.
pub(crate) const LATE: &str = "import socket, sys\n\
    host, port = sys.argv[1].rsplit(':', 1)\n\
    client = socket.socket()\n\
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)\n\
    client.connect((host, int(port)))\n\
    print('connected', flush=True)\n\
    print(client.recv(100).decode(), end='')\n";

#[test]
fn who_was_answered_before_the_listener_closes_is_served() {
    for way in ["", "spare = 2\n", "max_connections = 1\n"] {
        for stops in [true, false] {
            let (address, other) = (address::fresh(), address::fresh());
            let service = |address| {
                format!("[service.one]\nlisten = \"{address}\"\nhandler = \"daytime\"\nworkers = 2\n{way}")
            };
            let server = Preforkd::run(&service(address)).start();
            let mut client = Command::new("python3")
                .args(["-c", LATE, &address.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
            assert_eq!(said.next().unwrap().unwrap(), "connected");
            if stops {
                server.signal(Signal::SIGTERM);
            } else {
                server.configure(&service(other));
                server.reload_ok();
            }
            let time = said.next().unwrap().unwrap();
            assert!(time.contains(':'), "{way:?}, stops: {stops}: {time:?}");
            assert!(client.wait().unwrap().success());
            match stops {
                true => server.left_nothing(&[address]),
                false => eventually("the old address is closed", || refused(address)),
            }
        }
    }
}

/// A service whose connections end by nothing but SIGKILL, and start something that is as stubborn.
fn stubborn(drain_timeout: &str) -> (Running, SocketAddr) {
    let address = address::fresh();
    let server = Preforkd::run(&format!(
        "[supervisor]\ndrain_timeout = \"{drain_timeout}\"\n\
         [service.stubborn]\nlisten = [\"{address}\"]\nexec = [\"DIR/stubborn\"]\n"
    ))
    .script(
        "stubborn",
        "#!/bin/sh\ntrap '' TERM INT HUP QUIT\nsleep 1000 &\necho started\nwait\nsleep 1000\n",
    )
    .start();
    (server, address)
}

/// A connection to it, when its program runs.
fn started(address: SocketAddr) -> std::net::TcpStream {
    let mut stream = connect(address);
    let mut line = [0; 8];
    std::io::Read::read_exact(&mut stream, &mut line).unwrap();
    assert_eq!(&line, b"started\n");
    stream
}

#[test]
fn drain_timeout_ends_what_is_left_with_its_process_group() {
    let (server, address) = stubborn("300ms");
    let mut streams = [started(address), started(address)];
    assert!(server.connections().len() >= 4, "two programs with a child each");
    server.signal(Signal::SIGTERM);
    for stream in &mut streams {
        assert!(closed(stream));
    }
    server.left_nothing(&[address]);
}

#[test]
fn drain_timeout_ends_what_dead_and_stopped_workers_leave() {
    let (server, address) = stubborn("300ms");
    let mut orphan = started(address);
    server.replace_workers(&server.workers());
    let mut streams = [started(address), started(address)];
    server.workers().into_iter().for_each(proc::stop);
    server.signal(Signal::SIGTERM);
    for stream in streams.iter_mut().chain([&mut orphan]) {
        assert!(closed(stream));
    }
    server.left_nothing(&[address]);
}

#[test]
fn a_second_term_ends_at_once() {
    let (server, address) = stubborn("1h");
    let mut stream = started(address);
    server.signal(Signal::SIGTERM);
    server.notify.wait("STOPPING=1", |line| line == "STOPPING=1");
    eventually("it stops accepting", || refused(address));
    server.signal(Signal::SIGTERM);
    assert!(closed(&mut stream));
    server.ending();
    server.wait_empty();
}

#[test]
fn signals_without_end_do_not_put_off_the_end() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2")).start();
    proc::stop(server.workers()[0]);
    let start = std::time::Instant::now();
    while proc::lives(server.pid()) {
        assert!(start.elapsed() < std::time::Duration::from_secs(15), "it never ends");
        server.signal(Signal::SIGTERM);
        std::thread::sleep(A_WHILE);
    }
    server.left_nothing(&[address]);
}

#[test]
fn quit_ends_at_once() {
    let (server, address) = stubborn("1h");
    let mut stream = started(address);
    server.signal(Signal::SIGQUIT);
    assert!(closed(&mut stream));
    server.ending();
    server.wait_empty();
    assert!(refused(address));
}

#[test]
fn terminal_signals_reach_only_the_supervisor() {
    // ^C goes to the whole process group of the foreground; connections must be drained all the same.
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"]).start();
    let mut stream = connect(server.address());
    echo(&mut stream, b"before");
    // The tests are in that group too, so it gets the signal one by one.
    let group = |pid| getpgid(Some(Pid::from_raw(pid))).ok();
    let foreground = group(server.pid());
    let members: Vec<_> =
        server.processes().into_iter().filter(|process| group(process.pid) == foreground).collect();
    for process in members {
        proc::kill(process.pid, Signal::SIGINT);
    }
    std::thread::sleep(A_WHILE);
    echo(&mut stream, b"after");
    drop(stream);
    server.left_nothing(&[]);
}
