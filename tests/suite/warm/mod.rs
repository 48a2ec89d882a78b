//! Programs that are started ahead of their connections.

mod carried;
mod load;
mod servers;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::client::{connect, exchange, exchange_unix, listen_to};
use crate::support::{Preforkd, Running, address, eventually, preforkd, proc, root, text};

/// A service of this program whose spares are warm.
fn config(address: SocketAddr, program: &str, keys: &str) -> String {
    let spare = if keys.contains("spare = ") { "" } else { "spare = 2\n" };
    format!(
        "[service.warm]\nlisten = \"{address}\"\nexec = {program}\nwarm = \"start\"\nworkers = 1\n{spare}{keys}\n"
    )
}

/// With programs that go on until they need their connections.
fn far_config(address: SocketAddr, program: &str) -> String {
    config(address, program, "").replace("warm = \"start\"", "warm = \"spare\"")
}

fn is_warm(server: &Running, number: u64) {
    eventually("warm programs", || server.count("warm") == number);
}

/// One with two warm programs.
fn start(address: SocketAddr, program: &str, keys: &str) -> Running {
    let server = Preforkd::run(&config(address, program, keys)).start();
    is_warm(&server, 2);
    server
}

/// The pids of programs that wait, in the order of their start.
fn waiting(server: &Running) -> Vec<i32> {
    let mut processes = server.connections();
    processes.sort_by_key(|process| process.start);
    processes.iter().map(|process| process.pid).collect()
}

/// How many records say that a warm program served.
fn served_warm(server: &Running) -> usize {
    // A connection is counted before its record is written.
    let completed = usize::try_from(server.count("completed")).unwrap();
    let is_record = |line: &str| line.contains(": connection ");
    eventually("the records of all that have ended", || server.log.count(is_record) >= completed);
    server.log.count(|line| line.contains(": exited 0 after") && line.ends_with(", warm)"))
}

#[test]
fn what_a_warm_program_finds_is_what_it_finds_when_it_is_started() {
    let address = address::fresh();
    let keys = "environment = { OWN = \"x\", LD_LIBRARY_PATH = \"/nowhere\" }\nworking_directory = \"/usr\"\numask = \"0123\"";
    let script = "['/bin/sh', '-c', 'env; ls -l /proc/self/fd | wc -l; cat /proc/self/status | grep -E \"^(Sig[BCI]|Umask)\"; pwd; echo $0 $*', 'zero', 'one']";
    let told = |warm: &str| {
        let config = config(address, script, keys).replace("\"start\"", &format!("\"{warm}\""));
        let server = Preforkd::run(&config).start();
        eventually("spares", || server.count("spares") == 2);
        if warm == "start" {
            is_warm(&server, 2);
        }
        let told = listen_to(address);
        eventually("its end", || server.count("completed") == 1);
        assert_eq!(served_warm(&server), usize::from(warm == "start"), "{:?}", server.log.all());
        let is_same = |line: &&str| {
            !["TCPREMOTEPORT=", "REMOTE_PORT=", "PREFORKD_CONNECTION="]
                .iter()
                .any(|name| line.starts_with(name))
        };
        let mut lines: Vec<_> = told.lines().filter(is_same).map(str::to_owned).collect();
        lines.sort();
        assert!(told.contains("TCPREMOTEIP=127.0.0.1\n") && told.contains("PREFORKD_CONNECTION="), "{told}");
        lines
    };
    assert_eq!(told("start"), told("no"));
}

#[test]
fn one_is_started_for_one_that_was_taken_and_status_tells() {
    let address = address::fresh();
    let server = start(address, "['cat']", "");
    assert_eq!(server.count("spares"), 2);
    for done in 1..=5 {
        assert_eq!(text(&exchange(address, b"hello")), "hello");
        eventually("its end", || server.count("completed") == done);
        is_warm(&server, 2);
    }
    assert_eq!(served_warm(&server), 5);
    assert_eq!((server.count("served_warm"), server.count("accepted"), server.count("active")), (5, 5, 0));
    let within = &server.service()["warm_ups"]["within"];
    assert!(within.as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).sum::<u64>() >= 5);
    let shown = text(&preforkd(&["status", "--control", server.control()]).stdout);
    assert!(shown.contains("warm: 2 warm, after ") && shown.contains("5 connections had one"), "{shown}");
}

#[test]
fn the_record_has_the_processor_time_of_the_connection_alone() {
    let address = address::fresh();
    // The loader runs the constructors of what a program loads, among them one of 0.3 s.
    let busy = "#include <time.h>\n__attribute__((constructor)) static void busy(void) {\n\
        while (clock() < CLOCKS_PER_SEC * 3 / 10) {}\n}\n";
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (source, library, program) =
        (dir.path().join("busy.c"), dir.path().join("libbusy.so"), dir.path().join("main"));
    std::fs::write(&source, busy).unwrap();
    let build = |arguments: &[&str]| crate::support::sure(&[&["gcc", "-O1", "-o"], arguments].concat());
    build(&[library.to_str().unwrap(), "-shared", "-fPIC", source.to_str().unwrap()]);
    std::fs::write(&source, "int main(void) { return 0; }").unwrap();
    let library = library.to_str().unwrap();
    build(&[
        program.to_str().unwrap(),
        source.to_str().unwrap(),
        "-Wl,--no-as-needed",
        library,
        "-Wl,-rpath,/",
    ]);
    let server = start(address, &format!("['{}']", program.display()), "");
    listen_to(address);
    let record = server.log.wait("its record", |line| line.ends_with(", warm)"));
    let cpu: u64 = record.split(", cpu ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(cpu < 250, "{record}");
}

#[test]
fn connections_beyond_the_warm_are_served_cold_and_none_is_lost() {
    let address = address::fresh();
    let server = Preforkd::run(&config(address, "['cat']", "spare = 4\nmax_connections = 8")).start();
    is_warm(&server, 4);
    let number = 400;
    let clients: Vec<_> = (0..4)
        .map(|client| {
            std::thread::spawn(move || {
                for call in 0..number / 4 {
                    let said = format!("{client} {call}");
                    assert_eq!(text(&exchange(address, said.as_bytes())), said);
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    eventually("all ended", || server.count("completed") == number && server.count("active") == 0);
    assert!(server.count("served_warm") > 0);
}

#[test]
fn warm_programs_leave_room_for_as_many_connections_as_there_may_be() {
    let address = address::fresh();
    let server =
        Preforkd::run(&config(address, "['cat']", "spare = 4\nmax_connections = 4\noverload = \"reset\""))
            .start();
    is_warm(&server, 3);
    let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(address)).collect();
    for client in &mut clients {
        crate::support::client::echo(client, b"hello");
    }
    assert_eq!(server.count("active"), 4);
    drop(clients);
    is_warm(&server, 3);
}

#[test]
fn a_warm_program_is_who_it_is_to_be() {
    if !root("another user, and a chroot") {
        return;
    }
    let address = address::fresh();
    let keys = "user = \"nobody\"\nnice = 3\nlimits = { core = 12345 }\nsandbox = { network = \"none\", write_execute = false }";
    let server = start(address, "['/bin/sh', '-c', 'id -un; nice; ulimit -c; cat']", keys);
    assert_eq!(text(&exchange(address, b"said\n")), "nobody\n3\n24\nsaid\n");
    eventually("its record", || served_warm(&server) == 1);
    drop(server);
    let server =
        start(address, "['/bin/sh', '-c', 'pwd; cat']", "chroot = \"/\"\nworking_directory = \"/usr\"");
    assert_eq!(text(&exchange(address, b"said\n")), "/usr\nsaid\n");
    eventually("its record", || served_warm(&server) == 1);
    drop(server);
    let keys = "sandbox = { private_tmp = true, network_namespace = true, pid_namespace = true }";
    let server = start(address, "['/bin/sh', '-c', 'echo $$; cat']", keys);
    let said = text(&exchange(address, b"said\n"));
    assert!(said.ends_with("\nsaid\n"), "{said}");
    eventually("its record", || served_warm(&server) == 1);
}

#[test]
fn at_a_unix_socket_and_with_its_errors_to_the_client() {
    let config = "[service.warm]\nlisten = \"unix:DIR/socket\"\nexec = ['/bin/sh', '-c', 'echo error >&2; env; cat']\n\
        warm = \"start\"\nspare = 2\nstderr = \"connection\"\nworkers = 1\n";
    let server = Preforkd::run(config).start();
    is_warm(&server, 2);
    let said = text(&exchange_unix(&server.dir().join("socket"), b"said\n"));
    assert!(
        said.starts_with("error\n") && said.contains("\nPROTO=IPC\n") && said.ends_with("said\n"),
        "{said}"
    );
    eventually("its record", || served_warm(&server) == 1);
}

#[test]
fn the_header_of_a_proxy_is_heard_first() {
    let address = address::fresh();
    let server = start(address, "['/usr/bin/env']", "proxy_protocol_from = \"127.0.0.1\"");
    let mut proxy = connect(address);
    proxy.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 25\r\n").unwrap();
    let mut said = String::new();
    proxy.read_to_string(&mut said).unwrap();
    assert!(said.contains("TCPREMOTEIP=192.0.2.7\n") && said.contains("TCPLOCALIP=192.0.2.8\n"), "{said}");
    eventually("its record", || served_warm(&server) == 1);
}

#[test]
fn who_is_counted_for_his_source_is_until_his_program_ends() {
    let address = address::fresh();
    let keys = "max_connections_per_source = 1\noverload = \"reset\"";
    let server = start(address, "['cat']", keys);
    for _ in 0..3 {
        let mut first = connect(address);
        crate::support::client::echo(&mut first, b"hello");
        assert!(crate::support::client::closed(&mut connect(address)));
        drop(first);
        eventually("its end", || server.count("active") == 0 && server.count("counted") == 0);
    }
    assert_eq!(server.service()["refused"]["source_limit"], 3);
}

#[test]
fn they_are_replaced_when_they_are_old_on_reload_and_when_a_file_changes() {
    let address = address::fresh();
    let keys = "warm_watch = [\"DIR/watched\", \"DIR/below\"]";
    let server = Preforkd::run(&config(address, "['cat']", keys))
        .script("watched", "1")
        .script("below/file", "1")
        .start();
    is_warm(&server, 2);
    let mut before = waiting(&server);
    let mut replaced = |what: &str| {
        eventually(what, || {
            let now = waiting(&server);
            now.len() == 2 && now.iter().all(|pid| !before.contains(pid)) && server.count("warm") == 2
        });
        before = waiting(&server);
    };
    let path = |name: &str| server.dir().join(name);
    std::fs::write(path("watched"), "2").unwrap();
    replaced("written anew");
    std::fs::write(path("other"), "3").unwrap();
    std::fs::rename(path("other"), path("watched")).unwrap();
    replaced("another in its place");
    std::fs::write(path("below/file"), "2").unwrap();
    replaced("in a directory");
    server.configure(&config(address, "['cat']", "warm_max_age = \"1s\""));
    server.reload_ok();
    replaced("a reload");
    replaced("their age");
    replaced("their age again");
    assert!(
        server.log.count(|line| line.contains("WARN") || line.contains("died")) == 0,
        "{:?}",
        server.log.all()
    );
}

#[test]
fn no_connection_is_lost_by_reloads_and_upgrades() {
    let address = address::fresh();
    let server =
        Preforkd::run(&config(address, "['cat']", "spare = 4\nworkers = 2").replacen("workers = 1\n", "", 1))
            .own_copy()
            .start();
    is_warm(&server, 4);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut calls = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(text(&exchange(address, b"hello")), "hello");
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    for umask in ["0077", "0027"] {
        let keys = format!("spare = 4\nworkers = 2\numask = \"{umask}\"");
        server.configure(&config(address, "['cat']", &keys).replacen("workers = 1\n", "", 1));
        server.reload_ok();
        let upgraded = preforkd(&["upgrade", "--control", server.control()]);
        assert!(upgraded.status.success(), "{}", text(&upgraded.stderr));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let calls: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    eventually("all counted", || server.count("completed") == calls && server.count("active") == 0);
}

#[test]
fn one_that_dies_while_it_waits_takes_no_connection_with_it_and_is_no_loop() {
    let address = address::fresh();
    let server = start(address, "['cat']", "");
    let killed = waiting(&server);
    killed.iter().for_each(|pid| proc::kill(*pid, Signal::SIGKILL));
    eventually("they are gone", || killed.iter().all(|pid| proc::process(*pid).is_none()));
    assert_eq!(text(&exchange(address, b"hello")), "hello");
    is_warm(&server, 2);
    server.log.wait("why", |line| line.contains("while it waited for a connection"));
    drop(server);
    // Its loader finds no library, so nothing of it ever waits.
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("lib.c"), "int x;").unwrap();
    std::fs::write(path("main.c"), "extern int x; int main(void) { return x; }").unwrap();
    crate::support::sure(&["gcc", "-shared", "-fPIC", "-o", &path("libmissing.so"), &path("lib.c")]);
    crate::support::sure(&["gcc", "-o", &path("main"), &path("main.c"), &path("libmissing.so")]);
    std::fs::remove_file(path("libmissing.so")).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = Preforkd::run(&config(address, &format!("['{}']", path("main")), "")).start();
    server.log.wait("why", |line| line.contains("before it was ready for a connection"));
    assert_eq!(listen_to(address), "");
    server.log.wait("its record", |line| line.contains(": exited 127 after") && !line.contains("warm)"));
    assert_eq!(server.log.count(|line| line.contains("before it was ready")), 1);
}

#[test]
fn with_its_worker_a_warm_program_ends() {
    let address = address::fresh();
    let server = start(address, "['cat']", "");
    let before = waiting(&server);
    let worker = server.workers()[0];
    proc::kill(worker, Signal::SIGKILL);
    eventually("their end", || before.iter().all(|pid| proc::process(*pid).is_none()));
    is_warm(&server, 2);
    assert_eq!(text(&exchange(address, b"hello")), "hello");
}

/// A program that does not get as far as waiting before the file `go` is there: the loader runs the constructor.
fn slow_program(dir: &Path) -> String {
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let slow = format!(
        "#include <unistd.h>\n__attribute__((constructor)) static void slow(void) {{ while (access(\"{}\", F_OK)) usleep(10000); }}\n",
        path("go")
    );
    std::fs::write(path("slow.c"), slow).unwrap();
    let echo = "#include <unistd.h>\nint main(void) { char line[64]; return write(1, line, read(0, line, 64)) < 0; }\n";
    std::fs::write(path("main.c"), echo).unwrap();
    let build = |arguments: &[&str]| crate::support::sure(&[&["gcc", "-O1", "-o"], arguments].concat());
    build(&[&path("libslow.so"), "-shared", "-fPIC", &path("slow.c")]);
    let search = format!("-Wl,-rpath,{}", dir.display());
    build(&[&path("main"), &path("main.c"), "-Wl,--no-as-needed", &path("libslow.so"), &search]);
    path("main")
}

#[test]
fn with_its_worker_a_program_ends_that_is_not_warm_yet() {
    for warm in ["start", "spare"] {
        let dir = tempfile::tempdir().unwrap();
        let address = address::fresh();
        let exec = format!("['{}']", slow_program(dir.path()));
        let config =
            config(address, &exec, "max_connections = 8").replace("\"start\"", &format!("\"{warm}\""));
        let server = Preforkd::run(&format!("[supervisor]\ndrain_timeout = \"1h\"\n{config}")).start();
        for _ in 0..4 {
            eventually("programs that start", || server.count("spares") == 2);
            let before = waiting(&server);
            server.replace_worker(server.worker());
            eventually("their end", || before.iter().all(|pid| !proc::lives(*pid)));
        }
        eventually("others in their places", || server.count("spares") == 2);
        // Who has a connection keeps it, as without.
        std::fs::write(dir.path().join("go"), "").unwrap();
        is_warm(&server, 2);
        let mut client = connect(address);
        eventually("a warm one has it", || server.count("served_warm") == 1);
        server.replace_worker(server.worker());
        client.write_all(b"hello").unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello", "{warm}");
        std::fs::remove_file(dir.path().join("go")).unwrap();
        eventually("its end", || server.count("active") == 0);
        server.replace_worker(server.worker());
        eventually("programs that start", || server.count("spares") == 2);
        proc::kill(server.worker(), Signal::SIGKILL);
        server.stop();
    }
}

#[test]
fn what_cannot_be_warm_is_said_once_and_served() {
    let address = address::fresh();
    let static_program = ("['/bin/busybox', 'cat']", "is linked statically");
    let own = ("['cat']", "LD_PRELOAD of its own");
    for ((program, why), keys) in [(static_program, ""), (own, "environment = { LD_PRELOAD = \"\" }")] {
        let server = Preforkd::run(&config(address, program, keys)).start();
        assert_eq!(text(&exchange(address, b"hello")), "hello");
        eventually("its end", || server.count("completed") == 1);
        assert_eq!(served_warm(&server), 0);
        assert_eq!(
            server.log.count(|line| line.contains("cannot be warm") && line.contains(why)),
            1,
            "{:?}",
            server.log.all()
        );
        let shown = text(&preforkd(&["status", "--control", server.control()]).stdout);
        assert!(shown.contains("has no warm programs") && shown.contains(why), "{shown}");
    }
}

/// What stands in for the connection is of one family, which a program must not take for that of its client.
#[test]
fn who_asks_of_which_family_its_connection_is_waits_where_that_is_not_known() {
    let option = |option: u8| {
        format!(
            "struct.unpack(\"i\", ctypes.create_string_buffer(4) if libc.getsockopt(0, 1, {option}, value, length) else value)[0]"
        )
    };
    let name = "os.getxattr(0, \"system.sockprotoname\").decode().strip(chr(0))".to_owned();
    // SO_DOMAIN and SO_PROTOCOL.
    for (asked, [of_ip, of_unix], at) in [
        (option(39), ["2", "1"], "getsockopt"),
        (option(38), ["6", "0"], "getsockopt"),
        (name, ["TCP", "UNIX-STREAM"], "fgetxattr"),
    ] {
        let start = "import ctypes, os, struct, sys\nlibc = ctypes.CDLL(None)\nvalue, length = ctypes.create_string_buffer(4), ctypes.byref(ctypes.c_int(4))";
        let program = format!(
            "['/usr/bin/python3', '-c', '''{start}\ntold = {asked}\nprint(told, sys.stdin.readline(), end=\"\")''']"
        );
        let (one, other) = (address::fresh(), address::fresh());
        for (second, at) in [("unix:DIR/socket".to_owned(), at), (other.to_string(), "read")] {
            let listen = format!("listen = [\"{one}\", \"{second}\"]");
            let config = far_config(one, &program).replace(&format!("listen = \"{one}\""), &listen);
            let server = Preforkd::run(&config).start();
            let line = server.log.wait("where it waits", |line| line.contains("warm at the system call"));
            assert!(line.contains(&format!(" call {at},")), "{asked}: {line}");
            assert_eq!(text(&exchange(one, b"x\n")), format!("{of_ip} x\n"), "{asked}");
            is_warm(&server, 2);
            if at != "read" {
                let told = text(&exchange_unix(&server.dir().join("socket"), b"x\n"));
                assert_eq!(told, format!("{of_unix} x\n"), "{asked}");
            }
        }
    }
}

/// Every connection of a listener at one address has that, and at others nobody knows.
#[test]
fn who_asks_for_the_address_of_its_own_goes_on_where_there_is_one() {
    let program = "['/usr/bin/python3', '-c', '''import socket, sys
connection = socket.socket(fileno=0)
told = connection.getsockname()
print(told, sys.stdin.readline(), end=\"\")
assert told == connection.getsockname()''']";
    let one = address::fresh();
    let (own, own_six) = (format!("('{}', PORT)", one.ip()), "('::1', PORT, 0, 0)".to_owned());
    for (listen, others, at, told) in [
        (one.ip().to_string(), None, "read", own.clone()),
        ("[::1]".to_owned(), None, "read", own_six.clone()),
        ("0.0.0.0".to_owned(), None, "getsockname", "('127.0.0.1', PORT)".to_owned()),
        ("[::]".to_owned(), None, "getsockname", own_six),
        (one.ip().to_string(), Some(address::fresh()), "getsockname", own),
    ] {
        let address = SocketAddr::new(one.ip(), address::port());
        let port = address.port();
        let others: String = others.iter().map(|other| format!(", \"{other}\"")).collect();
        let host = &listen;
        let listen = format!("[\"{host}:{port}\"{others}]");
        let config = far_config(address, program).replace(&format!("\"{address}\""), &listen);
        let server = Preforkd::run(&config).start();
        let line = server.log.wait("where it waits", |line| line.contains("warm at the system call"));
        assert!(line.contains(&format!(" call {at},")), "{host}: {line}");
        let client = match host.as_str() {
            "0.0.0.0" => ([127, 0, 0, 1], port).into(),
            "[::]" | "[::1]" => ([0, 0, 0, 0, 0, 0, 0, 1], port).into(),
            _ => address,
        };
        assert_eq!(
            text(&exchange(client, b"x\n")),
            format!("{} x\n", told.replace("PORT", &port.to_string()))
        );
        eventually("its end", || server.count("completed") == 1);
        assert_eq!(served_warm(&server), 1, "{:?}", server.log.all());
    }
}

/// What the loader cannot load it does without, and the program would run with nobody.
#[test]
fn where_nothing_can_be_loaded_programs_are_not_started_without_their_clients() {
    for warm in ["start", "spare"] {
        let address = address::fresh();
        let config = config(address, "['cat']", "limits = { nofile = 3 }");
        let server = Preforkd::run(&config.replace("\"start\"", &format!("\"{warm}\""))).start();
        let is_said =
            |line: &str| line.contains("nothing can be loaded by /proc/self/fd: Too many open files");
        server.log.wait("why", is_said);
        exchange(address, b"");
        eventually("its end", || server.count("completed") == 1);
        assert_eq!((served_warm(&server), server.count("spares")), (0, 0));
        assert_eq!(server.log.count(is_said), 1);
        assert_eq!(
            server.log.count(|line| line.contains("before it was ready")),
            0,
            "{:?}",
            server.log.all()
        );
    }
    if !root("a chroot") {
        return;
    }
    let address = address::fresh();
    let server = Preforkd::run(&config(address, "['/bin/cat']", "chroot = \"DIR/jail\""));
    jail(server.dir());
    let config = server.dir().join("preforkd.toml");
    let server = server.start();
    for said in ["hello", "again"] {
        assert_eq!(text(&exchange(address, said.as_bytes())), said);
    }
    eventually("their end", || server.count("completed") == 2);
    let why = |line: &str| line.contains("cannot be warm: there is no /proc inside chroot ");
    assert_eq!((served_warm(&server), server.log.count(why)), (0, 1), "{:?}", server.log.all());
    let shown = preforkd(&["check", "--config", config.to_str().unwrap()]);
    assert!(text(&shown.stderr).lines().any(why), "{}", text(&shown.stderr));
}

/// cat(1), and what it is loaded with.
fn jail(dir: &Path) {
    let libraries = crate::support::sure(&["ldd", "/bin/cat"]);
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/bin/cat"]) {
        let copy = dir.join("jail").join(file.trim_start_matches('/'));
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(file, copy).unwrap();
    }
}

#[test]
fn a_program_without_libc_is_warm() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    // Reads, writes what it has read, and exits.
    let source = "static long call(long number, long first, void *second, long third) {\n\
        long result; __asm__ volatile (\"syscall\" : \"=a\"(result) : \"a\"(number), \"D\"(first), \"S\"(second), \"d\"(third) : \"rcx\", \"r11\", \"memory\");\n\
        return result;\n}\n\
        void _start(void) { char line[64]; call(1, 1, line, call(0, 0, line, 64)); call(60, 0, 0, 0); }\n";
    crate::support::write(&dir.path().join("main.c"), source);
    let loader = "-Wl,--dynamic-linker=/lib64/ld-linux-x86-64.so.2";
    crate::support::sure(&[
        "gcc",
        "-O1",
        "-fno-stack-protector",
        "-nostdlib",
        "-fPIE",
        "-pie",
        loader,
        "-o",
        &path("main"),
        &path("main.c"),
    ]);
    for warm in ["start", "spare"] {
        let address = address::fresh();
        let exec = format!("['{}']", path("main"));
        let server =
            Preforkd::run(&config(address, &exec, "").replace("\"start\"", &format!("\"{warm}\""))).start();
        is_warm(&server, 2);
        assert_eq!(text(&exchange(address, b"hello")), "hello", "{warm}");
        eventually("its end", || server.count("completed") == 1);
        assert_eq!(served_warm(&server), 1, "{warm}: {:?}", server.log.all());
    }
}

#[test]
fn what_changes_who_it_is_cannot_be_warm() {
    if !root("a program that is another user") {
        return;
    }
    let address = address::fresh();
    let copy = |dir: &Path| {
        let copy = dir.join("cat");
        std::fs::copy("/bin/cat", &copy).unwrap();
        std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    };
    let server = Preforkd::run(&config(address, "['DIR/cat']", ""));
    copy(server.dir());
    let server = server.start();
    assert_eq!(text(&exchange(address, b"hello")), "hello");
    server.log.wait("why", |line| line.contains("changes its user or group"));
}

/// As sshd does first of all. Others know a process by its user, and its group, and not by those beside.
#[test]
fn who_gives_up_the_groups_beside_its_own_goes_on() {
    if !root("groups") {
        return;
    }
    let address = address::fresh();
    let program = "['/usr/bin/python3', '-c', '''import os, sys
os.setgroups([])
sys.stdout.write(sys.stdin.readline() + str(os.getgroups()))''']";
    let server = Preforkd::run(&far_config(address, program)).start();
    server.log.wait("where it waits", |line| line.contains("warm at the system call read,"));
    assert_eq!(text(&exchange(address, b"hello\n")), "hello\n[]");
    let program = program.replace("setgroups([])", "setgid(5)");
    let address = address::fresh();
    let server = Preforkd::run(&far_config(address, &program)).start();
    server.log.wait("where it waits", |line| line.contains("warm at the system call setgid,"));
}

/// As getaddrinfo(3) does. What it is asked is nobody's matter, what it is told to do is everybody's.
#[test]
fn who_asks_the_kernel_for_addresses_goes_on_and_who_changes_them_waits() {
    // nlmsghdr and ifinfomsg; RTM_GETLINK, RTM_SETLINK.
    let netlink = "import os, socket, struct, sys
def message(kind): return struct.pack('IHHIIBBHiII', 32, kind, 0x301 if kind == 18 else 5, 1, 0, 0, 0, 0, 0, 0, 0)
route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
route.bind((0, 0))
";
    for (start, call) in [
        ("import socket, sys\nsocket.getaddrinfo('localhost', 80)".to_owned(), "read"),
        (format!("{netlink}route.send(message(18)); route.recv(65536)"), "read"),
        (format!("{netlink}route.sendto(message(18), (0, 0)); route.recv(65536)"), "read"),
        (format!("{netlink}route.send(message(19))"), "sendto"),
        (format!("{netlink}route.send(message(18) + message(19))"), "sendto"),
        (format!("{netlink}route.send(message(18)[:8])"), "sendto"),
        (format!("{netlink}route.sendto(message(18), (os.getppid(), 0))"), "sendto"),
        (
            "import socket, sys\nkept = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2); kept.bind((0, 0))".to_owned(),
            "bind",
        ),
        ("import socket, sys\nkept = socket.socket(); kept.bind(('127.0.0.1', 0))".to_owned(), "bind"),
        (netlink.replace("(0, 0)", "(0, 1)"), "bind"),
        (netlink.replace("(0, 0)", "(4711, 0)"), "bind"),
    ] {
        let address = address::fresh();
        let program = format!("['/usr/bin/python3', '-c', '''{}\nsys.stdout.write(sys.stdin.readline())''']", start.replace('\'', "\""));
        let server = Preforkd::run(&far_config(address, &program)).start();
        let line = server.log.wait("where it waits", |line| line.contains("warm at the system call"));
        assert!(line.contains(&format!(" call {call},")), "{start}: {line}");
        if call == "read" {
            assert_eq!(text(&exchange(address, b"hello\n")), "hello\n");
        }
    }
}

/// Those that Debian has, each with a program that answers a line; what it needs is in tests/run.
const INTERPRETERS: [(&str, &str); 8] = [
    ("/bin/dash", "['/bin/dash', '-c', 'read line; echo \"$line\"']"),
    ("/bin/bash", "['/bin/bash', '--norc', '-c', 'read line; echo \"$line\"']"),
    ("/usr/bin/perl", "['/usr/bin/perl', '-e', '$| = 1; print scalar <STDIN>']"),
    (
        "/usr/bin/python3",
        "['/usr/bin/python3', '-c', 'import json, ssl, sqlite3, sys; print(sys.stdin.readline(), end=\"\")']",
    ),
    ("/usr/bin/gawk", "['/usr/bin/gawk', '{ print; fflush(); exit }']"),
    ("/usr/bin/mawk", "['/usr/bin/mawk', '-W', 'interactive', '{ print; exit }']"),
    ("/usr/bin/ruby", "['/usr/bin/ruby', '-e', '$stdout.sync = true; puts $stdin.gets']"),
    ("/usr/bin/php", "['/usr/bin/php', '-r', 'echo fgets(STDIN);']"),
];

#[test]
fn interpreters_start_up_to_their_first_line() {
    for (file, program) in INTERPRETERS {
        if !Path::new(file).exists() {
            assert!(std::env::var_os("CI").is_none(), "no {file}, and CI must have it");
            crate::support::skip(&format!("{file} is not installed"));
            continue;
        }
        let address = address::fresh();
        let server = start_far(address, program, "");
        for call in 1..=4 {
            assert_eq!(text(&exchange(address, b"a line\n")), "a line\n", "{file}");
            eventually("its end", || server.count("completed") == call);
            is_warm(&server, 2);
        }
        assert_eq!(served_warm(&server), 4, "{file}: {:?}", server.log.all());
        let said = server.log.wait("where", |line| line.contains("is warm at the system call"));
        let calls: u32 = said.rsplit("after ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
        // Its whole start is over: what it does next is ask for the line.
        let asks =
            ["read,", "poll,"].iter().any(|name| said.contains(&format!(" at the system call {name}")));
        assert!(calls >= 4 && asks, "{file}: {said}");
    }
}

/// As `start`, with `warm = "spare"`.
fn start_far(address: SocketAddr, program: &str, keys: &str) -> Running {
    let server = Preforkd::run(&config(address, program, keys).replace("\"start\"", "\"spare\"")).start();
    is_warm(&server, if keys.contains("spare = 8") { 8 } else { 2 });
    server
}

#[test]
fn few_descriptors_are_as_many_as_without() {
    for warm in ["no", "start", "spare"] {
        let address = address::fresh();
        let exec = "['/bin/dash', '-c', 'exec 3</dev/null; read line; echo \"$line\"']";
        let config =
            config(address, exec, "limits = { nofile = 4 }").replace("\"start\"", &format!("\"{warm}\""));
        let server = Preforkd::run(&config).start();
        is_warm(&server, if warm == "no" { 0 } else { 2 });
        assert_eq!(text(&exchange(address, b"hello\n")), "hello\n", "{warm}");
    }
}

#[test]
fn whatever_a_program_does_before_it_reads_is_so_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("torture").to_str().unwrap().to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/warm/torture.c");
    crate::support::sure(&["gcc", "-O1", "-Wall", "-Werror", "-pthread", "-o", &program, source]);
    for first in ["", "threads", "alarm", "signal", "seccomp", "exec", "limit", "files", "int80"] {
        for warm in ["no", "start", "spare"] {
            let address = address::fresh();
            let exec = format!("['{program}', '{first}']");
            let calls = if first == "int80" { "sandbox = { system_calls = \"any\" }" } else { "" };
            let config = config(address, &exec, &format!("limits = {{ nofile = 100 }}\n{calls}"))
                .replace("\"start\"", &format!("\"{warm}\""));
            let server = Preforkd::run(&config).start();
            is_warm(&server, if warm == "no" { 0 } else { 2 });
            assert_eq!(text(&exchange(address, b"hello\n")), "right: hello\n", "{first} {warm}");
            let at = match first {
                "" | "exec" => "the system call epoll_ctl",
                "int80" => "a system call of 32 bits",
                _ => continue,
            };
            if warm == "spare" {
                server.log.wait("where", |line| line.contains(&format!(" is warm at {at}, after ")));
            }
        }
    }
}

/// As ftpd of BSD, sendmail, vsftpd and PostgreSQL have one.
#[test]
fn a_program_that_writes_its_title_over_its_environment_finds_that_in_one_piece() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("title").to_str().unwrap().to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/warm/title.c");
    crate::support::sure(&["gcc", "-O1", "-Wall", "-Werror", "-o", &program, source]);
    let by_script = dir.path().join("script").to_str().unwrap().to_owned();
    crate::support::write(Path::new(&by_script), &format!("#!/usr/bin/env -S OTHER=variable {program}\n"));
    for program in [program, by_script] {
        for (warm, caller) in [("no", "127.0.0.1"), ("start", "127.0.0.1"), ("spare", "nobody")] {
            let address = address::fresh();
            let exec = format!("['{program}', 'an argument']");
            let keys = "environment = { OWN = \"x\" }";
            let config = config(address, &exec, keys).replace("\"start\"", &format!("\"{warm}\""));
            let server = Preforkd::run(&config).start();
            is_warm(&server, if warm == "no" { 0 } else { 2 });
            let said = text(&exchange(address, b"hello\n"));
            assert_eq!(said, format!("right: {caller} hello\n"), "{program} {warm}");
            eventually("its end", || server.count("completed") == 1);
            assert_eq!(served_warm(&server), usize::from(warm != "no"), "{:?}", server.log.all());
        }
    }
}

#[test]
fn of_thousands_of_connections_none_is_lost() {
    let address = address::fresh();
    let server = start_far(address, "['cat']", "spare = 8");
    let clients: Vec<_> = (0..4)
        .map(|client| {
            std::thread::spawn(move || {
                for call in 0..500 {
                    let said = format!("{client} {call}");
                    assert_eq!(text(&exchange(address, said.as_bytes())), said);
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    eventually("all ended", || server.count("completed") == 2000 && server.count("active") == 0);
    assert!(server.count("served_warm") > 0);
}

#[test]
fn what_waits_far_into_its_start_ends_with_its_worker_and_is_not_told_who_calls() {
    let address = address::fresh();
    let server = start_far(address, "['/bin/sh', '-c', 'read line; echo \"$line $TCPREMOTEIP.\"']", "");
    let before = waiting(&server);
    proc::kill(server.workers()[0], Signal::SIGKILL);
    eventually("their end", || before.iter().all(|pid| proc::process(*pid).is_none()));
    is_warm(&server, 2);
    assert_eq!(text(&exchange(address, b"hello\n")), "hello .\n");
    let config = server.dir().join("preforkd.toml");
    let shown = preforkd(&["check", "--config", config.to_str().unwrap()]);
    assert!(text(&shown.stderr).contains("getpeername(2)"), "{}", text(&shown.stderr));
}

#[test]
fn where_a_filter_forbids_it_programs_start_when_their_clients_are_there() {
    let address = address::fresh();
    let keys = "sandbox = { system_calls = { base = \"service\", deny = [\"prctl\"] } }";
    let server = Preforkd::run(&config(address, "['cat']", keys).replace("\"start\"", "\"spare\"")).start();
    let said = |part: &str| server.log.count(|line| line.contains(part));
    server.log.wait("why", |line| line.contains("does not let them be warm: Operation not permitted"));
    assert_eq!(text(&exchange(address, b"hello")), "hello");
    eventually("its record", || said(": exited 0 after") == 1);
    assert_eq!((served_warm(&server), server.count("spares")), (0, 0));
    // Once, and those that were being started are nobody's loss.
    assert_eq!((said("does not let them be warm"), said("died before")), (1, 0), "{:?}", server.log.all());
}
