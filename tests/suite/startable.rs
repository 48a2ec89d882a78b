//! What `check` says of a program is what happens when it is started.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Preforkd, preforkd, root, run, sure, text, user, write};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A directory that everybody may enter.
fn place() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("preforkd-test-").tempdir().unwrap();
    mode(dir.path(), 0o755);
    dir
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// An executable file with these bytes. Another process writes it: what this one has open for writing, a child that another
/// test just forks has open too, and such a program cannot be started.
fn program(path: PathBuf, content: &[u8]) -> PathBuf {
    let draft = path.with_extension("draft");
    fs::write(&draft, content).unwrap();
    sure(&["cp", draft.to_str().unwrap(), path.to_str().unwrap()]);
    mode(&path, 0o755);
    path
}

/// What `check` says about a service with this program and these keys; `None` for nothing.
fn complaint(dir: &Path, path: &Path, keys: &str) -> Option<String> {
    let config = dir.join("preforkd.toml");
    write(
        &config,
        &format!("[service.x]\nlisten = \"127.0.0.1:7\"\nexec = [\"{}\"]\n{keys}\n", path.display()),
    );
    let output = preforkd(&["check", "--config", config.to_str().unwrap()]);
    (!output.status.success()).then(|| {
        assert_eq!(output.status.code(), Some(78));
        text(&output.stderr)
    })
}

/// Whether the kernel, and env(1) if it comes to that, start it.
fn starts(path: &Path, who: Option<(u32, u32)>, directory: &Path) -> bool {
    let mut command = Command::new(path);
    command.env_clear().env("PATH", PATH).current_dir(directory);
    // Without supplementary groups, as std does for root.
    if let Some((uid, gid)) = who {
        command.uid(uid).gid(gid);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| ![126, 127].contains(&status.code().unwrap_or(0)))
}

#[test]
fn check_knows_what_the_kernel_will_not_start() {
    let dir = place();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("directory")).unwrap();
    write(&at("closed"), "no program");
    let mut cases: BTreeMap<&str, (Vec<u8>, Option<&str>)> = BTreeMap::new();
    let mut case = |name, content: &[u8], wanted| {
        cases.insert(name, (content.to_vec(), wanted));
    };
    case("plain", b"#!/bin/sh\nexit 3\n", None);
    case("blanks", b"#! \t/bin/sh  -e \t\nexit 3\n", None);
    case("no-end", b"#!/bin/sh", None);
    case("env", b"#!/usr/bin/env sh\nexit 3\n", None);
    case("env-split", b"#!/usr/bin/env -S sh -e\nexit 3\n", None);
    case("relative-right", b"#!bin/sh\nexit 3\n", None);
    case("perl-windows", b"#!/usr/bin/perl -w\r\nexit 3;\r\n", None);
    let far = [b"#!/bin/sh ", &b" ".repeat(400)[..], b"\nexit 3\n"].concat();
    case("far-end", &far, None);

    case("no-shell", b"echo hello\n", Some("it is a script without #!"));
    case("blank-before", b"\n#!/bin/sh\nexit 3\n", Some("not at its very beginning"));
    case("mark-before", b"\xef\xbb\xbf#!/bin/sh\nexit 3\n", Some("a byte order mark"));
    case("empty", b"", Some("it is empty"));
    case("junk", b"\x1f\x8b\x08\0\0\0\0\0junk", Some("in no format that this kernel runs"));
    case("windows", b"#!/bin/sh\r\nexit 3\r\n", Some("carriage return"));
    case("env-windows", b"#!/usr/bin/env sh\r\nexit 3\r\n", Some("carriage return"));
    case(
        "missing",
        b"#!/nonexistent/sh\n",
        Some("its interpreter /nonexistent/sh cannot be started: there is"),
    );
    case(
        "env-missing",
        b"#!/usr/bin/env nonexistent-program\n",
        Some("no program \"nonexistent-program\" for env"),
    );
    case("env-words", b"#!/usr/bin/env sh -e\nexit 3\n", Some("env -S sh -e"));
    case("relative-wrong", b"#!sh\nexit 3\n", Some("its interpreter sh, whose path is relative,"));
    case("nameless", b"#!\nexit 3\n", Some("names no interpreter"));
    case("only-blanks", b"#!  \t \nexit 3\n", Some("names no interpreter"));
    let long = [b"#!/", &b"x".repeat(300)[..], b"\nexit 3\n"].concat();
    case("long", &long, Some("longer than the 256 bytes"));
    let directory = format!("#!{}\n", at("directory").display());
    case("at-directory", directory.as_bytes(), Some("it is a directory"));
    let closed = format!("#!{}\n", at("closed").display());
    case("at-data", closed.as_bytes(), Some("it is not executable"));

    let real = fs::read(fs::canonicalize("/bin/true").unwrap()).unwrap();
    case("real", &real, None);
    let mut other = real.clone();
    other[18..20].copy_from_slice(&[0xf7, 0]);
    case("bpf", &other, Some("it was built for another kind of machine"));
    let mut part = real.clone();
    part[16] = 1;
    case("part", &part, Some("no whole program"));
    case("cut", &real[..20], Some("it is cut off"));
    let mut homeless = real.clone();
    let loader = homeless.windows(5).position(|window| window == b"/lib6" || window == b"/lib/").unwrap();
    homeless[loader + 1] = b'L';
    case("no-loader", &homeless, Some("that it needs cannot be used: there is no such file"));

    for (name, (content, wanted)) in &cases {
        let path = program(at(name), content);
        let said = complaint(dir.path(), &path, "");
        match (&said, wanted) {
            (Some(said), Some(wanted)) => {
                assert!(said.contains(wanted) && said.contains("help:"), "{name}: {said}");
                assert!(said.contains(&format!("cannot run {}", path.display())), "{name}: {said}");
            }
            (None, None) => {}
            _ => panic!("{name}: {said:?}"),
        }
        assert_eq!(starts(&path, None, Path::new("/")), wanted.is_none(), "{name}: what happens");
    }
}

#[test]
fn scripts_may_interpret_scripts_as_far_as_the_kernel_goes() {
    let dir = place();
    let mut before = PathBuf::from("/bin/cat");
    for depth in 1..8 {
        let path = dir.path().join(format!("script{depth}"));
        before = program(path, format!("#!{}\n", before.display()).as_bytes());
        let said = complaint(dir.path(), &before, "");
        assert_eq!(said.is_none(), starts(&before, None, dir.path()), "{depth}: {said:?}");
        assert!(said.is_none_or(|said| depth > 4 && said.contains("too many scripts")), "{depth}");
    }
    let dir_text = dir.path().display();
    let circle = program(dir.path().join("circle"), format!("#!{dir_text}/circle\n").as_bytes());
    assert!(complaint(dir.path(), &circle, "").unwrap().contains("too many scripts"));
    // env(1) starts it anew for ever; that is nothing that could be known.
    let endless =
        program(dir.path().join("endless"), format!("#!/usr/bin/env {dir_text}/endless\n").as_bytes());
    assert!(complaint(dir.path(), &endless, "").is_none());
}

#[test]
fn links_and_interpreters_are_looked_up_inside_the_chroot() {
    if !root("interpreters inside a chroot") {
        return;
    }
    let dir = place();
    let inside = dir.path().join("root");
    fs::create_dir_all(inside.join("bin")).unwrap();
    let script = program(inside.join("bin/script"), b"#!/bin/sh\nexit 3\n");
    symlink("/bin/script", inside.join("bin/link")).unwrap();
    let chroot = format!("chroot = \"{}\"", inside.display());
    let complaint = |path: &str| complaint(dir.path(), Path::new(path), &chroot);
    for path in ["/bin/script", "/bin/link"] {
        let said = complaint(path).unwrap();
        let wanted = format!(
            "its interpreter /bin/sh cannot be started inside chroot {}: there is no such file",
            inside.display()
        );
        assert!(said.contains(&wanted), "{said}");
    }
    fs::copy(fs::canonicalize("/bin/true").unwrap(), inside.join("bin/sh")).unwrap();
    let said = complaint("/bin/script").unwrap();
    assert!(said.contains("/bin/sh cannot be started") && said.contains("the loader /lib"), "{said}");
    let loader = said.split("the loader ").nth(1).unwrap().split(' ').next().unwrap();
    let loader_inside = inside.join(loader.trim_start_matches('/'));
    fs::create_dir_all(loader_inside.parent().unwrap()).unwrap();
    fs::copy(loader, loader_inside).unwrap();
    assert_eq!(complaint("/bin/script"), None);
    assert_eq!(complaint("/bin/link"), None, "an absolute link leads inside");
    fs::remove_file(script).unwrap();
    assert!(complaint("/bin/link").unwrap().contains("there is no such file"));
}

#[test]
fn check_knows_whom_the_permissions_keep_out() {
    if !root("programs for other users") {
        return;
    }
    let dir = place();
    let at = |name: &str| dir.path().join(name);
    let (uid, gid) = (user(91), user(92));
    fs::create_dir(at("home")).unwrap();
    let script = b"#!/bin/sh\nexit 3\n";
    let (plain, deep) = (program(at("plain"), script), program(at("home/deep"), script));
    symlink(&deep, at("link")).unwrap();
    let by_own = format!("#!{}\n", program(at("own"), script).display());
    let indirect = program(at("indirect"), by_own.as_bytes());
    let may_not = |what: &str, path: &Path| Some(format!("may not {what} {}", path.display()));
    // Owner, group and mode of the program, and of the directory of another.
    for (owner, group, bits, lets) in [
        (0, 0, 0o700, false),
        (0, gid, 0o710, true),
        (0, gid, 0o701, false),
        (uid, 0, 0o100, true),
        (uid, gid, 0o077, false),
        (0, 0, 0o701, true),
    ] {
        for path in [&plain, &at("home"), &at("own")] {
            chown(path, Some(owner), Some(group)).unwrap();
            // To run a script, its interpreter reads it.
            let readable = if path == &plain && lets { 0o444 } else { 0 };
            mode(path, bits | readable);
        }
        for (path, wanted) in [
            (&plain, may_not("execute", &plain)),
            (&deep, may_not("enter", &at("home"))),
            (&at("link"), may_not("enter", &at("home"))),
            (&indirect, may_not("execute", &at("own"))),
        ] {
            let said = complaint(dir.path(), path, &format!("user = {uid}\ngroup = {gid}"));
            let what = format!("{path:?} {owner} {group} {bits:o}: {said:?}");
            assert_eq!(said.is_none(), lets, "{what}");
            assert!(lets || said.unwrap().contains(&wanted.unwrap()), "{what}");
            if path != &indirect {
                assert_eq!(starts(path, Some((uid, gid)), Path::new("/")), lets, "{what}: what happens");
            }
            // Root may whatever somebody may.
            assert_eq!(complaint(dir.path(), path, ""), None, "{what}");
        }
        let keys = format!("user = {uid}\ngroup = {gid}\nworking_directory = \"{}\"", at("home").display());
        assert_eq!(complaint(dir.path(), Path::new("/bin/true"), &keys).is_none(), lets, "{keys}");
    }
}

#[test]
fn where_something_else_than_the_mode_decides_nothing_is_said() {
    if !root("access control lists") {
        return;
    }
    let dir = place();
    let path = program(dir.path().join("listed"), b"#!/bin/sh\nexit 3\n");
    mode(&path, 0o700);
    let uid = user(93);
    let keys = format!("user = {uid}\ngroup = {uid}");
    assert!(complaint(dir.path(), &path, &keys).is_some());
    // acl(5), in the form of the kernel: version 2; owner, USER:r-x, group, mask, others.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in
        [(1u16, 7u16, u32::MAX), (2, 5, uid), (4, 0, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let list: Vec<_> = list.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let set = format!(
        "use strict; my $v = \"{}\"; my ($p, $n) = (\"{}\", \"system.posix_acl_access\"); \
         syscall({}, $p, $n, $v, length $v, 0) == 0 or die $!",
        list.concat(),
        path.display(),
        libc::SYS_setxattr
    );
    let output = run(&["perl", "-e", &set]);
    if !output.status.success() {
        crate::support::say(&format!("SKIPPED: no access control lists here: {}", text(&output.stderr)));
        return;
    }
    assert_eq!(complaint(dir.path(), &path, &keys), None);
    assert!(starts(&path, Some((uid, uid)), Path::new("/")));
}

#[test]
fn a_file_system_without_programs_is_named() {
    if !root("a file system without programs") {
        return;
    }
    let dir = place();
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let config = dir.path().join("preforkd.toml");
    write(
        &config,
        &format!("[service.x]\nlisten = \"127.0.0.1:7\"\nexec = [\"{}/program\"]\n", mount.display()),
    );
    let script = format!(
        "mount -t tmpfs -o noexec none {0}; printf '#!/bin/sh\\n' >{0}/program; chmod 755 {0}/program; exec {1} check --config {2}",
        mount.display(),
        crate::support::BINARY,
        config.display()
    );
    let output = run(&["unshare", "--mount", "--propagation", "private", "sh", "-euc", &script]);
    let shown = text(&output.stderr);
    assert!(output.status.code() == Some(78) && shown.contains("mounted with noexec"), "{shown}");
}

#[test]
fn check_knows_how_much_the_kernel_passes_on() {
    let dir = place();
    let printed = |name: &str, length: usize| format!("{name} = \"{}\"", "x".repeat(length));
    let many = |count: usize, length: usize| {
        let variables: Vec<_> = (0..count).map(|number| printed(&format!("V{number:04}"), length)).collect();
        format!("environment = {{ {} }}", variables.join(", "))
    };
    // A page of memory is larger on some machines.
    let one = 32 * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as usize;
    for (keys, wanted) in [
        (format!("environment = {{ {} }}", printed("BIG", one - 5)), None),
        (format!("environment = {{ {} }}", printed("BIG", one - 4)), Some("the variable BIG has")),
        (format!("{}\nlimits = {{ stack = \"8M\" }}", many(20, 100_000)), None),
        (
            format!("{}\nlimits = {{ stack = \"8M\" }}", many(21, 100_000)),
            Some("arguments and environment have"),
        ),
        (format!("{}\nlimits = {{ stack = \"64K\" }}", many(1, 100_000)), None),
        (format!("{}\nlimits = {{ stack = \"64K\" }}", many(2, 70_000)), Some("at most 131072")),
        (format!("{}\nlimits = {{ stack = \"unlimited\" }}", many(62, 100_000)), None),
        (format!("{}\nlimits = {{ stack = \"unlimited\" }}", many(63, 100_000)), Some("at most 6291456")),
        // Each has a pointer besides its text.
        (format!("{}\nlimits = {{ stack = \"8M\" }}", many(104_000, 3)), None),
        (format!("{}\nlimits = {{ stack = \"8M\" }}", many(112_000, 3)), Some("at most 2097152")),
    ] {
        let said = complaint(dir.path(), Path::new("/bin/true"), &keys);
        let shown = said.as_ref().and_then(|said| said.lines().next().map(str::to_owned));
        assert_eq!(said.is_some(), wanted.is_some(), "{shown:?}");
        assert!(wanted.is_none_or(|wanted| shown.clone().unwrap().contains(wanted)), "{shown:?}");
        assert!(said.is_none_or(|said| said.contains("read")), "{shown:?}");
    }
    let config = dir.path().join("preforkd.toml");
    write(
        &config,
        &format!("[service.x]\nlisten = \"127.0.0.1:7\"\nexec = [\"/bin/echo\", \"{}\"]\n", "x".repeat(one)),
    );
    let shown = text(&preforkd(&["check", "--config", config.to_str().unwrap()]).stderr);
    assert!(shown.contains("argument 1 has"), "{}", &shown[..300]);
}

/// What only root may do is not called something else, and the way out is named.
#[test]
fn what_is_not_permitted_is_called_by_its_key() {
    if !root("what is not permitted") {
        return;
    }
    for (options, wanted) in [
        (
            &["--group", "4711"][..],
            "cannot take on group 4711: Operation not permitted; preforkd must run as root",
        ),
        (
            &["--user", "4711", "--group", "4712"],
            "cannot take on group 4712: Operation not permitted; preforkd must",
        ),
        (
            &["--chroot", "/usr"],
            "cannot enter chroot /usr: Operation not permitted; preforkd must run as root",
        ),
        (&["--nice=-5"], "cannot set nice -5: Permission denied; a value that low needs LimitNICE="),
        (&["--limits", "nofile=999999999"], "cannot set limits (nofile may be at most "),
    ] {
        let server = Preforkd::serve(options, "127.0.0.1:0", &["echo"]).by_user(94, 100).start_unready();
        server.log.wait(wanted, |line| line.contains(wanted));
        assert_ne!(server.ending(), "0");
        server.wait_empty();
    }
}

/// As much as `check` lets pass is passed on, with all that is said of a connection.
#[test]
fn what_check_lets_pass_is_passed_on() {
    let variables: Vec<_> = (0..20).map(|n| format!("V{n:02} = \"{}\"", "x".repeat(104_000))).collect();
    let address = crate::support::address::fresh();
    let server = Preforkd::run(&format!(
        "[service.x]\nlisten = [\"{address}\"]\nexec = [\"DIR/program\"]\nlimits = {{ stack = \"8M\" }}\n\
         environment = {{ {} }}\n",
        variables.join(", ")
    ))
    .script("program", "#!/bin/sh\necho ${#V19}\n")
    .start();
    assert_eq!(crate::support::client::listen_to(server.tcp_addresses()[0]), "104000\n");
}
