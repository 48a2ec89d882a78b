//! What connection processes say about themselves, when one of them is captured: it is believed about no other, and keeps no
//! other from being heard.
//!
//! A test is root, and so can do from outside what code in such a process could.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::support::client::{closed, connect, echo, finish};
use crate::support::{Preforkd, Running, eventually, limit, proc, root};

fn record(server: &Running, client: SocketAddr) -> String {
    let from = format!(" from {client}: ");
    server.log.wait("the record", |line| line.contains(&from))
}

/// Those that serve: they have no epoll instance, which a spare has.
fn serving(server: &Running) -> Vec<i32> {
    let serves = |pid: &i32| {
        let descriptors = proc::descriptors(*pid);
        descriptors.iter().all(|(_, target)| target.to_str() != Some("anon_inode:[eventpoll]"))
    };
    server.connections().into_iter().map(|process| process.pid).filter(serves).collect()
}

/// What a process leaves for its worker is in its limit on file locks, see `src/sys/exit_words.rs`.
fn leave(pid: i32, soft: u64, hard: u64) {
    limit(pid, &format!("--locks={soft}:{hard}"));
}

#[test]
fn what_a_process_leaves_is_about_itself() {
    if !root("what a process leaves") {
        return;
    }
    let kinds = [0u64, 1, 2, 3, 7].map(|kind| 1 << 63 | kind << 60 | 77);
    for spare in ["0", "4"] {
        let options = ["--workers", "1", "--spare", spare, "--first-byte-timeout", "10m"];
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        let mut honest: Vec<_> = (0..3).map(|_| connect(server.address())).collect();
        honest.iter_mut().for_each(|client| echo(client, b"01234"));
        // For a moment a spare looks like one of them.
        eventually("they are served", || serving(&server).len() == 3);
        let before: HashSet<i32> = serving(&server).into_iter().collect();
        for hard in kinds.into_iter().chain([5, 0]) {
            let mut captured = connect(server.address());
            let client = captured.local_addr().unwrap();
            echo(&mut captured, b"x");
            let new = || serving(&server).into_iter().filter(|pid| !before.contains(pid)).collect::<Vec<_>>();
            eventually("it is known", || new().len() == 1);
            let pid = new()[0];
            leave(pid, 5.min(hard), hard);
            proc::kill(pid, Signal::SIGKILL);
            let record = record(&server, client);
            assert!(record.contains("killed KILL") && record.contains(&format!("(pid {pid}")), "{record}");
        }
        for client in honest {
            let address = client.local_addr().unwrap();
            assert_eq!(finish(client, b"56789"), b"56789");
            let record = record(&server, address);
            assert!(record.contains("exited 0") && record.contains("10 bytes in, 10 out"), "{record}");
        }
        assert_eq!(server.count("timeouts"), 0);
        eventually("all are counted", || {
            let service = server.service();
            service["active"] == 0 && service["accepted"] == service["completed"]
        });
    }
}

/// The pipe that this process has and none of the others.
fn own_pipe(pid: i32, others: &[i32]) -> File {
    let pipes = |pid: i32| {
        let all = proc::descriptors(pid).into_iter();
        all.filter(|(_, target)| target.to_str().unwrap().starts_with("pipe:")).collect::<Vec<_>>()
    };
    let theirs: HashSet<PathBuf> =
        others.iter().flat_map(|pid| pipes(*pid)).map(|(_, target)| target).collect();
    let own: Vec<_> = pipes(pid).into_iter().filter(|(_, target)| !theirs.contains(target)).collect();
    let [(number, _)] = &own[..] else { panic!("{own:?}") };
    File::options().write(true).open(format!("/proc/{pid}/fd/{number}")).unwrap()
}

/// A report that the connection of this number has ended, which has moved much: `src/ipc/reports.rs`.
fn ended(sender: i32, number: u64) -> Vec<u8> {
    let mut message = sender.to_ne_bytes().to_vec();
    message.extend([255, 0, 0, 0]);
    for word in [1 << 40, 1 << 40, 1, number, 1, 0, 0, 0, u64::MAX] {
        message.extend(word.to_ne_bytes());
    }
    message
}

#[test]
fn who_serves_several_can_report_nobody_elses_end_and_fill_nobody_elses_pipe() {
    if !root("who serves several") {
        return;
    }
    type Lie = fn(i32, i32) -> Vec<Vec<u8>>;
    let lies: [Lie; 4] = [
        // In the name of the other.
        |_, other| (1..20).map(|number| ended(other, number)).collect(),
        // Of its connection, in its own name. What is its own may end; it is the other that this is about.
        |own, _| (1..20).rev().flat_map(|number| [ended(own, number), ended(own, number)]).collect(),
        |_, _| vec![vec![0x55; 4096]; 100],
        |_, _| vec![b"too short".to_vec()],
    ];
    for lie in lies {
        let options = ["--workers", "1", "--spare", "2", "--connections-per-child", "0"];
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        eventually("spares", || server.count("spares") == 2);
        let mut clients: Vec<_> = (0..2).map(|_| connect(server.address())).collect();
        clients.iter_mut().for_each(|client| echo(client, b"0123"));
        eventually("both are known", || server.count("active") == 2);
        // Others may have been made that wait, and have only the listener.
        let sockets = |pid: i32| {
            let all = proc::descriptors(pid);
            all.iter().filter(|(_, target)| target.to_str().unwrap().starts_with("socket:")).count()
        };
        let serving = || {
            let all = server.connections().into_iter().map(|process| process.pid);
            all.filter(|pid| sockets(*pid) == 2).collect::<Vec<_>>()
        };
        eventually("two serve", || serving().len() == 2);
        let [captured, other] = serving()[..] else { panic!("two serve") };
        let mut pipe = own_pipe(captured, &[other]);
        for message in lie(captured, other) {
            // It may be gone already.
            let _ = pipe.write_all(&message);
        }
        drop(pipe);
        server
            .log
            .wait("why", |line| line.contains(&format!("process {captured} has reported what cannot be")));
        eventually("it is gone", || !proc::lives(captured));
        // One of them was its client, and the other notices nothing.
        let mut left = Vec::new();
        for mut client in clients {
            let address = client.local_addr().unwrap();
            if crate::support::client::try_echo(&mut client, b"4567").is_ok() {
                left.push((client, address));
            } else {
                assert!(closed(&mut client));
            }
        }
        let [(client, address)] = left.try_into().unwrap();
        assert_eq!(finish(client, b"89"), b"89");
        let record = record(&server, address);
        assert!(record.contains(": exited 0 after") && record.contains("10 bytes in, 10 out"), "{record}");
        assert_eq!(server.log.count(|line| line.contains(&format!(" from {address}: "))), 1);
        eventually("all are counted", || {
            let service = server.service();
            service["active"] == 0 && service["accepted"] == 2 && service["completed"] == 2
        });
        assert_eq!(finish(connect(server.address()), b"x"), b"x");
    }
}

/// root.conf leaves the workers no CAP_SYS_RESOURCE, with which they may ask about processes of others.
#[test]
fn handlers_of_another_user_are_heard_by_a_worker_without_the_right_to_ask() {
    if !root("handlers of another user") {
        return;
    }
    for more in [&[][..], &["--spare", "2"], &["--spare", "2", "--connections-per-child", "0"]] {
        let options = [&["--workers", "1", "--user", "nobody", "--idle-timeout", "1s"], more].concat();
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"])
            .under(&["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"])
            .start();
        let [quick, mut slow] = [connect(server.address()), connect(server.address())];
        let [served, idle] = [&quick, &slow].map(|client| client.local_addr().unwrap());
        assert_eq!(finish(quick, b"0123456789"), b"0123456789");
        echo(&mut slow, b"01234");
        assert!(closed(&mut slow));
        let record_of = |client| record(&server, client);
        let (served, idle) = (record_of(served), record_of(idle));
        assert!(served.contains("exited 0") && served.contains("10 bytes in, 10 out"), "{served}");
        assert!(idle.contains("timeout idle") && idle.contains("5 bytes in, 5 out"), "{idle}");
    }
}

#[test]
fn who_may_not_lift_the_limit_by_which_they_report_is_told() {
    if !root("the limit on file locks") {
        return;
    }
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"])
        .under(&["prlimit", "--locks=1000:1000", "--"])
        .by_user(61_235, 400)
        .start_unready();
    server.log.wait("the way out", |line| line.contains("LimitLOCKS="));
    assert_ne!(server.ending(), "0");
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["--", "/bin/cat"])
        .under(&["prlimit", "--locks=1000:1000", "--"])
        .by_user(61_235, 400)
        .start();
    assert_eq!(finish(connect(server.address()), b"x"), b"x");
}
