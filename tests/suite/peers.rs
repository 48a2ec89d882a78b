//! The same tests for preforkd and for tcpserver, where both promise the same: what UCSPI programs rely on.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;

use crate::support::client::{connect, echo, exchange, finish, listen_to, try_echo};
use crate::support::fence::{Fenced, Orders};
use crate::support::zombies::ZombieWatch;
use crate::support::{A_WHILE, BINARY, PATIENCE, run, text};

#[derive(Clone, Copy)]
enum Server {
    Preforkd,
    Tcpserver,
}

impl Server {
    /// The command line that serves a program on this address, with this many connections at once.
    fn command(self, address: SocketAddr, limit: u32, program: &[&str]) -> Vec<String> {
        let (ip, port, limit) = (address.ip().to_string(), address.port().to_string(), limit.to_string());
        let address = address.to_string();
        let head = match self {
            Server::Preforkd => {
                vec![BINARY, "serve", "--workers", "2", "--max-connections", &limit, &address, "--"]
            }
            // -1: print the port; -HRl: ask nobody for names.
            Server::Tcpserver => vec!["tcpserver", "-1", "-HRl", "localhost", "-c", &limit, &ip, &port],
        };
        head.into_iter().chain(program.iter().copied()).map(str::to_owned).collect()
    }

    /// Serves a program, and waits until it is served.
    fn serve(self, limit: u32, program: &[&str]) -> Served {
        let any = "127.0.0.1:0".parse().unwrap();
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let orders = Orders { command: self.command(any, limit, program), environment, listen: None };
        let fenced = Fenced::start(&orders);
        let address = match self {
            Server::Preforkd => {
                let line = fenced.stdout.wait("listening on", |line| line.starts_with("listening on "));
                line["listening on ".len()..].parse().unwrap()
            }
            Server::Tcpserver => {
                let is_port = |line: &str| line.parse::<u16>().is_ok();
                SocketAddr::new(any.ip(), fenced.stdout.wait("port", is_port).parse().unwrap())
            }
        };
        let watch = ZombieWatch::below(fenced.fence_pid());
        Served { address, _watch: watch, _fenced: fenced }
    }
}

/// A server that runs until this is dropped, without old zombies.
struct Served {
    address: SocketAddr,
    _watch: ZombieWatch,
    _fenced: Fenced,
}

/// Makes one test for each server out of a function.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod preforkd {
            $(#[test] fn $name() { super::$name(super::Server::Preforkd); })+
        }
        mod tcpserver {
            $(#[test] fn $name() { super::$name(super::Server::Tcpserver); })+
        }
    };
}

on_both!(
    environment,
    descriptors,
    signals,
    the_end_of_the_program_ends_the_connection,
    a_program_that_is_killed_harms_no_other,
    half_close,
    many_connections,
    the_limit_is_exact_and_the_rest_waits,
    an_address_in_use_is_an_error,
);

fn environment(server: Server) {
    let served = server.serve(40, &["/usr/bin/env"]);
    let stream = connect(served.address);
    let (client, service) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let printed = text(&finish(stream, b""));
    for line in [
        "PROTO=TCP".to_owned(),
        format!("TCPREMOTEIP={}", client.ip()),
        format!("TCPREMOTEPORT={}", client.port()),
        format!("TCPLOCALIP={}", service.ip()),
        format!("TCPLOCALPORT={}", service.port()),
    ] {
        assert!(printed.lines().any(|printed| printed == line), "no {line} in\n{printed}");
    }
}

fn descriptors(server: Server) {
    let served = server.serve(40, &["/bin/ls", "-l", "/proc/self/fd"]);
    let listing = listen_to(served.address);
    let target = |number: &str| {
        let line = listing.lines().find(|line| line.contains(&format!(" {number} -> "))).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    assert!(target("0").starts_with("socket:"), "{listing}");
    assert_eq!(target("0"), target("1"), "{listing}");
    let sockets = listing.lines().filter(|line| line.contains("socket:")).count();
    assert_eq!(sockets, 2, "the listener is in the program:\n{listing}");
}

fn signal_set(status: &str, name: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    u64::from_str_radix(line[name.len()..].trim(), 16).unwrap()
}

fn signals(server: Server) {
    let served = server.serve(40, &["/bin/cat", "/proc/self/status"]);
    let status = listen_to(served.address);
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    for name in ["SigBlk:", "SigIgn:"] {
        // 32 and 33 are the C library's own, and tcpserver passes on what it was started with, such as nohup's SIGHUP.
        let set = signal_set(&status, name) & !signal_set(&own, name);
        assert_eq!(set & 0x7fff_ffff, 0, "{name} {set:x}");
    }
}

fn the_end_of_the_program_ends_the_connection(server: Server) {
    for exit in ["0", "1", "100", "111"] {
        let served = server.serve(40, &["sh", "-c", &format!("echo end; exit {exit}")]);
        for _ in 0..3 {
            let mut answer = String::new();
            connect(served.address).read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "end\n");
        }
    }
}

fn a_program_that_is_killed_harms_no_other(server: Server) {
    let served = server.serve(40, &["sh", "-c", "read word; [ \"$word\" != die ] || kill -9 $$; cat"]);
    let mut other = connect(served.address);
    std::io::Write::write_all(&mut other, b"live\n").unwrap();
    for _ in 0..10 {
        assert_eq!(exchange(served.address, b"die\n"), b"");
    }
    echo(&mut other, b"still");
}

fn half_close(server: Server) {
    let served = server.serve(40, &["sh", "-c", "cat; echo end"]);
    let port = served.address.port().to_string();
    let output = run(&["sh", "-c", "printf x | nc -N 127.0.0.1 $0", &port]);
    assert_eq!(text(&output.stdout), "xend\n");
}

fn many_connections(server: Server) {
    let served = server.serve(40, &["/bin/cat"]);
    let clients: Vec<_> = (0..8)
        .map(|client: u32| {
            let address = served.address;
            std::thread::spawn(move || {
                for number in 0..50 {
                    let request = format!("{client} {number}");
                    assert_eq!(text(&exchange(address, request.as_bytes())), request);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}

fn the_limit_is_exact_and_the_rest_waits(server: Server) {
    let served = server.serve(3, &["/bin/cat"]);
    let (sender, connected) = channel::<TcpStream>();
    for _ in 0..6 {
        let (sender, address) = (sender.clone(), served.address);
        std::thread::spawn(move || {
            let mut stream = connect(address);
            if try_echo(&mut stream, b"x").is_ok() {
                let _ = sender.send(stream);
            }
        });
    }
    let mut streams: Vec<_> = (0..3).map(|_| connected.recv_timeout(PATIENCE).unwrap()).collect();
    for _ in 0..3 {
        assert!(connected.recv_timeout(A_WHILE).is_err(), "one more than the limit was served");
        drop(streams.remove(0));
        streams.push(connected.recv_timeout(PATIENCE).expect("an end lets one in"));
    }
}

fn an_address_in_use_is_an_error(server: Server) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let command = server.command(taken.local_addr().unwrap(), 40, &["/bin/cat"]);
    let output = run(&command.iter().map(String::as_str).collect::<Vec<_>>());
    let stderr = text(&output.stderr);
    assert!(
        output.status.code().is_some_and(|code| code != 0 && code != 124),
        "{:?} {stderr}",
        output.status
    );
    assert!(stderr.contains(" use"), "{stderr}");
}
