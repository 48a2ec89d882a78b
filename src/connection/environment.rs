//! The environment of a program: built from nothing, never inherited.
//!
//! UCSPI's names are those of <https://cr.yp.to/proto/ucspi.txt> and tcp-environ(5); `REMOTE_ADDR` and `REMOTE_PORT` are
//! what systemd sets for `Accept=yes`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::Call;
use crate::config::DEFAULT_PROGRAM_PATH;
use crate::sys::socket::{self, Peer};

/// The part that is the same for all connections of a service.
#[derive(Debug)]
pub(super) struct Environment(Vec<CString>);

impl Environment {
    /// From the service's name and its `environment`.
    pub(super) fn new(service: &str, configured: &BTreeMap<String, String>) -> io::Result<Self> {
        let mut variables = vec![variable("PREFORKD_SERVICE", service)?];
        if !configured.contains_key("PATH") {
            variables.push(variable("PATH", DEFAULT_PROGRAM_PATH)?);
        }
        for (name, value) in configured {
            variables.push(variable(name, value)?);
        }
        Ok(Environment(variables))
    }

    /// The whole environment of one connection, in its process. A value that is unknown is not set: UCSPI programs
    /// take an empty variable for a known one.
    pub(super) fn for_call(&self, call: &Call<'_>) -> Vec<CString> {
        let mut all = self.0.clone();
        let mut set = |name: &str, value: String| all.extend(variable(name, &value));
        set("PREFORKD_CONNECTION", call.id.to_string());
        match call.peer {
            Peer::Ip(remote) => {
                set("PROTO", "TCP".into());
                set("TCPREMOTEIP", remote.ip().to_string());
                set("TCPREMOTEPORT", remote.port().to_string());
                set("REMOTE_ADDR", remote.ip().to_string());
                set("REMOTE_PORT", remote.port().to_string());
                if let Ok(Some(local)) = socket::local_address(call.connection) {
                    set("TCPLOCALIP", local.ip().to_string());
                    set("TCPLOCALPORT", local.port().to_string());
                }
            }
            Peer::Unix(credentials) => {
                set("PROTO", "IPC".into());
                if let Some(peer) = credentials {
                    set("IPCREMOTEPID", peer.pid.to_string());
                    set("IPCREMOTEEUID", peer.uid.to_string());
                    set("IPCREMOTEEGID", peer.gid.to_string());
                }
                for (name, path) in [
                    ("IPCLOCALPATH", socket::local_path(call.connection)),
                    ("IPCREMOTEPATH", socket::peer_path(call.connection)),
                ] {
                    let bytes =
                        path.map(|path| [name.as_bytes(), b"=", path.as_os_str().as_bytes()].concat());
                    all.extend(bytes.and_then(|bytes| CString::new(bytes).ok()));
                }
            }
        }
        all
    }
}

fn variable(name: &str, value: &str) -> io::Result<CString> {
    Ok(CString::new(format!("{name}={value}"))?)
}
