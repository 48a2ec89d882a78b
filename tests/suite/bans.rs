//! Clients that are kept out by hand: `ban`, `bans` and `unban`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::life::echo_service;
use crate::support::client::{connect, connect_from, echo, try_echo};
use crate::support::{Preforkd, Running, address, eventually, local, preforkd, proc, root, text};

const BAD: [u8; 4] = [127, 0, 0, 66];
const GOOD: [u8; 4] = [127, 0, 0, 1];

/// The ways a connection gets its process, as keys of a service that echoes.
const WAYS: [&str; 5] = [
    "handler = \"echo\"",
    "handler = \"echo\"\nspare = 4",
    "handler = \"echo\"\nspare = 4\nconnections_per_child = 0",
    "exec = [\"/bin/cat\"]",
    "exec = [\"/bin/cat\"]\nspare = 4\nmax_connections_per_source = 100",
];

fn config(listen: SocketAddr, way: &str) -> String {
    format!("[service.one]\nlisten = \"{listen}\"\nworkers = 2\n{way}\n")
}

fn serve(listen: SocketAddr, way: &str) -> Running {
    let server = Preforkd::run(&config(listen, way)).start();
    let spares = if way.contains("spare") { 4 } else { 0 };
    eventually("spares", || server.count("spares") == spares);
    server
}

fn client(source: [u8; 4], service: SocketAddr) -> TcpStream {
    connect_from(Ipv4Addr::from(source), service).unwrap()
}

fn gets_in(source: [u8; 4], service: SocketAddr) -> bool {
    connect_from(Ipv4Addr::from(source), service)
        .is_ok_and(|mut client| try_echo(&mut client, b"hello").is_ok())
}

fn operate(server: &Running, command: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = preforkd(&[&[command, "--control", server.control()], arguments].concat());
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn done(server: &Running, command: &str, arguments: &[&str]) -> String {
    let (code, said) = operate(server, command, arguments);
    assert_eq!(code, Some(0), "{command} {arguments:?}: {said}");
    said
}

fn bans(server: &Running, arguments: &[&str]) -> Vec<Value> {
    let answer: Value =
        serde_json::from_str(&done(server, "bans", &[&["--json"], arguments].concat())).unwrap();
    answer["bans"].as_array().unwrap().clone()
}

fn sources(bans: &[Value]) -> Vec<&str> {
    bans.iter().map(|ban| ban["source"].as_str().unwrap()).collect()
}

fn refused(server: &Running) -> u64 {
    server.service()["refused"]["banned"].as_u64().unwrap()
}

fn keeping(state: &Path, config: &str) -> Preforkd {
    Preforkd::run(config).env("STATE_DIRECTORY", state.to_str().unwrap())
}

#[test]
fn who_is_banned_is_refused_from_the_next_connection_on_and_nobody_else() {
    for way in WAYS {
        let listen = address::fresh();
        let server = serve(listen, way);
        let mut before = client(BAD, listen);
        echo(&mut before, b"hello");
        let mut workers = server.workers();
        let said = done(&server, "ban", &["127.0.0.66", "--for", "1h"]);
        assert!(said.starts_with("127.0.0.66/32 is banned until 2"), "{way}: {said}");
        for _ in 0..8 {
            assert!(!gets_in(BAD, listen), "{way}");
            assert!(gets_in(GOOD, listen), "{way}");
        }
        echo(&mut before, b"goes on");
        eventually("all are counted", || refused(&server) == 8);
        workers.sort_unstable();
        let mut now = server.workers();
        now.sort_unstable();
        assert_eq!(now, workers, "{way}");
        assert_eq!(server.status()["bans"], 1);
        server.log.wait("a line", |line| {
            line.contains("127.0.0.66/32 is banned until 2") && line.contains("by uid 0")
        });
        server.log.wait("a report", |line| line.contains("refused") && line.contains("by a ban"));
        let [ban] = &bans(&server, &[])[..] else { panic!("{way}") };
        assert_eq!((&ban["source"], &ban["service"]), (&"127.0.0.66/32".into(), &Value::Null));
        let left = ban["left_s"].as_u64().unwrap();
        assert!((3000..=3600).contains(&left), "{left}");
        assert_eq!(done(&server, "unban", &["127.0.0.66"]), "127.0.0.66/32 is banned no more\n");
        server.log.wait("a line", |line| line.contains("127.0.0.66/32 is banned no more, by uid 0"));
        for _ in 0..8 {
            assert!(gets_in(BAD, listen), "{way}");
        }
        assert_eq!((bans(&server, &[]), &server.status()["bans"]), (Vec::new(), &0.into()));
        assert_eq!(refused(&server), 8);
    }
}

#[test]
fn a_ban_ends_by_itself() {
    for way in [WAYS[0], WAYS[2]] {
        let listen = address::fresh();
        let server = serve(listen, way);
        done(&server, "ban", &["127.0.0.64/26", "--for", "700ms"]);
        server.log.wait("its end", |line| line.contains("127.0.0.64/26 is banned no more: its time is over"));
        assert!(gets_in(BAD, listen), "{way}");
        assert_eq!(bans(&server, &[]), Vec::<Value>::new());
        // Said again, it lasts for as long as was said last.
        done(&server, "ban", &["127.0.0.66", "--for", "100ms"]);
        done(&server, "ban", &["127.0.0.66"]);
        assert!(!gets_in(BAD, listen), "{way}");
        assert_eq!(bans(&server, &[])[0]["until"], Value::Null);
        done(&server, "ban", &["127.0.0.66", "--for", "100ms"]);
        eventually("the end of it", || gets_in(BAD, listen));
    }
}

#[test]
fn a_ban_is_at_one_service_or_at_all() {
    let (one, two) = (address::fresh(), address::fresh());
    let config = config(one, WAYS[1]) + &echo_service(two, "spare = 2").replace(".echo", ".two");
    let server = Preforkd::run(&config).start();
    let in_both = || (gets_in(BAD, one), gets_in(BAD, two));
    let said = done(&server, "ban", &["--service", "two", "127.0.0.0/8"]);
    assert!(said.starts_with("two: 127.0.0.0/8 is banned until somebody lifts it\n"), "{said}");
    assert_eq!(in_both(), (true, false));
    done(&server, "ban", &["127.0.0.66"]);
    assert_eq!(in_both(), (false, false));
    assert_eq!(sources(&bans(&server, &["--service", "one"])), ["127.0.0.66/32"]);
    assert_eq!(bans(&server, &["--service", "two"]).len(), 2);
    let table = done(&server, "bans", &[]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["SOURCE", "SERVICE", "SINCE", "UNTIL"]);
    let row = |row: &[&str]| (row[0].to_owned(), row[1].to_owned(), row[3].to_owned());
    let own = |words: [&str; 3]| (words[0].to_owned(), words[1].to_owned(), words[2].to_owned());
    assert_eq!(row(&rows[1]), own(["127.0.0.0/8", "two", "unban"]));
    assert_eq!(row(&rows[2]), own(["127.0.0.66/32", "(all)", "unban"]));
    // Whoever lets one address in does not mean its whole network.
    let (code, said) = operate(&server, "unban", &["127.0.0.66"]);
    assert_eq!(code, Some(64));
    assert!(said.contains("127.0.0.66/32 is banned no more\n"), "{said}");
    assert!(said.contains("two: 127.0.0.0/8 is still banned; \"unban 127.0.0.0/8\" lifts that"), "{said}");
    assert_eq!(in_both(), (true, false));
    done(&server, "ban", &["127.0.0.66"]);
    let (code, said) = operate(&server, "unban", &["--service", "one", "127.0.0.66"]);
    assert!(code == Some(64) && said.contains("is still banned from all services"), "{said}");
    assert_eq!(in_both(), (false, false));
    let said = done(&server, "unban", &["0.0.0.0/0"]);
    assert_eq!(said, "two: 127.0.0.0/8 is banned no more\n127.0.0.66/32 is banned no more\n");
    assert_eq!(in_both(), (true, true));
}

#[test]
fn what_cannot_be_banned_is_said() {
    let server = serve(address::fresh(), WAYS[0]);
    for (arguments, said) in [
        (&["--service", "three", "127.0.0.1"][..], "there is no service \"three\"; the services are one"),
        (&["127.0.0.1/8"], "write \"127.0.0.0/8\""),
        (&["example.org"], "is no prefix of addresses"),
        (&["--for", "0s", "127.0.0.1"], "a ban for no time keeps nobody out"),
        (&["--for", "1", "127.0.0.1"], "a whole number and its unit"),
        (&["user:no such user"], "no such user"),
        (&[], "required"),
    ] {
        let (code, text) = operate(&server, "ban", arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
    assert_eq!(operate(&server, "bans", &["--service", "three"]).0, Some(64));
    assert_eq!(bans(&server, &[]), Vec::<Value>::new());
    let nowhere = preforkd(&["ban", "--control", "/nonexistent/control.sock", "127.0.0.1"]);
    assert_eq!(nowhere.status.code(), Some(69));
}

#[test]
fn a_ban_outlasts_reload_upgrade_and_the_death_of_workers() {
    for way in [WAYS[0], WAYS[1], WAYS[4]] {
        let (one, two) = (address::fresh(), address::fresh());
        let server = serve(one, way);
        done(&server, "ban", &["--for", "10h", "127.0.0.66"]);
        let listed = bans(&server, &[]);
        server.configure(
            &(config(one, &format!("{way}\nnice = 1"))
                + &echo_service(two, "spare = 1").replace(".echo", ".two")),
        );
        server.reload_ok();
        let in_any = || gets_in(BAD, one) || gets_in(BAD, two);
        assert!(!in_any(), "{way}");
        let worker = server.workers()[0];
        server.replace_worker(worker);
        assert!((0..8).all(|_| !in_any()), "{way}");
        assert!(server.upgrade().status.success());
        assert!((0..8).all(|_| !in_any()), "{way}");
        assert!(gets_in(GOOD, one) && gets_in(GOOD, two));
        let now = bans(&server, &[]);
        assert_eq!((sources(&now), &now[0]["since"]), (sources(&listed), &listed[0]["since"]));
        // The program that goes on changes the same memory.
        done(&server, "ban", &["127.0.0.67"]);
        done(&server, "unban", &["127.0.0.66"]);
        assert!(gets_in(BAD, one) && gets_in(BAD, two) && !gets_in([127, 0, 0, 67], one), "{way}");
    }
}

#[test]
fn the_connections_of_who_is_banned_go_on_unless_they_are_to_end() {
    for way in WAYS {
        let listen = address::fresh();
        let server = serve(listen, way);
        let mut clients = [client(BAD, listen), client(BAD, listen), client(GOOD, listen)];
        clients.iter_mut().for_each(|client| echo(client, b"hello"));
        done(&server, "ban", &["127.0.0.66"]);
        clients.iter_mut().for_each(|client| echo(client, b"hello"));
        let said = done(&server, "ban", &["--kill", "127.0.0.66"]);
        assert!(said.contains("; its connections are told to end"), "{said}");
        for client in &mut clients[..2] {
            // It may end by a reset.
            let _ = client.read_to_end(&mut Vec::new());
        }
        let killed =
            || server.log.count(|line| line.contains("from 127.0.0.66:") && line.contains("ended by kill"));
        eventually("their records", || killed() == 2);
        echo(&mut clients[2], b"goes on");
        assert!(!gets_in(BAD, listen), "{way}");
    }
}

#[test]
fn connections_whose_worker_has_died_end_with_the_ban() {
    let listen = address::fresh();
    let server = Preforkd::run(&echo_service(listen, "workers = 1")).start();
    let mut clients = [client(BAD, listen), client(GOOD, listen)];
    clients.iter_mut().for_each(|client| echo(client, b"hello"));
    server.replace_worker(server.worker());
    clients.iter_mut().for_each(|client| echo(client, b"hello"));
    done(&server, "ban", &["--kill", "127.0.0.66"]);
    let _ = clients[0].read_to_end(&mut Vec::new());
    echo(&mut clients[1], b"goes on");
}

#[test]
fn a_ban_outlasts_a_crash_and_a_restart() {
    let (listen, state) = (address::fresh(), tempfile::tempdir().unwrap());
    let config = config(listen, WAYS[1]);
    let server = keeping(state.path(), &config).start();
    let said = done(&server, "ban", &["--for", "5h", "127.0.0.66"]);
    assert_eq!(said.lines().count(), 1, "{said}");
    done(&server, "ban", &["--service", "one", "127.0.0.67"]);
    done(&server, "ban", &["--for", "1ms", "127.0.0.68"]);
    eventually("its end", || bans(&server, &[]).len() == 2);
    let listed = bans(&server, &[]);
    server.signal(Signal::SIGKILL);
    server.ending();
    server.wait_empty();
    drop(server);

    let server = keeping(state.path(), &config).start();
    assert!(!gets_in(BAD, listen) && !gets_in([127, 0, 0, 67], listen) && gets_in([127, 0, 0, 68], listen));
    let now = bans(&server, &[]);
    assert_eq!(
        (sources(&now), &now[0]["since"]),
        (vec!["127.0.0.66/32", "127.0.0.67/32"], &listed[0]["since"])
    );
    assert_eq!((&now[1]["service"], &now[1]["until"]), (&"one".into(), &Value::Null));
    server.log.wait("a line", |line| line.contains("2 bans of before are in force"));
    // A service that is there no more may come back.
    server.configure(&echo_service(listen, "spare = 1"));
    server.reload_ok();
    assert!(!gets_in(BAD, listen));
    // A spare of the old service may have been taken before it heard that it is to go.
    eventually("the old service has gone", || gets_in([127, 0, 0, 67], listen));
    done(&server, "unban", &["127.0.0.66"]);
    assert!(gets_in(BAD, listen));
    server.stop();
    drop(server);

    let server = keeping(state.path(), &config).start();
    assert!(gets_in(BAD, listen) && !gets_in([127, 0, 0, 67], listen));
    done(&server, "unban", &["--service", "one", "127.0.0.67"]);
    assert!(gets_in([127, 0, 0, 67], listen));
}

#[test]
fn a_file_that_is_no_list_of_bans_is_said_and_bans_nobody() {
    let (listen, state) = (address::fresh(), tempfile::tempdir().unwrap());
    let (config, file) = (config(listen, WAYS[0]), state.path().join("bans.json"));
    let (server, whole) = {
        let server = keeping(state.path(), &config).start();
        done(&server, "ban", &["127.0.0.66"]);
        server.stop();
        (server, std::fs::read(&file).unwrap())
    };
    drop(server);
    for wrong in [&whole[..whole.len() - 1], b"", b"\0\xff", b"{\"version\":7,\"bans\":[]}"] {
        std::fs::write(&file, wrong).unwrap();
        let server = keeping(state.path(), &config).start();
        let said = server.log.wait("a line", |line| line.contains("nobody is banned: cannot read"));
        let aside = format!("it is {}.broken now", file.display());
        assert!(said.contains(&aside), "{said}");
        assert!(gets_in(BAD, listen));
        assert_eq!(std::fs::read(state.path().join("bans.json.broken")).unwrap(), wrong);
        done(&server, "ban", &["127.0.0.66"]);
        assert!(!gets_in(BAD, listen));
        server.stop();
        drop(server);
        let _server = keeping(state.path(), &config).start();
        assert!(!gets_in(BAD, listen));
    }
}

#[test]
fn where_bans_cannot_be_kept_it_is_said_and_they_hold() {
    let listen = address::fresh();
    let server = serve(listen, WAYS[0]);
    let ends = "bans end with preforkd: STATE_DIRECTORY names no directory to keep them in";
    for source in ["127.0.0.66", "127.0.0.67"] {
        assert!(done(&server, "ban", &[source]).contains(ends));
    }
    assert!(!gets_in(BAD, listen));
    server.log.wait("a line", |line| line.contains("127.0.0.67/32 is banned"));
    assert_eq!(server.log.count(|line| line.contains(ends)), 1);
    drop(server);

    let state = tempfile::tempdir().unwrap();
    let server = keeping(state.path(), &config(listen, WAYS[0])).start();
    std::fs::remove_dir(state.path()).unwrap();
    let said = done(&server, "ban", &["127.0.0.66"]);
    assert!(
        said.contains("it ends with preforkd: cannot write") && said.contains("bans.json: No such file"),
        "{said}"
    );
    assert!(!gets_in(BAD, listen));
    let said = done(&server, "unban", &["127.0.0.66"]);
    assert!(said.contains("that is forgotten when preforkd starts again: cannot write"), "{said}");
    assert!(gets_in(BAD, listen));
}

#[test]
fn a_user_is_banned_from_unix_sockets() {
    if !root("other users") {
        return;
    }
    let [one, other] = [271, 272].map(local::user);
    for way in WAYS {
        let config =
            format!("[service.one]\nlisten = \"unix:DIR/service.sock\"\nsocket_mode = \"0666\"\n{way}\n");
        let server = Preforkd::run(&config).start();
        let socket = server.dir().join("service.sock").display().to_string();
        let gets_in = |who: local::Who<'_>| who.ask(&socket, "x\n").as_deref() == Ok("x\n");
        let source = format!("user:{}", one.uid);
        done(&server, "ban", &[&source]);
        assert!(!gets_in(one) && gets_in(other), "{way}");
        eventually("it is counted", || refused(&server) == 1);
        assert_eq!(done(&server, "unban", &[&source]), format!("{source} is banned no more\n"));
        assert!(gets_in(one), "{way}");
        assert_eq!(done(&server, "unban", &[&source]), format!("{source} has no penalty and no ban\n"));
    }
}

#[test]
fn behind_a_proxy_the_real_client_is_banned() {
    let listen = address::fresh();
    let server = serve(listen, "handler = \"echo\"\nproxy_protocol_from = [\"127.0.0.1\"]");
    done(&server, "ban", &["192.0.2.7"]);
    // A proxy serves many.
    done(&server, "ban", &["127.0.0.1"]);
    let gets_in = |client: &str| {
        let mut stream = connect(listen);
        let header = format!("PROXY TCP4 {client} 198.51.100.1 40000 443\r\nhello");
        let mut answer = [0; 5];
        stream.write_all(header.as_bytes()).and_then(|()| stream.read_exact(&mut answer)).is_ok()
    };
    assert!(!gets_in("192.0.2.7") && gets_in("192.0.2.8"));
    eventually("it is counted", || refused(&server) == 1);
}

#[test]
fn so_many_bans_and_no_more() {
    let (listen, state) = (address::fresh(), tempfile::tempdir().unwrap());
    let ban = |n: u32| {
        format!(
            "{{\"source\":\"{}/32\",\"service\":null,\"since\":1,\"until\":null}}",
            Ipv4Addr::from_bits(n * 2)
        )
    };
    let many: Vec<_> = (0..10_000).map(ban).collect();
    std::fs::write(
        state.path().join("bans.json"),
        format!("{{\"version\":1,\"bans\":[{}]}}", many.join(",")),
    )
    .unwrap();
    let server = keeping(state.path(), &config(listen, WAYS[1])).start();
    assert_eq!(bans(&server, &[]).len(), 10_000);
    let (code, said) = operate(&server, "ban", &["127.0.0.66"]);
    assert!(code == Some(64) && said.contains("there are 10000 bans already"), "{said}");
    assert!(gets_in(BAD, listen));
    done(&server, "unban", &["0.0.0.0/30"]);
    done(&server, "ban", &["127.0.0.66"]);
    assert!(!gets_in(BAD, listen) && gets_in(GOOD, listen));
    proc::kill(server.workers()[0], Signal::SIGKILL);
    assert!(!gets_in(BAD, listen));
}
