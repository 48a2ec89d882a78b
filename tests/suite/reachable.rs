//! What status and reload say of a listener is what the kernel and the file system say, and an address and its wildcard
//! follow each other.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::support::client::{connect, exchange, exchange_unix, try_echo};
use crate::support::{BINARY, Preforkd, Running, address, eventually, preforkd, proc, root, run, text};

fn unreachable(server: &Running) -> String {
    server.service()["unreachable"].to_string()
}

fn unix_service(extra: &str) -> String {
    format!("[service.echo]\nlisten = \"unix:DIR/service.sock\"\nhandler = \"echo\"\nworkers = 1\n{extra}")
}

#[test]
fn a_unix_socket_whose_file_is_gone_is_named_and_made_again() {
    let server = Preforkd::run(&unix_service("")).start();
    let path = server.dir().join("service.sock");
    assert_eq!(unreachable(&server), "[]");
    std::fs::remove_file(&path).unwrap();
    assert!(unreachable(&server).contains("removed"), "{}", unreachable(&server));
    server.reload_ok();
    assert_eq!(unreachable(&server), "[]");
    assert_eq!(exchange_unix(&path, b"x"), b"x");
}

#[test]
fn a_unix_socket_in_whose_place_is_another_is_named_and_not_taken_away() {
    let server = Preforkd::run(&unix_service("")).start();
    let path = server.dir().join("service.sock");
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    assert!(unreachable(&server).contains("in its place"), "{}", unreachable(&server));
    let said = server.reload();
    assert_eq!(said.status.code(), Some(78), "somebody else listens there");
    assert!(text(&said.stderr).contains("service.sock"), "{}", text(&said.stderr));
    drop(other);
    server.reload_ok();
    assert_eq!(exchange_unix(&path, b"x"), b"x");
}

#[test]
fn a_listener_that_somebody_has_shut_down_is_named_and_made_again() {
    let listen = address::fresh();
    let config = format!("[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 1\n");
    let server = Preforkd::run(&config).start();
    // As `ss -K` does. pidfd_getfd(2) takes a copy of the listener out of the supervisor.
    shut_down(&server, listen);
    assert!(unreachable(&server).contains("shut"), "{}", unreachable(&server));
    server.reload_ok();
    assert_eq!(unreachable(&server), "[]");
    assert_eq!(exchange(listen, b"x"), b"x");
}

/// Shuts a listener of the server down, by a copy of its descriptor.
fn shut_down(server: &Running, listen: SocketAddr) {
    proc::to_listener(server.pid(), listen, "s.shutdown(socket.SHUT_RD)");
}

#[test]
fn a_control_socket_whose_file_is_gone_is_made_again() {
    let listen = address::fresh();
    let config = format!("[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 1\n");
    let server = Preforkd::run(&config).start();
    std::fs::remove_file(server.control()).unwrap();
    let output = preforkd(&["status", "--control", server.control()]);
    assert_eq!(output.status.code(), Some(69));
    server.signal(Signal::SIGHUP);
    eventually("it answers", || preforkd(&["status", "--control", server.control()]).status.success());
}

#[test]
fn who_asks_a_supervisor_that_is_stopped_is_told_so() {
    let listen = address::fresh();
    let config = format!("[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 1\n");
    let server = Preforkd::run(&config).start();
    server.signal(Signal::SIGSTOP);
    for command in ["status", "reload", "upgrade"] {
        let output = run(&[BINARY, command, "--control", server.control(), "--timeout", "100ms"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.contains("stopped") && said.contains(&server.pid().to_string()), "{said}");
    }
    server.signal(Signal::SIGCONT);
    // It does what it was asked for, though nobody waits for it any more.
    eventually("it has done it all", || {
        server.status()["upgrades"] == 1 && server.status()["state"] == "running"
    });
}

/// Nobody accepts there, and the queue is full.
#[test]
fn who_asks_where_the_queue_is_full_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let full = |path: &std::path::Path| {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
        use std::os::fd::AsRawFd;
        let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
        let connected = connect(client.as_raw_fd(), &UnixAddr::new(path).unwrap());
        (connected == Err(nix::errno::Errno::EAGAIN), client)
    };
    let mut held = Vec::new();
    loop {
        let (is_full, client) = full(&path);
        if is_full {
            break;
        }
        held.push(client);
    }
    let output = run(&[BINARY, "status", "--control", path.to_str().unwrap(), "--timeout", "100ms"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("queue"), "{said}");
}

/// Reloads from one address to the other and back while clients come all the time: each is served.
fn follow_each_other(exact: SocketAddr, wide: SocketAddr) {
    follow(exact, &[&exact.to_string()], &[&wide.to_string()]);
}

/// Says at its end that it is the end.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn follow(client: SocketAddr, first: &[&str], second: &[&str]) {
    let config =
        |listen: &[&str]| format!("[service.echo]\nlisten = {listen:?}\nhandler = \"echo\"\nworkers = 2\n");
    let server = Preforkd::run(&config(second)).start();
    let (ends, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let more = |count: usize| {
        let before = served.load(Ordering::SeqCst);
        eventually("more clients", || served.load(Ordering::SeqCst) >= before + count);
    };
    thread::scope(|scope| {
        // Also if this fails, or the scope would wait for them for ever.
        let _ending = Ending(&ends);
        for _ in 0..3 {
            scope.spawn(|| {
                while !ends.load(Ordering::SeqCst) {
                    try_echo(&mut connect(client), b"x").unwrap();
                    served.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for listen in [first, second, first, second] {
            more(20);
            server.configure(&config(listen));
            server.reload_ok();
        }
        more(20);
    });
    assert_eq!(server.service()["listen"], serde_json::json!(second));
}

#[test]
fn an_address_and_its_wildcard_follow_each_other() {
    let port = address::port();
    follow_each_other((Ipv4Addr::LOCALHOST, port).into(), (Ipv4Addr::UNSPECIFIED, port).into());
    follow_each_other((Ipv6Addr::LOCALHOST, port).into(), (Ipv6Addr::UNSPECIFIED, port).into());
}

#[test]
fn every_address_and_some_of_them_follow_each_other() {
    let port = address::port();
    let [any, v4, v6, home] = ["*", "0.0.0.0", "[::]", "127.0.0.1"].map(|ip| format!("{ip}:{port}"));
    let clients = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()];
    follow(clients[0], &[&home], &[&any]);
    for client in clients {
        follow(client, &[&v6, &v4], &[&any]);
    }
}

#[test]
fn an_address_that_is_being_closed_can_be_had_again() {
    let port = address::port();
    let config = |listen: &str| format!("[service.time]\nlisten = [{listen}]\nhandler = \"daytime\"\n");
    let exact = config(&format!("\"0.0.0.0:{port}\", \"[::]:{port}\""));
    let server = Preforkd::run(&exact).start();
    // Whose handshake is under way, for whom the old listener waits a second.
    let mut client = std::process::Command::new("python3")
        .args(["-c", crate::stop::LATE, &format!("127.0.0.1:{port}")])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "connected");
    server.configure(&config(&format!("\"*:{port}\"")));
    server.reload_ok();
    server.configure(&exact);
    server.reload_ok();
    assert!(said.next().unwrap().unwrap().contains(':'));
    assert!(client.wait().unwrap().success());
}

#[test]
fn a_reload_that_fails_leaves_who_comes_to_the_old_listener() {
    let port = address::port();
    let config = |listen: &str, extra: &str| {
        format!("[service.echo]\nlisten = \"{listen}:{port}\"\nhandler = \"echo\"\nworkers = 1\n{extra}")
    };
    let server = Preforkd::run(&config("0.0.0.0", "")).start();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let broken = format!("[service.zzz]\nlisten = \"{taken}\"\nhandler = \"echo\"\n");
    server.configure(&config("127.0.0.1", &broken));
    assert_eq!(server.reload().status.code(), Some(78));
    assert_eq!(exchange((Ipv4Addr::LOCALHOST, port).into(), b"x"), b"x");
    // Nobody else can share the port.
    let other = run(&[BINARY, "serve", &format!("127.0.0.1:{port}"), "echo"]);
    assert_eq!(other.status.code(), Some(71), "{}", text(&other.stderr));
    server.configure(&config("127.0.0.1", ""));
    server.reload_ok();
    assert_eq!(exchange((Ipv4Addr::LOCALHOST, port).into(), b"x"), b"x");
}

/// What this writes, in the server's network, to port 7102 of `target`.
fn echoed(server: &Running, target: &str) -> String {
    let pid = server.pid().to_string();
    let output =
        run(&["nsenter", "-t", &pid, "-n", "sh", "-c", &format!("echo x | nc -N -w 5 {target} 7102")]);
    text(&output.stdout)
}

const ANY: &str = "[service.echo]\nlisten = \"*:7102\"\nhandler = \"echo\"\nworkers = 1\n";

fn listened(server: &Running) -> String {
    server.service()["listen"].to_string()
}

#[test]
fn a_star_is_every_address_of_whichever_family_there_is() {
    if !root("a network of its own") {
        return;
    }
    for (setup, has_v6) in [
        ("ip link set lo up", true),
        ("ip link set lo up && sysctl -qw net.ipv6.conf.all.disable_ipv6=1", false),
        ("ip link set lo up && sysctl -qw net.ipv6.bindv6only=1", true),
    ] {
        let server = Preforkd::run(ANY).under(&["unshare", "--net"]).after(setup).start();
        assert_eq!(listened(&server), "[\"*:7102\"]", "{setup}");
        assert_eq!(unreachable(&server), "[]", "{setup}");
        assert_eq!(echoed(&server, "127.0.0.1"), "x\n", "{setup}");
        assert_eq!(echoed(&server, "::1") == "x\n", has_v6, "{setup}");
        server.reload_ok();
        assert_eq!(echoed(&server, "127.0.0.1"), "x\n", "{setup}");
    }
}

/// As with `ipv6.disable=1`: socket(2) knows no IPv6, by a filter of seccomp(2).
const WITHOUT_IPV6: &str = "import ctypes, os, platform, struct, sys\n\
    number = {'x86_64': 41, 'aarch64': 198}[platform.machine()]\n\
    steps = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 10), (0x06, 0, 0, 0x00050000 | 97), (0x06, 0, 0, 0x7fff0000)]\n\
    code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))\n\
    program = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(steps), ctypes.addressof(code)))\n\
    libc = ctypes.CDLL(None, use_errno=True)\n\
    assert libc.prctl(38, 1, 0, 0, 0) == 0\n\
    assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()\n\
    os.execvp(sys.argv[1], sys.argv[1:])\n";

#[test]
fn a_star_is_served_where_the_kernel_has_no_ipv6() {
    let port = address::port();
    let config = format!("[service.echo]\nlisten = \"*:{port}\"\nhandler = \"echo\"\nworkers = 1\n");
    let server = Preforkd::run(&config).under(&["python3", "-c", WITHOUT_IPV6]).start();
    assert_eq!(listened(&server), format!("[\"*:{port}\"]"));
    assert_eq!(exchange((Ipv4Addr::LOCALHOST, port).into(), b"x"), b"x");
    server.reload_ok();
    assert_eq!(unreachable(&server), "[]");
}

#[test]
fn a_star_with_port_0_has_one_port_in_both_families() {
    let server = Preforkd::serve(&["--workers", "1"], "*:0", &["echo"]).start();
    let said = server.stdout.wait("it says where", |line| line.starts_with("listening on *:"));
    let port: u16 = said.trim_start_matches("listening on *:").parse().unwrap();
    for ip in [std::net::IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        assert_eq!(exchange(SocketAddr::new(ip, port), b"x"), b"x");
    }
}

#[test]
fn a_link_local_address_has_its_interface_and_survives_a_new_number() {
    if !root("a network of its own") {
        return;
    }
    let config = "[service.who]\nlisten = \"[fe80::1%port0]:7102\"\nworkers = 1\nexec = [\"/bin/sh\", \"-c\", \
        \"echo $REMOTE_ADDR $TCPREMOTEIP $TCPLOCALIP\"]\n";
    let make = "ip link add port0 type veth peer name far0; ip link set far0 up; ip link set port0 up; ip addr add fe80::1/64 dev port0 nodad";
    for spare in ["", "spare = 1\n"] {
        let server = Preforkd::run(&format!("{config}{spare}"))
            .under(&["unshare", "--net"])
            .after(&format!("ip link set lo up\n{make}"))
            .start();
        assert_eq!(listened(&server), "[\"[fe80::1%port0]:7102\"]");
        let all = "fe80::1%port0 fe80::1%port0 fe80::1%port0\n";
        assert_eq!(echoed(&server, "fe80::1%port0"), all);
        server.log.wait("the record has it", |line| line.contains("[fe80::1%port0]:"));
        let pid = server.pid().to_string();
        let there =
            |script: &str| assert!(run(&["nsenter", "-t", &pid, "-n", "sh", "-ec", script]).status.success());
        there("ip link del port0");
        assert!(unreachable(&server).contains("its interface"), "{}", unreachable(&server));
        there(make);
        server.reload_ok();
        assert_eq!(unreachable(&server), "[]");
        assert_eq!(echoed(&server, "fe80::1%port0"), all);
    }
}

#[test]
fn an_interface_that_comes_later_is_waited_for() {
    if !root("a network of its own") {
        return;
    }
    let config = "[service.late]\nlisten = \"[fe80::7%port7]:7102\"\nworkers = 1\nhandler = \"echo\"\n\
                  [service.other]\nlisten = \"127.0.0.1:7103\"\nworkers = 1\nhandler = \"echo\"\n";
    let server = Preforkd::run(config).under(&["unshare", "--net"]).after("ip link set lo up").start();
    let down = || server.status()["services"][0]["down"].as_str().map(str::to_owned);
    let why = down().unwrap();
    assert!(why.contains("no interface port7"), "{why}");
    let make = "ip link add port7 type veth peer name far7; ip link set far7 up; ip link set port7 up; \
                ip addr add fe80::7/64 dev port7 nodad";
    crate::support::sure(&["nsenter", "-t", &server.pid().to_string(), "-n", "sh", "-ec", make]);
    eventually("it is served", || down().is_none());
}
