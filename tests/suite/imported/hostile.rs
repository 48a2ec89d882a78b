//! Files that nobody wrote for this.

use super::{files, imported};
use crate::support::{preforkd, text};

#[test]
fn a_terminal_is_told_nothing_by_what_is_read() {
    let line = "x\u{1b}[2J stream tcp nowait ro\u{202e}ot /usr/sbin/tcpd \u{1b}]0;y\u{7}\n7 stream tcp nowait root /bin/x\u{9b}31m y\n";
    let (printed, complained, code) = imported("inetd.conf", line);
    let obeyed = |text: &str| text.contains(['\u{1b}', '\u{7}', '\u{202e}', '\u{9b}']);
    assert!(!obeyed(&printed) && !obeyed(&complained), "{printed:?} {complained:?}");
    assert_eq!(code, Some(78));
    let output = preforkd(&["import", "/nonexistent/\u{1b}[2J"]);
    assert!(!obeyed(&text(&output.stderr)));
}

#[test]
fn what_is_written_cannot_leave_its_string_or_its_comment() {
    let line = "7 stream tcp nowait root /bin/x x \"]\\n[service.evil] # '''\n";
    let (printed, _, code) = imported("inetd.conf", line);
    assert_eq!(code, Some(0), "{printed}");
    let table: toml::Table = printed.parse().unwrap();
    let services = table["service"].as_table().unwrap();
    assert_eq!(services.len(), 1, "{printed}");
    let exec = services.values().next().unwrap()["exec"].as_array().unwrap();
    assert_eq!(exec[1].as_str(), Some("\"]\\n[service.evil]"));
}

#[test]
fn sizes_have_bounds() {
    let long = format!("7 stream tcp nowait root /bin/x x {}\n", "a ".repeat(200_000));
    let many: String = (1..3000).map(|port| format!("{port} stream tcp nowait root /bin/x x\n")).collect();
    let deep = "service x\n{\n".repeat(20_000);
    let open = format!("#!/bin/sh\nexec tcpserver {}\n", "`".repeat(50_001));
    for (name, content) in [("inetd.conf", &long), ("inetd.conf", &many), ("xinetd", &deep), ("run", &open)] {
        let (printed, complained, code) = imported(name, content);
        assert!(
            matches!(code, Some(0 | 78)),
            "{code:?} {}",
            complained.chars().take(300).collect::<String>()
        );
        assert!(printed.len() < 8 << 20, "{}", printed.len());
    }
    let directory = files(&[("inetd.conf", "")]);
    let path = directory.path().join("inetd.conf");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    let output = preforkd(&["import", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    for device in ["/dev/zero", "/proc/self/mem", "/dev/tty"] {
        assert_eq!(preforkd(&["import", device]).status.code(), Some(64), "{device}");
    }
}
