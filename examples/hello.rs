//! Greets each client by the name that it says: the shortest service that reads and answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::ExitCode;

use preforkd::{Connection, Server};

fn main() -> ExitCode {
    Server::new("hello")
        .handler("hello", |client: &mut Connection<'_>| {
            let mut name = String::new();
            // Bounded: a stranger may send a line without an end.
            BufReader::new(&*client).take(80).read_line(&mut name)?;
            writeln!(client, "hello {}, you are {}", name.trim(), client.peer())
        })
        .main()
}
