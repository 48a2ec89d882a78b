//! Every key of a service at every kind of listener with every kind of job: it does what it says, or is an error that says
//! why it cannot. A key, or a kind of listener, of which this table says nothing fails the test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use crate::support::{
    PATIENCE, Preforkd, Running, address, eventually, preforkd, proc, root, sure, text, write,
};

/// A kind of listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Tcp,
    Path,
    Abstract,
    PassedTcp,
    PassedUnix,
}

/// Each with how the help of `serve` writes it.
const LISTENERS: [(At, &str); 5] = [
    (At::Tcp, "IP:PORT"),
    (At::Path, "unix:/PATH"),
    (At::Abstract, "unix:@NAME"),
    (At::PassedTcp, "fd:NAME"),
    (At::PassedUnix, "fd:NAME"),
];

/// More ways to write the first.
const ALSO_TCP: [&str; 3] = ["[IPV6]:PORT", "[IPV6%ZONE]:PORT", "*:PORT"];

/// A kind of job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Handler,
    Program,
    SpareHandler,
    SpareProgram,
}

const JOBS: [Job; 4] = [Job::Handler, Job::Program, Job::SpareHandler, Job::SpareProgram];

impl At {
    fn is_unix(self) -> bool {
        matches!(self, At::Path | At::Abstract | At::PassedUnix)
    }

    fn is_passed(self) -> bool {
        matches!(self, At::PassedTcp | At::PassedUnix)
    }
}

impl Job {
    fn is_program(self) -> bool {
        matches!(self, Job::Program | Job::SpareProgram)
    }

    fn is_spare(self) -> bool {
        matches!(self, Job::SpareHandler | Job::SpareProgram)
    }
}

/// What a row says of a cell: `None` if the key works there, else what its error says.
type Says = fn(At, Job) -> Option<&'static str>;

/// Proves that it works, on a service that has it.
type Proof = fn(&Seat<'_>);

/// Keys that one test proves: how they are written, where they work, and what proves it.
struct Row {
    /// A line a key. `TCP` and `UNIX` begin lines for one kind of listener alone.
    keys: &'static str,
    says: Says,
    proof: Proof,
    /// Lines for other keys, which the proof needs.
    with: &'static str,
    /// What `exec` is, where the job is a program.
    program: &'static str,
}

impl Row {
    const fn with(self, lines: &'static str) -> Self {
        Row { with: lines, ..self }
    }

    const fn program(self, exec: &'static str) -> Self {
        Row { program: exec, ..self }
    }

    /// The names of its keys.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let lines = self.keys.lines().map(|line| line.trim_start_matches("TCP ").trim_start_matches("UNIX "));
        lines.map(|line| line.split(" = ").next().unwrap())
    }
}

const fn row(keys: &'static str, says: Says, proof: Proof) -> Row {
    Row { keys, says, proof, with: "", program: "'cat'" }
}

const NO_TCP: &str = "it can do nothing without a listener over TCP";
const NO_LOCAL: &str = "users and groups can do nothing without a listener at a Unix socket";
const NO_ADDRESS: &str = "addresses can do nothing without a listener over TCP";

/// One row a key, or one for several with the same proof; a second one where it has another form elsewhere.
const ROWS: &[Row] = &[
    // What every service has: where it listens, and its handler or program.
    row("", everywhere, serves),
    row("argv0 = 'other'", argv0, serves),
    row("log = 'none'", everywhere, serves),
    row("kill_mode = 'process'", no_handlers, serves),
    row("kill_grace = '5s'", no_handlers, serves),
    row("connection = 'listen-fds'", no_handlers, serves).program("'/bin/sh', '-c', 'exec cat <&3 >&3'"),
    row("workers = 2", everywhere, has_workers),
    row("spare = 2", everywhere, has_spares),
    row("warm = 'start'\nwarm_max_age = '1h'\nwarm_watch = '/usr'", spare_programs, is_warm),
    row("max_connections = 1", everywhere, takes_one).with("overload = 'reset'"),
    row("overload = 'refuse'", everywhere, takes_one).with("max_connections = 1"),
    row("refuse_message = 'busy'", everywhere, says_busy).with("overload = 'refuse'\nmax_connections = 1"),
    row("refuse_message = 'busy'", everywhere, says_busy)
        .with("overload = 'refuse'\nmax_connections_per_source = 1"),
    row("connections_per_child = 2", no_programs, serves),
    row("options = { x = 1 }", nowhere_here, serves),
    row("wait = true", programs_without_spares, serves).program(ACCEPTS),
    row("user = 4711\ngroup = 4712", everywhere, is_user),
    row("chroot = '/'", everywhere, is_in_usr).with("working_directory = '/usr'"),
    row("working_directory = '/usr'", everywhere, is_in_usr),
    row("umask = '0123'", everywhere, has_umask),
    row("nice = 7", everywhere, is_nice),
    row("environment = { CELL = 'yes' }", no_handlers, has_environment).program("'/usr/bin/env'"),
    row("environment_file = '-/nonexistent'", no_handlers, serves),
    row("credentials = 'cell'", no_handlers, has_credential).program(CREDENTIAL),
    row("sandbox = { network = 'none', write_execute = false }", everywhere, serves),
    row(
        "sandbox = { private_tmp = true, network_namespace = true, pid_namespace = true }",
        everywhere,
        serves,
    ),
    row("limits = { core = 12345 }", everywhere, has_limit),
    row("stderr = 'null'", everywhere, says_nothing).program(LOUD),
    row("stderr = 'connection'", no_stderr, says_it_to_the_client).program(LOUD),
    row("backlog = 17", everywhere, has_backlog),
    row("nodelay = false", tcp_only, serves),
    row("keepalive = true", tcp_only, serves),
    row("defer_accept = '10s'", tcp_only, serves),
    row("interface = 'lo'", tcp_only, serves),
    row("freebind = true", tcp_only, serves),
    row("transparent = true", tcp_only, serves),
    row("tos = 'low-delay'", tcp_only, serves),
    row("mark = 7", tcp_only, serves),
    row("socket_user = 4711", files_only, owns_file),
    row("socket_group = 4712", files_only, owns_file),
    row("socket_mode = '0640'", files_only, owns_file),
    row("pass_rights = true", unix_only, serves),
    row("count_bytes = true", counts_bytes, is_counted),
    row("TCP allow = '192.0.2.0/24'\nUNIX allow = 'user:nobody'", everywhere, lets_nobody_in),
    row("TCP allow = '127.0.0.1'\nUNIX allow = ['user:root', 'group:nogroup']", everywhere, serves),
    row("allow = '192.0.2.0/24'", by_address, lets_nobody_in),
    row("allow = 'user:nobody'", by_user, lets_nobody_in),
    row("TCP deny = '127.0.0.0/8'\nUNIX deny = 'group:root'", everywhere, lets_nobody_in),
    row("deny = '127.0.0.0/8'", by_address, lets_nobody_in),
    row("deny = 'group:root'", by_user, lets_nobody_in),
    row("max_connections_per_source = 1", everywhere, takes_one),
    row("rate_per_source = '1/h burst 1'", everywhere, serves_once),
    row("source_prefix_v4 = 8", tcp_only, serves_once).with("rate_per_source = '1/h burst 1'"),
    row("source_prefix_v6 = 48", tcp_only, serves_once).with("rate_per_source = '1/h burst 1'"),
    row(PENALTIES, everywhere, serves_once_ending).with(OFFENCE),
    row(EXEMPT, everywhere, serves_again_ending).with(EXEMPT_FROM),
    row("penalty_exempt = '127.0.0.1'", by_address, serves),
    row("penalty_exempt = 'user:root'", by_user, serves),
    row("first_byte_timeout = '200ms'", deadline_of_bytes, is_ended_silent),
    row("idle_timeout = '200ms'", deadline_of_bytes, is_ended_silent),
    row("max_lifetime = '300ms'", everywhere, is_ended_silent),
    row("TCP proxy_protocol_from = '127.0.0.1'\nUNIX proxy_protocol_from = 'unix:'", no_spares, believes),
    row("proxy_protocol_from = '127.0.0.1'", proxy_by_address, believes),
    row("proxy_protocol_from = 'unix:'", proxy_at_unix, believes),
];

const CREDENTIAL: &str = "'/bin/sh', '-c', 'cat $(env | sed -n s/^CREDENTIALS_.*=//p)/cell'";
/// A server of its own, at the listener on descriptor 0.
const ACCEPTS: &str = "'/usr/bin/python3', '-c', 'import socket; s = socket.socket(fileno=0); \
    [(c.sendall(c.recv(100)), c.close()) for c in iter(lambda: s.accept()[0], None)]'";
const LOUD: &str = "'/bin/sh', '-c', 'echo loud >&2; cat'";
const PENALTIES: &str = "penalties = { timeout = '10m' }\npenalty_threshold = '1m'\npenalty_limit = '20m'";
/// A deadline that ends it is an offence.
const OFFENCE: &str = "max_lifetime = '1500ms'";
const EXEMPT: &str = "TCP penalty_exempt = '127.0.0.0/8'\nUNIX penalty_exempt = 'group:root'";
const EXEMPT_FROM: &str = "penalties = { timeout = '10m' }\nmax_lifetime = '1500ms'";

fn everywhere(_: At, _: Job) -> Option<&'static str> {
    None
}

fn tcp_only(at: At, _: Job) -> Option<&'static str> {
    at.is_unix().then_some(NO_TCP)
}

fn unix_only(at: At, _: Job) -> Option<&'static str> {
    (!at.is_unix()).then_some("it can do nothing without a listener at a Unix socket")
}

fn by_address(at: At, _: Job) -> Option<&'static str> {
    at.is_unix().then_some(NO_ADDRESS)
}

fn by_user(at: At, _: Job) -> Option<&'static str> {
    (!at.is_unix()).then_some(NO_LOCAL)
}

fn files_only(at: At, _: Job) -> Option<&'static str> {
    match at {
        At::Path => None,
        At::Tcp => Some("the service has no Unix socket with a file"),
        At::Abstract => Some("an abstract name is no file"),
        At::PassedTcp | At::PassedUnix => Some("systemd makes the file of a socket that it passes"),
    }
}

fn no_handlers(_: At, job: Job) -> Option<&'static str> {
    (!job.is_program()).then_some("it is about programs, and a handler is none")
}

fn argv0(_: At, job: Job) -> Option<&'static str> {
    (!job.is_program()).then_some("a handler is no program, and has no zeroth argument")
}

fn programs_without_spares(_: At, job: Job) -> Option<&'static str> {
    match job {
        Job::Handler | Job::SpareHandler => Some("wait = true is for programs"),
        Job::Program => None,
        Job::SpareProgram => Some("spare can do nothing with wait = true"),
    }
}

fn spare_programs(_: At, job: Job) -> Option<&'static str> {
    match job {
        Job::SpareProgram => None,
        Job::Program => Some("it is the spares that are started ahead"),
        Job::Handler | Job::SpareHandler => Some("warm is for programs"),
    }
}

fn no_stderr(_: At, job: Job) -> Option<&'static str> {
    (!job.is_program()).then_some("a handler says nothing to stderr that is for its client")
}

fn no_programs(_: At, job: Job) -> Option<&'static str> {
    job.is_program().then_some("a program serves one connection and ends")
}

/// No handler of this program has options; those of the library have theirs in tests/suite/library.rs.
fn nowhere_here(_: At, job: Job) -> Option<&'static str> {
    Some(if job.is_program() {
        "they are a handler's, and this is a program"
    } else {
        "this handler has no options"
    })
}

fn counts_bytes(at: At, job: Job) -> Option<&'static str> {
    no_handlers(at, job).or(tcp_only(at, job))
}

fn deadline_of_bytes(at: At, job: Job) -> Option<&'static str> {
    (at.is_unix() && job.is_program()).then_some("it cannot work for a program at a Unix socket")
}

fn no_spares(_: At, job: Job) -> Option<&'static str> {
    job.is_spare().then_some("a spare cannot wait for the header of a proxy")
}

fn proxy_by_address(at: At, job: Job) -> Option<&'static str> {
    no_spares(at, job).or(tcp_only(at, job))
}

fn proxy_at_unix(at: At, job: Job) -> Option<&'static str> {
    no_spares(at, job).or((!at.is_unix()).then_some("it can do nothing without a listener at a Unix socket"))
}

/// A cell, as a service of a preforkd.
struct Seat<'a> {
    at: At,
    job: Job,
    name: String,
    /// Where it is found: `unix:…`, or an address.
    address: String,
    server: Option<&'a Running>,
}

/// A connection over whatever.
trait Stream: Read + Write {
    fn end(&self);
}

impl Stream for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

impl Stream for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

impl Seat<'_> {
    fn section(&self, row: &Row) -> String {
        let listen = if self.at.is_passed() { format!("fd:{}", self.name) } else { self.address.clone() };
        let job = match self.job.is_program() {
            true => format!("exec = [{}]", row.program),
            false => "handler = 'echo'".to_owned(),
        };
        let has = |key| row.names().any(|name| name == key);
        let spare = if self.job.is_spare() && !has("spare") { "spare = 1\n" } else { "" };
        let workers = if has("workers") { "" } else { "workers = 1\n" };
        let lines = row.keys.lines().chain(row.with.lines()).filter_map(|line| match line.split_once(' ') {
            Some(("TCP", line)) => (!self.at.is_unix()).then_some(line),
            Some(("UNIX", line)) => self.at.is_unix().then_some(line),
            _ => Some(line),
        });
        let lines = lines.collect::<Vec<_>>().join("\n");
        format!("[service.{}]\nlisten = '{listen}'\n{job}\n{spare}{workers}{lines}\n", self.name)
    }

    fn connect(&self) -> Box<dyn Stream> {
        let wait = Some(PATIENCE);
        if let Some(name) = self.address.strip_prefix("unix:@") {
            let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
            stream.set_read_timeout(wait).unwrap();
            return Box::new(stream);
        }
        if let Some(path) = self.address.strip_prefix("unix:") {
            let stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(wait).unwrap();
            return Box::new(stream);
        }
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(wait).unwrap();
        Box::new(stream)
    }

    /// What is answered in all; who is refused may see a broken connection.
    fn ask(&self, say: &str) -> String {
        let mut stream = self.connect();
        let mut answer = String::new();
        let sent = stream.write_all(say.as_bytes());
        stream.end();
        let _ = sent.map(|()| stream.read_to_string(&mut answer));
        answer
    }

    /// A connection that is served, or `None`.
    fn served(&self) -> Option<Box<dyn Stream>> {
        let mut stream = self.connect();
        let echoed = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
        echoed.is_ok().then_some(stream)
    }

    fn status(&self) -> serde_json::Value {
        let status = self.server.unwrap().status();
        let services = status["services"].as_array().unwrap();
        services.iter().find(|service| service["name"] == self.name.as_str()).unwrap().clone()
    }

    /// Whether a child of its worker is so while a connection is served.
    #[track_caller]
    fn has_process(&self, what: &str, is_so: impl Fn(i32) -> bool) {
        let _served = self.served().unwrap_or_else(|| panic!("{} is not served", self.name));
        eventually(what, || {
            let worker = i32::try_from(self.status()["workers"][0]["pid"].as_i64().unwrap()).unwrap();
            proc::descendants(worker).iter().any(|process| is_so(process.pid))
        });
    }
}

fn read(pid: i32, name: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
}

fn field(pid: i32, name: &str) -> String {
    let status = read(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_ascii_whitespace().next().unwrap_or_default().to_owned()
}

fn serves(seat: &Seat<'_>) {
    assert_eq!(seat.ask("hello\n"), "hello\n", "{}", seat.name);
}

fn has_workers(seat: &Seat<'_>) {
    assert_eq!(seat.status()["workers"].as_array().unwrap().len(), 2, "{}", seat.name);
    serves(seat);
}

fn has_spares(seat: &Seat<'_>) {
    eventually("spares", || seat.status()["spares"] == 2);
    serves(seat);
}

fn is_warm(seat: &Seat<'_>) {
    eventually("a warm program", || seat.status()["warm"] == 1);
    serves(seat);
    eventually("its end", || seat.status()["served_warm"] == 1);
}

fn takes_one(seat: &Seat<'_>) {
    let held = seat.served();
    assert!(held.is_some(), "{}", seat.name);
    assert_eq!(seat.ask("x"), "", "{}", seat.name);
    drop(held);
    eventually("it has ended", || seat.served().is_some());
}

fn says_busy(seat: &Seat<'_>) {
    let _held = seat.served().unwrap();
    let mut answer = String::new();
    let _ = seat.connect().read_to_string(&mut answer);
    assert_eq!(answer, "busy", "{}", seat.name);
}

fn is_user(seat: &Seat<'_>) {
    seat.has_process("user and group", |pid| field(pid, "Uid:") == "4711" && field(pid, "Gid:") == "4712");
}

fn is_in_usr(seat: &Seat<'_>) {
    seat.has_process("its directory", |pid| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.as_os_str() == "/usr")
    });
}

fn has_umask(seat: &Seat<'_>) {
    seat.has_process("its umask", |pid| field(pid, "Umask:") == "0123");
}

fn is_nice(seat: &Seat<'_>) {
    seat.has_process("its nice value", |pid| {
        let stat = read(pid, "stat");
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(16)) == Some("7")
    });
}

fn has_limit(seat: &Seat<'_>) {
    seat.has_process("its limit", |pid| read(pid, "limits").contains("12345                12345"));
}

fn has_environment(seat: &Seat<'_>) {
    assert!(seat.ask("").lines().any(|line| line == "CELL=yes"), "{}", seat.name);
}

fn has_credential(seat: &Seat<'_>) {
    assert_eq!(seat.ask(""), "secret", "{}", seat.name);
}

fn says_it_to_the_client(seat: &Seat<'_>) {
    assert_eq!(seat.ask("x"), "loud\nx", "{}", seat.name);
}

fn says_nothing(seat: &Seat<'_>) {
    serves(seat);
    let server = seat.server.unwrap();
    let record = format!("{}: connection", seat.name);
    server.log.wait("the record", |line| line.contains(&record));
    assert_eq!(server.log.count(|line| line.contains("loud")), 0, "{}", seat.name);
}

fn has_backlog(seat: &Seat<'_>) {
    serves(seat);
    let sockets = sure(&["ss", "-lnx"]) + &sure(&["ss", "-lnt"]);
    let address = seat.address.strip_prefix("unix:").unwrap_or(&seat.address);
    let line = sockets.lines().find(|line| line.split_ascii_whitespace().any(|word| word == address));
    let line = line.unwrap_or_else(|| panic!("{address} in {sockets}"));
    assert!(line.split_ascii_whitespace().any(|word| word == "17"), "{line}");
}

fn owns_file(seat: &Seat<'_>) {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(&seat.address["unix:".len()..]).unwrap();
    let found = [file.uid() == 4711, file.gid() == 4712, file.mode() & 0o777 == 0o640];
    assert_eq!(found.iter().filter(|so| **so).count(), 1, "{found:?}");
    serves(seat);
}

fn is_counted(seat: &Seat<'_>) {
    serves(seat);
    let record = format!("{}: connection", seat.name);
    let record = seat.server.unwrap().log.wait("the record", |line| line.contains(&record));
    assert!(record.contains("6 bytes in, 6 out"), "{record}");
}

fn lets_nobody_in(seat: &Seat<'_>) {
    assert_eq!(seat.ask("x"), "", "{}", seat.name);
    eventually("it is counted", || seat.status()["refused"]["access"] == 1);
}

fn serves_once(seat: &Seat<'_>) {
    assert!(seat.served().is_some() && seat.served().is_none(), "{}", seat.name);
}

fn ends(seat: &Seat<'_>) {
    let mut held = seat.served().unwrap_or_else(|| panic!("{} is not served", seat.name));
    let _ = held.read(&mut [0]);
}

fn serves_once_ending(seat: &Seat<'_>) {
    ends(seat);
    eventually("a penalty", || seat.served().is_none());
    eventually("it is counted", || seat.status()["refused"]["penalty"].as_u64() > Some(0));
}

fn serves_again_ending(seat: &Seat<'_>) {
    ends(seat);
    eventually("it is counted", || seat.status()["timeouts"] == 1);
    serves(seat);
    assert_eq!(seat.status()["refused"]["penalty"], 0);
}

fn is_ended_silent(seat: &Seat<'_>) {
    let start = Instant::now();
    assert_eq!(seat.connect().read(&mut [0]).unwrap_or(0), 0, "{}", seat.name);
    assert!(start.elapsed() >= Duration::from_millis(150), "{}", seat.name);
    eventually("it is counted", || seat.status()["timeouts"] == 1);
}

fn believes(seat: &Seat<'_>) {
    assert_eq!(
        seat.ask("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nhello\n"),
        "hello\n",
        "{}",
        seat.name
    );
    let record = format!("{}: connection", seat.name);
    let record = seat.server.unwrap().log.wait("the record", |line| line.contains(&record));
    assert!(record.contains(" from 192.0.2.7:40000: "), "{record}");
}

/// Listens at its first arguments and passes that on to the command that follows, as systemd does.
const ACTIVATE: &str = "use IO::Socket::INET; use IO::Socket::UNIX; use Fcntl; use POSIX (); $^F = 200; my (@names, @sockets); \
    while (($_ = shift) ne '--') { my ($name, $at) = split /=/, $_, 2; push @names, $name; \
    push @sockets, $at =~ s/^unix:// ? IO::Socket::UNIX->new(Local => $at, Listen => 9) : \
    IO::Socket::INET->new(LocalAddr => $at, Listen => 9, ReuseAddr => 1) or die \"$at: $!\"; } \
    my @high = map { fcntl($_, F_DUPFD, 100) or die } @sockets; POSIX::dup2($high[$_], 3 + $_) for 0..$#high; \
    POSIX::close($_) for @high, map { $_->fileno >= 3 + @high ? $_->fileno : () } @sockets; \
    $ENV{LISTEN_FDS} = @sockets; $ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDNAMES} = join ':', @names; exec @ARGV or die";

/// A preforkd with these seats as services.
fn start(row: &Row, seats: &[Seat<'_>]) -> Preforkd {
    let config: String = seats.iter().map(|seat| seat.section(row)).collect();
    let server = Preforkd::run(&config).script("cell", "secret");
    let dir = server.dir().display().to_string();
    let server = server.env("CREDENTIALS_DIRECTORY", &dir);
    let passed = seats.iter().filter(|seat| seat.at.is_passed());
    let passed: Vec<_> =
        passed.map(|seat| format!("{}={}", seat.name, seat.address.replace("DIR", &dir))).collect();
    if passed.is_empty() {
        return server;
    }
    let command = ["perl", "-e", ACTIVATE].into_iter().chain(passed.iter().map(String::as_str)).chain(["--"]);
    server.under(&command.collect::<Vec<_>>())
}

fn seat(number: usize, at: At, job: Job) -> Seat<'static> {
    // None is the end of another.
    let name = format!("x{at:?}-{job:?}");
    let address = match at {
        At::Tcp | At::PassedTcp => address::fresh().to_string(),
        At::Path | At::PassedUnix => format!("unix:DIR/{name}"),
        At::Abstract => format!("unix:@preforkd-cell-{}-{number}-{name}", std::process::id()),
    };
    Seat { at, job, name, address, server: None }
}

fn prove(number: usize, row: &Row) {
    let cells = LISTENERS.iter().flat_map(|(at, _)| JOBS.iter().map(move |job| (*at, *job)));
    let (works, refused): (Vec<_>, Vec<_>) = cells.partition(|(at, job)| (row.says)(*at, *job).is_none());
    let mut works: Vec<_> = works.into_iter().map(|(at, job)| seat(number, at, job)).collect();
    let refused: Vec<_> = refused.into_iter().map(|(at, job)| seat(number, at, job)).collect();
    if !works.is_empty() {
        let server = start(row, &works).start();
        let dir = server.dir().display().to_string();
        for seat in &mut works {
            seat.address = seat.address.replace("DIR", &dir);
            seat.server = Some(&server);
        }
        std::thread::scope(|scope| {
            works.iter().for_each(|seat| {
                scope.spawn(|| (row.proof)(seat));
            });
        });
    }
    refused.iter().for_each(|seat| is_refused(row, seat));
}

fn is_refused(row: &Row, seat: &Seat<'_>) {
    let why = (row.says)(seat.at, seat.job).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    write(&path, &seat.section(row).replace("DIR", dir.path().to_str().unwrap()));
    let output = preforkd(&["check", "--config", path.to_str().unwrap()]);
    let mut said = text(&output.stderr);
    let mut code = output.status.code().map(|code| code.to_string());
    if code.as_deref() == Some("0") && seat.at.is_passed() {
        // What it is, nobody knows before it comes.
        let server = start(row, std::slice::from_ref(seat)).start_unready();
        code = Some(server.ending());
        said = server.log.wait(why, |line| line.contains(why));
        server.wait_empty();
    }
    assert_eq!(code.as_deref(), Some("78"), "{} of {}: {said}", row.keys, seat.name);
    assert!(said.contains(why), "{} of {}: no {why:?} in {said}", row.keys, seat.name);
}

#[test]
fn every_key_works_or_is_refused_at_every_listener_with_every_job() {
    if !root("users of programs") {
        return;
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(row) = ROWS.get(number) else { return };
                    prove(number, row);
                }
            });
        }
    });
}

#[test]
fn every_key_and_every_kind_of_listener_has_its_cells() {
    /// Flags that are no keys of a service.
    const OTHERS: [&str; 5] = ["control", "drain_timeout", "log_target", "log_level", "help"];
    let help = sure(&[crate::support::BINARY, "serve", "--help"]);
    let flags = help.lines().filter_map(|line| {
        let (_, flag) = line.split_once("--")?;
        let is_flag = line.trim_start().starts_with('-');
        is_flag.then(|| flag.split([' ', '<']).next().unwrap_or_default().replace('-', "_"))
    });
    let keys: Vec<String> = flags.filter(|flag| !OTHERS.contains(&flag.as_str())).collect();
    assert!(keys.len() > 30, "{help}");
    for key in &keys {
        assert!(
            ROWS.iter().any(|row| row.names().any(|name| name == key)),
            "the key {key} has no row in ROWS"
        );
    }
    let names = ROWS.iter().flat_map(Row::names);
    let known = |name| keys.iter().any(|known| known == name);
    names.for_each(|name| assert!(known(name), "{name} is no key"));

    let line = help.lines().find(|line| line.trim_start().starts_with("<ADDRESS>")).unwrap();
    let (_, forms) = line.trim_start().split_once("<ADDRESS>").unwrap();
    let forms = forms.split(';').next().unwrap().replace(" or ", ", ");
    for form in forms.split(',').map(str::trim).filter(|form| !form.is_empty()) {
        let is_known = LISTENERS.iter().any(|(_, known)| *known == form) || ALSO_TCP.contains(&form);
        assert!(is_known, "the kind of listener {form} has no cells");
    }
}
