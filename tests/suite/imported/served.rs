//! What is imported serves: the printed text is given to `run` as it is.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{files, import};
use crate::support::address::port;
use crate::support::client::{connect, exchange, exchange_unix, listen_to};
use crate::support::{Preforkd, eventually, preforkd, root, text};

#[test]
fn four_formats_serve_as_they_are_printed() {
    if !root("four_formats_serve_as_they_are_printed") {
        return;
    }
    let ports: Vec<u16> = (0..5).map(|_| port()).collect();
    let directory = files(&[
        (
            "inetd.conf",
            &format!(
                "127.0.0.1:{} stream tcp nowait nobody /bin/sh sh -c cat;pwd>&2\n127.0.0.1:daytime stream tcp nowait root internal\n",
                ports[0]
            ),
        ),
        ("etc/services", &format!("daytime {}/tcp\n", ports[1])),
        (
            "xinetd.d/upper",
            &format!(
                "service upper\n{{\n type = UNLISTED\n port = {}\n bind = 127.0.0.1\n socket_type = stream\n wait = no\n user = nobody\n \
                 server = /usr/bin/tr\n server_args = a-z A-Z\n only_from = 127.0.0.1\n env = LC_ALL=C\n}}\n",
                ports[2]
            ),
        ),
        (
            "units/who.socket",
            &format!(
                "[Socket]\nListenStream=127.0.0.1:{}\nListenStream=/DIR/who\nSocketMode=0600\nAccept=yes\n",
                ports[3]
            ),
        ),
        (
            "units/who@.service",
            "[Service]\nExecStart=-/bin/sh -c \"echo $$WHO is $$(id -un)\"\nStandardInput=socket\nUser=nobody\nEnvironment=WHO=this\n",
        ),
        (
            "reverse/run",
            &format!(
                "#!/bin/sh\nexec 2>&1\nexec setuidgid nobody tcpserver -RHl0 -c 5 127.0.0.1 {} rev\n",
                ports[4]
            ),
        ),
    ]);
    // For connection processes that are somebody else.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let unit = directory.path().join("units/who.socket");
    let whole = std::fs::read_to_string(&unit).unwrap().replace("/DIR", directory.path().to_str().unwrap());
    std::fs::write(&unit, whole).unwrap();
    let mut config = String::new();
    for path in ["inetd.conf", "xinetd.d", "units", "reverse"] {
        let output = import(directory.path(), &[], path);
        assert_eq!(output.status.code(), Some(0), "{path}: {}", text(&output.stderr));
        config.push_str(&text(&output.stdout));
    }
    let checked = import(directory.path(), &["--check"], "units");
    assert_eq!(checked.status.code(), Some(0), "{}{}", text(&checked.stdout), text(&checked.stderr));
    let _preforkd = Preforkd::run(&config).start();
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    assert_eq!(text(&exchange(at(ports[2]), b"abc\n")), "ABC\n");
    assert_eq!(listen_to(at(ports[3])), "this is nobody\n");
    assert_eq!(text(&exchange_unix(&directory.path().join("who"), b"")), "this is nobody\n");
    assert_eq!(text(&exchange(at(ports[4]), b"abc\n")), "cba\n");
    // What a program says to stderr is the client's, as inetd has it.
    assert_eq!(text(&exchange(at(ports[0]), b"abc\n")), "abc\n/\n");
    assert!(!listen_to(at(ports[1])).is_empty());
}

#[test]
fn check_says_what_this_machine_does_not_have() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = taken.local_addr().unwrap().port();
    let free = port();
    let line = |port: u16, user: &str, program: &str| {
        format!("127.0.0.1:{port} stream tcp nowait {user} {program} x\n")
    };
    let check = |content: &str| {
        let directory = files(&[("inetd.conf", content)]);
        let output = import(directory.path(), &["--check"], "inetd.conf");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, said, complained) = check(&line(free, "root", "/bin/cat"));
    if nix::unistd::geteuid().is_root() {
        assert_eq!(
            (code, said.as_str()),
            (Some(0), "1 service: this machine would serve all of them\n"),
            "{complained}"
        );
    }
    let (code, said, complained) = check(&line(number, "root", "/bin/cat"));
    assert_eq!(code, Some(78), "{said}{complained}");
    assert!(complained.contains("in use by ") && complained.contains("stop that first"), "{complained}");
    for (line, part) in [
        (line(free, "nobody-at-all", "/bin/cat"), "\"nobody-at-all\" is no user of this machine"),
        (line(free, "root", "/nonexistent/program"), "/nonexistent/program"),
    ] {
        let (code, said, complained) = check(&line);
        assert_eq!(code, Some(78), "{said}");
        assert!(complained.contains(part) && said.contains("would not serve"), "{complained}{said}");
    }
    // Nothing was started, and nobody listens.
    assert!(TcpListener::bind(("127.0.0.1", free)).is_ok());
}

#[test]
fn includes_are_found_below_the_root_and_come_to_an_end() {
    let service = |name: &str| {
        format!(
            "service {name}\n{{\n type = UNLISTED\n port = 7\n socket_type = stream\n wait = no\n user = root\n server = /bin/{name}\n}}\n"
        )
    };
    let directory = files(&[
        (
            "etc/xinetd.conf",
            "defaults\n{\n instances = 3\n}\ninclude /etc/xinetd.conf\ninclude /etc/more\nincludedir /etc/xinetd.d\nincludedir /nowhere\n",
        ),
        ("etc/more", &format!("include /etc/xinetd.conf\n{}", service("more"))),
        ("etc/xinetd.d/one", &service("one")),
        ("etc/xinetd.d/two.bak", &service("two")),
        ("etc/xinetd.d/three~", &service("three")),
    ]);
    std::os::unix::fs::symlink("/", directory.path().join("etc/xinetd.d/root")).unwrap();
    let output = import(directory.path(), &[], "etc/xinetd.conf");
    let printed = text(&output.stdout);
    assert!(printed.contains("service.more]") && printed.contains("service.one]"), "{printed}");
    assert!(!printed.contains("/bin/two") && !printed.contains("/bin/three"), "{printed}");
    assert!(text(&output.stderr).contains("include of /nowhere"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn drop_ins_and_rules_of_libwrap_count() {
    let directory = files(&[
        ("x.socket", "[Socket]\nListenStream=7\nAccept=yes\n"),
        ("x.socket.d/50.conf", "[Socket]\nListenStream=\nListenStream=127.0.0.1:77\n"),
        ("x@.service", "[Service]\nExecStart=/bin/false\nStandardInput=socket\n"),
        ("x@.service.d/a.conf", "[Service]\nExecStart=\nExecStart=/bin/cat\nUser=nobody\n"),
        ("y.socket", "[Socket]\nListenStream=9\n"),
        ("inetd.conf", "finger stream tcp nowait nobody /usr/sbin/tcpd in.fingerd\n"),
        ("hosts.deny", "ALL: ALL\n"),
    ]);
    let output = import(directory.path(), &[], "x.socket");
    let printed = text(&output.stdout);
    assert!(
        printed.contains("\nlisten = [\"127.0.0.1:77\"]") && printed.contains("\nexec = [\"/bin/cat\"]"),
        "{printed}"
    );
    // Its service names the socket, too; of the other the service is missing.
    assert_eq!(
        text(&import(directory.path(), &[], "x@.service").stdout).lines().skip(1).collect::<Vec<_>>(),
        printed.lines().skip(1).collect::<Vec<_>>()
    );
    let other = import(directory.path(), &[], "y.socket");
    assert!(text(&other.stderr).contains("y.service was not found"), "{}", text(&other.stderr));
    let wrapped = import(directory.path(), &[], "inetd.conf");
    assert_eq!(wrapped.status.code(), Some(78));
    assert!(text(&wrapped.stdout).contains("\n#[service.finger]"), "{}", text(&wrapped.stdout));
    assert!(text(&wrapped.stderr).contains("PROTECTION LOST: rules of tcpd"), "{}", text(&wrapped.stderr));
}

#[test]
fn a_path_that_is_nothing_of_it_is_a_mistake_of_the_command_line() {
    let directory = files(&[
        ("prose", "Dear all,\nservices end today.\n"),
        ("empty", ""),
        ("x@.service", "[Service]\n"),
        ("zero", "a\0b"),
    ]);
    for name in ["prose", "empty", "x@.service", "zero", "missing"] {
        let output = import(directory.path(), &[], name);
        assert_eq!(output.status.code(), Some(64), "{name}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty() && text(&output.stderr).contains(name), "{name}");
    }
    assert_eq!(preforkd(&["import"]).status.code(), Some(64));
    let forced = import(directory.path(), &["--format", "inetd"], "prose");
    assert_eq!(forced.status.code(), Some(78), "{}", text(&forced.stderr));
}

#[test]
fn what_socat_has_served_is_served_the_same() {
    if !root("what_socat_has_served_is_served_the_same") {
        return;
    }
    let [upper, terminal, elsewhere] = [port(), port(), port()];
    let listen = |port: u16| format!("socat TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork");
    let script = format!(
        "#!/bin/bash\ncd /\n{} EXEC:'sed -u y/abc/ABC/',su=nobody &\n\
         {} SYSTEM:'tty -s && id -un; read x; echo got $x',pty,stderr,echo=0,su=nobody &\n\
         {} TCP4:127.0.0.1:{upper} 2>&1 &\nwait\n",
        listen(upper),
        listen(terminal),
        listen(elsewhere),
    );
    let directory = files(&[("moved.sh", &script)]);
    // Without an end of a half, after which socat waits half a second only.
    let answers = || {
        [upper, terminal, elsewhere].map(|port| {
            let mut client = BufReader::new(connect((Ipv4Addr::LOCALHOST, port).into()));
            client.get_mut().write_all(b"abcd\n").unwrap();
            let lines = if port == terminal { 2 } else { 1 };
            let mut said = String::new();
            for _ in 0..lines {
                client.read_line(&mut said).unwrap();
            }
            said
        })
    };
    let wanted = ["ABCd\n", "nobody\r\ngot abcd\r\n", "ABCd\n"];
    let mut before =
        Command::new("bash").arg(directory.path().join("moved.sh")).process_group(0).spawn().unwrap();
    let is_there = |port| std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    eventually("socat listens", || [upper, terminal, elsewhere].into_iter().all(is_there));
    assert_eq!(answers(), wanted, "by socat");
    killpg(Pid::from_raw(before.id() as i32), Signal::SIGKILL).unwrap();
    before.wait().unwrap();

    let output = import(directory.path(), &[], "moved.sh");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let _server = Preforkd::run(&text(&output.stdout)).start();
    assert_eq!(answers(), wanted, "by preforkd");
}
