//! Servers of Debian's that are started ahead: real clients, who notice nothing.

use std::net::SocketAddr;
use std::path::Path;

use super::{config, is_warm};
use crate::support::{Preforkd, Running, address, eventually, sure, write};

/// Calls with both kinds of warm programs, after each of which all are warm again. `at` is where they wait.
fn each_kind(exec: &str, keys: &str, prepare: impl Fn(&Path), at: &str, call: impl Fn(SocketAddr, &Path)) {
    for kind in ["start", "spare"] {
        let address = address::fresh();
        let config = config(address, exec, keys).replace("\"start\"", &format!("\"{kind}\""));
        let server = Preforkd::run(&config);
        prepare(server.dir());
        let server = server.start();
        for _ in 0..3 {
            is_warm(&server, 2);
            call(address, server.dir());
        }
        eventually("their end", || server.count("active") == 0);
        let (served, accepted) = (server.count("served_warm"), server.count("accepted"));
        assert!(served >= 3 && served == accepted, "{kind}: {served} {accepted}: {:?}", server.log.all());
        if kind == "spare" {
            waits_at(&server, at);
        }
    }
}

fn waits_at(server: &Running, at: &str) {
    let said = server.log.wait("where", |line| line.contains("is warm at the system call"));
    assert!(said.contains(&format!(" at the system call {at},")), "{said}");
}

#[test]
fn git_daemon() {
    let daemon = format!("{}/git-daemon", sure(&["git", "--exec-path"]).trim());
    let repository = |dir: &Path| {
        let path = dir.join("repository");
        let path = path.to_str().unwrap();
        let git = ["git", "-C", path, "-c", "user.name=Test", "-c", "user.email=test@example.org"];
        sure(&["git", "init", "--quiet", path]);
        write(&dir.join("repository/file"), "content\n");
        sure(&[&git[..], &["add", "."]].concat());
        sure(&[&git[..], &["commit", "--quiet", "-m", "First"]].concat());
    };
    let keys = "environment = { GIT_CONFIG_COUNT = \"1\", GIT_CONFIG_KEY_0 = \"safe.directory\", GIT_CONFIG_VALUE_0 = \"*\" }";
    let exec = format!("[\"{daemon}\", \"--inetd\", \"--export-all\", \"--base-path=DIR\", \"DIR\"]");
    each_kind(&exec, keys, repository, "setsockopt", |address, dir| {
        let target = dir.join("clone");
        let path = target.to_str().unwrap();
        sure(&["git", "clone", "--quiet", &format!("git://{address}/repository"), path]);
        sure(&["git", "-C", path, "fsck", "--strict", "--no-progress"]);
        std::fs::remove_dir_all(&target).unwrap();
    });
}

#[test]
fn rsync() {
    // Only root can, and must, say who rsync becomes.
    let who = if nix::unistd::geteuid().is_root() { "uid = 0\ngid = 0\n" } else { "" };
    let files = |dir: &Path| {
        let shown = dir.display();
        let text = format!(
            "use chroot = no\nreverse lookup = no\n{who}[files]\npath = {shown}/files\nread only = no\n"
        );
        write(&dir.join("rsyncd.conf"), &text);
        std::fs::create_dir_all(dir.join("files/sub")).unwrap();
        for number in 0..20_usize {
            write(&dir.join(format!("files/sub/{number}")), &format!("{number}\n").repeat(number * 1000));
        }
    };
    let exec = "[\"/usr/bin/rsync\", \"--daemon\", \"--config=DIR/rsyncd.conf\"]";
    each_kind(exec, "", files, "getpeername", |address, dir| {
        let path = |name: &str| dir.join(name).display().to_string();
        let url = format!("rsync://{address}/files/");
        sure(&["rsync", "-a", &url, &path("down")]);
        sure(&["diff", "-r", &path("files"), &path("down")]);
        std::fs::remove_dir_all(dir.join("down")).unwrap();
    });
}
