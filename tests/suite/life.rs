//! Start, reload, and what happens when processes of preforkd itself die.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::support::client::{connect, echo, exchange, finish, listen_to, refused, silent_for};
use crate::support::varlink::Varlink;
use crate::support::{A_WHILE, Preforkd, Running, address, eventually, proc, root, text, write};

pub(crate) fn echo_service(address: SocketAddr, keys: &str) -> String {
    format!("[service.echo]\nlisten = [\"{address}\"]\nhandler = \"echo\"\n{keys}\n")
}

/// The same service, now with something to tell its generations apart.
fn says(address: SocketAddr, word: &str) -> String {
    format!("[service.echo]\nlisten = [\"{address}\"]\nexec = [\"/bin/echo\", \"{word}\"]\n")
}

fn generation(server: &Running) -> u64 {
    server.status()["generation"].as_u64().unwrap()
}

fn reloads(server: &Running, verdict: &str) -> u64 {
    server.status()["reloads"][verdict].as_u64().unwrap()
}

#[test]
fn ready_means_that_it_serves() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2")).start();
    assert_eq!(server.workers().len(), 2, "every worker is in its accept loop: {}", server.service());
    assert_eq!(exchange(address, b"x"), b"x");
    assert_eq!(server.notify.count(|line| line == "READY=1"), 1);
    let status = server.status();
    assert_eq!(status["pid"].as_i64(), Some(server.pid().into()));
    assert_eq!(status["state"], "running");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_process_has_one_thread() {
    // Fork copies one thread; locks that others held stay locked for ever.
    let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    let mut stream = connect(server.address());
    echo(&mut stream, b"x");
    let processes = server.processes();
    assert_eq!(processes.len(), 4, "a supervisor, two workers, a connection: {processes:#?}");
    for process in processes {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
        assert!(status.contains("\nThreads:\t1\n"), "{status}");
    }
}

#[test]
fn serve_says_that_it_listens_only_when_it_does() {
    // The line is on stdout, once, and a client that waits for it is never refused.
    for _ in 0..5 {
        let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["echo"]).start();
        assert_eq!(exchange(server.address(), b"x"), b"x");
    }
}

#[test]
fn status_counts_connections() {
    let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    let mut streams: Vec<_> = (0..3).map(|_| connect(server.address())).collect();
    for stream in &mut streams {
        echo(stream, b"x");
    }
    assert_eq!((server.count("active"), server.count("accepted"), server.count("completed")), (3, 3, 0));
    drop(streams);
    eventually("none is active", || server.count("active") == 0);
    assert_eq!((server.count("completed"), server.count("accepted"), server.count("crashes")), (3, 3, 0));
    assert_eq!(server.connections().len(), 0);
}

#[test]
fn reload_puts_a_new_configuration_in_force_on_the_same_socket() {
    let address = address::fresh();
    let server = Preforkd::run(&says(address, "one")).start();
    let (before, listeners, workers) = (generation(&server), proc::listeners(address), server.workers());
    assert_eq!(listeners.len(), 1);
    assert_eq!(listen_to(address), "one\n");

    server.configure(&says(address, "two"));
    server.reload_ok();
    assert_eq!(listen_to(address), "two\n", "reload came back before the new configuration was in force");
    assert_eq!((generation(&server), reloads(&server, "ok"), reloads(&server, "failed")), (before + 1, 1, 0));
    assert_eq!(proc::listeners(address), listeners, "the listener was closed in between");
    eventually("the old workers are gone", || workers.iter().all(|worker| !proc::lives(*worker)));
}

#[test]
fn hup_reloads_and_tells_systemd() {
    let address = address::fresh();
    let server = Preforkd::run(&says(address, "one")).start();
    server.configure(&says(address, "two"));
    let mark = server.notify.mark();
    server.signal(Signal::SIGHUP);
    // sd_notify(3): RELOADING=1 with the time, then READY=1 when it is done.
    server.notify.wait_after(mark, "RELOADING=1", |line| line == "RELOADING=1");
    server.notify.wait_after(mark, "MONOTONIC_USEC", |line| line.starts_with("MONOTONIC_USEC="));
    server.notify.wait_after(mark, "READY=1", |line| line == "READY=1");
    assert_eq!(listen_to(address), "two\n");
}

#[test]
fn connections_outlive_a_reload() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "")).start();
    let mut stream = connect(address);
    echo(&mut stream, b"before");
    server.configure(&says(address, "two"));
    server.reload_ok();
    echo(&mut stream, b"after");
    assert_eq!(server.count("active"), 1);
    assert_eq!(finish(stream, b"end"), b"end");
    eventually("the old connection is completed", || server.count("active") == 0);
}

#[test]
fn a_reload_leaves_unchanged_services_alone() {
    let (one, two, three) = (address::fresh(), address::fresh(), address::fresh());
    let other = format!("[service.other]\nlisten = [\"{two}\"]\nhandler = \"echo\"\n");
    let server = Preforkd::run(&(says(one, "one") + &other)).start();
    let workers = |name: &str| {
        let status = server.status();
        let service = status["services"].as_array().unwrap().iter().find(|s| s["name"] == name).cloned();
        service.map(|service| service["workers"].clone())
    };
    let unchanged = workers("other");
    let third = format!("[service.third]\nlisten = [\"{three}\"]\nhandler = \"echo\"\n");
    server.configure(&(says(one, "two") + &other + &third));
    server.reload_ok();
    let pids = |workers: Option<serde_json::Value>| -> Vec<i64> {
        workers.unwrap().as_array().unwrap().iter().map(|worker| worker["pid"].as_i64().unwrap()).collect()
    };
    assert_eq!(pids(workers("other")), pids(unchanged));
    assert_eq!(exchange(three, b"new"), b"new");

    server.configure(&says(one, "three"));
    server.reload_ok();
    assert_eq!(workers("other"), None);
    assert!(refused(two), "a service that is gone still listens");
    assert!(refused(three));
    assert_eq!(listen_to(one), "three\n");
}

#[test]
fn connections_of_a_removed_service_are_counted_also_when_it_comes_back() {
    let (one, two) = (address::fresh(), address::fresh());
    let both = says(one, "one").replace(".echo", ".one") + &echo_service(two, "max_connections = 1");
    let server = Preforkd::run(&both).start();
    let active = || server.status()["services"][0]["active"].as_u64().unwrap();
    let mut stream = connect(two);
    echo(&mut stream, b"x");
    server.configure(&says(one, "one").replace(".echo", ".one"));
    server.reload_ok();
    assert!(refused(two));
    assert_eq!((server.status()["services"][0]["name"].as_str(), active()), (Some("echo"), 1));

    server.configure(&both);
    server.reload_ok();
    let mut second = connect(two);
    assert!(silent_for(&mut second, A_WHILE), "one lives already, and one is the limit");
    assert_eq!(finish(stream, b"y"), b"y");
    echo(&mut second, b"z");
    assert_eq!(active(), 1);
}

#[test]
fn a_reload_that_fails_says_why_and_changes_nothing() {
    let address = address::fresh();
    let server = Preforkd::run(&says(address, "one")).start();
    let (before, workers) = (generation(&server), server.workers());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = taken.local_addr().unwrap().to_string();
    let wrong = [
        ("[service.echo\n".to_owned(), "preforkd.toml:1"),
        (says(address, "two") + "handel = 3\n", "handel"),
        (says(address, "two").replace("/bin/echo", "/nonexistent/program"), "/nonexistent/program"),
        (
            says(address, "two") + &echo_service(in_use.parse().unwrap(), "").replace(".echo", ".other"),
            &in_use,
        ),
    ];
    for (number, (config, reason)) in (1..).zip(&wrong) {
        server.configure(config);
        let output = server.reload();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{config}: {said}");
        assert!(said.contains(reason), "no {reason} in {said}");
        assert_eq!((generation(&server), reloads(&server, "failed")), (before, number));
        assert_eq!(server.workers(), workers, "{config}");
        assert_eq!(listen_to(address), "one\n");
    }
    server.configure(&says(address, "two"));
    server.reload_ok();
    assert_eq!(listen_to(address), "two\n");
}

#[test]
fn a_new_generation_that_cannot_start_leaves_the_old_one() {
    let address = address::fresh();
    let server = Preforkd::run(&says(address, "one")).script("program", "#!/bin/sh\necho program\n").start();
    let program = server.dir().join("program");
    server.configure(&says(address, "two").replace("/bin/echo", program.to_str().unwrap()));
    std::fs::remove_file(&program).unwrap();
    assert_eq!(server.reload().status.code(), Some(78));
    assert_eq!(listen_to(address), "one\n");
}

/// Asks for reloads that the supervisor finds all at once, with whatever else has come meanwhile.
fn reload_together(server: &Running, number: usize) {
    proc::stop(server.pid());
    std::thread::scope(|scope| {
        for _ in 0..number {
            scope.spawn(|| server.reload_ok());
        }
        std::thread::sleep(A_WHILE);
        server.signal(Signal::SIGCONT);
    });
}

#[test]
fn a_rejected_generation_does_not_spoil_the_next() {
    if !root("a preforkd that is not root") {
        return;
    }
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "")).by_user(95, 500).start();
    // It passes the check and fails in each worker.
    let keys = "workers = 32\nnice = -5\n";
    let wrong = echo_service(address, keys);
    for workers in 1..6 {
        // Connected before, so that the second comes while workers of the first are on their way out.
        let mut clients = [0, 1].map(|_| Varlink::to(&server));
        let [first, second] = &mut clients;
        let reload = |client: &mut Varlink| client.call("Reload", serde_json::Value::Null).to_string();
        server.configure(&wrong);
        let answer = reload(first);
        assert!(answer.contains("cannot set nice -5"), "{answer}");
        server.configure(&echo_service(address, &format!("workers = {workers}")));
        let answer = reload(second);
        assert!(answer.contains("is in force"), "{answer}");
    }
}

#[test]
fn a_worker_that_gives_up_is_not_killed_and_replaced_before_it_ends() {
    if !root("a preforkd that is not root") {
        return;
    }
    let address = address::fresh();
    // All processes take their time to exit.
    let slow = ["strace", "-D", "-f", "-qq", "-o", "DIR/strace", "-e", "trace=exit_group"];
    let slow = [&slow[..], &["-e", "inject=exit_group:delay_enter=100000", "--"]].concat();
    let server = Preforkd::run(&echo_service(address, "")).by_user(392, 500).under(&slow).start();
    server.configure(&echo_service(address, "workers = 1\nnice = -5"));
    let said = text(&server.reload().stderr);
    assert!(said.contains("cannot set nice -5"), "{said}");
    assert_eq!(server.log.count(|line| line.contains("cannot set nice -5") && line.contains("worker ")), 1);
}

#[test]
fn a_reload_that_waits_for_another_is_not_forgotten() {
    let (one, two) = (address::fresh(), address::fresh());
    let server = Preforkd::run(&echo_service(one, "")).start();
    let other = says(two, "two").replace(".echo", ".other") + "workers = 1\n";
    server.configure(&(echo_service(one, "") + &other));
    let start = std::time::Instant::now();
    reload_together(&server, 2);
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(listen_to(two), "two\n");
}

#[test]
fn drop_ins_are_read_on_start_and_on_reload() {
    let (one, two, three) = (address::fresh(), address::fresh(), address::fresh());
    let server = Preforkd::run(&says(one, "one"));
    let dir = server.dir().join("preforkd.d");
    std::fs::create_dir(&dir).unwrap();
    let file = |name: &str, address| {
        let text =
            format!("[service.{name}]\nlisten = [\"{address}\"]\nexec = [\"/bin/echo\", \"{name}\"]\n");
        write(&dir.join(format!("{name}.toml")), &text);
    };
    file("two", two);
    write(&dir.join("notes.txt"), "not a configuration");
    let server = server.start();
    assert_eq!((listen_to(one), listen_to(two)), ("one\n".to_owned(), "two\n".to_owned()));
    file("three", three);
    server.reload_ok();
    assert_eq!(listen_to(three), "three\n");
}

#[test]
fn when_the_supervisor_is_killed_connections_go_on_and_nothing_else() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2")).start();
    let mut streams = [connect(address), connect(address), connect(address)];
    for stream in &mut streams {
        echo(stream, b"before");
    }
    server.signal(Signal::SIGKILL);
    eventually("the workers stop accepting", || refused(address));
    for mut stream in streams {
        echo(&mut stream, b"after");
        assert_eq!(finish(stream, b"end"), b"end");
    }
    server.wait_empty();
    assert!(proc::listeners(address).is_empty());
}

#[test]
fn when_the_supervisor_is_killed_idle_workers_end() {
    let server = Preforkd::serve(&["--workers", "3"], "127.0.0.1:0", &["echo"]).start();
    server.signal(Signal::SIGKILL);
    server.wait_empty();
}

#[test]
fn a_killed_worker_is_replaced_and_its_connections_go_on_and_are_counted() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    let mut streams = [connect(server.address()), connect(server.address())];
    for stream in &mut streams {
        echo(stream, b"before");
    }
    let worker = server.worker();
    server.replace_worker(worker);
    for stream in &mut streams {
        echo(stream, b"after");
    }
    assert_eq!(server.count("active"), 2, "the connections of a dead worker count");
    assert_eq!(exchange(server.address(), b"new"), b"new");
    let [one, two] = streams;
    assert_eq!(finish(one, b"end"), b"end");
    eventually("one is completed", || server.count("active") == 1);
    drop(two);
    eventually("both are completed", || server.count("active") == 0);
    eventually("three are completed", || server.count("completed") == 3);
}

#[test]
fn a_worker_that_is_killed_again_and_again_is_replaced_at_once() {
    let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    for _ in 0..10 {
        server.replace_worker(server.workers()[0]);
        assert_eq!(exchange(server.address(), b"x"), b"x");
    }
}

#[test]
fn a_worker_that_is_stopped_does_not_stop_the_others() {
    let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    let worker = server.workers()[0];
    proc::stop(worker);
    // The kernel may wake the stopped one for the first connection, but no more after that; whoever is woken by the
    // second takes both.
    let mut streams = [connect(server.address()), connect(server.address())];
    for stream in &mut streams {
        echo(stream, b"x");
    }
    for _ in 0..10 {
        assert_eq!(exchange(server.address(), b"x"), b"x");
    }
    proc::kill(worker, Signal::SIGCONT);
}

#[test]
fn a_second_service_on_the_same_control_socket_is_refused() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"]).start();
    let output = crate::support::preforkd(&["serve", "--control", server.control(), "127.0.0.1:0", "echo"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains(server.control()), "{}", text(&output.stderr));
    assert_eq!(server.status()["pid"].as_i64(), Some(server.pid().into()), "the first still answers");
}

#[test]
fn a_service_with_thousands_of_addresses_lets_go_of_all_of_them_and_serves_who_was_queued() {
    const ADDRESSES: u16 = 5000;
    let (one, other) = (address::fresh(), address::fresh());
    let all: Vec<SocketAddr> =
        (0..ADDRESSES).map(|number| SocketAddr::new(one.ip(), 10_000 + number)).collect();
    let listen = all.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
    let without = says(other, "other").replace(".echo", ".other") + "workers = 1\n";
    let many = format!(
        "[service.many]\nlisten = [{listen}]\nhandler = \"echo\"\nworkers = 1\nmax_connections = 1\n{without}"
    );
    let server = Preforkd::run(&many).start();
    let mut first = connect(all[0]);
    echo(&mut first, b"x");
    let queued: Vec<_> = all.iter().step_by(500).map(|address| connect(*address)).collect();
    server.configure(&without);
    server.reload_ok();
    drop(first);
    for client in queued {
        assert_eq!(finish(client, b"y"), b"y");
    }
    eventually("all are free", || all.iter().step_by(100).all(|address| refused(*address)));
    assert_eq!(server.log.count(|line| line.contains("is gone") || line.contains("killed")), 0);
    assert_eq!(listen_to(other), "other\n");
}
