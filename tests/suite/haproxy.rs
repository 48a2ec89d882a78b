//! Behind HAProxy, the one that Debian has: it finds no fault, and its clients are known by their own addresses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::support::client::{connect, connect_from, exchange, exchange_unix, finish, try_echo};
use crate::support::haproxy::{self, Haproxy, PROXY, V1, V2, V2_FIELDS, proxy};
use crate::support::lines::Lines;
use crate::support::{BINARY, Preforkd, Running, address, eventually, say, text};

const CLIENTS: u32 = 8;

/// The two services, in this order: one that echoes, and a program that says who calls whom, and then echoes.
#[derive(Clone, Copy)]
struct Addresses {
    echo: SocketAddr,
    tell: SocketAddr,
}

impl Addresses {
    fn fresh() -> Self {
        Self { echo: address::fresh(), tell: address::fresh() }
    }

    fn both(self) -> [SocketAddr; 2] {
        [self.echo, self.tell]
    }
}

fn config(name: char, at: Addresses, keys: &str) -> String {
    let Addresses { echo, tell } = at;
    let keys = format!("proxy_protocol_from = \"{PROXY}\"\nworkers = 2\n{keys}");
    format!(
        "[supervisor]\ndrain_timeout = \"1h\"\n\
         [service.echo]\nlisten = \"{echo}\"\nhandler = \"echo\"\n{keys}\n\
         [service.tell]\nlisten = \"{tell}\"\nenvironment = {{ NAME = \"{name}\" }}\n\
         exec = [\"/bin/sh\", \"-c\", \"echo $TCPREMOTEIP:$TCPREMOTEPORT $TCPLOCALIP:$TCPLOCALPORT $NAME; exec cat\"]\n\
         {keys}\n"
    )
}

fn server(name: char, at: Addresses, keys: &str) -> Running {
    Preforkd::run(&config(name, at, keys)).own_copy().start()
}

/// What a client got the right and whole answer to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Served {
    client: SocketAddr,
    service: &'static str,
    sent: usize,
    /// Which server it was, where that can be told.
    by: Option<char>,
}

/// One client, one exchange.
fn request(source: Ipv4Addr, front: Addresses, number: usize) -> Result<Served, String> {
    let (service, called) = [("echo", front.echo), ("tell", front.tell)][number % 2];
    let failed = |step: &str, error: std::io::Error| format!("{service} {number}: {step}: {error}");
    let mut stream = connect_from(source, called).map_err(|error| failed("connect", error))?;
    let client = stream.local_addr().unwrap();
    // Some come with their header in one piece, some are more than HAProxy reads at once.
    let request = format!("{number} of {client}\n").repeat([1, 1, 700][number % 3]);
    let mut answer = Vec::new();
    stream.write_all(request.as_bytes()).map_err(|error| failed("write", error))?;
    stream.shutdown(Shutdown::Write).map_err(|error| failed("shutdown", error))?;
    stream.read_to_end(&mut answer).map_err(|error| failed("read", error))?;
    let answer = text(&answer);
    let by = "ab".chars().find(|by| answer == format!("{client} {called} {by}\n{request}"));
    if by.is_some() == (service == "tell") && (by.is_some() || answer == request) {
        return Ok(Served { client, service, sent: request.len(), by });
    }
    let head: String = answer.chars().take(100).collect();
    Err(format!("{service} {number} of {client}: {} bytes for {}: {head}", answer.len(), request.len()))
}

/// Clients that ask one thing after the other, each from an address of its own.
struct Load {
    clients: Vec<JoinHandle<Result<(), String>>>,
    served: Arc<Mutex<Vec<Served>>>,
    done: Arc<AtomicBool>,
}

impl Load {
    fn on(front: Addresses) -> Self {
        let (served, done) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let start = |client| {
            let (served, done) = (Arc::clone(&served), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut numbers = client as usize..;
                while !done.load(Ordering::Relaxed) {
                    let source = address::source(50_000 + client);
                    let one = request(source, front, numbers.next().unwrap())?;
                    served.lock().unwrap().push(one);
                }
                Ok(())
            })
        };
        Self { clients: (0..CLIENTS).map(start).collect(), served, done }
    }

    /// Waits until each of these servers has served some more.
    fn goes_on(&self, by: &[char]) {
        let before = self.served.lock().unwrap().len();
        eventually(&format!("more from {by:?}"), || {
            let served = self.served.lock().unwrap();
            let more = |by: &char| served[before..].iter().filter(|one| one.by == Some(*by)).count() >= 20;
            by.iter().all(more) || self.clients.iter().any(JoinHandle::is_finished)
        });
        assert!(!self.clients.iter().any(JoinHandle::is_finished), "a request has failed");
    }

    /// Ends it; nobody may have failed.
    fn end(mut self) -> Vec<Served> {
        self.done.store(true, Ordering::Relaxed);
        let failed: Vec<_> =
            self.clients.drain(..).filter_map(|client| client.join().unwrap().err()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        std::mem::take(&mut self.served.lock().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            if let Ok(Err(failure)) = client.join() {
                eprintln!("{failure}");
            }
        }
    }
}

/// A client that has connected, and stays.
struct Held {
    stream: BufReader<TcpStream>,
    by: char,
}

impl Held {
    /// One that is served by this server.
    fn by(server: char, front: Addresses) -> Self {
        // The other server's turn comes between two of this one's.
        let by_server = |_| Some(Self::connect(front)).filter(|held| held.by == server);
        (0..4).find_map(by_server).unwrap_or_else(|| panic!("it is never the turn of {server}"))
    }

    fn connect(front: Addresses) -> Self {
        let mut stream = BufReader::new(connect(front.tell));
        let mut greeting = String::new();
        stream.read_line(&mut greeting).unwrap();
        Self { stream, by: greeting.trim_end().chars().next_back().unwrap() }
    }

    fn echo(&mut self) {
        try_echo(self.stream.get_mut(), b"still").unwrap();
    }

    fn end(mut self) {
        self.echo();
        assert_eq!(finish(self.stream.into_inner(), b"end"), b"end");
    }
}

/// A record of a connection.
#[derive(Debug)]
struct Record {
    client: SocketAddr,
    service: String,
    received: usize,
    ended: String,
}

impl Record {
    fn parse(line: &str) -> Option<Self> {
        let (service, rest) = line.split_once(": connection ")?;
        let (client, ended) = rest.split_once(" from ")?.1.split_once(": ")?;
        let received = ended.split_once(" bytes in")?.0.rsplit(' ').next()?.parse().unwrap();
        let service = service.rsplit(' ').next()?.to_owned();
        Some(Self { client: client.parse().unwrap(), service, received, ended: ended.to_owned() })
    }

    /// All in these logs.
    fn all(logs: &[Lines]) -> Vec<Self> {
        logs.iter().flat_map(Lines::all).filter_map(|line| Self::parse(&line)).collect()
    }

    fn is_haproxys(&self) -> bool {
        self.client.ip() == PROXY
    }
}

/// Every exchange of the load has one record, which names its client and counts its bytes, and HAProxy has but checks.
fn the_log_names_the_clients(logs: &[Lines], mut served: Vec<Served>) {
    let of_load = |record: &Record| record.client.ip() != Ipv4Addr::LOCALHOST && !record.is_haproxys();
    let number = || Record::all(logs).into_iter().filter(of_load).count();
    eventually("as many records as requests", || number() >= served.len());
    let (checks, clients): (Vec<_>, Vec<_>) = Record::all(logs).into_iter().partition(Record::is_haproxys);
    let wrong: Vec<_> = checks.iter().filter(|record| record.received > 0).collect();
    assert!(!checks.is_empty() && wrong.is_empty(), "HAProxy instead of its client: {wrong:#?}");
    let failed: Vec<_> = clients.iter().filter(|record| !record.ended.starts_with("exited 0")).collect();
    assert!(failed.is_empty(), "{failed:#?}");

    let mut recorded: Vec<_> = clients
        .iter()
        .filter(|record| of_load(record))
        .map(|record| (record.client, record.service.as_str(), record.received))
        .collect();
    recorded.sort_unstable();
    served.sort_unstable();
    let served: Vec<_> = served.iter().map(|one| (one.client, one.service, one.sent)).collect();
    let missing: Vec<_> = served.iter().filter(|one| recorded.binary_search(one).is_err()).collect();
    let more: Vec<_> = recorded.iter().filter(|one| served.binary_search(one).is_err()).collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "without a record: {missing:#?}; not asked for: {more:#?}"
    );
    assert_eq!(recorded.len(), served.len());
}

fn upgrade(server: &Running) {
    server.replace_program(&std::fs::read(BINARY).unwrap());
    let output = server.upgrade();
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), server.log.all().join("\n"));
}

fn nobody_notices(test: &str, options: &str) {
    if !haproxy::is_there(test) {
        return;
    }
    let (front, at_a, at_b) = (Addresses::fresh(), Addresses::fresh(), Addresses::fresh());
    let (mut a, b) = (server('a', at_a, ""), server('b', at_b, ""));
    let mut logs = vec![a.log.clone(), b.log.clone()];
    let proxies = [
        proxy("echo", &front.echo.to_string(), &[('a', at_a.echo), ('b', at_b.echo)]),
        proxy("tell", &front.tell.to_string(), &[('a', at_a.tell), ('b', at_b.tell)]),
    ];
    let haproxy = Haproxy::start(options, &proxies.concat());
    let (mut held_by_a, mut held_by_b) = (Held::by('a', front), Held::by('b', front));
    let load = Load::on(front);
    load.goes_on(&['a', 'b']);

    // One drains, for as long as somebody stays.
    a.signal(Signal::SIGTERM);
    for service in ["echo", "tell"] {
        haproxy.wait_for("DOWN", service, "a");
    }
    load.goes_on(&['b']);
    assert_eq!(a.status()["state"], "draining");
    held_by_a.echo();
    held_by_a.end();
    a.left_nothing(&at_a.both());

    // It comes back; and once more, with nobody who stays.
    for last in [false, true] {
        a = server('a', at_a, "");
        logs.push(a.log.clone());
        for service in ["echo", "tell"] {
            haproxy.wait_for("UP", service, "a");
        }
        load.goes_on(&['a', 'b']);
        if !last {
            a.signal(Signal::SIGTERM);
            a.left_nothing(&at_a.both());
            load.goes_on(&['b']);
        }
    }

    for connections in 500..503 {
        b.configure(&config('b', at_b, &format!("max_connections = {connections}")));
        b.reload_ok();
    }
    load.goes_on(&['a', 'b']);
    for _ in 0..3 {
        upgrade(&a);
    }
    load.goes_on(&['a', 'b']);
    upgrade(&b);
    load.goes_on(&['a', 'b']);
    held_by_b.echo();
    held_by_b.end();

    let served = load.end();
    let count = |column| ["echo", "tell"].map(|service| haproxy.stat(service, "BACKEND", column));
    let [retries, redispatched] = ["wretr", "wredis"].map(count);
    say(&format!(
        "HAProxy with {options}: {} requests, {retries:?} retries, {redispatched:?} redispatched",
        served.len()
    ));
    assert_eq!((count("econ"), count("eresp")), (["0", "0"].map(String::from), ["0", "0"].map(String::from)));
    assert!(haproxy.failed_checks("b").is_empty(), "{:#?}", haproxy.failed_checks("b"));
    the_log_names_the_clients(&logs, served);
    let complaints: Vec<_> =
        logs.iter().flat_map(Lines::all).filter(|line| line.contains("refused")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn nobody_notices_a_drain_a_reload_and_an_upgrade_with_version_1() {
    nobody_notices("version 1 of HAProxy", V1);
}

#[test]
fn nobody_notices_a_drain_a_reload_and_an_upgrade_with_version_2() {
    nobody_notices("version 2 of HAProxy", V2);
}

#[test]
fn nobody_notices_a_drain_a_reload_and_an_upgrade_with_fields_and_a_checksum() {
    nobody_notices("version 2 of HAProxy with fields", V2_FIELDS);
}

fn refused(server: &Running, reason: &str) -> u64 {
    server.service()["refused"][reason].as_u64().unwrap()
}

/// A connection from this address that is served, or `None` if it was closed.
fn served_from(source: Ipv4Addr, front: Addresses) -> Option<TcpStream> {
    let mut client = connect_from(source, front.echo).unwrap();
    try_echo(&mut client, b"x").is_ok().then_some(client)
}

fn limits_are_the_clients(options: &str) {
    let (front, at) = (Addresses::fresh(), Addresses::fresh());
    let denied = Ipv4Addr::new(127, 81, 0, 1);
    let limits = format!(
        "deny = [\"{PROXY}\", \"{denied}\"]\nmax_connections_per_source = 3\nrate_per_source = \"1/h burst 4\""
    );
    let server = server('a', at, &limits);
    // Checks that a refusal would fail.
    let checked = " option tcp-check\n tcp-check send checked\\n\n tcp-check expect string checked\n";
    let proxies = proxy("echo", &front.echo.to_string(), &[('a', at.echo)]) + checked;
    let haproxy = Haproxy::start(options, &proxies);
    let clients = (0..4).map(|client| address::source(50_100 + client));
    let mut held: Vec<_> =
        clients.clone().map(|client| [(); 3].map(|()| served_from(client, front).unwrap())).collect();
    assert!(served_from(denied, front).is_none(), "it is denied");
    for client in clients.clone() {
        assert!(served_from(client, front).is_none(), "a fourth connection at once");
    }
    assert_eq!((refused(&server, "source_limit"), refused(&server, "access")), (4, 1));

    // All the clients together are far above it, and HAProxy's checks pass.
    let checks = || {
        let records = Record::all(std::slice::from_ref(&server.log));
        records.iter().filter(|record| record.is_haproxys() && record.ended.starts_with("exited 0")).count()
    };
    let before = checks();
    eventually("more checks", || checks() >= before + 10);
    held.clear();
    eventually("all have gone", || server.count("counted") == 0);
    for client in clients {
        assert!(served_from(client, front).is_some(), "a fourth connection, one after the other");
        assert!(served_from(client, front).is_none(), "a fifth connection");
    }
    assert_eq!((refused(&server, "rate"), refused(&server, "header")), (4, 0));
    assert!(haproxy.failed_checks("a").is_empty(), "{:#?}", haproxy.failed_checks("a"));
}

#[test]
fn limits_are_the_clients_and_checks_have_none() {
    if haproxy::is_there("limits behind HAProxy") {
        [V1, V2, V2_FIELDS].into_iter().for_each(limits_are_the_clients);
    }
}

#[test]
fn a_check_without_a_header_is_nothing_wrong() {
    if !haproxy::is_there("HAProxy's checks without a header") {
        return;
    }
    let (front, at) = (Addresses::fresh(), Addresses::fresh());
    let server = server('a', at, "");
    // Checks of the server's own port have a header whatever is said about them, unless the port is named.
    let options = format!("{V2} port {} no-check-send-proxy inter 20ms rise 20", at.echo.port());
    let haproxy = Haproxy::start(&options, &proxy("echo", &front.echo.to_string(), &[('a', at.echo)]));
    for _ in 0..3 {
        let before = haproxy.ups("echo", "a");
        haproxy.ask("set server echo/a health down");
        eventually("twenty checks have passed", || haproxy.ups("echo", "a") > before);
    }
    assert_eq!(exchange(front.echo, b"hello"), b"hello");
    assert!(haproxy.failed_checks("a").is_empty(), "{:#?}", haproxy.failed_checks("a"));
    assert_eq!((refused(&server, "header"), server.count("accepted")), (0, 1));
    let record = server.log.wait("the record of the client", |line| Record::parse(line).is_some());
    assert!(record.contains(" from 127.0.0.1:"), "{record}");
}

#[test]
fn clients_over_ipv6_have_their_address_and_those_of_a_unix_socket_none() {
    if !haproxy::is_there("HAProxy's clients over IPv6 and a Unix socket") {
        return;
    }
    for options in [V1, V2, V2_FIELDS] {
        let at = Addresses::fresh();
        let server = server('a', at, "");
        // Below the ports that clients get, and another one for tests that run at the same time.
        let port = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
        let front: SocketAddr = format!("[::1]:{port}").parse().unwrap();
        let proxies = proxy("six", &front.to_string(), &[('a', at.tell)])
            + &proxy("unix", "unix@DIR/front", &[('a', at.tell)]);
        let haproxy = Haproxy::start(options, &proxies);

        let stream = connect(front);
        let client = stream.local_addr().unwrap();
        // As in UCSPI: no brackets.
        let told = format!("{}:{} {}:{} a\nhello", client.ip(), client.port(), front.ip(), front.port());
        assert_eq!(text(&finish(stream, b"hello")), told, "{options}");
        server
            .log
            .wait("its record", |line| Record::parse(line).is_some_and(|record| record.client == client));

        let answer = text(&exchange_unix(&haproxy.path("front"), b"hello"));
        assert!(answer.starts_with(&format!("{PROXY}:")), "{options}: {answer}");
        assert!(answer.ends_with(&format!(" {}:{} a\nhello", at.tell.ip(), at.tell.port())), "{answer}");
    }
}
