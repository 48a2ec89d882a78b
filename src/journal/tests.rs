//! The log against real sockets and pipes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::*;
use crate::shared::ConnectionId;
use crate::sys::wait::Ending;

const ID: ConnectionId = ConnectionId {
    run: 0x5f3a1c,
    worker: 7,
    number: 123,
};

/// A machine with a journal, a syslog daemon and a stderr of its own.
struct Machine {
    _directory: tempfile::TempDir,
    journal: PathBuf,
    syslog: PathBuf,
    stderr: OwnedFd,
    stderr_reader: File,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (reader, stderr) = nix::unistd::pipe().unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Machine {
            journal: directory.path().join("journal"),
            syslog: directory.path().join("log"),
            _directory: directory,
            stderr,
            stderr_reader: reader.into(),
        }
    }

    fn listen(path: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    fn log(&self, target: LogTarget, level: Level, journal_stream: Option<&str>) -> Log {
        let places = Places {
            journal: &self.journal,
            syslog: &self.syslog,
            stderr: self.stderr.as_fd(),
            journal_stream,
        };
        Log::open_at(config::Log { target, level }, &places)
    }

    /// What `$JOURNAL_STREAM` would be if this stderr went to the journal.
    fn stream(&self) -> String {
        let stat = nix::sys::stat::fstat(&self.stderr).unwrap();
        format!("{}:{}", stat.st_dev, stat.st_ino)
    }

    fn stderr(&self) -> String {
        let mut text = Vec::new();
        let _ = (&self.stderr_reader).read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    }
}

fn receive(socket: &UnixDatagram) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1 << 20];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// Reads one entry of the native protocol.
fn parse(mut entry: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|&byte| byte == b'\n').unwrap();
        let (line, rest) = (&entry[..end], &entry[end + 1..]);
        let (name, value) = match line.iter().position(|&byte| byte == b'=') {
            Some(equals) => {
                entry = rest;
                (&line[..equals], &line[equals + 1..])
            }
            None => {
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                assert_eq!(rest[8 + length], b'\n');
                entry = &rest[9 + length..];
                (line, &rest[8..8 + length])
            }
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert!(fields.insert(text(name), text(value)).is_none(), "a field twice");
    }
    fields
}

fn connection(exit: Exit<'_>) -> ConnectionRecord<'_> {
    ConnectionRecord {
        service: "echo",
        id: ID,
        pid: 812,
        remote: Remote::Ip("192.0.2.1:51234".parse().unwrap()),
        duration: Duration::from_micros(1_204_567),
        exit,
        bytes: None,
        cpu: Duration::from_micros(1_900),
        max_rss_kib: 1340,
    }
}

#[test]
fn a_connection_in_the_journal_has_every_promised_field() {
    let machine = Machine::new();
    let journal = Machine::listen(&machine.journal);
    let log = machine.log(LogTarget::Journal, Level::Info, None);
    log.connection(&ConnectionRecord {
        bytes: Some((3, 4)),
        ..connection(Exit::Ended(Ending::Exited(0)))
    });

    let fields = parse(&receive(&journal).unwrap());
    let expected = [
        (
            "MESSAGE",
            "echo: connection 5f3a1c-7-123 from 192.0.2.1:51234: exited 0 after 1.204s \
             (pid 812, cpu 1 ms, 1340 KiB, 3 bytes in, 4 out)",
        ),
        ("MESSAGE_ID", MessageId::ConnectionEnded.hex()),
        ("PREFORKD_BYTES_IN", "3"),
        ("PREFORKD_BYTES_OUT", "4"),
        ("PREFORKD_CHILD_PID", "812"),
        ("PREFORKD_CONNECTION", "5f3a1c-7-123"),
        ("PREFORKD_CPU_USEC", "1900"),
        ("PREFORKD_DURATION_USEC", "1204567"),
        ("PREFORKD_EXIT", "exited 0"),
        ("PREFORKD_MAXRSS_KB", "1340"),
        ("PREFORKD_SERVICE", "echo"),
        ("PRIORITY", "6"),
        ("REMOTE_ADDR", "192.0.2.1"),
        ("REMOTE_PORT", "51234"),
        ("SYSLOG_IDENTIFIER", "preforkd"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(fields, BTreeMap::from(expected));
    assert_eq!(log.dropped(), 0);
}

#[test]
fn how_a_connection_ended_sets_priority_and_message_id() {
    let machine = Machine::new();
    let journal = Machine::listen(&machine.journal);
    let log = machine.log(LogTarget::Journal, Level::Info, None);
    for (exit, priority, id, name, text) in [
        (
            Exit::Ended(Ending::Exited(1)),
            "6",
            MessageId::ConnectionEnded,
            "exited 1",
            "exited 1 after",
        ),
        (
            Exit::Ended(Ending::Killed(15)),
            "6",
            MessageId::ConnectionEnded,
            "killed TERM",
            "killed TERM after",
        ),
        (
            Exit::Ended(Ending::Killed(11)),
            "4",
            MessageId::ConnectionCrashed,
            "killed SEGV",
            "killed SEGV after",
        ),
        (
            Exit::NotStarted("fork: no"),
            "4",
            MessageId::ConnectionNotStarted,
            "not started",
            "not started: fork: no",
        ),
        (
            Exit::Lost,
            "6",
            MessageId::ConnectionEnded,
            "lost",
            "lost after 1.204s (pid 812)",
        ),
    ] {
        log.connection(&connection(exit));
        let fields = parse(&receive(&journal).unwrap());
        assert_eq!(fields["PRIORITY"], priority);
        assert_eq!(fields["MESSAGE_ID"], id.hex());
        assert_eq!(fields["PREFORKD_EXIT"], name);
        assert!(fields["MESSAGE"].contains(text), "{}", fields["MESSAGE"]);
    }
}

#[test]
fn remotes_read_as_people_write_them() {
    for (remote, text) in [
        (
            Remote::Ip("[2001:db8::1]:5".parse::<SocketAddr>().unwrap()),
            "[2001:db8::1]:5",
        ),
        (Remote::Ip("[::ffff:192.0.2.1]:5".parse().unwrap()), "192.0.2.1:5"),
        (Remote::Unix { pid: 9, uid: 1000 }, "uid 1000 (pid 9)"),
        (Remote::Unknown, "unknown"),
    ] {
        assert_eq!(remote.to_string(), text);
    }
}

#[test]
fn a_program_cannot_forge_a_record_or_drive_a_terminal() {
    let machine = Machine::new();
    let journal = Machine::listen(&machine.journal);
    let text = b"bad\nMESSAGE=forged\n\x1b[2J\xff\r\n";
    let line = OutputLine {
        service: "git",
        id: ID,
        pid: 5,
        text,
    };

    machine.log(LogTarget::Journal, Level::Info, None).output(&line);
    let fields = parse(&receive(&journal).unwrap());
    let safe = "git: connection 5f3a1c-7-123: stderr: bad\\x0aMESSAGE=forged\\x0a\\x1b[2J\\xff";
    assert_eq!(fields["MESSAGE"], safe);
    assert_eq!(fields["PREFORKD_CONNECTION"], "5f3a1c-7-123");
    assert_eq!(fields["PREFORKD_CHILD_PID"], "5");

    machine.log(LogTarget::Stderr, Level::Info, None).output(&line);
    assert_eq!(machine.stderr(), format!("{safe}\n"));
}

#[test]
fn an_event_of_several_lines_stays_one_record() {
    let machine = Machine::new();
    let journal = Machine::listen(&machine.journal);
    let event = |log: &Log| {
        log.event(
            Level::Error,
            Some(MessageId::ReloadRejected),
            None,
            format_args!("no:\n{}", "a\n<0>b"),
        );
    };

    event(&machine.log(LogTarget::Journal, Level::Info, None));
    let fields = parse(&receive(&journal).unwrap());
    assert_eq!(fields["MESSAGE"], "no:\na\n<0>b");
    assert_eq!(fields["MESSAGE_ID"], MessageId::ReloadRejected.hex());

    event(&machine.log(LogTarget::Stderr, Level::Info, Some(&machine.stream())));
    assert_eq!(machine.stderr(), "<3>no:\n<3>  a\n<3>  <0>b\n");
}

#[test]
fn auto_means_the_journal_only_if_stderr_goes_there() {
    let machine = Machine::new();
    let journal = Machine::listen(&machine.journal);
    machine
        .log(LogTarget::Auto, Level::Info, Some(&machine.stream()))
        .notice(None, format_args!("one"));
    assert_eq!(parse(&receive(&journal).unwrap())["MESSAGE"], "one");
    for other in [None, Some("1:2"), Some(""), Some("x"), Some("1:2:3")] {
        machine
            .log(LogTarget::Auto, Level::Info, other)
            .warning(Some("git"), format_args!("two"));
        assert_eq!(machine.stderr(), "warning: git: two\n");
    }
    assert_eq!(receive(&journal), None);
}

#[test]
fn what_is_below_the_level_is_not_even_formatted() {
    struct Formatted<'a>(&'a Cell<bool>);
    impl fmt::Display for Formatted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(true);
            f.write_str("formatted")
        }
    }
    let machine = Machine::new();
    let log = machine.log(LogTarget::Stderr, Level::Warning, None);
    let formatted = Cell::new(false);
    log.notice(None, format_args!("{}", Formatted(&formatted)));
    log.connection(&connection(Exit::Ended(Ending::Exited(0))));
    assert!(!formatted.get() && machine.stderr().is_empty());
    log.warning(None, format_args!("{}", Formatted(&formatted)));
    assert!(formatted.get());
}

#[test]
fn a_full_journal_is_not_waited_for_and_what_is_lost_is_reported() {
    let machine = Machine::new();
    let journal = Machine::listen(&machine.journal);
    let log = machine.log(LogTarget::Journal, Level::Info, None);
    let begin = Instant::now();
    let mut sent = 0;
    while log.dropped() < 3 {
        log.info(None, format_args!("{sent}"));
        sent += 1;
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    for number in 0..sent - 3 {
        assert_eq!(parse(&receive(&journal).unwrap())["MESSAGE"], number.to_string());
    }
    assert_eq!(receive(&journal), None);
    log.info(None, format_args!("again"));
    assert_eq!(parse(&receive(&journal).unwrap())["MESSAGE"], "again");
    let report = parse(&receive(&journal).unwrap());
    assert_eq!(
        report["MESSAGE"],
        "3 log records were lost: the log could not take them"
    );
    assert_eq!(report["MESSAGE_ID"], MessageId::RecordsDropped.hex());
    log.info(None, format_args!("and on"));
    assert_eq!(parse(&receive(&journal).unwrap())["MESSAGE"], "and on");
    assert_eq!(receive(&journal), None, "reported once");
    assert_eq!(log.dropped(), 3);
    assert_eq!(machine.stderr(), "");
}

#[test]
fn a_daemon_that_is_restarted_is_found_again() {
    for target in [LogTarget::Journal, LogTarget::Syslog] {
        let machine = Machine::new();
        let path = if target == LogTarget::Journal {
            &machine.journal
        } else {
            &machine.syslog
        };
        let log = machine.log(target, Level::Info, None);

        // Not there yet, then dead with its socket still in place, then gone: stderr, which is told each time why.
        log.info(None, format_args!("early"));
        log.info(None, format_args!("too early"));
        let text = machine.stderr();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with(&format!("warning: the log at {}: No such file", path.display())));
        assert_eq!(lines[1..], ["early", "too early"]);

        let daemon = Machine::listen(path);
        log.info(None, format_args!("one"));
        assert!(receive(&daemon).is_some());
        drop(daemon);
        log.info(None, format_args!("two"));
        assert!(machine.stderr().contains("refused"));
        std::fs::remove_file(path).unwrap();
        log.info(None, format_args!("three"));
        assert_eq!(machine.stderr(), "three\n");

        let daemon = Machine::listen(path);
        log.info(None, format_args!("four"));
        let text = String::from_utf8(receive(&daemon).unwrap()).unwrap();
        assert!(text.contains("four"), "{text}");
        assert_eq!((log.dropped(), machine.stderr()), (0, String::new()));
    }
}

#[test]
fn a_record_too_big_for_a_datagram_comes_as_a_sealed_file() {
    let machine = Machine::new();
    let journal = Machine::listen(&machine.journal);
    let log = machine.log(LogTarget::Journal, Level::Info, None);
    match &log.sink.borrow().target {
        Target::Journal(journal) => journal.shrink(),
        _ => panic!("the target is the journal"),
    }
    let text = "x".repeat(escape::LONGEST);
    log.error(None, format_args!("{text}"));

    let mut space = nix::cmsg_space!([i32; 1]);
    let mut buffer = [0; 64];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(
        journal.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .unwrap();
    assert_eq!(message.bytes, 0);
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
        panic!("no descriptor came");
    };
    let file = File::open(format!("/proc/self/fd/{}", fds[0])).unwrap();
    let mut content = Vec::new();
    (&file).read_to_end(&mut content).unwrap();
    assert_eq!(parse(&content)["MESSAGE"], text);
    let seals = SealFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GET_SEALS).unwrap());
    assert!(seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW));
}

#[test]
fn a_syslog_line_has_the_form_of_rfc_5424() {
    let machine = Machine::new();
    let daemon = Machine::listen(&machine.syslog);
    let log = machine.log(LogTarget::Syslog, Level::Debug, None);
    log.connection(&connection(Exit::Ended(Ending::Killed(11))));
    let line = String::from_utf8(receive(&daemon).unwrap()).unwrap();
    let (header, rest) = line.split_once(" [").unwrap();
    let header: Vec<_> = header.split(' ').collect();
    assert_eq!(header[0], "<28>1", "daemon.warning, version 1");
    assert!(
        header[1].starts_with("20") && header[1].ends_with('Z'),
        "{}",
        header[1]
    );
    assert!(!header[2].is_empty());
    assert_eq!(header[3..], ["preforkd", &std::process::id().to_string(), "8"]);
    let (data, message) = rest.split_once("] ").unwrap();
    assert!(data.starts_with("preforkd@32473 ") && data.contains(" PREFORKD_CONNECTION=\"5f3a1c-7-123\""));
    assert!(data.contains(" REMOTE_ADDR=\"192.0.2.1\"") && data.contains(" PREFORKD_EXIT=\"killed SEGV\""));
    assert!(message.starts_with("echo: connection 5f3a1c-7-123 from 192.0.2.1:51234: killed SEGV after"));

    log.debug(None, format_args!("two\nlines]"));
    let line = String::from_utf8(receive(&daemon).unwrap()).unwrap();
    assert!(
        line.starts_with("<31>1 ") && line.ends_with(" 0 - two\\x0alines]"),
        "{line}"
    );
}

#[test]
fn a_full_stderr_is_not_waited_for_and_keeps_its_flags() {
    let machine = Machine::new();
    let log = machine.log(LogTarget::Stderr, Level::Info, None);
    let text = "x".repeat(1000);
    while log.dropped() < 3 {
        log.info(None, format_args!("{text}"));
    }
    let flags = OFlag::from_bits_retain(fcntl(&machine.stderr, FcntlArg::F_GETFL).unwrap());
    assert!(
        !flags.contains(OFlag::O_NONBLOCK),
        "whoever shares the pipe still blocks"
    );

    assert!(machine.stderr().lines().all(|line| line == text));
    log.info(None, format_args!("again"));
    assert_eq!(
        machine.stderr(),
        "again\nwarning: 3 log records were lost: the log could not take them\n"
    );
}

#[test]
fn text_that_logs_while_it_is_formatted_does_no_harm() {
    struct Logs<'a>(&'a Log);
    impl fmt::Display for Logs<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.error(None, format_args!("inner"));
            f.write_str("outer")
        }
    }
    let machine = Machine::new();
    let log = machine.log(LogTarget::Stderr, Level::Info, None);
    log.info(None, format_args!("{}", Logs(&log)));
    assert_eq!(log.dropped(), 1);
    assert!(machine.stderr().starts_with("outer\n"));
}

#[test]
fn message_ids_are_distinct_and_well_formed() {
    let ids = [
        MessageId::Started,
        MessageId::Stopped,
        MessageId::ReloadDone,
        MessageId::ReloadRejected,
        MessageId::WorkerDied,
        MessageId::WorkerThrottled,
        MessageId::ConnectionEnded,
        MessageId::ConnectionCrashed,
        MessageId::ConnectionNotStarted,
        MessageId::DrainBegun,
        MessageId::DrainEnded,
        MessageId::RecordsDropped,
        MessageId::AcceptPaused,
    ];
    let distinct: BTreeMap<_, _> = ids.iter().map(|id| (id.hex(), id.number())).collect();
    assert_eq!(distinct.len(), ids.len());
    for (index, id) in ids.iter().enumerate() {
        assert_eq!(id.number() as usize, index + 1);
        assert!(
            id.hex().len() == 32
                && id
                    .hex()
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        );
    }
}
