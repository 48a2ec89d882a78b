//! The control socket speaks varlink: what it says is what it describes, who may not is told so, and nobody there holds up
//! anybody.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::client::{connect, echo};
use crate::support::local::{self, Who};
use crate::support::varlink::{CONTROL, Interface, Varlink, call};
use crate::support::{BINARY, Preforkd, Running, address, eventually, preforkd, proc, root, text, user};

fn config(access: &str, listen: std::net::SocketAddr) -> String {
    format!(
        "[supervisor]\n{access}\n[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 1\n\
         sandbox = {{ network = \"none\", required = false }}\n"
    )
}

fn start(access: &str) -> (Running, std::net::SocketAddr) {
    let listen = address::fresh();
    (Preforkd::run(&config(access, listen)).start(), listen)
}

fn described(client: &mut Varlink, interface: &str) -> String {
    let parameters = json!({"interface": interface});
    let reply = client.call("org.varlink.service.GetInterfaceDescription", parameters);
    reply["parameters"]["description"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
}

#[test]
fn every_reply_is_what_the_interface_says() {
    let (server, listen) = start("");
    let mut client = Varlink::to(&server);
    let service = Interface::read(&described(&mut client, "org.varlink.service"));
    let info = client.call("org.varlink.service.GetInfo", json!({}));
    service.check("GetInfo", &info);
    assert_eq!(info["parameters"]["interfaces"], json!([service.name, CONTROL]));
    assert_eq!(info["parameters"]["version"], env!("CARGO_PKG_VERSION"));

    let text_of_it = described(&mut client, CONTROL);
    let printed = preforkd(&["interface"]);
    assert_eq!(text(&printed.stdout), text_of_it);
    let interface = Interface::read(&text_of_it);
    let (mut called, mut failed) = (BTreeSet::new(), BTreeSet::new());
    let mut ask = |client: &mut Varlink, method: &str, parameters: Value| {
        let reply = client.call(method, parameters);
        called.insert(method.to_owned());
        failed.extend(interface.check(method, &reply));
        reply
    };

    let mut held = connect(listen);
    echo(&mut held, b"x");
    let status = ask(&mut client, "GetStatus", json!({}));
    assert_eq!(status["parameters"]["services"][0]["active"], 1, "{status}");
    let shown: Value =
        serde_json::from_slice(&preforkd(&["status", "--json", "--control", server.control()]).stdout)
            .unwrap();
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&shown), fields(&status["parameters"]));
    let connections =
        ask(&mut client, "ListConnections", json!({"service": "echo", "source": "127.0.0.0/8"}));
    let id = connections["parameters"]["connections"][0]["id"].clone();
    assert!(id.is_string(), "{connections}");
    ask(&mut client, "Ban", json!({"source": "192.0.2.0/24", "for_ms": 60_000}));
    ask(&mut client, "Ban", json!({"source": "user:7", "service": "echo", "kill": true}));
    let bans = ask(&mut client, "ListBans", json!({}));
    assert_eq!(bans["parameters"]["bans"].as_array().unwrap().len(), 2, "{bans}");
    let left = ask(&mut client, "Unban", json!({"source": "192.0.2.1"}));
    assert_eq!(left["error"], "org.preforkd.Control.Refused");
    ask(&mut client, "Unban", json!({"source": "192.0.2.0/24"}));
    ask(&mut client, "Kill", json!({"ids": [id]}));
    let none = ask(&mut client, "Kill", json!({"ids": ["000000-1-1"]}));
    assert_eq!(none["parameters"]["ids"], json!(["000000-1-1"]), "{none}");
    ask(&mut client, "Lameduck", json!({"service": "echo"}));
    ask(&mut client, "Pause", json!({"service": "echo"}));
    ask(&mut client, "Drain", json!({}));
    ask(&mut client, "Resume", json!({"service": null}));
    let unknown = ask(&mut client, "Resume", json!({"service": "x"}));
    assert_eq!(unknown["parameters"], json!({"service": "x", "services": ["echo"]}), "{unknown}");
    ask(&mut client, "Reload", Value::Null);
    ask(&mut client, "Upgrade", json!({}));
    ask(&mut client, "GetStatus", json!({"x": 1}));
    let nothing = client.call("GetNothing", json!({}));
    assert_eq!(nothing["parameters"], json!({"method": "org.preforkd.Control.GetNothing"}));
    let other = client.call("org.example.Get", json!({}));
    assert_eq!(other["error"], "org.varlink.service.InterfaceNotFound");
    let no_such = client.call("org.varlink.service.GetInterfaceDescription", json!({"interface": "x.y"}));
    assert_eq!(no_such["error"], "org.varlink.service.InterfaceNotFound");

    let mut last = connect(listen);
    echo(&mut last, b"x");
    server.signal(Signal::SIGTERM);
    eventually("it drains", || ask(&mut client, "GetStatus", json!({}))["parameters"]["state"] == "draining");
    let ending = ask(&mut client, "Pause", json!({"service": "echo"}));
    assert_eq!(ending["error"], "org.preforkd.Control.NotNow", "{ending}");

    let all: BTreeSet<_> = interface.methods.keys().cloned().collect();
    assert_eq!(called, all);
    let own = |name: &str| format!("{CONTROL}.{name}");
    let mut errors: BTreeSet<_> = interface.errors.keys().map(|name| own(name)).collect();
    errors.remove(&own("NotPermitted"));
    errors.insert("org.varlink.service.InvalidParameter".to_owned());
    assert_eq!(failed, errors);
}

#[test]
fn calls_are_answered_in_their_order_and_oneway_ones_not_at_all() {
    let (server, listen) = start("");
    let mut client = Varlink::to(&server);
    // In one piece, the last of them torn.
    let oneway = "{\"method\":\"org.preforkd.Control.Ban\",\"parameters\":{\"source\":\"192.0.2.7\"},\"oneway\":true}\0";
    let wrong = "{\"method\":\"org.preforkd.Control.Nothing\",\"oneway\":true}\0";
    let more = "{\"method\":\"org.preforkd.Control.ListConnections\",\"more\":true}\0";
    let bans = call("ListBans", json!({}));
    let (begin, end) = bans.split_at(20);
    let first = call("Pause", json!({"service": "echo"}));
    client.send(&[&first, oneway.as_bytes(), wrong.as_bytes(), more.as_bytes(), begin].concat());
    assert!(client.receive().unwrap()["parameters"]["text"].as_str().unwrap().contains("is paused"));
    assert_eq!(client.receive().unwrap(), json!({"parameters": {"connections": []}}));
    client.send(end);
    let bans = client.receive().unwrap();
    assert_eq!(bans["parameters"]["bans"][0]["source"], "192.0.2.7/32", "{bans}");
    // Nothing is left over.
    let resumed = client.call("Resume", json!({}));
    assert!(resumed["parameters"]["text"].as_str().unwrap().contains("accepts again"), "{resumed}");
    echo(&mut connect(listen), b"x");
    let upgraded = "{\"method\":\"org.preforkd.Control.GetStatus\",\"upgrade\":true}\0";
    client.send(upgraded.as_bytes());
    assert_eq!(client.receive().unwrap()["parameters"], json!({"parameter": "upgrade"}));
}

#[test]
fn a_connection_outlives_an_upgrade() {
    let (server, _) = start("");
    let (mut idle, mut client) = (Varlink::to(&server), Varlink::to(&server));
    assert!(idle.call("GetStatus", json!({}))["parameters"]["upgrades"] == 0);
    // What comes behind the upgrade is for the next program.
    client.send(&[call("Upgrade", json!({})), call("GetStatus", json!({}))].concat());
    let done = client.receive().unwrap();
    assert!(done["parameters"]["text"].as_str().unwrap().starts_with("upgraded to"), "{done}");
    assert_eq!(client.receive().unwrap()["parameters"]["upgrades"], 1);
    assert_eq!(idle.call("GetStatus", json!({}))["parameters"]["upgrades"], 1);
}

#[test]
fn nonsense_ends_one_connection_and_holds_up_nobody() {
    let (server, _) = start("");
    let mut others: Vec<_> = (0..3).map(|_| Varlink::to(&server)).collect();
    let half = call("GetStatus", json!({}));
    for other in &mut others {
        other.send(&half[..10]);
    }
    for wrong in
        [&b"\0"[..], b"{}\0", b"[1]\0", b"{\"method\":7}\0", b"GET / HTTP/1.0\r\n\r\n\0", &[b'x'; 70_000]]
    {
        let mut client = Varlink::to(&server);
        // It may be gone before the end of it.
        let _ = client.try_send(wrong);
        assert_eq!(client.receive(), None, "{}", wrong[..10.min(wrong.len())].escape_ascii());
    }
    for other in &mut others {
        other.send(&half[10..]);
        assert_eq!(other.receive().unwrap()["parameters"]["state"], "running");
    }
}

#[test]
fn who_has_called_makes_no_room_for_a_newcomer() {
    let (server, _) = start("");
    let status = call("GetStatus", json!({}));
    let is_answered = |client: &mut Varlink| client.receive().unwrap()["parameters"]["state"] == "running";
    // So many as may be connected at once: the last makes nobody leave, in whatever portions they are accepted.
    let mut clients: Vec<_> = (0..31).map(|_| Varlink::to(&server)).collect();
    for client in &mut clients {
        client.send(&status);
        assert!(is_answered(client));
    }
    clients.push(Varlink::to(&server));
    for client in &mut clients {
        client.send(&status);
        assert!(is_answered(client));
    }
    // It hears of the newcomers first, and of the calls of the others in the same turn.
    proc::stop(server.pid());
    let mut newcomers: Vec<_> = (0..8).map(|_| Varlink::to(&server)).collect();
    clients.iter_mut().chain(&mut newcomers).for_each(|client| client.send(&status));
    server.signal(Signal::SIGCONT);
    assert!(clients.iter_mut().chain(&mut newcomers).all(is_answered));
}

#[test]
fn commands_of_another_age_are_told_so() {
    let (server, _) = start("");
    let mut old = UnixStream::connect(server.control()).unwrap();
    old.write_all(b"{\"command\":\"status\"}\n").unwrap();
    let mut said = String::new();
    old.read_to_string(&mut said).unwrap();
    assert!(
        said.starts_with("{\"refused\":\"the running preforkd is newer") && said.ends_with("}\n"),
        "{said}"
    );

    // As the supervisor was before: what is no command of its own ends the connection at the end of its line.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        BufReader::new(stream).read_until(b'\n', &mut Vec::new()).unwrap()
    });
    let output = preforkd(&["upgrade", "--control", path.to_str().unwrap()]);
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(
        text(&output.stderr).contains("of an older version; then restart it"),
        "{}",
        text(&output.stderr)
    );
}

/// What comes of a command as somebody.
fn told(who: Who<'_>, server: &Running, arguments: &[&str]) -> (Option<i32>, String) {
    let command = [&[BINARY, arguments[0], "--control", server.control()], &arguments[1..]].concat();
    let output = who.run(&command);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

const LOOKING: [&[&str]; 3] = [&["status"], &["connections"], &["bans"]];
const ACTING: [&[&str]; 6] = [
    &["pause", "echo"],
    &["resume"],
    &["ban", "192.0.2.1"],
    &["unban", "192.0.2.1"],
    &["reload"],
    &["lameduck", "echo"],
];

#[test]
fn a_group_may_look_and_another_may_act() {
    if !root("other users") {
        return;
    }
    let [look, act, other, owner] = [301, 302, 303, 304].map(user);
    let (server, _) = start(&format!("control_access = {{ user = {owner}, look = {look}, act = {act} }}"));
    let who = |groups| Who { uid: user(310), gid: user(310), groups };
    let by_effective = Who { gid: act, ..who(&[]) };
    let owner = Who { uid: owner, gid: other, groups: &[] };
    let (lookers, actors) = ([look, other], [other, act]);
    let (looker, actor, stranger) = (who(&lookers), who(&actors), who(&[]));
    for command in LOOKING {
        for somebody in [looker, actor, by_effective, owner] {
            let (code, said) = told(somebody, &server, command);
            assert_eq!(code, Some(0), "{command:?}: {said}");
        }
        let (code, said) = told(stranger, &server, command);
        assert_eq!(code, Some(77), "{command:?}: {said}");
        let (uid, groups) = (stranger.uid, format!("in group {look} or {act}"));
        assert!(said.contains(&format!("uid {uid} may not see")) && said.contains(&groups), "{said}");
    }
    for command in ACTING {
        for somebody in [actor, by_effective, owner] {
            let (code, said) = told(somebody, &server, command);
            assert_eq!(code, Some(0), "{command:?}: {said}");
        }
        for somebody in [looker, stranger] {
            let (code, said) = told(somebody, &server, command);
            assert_eq!(code, Some(77), "{command:?}: {said}");
            assert!(said.contains(&format!("whoever is in group {act}")), "{command:?}: {said}");
        }
    }
    let asked = format!("uid {} asks: Lameduck", actor.uid);
    server.log.wait("an account of it", |line| line.contains(&asked));
    assert_eq!(server.log.count(|line| line.contains("asks: GetStatus")), 0);

    // The same in varlink.
    let call = format!("{{\"method\":\"{CONTROL}.Reload\"}}");
    let script = "use IO::Socket::UNIX; my ($peer, $call) = @ARGV; my $s = IO::Socket::UNIX->new(Peer => $peer) or die; \
         $s->autoflush; print $s \"$call\\0\"; local $/ = \"\\0\"; my $reply = <$s>; chop $reply; print $reply";
    let output = looker.run(&["perl", "-e", script, server.control(), &call]);
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut client = Varlink::to(&server);
    let interface = Interface::read(&described(&mut client, CONTROL));
    let error = interface.check("Reload", &reply);
    assert_eq!(error.as_deref(), Some("org.preforkd.Control.NotPermitted"));
    assert_eq!(reply["parameters"]["needs"], "act");
    assert_eq!(reply["parameters"]["group"], act.to_string());
}

#[test]
fn the_file_lets_in_as_few_as_it_can() {
    if !root("other users") {
        return;
    }
    let [one, other, owner] = [301, 302, 304].map(user);
    let (server, listen) = start("");
    let file = || local::access(std::path::Path::new(server.control()));
    assert_eq!(file(), (0, 0, 0o600));
    for (access, wanted) in [
        (format!("{{ look = {one} }}"), (0, one, 0o660)),
        (format!("{{ act = {one}, look = {one} }}"), (0, one, 0o660)),
        (format!("{{ user = {owner}, act = {other} }}"), (owner, other, 0o660)),
        (format!("{{ look = {one}, act = {other} }}"), (0, 0, 0o666)),
        (format!("{{ user = {owner} }}"), (owner, 0, 0o600)),
        ("{}".to_owned(), (0, 0, 0o600)),
    ] {
        server.configure(&config(&format!("control_access = {access}"), listen));
        server.reload_ok();
        assert_eq!(file(), wanted, "{access}");
    }
    let nobody = Who { uid: user(310), gid: user(310), groups: &[] };
    let (code, said) = told(nobody, &server, &["status"]);
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains("only root and the user that preforkd runs as may"), "{said}");
    server.configure(&config(&format!("control_access = {{ look = {one} }}"), listen));
    server.reload_ok();
    let (code, said) = told(nobody, &server, &["status"]);
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains(&format!("whoever is in group {one} may")), "{said}");
}

#[test]
fn a_reload_takes_a_right_from_who_is_connected() {
    if !root("other users") {
        return;
    }
    let group = user(301);
    let (server, listen) = start(&format!("control_access = {{ look = {group} }}"));
    let looker = Who { uid: user(310), gid: group, groups: &[] };
    let script = "use IO::Socket::UNIX; my ($peer, $call) = @ARGV; my $s = IO::Socket::UNIX->new(Peer => $peer) or die; \
         $s->autoflush; local $/ = \"\\0\"; $| = 1; while (1) { print $s \"$call\\0\"; my $r = <$s>; chop $r; print \"$r\\n\"; \
         last if $r =~ /error/ }";
    let call = format!("{{\"method\":\"{CONTROL}.ListBans\"}}");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| looker.run(&["perl", "-e", script, server.control(), &call]));
        eventually("he asks", || is_heard(&server));
        server.configure(&config("", listen));
        server.reload_ok();
        let said = text(&asking.join().unwrap().stdout);
        assert!(said.contains("NotPermitted") && said.contains("control_access names no group"), "{said}");
    });
}

/// Whether somebody has a connection to the control socket: /proc/net/unix has the supervisor's end of it, too.
fn is_heard(server: &Running) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let connected = |line: &&str| line.ends_with(server.control()) && line.contains(" 0001 03 ");
    sockets.lines().filter(connected).count() > 0
}

#[test]
fn who_may_only_look_cannot_keep_out_who_may_act() {
    if !root("other users") {
        return;
    }
    let [look, act] = [301, 302].map(user);
    let (server, _) = start(&format!("control_access = {{ look = {look}, act = {act} }}"));
    let status = format!("{{\"method\":\"{CONTROL}.GetStatus\"}}");
    let half = format!("{{\"method\":\"{CONTROL}.GetSta");
    // More of each than may be connected; they read nothing, or ask nothing whole.
    let besiegers: Vec<_> = (0..3)
        .map(|number| {
            let who = Who { uid: user(320 + number), gid: look, groups: &[] };
            (who.besiege(server.control(), 40, &status), who.besiege(server.control(), 40, &half))
        })
        .collect();
    assert!(besiegers.iter().all(|(one, other)| one.served && other.served));
    let actor = Who { uid: user(310), gid: act, groups: &[] };
    for _ in 0..3 {
        let (code, said) = told(actor, &server, &["resume"]);
        assert_eq!(code, Some(0), "{said}");
        server.reload_ok();
    }
}

#[test]
fn what_could_give_strangers_the_control_socket_is_refused() {
    if !root("other users") {
        return;
    }
    let [one, other] = [301, 302].map(user);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("preforkd.toml");
    for (access, keys, said) in [
        ("act = 301", "user = 302\ngroup = 301", "connection processes of service \"echo\" are in group 301"),
        ("look = 301", "user = 302\ngroup = 301", "control_access.look"),
        ("user = 302", "user = 302\ngroup = 301", "connection processes of service \"echo\" are user 302"),
        ("act = 65534", "", "whom it does not know"),
        ("acts = 301", "", "did you mean \"act\"?"),
        ("act = \"no-such-group\"", "", "is no group of this machine"),
        ("act = true", "", "true"),
    ] {
        let ids = |text: &str| text.replace("301", &one.to_string()).replace("302", &other.to_string());
        let config = config(&format!("control_access = {{ {access} }}"), address::fresh()) + keys + "\n";
        crate::support::write(&path, &ids(&config));
        let output = preforkd(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{access}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(&ids(said)) && stderr.contains("preforkd.toml:2:"), "{access}: {stderr}");
    }
}
