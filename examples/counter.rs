//! A page that counts its visitors: HTTP, and a process for each of them.
//!
//! ```console
//! $ cargo run --example counter -- serve 127.0.0.1:7007
//! $ curl http://127.0.0.1:7007/
//! You are visitor 1. Here now: 1.
//! ```

use std::io::{self, Read, Write};
use std::process::ExitCode;

use preforkd::shared::{Gauge, Layout, Lock};
use preforkd::{Connection, Server};

/// The longest request.
const LONGEST: usize = 8192;

struct Page {
    /// No two visitors have the same number, so who takes one needs the lock. Where only the sum is of interest, a
    /// `preforkd::shared::Counter` is cheaper: each process counts in a place of its own.
    visitors: Lock<u64>,
    here: Gauge,
}

impl Page {
    fn declare(layout: &mut Layout) -> Self {
        Page { visitors: layout.lock("visitors", 0), here: layout.gauge("here") }
    }
}

fn serve(page: &Page, client: &mut Connection<'_>) -> io::Result<()> {
    page.here.add(1);
    let answered = answer(page, client);
    page.here.add(-1);
    answered
}

fn answer(page: &Page, client: &mut Connection<'_>) -> io::Result<()> {
    let (status, text) = match request(client)?.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/", _] => {
            let number = page.visitors.update(|visitors| {
                *visitors += 1;
                *visitors
            })?;
            ("200 OK", format!("You are visitor {number}. Here now: {}.\n", page.here.sum()))
        }
        ["GET", _, _] => ("404 Not Found", "There is only one page, /.\n".to_owned()),
        _ => ("405 Method Not Allowed", "This page can only be read.\n".to_owned()),
    };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nAllow: GET\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n{text}",
        text.len()
    )
}

/// The first line of a request that has come to its end, an empty line.
fn request(client: &mut Connection<'_>) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        let length = client.read(&mut piece)?;
        if length == 0 || bytes.len() + length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request has no end"));
        }
        bytes.extend_from_slice(&piece[..length]);
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn main() -> ExitCode {
    Server::new("counter")
        .about("Tell each visitor which one it is")
        .sharing_handler("counter", Page::declare, serve)
        .main()
}
