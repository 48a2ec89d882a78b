//! Programs that fail, clients that are gone, and what may be left of either.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::support::client::{closed, connect, connect_from, echo, exchange, listen_to, reset};
use crate::support::{A_WHILE, Preforkd, Running, address, eventually, proc, text, write};

/// A service with a program of its own, and beside it one that must not notice.
fn with_program(script: &str) -> (Running, SocketAddr, SocketAddr) {
    let (program, other) = (address::fresh(), address::fresh());
    let server = Preforkd::run(&format!(
        "[service.other]\nlisten = [\"{other}\"]\nhandler = \"echo\"\n\
         [service.program]\nlisten = [\"{program}\"]\nexec = [\"DIR/program\"]\nworkers = 1\n"
    ))
    .script("program", script)
    .start();
    (server, program, other)
}

/// The status of the service with the program.
fn count(server: &Running, name: &str) -> u64 {
    server.status()["services"][1][name].as_u64().unwrap()
}

#[test]
fn a_program_that_was_removed_closes_its_connection_and_is_named() {
    let (server, address, other) = with_program("#!/bin/sh\necho hello\n");
    let _watch = server.watch_zombies();
    assert_eq!(listen_to(address), "hello\n");
    let path = server.dir().join("program");
    std::fs::remove_file(&path).unwrap();
    for _ in 0..5 {
        assert!(closed(&mut connect(address)));
    }
    let line = server.log.wait("the program", |line| line.contains(path.to_str().unwrap()));
    assert!(line.contains("No such file or directory"), "{line}");
    assert_eq!(exchange(other, b"x"), b"x");
    eventually("all are counted", || count(&server, "active") == 0 && count(&server, "completed") == 6);
    write(&path, "#!/bin/sh\necho back\n");
    assert_eq!(listen_to(address), "back\n");
}

#[test]
fn a_program_that_is_not_executable_closes_its_connection_and_is_named() {
    let (server, address, other) = with_program("#!/bin/sh\necho hello\n");
    let path = server.dir().join("program");
    write(&path, "no program");
    assert!(closed(&mut connect(address)));
    let line = server.log.wait("the program", |line| line.contains(path.to_str().unwrap()));
    assert!(line.contains("Permission denied"), "{line}");
    assert_eq!(exchange(other, b"x"), b"x");
}

#[test]
fn a_worker_is_renewed_after_a_fault_of_a_handler() {
    // The next attempt at guessing addresses must meet another layout; a program has one of its own anyway.
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    let before = server.workers();
    let mut bystander = connect(server.address());
    echo(&mut bystander, b"x");
    let others = server.connections();
    let mut victim = connect(server.address());
    echo(&mut victim, b"x");
    let connection = server
        .connections()
        .into_iter()
        .find(|process| others.iter().all(|other| other.pid != process.pid))
        .unwrap();
    proc::kill(connection.pid, Signal::SIGSEGV);
    assert!(closed(&mut victim));
    eventually("another worker accepts", || {
        let now = server.workers();
        now.len() == 1 && now != before
    });
    echo(&mut bystander, b"y");
    assert_eq!(exchange(server.address(), b"z"), b"z");
    // A client sees the end of its connection before the worker does.
    eventually("the last is over", || server.count("active") == 1);
    assert_eq!(server.count("crashes"), 1);
}

#[test]
fn a_program_whose_interpreter_is_missing_is_named() {
    let (server, address, _) = with_program("#!/bin/sh\n");
    let path = server.dir().join("program");
    write(&path, "#!/nonexistent/interpreter\n");
    assert!(closed(&mut connect(address)));
    server
        .log
        .wait("the program", |line| line.contains(path.to_str().unwrap()) && line.contains("No such file"));
}

#[test]
fn a_program_that_dies_at_once_slows_nobody() {
    let (server, address, other) = with_program("#!/bin/sh\nexit 3\n");
    let _watch = server.watch_zombies();
    let workers = server.all_workers();
    for _ in 0..100 {
        assert!(closed(&mut connect(address)));
    }
    assert_eq!(exchange(other, b"x"), b"x");
    eventually("all are counted", || count(&server, "active") == 0 && count(&server, "completed") == 100);
    server.log.wait("its exit code", |line| line.contains("exited 3"));
    assert_eq!(server.all_workers(), workers, "no worker was lost");
}

#[test]
fn how_a_program_ended_is_in_the_log() {
    for (signal, name, crashes) in
        [("TERM", "killed TERM", 0), ("SEGV", "killed SEGV", 1), ("KILL", "killed KILL", 0)]
    {
        let (server, address, _) = with_program(&format!("#!/bin/sh\nkill -{signal} $$\n"));
        assert!(closed(&mut connect(address)));
        server.log.wait(name, |line| line.contains(name));
        eventually("it is counted", || count(&server, "active") == 0 && count(&server, "crashes") == crashes);
    }
}

#[test]
fn a_program_killed_by_a_real_time_signal_is_reaped_and_counted() {
    let server = Preforkd::serve(&["--max-connections", "2"], "127.0.0.1:0", &["echo"]).start();
    let _watch = server.watch_zombies();
    for _ in 0..6 {
        let mut stream = connect(server.address());
        echo(&mut stream, b"x");
        let connections = server.connections();
        assert_eq!(connections.len(), 1, "{connections:?}");
        // 34 is the C library's SIGRTMIN; nix cannot name it.
        crate::support::sure(&["bash", "-c", &format!("kill -RTMIN {}", connections[0].pid)]);
        assert!(closed(&mut stream));
        eventually("it is not active", || server.count("active") == 0);
    }
    server.log.wait("the signal", |line| line.contains("killed RTMIN+0"));
    assert_eq!(server.count("completed"), 6);
}

#[test]
fn a_crash_of_one_connection_is_no_matter_of_the_others() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    let mut other = connect(server.address());
    echo(&mut other, b"x");
    let first = server.connections()[0].pid;
    let mut stream = connect(server.address());
    echo(&mut stream, b"x");
    let victim = server.connections().into_iter().find(|process| process.pid != first).unwrap();
    proc::kill(victim.pid, Signal::SIGSEGV);
    assert!(closed(&mut stream));
    eventually("the crash is counted", || server.count("crashes") == 1);
    server.log.wait("the signal", |line| line.contains("killed SEGV"));
    echo(&mut other, b"y");
    assert_eq!(exchange(server.address(), b"z"), b"z");
}

/// Whether nothing is active; what is accepted has no process for a moment, and is no number in `active` then.
fn all_completed(server: &Running) -> bool {
    let service = server.service();
    service["active"] == 0 && service["accepted"] == service["completed"]
}

#[test]
fn clients_that_reset_at_once_harm_nothing() {
    let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    let _watch = server.watch_zombies();
    let mut workers = server.workers();
    workers.sort_unstable();
    for number in 0..3000 {
        reset(connect_from(address::source(number), server.address()).unwrap());
    }
    assert_eq!(exchange(server.address(), b"x"), b"x");
    eventually("none is left", || all_completed(&server));
    assert_eq!(server.connections().len(), 0);
    let mut after = server.workers();
    after.sort_unstable();
    assert_eq!(after, workers, "no worker was lost");
}

#[test]
fn clients_that_reset_harm_no_program_either() {
    let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["--", "/bin/cat"]).start();
    let _watch = server.watch_zombies();
    for number in 0..300 {
        reset(connect_from(address::source(number), server.address()).unwrap());
    }
    assert_eq!(exchange(server.address(), b"x"), b"x");
    eventually("none is left", || all_completed(&server) && server.connections().is_empty());
}

#[test]
fn a_stopped_connection_holds_up_nobody() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    let mut stream = connect(server.address());
    echo(&mut stream, b"x");
    let stopped = server.connections()[0].pid;
    proc::stop(stopped);
    for _ in 0..20 {
        assert_eq!(exchange(server.address(), b"y"), b"y");
    }
    eventually("a stopped connection is one all the same", || server.count("active") == 1);
    proc::kill(stopped, Signal::SIGCONT);
    echo(&mut stream, b"z");
}

#[test]
fn a_stopped_connection_is_ended_by_the_drain_timeout() {
    let address = address::fresh();
    let server = Preforkd::run(&format!(
        "[supervisor]\ndrain_timeout = \"300ms\"\n[service.echo]\nlisten = [\"{address}\"]\nhandler = \"echo\"\n"
    ))
    .start();
    let mut stream = connect(address);
    echo(&mut stream, b"x");
    proc::stop(server.connections()[0].pid);
    server.stop();
}

#[test]
fn a_thousand_connections_leave_no_descriptor_behind() {
    let server = Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["echo"]).start();
    let descriptors = || -> Vec<_> {
        let mut processes = server.workers();
        processes.push(server.pid());
        processes.into_iter().map(proc::descriptors_at_rest).collect()
    };
    for _ in 0..10 {
        assert_eq!(exchange(server.address(), b"x"), b"x");
    }
    eventually("none is left", || server.count("active") == 0);
    let before = descriptors();
    let _watch = server.watch_zombies();
    for number in 0..1000 {
        let mut stream = connect_from(address::source(number), server.address()).unwrap();
        echo(&mut stream, b"x");
    }
    eventually("none is left", || server.count("active") == 0);
    eventually("no descriptor is left", || descriptors() == before);
    assert_eq!(server.count("completed"), 1010);
}

#[test]
fn a_program_that_leaves_a_process_behind_frees_its_slot_with_its_own_end() {
    // In a session of its own, which does not end with the program's group.
    let script = "setsid sh -c 'echo left; exec sleep 1000 </dev/null >/dev/null 2>&1' & \
                  while ! [ -e /proc/$!/comm ] || [ $(cat /proc/$!/comm) != sleep ]; do :; done";
    let server =
        Preforkd::serve(&["--max-connections", "1"], "127.0.0.1:0", &["--", "sh", "-c", script]).start();
    for _ in 0..3 {
        assert_eq!(listen_to(server.address()), "left\n");
    }
    eventually("none is active", || server.count("active") == 0);
    assert_eq!(server.connections().len(), 3);
    server.signal(Signal::SIGTERM);
    server.ending();
    for process in server.processes() {
        assert_eq!(process.name, "sleep", "{process:?}");
        proc::kill(process.pid, Signal::SIGKILL);
    }
    server.wait_empty();
}

#[test]
fn what_a_stranger_sends_to_the_control_socket_harms_nothing() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"]).start();
    for junk in [&b"\0\xff\n"[..], b"", b"{\"status\":", &[b'x'; 100_000]] {
        let mut stream = crate::support::client::connect_unix(server.control().as_ref());
        let _ = std::io::Write::write_all(&mut stream, junk);
    }
    // One that says nothing and stays holds up nobody.
    let _silent = crate::support::client::connect_unix(server.control().as_ref());
    assert_eq!(server.status()["state"], "running");
    assert_eq!(text(&exchange(server.address(), b"x")), "x");
}

#[test]
fn a_control_client_for_whom_there_is_no_descriptor_at_all_keeps_nobody_busy() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    let address = server.address();
    let pid = server.pid().to_string();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // proc(5): utime and stime are fields 14 and 15, after a name that may contain anything.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>()
    };
    let limits =
        crate::support::sure(&["prlimit", "--pid", &pid, "--nofile", "--raw", "--noheadings", "-oSOFT,HARD"]);
    let limits = limits.trim().replace(' ', ":");
    let hard = limits.rsplit_once(':').unwrap().1;
    // What it has stays open, and there are no more.
    crate::support::sure(&["prlimit", "--pid", &pid, &format!("--nofile=3:{hard}")]);
    let _client = crate::support::client::connect_unix(server.control().as_ref());
    std::thread::sleep(A_WHILE);
    let before = ticks();
    std::thread::sleep(A_WHILE * 3);
    let busy = ticks() - before;
    // In hundredths of a second, of 90.
    assert!(busy < 20, "it was busy for {busy} ticks");
    assert_eq!(exchange(address, b"x"), b"x");
    crate::support::sure(&["prlimit", "--pid", &pid, &format!("--nofile={limits}")]);
    assert_eq!(server.status()["state"], "running");
}
