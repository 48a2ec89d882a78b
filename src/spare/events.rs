//! What spares say when they have been taken: a pipe, so that they need no memory in common with anybody.
//!
//! The worker reads it, and the supervisor holds it too: what a worker that was killed has not read is not lost, and
//! `status` counts what a sleeping worker has yet to see. A spare closes it before anything of a stranger runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::client::Connection;
use crate::sys::fd;
use crate::sys::wait::Pid;

/// The end that is read.
#[derive(Debug)]
pub(crate) struct SpareEvents(File);

/// The end that spares write to.
#[derive(Debug)]
pub(crate) struct SpareEventsWriter(OwnedFd);

/// The number of the spare's process, and a [`Connection`].
const LENGTH: usize = 8 + Connection::WORDS * 8;

impl SpareEvents {
    /// A new pipe, with room for so many messages while nobody reads.
    pub(crate) fn create(messages: u32) -> io::Result<(SpareEvents, SpareEventsWriter)> {
        let (read, write) = fd::pipe()?;
        fd::set_nonblocking(write.as_fd(), true)?;
        // Messages do not cross pages. Without the room a record may have to go without its connection.
        let room = (messages as usize).div_ceil(4096 / LENGTH).saturating_mul(4096);
        let _ = fd::set_pipe_room(write.as_fd(), room.min(1 << 20));
        Ok((SpareEvents(read.into()), SpareEventsWriter(write)))
    }

    /// The end that another process has handed over.
    pub(crate) fn open(read: OwnedFd) -> SpareEvents {
        SpareEvents(read.into())
    }

    /// The same end, opened anew: whether a read waits is for this process alone to say, whoever else has the other.
    pub(crate) fn own(&self) -> io::Result<SpareEvents> {
        fd::reopen_nonblocking(self.descriptor()).map(SpareEvents)
    }

    /// To hand it over.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Hands on all that has been said: which process, and what it serves. A stranger's code never had this pipe; all the
    /// same, the pid says nothing that the reader's own children do not confirm.
    pub(crate) fn read(&self, mut take: impl FnMut(Pid, Connection)) {
        let mut buffer = [0; LENGTH * 32];
        // More than the largest pipe holds.
        for _ in 0..1000 {
            let length = (&self.0).read(&mut buffer).unwrap_or(0);
            for message in buffer.get(..length).unwrap_or_default().chunks_exact(LENGTH) {
                if let Some((pid, connection)) = decode(message) {
                    take(pid, connection);
                }
            }
            if length < buffer.len() {
                return;
            }
        }
    }

    /// How many connections nobody has heard of yet.
    pub(crate) fn unread(&self) -> u32 {
        (fd::unread(self.0.as_fd()) / LENGTH) as u32
    }
}

impl SpareEventsWriter {
    /// The end that another process has handed over.
    pub(crate) fn open(write: OwnedFd) -> SpareEventsWriter {
        SpareEventsWriter(write)
    }

    /// To hand it over.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// For spares, in a worker that makes them for as long as it is there.
    pub(crate) fn for_ever(self) -> BorrowedFd<'static> {
        fd::for_ever(self.0)
    }
}

/// In a spare: says that it has been taken. There is room for what each spare says once; one that serves several
/// connections waits for room if the worker has not listened for long, rather than serve somebody who is not counted.
pub(crate) fn tell(events: BorrowedFd<'_>, pid: Pid, connection: &Connection) {
    // Nobody is left who reads it if it fails.
    let _ = fd::write_message(events, &encode(pid, connection), None);
}

pub(crate) fn encode(pid: Pid, connection: &Connection) -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    let (head, words) = message.split_at_mut(8);
    head[..4].copy_from_slice(&pid.to_ne_bytes());
    for (place, word) in words.chunks_exact_mut(8).zip(connection.to_words()) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    message
}

pub(crate) fn decode(message: &[u8]) -> Option<(Pid, Connection)> {
    let (pid, rest) = message.split_first_chunk::<4>()?;
    let mut words = [0; Connection::WORDS];
    for (word, bytes) in words.iter_mut().zip(rest.get(4..)?.chunks_exact(8)) {
        *word = u64::from_ne_bytes(*bytes.first_chunk()?);
    }
    Some((Pid::from_ne_bytes(*pid), Connection::from_words(words)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::sys::socket::Peer;
    use crate::sys::time::Monotonic;

    fn connection(number: u64) -> Connection {
        let peer = Peer::Ip("192.0.2.1:80".parse().unwrap());
        let client =
            Client { peer, accepted: Monotonic::from_nanos(7), header: None, is_exempt: false, listener: 0 };
        Connection { number, client, until: Monotonic::NEVER }
    }

    #[test]
    fn connections_are_counted_until_they_are_read() {
        let (events, writer) = SpareEvents::create(8).unwrap();
        (1..=100).for_each(|number| tell(writer.descriptor(), 42, &connection(number)));
        assert_eq!(events.unread(), 100);
        let mut heard = Vec::new();
        events.read(|pid, connection| heard.push((pid, connection)));
        assert!(heard.iter().copied().eq((1..=100).map(|number| (42, connection(number)))));
        assert_eq!(events.unread(), 0);
    }

    #[test]
    fn who_has_the_pipe_too_cannot_make_this_process_wait() {
        let (shared, writer) = SpareEvents::create(8).unwrap();
        let own = shared.own().unwrap();
        fd::set_nonblocking(shared.descriptor(), false).unwrap();
        tell(writer.descriptor(), 42, &connection(1));
        let mut heard = 0;
        (0..2).for_each(|_| own.read(|_, _| heard += 1));
        assert_eq!(heard, 1);
    }

    #[test]
    fn there_is_room_for_all_spares() {
        let (events, writer) = SpareEvents::create(5000).unwrap();
        (1..=5000).for_each(|number| tell(writer.descriptor(), 42, &connection(number)));
        assert_eq!(events.unread(), 5000);
    }
}
