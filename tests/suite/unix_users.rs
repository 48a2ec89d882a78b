//! At a Unix socket a source is a user, and rules name users and groups.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::local::{self, Who};
use crate::support::{Preforkd, Running, eventually, preforkd, root, text, user, write};

/// Where everybody may connect, and what the rules say counts.
const OPEN: &str = "[service.one]\nlisten = \"unix:DIR/service.sock\"\nsocket_mode = \"0666\"\nworkers = 2\n";

const ECHO: &str = "handler = \"echo\"\n";

/// The ways in which a connection gets its process.
const WAYS: [&str; 5] = [
    "handler = \"echo\"\n",
    "handler = \"echo\"\nspare = 4\n",
    "handler = \"echo\"\nspare = 4\nconnections_per_child = 0\n",
    "exec = [\"/bin/cat\"]\n",
    "exec = [\"/bin/cat\"]\nspare = 4\n",
];

fn start(keys: &str) -> Running {
    Preforkd::run(&format!("{OPEN}{keys}")).start()
}

fn socket(server: &Running) -> String {
    server.dir().join("service.sock").display().to_string()
}

fn refused(server: &Running, reason: &str) -> u64 {
    server.service()["refused"][reason].as_u64().unwrap()
}

/// Whether he is served. Who is refused may see his connection end, or a broken one.
fn gets_in(server: &Running, who: Who<'_>) -> bool {
    who.ask(&socket(server), "x\n").as_deref() == Ok("x\n")
}

fn at_once(check: impl Fn(&'static str) + Sync) {
    std::thread::scope(|scope| {
        for way in WAYS {
            let check = &check;
            scope.spawn(move || check(way));
        }
    });
}

#[test]
fn a_user_has_his_limit_in_every_way() {
    if !root("other users") {
        return;
    }
    let [one, other] = [201, 202].map(local::user);
    at_once(|way| {
        let server = start(&format!("{way}max_connections_per_source = 2\n"));
        let mut held =
            [one, one, other].map(|who| who.hold(&socket(&server))).into_iter().collect::<Vec<_>>();
        assert!(held.iter().all(|held| held.served), "{way}");
        assert!(!gets_in(&server, one), "a third connection: {way}");
        assert!(gets_in(&server, other), "{way}");
        eventually("refusals", || refused(&server, "source_limit") == 1);
        held.remove(0);
        eventually("a place", || server.count("counted") == 2);
        assert!(gets_in(&server, one), "{way}");
        drop(held);
        eventually("all have ended", || server.count("active") == 0 && server.count("counted") == 0);
    });
}

#[test]
fn a_limit_that_comes_by_reload_counts_users_that_are_there_and_survives_all() {
    if !root("other users") {
        return;
    }
    let [one, other] = [203, 204].map(local::user);
    let server = start(ECHO);
    let held = [one, one, other].map(|who| who.hold(&socket(&server)));
    server.configure(&format!("{OPEN}{ECHO}max_connections_per_source = 2\n"));
    server.reload_ok();
    assert_eq!(server.count("counted"), 3);
    assert!(!gets_in(&server, one) && gets_in(&server, other));
    // Of dead workers, the supervisor adopts the connections.
    for worker in server.workers() {
        server.replace_worker(worker);
    }
    assert!(!gets_in(&server, one) && gets_in(&server, other));
    assert!(server.upgrade().status.success());
    assert!(!gets_in(&server, one) && gets_in(&server, other));
    drop(held);
    eventually("all have ended", || server.count("active") == 0 && server.count("counted") == 0);
    assert!(gets_in(&server, one));
}

#[test]
fn a_user_has_his_rate_in_every_way() {
    if !root("other users") {
        return;
    }
    let [one, other] = [205, 206].map(local::user);
    at_once(|way| {
        let server = start(&format!("{way}rate_per_source = \"1/h burst 3\"\n"));
        let served = |who: Who<'_>| (0..5).filter(|_| gets_in(&server, who)).count();
        assert_eq!((served(one), served(other)), (3, 3), "{way}");
        eventually("refusals", || refused(&server, "rate") == 4);
    });
}

#[test]
fn a_user_is_punished_and_forgiven() {
    if !root("other users") {
        return;
    }
    let (bad, good) = (local::user(207), local::user(208));
    let program = "exec = [\"/bin/sh\", \"-c\", \"read x; echo $x; test $x != bad || exit 7\"]\n";
    for spare in ["", "spare = 4\n"] {
        let keys = format!("{program}{spare}penalties = {{ 7 = \"10m\" }}\n");
        let server = start(&keys);
        let penalty = |who: Who<'_>| {
            let source = format!("user:{}", who.uid);
            server
                .log
                .wait("a penalty", |line| line.contains(&source) && line.contains("has a penalty of 600 s"));
            source
        };
        assert_eq!(bad.ask(&socket(&server), "bad\n").as_deref(), Ok("bad\n"));
        let source = penalty(bad);
        assert!(!gets_in(&server, bad) && gets_in(&server, good));
        server.configure(&format!("{OPEN}{keys}nice = 1\n"));
        server.reload_ok();
        assert!(server.upgrade().status.success());
        assert!(!gets_in(&server, bad) && gets_in(&server, good));
        eventually("refusals", || refused(&server, "penalty") == 2);
        let unban = |who: &str| text(&preforkd(&["unban", "--control", server.control(), who]).stdout);
        assert_eq!(unban("0.0.0.0/0"), "nobody in 0.0.0.0/0 has a penalty or a ban\n");
        assert_eq!(
            unban(&format!("user:{}", good.uid)),
            format!("user:{} has no penalty and no ban\n", good.uid)
        );
        assert!(!gets_in(&server, bad));
        assert_eq!(unban(&source), format!("one: lifted the penalty of {source}\n"));
        assert!(gets_in(&server, bad));
    }
    let wrong = preforkd(&["unban", "user:rot"]);
    assert!(text(&wrong.stderr).contains("did you mean \"root\"?"), "{}", text(&wrong.stderr));
}

#[test]
fn who_is_exempt_by_himself_or_by_a_group_never_waits() {
    if !root("other users") {
        return;
    }
    let [named, member, primary, other] = [209, 210, 211, 212].map(local::user);
    let [group, another] = [213, 214].map(user);
    let groups = [another, group];
    let member = Who { groups: &groups, ..member };
    let primary = Who { gid: group, ..primary };
    let program = "exec = [\"/bin/sh\", \"-c\", \"read x; echo $x; exit 7\"]\n";
    for spare in ["", "spare = 4\n"] {
        let exempt = format!("penalty_exempt = [\"user:{}\", \"group:{group}\"]\n", named.uid);
        let server = start(&format!("{program}{spare}penalties = {{ 7 = \"10m\" }}\n{exempt}"));
        for who in [named, member, primary] {
            for _ in 0..3 {
                assert!(gets_in(&server, who), "{who:?}");
            }
        }
        assert!(gets_in(&server, other));
        server.log.wait("a penalty", |line| line.contains(&format!("user:{} has a penalty", other.uid)));
        assert!(!gets_in(&server, other));
        assert_eq!(server.log.count(|line| line.contains("has a penalty")), 1);
    }
}

#[test]
fn rules_name_users_and_groups_and_a_user_counts_more_than_his_groups() {
    if !root("other users") {
        return;
    }
    let [one, two, three] = [215, 216, 217].map(local::user);
    let [group, other] = [218, 219].map(user);
    let (groups, both) = ([group], [group, other]);
    let in_group = |who: Who<'static>| Who { groups: &groups, ..who };
    let (member, twice, primary) = (in_group(two), Who { groups: &both, ..two }, Who { gid: group, ..three });
    let (uid, two_uid) = (one.uid, two.uid);
    // Of the callers in this order, who gets in.
    let callers = [one, in_group(one), member, twice, primary, three];
    let cases = [
        (format!("allow = \"user:{uid}\""), [true, true, false, false, false, false]),
        (format!("allow = \"group:{group}\""), [false, true, true, true, true, false]),
        (format!("deny = \"user:{uid}\""), [false, false, true, true, true, true]),
        (format!("deny = \"group:{group}\""), [true, false, false, false, false, true]),
        // The user is the more specific one.
        (
            format!("allow = \"user:{uid}\"\ndeny = \"group:{group}\""),
            [true, true, false, false, false, false],
        ),
        (
            format!("allow = \"group:{group}\"\ndeny = \"user:{two_uid}\""),
            [false, true, false, false, true, false],
        ),
        // On a tie, deny.
        (format!("allow = \"user:{uid}\"\ndeny = \"user:{uid}\""), [false; 6]),
        (
            format!("allow = \"group:{group}\"\ndeny = \"group:{other}\""),
            [false, true, true, false, true, false],
        ),
        ("deny = \"user:root\"".to_owned(), [true; 6]),
    ];
    std::thread::scope(|scope| {
        for way in WAYS {
            let cases = &cases;
            scope.spawn(move || {
                let server = start(way);
                for (rules, wanted) in cases {
                    server.configure(&format!("{OPEN}{way}{rules}\n"));
                    server.reload_ok();
                    let before = refused(&server, "access");
                    assert_eq!(callers.map(|who| gets_in(&server, who)), *wanted, "{rules} {way}");
                    let out = wanted.iter().filter(|allowed| !**allowed).count() as u64;
                    eventually("refusals", || refused(&server, "access") == before + out);
                }
            });
        }
    });
}

#[test]
fn somebody_with_too_many_groups_is_kept_out_by_rules_about_groups() {
    if !root("other users") {
        return;
    }
    let who = local::user(220);
    let many: Vec<u32> = (0..2000).map(|number| 100_000 + number).collect();
    let who = Who { groups: &many, ..who };
    for (rules, allowed) in [
        ("deny = \"group:100000\"".to_owned(), false),
        ("allow = \"group:100000\"".to_owned(), false),
        (format!("allow = \"user:{}\"\ndeny = \"group:100000\"", who.uid), true),
        ("deny = \"user:root\"".to_owned(), true),
    ] {
        assert_eq!(gets_in(&start(&format!("{ECHO}{rules}\n")), who), allowed, "{rules}");
    }
}

#[test]
fn no_system_call_more_is_made_unless_a_rule_about_a_group_asks_for_it() {
    if !root("strace") {
        return;
    }
    let count = |rules: &str, spare: &str| {
        let calls = "trace=getsockopt";
        let server =
            Preforkd::run(&format!("{OPEN}{ECHO}{spare}{rules}\n").replace("workers = 2", "workers = 1"))
                .under(&["strace", "-f", "-D", "-o", "DIR/strace", "-e", calls, "--"])
                .start();
        let log = server.dir().join("strace");
        assert_eq!(local::ask(&socket(&server), "x\n").as_deref(), Ok("x\n"));
        let said = || std::fs::read_to_string(&log).unwrap();
        eventually("strace has written", || said().contains("SO_PEERCRED"));
        server.stop();
        let said = said();
        said.lines().filter(|line| line.contains("SO_PEERGROUPS") || line.contains(", 59")).count()
    };
    for spare in ["", "spare = 1\n"] {
        assert_eq!(count("", spare), 0);
        assert_eq!(count("allow = \"user:root\"", spare), 0);
        assert_eq!(count("allow = \"user:root\"\ndeny = \"group:7\"", spare), 0, "the user decides");
        assert_eq!(count("deny = \"group:7\"", spare), 1);
    }
}

const HEADER: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\\r\\n";

/// What is answered to a header and more, in one write.
fn through_proxy(server: &Running, header: &str, more: &str) -> String {
    let mut stream = UnixStream::connect(socket(server)).unwrap();
    let mut answer = String::new();
    let all = header.replace("\\r\\n", "\r\n") + more;
    let sent = stream.write_all(all.as_bytes());
    let _ = sent
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        .map(|()| stream.read_to_string(&mut answer));
    answer
}

#[test]
fn who_may_connect_is_a_proxy_that_is_believed() {
    let program =
        "exec = [\"/bin/sh\", \"-c\", \"env | grep -E '^(TCP|REMOTE|IPC|PROTO)' | sort; exec cat\"]\n";
    let server = start(&format!("{program}proxy_protocol_from = \"unix:\"\n"));
    let told = "PROTO=TCP\nREMOTE_ADDR=192.0.2.7\nREMOTE_PORT=40000\nTCPLOCALIP=198.51.100.1\nTCPLOCALPORT=443\n\
                TCPREMOTEIP=192.0.2.7\nTCPREMOTEPORT=40000\nhello\n";
    assert_eq!(through_proxy(&server, HEADER, "hello\n"), told);
    server.log.wait("the record", |line| line.contains(" from 192.0.2.7:40000: exited 0"));
    assert_eq!(through_proxy(&server, "", "hello\n"), "", "without a header");
    eventually("it is counted", || refused(&server, "header") == 1);
    server.log.wait("why", |line| line.contains("take \"unix:\" out of proxy_protocol_from"));
}

#[test]
fn rules_limits_and_penalties_are_the_real_clients() {
    let proxied = "proxy_protocol_from = \"unix:\"\n";
    let from =
        |server: &Running, ip: &str| through_proxy(server, &HEADER.replace("192.0.2.7", ip), "x\n") == "x\n";
    let server = start(&format!("{ECHO}{proxied}allow = \"192.0.2.0/24\"\ndeny = \"192.0.2.7\"\n"));
    assert_eq!(["192.0.2.7", "192.0.2.8", "192.0.3.1"].map(|ip| from(&server, ip)), [false, true, false]);
    // A check of the proxy itself.
    assert_eq!(through_proxy(&server, "PROXY UNKNOWN\\r\\n", "x\n"), "x\n");
    drop(server);

    let server = start(&format!("{ECHO}{proxied}rate_per_source = \"1/h burst 1\"\nsource_prefix_v4 = 24\n"));
    assert_eq!(["192.0.2.7", "192.0.2.8", "192.0.3.1"].map(|ip| from(&server, ip)), [true, false, true]);
    drop(server);

    let program = "exec = [\"/bin/sh\", \"-c\", \"cat; exit 7\"]\n";
    let exempt = "penalties = { 7 = \"10m\" }\npenalty_exempt = \"192.0.2.9\"\n";
    let server = start(&format!("{program}{proxied}{exempt}"));
    assert!(from(&server, "192.0.2.7"));
    server.log.wait("a penalty", |line| line.contains("192.0.2.7/32 has a penalty"));
    assert_eq!(["192.0.2.7", "192.0.2.8"].map(|ip| from(&server, ip)), [false, true]);
    assert!((0..3).all(|_| from(&server, "192.0.2.9")));
}

#[test]
fn deadlines_of_bytes_hold_for_handlers() {
    for spare in ["", "spare = 2\n", "spare = 2\nconnections_per_child = 0\n"] {
        let server = start(&format!("{ECHO}{spare}first_byte_timeout = \"300ms\"\n"));
        let connect = || {
            let stream = UnixStream::connect(socket(&server)).unwrap();
            stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
            stream
        };
        assert_eq!(connect().read(&mut [0]).unwrap(), 0);
        server.log.wait("the record", |line| line.contains(": timeout first_byte after "));
        let mut talker = connect();
        talker.write_all(b"x").unwrap();
        talker.read_exact(&mut [0]).unwrap();
        assert!(matches!(silent(&mut talker), Silence::Open), "who has said something may be silent");
        talker.write_all(b"x").unwrap();
        talker.read_exact(&mut [0]).unwrap();
        drop(talker);

        let server = start(&format!("{ECHO}{spare}idle_timeout = \"300ms\"\n"));
        let mut client = UnixStream::connect(socket(&server)).unwrap();
        client.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        client.write_all(b"0123456789").unwrap();
        client.read_exact(&mut [0; 10]).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        let record = server.log.wait("the record", |line| line.contains(": timeout idle after "));
        assert!(record.contains("10 bytes in, 10 out"), "{record}");
    }
    // Who does not read is idle.
    let server = start("handler = \"chargen\"\nidle_timeout = \"300ms\"\n");
    let _client = UnixStream::connect(socket(&server)).unwrap();
    server.log.wait("the record", |line| line.contains(": timeout idle after "));
    // One that goes on is not.
    let server = start(&format!("{ECHO}idle_timeout = \"3s\"\nmax_lifetime = \"5s\"\n"));
    let mut client = UnixStream::connect(socket(&server)).unwrap();
    let mut answer = [0];
    while client.write_all(b"x").is_ok() && matches!(client.read(&mut answer), Ok(1)) {
        std::thread::sleep(crate::support::A_WHILE);
    }
    server.log.wait("the record", |line| line.contains(": timeout lifetime after "));
}

enum Silence {
    Open,
    Over,
}

fn silent(stream: &mut UnixStream) -> Silence {
    stream.set_read_timeout(Some(2 * crate::support::A_WHILE)).unwrap();
    let open = stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    if open { Silence::Open } else { Silence::Over }
}

#[test]
fn check_explains_what_meets_a_user() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    write(
        &path,
        "[service.a]\nlisten = \"unix:/run/a.sock\"\nhandler = \"echo\"\ndeny = \"user:nobody\"\nallow = \"group:0\"\n\
         max_connections_per_source = 3\npenalties = { 7 = \"1m\" }\npenalty_exempt = \"user:root\"\n\
         [service.b]\nlisten = \"127.0.0.1:7\"\nhandler = \"echo\"\n\
         [service.c]\nlisten = \"unix:/run/c.sock\"\nhandler = \"echo\"\nproxy_protocol_from = \"unix:\"\n",
    );
    let explain = |who: &str| {
        let output = preforkd(&["check", "--config", path.to_str().unwrap(), "--explain", who]);
        text(&output.stdout) + &text(&output.stderr)
    };
    let said = explain("user:root");
    let place = path.display();
    for part in [
        format!("a: user:root is let in by allow = \"group:0\" ({place}:5)"),
        "max_connections_per_source = 3: all of user:0 together".to_owned(),
        format!("penalties: never, by penalty_exempt = \"user:0\" ({place}:8)"),
        "b: listens over TCP only, where nobody is known as a user".to_owned(),
        format!("c: user:root is a proxy by proxy_protocol_from = \"unix:\" ({place}:15)"),
    ] {
        assert!(said.contains(&part), "{part}\n{said}");
    }
    let said = explain("user:nobody");
    assert!(said.contains("a: user:nobody is refused by deny = \"user:65534\""), "{said}");
    let said = explain("user:12345");
    assert!(said.contains("a: user:12345 is refused: there is allow, and it is not in there"), "{said}");
    let said = explain("192.0.2.7");
    assert!(
        said.contains("a: listens on Unix sockets only") && said.contains("c: 192.0.2.7 is let in"),
        "{said}"
    );
    assert!(explain("user:rot").contains("did you mean \"root\"?"));
}

#[test]
fn names_that_are_none_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let check = |line: &str| {
        let path = dir.path().join("preforkd.toml");
        write(&path, &format!("[service.x]\nlisten = \"unix:/run/x\"\nhandler = \"echo\"\n{line}\n"));
        let output = preforkd(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{line}");
        text(&output.stderr)
    };
    for (line, parts) in [
        ("allow = \"user:rot\"", &["\"rot\" is no user of this machine", "did you mean \"root\"?"][..]),
        ("deny = \"group:rot\"", &["\"rot\" is no group of this machine", "did you mean \"root\"?"]),
        ("deny = [\"::1\", \"user:\"]", &[":4:16: error: the user is missing after \"user:\""]),
        ("allow = \"root\"", &["\"root\" is no prefix of addresses", "\"user:NAME\" or \"group:NAME\""]),
        ("allow = \"unix:\"", &["says nothing about who connects"]),
        ("proxy_protocol_from = \"unix:/run/x\"", &["names one socket", "write \"unix:\""]),
        ("proxy_protocol_from = \"user:root\"", &["is no proxy", "write \"unix:\""]),
        ("penalty_exempt = \"group:\"", &["the group is missing"]),
        ("allow = \"user:4294967295\"", &["is no user of this machine"]),
    ] {
        let said = check(line);
        for part in parts {
            assert!(said.contains(part), "{line}: no {part} in {said}");
        }
    }
}

/// As systemd's PrivateUsers=yes makes it.
#[test]
fn users_that_preforkd_cannot_see_are_an_error_where_it_runs() {
    if !root("a user namespace") {
        return;
    }
    let uid = user(221);
    let server = Preforkd::run(&format!("{OPEN}{ECHO}allow = \"user:{uid}\"\n"))
        .under(&["unshare", "--user", "--map-root-user"])
        .start_unready();
    assert_eq!(server.ending(), "78");
    let why = format!("preforkd cannot see who is user {uid}: its user namespace does not have it");
    server.log.wait("why", |line| line.contains(&why));
    server.wait_empty();
    assert!(!Path::new(&socket(&server)).exists());
}
