//! What each process of preforkd has of those that made it: exactly these descriptors, these variables and this memory, whatever
//! its kind and however it was made. What is not listed here is not there.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::client::{connect, try_echo};
use crate::support::{Preforkd, Running, address, eventually, proc, root};

/// In the environment of the supervisor, of which nobody hears.
const OF_SUPERVISOR: &str = "secret-of-the-supervisor";

/// In the environment of another service's programs.
const OF_ANOTHER: &str = "secret-of-another-service";

/// In a credential of another service.
const CREDENTIAL: &str = "secret-credential-of-another";

/// The descriptors of a process, by what they are.
fn descriptors(pid: i32) -> Vec<String> {
    let mut kinds: Vec<String> = proc::descriptors(pid)
        .into_iter()
        .map(|(number, path)| {
            let path = path.display().to_string();
            let kind = match path.split_once(":[") {
                Some(("socket", _)) if is_listener(pid, number) => "listener".to_owned(),
                Some((kind, _)) if kind != "anon_inode" => kind.to_owned(),
                Some((_, kind)) => kind.trim_end_matches(']').to_owned(),
                None => path.trim_start_matches('/').replace(" (deleted)", ""),
            };
            if number <= 3 { format!("{number} {kind}") } else { kind }
        })
        .collect();
    kinds.sort();
    kinds
}

fn is_listener(pid: i32, number: u32) -> bool {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap_or_default();
    let link = link.display().to_string();
    proc::listening(&format!("/proc/{pid}/net/tcp"))
        .iter()
        .any(|(_, inode)| link == format!("socket:[{inode}]"))
}

/// The names of the variables that a process was started with.
fn variables(pid: i32) -> Vec<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let text = String::from_utf8(environment).unwrap();
    let names = text.split('\0').filter_map(|variable| Some(variable.split_once('=')?.0.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The memory that a process shares with others.
fn shared_memory(pid: i32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let names =
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|access| access.ends_with('s')));
    let mut names: Vec<String> =
        names.map(|line| line.rsplit('/').next().unwrap().replace(" (deleted)", "")).collect();
    names.sort();
    names.dedup();
    names
}

/// Those of these that are anywhere in the memory of a process.
fn known<'a>(pid: i32, secrets: &[&'a str]) -> Vec<&'a str> {
    const PAGE: u64 = 4096;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let open = |file: &str| std::fs::File::open(format!("/proc/{pid}/{file}")).unwrap();
    let (memory, pages) = (open("mem"), open("pagemap"));
    let mut found: Vec<&str> = Vec::new();
    for line in maps.lines() {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|place| u64::from_str_radix(place, 16).unwrap());
        let mut entries = vec![0; usize::try_from((end - start) / PAGE * 8).unwrap()];
        let length = pages.read_at(&mut entries, start / PAGE * 8).unwrap_or(0);
        // Of what it has not touched there is nothing, and what is as in its file is nobody's; both are much.
        // proc_pid_pagemap(5): present or in swap, and of a file.
        let has_file = line.contains(" /") && !line.ends_with(" (deleted)");
        let is_there: Vec<bool> = entries[..length]
            .chunks_exact(8)
            .map(|entry| entry[7] & 0xc0 != 0 && !(has_file && entry[7] & 0x20 != 0))
            .collect();
        let mut text = Vec::new();
        for (index, _) in is_there.iter().enumerate().filter(|(_, is_there)| **is_there) {
            let mut page = [0; PAGE as usize];
            // The kernel's own pages cannot be read.
            let length = memory.read_at(&mut page, start + index as u64 * PAGE).unwrap_or(0);
            text.extend_from_slice(&page[..length]);
        }
        let text = String::from_utf8_lossy(&text);
        found.extend(secrets.iter().filter(|secret| text.contains(**secret)));
    }
    found.sort_unstable();
    found.dedup();
    found
}

struct Found {
    /// The process that serves.
    serving: i32,
    /// The spares that wait.
    waiting: Vec<i32>,
    /// The first processes of namespaces.
    inits: Vec<i32>,
}

/// The children of the first service's worker.
fn find(server: &Running, worker: i32, client: SocketAddr) -> Found {
    let all = proc::descendants(worker);
    let inits: Vec<i32> =
        all.iter().filter(|process| process.name == "preforkd-init").map(|process| process.pid).collect();
    let mut others: Vec<i32> =
        all.iter().map(|process| process.pid).filter(|pid| !inits.contains(pid)).collect();
    // Its socket is that of this connection.
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", server.pid())).unwrap();
    let port = format!(":{:04X}", client.port());
    // Other tests may have had a connection with this number, which is nobody's any more.
    let sockets: Vec<_> = table
        .lines()
        .filter(|line| line.contains(&port))
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.get(2)?.ends_with(&port).then(|| format!("socket:[{}]", fields[9]))
        })
        .collect();
    let is_it = |path: &Path| sockets.iter().any(|socket| path == Path::new(socket));
    let has = |pid: &i32| proc::descriptors(*pid).iter().any(|(_, path)| is_it(path));
    let place = others.iter().position(has).unwrap_or_else(|| panic!("nobody serves: {all:?}"));
    let serving = others.remove(place);
    Found { serving, waiting: others, inits }
}

fn list(words: &str) -> Vec<String> {
    let mut list: Vec<String> =
        words.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    list.sort();
    list
}

const OF_PROGRAM: &str = "PATH, PREFORKD_CONNECTION, PREFORKD_SERVICE, PROTO, REMOTE_ADDR, REMOTE_PORT, TCPLOCALIP, TCPLOCALPORT, \
                          TCPREMOTEIP, TCPREMOTEPORT";

#[test]
fn every_process_has_what_it_needs_and_nothing_else() {
    if !root("another user, and a look into memory") {
        return;
    }
    let (handler, cat) = ("handler = \"echo\"", "exec = [\"/bin/cat\"]");
    let listen_fds = "exec = [\"/bin/sh\", \"-c\", \"exec cat <&3 >&3\"]\nconnection = \"listen-fds\"";
    let user = "user = 4711\ngroup = 4711";
    let spare = "spare = 2";
    let pids = "sandbox = { pid_namespace = true }";
    let sources = "max_connections_per_source = 5";
    let (connection, stdio) = ("socket", "0 socket, 1 socket, 2 pipe");
    // What a spare waits with: the leash, where it tells that it was taken and what went wrong, and what wakes its worker.
    let waits = "0 dev/null, 1 dev/null, 2 dev/null, 3 eventpoll, listener, pipe, pipe, pipe, eventfd";
    let waits_for_program =
        "0 dev/null, 1 dev/null, 2 pipe, 3 eventpoll, listener, pipe, pipe, pipe, eventfd, socket";
    let waits_with_sources = &format!("{waits}, memfd:preforkd-sources");
    let program_waits_with_sources = &format!("{waits_for_program}, memfd:preforkd-sources");
    let serves_several = &format!("{waits}, {connection}");
    for (job, keys, serving, waiting, more) in [
        (handler, String::new(), connection, "", None),
        (handler, user.to_owned(), connection, "", None),
        (handler, pids.to_owned(), connection, "", None),
        (handler, spare.to_owned(), connection, waits, None),
        (handler, format!("{spare}\n{user}\n{pids}"), connection, waits, None),
        (handler, format!("{spare}\n{sources}"), connection, waits_with_sources, None),
        (handler, "connections_per_child = 5".to_owned(), serves_several, waits, None),
        (cat, String::new(), stdio, "", Some("")),
        (cat, user.to_owned(), stdio, "", Some("")),
        (cat, pids.to_owned(), stdio, "", Some("")),
        (cat, sources.to_owned(), stdio, "", Some("")),
        (cat, spare.to_owned(), stdio, waits_for_program, Some("")),
        (cat, format!("{spare}\n{user}\n{sources}"), stdio, program_waits_with_sources, Some("")),
        (cat, format!("{spare}\n{pids}"), stdio, waits_for_program, Some("")),
        (
            listen_fds,
            String::new(),
            "0 socket, 1 socket, 2 pipe, 3 socket",
            "",
            Some("LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, PWD"),
        ),
    ] {
        let case = &format!("{job} {keys}");
        let [at, another] = [(); 2].map(|()| address::fresh());
        let config = format!(
            "[service.one]\nlisten = \"{at}\"\nworkers = 1\n{job}\n{keys}\n\
             [service.two]\nlisten = \"{another}\"\nworkers = 1\nexec = [\"/bin/cat\"]\ncredentials = [\"of-two\"]\n\
             [service.two.environment]\nSECRET = \"{OF_ANOTHER}\"\n"
        );
        // It has been left a descriptor, and variables.
        let server = Preforkd::run(&config).script("given/of-two", CREDENTIAL);
        let given = server.dir().join("given").display().to_string();
        let server = server
            .env("SECRET", OF_SUPERVISOR)
            .env("CREDENTIALS_DIRECTORY", &given)
            .after("exec 9</dev/zero")
            .start();
        let worker = server.status()["services"][0]["workers"][0]["pid"].as_i64().unwrap() as i32;
        let other = server.status()["services"][1]["workers"][0]["pid"].as_i64().unwrap() as i32;
        let wanted_spares = if keys.contains(spare) { 2 } else { 0 };
        eventually("spares", || server.status()["services"][0]["spares"] == wanted_spares || job == handler);
        let mut client = connect(at);
        try_echo(&mut client, b"x").unwrap();
        let mut neighbour = connect(another);
        try_echo(&mut neighbour, b"x").unwrap();

        if keys.contains(pids) {
            let children =
                || proc::descendants(worker).into_iter().filter(|process| process.parent == worker);
            eventually("they have their names", || children().all(|process| process.name == "preforkd-init"));
        }
        let found = find(&server, worker, client.local_addr().unwrap());
        assert_eq!(descriptors(found.serving), list(serving), "{case}");
        assert_eq!(shared_memory(found.serving), list(""), "{case}");
        let expected = more.map_or_else(Vec::new, |more| list(&format!("{OF_PROGRAM}, {more}")));
        assert_eq!(variables(found.serving), expected, "{case}");
        let has_sources = waiting.contains("sources");
        for spare in &found.waiting {
            eventually(&format!("{case}: {:?}", descriptors(*spare)), || {
                descriptors(*spare) == list(waiting)
            });
            assert_eq!(
                shared_memory(*spare),
                list(if has_sources { "memfd:preforkd-sources" } else { "" }),
                "{case}"
            );
            assert_eq!(variables(*spare), list(""), "{case}");
        }
        assert_eq!(found.waiting.is_empty(), waiting.is_empty(), "{case}");
        assert_eq!(found.inits.is_empty(), !keys.contains(pids), "{case}");
        for init in &found.inits {
            assert_eq!(descriptors(*init), list(""), "{case}");
            assert_eq!((shared_memory(*init), variables(*init)), (vec![], vec![]), "{case}");
        }
        // All but the supervisor and the service that they belong to.
        let own = [&[worker, found.serving][..], &found.waiting, &found.inits].concat();
        for pid in &own {
            let known = known(*pid, &[OF_SUPERVISOR, OF_ANOTHER, CREDENTIAL]);
            assert!(known.is_empty(), "{case}: {pid} has {known:?}");
            assert!(!descriptors(*pid).iter().any(|kind| kind.contains("zero")), "{case}: {pid}");
        }
        let of_worker = list("memfd:preforkd-counters, memfd:preforkd-scoreboard, memfd:preforkd-sources");
        assert_eq!((shared_memory(worker), variables(worker)), (of_worker, vec![]), "{case}");
        // This test finds what there is.
        assert_eq!(known(server.pid(), &[OF_SUPERVISOR, OF_ANOTHER]).len(), 2);
        assert_eq!(known(other, &[OF_ANOTHER]).len(), 1);
        let listeners = |pid: i32| descriptors(pid).iter().filter(|kind| kind.contains("listener")).count();
        assert_eq!((listeners(server.pid()), listeners(worker)), (2, 1), "{case}");
    }
}

/// A connection of one client, when others of the same service are live: their sockets are not its.
#[test]
fn no_connection_process_has_the_connection_of_another() {
    for job in [
        "handler = \"echo\"",
        "exec = [\"/bin/cat\"]",
        "handler = \"echo\"\nspare = 2",
        "exec = [\"/bin/cat\"]\nspare = 2",
    ] {
        let at = address::fresh();
        let server = Preforkd::run(&format!("[service.x]\nlisten = \"{at}\"\nworkers = 1\n{job}\n")).start();
        let mut clients: Vec<TcpStream> = (0..5).map(|_| connect(at)).collect();
        clients.iter_mut().for_each(|client| try_echo(client, b"x").unwrap());
        let worker = server.worker();
        for client in &clients {
            let found = find(&server, worker, client.local_addr().unwrap());
            let mut sockets: Vec<_> = proc::descriptors(found.serving)
                .into_iter()
                .map(|(_, path)| path)
                .filter(|path| path.to_string_lossy().starts_with("socket:"))
                .collect();
            sockets.dedup();
            assert_eq!(sockets.len(), 1, "{job}: {sockets:?}");
        }
    }
}
