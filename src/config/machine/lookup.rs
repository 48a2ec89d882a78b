//! Looking up paths as a connection process will: below its `chroot`, and with its rights.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::config::checked::UserIds;
use crate::sys::{permission, process};

/// Symbolic links that the kernel follows in one path, path_resolution(7).
const LINKS: usize = 40;

/// How paths of a service are looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root<'a> {
    /// `chroot`.
    pub(crate) chroot: Option<&'a Path>,
    /// What a relative program path starts from; `None` refuses relative paths.
    pub(crate) current: Option<&'a Path>,
    /// Who looks.
    pub(crate) runner: Runner<'a>,
}

/// As whom a connection process looks up its directory, and starts its program.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Runner<'a> {
    /// As these.
    User(&'a UserIds),
    /// As whoever runs preforkd.
    Preforkd,
    /// That is not known, or does not matter.
    Anybody,
}

/// Why something cannot be used, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) why: String,
    pub(crate) help: String,
}

impl Obstacle {
    pub(crate) fn new(why: impl Into<String>, help: impl Into<String>) -> Self {
        Obstacle { why: why.into(), help: help.into() }
    }
}

impl Root<'_> {
    /// Where the supervisor finds what a connection process finds at `path`.
    pub(crate) fn outside(&self, path: &Path) -> PathBuf {
        match self.chroot {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    pub(crate) fn inside(&self) -> String {
        self.chroot.map(|root| format!(" inside chroot {}", root.display())).unwrap_or_default()
    }

    /// What is at `path`, behind all links, seen from outside; `help` is for what is not there.
    pub(crate) fn find(&self, path: &Path, help: &str) -> Result<(PathBuf, Metadata), Obstacle> {
        let failed = |error: &io::Error| Obstacle::new(reason(error), help);
        let mut closed = None;
        let mut enter = |directory: &Path| {
            if closed.is_none() {
                closed = self.refuses(directory, "enter");
            }
        };
        let root = self.chroot.unwrap_or(Path::new("/"));
        let (file, metadata) = match (walk(root, path, &mut enter), self.chroot) {
            (Ok(file), _) => {
                let metadata = fs::metadata(&file).map_err(|error| failed(&error))?;
                (file, metadata)
            }
            (Err(error), Some(_)) => return Err(failed(&error)),
            // The kernel knows better; some links of /proc(5) lead where no path does.
            (Err(_), None) => (path.to_owned(), fs::metadata(path).map_err(|error| failed(&error))?),
        };
        closed.map_or(Ok((file, metadata)), Err)
    }

    /// Why the runner may not execute, or enter, what is at this path outside; `None` if it may, or that is uncertain.
    pub(crate) fn refuses(&self, path: &Path, what: &str) -> Option<Obstacle> {
        let file = fs::metadata(path).ok()?;
        if self.runner.may_execute(path, &file) {
            return None;
        }
        let (mode, path) = (file.mode() & 0o7777, path.display());
        let why = format!(
            "{} may not {what} {path}, which is of user {} and group {}, mode {mode:04o}",
            self.runner,
            file.uid(),
            file.gid()
        );
        let right = match self.runner {
            Runner::User(user) if user.uid == file.uid() => "u+x",
            runner if runner.is_in_group_of(&file) => "g+x",
            _ => "o+x",
        };
        Some(Obstacle::new(why, format!("chmod {right} {path}, or choose another user")))
    }
}

impl Runner<'_> {
    fn may_execute(self, path: &Path, file: &Metadata) -> bool {
        let mode = file.permissions().mode();
        // capabilities(7): who may override permissions still needs one that says that it is a program.
        let as_root = file.is_dir() || mode & 0o111 != 0;
        match self {
            Runner::Anybody => true,
            Runner::Preforkd if process::is_user(0) => as_root,
            Runner::Preforkd => permission::may_execute(path),
            Runner::User(UserIds { uid: 0, .. }) => as_root,
            Runner::User(user) => {
                let bit = if file.uid() == user.uid {
                    0o100
                } else if self.is_in_group_of(file) {
                    0o010
                } else {
                    0o001
                };
                mode & bit != 0 || !permission::mode_decides(path)
            }
        }
    }

    fn is_in_group_of(self, file: &Metadata) -> bool {
        matches!(self, Runner::User(user) if file.uid() != user.uid
            && (user.gid == file.gid() || user.groups.contains(&file.gid())))
    }
}

impl fmt::Display for Runner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Runner::User(user) if user.group.as_ref() == Some(&user.name) => {
                write!(f, "user {} in group {}", user.uid, user.name)
            }
            Runner::User(user) => write!(f, "user {}", user.name),
            Runner::Preforkd => write!(f, "user {}, as which preforkd runs,", process::effective_user_id()),
            Runner::Anybody => write!(f, "nobody"),
        }
    }
}

/// Follows a path as the kernel does for who has `root` for its root directory: to what is behind all links, as seen
/// from outside. `enter` hears of each directory on the way.
fn walk(root: &Path, path: &Path, enter: &mut dyn FnMut(&Path)) -> io::Result<PathBuf> {
    let mut here = root.to_owned();
    let mut rest = names(path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        enter(&here);
        if name == ".." {
            if here != root {
                here.pop();
            }
            continue;
        }
        let next = here.join(&name);
        if !fs::symlink_metadata(&next)?.is_symlink() {
            here = next;
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = fs::read_link(&next)?;
        if target.is_absolute() {
            here = root.to_owned();
        }
        rest.extend(names(&target));
    }
    Ok(here)
}

/// The names in a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().rev().filter_map(name).collect()
}

pub(crate) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::NotADirectory => "a part of its path is not a directory".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_where_they_do_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/tool"), "").unwrap();
        fs::write(root.join("file"), "").unwrap();
        for (target, link) in [
            ("usr/bin", "bin"),
            ("/usr/bin/tool", "absolute"),
            ("../../../usr/bin/tool", "up"),
            ("/bin/absolute", "twice"),
            ("/absolute", "usr/bin/absolute"),
            ("self", "self"),
            ("/nonexistent", "dangling"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let find = |path: &str| walk(&root, Path::new(path), &mut |_| ());
        for path in ["/bin/tool", "/absolute", "/up", "/twice", "/bin/../bin/./tool", "/../up"] {
            assert_eq!(find(path).unwrap(), root.join("usr/bin/tool"), "{path}");
        }
        assert_eq!(find("/self").unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(find("/dangling").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(find("/file/x").unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
