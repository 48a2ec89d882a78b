//! Looking at live connections, and ending them: `preforkd connections` and `preforkd kill`.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::life::echo_service;
use crate::support::client::{connect, connect_from, connect_unix, echo, try_echo};
use crate::support::{Preforkd, Running, address, eventually, preforkd, proc, text};

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
        assert!(!way.contains("exec") || command == "/bin/cat", "{way}: {command}");
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
        let its = |client: &std::net::TcpStream| {
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
            let worker = server.workers()[0];
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
