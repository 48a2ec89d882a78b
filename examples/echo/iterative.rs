//! Echo, one client after the other: the first server of every textbook.
//!
//! The second client's connect returns, and so does its write: the kernel shook hands for it and keeps its bytes. Its read
//! waits until the first client has gone.

mod requests;

use std::io::{self, Read, Write};
use std::net::TcpStream;

fn main() -> io::Result<()> {
    let listener = requests::listen()?;
    loop {
        let (client, _) = listener.accept()?;
        // That a client has gone away is no reason to end.
        let _ = echo(client);
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
