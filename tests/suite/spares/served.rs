//! What a spare is when it serves: the same as one that was forked on accept.

use std::io::{Read, Write};

use nix::sys::signal::Signal;

use super::{all_waiting, pid, record, service, settled, waiting};
use crate::support::client::{closed, connect, echo, exchange, finish, listen_to, reset};
use crate::support::{Preforkd, address, eventually, proc, root, text, user};

#[test]
fn a_program_finds_what_it_would_find_without_spares() {
    let script = "ls -l /proc/self/fd; env; grep -E '^(SigQ|SigBlk|SigIgn|SigCgt|Umask|NSpid|CapEff)' /proc/self/status \
        | grep -v SigQ | grep -v NSpid; ulimit -n; pwd; umask; ps -o pgid= -p $$ | tr -d ' '; echo $$; cat /proc/$$/comm";
    let answer = |spare: u32| {
        let address = address::fresh();
        let keys = format!(
            "exec = [\"/bin/sh\", \"-c\", \"{script}\"]\nspare = {spare}\nworkers = 1\nlimits.nofile = 8\numask = \"0077\"\n\
             working_directory = \"/tmp\"\nenvironment = {{ LANG = \"C\" }}",
            script = script.replace('"', "\\\"").replace('\n', " ")
        );
        let server = Preforkd::run(&service(address, &keys)).env("SECRET", "leaked").start();
        settled(&server, spare.into(), 0);
        let before = waiting(&server);
        let stream = connect(address);
        let client = stream.local_addr().unwrap();
        let said = text(&finish(stream, b""));
        let record = record(&server, client);
        assert_eq!(spare > 0, before.contains(&pid(&record)), "{record}");
        let id = said.lines().find_map(|line| line.strip_prefix("PREFORKD_CONNECTION=")).unwrap();
        assert!(record.contains(&format!("connection {id} from ")), "{id}: {record}");
        let group = said.lines().filter(|line| *line == pid(&record).to_string()).count();
        assert_eq!(group, 2, "it leads a group of its own: {said}");
        // What is different from one connection to the next.
        let changes = |word: &str| {
            word.contains(&client.port().to_string()) || word.contains(&address.ip().to_string())
        };
        let mut lines: Vec<String> = said
            .lines()
            .filter(|line| !line.starts_with("PREFORKD_CONNECTION=") && line.parse::<i32>().is_err())
            .filter(|line| !changes(line))
            .map(|line| match line.split_once(" -> ") {
                Some((left, target)) => {
                    let number = left.rsplit(' ').next().unwrap();
                    format!("fd {number} {}", target.split([':', '/']).next().unwrap())
                }
                None => line.to_owned(),
            })
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(answer(0), answer(2));
}

#[test]
fn a_spare_of_a_program_is_heard_on_stderr_and_named_when_it_cannot_start() {
    let address = address::fresh();
    let keys = "exec = [\"DIR/program\"]\nspare = 2\nworkers = 1";
    let server = Preforkd::run(&service(address, keys))
        .script("program", "#!/bin/sh\necho one two three >&2\necho said\n")
        .start();
    settled(&server, 2, 0);
    let stream = connect(address);
    let client = stream.local_addr().unwrap();
    assert_eq!(finish(stream, b""), b"said\n");
    let record_of = record(&server, client);
    let id = record_of.split_once("connection ").unwrap().1.split(' ').next().unwrap().to_owned();
    server.log.wait("the line", |line| line.contains(&format!("connection {id}: stderr: one two three")));
    let path = server.dir().join("program");
    std::fs::remove_file(&path).unwrap();
    for _ in 0..5 {
        settled(&server, 2, 0);
        let mut stream = connect(address);
        let client = stream.local_addr().unwrap();
        assert!(closed(&mut stream));
        let record = record(&server, client);
        assert!(
            record.contains("not started: cannot start") && record.contains(path.to_str().unwrap()),
            "{record}"
        );
    }
    settled(&server, 2, 0);
    assert_eq!(server.log.count(|line| line.contains("died before")), 0);
}

#[test]
fn spares_are_who_they_should_be() {
    if !root("another identity") {
        return;
    }
    let address = address::fresh();
    let keys = "exec = [\"/usr/bin/id\"]\nspare = 2\nworkers = 1\nuser = \"nobody\"";
    let server = Preforkd::run(&service(address, keys)).start();
    settled(&server, 2, 0);
    all_waiting(&server);
    let nobody = text(&std::process::Command::new("id").arg("nobody").output().unwrap().stdout);
    let uid = nobody.split(['=', '(']).nth(1).unwrap().to_owned();
    for spare in waiting(&server) {
        eventually("a spare is nobody", || {
            let status = std::fs::read_to_string(format!("/proc/{spare}/status")).unwrap();
            status.lines().any(|line| line == format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"))
        });
    }
    for _ in 0..5 {
        assert!(listen_to(address).starts_with(&format!("uid={uid}(nobody)")));
    }
}

#[test]
fn spares_that_cannot_begin_are_named_now_and_then_and_connections_have_their_records() {
    if !root("chroot") {
        return;
    }
    let address = address::fresh();
    let keys = "handler = \"echo\"\nspare = 16\nworkers = 1\nchroot = \"DIR/root\"";
    let server = Preforkd::run(&service(address, keys))
        .under(&["sh", "-c", "mkdir DIR/root; exec \"$@\"", "sh"])
        .start();
    settled(&server, 16, 0);
    all_waiting(&server);
    std::fs::remove_dir(server.dir().join("root")).unwrap();
    let mut refused = 0;
    while refused < 20 {
        let mut stream = connect(address);
        let client = stream.local_addr().unwrap();
        let _ = stream.write_all(b"x");
        if closed(&mut stream) {
            refused += 1;
            let record = record(&server, client);
            assert!(record.contains("not started: cannot enter chroot"), "{record}");
        }
    }
    let deaths =
        || server.log.count(|line| line.contains("died before it had a connection: cannot enter chroot"));
    eventually("it is said", || deaths() > 0);
    // Some before it was noticed, and from then on one at a time, ever more seldom.
    assert!(deaths() < 24, "{} times", deaths());
    std::fs::create_dir(server.dir().join("root")).unwrap();
    assert_eq!(exchange(address, b"again"), b"again");
    settled(&server, 16, 0);
}

#[test]
fn a_handler_has_no_more_than_it_needs() {
    for spare in ["0", "2"] {
        let options = ["--spare", spare, "--workers", "1"];
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        settled(&server, spare.parse().unwrap(), 0);
        let before = waiting(&server);
        let mut stream = connect(server.address());
        echo(&mut stream, b"x");
        let serving = server.connections().into_iter().map(|process| process.pid);
        let waits = waiting(&server);
        let serving: Vec<_> = serving.filter(|pid| !waits.contains(pid)).collect();
        let [pid] = serving[..] else { panic!("{serving:?}") };
        assert_eq!(before.contains(&pid), spare != "0");
        let descriptors = proc::descriptors(pid);
        let is_socket = descriptors.iter().all(|(_, target)| target.to_str().unwrap().starts_with("socket:"));
        assert_eq!((descriptors.len(), is_socket), (1, true), "its connection alone: {descriptors:?}");
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        assert!(!maps.contains("preforkd-board") && !maps.contains("preforkd-tally"), "{maps}");
        assert!(!maps.contains("[stack]"), "nor its parent's stack: {maps}");
    }
}

#[test]
fn who_is_forked_on_accept_beside_spares_has_none_of_the_shared_memory_either() {
    let options = ["--spare", "1", "--workers", "1"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    // So many at once that some are forked on accept.
    let mut streams: Vec<_> = (0..30).map(|_| connect(server.address())).collect();
    streams.iter_mut().for_each(|stream| echo(stream, b"x"));
    settled(&server, 1, 30);
    let spares = all_waiting(&server);
    let mut looked_at = 0;
    for process in server.connections().iter().filter(|process| !spares.contains(&process.pid)) {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid)).unwrap();
        assert!(!maps.contains("preforkd-board") && !maps.contains("preforkd-tally"), "{maps}");
        looked_at += 1;
    }
    assert_eq!(looked_at, 30);
}

/// What the record of an exchange says that was moved.
fn bytes(record: &str) -> Option<(u64, u64)> {
    let (head, sent) = record.trim_end_matches(" out)").rsplit_once(" bytes in, ")?;
    Some((head.rsplit(' ').next()?.parse().ok()?, sent.parse().ok()?))
}

#[test]
fn records_tell_how_many_bytes_were_moved() {
    for spare in ["0", "2"] {
        let options = ["--spare", spare, "--workers", "1"];
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        for length in [0, 1, 16, 2048, 2049, 1_000_000] {
            let mut stream = connect(server.address());
            let client = stream.local_addr().unwrap();
            let message = vec![7; length];
            let mut reader = stream.try_clone().unwrap();
            let sender = std::thread::spawn(move || {
                stream.write_all(&message).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut answer = Vec::new();
            reader.read_to_end(&mut answer).unwrap();
            sender.join().unwrap();
            assert_eq!(answer.len(), length);
            let record = record(&server, client);
            assert_eq!(bytes(&record), Some((length as u64, length as u64)), "{record}");
        }
        let mut stream = connect(server.address());
        let client = stream.local_addr().unwrap();
        echo(&mut stream, &[1; 300]);
        reset(stream);
        let record = record(&server, client);
        assert_eq!(bytes(&record), Some((300, 300)), "{record}");
    }
}

#[test]
fn records_of_programs_tell_it_too() {
    let script = "read line; printf %s 1234567890; case $line in wait) cat;; die) kill -KILL $$;; esac";
    let options = ["--workers", "1"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["--", "/bin/sh", "-c", script]).start();
    let begin = |request: &[u8]| {
        let mut stream = connect(server.address());
        let client = stream.local_addr().unwrap();
        stream.write_all(request).unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        (stream, client)
    };
    let moved = |client| {
        let record = record(&server, client);
        (bytes(&record).unwrap_or_else(|| panic!("{record}")), record)
    };
    let (mut stream, client) = begin(b"end\n");
    assert!(closed(&mut stream));
    assert_eq!(moved(client).0, (4, 10));
    let (mut stream, client) = begin(b"die\n");
    assert!(closed(&mut stream));
    let (counts, record) = moved(client);
    assert!(record.contains("killed KILL"), "{record}");
    assert_eq!(counts, (4, 10), "{record}");
    let (stream, client) = begin(b"wait\n");
    assert_eq!(finish(stream, b"and more"), b"and more");
    assert_eq!(moved(client).0, (13, 18));
    let (stream, client) = begin(b"wait\n");
    reset(stream);
    // After a reset the kernel does not tell whether the end of the stream was counted.
    let (counts, record) = moved(client);
    assert!([(4, 10), (5, 10)].contains(&counts), "{record}");
}

#[test]
fn a_user_who_stops_all_his_processes_stops_no_worker() {
    if !root("another identity") {
        return;
    }
    let user = &user(61_201).to_string(); // who has no other processes
    let address = address::fresh();
    let keys =
        format!("exec = [\"/bin/echo\", \"said\"]\nworkers = 1\nuser = \"{user}\"\ngroup = \"{user}\"");
    let server = Preforkd::run(&service(address, &keys)).start();
    let worker = server.worker();
    // What a captured connection process could do. A process is his before it has become his program.
    let attack = "while :; do kill -STOP -1; done";
    let mut attacker = std::process::Command::new("setpriv")
        .args(["--reuid", user, "--regid", user, "--clear-groups", "sh", "-c", attack])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let streams: Vec<_> = (0..200).map(|_| connect(address)).collect();
    eventually("all have their process", || server.count("accepted") == 200 || hangs(worker));
    attacker.kill().unwrap();
    attacker.wait().unwrap();
    // The victims stay stopped.
    assert!(!hangs(worker), "the worker waits for one of them");
    assert_eq!(listen_to(address), "said\n");
    server.connections().iter().for_each(|process| proc::kill(process.pid, Signal::SIGCONT));
    drop(streams);
    settled(&server, 0, 0);
}

/// Whether it waits for a child that shares its memory, and goes on waiting.
fn hangs(pid: i32) -> bool {
    let waits = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") D ");
    (0..20).all(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        waits()
    })
}
