//! What meets a connection beyond the limit.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::client::{connect, connect_from, connect_unix, echo, try_echo};
use crate::support::{A_WHILE, Preforkd, Running, address, eventually, proc};

fn refused(server: &Running) -> u64 {
    server.service()["refused"]["limit"].as_u64().unwrap()
}

/// Clients that are served, as many as there may be.
fn fill(service: SocketAddr, limit: usize) -> Vec<TcpStream> {
    let served = |_| {
        let mut client = connect(service);
        echo(&mut client, b"x");
        client
    };
    (0..limit).map(served).collect()
}

fn words(mut client: impl Read) -> String {
    let mut words = String::new();
    client.read_to_string(&mut words).unwrap();
    words
}

const REFUSE: [&str; 6] =
    ["--max-connections", "4", "--overload", "refuse", "--refuse-message", "421 busy\r\n"];

fn beyond_the_limit_clients_are_told(more: &[&str]) {
    let options = [&REFUSE, more].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let mut held = fill(server.address(), 4);
    for round in 1..=3 {
        for n in 0..20 {
            let mut client = connect(server.address());
            // Some have sent much by the time they are told.
            if n % 2 == 0 {
                let _ = client.write_all(&[7; 100_000]);
            }
            assert_eq!(words(client), "421 busy\r\n");
        }
        eventually("all are counted", || refused(&server) == round * 20);
        held.pop();
        eventually("one has ended", || server.count("active") == 3);
        // Whoever comes next has the place.
        held.extend(fill(server.address(), 1));
    }
    assert_eq!((server.count("accepted"), server.count("active")), (7, 4));
    server.log.wait("a report", |line| line.contains("refused") && line.contains("by max_connections"));
}

#[test]
fn beyond_the_limit_clients_are_told_so() {
    beyond_the_limit_clients_are_told(&["--workers", "2"]);
}

#[test]
fn beyond_the_limit_clients_are_told_where_there_are_spares() {
    beyond_the_limit_clients_are_told(&["--workers", "2", "--spare", "4"]);
}

/// While a spare waits, of whatever worker, there is room.
#[test]
fn nobody_is_refused_while_a_spare_waits() {
    let options = [&REFUSE[..], &["--workers", "2", "--spare", "4"]].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    for _ in 0..50 {
        eventually("all slots are spares'", || server.count("spares") == 4);
        let held = fill(server.address(), 4);
        assert_eq!(words(connect(server.address())), "421 busy\r\n");
        drop(held);
        eventually("all have ended", || server.count("active") == 0);
    }
    assert_eq!((server.count("accepted"), refused(&server)), (200, 50));
}

#[test]
fn slow_clients_hold_nobody_up() {
    let options = [&REFUSE[..], &["--workers", "1"]].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let mut held = fill(server.address(), 4);
    // They neither read nor hang up, and some send without end.
    let mut slow: Vec<_> = (0..300).map(|_| connect(server.address())).collect();
    for client in slow.iter_mut().step_by(3) {
        client.set_nonblocking(true).unwrap();
        while client.write(&[7; 65536]).is_ok_and(|length| length > 0) {}
    }
    eventually("all are counted", || refused(&server) == 300);
    assert_eq!(words(connect(server.address())), "421 busy\r\n");
    held.pop();
    eventually("one has ended", || server.count("active") == 3);
    fill(server.address(), 1);
    drop(slow);
}

const TELLS: [&str; 4] = ["--overload", "refuse", "--refuse-message", "421 busy\r\n"];

/// Whatever a source may take, beyond that its clients are told, those too that have sent much by then.
fn beyond_its_share_a_source_is_told(limit: &[&str], reason: &str, more: &[&str], job: &[&str]) {
    let options = [&TELLS, limit, more].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", job).start();
    let _held = fill(server.address(), 3);
    let heard = |n: usize| {
        let mut client = connect(server.address());
        if n % 2 == 0 {
            let _ = client.write_all(&[7; 100_000]);
        }
        words(client)
    };
    (0..20).for_each(|n| assert_eq!(heard(n), "421 busy\r\n", "{limit:?} {more:?} {job:?}"));
    eventually("all are counted", || server.service()["refused"][reason] == 20);
    // Another source has its own.
    let mut other = connect_from([127, 0, 0, 2].into(), server.address()).unwrap();
    echo(&mut other, b"x");
}

#[test]
fn beyond_its_share_a_source_is_told_so() {
    let connections = (&["--max-connections-per-source", "3"][..], "source_limit");
    let rate = (&["--rate-per-source", "1/h burst 3"][..], "rate");
    let ways = [
        (&["--workers", "2"][..], &["echo"][..]),
        (&["--workers", "2"], &["--", "/bin/cat"]),
        (&["--workers", "2", "--spare", "4"], &["echo"]),
        (&["--workers", "2", "--spare", "4"], &["--", "/bin/cat"]),
        (&["--spare", "4", "--count-bytes", "false"], &["--", "/bin/cat"]),
        (&["--spare", "4", "--connections-per-child", "0"], &["echo"]),
    ];
    for (limit, reason) in [connections, rate] {
        for (more, job) in ways {
            beyond_its_share_a_source_is_told(limit, reason, more, job);
        }
    }
}

/// The one behind a proxy, too, after its header.
#[test]
fn beyond_its_share_a_source_is_told_through_a_proxy() {
    let options = [&TELLS[..], &["--max-connections-per-source", "1", "--proxy-protocol-from", "127.0.0.1"]];
    let server = Preforkd::serve(&options.concat(), "127.0.0.1:0", &["echo"]).start();
    let through = |client: &str| {
        let mut stream = connect(server.address());
        write!(stream, "PROXY TCP4 {client} 198.51.100.1 1 2\r\n").unwrap();
        stream
    };
    let mut held = through("192.0.2.1");
    echo(&mut held, b"x");
    for length in [0, 100_000] {
        let mut client = through("192.0.2.1");
        let _ = client.write_all(&vec![7; length]);
        assert_eq!(words(client), "421 busy\r\n");
    }
    echo(&mut through("192.0.2.2"), b"x");
}

/// What a spare has said is not lost while its worker is stopped, nor when that is dead.
#[test]
fn beyond_its_share_a_source_is_told_while_the_worker_does_nothing() {
    let limit = ["--max-connections-per-source", "1", "--spare", "2", "--workers", "1"];
    let server = Preforkd::serve(&[&TELLS[..], &limit].concat(), "127.0.0.1:0", &["echo"]).start();
    let _held = fill(server.address(), 1);
    eventually("a spare waits", || server.count("spares") == 2);
    let worker = server.worker();
    let before = proc::descriptors(worker).len();
    proc::stop(worker);
    for _ in 0..50 {
        let mut client = connect(server.address());
        let _ = client.write_all(&[7; 100_000]);
        assert_eq!(words(client), "421 busy\r\n");
    }
    proc::kill(worker, Signal::SIGCONT);
    eventually("all are counted", || server.service()["refused"]["source_limit"] == 50);
    eventually("all are forgotten", || proc::descriptors(worker).len() == before);
}

#[test]
fn beyond_its_share_a_source_is_reset_or_closed() {
    for job in [&["echo"][..], &["--", "/bin/cat"]] {
        for more in [&[][..], &["--spare", "2"]] {
            for (overload, ends) in [("reset", Err(ErrorKind::ConnectionReset)), ("queue", Ok(0))] {
                let options = [&["--max-connections-per-source", "1", "--overload", overload], more].concat();
                let server = Preforkd::serve(&options, "127.0.0.1:0", job).start();
                let _held = fill(server.address(), 1);
                for _ in 0..5 {
                    let read = connect(server.address()).read(&mut [0]);
                    assert_eq!(read.map_err(|error| error.kind()), ends, "{overload} {more:?}");
                }
            }
        }
    }
}

/// A penalty is no lack of room.
#[test]
fn who_is_punished_is_told_nothing() {
    for more in ["", "spare = 2"] {
        let listen = address::fresh();
        let server = Preforkd::run(&format!(
            "[service.x]\nlisten = \"{listen}\"\nexec = [\"/bin/false\"]\noverload = \"refuse\"\n\
             refuse_message = \"busy\"\npenalties = {{ 1 = \"1h\" }}\n{more}\n"
        ))
        .start();
        eventually("it is punished", || {
            assert_eq!(words(connect(listen)), "");
            server.service()["refused"]["penalty"].as_u64() > Some(3)
        });
    }
}

#[test]
fn without_words_the_connection_is_closed() {
    let options = ["--max-connections", "1", "--overload", "refuse"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let _held = fill(server.address(), 1);
    assert_eq!(words(connect(server.address())), "");
}

#[test]
fn a_reset_is_one() {
    // Also where programs, under a filter that the worker has, too, or of their own, cannot do it the same way.
    let program = &["--", "/bin/cat"][..];
    let jobs = [(&["echo"][..], &[][..]), (program, &[]), (program, &["--sandbox", "network=client"])];
    for (job, sandbox) in jobs {
        for more in [&[][..], &["--spare", "1"]] {
            let options = [&["--max-connections", "1", "--overload", "reset"], sandbox, more].concat();
            let server = Preforkd::serve(&options, "127.0.0.1:0", job).start();
            let mut held = fill(server.address(), 1);
            for _ in 0..10 {
                let error = connect(server.address()).read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            held.clear();
            eventually("it has ended", || server.count("active") == 0);
            fill(server.address(), 1);
            assert_eq!(refused(&server), 10);
        }
    }
}

#[test]
fn who_is_denied_is_told_nothing() {
    let options = [&REFUSE[..], &["--deny", "127.0.0.9"]].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let _held = fill(server.address(), 4);
    let client = connect_from("127.0.0.9".parse().unwrap(), server.address());
    assert_eq!(words(client.unwrap()), "");
    assert_eq!(refused(&server), 0);
}

#[test]
fn a_unix_socket_refuses_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let server = Preforkd::serve(&REFUSE, &format!("unix:{}", path.display()), &["echo"]).start();
    let mut held: Vec<_> = (0..4).map(|_| connect_unix(&path)).collect();
    eventually("all are served", || server.count("active") == 4);
    assert_eq!(words(connect_unix(&path)), "421 busy\r\n");
    held.pop();
    eventually("one has ended", || server.count("active") == 3);
    let _another = connect_unix(&path);
    eventually("another is served", || server.count("active") == 4);
}

#[test]
fn a_reload_changes_what_meets_those_who_wait() {
    let listen = address::fresh();
    let config = |keys: &str| {
        format!("[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nmax_connections = 2\n{keys}\n")
    };
    let server = Preforkd::run(&config("")).start();
    let mut held = fill(listen, 2);
    let queued: Vec<_> = (0..5).map(|_| connect(listen)).collect();
    eventually("they wait", || server.count("queued") == 5);
    server.configure(&config("overload = \"refuse\"\nrefuse_message = \"busy\""));
    server.reload_ok();
    queued.into_iter().for_each(|client| assert_eq!(words(client), "busy"));
    server.configure(&config(""));
    server.reload_ok();
    let mut waits = connect(listen);
    eventually("it waits", || server.count("queued") == 1);
    held.pop();
    assert!(try_echo(&mut waits, b"x").is_ok());
}

/// Of clients that come at once, exactly as many are served as there is room for, and exactly the others are refused.
fn the_limit_is_exact(more: &[&str]) {
    let options = [&REFUSE[..], &["--workers", "3"], more].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let address = server.address();
    for round in 1..=5 {
        let one = move || {
            let mut client = connect(address);
            client.write_all(b"x").unwrap();
            let mut answer = [0];
            client.read_exact(&mut answer).unwrap();
            (answer == *b"x").then_some(client)
        };
        let clients: Vec<_> = (0..24).map(|_| std::thread::spawn(one)).collect();
        let held: Vec<_> = clients.into_iter().filter_map(|client| client.join().unwrap()).collect();
        assert_eq!(held.len(), 4);
        eventually("all are counted", || (server.count("active"), refused(&server)) == (4, round * 20));
        assert_eq!(server.connections().len(), 4);
        drop(held);
        eventually("all have ended", || server.count("active") == 0);
    }
    assert_eq!((server.count("accepted"), server.count("completed")), (20, 20));
}

#[test]
fn exactly_those_beyond_the_limit_are_refused() {
    the_limit_is_exact(&[]);
}

#[test]
fn exactly_those_beyond_the_limit_are_refused_where_there_are_spares() {
    the_limit_is_exact(&["--spare", "3"]);
}

#[test]
fn exactly_those_beyond_the_limit_are_refused_where_spares_are_used_again() {
    the_limit_is_exact(&["--spare", "3", "--connections-per-child", "0"]);
}

#[test]
fn many_are_told_soon_where_there_are_spares() {
    let options = [&REFUSE[..], &["--workers", "2", "--spare", "4"]].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let mut held = fill(server.address(), 4);
    let start = Instant::now();
    let crowd: Vec<_> = (0..1000).map(|_| connect(server.address())).collect();
    crowd.into_iter().for_each(|client| assert_eq!(words(client), "421 busy\r\n"));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}: one for each look");
    held.pop();
    eventually("one has ended", || server.count("active") == 3);
    fill(server.address(), 1);
}

#[test]
fn it_goes_on_when_workers_are_killed() {
    for spare in ["0", "4"] {
        let options = [&REFUSE[..], &["--workers", "2", "--spare", spare]].concat();
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        let mut held = fill(server.address(), 4);
        for worker in server.workers() {
            server.replace_worker(worker);
            assert_eq!(words(connect(server.address())), "421 busy\r\n");
        }
        held.pop();
        eventually("one has ended", || server.count("active") == 3);
        fill(server.address(), 1);
    }
}

/// What was said is not lost because the worker has nothing else to do.
#[test]
fn a_reload_cuts_nobody_short() {
    let listen = address::fresh();
    let config = |backlog: u32| {
        format!(
            "[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 1\nmax_connections = 1\n\
             overload = \"refuse\"\nrefuse_message = \"busy\"\nbacklog = {backlog}\n"
        )
    };
    let server = Preforkd::run(&config(64)).start();
    let mut backlog = 64;
    let mut in_time = || {
        let held = fill(listen, 1);
        let start = Instant::now();
        let mut client = connect(listen);
        client.write_all(b"x").unwrap();
        client.peek(&mut [0]).unwrap();
        drop(held);
        eventually("it has ended", || server.count("active") == 0);
        let before = server.workers();
        backlog += 1;
        server.configure(&config(backlog));
        server.reload_ok();
        assert_ne!(server.workers(), before);
        // Twice: the answer to the first would be a reset.
        let sent = [0; 2].map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            client.write_all(b"x").is_ok()
        });
        // Longer than it is kept, if the machine is slow.
        (start.elapsed() < Duration::from_millis(1500)).then(|| (sent, words(client)))
    };
    eventually("in time", || in_time().is_some_and(|result| result == ([true; 2], "busy".to_owned())));
}

#[test]
fn who_does_not_hang_up_is_forgotten() {
    let options = [&REFUSE[..], &["--workers", "1"]].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let _held = fill(server.address(), 4);
    let open = || proc::descriptors(server.worker()).len();
    let before = open();
    let stubborn: Vec<_> = (0..100).map(|_| connect(server.address())).collect();
    eventually("all are counted", || refused(&server) == 100);
    eventually("all are forgotten", || open() == before);
    drop(stubborn);
}

#[test]
fn nothing_wakes_up_when_nobody_calls() {
    // Full, without spares; and with spares that wait.
    for (more, held) in [(&[][..], 4), (&["--spare", "4"], 0)] {
        let options = [&REFUSE[..], &["--workers", "2"], more].concat();
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        let _held = fill(server.address(), held);
        let wakeups = || -> Vec<String> {
            let status = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line =
                |text: String| text.lines().find(|line| line.starts_with("voluntary")).unwrap().to_owned();
            server.workers().into_iter().map(|pid| line(status(pid))).collect()
        };
        eventually("nobody wakes up for a while", || {
            let before = wakeups();
            std::thread::sleep(A_WHILE);
            before == wakeups()
        });
    }
}
