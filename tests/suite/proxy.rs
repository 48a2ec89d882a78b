//! Behind a proxy that says for whom it calls.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::client::{connect_from, exchange, try_echo};
use crate::support::{Preforkd, Running, eventually};

const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";

/// Version 2 with a field of no meaning.
fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, family]);
    header.extend(u16::try_from(addresses.len() + 5).unwrap().to_be_bytes());
    header.extend(addresses);
    header.extend([0xee, 0, 2, 1, 2]);
    header
}

fn v2_tcp6() -> Vec<u8> {
    let mut addresses = Vec::new();
    addresses.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    addresses.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    addresses.extend([0x9c, 0x40, 1, 0xbb]);
    v2(1, 0x21, &addresses)
}

/// A server that echoes, or that tells its environment and then what it reads.
fn server(options: &[&str], program: &[&str]) -> Running {
    let options = [&["--proxy-protocol-from", "127.0.0.10"], options].concat();
    Preforkd::serve(&options, "127.0.0.1:0", program).start()
}

const TELL: [&str; 4] = ["--", "/bin/sh", "-c", "env | grep -E '^(TCP|REMOTE)' | sort; exec cat"];

fn ask(service: SocketAddr, header: &[u8], pieces: usize) -> String {
    let mut proxy = connect_from(PROXY, service).unwrap();
    proxy.set_nodelay(true).unwrap();
    let all = [header, b"hello\n"].concat();
    let mut answer = String::new();
    // Who is refused may see a reset at any of these.
    let sent = all.chunks(pieces).try_for_each(|piece| proxy.write_all(piece));
    let _ = sent.and_then(|()| proxy.shutdown(Shutdown::Write)).map(|()| proxy.read_to_string(&mut answer));
    answer
}

fn told(remote: &str, port: u16, local: &str, local_port: u16) -> String {
    format!(
        "REMOTE_ADDR={remote}\nREMOTE_PORT={port}\nTCPLOCALIP={local}\nTCPLOCALPORT={local_port}\n\
         TCPREMOTEIP={remote}\nTCPREMOTEPORT={port}\nhello\n"
    )
}

#[test]
fn the_program_and_the_log_see_the_real_client() {
    let server = server(&[], &TELL);
    let v4 = told("192.0.2.7", 40000, "198.51.100.1", 443);
    let v6 = told("2001:db8::7", 40000, "2001:db8::1", 443);
    for pieces in [1, 3, 20, 1000] {
        assert_eq!(ask(server.address(), V1, pieces), v4, "{pieces}");
        assert_eq!(ask(server.address(), &v2_tcp6(), pieces), v6, "{pieces}");
    }
    server.log.wait("records", |line| line.contains("192.0.2.7:40000") && line.contains("exited 0"));
    let record =
        server.log.wait("records", |line| line.contains("[2001:db8::7]:40000") && line.contains("exited 0"));
    // Six bytes are the client's, the rest was the proxy's.
    assert!(record.contains("6 bytes in"), "{record}");
}

#[test]
fn a_proxy_may_call_for_itself() {
    let server = server(&["--deny", "127.0.0.0/8", "--max-connections-per-source", "1"], &["echo"]);
    let unix = [b'/'; 216];
    for header in [v2(0, 0, &[]), v2(1, 0x31, &unix), b"PROXY UNKNOWN\r\n".to_vec()] {
        assert_eq!(ask(server.address(), &header, 7), "hello\n");
    }
}

#[test]
fn version_1_names_both_ends_for_itself() {
    let server = server(&["--deny", "127.0.0.0/8"], &["echo"]);
    let service = server.address();
    let ask = |destination: SocketAddr| {
        let mut proxy = connect_from(PROXY, service).unwrap();
        let source = proxy.local_addr().unwrap();
        let (from, to) = (source.port(), destination.port());
        let header = format!("PROXY TCP4 {} {} {from} {to}\r\n", source.ip(), destination.ip());
        proxy.write_all(header.as_bytes()).unwrap();
        try_echo(&mut proxy, b"hello").is_ok()
    };
    assert!(ask(service), "what HAProxy's checks say");
    // A transparent proxy has its client's address, and the limits are for that one.
    assert!(!ask("198.51.100.1:443".parse().unwrap()));
    assert_eq!(refused(&server, "access"), 1);
}

fn refused(server: &Running, reason: &str) -> u64 {
    server.service()["refused"][reason].as_u64().unwrap()
}

#[test]
fn rules_and_limits_are_the_real_clients() {
    let options = ["--deny", "192.0.2.0/24", "--rate-per-source", "1/h burst 2"];
    let server = server(&options, &["echo"]);
    assert_eq!(ask(server.address(), V1, 1000), "");
    eventually("one refused", || refused(&server, "access") == 1);
    for (n, answer) in ["hello\n", "hello\n", ""].into_iter().enumerate() {
        assert_eq!(ask(server.address(), &v2_tcp6(), 1000), answer, "{n}");
    }
    eventually("one refused", || refused(&server, "rate") == 1);
    assert_eq!(server.count("accepted"), 2);
}

#[test]
fn headers_that_lie_or_stop_are_refused() {
    let server = server(&[], &["echo"]);
    let wrong: [&[u8]; 5] = [
        b"hello, is this an echo server?\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 70000\r\n",
        b"PROXY TCP4 2001:db8::7 198.51.100.1 40000 443\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04\x01\x02\x03\x04",
        b"PROXY TCP4 192.0.2.7 198.51",
    ];
    for (n, header) in wrong.into_iter().enumerate() {
        let mut proxy = connect_from(PROXY, server.address()).unwrap();
        proxy.write_all(header).unwrap();
        // It may be reset by now.
        let _ = proxy.shutdown(Shutdown::Write);
        assert!(!matches!(proxy.read(&mut [0]), Ok(1..)), "{n}: the proxy was told something");
        eventually("one more refused", || refused(&server, "header") == n as u64 + 1);
    }
    // A check whether the port is open is nothing wrong.
    drop(connect_from(PROXY, server.address()).unwrap());
    assert_eq!(ask(server.address(), V1, 1000), "hello\n");
    assert_eq!((refused(&server, "header"), server.count("accepted")), (5, 1));
    server.log.wait("whose header is wrong", |line| line.contains("127.0.0.10") && line.contains("PROXY"));
}

#[test]
fn a_header_that_does_not_come_keeps_nobody_waiting_and_ends() {
    let server = server(&["--workers", "1", "--max-connections", "20"], &["echo"]);
    let mut silent: Vec<TcpStream> =
        (0..10).map(|_| connect_from(PROXY, server.address()).unwrap()).collect();
    for proxy in &mut silent[..5] {
        proxy.write_all(&V1[..20]).unwrap();
    }
    assert_eq!(ask(server.address(), V1, 1), "hello\n");
    for mut proxy in silent {
        assert!(!matches!(proxy.read(&mut [0]), Ok(1..)));
    }
    assert_eq!(refused(&server, "header"), 10);
    assert_eq!((server.count("accepted"), server.count("active")), (1, 0));
}

#[test]
fn a_header_from_the_wrong_place_is_data() {
    let server = server(&[], &["echo"]);
    assert_eq!(exchange(server.address(), V1), V1);
    server.log.wait("a record", |line| line.contains("127.0.0.1:") && line.contains("exited 0"));
}

#[test]
fn a_worker_that_retires_serves_who_has_begun_a_header() {
    let listen = crate::support::address::fresh();
    let config = |keys: &str| {
        format!(
            "[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nproxy_protocol_from = \"127.0.0.10\"\n{keys}"
        )
    };
    let server = Preforkd::run(&config("")).start();
    let mut proxy = connect_from(PROXY, listen).unwrap();
    proxy.write_all(&V1[..20]).unwrap();
    // Somebody has taken it.
    eventually("an empty queue", || server.count("queued") == 0);
    server.configure(&config("nodelay = false"));
    server.reload_ok();
    proxy.write_all(&V1[20..]).unwrap();
    proxy.write_all(b"hello").unwrap();
    proxy.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    proxy.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
}

#[test]
fn a_check_earns_no_penalty_for_clients_beside_the_proxy() {
    let options = ["--source-prefix-v4", "24", "--penalties", "0=60s", "--penalties", "7=60s"];
    let server = server(&options, &["echo"]);
    assert_eq!(ask(server.address(), &v2(0, 0, &[]), 1000), "hello\n");
    eventually("the end of it", || server.count("completed") == 1);
    let beside = b"PROXY TCP4 127.0.0.77 198.51.100.1 40000 443\r\n";
    assert_eq!(ask(server.address(), beside, 1000), "hello\n");
    server.log.wait("a penalty", |line| line.contains("127.0.0.0/24 has a penalty"));
    assert_eq!(ask(server.address(), beside, 1000), "");
}

/// Connections of a proxy that has not said anything yet, and that somebody has taken.
fn silent(server: &Running, number: usize) -> Vec<TcpStream> {
    let silent = (0..number).map(|_| connect_from(PROXY, server.address()).unwrap()).collect();
    eventually("an empty queue", || server.count("queued") == 0);
    silent
}

/// What the service answers on a connection of a proxy that sends its header only now; empty for who is refused.
fn go_on(mut proxy: TcpStream, header: &[u8]) -> String {
    let mut answer = String::new();
    let sent = proxy.write_all(&[header, b"hello\n"].concat());
    let _ = sent.and_then(|()| proxy.shutdown(Shutdown::Write)).map(|()| proxy.read_to_string(&mut answer));
    answer
}

#[test]
fn a_header_that_comes_late_brings_no_tokens() {
    const RATE: f64 = 10.0;
    const BURST: f64 = 20.0;
    for workers in ["1", "2"] {
        let server = server(&["--rate-per-source", "10/s burst 20", "--workers", workers], &["echo"]);
        let late = silent(&server, 10);
        // That they are late is what is tested; a header has 5 s.
        std::thread::sleep(Duration::from_secs(3));
        let (start, mut served) = (Instant::now(), 0.0);
        let use_up = |served: &mut f64| {
            while ask(server.address(), V1, 1000) == "hello\n" {
                *served += 1.0;
            }
        };
        use_up(&mut served);
        for proxy in late {
            if go_on(proxy, V1) == "hello\n" {
                served += 1.0;
            }
            use_up(&mut served);
        }
        // No rate gives more than this, however slow the machine.
        let most = BURST + RATE * start.elapsed().as_secs_f64() + 1.0;
        assert!(served <= most, "{served} were served, and at most {most} may be");
    }
}

#[test]
fn a_header_that_comes_late_is_judged_by_the_penalties_of_now() {
    const OBEDIENT: [&str; 4] = ["--", "/bin/sh", "-c", "read order; echo did $order; exit 7"];
    let options = ["--penalties", "7=300ms", "--penalty-threshold", "0s"];
    loop {
        let server = server(&options, &OBEDIENT);
        let late = silent(&server, 1);
        assert_eq!(ask(server.address(), V1, 1000), "did hello\n");
        server.log.wait("a penalty", |line| line.contains("192.0.2.7/32") && line.contains("refused for"));
        let before = refused(&server, "penalty");
        // It goes by, and nobody is asked whose end would bring another.
        std::thread::sleep(Duration::from_millis(400));
        let answers = late.into_iter().map(|late| go_on(late, V1)).collect::<Vec<_>>();
        if refused(&server, "header") > 0 {
            // The machine is so slow that the header came too late for anything.
            continue;
        }
        assert_eq!(answers, ["did hello\n"], "his penalty has gone by");
        assert_eq!(refused(&server, "penalty"), before);
        break;
    }
}
