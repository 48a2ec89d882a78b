//! The file of a control socket: where it is, whether it is still ours, and whom it lets connect.
//!
//! Who may do what is decided for each call, whatever the file lets through. It lets through as few as it can.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{ControlAccess, socket_file};
use crate::exit;
use crate::sys::access::{Access, AccessError, HeldSocket};
use crate::sys::{permission, socket};

/// How many may wait in its queue.
const BACKLOG: u32 = 128;

/// Where a control socket is, and whose file is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Somebody answers there.
    #[error(
        "another preforkd already answers at the control socket {0}; stop it, or choose another path by control_socket or --control"
    )]
    InUse(String),
    /// The system says no.
    #[error(
        "cannot make the control socket {path}: {obstacle}; another path is chosen by control_socket or --control"
    )]
    Io {
        /// The socket.
        path: String,
        /// What is in the way.
        obstacle: String,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// With which code to exit.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            OpenError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                exit::NOT_PERMITTED
            }
            _ => exit::OS,
        }
    }

    /// Whether nobody could make it there.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, OpenError::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// Listens at `path`; a socket that a dead supervisor left there is replaced.
pub(super) fn open(path: &Path, access: &ControlAccess) -> Result<(OwnedFd, SocketFile), OpenError> {
    let failed = |source| {
        let obstacle = socket_file::obstacle(path, &source).unwrap_or_else(|| source.to_string());
        OpenError::Io { path: path.display().to_string(), obstacle, source }
    };
    socket::remove_stale(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => OpenError::InUse(path.display().to_string()),
        _ => failed(error),
    })?;
    let listener = bind(path).map_err(failed)?;
    let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
    let file = SocketFile { path: path.to_owned(), inode };
    if *access != ControlAccess::default() {
        // Nobody can connect before it listens.
        file.let_in(access).map_err(failed)?;
    }
    socket::start_listening(listener.as_fd(), BACKLOG).map_err(failed)?;
    Ok((listener, file))
}

fn bind(path: &Path) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    socket::bind_unix(path, 0o600)
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether who connects to its path finds it: somebody may have removed or replaced the file.
    pub(super) fn is_there(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode)
    }

    /// Lets those connect who may use it. A file has one owner and one group; where they are not enough, or this process cannot
    /// choose them, everybody may connect, and is told what he may.
    pub(super) fn let_in(&self, access: &ControlAccess) -> io::Result<()> {
        let file = HeldSocket::at(&self.path)?;
        if file.inode() != self.inode {
            return Err(io::ErrorKind::NotFound.into());
        }
        if let Some(exact) = exact(access) {
            let set = file.set(&self.path, exact).map_err(reason);
            // Nobody is named: then nobody else is let in, whatever becomes of it.
            if *access == ControlAccess::default() {
                return set;
            }
            // Whoever comes after this process must be able to see that nobody listens any more.
            if set.is_ok() && permission::may_write(&self.path) {
                return Ok(());
            }
        }
        // As it is now.
        let file = HeldSocket::at(&self.path)?;
        file.set(&self.path, Access { uid: None, gid: None, mode: 0o666 }).map_err(reason)
    }

    /// Takes it out of the file system, if it is still ours.
    pub(super) fn remove(&self) {
        if self.is_there() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn reason(error: AccessError) -> io::Error {
    match error {
        AccessError::Owner(error) | AccessError::Group(error) | AccessError::File(error) => error,
    }
}

/// What lets in those who may use it and nobody else; `None` if no owner and group of a file can say that.
fn exact(access: &ControlAccess) -> Option<Access> {
    let id = |account: &Option<crate::config::Account>| account.as_ref().map(|account| account.id);
    let (uid, look, act) = (id(&access.user), id(&access.look), id(&access.act));
    match (look, act) {
        (Some(look), Some(act)) if look != act => None,
        _ => {
            let gid = look.or(act);
            Some(Access { uid, gid, mode: if gid.is_some() { 0o660 } else { 0o600 } })
        }
    }
}
