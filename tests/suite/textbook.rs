//! What preforkd.models(7) says about the four ways to write a server, each shown on the servers of `examples/echo`.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;

use crate::support::client::{connect, echo, refused, try_echo};
use crate::support::eventually;
use crate::support::fence::{Fenced, Orders};
use crate::support::proc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Iterative,
    Threads,
    Events,
    Processes,
}

const ALL: [Model; 4] = [Model::Iterative, Model::Threads, Model::Events, Model::Processes];
const SEVERAL_AT_ONCE: [Model; 3] = [Model::Threads, Model::Events, Model::Processes];

/// A server of `examples/echo`, until this is dropped.
struct Served {
    address: SocketAddr,
    fenced: Fenced,
}

impl Model {
    /// `cargo test` builds the examples next to this.
    fn binary(self) -> PathBuf {
        let name = format!("echo-{self:?}").to_lowercase();
        let target = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
        target.join("examples").join(name)
    }

    fn serve(self) -> Served {
        let binary = self.binary().to_str().unwrap().to_owned();
        let mut command = vec![binary];
        command.extend((self == Model::Processes).then(|| "serve".to_owned()));
        command.push("127.0.0.1:0".to_owned());
        let fenced = Fenced::start(&Orders { command, environment: BTreeMap::new(), listen: None });
        let line = fenced.stdout.wait("listening on", |line| line.starts_with("listening on "));
        Served { address: line["listening on ".len()..].parse().unwrap(), fenced }
    }
}

impl Served {
    /// A client that has been served once.
    fn client(&self) -> TcpStream {
        let mut stream = connect(self.address);
        echo(&mut stream, b"hello");
        stream
    }

    /// Resident memory of everything that serves, in KiB.
    fn memory(&self) -> u64 {
        let processes = proc::descendants(self.fenced.fence_pid());
        let resident = |pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned));
            line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse().unwrap())
        };
        processes.iter().map(|process| resident(process.pid)).sum()
    }
}

/// The server's side of a connection, as the kernel tells it in /proc/net/tcp: how many bytes nobody has read yet; `None` if
/// it is not established.
fn unread(client: &TcpStream) -> Option<usize> {
    let hex = |address: SocketAddr| {
        let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
        format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
    };
    let ends = (hex(client.peer_addr().unwrap()), hex(client.local_addr().unwrap()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let of = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let row = table
        .lines()
        .filter(|line| line.contains(&ends.0))
        .map(of)
        .find(|row| (&row[1], &row[2]) == (&ends.0, &ends.1))?;
    let (established, queues) = (&row[3] == "01", &row[4]);
    established.then(|| usize::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap())
}

#[test]
fn the_second_client_of_the_iterative_server_connects_and_writes_and_waits_to_read() {
    let served = Model::Iterative.serve();
    let mut first = served.client();
    // Both return, and nobody of the server has taken part in either.
    let mut second = connect(served.address);
    second.write_all(b"hello").unwrap();
    eventually("the kernel keeps the second client's bytes", || unread(&second) == Some(5));
    second.set_nonblocking(true).unwrap();
    echo(&mut first, b"the first is still served");
    assert_eq!(second.read(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(unread(&second), Some(5));
    // Its turn.
    drop(first);
    second.set_nonblocking(false).unwrap();
    let mut answer = [0; 5];
    second.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    assert_eq!(unread(&second), Some(0));
}

#[test]
fn a_client_that_says_nothing_is_in_nobodys_way_but_the_iterative_servers() {
    for model in SEVERAL_AT_ONCE {
        let served = model.serve();
        let _silent = connect(served.address);
        let _slow = served.client();
        echo(&mut connect(served.address), b"hello");
    }
}

#[test]
fn a_client_that_does_not_read_is_in_nobodys_way_but_the_iterative_servers() {
    for model in SEVERAL_AT_ONCE {
        let served = model.serve();
        let mut deaf = served.client();
        deaf.set_nonblocking(true).unwrap();
        // As much as the kernel and the server take.
        let mut refusals = 0;
        while refusals < 3 {
            match deaf.write(&[b'x'; 1 << 16]) {
                Ok(sent) => {
                    assert!(sent > 0);
                    refusals = 0;
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{model:?}");
                    refusals += 1;
                    echo(&mut connect(served.address), b"hello");
                }
            }
        }
    }
}

#[test]
fn one_who_computes_stops_the_loop_over_events() {
    let served = Model::Events.serve();
    let (mut thinker, mut other) = (served.client(), served.client());
    thinker.write_all(b"compute").unwrap();
    eventually("it computes", || unread(&thinker) == Some(0));
    other.write_all(b"hello").unwrap();
    // It takes no time, and yet it comes after the other's.
    other.read_exact(&mut [0; 5]).unwrap();
    thinker.set_nonblocking(true).unwrap();
    assert_eq!(thinker.read(&mut [0; 16]).unwrap(), 7);
}

#[test]
fn one_who_computes_is_in_nobodys_way_where_each_has_a_thread_or_a_process() {
    for model in [Model::Threads, Model::Processes] {
        let served = model.serve();
        let (mut thinker, mut other) = (served.client(), served.client());
        thinker.write_all(b"compute long").unwrap();
        eventually("it computes", || unread(&thinker) == Some(0));
        echo(&mut other, b"hello");
        echo(&mut connect(served.address), b"hello");
        thinker.set_nonblocking(true).unwrap();
        let answer = thinker.read(&mut [0; 16]);
        assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::WouldBlock, "{model:?}: it has ended already");
    }
}

#[test]
fn a_crash_ends_one_connection_where_each_has_a_process_and_the_server_elsewhere() {
    for model in ALL {
        let served = model.serve();
        let mut victim = served.client();
        let mut other = if model == Model::Iterative { connect(served.address) } else { served.client() };
        victim.write_all(b"crash").unwrap();
        let ended = matches!(victim.read(&mut [0; 16]), Ok(0) | Err(_));
        assert!(ended, "{model:?}");
        if model == Model::Processes {
            echo(&mut other, b"hello");
            echo(&mut connect(served.address), b"hello");
        } else {
            assert!(try_echo(&mut other, b"hello").is_err(), "{model:?}");
            eventually("the port is closed", || refused(served.address));
        }
    }
}

#[test]
fn a_leak_ends_with_its_connection_where_each_has_a_process_and_stays_elsewhere() {
    for model in ALL {
        let served = model.serve();
        drop(served.client());
        let before = served.memory();
        let mut client = served.client();
        for _ in 0..64 {
            echo(&mut client, b"leak");
        }
        client.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
        drop(client);
        if model == Model::Processes {
            eventually("the leak is gone", || served.memory() < before + (32 << 10));
        } else {
            assert!(served.memory() > before + (63 << 10), "{model:?}");
        }
    }
}

#[test]
fn one_who_has_taken_over_a_connection_reaches_the_others_unless_each_has_a_process() {
    for model in SEVERAL_AT_ONCE {
        let served = model.serve();
        let (mut captured, mut other) = (served.client(), served.client());
        captured.write_all(b"shout").unwrap();
        let mut answer = [0; 7];
        captured.read_exact(&mut answer).unwrap();
        if model == Model::Processes {
            echo(&mut other, b"hello");
        } else {
            other.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"gotcha\n", "{model:?}");
        }
    }
}
