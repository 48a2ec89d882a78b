//! One service that cannot be served does not keep the others down, and comes up when it can be.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::life::echo_service;
use crate::support::client::{connect, connect_unix, exchange, exchange_unix, finish};
use crate::support::{
    BINARY, Preforkd, Running, address, eventually, preforkd, root, run, sure, text, write,
};

/// Documentation addresses, RFC 5737 and RFC 3849: no machine has them.
const NOWHERE: &str = "192.0.2.77:7102";
const NOWHERE_V6: &str = "[2001:db8::77]:7102";

fn echo(name: &str, listen: &str) -> String {
    format!("[service.{name}]\nlisten = {listen}\nhandler = \"echo\"\nworkers = 1\n")
}

fn service(server: &Running, name: &str) -> Value {
    let status = server.status();
    let services = status["services"].as_array().unwrap();
    services
        .iter()
        .find(|service| service["name"] == name)
        .unwrap_or_else(|| panic!("{name}: {status}"))
        .clone()
}

fn down(server: &Running, name: &str) -> Option<String> {
    service(server, name)["down"].as_str().map(str::to_owned)
}

fn unreachable(server: &Running, name: &str) -> String {
    service(server, name)["unreachable"].to_string()
}

/// Runs a command where the server has its network.
fn there(server: &Running, command: &[&str]) -> String {
    let pid = server.pid().to_string();
    sure(&[&["nsenter", "-t", &pid, "-n"], command].concat())
}

/// In a network of its own, which has nothing but the loopback.
fn alone(config: &str) -> Preforkd {
    Preforkd::run(config).under(&["unshare", "--net"]).after("ip link set lo up")
}

#[test]
fn the_others_come_up_without_an_address_and_it_follows_when_it_is_there() {
    if !root("a network of its own") {
        return;
    }
    let fine = address::fresh();
    let config = [
        echo("fine", &format!("\"{fine}\"")),
        echo("late", &format!("\"{NOWHERE}\"")),
        echo("later", &format!("\"{NOWHERE_V6}\"")),
    ];
    let server = alone(&config.concat()).start();
    assert!(down(&server, "fine").is_none());
    for (name, address) in [("late", NOWHERE), ("later", NOWHERE_V6)] {
        let why = down(&server, name).unwrap();
        assert!(why.contains(address) && why.contains("no such address"), "{why}");
        let is_it = |line: &str| line.contains(name) && line.contains(address);
        server.log.wait("the log says so", is_it);
        server.notify.wait("systemd is told", |line| line.starts_with("STATUS=") && is_it(line));
        let shown = text(&preforkd(&["status", "--control", server.control()]).stdout);
        assert!(shown.lines().any(is_it), "{shown}");
    }
    assert_eq!(server.notify.count(|line| line == "READY=1"), 1);
    // What was down before does not stand in the way of a reload.
    let said = server.reload();
    assert!(said.status.success(), "{}", text(&said.stderr));
    assert!(text(&said.stdout).contains(NOWHERE), "{}", text(&said.stdout));
    there(&server, &["ip", "addr", "add", "192.0.2.77/24", "dev", "lo"]);
    eventually("it is served", || down(&server, "late").is_none());
    there(&server, &["ip", "addr", "add", "2001:db8::77/64", "dev", "lo", "nodad"]);
    eventually("it is served, too", || down(&server, "later").is_none());
    assert_eq!(there(&server, &["sh", "-c", "echo x | nc -N 192.0.2.77 7102"]), "x\n");
    assert_eq!(there(&server, &["sh", "-c", "echo x | nc -N 2001:db8::77 7102"]), "x\n");
    server.notify.wait("systemd hears that all is well", |line| {
        line.starts_with("STATUS=3 services") && !line.contains("down")
    });
}

#[test]
fn a_service_is_served_at_the_addresses_that_there_are() {
    if !root("a network of its own") {
        return;
    }
    let here = address::fresh();
    let server = alone(&echo("echo", &format!("[\"{NOWHERE}\", \"{here}\"]"))).start();
    assert!(down(&server, "echo").is_none());
    assert!(unreachable(&server, "echo").contains(NOWHERE), "{}", unreachable(&server, "echo"));
    let workers = server.workers();
    server.reload_ok();
    assert_eq!(server.workers(), workers, "nothing has changed");
    there(&server, &["ip", "addr", "add", "192.0.2.77/24", "dev", "lo"]);
    eventually("both are served", || unreachable(&server, "echo") == "[]");
    assert_eq!(there(&server, &["sh", "-c", "echo x | nc -N 192.0.2.77 7102"]), "x\n");
    // An address that goes is named, and comes back by itself.
    there(&server, &["ip", "addr", "del", "192.0.2.77/24", "dev", "lo"]);
    assert!(unreachable(&server, "echo").contains(NOWHERE), "{}", unreachable(&server, "echo"));
    let said = server.reload();
    assert!(said.status.success() && text(&said.stdout).contains(NOWHERE), "{}", text(&said.stdout));
    there(&server, &["ip", "addr", "add", "192.0.2.77/24", "dev", "lo"]);
    assert_eq!(unreachable(&server, "echo"), "[]");
    assert_eq!(there(&server, &["sh", "-c", "echo x | nc -N 192.0.2.77 7102"]), "x\n");
}

#[test]
fn an_address_in_use_is_had_when_it_is_free() {
    let (fine, taken) = (address::fresh(), address::fresh());
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let config = [echo("fine", &format!("\"{fine}\"")), echo("late", &format!("\"{taken}\""))];
    let server = Preforkd::run(&config.concat()).start();
    let why = down(&server, "late").unwrap();
    assert!(why.contains(&std::process::id().to_string()), "{why}");
    assert_eq!(exchange(fine, b"x"), b"x");
    drop(holder);
    eventually("it is served", || down(&server, "late").is_none());
    assert_eq!(exchange(taken, b"x"), b"x");
    assert_eq!(exchange(fine, b"x"), b"x");
}

/// A user who may not have such ports.
#[test]
fn a_port_that_is_not_permitted_keeps_no_other_down() {
    if !root("another user") {
        return;
    }
    let fine = address::fresh();
    let config = [echo("fine", &format!("\"{fine}\"")), echo("low", "\"127.0.0.1:79\"")];
    let server = Preforkd::run(&config.concat()).by_user(380, 100).start();
    let why = down(&server, "low").unwrap();
    assert!(why.contains("CAP_NET_BIND_SERVICE"), "{why}");
    assert_eq!(exchange(fine, b"x"), b"x");
}

#[test]
fn what_the_machine_does_not_have_is_waited_for() {
    let addresses = [(); 4].map(|()| address::fresh());
    let [fine, program, directory, _] = addresses;
    let config = format!(
        "{}[service.program]\nlisten = \"{program}\"\nexec = [\"DIR/program\"]\n\
         [service.directory]\nlisten = \"{directory}\"\nexec = [\"/bin/pwd\"]\nworking_directory = \"DIR/place\"\n\
         [service.socket]\nlisten = \"unix:DIR/place/sock\"\nhandler = \"echo\"\n",
        echo("fine", &format!("\"{fine}\""))
    );
    let server = Preforkd::run(&config).start();
    for (name, what) in [("program", "DIR/program"), ("directory", "DIR/place"), ("socket", "DIR/place")] {
        let why = down(&server, name).unwrap();
        assert!(why.contains(&what.replace("DIR", server.dir().to_str().unwrap())), "{why}");
    }
    assert_eq!(exchange(fine, b"x"), b"x");
    // What is written by now counts only when somebody reloads.
    server.configure("this is no TOML");
    // What is down survives an upgrade, and still comes up.
    assert!(server.upgrade().status.success());
    assert!(down(&server, "program").is_some());
    std::fs::create_dir(server.dir().join("place")).unwrap();
    write(&server.dir().join("program"), "#!/bin/sh\necho done\n");
    for name in ["program", "directory", "socket"] {
        eventually(name, || down(&server, name).is_none());
    }
    assert_eq!(text(&exchange(program, b"")), "done\n");
    assert!(text(&exchange(directory, b"")).ends_with("/place\n"));
    assert_eq!(exchange_unix(&server.dir().join("place/sock"), b"x"), b"x");
    assert_eq!(server.status()["reloads"]["ok"], 0);
    server.configure(&config);
    server.reload_ok();
}

#[test]
fn a_reload_is_all_or_nothing_but_for_what_was_down_before() {
    let (fine, other) = (address::fresh(), address::fresh());
    let gone = format!("[service.gone]\nlisten = \"{}\"\nexec = [\"DIR/gone\"]\n", address::fresh());
    let first = format!("{}{gone}", echo("fine", &format!("\"{fine}\"")));
    let server = Preforkd::run(&first).start();
    // Another that cannot be served is an error.
    let broken = format!("{first}[service.other]\nlisten = \"{other}\"\nexec = [\"DIR/other\"]\n");
    server.configure(&broken);
    assert_eq!(server.reload().status.code(), Some(78));
    let broken = format!("{first}{}", echo("other", &format!("\"{NOWHERE}\"")));
    server.configure(&broken);
    let said = server.reload();
    assert_eq!(said.status.code(), Some(78));
    assert!(text(&said.stderr).contains(NOWHERE), "{}", text(&said.stderr));
    assert_eq!(exchange(fine, b"x"), b"x");
    // One that can be is taken, whatever is still down.
    server.configure(&format!("{first}{}", echo("other", &format!("\"{other}\""))));
    server.reload_ok();
    assert_eq!(exchange(other, b"x"), b"x");
    assert!(down(&server, "gone").is_some());
    // And what is down can be given up.
    server.configure(&echo("fine", &format!("\"{fine}\"")));
    server.reload_ok();
    assert_eq!(server.status()["services"].as_array().unwrap().len(), 1);
}

#[test]
fn a_service_whose_connections_cannot_begin_keeps_no_other_down() {
    if !root("another user") {
        return;
    }
    let (fine, other) = (address::fresh(), address::fresh());
    let config = format!(
        "{}[service.other]\nlisten = \"{other}\"\nhandler = \"echo\"\nuser = \"nobody\"\n",
        echo("fine", &format!("\"{fine}\""))
    );
    let server = Preforkd::run(&config).by_user(381, 100).start();
    let why = down(&server, "other").unwrap();
    assert!(why.contains("user"), "{why}");
    assert_eq!(exchange(fine, b"x"), b"x");
    // Nobody is let in to wait for nobody, once its workers have died of SIGKILL, which takes its time.
    eventually("the address is closed", || crate::support::client::refused(other));
}

#[test]
fn who_wants_a_strict_start_gets_one() {
    let fine = address::fresh();
    let head = "[supervisor]\nstrict_start = true\n";
    let no_program = format!("[service.gone]\nlisten = \"{}\"\nexec = [\"DIR/gone\"]\n", address::fresh());
    for (broken, code) in [(echo("gone", &format!("\"{NOWHERE}\"")), "71"), (no_program, "78")] {
        let server =
            Preforkd::run(&format!("{head}{}{broken}", echo("fine", &format!("\"{fine}\"")))).start_unready();
        assert_eq!(server.ending(), code, "{}", server.log.all().join("\n"));
        server.wait_empty();
        assert_eq!(server.notify.count(|line| line == "READY=1"), 0);
    }
}

#[test]
fn where_somebody_looks_it_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    let config = format!(
        "{}[service.gone]\nlisten = \"{}\"\nexec = [\"/nonexistent/program\"]\n",
        echo("fine", &format!("\"{}\"", address::fresh())),
        address::fresh()
    );
    write(&path, &config);
    let output = preforkd(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("error: cannot run /nonexistent/program"));
    let output = run(&[BINARY, "serve", NOWHERE, "echo"]);
    assert_eq!(output.status.code(), Some(71), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(NOWHERE));
}

#[test]
fn where_nothing_can_be_served_a_start_fails() {
    let only = format!("[service.gone]\nlisten = \"{}\"\nexec = [\"DIR/gone\"]\n", address::fresh());
    // There is a warning, too, which is not why.
    let doubtful = "[service.gone]\nlisten = \"0.0.0.0:0\"\nexec = [\"DIR/gone\"]\n".to_owned();
    for (config, code) in [(echo("gone", &format!("\"{NOWHERE}\"")), "71"), (only, "78"), (doubtful, "78")] {
        let server = Preforkd::run(&config).start_unready();
        assert_eq!(server.ending(), code, "{}", server.log.all().join("\n"));
        server.wait_empty();
        let wanted = if code == "78" { "nothing can be served: gone: " } else { NOWHERE };
        let said = server.log.wait("why", |line| line.contains(wanted));
        assert!(code != "78" || said.contains("cannot run"), "{said}");
    }
}

#[test]
fn a_reload_does_not_wait_for_what_is_tried_again() {
    let fine = address::fresh();
    let config = format!(
        "{}[service.gone]\nlisten = \"{}\"\nexec = [\"DIR/gone\"]\n",
        echo("fine", &format!("\"{fine}\"")),
        address::fresh()
    );
    let server = Preforkd::run(&config).start();
    for _ in 0..5 {
        // Whatever try is under way.
        server.reload_ok();
    }
    let held = connect(fine);
    assert!(server.upgrade().status.success());
    assert_eq!(finish(held, b"x"), b"x");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ending(), "0");
    server.wait_empty();
}

#[test]
fn a_user_who_is_missing_is_waited_for() {
    if !root("a passwd(5) of its own") {
        return;
    }
    let (fine, other) = (address::fresh(), address::fresh());
    let config = format!(
        "{}[service.other]\nlisten = \"{other}\"\nexec = [\"/usr/bin/id\", \"-u\"]\nuser = \"latecomer\"\n",
        echo("fine", &format!("\"{fine}\""))
    );
    let server = Preforkd::run(&config)
        .after_mounts("cp /etc/passwd DIR/passwd; mount --bind DIR/passwd /etc/passwd")
        .start();
    let why = down(&server, "other").unwrap();
    assert!(why.contains("latecomer"), "{why}");
    let passwd = server.dir().join("passwd");
    let before = std::fs::read_to_string(&passwd).unwrap();
    std::fs::write(&passwd, format!("{before}latecomer:x:12345:12345::/:/bin/sh\n")).unwrap();
    eventually("it is served", || down(&server, "other").is_none());
    assert_eq!(text(&exchange(other, b"")), "12345\n");
}

#[test]
fn what_could_be_served_before_goes_on_while_the_rest_is_tried() {
    let (fine, taken) = (address::fresh(), address::fresh());
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let config = echo_service(fine, "").replace(&format!("\"{fine}\""), &format!("\"{fine}\", \"{taken}\""));
    let server = Preforkd::run(&config).start();
    let mut held = connect(fine);
    crate::support::client::echo(&mut held, b"before");
    drop(holder);
    eventually("both are served", || unreachable(&server, "echo") == "[]");
    crate::support::client::echo(&mut held, b"after");
    assert_eq!(exchange(taken, b"x"), b"x");
    drop(held);
    let _ = connect_unix(&server.dir().join("control.sock"));
}

/// What socket(2), bind(2) and listen(2) may say on a machine that is in order, once each: the tests above have those that
/// can be had by other means.
#[test]
fn whatever_the_kernel_says_about_an_address_the_others_are_served_and_it_is_tried_again() {
    let refusals = [
        ("socket", "EAFNOSUPPORT", "RestrictAddressFamilies"),
        ("socket", "EMFILE", "LimitNOFILE"),
        ("socket", "ENFILE", "fs.file-max"),
        ("socket", "EACCES", "security module"),
        ("bind", "EPERM", "security module"),
        ("bind", "EINVAL", "interface"),
        ("bind", "ENODEV", "no such interface"),
        ("bind", "ENOBUFS", "no memory"),
        ("bind", "EADDRNOTAVAIL", "no such address"),
        ("listen", "EADDRINUSE", "using it"),
        ("listen", "ENOMEM", "no memory"),
    ];
    for (call, error, words) in refusals {
        let (broken, fine) = (address::fresh(), address::fresh());
        let config =
            [echo("broken", &format!("\"{broken}\"")), echo("fine", &format!("\"{fine}\""))].concat();
        // The first is that of the control socket.
        let (filter, inject) = (format!("trace={call}"), format!("inject={call}:error={error}:when=2"));
        let server = Preforkd::run(&config)
            .under(&["strace", "-D", "-qq", "-o", "/dev/null", "-e", &filter, "-e", &inject])
            .start();
        assert_eq!(exchange(fine, b"x"), b"x", "{error}");
        let is_it = |line: &str| line.contains(&broken.to_string()) && line.contains("down");
        let said = server.log.wait("why", is_it);
        assert!(said.contains(words), "{error}: {said}");
        eventually("it is served", || down(&server, "broken").is_none());
        assert_eq!(exchange(broken, b"x"), b"x", "{error}");
    }
}
