//! The credentials of services as files: a directory for each service, which only its user may read.
//!
//! A new generation has them in a directory beside the one in force, and comes into force by one exchange of both. So a
//! program finds all of one generation or all of the other, and a generation that is rejected has touched nothing.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Fatal;
use crate::config::{Credentials, ServiceConfig};
use crate::exit;
use crate::sys::{list, path, process};

/// Where those of this supervisor are, once a service has some.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct CredentialFiles {
    root: Option<PathBuf>,
}

impl CredentialFiles {
    /// Writes those of a service, which are not in force yet; `None` if it has none.
    pub(super) fn stage(
        &mut self,
        config: &ServiceConfig,
        control_socket: Option<&Path>,
    ) -> Result<Option<StagedCredentials>, Fatal> {
        if config.credentials.is_empty() {
            return Ok(None);
        }
        let root = match &self.root {
            Some(root) => root,
            None => {
                let runtime = runtime_directory(control_socket)?;
                let root = open_root(&runtime).map_err(|error| cannot_keep(&runtime, &error))?;
                self.root.insert(root)
            }
        };
        let reader = config.identity.user.as_ref().map(|user| user.uid).filter(|uid| !process::is_user(*uid));
        // A service's name begins with a letter or digit.
        let (path, place) = (root.join(format!(".{}", config.name)), root.join(&config.name));
        remove(&path).map_err(|error| cannot_keep(root, &error))?;
        let staged = StagedCredentials { path, place };
        write(&staged.path, &config.credentials, reader).map_err(|error| cannot_keep(root, &error))?;
        Ok(Some(staged))
    }

    /// Removes all of them.
    pub(super) fn remove(&mut self) {
        if let Some(root) = self.root.take() {
            let _ = remove(&root);
            // Another supervisor may have its own beside them.
            let _ = root.parent().map(fs::remove_dir);
        }
    }
}

/// Credentials of a generation that is not in force.
#[derive(Debug)]
pub(super) struct StagedCredentials {
    path: PathBuf,
    place: PathBuf,
}

impl StagedCredentials {
    /// Where they will be.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// They are in force from now on, there, and what was there before is gone.
    pub(super) fn put_to_use(self) -> io::Result<PathBuf> {
        path::exchange(&self.path, &self.place).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => fs::rename(&self.path, &self.place),
            _ => Err(error),
        })?;
        Ok(self.place.clone())
    }
}

impl Drop for StagedCredentials {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

/// Credentials in force, until this is dropped.
#[derive(Debug)]
pub(super) struct InstalledCredentials(PathBuf);

impl InstalledCredentials {
    pub(super) fn at(place: PathBuf) -> Self {
        InstalledCredentials(place)
    }

    pub(super) fn place(&self) -> &Path {
        &self.0
    }
}

impl Drop for InstalledCredentials {
    fn drop(&mut self) {
        let _ = remove(&self.0);
    }
}

/// The directory that is made for this service of systemd's and goes with it, or that of the control socket.
fn runtime_directory(control_socket: Option<&Path>) -> Result<PathBuf, Fatal> {
    let given = std::env::var_os("RUNTIME_DIRECTORY");
    // Several are separated by colons, systemd.exec(5).
    let first = given.as_ref().and_then(|all| std::env::split_paths(all).next());
    first.or_else(|| control_socket.and_then(Path::parent).map(Path::to_owned)).ok_or_else(|| {
        let text = "there is no directory for credentials: set RUNTIME_DIRECTORY, or use --control PATH";
        Fatal { text: text.to_owned(), code: exit::CONFIG }
    })
}

fn cannot_keep(directory: &Path, error: &io::Error) -> Fatal {
    let directory = directory.display();
    let why = match error.kind() {
        io::ErrorKind::Unsupported => "its file system has no access control lists, acl(5)".to_owned(),
        _ => error.to_string(),
    };
    let text = format!("cannot keep credentials in {directory}: {why}; RUNTIME_DIRECTORY says where to");
    Fatal { text, code: exit::OS }
}

/// The directory of this process, without what dead ones have left.
fn open_root(runtime: &Path) -> io::Result<PathBuf> {
    let all = runtime.join("credentials");
    own_directory(&all)?;
    for entry in fs::read_dir(&all)? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if pid.is_some_and(|pid| pid == process::id() || !process::exists(pid)) {
            let _ = remove(&entry.path());
        }
    }
    let root = all.join(process::id().to_string());
    own_directory(&root)?;
    Ok(root)
}

/// A directory of this user's that others may pass, and neither list nor change.
fn own_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path)?;
            if !found.is_dir() || found.uid() != process::effective_user_id() {
                let text = format!("{} is there already, and not preforkd's own", path.display());
                return Err(io::Error::other(text));
            }
        }
        created => created?,
    }
    fs::set_permissions(path, Permissions::from_mode(0o711))
}

fn write(directory: &Path, credentials: &Credentials, reader: Option<u32>) -> io::Result<()> {
    let let_read = |file: &File| reader.map_or(Ok(()), |uid| list::let_read(file, uid));
    DirBuilder::new().mode(0o700).create(directory)?;
    for (name, secret) in credentials {
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).mode(0o400).open(directory.join(name))?;
        file.write_all(secret.expose())?;
        let_read(&file)?;
    }
    // Last: who may enter it finds all of them.
    let_read(&File::open(directory)?)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
