//! What systemd itself thinks of the units.

use crate::support::service::said;
use crate::support::{Container, say};

pub(crate) fn verify_prints_nothing(container: &Container) {
    let output =
        container.run("systemd-analyze verify preforkd.service preforkd.socket preforkd-metrics.service");
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
    say(&format!("     systemd {}: exposure {number} {profile}", container.systemd()));
    number.replace('.', "").parse().unwrap()
}

pub(crate) fn the_service_is_as_safe_as_promised(container: &Container) {
    container.clean();
    let exposure = exposure(container, "as shipped");
    assert!(exposure <= 11, "exposure {exposure}/100");
}

pub(crate) fn the_profiles_are_as_safe_as_promised(container: &Container) {
    for (drop_in, most) in
        [("socket-activated", 3), ("programs", 23), ("sandbox-namespaces", 20), ("cgroups", 20)]
    {
        container.clean();
        container.profile(drop_in);
        let exposure = exposure(container, drop_in);
        let verify = said(&container.run("systemd-analyze verify preforkd.service"));
        container.clean();
        assert!(exposure <= most, "{drop_in}: exposure {exposure}/100");
        assert_eq!(verify, "");
    }
}
