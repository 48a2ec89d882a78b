//! A process around every preforkd, so that a test knows everything that it leaves behind.
//!
//! The fence is a subreaper: whatever the supervisor and its descendants start remains a descendant of the fence, also
//! when all between have died. It reaps what comes to it, and says when nothing is left. It is this test binary again,
//! running the one test below, because a fence needs no other tool then, and no privilege.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

use super::proc;

const ORDERS: &str = "PREFORKD_TEST_FENCE";

/// What the fence says on its stdout, between the lines of the supervisor.
pub(super) const PID: &str = "fence: pid ";
pub(super) const ENDED: &str = "fence: ended ";
pub(super) const EMPTY: &str = "fence: empty";
pub(super) const LISTENER: &str = "fence: listener ";

/// What to start inside the fence.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Orders {
    /// Command and arguments.
    pub(super) command: Vec<String>,
    /// The whole environment.
    pub(super) environment: BTreeMap<String, String>,
    /// An address to listen on for the command, which gets the listener as its fd 0.
    pub(super) listen: Option<String>,
}

/// Starts the command inside a fence; the fence kills everything in it when its stdin is closed.
pub(super) fn start(orders: &Orders) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "support::fence::fence",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ORDERS, serde_json::to_string(orders).unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn fence() {
    if let Ok(orders) = std::env::var(ORDERS) {
        be_the_fence(&serde_json::from_str(&orders).unwrap());
    }
}

fn be_the_fence(orders: &Orders) -> ! {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut command = Command::new(&orders.command[0]);
    command
        .args(&orders.command[1..])
        .env_clear()
        .envs(&orders.environment)
        .stdin(Stdio::null());
    if let Some(address) = &orders.listen {
        let listener = TcpListener::bind(address).unwrap();
        println!("{LISTENER}{}", listener.local_addr().unwrap());
        command.stdin(OwnedFd::from(listener));
    }
    let supervisor = command
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", orders.command[0]))
        .id();
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
