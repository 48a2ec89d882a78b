//! Coming from `Accept=yes`.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;

use crate::support::client::{closed, connect, echo};
use crate::support::{Container, eventually};

/// In the place of the program of preforkd.accept(7): says what it has been given, and goes on as `cat`.
const PROGRAM: &str = "#!/bin/sh\n\
    echo \"$(id -un) $(id -gn) $(id -G) $(umask) $(nice) $(ulimit -Sn) $(ulimit -Hn) $(ulimit -Ht) $(pwd) $LANG \
    $REMOTE_ADDR ${REMOTE_PORT:+port} $*\"\nexec cat\n";

const PORT: u16 = 79;

/// A client that is served, after what the program said.
fn serve() -> Option<(String, TcpStream)> {
    let mut stream = connect(PORT);
    let mut line = String::new();
    BufReader::with_capacity(1, &stream).read_line(&mut line).ok()?;
    if line.is_empty() {
        return None;
    }
    echo(&mut stream);
    Some((line, stream))
}

/// What clients meet: what the program said to the first, and how many from one address are served.
fn look() -> (String, usize) {
    let (said, first) = serve().unwrap();
    let mut served = vec![first];
    for _ in 0..20 {
        match serve() {
            Some((line, stream)) => {
                assert_eq!(line, said);
                served.push(stream);
            }
            None => break,
        }
    }
    let number = served.len();
    assert!(closed(&mut connect(PORT)), "one too many");
    served.pop();
    // Room for another, when the last has ended.
    eventually("another is served", || serve().map(|(_, stream)| served.push(stream)).is_some());
    served.iter_mut().for_each(echo);
    (said, number)
}

/// The units and the TOML that preforkd.accept(7) has side by side, as they stand there, for the same clients.
pub(crate) fn both_sides_of_the_manual_serve_alike(container: &Container) {
    let page = include_str!("../../packaging/man/preforkd.accept.7.scd");
    let blocks: Vec<_> = page.split("```\n").skip(1).step_by(2).collect();
    let [socket, service, toml, ..] = blocks[..] else { panic!("{} blocks", blocks.len()) };
    container.clean();
    container.write("/usr/sbin/in.fingerd", PROGRAM);
    container.sure("chmod 755 /usr/sbin/in.fingerd");

    container.write("/run/systemd/system/finger.socket", socket);
    container.write("/run/systemd/system/finger@.service", service);
    container.sure("systemctl daemon-reload; systemctl start finger.socket");
    let before = look();
    container.sure("systemctl stop finger.socket 'finger@*.service'; rm /run/systemd/system/finger*; systemctl daemon-reload");

    container.profile("root");
    container.configure(&format!("[supervisor]\ndrain_timeout = \"1s\"\n{toml}"));
    container.sure("systemctl start preforkd");
    let after = look();
    container.clean();
    container.sure("rm /usr/sbin/in.fingerd");

    assert_eq!(before, after);
    assert_eq!(before.1, 10);
}
