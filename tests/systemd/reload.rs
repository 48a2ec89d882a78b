//! `systemctl reload`.

use crate::support::Container;
use crate::support::client::{echo, listen_to, served};
use crate::support::service::{ECHO, PORT, said};

pub(crate) fn reload_returns_when_the_new_configuration_is_in_force(container: &Container) {
    container.fresh(ECHO);
    let mut connections = served(PORT, 2);
    let pid = container.main_pid();
    let new = format!("{ECHO}[service.time]\nlisten = \"127.0.0.1:7008\"\nhandler = \"daytime\"\n");
    for number in 0..5 {
        container.configure(if number % 2 == 0 { &new } else { ECHO });
        container.sure("systemctl reload preforkd");
        // At once, without waiting for anything.
        let there = std::net::TcpStream::connect(("127.0.0.1", PORT + 1)).is_ok();
        assert_eq!(there, number % 2 == 0, "reload {number}");
    }
    assert!(!listen_to(PORT + 1).is_empty());
    connections.iter_mut().for_each(echo);
    assert_eq!(container.main_pid(), pid);
    assert_eq!(container.show("ActiveState"), "active");
}

pub(crate) fn a_broken_configuration_changes_nothing(container: &Container) {
    container.fresh(ECHO);
    let mut connections = served(PORT, 2);
    let before = (container.main_pid(), container.workers());
    // One that cannot be read, and one that cannot be done: the address is no address of this machine.
    let broken = [
        (ECHO.replace("\"echo\"", "\"eccho\""), "preforkd.toml:5:11: error: "),
        (ECHO.replace("127.0.0.1:7007", "192.0.2.1:7007"), "192.0.2.1:7007"),
    ];
    for (config, reason) in &broken {
        container.configure(config);
        let output = container.reload();
        assert!(!output.status.success(), "it was reloaded");
        let told = said(&output) + &container.messages();
        assert!(told.contains(reason), "no {reason:?} in {told}");
        assert_eq!((container.main_pid(), container.workers()), before);
        assert_eq!(container.show("ActiveState"), "active");
        connections.iter_mut().for_each(echo);
        served(PORT, 1);
    }
    container.configure(ECHO);
    container.sure("systemctl reload preforkd");
    assert_eq!(container.main_pid(), before.0);
}
