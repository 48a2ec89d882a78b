//! Why no Unix socket can be made at a path, in words for who has to mend it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::sys::{permission, process};

/// What is in the way, and the way out; `None` if the path has nothing to do with `error`, or a socket is there that is in use.
pub(crate) fn obstacle(path: &Path, error: &io::Error) -> Option<String> {
    let there = fs::symlink_metadata(path).ok().map(|file| file.file_type());
    match (error.kind(), there) {
        // Who may not connect to a socket cannot know whether somebody listens at it.
        (io::ErrorKind::PermissionDenied, there) => {
            Some(denied(path, there.is_some_and(|kind| kind.is_socket())))
        }
        (io::ErrorKind::AddrInUse, Some(_)) => {
            in_its_place(path).map(|(what, help)| format!("{what}; {help}"))
        }
        (io::ErrorKind::ReadOnlyFilesystem, _) => Some(format!(
            "{} is read-only; name a path below /run, where RuntimeDirectory= of the unit makes a directory for it, or \
             permit the directory by ReadWritePaths=",
            parent(path)
        )),
        (io::ErrorKind::NotFound, None) => {
            Some(format!("there is no directory {}; create it, or choose another path", parent(path)))
        }
        (io::ErrorKind::NotADirectory, _) => {
            Some(format!("{} is not a directory; choose another path", parent(path)))
        }
        _ => None,
    }
}

/// What is at the path, if it is not a socket, and the way out.
pub(crate) fn in_its_place(path: &Path) -> Option<(String, String)> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    let leads_to = || fs::read_link(path).unwrap_or_default().display().to_string();
    let (what, help) = if kind.is_socket() {
        return None;
    } else if kind.is_dir() {
        ("a directory".to_owned(), "name a file in it, or choose another path".to_owned())
    } else if kind.is_symlink() && fs::metadata(path).is_err() {
        let what = format!("a symbolic link to {}, where nothing is,", leads_to());
        (what, "remove it, or choose another path".to_owned())
    } else if kind.is_symlink() {
        let what = format!("a symbolic link to {}", leads_to());
        (what, "remove it, or write where it leads".to_owned())
    } else {
        let what = if kind.is_file() {
            "a file"
        } else if kind.is_fifo() {
            "a named pipe"
        } else {
            "a device"
        };
        (what.to_owned(), "remove it, or choose another path; only sockets are replaced".to_owned())
    };
    Some((format!("{what} is in its place"), help))
}

/// The directory that does not let us.
fn denied(path: &Path, is_socket: bool) -> String {
    let user = process::effective_user_id();
    let directories: Vec<_> = path.ancestors().skip(1).collect();
    let owner = |path: &Path| match fs::metadata(path) {
        Ok(file) => {
            format!(
                ", which is of user {} and group {}, mode {:04o}",
                file.uid(),
                file.gid(),
                file.mode() & 0o7777
            )
        }
        Err(_) => String::new(),
    };
    let closed = directories.iter().rev().find(|path| path.is_dir() && !permission::may_execute(path));
    if let Some(closed) = closed {
        return format!(
            "user {user}, as which preforkd runs, may not enter {}{}; let it, or choose another path",
            closed.display(),
            owner(closed)
        );
    }
    if is_socket {
        return format!(
            "a socket{} is in its place, and user {user}, as which preforkd runs, may neither ask who listens at it nor \
             remove it; remove it if nobody does, or choose another path",
            owner(path).trim_start_matches(',').replace("which is ", "")
        );
    }
    let parent = directories.iter().find(|path| path.is_dir()).copied().unwrap_or(Path::new("/"));
    format!(
        "user {user}, as which preforkd runs, may not make a file in {}{}; give it a directory of its own, as \
         RuntimeDirectory= of the unit does below /run, or choose another path",
        parent.display(),
        owner(parent)
    )
}

fn parent(path: &Path) -> String {
    path.parent().unwrap_or(Path::new("/")).display().to_string()
}
