//! Real programs from Debian, unchanged, as people run them under inetd.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Preforkd, address, eventually, run, sure, text, write};

const CLONES: usize = 50;

/// A repository with some history, for `git daemon` to export.
fn repository(path: &Path) {
    let path = path.to_str().unwrap();
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"];
        sure(&[&["git", "-C", path], &identity[..], arguments].concat());
    };
    sure(&["git", "init", "--quiet", path]);
    for commit in 0..20 {
        for file in 0..10 {
            let content = format!("file {file} in commit {commit}\n").repeat(50 * (file + 1));
            std::fs::write(format!("{path}/file{file}"), content).unwrap();
        }
        git(&["add", "."]);
        git(&["commit", "--quiet", "-m", &format!("Commit {commit}")]);
    }
}

#[test]
fn fifty_git_clones_with_reloads_in_the_middle() {
    let address = address::fresh();
    let daemon = format!("{}/git-daemon", sure(&["git", "--exec-path"]).trim());
    let config = |nice: usize| {
        format!(
            "[service.git]\nlisten = [\"{address}\"]\nworkers = 2\nnice = {nice}\n\
             exec = [\"{daemon}\", \"--inetd\", \"--export-all\", \"--base-path=DIR\", \"DIR\"]\n\
             environment = {{ GIT_CONFIG_COUNT = \"1\", GIT_CONFIG_KEY_0 = \"safe.directory\", GIT_CONFIG_VALUE_0 = \"*\" }}\n"
        )
    };
    let server = Preforkd::run(&config(0));
    repository(&server.dir().join("repository"));
    let server = server.start();
    let workers = server.workers();

    let url = format!("git://{address}/repository");
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..CLONES {
            let target = server.dir().join(format!("clone{number}"));
            let (url, done) = (&url, &done);
            scope.spawn(move || {
                let target = target.to_str().unwrap();
                sure(&["git", "clone", "--quiet", url, target]);
                sure(&["git", "-C", target, "fsck", "--strict", "--no-progress"]);
                assert_eq!(sure(&["git", "-C", target, "rev-list", "--count", "HEAD"]), "20\n");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        for reload in 1..=3 {
            // In the middle: some are done, others are not.
            let enough =
                || done.load(Ordering::Relaxed) >= reload * CLONES / 5 || server.count("accepted") == 0;
            eventually("some clones", || enough() && server.count("accepted") > 0);
            server.configure(&config(reload));
            server.reload_ok();
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), CLONES);
    assert!(server.workers().iter().all(|worker| !workers.contains(worker)), "the reloads changed something");
    eventually("none is left", || server.count("active") == 0);
}

#[test]
fn rsync_as_a_daemon_on_stdin() {
    let address = address::fresh();
    let server = Preforkd::run(&format!(
        "[service.rsync]\nlisten = [\"{address}\"]\nexec = [\"rsync\", \"--daemon\", \"--config=DIR/rsyncd.conf\"]\n"
    ));
    let dir = server.dir().to_owned();
    // Only root can, and must, say who rsync becomes.
    let who = if nix::unistd::geteuid().is_root() { "uid = 0\ngid = 0\n" } else { "" };
    let dir_name = dir.display();
    write(
        &dir.join("rsyncd.conf"),
        &format!(
            "use chroot = no\n{who}log file = {dir_name}/rsync.log\n\
             [files]\npath = {dir_name}/files\nread only = no\n"
        ),
    );
    std::fs::create_dir_all(dir.join("files/sub")).unwrap();
    for number in 0..50_usize {
        write(&dir.join(format!("files/sub/{number}")), &format!("{number}\n").repeat(number * 1000));
    }
    let server = server.start();

    let url = format!("rsync://{address}/files/");
    let path = |name: &str| dir.join(name).display().to_string();
    sure(&["rsync", "-a", &url, &path("down")]);
    sure(&["diff", "-r", &path("files"), &path("down")]);
    write(&dir.join("down/new"), "a file that goes up");
    sure(&["rsync", "-a", &format!("{}/", path("down")), &url]);
    sure(&["diff", "-r", &path("files"), &path("down")]);

    let output = run(&["rsync", &format!("rsync://{address}/nonesuch/")]);
    assert_ne!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("nonesuch"), "its message comes through: {}", text(&output.stderr));
    // rsync finds the peer by getpeername(2) on its stdin.
    let log = std::fs::read_to_string(dir.join("rsync.log")).unwrap();
    assert!(log.contains("127."), "{log}");
    drop(server);
}

#[test]
fn busybox_httpd_as_inetd_runs_it() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["--", "busybox", "httpd", "-i", "-h", "DIR"])
        .script("index.html", "<p>It works.</p>\n")
        .start();
    let address = server.address();
    let said = text(&crate::support::client::exchange(address, b"GET /index.html HTTP/1.0\r\n\r\n"));
    assert!(
        said.starts_with("HTTP/1.") && said.contains(" 200 ") && said.ends_with("<p>It works.</p>\n"),
        "{said}"
    );
}
