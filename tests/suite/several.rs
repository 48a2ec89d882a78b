//! Processes that serve several connections one after the other, for who asks for it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::client::{closed, connect, connect_from, echo, silent_for, try_echo};
use crate::support::{A_WHILE, Preforkd, Running, address, eventually, preforkd, proc};

fn serve(more: &[&str]) -> Running {
    let options = [&["--workers", "1", "--spare", "2"], more].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    eventually("spares", || server.count("spares") == 2);
    server
}

/// Connects `number` times, one after the other; each is over before the next begins.
fn call(server: &Running, number: u64) {
    let before = server.count("completed");
    for done in before + 1..=before + number {
        let mut client = connect(server.address());
        echo(&mut client, b"0123456789");
        drop(client);
        eventually("the end", || server.count("completed") == done);
    }
}

/// Of the records so far: how many connections each process served, by its pid.
fn served(server: &Running) -> BTreeMap<String, usize> {
    let mut served = BTreeMap::new();
    for line in server.log.all().iter().filter(|line| line.contains(": exited 0 after")) {
        assert!(line.contains("10 bytes in, 10 out"), "{line}");
        let pid = line.split("(pid ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
        *served.entry(pid.to_owned()).or_default() += 1;
    }
    served
}

#[test]
fn a_process_is_renewed_after_its_connections() {
    let server = serve(&["--connections-per-child", "3"]);
    call(&server, 30);
    eventually("records", || served(&server).values().sum::<usize>() == 30);
    assert!(served(&server).values().all(|&connections| connections <= 3));
    assert!(served(&server).values().any(|&connections| connections == 3));
    eventually("spares", || (2..=4).contains(&server.count("spares")));
    assert_eq!((server.count("accepted"), server.count("active")), (30, 0));
}

#[test]
fn none_is_renewed_if_none_shall_be() {
    let server = serve(&["--connections-per-child", "0"]);
    call(&server, 30);
    eventually("records", || served(&server).values().sum::<usize>() == 30);
    // Where ten would have been renewed. A worker that hears late of who is free forks one more now and then.
    assert!(served(&server).len() < 10, "{:?}", served(&server));
}

/// Which process serves this client, when its worker has heard of it.
fn process_of(server: &Running, client: &TcpStream) -> i32 {
    let address = client.local_addr().unwrap().to_string();
    let mut process = None;
    eventually("its process", || {
        let shown = preforkd(&["connections", "--json", "--control", server.control()]);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        let mut all = shown["connections"].as_array().unwrap().iter();
        process = all.find(|one| one["client"] == address).and_then(|one| one["pid"].as_i64());
        process.is_some()
    });
    i32::try_from(process.unwrap()).unwrap()
}

#[test]
fn one_that_is_killed_takes_one_connection_with_it() {
    let options = ["--workers", "1", "--spare", "1", "--connections-per-child", "0"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    eventually("a spare", || server.count("spares") == 1);
    call(&server, 2);
    let mut victim = connect(server.address());
    echo(&mut victim, b"0123456789");
    let mut other = connect(server.address());
    echo(&mut other, b"0123456789");
    assert_eq!(server.count("active"), 2);
    proc::kill(process_of(&server, &victim), Signal::SIGKILL);
    assert!(closed(&mut victim));
    let port = format!(":{}: killed KILL", victim.local_addr().unwrap().port());
    server.log.wait("its record", |line| line.contains(&port));
    echo(&mut other, b"0123456789");
    drop(other);
    eventually("all counted", || server.count("completed") == 4 && server.count("active") == 0);
}

/// A file takes all records as fast as they come.
const LOG_TO_FILE: &str = "exec 2>>DIR/log";

/// How many connections have a record there, of which none has two.
fn recorded(server: &Running) -> usize {
    let log = std::fs::read_to_string(server.dir().join("log")).unwrap();
    let mut records: BTreeMap<&str, usize> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(": connection ") && line.contains(" from ")) {
        let (id, _) = line.split_once(" from ").unwrap();
        *records.entry(id.rsplit(' ').next().unwrap()).or_default() += 1;
    }
    assert!(records.values().all(|times| *times == 1), "{records:?}");
    records.len()
}

#[test]
fn whoever_is_killed_every_connection_has_one_record() {
    const CLIENTS: u32 = 24;
    const TIMES: u32 = 200;
    let options = ["--workers", "2", "--spare", "4", "--connections-per-child", "0"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).after(LOG_TO_FILE).start();
    let _watch = server.watch_zombies();
    let service = server.address();
    let once = move |source| {
        let mut stream = connect_from(address::source(source), service)?;
        try_echo(&mut stream, b"0123456789")?;
        stream.shutdown(Shutdown::Write)?;
        stream.read(&mut [0])
    };
    let client = move |client| (0..TIMES).filter(|time| once(client * TIMES + time).is_err()).count();
    let mut killed = 0;
    let hurt: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        while clients.iter().any(|client| !client.is_finished()) {
            let processes = server.connections();
            if let Some(process) = processes.get(killed * 7 % processes.len().max(1)) {
                proc::kill(process.pid, Signal::SIGKILL);
                killed += 1;
            }
        }
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    eventually("all are counted", || {
        let service = server.service();
        service["active"] == 0 && service["completed"] == service["accepted"]
    });
    let accepted = server.count("accepted");
    eventually("a record of each", || recorded(&server) as u64 == accepted);
    // Who was accepted by a process that was killed before it could say so has died with it.
    assert!(hurt <= killed, "{hurt} of {} were hurt by {killed} kills", CLIENTS * TIMES);
    assert!(accepted + killed as u64 >= u64::from(CLIENTS * TIMES), "{accepted} accepted, {killed} killed");
}

#[test]
fn a_limit_is_exact_and_a_burst_leaves_no_more_than_it_should() {
    let server = serve(&["--connections-per-child", "0", "--max-connections", "12"]);
    let mut clients: Vec<_> = (0..12).map(|_| connect(server.address())).collect();
    clients.iter_mut().for_each(|client| echo(client, b"0123456789"));
    assert_eq!((server.count("active"), server.count("spares")), (12, 0));
    drop(clients);
    eventually("the end of all", || server.count("active") == 0 && server.count("completed") == 12);
    call(&server, 20);
    let size = 2;
    eventually("few are left", || server.count("spares") <= 2 * size);
    assert_eq!(server.count("accepted"), 32);
}

#[test]
fn who_is_needed_again_stays() {
    const AT_ONCE: usize = 12;
    let server = serve(&["--connections-per-child", "0", "--max-connections", "12"]);
    for bursts in 1..=4 {
        let mut clients: Vec<_> = (0..AT_ONCE).map(|_| connect(server.address())).collect();
        clients.iter_mut().for_each(|client| echo(client, b"0123456789"));
        drop(clients);
        eventually("the end of all", || server.count("completed") == (bursts * AT_ONCE) as u64);
    }
    eventually("records", || served(&server).values().sum::<usize>() == 4 * AT_ONCE);
    // Some may have gone if this machine did something else for a second.
    assert!(served(&server).len() < 2 * AT_ONCE, "{:?}", served(&server));
}

#[test]
fn who_is_queued_while_others_are_served_is_served_too() {
    const CLIENTS: usize = 24;
    const TIMES: usize = 50;
    let options = ["--workers", "1", "--spare", "2", "--connections-per-child", "0"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).after(LOG_TO_FILE).start();
    let address = server.address();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(move || {
                for _ in 0..TIMES {
                    echo(&mut connect(address), b"0123456789");
                }
            });
        }
    });
    eventually("the end of all", || server.count("completed") == (CLIENTS * TIMES) as u64);
    assert_eq!((server.count("accepted"), server.count("active")), ((CLIENTS * TIMES) as u64, 0));
    eventually("a record of each", || recorded(&server) == CLIENTS * TIMES);
    eventually("few are left", || server.count("spares") <= 2 * 2);
}

#[test]
fn a_reload_replaces_them_when_their_connection_has_ended() {
    let listen = address::fresh();
    let config = |spare: u32| {
        format!(
            "[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 1\nspare = {spare}\n\
             connections_per_child = 0\n"
        )
    };
    let server = Preforkd::run(&config(2)).start();
    eventually("spares", || server.count("spares") == 2);
    let mut client = connect(listen);
    echo(&mut client, b"x");
    server.configure(&config(3));
    server.reload_ok();
    echo(&mut client, b"y");
    drop(client);
    eventually("only new ones", || server.count("spares") == 3 && server.workers().len() == 1);
}

#[test]
fn every_connection_has_its_own_record_also_if_the_worker_could_not_listen_meanwhile() {
    const CONNECTIONS: usize = 3000;
    let options = ["--workers", "1", "--spare", "2", "--connections-per-child", "0"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).after(LOG_TO_FILE).start();
    eventually("spares", || server.count("spares") == 2);
    let worker = server.worker();
    proc::stop(worker);
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        let source = address::source(u32::try_from(number).unwrap());
        let mut stream = connect_from(source, server.address()).unwrap();
        let (client, message) = (stream.local_addr().unwrap(), vec![b'x'; number % 100 + 1]);
        stream.write_all(&message).unwrap();
        if silent_for(&mut stream, A_WHILE) {
            // They may wait for the worker, rather than say what nobody would hear.
            proc::kill(worker, Signal::SIGCONT);
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        clients.push((client, message.len()));
    }
    proc::kill(worker, Signal::SIGCONT);
    eventually("all are counted", || {
        let service = server.service();
        service["accepted"] == CONNECTIONS && service["completed"] == CONNECTIONS && service["active"] == 0
    });
    let log = std::fs::read_to_string(server.dir().join("log")).unwrap();
    let records: Vec<_> = log.lines().filter(|line| line.contains(": exited 0 after")).collect();
    assert_eq!(records.len(), CONNECTIONS);
    for (client, length) in clients {
        let from = format!(" from {client}: ");
        let record = records.iter().find(|line| line.contains(&from)).unwrap_or_else(|| panic!("no{from}"));
        assert!(record.contains(&format!(" {length} bytes in, {length} out")), "{length} bytes: {record}");
    }
}

#[test]
fn what_a_process_has_served_is_over_though_its_worker_died_before_it_was_told() {
    let options = ["--workers", "1", "--spare", "1", "--connections-per-child", "0"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    eventually("a spare", || server.count("spares") == 1);
    let mut first = connect(server.address());
    echo(&mut first, b"x");
    // There is another spare once the worker has heard of it.
    eventually("the next spare", || (server.count("active"), server.count("spares")) == (1, 1));
    let worker = server.worker();
    proc::stop(worker);
    let before = first.local_addr().unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    first.read_to_end(&mut Vec::new()).unwrap();
    // Whichever of the two takes them.
    let mut others = [connect(server.address()), connect(server.address())];
    others.iter_mut().for_each(|other| echo(other, b"y"));
    proc::kill(worker, Signal::SIGKILL);
    let counts = ["accepted", "completed", "active"];
    eventually("it is completed", || counts.map(|count| server.count(count)) == [3, 1, 2]);
    server.log.wait("its record", |line| line.contains(&format!("from {before}: lost")));
    others.iter_mut().for_each(|other| echo(other, b"z"));
}

/// With one worker and one spare, of which none is for a while, because it has died so often: the worker accepts by itself.
fn without_spares(server: &Running) {
    for times in 1..=4 {
        eventually("a spare", || server.count("spares") == 1);
        let spare = server.processes().into_iter().find(|process| process.parent == server.worker()).unwrap();
        proc::kill(spare.pid, Signal::SIGKILL);
        eventually("it is missed", || server.log.count(|line| line.contains("died before it had")) == times);
    }
}

#[test]
fn who_comes_when_no_spare_waits_gets_a_process_that_stays() {
    let options = ["--workers", "1", "--spare", "1", "--connections-per-child", "0"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    without_spares(&server);
    call(&server, 10);
    eventually("records", || served(&server).values().sum::<usize>() == 10);
    // On a machine that has other things to do than to wake it within a millisecond, its worker may be faster now and then.
    assert!(served(&server).values().any(|times| *times > 1), "{:?}", served(&server));
}

#[test]
fn why_such_a_process_could_not_begin_is_in_the_record() {
    let address = address::fresh();
    let mut keys =
        "workers = 1\nspare = 1\nconnections_per_child = 0\nworking_directory = \"DIR/here\"\n".to_owned();
    if nix::unistd::geteuid().is_root() {
        // Whom a worker knows to have a way in, it goes there before.
        keys += "user = \"games\"\n";
    }
    let config = format!("[service.echo]\nlisten = \"{address}\"\nhandler = \"echo\"\n{keys}");
    let server = Preforkd::run(&config);
    let here = server.dir().join("here");
    std::fs::create_dir(&here).unwrap();
    let server = server.start();
    without_spares(&server);
    std::fs::remove_dir(here).unwrap();
    assert!(closed(&mut connect(address)));
    let record = server.log.wait("its record", |line| line.contains("not started: "));
    assert!(record.contains("cannot enter working_directory"), "{record}");
    assert_eq!(server.log.count(|line| line.contains("has reported what cannot be")), 0);
}

#[test]
fn of_a_dead_worker_only_what_still_goes_on_is_said_to() {
    let server = serve(&["--connections-per-child", "0"]);
    let worker = server.worker();
    proc::stop(worker);
    for _ in 0..20 {
        let mut client = connect(server.address());
        echo(&mut client, b"0123456789");
    }
    let mut held = connect(server.address());
    echo(&mut held, b"0123456789");
    proc::kill(worker, Signal::SIGKILL);
    let line = server.log.wait("its death", |line| line.contains("killed KILL; its"));
    // Nobody knows of the other spare that it waits again.
    let fits =
        ["; its connection goes on", "; its 2 connections go on"].iter().any(|end| line.ends_with(end));
    assert!(fits, "{line}");
    echo(&mut held, b"0123456789");
}
