//! Who gets in.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};

use crate::support::client::{connect_from, try_echo};
use crate::support::{Preforkd, Running, address, eventually, preforkd, text};

/// Whether a client from this address is served.
fn is_served(source: [u8; 4], service: SocketAddr) -> bool {
    let mut client = connect_from(Ipv4Addr::from(source), service).unwrap();
    let served = try_echo(&mut client, b"x").is_ok();
    if !served {
        assert!(!matches!(client.read(&mut [0]), Ok(1..)), "the client was told something");
    }
    served
}

fn refused(server: &Running) -> u64 {
    server.service()["refused"]["access"].as_u64().unwrap()
}

fn rules_hold(more: &[&str]) {
    let rules = ["--allow", "127.0.0.0/8", "--deny", "127.0.0.64/26", "--allow", "127.0.0.66"];
    let options = [&rules, more].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    eventually("spares", || server.count("spares") == if more.is_empty() { 0 } else { 4 });
    let before: Vec<_> = server.connections().iter().map(|process| process.pid).collect();
    for _ in 0..20 {
        assert!(!is_served([127, 0, 0, 65], server.address()));
        assert!(!is_served([127, 0, 0, 127], server.address()));
    }
    eventually("all counted", || refused(&server) == 40);
    let after: Vec<_> = server.connections().iter().map(|process| process.pid).collect();
    assert_eq!(before, after, "a refusal cost a process");
    assert!(is_served([127, 0, 0, 66], server.address()), "the longest prefix decides");
    assert!(is_served([127, 0, 0, 128], server.address()));
    eventually("all counted", || server.count("completed") == 2);
    assert_eq!((server.count("accepted"), server.count("active"), refused(&server)), (2, 0, 40));
    server.log.wait("a report", |line| line.contains("refused") && line.contains("allow and deny"));
    let records = server.log.count(|line| line.contains("connection ") && line.contains("127.0.0.65"));
    assert_eq!(records, 0, "a line for each refusal");
    server.stop();
    // Those that were collected when it ended are not forgotten.
    let number = |line: &String| line.split("refused ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    assert_eq!(server.log.all().iter().filter_map(number).sum::<u64>(), 40);
}

#[test]
fn allow_and_deny_decide_by_the_longest_prefix_and_cost_no_process() {
    rules_hold(&[]);
}

#[test]
fn spares_know_who_gets_in() {
    rules_hold(&["--spare", "4"]);
}

#[test]
fn refusals_take_no_place() {
    let options = ["--deny", "127.0.0.9", "--max-connections", "1", "--workers", "1"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    for _ in 0..5 {
        assert!(!is_served([127, 0, 0, 9], server.address()));
    }
    assert!(is_served([127, 0, 0, 1], server.address()));
}

#[test]
fn a_reload_changes_who_gets_in() {
    let listen = address::fresh();
    let config = |rule: &str| {
        format!("[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nspare = 2\n{rule}\n")
    };
    let server = Preforkd::run(&config("")).start();
    assert!(is_served([127, 0, 0, 9], listen));
    server.configure(&config("deny = \"127.0.0.9\""));
    server.reload_ok();
    eventually("only new workers", || server.count("spares") == 2);
    assert!(!is_served([127, 0, 0, 9], listen));
    assert!(is_served([127, 0, 0, 8], listen));
}

#[test]
fn what_check_explains_is_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("preforkd.toml");
    let listen = address::fresh();
    let text_of = format!(
        "[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nallow = [\"127.0.0.0/24\"]\ndeny = \"127.0.0.9\"\n"
    );
    crate::support::write(&config, &text_of);
    let explain = |ip: &str| {
        let arguments = ["check", "--config", config.to_str().unwrap(), "--explain", ip];
        text(&preforkd(&arguments).stdout)
    };
    assert!(explain("127.0.0.9").contains("preforkd.toml:5"), "{}", explain("127.0.0.9"));
    let server = Preforkd::run(&text_of).start();
    assert!(!is_served([127, 0, 0, 9], listen));
    assert!(is_served([127, 0, 0, 10], listen));
    assert!(!is_served([127, 0, 1, 1], listen), "{}", explain("127.0.1.1"));
    drop(server);
}
