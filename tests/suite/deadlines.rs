//! How long a connection may take.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{
    closed, connect, connect_from, connect_unix, echo, exchange, silent_for, try_echo,
};
use crate::support::{A_WHILE, Preforkd, Running, address, eventually, preforkd, proc, text, write};

/// A service of one worker.
fn serve(options: &[&str], job: &[&str]) -> Running {
    let options = [&["--workers", "1"], options].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", job).start();
    let spares =
        options.windows(2).find(|pair| pair[0] == "--spare").map_or(0, |pair| pair[1].parse().unwrap());
    eventually("spares", || server.count("spares") == spares);
    server
}

const CAT: &[&str] = &["--", "/bin/cat"];
const ECHO: &[&str] = &["echo"];

fn shell(script: &str) -> [&str; 4] {
    ["--", "/bin/sh", "-c", script]
}

/// The record of this client's connection, which must have ended by this deadline.
pub(crate) fn timed_out(server: &Running, client: SocketAddr, deadline: &str) -> String {
    let from = format!(" from {client}: ");
    let record = server.log.wait("the record", |line| line.contains(&from));
    assert!(record.contains(&format!("{from}timeout {deadline} after ")), "{record}");
    record
}

/// A client that says nothing more is disconnected, for this reason.
pub(crate) fn is_ended(server: &Running, mut client: TcpStream, deadline: &str) -> String {
    let address = client.local_addr().unwrap();
    // What was sent before may come first.
    let mut scrap = [0; 65536];
    while matches!(client.read(&mut scrap), Ok(1..)) {}
    timed_out(server, address, deadline)
}

/// All that was accepted has ended, and so many by a deadline.
fn all_counted(server: &Running, timeouts: u64) {
    eventually("all are counted", || {
        let service = server.service();
        service["active"] == 0
            && service["completed"] == service["accepted"]
            && service["timeouts"] == timeouts
    });
}

/// In each way a connection can get its process.
fn in_every_way(options: &[&str], check: impl Fn(&Running) + Sync) {
    let several = &["--spare", "2", "--connections-per-child", "0"][..];
    let spares = &["--spare", "4"][..];
    let ways = [(ECHO, &[][..]), (ECHO, spares), (CAT, &[]), (CAT, spares), (ECHO, several)];
    std::thread::scope(|scope| {
        for (job, more) in ways {
            let check = &check;
            scope.spawn(move || check(&serve(&[options, more].concat(), job)));
        }
    });
}

#[test]
fn a_client_that_says_nothing_is_ended_by_the_first_byte_timeout() {
    in_every_way(&["--first-byte-timeout", "200ms"], |server| {
        let _watch = server.watch_zombies();
        for _ in 0..5 {
            is_ended(server, connect(server.address()), "first_byte");
        }
        // Whoever has said something may be silent then.
        let mut client = connect(server.address());
        echo(&mut client, b"x");
        assert!(silent_for(&mut client, A_WHILE));
        echo(&mut client, b"y");
        drop(client);
        all_counted(server, 5);
    });
}

#[test]
fn a_client_that_falls_silent_is_ended_by_the_idle_timeout_and_its_bytes_are_counted() {
    in_every_way(&["--idle-timeout", "300ms"], |server| {
        let mut client = connect(server.address());
        echo(&mut client, b"0123456789");
        let record = is_ended(server, client, "idle");
        assert!(record.contains("10 bytes in, 10 out"), "{record}");
        is_ended(server, connect(server.address()), "idle");
        all_counted(server, 2);
    });
}

#[test]
fn a_byte_now_and_then_keeps_a_connection_until_its_lifetime_is_over() {
    in_every_way(&["--idle-timeout", "4s", "--max-lifetime", "6s"], |server| {
        let mut client = connect(server.address());
        let address = client.local_addr().unwrap();
        let mut answer = [0];
        // The second is part of what is tested: a client that is slow.
        while client.write_all(b"x").is_ok() && matches!(client.read(&mut answer), Ok(1)) {
            if !silent_for(&mut client, Duration::from_secs(1)) {
                break;
            }
        }
        timed_out(server, address, "lifetime");
        all_counted(server, 1);
    });
}

#[test]
fn a_client_that_does_not_read_is_idle() {
    std::thread::scope(|scope| {
        for (options, job) in [
            (&["--idle-timeout", "1s"][..], &["chargen"][..]),
            (&["--idle-timeout", "1s"], &["--", "/usr/bin/yes"]),
            (&["--idle-timeout", "1s", "--spare", "2"], &["--", "/usr/bin/yes"]),
        ] {
            scope.spawn(move || {
                let server = serve(options, job);
                let client = connect(server.address());
                timed_out(&server, client.local_addr().unwrap(), "idle");
                all_counted(&server, 1);
                // What it has not taken is not kept for it.
                let ends = [server.address(), client.local_addr().unwrap()];
                let ends = ends.map(|end| format!("0100007F:{:04X}", end.port())).join(" ");
                let table = || std::fs::read_to_string("/proc/net/tcp").unwrap();
                eventually("the kernel has given up", || !table().contains(&ends));
            });
        }
    });
}

/// Drops whatever comes for it, as if its machine or the way to it were gone: no packet over the loopback has the TTL that
/// it wants from now on. Neither std nor nix has `IP_MINTTL`, and every Debian has perl.
fn vanish(client: &TcpStream) {
    let script = "setsockopt(STDIN, 0, 21, pack('i', 255)) or die $!";
    let socket = OwnedFd::from(client.try_clone().unwrap());
    let status = Command::new("perl").args(["-e", script]).stdin(socket).status().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn a_client_that_has_vanished_is_idle_although_the_kernel_sends_again_and_again() {
    let talk = "while echo x; do sleep 0.1; done";
    let chargen = &["chargen"][..];
    for (options, job) in [
        (&["--idle-timeout", "1s"][..], &shell(talk)[..]),
        (&["--idle-timeout", "1s", "--spare", "2"], &shell(talk)),
        (&["--idle-timeout", "1s"], chargen),
        (&["--idle-timeout", "1s"], CAT),
    ] {
        let server = serve(options, job);
        let mut client = connect(server.address());
        if job == CAT {
            echo(&mut client, b"x");
        } else {
            client.read_exact(&mut [0]).unwrap();
        }
        vanish(&client);
        timed_out(&server, client.local_addr().unwrap(), "idle");
        all_counted(&server, 1);
    }
}

#[test]
fn what_the_service_sends_keeps_a_connection_that_reads() {
    let script = "while echo x; do sleep 1; done";
    let server = serve(&["--idle-timeout", "4s", "--max-lifetime", "6s"], &shell(script));
    is_ended(&server, connect(server.address()), "lifetime");
}

#[test]
fn a_program_that_ignores_term_is_killed_with_all_of_its_group() {
    // Who is started after the trap ignores it, too.
    let script = "trap '' TERM; sleep 1001 & echo ready; sleep 1002; sleep 1003";
    std::thread::scope(|scope| {
        for options in [&["--idle-timeout", "300ms"][..], &["--max-lifetime", "300ms", "--spare", "1"]] {
            scope.spawn(move || {
                let server = serve(options, &shell(script));
                let deadline = if options.len() == 2 { "idle" } else { "lifetime" };
                let mut client = connect(server.address());
                client.read_exact(&mut [0; 6]).unwrap();
                is_ended(&server, client, deadline);
                let is_its = |name: &str| name == "sleep";
                eventually("nothing is left", || {
                    server.processes().iter().all(|process| !is_its(&process.name))
                });
                all_counted(&server, 1);
            });
        }
    });
}

#[test]
fn a_program_that_has_stopped_itself_or_ended_its_first_thread_is_counted_and_killed() {
    let stopped = "import os, signal\nsignal.signal(15, signal.SIG_IGN)\nprint('ready', flush=True)\nos.kill(os.getpid(), 19)";
    // The first is a zombie then, which nobody can reap.
    let headless = "import ctypes, signal, threading, time\nsignal.signal(15, signal.SIG_IGN)\n\
                    threading.Thread(target=time.sleep, args=(1000,)).start()\nprint('ready', flush=True)\n\
                    ctypes.CDLL(None).syscall(60, 0)";
    let is_counted = |script: &str, state: char, options: &[&str]| {
        let server = serve(options, &["--", "/usr/bin/python3", "-c", script]);
        let mut client = connect(server.address());
        client.read_exact(&mut [0; 6]).unwrap();
        let is_it = || server.processes().into_iter().find(|process| process.state == state);
        eventually("it has done that", || is_it().is_some());
        let pid = is_it().unwrap().pid;
        assert_eq!(server.count("active"), 1);
        is_ended(&server, client, "lifetime");
        eventually("it is gone", || proc::process(pid).is_none());
        all_counted(&server, 1);
    };
    std::thread::scope(|scope| {
        for (script, state) in [(stopped, 'T'), (headless, 'Z')] {
            for options in [&["--max-lifetime", "2s"][..], &["--max-lifetime", "2s", "--spare", "1"]] {
                scope.spawn(move || is_counted(script, state, options));
            }
        }
    });
}

#[test]
fn a_program_that_ends_by_term_in_its_own_way_has_timed_out_all_the_same() {
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let server = serve(&["--idle-timeout", "300ms"], &shell(script));
    let mut client = connect(server.address());
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, "ready\nbye\n");
    timed_out(&server, client.local_addr().unwrap(), "idle");
    assert_eq!(server.count("crashes"), 0);
}

#[test]
fn nothing_is_left_of_the_group_of_a_program_that_has_ended() {
    // With and without a deadline, a copy of the connection, a spare.
    for options in [&[][..], &["--idle-timeout", "1h"], &["--count-bytes", "false"], &["--spare", "1"]] {
        let server = serve(options, &shell("trap '' TERM; sleep 1000 & echo $!; exit 3"));
        let mut client = connect(server.address());
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        let left: i32 = said.trim().parse().unwrap();
        eventually("it is gone", || !proc::lives(left));
        server.log.wait("the record", |line| line.contains(": exited 3 after"));
    }
}

#[test]
fn a_process_that_has_left_the_group_has_lost_the_client() {
    for options in [&[][..], &["--idle-timeout", "1h", "--count-bytes", "false"], &["--spare", "1"]] {
        // It says that it is out before its parent ends.
        let script = "setsid sh -c 'echo $$; exec sleep 1000' & while [ ! -e /proc/$!/stat ] || \
                      [ \"$(cut -d' ' -f6 /proc/$!/stat)\" != $! ]; do :; done; sleep 0.2";
        let server = serve(options, &shell(script));
        let mut client = connect(server.address());
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        let left: i32 = said.trim().parse().unwrap();
        assert!(proc::lives(left), "it is nobody's business");
        all_counted(&server, 0);
    }
}

#[test]
fn thousands_of_idle_connections_wake_nobody() {
    const CLIENTS: usize = 1000;
    for job in [ECHO, CAT] {
        let options = ["--idle-timeout", "1h", "--first-byte-timeout", "1h", "--max-lifetime", "1h"];
        let server = serve(&options, job);
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect(server.address())).collect();
        clients.iter_mut().for_each(|client| echo(client, b"x"));
        let switches = || -> Vec<String> {
            let pids = server.processes().into_iter().map(|process| process.pid);
            let status = |pid| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let lines = |pid| status(pid).lines().filter(|line| line.contains("ctxt_sw")).collect::<String>();
            pids.map(|pid| format!("{pid} {}", lines(pid))).collect()
        };
        eventually("nobody wakes up for a while", || {
            let before = switches();
            std::thread::sleep(A_WHILE);
            before.len() == CLIENTS + 2 && before == switches()
        });
        clients.iter_mut().for_each(|client| echo(client, b"y"));
        drop(clients);
        all_counted(&server, 0);
    }
}

#[test]
fn a_thousand_idle_connections_are_ended_and_others_are_served() {
    for job in [ECHO, CAT] {
        let server = serve(&["--first-byte-timeout", "3s", "--max-connections", "1000"], job);
        let clients: Vec<_> = (0..1000).map(|_| connect(server.address())).collect();
        // It waits in the backlog until they have gone.
        assert_eq!(exchange(server.address(), b"well"), b"well");
        for mut client in clients {
            assert!(closed(&mut client));
        }
        all_counted(&server, 1000);
    }
}

/// More reports than fit into the pipe, while nobody reads it.
#[test]
fn a_timeout_that_the_worker_is_slow_to_hear_of_is_one() {
    let server = serve(&["--first-byte-timeout", "5s", "--max-connections", "1500"], ECHO);
    let clients: Vec<_> = (0..1500).map(|_| connect(server.address())).collect();
    eventually("all are served", || server.service()["accepted"] == 1500);
    let worker = server.worker();
    proc::stop(worker);
    for mut client in clients {
        assert!(closed(&mut client));
    }
    proc::kill(worker, Signal::SIGCONT);
    all_counted(&server, 1500);
}

#[test]
fn an_old_worker_goes_on_enforcing_its_own_deadlines() {
    let listen = address::fresh();
    for (job, spare) in [("handler = \"echo\"", 0), ("exec = \"cat\"", 0), ("exec = \"cat\"", 2)] {
        let job = job.replace("\"cat\"", "[\"/bin/cat\"]");
        let config = |keys: &str| {
            format!("[service.one]\nlisten = \"{listen}\"\n{job}\nworkers = 1\nspare = {spare}\n{keys}\n")
        };
        let server = Preforkd::run(&config("max_lifetime = \"3s\"")).start();
        let mut first = connect(listen);
        echo(&mut first, b"x");
        let mut second = connect(listen);
        echo(&mut second, b"x");
        server.configure(&config(""));
        server.reload_ok();
        // The old ones go when they have looked for a connection once more.
        eventually("only new spares", || server.count("spares") == spare);
        let mut third = connect(listen);
        echo(&mut third, b"x");
        is_ended(&server, first, "lifetime");
        is_ended(&server, second, "lifetime");
        echo(&mut third, b"y");
        drop(third);
        all_counted(&server, 2);
        eventually("only the new worker", || server.all_workers().len() == 1);
    }
}

#[test]
fn processes_of_several_connections_begin_anew_with_each() {
    let options =
        ["--spare", "1", "--connections-per-child", "0", "--max-lifetime", "1h", "--idle-timeout", "1s"];
    let server = serve(&options, ECHO);
    for _ in 0..20 {
        assert_eq!(exchange(server.address(), b"x"), b"x");
    }
    eventually("all have ended", || server.count("completed") == 20);
    eventually("no more wait than may", || server.connections().len() <= 2);
    let waiting = server.connections();
    std::thread::sleep(Duration::from_millis(1500)); // nobody who waits for a connection is idle
    let pids = |processes: &[proc::Process]| processes.iter().map(|it| it.pid).collect::<Vec<_>>();
    assert_eq!(pids(&server.connections()), pids(&waiting));
    let mut client = connect(server.address());
    echo(&mut client, b"0123456789");
    let record = is_ended(&server, client, "idle");
    assert!(record.contains("10 bytes in, 10 out"), "{record}");
    assert_eq!(exchange(server.address(), b"x"), b"x");
    all_counted(&server, 1);
}

#[test]
fn a_program_that_was_a_spare_has_its_bytes_counted() {
    let server = serve(&["--spare", "4"], CAT);
    for _ in 0..20 {
        assert_eq!(exchange(server.address(), b"0123456789"), b"0123456789");
    }
    eventually("records", || server.log.count(|line| line.contains(": exited 0 after")) == 20);
    assert_eq!(server.log.count(|line| line.contains("10 bytes in, 10 out")), 20);
}

#[test]
fn who_times_out_has_a_penalty_for_it() {
    let options = ["--first-byte-timeout", "200ms", "--penalties", "timeout=10m"];
    for job in [ECHO, CAT] {
        let server = serve(&options, job);
        is_ended(
            &server,
            connect_from(Ipv4Addr::new(127, 0, 0, 66), server.address()).unwrap(),
            "first_byte",
        );
        server.log.wait("a penalty", |line| line.contains("127.0.0.66/32") && line.contains("timed out"));
        let mut again = connect_from(Ipv4Addr::new(127, 0, 0, 66), server.address()).unwrap();
        assert!(try_echo(&mut again, b"x").is_err());
        assert_eq!(exchange(server.address(), b"x"), b"x");
    }
}

#[test]
fn the_header_of_a_proxy_is_no_first_byte_of_its_client() {
    for job in [ECHO, CAT] {
        let server = serve(&["--first-byte-timeout", "300ms", "--proxy-protocol-from", "127.0.0.0/8"], job);
        let mut proxy = connect(server.address());
        proxy.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n").unwrap();
        assert!(closed(&mut proxy));
        let record = timed_out(&server, "192.0.2.7:40000".parse().unwrap(), "first_byte");
        assert!(record.contains("0 bytes in, 0 out"), "{record}");
        all_counted(&server, 1);
    }
}

#[test]
fn at_a_unix_socket_programs_have_lifetimes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("preforkd.toml");
    let keys = "exec = [\"/bin/cat\"]\nidle_timeout = \"100ms\"\nfirst_byte_timeout = \"100ms\"\n";
    write(&config, &format!("[service.one]\nlisten = \"unix:/run/x.sock\"\n{keys}"));
    let output = preforkd(&["check", "--config", config.to_str().unwrap()]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.contains("preforkd.toml:4:1: error: ") && said.contains("preforkd.toml:5:1: error: "),
        "{said}"
    );

    for job in [ECHO, CAT] {
        let server = Preforkd::serve(&["--max-lifetime", "2s"], "unix:DIR/service.sock", job).start();
        let mut client = connect_unix(&server.dir().join("service.sock"));
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        server.log.wait("the record", |line| line.contains(": timeout lifetime after"));
        all_counted(&server, 1);
    }
}

#[test]
fn the_supervisor_ends_the_lifetimes_of_a_dead_workers_connections() {
    let deaf = shell("trap '' TERM; echo x; while :; do sleep 1000; done");
    for job in [&["echo"][..], &deaf[..]] {
        let server = serve(&["--max-lifetime", "3s"], job);
        let client = connect(server.address());
        eventually("it is served", || server.count("active") == 1);
        server.replace_worker(server.worker());
        is_ended(&server, client, "lifetime");
        all_counted(&server, 1);
    }
}
