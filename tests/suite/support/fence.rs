//! A process around every preforkd, so that a test knows everything that it leaves behind.
//!
//! The fence is a subreaper: whatever the supervisor and its descendants start remains a descendant of the fence, also
//! when all between have died. It reaps what comes to it, and says when nothing is left. It is this test binary again,
//! running the one test below, because a fence needs no other tool then, and no privilege.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

use super::lines::Lines;
use super::proc::{self, Process};

const ORDERS: &str = "PREFORKD_TEST_FENCE";

/// What the fence says on its stdout, between the lines of what it started.
const PID: &str = "fence: pid ";
const ENDED: &str = "fence: ended ";
const EMPTY: &str = "fence: empty";
const LISTENER: &str = "fence: listener ";

/// What to start inside the fence.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// Command and arguments.
    pub(crate) command: Vec<String>,
    /// The whole environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// An address, or `unix:PATH`, to listen on for the command, which gets the listener as its fd 0.
    pub(crate) listen: Option<String>,
}

/// A fence and what is in it; dropping it kills everything that is.
pub(crate) struct Fenced {
    fence: Child,
    lifeline: Option<ChildStdin>,
    /// What is written to stdout inside the fence, and what the fence says itself.
    pub(crate) stdout: Lines,
    /// What is written to stderr inside the fence.
    pub(crate) stderr: Lines,
}

impl Fenced {
    /// Starts the command inside a fence.
    pub(crate) fn start(orders: &Orders) -> Self {
        let mut fence = Command::new(std::env::current_exe().unwrap())
            .args(["support::fence::fence", "--exact", "--nocapture", "--test-threads=1"])
            .env(ORDERS, serde_json::to_string(orders).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = Lines::follow(fence.stdout.take().unwrap());
        let stderr = Lines::follow(fence.stderr.take().unwrap());
        let lifeline = fence.stdin.take();
        Self { fence, lifeline, stdout, stderr }
    }

    /// What the fence said after this; waits for it.
    fn said(&self, what: &str) -> String {
        let line = self.stdout.wait(what, |line| line.starts_with(what));
        line[what.len()..].to_owned()
    }

    /// The pid of what was started.
    pub(crate) fn pid(&self) -> i32 {
        self.said(PID).parse().unwrap()
    }

    /// Where the socket that was passed listens.
    pub(crate) fn passed_address(&self) -> SocketAddr {
        self.said(LISTENER).parse().unwrap()
    }

    /// How it ended, once it has: an exit code or the name of a signal.
    pub(crate) fn ending(&self) -> String {
        self.said(ENDED)
    }

    /// Whether what was started has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.stdout.count(|line| line.starts_with(ENDED)) > 0
    }

    /// Whether nothing is left, also no process that nobody has waited for.
    pub(crate) fn is_empty(&self) -> bool {
        self.stdout.count(|line| line == EMPTY) > 0
    }

    /// Everything inside.
    pub(crate) fn processes(&self) -> Vec<Process> {
        proc::descendants(self.fence_pid())
    }

    /// The fence itself, the ancestor of everything inside.
    pub(crate) fn fence_pid(&self) -> i32 {
        i32::try_from(self.fence.id()).unwrap()
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.fence.wait();
    }
}

#[test]
fn fence() {
    if let Ok(orders) = std::env::var(ORDERS) {
        be_the_fence(&serde_json::from_str(&orders).unwrap());
    }
}

fn be_the_fence(orders: &Orders) -> ! {
    println!(); // libtest has begun a line
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut command = Command::new(&orders.command[0]);
    command.args(&orders.command[1..]).env_clear().envs(&orders.environment).stdin(Stdio::null());
    if let Some(path) = orders.listen.as_ref().and_then(|address| address.strip_prefix("unix:")) {
        command.stdin(OwnedFd::from(UnixListener::bind(path).unwrap()));
    } else if let Some(address) = &orders.listen {
        let listener = TcpListener::bind(address).unwrap();
        println!("{LISTENER}{}", listener.local_addr().unwrap());
        command.stdin(OwnedFd::from(listener));
    }
    let supervisor = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", orders.command[0])).id();
    drop(command); // its copy of the listener
    println!("{PID}{supervisor}");
    std::thread::spawn(kill_all_at_end_of_stdin);
    reap_all(i32::try_from(supervisor).unwrap());
    loop {
        std::thread::park();
    }
}

/// Reaps until nothing is left that could ever come.
fn reap_all(supervisor: i32) {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == supervisor => println!("{ENDED}{code}"),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == supervisor => {
                println!("{ENDED}{signal}");
            }
            Err(Errno::ECHILD) => break,
            // EINVAL: a child was killed by a real-time signal; nix does not know those.
            _ => {}
        }
    }
    println!("{EMPTY}");
}

fn kill_all_at_end_of_stdin() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    loop {
        let left = proc::descendants(i32::try_from(std::process::id()).unwrap());
        if left.is_empty() {
            std::process::exit(0);
        }
        for process in left {
            proc::kill(process.pid, nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
