//! Programs and directories that a service needs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::draft::Exec;
use super::value::Fault;
use super::{Address, DEFAULT_PROGRAM_PATH, Program, socket_file};
use crate::sys::fd;

/// Opens a file to be read, which may be waited for, but not at a pipe for who never writes it.
pub(crate) fn open(path: &Path) -> io::Result<fs::File> {
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

/// How paths of a service are looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root<'a> {
    /// `chroot`.
    pub(crate) chroot: Option<&'a Path>,
    /// What a relative program path starts from; `None` refuses relative paths.
    pub(crate) current: Option<&'a Path>,
}

impl Root<'_> {
    /// Where the supervisor finds what a connection process finds at `path`.
    fn outside(&self, path: &Path) -> PathBuf {
        match self.chroot {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    fn inside(&self) -> String {
        self.chroot.map(|root| format!(" inside chroot {}", root.display())).unwrap_or_default()
    }

    /// An absolute symbolic link inside a chroot leads elsewhere from here, so it is taken on trust.
    fn on_trust(&self, path: &Path) -> bool {
        self.chroot.is_some() && fs::symlink_metadata(self.outside(path)).is_ok_and(|file| file.is_symlink())
    }
}

/// The program of `exec`.
pub(crate) fn program(
    exec: &Exec,
    environment: &BTreeMap<String, String>,
    root: Root<'_>,
) -> Result<Program, Fault> {
    let name = exec.arguments.first().map(String::as_str).unwrap_or_default();
    let path = if !name.contains('/') {
        let search = environment.get("PATH").map_or(DEFAULT_PROGRAM_PATH, String::as_str);
        search_path(name, search, root).map_err(|fault| Fault { span: exec.span.clone(), ..fault })?
    } else if name.starts_with('/') {
        PathBuf::from(name)
    } else if let (Some(current), None) = (root.current, root.chroot) {
        current.join(name)
    } else {
        let message = format!("\"{name}\" is a relative path");
        return Err(
            Fault::new(exec.span.clone(), message).help("write a path that starts with /, or a bare name")
        );
    };
    match executable(&path, root) {
        Ok(()) => Ok(Program { path, arguments: exec.arguments.clone() }),
        Err(why) => {
            let message = format!("cannot run {}{}: {why}", path.display(), root.inside());
            let help = match why.as_str() {
                "it is not executable" => format!("chmod +x {}", root.outside(&path).display()),
                "there is no such file" => "install the program, or correct its path".to_owned(),
                _ => "name a program".to_owned(),
            };
            Err(Fault::new(exec.span.clone(), message).help(help))
        }
    }
}

fn search_path(name: &str, search: &str, root: Root<'_>) -> Result<PathBuf, Fault> {
    // An empty entry would be the working directory, execvp(3); nobody means that in a service.
    let directories = search.split(':').filter(|directory| directory.starts_with('/'));
    directories
        .map(|directory| Path::new(directory).join(name))
        .find(|path| executable(path, root).is_ok())
        .ok_or_else(|| {
            let message = format!("there is no program \"{name}\" in PATH{}", root.inside());
            Fault::new(0..0, message).help(format!("install it, or write its path; PATH is {search}"))
        })
}

fn executable(path: &Path, root: Root<'_>) -> Result<(), String> {
    let file = match fs::metadata(root.outside(path)) {
        Ok(file) => file,
        Err(_) if root.on_trust(path) => return Ok(()),
        Err(error) => return Err(reason(&error)),
    };
    if file.is_dir() {
        Err("it is a directory".into())
    } else if !file.is_file() {
        Err("it is not a regular file".into())
    } else if file.permissions().mode() & 0o111 == 0 {
        Err("it is not executable".into())
    } else {
        Ok(())
    }
}

/// A directory that must exist.
pub(crate) fn directory(path: &Spanned<PathBuf>, root: Root<'_>) -> Result<PathBuf, Fault> {
    let fault = |why: &str| {
        let message = format!("cannot use directory {}{}: {why}", path.get_ref().display(), root.inside());
        Fault::new(path.span(), message).help("create it, or correct the path")
    };
    match fs::metadata(root.outside(path.get_ref())) {
        Ok(file) if file.is_dir() => Ok(path.get_ref().clone()),
        Ok(_) => Err(fault("it is not a directory")),
        Err(_) if root.on_trust(path.get_ref()) => Ok(path.get_ref().clone()),
        Err(error) => Err(fault(&reason(&error))),
    }
}

/// The directory in which a Unix socket is to appear must exist, and nothing else be in its place.
pub(crate) fn socket_parent(address: &Spanned<Address>) -> Result<(), Fault> {
    let Address::Unix(path) = address.get_ref() else {
        return Ok(());
    };
    let Some(parent) = path.parent() else {
        return Err(Fault::new(address.span(), "/ cannot be a socket").help("name a file in a directory"));
    };
    let why = match fs::metadata(parent) {
        Ok(file) if file.is_dir() => {
            let Some((what, help)) = socket_file::in_its_place(path) else { return Ok(()) };
            let message = format!("cannot create a socket at {}: {what}", path.display());
            return Err(Fault::new(address.span(), message).help(help));
        }
        Ok(_) => "it is not a directory".to_owned(),
        Err(error) => reason(&error),
    };
    let message = format!("cannot create a socket in {}: {why}", parent.display());
    Err(Fault::new(address.span(), message)
        .help("create the directory (for one below /run, RuntimeDirectory= of the unit does)"))
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}
