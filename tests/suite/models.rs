//! Real runs are runs of the model in tests/models: what the program does is what was proven.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::life::echo_service;
use crate::support::address;
use crate::support::client::{connect, echo, exchange, finish};
use crate::support::{Preforkd, Running, eventually, proc, root, say, text};
use crate::upgrade::replace_by_slow_program;

const CALLS: &str = "trace=accept4,clone,clone3,fork,vfork,wait4,exit_group,execve,sendto";

/// A server with two workers, two slots and these options, see [`under_strace`].
fn traced(test: &str, options: &[&str], more: &str) -> Option<Running> {
    let options = [&["--workers", "2", "--max-connections", "2"], options].concat();
    under_strace(test, Preforkd::serve(&options, "127.0.0.1:0", &["echo"]), more)
}

/// A server, and a strace that writes down what its processes do: these calls, and more.
fn under_strace(test: &str, server: Preforkd, more: &str) -> Option<Running> {
    if Command::new("spin").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs spin, and CI must have it");
        say(&format!("SKIPPED: {test} needs spin"));
        return None;
    }
    let calls = format!("{CALLS}{more}");
    let strace = ["strace", "-D", "-f", "-qq", "-s", "120", "-o", "DIR/strace", "-e", &calls, "--"];
    root(test).then(|| server.under(&strace).start())
}

/// Ends it, and replays what it has done.
fn replay(server: &Running, model: &str) {
    let trace = server.dir().join("strace");
    server.signal(Signal::SIGTERM);
    let pid = server.pid().to_string();
    let is_end = |line: &str| line.starts_with(&pid) && line.contains(" exit_group(");
    eventually("strace has written", || std::fs::read_to_string(&trace).unwrap().lines().any(is_end));
    let replay = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/replay");
    let output = Command::new(replay).args([model, trace.to_str().unwrap()]).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Three clients for two slots, of whom the third is served when the first has gone; whoever gets that slot accepts him.
fn reach_the_limit(server: &Running) {
    let mut held = [connect(server.address()), connect(server.address())];
    held.iter_mut().for_each(|client| echo(client, b"x"));
    let mut third = connect(server.address());
    let [one, two] = held;
    assert_eq!(finish(one, b"y"), b"y");
    echo(&mut third, b"z");
    drop((two, third));
    eventually("all are over", || server.count("active") == 0);
}

#[test]
fn a_worker_that_is_killed_is_as_in_the_model() {
    let Some(server) = traced("a model's worker that is killed", &[], "") else { return };
    let address = server.address();
    assert_eq!(exchange(address, b"x"), b"x");
    let mut orphan = connect(address);
    echo(&mut orphan, b"x");
    let workers = server.workers();
    let connection = server.processes().into_iter().find(|process| workers.contains(&process.parent));
    server.replace_worker(connection.unwrap().parent);
    assert_eq!(exchange(address, b"x"), b"x");
    assert_eq!(finish(orphan, b"x"), b"x");
    eventually("the orphan is reaped", || server.count("active") == 0);
    assert_eq!(exchange(address, b"x"), b"x");
    eventually("all are over", || server.count("active") == 0);
    replay(&server, "slots");
}

#[test]
fn the_limit_is_as_in_the_model() {
    let Some(server) = traced("a model's limit", &[], "") else { return };
    for _ in 0..3 {
        reach_the_limit(&server);
    }
    replay(&server, "slots");
}

#[test]
fn spares_that_are_taken_and_killed_are_as_in_the_model() {
    let Some(server) = traced("a model's spares", &["--spare", "2"], ",read,write,recvfrom,recvmsg") else {
        return;
    };
    let address = server.address();
    for _ in 0..2 {
        eventually("spares", || server.count("spares") == 2);
        reach_the_limit(&server);
    }
    eventually("spares", || server.count("spares") == 2);
    let workers = server.workers();
    let spare = server.processes().into_iter().find(|process| workers.contains(&process.parent)).unwrap();
    proc::kill(spare.pid, Signal::SIGKILL);
    eventually("it is missed", || server.log.count(|line| line.contains("died before it had")) == 1);
    assert_eq!(exchange(address, b"x"), b"x");
    assert_eq!(exchange(address, b"x"), b"x");
    eventually("all are over", || server.count("active") == 0);
    replay(&server, "spares");
}

#[test]
fn reloads_are_as_in_the_model() {
    let address = address::fresh();
    let config = |limit: u32| echo_service(address, &format!("workers = 1\nmax_connections = {limit}"));
    let server = Preforkd::run(&config(5));
    let Some(server) = under_strace("a model's reload", server, ",recvfrom,recvmsg,socketpair") else {
        return;
    };
    assert_eq!(exchange(address, b"x"), b"x");
    // One with a new worker, then a worker that is killed, one that changes nothing, and one that is refused.
    server.configure(&config(6));
    server.reload_ok();
    assert_eq!(exchange(address, b"x"), b"x");
    eventually("the old worker has gone", || server.all_workers().len() == 1);
    server.replace_worker(server.workers()[0]);
    assert_eq!(exchange(address, b"x"), b"x");
    server.reload_ok();
    server.configure("[service.echo]\n");
    assert!(!server.reload().status.success());
    assert_eq!(exchange(address, b"x"), b"x");
    replay(&server, "reload");
}

#[test]
fn reloads_that_meet_or_fail_are_as_in_the_model() {
    if !root("a preforkd that is not root") {
        return;
    }
    let address = address::fresh();
    let config = |keys: &str| echo_service(address, &format!("workers = 1\n{keys}"));
    let server = Preforkd::run(&config("")).by_user(391, 500);
    let Some(server) = under_strace("a model's reloads", server, ",recvfrom,recvmsg,socketpair") else {
        return;
    };
    // The second mostly finds the first under way. Who is traced cannot be stopped until both have asked.
    let reload_twice = || {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| server.reload_ok());
            }
        });
    };
    let is_alone = || eventually("the old worker has gone", || server.all_workers().len() == 1);
    server.configure(&config("max_connections = 5"));
    reload_twice();
    is_alone();
    // It passes the check and fails in its worker; the next has the same number.
    server.configure(&config("nice = -5"));
    assert!(!server.reload().status.success());
    assert_eq!(exchange(address, b"x"), b"x");
    is_alone();
    server.configure(&config("max_connections = 6"));
    reload_twice();
    assert_eq!(exchange(address, b"x"), b"x");
    replay(&server, "reload");
}

#[test]
fn upgrades_are_as_in_the_model() {
    let options = ["--workers", "1", "--spare", "1"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).own_copy();
    let Some(server) = under_strace("a model's upgrade", server, ",recvfrom,recvmsg,socketpair,read") else {
        return;
    };
    eventually("a spare", || server.count("spares") == 1);
    // Its spare is taken, and it dies before it has heard of that.
    let worker = server.worker();
    let [listener] = proc::listeners(server.address())[..] else { panic!("one listener") };
    eventually("its worker leaves the listener to the spare", || !proc::watches(worker, listener));
    proc::kill(worker, Signal::SIGSTOP);
    let mut orphan = connect(server.address());
    echo(&mut orphan, b"x");
    server.replace_worker(worker);
    server.replace_program(b"");
    assert!(!server.upgrade().status.success());
    replace_by_slow_program(&server);
    let before = proc::descriptors_at_rest(server.pid());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.upgrade());
        // Its connection and the link to the trial.
        eventually("the trial", || proc::descriptors_at_rest(server.pid()) == before + 2);
        let second = scope.spawn(|| server.upgrade());
        eventually("the other has asked", || proc::descriptors_at_rest(server.pid()) == before + 3);
        std::fs::write(server.dir().join("go"), "").unwrap();
        assert!(
            [first, second].map(|client| client.join().unwrap()).iter().all(|said| said.status.success())
        );
    });
    assert_eq!(finish(orphan, b"y"), b"y");
    eventually("it is over", || server.count("active") == 0);
    assert_eq!((server.count("accepted"), server.count("completed")), (1, 1));
    replay(&server, "upgrade");
}
