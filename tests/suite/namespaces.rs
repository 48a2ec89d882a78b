//! `private_tmp`, `network_namespace` and `pid_namespace`, seen from inside and from outside; as root, and as a user without rights.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::client::{closed, connect, exchange, listen_to, try_echo};
use crate::support::{Preforkd, Running, address, eventually, proc, root, text};

/// Which of a test's two preforkds this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Root,
    /// Who makes a namespace of users first.
    User(u32),
}

impl By {
    fn run(self, config: &str) -> Preforkd {
        match self {
            By::Root => Preforkd::run(config),
            By::User(number) => Preforkd::run(config).by_user(number, 200),
        }
    }
}

/// A service whose program is this shell script.
fn program(script: &str, keys: &str) -> (String, SocketAddr) {
    let at = address::fresh();
    let config = format!(
        "[service.x]\nlisten = \"{at}\"\nworkers = 1\nexec = ['/bin/sh', '-c', '{script}']\nstderr = \"connection\"\n{keys}\n"
    );
    (config, at)
}

fn lines(stream: &TcpStream) -> impl Iterator<Item = String> + use<> {
    BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok)
}

#[test]
fn a_private_tmp_is_the_services_own_and_of_one_worker() {
    if !root("a user without rights") {
        return;
    }
    for (by, keys) in [
        (By::Root, ""),
        (By::Root, "spare = 1\n"),
        (By::Root, "user = 4711\ngroup = 4711\n"),
        (By::User(301), ""),
        (By::User(302), "spare = 1\n"),
    ] {
        let script = "for d in /tmp /var/tmp; do echo $d: $(ls -A $d); echo x >$d/$$-private; done; \
                      head -c 5M /dev/zero >/tmp/big; stat -c %s /tmp/big; rm /tmp/big";
        let (config, at) = program(script, &format!("{keys}sandbox = {{ private_tmp = \"2M\" }}"));
        let server = by.run(&config).start();
        let first = listen_to(at);
        assert!(first.starts_with("/tmp:\n/var/tmp:\n"), "{by:?}: {first}");
        assert!(first.contains("No space left on device\n20"), "{by:?}: {first}");
        // The next finds what the one before has left, and nobody else does.
        let second = listen_to(at);
        assert!(second.contains("/tmp: ") && second.matches("-private").count() == 2, "{by:?}: {second}");
        let outside = |directory| std::fs::read_dir(directory).unwrap().flatten();
        for entry in outside("/tmp").chain(outside("/var/tmp")) {
            assert!(!entry.file_name().to_string_lossy().ends_with("-private"), "{entry:?}");
        }
        let in_force = server.service()["sandbox"].to_string();
        assert!(in_force.contains("/tmp and /var/tmp of its own, of 2048 KiB each"), "{in_force}");
        server.replace_worker(server.worker());
        assert!(listen_to(at).starts_with("/tmp:\n/var/tmp:\n"));
    }
}

#[test]
fn a_private_tmp_is_inside_a_chroot_and_leads_nowhere_outside() {
    if !root("chroot") {
        return;
    }
    let at = address::fresh();
    let config = format!(
        "[service.x]\nlisten = \"{at}\"\nworkers = 1\nexec = ['/bin/busybox', 'sh', '-c', 'for d in /tmp /var/tmp; do echo x >$d/private; done; echo /*/private /*/*/private']\n\
         stderr = \"connection\"\nchroot = \"DIR/root\"\nsandbox = {{ private_tmp = true }}\n"
    );
    let inside = |made: &str| {
        let prepared = "mkdir -p DIR/root/bin DIR/outside; cp /bin/busybox DIR/root/bin";
        Preforkd::run(&config).after(&format!("{prepared}; {made}"))
    };
    for (made, found) in [
        ("mkdir -p DIR/root/tmp DIR/root/var/tmp", "/tmp/private /var/tmp/private\n"),
        (
            "mkdir -p DIR/root/tmp",
            "can't create /var/tmp/private: nonexistent directory\n/tmp/private /*/*/private\n",
        ),
    ] {
        let server = inside(made).start();
        assert!(listen_to(at).ends_with(found), "{}", listen_to(at));
        for place in ["root/tmp/private", "root/var/tmp/private"] {
            assert!(!server.dir().join(place).exists(), "{made}: {place}");
        }
    }
    for (made, why) in [
        ("mkdir -p DIR/root/var/tmp; ln -s DIR/outside DIR/root/tmp", "/tmp in "),
        ("mkdir -p DIR/root/tmp; ln -s DIR/outside DIR/root/var", "/var/tmp in "),
        ("true", "has no directory for temporary files"),
    ] {
        let server = inside(made).start_unready();
        server.log.wait("why", |line| line.contains(why));
        assert_eq!(server.ending(), "71");
        server.wait_empty();
    }
}

/// What perl says of a call.
fn perl(what: &str) -> String {
    format!(r#"perl -MSocket -e "{}" "#, what.replace('$', "\\$"))
}

#[test]
fn a_network_namespace_has_nobody_in_it() {
    if !root("a user without rights") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = format!("preforkd-test-{}", std::process::id());
    let hidden = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _hidden = std::os::unix::net::UnixListener::bind_addr(&hidden).unwrap();
    let to_port = format!("sockaddr_in({port}, inet_aton(q(127.0.0.1)))");
    let script = [
        perl(&format!("socket($s, AF_INET, SOCK_STREAM, 0); connect($s, {to_port}) and print qq(called\\n)")),
        perl(&format!("socket($s, AF_INET, SOCK_DGRAM, 0); send($s, q(x), 0, {to_port}) and print qq(sent\\n)")),
        perl(&format!(
            "socket($s, AF_UNIX, SOCK_STREAM, 0); connect($s, pack(q(Sxa*), AF_UNIX, q({name}))) and print qq(hidden\\n)"
        )),
        "echo served".to_owned(),
        perl(&format!(
            "open($s, q(+<&=0)); connect($s, pack(q(S x14), 0)); connect($s, {to_port}) and syswrite($s, q(stolen))"
        )),
    ]
    .join("; ")
        + "; exit 3";
    for (by, keys, is_kept) in [
        (By::Root, "sandbox = { network_namespace = true }", true),
        (By::Root, "spare = 1\nsandbox = { network_namespace = true, network = \"client\" }", true),
        (By::Root, "user = 4711\ngroup = 4711\nsandbox = { network_namespace = true }", true),
        (By::User(303), "sandbox = { network_namespace = true }", true),
        // Without it all of that works.
        (By::Root, "", false),
    ] {
        let (config, at) = program(&format!("exec 2>/dev/null; {script}"), keys);
        let server = by.run(&config).start();
        let mut said = Vec::new();
        // It may be reset by who takes it elsewhere.
        let _ = connect(at).read_to_end(&mut said);
        assert_eq!(
            text(&said),
            if is_kept { "served\n" } else { "called\nsent\nhidden\nserved\n" },
            "{by:?} {keys}"
        );
        server.log.wait("the record", |line| line.contains("exited 3"));
    }
    listener.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    while let Ok((mut caller, _)) = listener.accept() {
        let mut said = String::new();
        caller.read_to_string(&mut said).unwrap();
        heard.push(said);
    }
    assert_eq!(heard, ["", "stolen"], "the last service, and nobody before it");
}

/// The first process of the namespace in which a program is, and that.
fn init_and_program(server: &Running) -> (i32, i32) {
    let worker = server.worker();
    let named = |process: &proc::Process| process.parent != worker || process.name == "preforkd-init";
    eventually("they have their names", || proc::descendants(worker).iter().all(named));
    let all = proc::descendants(worker);
    let is_init = |pid: i32| all.iter().any(|process| process.pid == pid && process.name == "preforkd-init");
    // It was there before what has been left to its parent.
    let is_program = |process: &&proc::Process| is_init(process.parent) && process.name != "preforkd-worker";
    let program = all.iter().filter(is_program).min_by_key(|process| process.pid).unwrap();
    (program.parent, program.pid)
}

#[test]
fn what_a_program_has_left_ends_with_it_wherever_it_is() {
    if !root("a user without rights") {
        return;
    }
    for (by, keys) in [
        (By::Root, ""),
        (By::Root, "spare = 1\n"),
        (By::Root, "user = 4711\ngroup = 4711\n"),
        (By::User(304), ""),
        (By::User(305), "spare = 1\n"),
    ] {
        // In a session of its own, with a parent that is gone, and deaf.
        let script = "(setsid sh -c \"trap : TERM HUP; while :; do sleep 1; done\" >/dev/null 2>&1 </dev/null &); \
                      echo pid $$ group $(ps -o pgid= -p $$) parent $PPID; read line; exit $line";
        let (config, at) = program(script, &format!("{keys}sandbox = {{ pid_namespace = true }}"));
        let server = by.run(&config).start();
        let mut client = connect(at);
        let first = lines(&client).next().unwrap();
        assert!(first.starts_with("pid 2 ") && first.ends_with(" parent 1"), "{by:?}: {first}");
        let init = {
            let (init, program) = init_and_program(&server);
            // It holds nothing, and the program nothing more than without it.
            assert_eq!(proc::descriptors(init), []);
            assert_eq!(proc::descriptors(program).len(), 3);
            let owner = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let uid =
                |status: String| status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned();
            assert_eq!(uid(owner(init)), uid(owner(program)), "{by:?}{keys}");
            init
        };
        let all: Vec<i32> = proc::descendants(init).into_iter().map(|process| process.pid).collect();
        assert!(all.len() >= 2, "{all:?}");
        client.write_all(b"7\n").unwrap();
        let record = server.log.wait("the record", |line| line.contains("connection "));
        assert!(record.contains("exited 7 ") && record.contains(&format!("(pid {init},")), "{record}");
        eventually("all have ended", || !all.iter().any(|pid| proc::lives(*pid)));
        eventually("nothing is counted", || server.count("active") == 0);
        assert_eq!(server.count("left_behind"), 0);
    }
}

#[test]
fn a_program_in_a_namespace_ends_as_one_without() {
    if !root("a user without rights") {
        return;
    }
    for (by, keys) in [(By::Root, ""), (By::Root, "spare = 2\n"), (By::User(306), "")] {
        let keys = format!("{keys}idle_timeout = \"1s\"\nsandbox = {{ pid_namespace = true }}");
        let script = "echo ready; read how; eval $how";
        let (config, at) = program(script, &keys);
        let server = by.run(&config).start();
        for (how, ending) in [
            ("exit 0", "exited 0 "),
            ("exit 126", "exited 126 "),
            ("kill -TERM $$", "killed TERM "),
            ("kill -KILL $$", "killed KILL "),
            ("kill -40 $$", "killed RTMIN+6 "),
            // Its parent is nobody of whom it could be rid.
            ("kill -USR1 $PPID; exit 0", "exited 0 "),
            ("kill -KILL $PPID; exit 0", "exited 0 "),
            ("exec sleep 100", "timeout idle "),
        ] {
            let mark = server.log.mark();
            let client = connect(at);
            lines(&client).next().unwrap();
            (&client).write_all(format!("{how}\n").as_bytes()).unwrap();
            let record = server.log.wait_after(mark, how, |line| line.contains("connection "));
            assert!(record.contains(ending), "{by:?} {how}: {record}");
        }
        eventually("nothing is counted", || server.count("active") == 0);
        assert_eq!(server.count("timeouts"), 1);
    }
}

#[test]
fn a_signal_reaches_the_program_and_a_deadline_the_deaf() {
    if !root("the namespaces of root") {
        return;
    }
    let script = "exec 2>/dev/null; trap \"echo told\" TERM; trap \"echo hup\" HUP; echo ready; while :; do sleep 0.1; done";
    let (config, at) = program(script, "max_lifetime = \"2s\"\nsandbox = { pid_namespace = true }");
    let server = Preforkd::run(&config).start();
    let client = connect(at);
    let mut said = lines(&client);
    assert_eq!(said.next().unwrap(), "ready");
    let (init, program) = init_and_program(&server);
    proc::kill(init, Signal::SIGHUP);
    assert_eq!(said.next().unwrap(), "hup");
    assert_eq!(said.next().unwrap(), "told");
    let record = server.log.wait("the record", |line| line.contains("connection "));
    assert!(record.contains("timeout lifetime"), "{record}");
    assert!(!proc::lives(program));
}

#[test]
fn siblings_have_no_number_for_each_other() {
    if !root("one user twice") {
        return;
    }
    // Without Landlock's help: its signal scope is not in every kernel.
    let keys = "user = 4711\ngroup = 4711\nsandbox = { pid_namespace = true }";
    let (config, at) = program(
        "echo $$; while read n; do kill -9 $n 2>/dev/null && echo killed || echo nobody; done; kill -9 -1",
        keys,
    );
    let server = Preforkd::run(&config).start();
    let (mut first, mut second) = (connect(at), connect(at));
    lines(&first).next().unwrap();
    lines(&second).next().unwrap();
    let others: Vec<i32> =
        server.processes().into_iter().map(|process| process.pid).filter(|pid| *pid > 10).collect();
    let mut said = lines(&second);
    for pid in &others {
        second.write_all(format!("{pid}\n").as_bytes()).unwrap();
        let answer = said.next().unwrap();
        assert_eq!(answer, "nobody", "{pid}");
    }
    second.shutdown(Shutdown::Write).unwrap();
    server.log.wait("the second", |line| line.contains("connection "));
    assert_eq!(server.count("active"), 1);
    first.write_all(b"99999\n").unwrap();
    assert_eq!(lines(&first).next().unwrap(), "nobody");
}

#[test]
fn handlers_in_namespaces_serve_and_count_as_without() {
    if !root("a user without rights") {
        return;
    }
    for (by, keys) in [
        (By::Root, ""),
        (By::Root, "spare = 2\n"),
        (By::Root, "connections_per_child = 2\n"),
        (By::Root, "user = 4711\ngroup = 4711\n"),
        (By::User(307), ""),
        (By::User(308), "spare = 1\nconnections_per_child = 0\n"),
    ] {
        for calls in ["service", "handler"] {
            let at = address::fresh();
            let config = format!(
                "[service.x]\nlisten = \"{at}\"\nworkers = 1\nhandler = \"echo\"\nfirst_byte_timeout = \"1s\"\n{keys}\
                 sandbox = {{ private_tmp = true, network_namespace = true, pid_namespace = true, system_calls = \"{calls}\" }}\n"
            );
            let server = by.run(&config).start();
            for round in 1..=3 {
                let mark = server.log.mark();
                assert_eq!(exchange(at, b"hello"), b"hello", "{by:?}{keys}");
                let record = server.log.wait_after(mark, "the record", |line| line.contains("connection "));
                assert!(
                    record.contains("exited 0") && record.contains("5 bytes in, 5 out"),
                    "{round}: {record}"
                );
            }
            let mark = server.log.mark();
            let mut silent = connect(at);
            assert!(closed(&mut silent), "{by:?}{keys}");
            let record = server.log.wait_after(mark, "the record", |line| line.contains("connection "));
            assert!(record.contains("timeout first_byte"), "{record}");
            assert_eq!(server.count("completed"), 4);
        }
    }
}

#[test]
fn who_has_an_init_outlives_his_worker_and_not_his_service() {
    if !root("the namespaces of root") {
        return;
    }
    let script = "echo ready; read how; kill -$how $$";
    let (config, at) = program(script, "sandbox = { pid_namespace = true }");
    let server = Preforkd::run(&config).start();
    let (first, mut second) = (connect(at), connect(at));
    lines(&first).next().unwrap();
    lines(&second).next().unwrap();
    server.replace_worker(server.worker());
    assert_eq!(server.count("active"), 2);
    second.write_all(b"USR1\n").unwrap();
    let record = server.log.wait("the record", |line| line.contains("connection "));
    assert!(record.contains("killed USR1"), "{record}");
    assert_eq!(server.count("active"), 1);
    server.signal(Signal::SIGQUIT);
    server.wait_empty();
}

#[test]
fn a_program_that_lets_go_of_its_client_lets_it_go() {
    if !root("the namespaces of root") {
        return;
    }
    let script = "echo bye; exec 0<&- 1>&- 2>&-; exec sleep 1000";
    for keys in ["", "spare = 1\n"] {
        let (config, at) =
            program(script, &format!("{keys}count_bytes = false\nsandbox = {{ pid_namespace = true }}"));
        let server = Preforkd::run(&config).start();
        // The end comes although the program goes on.
        assert_eq!(listen_to(at), "bye\n");
        assert_eq!(server.count("active"), 1);
        server.signal(Signal::SIGQUIT);
        server.wait_empty();
    }
    // One that does not, keeps its client.
    let (config, at) = program("exec cat", "count_bytes = false\nsandbox = { pid_namespace = true }");
    let _server = Preforkd::run(&config).start();
    let mut client = connect(at);
    for _ in 0..8 {
        try_echo(&mut client, b"still here").unwrap();
        std::thread::sleep(crate::support::A_WHILE);
    }
}

#[test]
fn who_may_not_make_namespaces_is_told_what_would_help() {
    if !root("to give up CAP_SYS_ADMIN") {
        return;
    }
    let (plain, at) = program("echo served", "");
    let weak = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"];
    let server = Preforkd::run(&plain).under(&weak).start();
    for (key, what) in [
        ("private_tmp", "/tmp and /var/tmp of its own"),
        ("network_namespace", "an empty network"),
        ("pid_namespace", "all its processes end with it"),
    ] {
        server.configure(&format!("{plain}sandbox = {{ {key} = true }}\n"));
        let output = server.reload();
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{key}");
        for part in [what, "CAP_SYS_ADMIN", "sandbox-namespaces.conf", "required = false does without"] {
            assert!(said.contains(part), "{key}: {part}: {said}");
        }
        server.configure(&format!("{plain}sandbox = {{ {key} = true, required = false }}\n"));
        server.reload_ok();
        assert_eq!(listen_to(at), "served\n");
        let missing = server.service()["sandbox"]["missing"].to_string();
        assert!(missing.contains(what), "{key}: {missing}");
    }
}

#[test]
fn callers_at_a_unix_socket_are_told_from_each_other_or_the_service_is_not_served() {
    if !root("a user without rights") {
        return;
    }
    let config = "[service.x]\nlisten = \"unix:DIR/socket\"\nexec = [\"/bin/sh\", \"-c\", \"echo $IPCREMOTEEUID $IPCREMOTEPID\"]\nspare = 1\n\
         sandbox = { pid_namespace = true }\n";
    let server = By::User(309).run(config).start_unready();
    server.log.wait("why", |line| line.contains("who calls at a Unix socket"));
    assert_eq!(server.ending(), "71");
    let server = By::Root.run(config).start();
    let said = crate::support::client::exchange_unix(Path::new(&server.dir().join("socket")), b"");
    assert!(text(&said).starts_with("0"), "{}", text(&said));
}
