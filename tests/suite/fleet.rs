//! A fleet of four machines behind HAProxy, each with a network of its own, is renewed one after the other, and no request fails.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};

use crate::support::client::{connect, try_echo};
use crate::support::exporter::Exporter;
use crate::support::fence::{Fenced, Orders};
use crate::support::haproxy::{self, Haproxy};
use crate::support::{BINARY, Preforkd, Running, eventually, preforkd, root, say, sure, text};

const HOSTS: usize = 4;

/// Two ways of HAProxy to learn how a machine is, each with a port of its own: `agent-check`, and a check of `/readyz`.
const FRONTS: [(&str, u16); 2] = [("agent", 7001), ("readyz", 7002)];

const SERVICE: u16 = 7007;
const METRICS: u16 = 17_007;
const AGENT: u16 = 17_008;

/// A network without anybody in it but who is started there; it goes with the last of them.
struct Network {
    /// Who keeps it.
    keeper: Fenced,
}

impl Network {
    fn new() -> Self {
        let script = "ip link set lo up; echo ready; exec sleep infinity";
        let command = ["unshare", "--net", "sh", "-euc", script].map(str::to_owned).into();
        let environment: BTreeMap<_, _> =
            [("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())].into();
        let keeper = Fenced::start(&Orders { command, environment, listen: None });
        keeper.stdout.wait("a network", |line| line == "ready");
        Self { keeper }
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.pid())
    }

    /// Runs a command in it.
    fn run(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        sure(&[&["nsenter", &self.enter(), "--"], &words[..]].concat());
    }

    fn enter(&self) -> String {
        format!("--net={}", self.path())
    }
}

/// A machine with preforkd on it, and what tells of that.
struct Host {
    name: char,
    network: Network,
    server: Running,
    exporter: Option<Exporter>,
}

fn address(number: usize, port: u16) -> SocketAddr {
    format!("10.99.{number}.2:{port}").parse().unwrap()
}

fn serve(number: usize, network: &Network) -> (Running, Option<Exporter>) {
    let (name, at) = (name(number), address(number, SERVICE));
    let config = format!(
        "[service.tell]\nlisten = \"{at}\"\nworkers = 2\nexec = [\"/bin/sh\", \"-c\", \"echo {name}; exec cat\"]\n"
    );
    let enter = network.enter();
    let prefix = ["nsenter", enter.as_str(), "--"];
    let server = Preforkd::run(&config).own_copy().under(&prefix).start();
    let agent = address(number, AGENT).to_string();
    let exporter = Exporter::under(&prefix, &server, address(number, METRICS), &["--agent", &agent]);
    (server, Some(exporter))
}

fn name(number: usize) -> char {
    char::from(b'a' + u8::try_from(number).unwrap())
}

impl Host {
    fn start(number: usize, front: &Network) -> Self {
        let network = Network::new();
        let pid = network.keeper.pid();
        front.run(&format!("ip link add host{number} type veth peer name eth0 netns {pid}"));
        front.run(&format!("ip addr add 10.99.{number}.1/24 dev host{number}"));
        front.run(&format!("ip link set host{number} up"));
        network.run(&format!("ip addr add 10.99.{number}.2/24 dev eth0"));
        network.run("ip link set eth0 up");
        let (server, exporter) = serve(number, &network);
        Self { name: name(number), network, server, exporter }
    }

    fn command(&self, arguments: &[&str]) {
        let output =
            preforkd(&[&arguments[..1], &["--control", self.server.control()], &arguments[1..]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    }

    fn upgrade(&self) {
        self.server.replace_program(&std::fs::read(BINARY).unwrap());
        let output = self.server.upgrade();
        assert!(output.status.success(), "{}\n{}", text(&output.stderr), self.server.log.all().join("\n"));
    }

    /// As by a reboot: whatever runs there ends, and begins anew.
    fn restart(&mut self, number: usize) {
        self.server.stop();
        self.exporter = None;
        (self.server, self.exporter) = serve(number, &self.network);
    }
}

/// Clients that ask one thing after the other, where HAProxy is.
struct Load {
    clients: Vec<JoinHandle<Result<(), String>>>,
    /// How much each host has served, of who came by each front.
    served: Arc<[[AtomicUsize; HOSTS]; FRONTS.len()]>,
    done: Arc<AtomicBool>,
}

/// One exchange; which host it was with.
fn request(port: u16, number: usize) -> Result<usize, String> {
    let failed = |step: &str, error: std::io::Error| format!("{port} {number}: {step}: {error}");
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect(at).map_err(|error| failed("connect", error))?;
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let request = format!("request {number}\n").repeat([1, 1, 700][number % 3]);
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).map_err(|error| failed("write", error))?;
    stream.shutdown(Shutdown::Write).map_err(|error| failed("shutdown", error))?;
    stream.read_to_string(&mut answer).map_err(|error| failed("read", error))?;
    let host = (0..HOSTS).find(|host| answer == format!("{}\n{request}", name(*host)));
    host.ok_or_else(|| format!("{port} {number}: {} bytes for {}", answer.len(), request.len()))
}

impl Load {
    fn on(network: &Network) -> Self {
        let (served, done) =
            (Arc::<[[AtomicUsize; HOSTS]; FRONTS.len()]>::default(), Arc::new(AtomicBool::new(false)));
        let start = |front: usize| {
            let (served, done) = (Arc::clone(&served), Arc::clone(&done));
            let network = File::open(network.path()).unwrap();
            std::thread::spawn(move || {
                // Of this thread alone.
                setns(network, CloneFlags::CLONE_NEWNET).unwrap();
                for number in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let host = request(FRONTS[front].1, number)?;
                    served[front][host].fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        Self { clients: [0, 1, 0, 1].into_iter().map(start).collect(), served, done }
    }

    fn counts(&self) -> [[usize; HOSTS]; FRONTS.len()] {
        [0, 1].map(|front| [0, 1, 2, 3].map(|host| self.served[front][host].load(Ordering::Relaxed)))
    }

    /// Waits until each of these hosts has served some more by each front.
    fn goes_on(&self, by: &[usize]) {
        let before = self.counts();
        eventually(&format!("more from {by:?}"), || {
            let now = self.counts();
            let more = |front: usize| by.iter().all(|host| now[front][*host] >= before[front][*host] + 5);
            (more(0) && more(1)) || self.has_failed()
        });
        assert!(!self.has_failed(), "a request has failed");
    }

    fn has_failed(&self) -> bool {
        self.clients.iter().any(JoinHandle::is_finished)
    }

    /// Ends it; nobody may have failed.
    fn end(mut self) -> usize {
        self.done.store(true, Ordering::Relaxed);
        let failed: Vec<_> =
            self.clients.drain(..).filter_map(|client| client.join().unwrap().err()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        self.counts().concat().iter().sum()
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

/// A connection to each host, by HAProxy.
fn one_by_each(network: &Network) -> Vec<BufReader<TcpStream>> {
    let file = File::open(network.path()).unwrap();
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        let mut found: BTreeMap<String, BufReader<TcpStream>> = BTreeMap::new();
        // The load takes turns, too.
        while found.len() < HOSTS {
            let mut stream = BufReader::new(connect(SocketAddr::from(([127, 0, 0, 1], FRONTS[0].1))));
            let mut name = String::new();
            stream.read_line(&mut name).unwrap();
            found.entry(name).or_insert(stream);
        }
        found.into_values().collect()
    });
    thread.join().unwrap()
}

#[test]
fn a_fleet_of_four_is_renewed_and_no_request_fails() {
    let test = "a_fleet_of_four_is_renewed_and_no_request_fails";
    if !root(test) || !haproxy::is_there(test) {
        return;
    }
    let front = Network::new();
    let mut hosts: Vec<Host> = (0..HOSTS).map(|number| Host::start(number, &front)).collect();
    let servers = |options: &str| -> String {
        let line = |number| {
            let host = address(number, AGENT).ip();
            format!(
                " server {} {host}:{SERVICE} weight 100 {}\n",
                name(number),
                options.replace("HOST", &host.to_string())
            )
        };
        (0..HOSTS).map(line).collect()
    };
    let [agent, readyz] =
        FRONTS.map(|(name, port)| format!("listen {name}\n bind 127.0.0.1:{port}\n source 0.0.0.0\n"));
    let proxies = [
        agent,
        " option httpchk GET /livez\n".to_owned(),
        servers(&format!("agent-check agent-addr HOST agent-port {AGENT} agent-inter 100ms")),
        readyz,
        " option httpchk GET /readyz\n".to_owned(),
        servers(""),
    ];
    // Rarely while all is well: a check has no more time than there is between two, and this machine may be busy.
    let checks = format!("port {METRICS} inter 500ms fastinter 100ms downinter 100ms fall 3 rise 1");
    let haproxy = Haproxy::start_under(&["nsenter", &front.enter(), "--"], &checks, &proxies.concat());
    let is = |host: char, wanted: [&str; 2]| {
        eventually(&format!("{host} is {wanted:?}"), || {
            FRONTS.iter().zip(wanted).all(|((proxy, _), wanted)| {
                haproxy.stat(proxy, &host.to_string(), "status").starts_with(wanted)
            })
        });
    };
    hosts.iter().for_each(|host| is(host.name, ["UP", "UP"]));
    let load = Load::on(&front);
    let everybody: Vec<usize> = (0..HOSTS).collect();
    load.goes_on(&everybody);

    for (number, host) in hosts.iter_mut().enumerate() {
        host.command(&["lameduck", "tell"]);
        is(host.name, ["DRAIN", "DOWN"]);
        eventually("HAProxy has nobody there", || {
            FRONTS.iter().all(|(proxy, _)| haproxy.stat(proxy, &host.name.to_string(), "scur") == "0")
        });
        host.command(&["drain", "tell"]);
        let sent = || FRONTS.map(|(proxy, _)| haproxy.stat(proxy, &host.name.to_string(), "stot"));
        let before = sent();
        let others: Vec<usize> = everybody.iter().copied().filter(|other| *other != number).collect();
        load.goes_on(&others);
        assert_eq!(before, sent(), "{} has got somebody", host.name);
        if number == 3 {
            host.restart(number);
        } else {
            host.upgrade();
            assert_eq!(host.server.status()["upgrades"], 1);
            host.command(&["resume", "tell"]);
        }
        is(host.name, ["UP", "UP"]);
        load.goes_on(&everybody);
    }

    // An upgrade in place wants nothing of this, and who is connected stays.
    let mut held = one_by_each(&front);
    for host in &hosts {
        host.upgrade();
    }
    load.goes_on(&everybody);
    for stream in &mut held {
        try_echo(stream.get_mut(), b"still").unwrap();
    }
    drop(held);

    let requests = load.end();
    say(&format!("a fleet of four behind HAProxy: {requests} requests, none failed"));
    for (proxy, _) in FRONTS {
        let counts =
            ["econ", "eresp", "wretr", "wredis"].map(|column| haproxy.stat(proxy, "BACKEND", column));
        assert_eq!(counts, ["0"; 4], "{proxy}: errors of connections and answers, tries again");
    }
    drop(haproxy);
}
