//! Where a record goes, and what happens if it cannot.

use super::*;

#[test]
fn auto_means_the_journal_only_if_stderr_goes_there() {
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
    machine.log(LogTarget::Auto, Level::Info, Some(&machine.stream())).event(
        Level::Notice,
        None,
        None,
        format_args!("one"),
    );
    assert_eq!(parse(&receive(&journal).unwrap())["MESSAGE"], "one");
    for other in [None, Some("1:2"), Some(""), Some("x"), Some("1:2:3")] {
        machine.log(LogTarget::Auto, Level::Info, other).warning(Some("git"), format_args!("two"));
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
    let machine = FakeMachine::new();
    let log = machine.log(LogTarget::Stderr, Level::Warning, None);
    let formatted = Cell::new(false);
    log.event(Level::Notice, None, None, format_args!("{}", Formatted(&formatted)));
    log.connection(&connection(Exit::Ended(Ending::Exited(0))));
    assert!(!formatted.get() && machine.stderr().is_empty());
    log.warning(None, format_args!("{}", Formatted(&formatted)));
    assert!(formatted.get());
}

#[test]
fn a_full_journal_is_not_waited_for_and_what_is_lost_is_reported() {
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
    let log = machine.log(LogTarget::Journal, Level::Info, None);
    let begin = Monotonic::now();
    let mut sent = 0;
    while log.dropped() < 3 {
        log.event(Level::Info, None, None, format_args!("{sent}"));
        sent += 1;
    }
    assert!(Monotonic::now() - begin < Duration::from_secs(5));
    for number in 0..sent - 3 {
        assert_eq!(parse(&receive(&journal).unwrap())["MESSAGE"], number.to_string());
    }
    assert_eq!(receive(&journal), None);
    log.event(Level::Info, None, None, format_args!("again"));
    assert_eq!(parse(&receive(&journal).unwrap())["MESSAGE"], "again");
    let report = parse(&receive(&journal).unwrap());
    assert_eq!(report["MESSAGE"], "3 log records were lost: the log could not take them");
    assert_eq!(report["MESSAGE_ID"], MessageId::RecordsDropped.hex());
    log.event(Level::Info, None, None, format_args!("and on"));
    assert_eq!(parse(&receive(&journal).unwrap())["MESSAGE"], "and on");
    assert_eq!(receive(&journal), None, "reported once");
    assert_eq!(log.dropped(), 3);
    assert_eq!(machine.stderr(), "");
}

#[test]
fn a_daemon_that_is_restarted_is_found_again() {
    for target in [LogTarget::Journal, LogTarget::Syslog] {
        let machine = FakeMachine::new();
        let path = if target == LogTarget::Journal { &machine.journal } else { &machine.syslog };
        let log = machine.log(target, Level::Info, None);

        // Not there yet, then dead with its socket still in place, then gone: stderr, which is told each time why.
        log.event(Level::Info, None, None, format_args!("early"));
        log.event(Level::Info, None, None, format_args!("too early"));
        let text = machine.stderr();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with(&format!("warning: the log at {}: No such file", path.display())));
        assert_eq!(lines[1..], ["early", "too early"]);

        let daemon = FakeMachine::listen(path);
        log.event(Level::Info, None, None, format_args!("one"));
        assert!(receive(&daemon).is_some());
        drop(daemon);
        log.event(Level::Info, None, None, format_args!("two"));
        assert!(machine.stderr().contains("refused"));
        std::fs::remove_file(path).unwrap();
        log.event(Level::Info, None, None, format_args!("three"));
        assert_eq!(machine.stderr(), "three\n");

        let daemon = FakeMachine::listen(path);
        log.event(Level::Info, None, None, format_args!("four"));
        let text = String::from_utf8(receive(&daemon).unwrap()).unwrap();
        assert!(text.contains("four"), "{text}");
        assert_eq!((log.dropped(), machine.stderr()), (0, String::new()));
    }
}

#[test]
fn records_of_connections_are_gathered_for_stderr_and_stay_in_order() {
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
    let record = connection(Exit::Ended(Ending::Exited(0)));
    let log = machine.log(LogTarget::Stderr, Level::Info, None).gathering();
    (0..5).for_each(|_| log.connection(&record));
    assert_eq!(machine.stderr(), "");
    log.event(Level::Notice, None, None, format_args!("after"));
    log.connection(&record);
    log.flush();
    log.flush();
    let text: Vec<_> = machine.stderr().lines().map(str::to_owned).collect();
    let is_record = |text: &String| text.contains(&ID.to_string());
    assert!(text[..5].iter().all(is_record) && text[5] == "after" && is_record(&text[6]), "{text:?}");
    assert_eq!((text.len(), log.dropped()), (7, 0));

    // A daemon gets each at once.
    let log = machine.log(LogTarget::Journal, Level::Info, None).gathering();
    log.connection(&record);
    assert!(receive(&journal).is_some());
}

#[test]
fn of_gathered_records_those_are_lost_that_were_not_written_whole() {
    let machine = FakeMachine::new();
    let log = machine.log(LogTarget::Stderr, Level::Info, None).gathering();
    let record = connection(Exit::Ended(Ending::Exited(0)));
    let mut written = 0;
    while log.dropped() == 0 {
        (0..50).for_each(|_| log.connection(&record));
        written += 50;
        log.flush();
    }
    let text = machine.stderr();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).count() as u64;
    assert_eq!(whole + log.dropped(), written);
    log.connection(&record);
    log.flush();
    let text = machine.stderr();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[lines.len() - 2].contains(&ID.to_string()), "{text}");
}

#[test]
fn a_record_too_big_for_a_datagram_comes_as_a_sealed_file() {
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
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
    let message =
        recvmsg::<()>(journal.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
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
fn a_full_stderr_is_not_waited_for_and_keeps_its_flags() {
    let machine = FakeMachine::new();
    let log = machine.log(LogTarget::Stderr, Level::Info, None);
    let text = "x".repeat(1000);
    while log.dropped() < 3 {
        log.event(Level::Info, None, None, format_args!("{text}"));
    }
    let flags = OFlag::from_bits_retain(fcntl(&machine.stderr, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK), "whoever shares the pipe still blocks");

    assert!(machine.stderr().lines().all(|line| line == text));
    log.event(Level::Info, None, None, format_args!("again"));
    assert_eq!(machine.stderr(), "again\nwarning: 3 log records were lost: the log could not take them\n");
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
    let machine = FakeMachine::new();
    let log = machine.log(LogTarget::Stderr, Level::Info, None);
    log.event(Level::Info, None, None, format_args!("{}", Logs(&log)));
    assert_eq!(log.dropped(), 1);
    assert!(machine.stderr().starts_with("outer\n"));
}

/// As in a worker that is not root any more, where the path of the journal is root's alone.
#[test]
fn who_has_found_the_journal_goes_on_with_it() {
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let machine = FakeMachine::new();
    let journal = FakeMachine::listen(&machine.journal);
    std::fs::set_permissions(&machine.journal, std::fs::Permissions::from_mode(0o600)).unwrap();
    let log = machine.log(LogTarget::Journal, Level::Info, None);
    // The capabilities of root over files go with his id for files, capabilities(7).
    let as_nobody = |text: &str| {
        crate::sys::process::with_files_of(65_534, || log.warning(None, format_args!("{text}")));
    };
    as_nobody("still there");
    assert_eq!(parse(&receive(&journal).expect("it has come"))["MESSAGE"], "still there");
    // That it does not keep up is no reason to say that it is away.
    (0..100_000).take_while(|_| log.dropped() == 0).for_each(|_| as_nobody("flood"));
    assert!(log.dropped() > 0);
    assert_eq!(machine.stderr(), "");
    drop(journal);
    as_nobody("away");
    assert!(machine.stderr().contains("Permission denied"), "what can be done about it is what is said");
}
