//! `preforkd upgrade` and `USR2`.

use crate::support::client::{connect, echo, served, silent_for};
use crate::support::load::{CLIENTS, Load};
use crate::support::service::{ECHO, PORT, said};
use crate::support::{A_WHILE, Container, eventually};

const BINARY: &str = "/usr/sbin/preforkd";
/// A copy of the good binary, to put back and to give orders with.
const GOOD: &str = "/root/preforkd.good";

pub(crate) fn connections_stay_and_are_counted_limited_and_reaped(container: &Container) {
    container.fresh(&ECHO.replace("workers = 2", "workers = 2\nmax_connections = 4"));
    let pid = container.main_pid();
    let mut connections = served(PORT, 4);
    for number in 1..=3 {
        container.upgrade();
        assert_eq!(container.main_pid(), pid);
        connections.iter_mut().for_each(echo);
        assert_eq!(container.count("echo", "active"), 4, "after {number} upgrades");
        assert_eq!(container.status()["upgrades"], number);
    }
    assert_eq!(container.count("echo", "accepted"), 4);

    let mut fifth = connect(PORT);
    assert!(silent_for(&mut fifth, A_WHILE), "a fifth connection, and the limit is 4");
    drop(connections.pop());
    echo(&mut fifth);
    assert_eq!(container.count("echo", "active"), 4);

    drop(connections);
    drop(fifth);
    eventually("all connections are reaped", || container.count("echo", "active") == 0);
    assert_eq!((container.count("echo", "accepted"), container.count("echo", "completed")), (5, 5));
    let run = container.show("InvocationID");
    let records = || {
        container
            .journal(&format!(
                "_SYSTEMD_INVOCATION_ID={run} PREFORKD_SERVICE=echo PREFORKD_EXIT=\"exited 0\""
            ))
            .len()
    };
    assert_eq!(records(), 5);
    let zombies = container.sure("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null || true");
    assert_eq!(zombies, "");
}

/// Descriptors and KiB of the supervisor, and processes of the service.
fn size(container: &Container) -> (usize, u64, usize) {
    let pid = container.main_pid();
    let rss = container.sure(&format!("awk '/^RssAnon/ {{ print $2 }}' /proc/{pid}/status"));
    (container.descriptors(pid), rss.trim().parse().unwrap(), container.processes())
}

pub(crate) fn ten_upgrades_leave_nothing_more_than_one(container: &Container) {
    container.fresh(ECHO);
    let started = size(container);
    container.upgrade();
    let load = Load::on(PORT);
    drop(load.stop());
    // Workers of the old generation end when their last connection is reaped.
    eventually("as many processes as before", || container.processes() == started.2);
    let one = size(container);
    for _ in 2..=10 {
        container.upgrade();
    }
    eventually("as many processes as before", || container.processes() == started.2);
    let ten = size(container);
    assert_eq!(one.0, ten.0, "descriptors after one and after ten upgrades; {} before", started.0);
    assert_eq!(started.0, ten.0, "descriptors before and after");
    assert!(ten.1 <= one.1 + 128, "{} KiB after one, {} KiB after ten upgrades", one.1, ten.1);
    assert_eq!(container.number("NFileDescriptorStore"), 1);
    served(PORT, 1);
}

pub(crate) fn a_broken_binary_is_refused(container: &Container) {
    container.fresh(ECHO);
    container.sure(&format!("cp {BINARY} {GOOD}"));
    let mut connections = served(PORT, 2);
    let before = (container.main_pid(), container.workers());
    let broken = [
        ("another program", "cp /bin/false NEW"),
        ("a torn file", &format!("head -c 100000 {GOOD} >NEW; chmod 755 NEW")),
        ("no program", "echo nonsense >NEW; chmod 755 NEW"),
        ("not executable", &format!("cp {GOOD} NEW; chmod 644 NEW")),
        ("one that dies", "printf '#!/bin/sh\\nkill -SEGV $$\\n' >NEW; chmod 755 NEW"),
        ("one that hangs", "printf '#!/bin/sh\\nexec sleep 1000\\n' >NEW; chmod 755 NEW"),
        ("nothing", ""),
    ];
    for (what, make) in broken {
        let make = make.replace("NEW", &format!("{BINARY}.new"));
        let replace = if make.is_empty() {
            format!("rm -f {BINARY}")
        } else {
            format!("{make}; mv {BINARY}.new {BINARY}")
        };
        container.sure(&replace);
        let output = container.run(&format!("{GOOD} upgrade"));
        container.sure(&format!("cp {GOOD} {BINARY}.new; mv {BINARY}.new {BINARY}"));
        let told = said(&output);
        assert!(
            !output.status.success() && output.status.code() != Some(124),
            "{what}: {:?} {told}",
            output.status
        );
        assert!(!told.trim().is_empty(), "{what}: no reason");
        assert_eq!((container.main_pid(), container.workers()), before, "{what}: {told}");
        connections.iter_mut().for_each(echo);
        served(PORT, 1);
    }
    assert_eq!(container.status()["upgrades"], 0);
    // And nothing of the failures is in the way.
    container.upgrade();
    connections.iter_mut().for_each(echo);
    assert_eq!(container.main_pid(), before.0);
    eventually("no process of a trial is left", || container.processes() <= 1 + 2 + 2 + 2);
}

/// What systemd keeps and watches is the same afterwards.
pub(crate) fn a_crash_after_an_upgrade_refuses_nobody(container: &Container) {
    container.fresh_with(ECHO, "[Service]\nWatchdogSec=2s\n");
    let pid = container.main_pid();
    container.upgrade();
    for round in 1..=2 {
        let last = container.number("WatchdogTimestampMonotonic");
        eventually("the watchdog is fed", || container.number("WatchdogTimestampMonotonic") > last);
        assert_eq!(container.main_pid(), pid, "round {round}");
    }
    let load = Load::on(PORT);
    container.kill("KILL", pid);
    container.wait_replaced(pid);
    load.wait_progress();
    let result = load.stop();
    assert_eq!(result.refused(), 0, "{}", result.counts());
    assert!(result.hurt.len() <= CLIENTS, "{}", result.counts());
    assert_eq!(container.show("NRestarts"), "1");
}

pub(crate) fn usr2_upgrades(container: &Container) {
    container.fresh(ECHO);
    let pid = container.main_pid();
    let mut connections = served(PORT, 2);
    // As an upgrade of the package does it: what the supervisor runs is not the file that has its name.
    container.sure(&format!("cp {BINARY} {BINARY}.new && mv {BINARY}.new {BINARY}"));
    assert!(container.sure(&format!("readlink /proc/{pid}/exe")).contains("(deleted)"));
    container.kill("USR2", pid);
    eventually("an upgrade", || container.status()["upgrades"] == 1);
    assert_eq!(container.main_pid(), pid);
    assert_eq!(container.sure(&format!("readlink /proc/{pid}/exe")).trim(), BINARY);
    connections.iter_mut().for_each(echo);
    assert_eq!(container.count("echo", "active"), 2);
    // systemd knows it as before.
    container.sure("systemctl reload preforkd");
    assert_eq!(container.show("ActiveState"), "active");
    connections.iter_mut().for_each(echo);
}
