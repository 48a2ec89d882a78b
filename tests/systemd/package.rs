//! Install, upgrade, remove and purge.

use std::process::Command;

use crate::support::client::{echo, served};
use crate::support::load::Load;
use crate::support::service::{ECHO, PORT};
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
    container.sure("test -d /etc/preforkd/preforkd.d");
}

/// The same files with a higher version; `dpkg` then does all that it does on an upgrade.
fn next_version(container: &Container) -> std::path::PathBuf {
    let dir = tempfile::tempdir().unwrap();
    let script = "dpkg-deb --raw-extract \"$1\" \"$2/tree\"
        sed -i 's/^Version: .*/&+next/' \"$2/tree/DEBIAN/control\"
        dpkg-deb --root-owner-group --build -Znone \"$2/tree\" \"$2/preforkd_next.deb\" >&2";
    let package = container.package();
    let output =
        Command::new("sh").args(["-euc", script, "sh"]).args([package, dir.path()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The container's own copy outlives the directory.
    let inside = container.path("/root/next.deb");
    std::fs::copy(dir.path().join("preforkd_next.deb"), &inside).unwrap();
    inside
}

pub(crate) fn an_upgrade_of_the_package_stops_no_connection(container: &Container) {
    // The administrator's configuration must survive it, so it is another one.
    container.fresh(&ECHO.replace("workers = 2", "workers = 2\nmax_connections = 777"));
    let mut connections = served(PORT, 3);
    let pid = container.main_pid();
    next_version(container);
    let load = Load::on(PORT);
    let dpkg = container.sure("DEBIAN_FRONTEND=noninteractive dpkg --install /root/next.deb 2>&1");
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
