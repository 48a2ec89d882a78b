//! What systemd itself thinks of the units.

use crate::support::service::said;
use crate::support::{Container, say};

/// Where the package has its drop-ins; the administrator copies one to /etc/systemd/system/preforkd.service.d.
const DROP_INS: &str = "/usr/share/doc/preforkd/drop-ins";

pub(crate) fn verify_prints_nothing(container: &Container) {
    let output = container.run("systemd-analyze verify preforkd.service preforkd.socket");
    assert_eq!(said(&output), "");
    assert!(output.status.success());
}

/// Exposure in tenths, as `--threshold` has it.
fn exposure(container: &Container, profile: &str) -> u32 {
    let table = container.sure("systemd-analyze security --no-pager preforkd.service");
    let line = table
        .lines()
        .find(|line| line.contains("Overall exposure level"))
        .unwrap_or_else(|| panic!("{table}"));
    let number = line.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let profile = profile.strip_suffix(".conf").unwrap_or("as shipped");
    say(&format!("     systemd {}: exposure {number} {profile}", container.systemd()));
    number.replace('.', "").parse().unwrap()
}

pub(crate) fn the_service_is_as_safe_as_promised(container: &Container) {
    container.clean();
    let exposure = exposure(container, "");
    assert!(exposure <= 11, "exposure {exposure}/100");
}

pub(crate) fn the_profiles_are_as_safe_as_promised(container: &Container) {
    container.clean();
    let names = container.sure(&format!("ls {DROP_INS}"));
    for (drop_in, most) in [("socket-activated.conf", 3), ("programs.conf", 23)] {
        let to = "/run/systemd/system/preforkd.service.d/50-profile.conf";
        let from = format!("{DROP_INS}/{drop_in}");
        let copied =
            container.run(&format!("mkdir -p $(dirname {to}); cp {from} {to} && systemctl daemon-reload"));
        assert!(copied.status.success(), "no {drop_in}: {names}");
        let exposure = exposure(container, drop_in);
        let verify = said(&container.run("systemd-analyze verify preforkd.service"));
        container.sure(&format!("rm {to}; systemctl daemon-reload"));
        assert!(exposure <= most, "{drop_in}: exposure {exposure}/100");
        assert_eq!(verify, "");
    }
}
