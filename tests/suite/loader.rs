//! The process that reads the configuration for a reload: whatever becomes of it, the supervisor knows.

use std::time::Instant;

use nix::sys::signal::Signal;

use crate::life::echo_service;
use crate::support::client::exchange;
use crate::support::proc::Process;
use crate::support::{A_WHILE, PATIENCE, Preforkd, Running, address, eventually, proc, root, text};

/// A service that a getent which never answers holds up when it is reloaded.
fn held_up() -> (Running, std::net::SocketAddr) {
    let listen = address::fresh();
    let server = Preforkd::run(&echo_service(listen, "workers = 1"))
        .script("getent", "#!/bin/sh\necho >>DIR/asked\nexec sleep 1000\n")
        .after_mounts("mount --bind DIR/getent /usr/bin/getent")
        .start();
    server.configure(&echo_service(listen, "workers = 1\nuser = \"ldapuser\""));
    (server, listen)
}

/// Asks for a reload, does something to the process that reads for it, and returns why the reload was rejected.
fn rejected(server: &Running, signal: Signal) -> String {
    let mark = server.log.mark();
    server.signal(Signal::SIGHUP);
    eventually("getent is asked", || server.dir().join("asked").exists());
    let is_loader = |process: &Process| process.name == "preforkd-load";
    let loader = server.processes().into_iter().find(is_loader).expect("a process that reads");
    proc::kill(loader.pid, signal);
    // It has as long as this suite has patience.
    let is_rejected = || server.log.all()[mark..].iter().any(|line| line.contains("reload rejected"));
    let start = Instant::now();
    while !is_rejected() && start.elapsed() < PATIENCE {
        std::thread::sleep(A_WHILE);
    }
    let line = server.log.wait_after(mark, "a rejection", |line| line.contains("reload rejected"));
    eventually("it has gone", || !server.processes().iter().any(is_loader));
    line
}

/// The supervisor goes on, and reloads as soon as it can.
fn goes_on(server: &Running, listen: std::net::SocketAddr) {
    assert_eq!(exchange(listen, b"x"), b"x");
    server.configure(&echo_service(listen, "workers = 2"));
    server.reload_ok();
    assert_eq!(server.workers().len(), 2);
    let sleeps = |process: &Process| process.name == "sleep";
    eventually("getent has gone, too", || !server.processes().iter().any(sleeps));
}

#[test]
fn a_reader_that_is_killed_rejects_the_reload() {
    if !root("a getent of its own") {
        return;
    }
    let (server, listen) = held_up();
    let line = rejected(&server, Signal::SIGKILL);
    assert!(line.contains("the process that reads the configuration ended before it was done"), "{line}");
    // Whoever outlives it is ours.
    server.processes().iter().filter(|process| process.name == "sleep").for_each(|process| {
        proc::kill(process.pid, Signal::SIGKILL);
    });
    goes_on(&server, listen);
}

#[test]
fn a_reader_that_does_not_come_back_is_ended_and_says_what_it_waited_for() {
    if !root("a getent of its own") {
        return;
    }
    let (server, listen) = held_up();
    let line = rejected(&server, Signal::SIGSTOP);
    assert!(line.contains("was not read within 30 s, waiting for \"ldapuser\""), "{line}");
    goes_on(&server, listen);
}

#[test]
fn an_upgrade_waits_for_the_reader_and_a_second_reload_for_the_first() {
    if !root("a getent of its own") {
        return;
    }
    let (server, listen) = held_up();
    server.signal(Signal::SIGHUP);
    eventually("getent is asked", || server.dir().join("asked").exists());
    assert_eq!(server.status()["state"].as_str(), Some("reloading"));
    server.configure(&echo_service(listen, "workers = 2"));
    server.signal(Signal::SIGUSR2);
    server.signal(Signal::SIGHUP);
    eventually("both have come", || {
        let status = server.status();
        status["upgrades"] == 1 && status["reloads"]["ok"] == 1 && status["reloads"]["failed"] == 1
    });
    eventually("the workers of the old program have gone", || server.workers().len() == 2);
    let said = text(&server.reload().stdout);
    assert!(said.contains("is in force"), "{said}");
}

#[test]
fn a_name_of_any_length_is_complained_about() {
    let listen = address::fresh();
    let server = Preforkd::run(&echo_service(listen, "workers = 1")).start();
    let long = "x".repeat(400_000);
    server.configure(&format!(
        "[service.{long}]\nlisten = \"{listen}\"\nhandler = \"echo\"\nuser = \"{long}\"\n"
    ));
    let reload = server.reload();
    assert_eq!(reload.status.code(), Some(78));
    assert!(text(&reload.stderr).contains("cannot be the name of a service"));
}
