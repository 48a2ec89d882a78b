//! Where the kernel does not keep signals in, a program asks its worker: it may signal what comes of its own connection. What it may not
//! is in `hostile`.

use std::io::{BufRead, BufReader, Write};

use crate::hostile::LANDLOCK;
use crate::support::client::{connect, exchange};
use crate::support::{Preforkd, Running, address, eventually, root, text, write};

const SIGNALS: &str = r#"#!/bin/bash
read x
sleep 1000 & kill $! && wait $!; echo "child $?"
timeout 0.1 sleep 1000; echo "timeout $?"
set -m; sleep 1000 | sleep 1000 & kill -- -$(jobs -p) && wait $!; echo "group $?"; set +m
setsid --wait sh -c 'kill $$'; echo "session $?"
setsid --wait sh -c '(sh -c "sleep 1000 & echo \$!") | { read orphan; kill $orphan && echo orphan; }'
orphan=$(sh -c 'sleep 1000 >&- & echo $!'); kill $orphan && echo "another"
trap '' TERM; kill 0 && echo all; trap - TERM
kill -0 99999999 2>&1 | grep -o 'No such process'
kill -0 1 2>&1 | grep -o 'not permitted'
perl -e 'kill q(USR1), $$; print qq(survived\n)'; echo "itself $?"
"#;

const ALL_ARE_HEARD: &str = "child 143\ntimeout 124\ngroup 143\nsession 143\norphan\nanother\nall\nNo such process\n\
                             not permitted\nitself 138\n";

/// On a kernel without Landlock.
fn start(keys: &str, program: &str) -> Option<(Running, std::net::SocketAddr)> {
    start_under(&[], keys, program)
}

fn start_under(more: &[&str], keys: &str, program: &str) -> Option<(Running, std::net::SocketAddr)> {
    if !root("a kernel without Landlock") {
        return None;
    }
    let listen = address::fresh();
    let config = format!(
        "[service.one]\nlisten = \"{listen}\"\nexec = [\"/bin/bash\", \"DIR/program\"]\nworkers = 1\n{keys}\n"
    );
    let server = Preforkd::run(&config);
    write(&server.dir().join("program"), program);
    let without = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/without");
    Some((server.under(&[&[without], more, &LANDLOCK[..], &["--"]].concat()).start(), listen))
}

#[test]
fn a_program_may_signal_what_comes_of_its_connection() {
    let user = "user = 4711\ngroup = 4711\n";
    for keys in [
        String::new(),
        user.to_owned(),
        format!("{user}spare = 2"),
        format!("{user}sandbox = {{ system_calls = {{ deny = [\"acct\"] }} }}"),
        format!("{user}spare = 1\nwarm = \"start\""),
    ] {
        let Some((server, listen)) = start(&keys, SIGNALS) else { return };
        let in_force = server.service()["sandbox"]["in_force"].to_string();
        assert!(in_force.contains("siblings cannot be signalled"), "{keys}: {in_force}");
        assert_eq!(text(&exchange(listen, b"go\n")), ALL_ARE_HEARD, "{keys}");
        eventually("its end", || server.count("active") == 0);
    }
}

#[test]
fn one_filter_denies_and_asks() {
    let program = "read x; sed -n 's/^Seccomp_filters:[^0-9]*//p' /proc/self/status; mount --bind / /mnt 2>&1 | grep -o 'denied'; \
                   sleep 1000 & kill $! && echo ended; kill -9 $PPID 2>&1 | grep -o 'not permitted'";
    let Some((server, listen)) = start("", program) else { return };
    // The other is of the kernel that there is to be.
    let own = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")).unwrap();
    let number = own.trim().parse::<u32>().unwrap() + 1;
    assert_eq!(text(&exchange(listen, b"go\n")), format!("{number}\ndenied\nended\nnot permitted\n"));
}

#[test]
fn its_worker_signals_whom_it_has_to() {
    let Some((server, listen)) =
        start("max_lifetime = \"300ms\"\n", "trap '' TERM; read x; while :; do sleep 1000; done")
    else {
        return;
    };
    let mut client = connect(listen);
    client.write_all(b"go\n").unwrap();
    server.log.wait("its end", |line| line.contains("timeout lifetime"));
    eventually("nobody is left", || server.count("active") == 0 && server.connections().is_empty());
}

#[test]
fn whose_worker_has_died_signals_nobody_by_his_number_and_goes_on() {
    let program = "while read x; do sleep 1000 & kill $! && echo ended; kill -9 %%; done 2>&1";
    let Some((server, listen)) = start("", program) else { return };
    let mut client = BufReader::new(connect(listen));
    let mut say = |line: &str| {
        client.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_line(&mut answer).unwrap();
        answer
    };
    assert_eq!(say("one\n"), "ended\n");
    let worker = server.worker();
    server.replace_worker(worker);
    let answer = say("two\n");
    assert!(answer.contains("not implemented"), "{answer}");
}

#[test]
fn where_somebody_else_is_asked_it_is_said() {
    let Some((server, listen)) = start_under(&["--asked"], "", SIGNALS) else { return };
    server.log.wait("what is missing", |line| line.contains("connection processes may signal each other"));
    assert_eq!(text(&exchange(listen, b"go\n")), ALL_ARE_HEARD.replace("not permitted\n", ""));
}
