//! Echo with a thread for each connection: the iterative server, and one line more.
//!
//! A client that waits, or computes, is in nobody's way. All share one memory and one table of descriptors: what one thread
//! breaks or leaks is everybody's.
#![allow(clippy::disallowed_methods, reason = "this server has threads and never forks")]

mod requests;

use std::io::{self, Read, Write};
use std::net::TcpStream;

fn main() -> io::Result<()> {
    let listener = requests::listen()?;
    loop {
        let (client, _) = listener.accept()?;
        std::thread::Builder::new().spawn(|| echo(client))?;
    }
}

fn echo(mut client: TcpStream) -> io::Result<()> {
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
