//! What one source may take.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use crate::support::client::{connect_from, try_echo};
use crate::support::{Preforkd, Running, address, eventually};

/// A connection from this address that is served, or `None` if it was closed.
fn served_from(source: [u8; 4], service: SocketAddr) -> Option<TcpStream> {
    let mut client = connect_from(Ipv4Addr::from(source), service).unwrap();
    try_echo(&mut client, b"x").is_ok().then_some(client)
}

fn refused(server: &Running, reason: &str) -> u64 {
    server.service()["refused"][reason].as_u64().unwrap()
}

fn a_source_has_its_limit(more: &[&str]) {
    let options = [&["--max-connections-per-source", "5", "--workers", "2"], more].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let service = server.address();
    for source in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        let mut held: Vec<_> = (0..5).map(|_| served_from(source, service).unwrap()).collect();
        for _ in 0..10 {
            assert!(served_from(source, service).is_none(), "a sixth connection");
        }
        held.drain(..2);
        eventually("two places", || server.count("counted") == 3 && server.count("active") == 3);
        held.extend((0..2).map(|_| served_from(source, service).unwrap()));
        assert!(served_from(source, service).is_none(), "a sixth connection");
        drop(held);
        eventually("all have ended", || server.count("active") == 0);
        assert_eq!(server.count("counted"), 0);
    }
    eventually("refusals", || refused(&server, "source_limit") == 22);
    server
        .log
        .wait("a report", |line| line.contains("refused") && line.contains("max_connections_per_source"));
}

#[test]
fn a_source_has_its_limit_over_all_workers() {
    a_source_has_its_limit(&[]);
}

#[test]
fn a_source_has_its_limit_over_all_spares() {
    a_source_has_its_limit(&["--spare", "8"]);
}

#[test]
fn a_source_has_its_limit_where_spares_are_used_again() {
    a_source_has_its_limit(&["--spare", "8", "--connections-per-child", "0"]);
}

fn a_source_has_its_rate(more: &[&str]) {
    let options = [&["--rate-per-source", "1/h burst 20", "--workers", "2"], more].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    for source in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        let served = (0..50).filter(|_| served_from(source, server.address()).is_some()).count();
        assert_eq!(served, 20);
    }
    eventually("refusals", || refused(&server, "rate") == 60);
    server.log.wait("a report", |line| line.contains("refused") && line.contains("rate_per_source"));
}

#[test]
fn a_source_has_its_rate_over_all_workers() {
    a_source_has_its_rate(&[]);
}

#[test]
fn a_source_has_its_rate_over_all_spares() {
    a_source_has_its_rate(&["--spare", "8"]);
}

#[test]
fn tokens_come_back() {
    let server = Preforkd::serve(&["--rate-per-source", "5/s"], "127.0.0.1:0", &["echo"]).start();
    let served = || served_from([127, 0, 0, 1], server.address()).is_some();
    while served() {}
    eventually("another token", served);
}

#[test]
fn a_source_is_as_wide_as_its_prefix() {
    let options = ["--max-connections-per-source", "2", "--source-prefix-v4", "24"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let _held = [1, 2].map(|last| served_from([127, 0, 7, last], server.address()).unwrap());
    assert!(served_from([127, 0, 7, 3], server.address()).is_none());
    assert!(served_from([127, 0, 8, 3], server.address()).is_some());
}

#[test]
fn a_dead_worker_takes_no_places_with_it() {
    let options = ["--max-connections-per-source", "4", "--workers", "2", "--spare", "2"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    for _ in 0..5 {
        let held: Vec<_> = (0..4).map(|_| served_from([127, 0, 0, 1], server.address()).unwrap()).collect();
        for worker in server.workers() {
            server.replace_worker(worker);
        }
        assert!(served_from([127, 0, 0, 1], server.address()).is_none(), "a fifth connection");
        drop(held);
        eventually("all have ended", || server.count("active") == 0 && server.count("counted") == 0);
    }
}

#[test]
fn a_reload_counts_who_is_there_by_the_new_prefixes() {
    let listen = address::fresh();
    let config = |keys: &str| format!("[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\n{keys}\n");
    let server = Preforkd::run(&config("")).start();
    let mut held: Vec<_> = (1..=4).map(|last| served_from([127, 0, 7, last], listen).unwrap()).collect();
    server.configure(&config("max_connections_per_source = 1"));
    server.reload_ok();
    assert_eq!(server.count("counted"), 4);
    assert!(served_from([127, 0, 7, 4], listen).is_none());
    server.configure(&config("max_connections_per_source = 5\nsource_prefix_v4 = 24"));
    server.reload_ok();
    held.push(served_from([127, 0, 7, 9], listen).unwrap());
    assert!(served_from([127, 0, 7, 9], listen).is_none());
    assert!(server.upgrade().status.success());
    assert!(served_from([127, 0, 7, 9], listen).is_none());
    drop(held);
    eventually("all have ended", || server.count("active") == 0);
    assert_eq!(server.count("counted"), 0);
}
