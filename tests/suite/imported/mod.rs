//! `preforkd import`: real files of others, and what becomes of what they say.

mod hostile;
mod real;
mod served;

use std::path::Path;
use std::process::Output;

use crate::support::{preforkd, text, write};

/// Whether this version has `wait = true` and `udp:`. Until it has, what is printed of them is not given to `check`.
const HAS_WAIT: bool = true;

/// A directory with files of these names.
fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, content);
    }
    directory
}

/// What is said of a file of this directory.
fn import(directory: &Path, arguments: &[&str], file: &str) -> Output {
    let path = directory.join(file);
    let root = ["--root", directory.to_str().unwrap()];
    preforkd(&[&["import"], arguments, &root, &[path.to_str().unwrap()]].concat())
}

/// What is printed of one file, and what is complained of.
fn imported(name: &str, content: &str) -> (String, String, Option<i32>) {
    let directory = files(&[(name, content)]);
    let output = import(directory.path(), &[], name);
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

/// The sections of services that are not commented out.
fn sections(printed: &str) -> Vec<String> {
    let starts = printed.split("\n[service.").skip(1);
    starts.map(|section| format!("[service.{section}").split("\n\n").next().unwrap().to_owned()).collect()
}

/// What of it `check` can be asked about.
fn checkable(printed: &str) -> String {
    let sections = sections(printed).into_iter();
    let known = sections.filter(|section| HAS_WAIT || !section.contains("\nwait = true"));
    known.map(|section| section + "\n\n").collect()
}

/// Complaints of `check` about anything but this machine, which need not have the programs and users of others.
fn faults(printed: &str) -> Vec<String> {
    let config = checkable(printed);
    if config.is_empty() {
        return Vec::new();
    }
    let directory = files(&[("p.toml", &config)]);
    let path = directory.path().join("p.toml");
    let output = preforkd(&["check", "--config", path.to_str().unwrap()]);
    let complaints = text(&output.stderr);
    let about_machine = [
        "is no user of this machine",
        "is no group of this machine",
        "there is no ",
        "cannot be found",
        "does not exist",
        "is not in PATH",
    ];
    let is_ours =
        |line: &&str| line.contains(": error: ") && !about_machine.iter().any(|about| line.contains(about));
    complaints.lines().filter(is_ours).map(str::to_owned).collect()
}
