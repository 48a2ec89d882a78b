//! The handlers as a client sees them, over TCP and over Unix sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::chargen::Chargen;
use super::clock::{Daytime, Time};
use super::echo::{Discard, Echo};
use crate::child::call::{CallOutcome, HandlerCall};
use crate::client::{Client, ConnectionId, Traffic};
use crate::exit;
use crate::handler::{AnyHandler, Progress};
use crate::sys::socket::Peer;
use crate::sys::stream;
use crate::sys::time::Monotonic;

type Served = &'static dyn AnyHandler;

/// As the process of a connection does.
fn serve(handler: Served, connection: BorrowedFd<'_>) -> CallOutcome {
    let call = HandlerCall { handler, shared: None, has_stderr: false, is_caged: false };
    let id = ConnectionId { run: 1, worker: 1, number: 1 };
    let client = Client::now(Peer::Unix(None));
    call.serve((connection, &Progress::default()), (id, &client), Monotonic::NEVER)
}

/// Starts a handler and connects to it.
fn tcp(served: Served) -> (TcpStream, JoinHandle<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (connection, _) = listener.accept().unwrap();
    (client, thread::spawn(move || serve(served, connection.as_fd()).code))
}

fn unix(served: Served) -> (UnixStream, JoinHandle<u8>) {
    let (client, connection) = UnixStream::pair().unwrap();
    (client, thread::spawn(move || serve(served, connection.as_fd()).code))
}

/// Closes with RST, as a client that crashes with input unread does.
fn reset(client: TcpStream) {
    stream::reset(client.into());
}

fn read_all(mut client: impl Read) -> Vec<u8> {
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn echo_answers_each_message() {
    let (mut client, handler) = tcp(&Echo);
    for message in [&b"0123456789abcdef"[..], b"x", &[7; 3000], b"after a large one"] {
        client.write_all(message).unwrap();
        let mut answer = vec![0; message.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, message);
    }
    drop(client);
    assert_eq!(handler.join().unwrap(), exit::OK);
}

#[test]
fn echo_gives_all_back_after_a_half_close() {
    let everything: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (client, handler) = tcp(&Echo);
    let mut sender = client.try_clone().unwrap();
    let sent = everything.clone();
    let sender = thread::spawn(move || {
        sender.write_all(&sent).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    assert!(read_all(client) == everything);
    sender.join().unwrap();
    assert_eq!(handler.join().unwrap(), exit::OK);

    for length in [0, 1, 2047, 2048, 2049, 4096, 66_000] {
        let (mut client, handler) = unix(&Echo);
        client.write_all(&everything[..length]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(read_all(client) == everything[..length], "{length}");
        assert_eq!(handler.join().unwrap(), exit::OK);
    }
}

#[test]
fn a_client_that_resets_or_never_reads_is_no_error() {
    let all: [(&str, Served); 5] = [
        ("echo", &Echo),
        ("discard", &Discard),
        ("chargen", &Chargen),
        ("daytime", &Daytime),
        ("time", &Time),
    ];
    for (name, served) in all {
        let (mut client, handler) = tcp(served);
        let _ = client.write_all(&[b'x'; 10_000]);
        reset(client);
        assert_eq!(handler.join().unwrap(), exit::OK, "{name}");

        let (mut client, handler) = unix(served);
        let _ = client.write_all(&[b'x'; 10_000]);
        drop(client);
        assert_eq!(handler.join().unwrap(), exit::OK, "{name}");
    }
}

#[test]
fn discard_takes_all_and_says_nothing() {
    let (mut client, handler) = tcp(&Discard);
    client.write_all(&[1; 1_000_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client), b"");
    assert_eq!(handler.join().unwrap(), exit::OK);
}

#[test]
fn chargen_rotates_through_all_lines() {
    let (mut client, handler) = tcp(&Chargen);
    let mut answer = vec![0; 74 * 95 * 9 + 1];
    client.read_exact(&mut answer).unwrap();
    let text = String::from_utf8(answer).unwrap();
    let lines: Vec<_> = text.split_terminator("\r\n").collect();
    let printable: String = (b' '..=b'~').map(char::from).collect();
    let twice = printable.repeat(2);
    for (number, line) in lines[..95 * 9].iter().enumerate() {
        assert_eq!(*line, &twice[number % 95..number % 95 + 72], "line {number}");
    }
    drop(client);
    assert_eq!(handler.join().unwrap(), exit::OK);
}

#[test]
fn chargen_goes_on_after_a_half_close_and_beside_a_client_that_writes_first() {
    let (mut client, handler) = tcp(&Chargen);
    // More than the buffers of both sides hold.
    client.write_all(&vec![b'x'; 30_000_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = vec![0; 20_000_000];
    client.read_exact(&mut answer).unwrap();
    drop(client);
    assert_eq!(handler.join().unwrap(), exit::OK);
}

#[test]
fn daytime_and_time_answer_once_and_close() {
    let (client, handler) = tcp(&Daytime);
    let line = String::from_utf8(read_all(&client)).unwrap();
    assert!(line.is_ascii() && line.ends_with("-UTC\r\n") && line.matches('\n').count() == 1, "{line:?}");
    drop(client);
    assert_eq!(handler.join().unwrap(), exit::OK);

    let (client, handler) = unix(&Time);
    let seconds = u32::from_be_bytes(read_all(&client).try_into().unwrap());
    let unix_now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let now = ((unix_now + 2_208_988_800) % (1 << 32)) as u32;
    assert!(now.wrapping_sub(seconds) < 5, "{seconds} is not {now}");
    drop(client);
    assert_eq!(handler.join().unwrap(), exit::OK);
}

#[test]
fn an_answer_survives_input_that_nobody_wants() {
    let (mut client, handler) = tcp(&Daytime);
    client.write_all(&[b'x'; 5000]).unwrap();
    thread::sleep(Duration::from_millis(50));
    client.write_all(b"more, after the answer").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(handler.join().unwrap(), exit::OK);
    // A reset would make this an error.
    assert!(read_all(client).ends_with(b"-UTC\r\n"));
}

#[test]
fn a_client_that_stays_is_left_in_bounded_time() {
    let begin = Monotonic::now();
    let (client, handler) = tcp(&Time);
    assert_eq!(handler.join().unwrap(), exit::OK);
    assert!(Monotonic::now() - begin < Duration::from_secs(10));
    assert_eq!(read_all(client).len(), 4);
}

#[test]
fn what_is_no_socket_is_an_error_of_ours() {
    let file = tempfile::tempfile().unwrap();
    assert_eq!(serve(&Echo, file.as_fd()).code, exit::OS);
}

#[test]
fn what_was_moved_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (connection, _) = listener.accept().unwrap();
    client.write_all(&[7; 5000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let traffic = serve(&Echo, connection.as_fd()).traffic;
    assert_eq!(traffic, Traffic { received: 5000, sent: 5000 });
}
