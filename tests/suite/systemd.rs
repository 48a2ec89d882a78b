//! What systemd is told and gives, with the test in its place. The tests on real systemd are in tests/systemd.

use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;

use crate::life::echo_service;
use crate::support::client::{connect, echo, exchange, refused};
use crate::support::{A_WHILE, PATIENCE, Preforkd, address, eventually, proc, text};

const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "2000000");

#[test]
fn the_watchdog_is_fed_while_all_workers_answer() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2")).env(WATCHDOG.0, WATCHDOG.1).start();
    for _ in 0..3 {
        let mark = server.notify.mark();
        server.notify.wait_after(mark, "WATCHDOG=1", |line| line == "WATCHDOG=1");
    }
}

#[test]
fn a_stopped_worker_is_replaced_and_its_connections_go_on() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 1")).env(WATCHDOG.0, WATCHDOG.1).start();
    let mut stream = connect(address);
    echo(&mut stream, b"x");
    let worker = server.worker();
    proc::stop(worker);
    // Whoever comes now waits until there is another worker.
    assert_eq!(exchange(address, b"y"), b"y");
    assert_ne!(server.workers(), [worker]);
    eventually("the stopped one is gone", || !proc::lives(worker));
    echo(&mut stream, b"z");
    eventually("the new worker has reaped its own", || server.count("active") == 1);
    let mark = server.notify.mark();
    server.notify.wait_after(mark, "WATCHDOG=1", |line| line == "WATCHDOG=1");
}

#[test]
fn the_status_line_is_worth_reading_and_comes_with_the_watchdog() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2")).env(WATCHDOG.0, WATCHDOG.1).start();
    let mut stream = connect(address);
    echo(&mut stream, b"x");
    let wanted = ["STATUS=1 service, 2 workers, 1 connection, generation 1", "/s", "never reloaded"];
    server.notify.wait("status", |line| wanted.iter().all(|part| line.contains(part)));
}

#[test]
fn listeners_are_stored_and_forgotten_when_they_close() {
    let (one, two) = (address::fresh(), address::fresh());
    let both = echo_service(one, "") + &echo_service(two, "").replace(".echo", ".other");
    let server = Preforkd::run(&both).start();
    let name = |address: std::net::SocketAddr| {
        format!("FDNAME=preforkd={}", address.to_string().replace(':', "%3A"))
    };
    for address in [one, two] {
        server.notify.wait("stored", |line| line == name(address));
    }
    assert_eq!(server.notify.count(|line| line == "FDSTORE=1"), 2);
    server.configure(&echo_service(one, ""));
    server.reload_ok();
    server.notify.wait("removed", |line| line == "FDSTOREREMOVE=1");
    assert_eq!(server.notify.count(|line| line == name(two)), 2);
}

#[test]
fn a_restart_leaves_the_listeners_to_the_next_supervisor() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "")).start();
    server.signal(Signal::SIGUSR1);
    assert_eq!(server.ending(), "0");
    server.wait_empty();
    server.notify.wait("stopping", |line| line == "STOPPING=1");
    assert_eq!(server.notify.count(|line| line == "FDSTOREREMOVE=1"), 0);
    assert_eq!(server.notify.count(|line| line == "STOPPING=1"), 1);
}

#[test]
fn a_stored_listener_is_taken_up_again() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"])
        .passing("preforkd=127.0.0.1%3A0", "127.0.0.1:0")
        .start();
    // Port 0 is any port: also the one that it had before.
    assert_eq!(server.address(), server.passed_address());
    assert_eq!(exchange(server.address(), b"x"), b"x");
    assert_eq!(server.notify.count(|line| line == "FDSTOREREMOVE=1"), 0);
}

#[test]
fn a_stored_listener_that_nobody_wants_is_closed() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"])
        .passing("preforkd=127.0.0.1%3A9", "127.0.0.1:0")
        .start();
    server.notify.wait("removed", |line| line == "FDNAME=preforkd=127.0.0.1%3A9");
    let stale = proc::descriptors(server.pid()).into_iter().filter(|(number, _)| *number == 3).count();
    assert!(stale == 0 || server.address() != server.passed_address());
}

#[test]
fn nobody_can_connect_to_what_nobody_wants_though_systemd_is_slow_to_close_it() {
    // Who has a copy for as long as that takes.
    let slow = "exec 4<&0; sleep 1000 <&4 & exec 4<&-";
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"])
        .after(slow)
        .passing("preforkd=127.0.0.1%3A9", "127.0.0.1:0")
        .start();
    assert!(refused(server.passed_address()));
    drop(server);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"])
        .after(slow)
        .passing(&format!("preforkd=unix%3A{}", path.display()), &format!("unix:{}", path.display()))
        .start();
    assert!(!path.exists());
    drop(server);
}

#[test]
fn what_systemd_does_not_read_holds_up_nobody_and_is_said_when_it_does() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]);
    let path = server.dir().join("deaf");
    let deaf = UnixDatagram::bind(&path).unwrap();
    let full = UnixDatagram::unbound().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send_to(b"full", &path).is_ok() {}
    let server = server.env("WATCHDOG_USEC", "200000").after("export NOTIFY_SOCKET=DIR/deaf").start();
    assert_eq!(exchange(server.address(), b"x"), b"x");
    for worker in server.workers() {
        server.replace_worker(worker);
    }
    deaf.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = Vec::new();
    while !said.iter().any(|message: &String| message.starts_with("STATUS=")) {
        let mut message = [0; 4096];
        let length = deaf.recv(&mut message).unwrap();
        said.push(text(&message[..length]));
    }
    let said = said.split_off(said.iter().position(|message| message != "full").unwrap());
    let name = format!("preforkd={}", server.address().to_string().replace(':', "%3A"));
    let name = name.replace(&server.address().port().to_string(), "0");
    assert_eq!(said[..2], [format!("FDSTORE=1\nFDNAME={name}\n"), "READY=1\n".to_owned()], "{said:?}");
    // An upgrade would forget it, and waits.
    while full.send_to(b"full", &path).is_ok() {}
    let mut news = connect(server.address());
    echo(&mut news, b"x");
    std::thread::sleep(A_WHILE);
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| server.upgrade());
        std::thread::sleep(A_WHILE);
        assert!(!upgrade.is_finished() && server.status()["upgrades"] == 0);
        deaf.set_nonblocking(true).unwrap();
        eventually("what is there is read", || {
            while deaf.recv(&mut [0; 4096]).is_ok() {}
            upgrade.is_finished()
        });
        assert!(upgrade.join().unwrap().status.success());
    });
    assert_eq!(server.status()["upgrades"], 1);
}
