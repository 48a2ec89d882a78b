//! What a configuration needs from the machine.

use super::*;

#[test]
fn identities_are_resolved() {
    let own = nix::unistd::getuid().as_raw();
    for (keys, uid, gid, groups) in [
        ("user = \"alice\"", 1000, 1000, &[33, 44, 1000][..]),
        ("user = 1000", 1000, 1000, &[33, 44, 1000]),
        ("user = \"alice\"\ngroup = \"users\"", 1000, 100, &[33, 44, 100]),
        ("user = \"bob\"", 1001, 100, &[33, 100]),
        ("user = 4711\ngroup = 4712", 4711, 4712, &[4712]),
        ("group = \"www\"", own, 33, &[33]),
    ] {
        let place = Scratch::new();
        place.write("p.toml", &format!("[service.x]\nlisten = \"fd:x\"\nhandler = \"echo\"\n{keys}\n"));
        let user = place.config().services.remove(0).identity.user.unwrap();
        let mut groups = groups.to_vec();
        groups.sort_unstable();
        assert_eq!((user.uid, user.gid, user.groups), (uid, gid, groups), "{keys}");
    }
    assert!(complaint("user = 4711").contains("add group"));
}

#[test]
fn programs_are_looked_up_where_the_connection_process_will() {
    let place = Scratch::new();
    // A program that needs nothing: what runs this test, without its segments.
    let mut program = fs::read("/proc/self/exe").unwrap();
    program.truncate(64);
    program[56..58].fill(0);
    fs::create_dir_all(place.path().join("root/bin")).unwrap();
    fs::write(place.path().join("root/bin/tool"), program).unwrap();
    place.write("root/bin/data", "");
    fs::set_permissions(place.path().join("root/bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("/bin/tool", place.path().join("root/bin/link")).unwrap();
    std::os::unix::fs::symlink("/nonexistent/busybox", place.path().join("root/bin/dangling")).unwrap();
    let root = place.path().join("root").display().to_string();
    let with = |exec: &str, rest: &str| {
        place.write("p.toml", &format!("[service.x]\nlisten = \"fd:x\"\nexec = [\"{exec}\"]\n{rest}\n"));
        place.load().map(|loaded| match loaded.config.services[0].job.clone() {
            Job::Exec(program) => (program.path.display().to_string(), program.arguments[0].clone()),
            Job::Handler(_) => unreachable!(),
        })
    };
    let chroot = format!("chroot = \"{root}\"\nworking_directory = \"/bin\"");
    assert_eq!(with("tool", &chroot).unwrap(), ("/bin/tool".into(), "tool".into()));
    assert_eq!(with("/bin/link", &chroot).unwrap().0, "/bin/link");
    let path = format!("environment = {{ PATH = \"relative::{root}/bin\" }}");
    assert_eq!(with("tool", &path).unwrap().0, format!("{root}/bin/tool"));
    for (exec, rest, why) in [
        ("tool", "", "there is no program \"tool\" in PATH".to_owned()),
        (
            "/bin/nothing",
            &*chroot,
            format!("cannot run /bin/nothing inside chroot {root}: there is no such file"),
        ),
        ("/bin/data", &*chroot, "cannot run /bin/data inside chroot".to_owned()),
        ("/bin/dangling", &*chroot, "there is no such file".to_owned()),
        ("/bin", &*chroot, "it is a directory".to_owned()),
        ("./tool", "", "\"./tool\" is a relative path".to_owned()),
    ] {
        let shown = with(exec, rest).unwrap_err().to_string();
        assert!(shown.contains(&why), "{exec}: {shown}");
    }
}

/// Needs the packages git, rsync and tftpd-hpa, which tests/run installs.
#[test]
fn every_file_that_is_shipped_is_right() {
    let mut checked = 0;
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("config")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            match load(&path, &Tolerance::none(), &Machine::with(&preforkd())) {
                Ok(loaded) => {
                    assert!(!loaded.config.services.is_empty());
                    assert!(loaded.warnings.iter().next().is_none(), "{}", loaded.warnings);
                }
                // The suite unpacks it, and serves this file as it is.
                Err(problems) if path.ends_with("sshd.toml") && !Path::new("/usr/sbin/sshd").exists() => {
                    let said = problems.to_string();
                    assert!(said.contains("cannot run /usr/sbin/sshd") && said.contains("1 error"), "{said}");
                }
                Err(problems) => panic!("{problems}"),
            }
            checked += 1;
        }
    }
    assert!(checked >= 7, "{checked}");
}

/// What the default configuration shows as defaults and examples must be right, too.
#[test]
fn what_the_default_configuration_has_in_comments_is_right() {
    let shipped = include_str!("../../../config/preforkd.toml");
    let place = Scratch::new();
    // Of an either-or, and of a directory or groups that no machine has, the comment stays a comment.
    let is_code = |code: &str| {
        let is_key = code.split_once(" = ").is_some_and(|(key, _)| !key.trim().contains(' '));
        let either = ["handler", "options", "chroot", "refuse_message", "control_access"]
            .iter()
            .any(|key| code.starts_with(key));
        (is_key && !either) || code.starts_with('[')
    };
    let text: Vec<&str> = shipped
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|code| is_code(code)).unwrap_or(line))
        .collect();
    place.write("p.toml", &text.join("\n"));
    place.write("credentials/db.password", "secret");
    let config = place.config();
    let git = config.services.iter().find(|service| service.name == "git").unwrap();
    assert_eq!(config.supervisor.drain_timeout, Duration::from_secs(30));
    assert_eq!(git.limits.len(), 6);
}

#[test]
fn control_access_has_the_ids_of_this_machine() {
    let place = Scratch::new();
    let service = "[service.x]\nlisten = \"127.0.0.1:7\"\nhandler = \"echo\"\n";
    let written = |access: &str| {
        place.write("p.toml", &format!("[supervisor]\ncontrol_access = {access}\n{service}"));
    };
    written("{ user = \"alice\", look = 100, act = \"www\" }");
    let access = place.config().supervisor.control_access;
    let ids = [access.user, access.look, access.act].map(|account| account.map(|account| account.id));
    assert_eq!(ids, [Some(1000), Some(100), Some(33)]);
    written("{}");
    assert_eq!(place.config().supervisor.control_access, ControlAccess::default());
    for (access, said) in [
        ("{ look = \"wwww\" }", "did you mean \"www\"?"),
        ("{ group = \"www\" }", "unknown key \"group\" in control_access"),
        ("\"www\"", "where a table is expected"),
        ("{ act = \"nogroup\" }", "whom it does not know"),
    ] {
        written(access);
        assert!(place.complaints().contains(said), "{access}: {}", place.complaints());
    }
}

/// One address for two is an error, by whatever way it is one; a port that the kernel chooses is another for each service.
#[test]
fn no_two_have_one_address() {
    let place = Scratch::new();
    fs::create_dir(place.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", place.path().join("link")).unwrap();
    let check = |control: &str, one: &str, two: &str| {
        let service =
            |name: &str, listen: &str| format!("[service.{name}]\nlisten = {listen}\nhandler = \"echo\"\n");
        let text = format!(
            "[supervisor]\ncontrol_socket = \"{control}\"\n{}{}",
            service("one", one),
            service("two", two)
        );
        place.write("p.toml", &text.replace("DIR", &place.path().display().to_string()));
        place.load().err().map(|problems| problems.to_string()).unwrap_or_default()
    };
    assert_eq!(check("DIR/control", "\"127.0.0.1:0\"", "\"127.0.0.1:0\""), "");
    assert_eq!(check("DIR/control", "[\"*:0\", \"127.0.0.1:0\"]", "\"unix:DIR/real/s\""), "");
    for (control, one, two, complaint) in [
        (
            "DIR/control",
            "[\"127.0.0.1:0\", \"127.0.0.1:0\"]",
            "\"*:0\"",
            "127.0.0.1:0 is listened on a second time",
        ),
        ("DIR/control", "\"unix:DIR/link/s\"", "\"unix:DIR/real/s\"", "overlaps with unix:"),
        ("DIR/control", "\"unix:DIR/real/../real/s\"", "\"unix:DIR/real/s\"", "overlaps with unix:"),
        ("DIR/link/s", "\"unix:DIR/real/s\"", "\"*:0\"", "it is the control socket of preforkd itself"),
    ] {
        let said = check(control, one, two);
        assert!(said.contains(complaint), "{control} {one} {two}: {said}");
    }
}
