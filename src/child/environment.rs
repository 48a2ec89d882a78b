//! The environment of a program: built from nothing, never inherited.
//!
//! UCSPI's names are those of <https://cr.yp.to/proto/ucspi.txt> and tcp-environ(5); `REMOTE_ADDR` and `REMOTE_PORT` are
//! what systemd sets for `Accept=yes`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use super::Conn;
use crate::config::DEFAULT_PROGRAM_PATH;
use crate::sys::exec::Image;
use crate::sys::socket::{self, Peer};

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
/// for a known one.
pub(crate) fn describe(call: &Conn, connection: BorrowedFd<'_>, image: &mut Image) {
    image.clear();
    image.set("PREFORKD_CONNECTION", call.id);
    match call.peer {
        Peer::Ip(remote) => {
            image.set("PROTO", "TCP");
            image.set("TCPREMOTEIP", remote.ip());
            image.set("TCPREMOTEPORT", remote.port());
            image.set("REMOTE_ADDR", remote.ip());
            image.set("REMOTE_PORT", remote.port());
            let local = || socket::local_address(connection).ok().flatten();
            if let Some(local) = call.called.or_else(local) {
                image.set("TCPLOCALIP", local.ip());
                image.set("TCPLOCALPORT", local.port());
            }
        }
        Peer::Unix(credentials) => {
            image.set("PROTO", "IPC");
            if let Some(peer) = credentials {
                image.set("IPCREMOTEPID", peer.pid);
                image.set("IPCREMOTEEUID", peer.uid);
                image.set("IPCREMOTEEGID", peer.gid);
            }
            let paths = [
                ("IPCLOCALPATH", socket::local_path(connection)),
                ("IPCREMOTEPATH", socket::peer_path(connection)),
            ];
            for (name, path) in paths {
                if let Some(path) = path {
                    image.set_bytes(name, path.as_os_str().as_bytes());
                }
            }
        }
    }
    image.finish();
}

fn variable(name: &str, value: &str) -> io::Result<CString> {
    Ok(CString::new(format!("{name}={value}"))?)
}
