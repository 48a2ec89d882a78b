//! Spares and who depends on them are killed, stopped, reloaded, upgraded.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;

use super::{all_waiting, pid, record, served_by, service, settled, waiting};
use crate::load::{CLIENTS, Load};
use crate::support::client::{closed, connect, connect_from, echo, exchange, finish};
use crate::support::{BINARY, Preforkd, Running, address, eventually, proc, say};

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

/// More than the pipe has room for in which children report to a worker.
const MORE_THAN_A_PIPE_HOLDS: u16 = 1000;

#[test]
fn all_that_spares_refuse_while_their_worker_is_stopped_are_counted() {
    let options = ["--spare", "4", "--workers", "1", "--deny", "127.0.0.66"];
    for job in [&["echo"][..], &["--", "/bin/cat"]] {
        let server = Preforkd::serve(&options, "127.0.0.1:0", job).start();
        settled(&server, 4, 0);
        let worker = server.worker();
        proc::stop(worker);
        let source = "127.0.0.66".parse().unwrap();
        let refused: Vec<_> =
            (0..MORE_THAN_A_PIPE_HOLDS).map(|_| connect_from(source, server.address()).unwrap()).collect();
        eventually("its spares do no more", || {
            server.connections().iter().all(|process| process.state == 'S')
        });
        proc::kill(worker, Signal::SIGCONT);
        refused.into_iter().for_each(|mut client| assert!(closed(&mut client)));
        eventually("all are counted", || {
            server.service()["refused"]["access"] == u64::from(MORE_THAN_A_PIPE_HOLDS)
        });
        settled(&server, 4, 0);
    }
}

#[test]
fn why_spares_could_not_begin_while_their_worker_was_stopped_is_in_every_record() {
    let spares = u64::from(MORE_THAN_A_PIPE_HOLDS);
    let options = ["--spare", &spares.to_string(), "--workers", "1", "--max-connections", "2000"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["--", "DIR/program"])
        .script("program", "#!/bin/sh\n")
        .start();
    settled(&server, spares, 0);
    let worker = server.worker();
    proc::stop(worker);
    std::fs::remove_file(server.dir().join("program")).unwrap();
    let clients: Vec<_> = (0..spares).map(|_| connect(server.address())).collect();
    // Before their worker hears of it.
    clients.into_iter().for_each(|mut client| assert!(closed(&mut client)));
    proc::kill(worker, Signal::SIGCONT);
    eventually("all are counted", || server.count("completed") == spares);
    let records = |text: &str| server.log.count(|line| line.contains(" from ") && line.contains(text)) as u64;
    // One is counted before its record is written, and a log that is full loses some, which are counted, too.
    eventually("all have their record", || records("") + server.count("log_records_dropped") == spares);
    assert_eq!(records("No such file or directory"), records(""));
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
        server.replace_worker(server.worker());
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
fn a_stopped_worker_outlives_the_death_of_many_spares_of_others() {
    let spares = u64::from(MORE_THAN_A_PIPE_HOLDS) * 2;
    let options = ["--spare", &spares.to_string(), "--workers", "2", "--max-connections", "5000"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    settled(&server, spares, 0);
    let [stopped, mut other] = server.workers()[..] else { panic!("two workers") };
    proc::stop(stopped);
    for _ in 0..2 {
        let before = server.connections();
        server.replace_worker(other);
        other = server.workers().into_iter().find(|worker| *worker != stopped).unwrap();
        let gone = |process: &proc::Process| proc::process(process.pid).is_none();
        // Those of the stopped one stay.
        eventually("spares are gone", || before.iter().filter(|process| gone(process)).count() >= 1000);
        settled(&server, spares, 0);
    }
    assert!(server.workers().contains(&stopped), "it was killed");
    proc::kill(stopped, Signal::SIGCONT);
    settled(&server, spares, 0);
    assert_eq!(exchange(server.address(), b"x"), b"x");
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
