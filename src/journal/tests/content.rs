//! What a record says, in each form.

use super::*;

#[test]
fn a_connection_in_the_journal_has_every_promised_field() {
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
    let log = machine.log(LogTarget::Journal, Level::Info, None);
    log.connection(&ConnectionRecord { bytes: Some((3, 4)), ..connection(Exit::Ended(Ending::Exited(0))) });

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
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
    let log = machine.log(LogTarget::Journal, Level::Info, None);
    for (exit, priority, id, name, text) in [
        (Exit::Ended(Ending::Exited(1)), "6", MessageId::ConnectionEnded, "exited 1", "exited 1 after"),
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
            Exit::TimedOut(Deadline::FirstByte),
            "6",
            MessageId::ConnectionEnded,
            "timeout first_byte",
            "timeout first_byte after 1.204s (pid 812, cpu",
        ),
        (Exit::Lost, "6", MessageId::ConnectionEnded, "lost", "lost after 1.204s (pid 812)"),
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
        (Remote::Ip("[2001:db8::1]:5".parse::<SocketAddr>().unwrap()), "[2001:db8::1]:5"),
        (Remote::Ip("[::ffff:192.0.2.1]:5".parse().unwrap()), "192.0.2.1:5"),
        (Remote::Unix { pid: 9, uid: 1000 }, "uid 1000 (pid 9)"),
        (Remote::Unknown, "unknown"),
    ] {
        assert_eq!(remote.to_string(), text);
    }
}

#[test]
fn a_program_cannot_forge_a_record_or_drive_a_terminal() {
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
    let text = b"bad\nMESSAGE=forged\n\x1b[2J\xff\r\n";
    let line = OutputLine { service: "git", id: ID, pid: 5, text: Ok(text) };

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
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
    let event = |log: &Log| {
        log.event(Level::Error, Some(MessageId::ReloadRejected), None, format_args!("no:\n{}", "a\n<0>b"));
    };

    event(&machine.log(LogTarget::Journal, Level::Info, None));
    let fields = parse(&receive(&journal).unwrap());
    assert_eq!(fields["MESSAGE"], "no:\na\n<0>b");
    assert_eq!(fields["MESSAGE_ID"], MessageId::ReloadRejected.hex());

    event(&machine.log(LogTarget::Stderr, Level::Info, Some(&machine.stream())));
    assert_eq!(machine.stderr(), "<3>no:\n<3>  a\n<3>  <0>b\n");
}

#[test]
fn a_syslog_line_has_the_form_of_rfc_5424() {
    let machine = FakeMachine::new();
    let daemon = FakeMachine::listen(&machine.syslog);
    let log = machine.log(LogTarget::Syslog, Level::Debug, None);
    log.connection(&connection(Exit::Ended(Ending::Killed(11))));
    let line = String::from_utf8(receive(&daemon).unwrap()).unwrap();
    let (header, rest) = line.split_once(" [").unwrap();
    let header: Vec<_> = header.split(' ').collect();
    assert_eq!(header[0], "<28>1", "daemon.warning, version 1");
    assert!(header[1].starts_with("20") && header[1].ends_with('Z'), "{}", header[1]);
    assert!(!header[2].is_empty());
    assert_eq!(header[3..], ["preforkd", &std::process::id().to_string(), "8"]);
    let (data, message) = rest.split_once("] ").unwrap();
    assert!(data.starts_with("preforkd@32473 ") && data.contains(" PREFORKD_CONNECTION=\"5f3a1c-7-123\""));
    assert!(data.contains(" REMOTE_ADDR=\"192.0.2.1\"") && data.contains(" PREFORKD_EXIT=\"killed SEGV\""));
    assert!(message.starts_with("echo: connection 5f3a1c-7-123 from 192.0.2.1:51234: killed SEGV after"));

    log.debug(None, format_args!("two\nlines]"));
    let line = String::from_utf8(receive(&daemon).unwrap()).unwrap();
    assert!(line.starts_with("<31>1 ") && line.ends_with(" 0 - two\\x0alines]"), "{line}");
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
            id.hex().len() == 32 && id.hex().bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        );
    }
}
