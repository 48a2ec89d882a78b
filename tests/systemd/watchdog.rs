//! The watchdog.

use std::time::{Duration, Instant};

use crate::support::client::{echo, served};
use crate::support::service::{ECHO, PORT};
use crate::support::{Container, eventually};

/// As shipped it takes longer than anybody wants to wait in a test.
const SHORT: &str = "[Service]\nWatchdogSec=3s\n";

pub(crate) fn a_stopped_worker_is_replaced(container: &Container) {
    container.fresh_with(ECHO, SHORT);
    let pid = container.main_pid();
    let mut connections = served(PORT, 4);
    let stopped = container.workers()[0];
    container.kill("STOP", stopped);
    eventually("another worker in its place", || {
        let workers = container.workers();
        !workers.contains(&stopped) && workers.len() == 2
    });
    assert!(!container.path(&format!("/proc/{stopped}")).exists());
    connections.iter_mut().for_each(echo);
    served(PORT, 4);
    assert_eq!(container.main_pid(), pid);
    assert_eq!(container.show("NRestarts"), "0");
    drop(connections);
    eventually("its connections are reaped", || container.count("echo", "active") == 0);
}

pub(crate) fn a_stopped_supervisor_is_restarted(container: &Container) {
    container.fresh_with(ECHO, SHORT);
    let shipped = container.sure("grep '^WatchdogSec=' $(systemctl show -p FragmentPath --value preforkd)");
    assert!(!shipped.is_empty());
    let pid = container.main_pid();
    let begun = Instant::now();
    container.kill("STOP", pid);
    container.wait_replaced(pid);
    // systemd sends ABRT, which a stopped process does not feel, and KILL only after TimeoutAbortSec=.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(container.show("NRestarts"), "1");
    served(PORT, 4);
    let messages =
        container.sure("journalctl --quiet --no-pager --output=cat --lines=200 UNIT=preforkd.service");
    assert!(messages.contains("Watchdog timeout"), "{messages}");
}
