//! `systemctl stop`.

use std::time::{Duration, Instant};

use crate::support::client::{closed, echo, served};
use crate::support::service::{ECHO, PORT, said};
use crate::support::{Container, eventually};

pub(crate) fn stop_drains_and_says_how_far_it_is(container: &Container) {
    container.fresh(&ECHO.replace("\"5s\"", "\"8s\""));
    let mut connections = served(PORT, 3);
    let begun = Instant::now();
    container.sure("systemctl stop --no-block preforkd");
    eventually("3 connections left", || container.show("StatusText").contains("3 connections left"));
    let status = said(&container.run("systemctl status --no-pager preforkd"));
    let line = status.lines().find(|line| line.contains("3 connections left"));
    // How long: at most so many seconds.
    assert!(line.is_some_and(|line| line.contains(" s ")), "{status}");
    connections.iter_mut().for_each(echo);
    drop(connections.pop());
    eventually("2 connections left", || container.show("StatusText").contains("2 connections left"));
    connections.iter_mut().for_each(echo);

    eventually("it has ended", || container.show("ActiveState") == "inactive");
    let took = begun.elapsed();
    assert!((Duration::from_secs(8)..Duration::from_secs(20)).contains(&took), "{took:?}");
    assert!(connections.iter_mut().all(closed));
    assert_eq!(container.show("Result"), "success");
    assert_eq!(container.show("ExecMainStatus"), "0");
}

pub(crate) fn stop_ends_with_the_last_connection(container: &Container) {
    container.fresh(&ECHO.replace("\"5s\"", "\"60s\""));
    let mut connections = served(PORT, 2);
    container.sure("systemctl stop --no-block preforkd");
    eventually("it drains", || container.show("StatusText").contains("2 connections left"));
    connections.iter_mut().for_each(echo);
    let begun = Instant::now();
    drop(connections);
    eventually("it has ended", || container.show("ActiveState") == "inactive");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(container.show("Result"), "success");
    // Nothing is kept for a service that was stopped.
    assert_eq!(container.number("NFileDescriptorStore"), 0);
    assert!(std::net::TcpStream::connect(("127.0.0.1", PORT)).is_err());
}
