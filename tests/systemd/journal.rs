//! The journal, real: stories, explanations, and nothing that blocks.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::{connect, served};
use crate::support::load::Load;
use crate::support::service::{ECHO, PORT};
use crate::support::{Container, eventually, say};

/// What the kernel queues in front of journald: net.unix.max_dgram_qlen, which systemd raises to this.
const IN_FLIGHT: u64 = 512;

const TALKER: &str = "[service.talker]\nlisten = \"127.0.0.1:7008\"\nstderr = \"log\"\n\
    exec = [\"/bin/sh\", \"-c\", \"echo $PREFORKD_CONNECTION; echo one >&2; read line; echo two and $line >&2; exit 3\"]\n";

pub(crate) fn a_connection_tells_its_whole_story(container: &Container) {
    container.fresh(TALKER);
    let mut ids = Vec::new();
    for number in 0..20 {
        let mut stream = connect(PORT + 1);
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut id = String::new();
        reader.read_line(&mut id).unwrap();
        stream.write_all(format!("three-{number}\n").as_bytes()).unwrap();
        reader.read_to_end(&mut Vec::new()).unwrap();
        ids.push(id.trim().to_owned());
    }
    eventually("all are reaped", || container.count("talker", "active") == 0);
    for (number, id) in ids.iter().enumerate() {
        let mut story = Vec::new();
        eventually("a whole story", || {
            story = container.journal(&format!("--unit=preforkd PREFORKD_CONNECTION={id}"));
            story.len() >= 3
        });
        assert_eq!(story.len(), 3, "{story:#?}");
        let message = |part: &str| {
            story.iter().find(|entry| entry["MESSAGE"].as_str().is_some_and(|text| text.contains(part)))
        };
        let record = message("exited 3").unwrap_or_else(|| panic!("no record: {story:#?}"));
        let lines = [message("stderr: one"), message(&format!("stderr: two and three-{number}"))];
        assert!(lines.iter().all(Option::is_some), "{story:#?}");
        let child = record["PREFORKD_CHILD_PID"].as_str().unwrap();
        assert!(!container.path(&format!("/proc/{child}")).exists());
        for entry in &story {
            assert_eq!(entry["PREFORKD_CHILD_PID"], child);
            assert_eq!(entry["PREFORKD_SERVICE"], "talker");
            assert_eq!(entry["_SYSTEMD_UNIT"], "preforkd.service");
            assert_eq!(entry["SYSLOG_IDENTIFIER"], "preforkd");
        }
        for (field, value) in [("PREFORKD_EXIT", "exited 3"), ("REMOTE_ADDR", "127.0.0.1"), ("PRIORITY", "6")]
        {
            assert_eq!(record[field], value, "{field}");
        }
        for field in
            ["MESSAGE_ID", "REMOTE_PORT", "PREFORKD_DURATION_USEC", "PREFORKD_CPU_USEC", "PREFORKD_MAXRSS_KB"]
        {
            assert!(record[field].is_string(), "no {field} in {record:#}");
        }
    }
}

/// One that begins before a reload and an upgrade, and ends after them.
pub(crate) fn a_story_goes_on_through_reload_and_upgrade(container: &Container) {
    container.fresh(TALKER);
    let mut stream = connect(PORT + 1);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut id = String::new();
    reader.read_line(&mut id).unwrap();
    container.configure(&format!("{TALKER}workers = 3\n"));
    container.sure("systemctl reload preforkd");
    container.upgrade();
    stream.write_all(b"late\n").unwrap();
    reader.read_to_end(&mut Vec::new()).unwrap();
    eventually("it is reaped", || container.count("talker", "active") == 0);
    let mut story = String::new();
    eventually("a whole story", || {
        let entries = container.journal(&format!("--unit=preforkd PREFORKD_CONNECTION={}", id.trim()));
        story = entries.iter().map(|entry| format!("{}\n", entry["MESSAGE"])).collect();
        entries.len() >= 3
    });
    for part in ["stderr: one", "stderr: two and late", "exited 3"] {
        assert!(story.contains(part), "no {part:?} in {story}");
    }
}

pub(crate) fn every_message_is_explained(container: &Container) {
    container.fresh(ECHO);
    let source = include_str!("../../src/journal/message_id.rs");
    let ids: Vec<&str> = source
        .split('"')
        .filter(|word| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .collect();
    assert!(ids.len() >= 13, "{ids:?}");
    let missing: Vec<&&str> = ids
        .iter()
        .filter(|id| {
            !container
                .run(&format!("journalctl --no-pager --dump-catalog {id} | grep -q '^Subject: .'"))
                .status
                .success()
        })
        .collect();
    assert!(missing.is_empty(), "the catalog does not have {missing:?}");
    let run = container.show("InvocationID");
    let explained =
        container.sure(&format!("journalctl --sync; journalctl --no-pager -x _SYSTEMD_INVOCATION_ID={run}"));
    assert!(explained.contains(" Subject: "), "{explained}");
    assert!(!explained.contains('@'), "a field without a value: {explained}");
}

/// What is known of a service's connections, when none lives any more.
struct Account {
    accepted: u64,
    dropped: u64,
    /// Records in the journal.
    recorded: u64,
    /// Records that journald suppressed by its rate limit, and said so.
    suppressed: u64,
}

fn account(container: &Container) -> Account {
    eventually("all are reaped", || container.count("echo", "active") == 0);
    let (accepted, completed) = (container.count("echo", "accepted"), container.count("echo", "completed"));
    assert_eq!(accepted, completed);
    let run = container.show("InvocationID");
    let sum = "journalctl --sync; journalctl --quiet --no-pager --output=cat";
    let count = |filter: &str| container.sure(&format!("{sum} {filter} | wc -l")).trim().parse().unwrap();
    let recorded =
        count(&format!("_SYSTEMD_INVOCATION_ID={run} MESSAGE_ID=322ad42f27a3432bae36e6fc7c6ec9e5"));
    // "Suppressed 123 messages from preforkd.service"
    let told = container.sure(&format!("{sum} _COMM=systemd-journal"));
    let words = told
        .lines()
        .filter_map(|line| line.strip_prefix("Suppressed "))
        .filter(|line| line.ends_with("preforkd.service"));
    let suppressed = words.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).sum();
    let dropped = container.status()["log_records_dropped"].as_u64().unwrap();
    Account { accepted, dropped, recorded, suppressed }
}

impl Account {
    fn tell(&self, container: &Container, what: &str, served: usize) {
        let Account { accepted, dropped, recorded, suppressed } = self;
        say(&format!(
            "     systemd {}: {what}: {served} served, {accepted} accepted, {recorded} records, {dropped} dropped, \
             {suppressed} suppressed by journald",
            container.systemd()
        ));
    }
}

pub(crate) fn a_flood_is_accounted_for(container: &Container) {
    container.fresh(ECHO);
    let begun = Instant::now();
    let load = Load::on(PORT);
    while begun.elapsed() < Duration::from_secs(10) {
        // Nobody waits for the log: neither clients, nor who asks for the status.
        load.wait_progress();
        let asked = Instant::now();
        container.status();
        assert!(asked.elapsed() < Duration::from_secs(10), "status took {:?}", asked.elapsed());
    }
    let result = load.stop();
    let account = account(container);
    account.tell(container, "ten seconds of flood", result.served);
    assert!(result.hurt.is_empty(), "{}", result.counts());
    assert_eq!(account.accepted, result.served as u64);
    assert_eq!(account.recorded + account.dropped + account.suppressed, account.accepted);
    assert_eq!(account.suppressed, 0, "LogRateLimitBurst= of the unit is too low");
}

pub(crate) fn a_journal_that_hangs_blocks_nobody(container: &Container) {
    container.fresh(ECHO);
    let journald =
        container.sure("systemctl show --property=MainPID --value systemd-journald").trim().parse().unwrap();
    container.kill("STOP", journald);
    let load = Load::on(PORT);
    // The queue is full long before.
    eventually("records are dropped", || {
        load.wait_progress();
        container.status()["log_records_dropped"].as_u64() > Some(1000)
    });
    let result = load.stop();
    served(PORT, 1);
    container.kill("CONT", journald);
    // Once the log can be written again, it says what it does not have.
    let told = || {
        served(PORT, 1);
        let run = container.show("InvocationID");
        container
            .journal(&format!("_SYSTEMD_INVOCATION_ID={run} MESSAGE_ID=389d7a63cae54031893075fb30c7c8b4"))
    };
    let mut reports: Vec<Value> = Vec::new();
    eventually("a report of what was dropped", || {
        reports = told();
        !reports.is_empty()
    });
    let account = account(container);
    account.tell(container, "journald hung", result.served);
    assert!(result.hurt.is_empty(), "{}", result.counts());
    assert!(account.dropped > 1000);
    assert_eq!(account.recorded + account.dropped + account.suppressed, account.accepted, "{reports:#?}");
}

/// As much as the kernel's queue holds while there is no journald.
pub(crate) fn a_restart_of_journald_loses_nothing_of_a_gentle_load(container: &Container) {
    container.fresh(ECHO);
    let mut number = 0;
    for _ in 0..3 {
        let mut restart = container.background("systemctl restart systemd-journald");
        while restart.try_wait().unwrap().is_none() {
            served(PORT, 1);
            number += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(restart.wait().unwrap().success());
    }
    let account = account(container);
    account.tell(container, "3 restarts of journald under a gentle load", number);
    assert_eq!((account.recorded, account.dropped), (account.accepted, 0));
}

pub(crate) fn a_restart_of_journald_loses_what_was_in_flight_at_most(container: &Container) {
    container.fresh(ECHO);
    let pid = container.main_pid();
    let load = Load::on(PORT);
    for _ in 0..3 {
        container.sure("systemctl restart systemd-journald");
        load.wait_progress();
    }
    let result = load.stop();
    let account = account(container);
    account.tell(container, "3 restarts of journald", result.served);
    assert!(result.hurt.is_empty(), "{}", result.counts());
    assert_eq!(container.main_pid(), pid);
    let known = account.recorded + account.dropped + account.suppressed;
    assert!(known <= account.accepted, "{known} of {}", account.accepted);
    assert!(known + 3 * IN_FLIGHT >= account.accepted, "{} records are lost", account.accepted - known);
    // And what comes later is there.
    let before = account.recorded;
    served(PORT, 1);
    assert_eq!(self::account(container).recorded, before + 1, "the log does not go on");
}
