//! The command line: what it says and how it exits.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{self, BINARY, Preforkd, address, preforkd, text, write};

const USAGE: i32 = 64;
const UNREACHABLE: i32 = 69;
const CONFIG: i32 = 78;

/// Runs preforkd, which must exit with this code, print nothing, and say all of this on stderr.
#[track_caller]
fn fails(arguments: &[&str], code: i32, says: &[&str]) {
    let output = preforkd(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    for part in says {
        assert!(stderr.contains(part), "{arguments:?}: no {part:?} in:\n{stderr}");
    }
}

#[test]
fn a_wrong_command_line_exits_64_with_the_usage() {
    fails(&[], USAGE, &["Usage: preforkd"]);
    fails(&["sevre"], USAGE, &["sevre", "Usage: preforkd"]);
    fails(&["run", "--cofnig", "x"], USAGE, &["--cofnig", "Usage: preforkd run"]);
    fails(&["serve"], USAGE, &["Usage: preforkd serve"]);
    fails(&["serve", "127.0.0.1:0"], USAGE, &["Usage: preforkd serve"]);
    fails(&["serve", "--workers", "many", "127.0.0.1:0", "echo"], USAGE, &["many"]);
    fails(&["serve", "127.0.0.1:http", "echo"], USAGE, &["127.0.0.1:http", "0 to 65535"]);
    fails(&["check", "--explain", "localhost"], USAGE, &["localhost", "no IP address"]);
    fails(&["check", "--explain", "10.0.0.0/8"], USAGE, &["10.0.0.0/8", "not a prefix"]);
    fails(&["check", "--explain"], USAGE, &["--explain"]);
    fails(&["status", "now"], USAGE, &["now", "Usage: preforkd status"]);
}

#[test]
fn help_and_version_go_to_stdout() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["run", "--help"]] {
        let output = preforkd(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(text(&output.stdout).contains("Usage: preforkd"), "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
    assert_eq!(text(&preforkd(&["--version"]).stdout), format!("preforkd {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn without_a_service_its_commands_exit_69_and_name_the_socket() {
    for command in ["status", "reload"] {
        fails(
            &[command, "--control", "/nonexistent/control.sock"],
            UNREACHABLE,
            &["/nonexistent/control.sock"],
        );
    }
}

#[test]
fn a_control_socket_that_nobody_listens_on_is_a_service_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let path = path.to_str().unwrap();
    fails(&["status", "--json", "--control", path], UNREACHABLE, &[path]);
}

#[test]
fn a_missing_configuration_exits_78_and_is_named() {
    for command in ["run", "check"] {
        fails(&[command, "--config", "/nonexistent/preforkd.toml"], CONFIG, &["/nonexistent/preforkd.toml"]);
    }
}

#[test]
fn all_errors_of_a_configuration_are_said_at_once_with_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    write(
        &path,
        r#"[service.one]
listen = ["127.0.0.1:http"]
handler = "ehco"
spares = 3
[service.two]
listen = ["127.0.0.1:7007"]
exec = ["/nonexistent/program"]
user = "nobody-of-this-name"
workers = 0
"#,
    );
    let file = path.to_str().unwrap();
    for command in ["check", "run"] {
        fails(
            &[command, "--config", file],
            CONFIG,
            &[
                &format!("{file}:2:11"),
                "127.0.0.1:http",
                &format!("{file}:3:11"),
                "ehco",
                "echo",
                &format!("{file}:4:1"),
                "spares",
                "spare",
                &format!("{file}:7:"),
                "/nonexistent/program",
                &format!("{file}:8:8"),
                "nobody-of-this-name",
                &format!("{file}:9:11"),
            ],
        );
    }
}

#[test]
fn text_that_is_not_toml_is_an_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    write(&path, "[service.one]\nlisten = [\n");
    fails(&["check", "--config", path.to_str().unwrap()], CONFIG, &[&format!("{}:", path.display())]);
}

#[test]
fn a_drop_in_is_checked_and_named_too() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("preforkd.toml");
    write(&main, "[service.one]\nlisten = [\"127.0.0.1:7007\"]\nhandler = \"echo\"\n");
    std::fs::create_dir(dir.path().join("preforkd.d")).unwrap();
    let extra = dir.path().join("preforkd.d/extra.toml");
    write(&extra, "[service.two]\nlisten = [\"127.0.0.1:7008\"]\nhandler = \"nonesuch\"\n");
    let config = main.to_str().unwrap();
    fails(&["check", "--config", config], CONFIG, &[&format!("{}:3:11", extra.display()), "nonesuch"]);
}

#[test]
fn check_explains_what_meets_an_address_at_every_service() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    write(
        &path,
        "[service.one]\nlisten = [\"127.0.0.1:7007\"]\nhandler = \"echo\"\nmax_connections = 77\n\
         [service.two]\nlisten = [\"unix:/run/two.sock\"]\nhandler = \"echo\"\n",
    );
    let config = path.to_str().unwrap();
    for (address, shown) in
        [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:DB8::7", "2001:db8::7")]
    {
        let output = preforkd(&["check", "--config", config, "--explain", address]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let lines = format!(
            "one: {shown} is let in, as everybody is\n  max_connections = 77: beyond that it waits in the backlog \
             (overload = \"queue\")\ntwo: listens on Unix sockets only, where nobody has an address\n"
        );
        assert_eq!(text(&output.stdout), lines);
    }
    write(&path, "[service.one]\nlisten = 1\n");
    fails(&["check", "--config", config, "--explain", "::1"], CONFIG, &["preforkd.toml:2:10"]);
}

#[test]
fn every_configuration_that_is_shipped_passes_the_check() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut checked = 0;
    for path in files(&dir) {
        assert_eq!(path.extension().unwrap(), "toml", "{path:?} is no configuration");
        let output = preforkd(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{path:?}:\n{}", text(&output.stderr));
        checked += 1;
    }
    assert!(checked > 1, "nothing in {dir:?}");
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn port_0_is_a_port_that_is_printed() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"]).start();
    let address = server.address();
    assert_ne!(address.port(), 0);
    assert_eq!(support::client::exchange(address, b"x"), b"x");
    assert_eq!(server.stdout.count(|line| line.starts_with("listening on ")), 1);
}

#[test]
fn an_address_in_use_is_named_and_so_is_who_has_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = preforkd(&["serve", &address, "echo"]);
    let stderr = text(&output.stderr);
    assert!(matches!(output.status.code(), Some(71 | 78)), "{:?} {stderr}", output.status);
    assert!(stderr.contains(&address), "no address in: {stderr}");
    let holder = std::process::id().to_string();
    assert!(
        stderr.split(|c: char| !c.is_ascii_digit()).any(|word| word == holder),
        "no pid {holder} in: {stderr}"
    );
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert!(stderr.contains(name.trim()), "no name {name} in: {stderr}");
}

#[test]
fn an_address_in_use_stops_run_too() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = format!("[service.echo]\nlisten = [\"{address}\"]\nhandler = \"echo\"\n");
    let server = Preforkd::run(&config).start_unready();
    let said = server.log.wait("the address", |line| line.contains(&address.to_string()));
    assert!(said.contains("use"), "{said}");
    assert_ne!(server.ending(), "0");
    server.wait_empty();
    assert_eq!(server.notify.count(|line| line == "READY=1"), 0);
}

#[test]
fn a_closed_stdout_is_no_panic() {
    let output = support::run(&["sh", "-c", "exec >&-; exec \"$@\"", "sh", support::BINARY, "--help"]);
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
}

#[test]
fn what_is_doubtful_is_one_line_of_the_log_and_serve_is_quiet() {
    let port = address::port();
    let config =
        format!("[service.x]\nlisten = [\"0.0.0.0:{port}\"]\nhandler = \"echo\"\nallow = [\"0.0.0.0\"]\n");
    let server = Preforkd::run(&config).start();
    let both = ["no limit per source and no deadline", "stands for itself here"];
    let is_whole = |line: &str, what: &str| line.contains(what) && line.contains("; ");
    both.iter().for_each(|what| {
        server.log.wait(what, |line| is_whole(line, what));
    });
    let mark = server.log.mark();
    server.reload_ok();
    both.iter().for_each(|what| {
        server.log.wait_after(mark, what, |line| is_whole(line, what));
    });
    let serve = Preforkd::serve(&[], "0.0.0.0:0", &["echo"]).start();
    assert_eq!(serve.log.count(|line| line.contains("warning")), 0);
}

/// What is cut off where the disk was full must not look like the whole; who reads no further has what he wanted.
#[test]
fn what_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    write(&path, "[service.x]\nlisten = \"127.0.0.1:7\"\nhandler = \"echo\"\n");
    let inetd = dir.path().join("inetd.conf");
    write(&inetd, "daytime stream tcp nowait root internal\n");
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"]).start();
    let own = |command: &'static [&'static str]| [command, &["--control", server.control()]].concat();
    for arguments in [
        vec!["--help"],
        vec!["serve", "--help"],
        vec!["interface"],
        vec!["check", "--config", path.to_str().unwrap()],
        vec!["import", inetd.to_str().unwrap()],
        own(&["status"]),
        own(&["status", "--json"]),
        own(&["connections"]),
        own(&["bans"]),
        own(&["metrics"]),
        own(&["pause", "echo"]),
    ] {
        let run = |stdout: Stdio| {
            Command::new(BINARY).args(&arguments).stdout(stdout).stderr(Stdio::piped()).output().unwrap()
        };
        let full = run(std::fs::File::options().write(true).open("/dev/full").unwrap().into());
        assert_eq!(full.status.code(), Some(71), "{arguments:?}");
        assert!(
            text(&full.stderr).contains("cannot write to stdout: No space left on device"),
            "{arguments:?}"
        );
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(writer.into()).status.code(), Some(0), "{arguments:?}");
    }
}

/// A parent that ignores SIGCHLD, as an exec leaves it: nobody would be told how getent has ended.
#[test]
fn a_parent_that_ignores_its_children_is_no_fault_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    write(&path, "[service.x]\nlisten = \"127.0.0.1:7\"\nexec = [\"cat\"]\nuser = \"nobody\"\n");
    let check = format!("exec {BINARY} check --config {}", path.display());
    let output = Command::new("perl")
        .args(["-e", "$SIG{CHLD} = 'IGNORE'; exec 'sh', '-c', @ARGV", &check])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}
