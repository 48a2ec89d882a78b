//! `wait = true`, and the addresses that go with nothing else.

use super::*;

fn complaints(lines: &str) -> String {
    let place = Scratch::new();
    place.write("p.toml", &format!("[service.x]\n{lines}\n"));
    place.complaints()
}

fn service(lines: &str) -> ServiceConfig {
    let place = Scratch::new();
    place.write("p.toml", &format!("[service.x]\n{lines}\n"));
    place.config().services.remove(0)
}

const UDP: &str = "listen = [\"udp:127.0.0.1:69\", \"udp:[::1]:69\"]\nexec = [\"/bin/cat\"]\n";

#[test]
fn one_program_has_the_socket_and_what_it_has_begun_goes_on() {
    let one = service(&format!("{UDP}wait = true"));
    assert_eq!((one.wait, one.workers, one.spare, one.max_connections), (true, 1, 0, 1));
    assert_eq!(one.kill_mode, KillMode::Process);
    let one = service(&format!("{UDP}wait = true\nkill_mode = \"group\""));
    assert_eq!(one.kill_mode, KillMode::Group { grace: Duration::ZERO });
    let one = service(&format!("{UDP}wait = true\nkill_grace = \"5s\""));
    assert_eq!(one.kill_mode, KillMode::Group { grace: Duration::from_secs(5) });
    // All of it ends with the namespace anyway.
    let one = service(&format!("{UDP}wait = true\nsandbox = {{ pid_namespace = true }}"));
    assert_eq!(one.kill_mode, KillMode::Group { grace: Duration::ZERO });
    let tcp = "listen = \"127.0.0.1:7\"\nexec = [\"/bin/cat\"]\n";
    assert_eq!(service(&format!("{tcp}wait = false")).kill_mode, KillMode::Group { grace: Duration::ZERO });
}

#[test]
fn what_works_with_it_is_no_error() {
    for keys in [
        "max_lifetime = \"1h\"",
        "workers = 1\nspare = 0\nmax_connections = 1\nconnections_per_child = 1\noverload = \"queue\"",
        "count_bytes = false\nstderr = \"connection\"\nconnection = \"listen-fds\"\nlog = \"none\"",
        "tos = 8\nfreebind = true\nmark = 0",
        "nice = 1\numask = \"0027\"\nlimits = { nofile = 20 }\nsandbox = { network = \"client\" }",
    ] {
        service(&format!("{UDP}wait = true\n{keys}"));
    }
    service(
        "listen = [\"127.0.0.1:7\", \"unix:@x\"]\nexec = [\"/bin/cat\"]\nwait = true\nnodelay = true\nkeepalive = true\nbacklog = 9",
    );
    service("listen = \"fd:x\"\nexec = [\"/bin/cat\"]\nwait = true");
}

#[test]
fn what_could_do_nothing_is_an_error_with_its_reason() {
    for (keys, why) in [
        ("spare = 2", "a process ahead would have the socket"),
        ("connections_per_child = 0", "a process ahead would have the socket"),
        ("workers = 2", "one worker watches the socket"),
        ("max_connections = 10", "how many it serves is its own matter"),
        ("max_connections_per_source = 1", "sees nobody who calls"),
        ("rate_per_source = \"1/s\"", "sees nobody who calls"),
        ("source_prefix_v4 = 24", "sees nobody who calls"),
        ("source_prefix_v6 = 48", "sees nobody who calls"),
        ("allow = \"127.0.0.1\"", "nftables"),
        ("deny = \"127.0.0.1\"", "nftables"),
        ("penalties = { crash = \"1m\" }", "sees nobody who calls"),
        ("penalty_threshold = \"1m\"", "sees nobody who calls"),
        ("penalty_exempt = \"127.0.0.1\"", "sees nobody who calls"),
        ("overload = \"refuse\"", "the kernel's queue"),
        ("overload = \"refuse\"\nrefuse_message = \"x\"", "refuse_message can do nothing"),
        ("proxy_protocol_from = \"127.0.0.1\"", "have the program read the header"),
        ("first_byte_timeout = \"1s\"", "max_lifetime"),
        ("idle_timeout = \"1s\"", "max_lifetime"),
        ("count_bytes = true", "sees nobody who calls"),
        ("nodelay = true", "without a listener over TCP"),
        ("keepalive = true", "without a listener over TCP"),
        ("defer_accept = \"1s\"", "without a listener over TCP"),
        ("backlog = 9", "no queue of connections"),
        ("socket_mode = \"0600\"", "no Unix socket with a file"),
        ("user = { range = \"70000-70010\" }", "one user is enough"),
        ("warm = \"start\"", "a process ahead would have the socket"),
    ] {
        let shown = complaints(&format!("{UDP}wait = true\n{keys}"));
        assert!(shown.contains(why) && shown.contains("p.toml:5:"), "{keys}: {shown}");
    }
    let shown = complaints("listen = \"127.0.0.1:7\"\nhandler = \"echo\"\nwait = true");
    assert!(shown.contains("wait = true is for programs"), "{shown}");
    let shown = complaints("listen = \"127.0.0.1:7\"\nexec = [\"/bin/cat\"]\nwait = \"yes\"");
    assert!(shown.contains("wait = true"), "{shown}");
}

#[test]
fn datagrams_are_for_a_program_that_reads_them_itself() {
    let shown = complaints(UDP);
    assert!(
        shown.contains("udp:127.0.0.1:69 has no connections that could be accepted")
            && shown.contains("udp:[::1]:69 has")
            && shown.contains("add wait = true"),
        "{shown}"
    );
    let shown = complaints("listen = \"udp:127.0.0.1:7\"\nhandler = \"echo\"");
    assert!(shown.contains("is run with exec and wait = true"), "{shown}");
    let shown =
        complaints("listen = [\"udp:0.0.0.0:69\", \"udp:127.0.0.1:69\"]\nexec = [\"/bin/cat\"]\nwait = true");
    assert!(shown.contains("overlaps"), "{shown}");
    // They are other ports than those of TCP.
    service("listen = [\"udp:127.0.0.1:69\", \"127.0.0.1:69\"]\nexec = [\"/bin/cat\"]\nwait = true");
}
