//! Sources that have to wait for what their connections did.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use crate::support::client::connect_from;
use crate::support::{Preforkd, Running, address, eventually, preforkd, text};

const BAD: [u8; 4] = [127, 0, 0, 66];
const GOOD: [u8; 4] = [127, 0, 0, 1];

/// A program that ends as it is told.
const OBEDIENT: &str =
    "read order; echo did $order; case $order in crash) kill -SEGV $$;; *) exit $order;; esac";

/// What it answers; empty for who is refused.
fn order(source: [u8; 4], service: SocketAddr, order: &str) -> String {
    let mut client = connect_from(Ipv4Addr::from(source), service).unwrap();
    let mut answer = String::new();
    // Who is refused may see a reset at either.
    let _ = writeln!(client, "{order}").map(|()| client.read_to_string(&mut answer));
    answer
}

fn config(listen: SocketAddr, keys: &str) -> String {
    format!("[service.x]\nlisten = \"{listen}\"\nexec = [\"/bin/sh\", \"-c\", \"{OBEDIENT}\"]\n{keys}\n")
}

fn refused(server: &Running) -> u64 {
    server.service()["refused"]["penalty"].as_u64().unwrap()
}

fn served(server: &Running) -> u64 {
    eventually("all have ended", || server.count("active") == 0);
    server.count("completed")
}

#[test]
fn who_crashes_his_connection_waits_and_nobody_else() {
    for more in ["", "spare = 4"] {
        let listen = address::fresh();
        let keys = format!("penalties = {{ crash = \"10m\" }}\nworkers = 2\n{more}");
        let server = Preforkd::run(&config(listen, &keys)).start();
        assert_eq!(order(BAD, listen, "crash"), "did crash\n");
        server.log.wait("a penalty", |line| line.contains("127.0.0.66/32") && line.contains("crashed"));
        for _ in 0..10 {
            assert_eq!(order(BAD, listen, "crash"), "");
            assert_eq!(order(GOOD, listen, "0"), "did 0\n");
        }
        eventually("all are counted", || refused(&server) == 10);
        assert_eq!(server.service()["penalized"], 1);
        assert_eq!(served(&server), 11);
        server.log.wait("a report", |line| line.contains("refused") && line.contains("by penalties"));
    }
}

#[test]
fn a_status_that_the_service_names_costs_what_it_says() {
    let listen = address::fresh();
    let keys = "penalties = { 7 = \"4m\" }\npenalty_threshold = \"10m\"\npenalty_limit = \"1h\"";
    let server = Preforkd::run(&config(listen, keys)).start();
    for so_far in 1..=3 {
        assert_eq!(order(BAD, listen, "8"), "did 8\n");
        assert_eq!(order(BAD, listen, "7"), "did 7\n");
        // Penalties are written after records.
        let penalties =
            || server.log.count(|line| line.contains("has a penalty of 240 s") && line.contains("exited 7"));
        eventually("a penalty", || penalties() == so_far);
    }
    assert_eq!(order(BAD, listen, "8"), "");
    assert_eq!(order(GOOD, listen, "8"), "did 8\n");
}

#[test]
fn a_penalty_goes_by() {
    let listen = address::fresh();
    let keys = "penalties = { 7 = \"300ms\" }\npenalty_threshold = \"0s\"";
    let server = Preforkd::run(&config(listen, keys)).start();
    assert_eq!(order(BAD, listen, "7"), "did 7\n");
    server.log.wait("a penalty", |line| line.contains("refused for 0.3 s"));
    eventually("the end of it", || order(BAD, listen, "0") == "did 0\n");
    assert_eq!(server.service()["penalized"], 0);
}

#[test]
fn who_is_exempt_never_waits() {
    let listen = address::fresh();
    let keys = "penalties = { crash = \"10m\", 7 = \"10m\" }\npenalty_exempt = [\"127.0.0.64/26\"]";
    let server = Preforkd::run(&config(listen, keys)).start();
    for _ in 0..5 {
        assert_eq!(order(BAD, listen, "crash"), "did crash\n");
        assert_eq!(order(BAD, listen, "7"), "did 7\n");
    }
    assert_eq!((served(&server), refused(&server)), (10, 0));
}

#[test]
fn unban_lifts_a_penalty_that_reload_and_upgrade_keep() {
    let listen = address::fresh();
    let keys = "penalties = { crash = \"10m\" }";
    let server = Preforkd::run(&config(listen, keys)).start();
    assert_eq!(order(BAD, listen, "crash"), "did crash\n");
    server.log.wait("a penalty", |line| line.contains("127.0.0.66/32") && line.contains("crashed"));
    server.configure(&config(listen, &format!("{keys}\nworkers = 1")));
    server.reload_ok();
    assert_eq!(order(BAD, listen, "0"), "");
    assert!(server.upgrade().status.success());
    assert_eq!(order(BAD, listen, "0"), "");

    let unban = |arguments: &[&str]| {
        let arguments = [&["unban", "--control", server.control()], arguments].concat();
        preforkd(&arguments)
    };
    assert_eq!(text(&unban(&["127.0.0.1"]).stdout), "nobody in 127.0.0.1/32 has a penalty or a ban\n");
    assert_eq!(order(BAD, listen, "0"), "");
    let wrong = unban(&["--service", "y", "127.0.0.0/8"]);
    assert_eq!(wrong.status.code(), Some(64));
    assert!(text(&wrong.stderr).contains("there is no service \"y\"; the services are x"));
    let wrong = unban(&["127.0.0.1/8"]);
    assert_eq!(wrong.status.code(), Some(64));
    assert!(text(&wrong.stderr).contains("write \"127.0.0.0/8\""));
    assert_eq!(text(&unban(&["127.0.0.0/8"]).stdout), "x: lifted the penalty of 127.0.0.66/32\n");
    assert_eq!(order(BAD, listen, "0"), "did 0\n");
    server.log.wait("who was forgiven", |line| line.contains("127.0.0.66/32 has no penalty any more"));
}
