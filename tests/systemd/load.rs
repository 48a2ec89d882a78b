//! Under 32 clients that connect without pause, nobody is ever refused, and only connections whose process was killed
//! are cut.

use std::time::Instant;

use crate::support::load::{CLIENTS, Load, Result};
use crate::support::service::{ECHO, PORT};
use crate::support::{Container, say};

/// Does `action` so often under load, and tells what became of the clients.
fn under_load(container: &Container, what: &str, times: usize, mut action: impl FnMut(usize)) -> Result {
    container.fresh(ECHO);
    let load = Load::on(PORT);
    let begun = Instant::now();
    for number in 0..times {
        action(number);
        load.wait_progress();
    }
    let took = begun.elapsed();
    let result = load.stop();
    say(&format!(
        "     systemd {}: {CLIENTS} clients, {times} {what} in {took:.1?}: {}",
        container.systemd(),
        result.counts()
    ));
    assert_eq!(container.show("ActiveState"), "active");
    result
}

pub(crate) fn reloads_refuse_and_cut_nobody(container: &Container) {
    let result = under_load(container, "reloads", 20, |number| {
        container.configure(&format!("{ECHO}max_connections = {}\n", 500 + number));
        container.sure("systemctl reload preforkd");
    });
    assert!(result.hurt.is_empty(), "{}", result.counts());
    assert_eq!(container.status()["reloads"]["ok"], 20);
}

pub(crate) fn restarts_refuse_and_cut_nobody(container: &Container) {
    let result = under_load(container, "restarts", 10, |_| {
        let pid = container.main_pid();
        container.sure("systemctl restart preforkd");
        assert_ne!(container.main_pid(), pid);
    });
    assert!(result.hurt.is_empty(), "{}", result.counts());
}

pub(crate) fn upgrades_refuse_and_cut_nobody(container: &Container) {
    let mut pid = 0;
    let result = under_load(container, "upgrades", 10, |number| {
        if number == 0 {
            pid = container.main_pid();
        }
        container.upgrade();
    });
    assert!(result.hurt.is_empty(), "{}", result.counts());
    assert_eq!(container.main_pid(), pid);
    assert_eq!(container.status()["upgrades"], 10);
}

pub(crate) fn a_killed_supervisor_refuses_nobody(container: &Container) {
    const KILLS: usize = 5;
    let mut windows = Vec::new();
    let result = under_load(container, "kill -9 of MainPID", KILLS, |_| {
        let pid = container.main_pid();
        let killed = Instant::now();
        container.kill("KILL", pid);
        container.wait_replaced(pid);
        windows.push((killed, Instant::now()));
    });
    // systemd kills what the supervisor left, so each client may lose the one connection that it has.
    let cut =
        ["echo: UnexpectedEof", "echo: ConnectionReset", "end: ConnectionReset", "shutdown: NotConnected"];
    for (at, what) in &result.hurt {
        assert!(cut.contains(&what.as_str()), "{}", result.counts());
        assert!(windows.iter().any(|(from, to)| from <= at && at <= to), "{what}, and nothing was killed");
    }
    assert!(result.hurt.len() <= KILLS * CLIENTS, "{}", result.counts());
    assert_eq!(container.number("NRestarts"), KILLS as u64);
}
