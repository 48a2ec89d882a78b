//! `wait = true`: one program gets the listening socket itself, of datagrams or of connections.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::client::exchange;
use crate::support::{
    A_WHILE, BINARY, PATIENCE, Preforkd, Running, address, eventually, preforkd, proc, root, say, sure, text,
};

/// Answers each datagram with its pid and what it was, and does what it says.
const DATAGRAMS: &str = r#"#!/usr/bin/python3
import os, signal, socket, sys, time
s = socket.socket(fileno=int(os.environ.get("FD", "0")))
while True:
    data, client = s.recvfrom(4096)
    if data == b"deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if data == b"who":
        fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1]
        names = sorted(name for name in os.environ if name.startswith(("LISTEN", "TCP", "PROTO", "REMOTE", "PREFORKD")))
        pid = os.environ.get("LISTEN_PID") == str(os.getpid())
        links = len({os.readlink("/proc/self/fd/%d" % fd) for fd in (0, 1)})
        answer = (os.getuid(), fds, names, os.environ.get("LISTEN_FDS"), pid, s.gettimeout(), links, os.getcwd())
        data = repr(answer).encode()
    answered, answers = os.pipe()
    if data == b"fork" and os.fork() == 0:
        s.close()
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        own.connect(client)
        own.send(b"%d %s" % (os.getpid(), data))
        os.write(answers, b"x")
        own.recv(100)
        own.send(b"%d still here" % os.getpid())
        sys.exit(0)
    elif data == b"fork":
        # With kill_mode = "group" its end is the child's, which is to have answered.
        os.read(answered, 1)
        sys.exit(0)
    os.close(answered)
    os.close(answers)
    s.sendto(b"%d %s" % (os.getpid(), data), client)
    if data == b"connect":
        s.connect(client)
    if data in (b"end", b"connect"):
        sys.exit(0)
    if data == b"crash":
        os.abort()
"#;

/// Accepts by itself, and answers each connection the same way.
const CONNECTIONS: &str = r#"#!/usr/bin/python3
import os, socket, sys
s = socket.socket(fileno=0)
while True:
    c, _ = s.accept()
    data = c.recv(100)
    c.sendall(b"%d %s" % (os.getpid(), data))
    c.close()
    if data == b"end":
        sys.exit(0)
"#;

fn service(listen: &str, more: &str) -> String {
    format!("[service.one]\nlisten = {listen}\nwait = true\nexec = [\"DIR/serve\"]\n{more}\n")
}

fn serve(listen: &str, more: &str, program: &str) -> Running {
    Preforkd::run(&service(listen, more)).script("serve", program).own_copy().start()
}

/// Sends this until there is an answer, which begins with the pid of who has answered.
fn ask(server: SocketAddr, what: &str) -> (i32, String) {
    let client = client(server);
    let deadline = Instant::now() + PATIENCE;
    loop {
        client.send(what.as_bytes()).unwrap();
        if let Some(answer) = hear(&client) {
            return answer;
        }
        assert!(Instant::now() < deadline, "no answer to {what}");
    }
}

fn client(server: SocketAddr) -> UdpSocket {
    let own: SocketAddr =
        if server.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { (Ipv6Addr::LOCALHOST, 0).into() };
    let client = UdpSocket::bind(own).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.connect(server).unwrap();
    client
}

fn hear(client: &UdpSocket) -> Option<(i32, String)> {
    let mut answer = [0; 4096];
    let length = client.recv(&mut answer).ok()?;
    split(&answer[..length])
}

fn split(answer: &[u8]) -> Option<(i32, String)> {
    let answer = text(answer);
    let (pid, rest) = answer.split_once(' ')?;
    Some((pid.parse().ok()?, rest.to_owned()))
}

/// The processes that run the script.
fn programs(server: &Running) -> Vec<i32> {
    let runs = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text(&line).contains("/serve") && text(&line).starts_with("/usr/bin/python3")
    };
    proc::descendants(server.pid()).iter().map(|process| process.pid).filter(|pid| runs(*pid)).collect()
}

fn tell(server: &Running, command: &[&str]) -> (Option<i32>, String) {
    let output = preforkd(&[command, &["--control", server.control()]].concat());
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn done(server: &Running, command: &[&str]) -> String {
    let (code, said) = tell(server, command);
    assert_eq!(code, Some(0), "{command:?}: {said}");
    said
}

#[test]
fn one_program_has_the_socket_until_it_ends_and_then_another() {
    let at = address::fresh();
    let server = serve(&format!("\"udp:{at}\""), "", DATAGRAMS);
    assert_eq!(programs(&server), [] as [i32; 0], "nobody has called");
    let (pid, said) = ask(at, "who");
    // Its stderr is a pipe; it blocks; nothing else is open, and nobody's address is told.
    assert_eq!(
        said,
        format!(
            "({}, [0, 1, 2], ['PREFORKD_CONNECTION', 'PREFORKD_SERVICE'], None, False, None, 1, '/')",
            nix::unistd::geteuid()
        )
    );
    for _ in 0..3 {
        assert_eq!(ask(at, "again").0, pid);
    }
    assert_eq!(
        (server.count("active"), server.count("max_connections"), server.count("accepted")),
        (1, 1, 1)
    );
    assert_eq!(ask(at, "end").0, pid);
    server.log.wait("its record", |line| {
        line.contains("one: program ") && line.contains("for whoever calls: exited 0")
    });
    eventually("it is free", || server.count("active") == 0);
    assert_ne!(ask(at, "x").0, pid);
    assert_eq!(server.count("accepted"), 2);
    server.stop();
    assert!(UdpSocket::bind(at).is_ok(), "the address is free");
}

#[test]
fn each_listener_has_a_program_of_its_own() {
    let v4 = address::fresh();
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, address::port()));
    let server = serve(&format!("[\"udp:{v4}\", \"udp:{v6}\"]"), "", DATAGRAMS);
    let (one, other) = (ask(v4, "x").0, ask(v6, "x").0);
    assert_ne!(one, other);
    let shown = done(&server, &["connections"]);
    for at in [v4, v6] {
        assert!(shown.contains(&format!("whoever calls at udp:{at}")), "{shown}");
    }
    assert_eq!((server.count("active"), server.count("max_connections")), (2, 2));
    assert_eq!(ask(v4, "end").0, one);
    assert_ne!(ask(v4, "x").0, one);
    assert_eq!(ask(v6, "x").0, other);
}

#[test]
fn it_is_confined_and_finds_the_socket_where_systemd_puts_it() {
    if !root("a user") {
        return;
    }
    let at = address::fresh();
    let more = "connection = \"listen-fds\"\nuser = \"nobody\"\nworking_directory = \"/usr\"\nenvironment = { FD = \"3\" }\n\
                limits = { nofile = 20 }\nsandbox = { network = \"client\", pid_namespace = false }";
    let _server = serve(&format!("\"udp:{at}\""), more, DATAGRAMS);
    let (pid, said) = ask(at, "who");
    let names = "['LISTEN_FDNAMES', 'LISTEN_FDS', 'LISTEN_PID', 'PREFORKD_CONNECTION', 'PREFORKD_SERVICE']";
    assert_eq!(said, format!("(65534, [0, 1, 2, 3], {names}, '1', True, None, 2, '/usr')"));
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(
        limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 20 ")),
        "{limits}"
    );
    // From a socket of its own, of another process.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"fork", at).unwrap();
    let mut answer = [0; 100];
    let (length, from) = client.recv_from(&mut answer).unwrap();
    assert!(from != at && split(&answer[..length]).unwrap().1 == "fork");
}

#[test]
fn what_its_program_has_begun_for_others_goes_on() {
    let at = address::fresh();
    let server = serve(&format!("\"udp:{at}\""), "", DATAGRAMS);
    // As old tftpd does: it forks for a client, and ends.
    let server_end = client(at);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(server_end);
    client.send_to(b"fork", at).unwrap();
    let mut answer = [0; 100];
    let (length, child) = client.recv_from(&mut answer).unwrap();
    let pid = split(&answer[..length]).unwrap().0;
    eventually("the parent has ended", || server.count("active") == 0);
    let next = ask(at, "x").0;
    assert_ne!(next, pid);
    client.send_to(b"go on", child).unwrap();
    let (length, _) = client.recv_from(&mut answer).unwrap();
    assert_eq!(split(&answer[..length]), Some((pid, "still here".to_owned())));

    // With kill_mode = "group", it does not.
    server.configure(&service(&format!("\"udp:{at}\""), "kill_mode = \"group\""));
    server.reload_ok();
    eventually("the one that began before has gone", || !proc::lives(next));
    client.send_to(b"fork", at).unwrap();
    let (length, _) = client.recv_from(&mut answer).unwrap();
    let pid = split(&answer[..length]).unwrap().0;
    eventually("it is killed", || !proc::lives(pid));
}

#[test]
fn connections_are_accepted_by_the_program_and_none_is_lost_between_two() {
    let at = address::fresh();
    let server = serve(&format!("\"{at}\""), "", CONNECTIONS);
    let (pid, said) = split(&exchange(at, b"x")).unwrap();
    assert_eq!((said.as_str(), split(&exchange(at, b"y")).unwrap().0), ("x", pid));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(split(&exchange(at, b"end")).unwrap().1, "end");
                }
            });
        }
    });
    let log = server.log.all().join("\n");
    assert!(!log.contains("at once"), "{log}");
    assert!(server.count("accepted") >= 20, "{}", server.status());
    // The listener is as it was for who accepts otherwise.
    server.configure(
        &service(&format!("\"{at}\""), "")
            .replace("wait = true", "workers = 2")
            .replace("DIR/serve", "/bin/cat"),
    );
    server.reload_ok();
    for _ in 0..20 {
        assert_eq!(exchange(at, b"cat"), b"cat");
    }
    eventually("the program is gone", || programs(&server).is_empty());
    server.configure(&service(&format!("\"{at}\""), ""));
    server.reload_ok();
    assert_eq!(split(&exchange(at, b"z")).unwrap().1, "z");
    eventually("only one has it", || programs(&server).len() == 1);
}

#[test]
fn a_program_that_fails_at_once_rests_and_the_address_stays_open() {
    for (listen, is_udp, program) in [
        (address::fresh(), true, "#!/bin/sh\nexit 0\n"),
        (address::fresh(), true, "#!/bin/sh\nexit 1\n"),
        (address::fresh(), true, "#!/bin/sh\nkill -SEGV $$\n"),
        (address::fresh(), true, "#!/nonexistent\n"),
        (address::fresh(), false, "#!/bin/sh\nexit 0\n"),
        (address::fresh(), false, "#!/bin/sh\nexit 3\n"),
        (address::fresh(), false, "#!/nonexistent\n"),
    ] {
        let (kind, good) = if is_udp { ("udp:", DATAGRAMS) } else { ("", CONNECTIONS) };
        let at = format!("\"{kind}{listen}\"");
        // Its interpreter is looked for at the start.
        let server = serve(&at, "", "#!/bin/sh\n");
        crate::support::write(&server.dir().join("serve"), program);
        let client = std::thread::scope(|scope| {
            let client = scope.spawn(|| match is_udp {
                true => ask(listen, "x").1,
                false => split(&exchange(listen, b"x")).unwrap().1,
            });
            // Who comes and goes next door, at the same port, is none of its callers.
            let neighbour = TcpListener::bind((address::source(50_200), listen.port())).unwrap();
            let mut next_door = None;
            let mut resting = String::new();
            eventually("it rests", || {
                let newcomer = TcpStream::connect(neighbour.local_addr().unwrap()).unwrap();
                if next_door.replace(newcomer).is_some() {
                    neighbour.accept().unwrap();
                }
                resting = server.service()["resting"].as_str().unwrap_or_default().to_owned();
                server.count("accepted") >= 2 && resting.contains("started again in 2 s")
            });
            assert!(
                resting.starts_with(&format!("{kind}{listen}: ")) && resting.contains("stays open"),
                "{resting}"
            );
            assert!(done(&server, &["status"]).contains(&format!("one rests: {kind}{listen}: ")));
            assert_eq!(server.workers().len(), 1);
            crate::support::write(&server.dir().join("serve"), good);
            client.join().unwrap()
        });
        assert_eq!(client, "x", "{program}");
        // It was queued all the time, and nobody was let down.
        eventually("the second end", || {
            match is_udp {
                true => drop(ask(listen, "end")),
                false => drop(exchange(listen, b"end")),
            }
            server.service()["resting"].is_null()
        });
        let pause = |line: &String| {
            let said = line.split_once("warning: one: ")?.1.split_once("started again in ")?.1;
            Some(said.strip_suffix(" s")?.parse::<u64>().unwrap())
        };
        let pauses: Vec<_> = server.log.all().iter().filter_map(pause).collect();
        // However many there are on a slow machine, each is twice the one before.
        let as_it_should = (0..pauses.len()).map(|number| 1 << number);
        assert!(!pauses.is_empty() && pauses.iter().copied().eq(as_it_should), "{:#?}", server.log.all());
    }
}

#[test]
fn who_crashes_it_does_not_make_it_rest() {
    let at = address::fresh();
    let server = serve(&format!("\"udp:{at}\""), "", DATAGRAMS);
    for _ in 0..10 {
        let client = client(at);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        // The next is queued already when it ends.
        client.send(b"crash").unwrap();
        client.send(b"crash").unwrap();
        assert!(hear(&client).is_some() && hear(&client).is_some());
    }
    assert_eq!(ask(at, "x").1, "x");
    assert!(server.service()["resting"].is_null());
    let log = server.log.all();
    assert!(log.iter().all(|line| !line.contains("at once")), "{log:#?}");
    assert_eq!(server.count("crashes"), 20);
}

#[test]
fn a_socket_that_a_program_leaves_connected_takes_all_again() {
    let at = address::fresh();
    let server = serve(&format!("\"udp:{at}\""), "", DATAGRAMS);
    let pid = ask(at, "connect").0;
    assert_ne!(ask(at, "x").0, pid);
    server.log.wait("what was done", |line| line.contains("connected to somebody"));
}

#[test]
fn it_survives_a_reload_that_does_not_change_it_and_no_other() {
    let at = address::fresh();
    let listen = format!("\"udp:{at}\"");
    let server = serve(&listen, "", DATAGRAMS);
    let other = "[service.other]\nlisten = \"ADDRESS\"\nhandler = \"echo\"\n"
        .replace("ADDRESS", &address::fresh().to_string());
    let pid = ask(at, "x").0;
    server.configure(&(service(&listen, "") + &other));
    server.reload_ok();
    assert_eq!(ask(at, "x").0, pid);
    server.configure(&(service(&listen, "nice = 1") + &other));
    server.reload_ok();
    eventually("it has ended", || !proc::lives(pid));
    server.log.wait("its record", |line| line.contains("killed TERM"));
    let next = ask(at, "deaf").0;
    assert_ne!(next, pid);
    // Whoever does not hear TERM has the socket alone until it is killed.
    server.configure(&(service(&listen, "nice = 2") + &other));
    server.reload_ok();
    let mut pids = Vec::new();
    eventually("another has it", || {
        assert!(programs(&server).len() <= 1, "two have it");
        let pid = ask(at, "x").0;
        pids.push(pid);
        pid != next
    });
    assert!(!proc::lives(next) && pids[..pids.len() - 1].iter().all(|pid| *pid == next), "{pids:?}");
    // Removed, it is gone.
    server.configure(&other);
    server.reload_ok();
    eventually("the address is free", || UdpSocket::bind(at).is_ok());
    assert_eq!(programs(&server), [] as [i32; 0]);
}

#[test]
fn it_survives_an_upgrade_and_is_the_only_one() {
    for (listen, is_udp) in [(address::fresh(), true), (address::fresh(), false)] {
        let (at, program) = match is_udp {
            true => (format!("\"udp:{listen}\""), DATAGRAMS),
            false => (format!("\"{listen}\""), CONNECTIONS),
        };
        let ask = |what: &str| match is_udp {
            true => ask(listen, what).0,
            false => split(&exchange(listen, what.as_bytes())).unwrap().0,
        };
        let server = serve(&at, "", program);
        let pid = ask("x");
        for _ in 0..2 {
            let output = server.upgrade();
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert_eq!((ask("y"), programs(&server)), (pid, vec![pid]));
        }
        assert_eq!(server.count("active"), 1);
        assert_eq!(ask("end"), pid);
        let next = ask("z");
        assert_ne!(next, pid);
        eventually("it is alone", || programs(&server) == [next]);
        assert_eq!(ask("end"), next);
        eventually("nobody has it", || server.count("active") == 0);
        // One that an older worker has started is told to end as well.
        let pid = ask("x");
        assert!(server.upgrade().status.success());
        done(&server, &["pause", "one"]);
        eventually("it has ended", || !proc::lives(pid));
    }
}

#[test]
fn it_goes_on_without_its_worker_and_nobody_gets_the_socket_before_it_ends() {
    let at = address::fresh();
    let server = serve(&format!("\"udp:{at}\""), "", DATAGRAMS);
    let pid = ask(at, "x").0;
    for _ in 0..3 {
        server.replace_worker(server.worker());
        assert_eq!((ask(at, "x").0, programs(&server)), (pid, vec![pid]));
    }
    // Something is queued when the new worker looks.
    proc::stop(pid);
    let client = client(at);
    client.send(b"queued").unwrap();
    server.replace_worker(server.worker());
    std::thread::sleep(A_WHILE);
    assert_eq!(programs(&server), [pid]);
    let shown = done(&server, &["connections"]);
    assert!(shown.contains(&format!("whoever calls at udp:{at}")), "{shown}");
    proc::kill(pid, Signal::SIGKILL);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (next, said) = hear(&client).unwrap();
    assert_eq!((said.as_str(), next == pid), ("queued", false));
    server.log.wait("its record", |line| line.contains("killed KILL"));
    // What is adopted is told to end as well.
    server.replace_worker(server.worker());
    done(&server, &["pause", "one"]);
    eventually("it has ended", || !proc::lives(next));
    done(&server, &["resume", "one"]);
    assert_ne!(ask(at, "x").0, next);
}

#[test]
fn it_ends_with_the_supervisor() {
    let at = address::fresh();
    let server = serve(&format!("\"udp:{at}\""), "", DATAGRAMS);
    let pid = ask(at, "x").0;
    server.signal(Signal::SIGKILL);
    eventually("it has ended", || !proc::lives(pid));
    server.wait_empty();
    UdpSocket::bind(at).unwrap();
}

#[test]
fn it_is_paused_resumed_drained_and_killed() {
    let at = address::fresh();
    let server = serve(&format!("\"udp:{at}\""), "", DATAGRAMS);
    let pid = ask(at, "x").0;
    assert!(done(&server, &["pause", "one"]).contains("is paused"));
    // Answered when nobody has the socket any more.
    assert_eq!(programs(&server), [] as [i32; 0]);
    let client = client(at);
    client.send(b"queued").unwrap();
    std::thread::sleep(A_WHILE);
    assert_eq!(programs(&server), [] as [i32; 0]);
    assert_eq!(server.count("queued"), 1);
    done(&server, &["resume", "one"]);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (next, said) = hear(&client).unwrap();
    assert_eq!((said.as_str(), next == pid), ("queued", false));

    let shown = done(&server, &["connections", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let one = &shown["connections"][0];
    assert_eq!((one["pid"].as_i64(), one["state"].as_str()), (Some(next.into()), Some("serving")), "{shown}");
    done(&server, &["kill", one["id"].as_str().unwrap()]);
    server.log.wait("its record", |line| line.contains("ended by kill"));
    assert_ne!(ask(at, "x").0, next);

    let (code, said) = tell(&server, &["ban", "192.0.2.0/24", "--service", "one"]);
    assert!(code != Some(0) && said.contains("firewall"), "{said}");

    // It has an end though it would not end by itself.
    let said = done(&server, &["drain", "one"]);
    assert!(said.contains("has no connections"), "{said}");
    assert_eq!(programs(&server), [] as [i32; 0]);
    done(&server, &["resume", "one"]);
    ask(at, "x");
    // And the end of all does not take drain_timeout.
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < Duration::from_secs(25), "it waited for who never ends");
}

#[test]
fn its_lifetime_can_be_limited() {
    let at = address::fresh();
    let server = serve(&format!("\"udp:{at}\""), "max_lifetime = \"1s\"", DATAGRAMS);
    let pid = ask(at, "x").0;
    server.log.wait("its record", |line| line.contains("timeout lifetime"));
    assert_ne!(ask(at, "x").0, pid);
}

#[test]
fn systemd_may_pass_a_socket_of_datagrams() {
    let at = address::fresh();
    let pass = format!(
        "import os, socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind((\"{}\", {}))\nos.dup2(s.fileno(), 3)\n\
         os.set_inheritable(3, True)\n\
         os.environ.update(LISTEN_FDS=\"1\", LISTEN_FDNAMES=\"tftp\", LISTEN_PID=str(os.getpid()))\nos.execvp(sys.argv[1], sys.argv[1:])",
        at.ip(),
        at.port()
    );
    let passing = |config: &str| {
        Preforkd::run(config).script("serve", DATAGRAMS).own_copy().under(&["python3", "-c", &pass])
    };
    let server = passing(&service("\"fd:tftp\"", "")).start();
    let pid = ask(at, "x").0;
    assert!(server.upgrade().status.success());
    assert_eq!(ask(at, "end").0, pid);
    assert_ne!(ask(at, "x").0, pid);
    // Without `wait` nobody could do anything with it.
    server.configure(&service("\"fd:tftp\"", "").replace("wait = true\n", ""));
    let output = server.reload();
    assert!(!output.status.success());
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(said.contains("add wait = true to the service"), "{said}");
    assert_eq!(ask(at, "x").1, "x");
    drop(server);
    let server = passing(&service("\"fd:tftp\"", "").replace("wait = true\n", "")).start_unready();
    server.log.wait("why not", |line| line.contains("add wait = true to the service"));
    server.wait_empty();
}

#[test]
fn serve_takes_it_as_a_flag() {
    let server = Preforkd::serve(&["--wait", "true"], "udp:127.0.0.1:0", &["--", "DIR/serve"])
        .script("serve", DATAGRAMS)
        .start();
    let line = server.stdout.wait("where", |line| line.starts_with("listening on udp:127.0.0.1:"));
    let at: SocketAddr = line["listening on udp:".len()..].parse().unwrap();
    assert_eq!(ask(at, "x").1, "x");
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = format!("udp:{}", other.local_addr().unwrap());
    let (code, said) = {
        let output = preforkd(&["serve", "--wait", "true", &taken, "--", "/bin/true"]);
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(code, Some(71), "{said}");
    assert!(said.contains(&format!("cannot listen on {taken}: it is in use by ")), "{said}");
}

/// talk(1), asked to call a user who is not there, at a terminal of its own, until it says so.
const TALK: &str = r#"#!/usr/bin/python3
import os, pty, select, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.environ.update(TERM="vt100", USER="root", LOGNAME="root")
    os.execv(sys.argv[1], ["talk", "nobodyhere@localhost"])
said, end = b"", time.monotonic() + 25
while time.monotonic() < end and b"not logged on" not in said:
    if select.select([terminal], [], [], 0.2)[0]:
        try:
            said += os.read(terminal, 4096)
        except OSError:
            break
os.kill(pid, 9)
print("not logged on" if b"not logged on" in said else said)
"#;

#[test]
fn talkd_answers_talk() {
    if !root("a port below 1024, and namespaces") {
        return;
    }
    // Unpacked only: its package wants an inetd.
    let packages = std::path::Path::new(BINARY).ancestors().nth(2).unwrap().join("moved/root/usr");
    let (daemon, talk) = (packages.join("sbin/in.ntalkd"), packages.join("bin/netkit-ntalk"));
    if !daemon.exists() || !talk.exists() {
        assert!(std::env::var_os("CI").is_none(), "talk needs what tests/suite/moved/install unpacks");
        say("SKIPPED: talk needs what tests/suite/moved/install unpacks");
        return;
    }
    // talk knows one port, which others on this machine may have: a network of its own.
    let config = format!(
        "[service.talk]\nlisten = \"udp:0.0.0.0:518\"\nwait = true\nuser = \"nobody\"\nexec = [\"{}\"]\n",
        daemon.display()
    );
    let server = Preforkd::run(&config)
        .script("talk", TALK)
        .under(&["unshare", "--net", "--"])
        .after("ip link set lo up")
        .start();
    let (pid, script) = (server.pid().to_string(), server.dir().join("talk").display().to_string());
    for _ in 0..2 {
        let said = sure(&["nsenter", "--net", "--target", &pid, "setsid", &script, talk.to_str().unwrap()]);
        assert_eq!(said.trim(), "not logged on", "{:#?}", server.log.all());
        assert_eq!((server.count("active"), server.count("accepted")), (1, 1));
    }
}
