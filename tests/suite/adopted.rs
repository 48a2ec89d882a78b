//! Connections whose worker has died: what was promised to them, and about them, is kept by the supervisor.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;

use crate::deadlines::{is_ended, timed_out};
use crate::life::echo_service;
use crate::support::client::{closed, connect, echo, finish, silent_for};
use crate::support::{A_WHILE, BINARY, Preforkd, Running, address, eventually, proc, sure};

/// When the worker of a connection dies.
#[derive(Clone, Copy, PartialEq)]
enum Dies {
    BeforeTheReload,
    AfterTheReload,
    AfterTheReloadAndAnUpgrade,
    BeforeTheReloadAndAnUpgrade,
}

const DEATHS: [Dies; 4] = [
    Dies::BeforeTheReload,
    Dies::AfterTheReload,
    Dies::AfterTheReloadAndAnUpgrade,
    Dies::BeforeTheReloadAndAnUpgrade,
];

/// A connection of a service whose keys a reload changes from `before` to `after`, or removes, and whose worker is dead.
fn adopted(job: &str, spare: u32, before: &str, after: Option<&str>, dies: Dies) -> (Running, TcpStream) {
    let (listen, other) = (address::fresh(), address::fresh());
    let config = |keys: Option<&str>| {
        let one = |keys: &str| {
            format!("[service.one]\nlisten = \"{listen}\"\n{job}\nworkers = 1\nspare = {spare}\n{keys}\n")
        };
        keys.map(one).unwrap_or_default() + &echo_service(other, "workers = 1").replace(".echo", ".other")
    };
    let server = Preforkd::run(&config(Some(before))).start();
    eventually("spares", || server.count("spares") == u64::from(spare));
    let worker = server.worker();
    let mut client = connect(listen);
    echo(&mut client, b"before");
    if matches!(dies, Dies::BeforeTheReload | Dies::BeforeTheReloadAndAnUpgrade) {
        server.replace_worker(worker);
    }
    server.configure(&config(after));
    server.reload_ok();
    if matches!(dies, Dies::BeforeTheReloadAndAnUpgrade | Dies::AfterTheReloadAndAnUpgrade) {
        assert!(server.upgrade().status.success());
    }
    proc::kill(worker, Signal::SIGKILL);
    eventually("it is buried", || !server.all_workers().contains(&worker) && !proc::lives(worker));
    (server, client)
}

/// In each way a connection can get its process, and for each death of its worker.
fn in_every_way(check: impl Fn(&str, u32, Dies) + Sync) {
    std::thread::scope(|scope| {
        for job in ["handler = \"echo\"", "exec = [\"/bin/cat\"]"] {
            for spare in [0, 2] {
                for dies in DEATHS {
                    let check = &check;
                    scope.spawn(move || check(job, spare, dies));
                }
            }
        }
    });
}

const SHORT: &str = "max_lifetime = \"3s\"";
const LONG: &str = "max_lifetime = \"1h\"";
const VERY_SHORT: &str = "max_lifetime = \"100ms\"";

#[test]
fn a_lifetime_is_kept_when_the_service_is_removed() {
    in_every_way(|job, spare, dies| {
        let (server, client) = adopted(job, spare, SHORT, None, dies);
        is_ended(&server, client, "lifetime");
    });
}

#[test]
fn a_lifetime_is_kept_when_that_of_the_service_is_raised() {
    in_every_way(|job, spare, dies| {
        let (server, client) = adopted(job, spare, SHORT, Some(LONG), dies);
        is_ended(&server, client, "lifetime");
    });
}

#[test]
fn a_lifetime_is_kept_when_the_service_has_none_any_more() {
    in_every_way(|job, spare, dies| {
        let (server, client) = adopted(job, spare, SHORT, Some(""), dies);
        is_ended(&server, client, "lifetime");
    });
}

/// A connection that may live on does, and ends in its own way.
fn lives_on(server: &Running, mut client: TcpStream) {
    let address = client.local_addr().unwrap();
    assert!(silent_for(&mut client, A_WHILE), "it is ended");
    echo(&mut client, b"after");
    assert_eq!(finish(client, b"end"), b"end");
    let record = server.log.wait("its record", |line| line.contains(&format!(" from {address}: ")));
    assert!(record.contains(": exited 0 after"), "{record}");
}

#[test]
fn a_lifetime_is_kept_when_that_of_the_service_is_lowered() {
    in_every_way(|job, spare, dies| {
        let (server, client) = adopted(job, spare, LONG, Some(VERY_SHORT), dies);
        lives_on(&server, client);
    });
}

#[test]
fn a_connection_without_a_lifetime_gets_none_by_a_reload() {
    in_every_way(|job, spare, dies| {
        let (server, client) = adopted(job, spare, "", Some(VERY_SHORT), dies);
        lives_on(&server, client);
    });
}

#[test]
fn a_service_that_comes_back_has_no_say_over_the_connections_of_the_one_before() {
    for keys in [LONG, ""] {
        let (listen, other) = (address::fresh(), address::fresh());
        let without = echo_service(other, "workers = 1").replace(".echo", ".other");
        let server =
            Preforkd::run(&(echo_service(listen, &format!("workers = 1\n{SHORT}")) + &without)).start();
        let mut client = connect(listen);
        echo(&mut client, b"x");
        server.replace_worker(server.worker());
        server.configure(&without);
        server.reload_ok();
        server.configure(&(echo_service(listen, &format!("workers = 1\n{keys}")) + &without));
        server.reload_ok();
        is_ended(&server, client, "lifetime");
    }
}

#[test]
fn a_program_that_writes_to_stderr_after_its_worker_has_died_goes_on() {
    const REPEATS: &str = "while read -r line; do echo \"$line\" >&2; echo \"$line\"; done";
    for spare in ["0", "2"] {
        let options = ["--workers", "1", "--spare", spare];
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["--", "/bin/sh", "-c", REPEATS]).start();
        eventually("spares", || server.count("spares").to_string() == spare);
        let mut client = connect(server.address());
        echo(&mut client, b"before\n");
        server.log.wait("its line", |line| line.ends_with(": before"));
        server.replace_worker(server.worker());
        echo(&mut client, b"after\n");
        let from = format!(" from {}: ", client.local_addr().unwrap());
        assert_eq!(finish(client, b"end\n"), b"end\n");
        let record = server.log.wait("its record", |line| line.contains(&from));
        assert!(record.contains(": exited 0 after"), "{record}");
    }
}

/// A program that leads a group with another process, and says which.
const GROUP: &[&str] = &["--", "/bin/sh", "-c", "sleep 1000 & echo $$ $!; exec sleep 1001"];

fn grouped(spare: &str) -> Running {
    let options = ["--workers", "1", "--spare", spare, "--max-connections", "5"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", GROUP).start();
    eventually("spares", || server.count("spares").to_string() == spare);
    server
}

/// Connects to it; the pids of the program and of the other process.
fn group(address: SocketAddr) -> (TcpStream, i32, i32) {
    let mut client = connect(address);
    let mut said = Vec::new();
    while !said.ends_with(b"\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        said.extend(byte);
    }
    let said = String::from_utf8(said).unwrap();
    let mut pids = said.split_whitespace().map(|pid| pid.parse().unwrap());
    (client, pids.next().unwrap(), pids.next().unwrap())
}

/// All of them are dead, and their parent has not noticed.
fn are_zombies(pids: &[i32]) {
    eventually("they are dead", || {
        pids.iter().all(|pid| proc::process(*pid).is_some_and(|process| process.state == 'Z'))
    });
}

/// Nothing is left of a connection, nor in the counts.
fn is_over(server: &Running, mut client: TcpStream, left: i32) {
    eventually("nothing is left of its group", || !proc::lives(left));
    let from = format!(" from {}: ", client.local_addr().unwrap());
    assert!(closed(&mut client));
    server.log.wait("its record", |line| line.contains(&from));
    eventually("it is counted", || {
        let service = server.service();
        service["active"] == 0 && service["completed"] == service["accepted"]
    });
    let (mut client, program, left) = group(server.address());
    proc::kill(program, Signal::SIGKILL);
    eventually("nothing is left of the next", || !proc::lives(left));
    assert!(closed(&mut client));
}

#[test]
fn nothing_is_left_of_a_group_whose_leader_dies_together_with_its_worker() {
    for spare in ["0", "2"] {
        // The worker has not reaped it, because it died before, or because it was stopped.
        for stopped in [false, true] {
            let server = grouped(spare);
            let (client, program, left) = group(server.address());
            let worker = server.worker();
            proc::stop(server.pid());
            if stopped {
                proc::stop(worker);
                proc::kill(program, Signal::SIGKILL);
                are_zombies(&[program]);
            }
            proc::kill(worker, Signal::SIGKILL);
            are_zombies(&[worker]);
            proc::kill(program, Signal::SIGKILL);
            are_zombies(&[worker, program]);
            proc::kill(server.pid(), Signal::SIGCONT);
            is_over(&server, client, left);
        }
    }
}

#[test]
fn nothing_is_left_of_a_group_that_its_worker_has_never_heard_of() {
    let server = grouped("2");
    let worker = server.worker();
    proc::stop(worker);
    proc::stop(server.pid());
    let (client, program, left) = group(server.address());
    proc::kill(program, Signal::SIGKILL);
    are_zombies(&[program]);
    proc::kill(worker, Signal::SIGKILL);
    are_zombies(&[worker, program]);
    proc::kill(server.pid(), Signal::SIGCONT);
    is_over(&server, client, left);
}

#[test]
fn nothing_is_left_of_many_groups_whose_leaders_and_workers_all_die() {
    let options = ["--workers", "3"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", GROUP).start();
    let groups: Vec<_> = (0..30).map(|_| group(server.address())).collect();
    let workers = server.workers();
    proc::stop(server.pid());
    let mut dead = Vec::new();
    for (number, (_, program, _)) in groups.iter().enumerate() {
        proc::kill(*program, Signal::SIGKILL);
        dead.push(*program);
        if number % 10 == 5 {
            proc::kill(workers[number / 10], Signal::SIGKILL);
        }
    }
    are_zombies(&workers);
    proc::kill(server.pid(), Signal::SIGCONT);
    for (mut client, _, left) in groups {
        eventually("nothing is left of its group", || !proc::lives(left));
        assert!(closed(&mut client));
    }
    eventually("all are counted", || {
        let service = server.service();
        service["active"] == 0 && service["completed"] == 30 && service["accepted"] == 30
    });
}

/// A program that says when it is told to end, and ends when it wants to, with 3: when there is a file `end`.
const OBSTINATE: &str =
    "trap 'echo told' TERM; echo $$ >DIR/pid; echo x; while ! [ -e DIR/end ]; do sleep 0.1; done; exit 3";

/// A connection of it which the supervisor has told that its time is over, and the configuration without its service.
fn told() -> (Running, TcpStream, String) {
    let (listen, other) = (address::fresh(), address::fresh());
    let without = echo_service(other, "workers = 1").replace(".echo", ".other");
    // A shell says on stderr that its child was terminated, and with its worker the reader has gone.
    let keys = format!("workers = 1\n{SHORT}\nstderr = \"null\"\n");
    let service = format!(
        "[service.one]\nlisten = \"{listen}\"\nexec = [\"/bin/sh\", \"-c\", \"{OBSTINATE}\"]\n{keys}"
    );
    let server = Preforkd::run(&(service + &without)).own_copy().start();
    let mut client = connect(listen);
    let mut said = [0; 2];
    client.read_exact(&mut said).unwrap();
    server.replace_worker(server.worker());
    let mut said = [0; 5];
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"told\n");
    (server, client, without)
}

/// It is killed when its grace is over, and hears nothing more until then.
fn is_killed(server: &Running, mut client: TcpStream) {
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "its grace has begun anew");
    timed_out(server, client.local_addr().unwrap(), "lifetime");
}

#[test]
fn who_was_told_to_end_before_an_upgrade_is_not_told_again() {
    let (server, client, _) = told();
    assert!(server.upgrade().status.success());
    is_killed(&server, client);
}

#[test]
fn who_was_told_to_end_and_does_not_is_killed_though_its_service_is_removed() {
    for upgrades in [false, true] {
        let (server, client, without) = told();
        server.configure(&without);
        server.reload_ok();
        if upgrades {
            assert!(server.upgrade().status.success());
        }
        is_killed(&server, client);
    }
}

#[test]
fn who_was_told_to_end_and_does_during_an_upgrade_has_timed_out() {
    for removed in [false, true] {
        let (server, mut client, without) = told();
        if removed {
            server.configure(&without);
            server.reload_ok();
        }
        let dir = server.dir().display();
        sure(&["cp", BINARY, &format!("{dir}/real")]);
        // A new program that takes its time: it goes on when that connection has ended. It starts no process of its own,
        // or it might reap.
        let slow = format!(
            "#!/bin/sh\n[ \"$1\" = upgrade-trial ] && exec {dir}/real \"$@\"\n: >{dir}/end\nread -r pid <{dir}/pid\n\
             while read -r line </proc/$pid/stat; do case $line in *') Z '*) break;; esac; done\n\
             exec {dir}/real \"$@\"\n"
        );
        server.replace_program(slow.as_bytes());
        let output = server.upgrade();
        assert!(output.status.success(), "{output:?}");
        assert!(closed(&mut client));
        timed_out(&server, client.local_addr().unwrap(), "lifetime");
    }
}
