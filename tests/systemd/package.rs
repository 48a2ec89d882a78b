//! Install, upgrade, remove and purge.

use std::process::Command;

use crate::support::client::{echo, served};
use crate::support::load::Load;
use crate::support::service::{ECHO, PORT, said};
use crate::support::{Container, say};

/// With the configuration that it comes with.
pub(crate) fn it_serves_once_it_is_installed(container: &Container) {
    assert_eq!(container.show("ActiveState"), "active");
    assert_eq!(container.show("UnitFileState"), "enabled");
    assert_eq!(container.show("FragmentPath").rsplit('/').next(), Some("preforkd.service"));
    served(PORT, 1);
    container.sure("preforkd check");
    container.sure("dpkg --verify preforkd && ! dpkg --audit preforkd | grep .");
    for page in ["8 preforkd", "5 preforkd.toml"] {
        container.sure(&format!("man --path {page}"));
    }
    let conffiles = container.sure("dpkg-query --show --showformat='${Conffiles}' preforkd");
    assert!(conffiles.contains(" /etc/preforkd/preforkd.toml "), "{conffiles}");
    for path in ["/etc/preforkd/preforkd.d", "/usr/share/bash-completion/completions/preforkd"] {
        container.sure(&format!("test -e {path}"));
    }
}

/// Puts a package with a higher version inside: the same files, with the program replaced by what `change` does.
fn next_version(container: &Container, version: &str, change: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let script = "dpkg-deb --raw-extract \"$1\" \"$2/tree\"
        sed -i \"s/^Version: .*/&+$3/\" \"$2/tree/DEBIAN/control\"
        cd \"$2/tree\"
        eval \"$4\"
        dpkg-deb --root-owner-group --build -Znone . ../next.deb >&2";
    let mut command = Command::new("sh");
    command.args(["-euc", script, "sh"]).args([container.package(), dir.path()]).args([version, change]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let inside = format!("/root/{version}.deb");
    std::fs::copy(dir.path().join("next.deb"), container.path(&inside)).unwrap();
    inside
}

fn dpkg_install(container: &Container, package: &str) -> String {
    said(&container.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install {package}")))
}

pub(crate) fn an_upgrade_of_the_package_stops_no_connection(container: &Container) {
    // The administrator's configuration must survive it, so it is another one.
    container.fresh(&ECHO.replace("workers = 2", "workers = 2\nmax_connections = 777"));
    let mut connections = served(PORT, 3);
    let pid = container.main_pid();
    let next = next_version(container, "next", "");
    let load = Load::on(PORT);
    let dpkg = dpkg_install(container, &next);
    load.wait_progress();
    let result = load.stop();
    say(&format!("     systemd {}: an upgrade of the package: {}", container.systemd(), result.counts()));
    assert!(result.hurt.is_empty(), "{}\n{dpkg}", result.counts());
    connections.iter_mut().for_each(echo);
    assert_eq!(container.main_pid(), pid, "the supervisor was restarted:\n{dpkg}");
    assert_eq!(container.status()["upgrades"], 1, "it runs the old binary:\n{dpkg}");
    assert_eq!(container.count("echo", "active"), 3);
    assert_eq!(container.count("echo", "max_connections"), 777);
}

/// A program that cannot serve does not end the one that does, and the next version is as if it had never been.
pub(crate) fn an_upgrade_to_a_broken_package_stops_nothing(container: &Container) {
    container.fresh(ECHO);
    let mut connections = served(PORT, 3);
    let before = (container.main_pid(), container.workers());
    let broken = next_version(
        container,
        "next.1",
        "cp /bin/false usr/sbin/preforkd; sed -i /preforkd$/d DEBIAN/md5sums",
    );
    let dpkg = dpkg_install(container, &broken);
    // Nobody can be asked for the status but systemd.
    assert_eq!(container.main_pid(), before.0, "{dpkg}");
    connections.iter_mut().for_each(echo);
    served(PORT, 1);

    let next = next_version(container, "next.2", "");
    let dpkg = dpkg_install(container, &next);
    assert_eq!(container.main_pid(), before.0, "{dpkg}");
    assert_eq!(container.status()["upgrades"], 1, "{dpkg}");
    assert_ne!(container.workers(), before.1);
    connections.iter_mut().for_each(echo);
    container.sure("! dpkg --audit preforkd | grep .");
}

pub(crate) fn remove_and_purge_leave_nothing(container: &Container) {
    container.fresh(ECHO);
    container.clean();
    container.sure(
        "rm -r /run/systemd/system/preforkd.service.d; systemctl daemon-reload; systemctl start preforkd",
    );
    container.sure("dpkg --remove preforkd 2>&1");
    assert_eq!(
        container.run("pgrep preforkd || ls /proc/[0-9]*/exe -l | grep preforkd").status.code(),
        Some(1)
    );
    container.sure(
        "test ! -e /run/preforkd && test ! -e /usr/sbin/preforkd && test -e /etc/preforkd/preforkd.toml",
    );
    container.sure("dpkg --purge preforkd 2>&1");
    let before = container.files_before();
    let mut left = container.all_files();
    left.retain(|file| before.binary_search(file).is_err() && !made_by_others(file));
    assert!(left.is_empty(), "left behind: {left:#?}");
    let units = container.run("systemctl list-units --all --plain --no-legend 'preforkd*'; systemctl list-unit-files --no-legend 'preforkd*'");
    assert!(units.stdout.is_empty(), "{units:?}");
}

/// Files that the system makes, sooner or later, or that the tests made.
fn made_by_others(file: &str) -> bool {
    ["/var/lib/systemd/", "/etc/systemd/journald.conf.d", "/run/systemd/system", "/etc/.pwd.lock", "/var/lib/private"]
        .iter()
        .any(|part| file.starts_with(part) && !file.contains("preforkd"))
        // Backups that usermod and systemd-sysusers make.
        || (file.starts_with("/etc/") && file.ends_with('-'))
}
