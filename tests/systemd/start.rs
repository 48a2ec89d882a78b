//! `systemctl start`, and what cannot start.

use crate::support::Container;
use crate::support::client::{listen_to, served};
use crate::support::eventually;
use crate::support::service::{ECHO, PORT, said};

pub(crate) fn start_returns_when_it_serves(container: &Container) {
    // bash connects by itself; a connection that is not answered ends the start with an error.
    let connect =
        "exec 3<>/dev/tcp/127.0.0.1/7007 && echo hello >&3 && read -t 20 line <&3 && [ \"$line\" = hello ]";
    container.fresh_with(
        ECHO,
        &format!("[Service]\nExecStartPost=/bin/bash -c '{}'\n", connect.replace('"', "\\\"")),
    );
    served(PORT, 1);
    assert_eq!(container.show("SubState"), "running");
    assert_eq!(container.number("MainPID"), container.status()["pid"].as_u64().unwrap());
}

pub(crate) fn what_a_program_finds_says_nothing_of_systemd(container: &Container) {
    let program = "exec = [\"/bin/sh\", \"-c\", \"env; ls -l /proc/self/fd\"]";
    container.fresh(&ECHO.replace("handler = \"echo\"", program));
    let found = listen_to(PORT);
    assert!(found.contains("PREFORKD_SERVICE=echo"), "{found}");
    let secrets =
        ["NOTIFY_SOCKET", "WATCHDOG", "LISTEN_", "FDSTORE", "INVOCATION_ID", "SYSTEMD_", "JOURNAL_STREAM"];
    for secret in secrets {
        assert!(!found.contains(secret), "{secret}: {found}");
    }
    // 0 to 2, and the one with which ls reads the directory.
    assert_eq!(found.lines().filter(|line| line.contains(" -> ")).count(), 4, "{found}");
}

pub(crate) fn a_broken_configuration_is_not_tried_again(container: &Container) {
    container.clean();
    container.configure("[service.echo]\nlisten = \"127.0.0.1:7007\"\nhandler = \"eccho\"\n");
    let output = container.run("systemctl start preforkd");
    assert!(!output.status.success());
    // With a restart to come it would be "activating".
    assert_eq!(container.show("ActiveState"), "failed");
    assert_eq!(container.show("NRestarts"), "0");
    assert_eq!(container.show("ExecMainStatus"), "78");
    let status = said(&container.run("systemctl status --no-pager preforkd"));
    assert!(status.contains("78/CONFIG") || status.contains("status=78"), "{status}");
    // By its pid: of a process that has gone before journald asks, the journal does not know the invocation.
    let said = container.journal(&format!("_PID={}", container.show("ExecMainPID")));
    let is_error = |entry: &serde_json::Value| {
        entry["MESSAGE"].as_str().is_some_and(|text| text.contains("preforkd.toml:3:11: error:"))
    };
    assert!(said.iter().any(is_error), "{said:?}");
}

pub(crate) fn status_is_a_line_worth_reading(container: &Container) {
    // The line is renewed four times in this time.
    container.fresh_with(ECHO, "[Service]\nWatchdogSec=8s\n");
    let connections = served(PORT, 3);
    let wanted = |line: &str| {
        line.contains("2 workers") && line.contains("3 connections") && line.contains("generation 1")
    };
    eventually("3 connections in the status", || wanted(&container.show("StatusText")));
    // The rate, in connections per second.
    let line = container.show("StatusText");
    assert!(line.contains("/s"), "{line}");
    container.sure("systemctl reload preforkd");
    eventually("the reload in the status", || {
        let line = container.show("StatusText");
        line.contains("generation 2") && line.contains("reload")
    });
    drop(connections);
    eventually("no connection in the status", || container.show("StatusText").contains(" 0 connections"));
}
