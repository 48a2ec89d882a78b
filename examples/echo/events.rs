//! Echo by one loop over events: one thread, which asks the kernel who is ready and never waits for anybody.
//!
//! The cheapest by far, and the only one that is written inside out: what the others keep on a stack, where a client is in
//! its exchange and what it has not read yet, is data here. Whoever computes, or waits by mistake, stops everybody.

mod requests;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// A client, and what it has been sent but has not taken.
struct Client {
    stream: TcpStream,
    unsent: Vec<u8>,
}

fn main() -> io::Result<()> {
    let listener = requests::listen()?;
    listener.set_nonblocking(true)?;
    let poller = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    poller.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let mut clients = HashMap::new();
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let ready = poller.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            let key = event.data();
            if key == 0 {
                accept(&listener, &poller, &mut clients)?;
            } else if let Some(client) = clients.get_mut(&key) {
                if !go_on(client, &poller, key).unwrap_or(false) {
                    // Its descriptor closes, and with that the kernel forgets it.
                    clients.remove(&key);
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, poller: &Epoll, clients: &mut HashMap<u64, Client>) -> io::Result<()> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(true)?;
            let key = stream.as_raw_fd() as u64;
            poller.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
            clients.insert(key, Client { stream, unsent: Vec::new() });
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

/// As far as it goes without waiting; false when the client has gone.
fn go_on(client: &mut Client, poller: &Epoll, key: u64) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    let was_unsent = !client.unsent.is_empty();
    if !was_unsent {
        let length = match client.stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        requests::serve(&buffer[..length]);
        client.unsent.extend_from_slice(&buffer[..length]);
    }
    match client.stream.write(&client.unsent) {
        Ok(sent) => drop(client.unsent.drain(..sent)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(error),
    }
    // Who does not read is not read from either, or its bytes would pile up here.
    let is_unsent = !client.unsent.is_empty();
    if is_unsent != was_unsent {
        let next = if is_unsent { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
        poller.modify(&client.stream, &mut EpollEvent::new(next, key))?;
    }
    Ok(true)
}
