//! What spares say when they are called: a pipe, so that they need no memory in common with anybody.
//!
//! The worker reads it, and the supervisor holds it too: what a worker that was killed has not read is not lost, and
//! `status` counts what a sleeping worker has yet to see. A spare closes it before anything of a stranger runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::client::Client;
use crate::sys::fd;
use crate::sys::wait::Pid;

/// The end that is read.
#[derive(Debug)]
pub(crate) struct SpareEvents(File);

/// The end that spares write to.
#[derive(Debug)]
pub(crate) struct SpareEventsWriter(OwnedFd);

/// The number of the spare's process, and a [`Client`].
const LENGTH: usize = 8 + Client::WORDS * 8;

impl SpareEvents {
    /// A new pipe, with room for what `spares` can say while nobody reads.
    pub(crate) fn create(spares: u32) -> io::Result<(SpareEvents, SpareEventsWriter)> {
        let (read, write) = fd::pipe()?;
        fd::set_nonblocking(write.as_fd(), true)?;
        // Messages do not cross pages. Without the room a record may have to go without its client.
        let room = (spares as usize).div_ceil(4096 / LENGTH).saturating_mul(4096);
        let _ = fd::set_pipe_room(write.as_fd(), room.min(1 << 20));
        Ok((SpareEvents(read.into()), SpareEventsWriter(write)))
    }

    /// The end that another process has handed over.
    pub(crate) fn open(read: OwnedFd) -> SpareEvents {
        SpareEvents(read.into())
    }

    /// To hand it over.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Hands on all that has been said: which process, and who has called it. A stranger's code never had this pipe; all
    /// the same, the pid says nothing that the reader's own ledger does not confirm.
    pub(crate) fn read(&self, mut take: impl FnMut(Pid, Client)) {
        let mut buffer = [0; LENGTH * 32];
        // More than the largest pipe holds.
        for _ in 0..1000 {
            let length = (&self.0).read(&mut buffer).unwrap_or(0);
            for message in buffer.get(..length).unwrap_or_default().chunks_exact(LENGTH) {
                if let Some((pid, client)) = decode(message) {
                    take(pid, client);
                }
            }
            if length < buffer.len() {
                return;
            }
        }
    }

    /// How many calls nobody has read yet.
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

/// In a spare: says that it has been called. Smaller than `PIPE_BUF`, so it is said whole or, if the pipe is full
/// because the worker has been stopped for long, not at all.
pub(crate) fn call(calls: BorrowedFd<'_>, pid: Pid, client: &Client) {
    let _ = nix::unistd::write(calls, &encode(pid, client));
}

pub(crate) fn encode(pid: Pid, client: &Client) -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    let (head, words) = message.split_at_mut(8);
    head[..4].copy_from_slice(&pid.to_ne_bytes());
    for (place, word) in words.chunks_exact_mut(8).zip(client.to_words()) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    message
}

pub(crate) fn decode(message: &[u8]) -> Option<(Pid, Client)> {
    let (pid, rest) = message.split_first_chunk::<4>()?;
    let mut words = [0; Client::WORDS];
    for (word, bytes) in words.iter_mut().zip(rest.get(4..)?.chunks_exact(8)) {
        *word = u64::from_ne_bytes(*bytes.first_chunk()?);
    }
    Some((Pid::from_ne_bytes(*pid), Client::from_words(words)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::Peer;

    #[test]
    fn calls_are_counted_until_they_are_read() {
        let (calls, to_come) = SpareEvents::create(8).unwrap();
        let peer = Peer::Ip("192.0.2.1:80".parse().unwrap());
        let client = |number| Client { number, accepted_usec: 7, peer };
        for number in 1..=100 {
            call(to_come.descriptor(), 42, &client(number));
        }
        assert_eq!(calls.unread(), 100);
        let mut heard = Vec::new();
        calls.read(|pid, client| heard.push((pid, client)));
        assert!(heard.iter().copied().eq((1..=100).map(|number| (42, client(number)))));
        assert_eq!(calls.unread(), 0);
    }

    #[test]
    fn there_is_room_for_all_spares() {
        let (calls, to_come) = SpareEvents::create(5000).unwrap();
        (0..5000).for_each(|_| call(to_come.descriptor(), 42, &Client::NOBODY));
        assert_eq!(calls.unread(), 5000);
    }
}
