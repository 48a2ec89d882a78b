//! Whom balancers are to send clients: `lameduck`, `/readyz`, and HAProxy's agent-check.

use std::io::Read;
use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::life::echo_service;
use crate::support::client::{connect, echo, exchange, listen_to};
use crate::support::exporter::Exporter;
use crate::support::haproxy::{self, Haproxy};
use crate::support::{BINARY, Preforkd, Running, address, eventually, preforkd, text};

fn command(server: &Running, arguments: &[&str]) -> (Option<i32>, String) {
    let output = preforkd(&[&arguments[..1], &["--control", server.control()], &arguments[1..]].concat());
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn sure(server: &Running, arguments: &[&str]) -> String {
    let (code, said) = command(server, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    said
}

fn two_services(one: SocketAddr, two: SocketAddr) -> String {
    echo_service(one, "").replace(".echo", ".one") + &echo_service(two, "").replace(".echo", ".two")
}

fn ready(exporter: &Exporter, path: &str) -> (u16, String) {
    let reply = exporter.get(path);
    (reply.status, reply.body)
}

#[test]
fn a_lame_duck_serves_and_says_to_balancers_that_it_does_not() {
    let (one, two) = (address::fresh(), address::fresh());
    let server = Preforkd::run(&two_services(one, two)).own_copy().start();
    let exporter = Exporter::of(&server, &[]);
    let is_ready = (200, "ready\n".to_owned());
    let is_not = (503, "not ready: one is a lame duck\n".to_owned());
    assert_eq!(ready(&exporter, "/readyz"), is_ready);
    let mut client = connect(one);
    echo(&mut client, b"before");

    let said = sure(&server, &["lameduck", "one"]);
    assert!(said.starts_with("one: is a lame duck: it serves on"), "{said}");
    let still = |what: &str| {
        assert_eq!(ready(&exporter, "/readyz"), is_not, "{what}");
        assert_eq!(ready(&exporter, "/readyz/one"), is_not, "{what}");
        assert_eq!(ready(&exporter, "/readyz/two"), is_ready, "{what}");
        assert_eq!(exporter.get("/livez").status, 200, "{what}");
        assert_eq!(exchange(one, b"new"), b"new", "{what}: it serves");
        let status = server.status();
        assert_eq!(
            (&status["services"][0]["lameduck"], &status["services"][1]["lameduck"]),
            (&true.into(), &false.into())
        );
        assert_eq!(status["services"][0]["paused"], false);
    };
    still("at first");
    let said = sure(&server, &["status"]);
    assert!(
        said.contains("one is a lame duck: balancers send it no more clients until \"preforkd resume one\""),
        "{said}"
    );
    assert_eq!(sure(&server, &["lameduck", "one"]), "one: is a lame duck already\n");
    server
        .notify
        .wait("systemd is told", |line| line.starts_with("STATUS=") && line.contains("one is a lame duck"));
    server.replace_worker(server.workers()[0]);
    still("after the death of a worker");
    server.configure(&two_services(one, two).replace("\n[service.two]", "\nnice = 1\n[service.two]"));
    server.reload_ok();
    still("after a reload");
    server.replace_program(&std::fs::read(BINARY).unwrap());
    let upgraded = server.upgrade();
    assert!(upgraded.status.success(), "{}", text(&upgraded.stderr));
    still("after an upgrade");
    echo(&mut client, b"goes on");

    assert_eq!(sure(&server, &["resume", "one"]), "one: balancers may send it clients again\n");
    assert_eq!(ready(&exporter, "/readyz"), is_ready);
    assert_eq!(server.status()["services"][0]["lameduck"], false);
    assert_eq!(sure(&server, &["resume", "one"]), "one: accepts already\n");
}

#[test]
fn resume_ends_all_that_keeps_clients_away() {
    let (one, two) = (address::fresh(), address::fresh());
    let server = Preforkd::run(&two_services(one, two)).start();
    let exporter = Exporter::of(&server, &[]);
    sure(&server, &["lameduck", "one"]);
    sure(&server, &["lameduck", "two"]);
    sure(&server, &["pause", "one"]);
    assert_eq!(ready(&exporter, "/readyz/one"), (503, "not ready: one is paused\n".to_owned()));
    let said = sure(&server, &["resume"]);
    assert_eq!(said, "one: accepts again\ntwo: balancers may send it clients again\n");
    eventually("ready", || exporter.get("/readyz").status == 200);
    let (code, said) = command(&server, &["lameduck", "three"]);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("there is no service \"three\""), "{said}");
    assert_eq!(command(&server, &["lameduck"]).0, Some(64));
    assert_eq!(ready(&exporter, "/readyz/three").0, 404);
}

#[test]
fn who_is_down_or_drains_is_not_ready_and_says_why() {
    let one = address::fresh();
    let config = echo_service(one, "").replace(".echo", ".one")
        + "[service.two]\nlisten = \"unix:DIR/two\"\nexec = [\"DIR/program\"]\n";
    let server = Preforkd::run(&config).start();
    let exporter = Exporter::of(&server, &[]);
    let (status, reason) = ready(&exporter, "/readyz");
    assert_eq!(status, 503);
    assert!(reason.starts_with("not ready: two is down: ") && reason.contains("program"), "{reason}");
    assert_eq!(ready(&exporter, "/readyz/one").0, 200);
    let (code, said) = command(&server, &["lameduck", "two"]);
    assert_eq!((code, said.as_str()), (Some(69), "preforkd: two is not served; balancers are told so\n"));
    crate::support::write(&server.dir().join("program"), "#!/bin/sh\nexec cat\n");
    eventually("it is served, and ready", || exporter.get("/readyz").status == 200);

    let mut client = connect(one);
    echo(&mut client, b"hello");
    server.signal(Signal::SIGTERM);
    eventually("it drains", || {
        ready(&exporter, "/readyz") == (503, "not ready: preforkd is draining\n".to_owned())
    });
    assert_eq!(exporter.get("/livez").status, 200, "it lives as long as its connections");
    echo(&mut client, b"goes on");
    drop(client);
    assert_eq!(server.ending(), "0");
    eventually("it is gone", || exporter.get("/livez").status == 503);
}

#[test]
fn the_agent_says_how_much_is_free() {
    let (one, two) = (address::fresh(), address::fresh());
    let config = two_services(one, two).replace("\n[service.two]", "\nmax_connections = 4\n[service.two]");
    let server = Preforkd::run(&config).start();
    let [all, only_two, nobody] = [(); 3].map(|()| address::fresh());
    let agents = [all.to_string(), format!("two={only_two}"), format!("three={nobody}")];
    let exporter =
        Exporter::of(&server, &["--agent", &agents[0], "--agent", &agents[1], "--agent", &agents[2]]);
    assert_eq!(listen_to(all), "up ready 100%\n");
    assert_eq!(listen_to(nobody), "down #there is no such service\n");
    let mut clients = Vec::new();
    for free in ["75", "50", "25", "1"] {
        let mut client = connect(one);
        echo(&mut client, b"hello");
        clients.push(client);
        eventually("it is weighed", || listen_to(all) == format!("up ready {free}%\n"));
    }
    assert_eq!(listen_to(only_two), "up ready 100%\n");
    sure(&server, &["lameduck", "one"]);
    assert_eq!((listen_to(all), listen_to(only_two)), ("drain\n".into(), "up ready 100%\n".into()));
    drop(clients);
    sure(&server, &["resume", "one"]);
    // HAProxy may send a line, too.
    eventually("it is free again", || exchange(all, b"one\n") == b"up ready 100%\n");
    server.stop();
    assert!(listen_to(all).starts_with("down #no preforkd answers at "), "{}", listen_to(all));
    drop(exporter);
}

#[test]
fn haproxy_sends_no_more_to_a_lame_duck_and_again_when_it_is_none() {
    if !haproxy::is_there("haproxy_sends_no_more_to_a_lame_duck_and_again_when_it_is_none") {
        return;
    }
    let start = |name: char| {
        let (service, agent) = (address::fresh(), address::fresh());
        let script = format!("echo {name}; exec cat");
        let config = format!(
            "[service.tell]\nlisten = \"{service}\"\nmax_connections = 10\nexec = [\"/bin/sh\", \"-c\", \"{script}\"]\n"
        );
        let server = Preforkd::run(&config).start();
        let exporter = Exporter::of(&server, &["--agent", &agent.to_string()]);
        (server, exporter, service, agent)
    };
    let (a, b, front) = (start('a'), start('b'), address::fresh());
    let servers = [('a', &a), ('b', &b)].map(|(name, (_, _, service, agent))| {
        format!(
            " server {name} {service} weight 100 agent-check agent-addr {} agent-port {} agent-inter 100ms\n",
            agent.ip(),
            agent.port()
        )
    });
    let haproxy = Haproxy::start("", &format!("listen front\n bind {front}\n{}", servers.concat()));
    let first = |address| {
        let mut name = [0];
        connect(address).read_exact(&mut name).unwrap();
        char::from(name[0])
    };
    let by = |count: usize| -> String { (0..count).map(|_| first(front)).collect() };
    eventually("both serve", || by(4).contains('a') && by(4).contains('b'));

    sure(&a.0, &["lameduck", "tell"]);
    eventually("a drains", || haproxy.stat("front", "a", "status").starts_with("DRAIN"));
    assert_eq!(by(10), "b".repeat(10), "and gets nobody");
    assert_eq!(first(a.2), 'a', "though it serves");
    sure(&a.0, &["resume", "tell"]);
    eventually("a is up", || haproxy.stat("front", "a", "status") == "UP");
    eventually("and serves", || by(4).contains('a'));

    // The fuller it is, the less it gets.
    let mut clients: Vec<_> = (0..6).map(|_| connect(b.2)).collect();
    eventually("b weighs less", || haproxy.stat("front", "b", "weight") == "40");
    clients.clear();
    eventually("and as before", || haproxy.stat("front", "b", "weight") == "100");

    // One that is gone is down by its agent, and up when it is back; its supervisor was not there, and the exporter was.
    a.0.stop();
    eventually("a is down", || haproxy.stat("front", "a", "status").starts_with("DOWN"));
    assert_eq!(by(10), "b".repeat(10));
}
