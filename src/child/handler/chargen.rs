//! Character generator (RFC 864).

use std::io;

use super::ClientStream;
use crate::sys::fd::{self, PollFlags};

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
pub(crate) fn serve(client: &ClientStream<'_>) -> io::Result<()> {
    let mut events = PollFlags::POLLOUT | PollFlags::POLLIN;
    let mut rest = PATTERN.as_slice();
    loop {
        let ready = fd::poll(client.socket, events, None)?;
        if ready.contains(PollFlags::POLLIN) && !throw_away(client)? {
            // The end of stream is readable for ever.
            events = PollFlags::POLLOUT;
        }
        // After an error or a hang-up too: the send says which.
        match client.send_now(rest) {
            Ok(sent) => rest = &rest[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if rest.is_empty() {
            rest = &PATTERN;
        }
    }
}

/// Reads once what is there; false at the end of stream.
///
/// Not inlined, to keep its buffer out of the frame of the other handlers.
#[inline(never)]
fn throw_away(client: &ClientStream<'_>) -> io::Result<bool> {
    let mut scrap = [0; 4096];
    match client.receive_now(&mut scrap) {
        Ok(length) => Ok(length > 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
