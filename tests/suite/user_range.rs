//! `user = { range = … }`: each connection is a user whom no other is.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};

use crate::support::client::{connect, echo, exchange};
use crate::support::{Preforkd, Running, address, eventually, preforkd, root, text, write};

const FIRST: u32 = 1_830_000;

/// A range of its own for each test, as long as any needs it.
fn range(test: u32) -> (u32, String) {
    let first = FIRST + test * 100;
    (first, format!("user = {{ range = \"{first}-{}\" }}\nmax_connections = 50\n", first + 99))
}

fn service(at: SocketAddr, job: &str, keys: &str) -> String {
    format!("[service.x]\nlisten = \"{at}\"\nworkers = 1\n{job}\n{keys}\n")
}

fn ids(pid: i32, which: &str) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    line.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn capabilities(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = status.lines().filter(|line| line.starts_with("CapEff:") || line.starts_with("CapPrm:"));
    lines
        .map(|line| u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap())
        .fold(0, |a, b| a | b)
}

/// Who lives as this user.
fn of_user(user: u32) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_user = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&format!("Uid:\t{user}\t")) && !status.contains("State:\tZ")
    };
    pids.filter(is_user).collect()
}

fn held(server: &Running, at: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut clients: Vec<_> = (0..count).map(|_| connect(at)).collect();
    clients.iter_mut().for_each(|client| echo(client, b"x"));
    eventually("all are served", || server.connections().len() >= count);
    clients
}

#[test]
fn no_two_connections_are_one_user() {
    if !root("users") {
        return;
    }
    for (test, job) in ["handler = \"echo\"", "exec = [\"/bin/cat\"]"].into_iter().enumerate() {
        for keys in ["", "spare = 3\n", "spare = 2\nconnections_per_child = 3\n", "group = \"nogroup\"\n"] {
            if keys.contains("per_child") && job.contains("exec") {
                continue;
            }
            let ((first, users), at) = (range(test as u32), address::fresh());
            let server = Preforkd::run(&service(at, job, &format!("{users}{keys}"))).start();
            let clients = held(&server, at, 8);
            let worker = server.worker();
            let all = || server.connections().into_iter().filter(|process| process.parent == worker);
            // A spare that has just been made is its worker still; capabilities go last.
            eventually("all are who they are to be", || all().all(|process| capabilities(process.pid) == 0));
            let all: Vec<_> = all().collect();
            let mut seen = BTreeSet::new();
            for process in &all {
                let (user, group) = (ids(process.pid, "Uid:"), ids(process.pid, "Gid:"));
                assert!(
                    user.iter().all(|id| *id == user[0]) && (first..first + 50).contains(&user[0]),
                    "{user:?}"
                );
                let wanted = if keys.contains("group") { 65534 } else { user[0] };
                assert_eq!(group, [wanted; 4]);
                assert!(ids(process.pid, "Groups:").iter().all(|id| *id == wanted));
                assert_eq!(capabilities(process.pid), 0);
                assert!(seen.insert(user[0]), "two are user {}", user[0]);
            }
            assert!(seen.len() >= 8);
            // CAP_KILL, CAP_SETGID, CAP_SETUID.
            assert_eq!(capabilities(worker), 1 << 5 | 1 << 6 | 1 << 7);
            assert!(!(first..first + 100).contains(&ids(worker, "Uid:")[0]));
            drop(clients);
            eventually("they end", || server.count("active") == 0);
        }
    }
}

/// Leaves somebody behind who has left its group and session, and says who that is.
const LEAVES: &str = "#!/bin/sh\n\
    setsid sh -c 'echo $$ >DIR/$1.tmp; mv DIR/$1.tmp DIR/left; exec sleep 1000' x $$ </dev/null >/dev/null 2>&1 &\n\
    while ! [ -s DIR/left ]; do sleep 0.01; done\n\
    cat DIR/left; rm DIR/left\n\
    [ \"$1\" ] && read line\n";

#[test]
fn what_a_connection_leaves_behind_ends_with_it_wherever_it_has_gone() {
    if !root("users") {
        return;
    }
    for keys in ["", "spare = 1\n", "sandbox = false\n", "sandbox = { pid_namespace = true }\n"] {
        let ((first, users), at) = (range(2), address::fresh());
        let job = "exec = [\"DIR/program\"]";
        let server = Preforkd::run(&service(at, job, &format!("{users}{keys}"))).script("program", LEAVES);
        std::fs::set_permissions(server.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let server = server.start();
        for _ in 0..3 {
            let left: i32 = text(&exchange(at, b"")).trim().parse().unwrap();
            assert!(left > 1);
            eventually("it is over", || server.count("active") == 0);
            for user in first..first + 50 {
                let waits: Vec<_> = server.processes().into_iter().map(|process| process.pid).collect();
                assert!(of_user(user).iter().all(|pid| waits.contains(pid)), "{keys}: of user {user}");
            }
        }
    }
}

#[test]
fn what_a_connection_of_a_dead_worker_leaves_behind_ends_before_the_next_is_that_user() {
    if !root("users") {
        return;
    }
    let ((first, users), at) = (range(3), address::fresh());
    let job = "exec = [\"DIR/program\", \"waits\"]";
    let server = Preforkd::run(&service(at, job, &users)).script("program", LEAVES);
    std::fs::set_permissions(server.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let server = server.start();
    let mut client = std::io::BufReader::new(connect(at));
    let mut left = String::new();
    std::io::BufRead::read_line(&mut client, &mut left).unwrap();
    server.replace_worker(server.worker());
    drop(client);
    eventually("it is over", || server.count("active") == 0);
    let left: i32 = left.trim().parse().unwrap();
    let user = ids(left, "Uid:")[0];
    assert_eq!((user, of_user(user)), (first, vec![left]));
    let next = connect(at);
    eventually("the next has its user", || {
        let now = of_user(user);
        !now.contains(&left) && !now.is_empty()
    });
    drop(next);
}

#[test]
fn siblings_can_neither_signal_nor_trace_nor_limit_each_other_without_a_sandbox_too() {
    if !root("users") {
        return;
    }
    let ((_, users), at) = (range(4), address::fresh());
    let job = "exec = [\"/bin/sh\", \"-c\", \"read pid; kill -0 $pid || kill -STOP $pid; echo $?; \
               cat /proc/$pid/environ >/dev/null; echo $?; prlimit --pid $pid --nofile=1 2>/dev/null; echo $?\"]";
    let server =
        Preforkd::run(&service(at, job, &format!("{users}sandbox = false\nstderr = \"null\"\n"))).start();
    let other = connect(at);
    eventually("it is served", || !server.connections().is_empty());
    let pid = server.connections()[0].pid;
    for pid in [pid, server.worker(), server.pid()] {
        assert_eq!(text(&exchange(at, format!("{pid}\n").as_bytes())), "1\n1\n1\n");
    }
    drop(other);
}

#[test]
fn a_limit_of_processes_is_of_each_connection() {
    if !root("users") {
        return;
    }
    let ((_, users), at) = (range(5), address::fresh());
    // Each has all of its three: itself, and two more.
    let job = "exec = [\"/bin/sh\", \"-c\", \"sleep 1000 & sleep 1000 & echo both; read line\"]";
    let server = Preforkd::run(&service(at, job, &format!("{users}limits = {{ nproc = 3 }}\n"))).start();
    let mut clients: Vec<_> = (0..5).map(|_| std::io::BufReader::new(connect(at))).collect();
    for client in &mut clients {
        let mut said = String::new();
        std::io::BufRead::read_line(client, &mut said).unwrap();
        assert_eq!(said, "both\n", "{}", server.log.all().join("\n"));
    }
}

#[test]
fn deadlines_and_kill_reach_them() {
    if !root("users") {
        return;
    }
    let ((first, users), at) = (range(6), address::fresh());
    let job = "exec = [\"/bin/sh\", \"-c\", \"trap '' TERM; while :; do sleep 1000; done\"]";
    let config = service(at, job, &format!("{users}max_lifetime = \"200ms\"\n"));
    let server = Preforkd::run(&config).start();
    let client = connect(at);
    server.log.wait("the record", |line| line.contains("timeout lifetime"));
    eventually("nobody is left", || of_user(first).is_empty());
    drop(client);
}

#[test]
fn a_range_that_would_be_others_is_rejected_and_the_same_is_not() {
    if !root("users") {
        return;
    }
    let ((first, users), at) = (range(7), address::fresh());
    let server = Preforkd::run(&service(at, "handler = \"echo\"", &users)).start();
    let mut clients = held(&server, at, 3);
    let with = |first: u32, last: u32| {
        let users = format!("user = {{ range = \"{first}-{last}\" }}\nmax_connections = 20\n");
        server.configure(&service(at, "handler = \"echo\"", &users));
        let output = server.reload();
        let said = text(&output.stdout) + &text(&output.stderr);
        if output.status.success() { Ok(said) } else { Err(said) }
    };
    let said = with(first + 1, first + 80).unwrap_err();
    assert!(said.contains("in the range of service x that is in force: take others"), "{said}");
    // Longer or shorter, each connection has the same.
    with(first, first + 60).unwrap();
    clients.extend(held(&server, at, 3));
    // Others altogether; and back, while some are there that began as these.
    with(first + 61, first + 90).unwrap();
    clients.extend(held(&server, at, 3));
    let said = with(first, first + 60).unwrap_err();
    assert!(said.contains(&format!("cannot have user {first}: it has processes")), "{said}");
    drop(clients);
    eventually("all are over", || server.count("active") == 0);
    with(first, first + 60).unwrap();
    let held = held(&server, at, 2);
    drop(held);
}

#[test]
fn check_says_what_is_wrong_with_a_range() {
    for (user, more, wanted) in [
        ("{ range = \"0-100\" }", "", "users below 1000 and from 61184 to 65535 are the system's"),
        ("{ range = \"60000-70000\" }", "", "users below 1000 and from 61184 to 65535 are the system's"),
        ("{ range = \"70000\" }", "", "\"70000\" is no range of users"),
        ("{ range = \"70010-70000\" }", "", "\"70010-70000\" is no range of users"),
        ("\"70010-70000\"", "", "\"70010-70000\" is no range of users"),
        ("\"70000-70009\"", "", "the range has 10 users, and max_connections is 1000"),
        ("{ range = 70000 }", "", "integer `70000` where a string is expected"),
        ("{}", "", "user does not say which range"),
        ("{ first = 1 }", "", "unknown key \"first\" in user"),
        ("{ range = \"70000-70009\" }", "", "the range has 10 users, and max_connections is 1000"),
        ("{ range = \"70000-71000\" }", "kill_mode = \"process\"", "what one leaves behind cannot go on"),
        ("{ range = \"70000-71000\" }", "credentials = \"a\"", "credentials are for one user"),
        (
            "{ range = \"70000-71000\" }",
            "[service.y]\nlisten = \"127.0.0.1:2\"\nhandler = \"echo\"\nuser = 70001\ngroup = 70001",
            "user 70001 of the range is one of service y, too",
        ),
    ] {
        let text =
            format!("[service.x]\nlisten = \"127.0.0.1:1\"\nhandler = \"echo\"\nuser = {user}\n{more}\n");
        let said = check(&text);
        assert!(said.contains(wanted), "{user} {more}: {said}");
    }
}

fn check(config: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("preforkd.toml");
    write(&file, config);
    let output = preforkd(&["check", "--config", file.to_str().unwrap()]);
    text(&output.stdout) + &text(&output.stderr)
}
