//! Connections that spares send to their worker: copies, if they become programs, and those of clients that they refuse.
//!
//! What accepts has the connection, and only who has it can ask the kernel about it. The worker needs that for deadlines
//! and for counts of bytes; and a client that was told why it is refused must have time to read it, which a spare has not.
//! The worker makes the pair of sockets itself, spares have one end until they exec, and nobody waits: if there is no
//! room, the program goes on without, and who is refused is closed at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::client::process_of;
use crate::sys::exposed::ExposedSocket;
use crate::sys::wait::Pid;
use crate::sys::{fd, message, stream};

/// Both ends, in a worker.
#[derive(Debug)]
pub(crate) struct Copies {
    read: OwnedFd,
    write: BorrowedFd<'static>,
}

/// What a spare has sent.
#[derive(Debug)]
pub(crate) enum Copied {
    /// A copy of the connection of a process, by the part of its number that is the process's.
    Program { pid: Pid, process: u64, connection: ExposedSocket },
    /// The connection of a client that was refused, and told so.
    Refused(ExposedSocket),
}

/// Whose connection it is: a process, and the part of the connection's number that is the process's; nobody's if it was refused.
const LENGTH: usize = 16;

/// The pid of nobody.
const NOBODY: Pid = 0;

/// How much of what a client has sent is thrown away for it.
const DISCARDED_AT_ONCE: usize = 64 << 10;

/// How many are taken before others have their turn.
const COPIES_AT_ONCE: usize = 4096;

impl Copies {
    /// A new pair.
    pub(crate) fn new() -> io::Result<Self> {
        let (write, read) = message::pair()?;
        message::set_room(write.as_fd(), 1 << 20);
        Ok(Copies { read, write: fd::for_ever(write) })
    }

    /// The end for spares.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'static> {
        self.write
    }

    /// Hands on what has come. The numbers say nothing that the reader's own children do not confirm; that what came is a
    /// connection was checked.
    pub(crate) fn read(&self, mut take: impl FnMut(Copied)) {
        let mut message = [0; LENGTH];
        for _ in 0..COPIES_AT_ONCE {
            let Ok((length @ 1.., copy)) = message::receive_copy(self.read.as_fd(), &mut message) else {
                return;
            };
            let copy = copy.map(ExposedSocket::from).filter(|_| length == LENGTH);
            match (decode(&message), copy) {
                (Some((NOBODY, _)), Some(connection)) => take(Copied::Refused(connection)),
                (Some((pid, process)), Some(connection)) if stream::is_connection(connection.as_fd()) => {
                    take(Copied::Program { pid, process, connection });
                }
                _ => {}
            }
        }
    }
}

/// In a spare: sends a copy of the connection that it has taken.
pub(crate) fn send_copy(copies: BorrowedFd<'_>, pid: Pid, number: u64, connection: BorrowedFd<'_>) {
    let _ = message::send_copy(copies, &encode(pid, process_of(number)), connection);
}

/// In a spare: hands over a connection on which the last was said.
pub(crate) fn hand_over(refused: Option<BorrowedFd<'_>>, connection: BorrowedFd<'_>) {
    let send = |to| message::send_copy(to, &encode(NOBODY, 0), connection);
    if refused.is_none_or(|to| send(to).is_err()) {
        // The close that follows resets it if something is unread, and what was said may be lost.
        stream::discard(connection, DISCARDED_AT_ONCE);
    }
}

fn encode(pid: Pid, process: u64) -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    message[..4].copy_from_slice(&pid.to_ne_bytes());
    message[8..].copy_from_slice(&process.to_ne_bytes());
    message
}

fn decode(message: &[u8; LENGTH]) -> Option<(Pid, u64)> {
    let (pid, number) = (message.first_chunk()?, message.last_chunk()?);
    Some((Pid::from_ne_bytes(*pid), u64::from_ne_bytes(*number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn copies_come_with_their_names_and_nobody_waits() {
        let copies = Copies::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        send_copy(copies.descriptor(), 7, 1 << 40 | 5, client.as_fd());
        send_copy(copies.descriptor(), 8, 6, listener.as_fd());
        message::send(copies.write, b"nonsense").unwrap();
        for number in 0..2000 {
            send_copy(copies.descriptor(), 9, number, client.as_fd());
        }
        let mut heard = Vec::new();
        let mut refused = 0;
        let mut read = |heard: &mut Vec<_>| {
            copies.read(|copied| match copied {
                Copied::Program { pid, process, .. } => heard.push((pid, process)),
                Copied::Refused(_) => refused += 1,
            });
        };
        read(&mut heard);
        assert_eq!(heard[0], (7, 5), "all connections of a process have the process's number in common");
        assert_eq!(heard[1], (9, 0), "a listener and nonsense are no connections");
        assert!(heard.len() > 100, "only {} had room", heard.len());
        send_copy(copies.descriptor(), 10, 1, client.as_fd());
        heard.clear();
        hand_over(Some(copies.descriptor()), client.as_fd());
        read(&mut heard);
        assert_eq!((heard, refused), (vec![(10, 1)], 1));
    }
}
