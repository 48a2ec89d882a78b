//! Looking at a running service and acting on it: `connections`, `kill`, `pause`, `resume` and `drain`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::life::echo_service;
use crate::support::client::{connect, connect_from, connect_unix, echo, try_echo};
use crate::support::{BINARY, Preforkd, Running, address, eventually, preforkd, proc, root, text, user};

/// The ways a connection gets its process, as keys of a service that echoes.
const WAYS: [&str; 6] = [
    "handler = \"echo\"",
    "handler = \"echo\"\nspare = 2",
    "handler = \"echo\"\nspare = 2\nconnections_per_child = 0",
    "exec = [\"/bin/cat\"]",
    "exec = [\"/bin/cat\"]\nspare = 2",
    "exec = [\"/bin/cat\"]\nconnection = \"stdio\"\nmax_lifetime = \"1h\"",
];

fn serve(listen: SocketAddr, way: &str) -> Running {
    let server =
        Preforkd::run(&format!("[service.one]\nlisten = \"{listen}\"\nworkers = 1\n{way}\n")).start();
    let spares = if way.contains("spare = 2") { 2 } else { 0 };
    eventually("spares", || server.count("spares") == spares);
    server
}

/// What `connections --json` says, with these further arguments.
fn connections(server: &Running, arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["connections", "--json", "--control", server.control()], arguments].concat();
    let output = preforkd(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["connections"].as_array().unwrap().clone()
}

/// The connections, when there are so many: a spare's is told of when its worker has heard.
fn when_there_are(server: &Running, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    eventually("all connections are known", || {
        found = connections(server, &[]);
        found.len() == count
    });
    found
}

fn id(connection: &Value) -> &str {
    connection["id"].as_str().unwrap()
}

fn kill(server: &Running, ids: &[&str]) -> (Option<i32>, String) {
    let output = preforkd(&[&["kill", "--control", server.control()], ids].concat());
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_connection_is_shown_with_what_it_has_cost() {
    for way in WAYS {
        let listen = address::fresh();
        let server = serve(listen, way);
        assert_eq!(connections(&server, &[]), [] as [Value; 0], "{way}");
        let mut client = connect(listen);
        echo(&mut client, b"hello");
        let [connection] = &when_there_are(&server, 1)[..] else { panic!("{way}") };
        assert_eq!(connection["service"], "one");
        assert_eq!(connection["source"], "127.0.0.1");
        assert_eq!(connection["client"], client.local_addr().unwrap().to_string());
        assert_eq!(connection["state"], "serving");
        assert_eq!((&connection["bytes_in"], &connection["bytes_out"]), (&5.into(), &5.into()), "{way}");
        assert!(connection["age_s"].as_f64().unwrap() >= connection["idle_s"].as_f64().unwrap());
        assert!(connection["memory_kb"].as_u64().unwrap() > 0);
        let pid = connection["pid"].as_i64().unwrap() as i32;
        assert!(server.connections().iter().any(|process| process.pid == pid), "{way}");
        let command = connection["command"].as_str().unwrap();
        assert_eq!(command, if way.contains("exec") { "/bin/cat" } else { "preforkd worker one" }, "{way}");
        // Its record has the same name.
        drop(client);
        server.log.wait("its record", |line| line.contains(&format!("connection {} from", id(connection))));
        when_there_are(&server, 0);
    }
}

#[test]
fn the_table_is_for_people() {
    let listen = address::fresh();
    let server = serve(listen, "exec = [\"/bin/cat\", \"-u\"]\nargv0 = \"odd\\u001b[31mname\"");
    let mut client = connect(listen);
    echo(&mut client, b"hello");
    let output = preforkd(&["connections", "--control", server.control()]);
    let table = text(&output.stdout);
    let [head, row] = table.lines().collect::<Vec<_>>()[..] else { panic!("{table}") };
    assert!(head.starts_with("ID ") && head.ends_with("COMMAND"), "{table}");
    assert!(row.contains(&client.local_addr().unwrap().to_string()), "{table}");
    // The words of a program may obey nobody's terminal.
    assert!(row.ends_with("odd\\u{1b}[31mname -u"), "{table}");
}

#[test]
fn who_came_to_where_nobody_listens_any_more_is_shown_as_completely() {
    let [kept, direct, proxied] = [(); 3].map(|()| address::fresh());
    let service = |name: &str, at, more: &str| echo_service(at, more).replace(".echo", &format!(".{name}"));
    let gone =
        service("direct", direct, "") + &service("proxied", proxied, "proxy_protocol_from = \"127.0.0.1\"");
    let server = Preforkd::run(&(service("kept", kept, "") + &gone)).start();
    let (mut one, mut two) = (connect(direct), connect(proxied));
    echo(&mut one, b"hello");
    two.write_all(b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n").unwrap();
    echo(&mut two, b"hello again");
    when_there_are(&server, 2);
    server.configure(&service("kept", kept, ""));
    server.reload_ok();
    // What came a moment ago is not looked for twice.
    eventually("their bytes", || {
        let found = connections(&server, &[]);
        let mut bytes: Vec<_> = found.iter().map(|connection| connection["bytes_out"].as_u64()).collect();
        bytes.sort_unstable();
        bytes == [Some(5), Some(11)]
    });
}

#[test]
fn whom_a_proxy_names_has_the_bytes_of_its_own_connection() {
    let (direct, proxied) = (address::fresh(), address::fresh());
    let believed = "proxy_protocol_from = \"127.0.0.1\"";
    let config = echo_service(direct, "").replace(".echo", ".one")
        + &echo_service(proxied, believed).replace(".echo", ".two");
    let server = Preforkd::run(&config).start();
    let (mut one, mut two) = (connect(direct), connect(proxied));
    echo(&mut one, b"hello");
    // It is said to come from where another connection does come from.
    let name = one.local_addr().unwrap();
    let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", name.port(), proxied.port());
    two.write_all(header.as_bytes()).unwrap();
    echo(&mut two, b"hello again");
    let found = when_there_are(&server, 2);
    let of = |service: &str| found.iter().find(|connection| connection["service"] == service).unwrap();
    assert_eq!(
        (&of("one")["client"], &of("two")["client"]),
        (&name.to_string().into(), &name.to_string().into())
    );
    assert_eq!((&of("one")["bytes_in"], &of("one")["bytes_out"]), (&5.into(), &5.into()));
    assert_eq!((&of("two")["bytes_in"], &of("two")["bytes_out"]), (&(11 + header.len()).into(), &11.into()));
}

#[test]
fn they_are_found_by_service_and_by_source() {
    let (one, two) = (address::fresh(), address::fresh());
    let dir = tempfile::tempdir().unwrap();
    let unix = dir.path().join("socket");
    let config = echo_service(one, "").replace(".echo", ".one")
        + &echo_service(two, "").replace(".echo", ".two")
        + &format!("[service.three]\nlisten = \"unix:{}\"\nhandler = \"echo\"\n", unix.display());
    let server = Preforkd::run(&config).start();
    let from = |last: u8, address| connect_from(Ipv4Addr::new(127, 0, 7, last), address).unwrap();
    let mut clients = [from(1, one), from(2, one), from(1, two)];
    clients.iter_mut().for_each(|client| echo(client, b"hello"));
    let _local = connect_unix(&unix);
    when_there_are(&server, 4);
    let count = |arguments: &[&str]| connections(&server, arguments).len();
    assert_eq!(count(&["--service", "one"]), 2);
    assert_eq!(count(&["--source", "127.0.7.1"]), 2);
    assert_eq!(count(&["--source", "127.0.7.0/24"]), 3);
    assert_eq!(count(&["--source", "127.0.7.1", "--service", "two"]), 1);
    assert_eq!(count(&["--source", "10.0.0.0/8"]), 0);
    let uid = nix::unistd::getuid();
    assert_eq!(count(&["--source", &format!("user:{uid}")]), 1);
    let local = &connections(&server, &["--service", "three"])[0];
    assert_eq!(local["source"], format!("user:{uid}"));
    assert_eq!(local["bytes_in"], Value::Null, "of Unix sockets the kernel counts nothing");
    let wrong = preforkd(&["connections", "--control", server.control(), "--service", "four"]);
    assert_eq!(wrong.status.code(), Some(64));
    assert!(text(&wrong.stderr).contains("there is no service \"four\""), "{}", text(&wrong.stderr));
    let wrong = preforkd(&["connections", "--control", server.control(), "--source", "127.0.0.1/8"]);
    assert_eq!(wrong.status.code(), Some(64));
}

#[test]
fn one_is_ended_and_no_other() {
    for way in WAYS {
        let listen = address::fresh();
        let server = serve(listen, way);
        let (mut victim, mut other) = (connect(listen), connect(listen));
        echo(&mut victim, b"hello");
        echo(&mut other, b"hello");
        let found = when_there_are(&server, 2);
        let its = |client: &TcpStream| {
            let address = client.local_addr().unwrap().to_string();
            id(found.iter().find(|connection| connection["client"] == address).unwrap()).to_owned()
        };
        let id = its(&victim);
        let (code, said) = kill(&server, &[&id]);
        assert_eq!(code, Some(0), "{way}: {said}");
        assert!(said.contains(&format!("one: connection {id} from")), "{said}");
        assert!(matches!(victim.read(&mut [0; 16]), Ok(0) | Err(_)), "{way}");
        let record = server.log.wait("its record", |line| {
            line.contains(&format!("connection {id} from")) && line.contains(" after ")
        });
        assert!(record.contains("ended by kill after"), "{way}: {record}");
        echo(&mut other, b"the other goes on");
        when_there_are(&server, 1);
        // Nobody is punished, and nothing is counted as a crash or a timeout.
        assert_eq!((server.count("crashes"), server.count("timeouts")), (0, 0), "{way}");
        let (code, said) = kill(&server, &[&id]);
        assert_eq!(code, Some(69), "{way}");
        assert!(said.contains(&format!("there is no connection {id} (any more)")), "{said}");
    }
}

#[test]
fn who_does_not_obey_term_is_killed() {
    let listen = address::fresh();
    let stubborn = "#!/bin/sh\ntrap '' TERM\necho hello\nwhile :; do sleep 0.05; done\n";
    let config = format!("[service.one]\nlisten = \"{listen}\"\nexec = [\"DIR/program\"]\n");
    let server = Preforkd::run(&config).script("program", stubborn).start();
    let mut client = connect(listen);
    client.read_exact(&mut [0; 6]).unwrap();
    let found = when_there_are(&server, 1);
    assert_eq!(kill(&server, &[id(&found[0])]).0, Some(0));
    eventually("it is shown as ending", || {
        connections(&server, &[]).first().is_none_or(|connection| connection["state"] == "ending")
    });
    server.log.wait("its record", |line| line.contains("ended by kill after"));
    assert!(matches!(client.read(&mut [0; 16]), Ok(0) | Err(_)));
}

#[test]
fn the_connections_of_dead_workers_are_shown_and_ended_too() {
    for way in WAYS {
        for upgrades in [false, true] {
            let listen = address::fresh();
            let server = serve(listen, way);
            let mut client = connect(listen);
            echo(&mut client, b"hello");
            let name = id(&when_there_are(&server, 1)[0]).to_owned();
            let worker = server.worker();
            proc::kill(worker, Signal::SIGKILL);
            eventually("it is buried", || !server.all_workers().contains(&worker) && !proc::lives(worker));
            if upgrades {
                assert!(server.upgrade().status.success());
            }
            let found = when_there_are(&server, 1);
            assert_eq!(id(&found[0]), name, "{way}");
            assert_eq!(kill(&server, &[&name]).0, Some(0), "{way}");
            assert!(try_echo(&mut client, b"gone").is_err(), "{way}");
            let record = server.log.wait("its record", |line| {
                line.contains(&format!("connection {name} from")) && line.contains(" after ")
            });
            assert!(record.contains("ended by kill"), "{way}: {record}");
        }
    }
}

#[test]
fn as_many_are_ended_as_a_command_line_can_name() {
    let listen = address::fresh();
    let server = serve(listen, WAYS[0]);
    let mut clients: Vec<_> = (0..3).map(|_| connect(listen)).collect();
    clients.iter_mut().for_each(|client| echo(client, b"x"));
    let found = when_there_are(&server, 3);
    // More than one call may name, and the last of them in the last call.
    let others: Vec<String> = (0..5000).map(|number| format!("000000-1-{number}")).collect();
    let mut ids = vec![id(&found[0])];
    ids.extend(others.iter().map(String::as_str));
    ids.extend([id(&found[1]), id(&found[2])]);
    let (code, said) = kill(&server, &ids);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("000000-1-4999"), "{said}");
    eventually("they have ended", || server.count("active") == 0);
    assert!(clients.iter_mut().all(|client| try_echo(client, b"x").is_err()));
}

#[test]
fn what_is_no_id_is_refused_with_what_one_looks_like() {
    for wrong in
        ["7", "1cecf0-1", "1cecf0-1-x", "zz-1-1", "1cecf0-1-1.99999999999", "-1-1-1", "", "1cecf0-1-1 "]
    {
        let output = preforkd(&["kill", "--", wrong]);
        assert_eq!(output.status.code(), Some(64), "{wrong}");
        assert!(text(&output.stderr).contains("1cecf0-1-42"), "{wrong}: {}", text(&output.stderr));
    }
    let server = serve(address::fresh(), WAYS[0]);
    let (code, said) = kill(&server, &["000000-1-1", "ffffff-4294967295-1.5"]);
    assert_eq!(code, Some(69));
    assert_eq!(said.matches("there is no connection").count(), 2, "{said}");
}

/// `pause`, `resume` or `drain`, with these further arguments: exit code, and what it said.
fn operate(server: &Running, command: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = preforkd(&[&[command, "--control", server.control()], arguments].concat());
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// A client whose request nobody has read: the kernel has shaken hands for the service.
fn queued_client(listen: SocketAddr) -> TcpStream {
    let mut client = connect(listen);
    client.write_all(b"hello").unwrap();
    client
}

fn answered(mut client: TcpStream) {
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn who_comes_while_a_service_is_paused_waits_and_is_served_afterwards() {
    for way in WAYS {
        let (listen, other) = (address::fresh(), address::fresh());
        let config = format!("[service.one]\nlisten = \"{listen}\"\n{way}\n")
            + &echo_service(other, "").replace(".echo", ".two");
        let server = Preforkd::run(&config).start();
        let mut before = connect(listen);
        echo(&mut before, b"hello");
        assert_eq!(
            operate(&server, "pause", &["one"]),
            (Some(0), "one: is paused: clients wait in its queue\n".into())
        );
        let queued = queued_client(listen);
        eventually("it waits", || service(&server, "one")["queued"] == 1);
        echo(&mut before, b"goes on");
        echo(&mut connect(other), b"the other service too");
        assert_eq!(service(&server, "one")["paused"], true);
        assert_eq!(operate(&server, "pause", &["one"]), (Some(0), "one: is paused already\n".into()));
        assert_eq!(operate(&server, "resume", &["one"]), (Some(0), "one: accepts again\n".into()));
        answered(queued);
        echo(&mut before, b"goes on");
        assert_eq!(service(&server, "one")["paused"], false);
    }
}

fn service(server: &Running, name: &str) -> Value {
    let status = server.status();
    let services = status["services"].as_array().unwrap();
    services.iter().find(|service| service["name"] == name).unwrap().clone()
}

#[test]
fn a_pause_outlasts_reload_upgrade_and_the_death_of_workers() {
    for way in WAYS {
        let listen = address::fresh();
        let config =
            |keys: &str| format!("[service.one]\nlisten = \"{listen}\"\nworkers = 1\n{way}\n{keys}\n");
        let server = Preforkd::run(&config("")).start();
        let mut before = connect(listen);
        echo(&mut before, b"hello");
        let worker = server.worker();
        assert_eq!(operate(&server, "pause", &["one"]).0, Some(0));
        let queued = queued_client(listen);
        server.configure(&config("nice = 1"));
        server.reload_ok();
        assert!(server.upgrade().status.success());
        proc::kill(worker, Signal::SIGKILL);
        eventually("it is buried", || !server.all_workers().contains(&worker) && !proc::lives(worker));
        eventually("nobody accepts", || server.all_workers().is_empty());
        echo(&mut before, b"goes on");
        assert_eq!(
            (service(&server, "one")["paused"].clone(), server.count("queued")),
            (true.into(), 1),
            "{way}"
        );
        assert_eq!(server.count("accepted"), 1);
        assert_eq!(operate(&server, "resume", &[]).0, Some(0));
        answered(queued);
    }
}

#[test]
fn a_reload_still_finds_what_a_paused_service_could_not_serve() {
    if !root("a_reload_still_finds_what_a_paused_service_could_not_serve") {
        return;
    }
    let listen = address::fresh();
    let config = |keys: &str| echo_service(listen, &format!("workers = 1\n{keys}"));
    let server = Preforkd::run(&config("")).by_user(user(57), 60).start();
    assert_eq!(operate(&server, "pause", &["echo"]).0, Some(0));
    // Nobody but the kernel knows that this is not for everybody.
    server.configure(&config("nice = -5"));
    let output = server.reload();
    assert!(!output.status.success() && text(&output.stderr).contains("nice"), "{}", text(&output.stderr));
    assert_eq!(operate(&server, "resume", &["echo"]).0, Some(0));
    echo(&mut connect(listen), b"hello");
}

#[test]
fn a_drain_is_answered_when_the_last_connection_has_ended() {
    for way in WAYS {
        let listen = address::fresh();
        let server = serve(listen, way);
        let (mut one, mut two) = (connect(listen), connect(listen));
        echo(&mut one, b"hello");
        echo(&mut two, b"hello");
        let mut drain = std::process::Command::new(BINARY)
            .args(["drain", "--control", server.control(), "one"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it is paused", || service(&server, "one")["paused"] == true);
        drop(one);
        echo(&mut two, b"goes on");
        assert_eq!(drain.try_wait().unwrap(), None, "{way}");
        drop(two);
        let output = drain.wait_with_output().unwrap();
        assert!(output.status.success(), "{way}");
        assert_eq!(text(&output.stdout), "one: paused, and has no connections\n");
        // There is nothing to wait for.
        assert_eq!(operate(&server, "drain", &[]).0, Some(0));
    }
}

#[test]
fn a_drain_ends_if_the_service_is_resumed_and_at_an_upgrade_and_at_the_end() {
    let listen = address::fresh();
    let server = serve(listen, WAYS[0]);
    let mut client = connect(listen);
    echo(&mut client, b"hello");
    let drain = || {
        let drain = std::process::Command::new(BINARY)
            .args(["drain", "--control", server.control()])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it is paused", || service(&server, "one")["paused"] == true);
        drain
    };
    let said = |drain: std::process::Child| {
        let output = drain.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(69));
        text(&output.stderr)
    };
    let waiting = drain();
    assert_eq!(operate(&server, "resume", &["one"]).0, Some(0));
    assert!(said(waiting).contains("one accepts again"));
    let waiting = drain();
    assert!(server.upgrade().status.success());
    assert!(said(waiting).contains("goes on as another program"));
    // It is still paused, so that nobody could see when it is told so again.
    assert_eq!(operate(&server, "resume", &["one"]).0, Some(0));
    let waiting = drain();
    server.signal(Signal::SIGTERM);
    assert!(said(waiting).contains("preforkd is ending"));
    drop(client);
    assert_eq!(server.ending(), "0");
    server.wait_empty();
}

#[test]
fn a_service_that_there_is_not_is_no_service_to_pause() {
    let server = serve(address::fresh(), WAYS[0]);
    for command in ["pause", "resume", "drain"] {
        let (code, said) = operate(&server, command, &["two"]);
        assert_eq!(code, Some(69), "{command}");
        assert!(said.contains("there is no service \"two\"; the services are one"), "{said}");
    }
    assert_eq!(operate(&server, "pause", &[]).0, Some(64));
}

#[test]
fn what_is_down_has_nothing_to_pause() {
    let config = echo_service(address::fresh(), "").replace(".echo", ".one")
        + "[service.two]\nlisten = \"unix:DIR/two\"\nexec = [\"DIR/program\"]\n";
    let server = Preforkd::run(&config).start();
    for command in ["pause", "drain", "resume"] {
        let (code, said) = operate(&server, command, &["two"]);
        assert_eq!(code, Some(69), "{command}: {said}");
        assert!(said.contains("two: is down, and accepts as soon as it can be served: "), "{said}");
    }
    let (code, said) = operate(&server, "drain", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("two: is down") && said.contains("one: paused, and has no connections"), "{said}");
}

#[test]
fn who_waits_for_a_drain_is_told_for_what() {
    let server = serve(address::fresh(), WAYS[0]);
    let mut client = connect(server.tcp_addresses()[0]);
    echo(&mut client, b"x");
    let (code, said) = operate(&server, "drain", &["--timeout", "1s", "one"]);
    assert_eq!(code, Some(69));
    assert!(said.contains("it waits for 1 connection of one to end"), "{said}");
    drop(client);
}

#[test]
fn what_ends_is_told_so_and_no_configuration_is_blamed() {
    let server = serve(address::fresh(), WAYS[0]);
    let mut client = connect(server.tcp_addresses()[0]);
    echo(&mut client, b"x");
    server.signal(Signal::SIGTERM);
    eventually("it drains", || server.status()["state"] == "draining");
    for (command, service) in [
        ("reload", None),
        ("upgrade", None),
        ("pause", Some("one")),
        ("drain", Some("one")),
        ("lameduck", Some("one")),
    ] {
        let (code, said) = operate(&server, command, service.as_slice());
        assert_eq!(code, Some(69), "{command}: {said}");
        assert!(said.contains("preforkd is ending, and accepts nobody any more"), "{command}: {said}");
    }
    drop(client);
    assert_eq!(server.ending(), "0");
    server.wait_empty();
}
