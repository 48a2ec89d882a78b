//! Connection processes that wait for their connection: `spare = N`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;

use crate::load::{CLIENTS, Load};
use crate::support::client::{
    closed, connect, connect_from, echo, exchange, finish, listen_to, reset, silent_for,
};
use crate::support::{A_WHILE, BINARY, Preforkd, Running, address, eventually, proc, root, say, text};

/// A configuration with one service, of which `keys` say what it does.
fn service(address: SocketAddr, keys: &str) -> String {
    format!("[service.one]\nlisten = [\"{address}\"]\n{keys}\n")
}

/// Waits until there are so many spares and so many connections, and nothing is lost or counted twice. While connections
/// live, up to half of the spares may be missing: a worker is not woken for each that is called.
fn settled(server: &Running, spares: u64, active: u64) {
    let least = if active == 0 { spares } else { spares / 2 };
    eventually(&format!("{spares} spares, {active} active, not {}", server.service()), || {
        let service = server.service();
        let count = |name: &str| service[name].as_u64().unwrap();
        (least..=spares).contains(&count("spares"))
            && count("active") == active
            && count("accepted") == count("completed") + count("active")
    });
}

/// Those that wait, as /proc shows them: they have an epoll instance, and who serves has none.
fn waiting(server: &Running) -> BTreeSet<i32> {
    let waits = |pid: &i32| {
        let descriptors = proc::descriptors(*pid);
        descriptors.iter().any(|(_, target)| target.to_str() == Some("anon_inode:[eventpoll]"))
    };
    server.connections().into_iter().map(|process| process.pid).filter(waits).collect()
}

/// The same, when as many do as the status says.
fn all_waiting(server: &Running) -> BTreeSet<i32> {
    eventually("all spares wait", || waiting(server).len() as u64 == server.count("spares"));
    waiting(server)
}

/// The record of the connection with this client.
fn record(server: &Running, client: SocketAddr) -> String {
    let from = format!(" from {client}: ");
    server.log.wait("the record", |line| line.contains(&from))
}

/// The pid in a record.
fn pid(record: &str) -> i32 {
    let (_, tail) = record.rsplit_once("(pid ").unwrap_or_else(|| panic!("no pid: {record}"));
    tail.split([',', ')']).next().unwrap().parse().unwrap()
}

/// Exchanges something, and returns the pid of who served it.
fn served_by(server: &Running, address: SocketAddr) -> i32 {
    let stream = connect(address);
    let client = stream.local_addr().unwrap();
    assert_eq!(finish(stream, b"x"), b"x");
    pid(&record(server, client))
}

#[test]
fn a_connection_is_served_by_a_process_that_waited_for_it() {
    let server = Preforkd::serve(&["--spare", "8", "--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    let _watch = server.watch_zombies();
    for _ in 0..20 {
        settled(&server, 8, 0);
        let before = all_waiting(&server);
        let pid = served_by(&server, server.address());
        assert!(before.contains(&pid), "{pid} is not among {before:?}");
    }
    settled(&server, 8, 0);
    assert_eq!((server.count("accepted"), server.count("completed")), (20, 20));
    assert_eq!(server.count("crashes"), 0);
}

#[test]
fn spares_are_not_active_and_those_that_serve_are_not_spares() {
    let server = Preforkd::serve(&["--spare", "4", "--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    settled(&server, 4, 0);
    let mut streams = Vec::new();
    for number in 1..=10 {
        let mut stream = connect(server.address());
        echo(&mut stream, b"x");
        streams.push(stream);
        settled(&server, 4, number);
        let processes = || server.connections().len() as u64;
        eventually("as many processes", || processes() == server.count("spares") + number);
    }
    drop(streams);
    settled(&server, 4, 0);
}

#[test]
fn a_unix_socket_and_several_listeners_have_spares_too() {
    let tcp = address::fresh();
    let server = Preforkd::run(&format!(
        "[service.one]\nlisten = [\"{tcp}\", \"unix:DIR/service.sock\"]\nhandler = \"echo\"\nspare = 2\nworkers = 1\n"
    ))
    .start();
    let path = server.dir().join("service.sock");
    for _ in 0..5 {
        settled(&server, 2, 0);
        let before = all_waiting(&server);
        assert!(before.contains(&served_by(&server, tcp)));
        settled(&server, 2, 0);
        let before = all_waiting(&server);
        let mark = server.log.mark();
        assert_eq!(crate::support::client::exchange_unix(&path, b"u"), b"u");
        let uid = format!(" from uid {}", nix::unistd::geteuid());
        let record = server.log.wait_after(mark, "the record", |line| line.contains(&uid));
        assert!(before.contains(&pid(&record)), "{record}");
    }
}

/// Serves one after the other as slots are freed, and never has more processes than that.
fn limit_is_exact(workers: &str) {
    const LIMIT: usize = 5;
    let options = ["--max-connections", "5", "--spare", "8", "--workers", workers];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    settled(&server, 5, 0);
    for _ in 0..3 {
        let mut served = Vec::new();
        while served.len() < LIMIT {
            let mut stream = connect(server.address());
            echo(&mut stream, b"x");
            served.push(stream);
            assert!(server.connections().len() <= LIMIT, "{:?}", server.connections());
        }
        settled(&server, 0, 5);
        let mut sixth = connect(server.address());
        sixth.write_all(b"6").unwrap();
        assert!(silent_for(&mut sixth, A_WHILE), "the sixth is served");
        drop(served.pop());
        let mut answer = [0];
        sixth.read_exact(&mut answer).expect("the sixth is served when there is room");
        assert!(server.connections().len() <= LIMIT, "{:?}", server.connections());
        drop((served, sixth));
        settled(&server, 5, 0);
    }
}

#[test]
fn spares_and_connections_together_keep_to_the_limit() {
    limit_is_exact("1");
}

#[test]
fn spares_and_connections_of_several_workers_together_keep_to_the_limit() {
    // A worker that gets no spare for want of a slot must not be woken in the place of another's spare.
    limit_is_exact("2");
    limit_is_exact("4");
}

#[test]
fn a_burst_is_served_whole() {
    let options = ["--spare", "4", "--workers", "2"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let _watch = server.watch_zombies();
    settled(&server, 4, 0);
    for round in 0..3 {
        let mut streams: Vec<_> = (0..200)
            .map(|number| connect_from(address::source(round * 200 + number), server.address()).unwrap())
            .collect();
        streams.iter_mut().for_each(|stream| echo(stream, b"all at once"));
        eventually("all are active", || server.count("active") == 200);
        drop(streams);
        settled(&server, 4, 0);
    }
    assert_eq!((server.count("accepted"), server.count("completed")), (600, 600));
}

#[test]
fn a_reload_replaces_the_spares() {
    let address = address::fresh();
    let config = |spare: u32| service(address, &format!("handler = \"echo\"\nworkers = 2\nspare = {spare}"));
    let server = Preforkd::run(&config(2)).start();
    settled(&server, 2, 0);
    let mut held = connect(address);
    echo(&mut held, b"x");
    settled(&server, 2, 1);
    let old = all_waiting(&server);
    server.configure(&config(6));
    server.reload_ok();
    eventually("the old spares are gone", || old.iter().all(|pid| !proc::lives(*pid)));
    settled(&server, 6, 1);
    for _ in 0..10 {
        assert!(!old.contains(&served_by(&server, address)));
    }
    echo(&mut held, b"goes on");
    drop(held);
    settled(&server, 6, 0);
    server.configure(&config(0));
    server.reload_ok();
    settled(&server, 0, 0);
    assert_eq!(exchange(address, b"without"), b"without");
    let mut warnings = server.log.all();
    warnings.retain(|line| line.contains("spare"));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn an_address_that_is_given_up_is_free_although_spares_waited_there() {
    let (address, other) = (address::fresh(), address::fresh());
    let keys = "handler = \"echo\"\nspare = 4";
    let server = Preforkd::run(&service(address, keys)).start();
    let mut held = connect(address);
    echo(&mut held, b"x");
    for _ in 0..5 {
        server.configure(&service(other, keys));
        server.reload_ok();
        eventually("it is free", || proc::listeners(address).is_empty());
        echo(&mut held, b"goes on");
        server.configure(&service(address, keys));
        server.reload_ok();
        assert_eq!(exchange(address, b"y"), b"y");
    }
}

#[test]
fn nobody_is_refused_or_reset_by_reloads_killed_workers_killed_spares_and_a_stop() {
    const RELOADS: usize = 20;
    const KILLS: usize = 10;
    let address = address::fresh();
    let config = |number: usize| {
        let (spare, limit) = (4 + number % 3 * 8, 500 + number);
        service(
            address,
            &format!("handler = \"echo\"\nworkers = 2\nspare = {spare}\nmax_connections = {limit}"),
        )
    };
    let server = Preforkd::run(&config(0)).start();
    let watch = server.watch_zombies();
    let load = Load::on(address);
    let mut hurt_at_most = 0;
    for number in 0..KILLS {
        let spares = waiting(&server);
        hurt_at_most += spares.len();
        spares.into_iter().for_each(|pid| proc::kill(pid, Signal::SIGKILL));
        let workers = server.workers();
        server.replace_worker(workers[number % workers.len()]);
        hurt_at_most += 1;
    }
    // After the kills, so that whoever was hurt by them has noticed before TERM.
    for number in 1..=RELOADS {
        server.configure(&config(number));
        server.reload_ok();
    }
    let completed = server.count("completed");
    eventually("the load goes on", || server.count("completed") > completed + 100);
    load.stopping.store(true, Ordering::SeqCst);
    server.signal(Signal::SIGTERM);
    server.left_nothing(&[address]);
    drop(watch);
    let counts = load.counts();
    say(&format!("with spares, {hurt_at_most} processes killed: {counts:?}"));
    assert_eq!(counts["connect: ConnectionRefused after TERM"], CLIENTS, "{counts:?}");
    let ends =
        ["echo: UnexpectedEof", "echo: ConnectionReset", "shutdown: NotConnected", "end: ConnectionReset"];
    let hurt: usize = ends.iter().filter_map(|kind| counts.get(*kind)).sum();
    assert!(hurt <= hurt_at_most, "{hurt} connections were hurt by {hurt_at_most} kills: {counts:?}");
    let is_expected = |outcome: &str| {
        outcome == "ok"
            || outcome.starts_with("connect: ConnectionRefused after TERM")
            || ends.contains(&outcome)
    };
    let others: Vec<_> = counts.keys().filter(|outcome| !is_expected(outcome)).collect();
    assert!(others.is_empty(), "{counts:?}");
}

#[test]
fn nothing_is_lost_or_counted_twice_when_workers_die_under_load() {
    let options = ["--spare", "16", "--workers", "2"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let service = server.address();
    for round in 0..10 {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                std::thread::spawn(move || {
                    for number in 0..30 {
                        let source = address::source(round * 1000 + client * 30 + number);
                        let mut stream = connect_from(source, service).unwrap();
                        let _ = stream.write_all(b"x");
                        let _ = stream.read(&mut [0]);
                    }
                })
            })
            .collect();
        let workers = server.workers();
        server.replace_worker(workers[round as usize % workers.len()]);
        clients.into_iter().for_each(|client| client.join().unwrap());
        settled(&server, 16, 0);
    }
}

#[test]
fn killed_spares_are_replaced_and_nobody_waits_for_ever() {
    const ROUNDS: usize = 20;
    let options = ["--spare", "8", "--workers", "1"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let _watch = server.watch_zombies();
    let mut killed = 0;
    let mut last = String::new();
    for _ in 0..ROUNDS {
        let spares = waiting(&server);
        killed += spares.len();
        spares.into_iter().for_each(|pid| proc::kill(pid, Signal::SIGKILL));
        let stream = connect(server.address());
        let client = stream.local_addr().unwrap();
        assert_eq!(finish(stream, b"x"), b"x");
        last = record(&server, client);
    }
    server.log.wait("the death", |line| line.contains("died before it had a connection: killed KILL"));
    settled(&server, 8, 0);
    let deaths = server.log.count(|line| line.contains("died before it had a connection"));
    assert!(deaths <= killed, "{deaths} deaths, {killed} killed");
    // Each process that was made has had a number of its own.
    let (id, _) = last.split_once(" from ").unwrap();
    let number = id.rsplit('-').next().unwrap().parse::<usize>().unwrap();
    assert!(number <= killed + 2 * ROUNDS + 8, "{number} processes for {killed} killed ones");
    let spares = all_waiting(&server);
    assert!(spares.contains(&served_by(&server, server.address())), "it is as before");
}

#[test]
fn stopped_spares_hold_up_nobody() {
    let options = ["--spare", "4", "--workers", "1"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    settled(&server, 4, 0);
    // One, and then all that there are.
    let mut stopped = BTreeSet::new();
    for number in [1, 4] {
        for pid in all_waiting(&server).difference(&stopped.clone()).take(number) {
            proc::stop(*pid);
            stopped.insert(*pid);
        }
        for _ in 0..5 {
            assert!(!stopped.contains(&served_by(&server, server.address())));
        }
    }
    stopped.iter().for_each(|pid| proc::kill(*pid, Signal::SIGCONT));
    for _ in 0..20 {
        assert_eq!(exchange(server.address(), b"y"), b"y");
    }
    eventually("all are counted", || server.count("completed") == 30);
}

#[test]
fn a_worker_without_a_slot_is_not_woken_in_the_place_of_a_spare() {
    // Two of the workers have no spare, and find no slot.
    let options = ["--max-connections", "2", "--spare", "2", "--workers", "4"];
    for _ in 0..3 {
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        for _ in 0..10 {
            let (mut first, mut second) = (connect(server.address()), connect(server.address()));
            echo(&mut first, b"x");
            echo(&mut second, b"y");
            assert!(server.connections().len() <= 2, "{:?}", server.connections());
        }
    }
}

/// A service that says its id and then echoes, by a program.
fn saying_id(options: &[&str]) -> Running {
    let script = "echo $PREFORKD_CONNECTION; exec cat";
    Preforkd::serve(options, "127.0.0.1:0", &["--", "/bin/sh", "-c", script]).start()
}

/// Connects to it, and hears the id.
fn with_id(server: &Running) -> (BufReader<TcpStream>, String) {
    let mut stream = BufReader::new(connect(server.address()));
    let mut id = String::new();
    stream.read_line(&mut id).unwrap();
    (stream, id.trim_end().to_owned())
}

#[test]
fn spares_of_a_killed_worker_go_and_their_connections_go_on() {
    let server = saying_id(&["--spare", "4", "--workers", "1", "--max-connections", "10"]);
    let _watch = server.watch_zombies();
    settled(&server, 4, 0);
    for _ in 0..5 {
        let before = all_waiting(&server);
        let (mut stream, id) = with_id(&server);
        let client = stream.get_ref().local_addr().unwrap();
        settled(&server, 4, 1);
        let old = all_waiting(&server);
        server.replace_worker(server.workers()[0]);
        eventually("its spares are gone", || old.iter().all(|pid| !proc::lives(*pid)));
        settled(&server, 4, 1);
        echo(stream.get_mut(), b"goes on\n");
        drop(stream);
        let record = record(&server, client);
        assert!(record.contains(&format!("connection {id} from {client}: exited 0")), "{id}: {record}");
        assert!(before.contains(&pid(&record)), "{record}");
        settled(&server, 4, 0);
    }
}

#[test]
fn without_the_supervisor_spares_go_and_connections_end_as_they_would() {
    let options = ["--spare", "6", "--workers", "2"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    settled(&server, 6, 0);
    let mut stream = connect(server.address());
    echo(&mut stream, b"x");
    settled(&server, 6, 1);
    let spares = all_waiting(&server);
    proc::kill(server.pid(), Signal::SIGKILL);
    eventually("the spares are gone", || spares.iter().all(|pid| !proc::lives(*pid)));
    echo(&mut stream, b"y");
    assert_eq!(finish(stream, b"z"), b"z");
    server.wait_empty();
}

#[test]
fn a_stop_ends_spares_at_once_and_connections_when_they_end() {
    let options = ["--spare", "6", "--workers", "2"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    settled(&server, 6, 0);
    let mut stream = connect(server.address());
    echo(&mut stream, b"x");
    settled(&server, 6, 1);
    let address = server.address();
    server.signal(Signal::SIGTERM);
    eventually("the spares are gone", || {
        let status = server.status();
        status["services"][0]["spares"] == 0 && server.connections().len() == 1
    });
    echo(&mut stream, b"y");
    assert!(proc::listeners(address).is_empty());
    assert_eq!(finish(stream, b"z"), b"z");
    server.left_nothing(&[address]);
    let unclear = server.log.count(|line| line.contains("spare"));
    assert_eq!(unclear, 0, "no word about spares that were told to go");
}

#[test]
fn upgrades_replace_the_spares() {
    let address = address::fresh();
    let keys = "handler = \"echo\"\nspare = 4\nworkers = 2\nmax_connections = 5";
    let server = Preforkd::run(&service(address, keys)).own_copy().start();
    let mut held = connect(address);
    echo(&mut held, b"x");
    for number in 1..=3 {
        settled(&server, 4, 1);
        let old = all_waiting(&server);
        server.replace_program(&std::fs::read(BINARY).unwrap());
        server.signal(Signal::SIGUSR2);
        eventually("it is upgraded", || server.status()["upgrades"].as_u64() == Some(number));
        eventually("the old spares are gone", || old.iter().all(|pid| !proc::lives(*pid)));
        settled(&server, 4, 1);
        assert_eq!(exchange(address, b"y"), b"y");
        echo(&mut held, b"z");
    }
    drop(held);
    settled(&server, 4, 0);
    assert_eq!((server.count("accepted"), server.count("completed")), (4, 4));
}

/// A spare of a worker that was killed may be called before it goes.
#[test]
fn a_limit_is_whole_again_after_everything_was_killed() {
    let server = saying_id(&["--spare", "6", "--workers", "2", "--max-connections", "8"]);
    for round in 0..5 {
        let mut held: Vec<_> = (0..4).map(|_| with_id(&server)).collect();
        server.connections().iter().for_each(|process| proc::kill(process.pid, Signal::SIGKILL));
        let workers = server.workers();
        server.replace_worker(workers[round % workers.len()]);
        held.iter_mut().for_each(|(stream, _)| assert!(closed(stream.get_mut())));
        settled(&server, 6, 0);
    }
    let held: Vec<_> = (0..8).map(|_| with_id(&server)).collect();
    let ids: BTreeSet<_> = held.iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 8, "{ids:?}");
    server.connections().iter().for_each(|process| proc::kill(process.pid, Signal::SIGKILL));
}

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
        let others: Vec<_> = descriptors.iter().filter(|(number, _)| *number > 2).collect();
        let is = |kind: &str| {
            others.iter().filter(|(_, target)| target.to_str().unwrap().starts_with(kind)).count()
        };
        assert_eq!((others.len(), is("socket:"), is("pipe:")), (2, 1, 1), "{descriptors:?}");
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
    const USER: &str = "61201"; // who has no other processes
    let address = address::fresh();
    let keys =
        format!("exec = [\"/bin/echo\", \"said\"]\nworkers = 1\nuser = \"{USER}\"\ngroup = \"{USER}\"");
    let server = Preforkd::run(&service(address, &keys)).start();
    let worker = server.workers()[0];
    // What a captured connection process could do. A process is his before it has become his program.
    let attack = "while :; do kill -STOP -1; done";
    let mut attacker = std::process::Command::new("setpriv")
        .args(["--reuid", USER, "--regid", USER, "--clear-groups", "sh", "-c", attack])
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
