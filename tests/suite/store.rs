//! What systemd keeps of the listeners, as far as it is told; tests/systemd asks systemd itself.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::life::echo_service;
use crate::support::client::{connect, connect_unix, echo, exchange, exchange_unix, finish, refused};
use crate::support::{Preforkd, Running, address, eventually};

/// What systemd has in its store by now: for each name how many sockets, by what it was told. The removal of a name is for
/// all that have it, sd_notify(3).
fn stored(server: &Running) -> BTreeMap<String, usize> {
    let mut store = BTreeMap::new();
    let mut stores = false;
    for line in server.notify.all() {
        match line.as_str() {
            "FDSTORE=1" => stores = true,
            "FDSTOREREMOVE=1" => stores = false,
            _ => match line.strip_prefix("FDNAME=") {
                Some(name) if stores => *store.entry(name.to_owned()).or_default() += 1,
                Some(name) => {
                    store.remove(name);
                }
                None => {}
            },
        }
    }
    store
}

fn name(address: &impl ToString) -> String {
    format!("preforkd={}", address.to_string().replace(':', "%3A"))
}

/// Whether systemd has a socket for this address.
fn is_stored(server: &Running, address: SocketAddr) -> bool {
    stored(server).contains_key(&name(&address))
}

/// A service that serves one at a time.
fn one_at_a_time(listen: &str) -> String {
    format!("[service.echo]\nlisten = [\"{listen}\"]\nhandler = \"echo\"\nworkers = 1\nmax_connections = 1\n")
}

/// Another one, so that there always is one.
fn other() -> String {
    echo_service(address::fresh(), "workers = 1").replace(".echo", ".other")
}

/// An address that its old worker still empties, because one is served and others are queued.
struct Emptied {
    server: Running,
    listen: SocketAddr,
    /// The configuration without it.
    without: String,
    clients: Vec<std::net::TcpStream>,
}

impl Emptied {
    fn new() -> Self {
        let (listen, without) = (address::fresh(), other());
        let server = Preforkd::run(&(one_at_a_time(&listen.to_string()) + &without)).own_copy().start();
        let mut clients = vec![connect(listen)];
        echo(&mut clients[0], b"x");
        clients.extend((0..3).map(|_| connect(listen)));
        assert!(is_stored(&server, listen));
        server.configure(&without);
        server.reload_ok();
        eventually("it is removed from the store", || !is_stored(&server, listen));
        Self { server, listen, without, clients }
    }

    /// Gives the address to a service of this name again.
    fn take_back(&self, service: &str) {
        let again = one_at_a_time(&self.listen.to_string()).replace(".echo", &format!(".{service}"));
        self.server.configure(&(again + &self.without));
        self.server.reload_ok();
    }

    /// Whoever was queued is served, whoever comes is served, and systemd has it as long as it is open.
    fn check_open_and_stored(mut self) {
        let (server, listen) = (&self.server, self.listen);
        eventually("an address that is taken back is stored again", || is_stored(server, listen));
        for client in self.clients.drain(..) {
            let answer = finish(client, b"y");
            assert!(answer == b"y", "{answer:?}");
        }
        assert_eq!(exchange(listen, b"z"), b"z");
        eventually("only new workers", || server.all_workers().len() == 2);
        assert_eq!(exchange(listen, b"z"), b"z");
        assert!(is_stored(server, listen), "{:?}", stored(server));
        server.configure(&self.without);
        server.reload_ok();
        eventually("it is removed in the end", || !is_stored(server, listen));
        assert!(refused(listen));
    }
}

#[test]
fn an_address_that_is_taken_back_while_it_is_emptied_is_stored_again() {
    for service in ["echo", "new"] {
        let emptied = Emptied::new();
        emptied.take_back(service);
        emptied.check_open_and_stored();
    }
}

#[test]
fn an_address_that_is_taken_back_after_an_upgrade_is_stored_again() {
    let emptied = Emptied::new();
    assert!(emptied.server.upgrade().status.success());
    emptied.take_back("echo");
    emptied.check_open_and_stored();
}

#[test]
fn an_address_that_is_taken_back_is_stored_also_for_the_program_after_an_upgrade() {
    let emptied = Emptied::new();
    emptied.take_back("echo");
    assert!(emptied.server.upgrade().status.success());
    emptied.check_open_and_stored();
}

#[test]
fn an_address_that_is_taken_back_by_a_rejected_reload_is_not_kept() {
    let mut emptied = Emptied::new();
    let (server, listen) = (&emptied.server, emptied.listen);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let wrong = echo_service(taken.local_addr().unwrap(), "").replace(".echo", ".wrong");
    server.configure(&(one_at_a_time(&listen.to_string()) + &emptied.without + &wrong));
    assert_eq!(server.reload().status.code(), Some(78));
    for client in emptied.clients.drain(..) {
        assert_eq!(finish(client, b"y"), b"y");
    }
    eventually("the old worker is gone", || server.all_workers().len() == 1);
    eventually("nobody listens", || refused(listen));
    eventually("nothing is left of it in the store", || !is_stored(server, listen));
}

/// A Unix socket that its old worker still empties; `DIR/service.sock` is at this path.
fn emptied_unix() -> (Running, String, Vec<std::os::unix::net::UnixStream>) {
    let without = other();
    let server = Preforkd::run(&(one_at_a_time("unix:DIR/service.sock") + &without)).own_copy().start();
    let path = server.dir().join("service.sock");
    let mut clients = vec![connect_unix(&path)];
    clients[0].write_all(b"x").unwrap();
    clients[0].read_exact(&mut [0]).unwrap();
    clients.extend((0..3).map(|_| connect_unix(&path)));
    server.configure(&without);
    server.reload_ok();
    assert!(!path.exists());
    (server, without, clients)
}

fn take_back_unix(server: &Running, without: &str) {
    server.configure(&(one_at_a_time("unix:DIR/service.sock") + without));
    server.reload_ok();
}

/// The path is served by a socket of its own, now and when the one before it is gone, and systemd has one of that name.
fn is_served_again(server: &Running, mut clients: Vec<std::os::unix::net::UnixStream>) {
    let path = &server.dir().join("service.sock");
    let address = format!("unix:{}", path.display());
    assert!(path.exists(), "nobody can connect");
    let inode = path.metadata().unwrap().ino();
    assert_eq!(server.service()["listen"], serde_json::json!([address]), "and at nothing else");
    clients.push(connect_unix(path));
    for client in &mut clients {
        client.write_all(b"y").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
    }
    for mut client in clients {
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"y", "who was queued at either is served");
    }
    eventually("only new workers", || server.all_workers().len() == 2);
    // Whatever the end of the old socket made it say has been said.
    server.reload_ok();
    assert_eq!(path.metadata().map(|file| file.ino()).ok(), Some(inode), "its file is another's");
    eventually("systemd keeps it, once", || stored(server).get(&name(&address)) == Some(&1));
    assert_eq!(exchange_unix(path, b"z"), b"z");
}

#[test]
fn a_unix_socket_that_closes_leaves_its_successor_alone() {
    let (server, without, clients) = emptied_unix();
    take_back_unix(&server, &without);
    is_served_again(&server, clients);
}

#[test]
fn a_unix_socket_that_closes_leaves_its_successor_alone_also_after_an_upgrade() {
    let (server, without, clients) = emptied_unix();
    take_back_unix(&server, &without);
    assert!(server.upgrade().status.success());
    is_served_again(&server, clients);
}

#[test]
fn a_unix_socket_that_closes_over_an_upgrade_has_a_successor() {
    let (server, without, clients) = emptied_unix();
    assert!(server.upgrade().status.success());
    take_back_unix(&server, &without);
    is_served_again(&server, clients);
}

#[test]
fn a_unix_socket_whose_file_somebody_removed_is_made_again_by_a_reload() {
    let config = echo_service(address::fresh(), "workers = 1")
        .replace("listen = [", "listen = [\"unix:DIR/service.sock\", ");
    let server = Preforkd::run(&config).start();
    let path = server.dir().join("service.sock");
    let address = format!("unix:{}", path.display());
    for change in ["", "max_connections = 7\n"] {
        std::fs::remove_file(&path).unwrap();
        server.configure(&(config.clone() + change));
        server.reload_ok();
        assert_eq!(exchange_unix(&path, b"x"), b"x");
        eventually("systemd keeps it, once", || stored(&server).get(&name(&address)) == Some(&1));
    }
    // Somebody else's is not taken.
    std::fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(server.reload().status.code(), Some(78));
    assert!(path.exists());
    drop(other);
    server.reload_ok();
    assert_eq!(exchange_unix(&path, b"x"), b"x");
}

/// What systemd takes as a name; all else is stored as "stored": `fdname_is_valid` in its src/basic/fd-util.c.
fn systemd_takes(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b':')
}

/// Paths in this directory of which one or the other byte is not as in most names, and some so long that no escapes
/// would fit.
fn odd_paths(dir: &Path) -> Vec<String> {
    let long = |what: &str| what.repeat((107 - dir.to_str().unwrap().len() - 1) / what.len());
    let names = [
        "ä.sock".to_owned(),
        "a name with spaces".to_owned(),
        "50%:3A%25%".to_owned(),
        "a\ttab, a\nnewline, a\u{7f}delete".to_owned(),
        "\u{85}\u{2028}".to_owned(),
        "'\"$HOME`\\=".to_owned(),
        long("ä"),
        long("日本"),
        long("%"),
        long(":"),
        long("\u{1}"),
        long("x"),
    ];
    names.iter().map(|name| format!("{}/{name}", dir.display())).collect()
}

/// The name under which systemd is given the one socket of this service, whatever is in it.
fn announced(server: &Running) -> String {
    let lines = server.notify.all().join("\n");
    let (_, tail) = lines.split_once("FDNAME=").unwrap_or_else(|| panic!("no name: {lines}"));
    // Nothing but the name is in its message after it, see `Preforkd::start`.
    tail.split("\nREADY=1").next().unwrap().to_owned()
}

/// For each of the odd paths: one serves there, and has the socket stored. What `next` says, who gets the address and the
/// name that systemd has for it, is wrong.
fn at_odd_paths(next: impl Fn(&str, &str) -> Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for path in odd_paths(dir.path()) {
        let listen = format!("unix:{path}");
        let first = Preforkd::serve(&["--workers", "1"], &listen, &["echo"]).start();
        first.notify.wait("ready", |line| line == "READY=1");
        let name = announced(&first);
        drop(first);
        let is_taken = systemd_takes(&name);
        let bytes = name.len();
        wrong.extend((!is_taken).then(|| format!("{path:?} is stored as {name:?}, {bytes} bytes")));
        wrong.extend(next(&listen, if is_taken { &name } else { "stored" }));
        let _ = std::fs::remove_file(&path);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_unix_socket_has_a_name_that_systemd_takes_and_is_taken_up_again_whatever_its_path() {
    at_odd_paths(|listen, name| {
        let second = Preforkd::serve(&["--workers", "1"], listen, &["echo"]).passing(name, listen);
        let second = second.start_unready();
        second.stdout.wait("its address, or its end", |line| {
            line.starts_with("listening on ") || line.starts_with("fence: ended")
        });
        if second.stdout.count(|line| line.starts_with("listening on ")) == 0 {
            second.wait_empty();
            return Some(format!("{listen:?} is not taken up again: {:?}", second.log.all()));
        }
        assert_eq!(exchange_unix(listen["unix:".len()..].as_ref(), b"x"), b"x");
        assert_eq!(second.notify.count(|line| line == "FDSTOREREMOVE=1"), 0, "it is still stored");
        None
    });
}

#[test]
fn a_unix_socket_that_nobody_wants_any_more_leaves_the_store_whatever_its_path() {
    at_odd_paths(|listen, name| {
        let second =
            Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).passing(name, listen).start();
        second.notify.wait("ready", |line| line == "READY=1");
        let is_removed = second.notify.count(|line| line == format!("FDNAME={name}")) > 0;
        (!is_removed).then(|| format!("{listen:?} stays in the store as {name:?}"))
    });
}

#[test]
fn two_paths_have_two_names() {
    let dir = tempfile::tempdir().unwrap();
    let paths = odd_paths(dir.path());
    // What differs is at the end, or only in how it would be written.
    let shorter = |path: &String| path.chars().take(path.chars().count() - 1).collect::<String>();
    let mut all: Vec<String> =
        paths.iter().chain(&paths.iter().map(shorter).collect::<Vec<_>>()).cloned().collect();
    all.extend(
        ["%C3%A4.sock", "a%20name%20with%20spaces", "a+name+with+spaces"]
            .map(|name| format!("{}/{name}", dir.path().display())),
    );
    let listen = all.iter().map(|path| format!("{:?}", format!("unix:{path}"))).collect::<Vec<_>>();
    let listen = listen.join(", ").replace("\\u{1}", "\\u0001").replace("\\u{7f}", "\\u007f");
    let listen = listen.replace("\\u{85}", "\\u0085").replace("\\u{2028}", "\\u2028").replace("\\'", "'");
    let server =
        Preforkd::run(&format!("[service.echo]\nlisten = [{listen}]\nhandler = \"echo\"\nworkers = 1\n"))
            .start();
    let store = stored(&server);
    assert!(store.keys().all(|name| systemd_takes(name)), "{store:#?}");
    assert!(store.len() == all.len() && store.values().all(|&sockets| sockets == 1), "{store:#?}");
}

#[test]
fn names_that_an_older_preforkd_gave_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    // It escaped percent signs and colons, and nothing else.
    for file in ["plain.sock", "50%:3A, with spaces", "%2541", "a\\b'c\"d=~"] {
        let path = format!("{}/{file}", dir.path().display());
        let old = format!("preforkd=unix%3A{}", path.replace('%', "%25").replace(':', "%3A"));
        let listen = format!("unix:{path}");
        let server = Preforkd::serve(&["--workers", "1"], &listen, &["echo"]).passing(&old, &listen).start();
        assert_eq!(exchange_unix(path.as_ref(), b"x"), b"x");
        // systemd must not have it under two names, one of which nobody would ever remove.
        let mut store = stored(&server);
        store.entry(old.clone()).or_insert(1);
        let removed = server.notify.count(|line| line == format!("FDNAME={old}")) > 0;
        assert!(store.len() == 1 || removed, "{store:?}");
    }
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let old = format!("preforkd={}", address.replace(':', "%3A"));
        let server = Preforkd::serve(&["--workers", "1"], address, &["echo"]).passing(&old, address).start();
        assert_eq!(server.address(), server.passed_address());
    }
}

#[test]
fn a_socket_that_systemd_stored_without_its_name_is_recognised_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}/ä.sock", dir.path().display());
    let server = Preforkd::serve(&["--workers", "1"], &listen, &["echo"]).passing("stored", &listen).start();
    assert_eq!(exchange_unix(listen["unix:".len()..].as_ref(), b"x"), b"x");
    // It has a name from now on.
    server.notify.wait("removed", |line| line == "FDNAME=stored");
    eventually("stored", || stored(&server).len() == 1 && !stored(&server).contains_key("stored"));
    drop(server);
    // But somebody may have a socket unit of this name.
    let listen = format!("unix:{}/plain.sock", dir.path().display());
    let server =
        Preforkd::serve(&["--workers", "1"], "fd:stored", &["echo"]).passing("stored", &listen).start();
    assert_eq!(exchange_unix(listen["unix:".len()..].as_ref(), b"x"), b"x");
    assert!(stored(&server).is_empty());
}
