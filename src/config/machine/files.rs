//! Programs and directories that a service needs.

use std::fs;
use std::path::PathBuf;

use toml::Spanned;

use super::executable::{self, Setting};
use super::lookup::{Obstacle, Root, reason};
use super::socket_file;
use crate::config::address::Address;
use crate::config::checked::{Passing, Program};
use crate::config::draft::Exec;
use crate::config::value::Fault;

/// The program of `exec`.
pub(crate) fn program(exec: &Exec, setting: Setting<'_>) -> Result<Program, Fault> {
    let name = exec.arguments.first().map(String::as_str).unwrap_or_default();
    let root = setting.root;
    let path = if !name.contains('/') {
        executable::in_path(name, setting).ok_or_else(|| {
            let message = format!("there is no program \"{name}\" in PATH{}", root.inside());
            let help = format!("install it, or write its path; PATH is {}", setting.search_path());
            Fault::new(exec.span.clone(), message).help(help)
        })?
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
    match executable::check(&path, setting) {
        Ok(()) => Ok(Program { path, arguments: exec.arguments.clone(), passing: Passing::default() }),
        Err(Obstacle { why, help }) => {
            let message = format!("cannot run {}{}: {why}", path.display(), root.inside());
            Err(Fault::new(exec.span.clone(), message).help(help))
        }
    }
}

/// A directory that must exist, and that the connection processes may enter.
pub(crate) fn directory(path: &Spanned<PathBuf>, root: Root<'_>) -> Result<PathBuf, Fault> {
    const HELP: &str = "create it, or correct the path";
    let found = root.find(path.get_ref(), HELP).and_then(|(directory, metadata)| match metadata.is_dir() {
        true => root.refuses(&directory, "enter").map_or(Ok(()), Err),
        false => Err(Obstacle::new("it is not a directory", HELP)),
    });
    found.map(|()| path.get_ref().clone()).map_err(|Obstacle { why, help }| {
        let message = format!("cannot use directory {}{}: {why}", path.get_ref().display(), root.inside());
        Fault::new(path.span(), message).help(help)
    })
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
