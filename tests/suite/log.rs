//! The log: one record per connection, in each of its forms.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use crate::support::client::{connect, echo, exchange, finish, listen_to};
use crate::support::{PATIENCE, Preforkd, Running, address, eventually, root, text};

type Fields = HashMap<String, String>;

/// The fields of a record in the native protocol of journald, <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>.
fn parse(mut datagram: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while let Some(end) = datagram.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&datagram[..end], &datagram[end + 1..]);
        if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
            fields.insert(text(&line[..equals]), text(&line[equals + 1..]));
            datagram = rest;
        } else {
            let (length, rest) = rest.split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            fields.insert(text(line), text(&rest[..length]));
            assert_eq!(rest[length], b'\n', "a value ends with a newline");
            datagram = &rest[length + 1..];
        }
    }
    assert!(datagram.is_empty(), "half a field: {}", text(datagram));
    fields
}

/// A socket to which everybody may write, as to journald's: a worker is not who started preforkd.
fn bind(path: &Path) -> UnixDatagram {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let socket = UnixDatagram::bind(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
    socket
}

/// A log daemon: it takes what comes to its socket.
struct Daemon {
    path: PathBuf,
    socket: UnixDatagram,
    reader: JoinHandle<()>,
    datagrams: Receiver<Vec<u8>>,
}

impl Daemon {
    fn at(path: &Path) -> Self {
        let socket = bind(path);
        let (sender, datagrams) = channel();
        let source = socket.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut datagram = vec![0; 200_000];
            // An empty one: the end, by shutdown.
            while let Ok(length @ 1..) = source.recv(&mut datagram) {
                let _ = sender.send(datagram[..length].to_vec());
            }
        });
        Self { path: path.to_owned(), socket, reader, datagrams }
    }

    /// The next datagram; waits for it.
    fn next(&self) -> Vec<u8> {
        self.datagrams.recv_timeout(PATIENCE).expect("a record")
    }

    /// The first record of the journal that is like this.
    fn record(&self, wanted: impl Fn(&Fields) -> bool) -> Fields {
        loop {
            let fields = parse(&self.next());
            if wanted(&fields) {
                return fields;
            }
        }
    }

    /// Ends, and leaves no socket.
    fn stop(self) {
        std::fs::remove_file(&self.path).unwrap();
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        self.reader.join().unwrap();
    }
}

/// A /run of its own, with a journald that is us.
const OWN_RUN: &str = "mount --bind DIR/run /run";

/// A service with this handler whose log goes to a journal.
fn with_journal(handler: &str, keys: &str) -> (Running, std::net::SocketAddr, Daemon) {
    let address = address::fresh();
    let server = Preforkd::run(&format!(
        "[log]\ntarget = \"journal\"\n[service.web]\nlisten = [\"{address}\"]\n{handler}\n{keys}\n"
    ));
    let journal = Daemon::at(&server.dir().join("run/systemd/journal/socket"));
    (server.after_mounts(OWN_RUN).start(), address, journal)
}

fn of_a_connection(fields: &Fields) -> bool {
    fields.contains_key("PREFORKD_EXIT")
}

#[test]
fn the_journal_gets_one_record_per_connection_with_all_its_fields() {
    if !root("a journal of its own") {
        return;
    }
    let (server, address, journal) = with_journal("handler = \"echo\"", "");
    let stream = connect(address);
    let client = stream.local_addr().unwrap();
    let mut stream = stream;
    echo(&mut stream, b"x");
    let pid = server.connections()[0].pid;
    assert_eq!(finish(stream, b"y"), b"y");

    let fields = journal.record(of_a_connection);
    let field = |name: &str| fields.get(name).unwrap_or_else(|| panic!("no {name} in {fields:#?}")).as_str();
    assert_eq!(field("PREFORKD_SERVICE"), "web");
    assert_eq!(field("PREFORKD_EXIT"), "exited 0");
    assert_eq!(field("PREFORKD_CHILD_PID"), pid.to_string());
    assert_eq!(field("REMOTE_ADDR"), client.ip().to_string());
    assert_eq!(field("REMOTE_PORT"), client.port().to_string());
    assert_eq!(field("PRIORITY"), "6");
    assert_eq!(field("SYSLOG_IDENTIFIER"), "preforkd");
    assert!(field("MESSAGE").contains(&client.to_string()), "{fields:#?}");
    let id = field("MESSAGE_ID");
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert!(!field("PREFORKD_CONNECTION").is_empty());
    for number in ["PREFORKD_DURATION_USEC", "PREFORKD_CPU_USEC", "PREFORKD_MAXRSS_KB"] {
        field(number).parse::<u64>().unwrap_or_else(|_| panic!("{number} is no number in {fields:#?}"));
    }

    for _ in 0..5 {
        exchange(address, b"x");
    }
    let ids: std::collections::HashSet<_> =
        (0..5).map(|_| journal.record(of_a_connection)["PREFORKD_CONNECTION"].clone()).collect();
    assert_eq!(ids.len(), 5);
}

#[test]
fn the_journal_tells_a_crash_from_an_end() {
    if !root("a journal of its own") {
        return;
    }
    let (_server, address, journal) = with_journal("exec = [\"sh\", \"-c\", \"kill -SEGV $$\"]", "");
    listen_to(address);
    let fields = journal.record(of_a_connection);
    assert_eq!((&*fields["PREFORKD_EXIT"], &*fields["PRIORITY"]), ("killed SEGV", "4"));
}

#[test]
fn what_a_program_writes_to_stderr_is_one_record_a_line_and_forges_no_field() {
    if !root("a journal of its own") {
        return;
    }
    let script = "printf 'first\\nPRIORITY=0\\nMESSAGE_ID=x\\033[2J\\377\\n' >&2; echo $PREFORKD_CONNECTION";
    let program = format!("exec = [\"sh\", \"-c\", {}]", serde_json::to_string(script).unwrap());
    let (_server, address, journal) = with_journal(&program, "");
    let id = listen_to(address);
    let of_stderr = |part: &'static str| {
        move |fields: &Fields| {
            !of_a_connection(fields) && fields.get("MESSAGE").is_some_and(|text| text.contains(part))
        }
    };
    for part in ["first", "PRIORITY=0", "MESSAGE_ID=x"] {
        let fields = journal.record(of_stderr(part));
        assert_eq!(fields["PREFORKD_CONNECTION"], id.trim());
        assert_eq!(fields["PREFORKD_SERVICE"], "web");
        assert_ne!(fields["PRIORITY"], "0");
        assert!(!fields["MESSAGE"].contains('\x1b'), "{fields:?}");
    }
}

#[test]
fn a_journal_that_is_away_holds_up_nobody_and_is_found_again() {
    if !root("a journal of its own") {
        return;
    }
    let (server, address, journal) = with_journal("handler = \"echo\"", "");
    exchange(address, b"x");
    journal.record(of_a_connection);
    let path = server.dir().join("run/systemd/journal/socket");
    journal.stop();
    for _ in 0..5 {
        assert_eq!(exchange(address, b"x"), b"x");
    }
    let journal = Daemon::at(&path);
    assert_eq!(exchange(address, b"x"), b"x");
    journal.record(of_a_connection);
}

#[test]
fn a_journal_that_does_not_read_holds_up_nobody_and_what_is_lost_is_counted() {
    if !root("a journal of its own") {
        return;
    }
    let address = address::fresh();
    let server = Preforkd::run(&format!(
        "[log]\ntarget = \"journal\"\n[service.web]\nlisten = [\"{address}\"]\nhandler = \"echo\"\n"
    ));
    let path = server.dir().join("run/systemd/journal/socket");
    let full = bind(&path); // that nobody reads
    let server = server.after_mounts(OWN_RUN).start();
    // net.unix.max_dgram_qlen and the send buffer are far smaller than this.
    for _ in 0..1000 {
        assert_eq!(exchange(address, b"x"), b"x");
    }
    eventually("lost records are counted", || server.status()["log_records_dropped"].as_u64().unwrap() > 0);
    drop(full);
}

#[test]
fn stderr_gets_one_line_per_connection() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"]).start();
    let stream = connect(server.address());
    let client = stream.local_addr().unwrap().to_string();
    finish(stream, b"x");
    let line = server.log.wait("record", |line| line.contains(&client) && line.contains("exited 0"));
    assert!(!line.starts_with('<'), "a prefix is for systemd: {line}");
    drop(server);
}

#[test]
fn stderr_of_a_service_of_systemd_gets_priorities() {
    // systemd.exec(5): $JOURNAL_STREAM is device and inode of what stderr is connected to.
    let script = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)";
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"])
        .under(&["sh", "-euc", "exec 2>&1; exec \"$@\"", "sh"])
        .after(script)
        .start();
    exchange(server.address(), b"x");
    server.stdout.wait("record", |line| line.starts_with("<6>") && line.contains("exited 0"));
}

#[test]
fn control_characters_of_a_program_do_not_reach_stderr() {
    let script = "printf 'a\\033[31mb\\rc\\n' >&2";
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["--", "sh", "-c", script]).start();
    listen_to(server.address());
    let line = server.log.wait("line", |line| line.contains("stderr") && line.contains('a'));
    assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
}

#[test]
fn syslog_gets_rfc_5424_and_survives_a_restart_of_its_daemon() {
    if !root("a /dev/log of its own") {
        return;
    }
    let address = address::fresh();
    let server = Preforkd::run(&format!(
        "[log]\ntarget = \"syslog\"\n[service.web]\nlisten = [\"{address}\"]\nhandler = \"echo\"\n"
    ));
    let path = server.dir().join("syslog/log");
    let daemon = Daemon::at(&path);
    // A /dev with nothing but what a daemon and its log need.
    let mounts = "mkdir DIR/dev; mount -t tmpfs none DIR/dev; ln -s DIR/syslog/log DIR/dev/log\n\
        for name in null zero random urandom tty; do : > DIR/dev/$name; mount --bind /dev/$name DIR/dev/$name; done\n\
        ln -s /proc/self/fd DIR/dev/fd; mkdir DIR/dev/shm; mount --rbind DIR/dev /dev";
    let server = server.after_mounts(mounts).start();
    let message = |daemon: &Daemon| loop {
        let message = text(&daemon.next());
        if message.contains("exited 0") {
            return message;
        }
    };
    exchange(address, b"x");
    let said = message(&daemon);
    // <PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID ...
    let words: Vec<&str> = said.split(' ').collect();
    assert!(words[0].starts_with('<') && words[0].ends_with(">1"), "{said}");
    let priority: u32 = words[0][1..words[0].len() - 2].parse().unwrap();
    assert_eq!((priority >> 3, priority & 7), (3, 6), "daemon.info: {said}");
    assert!(words[1].contains('T') && words[3] == "preforkd", "{said}");
    assert!(said.contains("web") && said.contains("127."), "{said}");

    // The daemon goes and comes back; what is between may be lost, and nothing waits for it.
    daemon.stop();
    assert_eq!(exchange(address, b"x"), b"x");
    let daemon = Daemon::at(&path);
    assert_eq!(exchange(address, b"x"), b"x");
    message(&daemon);
    drop(server);
}

#[test]
fn the_level_decides_what_is_written() {
    let address = address::fresh();
    let config = |level: &str| {
        format!(
            "[log]\nlevel = \"{level}\"\n[service.web]\nlisten = [\"{address}\"]\nexec = [\"DIR/program\"]\n"
        )
    };
    let server =
        Preforkd::run(&config("warning")).script("program", "#!/bin/sh\nread word; kill -$word $$\n").start();
    assert_eq!(exchange(address, b"TERM\n"), b"");
    assert_eq!(exchange(address, b"SEGV\n"), b"");
    server.log.wait("a crash", |line| line.contains("killed SEGV"));
    assert_eq!(server.log.count(|line| line.contains("killed TERM")), 0, "{:?}", server.log.all());
}

/// A service that says its id, and then writes to stderr as many lines as it is asked for: of this word and a number, or
/// empty ones. The log goes to a file, which takes everything.
struct Writers {
    server: Running,
    address: std::net::SocketAddr,
}

impl Writers {
    fn start(keys: &str) -> Self {
        let script = "#!/bin/sh\necho $PREFORKD_CONNECTION\nread number what\n\
            if [ \"$what\" ]; then seq -f \"$what %.0f\" $number >&2; else yes '' | head -n $number >&2; fi\n\
            echo done\n";
        let address = address::fresh();
        let config = format!(
            "[service.web]\nlisten = [\"{address}\"]\nexec = [\"DIR/writes\"]\nworkers = 1\n{keys}\n"
        );
        let server = Preforkd::run(&config).script("writes", script).after("exec 2>>DIR/log").start();
        Self { server, address }
    }

    /// Connects; its id, and what waits until it has written all.
    fn write(&self, order: &str) -> (String, impl FnOnce() + use<>) {
        use std::io::{BufRead, BufReader, Write};
        let mut stream = BufReader::new(connect(self.address));
        let mut id = String::new();
        stream.read_line(&mut id).unwrap();
        stream.get_mut().write_all(format!("{order}\n").as_bytes()).unwrap();
        let wait = move || {
            // All the records of a flood may take longer than the patience of others.
            stream.get_ref().set_read_timeout(None).unwrap();
            let mut done = String::new();
            stream.read_line(&mut done).unwrap();
            assert_eq!(done, "done\n");
        };
        (id.trim_end().to_owned(), wait)
    }

    /// All that is said about this connection: the lines that became records of their own, and the rest.
    fn said(&self, id: &str) -> (Vec<String>, Vec<String>) {
        let log = text(&std::fs::read(self.server.dir().join("log")).unwrap());
        let (mut lines, mut rest) = (Vec::new(), Vec::new());
        let name = format!("connection {id}");
        let of_it = |line: &&str| !line.starts_with(|next: char| next.is_ascii_digit());
        for line in log.lines().filter_map(|line| Some(line.split_once(&name)?.1)).filter(of_it) {
            match line.strip_prefix(": stderr:") {
                Some(written) => lines.push(written.trim_start().to_owned()),
                None => rest.push(line.to_owned()),
            }
        }
        (lines, rest)
    }

    /// Waits for the record of this connection; all that is said about it.
    fn all_said(&self, id: &str) -> (Vec<String>, Vec<String>) {
        eventually("its record", || self.said(id).1.iter().any(|line| line.contains(": exited 0 after")));
        self.said(id)
    }
}

/// How many lines were left out, by what else is said: the number before the word.
fn left_out(said: &[String]) -> Vec<usize> {
    let number = |line: &String| {
        let words: Vec<_> = line.split_whitespace().collect();
        let end = words.iter().position(|word| word.starts_with("line"))?;
        words[..end].iter().rev().find_map(|word| word.replace(',', "").parse().ok())
    };
    said.iter().filter_map(number).collect()
}

#[test]
fn a_program_that_writes_without_end_has_a_bounded_share_of_the_log() {
    const FLOOD: usize = 1_000_000;
    const MOST: usize = 10_000;
    for keys in ["", "spare = 2"] {
        for what in ["", "x"] {
            let writers = Writers::start(keys);
            let (flood, has_written) = writers.write(&format!("{FLOOD} {what}"));
            // Others are heard as ever, by the same worker and while it lasts.
            for _ in 0..3 {
                let (other, has_written) = writers.write("500 other");
                has_written();
                let wanted: Vec<_> = (1..=500).map(|number| format!("other {number}")).collect();
                assert_eq!(writers.all_said(&other).0, wanted);
            }
            has_written();
            let (lines, rest) = writers.all_said(&flood);
            assert!(lines.len() <= MOST, "{} records of one connection", lines.len());
            let left_out = left_out(&rest);
            let sum: usize = left_out.iter().sum();
            assert_eq!(sum + lines.len(), FLOOD, "it says how many were left out: {rest:?}");
            assert!(left_out.len() <= 100, "{} records only to say so", left_out.len());
            // How it began is there.
            let first = if what.is_empty() { "" } else { "x 1" };
            assert_eq!(lines[0], first);
        }
    }
}

#[test]
fn a_program_that_writes_a_normal_amount_loses_nothing() {
    for keys in ["", "spare = 2"] {
        let writers = Writers::start(keys);
        let all: Vec<_> = (0..4).map(|_| writers.write("500 one")).collect();
        for (id, has_written) in all {
            has_written();
            let wanted: Vec<_> = (1..=500).map(|number| format!("one {number}")).collect();
            let (lines, rest) = writers.all_said(&id);
            assert_eq!(lines, wanted);
            assert_eq!(left_out(&rest), [0; 0], "{rest:?}");
        }
    }
}

#[test]
fn a_service_says_which_of_its_connections_have_a_record() {
    use crate::support::address;
    let program = "[\"/bin/sh\", \"-c\", \"read status; echo said $status >&2; exit $status\"]";
    let (failures, none) = (address::fresh(), address::fresh());
    let config = format!(
        "[service.failures]\nlisten = \"{failures}\"\nexec = {program}\nworkers = 1\nlog = \"failures\"\n\
         [service.none]\nlisten = \"{none}\"\nexec = {program}\nworkers = 1\nlog = \"none\"\n"
    );
    let server = Preforkd::run(&config).start();
    for (address, status) in [(failures, "0\n"), (failures, "3\n"), (none, "0\n"), (none, "3\n")] {
        exchange(address, status.as_bytes());
    }
    // What programs say is theirs, and what is counted is all.
    for name in ["failures", "none"] {
        server.log.wait("stderr", |line| line.starts_with(&format!("{name}: ")) && line.contains("said 3"));
    }
    let completed = |name: &str| {
        let status = server.status();
        let services = status["services"].as_array().unwrap();
        services.iter().find(|service| service["name"] == name).unwrap()["completed"].as_u64().unwrap()
    };
    eventually("all have ended", || completed("failures") == 2 && completed("none") == 2);
    server.stop();
    let records = |name: &str| {
        server.log.count(|line| line.contains(&format!("{name}: connection")) && line.contains(" after "))
    };
    assert_eq!((records("failures"), records("none")), (1, 0));
    assert_eq!(server.log.count(|line| line.contains("exited 3")), 1);
}

#[test]
fn a_file_that_is_stdout_and_stderr_has_every_line() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    // As of a shell: not opened to append.
    let mut file = std::fs::File::create(&path).unwrap();
    writeln!(file, "before").unwrap();
    let control = dir.path().join("control.sock");
    let mut server = std::process::Command::new(crate::support::BINARY)
        .args(["serve", "--control", control.to_str().unwrap(), "127.0.0.1:0", "echo"])
        .stdout(file.try_clone().unwrap())
        .stderr(file.try_clone().unwrap())
        .spawn()
        .unwrap();
    let read = || std::fs::read_to_string(&path).unwrap();
    eventually("it serves", || read().contains("listening on "));
    crate::support::proc::kill(i32::try_from(server.id()).unwrap(), nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait().unwrap().success());
    writeln!(file, "after").unwrap();
    let all = read();
    let lines: Vec<&str> = all.lines().collect();
    let wanted = [
        "before",
        "Z serving: 1 service",
        "listening on 127.0.0.1:",
        "Z accepting no more",
        "Z ended",
        "after",
    ];
    assert_eq!(lines.len(), wanted.len(), "{all}");
    assert!(wanted.iter().all(|text| lines.iter().any(|line| line.contains(text))), "{all}");
    assert_eq!((lines[0], lines[5]), ("before", "after"), "{all}");
}
