//! What is in the way of a Unix socket is called what it is, and the way out is named.

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::support::{BINARY, root, run, text, user, write};

/// What two commands say that need a socket at this path, and must not get it: for a service, and for control.
fn complaints(prefix: &[&str], binary: &str, path: &Path) -> [String; 2] {
    let path = path.to_str().unwrap();
    let (address, beside) = (format!("unix:{path}"), format!("unix:{path}.other"));
    [vec!["serve", &address, "echo"], vec!["serve", "--control", path, &beside, "echo"]].map(|arguments| {
        let output = run(&[prefix, &[binary], &arguments].concat());
        assert!(!output.status.success(), "{arguments:?}");
        text(&output.stderr)
    })
}

#[test]
fn what_is_in_the_place_of_a_socket_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("file"), "precious");
    std::fs::create_dir(at("directory")).unwrap();
    symlink("/nonexistent/x", at("dangling")).unwrap();
    symlink(at("file"), at("link")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, wanted) in [
        ("file", "a file is in its place"),
        ("directory", "a directory is in its place"),
        ("dangling", "a symbolic link to /nonexistent/x, where nothing is, is in its place"),
        ("link", "a symbolic link to "),
        ("fifo", "a named pipe is in its place"),
    ] {
        for shown in complaints(&[], BINARY, &at(name)) {
            assert!(shown.contains(wanted), "{name}: {shown}");
            assert!(shown.contains("choose another path") || shown.contains("where it leads"), "{shown}");
            assert!(!shown.contains("in use") && !shown.contains("using it"), "{shown}");
        }
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"precious", "nothing was removed");
    assert!(std::fs::symlink_metadata(at("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn who_may_not_make_a_socket_is_told_where_and_by_whom() {
    if !root("who may not make a socket") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("preforkd-test-").tempdir().unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(dir.path(), 0o755);
    // The target directory may be in somebody's home.
    let binary = dir.path().join("preforkd");
    crate::support::sure(&["cp", BINARY, binary.to_str().unwrap()]);
    let (closed, listed) = (dir.path().join("closed"), dir.path().join("listed"));
    for (path, bits) in [(&closed, 0o700), (&listed, 0o755)] {
        std::fs::create_dir(path).unwrap();
        mode(path, bits);
    }
    // Left by somebody who is gone.
    drop(UnixListener::bind(listed.join("left")).unwrap());
    mode(&listed.join("left"), 0o600);
    let uid = user(90).to_string();
    let prefix = ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"];
    for (path, wanted) in [
        (closed.join("socket"), format!("may not enter {}", closed.display())),
        (listed.join("socket"), format!("may not make a file in {}", listed.display())),
        (listed.join("left"), "may neither ask who listens at it nor remove it".to_owned()),
    ] {
        let shown = complaints(&prefix, binary.to_str().unwrap(), &path);
        let service = &shown[0];
        assert!(!service.contains("1024") && !service.contains("using it"), "{service}");
        // What is in a directory that one may not enter is not to be known, by check either.
        assert!(service.contains(&wanted) && service.contains(&format!("user {uid}")), "{service}");
    }
    let shown = run(&[
        &prefix[..],
        &[binary.to_str().unwrap(), "serve", "--control", closed.join("c").to_str().unwrap()],
        &["127.0.0.1:0", "echo"],
    ]
    .concat());
    let shown = text(&shown.stderr);
    assert!(shown.contains("may not enter") && !shown.contains("os error"), "{shown}");
}

#[test]
fn a_directory_that_is_read_only_is_named() {
    if !root("a directory that is read-only") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount --bind {0} {0}; mount -o remount,ro,bind {0}; exec {BINARY} serve unix:{0}/x echo",
        dir.path().display()
    );
    let output = run(&["unshare", "--mount", "--propagation", "private", "sh", "-euc", &script]);
    let shown = text(&output.stderr);
    let wanted = format!("{} is read-only", dir.path().display());
    assert!(!output.status.success() && shown.contains(&wanted), "{shown}");
}
