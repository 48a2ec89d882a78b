//! Warm programs under load, while all that can happen happens.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;

use super::{config, is_warm, start_far, waiting};
use crate::support::client::exchange;
use crate::support::{Preforkd, address, eventually, preforkd, proc, root, text};

/// So many clients at a time.
const CLIENTS: u64 = 16;

#[test]
fn of_ten_thousand_connections_none_is_lost() {
    const CALLS: u64 = 10_000;
    // Under such a load there may be no time for warming up: each begins with what is warm.
    const ROUNDS: u64 = 25;
    let address = address::fresh();
    let server = start_far(
        address,
        "['/bin/dash', '-c', 'read line; echo \"$line\"']",
        "spare = 8\nmax_connections = 100",
    );
    for _ in 0..ROUNDS {
        is_warm(&server, 8);
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                scope.spawn(move || {
                    for call in 0..CALLS / ROUNDS / CLIENTS {
                        let said = format!("{client} {call}\n");
                        assert_eq!(text(&exchange(address, said.as_bytes())), said);
                    }
                });
            }
        });
    }
    eventually("all ended", || server.count("completed") == CALLS && server.count("active") == 0);
    let is_record = |line: &str| line.contains(": exited 0 after");
    eventually("all have their record", || server.log.count(is_record) as u64 == CALLS);
    assert!(server.count("served_warm") >= 8 * ROUNDS, "{}", server.count("served_warm"));
    is_warm(&server, 8);
}

/// Reloads, upgrades, and kills of those that wait; with a user, a chroot, a sandbox and limits. A client of a worker that is killed has its
/// program killed with it, as a cold one: those are another test's.
#[test]
fn whatever_happens_to_those_that_wait_no_client_meets_it() {
    let address = address::fresh();
    let keys = if root("a user, and a chroot") {
        "user = \"nobody\"\nchroot = \"/\"\nlimits = { nofile = 64, core = 0 }\nsandbox = { private_tmp = true }\n"
    } else {
        ""
    };
    let written = |umask: &str| {
        config(
            address,
            "['/bin/dash', '-c', 'read line; echo \"$line\"']",
            &format!("spare = 4\n{keys}umask = \"{umask}\""),
        )
        .replace("\"start\"", "\"spare\"")
    };
    let server = Preforkd::run(&written("0022")).own_copy().start();
    is_warm(&server, 4);
    let (is_over, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (is_over, calls) = (&is_over, &calls);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let said = format!("{client} {}\n", calls.fetch_add(1, Ordering::Relaxed));
                    assert_eq!(text(&exchange(address, said.as_bytes())), said);
                }
            });
        }
        for umask in ["0077", "0027", "0007"] {
            server.configure(&written(umask));
            server.reload_ok();
            let upgraded = preforkd(&["upgrade", "--control", server.control()]);
            assert!(upgraded.status.success(), "{}", text(&upgraded.stderr));
            let before = calls.load(Ordering::Relaxed);
            eventually("more calls", || calls.load(Ordering::Relaxed) > before + 50);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let called = calls.load(Ordering::Relaxed);
    eventually("all counted", || server.count("completed") == called && server.count("active") == 0);
    // Those that wait, and nobody else: each time all of them, and who calls then is served cold, or by the next.
    for _ in 0..10 {
        eventually("some wait", || server.count("warm") > 0);
        let killed = waiting(&server);
        killed.iter().for_each(|pid| proc::kill(*pid, Signal::SIGKILL));
        // Whom it is handed to who is being killed loses it, as when a program that serves is killed.
        eventually("they are gone", || killed.iter().all(|pid| proc::process(*pid).is_none()));
        assert_eq!(text(&exchange(address, b"after a kill\n")), "after a kill\n");
    }
    eventually("all counted", || server.count("completed") == called + 10 && server.count("active") == 0);
}
