//! The environment of a program: built from nothing, never inherited.
//!
//! UCSPI's names are those of <https://cr.yp.to/proto/ucspi.txt> and tcp-environ(5); `REMOTE_ADDR` and `REMOTE_PORT` are
//! what systemd sets for `Accept=yes`, systemd.socket(5): for a Unix socket since 255, and then `REMOTE_ADDR` alone.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use super::Conn;
use crate::client::Zoned;
use crate::config::DEFAULT_PROGRAM_PATH;
use crate::sys::exec::Image;
use crate::sys::process;
use crate::sys::socket::{self, Peer, UnixName};

/// The part that is the same for all connections of a service, from its name and its `environment`.
pub(crate) fn constant(service: &str, configured: &BTreeMap<String, String>) -> io::Result<Vec<CString>> {
    let mut variables = vec![variable("PREFORKD_SERVICE", service)?];
    if !configured.contains_key("PATH") {
        variables.push(variable("PATH", DEFAULT_PROGRAM_PATH)?);
    }
    for (name, value) in configured {
        variables.push(variable(name, value)?);
    }
    Ok(variables)
}

/// The part that tells about one connection. A value that is unknown is not set: UCSPI programs take an empty variable
/// for a known one. With `as_listen_fds`, this process is the one that becomes the program: sd_listen_fds(3).
pub(crate) fn describe(conn: &Conn, connection: BorrowedFd<'_>, as_listen_fds: bool, image: &mut Image) {
    image.clear();
    if as_listen_fds {
        image.set("LISTEN_PID", process::id());
        image.set("LISTEN_FDS", 1);
        let name = if conn.client.is_listener() { "listener" } else { "connection" };
        image.set("LISTEN_FDNAMES", name);
    }
    image.set("PREFORKD_CONNECTION", conn.id);
    if conn.client.is_listener() {
        // It will see itself who calls.
        return image.finish();
    }
    match conn.client.peer {
        Peer::Ip(remote) => {
            image.set("PROTO", "TCP");
            image.set("TCPREMOTEIP", Zoned(remote));
            image.set("TCPREMOTEPORT", remote.port());
            image.set("REMOTE_ADDR", Zoned(remote));
            image.set("REMOTE_PORT", remote.port());
            let local = || socket::local_address(connection).ok().flatten();
            if let Some(local) = conn.client.header.and_then(|header| header.called).or_else(local) {
                image.set("TCPLOCALIP", Zoned(local));
                image.set("TCPLOCALPORT", local.port());
            }
        }
        Peer::Unix(credentials) => {
            image.set("PROTO", "IPC");
            if let Some(peer) = credentials {
                // Whose number is of another namespace has none here.
                if peer.pid > 0 {
                    image.set("IPCREMOTEPID", peer.pid);
                }
                image.set("IPCREMOTEEUID", peer.uid);
                image.set("IPCREMOTEEGID", peer.gid);
            }
            if let Some(name) = socket::local_name(connection) {
                set_name(image, "IPCLOCALPATH", &name);
            }
            // One that is relative is left out: it could look like an abstract name, or like an address.
            let is_told = |name: &UnixName| !matches!(name, UnixName::Path(path) if !path.is_absolute());
            if let Some(name) = socket::peer_name(connection).filter(is_told) {
                set_name(image, "IPCREMOTEPATH", &name);
                set_name(image, "REMOTE_ADDR", &name);
            }
        }
    }
    image.finish();
}

/// An abstract name begins with `@`, as systemd writes it.
fn set_name(image: &mut Image, variable: &str, name: &UnixName) {
    match name {
        UnixName::Path(path) => image.set_bytes(variable, path.as_os_str().as_bytes()),
        UnixName::Abstract(name) => image.set_bytes(variable, &[b"@", name.as_slice()].concat()),
    }
}

fn variable(name: &str, value: &str) -> io::Result<CString> {
    Ok(CString::new(format!("{name}={value}"))?)
}
