//! What a program leaves behind when it has ended: `kill_mode` and `kill_grace`.

use std::io::{Read, Write};
use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::life::echo_service;
use crate::support::client::{connect, exchange};
use crate::support::{Preforkd, Running, address, eventually, preforkd, text};

/// Starts a job as check_mk's agent does, says its pid and ends. The job notes that it was told to end.
const JOB: &str = "#!/bin/sh\n\
    nohup sh -c 'trap \"echo told >DIR/told; exit\" TERM; echo $$ >DIR/job; while :; do sleep 0.05; done' \
    </dev/null >/dev/null 2>&1 &\n\
    while ! [ -s DIR/job ]; do sleep 0.01; done\n\
    cat DIR/job\n";

fn service(listen: SocketAddr, keys: &str) -> String {
    format!("[service.jobs]\nlisten = \"{listen}\"\nexec = [\"DIR/program\"]\nworkers = 1\n{keys}\n")
}

fn serve(listen: SocketAddr, keys: &str) -> Running {
    Preforkd::run(&service(listen, keys)).script("program", JOB).start()
}

fn job(listen: SocketAddr) -> i32 {
    text(&exchange(listen, b"")).trim().parse().unwrap()
}

fn lives(pid: i32) -> bool {
    // One that is dead and not reaped does not.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

fn was_told(server: &Running) -> bool {
    std::fs::read_to_string(server.dir().join("told")).is_ok_and(|text| text == "told\n")
}

#[test]
fn by_default_the_group_ends_with_its_program() {
    for keys in ["", "spare = 1", "count_bytes = false"] {
        let listen = address::fresh();
        let server = serve(listen, keys);
        let job = job(listen);
        eventually("it is dead", || !lives(job));
        assert!(!was_told(&server), "{keys}");
        assert_eq!(server.count("left_behind"), 0);
    }
}

#[test]
fn with_a_grace_the_group_is_told_to_end() {
    let listen = address::fresh();
    let server = serve(listen, "kill_grace = \"30s\"");
    let job = job(listen);
    eventually("it has ended", || !lives(job));
    assert!(was_told(&server));
    eventually("nobody is left", || server.count("left_behind") == 0);
}

#[test]
fn who_does_not_end_within_the_grace_is_killed() {
    let listen = address::fresh();
    let stubborn = JOB.replace("echo told >DIR/told; exit", "echo told >DIR/told");
    let server =
        Preforkd::run(&service(listen, "kill_grace = \"200ms\"")).script("program", &stubborn).start();
    let job = job(listen);
    eventually("it is dead", || !lives(job));
    eventually("it was told before", || was_told(&server));
    assert_eq!(server.count("active"), 0);
}

#[test]
fn what_may_go_on_does_without_the_client_and_is_counted_until_its_service_ends() {
    for keys in ["", "spare = 1", "count_bytes = false"] {
        let listen = address::fresh();
        let other = echo_service(address::fresh(), "workers = 1").replace(".echo", ".other");
        let config = |keys: &str| format!("{}{other}", service(listen, keys));
        let all = format!("kill_mode = \"process\"\n{keys}");
        let server = Preforkd::run(&config(&all)).script("program", JOB).start();
        let job = job(listen);
        let count = || server.service()["left_behind"].as_u64().unwrap();
        eventually("it is counted", || count() >= 1);
        assert_eq!(server.count("active"), 0, "the connection has ended");
        let shown = text(&preforkd(&["status", "--control", server.control()]).stdout);
        assert!(shown.contains("left behind"), "{shown}");
        // Neither the death of its worker nor an upgrade is its end.
        server.replace_worker(server.worker());
        assert!(server.upgrade().status.success());
        eventually("the upgrade", || server.status()["state"] == "running");
        assert!(lives(job) && count() >= 1, "{keys}");
        server.configure(&other);
        server.reload_ok();
        eventually("it has ended with its service", || !lives(job));
        assert!(was_told(&server), "{keys}");
    }
}

#[test]
fn a_stop_ends_what_was_left_behind() {
    let listen = address::fresh();
    let server = serve(listen, "kill_mode = \"process\"");
    let job = job(listen);
    assert!(lives(job));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ending(), "0");
    server.wait_empty();
    assert!(!lives(job) && was_told(&server));
}

#[test]
fn who_goes_on_has_lost_the_client() {
    let listen = address::fresh();
    // It keeps the connection, and tries to speak after its program has ended.
    let speaks = "#!/bin/sh\n(trap '' PIPE; while ! [ -e DIR/speak ]; do sleep 0.01; done; echo late; echo $? >DIR/said) &\n\
                  echo first\n";
    for keys in ["", "count_bytes = false"] {
        let keys = format!("kill_mode = \"process\"\n{keys}");
        let server = Preforkd::run(&service(listen, &keys)).script("program", speaks).start();
        let mut stream = connect(listen);
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert_eq!(said, "first\n");
        let _ = stream.write_all(b"x");
        std::fs::write(server.dir().join("speak"), "").unwrap();
        let result = server.dir().join("said");
        eventually("it has tried", || std::fs::read_to_string(&result).is_ok_and(|text| !text.is_empty()));
        assert_ne!(std::fs::read_to_string(&result).unwrap(), "0\n", "{keys}");
    }
}

#[test]
fn adopted_programs_leave_behind_what_their_service_says() {
    for (mode, goes_on) in [("process", true), ("group", false)] {
        let listen = address::fresh();
        // It ends when its client says so.
        let waits = format!("{JOB}read line\n");
        let server = Preforkd::run(&service(listen, &format!("kill_mode = \"{mode}\"")))
            .script("program", &waits)
            .start();
        let mut stream = connect(listen);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(&stream), &mut line).unwrap();
        let job: i32 = line.trim().parse().unwrap();
        server.replace_worker(server.worker());
        stream.write_all(b"end\n").unwrap();
        eventually("it has ended", || server.count("active") == 0);
        match goes_on {
            true => eventually("it is counted", || lives(job) && server.count("left_behind") >= 1),
            false => eventually("it is dead", || !lives(job)),
        }
    }
}
