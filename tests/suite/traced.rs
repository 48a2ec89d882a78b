//! A program may have its parent trace it (PTRACE_TRACEME), and stop then, or end: neither is mistaken for the other.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::client::connect;
use crate::support::{Preforkd, Running, address, eventually, proc, root};

/// Says its pid and that of its parent, when it is traced, and does what it is told to.
const PROGRAM: &str = r#"#!/usr/bin/python3
import ctypes, os, signal, sys, threading, time
libc = ctypes.CDLL(None)
what = sys.stdin.readline().strip()
def traced():
    assert libc.ptrace(0, 0, 0, 0) == 0
def say(*words):
    print(*words, flush=True)
if what == "orphan":
    parent = os.getppid()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            while os.getppid() != int(os.environ["SUPERVISOR"]):
                time.sleep(0.01)
            traced()
            say(os.getpid())
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)
        os._exit(0)
    sys.stdin.readline()
elif what == "thread":
    thread = threading.Thread(target=traced)
    thread.start()
    thread.join()
    say(os.getpid())
    sys.stdin.readline()
    sys.exit(4)
else:
    traced()
    say(os.getpid())
    sys.stdin.readline()
    if what == "exit":
        sys.exit(3)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1000)
"#;

const FREE: &str = "sandbox = false";

fn serve(keys: &str) -> (Running, SocketAddr) {
    let listen = address::fresh();
    let config = format!(
        "[service.x]\nlisten = \"{listen}\"\nexec = [\"DIR/program\"]\nworkers = 1\nmax_connections = 3\n{keys}\n"
    );
    (Preforkd::run(&config).script("program", PROGRAM).start(), listen)
}

/// A connection whose program has done this, and what pid it has said.
fn traced(listen: SocketAddr, what: &str) -> (BufReader<TcpStream>, i32) {
    let mut client = BufReader::new(connect(listen));
    client.get_mut().write_all(format!("{what}\n").as_bytes()).unwrap();
    let mut said = String::new();
    client.read_line(&mut said).unwrap();
    (client, said.trim().parse().unwrap())
}

fn go_on(client: &mut BufReader<TcpStream>) {
    client.get_mut().write_all(b"\n").unwrap();
}

fn record(server: &Running, how: &str) {
    server.log.wait("its record", |line| line.starts_with("x: connection") && line.contains(how));
    eventually("it is counted no more", || server.count("active") == 0 && server.count("counted") == 0);
}

/// Neither has anything to do.
fn nobody_spins(server: &Running) {
    let ticks = || [server.pid(), server.worker()].map(|pid| proc::process(pid).unwrap().ticks);
    let before = ticks();
    std::thread::sleep(Duration::from_millis(700));
    let after = ticks();
    for (before, after) in before.into_iter().zip(after) {
        assert!(after - before < 35, "{before} {after}");
    }
}

#[test]
fn who_is_traced_and_stops_is_killed() {
    let in_a_namespace =
        "user = 4711\ngroup = 4711\nsandbox = { pid_namespace = true, system_calls = \"any\" }";
    let mut ways =
        vec![FREE, "spare = 2\nsandbox = false", "sandbox = { system_calls = { allow = [\"ptrace\"] } }"];
    if root("a namespace of processes") {
        ways.push(in_a_namespace);
    }
    for keys in ways {
        let (server, listen) = serve(keys);
        // More often than there is room for.
        for _ in 0..4 {
            let (mut client, pid) = traced(listen, "stop");
            go_on(&mut client);
            record(&server, "killed KILL");
            assert!(keys == in_a_namespace || !proc::lives(pid), "{keys}");
        }
        assert_eq!(server.log.count(|line| line.contains("killed KILL")), 4, "{keys}");
        nobody_spins(&server);
        server.stop();
    }
}

#[test]
fn who_is_traced_is_ended_by_its_deadline() {
    for keys in [FREE, "spare = 2\nsandbox = false"] {
        let (server, listen) = serve(&format!("max_lifetime = \"1s\"\n{keys}"));
        let (mut client, pid) = traced(listen, "stay");
        go_on(&mut client);
        // The signal that tells it to end stops it.
        record(&server, "timeout lifetime");
        assert!(!proc::lives(pid));
        nobody_spins(&server);
    }
}

#[test]
fn who_is_traced_ends_as_it_has_ended() {
    for keys in [FREE, "spare = 2\nsandbox = false"] {
        let (server, listen) = serve(keys);
        for (what, how) in [("exit", "exited 3"), ("thread", "exited 4")] {
            for _ in 0..4 {
                let (mut client, _) = traced(listen, what);
                go_on(&mut client);
                record(&server, how);
            }
        }
        assert_eq!(server.count("completed"), 8, "{keys}");
        nobody_spins(&server);
    }
}

#[test]
fn who_has_left_its_program_and_is_traced_and_stops_is_killed() {
    let listen = address::fresh();
    let config = format!(
        "[service.x]\nlisten = \"{listen}\"\nexec = [\"/bin/sh\", \"-c\", \"SUPERVISOR=$(ps -o ppid= -p $PPID) exec DIR/program\"]\n\
         workers = 1\nkill_mode = \"process\"\nsandbox = false\n"
    );
    let server = Preforkd::run(&config).script("program", PROGRAM).start();
    let (mut client, pid) = traced(listen, "orphan");
    eventually("it is dead", || !proc::lives(pid));
    go_on(&mut client);
    record(&server, "exited 0");
    nobody_spins(&server);
}
