//! A client that knows how far it has come.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use crate::support::client::{connect_from, reset, try_echo};

/// What has become of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A process answers.
    Served,
    /// It was closed or reset without an answer.
    Closed,
    /// Neither yet.
    Waits,
}

#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    pub(super) source: Ipv4Addr,
    closed: bool,
}

impl Client {
    /// Connects, and sends the byte that whoever serves it will send back.
    pub(super) fn call(source: Ipv4Addr, service: SocketAddr) -> Self {
        let mut stream = connect_from(source, service).unwrap();
        let closed = stream.write_all(b"x").is_err();
        Self { stream, source, closed }
    }

    /// What has become of the call by now.
    pub(super) fn look(&mut self) -> Outcome {
        self.stream.set_nonblocking(true).unwrap();
        let outcome = self.answer();
        self.stream.set_nonblocking(false).unwrap();
        outcome
    }

    /// What becomes of the call; waits for it as long as a test has patience.
    pub(super) fn answer(&mut self) -> Outcome {
        let mut answer = [0];
        match self.stream.read(&mut answer) {
            _ if self.closed => Outcome::Closed,
            Ok(1) if answer == *b"x" => Outcome::Served,
            Ok(1) => panic!("another answer: {answer:?}"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Outcome::Waits,
            Ok(_) | Err(_) => Outcome::Closed,
        }
    }

    /// Whether one who is served is so still.
    pub(super) fn lives(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Exchanges a few bytes; false if it is served no more.
    pub(super) fn echoes(&mut self) -> bool {
        try_echo(&mut self.stream, b"0123456789").is_ok()
    }

    /// Says that it has no more to say, and waits until the service has closed too.
    pub(super) fn finish(mut self) {
        // Its process may have been killed just now.
        if self.stream.shutdown(std::net::Shutdown::Write).is_ok() {
            let _ = self.stream.read_to_end(&mut Vec::new());
        }
    }

    pub(super) fn reset(self) {
        reset(self.stream);
    }
}
