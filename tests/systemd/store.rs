//! Listeners in systemd's keeping.

use std::net::TcpStream;

use crate::support::Container;
use crate::support::client::{connect, served, try_echo};
use crate::support::service::{ECHO, PORT};

pub(crate) fn a_restart_keeps_what_waits_in_the_backlog(container: &Container) {
    // One connection at a time: the others wait in the backlog.
    container.fresh(&ECHO.replace("workers = 2", "workers = 1\nmax_connections = 1"));
    let first = served(PORT, 1);
    let mut waiting: Vec<TcpStream> = (0..5).map(|_| connect(PORT)).collect();
    let pid = container.main_pid();
    container.kill("KILL", pid);
    container.wait_replaced(pid);
    drop(first);
    for mut stream in waiting.drain(..) {
        try_echo(&mut stream).unwrap();
    }
}

pub(crate) fn stale_listeners_are_removed_from_the_store(container: &Container) {
    let more = format!(
        "{ECHO}[service.more]\nlisten = [\"127.0.0.1:7008\", \"127.0.0.1:7009\"]\nhandler = \"echo\"\n"
    );
    container.fresh(&more);
    assert_eq!(container.number("NFileDescriptorStore"), 3);
    // By a restart: what is in the store is not in the configuration any more.
    container.configure(ECHO);
    container.sure("systemctl restart preforkd");
    assert_eq!(container.number("NFileDescriptorStore"), 1);
    assert!(TcpStream::connect(("127.0.0.1", PORT + 1)).is_err(), "nobody serves it, and it is open");
    served(PORT, 1);
    // By reloads.
    for number in 0..3 {
        container.configure(if number % 2 == 0 { &more } else { ECHO });
        container.sure("systemctl reload preforkd");
        assert_eq!(container.number("NFileDescriptorStore"), if number % 2 == 0 { 3 } else { 1 });
    }
    // By a crash, and the same address for another service.
    container.configure(&more.replace("service.more", "service.other").replace("7009", "7010"));
    let pid = container.main_pid();
    container.kill("KILL", pid);
    container.wait_replaced(pid);
    assert_eq!(container.number("NFileDescriptorStore"), 3);
    assert!(TcpStream::connect(("127.0.0.1", PORT + 2)).is_err());
    served(PORT, 1);
    served(PORT + 1, 1);
}
