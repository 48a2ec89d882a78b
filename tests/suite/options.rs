//! Socket options: a connection has what the keys say, and after a reload what they say then.

use std::net::SocketAddr;

use crate::support::client::exchange;
use crate::support::{BINARY, Preforkd, Running, address, preforkd, root, run, sure, text};

/// Prints what its connection has.
const SHOW: &str = "import socket, struct\n\
    s = socket.socket(fileno=0)\n\
    def get(level, option): return s.getsockopt(level, option)\n\
    def name(): return s.getsockopt(socket.SOL_SOCKET, 25, 16).split(b'\\0')[0].decode()\n\
    T = socket.IPPROTO_TCP\n\
    print('keepalive', get(socket.SOL_SOCKET, socket.SO_KEEPALIVE), get(T, socket.TCP_KEEPIDLE),\n\
    \x20     get(T, socket.TCP_KEEPINTVL), get(T, socket.TCP_KEEPCNT))\n\
    print('nodelay', int(get(T, socket.TCP_NODELAY) != 0))\n\
    print('tos', get(socket.IPPROTO_IP, socket.IP_TOS))\n\
    print('mark', get(socket.SOL_SOCKET, 36))\n\
    print('transparent', get(socket.IPPROTO_IP, 19))\n\
    print('interface', name())\n";

fn service(listen: SocketAddr, keys: &str) -> String {
    format!(
        "[service.show]\nlisten = \"{listen}\"\nexec = [\"/usr/bin/python3\", \"DIR/show.py\"]\nworkers = 1\n{keys}\n"
    )
}

fn serve(listen: SocketAddr, keys: &str) -> Running {
    Preforkd::run(&service(listen, keys)).script("show.py", SHOW).start()
}

const ALL: &str = "keepalive = { idle = \"77s\", interval = \"7s\", count = 3 }\nnodelay = false\ntos = \"throughput\"\n\
                   mark = 7\ntransparent = true\n";

#[test]
fn a_connection_has_what_the_keys_say_and_after_a_reload_what_they_say_then() {
    if !root("marks") {
        return;
    }
    for more in ["", "spare = 1\n"] {
        let listen = address::fresh();
        let plain = Preforkd::run(&service(listen, more)).script("show.py", SHOW).start();
        let before = text(&exchange(listen, b""));
        assert!(before.contains("keepalive 0 ") && before.contains("mark 0\n"), "{before}");
        plain.configure(&service(listen, &format!("{ALL}{more}")));
        plain.reload_ok();
        let wanted = "keepalive 1 77 7 3\nnodelay 0\ntos 8\nmark 7\ntransparent 1\ninterface \n";
        assert_eq!(text(&exchange(listen, b"")), wanted);
        plain.configure(&service(listen, more));
        plain.reload_ok();
        assert_eq!(text(&exchange(listen, b"")), before, "all as it was");
    }
    let listen = address::fresh();
    let server = serve(listen, &format!("{ALL}interface = \"lo\"\nfreebind = true\ndefer_accept = \"10s\""));
    let said = text(&exchange(listen, b"x"));
    assert!(said.contains("keepalive 1 77 7 3") && said.ends_with("interface lo\n"), "{said}");
    assert!(server.upgrade().status.success());
    assert_eq!(text(&exchange(listen, b"x")), said);
}

#[test]
fn an_address_that_is_not_there_yet_can_be_listened_at() {
    if !root("a network of its own") {
        return;
    }
    for listen in ["192.0.2.77:7102", "[2001:db8::77]:7102"] {
        let config = format!(
            "[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 1\nfreebind = true\n"
        );
        let server = Preforkd::run(&config).under(&["unshare", "--net"]).after("ip link set lo up").start();
        let ip = &listen[..listen.rfind(':').unwrap()].trim_matches(['[', ']']);
        let pid = server.pid().to_string();
        let there = |command: &str| sure(&["nsenter", "-t", &pid, "-n", "sh", "-c", command]);
        there(&format!("ip addr add {ip} dev lo nodad 2>/dev/null || ip addr add {ip} dev lo"));
        assert_eq!(there(&format!("echo x | nc -N {ip} 7102")), "x\n");
    }
}

#[test]
fn who_waits_for_the_first_byte_is_accepted_with_it() {
    let listen = address::fresh();
    let server = serve(listen, "defer_accept = \"60s\"");
    let mut silent = crate::support::client::connect(listen);
    // Another that speaks is served; the silent one is not even accepted.
    assert!(text(&exchange(listen, b"x")).contains("nodelay 1"));
    assert_eq!(server.count("accepted"), 1);
    std::io::Write::write_all(&mut silent, b"x").unwrap();
    assert!(text(&crate::support::client::finish(silent, b"")).contains("nodelay 1"));
    assert_eq!(server.count("accepted"), 2);
}

#[test]
fn what_is_not_permitted_or_not_there_is_named() {
    let output = run(&[BINARY, "serve", "--interface", "nosuch0", "127.0.0.1:0", "echo"]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("interface") && said.contains("no such"), "{said}");
    if !root("another user") {
        return;
    }
    let listen = address::fresh();
    for key in ["mark = 7", "transparent = true"] {
        let config = format!("[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\n{key}\n");
        let server = Preforkd::run(&config).by_user(390, 100).start_unready();
        let name = key.split(' ').next().unwrap();
        server.log.wait("why", |line| line.contains(name) && line.contains("CAP_NET_ADMIN"));
        assert_eq!(server.ending(), "77");
        server.wait_empty();
    }
    let output = preforkd(&["serve", "--tos", "fast", "127.0.0.1:0", "echo"]);
    assert!(text(&output.stderr).contains("low-delay"), "{}", text(&output.stderr));
}

/// A socket unit with options of its own: they stay, unless a key says something else.
#[test]
fn what_a_socket_unit_has_set_stays() {
    if !root("marks") {
        return;
    }
    let listen = address::fresh();
    let script = "import os, socket, sys\n\
        host, port = sys.argv[1].split(':')\n\
        s = socket.socket()\n\
        s.bind((host, int(port)))\n\
        s.listen(100)\n\
        s.setsockopt(socket.SOL_SOCKET, 25, b'lo')\n\
        s.setsockopt(socket.SOL_SOCKET, 36, 7)\n\
        s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 16)\n\
        s.setsockopt(socket.IPPROTO_IP, 19, 1)\n\
        s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n\
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)\n\
        os.dup2(s.fileno(), 3, inheritable=True) if s.fileno() != 3 else s.set_inheritable(True)\n\
        s.detach()\n\
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='web')\n\
        os.execvp(sys.argv[2], sys.argv[2:])\n";
    let config = service(listen, "").replace(&format!("\"{listen}\""), "\"fd:web\"");
    let server = Preforkd::run(&config)
        .script("show.py", SHOW)
        .under(&["python3", "-c", script, &listen.to_string()])
        .start();
    let check = |mark: &str| {
        let said = text(&exchange(listen, b""));
        for what in
            ["keepalive 1 77 ", "tos 16\n", &format!("mark {mark}\n"), "transparent 1\n", "interface lo\n"]
        {
            assert!(said.contains(what), "{what}: {said}");
        }
    };
    check("7");
    server.configure(&format!("{config}mark = 9\n"));
    server.reload_ok();
    check("9");
    assert!(server.upgrade().status.success());
    check("9");
    // What cannot be is found before anything is changed.
    server.configure(&format!("{config}interface = \"nosuch0\"\n"));
    let output = server.reload();
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("interface"), "{}", text(&output.stderr));
    check("9");
}

/// Two sockets of one name, as systemd passes them with `ReusePort=yes` or two `ListenStream=`: the kernel spreads clients
/// over both, and both are served.
#[test]
fn all_sockets_that_share_a_port_are_served() {
    let listen = address::fresh();
    let script = "import os, socket, sys\n\
        host, port = sys.argv[1].split(':')\n\
        for number in (3, 4):\n\
        \x20   s = socket.socket()\n\
        \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
        \x20   s.bind((host, int(port)))\n\
        \x20   s.listen(100)\n\
        \x20   os.dup2(s.fileno(), number, inheritable=True) if s.fileno() != number else s.set_inheritable(True)\n\
        \x20   s.detach()\n\
        os.environ['LISTEN_PID'] = str(os.getpid())\n\
        os.environ['LISTEN_FDS'] = '2'\n\
        os.environ['LISTEN_FDNAMES'] = 'web:web'\n\
        os.execvp(sys.argv[2], sys.argv[2:])\n";
    let config = "[service.echo]\nlisten = \"fd:web\"\nhandler = \"echo\"\nworkers = 2\n";
    let server = Preforkd::run(config).under(&["python3", "-c", script, &listen.to_string()]).start();
    for n in 0..40 {
        if n == 20 {
            server.configure(&config.replace("workers = 2", "workers = 1"));
            server.reload_ok();
        }
        assert_eq!(exchange(listen, b"x"), b"x");
    }
    assert_eq!(server.service()["listen"].as_array().unwrap().len(), 2);
}
