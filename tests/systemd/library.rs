//! A program that uses the library, as a unit that its writer has written: examples/guestbook.rs.

use std::io::Write;
use std::path::PathBuf;

use crate::support::client::connect;
use crate::support::service::{PORT, said};
use crate::support::{Container, eventually, text};

const PROGRAM: &str = "/usr/local/bin/guestbook";
const UNIT: &str = "/run/systemd/system/guestbook.service";
const CONFIG: &str = "/etc/guestbook/guestbook.toml";

const LINES: &str = "[Service]\n\
    Type=notify\n\
    ExecStart=/usr/local/bin/guestbook run\n\
    ExecReload=/usr/local/bin/guestbook reload\n\
    DynamicUser=yes\n\
    RuntimeDirectory=guestbook\n\
    StateDirectory=guestbook\n\
    WatchdogSec=30s\n\
    FileDescriptorStoreMax=64\n";

/// The containers of these tests have no Landlock.
fn config(longest: &str) -> String {
    format!(
        "[service.guestbook]\nlisten = \"127.0.0.1:{PORT}\"\nsandbox = {{ write = [\"/var/lib/guestbook\"], required = false }}\n\
         [service.guestbook.options]\nfile = \"/var/lib/guestbook/lines\"\nlongest = {longest}\n"
    )
}

/// Leaves a line, and returns what was there before.
fn leave(line: &str) -> String {
    let mut stream = connect(PORT);
    stream.write_all(line.as_bytes()).unwrap();
    let mut book = String::new();
    std::io::Read::read_to_string(&mut stream, &mut book).unwrap();
    book
}

pub(crate) fn a_program_of_ones_own_is_a_unit_of_ones_own(container: &Container) {
    container.clean();
    let binary = PathBuf::from(std::env::var_os("PREFORKD_TEST_GUESTBOOK").unwrap());
    std::fs::copy(&binary, container.path(PROGRAM)).unwrap_or_else(|error| panic!("{binary:?}: {error}"));
    container.write(UNIT, LINES);
    container.write(CONFIG, &config("80"));
    container
        .sure("systemctl daemon-reload; systemctl start guestbook || { journalctl -u guestbook; false; }");
    // It serves when the start has returned.
    assert_eq!(leave("Ada was here\n"), "You are number 1.\n");
    assert!(leave("so was Grace\n").ends_with(": Ada was here\nYou are number 2.\n"));
    let status = container.sure("systemctl show --property=StatusText --value guestbook");
    assert!(status.contains("1 service"), "{status}");

    container.write(CONFIG, &config("8"));
    container.sure("systemctl reload guestbook");
    let third = leave("a line that is too long\n");
    assert!(third.ends_with("You are number 3.\n"), "a reload leaves what is shared: {third}");
    eventually("the line is cut", || leave("x\n").contains(": a line t\n"));
    container.write(CONFIG, &config("-1"));
    let output = container.run("systemctl reload guestbook; guestbook reload");
    let told = said(&output);
    assert!(!output.status.success() && told.contains("guestbook.toml:6:11: error: \"longest\": "), "{told}");
    assert!(!leave("y\n").is_empty(), "what was in force still is");

    container.sure("guestbook status | grep -q '^guestbook '");
    let records = container.journal("SYSLOG_IDENTIFIER=guestbook PREFORKD_SERVICE=guestbook");
    let ended = records.iter().filter(|record| record["PREFORKD_EXIT"] == "exited 0").count();
    assert!(ended >= 4, "{records:?}");
    container.sure("systemctl stop guestbook");
    let left = container.run(&format!(
        "systemctl show --property=Result --value guestbook; \
         rm -rf {PROGRAM} {UNIT} /etc/guestbook /var/lib/private/guestbook /var/lib/guestbook; systemctl daemon-reload"
    ));
    assert_eq!(text(&left.stdout).trim(), "success");
    assert!(std::net::TcpStream::connect(("127.0.0.1", PORT)).is_err());
}
