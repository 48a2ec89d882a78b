//! Character generator (RFC 864).

use std::io;

use crate::{Connection, Handler, NoOptions, Readiness};

/// Space to tilde.
const PRINTABLE: usize = 95;
/// 72 characters, CR, LF.
const LINE: usize = 74;
/// After as many lines as there are characters, the first line comes again.
const PERIOD: usize = PRINTABLE * LINE;
/// A few periods, so that a send is worth its system call. It lies in the binary and is shared by all processes.
const LENGTH: usize = 4 * PERIOD;

static PATTERN: [u8; LENGTH] = pattern();

const fn pattern() -> [u8; LENGTH] {
    let mut pattern = [0; LENGTH];
    let mut at = 0;
    while at < LENGTH {
        let (line, column) = (at / LINE, at % LINE);
        pattern[at] = match column {
            72 => b'\r',
            73 => b'\n',
            // Below 95 + 32, so it fits.
            _ => b' ' + ((line + column) % PRINTABLE) as u8,
        };
        at += 1;
    }
    pattern
}

/// Sends until the client is gone: its end of stream ends only what it has to say, which never mattered.
///
/// What it sends is thrown away, also while it does not read: if we waited in a send with its bytes unread, a client
/// that writes before it reads would wait for us as we wait for it.
pub(crate) struct Chargen;

impl Handler for Chargen {
    type Options = NoOptions;
    const STDERR: bool = false;
    const THREADS: bool = false;

    fn serve(&self, client: &mut Connection<'_>) -> io::Result<()> {
        let mut wanted = Readiness::EITHER;
        let mut rest = PATTERN.as_slice();
        loop {
            let ready = client.wait(wanted, None)?;
            if ready.read && !throw_away(client)? {
                // The end of stream is readable for ever.
                wanted = Readiness::WRITE;
            }
            // After an error or a hang-up too: the write says which.
            match client.write_now(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if rest.is_empty() {
                rest = &PATTERN;
            }
        }
    }
}

/// Reads once what is there; false at the end of stream.
///
/// Not inlined, to keep its buffer out of the frame of the other handlers.
#[inline(never)]
fn throw_away(client: &Connection<'_>) -> io::Result<bool> {
    let mut scrap = [0; 4096];
    match client.read_now(&mut scrap) {
        Ok(length) => Ok(length > 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
