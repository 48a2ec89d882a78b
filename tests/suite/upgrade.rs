//! Upgrade in place: another program, the same process.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::life::echo_service;
use crate::support::client::{connect, echo, exchange, finish};
use crate::support::{BINARY, Preforkd, Running, address, eventually, proc, sure, text};

fn program() -> Vec<u8> {
    std::fs::read(BINARY).unwrap()
}

fn upgraded(server: &Running) {
    let output = server.upgrade();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", server.log.all().join("\n"));
}

/// The inode of the file that the supervisor runs.
fn running_program(server: &Running) -> u64 {
    std::fs::metadata(format!("/proc/{}/exe", server.pid())).unwrap().ino()
}

#[test]
fn ten_upgrades_in_a_row_keep_everything_and_leave_nothing() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2\nmax_connections = 2")).own_copy().start();
    let (pid, listeners, uptime) =
        (server.pid(), proc::listeners(address), server.status()["uptime_s"].clone());
    let mut stream = connect(address);
    echo(&mut stream, b"before");
    let mut counts = Vec::new();
    for number in 1..=10 {
        server.replace_program(&program());
        let on_disk = std::fs::metadata(server.dir().join("preforkd")).unwrap().ino();
        upgraded(&server);
        assert_eq!(running_program(&server), on_disk, "it runs the new file");
        assert_eq!(server.status()["upgrades"].as_u64(), Some(number));
        echo(&mut stream, b"goes on");
        assert_eq!(exchange(address, b"new"), b"new");
        eventually("the short one is over", || server.count("active") == 1);
        // The worker of the old connection stays with it; all others are of the last generation.
        eventually("old workers are gone", || server.all_workers().len() == 3);
        counts.push((proc::descriptors_at_rest(pid), server.processes().len()));
    }
    counts.dedup();
    assert_eq!(counts.len(), 1, "descriptors and processes: {counts:?}");
    assert_eq!((server.pid(), proc::listeners(address)), (pid, listeners));
    assert!(server.status()["uptime_s"].as_u64() >= uptime.as_u64());

    let mut second = connect(address);
    echo(&mut second, b"x");
    let mut third = connect(address);
    assert!(
        crate::support::client::silent_for(&mut third, crate::support::A_WHILE),
        "the connection from before still counts"
    );
    assert_eq!(finish(stream, b"end"), b"end");
    echo(&mut third, b"y");
    drop((second, third));
    eventually("all are completed", || server.count("active") == 0);
    assert_eq!((server.count("accepted"), server.count("completed")), (13, 13));
}

#[test]
fn usr2_upgrades() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).own_copy().start();
    server.replace_program(&program());
    server.signal(Signal::SIGUSR2);
    eventually("it is upgraded", || server.status()["upgrades"].as_u64() == Some(1));
    assert_eq!(exchange(server.address(), b"x"), b"x");
}

#[test]
fn a_broken_program_is_refused_and_the_old_one_serves_on() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).own_copy().start();
    let (before, workers) = (running_program(&server), server.workers());
    let whole = program();
    let broken: [(&str, &[u8]); 5] = [
        ("truncated", &whole[..4096]),
        ("empty", b""),
        ("no preforkd", &std::fs::read("/bin/true").unwrap()),
        ("a script", b"#!/bin/sh\nexit 1\n"),
        ("one that never answers", b"#!/bin/sh\nexec sleep 1000\n"),
    ];
    for (name, content) in broken {
        server.replace_program(content);
        let output = server.upgrade();
        assert_eq!(output.status.code(), Some(71), "{name}: {}", text(&output.stdout));
        let said = text(&output.stderr);
        assert!(said.contains(server.dir().join("preforkd").to_str().unwrap()), "{name}: {said}");
        assert_eq!((running_program(&server), server.workers()), (before, workers.clone()), "{name}");
        assert_eq!(exchange(server.address(), b"x"), b"x");
    }
    std::fs::remove_file(server.dir().join("preforkd")).unwrap();
    assert_eq!(server.upgrade().status.code(), Some(71));
    server.replace_program(&whole);
    upgraded(&server);
    assert_eq!(exchange(server.address(), b"x"), b"x");
}

#[test]
fn connections_of_dead_workers_and_removed_services_outlive_an_upgrade() {
    let (one, two) = (address::fresh(), address::fresh());
    let both = echo_service(one, "workers = 1") + &echo_service(two, "").replace(".echo", ".other");
    let server = Preforkd::run(&both).own_copy().start();
    let (mut orphan, mut removed) = (connect(one), connect(two));
    echo(&mut orphan, b"x");
    echo(&mut removed, b"x");
    server.replace_worker(server.worker());
    server.configure(&echo_service(one, "workers = 1"));
    server.reload_ok();
    upgraded(&server);
    let active = |server: &Running| -> Vec<u64> {
        let status = server.status();
        let services = status["services"].as_array().unwrap();
        services.iter().map(|service| service["active"].as_u64().unwrap()).collect()
    };
    assert_eq!(active(&server), [1, 1]);
    echo(&mut orphan, b"y");
    assert_eq!(finish(orphan, b"z"), b"z");
    eventually("the orphan is reaped", || active(&server)[0] == 0);
    let line = server.log.wait("its record", |line| line.starts_with("echo: connection"));
    assert!(line.contains("exited 0"), "{line}");
    assert_eq!(finish(removed, b"z"), b"z");
    eventually("the other one too", || active(&server) == [0]);
}

/// Replaces the program by one that lets its trial take until there is a file `go`.
pub(crate) fn replace_by_slow_program(server: &Running) {
    let dir = server.dir().display().to_string();
    sure(&["cp", BINARY, &format!("{dir}/new")]);
    let script = "#!/bin/sh\nwhile [ ! -e DIR/go ]; do sleep 0.02; done\nexec DIR/new \"$@\"\n";
    server.replace_program(script.replace("DIR", &dir).as_bytes());
}

#[test]
fn all_who_ask_for_an_upgrade_hear_of_it() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).own_copy().start();
    replace_by_slow_program(&server);
    let descriptors = || proc::descriptors_at_rest(server.pid());
    let before = descriptors();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.upgrade());
        // Its connection and the link to the trial.
        eventually("the trial", || descriptors() == before + 2);
        let others = [(); 2].map(|()| scope.spawn(|| server.upgrade()));
        eventually("the others have asked", || descriptors() == before + 4);
        assert_eq!(server.status()["upgrades"].as_u64(), Some(0));
        std::fs::write(server.dir().join("go"), "").unwrap();
        for client in others.into_iter().chain([first]) {
            let output = client.join().unwrap();
            let said = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{said}\n{}", server.log.all().join("\n"));
        }
    });
    assert_eq!(exchange(server.address(), b"x"), b"x");
}

#[test]
fn what_an_adopted_process_has_served_before_is_not_forgotten() {
    let options = ["--workers", "1", "--spare", "1", "--connections-per-child", "0"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).own_copy().start();
    eventually("a spare", || server.count("spares") == 1);
    let worker = server.worker();
    let mut first = connect(server.address());
    echo(&mut first, b"1");
    eventually("its worker knows", || server.count("active") == 1 && server.count("accepted") == 1);
    proc::kill(worker, Signal::SIGSTOP);
    assert_eq!(finish(first, b"2"), b"2");
    let mut second = connect(server.address());
    echo(&mut second, b"3");
    server.replace_worker(worker);
    eventually("both were heard of", || server.count("accepted") == 2);
    upgraded(&server);
    assert_eq!(finish(second, b"4"), b"4");
    eventually("it is over", || server.count("active") == 0);
    assert_eq!((server.count("accepted"), server.count("completed")), (2, 2));
    eventually("two records", || server.log.count(|line| line.starts_with("echo: connection")) == 2);
}

#[test]
fn nobody_notices_an_upgrade() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2")).own_copy().start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(exchange(address, b"x"), b"x");
                }
            });
        }
        for _ in 0..5 {
            server.replace_program(&program());
            upgraded(&server);
            server.reload_ok();
        }
        done.store(true, Ordering::Relaxed);
    });
    eventually("all are completed", || server.count("accepted") == server.count("completed"));
}
