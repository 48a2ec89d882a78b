//! Who may use the file of a Unix socket: its owner, its group and its mode.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Gid, Uid};

/// Who may use it. Without an owner or group it is as the kernel makes files of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// As of chmod(2), up to 0777.
    pub(crate) mode: u32,
}

/// What of it could not be set.
#[derive(Debug)]
pub(crate) enum AccessError {
    /// The user that owns the file.
    Owner(io::Error),
    /// Its group.
    Group(io::Error),
    /// Its mode, or the file is not what it was.
    File(io::Error),
}

/// The file of a Unix socket, held so that nobody can put another in its place.
#[derive(Debug)]
pub(crate) struct HeldSocket {
    file: File,
    found: Metadata,
}

impl HeldSocket {
    /// The one at `path`.
    ///
    /// # Errors
    ///
    /// `NotFound` if what is there is none.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
        let found = file.metadata()?;
        if found.file_type().is_socket() {
            Ok(HeldSocket { file, found })
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    pub(crate) fn inode(&self) -> u64 {
        self.found.ino()
    }

    /// Says whether [`HeldSocket::set`] could do it, and changes nothing.
    pub(crate) fn try_out(&self, path: &Path, wanted: Access) -> Result<(), AccessError> {
        let (uid, gid) = self.changes(path, wanted);
        // The rules of chown(2) are the same for a socket that has no file.
        let trial = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .map_err(io::Error::from);
        let trial = trial.map_err(AccessError::File)?;
        let try_owner = |uid, gid| nix::unistd::fchown(&trial, uid, gid).map_err(io::Error::from);
        uid.map_or(Ok(()), |uid| try_owner(Some(uid), None)).map_err(AccessError::Owner)?;
        gid.map_or(Ok(()), |gid| try_owner(None, Some(gid))).map_err(AccessError::Group)?;
        match self.mode() == wanted.mode {
            true => Ok(()),
            // Whose file it is not, or where nothing can be written, is told so for the mode that it has, too.
            false => self.set_mode(self.mode()).map_err(AccessError::File),
        }
    }

    /// Sets it. In between, nobody may use the file who may not do so before or after.
    pub(crate) fn set(&self, path: &Path, wanted: Access) -> Result<(), AccessError> {
        let (uid, gid) = self.changes(path, wanted);
        let mut mode = self.mode();
        if (uid.is_some() || gid.is_some()) && mode & !wanted.mode != 0 {
            // What one group may another must not only because it comes first.
            mode &= wanted.mode;
            self.set_mode(mode).map_err(AccessError::File)?;
        }
        // The group first: who has given a file away may not change it any more.
        let chown = |uid, gid| {
            nix::unistd::fchownat(self.file.as_fd(), "", uid, gid, AtFlags::AT_EMPTY_PATH)
                .map_err(io::Error::from)
        };
        gid.map_or(Ok(()), |gid| chown(None, Some(gid))).map_err(AccessError::Group)?;
        if mode != wanted.mode {
            self.set_mode(wanted.mode).map_err(AccessError::File)?;
        }
        uid.map_or(Ok(()), |uid| chown(Some(uid), None)).map_err(AccessError::Owner)
    }

    /// The owner and the group that it does not have yet.
    fn changes(&self, path: &Path, wanted: Access) -> (Option<Uid>, Option<Gid>) {
        let uid = wanted.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        let gid = wanted.gid.unwrap_or_else(|| group_in(path));
        (
            (uid != self.found.uid()).then_some(Uid::from_raw(uid)),
            (gid != self.found.gid()).then_some(Gid::from_raw(gid)),
        )
    }

    fn mode(&self) -> u32 {
        self.found.mode() & 0o777
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        // fchmod(2) does not take a descriptor of this kind.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        std::fs::set_permissions(path, Permissions::from_mode(mode))
    }
}

/// The group of files that this process makes in a directory: its own, or that of the directory, inode(7).
fn group_in(path: &Path) -> u32 {
    let directory = path.parent().and_then(|parent| std::fs::metadata(parent).ok());
    let inherits = |directory: &Metadata| directory.mode() & libc::S_ISGID != 0;
    directory.filter(inherits).map_or_else(|| nix::unistd::getegid().as_raw(), |directory| directory.gid())
}
