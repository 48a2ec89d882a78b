//! What a program finds that preforkd execs: environment, descriptors, signals, identity, limits.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::support::client::{connect, exchange, exchange_unix, finish, listen_to};
use crate::support::{Preforkd, address, root, sure, text, write};

/// What `env` printed.
fn environment(printed: &str) -> BTreeMap<&str, &str> {
    printed.lines().map(|line| line.split_once('=').unwrap()).collect()
}

/// The value of `Name:` in what a program printed from /proc/self/status.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in:\n{status}"))[name.len() + 1..].trim()
}

/// The answer of a service that runs this program under these keys.
fn answer(program: &str, keys: &str) -> String {
    let address = address::fresh();
    let server = Preforkd::run(&service(address, program, keys)).start();
    let answer = listen_to(address);
    drop(server);
    answer
}

fn service(address: SocketAddr, program: &str, keys: &str) -> String {
    format!("[service.prog]\nlisten = [\"{address}\"]\nexec = {program}\n{keys}\n")
}

#[test]
fn argv0_is_the_zeroth_argument_and_only_that() {
    for more in ["", "spare = 1", "count_bytes = false"] {
        let keys = format!("workers = 1\nargv0 = \"other name\"\n{more}");
        let printed = answer(r#"["/bin/cat", "/proc/self/cmdline"]"#, &keys);
        assert_eq!(printed, "other name\0/proc/self/cmdline\0", "{more}");
    }
}

/// What sd_listen_fds(3) looks at, and what else is open.
const LISTENER: &str = "import os, socket, sys\n\
    s = socket.socket(fileno=3)\n\
    own = os.environ['LISTEN_PID'] == str(os.getpid())\n\
    said = [own, os.environ['LISTEN_FDS'], os.environ['LISTEN_FDNAMES'], os.get_inheritable(3), s.getblocking(),\n\
        \x20   os.readlink('/proc/self/fd/0'), sorted(int(n) for n in os.listdir('/proc/self/fd') if int(n) < 4)]\n\
    print('to stdout', flush=True)\n\
    line = s.makefile().readline()\n\
    s.sendall((repr(said) + line).encode())\n";

#[test]
fn a_program_that_wants_it_gets_its_connection_as_systemd_passes_it() {
    for more in ["", "spare = 1", "count_bytes = false", "user = \"nobody\""] {
        if more.contains("user") && !root("another user") {
            continue;
        }
        let address = address::fresh();
        let keys = format!("workers = 1\nconnection = \"listen-fds\"\n{more}");
        let program = "[\"/usr/bin/python3\", \"DIR/program.py\"]";
        let server = Preforkd::run(&service(address, program, &keys)).script("program.py", LISTENER).start();
        let said = text(&exchange(address, b"hello\n"));
        let wanted = "[True, '1', 'connection', True, True, '/dev/null', [0, 1, 2, 3]]hello\n";
        assert_eq!(said, wanted, "{more}");
        server.log.wait("its stdout is its stderr", |line| line.ends_with("to stdout"));
    }
}

#[test]
fn a_user_brings_what_a_login_has_and_files_and_environment_win() {
    if !root("another user") {
        return;
    }
    let address = address::fresh();
    let keys = "user = \"www-data\"\nenvironment_file = [\"DIR/first\", \"DIR/second\", \"-DIR/none\"]\n\
                environment = { C = \"own\", LOGNAME = \"other\" }";
    let server = Preforkd::run(&service(address, "[\"/usr/bin/env\"]", keys))
        .script("first", "# secrets\nA='one two'\nB=first\nC=first\n")
        .script("second", "B=second\nHOME=/elsewhere")
        .start();
    let printed = text(&exchange(address, b""));
    let found = environment(&printed);
    for (name, value) in [
        ("USER", "www-data"),
        ("LOGNAME", "other"),
        ("HOME", "/elsewhere"),
        ("A", "one two"),
        ("B", "second"),
        ("C", "own"),
    ] {
        assert_eq!(found.get(name), Some(&value), "{name}: {printed}");
    }
    // Its shell is nologin.
    assert!(!found.contains_key("SHELL"), "{printed}");
    // What a file says counts from the next reload on.
    crate::support::write(&server.dir().join("second"), "B=third\n");
    server.reload_ok();
    let printed = text(&exchange(address, b""));
    let found = environment(&printed);
    assert_eq!((found.get("B"), found.get("HOME")), (Some(&"third"), Some(&"/var/www")), "{printed}");
    // A fault names the file and the line, and no value.
    crate::support::write(&server.dir().join("second"), "B=x\nwrong secret\n");
    let output = server.reload();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78));
    assert!(said.contains("/second, line 2") && !said.contains("secret"), "{said}");
    assert_eq!(environment(&text(&exchange(address, b""))).get("B"), Some(&"third"));
}

#[test]
fn tcpd_runs_the_program_of_argv0() {
    let printed = answer(r#"["/usr/sbin/tcpd", "hello"]"#, "argv0 = \"/bin/echo\"");
    assert_eq!(printed, "hello\n");
}

#[test]
fn the_environment_over_tcp_is_built_from_nothing() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let server = Preforkd::serve(&[], listen, &["--", "/usr/bin/env"]).env("SECRET", "leaked").start();
        let stream = connect(server.address());
        let (client, service) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let printed = text(&finish(stream, b""));
        let mut environment = environment(&printed);
        let id = environment.remove("PREFORKD_CONNECTION").unwrap();
        assert!(!id.is_empty());
        assert!(!environment.remove("PREFORKD_SERVICE").unwrap().is_empty());
        assert!(environment.remove("PATH").unwrap().contains("/usr/bin"));
        let (client_ip, client_port) = (client.ip().to_string(), client.port().to_string());
        let (service_ip, service_port) = (service.ip().to_string(), service.port().to_string());
        let expected = BTreeMap::from([
            ("PROTO", "TCP"),
            ("TCPREMOTEIP", &*client_ip),
            ("TCPREMOTEPORT", &*client_port),
            ("TCPLOCALIP", &*service_ip),
            ("TCPLOCALPORT", &*service_port),
            ("REMOTE_ADDR", &*client_ip),
            ("REMOTE_PORT", &*client_port),
        ]);
        assert_eq!(environment, expected);
    }
}

#[test]
fn the_environment_over_a_unix_socket_names_the_peer() {
    let server = Preforkd::serve(&[], "unix:DIR/service.sock", &["--", "/usr/bin/env"]).start();
    let path = server.dir().join("service.sock");
    let printed = text(&exchange_unix(&path, b""));
    let environment = environment(&printed);
    let pid = std::process::id().to_string();
    let (uid, gid) = (nix::unistd::geteuid().to_string(), nix::unistd::getegid().to_string());
    for (name, value) in [
        ("PROTO", "IPC"),
        ("IPCLOCALPATH", path.to_str().unwrap()),
        ("IPCREMOTEPID", &pid),
        ("IPCREMOTEEUID", &uid),
        ("IPCREMOTEEGID", &gid),
    ] {
        assert_eq!(environment.get(name), Some(&value), "{name} in {printed}");
    }
    assert_eq!(environment.get("IPCREMOTEPATH").copied().unwrap_or(""), "", "the client has no path");
    assert!(
        environment.keys().all(|name| !name.starts_with("TCP") && !name.starts_with("REMOTE")),
        "{printed}"
    );
}

#[test]
fn environment_adds_and_may_change_the_path() {
    let printed = answer(
        r#"["/usr/bin/env"]"#,
        "environment = { LANG = \"C.UTF-8\", PATH = \"/opt/bin\", A = \"b=c d\" }",
    );
    let environment = environment(&printed);
    assert_eq!(
        (environment["LANG"], environment["PATH"], environment["A"]),
        ("C.UTF-8", "/opt/bin", "b=c d")
    );
    assert_eq!(environment["PREFORKD_SERVICE"], "prog");
}

#[test]
fn every_connection_has_an_id_of_its_own() {
    let server =
        Preforkd::serve(&["--workers", "2"], "127.0.0.1:0", &["--", "printenv", "PREFORKD_CONNECTION"])
            .start();
    let ids: std::collections::BTreeSet<String> = (0..20).map(|_| listen_to(server.address())).collect();
    assert_eq!(ids.len(), 20, "{ids:?}");
}

/// Descriptors 0, 1 and 2, and the directory that `ls` reads them from.
#[track_caller]
fn no_more_than_three(listing: &str) {
    let mut numbers: Vec<&str> = Vec::new();
    for line in listing.lines().filter(|line| line.contains("->")) {
        let (left, target) = line.split_once(" -> ").unwrap();
        let number = left.rsplit(' ').next().unwrap();
        match number {
            "0" | "1" => assert!(target.starts_with("socket:"), "{line}"),
            "2" => {}
            _ => assert!(target.starts_with("/proc/"), "{line}"),
        }
        numbers.push(number);
    }
    assert_eq!(numbers, ["0", "1", "2", "3"], "{listing}");
}

#[test]
fn a_program_has_its_three_descriptors_and_no_other() {
    let ls = &["--", "/bin/ls", "-l", "/proc/self/fd"];
    let server = Preforkd::serve(&[], "127.0.0.1:0", ls).start();
    no_more_than_three(&listen_to(server.address()));
    // Also not those that whoever started the supervisor forgot to close.
    let server = Preforkd::serve(&[], "127.0.0.1:0", ls)
        .after("exec 3</etc/passwd 4<&3 7<&3 9>/dev/null")
        .under(&["bash", "-c", "exec 200</etc/passwd; exec \"$@\"", "bash"])
        .start();
    no_more_than_three(&listen_to(server.address()));
}

#[test]
fn other_connections_and_the_listener_are_not_among_a_handlers_descriptors() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    let mut streams: Vec<_> = (0..3).map(|_| connect(server.address())).collect();
    for stream in &mut streams {
        crate::support::client::echo(stream, b"x");
    }
    let inode = crate::support::proc::listeners(server.address())[0];
    let connections = server.connections();
    assert_eq!(connections.len(), 3, "{connections:?}");
    let mut seen = std::collections::HashSet::new();
    for process in connections {
        let descriptors = crate::support::proc::descriptors(process.pid);
        let sockets: Vec<String> = descriptors
            .iter()
            .filter(|(number, _)| *number != 2)
            .map(|(_, path)| path.display().to_string())
            .filter(|path| path.starts_with("socket:"))
            .collect();
        assert!(!sockets.contains(&format!("socket:[{inode}]")), "it has the listener: {descriptors:?}");
        let own: std::collections::HashSet<_> = sockets.into_iter().collect();
        assert_eq!(own.len(), 1, "a connection process has more than its connection: {descriptors:?}");
        seen.extend(own);
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn signals_are_at_their_defaults_and_none_is_blocked() {
    let cat = &["--", "/bin/cat", "/proc/self/status"];
    let plain = Preforkd::serve(&[], "127.0.0.1:0", cat);
    // As after nohup(1), in a careless script, or under a service manager with masks of its own.
    let careless = Preforkd::serve(&[], "127.0.0.1:0", cat).under(&[
        "env",
        "--ignore-signal=HUP,PIPE,USR1,QUIT",
        "--block-signal=TERM,INT,CHLD,USR2,RTMIN",
    ]);
    for server in [plain, careless] {
        let server = server.start();
        let status = listen_to(server.address());
        for name in ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"] {
            assert_eq!(field(&status, name), "0000000000000000", "{name}");
        }
    }
}

#[test]
fn a_program_that_is_a_script_finds_the_same() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["--", "DIR/look", "an argument"]).script(
        "look",
        "#!/bin/sh\necho \"$# $1\"; echo \"$PROTO $TCPREMOTEIP\"; cat /proc/self/status; ls -l /proc/self/fd\n",
    );
    let server = server.start();
    let said = listen_to(server.address());
    assert!(said.starts_with("1 an argument\nTCP 127.0.0.1\n"), "{said}");
    assert_eq!((field(&said, "SigBlk"), field(&said, "SigIgn")), ("0000000000000000", "0000000000000000"));
    no_more_than_three(&said);
}

#[test]
fn a_program_leads_a_process_group_of_its_own() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["--", "/bin/cat", "/proc/self/stat"]).start();
    let stat = listen_to(server.address());
    let fields: Vec<&str> = stat.split(' ').collect();
    assert_eq!(fields[0], fields[4], "pid and process group: {stat}");
}

#[test]
fn the_connection_blocks() {
    // A write larger than every buffer ends in EAGAIN on a descriptor that does not block.
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["--", "head", "-c", "20000000", "/dev/zero"]).start();
    let stream = connect(server.address());
    std::thread::sleep(crate::support::A_WHILE); // the buffers fill up
    assert_eq!(finish(stream, b"").len(), 20_000_000);
}

#[test]
fn limits_are_set_hard_and_soft() {
    let said = answer(
        r#"["/bin/cat", "/proc/self/limits"]"#,
        "limits = { nofile = 64, core = 0, as = \"1G\", cpu = 7, nproc = 1234, fsize = \"10M\" }",
    );
    for (name, value) in [
        ("Max open files", "64"),
        ("Max core file size", "0"),
        ("Max address space", "1073741824"),
        ("Max cpu time", "7"),
        ("Max processes", "1234"),
        ("Max file size", "10485760"),
    ] {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        let values: Vec<&str> = line[name.len()..].split_whitespace().take(2).collect();
        assert_eq!(values, [value, value], "{line}");
    }
}

#[test]
fn working_directory_umask_and_nice() {
    let script = r#"["/bin/sh", "-c", "pwd; umask; nice"]"#;
    let keys = "working_directory = \"/usr/lib\"\numask = \"027\"\nnice = 5";
    assert_eq!(answer(script, keys), "/usr/lib\n0027\n5\n");
    assert_eq!(answer(script, ""), "/\n0022\n0\n");
}

#[test]
fn user_and_group_with_all_that_belongs_to_them() {
    if !root("user and group") {
        return;
    }
    let status = answer(r#"["/bin/cat", "/proc/self/status"]"#, "user = \"nobody\"");
    let (uid, gid) = (sure(&["id", "-u", "nobody"]), sure(&["id", "-g", "nobody"]));
    assert_eq!(field(&status, "Uid"), [uid.trim(); 4].join("\t"));
    assert_eq!(field(&status, "Gid"), [gid.trim(); 4].join("\t"));
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }

    let status = answer(r#"["/bin/cat", "/proc/self/status"]"#, "user = \"nobody\"\ngroup = \"daemon\"");
    assert_eq!(field(&status, "Uid"), [uid.trim(); 4].join("\t"));
    assert_eq!(field(&status, "Gid"), "1\t1\t1\t1");
}

#[test]
fn supplementary_groups_are_the_users_own() {
    if !root("supplementary groups") {
        return;
    }
    let address = address::fresh();
    let config = service(address, r#"["/bin/cat", "/proc/self/status"]"#, "user = \"nobody\"");
    let server = Preforkd::run(&config);
    let group = std::fs::read_to_string("/etc/group").unwrap();
    write(
        &server.dir().join("group"),
        &format!("{group}one:x:61001:nobody\nother:x:61002:daemon\ntwo:x:61003:daemon,nobody\n"),
    );
    let server = server
        .after_mounts("mount --bind DIR/group /etc/group")
        .under(&["setpriv", "--groups", "4,5"])
        .start();
    let status = listen_to(address);
    drop(server);
    let gid = sure(&["id", "-g", "nobody"]);
    let mut groups: Vec<&str> =
        field(&status, "Groups").split_whitespace().filter(|g| *g != gid.trim()).collect();
    groups.sort_unstable();
    assert_eq!(groups, ["61001", "61003"]);
}

#[test]
fn chroot_and_what_is_inside() {
    if !root("chroot") {
        return;
    }
    let address = address::fresh();
    let keys = "chroot = \"DIR/jail\"\nuser = \"nobody\"\nworking_directory = \"/inside\"";
    let config = service(
        address,
        r#"["/bin/busybox", "sh", "-c", "pwd; echo /*; id -u; ls -l /proc /dev/null"]"#,
        keys,
    );
    let server = Preforkd::run(&config);
    let jail = server.dir().join("jail");
    for dir in ["bin", "inside"] {
        std::fs::create_dir_all(jail.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", jail.join("bin/busybox")).expect("package busybox-static");
    let server = server.start();
    let said = listen_to(address);
    drop(server);
    let uid = sure(&["id", "-u", "nobody"]);
    assert_eq!(said, format!("/inside\n/bin /inside\n{uid}"));
}

#[test]
fn stderr_goes_where_the_configuration_says() {
    let program = r#"["/bin/sh", "-c", "echo to the client; echo to stderr >&2; readlink /proc/$$/fd/2"]"#;
    for (stderr, target) in [("log", None), ("inherit", None), ("null", Some("/dev/null"))] {
        let address = address::fresh();
        let server = Preforkd::run(&service(address, program, &format!("stderr = \"{stderr}\""))).start();
        let said = listen_to(address);
        assert!(said.starts_with("to the client\n"), "{stderr}: {said}");
        if let Some(target) = target {
            assert_eq!(said.lines().nth(1), Some(target));
        }
        if stderr == "null" {
            server.log.wait("record of the connection", |line| line.contains("exited 0"));
            assert_eq!(server.log.count(|line| line.contains("to stderr")), 0);
        } else {
            let line = server.log.wait("line of stderr", |line| line.contains("to stderr"));
            assert_eq!(line == "to stderr", stderr == "inherit", "{stderr}: {line}");
        }
    }
}

#[test]
fn a_line_on_stderr_is_a_record_of_its_connection() {
    let script = "echo \"$PREFORKD_CONNECTION\"; echo one line >&2; printf 'without an end' >&2";
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["--", "sh", "-c", script]).start();
    let id = listen_to(server.address());
    for part in ["one line", "without an end"] {
        let record = server.log.wait(part, |line| line.contains(part));
        assert!(record.contains(id.trim()), "no {id} in {record}");
    }
}

#[test]
fn a_program_found_by_its_name_keeps_the_name() {
    let server =
        Preforkd::serve(&[], "127.0.0.1:0", &["--", "sh", "-c", "tr '\\0' ' ' < /proc/$$/cmdline"]).start();
    assert!(listen_to(server.address()).starts_with("sh -c "));
}

#[test]
fn a_program_that_closes_its_connection_ends_it_if_nobody_counts() {
    let program = "echo bye; exec >/dev/null </dev/null; exec sleep 1000";
    let options = ["--count-bytes", "false", "--drain-timeout", "100ms"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["--", "/bin/sh", "-c", program]).start();
    assert_eq!(listen_to(server.address()), "bye\n");
    assert_eq!(server.count("active"), 1);
}
