//! Echo with a process for each connection: the iterative server's loop for one client, and preforkd.
//!
//! A client that waits, computes, crashes or has been taken over is in nobody's way, and what it has leaked ends with it. Who
//! listens, accepts and forks is preforkd: with an exact limit, and without `fork` in sight.

#[expect(dead_code, reason = "preforkd listens")]
mod requests;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use preforkd::{Connection, Server};

fn main() -> ExitCode {
    Server::new("echo-processes").handler("echo", echo).main()
}

fn echo(client: &mut Connection<'_>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        requests::serve(&buffer[..length]);
        client.write_all(&buffer[..length])?;
    }
}
