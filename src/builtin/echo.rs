//! Echo (RFC 862) and discard (RFC 863).

use std::io::{self, Read, Write};

use crate::{Connection, Handler, NoOptions};

/// The first buffer: one page or two of a stack that is in use anyway. Every further page is a fault, and in a fresh
/// process, whose pages are the worker's until they are written, a copy: about a microsecond each for nothing if the
/// client sends one line.
const SMALL: usize = 2 * 1024;

/// The buffer of a client that has filled the first one, so the faults are paid by who has much to send.
const LARGE: usize = 64 * 1024;

/// Sends everything back. A client that ends its half gets all of it before we end ours; one that sends without reading
/// is held up when the buffers of both sides are full, which is the flow control it asked for.
pub(crate) struct Echo;

impl Handler for Echo {
    type Options = NoOptions;
    const STDERR: bool = false;
    const THREADS: bool = false;

    fn serve(&self, client: &mut Connection<'_>) -> io::Result<()> {
        pump(client, |client, bytes| client.write_all(bytes))
    }
}

/// Throws everything away.
pub(crate) struct Discard;

impl Handler for Discard {
    type Options = NoOptions;
    const STDERR: bool = false;
    const THREADS: bool = false;

    fn serve(&self, client: &mut Connection<'_>) -> io::Result<()> {
        pump(client, |_, _| Ok(()))
    }
}

fn pump(
    client: &mut Connection<'_>,
    take: impl Fn(&mut Connection<'_>, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; SMALL];
    loop {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        take(client, &buffer[..length])?;
        if length == SMALL {
            return pump_much(client, take);
        }
    }
}

/// Never inlined: its frame must not become part of [`pump`]'s, whose pages would then be touched for everybody.
#[inline(never)]
fn pump_much(
    client: &mut Connection<'_>,
    take: impl Fn(&mut Connection<'_>, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; LARGE];
    loop {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            length => take(client, &buffer[..length])?,
        }
    }
}
