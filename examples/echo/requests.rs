//! What the four servers do with what a client says: they echo it. Four words let a client be the bad one of a page that
//! compares the servers: preforkd.models(7), and benches/models, which measures what it says.

use std::io::{self, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// Listens on the address of the command line, and says so.
pub(crate) fn listen() -> io::Result<TcpListener> {
    let address = std::env::args().nth(1).ok_or(io::Error::other("usage: ADDRESS, as in 127.0.0.1:7007"))?;
    let listener = TcpListener::bind(address)?;
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
    Ok(listener)
}

/// Has the bug that a request asks for; other requests ask for none.
pub(crate) fn serve(request: &[u8]) {
    match request.trim_ascii_end() {
        b"crash" => std::process::abort(),
        b"leak" => leak(),
        b"compute" => compute(Duration::from_secs(1)),
        b"compute long" => compute(Duration::from_secs(60)),
        b"shout" => shout(),
        _ => {}
    }
}

/// Loses a mebibyte, as a cache without a limit does.
fn leak() {
    let lost = vec![1u8; 1 << 20];
    std::hint::black_box(Box::leak(lost.into_boxed_slice()));
}

/// Thinks for so long, as a regular expression or a large picture makes a server do.
fn compute(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// What a client does that has taken over this process: it speaks to whoever this process holds a connection of.
fn shout() {
    for descriptor in 3..1024 {
        let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT | nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
        let _ = nix::sys::socket::send(descriptor, b"gotcha\n", flags);
    }
}
