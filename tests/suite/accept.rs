//! accept(2) that fails. The limits behind ENFILE, ENOBUFS and ENOMEM are the whole machine's, so strace(1) makes the
//! calls of one worker fail instead; everything else is real.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::client::{connect, exchange};
use crate::support::lines::Lines;
use crate::support::{Preforkd, Running, proc, root};

const CALLS: &str = "accept4,epoll_wait,epoll_pwait,epoll_pwait2";

/// How many calls fail.
const FAILURES: usize = 4;

/// A strace that watches a worker and lets its first accepts fail.
pub(crate) struct Strace {
    process: Child,
    log: std::path::PathBuf,
}

impl Strace {
    fn fail_accepts(server: &Running, worker: i32, error: &str) -> Self {
        let inject = format!("accept4:error={error}:when=1..{FAILURES}");
        Self::attach(server, worker, &["--trace", CALLS, "--inject", &inject])
    }

    /// One that lets a call, or the one `:when=` which, fail in each process that the worker makes.
    pub(crate) fn fail_children(server: &Running, worker: i32, call: &str, error: &str) -> Self {
        let name = call.split(':').next().unwrap();
        let inject = format!("{name}:error={error}{}", &call[name.len()..]);
        Self::attach(server, worker, &["--follow-forks", "--trace", name, "--inject", &inject])
    }

    fn attach(server: &Running, worker: i32, options: &[&str]) -> Self {
        let log = server.dir().join("strace");
        let mut process = Command::new("strace")
            .args(["--attach", &worker.to_string(), "--signal", "none"])
            .args(options)
            .arg("--output")
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("strace: {error}"));
        Lines::follow(process.stderr.take().unwrap()).wait("attached", |line| line.ends_with(" attached"));
        Self { process, log }
    }

    /// Lets go of the worker; what it did meanwhile, a call a line.
    fn calls(mut self) -> Vec<String> {
        proc::kill(i32::try_from(self.process.id()).unwrap(), Signal::SIGTERM);
        self.process.wait().unwrap();
        std::fs::read_to_string(&self.log).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The waits between one failing accept and the next try, for each of them.
fn waits_after_failures(calls: &[String]) -> Vec<Vec<&str>> {
    let mut groups: Vec<Vec<&str>> = Vec::new();
    let mut failed = false;
    for call in calls {
        if call.starts_with("accept4(") {
            failed = call.contains("(INJECTED)");
            if failed {
                groups.push(Vec::new());
            }
        } else if failed {
            groups.last_mut().unwrap().push(call);
        }
    }
    groups
}

/// A wait that ended because its time was over, and not at once.
fn rested(call: &str) -> bool {
    call.ends_with(" = 0") && !call.contains(", 0, ") && !call.contains("tv_nsec=0}")
}

/// Runs a service whose accepts fail, has a client served by it, and returns what its worker called.
fn served_in_spite_of(error: &str) -> (Running, Vec<String>) {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    let workers = server.workers();
    let listeners = proc::listeners(server.address());
    assert_eq!((workers.len(), listeners.len()), (1, 1));
    let strace = Strace::fail_accepts(&server, workers[0], error);

    // The handshake is the kernel's; the second client finds the address open while the first is not served.
    let mut clients = [connect(server.address()), connect(server.address())];
    for client in &mut clients {
        client.write_all(b"x").unwrap();
    }
    for client in &mut clients {
        let mut answer = [0];
        client
            .read_exact(&mut answer)
            .unwrap_or_else(|problem| panic!("not served after {error}: {problem}"));
        assert_eq!(&answer, b"x");
    }
    let calls = strace.calls();
    let injected = calls.iter().filter(|call| call.contains("(INJECTED)")).count();
    assert_eq!(injected, FAILURES, "{error}: {calls:#?}");
    assert_eq!(proc::listeners(server.address()), listeners, "the listener is another");
    assert_eq!(server.workers(), workers, "a worker was lost");
    assert_eq!(exchange(server.address(), b"y"), b"y");
    (server, calls)
}

#[test]
fn a_machine_without_files_or_memory_is_waited_for_without_spinning() {
    if !root("a_machine_without_files_or_memory_is_waited_for_without_spinning") {
        return;
    }
    for (error, text) in [
        ("ENFILE", "Too many open files in system"),
        ("ENOBUFS", "No buffer space available"),
        ("ENOMEM", "Cannot allocate memory"),
    ] {
        let (server, calls) = served_in_spite_of(error);
        for waits in waits_after_failures(&calls) {
            assert!(waits.iter().any(|wait| rested(wait)), "{error}: it does not rest: {calls:#?}");
            // An order of the supervisor may come in between.
            assert!(waits.len() <= 5, "{error}: it wakes up for nothing: {calls:#?}");
        }
        let complaint = server.log.wait("the complaint", |line| line.contains("cannot accept on"));
        assert!(complaint.contains(text) && complaint.contains("connections stay queued"), "{complaint}");
        let complaints = server.log.count(|line| line.contains("cannot accept on"));
        assert!(complaints < FAILURES, "{error}: a complaint for each call");
    }
}

#[test]
fn a_client_that_is_gone_before_its_accept_is_no_matter() {
    if !root("a_client_that_is_gone_before_its_accept_is_no_matter") {
        return;
    }
    for error in ["ECONNABORTED", "EPROTO", "EHOSTUNREACH", "EPERM"] {
        let (server, calls) = served_in_spite_of(error);
        for waits in waits_after_failures(&calls) {
            assert!(!waits.iter().any(|wait| rested(wait)), "{error}: it rests: {calls:#?}");
        }
        assert_eq!(server.log.count(|line| line.contains("cannot accept")), 0, "{error}");
    }
}
