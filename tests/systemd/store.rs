//! Listeners in systemd's keeping.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use crate::support::client::{connect, echo, served, try_echo};
use crate::support::service::{ECHO, PORT};
use crate::support::{Container, PATIENCE, eventually};

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

/// What a restart does about long connections: they have until drain_timeout, and newcomers wait so long.
pub(crate) fn a_restart_drains_while_newcomers_wait(container: &Container) {
    container.fresh(ECHO);
    let pid = container.main_pid();
    let mut old = served(PORT, 2);
    let mut restart = container.background("systemctl restart preforkd");
    eventually("it drains", || container.show("StatusText").contains("2 connections left"));
    let mut newcomers: Vec<TcpStream> = (0..5).map(|_| connect(PORT)).collect();
    old.iter_mut().for_each(echo);
    drop(old);
    newcomers.iter_mut().for_each(echo);
    assert!(restart.wait().unwrap().success());
    assert_ne!(container.main_pid(), pid);
}

pub(crate) fn a_unix_socket_is_kept_too(container: &Container) {
    container.fresh(&ECHO.replace("127.0.0.1:7007", "unix:/run/preforkd/echo.sock"));
    let path = container.path("/run/preforkd/echo.sock");
    let talk = || {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])
    };
    for how in ["systemctl restart preforkd", "preforkd upgrade", "systemctl reload preforkd"] {
        let mut action = container.background(how);
        while action.try_wait().unwrap().is_none() {
            talk().unwrap_or_else(|error| panic!("{how}: {error}"));
        }
        assert!(action.wait().unwrap().success(), "{how}");
    }
    let pid = container.main_pid();
    container.kill("KILL", pid);
    // Whoever is being served may be cut.
    let refused =
        |error: &io::Error| matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound);
    eventually("another supervisor serves", || {
        let result = talk();
        assert!(!result.as_ref().is_err_and(refused), "{result:?}");
        result.is_ok()
    });
    // One that is stopped between its death and the next start has nobody to remove the file.
    container.wait_replaced(pid);
    container.sure("systemctl stop preforkd");
    assert!(!path.exists(), "its file is left");
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
