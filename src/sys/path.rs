//! What the file system does with names.

use std::io;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Has two files or directories exchange their names, at one moment: renameat2(2).
///
/// # Errors
///
/// `NotFound` if one of them is not there; `InvalidInput` if the file system cannot do it.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)?)
}
