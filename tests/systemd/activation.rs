//! Sockets that systemd opens.

use crate::support::Container;
use crate::support::client::{connect, echo, listen_to, served};
use crate::support::load::Load;
use crate::support::service::ECHO;

/// The shipped socket unit, with one more address of ours.
pub(crate) fn a_socket_unit_starts_the_service(container: &Container) {
    container.clean();
    container.write(
        "/run/systemd/system/preforkd.socket.d/zz-test.conf",
        "[Socket]\nListenStream=\nListenStream=127.0.0.1:7100\n",
    );
    container.sure("systemctl daemon-reload");
    let name = container.sure("systemctl show --property=FileDescriptorName --value preforkd.socket");
    container.configure(&ECHO.replace("127.0.0.1:7007", &format!("fd:{}", name.trim())));
    container.sure("systemctl start preforkd.socket");
    assert_eq!(container.show("ActiveState"), "inactive");
    let mut first = connect(7100);
    echo(&mut first);
    assert_eq!(container.show("ActiveState"), "active");

    let load = Load::on(7100);
    for _ in 0..3 {
        container.sure("systemctl restart preforkd");
        load.wait_progress();
        container.sure("systemctl reload preforkd");
        load.wait_progress();
    }
    container.sure("systemctl stop preforkd");
    load.wait_progress();
    let result = load.stop();
    assert!(result.hurt.is_empty(), "{}", result.counts());
    container.sure("systemctl stop preforkd.socket preforkd.service");
    container.sure("rm -r /run/systemd/system/preforkd.socket.d; systemctl daemon-reload");
    assert!(std::net::TcpStream::connect(("127.0.0.1", 7100)).is_err());
}

/// Two units of an administrator, one of them with two addresses, beside an address of the configuration's own.
pub(crate) fn socket_units_give_their_names(container: &Container) {
    container.clean();
    let unit = |name: &str, addresses: &str| {
        let text = format!("[Socket]\n{addresses}FileDescriptorName={name}\nService=preforkd.service\n");
        container.write(&format!("/run/systemd/system/preforkd-{name}.socket"), &text);
    };
    unit("one", "ListenStream=127.0.0.1:7101\nListenStream=127.0.0.1:7102\n");
    unit("two", "ListenStream=127.0.0.1:7103\n");
    container.sure("systemctl daemon-reload; systemctl start preforkd-one.socket preforkd-two.socket");
    let service = |name: &str| {
        let program = format!("[\"/bin/sh\", \"-c\", \"echo {name}\"]");
        format!("[service.{name}]\nlisten = \"fd:{name}\"\nexec = {program}\n")
    };
    container.configure(&format!("{ECHO}{}{}", service("one"), service("two")));
    container.sure("systemctl start preforkd");
    for round in 0..2 {
        let answers = [7101, 7102, 7103].map(listen_to);
        assert_eq!(answers, ["one\n", "one\n", "two\n"], "round {round}");
        served(7007, 1);
        // What is in the store and what a socket unit has must not be mixed up.
        container.sure("systemctl restart preforkd");
    }
    assert_eq!(container.number("NFileDescriptorStore"), 1, "only its own address is in the store");
    container.clean();
    container.sure("systemctl stop preforkd-one.socket preforkd-two.socket; rm /run/systemd/system/preforkd-*.socket; systemctl daemon-reload");
}
