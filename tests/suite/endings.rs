//! No answer is lost when who has given it ends, and what the record counts is what has arrived.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::client::{connect, connect_unix, echo, finish};
use crate::support::{A_WHILE, Preforkd, Running, address, eventually, proc};

/// More than the buffers of both sides hold if one of them is small.
const LENGTH: usize = 600_000;

/// Writes the answer into the buffer of the kernel, as far as it takes it, and ends with this.
fn answers(then: &str) -> [String; 4] {
    let script = format!("head -c {LENGTH} /dev/zero | tr '\\0' a; {then}");
    ["--".into(), "/bin/sh".into(), "-c".into(), script]
}

fn serve(options: &[&str], job: &[String]) -> Running {
    let job: Vec<_> = job.iter().map(String::as_str).collect();
    Preforkd::serve(options, "127.0.0.1:0", &job).start()
}

/// A client whose buffer is small, so that much is still on its way when its program ends.
fn slow(address: SocketAddr) -> TcpStream {
    let client = connect(address);
    setsockopt(&client, sockopt::RcvBuf, &65536).unwrap();
    client
}

/// Reads to the end, slowly at first.
fn read_slowly(client: &mut impl Read) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut piece = [0; 10_000];
    for _ in 0..5 {
        let length = client.read(&mut piece).unwrap();
        answer.extend(&piece[..length]);
        std::thread::sleep(Duration::from_millis(20));
    }
    client.read_to_end(&mut answer).unwrap();
    answer
}

fn bytes_out(server: &Running) -> Vec<u64> {
    let number = |line: &String| line.split_once(" bytes in, ")?.1.split_once(" out")?.0.parse().ok();
    server.log.all().iter().filter_map(number).collect()
}

const WAYS: [&[&str]; 3] = [&["--workers", "2"], &["--spare", "2"], &["--idle-timeout", "60s"]];

#[test]
fn an_answer_is_whole_whatever_the_client_has_sent() {
    for options in WAYS {
        let server = serve(options, &answers(""));
        for (sent, half_closed) in [(0, false), (1, false), (100_000, false), (100_000, true)] {
            let mut client = slow(server.address());
            client.write_all(&vec![7; sent]).unwrap();
            if half_closed {
                client.shutdown(Shutdown::Write).unwrap();
            }
            let answer = read_slowly(&mut client);
            assert_eq!(answer.len(), LENGTH, "{options:?} {sent} {half_closed}");
        }
        eventually("all are recorded", || bytes_out(&server).len() == 4);
        assert_eq!(bytes_out(&server), [LENGTH as u64; 4]);
        eventually("all slots are free", || server.count("active") == 0);
    }
}

#[test]
fn an_answer_is_whole_if_nobody_counts() {
    for options in [&["--count-bytes", "false"][..], &["--count-bytes", "false", "--spare", "2"]] {
        // At once, and after it was looked whether the program has its connection yet.
        for first in ["", "sleep 0.4; "] {
            let [dashes, shell, is_script, script] = answers("");
            let server = serve(options, &[dashes, shell, is_script, first.to_owned() + &script]);
            let mut client = slow(server.address());
            client.write_all(&[7; 50_000]).unwrap();
            assert_eq!(read_slowly(&mut client).len(), LENGTH, "{options:?} {first}");
        }
    }
}

/// It goes on sending after the program has ended: what it sends is thrown away, and no reset overtakes the answer.
#[test]
fn an_answer_is_whole_while_the_client_goes_on_sending() {
    for options in WAYS {
        let server = serve(options, &["--".into(), "/bin/echo".into(), "no".into()]);
        let mut client = connect(server.address());
        for _ in 0..20 {
            client.write_all(&[7; 100_000]).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "no\n");
        eventually("it is recorded", || bytes_out(&server) == [3]);
    }
}

#[test]
fn an_answer_is_whole_however_the_program_ends() {
    for then in ["kill -KILL $$", "kill -TERM $$", "kill -SEGV $$", "exit 3"] {
        let server = serve(&[], &answers(then));
        let mut client = slow(server.address());
        client.write_all(&[7; 50_000]).unwrap();
        assert_eq!(read_slowly(&mut client).len(), LENGTH, "{then}");
    }
}

/// By what is queued when the time is over.
#[test]
fn an_answer_is_whole_when_a_deadline_has_ended_it() {
    let way = |timeout: &[&str]| {
        let server =
            serve(timeout, &["--".into(), "/bin/sh".into(), "-c".into(), "echo late; sleep 1000".into()]);
        let mut client = connect(server.address());
        client.write_all(&[7; 50_000]).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "late\n", "{timeout:?}");
        server.log.wait("its record", |line| line.contains("5 out") && line.contains("timeout"));
    };
    [["--max-lifetime", "1s"], ["--idle-timeout", "1s"]].iter().for_each(|timeout| way(timeout));
}

/// Who has ended holds its place until its client has all, and a reload does not cut it short.
#[test]
fn a_reload_and_a_stop_wait_for_who_still_reads() {
    for signal in [None, Some(Signal::SIGTERM)] {
        let listen = address::fresh();
        let config = |backlog: u32| {
            format!(
                "[service.x]\nlisten = \"{listen}\"\nworkers = 1\nbacklog = {backlog}\nexec = [\"/bin/sh\", \"-c\", \
                 \"head -c {LENGTH} /dev/zero\"]\n"
            )
        };
        let server = Preforkd::run(&config(64)).start();
        let mut client = slow(listen);
        client.write_all(&[7; 50_000]).unwrap();
        client.read_exact(&mut [0; 10]).unwrap();
        match signal {
            Some(signal) => server.signal(signal),
            None => {
                server.configure(&config(65));
                server.reload_ok();
            }
        }
        assert_eq!(10 + read_slowly(&mut client).len(), LENGTH, "{signal:?}");
        if signal.is_some() {
            server.left_nothing(&[listen]);
        }
    }
}

#[test]
fn who_takes_nothing_is_given_up() {
    let server = serve(&["--max-connections", "1"], &answers(""));
    let client = slow(server.address());
    eventually("it is given up", || server.count("active") == 0 && !bytes_out(&server).is_empty());
    let counted = bytes_out(&server)[0];
    assert!(
        counted > 0 && counted < LENGTH as u64,
        "{counted}: what was acknowledged, and not what was written"
    );
    drop(client);
}

#[test]
fn who_sends_without_end_is_given_up() {
    let server = serve(&["--max-connections", "1"], &["--".into(), "/bin/true".into()]);
    let start = Instant::now();
    let mut client = connect(server.address());
    while client.write_all(&[7; 65536]).is_ok() {}
    assert!(start.elapsed() < Duration::from_secs(25));
    eventually("its place is free", || server.count("active") == 0);
}

#[test]
fn quit_ends_it_at_once() {
    let server = serve(&[], &answers(""));
    let _client = slow(server.address());
    eventually("its program has ended", || {
        server.count("active") == 1 && server.workers().iter().all(|pid| proc::descendants(*pid).is_empty())
    });
    let start = Instant::now();
    server.signal(Signal::SIGQUIT);
    server.left_nothing(&[]);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn an_answer_over_a_unix_socket_is_whole_too() {
    for options in [&[][..], &["--spare", "2"]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let listen = format!("unix:{}", path.display());
        // It ends when it has something to read, and reads no more of it.
        let program = ["--", "/bin/sh", "-c", "head -c 1 >/dev/null; echo no"];
        let _server = Preforkd::serve(options, &listen, &program).start();
        let mut client = connect_unix(&path);
        client.write_all(&[7; 50_000]).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "no\n", "{options:?}");
    }
}

/// A handler's process sees to it itself.
#[test]
fn an_answer_of_a_handler_is_whole_and_counted_when_it_has_arrived() {
    for options in [&[][..], &["--spare", "2"], &["--spare", "2", "--connections-per-child", "0"]] {
        let server = Preforkd::serve(options, "127.0.0.1:0", &["echo"]).start();
        assert_eq!(finish(connect(server.address()), &[7; 1000]).len(), 1000);
        let mut client = slow(server.address());
        let mut writer = client.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            writer.write_all(&[7; LENGTH]).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(read_slowly(&mut client).len(), LENGTH);
        sender.join().unwrap();
        eventually("both are recorded", || bytes_out(&server).len() == 2);
        assert_eq!(bytes_out(&server), [1000, LENGTH as u64], "{options:?}");

        // One that takes nothing of it.
        let mut client = slow(server.address());
        client.write_all(&[7; LENGTH]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        eventually("it is given up", || bytes_out(&server).len() == 3);
        assert!(bytes_out(&server)[2] < LENGTH as u64, "{options:?}");
    }
}

#[test]
fn a_handler_that_a_deadline_ends_loses_no_answer() {
    for options in [&[][..], &["--spare", "2"], &["--spare", "2", "--connections-per-child", "0"]] {
        let options = [options, &["--idle-timeout", "1s"]].concat();
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        let mut client = connect(server.address());
        echo(&mut client, b"x");
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        server.log.wait("its record", |line| line.contains("1 bytes in, 1 out"));
    }
}

/// The common case: nobody waits for anything.
#[test]
fn who_has_all_is_closed_at_once() {
    let server = serve(&["--max-connections", "1"], &["--".into(), "/bin/echo".into(), "yes".into()]);
    // It stays connected, and keeps nobody from the only place.
    let held: Vec<_> = (0..20)
        .map(|_| {
            let mut client = connect(server.address());
            let mut answer = [0; 4];
            client.read_exact(&mut answer).unwrap();
            client
        })
        .collect();
    std::thread::sleep(A_WHILE);
    eventually("all have ended", || server.count("active") == 0);
    drop(held);
}
