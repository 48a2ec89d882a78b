//! The control socket as systemd's own varlink client sees it.

use serde_json::Value;

use crate::support::service::{ECHO, said};
use crate::support::{Container, say};

const SOCKET: &str = "unix:/run/preforkd/control.sock";

/// Whether this release has varlinkctl(1), of systemd 255.
fn has_varlinkctl(container: &Container) -> bool {
    if container.systemd() >= 255 {
        return true;
    }
    say(&format!("     systemd {} has no varlinkctl", container.systemd()));
    false
}

pub(crate) fn varlinkctl_finds_and_calls_it(container: &Container) {
    if !has_varlinkctl(container) {
        return;
    }
    container.fresh(ECHO);
    let info = container.sure(&format!("varlinkctl info {SOCKET}"));
    assert!(info.contains("Product: preforkd") && info.contains("org.preforkd.Control"), "{info}");
    let interfaces = container.sure(&format!("varlinkctl list-interfaces {SOCKET}"));
    assert_eq!(interfaces, "org.preforkd.Control\norg.varlink.service\n");
    let methods = container.sure(&format!("varlinkctl list-methods {SOCKET} org.preforkd.Control"));
    assert!(methods.lines().any(|line| line == "org.preforkd.Control.GetStatus"), "{methods}");
    assert_eq!(methods.lines().count(), 12, "{methods}");

    // It reads every interface in full, and finds nothing wrong with them.
    for interface in ["org.preforkd.Control", "org.varlink.service"] {
        let output = container.run(&format!("varlinkctl introspect {SOCKET} {interface}"));
        assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
    }
    container.sure("preforkd interface >/tmp/x.varlink && varlinkctl validate-idl /tmp/x.varlink");

    let call = |method: &str, parameters: &str| {
        format!("varlinkctl call --json=short {SOCKET} org.preforkd.Control.{method} '{parameters}'")
    };
    let status: Value = serde_json::from_str(&container.sure(&call("GetStatus", "{}"))).unwrap();
    assert_eq!(status["pid"].as_u64(), Some(container.main_pid()));
    assert_eq!(status["services"][0]["name"], "echo", "{status}");
    let more = container.sure(&call("ListConnections", "{}").replace("call", "call --more"));
    // A sequence, RFC 7464.
    assert_eq!(more.trim_matches(['\u{1e}', '\n']), "{\"connections\":[]}");
    for (method, parameters) in [
        ("Pause", "{\"service\": \"echo\"}"),
        ("Resume", "{}"),
        ("Ban", "{\"source\": \"192.0.2.0/24\", \"for_ms\": 60000}"),
        ("Unban", "{\"source\": \"192.0.2.0/24\"}"),
        ("Reload", "{}"),
        ("Upgrade", "{}"),
    ] {
        let answer: Value = serde_json::from_str(&container.sure(&call(method, parameters))).unwrap();
        assert!(answer["text"].is_string(), "{method}: {answer}");
    }
    let refused = container.run(&call("Resume", "{\"service\": \"x\"}"));
    assert!(!refused.status.success() && said(&refused).contains("NoSuchService"), "{}", said(&refused));
    let unknown = container.run(&call("Nothing", "{}"));
    assert!(!unknown.status.success(), "{}", said(&unknown));
    container.clean();
}

/// With the drop-in that the manual names; without it, the configuration is refused with its name.
pub(crate) fn groups_look_and_act(container: &Container) {
    container.clean();
    container.sure(
        "for name in looks acts; do getent group $name >/dev/null || groupadd $name; \
         id -u $name >/dev/null 2>&1 || useradd --no-create-home -g $name $name; done",
    );
    let access = "[supervisor]\ncontrol_access = { look = \"looks\", act = \"acts\" }\n";
    let config = ECHO.replace("[supervisor]\n", access);
    container.configure(&config);
    let output = container.run("systemctl start preforkd");
    assert!(!output.status.success());
    let messages = container.messages();
    assert!(messages.contains("PrivateUsers=no"), "{messages}");

    for profiles in [&["programs"][..], &["root"], &["programs", "root"]] {
        container.clean();
        profiles.iter().for_each(|profile| container.profile(profile));
        container.configure(&config);
        container.sure("systemctl start preforkd");
        let by = |user: &str, command: &str| {
            container.run(&format!("setpriv --reuid {user} --regid {user} --clear-groups {command}"))
        };
        for (user, command, code) in [
            ("looks", "preforkd status", 0),
            ("acts", "preforkd status", 0),
            ("nobody", "preforkd status", 77),
            ("looks", "preforkd reload", 77),
            ("nobody", "preforkd reload", 77),
            ("acts", "preforkd reload", 0),
        ] {
            let command = command.to_owned();
            let output = match user {
                "nobody" => {
                    container.run(&format!("setpriv --reuid nobody --regid nogroup --clear-groups {command}"))
                }
                user => by(user, &command),
            };
            assert_eq!(
                output.status.code(),
                Some(code),
                "{profiles:?}: {user}: {command}: {}",
                said(&output)
            );
            assert!(code == 0 || said(&output).contains("acts"), "{}", said(&output));
        }
        // Who was killed leaves a socket behind that the next one must be able to replace.
        let pid = container.main_pid();
        container.kill("KILL", pid);
        container.wait_replaced(pid);
        assert_eq!(by("acts", "preforkd reload").status.code(), Some(0));
    }
    container.clean();
}
