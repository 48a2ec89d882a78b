//! Services of public repositories, moved by hand: each is served by its own super-server and by preforkd, and the same
//! client asks both. What each is is in moved/README.md.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde::Deserialize;

use crate::support::{BINARY, root, run, say, text, write};

/// A file of a public repository, and what became of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Repository and path: where it is from.
    from: String,
    /// The super-server that it is for.
    server: String,
    /// The users that it names, if Debian has them not.
    #[serde(default)]
    users: String,
    /// The ports that it listens at, with spaces.
    ports: String,
    /// What its program needs, a script.
    #[serde(default)]
    setup: String,
    /// The same settings as in the file, written anew: for its super-server.
    before: String,
    /// What a person writes in its place: preforkd.toml.
    after: String,
    /// The client, a script; what it says is the answer.
    client: String,
    /// What makes two answers comparable, for sed -E: times, pids.
    #[serde(default)]
    normalise: String,
    /// What both answers hold, so that two failures are not taken for the same answer.
    shows: Vec<String>,
}

fn cases() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/moved")
}

/// What `install` has unpacked.
pub(super) fn packages(test: &str) -> Option<PathBuf> {
    fetched("moved/root", "tests/suite/moved/install", test)
}

/// What a script has put below target, if it was called. In CI it must have been; elsewhere the test is skipped, and says so.
pub(super) fn fetched(directory: &str, by: &str, test: &str) -> Option<PathBuf> {
    let path = Path::new(BINARY).ancestors().nth(2).unwrap().join(directory);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{test} needs what {by} brings to {}", path.display());
    say(&format!("SKIPPED: {test} needs what {by} brings to {}", path.display()));
    None
}

/// Runs a script and its arguments in namespaces of their own, with `moved/layers`.
pub(super) fn on_stage(command: &[&Path]) -> Output {
    let mut words =
        vec!["unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"];
    words.extend(["--propagation", "private"]);
    words.extend(command.iter().map(|path| path.to_str().unwrap()));
    run(&words)
}

/// Serves it before or after its move, and asks.
fn answer(case: &Case, side: &str, packages: &Path) -> String {
    let dir = tempfile::Builder::new().prefix("preforkd-test-").tempdir().unwrap();
    for (name, content) in [
        ("server", &case.server),
        ("users", &case.users),
        ("ports", &case.ports),
        ("setup", &case.setup),
        ("before", &case.before),
        ("after", &case.after),
        ("client", &case.client),
        ("normalise", &case.normalise),
    ] {
        write(&dir.path().join(name), content);
    }
    let stage = cases().join("stage");
    let output = on_stage(&[&stage, packages, Path::new(BINARY), dir.path(), Path::new(side)]);
    let (said, log) = (text(&output.stdout), text(&output.stderr));
    for shown in &case.shows {
        assert!(said.contains(shown), "{side}: no {shown:?} in\n{said}\n{log}");
    }
    said
}

/// Whether the answer is the same before and after.
fn moved(name: &str) {
    if !root(name) {
        return;
    }
    let Some(packages) = packages(name) else { return };
    let case = std::fs::read_to_string(cases().join(format!("{name}.toml"))).unwrap();
    let case: Case = toml::from_str(&case).unwrap();
    assert!(case.from.contains(": "), "where it is from: REPOSITORY: PATH");
    let (before, after) = std::thread::scope(|scope| {
        let before = scope.spawn(|| answer(&case, "before", &packages));
        let after = answer(&case, "after", &packages);
        (before.join().unwrap(), after)
    });
    assert_eq!(before, after, "{name}");
}

/// One test a case, and one that finds cases without.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        $(#[test] fn $name() { moved(stringify!($name)); })+

        #[test]
        fn every_case_is_tested_and_listed() {
            let mut files: Vec<String> = std::fs::read_dir(cases())
                .unwrap()
                .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
                .collect();
            files.sort();
            assert_eq!(files, [$(stringify!($name)),+]);
            let list = std::fs::read_to_string(cases().join("README.md")).unwrap();
            for name in files {
                let case = std::fs::read_to_string(cases().join(format!("{name}.toml"))).unwrap();
                let case: Case = toml::from_str(&case).unwrap();
                let row = list.lines().find(|line| line.starts_with(&format!("| {name} |")));
                let row = row.unwrap_or_else(|| panic!("README.md does not list {name}"));
                assert!(row.contains(&case.from), "{name} is from {}", case.from);
            }
        }
    };
}

cases!(
    bitlbee_socket,
    bitlbee_xinetd,
    ctf_xinetd,
    cvs_inetd,
    finger_inetd,
    ftp_inetd,
    ftp_xinetd,
    git_socket,
    git_xinetd,
    gopher_xinetd,
    mk_xinetd,
    nrpe_xinetd,
    oidentd_socket,
    pop3_inetd,
    rsync_inetd,
    rsync_xinetd,
    saned_socket,
    smtp_tcpserver,
    ssh_socket,
    ssh_tcpsvd,
    ssh_xinetd,
    svn_inetd,
    telnet_inetd,
    telnet_xinetd,
);
