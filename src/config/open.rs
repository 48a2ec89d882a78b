//! Opening a file that is to be read.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::sys::fd;

/// Opens a file to be read, which may be waited for, but not at a pipe for who never writes it.
pub(crate) fn open_file(path: &Path) -> io::Result<fs::File> {
    // First of all by its path: merely to open a device can do something.
    check_regular(&fs::metadata(path)?)?;
    let mut options = fs::File::options();
    let file = match options.read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        // Somebody has a lease on it, as only regular files can be had, fcntl(2).
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => fs::File::open(path)?,
        opened => opened?,
    };
    check_regular(&file.metadata()?)?;
    fd::set_nonblocking(file.as_fd(), false)?;
    Ok(file)
}

fn check_regular(file: &fs::Metadata) -> io::Result<()> {
    if file.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if file.is_file() { Ok(()) } else { Err(io::Error::other("it is not a regular file")) }
}
