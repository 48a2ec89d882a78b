//! Unix sockets: who may connect to their files, abstract names, and what a program is told of its client.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::local::{self, Who, access, ask, ask_from};
use crate::support::{Preforkd, Running, eventually, preforkd, root, sure, text, user, write};

const ECHO: &str = "[service.one]\nlisten = \"unix:DIR/service.sock\"\nhandler = \"echo\"\nworkers = 1\n";

fn own() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

fn socket(server: &Running) -> String {
    server.dir().join("service.sock").display().to_string()
}

/// An abstract name that nobody else has.
fn name(test: &str) -> String {
    format!("@preforkd-{test}-{}", std::process::id())
}

fn check(config: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    write(&path, config);
    let output = preforkd(&["check", "--config", path.to_str().unwrap()]);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_socket_is_its_owners_alone_and_was_never_anything_else() {
    let server = Preforkd::run(ECHO).after("umask 0");
    let path = server.dir().join("service.sock");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                if let Ok(file) = std::fs::symlink_metadata(&path) {
                    seen.insert((file.uid(), file.gid(), file.mode() & 0o7777));
                }
            }
            seen
        });
        let server = server.start();
        let (uid, gid) = own();
        assert_eq!(access(&path), (uid, gid, 0o600));
        for _ in 0..5 {
            std::fs::remove_file(&path).unwrap();
            server.reload_ok();
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(watch.join().unwrap().into_iter().collect::<Vec<_>>(), [(uid, gid, 0o600)]);
        if root("who may not connect") {
            assert_eq!(ask(&socket(&server), "hello\n"), Ok("hello\n".into()));
            let refused = local::user(101).ask(&socket(&server), "hello\n").unwrap_err();
            assert!(refused.contains("Permission denied"), "{refused}");
        }
    });
}

#[test]
fn the_system_calls_make_it_so_before_anybody_can_connect() {
    if !root("strace of a start") {
        return;
    }
    let (uid, gid) = (user(102), user(103));
    let keys = format!("socket_user = {uid}\nsocket_group = {gid}\nsocket_mode = \"0240\"\n");
    let calls = "trace=bind,listen,umask,fchmod,chmod,fchmodat,chown,lchown,fchown,fchownat";
    let server = Preforkd::run(&(ECHO.to_owned() + &keys))
        .under(&["strace", "-D", "-o", "DIR/strace", "-e", calls, "--"])
        .start();
    let path = socket(&server);
    assert_eq!(access(path.as_ref()), (uid, gid, 0o240));
    let lines = || std::fs::read_to_string(server.dir().join("strace")).unwrap();
    let at = |what: &str| lines().lines().position(|line| line.contains(what));
    eventually("strace has written", || at("listen(").is_some());
    let log = lines();
    let bind = at(&format!(
        "bind({}",
        log.split("bind(").find(|rest| rest.contains(&path)).unwrap().split(',').next().unwrap()
    ));
    let lines: Vec<_> = log.lines().skip(bind.unwrap()).collect();
    let descriptor = lines[0].strip_prefix("bind(").unwrap().split(',').next().unwrap();
    let before = |what: &str| lines.iter().position(|line| line.starts_with(what));
    let listen = before(&format!("listen({descriptor},")).unwrap();
    let chowns: Vec<_> = (0..lines.len()).filter(|at| lines[*at].starts_with("fchownat(")).collect();
    assert!(chowns.len() >= 2 && chowns.iter().all(|at| *at < listen), "{log}");
    assert!(
        before("fchmodat(").is_none() && before("chmod(").is_none(),
        "it had its mode from bind on:\n{log}"
    );
}

/// Whom the keys let in.
#[test]
fn socket_user_group_and_mode_say_who_may_connect() {
    if !root("other users") {
        return;
    }
    let [owner, member, other] = [104, 105, 106].map(local::user);
    let group = user(107);
    let groups = [group];
    let member = Who { groups: &groups, ..member };
    let may = |server: &Running, who: Who<'_>| who.ask(&socket(server), "hi\n").is_ok();
    let keys = |mode: &str| {
        format!("{ECHO}socket_user = {}\nsocket_group = \"{group}\"\nsocket_mode = \"{mode}\"\n", owner.uid)
    };
    let server = Preforkd::run(&keys("0660")).start();
    let inode = || std::fs::metadata(socket(&server)).unwrap().ino();
    let first = inode();
    assert_eq!([owner, member, other].map(|who| may(&server, who)), [true, true, false]);
    // Live changes, at the same file; what is connected stays.
    let held = local::user(104).hold(&socket(&server));
    for (mode, wanted) in [
        ("0240", [true, false, false]),
        ("0420", [false, true, false]),
        ("666", [true; 3]),
        ("0600", [true, false, false]),
    ] {
        server.configure(&keys(mode));
        server.reload_ok();
        assert_eq!(
            access(socket(&server).as_ref()),
            (owner.uid, group, u32::from_str_radix(mode, 8).unwrap())
        );
        assert_eq!([owner, member, other].map(|who| may(&server, who)), wanted, "{mode}");
    }
    assert!(server.upgrade().status.success());
    assert_eq!(access(socket(&server).as_ref()), (owner.uid, group, 0o600));
    server.configure(ECHO);
    server.reload_ok();
    assert_eq!(access(socket(&server).as_ref()), (0, own().1, 0o600));
    assert_eq!([owner, member, other].map(|who| may(&server, who)), [false; 3]);
    assert_eq!(inode(), first);
    assert!(held.served);
}

#[test]
fn a_directory_that_hands_its_group_on_does_so() {
    if !root("a directory of another group") {
        return;
    }
    let group = user(108);
    let server = Preforkd::run(&(ECHO.replace("DIR", "DIR/sub") + "socket_mode = \"0660\"\n"));
    let sub = server.dir().join("sub");
    let make = format!("mkdir {0}; chgrp {group} {0}; chmod 2755 {0}", sub.display());
    sure(&["sh", "-euc", &make]);
    let server = server.start();
    let path = sub.join("service.sock");
    assert_eq!(access(&path), (0, group, 0o660));
    server.configure(&(ECHO.replace("DIR", "DIR/sub") + "socket_mode = \"0640\"\n"));
    server.reload_ok();
    assert_eq!(access(&path), (0, group, 0o640));
}

#[test]
fn without_root_another_owner_is_refused_in_plain_words_and_an_own_group_is_not() {
    if !root("an unprivileged preforkd") {
        return;
    }
    let options = ["--socket-user", "root"];
    let server =
        Preforkd::serve(&options, "unix:DIR/service.sock", &["echo"]).by_user(109, 100).start_unready();
    assert_eq!(server.ending(), "77");
    let why = "cannot make user \"root\" its owner (socket_user): this process may not; root may";
    server.log.wait("why", |line| line.contains(why));
    server.wait_empty();
    assert!(!Path::new(&socket(&server)).exists());
    drop(server);

    // Its own group it may give, also another that it is in, and no other.
    let uid = user(109);
    let [group, other] = [110, 111].map(user);
    let config = |keys: &str| ECHO.to_owned() + keys;
    let server =
        Preforkd::run(&config(&format!("socket_group = {group}\nsocket_mode = \"0660\"\n"))).own_copy();
    nix::unistd::chown(server.dir(), Some(uid.into()), Some(uid.into())).unwrap();
    let [uid_text, groups] = [uid.to_string(), format!("--groups={group}")];
    let server =
        server.under(&["setpriv", "--reuid", &uid_text, "--regid", &uid_text, &groups, "--"]).start();
    let path = socket(&server);
    assert_eq!(access(path.as_ref()), (uid, group, 0o660));
    for (keys, why) in [
        (
            format!("socket_group = {other}\n"),
            format!("cannot make its group \"{other}\" (socket_group): this process may not"),
        ),
        (
            "socket_user = 0\n".to_owned(),
            "cannot make user \"0\" its owner (socket_user): this process may not".to_owned(),
        ),
    ] {
        server.configure(&config(&keys));
        let output = server.reload();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_ne!(output.status.code(), Some(0), "{said}");
        assert!(said.contains(&why), "{said}");
        // Nothing has changed.
        assert_eq!(access(path.as_ref()), (uid, group, 0o660));
        assert_eq!(ask(&path, "x\n"), Ok("x\n".into()));
    }
}

#[test]
fn a_socket_that_systemd_kept_becomes_what_the_keys_say() {
    let server = Preforkd::run(&(ECHO.to_owned() + "socket_mode = \"0640\"\n"));
    let path = server.dir().join("service.sock");
    let name = format!("preforkd=unix%3A{}", path.display());
    let server = server.passing(&name, &format!("unix:{}", path.display())).start();
    let (uid, gid) = own();
    assert_eq!(access(&path), (uid, gid, 0o640));
    assert_eq!(ask(&socket(&server), "x\n"), Ok("x\n".into()));
}

#[test]
fn keys_of_a_file_are_errors_where_there_is_none() {
    for (listen, why) in [
        ("\"127.0.0.1:7\"", "the service has no Unix socket with a file"),
        ("\"unix:@x\"", "an abstract name is no file"),
        ("\"fd:x\"", "systemd makes the file of a socket that it passes"),
        ("[\"fd:x\", \"127.0.0.1:7\"]", "the service has no Unix socket with a file"),
    ] {
        for key in ["socket_user = \"root\"", "socket_group = 0", "socket_mode = \"0600\""] {
            let config = format!("[service.x]\nlisten = {listen}\nhandler = \"echo\"\n{key}\n");
            let (code, said) = check(&config);
            let name = key.split(' ').next().unwrap();
            assert_eq!(code, Some(78), "{listen} {key}: {said}");
            assert!(
                said.contains(&format!(":4:1: error: {name} can do nothing: {why}")),
                "{listen} {key}: {said}"
            );
        }
    }
    for (key, why) in [
        ("socket_user = \"rot\"", "did you mean \"root\"?"),
        ("socket_group = \"rot\"", "did you mean \"root\"?"),
        ("socket_mode = 600", "write \"600\" or 0o600"),
        ("socket_mode = \"0o1600\"", "\"1600\" is no file mode"),
    ] {
        let (code, said) =
            check(&format!("[service.x]\nlisten = \"unix:/run/x\"\nhandler = \"echo\"\n{key}\n"));
        assert!(code == Some(78) && said.contains(why), "{key}: {said}");
    }
    let (code, said) = check(
        "[service.x]\nlisten = [\"127.0.0.1:7\", \"unix:/run/x\"]\nhandler = \"echo\"\nsocket_mode = 0o660\n",
    );
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn abstract_names_are_listened_at() {
    let name = name("serve");
    let address = format!("unix:{name}");
    let server = Preforkd::serve(&["--workers", "1"], &address, &["--", "/usr/bin/env"]).start();
    assert_eq!(server.stdout.count(|line| line == format!("listening on {address}")), 1);
    assert_eq!(server.service()["listen"][0], address.as_str());
    let said = ask(&name, "").unwrap();
    assert!(said.lines().any(|line| line == format!("IPCLOCALPATH={name}")), "{said}");
    // Who has it is named.
    let second = Preforkd::serve(&[], &address, &["echo"]).start_unready();
    assert_eq!(second.ending(), "71");
    let holder = format!("cannot listen on {address}: it is in use by preforkd (pid {})", server.pid());
    second.log.wait("who has it", |line| line.contains(&holder));
    second.wait_empty();
    assert!(server.upgrade().status.success());
    assert!(ask(&name, "").is_ok());
    server.stop();
    assert!(ask(&name, "").is_err());
}

#[test]
fn an_abstract_name_comes_and_goes_by_reload() {
    let name = name("reload");
    let config = |listen: &str| {
        format!("[service.one]\nlisten = [{listen}]\nhandler = \"echo\"\nworkers = 1\nmax_connections = 1\n")
    };
    let both = format!("\"unix:DIR/service.sock\", \"unix:{name}\"");
    let server = Preforkd::run(&config(&both)).start();
    for _ in 0..3 {
        // Its worker has to wait for the end of this one, and the name is its until then.
        let held = local::Who { uid: own().0, gid: own().1, groups: &[] }.hold(&name);
        assert!(held.served);
        server.configure(&config("\"unix:DIR/service.sock\""));
        server.reload_ok();
        server.configure(&config(&both));
        server.reload_ok();
        drop(held);
        assert_eq!(ask(&name, "x\n"), Ok("x\n".into()));
    }
    server.configure(&config("\"unix:DIR/service.sock\""));
    server.reload_ok();
    eventually("the name is free", || ask(&name, "x\n").is_err());
}

#[test]
fn names_that_cannot_be_are_errors_and_one_that_everybody_reaches_is_warned_of() {
    let long = "x".repeat(108);
    for (name, why) in [("", "the name is missing"), (long.as_str(), "has 108 bytes"), ("a\\u0000b", "NUL")] {
        let (code, said) = check(&format!("[service.x]\nlisten = \"unix:@{name}\"\nhandler = \"echo\"\n"));
        assert!(code == Some(78) && said.contains(why), "{name}: {said}");
    }
    let twice = "[service.x]\nlisten = [\"unix:@x\", \"unix:@x\"]\nhandler = \"echo\"\n";
    assert!(check(twice).1.contains("listened on a second time"));
    let (code, said) = check("[service.x]\nlisten = \"unix:@x\"\nhandler = \"echo\"\n");
    assert!(
        code == Some(0) && said.contains(":2:10: warning: everybody on this machine may connect to unix:@x"),
        "{said}"
    );
    let (code, said) =
        check("[service.x]\nlisten = \"unix:@x\"\nhandler = \"echo\"\nallow = \"user:root\"\n");
    assert!(code == Some(0) && !said.contains("warning"), "{said}");
    let proxied = "proxy_protocol_from = \"unix:\"\nallow = \"192.0.2.0/24\"";
    let (code, said) = check(&format!("[service.x]\nlisten = \"unix:@x\"\nhandler = \"echo\"\n{proxied}\n"));
    assert!(code == Some(0) && said.contains("and name any address in a PROXY header"), "{said}");
}

#[test]
fn a_program_is_told_what_its_client_is_bound_to_as_systemd_does() {
    let server = Preforkd::serve(&[], "unix:DIR/service.sock", &["--", "/usr/bin/env"]).start();
    let dir = server.dir().to_owned();
    let told = |local: &str| {
        let said = ask_from(local, &socket(&server), "").unwrap();
        let of = |name: &str| {
            said.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).map(str::to_owned)
        };
        assert_eq!(of("REMOTE_PORT"), None);
        assert_eq!(of("REMOTE_ADDR"), of("IPCREMOTEPATH"), "{said}");
        of("REMOTE_ADDR")
    };
    let path = dir.join("client").display().to_string();
    assert_eq!(told(&path), Some(path.clone()));
    let name = name("client");
    assert_eq!(told(&name), Some(name.clone()));
    assert_eq!(told(""), None);
    // It could pass itself off as an address, or as an abstract name.
    let relative = "127.0.0.1";
    let said = crate::support::sure(&[
        "env",
        "-C",
        dir.to_str().unwrap(),
        "socat",
        "-",
        &format!("UNIX-CONNECT:service.sock,bind={relative}"),
    ]);
    assert!(!said.contains("REMOTE_ADDR=") && !said.contains("IPCREMOTEPATH="), "{said}");
}
