//! What the tests share: starting preforkd and knowing everything that it started, clients, and looking into /proc.

pub(crate) mod address;
pub(crate) mod browser;
pub(crate) mod captive;
pub(crate) mod cgroup;
pub(crate) mod client;
pub(crate) mod exporter;
pub(crate) mod fence;
pub(crate) mod haproxy;
pub(crate) mod lines;
pub(crate) mod local;
pub(crate) mod page;
pub(crate) mod proc;
pub(crate) mod running;
pub(crate) mod start;
pub(crate) mod varlink;
pub(crate) mod zombies;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub(crate) use running::Running;
pub(crate) use start::Preforkd;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_preforkd");

/// How long anything may take before the test fails; nothing ever takes this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long a test looks for something that must not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);

/// Waits for a state of which nobody tells: it looks every few milliseconds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command to its end; `timeout` ends it if it hangs.
pub(crate) fn run(command: &[&str]) -> Output {
    Command::new("timeout")
        .arg(PATIENCE.as_secs().to_string())
        .args(command)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM")
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that must succeed, and returns its stdout.
pub(crate) fn sure(command: &[&str]) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// Sets a limit of a process of preforkd's. Where root may not change those of others, it is done as the user of the process,
/// unless that has several.
pub(crate) fn limit(pid: i32, limit: &str) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let id = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let (uid, gid) = (format!("--reuid={}", id("Uid:")), format!("--regid={}", id("Gid:")));
    let own = ["setpriv", &uid, &gid, "--clear-groups"];
    let command = ["prlimit", "--pid", &pid.to_string(), limit];
    match nix::unistd::geteuid().is_root() {
        true => sure(&[&own[..], &command].concat()),
        false => sure(&command),
    };
}

/// The flags with which a service is served by who runs preforkd, so that its processes can be limited from outside.
pub(crate) fn by_itself() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() { &["--user", "root"] } else { &[] }
}

/// Runs `preforkd` with these arguments to its end.
pub(crate) fn preforkd(arguments: &[&str]) -> Output {
    run(&[&[BINARY], arguments].concat())
}

/// Bytes of which only tests' own ASCII is looked for.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Writes a file and makes it readable for everybody; scripts (`#!`) become executable.
pub(crate) fn write(path: &Path, content: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, content).unwrap();
    let mode = if content.starts_with("#!") { 0o755 } else { 0o644 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The id of a user without a name. In each run it is another: several may be under way on one machine, and the kernel counts
/// and signals all that a user has.
pub(crate) fn user(number: u32) -> u32 {
    20_000 + std::process::id() % 100 * 400 + number % 400
}

/// Whether this test can do what only root can. In CI it must; elsewhere the test is skipped, and says so.
pub(crate) fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none(), "{test} needs root, and CI must have it");
        say(&format!("SKIPPED: {test} needs root"));
    }
    root
}

/// Whether Landlock of this kernel is of version 6: a domain keeps signals in.
pub(crate) fn kernel_has_scopes() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 12)
}

/// Whether this file of Debian's is there. In CI it must be; elsewhere the test is skipped, and says so.
pub(crate) fn is_there(test: &str, file: &str) -> bool {
    let there = Path::new(file).exists();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "{test} needs {file}, and CI must have it");
        say(&format!("SKIPPED: {test} needs {file}"));
    }
    there
}

/// Says that a test cannot be run here, and where it can.
pub(crate) fn skip(why: &str) {
    say(&format!("SKIPPED: {why}"));
}

/// Says something that is worth seeing also when the test passes: past what cargo captures.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("\n{line}\n").as_bytes());
}
