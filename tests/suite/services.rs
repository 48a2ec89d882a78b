//! The built-in services, and every kind of address.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::client::{connect, connect_unix, exchange, exchange_unix};
use crate::support::{Preforkd, Running, address, sure};

const TCP: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// What a service answers, over whatever it listens on.
fn ask_everywhere(handler: &str, request: &[u8], check: impl Fn(Vec<u8>)) {
    for address in TCP {
        let server = Preforkd::serve(&[], address, &[handler]).start();
        check(exchange(server.address(), request));
    }
    let (_server, path) = on_unix(&[handler]);
    check(exchange_unix(&path, request));
}

fn on_unix(handler: &[&str]) -> (Running, PathBuf) {
    let server = Preforkd::serve(&[], "unix:DIR/service.sock", handler).start();
    let path = server.dir().join("service.sock");
    (server, path)
}

#[test]
fn echo_sends_back_what_it_gets() {
    ask_everywhere("echo", b"hello", |answer| assert_eq!(answer, b"hello"));
}

#[test]
fn echo_keeps_up_with_a_client_that_sends_much() {
    let long: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"]).start();
    let stream = connect(server.address());
    let mut reader = stream.try_clone().unwrap();
    let expected = long.clone();
    let read = std::thread::spawn(move || {
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).unwrap();
        assert!(answer == expected, "{} bytes of another answer", answer.len());
    });
    std::io::Write::write_all(&mut &stream, &long).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    read.join().unwrap();
}

#[test]
fn discard_says_nothing_and_ends_with_its_client() {
    ask_everywhere("discard", &[7; 100_000], |answer| assert_eq!(answer, b""));
}

#[test]
fn daytime_is_one_line_in_ascii() {
    ask_everywhere("daytime", b"", |answer| {
        let answer = String::from_utf8(answer).unwrap();
        let line = answer.strip_suffix("\r\n").unwrap_or_else(|| panic!("no line: {answer:?}"));
        assert!(line.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{line:?}");
        let year = sure(&["date", "+%Y"]);
        assert!(line.contains(year.trim()), "{line:?} is not in {year}");
    });
}

#[test]
fn time_is_the_seconds_since_1900() {
    ask_everywhere("time", b"", |answer| {
        let seconds = u32::from_be_bytes(answer.try_into().unwrap());
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        // RFC 868 counts from 1900, and in 2036 its 32 bits start again.
        let expected = (unix + 2_208_988_800) as u32;
        assert!(expected.wrapping_sub(seconds) < 10, "{seconds}, not {expected}");
    });
}

#[test]
fn chargen_rotates_printable_characters_until_its_client_goes() {
    let check = |stream: &mut dyn Read| {
        let mut lines = Vec::new();
        let mut reader = BufReader::new(stream);
        for _ in 0..200 {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.strip_suffix("\r\n").unwrap_or_else(|| panic!("{line:?}")).to_owned();
            assert_eq!(line.len(), 72, "{line:?}");
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
            lines.push(line);
        }
        for pair in lines.windows(2) {
            assert_eq!(pair[0][1..], pair[1][..71], "each line starts one character later");
        }
    };
    for address in TCP {
        let server = Preforkd::serve(&[], address, &["chargen"]).start();
        check(&mut connect(server.address()));
    }
    let (_server, path) = on_unix(&["chargen"]);
    check(&mut connect_unix(&path));
}

#[test]
fn a_half_closed_connection_gets_its_answer() {
    // -N: shutdown(2) after the end of stdin, and then wait for the answer.
    for handler in [&["echo"][..], &["--", "/bin/cat"], &["--", "sh", "-c", "cat; echo end"]] {
        let end = if handler.len() > 3 { "end\n" } else { "" };
        let server = Preforkd::serve(&[], "127.0.0.1:0", handler).start();
        let (host, port) = (server.address().ip().to_string(), server.address().port().to_string());
        let said = sure(&["sh", "-c", "printf x | nc -N \"$@\"", "sh", &host, &port]);
        assert_eq!(said, format!("x{end}"), "{handler:?}");

        let (_server, path) = on_unix(handler);
        let said = sure(&["sh", "-c", "printf x | nc -N -U \"$@\"", "sh", path.to_str().unwrap()]);
        assert_eq!(said, format!("x{end}"), "{handler:?}");
    }
}

#[test]
fn a_service_listens_on_several_addresses() {
    let (one, two) = (address::fresh(), address::fresh());
    let server = Preforkd::run(&format!(
        r#"[service.echo]
           listen = ["{one}", "{two}", "unix:DIR/service.sock"]
           handler = "echo"
           workers = 2
           [service.daytime]
           listen = ["{}"]
           handler = "daytime""#,
        address::fresh(),
    ))
    .start();
    assert_eq!(exchange(one, b"one"), b"one");
    assert_eq!(exchange(two, b"two"), b"two");
    assert_eq!(exchange_unix(&server.dir().join("service.sock"), b"three"), b"three");
    let names: Vec<_> =
        server.status()["services"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, ["daytime", "echo"]);
}

#[test]
fn the_ipv6_wildcard_leaves_ipv4_alone() {
    let port = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let config =
        format!("[service.echo]\nlisten = [\"[::]:{port}\", \"0.0.0.0:{port}\"]\nhandler = \"echo\"\n");
    let _server = Preforkd::run(&config).start();
    for ip in ["127.0.0.1", "[::1]"] {
        let address: SocketAddr = format!("{ip}:{port}").parse().unwrap();
        assert_eq!(exchange(address, b"x"), b"x");
    }
}

#[test]
fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service.sock");
    let listen = format!("unix:{}", path.display());
    let stale = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let output = crate::support::preforkd(&["serve", &listen, "echo"]);
    assert_ne!(output.status.code(), Some(0), "it took a socket that somebody listens on");
    drop(stale);
    let server = Preforkd::serve(&[], &listen, &["echo"]).start();
    assert_eq!(exchange_unix(&path, b"x"), b"x");
    drop(server);
    assert!(!path.exists(), "it left its socket");
}

#[test]
fn a_socket_that_systemd_passes_is_served() {
    for address in TCP {
        let server = Preforkd::serve(&[], "fd:web", &["echo"]).passing("web", address).start();
        let address = server.passed_address();
        assert_eq!(exchange(address, b"x"), b"x");
        assert_eq!(exchange(address, b"y"), b"y");
    }
}

#[test]
fn a_passed_socket_of_another_name_is_an_error_that_says_both_names() {
    let server = Preforkd::serve(&[], "fd:web", &["echo"]).passing("mail", "127.0.0.1:0").start_unready();
    assert_ne!(server.ending(), "0");
    server.log.wait("both names", |line| line.contains("web") && line.contains("mail"));
    server.wait_empty();
}

/// Each service has a port of its own where the kernel is to choose one, whatever else is the same, also after a reload and an upgrade.
#[test]
fn no_two_services_share_a_port_that_the_kernel_has_chosen() {
    let service = |name: &str, handler: &str| {
        format!("[service.{name}]\nlisten = \"127.0.0.1:0\"\nhandler = \"{handler}\"\nworkers = 1\n")
    };
    let two = service("one", "echo") + &service("two", "discard");
    let server = Preforkd::run(&two).start();
    let addresses = |server: &Running| {
        let addresses = server.tcp_addresses();
        assert_eq!(addresses.iter().collect::<std::collections::BTreeSet<_>>().len(), addresses.len());
        addresses
    };
    let first = addresses(&server);
    server.configure(&(two + &service("three", "daytime")));
    server.reload_ok();
    let all = addresses(&server);
    assert!(all.len() == 3 && first.iter().all(|address| all.contains(address)), "{first:?} {all:?}");
    assert!(server.upgrade().status.success());
    assert_eq!(addresses(&server), all);
    for (address, answer) in all.iter().map(|address| (address, exchange(*address, b"x"))) {
        let status = server.status();
        let is_it = |service: &&serde_json::Value| service["listen"][0] == address.to_string();
        let service = status["services"].as_array().unwrap().iter().find(is_it).unwrap().clone();
        let wanted = match service["name"].as_str().unwrap() {
            "one" => answer == b"x",
            "two" => answer.is_empty(),
            _ => answer.len() > 10,
        };
        assert!(wanted, "{service}: {answer:?}");
    }
}
