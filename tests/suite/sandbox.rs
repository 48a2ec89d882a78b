//! What a connection process may not do, seen from inside it. tests/suite/hostile.rs tries everything at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use crate::support::client::{connect, exchange, listen_to};
use crate::support::{Preforkd, Running, address, eventually, preforkd, root, sure, text, write};

/// A service at its own address, whose program is this shell script.
fn service(script: &str, keys: &str) -> (String, std::net::SocketAddr) {
    let at = address::fresh();
    let config = format!(
        "[service.x]\nlisten = \"{at}\"\nworkers = 1\nexec = ['/bin/sh', '-c', '{script}']\nstderr = \"connection\"\n{keys}\n"
    );
    (config, at)
}

/// What its program says under these keys.
fn says(script: &str, keys: &str) -> String {
    let (config, at) = service(script, keys);
    let server = Preforkd::run(&config).start();
    let said = text(&exchange(at, b""));
    drop(server);
    said
}

/// A program that stays, and its pid.
struct Stays {
    stream: BufReader<TcpStream>,
    pid: String,
}

impl Stays {
    fn at(address: std::net::SocketAddr) -> Self {
        let mut stream = BufReader::new(connect(address));
        let mut pid = String::new();
        stream.read_line(&mut pid).unwrap();
        Stays { stream, pid: pid.trim().to_owned() }
    }

    /// Has it do something to another, and returns what it says of that.
    fn try_on(&mut self, other: &str) -> String {
        self.stream.get_mut().write_all(format!("{other}\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

#[test]
fn a_sibling_of_the_same_user_is_out_of_reach() {
    if !root("the same user twice") {
        return;
    }
    for spare in ["", "spare = 2\n"] {
        for (sandbox, reached) in [("", "signal= environ="), ("sandbox = false", "signal=yes environ=yes")] {
            let script = "echo $$; while read other; do s=; e=; kill -CONT $other 2>/dev/null && s=yes; \
                          cat /proc/$other/environ >/dev/null 2>&1 && e=yes; echo signal=$s environ=$e; done";
            let (config, at) = service(script, &format!("{spare}user = 4711\ngroup = 4711\n{sandbox}"));
            let server = Preforkd::run(&config).start();
            let (first, mut second) = (Stays::at(at), Stays::at(at));
            assert_eq!(second.try_on(&first.pid), reached, "{spare}{sandbox}");
            if sandbox.is_empty() {
                // Nor can it do anything to its worker, or the supervisor; to itself it can.
                for pid in [server.worker(), server.pid()] {
                    assert_eq!(second.try_on(&pid.to_string()), "signal= environ=");
                }
                let own = second.pid.clone();
                assert_eq!(second.try_on(&own), "signal=yes environ=yes");
            }
        }
    }
}

#[test]
fn a_program_has_the_files_that_are_listed_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    for name in ["read", "write", "none"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        write(&dir.path().join(name).join("file"), name);
    }
    write(&dir.path().join("read/run"), "#!/bin/sh\necho run\n");
    let script = format!(
        "cat {0}/file; echo; echo x >{0}/new && echo new; {0}/run; cat {1}/file; echo; mv {1}/file {1}/other && echo moved; \
         cat {2}/file; ls {2}; echo end",
        place("read"),
        place("write"),
        place("none")
    );
    let usual = "execute = [\"/usr\", \"-/lib\", \"-/lib64\", \"-/bin\"], read = [\"/etc\", \"READ\"], write = [\"WRITE\", \"/dev/null\"]"
        .replace("READ", &place("read"))
        .replace("WRITE", &place("write"));
    for spare in ["", "spare = 1\n"] {
        let said = says(&script, &format!("{spare}sandbox = {{ {usual} }}"));
        for right in ["read\n", "write\n", "moved\n", "end\n"] {
            assert!(said.contains(right), "{right}: {said}");
        }
        for wrong in ["none\n", "new\n", "run\n"] {
            assert!(!said.lines().any(|line| line == wrong.trim()), "{wrong}: {said}");
        }
        assert_eq!(said.matches("Permission denied").count(), 4, "{said}");
        std::fs::rename(dir.path().join("write/other"), dir.path().join("write/file")).unwrap();
    }
}

/// What perl says of a call.
fn perl(what: &str) -> String {
    format!(r#"perl -MSocket -e "{}" "#, what.replace('$', "\\$"))
}

#[test]
fn a_program_calls_whom_it_may() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let call = perl(&format!(
        "socket($s, AF_INET, SOCK_STREAM, 0) && connect($s, sockaddr_in({port}, inet_aton(q(127.0.0.1)))) && print qq(called\\n)"
    ));
    let again = perl(&format!(
        "open($s, q(+<&=0)); connect($s, pack(q(S x14), 0)); connect($s, sockaddr_in({port}, inet_aton(q(127.0.0.1)))) && print qq(again\\n)"
    ));
    let datagram = perl(&format!(
        "socket($s, AF_INET, SOCK_DGRAM, 0) && send($s, q(x), 0, sockaddr_in({port}, inet_aton(q(127.0.0.1)))) && print qq(sent\\n)"
    ));
    let listen = perl(
        "socket($s, AF_INET, SOCK_STREAM, 0) && bind($s, sockaddr_in(0, INADDR_ANY)) && listen($s, 1) && print qq(listens\\n)",
    );
    let deaf = perl("socket($s, AF_INET, SOCK_STREAM, 0) && listen($s, 1) && print qq(listens\\n)");
    let dir = tempfile::tempdir().unwrap();
    for (network, done) in [
        ("none", ""),
        ("client", "called\nsent\nagain\n"),
        ("any", "called\nsent\nlistens\nlistens\nagain\n"),
    ] {
        // The last takes its own connection away.
        let file = dir.path().join(network);
        let script =
            format!("{{ {call}; {datagram}; {listen}; {deaf}; {again}; }} >{} 2>/dev/null", file.display());
        let (config, at) = service(&script, &format!("sandbox = {{ network = \"{network}\" }}"));
        let server = Preforkd::run(&config).start();
        let _ = connect(at).read_to_end(&mut Vec::new());
        server.log.wait("the record", |line| line.starts_with("x: connection") && line.contains("exited"));
        assert_eq!(std::fs::read_to_string(file).unwrap(), done, "{network}");
    }
    listener.set_nonblocking(true).unwrap();
    let called = std::iter::from_fn(|| listener.accept().ok()).count();
    // With "client" and "any", once by a new socket and once by the one that it has.
    assert_eq!(called, 4);
}

#[test]
fn system_calls_fail_or_kill_as_it_is_written() {
    let unshare = "unshare --user true 2>&1 | grep -o \"Operation not permitted\"; setarch -R true 2>/dev/null || echo no";
    assert_eq!(says(unshare, ""), "Operation not permitted\nno\n");
    assert_eq!(says(unshare, "sandbox = { system_calls = \"any\" }").lines().count(), 0);
    let allowed = "sandbox = { system_calls = { allow = [\"personality\"] } }";
    assert_eq!(says(unshare, allowed), "Operation not permitted\n");
    let denied =
        "sandbox = { system_calls = { base = \"any\", deny = [\"chmod\", \"fchmodat\", \"fchmodat2\"] } }";
    assert_eq!(says("touch /tmp/$$; chmod 0 /tmp/$$ 2>/dev/null || echo no; rm /tmp/$$", denied), "no\n");

    // A handler that asks for what none needs.
    for spare in ["", "spare = 1\n", "spare = 1\nconnections_per_child = 5\n"] {
        let at = address::fresh();
        let config = format!(
            "[service.x]\nlisten = \"{at}\"\nhandler = \"daytime\"\n{spare}sandbox = {{ system_calls = {{ base = \"handler\", deny = [\"shutdown\", \"sendto\"] }} }}\n"
        );
        let server = Preforkd::run(&config).start();
        assert_eq!(exchange(at, b""), b"");
        server.log.wait("the record", |line| line.contains("killed SYS"));
    }
}

#[test]
fn what_kills_a_program_of_32_bits_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("elf32");
    let made = format!(
        "{}/tests/hostile/attempts elf32 >{1} && chmod 755 {1}",
        env!("CARGO_MANIFEST_DIR"),
        path.display()
    );
    sure(&["sh", "-c", &made]);
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (config, at) = service(&format!("exec {}", path.display()), "");
    let server = Preforkd::run(&config).start();
    let is_record = |line: &str| line.contains("killed SYS");
    for ended in 1..=3 {
        exchange(at, b"");
        crate::support::eventually("its record", || server.log.count(is_record) == ended);
    }
    let says = |line: &str| line.contains("32 bits") && line.contains("system_calls = \"any\"");
    assert_eq!(server.log.count(says), 1);
    // With all calls, it is what it is: a program that exits with 42.
    let (config, at) = service(&format!("exec {}", path.display()), "sandbox = { system_calls = \"any\" }");
    let server = Preforkd::run(&config).start();
    exchange(at, b"");
    server.log.wait("its record", |line| line.contains("exited 42"));
}

#[test]
fn privileges_are_gained_where_the_service_says_so() {
    if !root("a setuid program") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("id");
    sure(&["install", "-m", "4755", "/usr/bin/id", path.to_str().unwrap()]);
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let keys = |sandbox: &str| format!("user = 4711\ngroup = 4711\n{sandbox}");
    let script = format!("{} -u", path.display());
    assert_eq!(says(&script, &keys("")), "4711\n");
    assert_eq!(says(&script, &keys("sandbox = { no_new_privs = false }")), "0\n");
    assert_eq!(says(&script, &keys("sandbox = false")), "0\n");
}

#[test]
fn memory_that_was_written_is_not_executed_where_the_service_says_so() {
    // mmap: 4096 bytes, PROT_READ|WRITE|EXEC, MAP_PRIVATE|MAP_ANONYMOUS.
    let map = perl("print syscall(9, 0, 4096, 7, 0x22, -1, 0) == -1 ? qq(no\\n) : qq(mapped\\n)");
    // What is written to a file without a name could be: memfd_create. So could what is in memfd_secret's, where there is that.
    let file = perl("print syscall(319, my $name = qq(x), 0) == -1 ? qq(no\\n) : qq(made\\n)");
    let script = format!("{map}; {file}");
    assert_eq!(says(&script, ""), "mapped\nmade\n");
    for more in ["", ", network = \"none\"", ", system_calls = \"any\""] {
        assert_eq!(
            says(&script, &format!("sandbox = {{ write_execute = false{more} }}")),
            "no\nno\n",
            "{more}"
        );
    }
    // From then on all that can be read could be executed: personality(2), READ_IMPLIES_EXEC.
    let persona = perl("print syscall(135, 0x400000) == -1 ? qq(no\\n) : qq(all\\n)");
    let keys = "sandbox = { write_execute = false, system_calls = \"any\" }";
    assert_eq!(says(&persona, keys), "no\n");
    assert_eq!(says(&persona, "sandbox = { system_calls = \"any\" }"), "all\n");
}

#[test]
fn a_program_cannot_have_its_worker_wait_for_its_client() {
    // Whoever closes last would: SO_LINGER. It leaves more than there is room for at its client's.
    let linger = "setsockopt($s, SOL_SOCKET, SO_LINGER, pack(q(ii), 1, 100000)) || die;";
    let script = perl(&format!(
        "open($s, q(+<&=0)); sysread($s, $c, 1); print(qq(here\\n)), exit if $c ne q(L); \
         setsockopt($s, SOL_SOCKET, SO_SNDBUF, 1 << 22); 1 while send($s, q(x) x 65536, MSG_DONTWAIT); {linger}"
    ));
    let (config, at) = service(&format!("exec {script}"), "");
    let server = Preforkd::run(&config).start();
    let mut silent = connect(at);
    silent.write_all(b"L").unwrap();
    let ended = || server.log.count(|line| line.contains("exited 0"));
    eventually("it is given up", || ended() == 1);
    assert_eq!(text(&exchange(at, b"x")), "here\n");
    eventually("another has ended meanwhile", || ended() == 2);
    drop(silent);
    let script = perl(&format!(
        "open($s, q(+<&=0)); {linger} @l = unpack(q(ii), getsockopt($s, SOL_SOCKET, SO_LINGER)); print(qq(@l\\n))"
    ));
    for keys in ["", "sandbox = { network = \"client\" }"] {
        assert_eq!(says(&script, keys), "0 0\n");
    }
    assert_eq!(says(&script, "sandbox = { system_calls = { allow = [\"setsockopt\"] } }"), "1 100000\n");
}

/// Has what follows run on a kernel that does not have these system calls: a filter answers as such a kernel would. The last
/// is for prctl(2), which is there, and knows no filters then.
const OLDER: &str = r#"
    my @calls = @ARGV[0 .. $#ARGV]; my @absent; push @absent, shift @calls while $calls[0] ne "--"; shift @calls;
    my @code = ([0x20, 0, 0, 0]);
    push @code, [0x15, 0, 1, $_], [6, 0, 0, 0x50000 | 38] for @absent;
    push @code, [6, 0, 0, 0x7fff0000];
    my $program = join "", map { pack "SCCL", @$_ } @code;
    syscall(157, 38, 1, 0, 0, 0) == 0 or die "no_new_privs: $!";
    syscall(157, 22, 2, pack("SxxxxxxP", scalar @code, $program), 0, 0) == 0 or die "filter: $!";
    exec @calls or die "exec: $!";
"#;

/// landlock_create_ruleset, landlock_add_rule, landlock_restrict_self.
const LANDLOCK: [&str; 3] = ["444", "445", "446"];

fn on_an_older_kernel(config: &str) -> Preforkd {
    let command = ["perl", "-e", OLDER].into_iter().chain(LANDLOCK).chain(["--"]);
    Preforkd::run(config).under(&command.collect::<Vec<_>>())
}

#[test]
fn what_the_kernel_cannot_do_is_an_error_where_it_is_required_and_said_elsewhere() {
    let (config, at) = service("echo served", "");
    let server = on_an_older_kernel(&config).start();
    assert_eq!(listen_to(at), "served\n");
    let sandbox = &server.service()["sandbox"];
    assert!(sandbox["missing"][0].as_str().unwrap().contains("no Landlock"), "{sandbox}");
    assert!(sandbox["in_force"].to_string().contains("system calls: service"), "{sandbox}");

    let config_with = |keys: &str| config.clone() + keys;
    server.configure(&config_with("sandbox = { read = [\"/\"] }\n"));
    let output = server.reload();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("required = false does without"), "{said}");
    assert_eq!(listen_to(at), "served\n");
    server.configure(&config_with("sandbox = { read = [\"/\"], required = false }\n"));
    server.reload_ok();
    assert_eq!(listen_to(at), "served\n");
}

#[test]
fn status_and_check_say_what_is_in_force() {
    let (config, _) = service("echo", "sandbox = { read = [\"/\"], network = \"client\" }");
    let server = Preforkd::run(&config).start();
    let sandbox = &server.service()["sandbox"];
    for right in ["no new privileges", "files: read /", "network: client", "system calls: service"] {
        assert!(sandbox["in_force"].to_string().contains(right), "{right}: {sandbox}");
    }
    let explained = |server: &Running| {
        let path = server.dir().join("preforkd.toml");
        text(&preforkd(&["check", "--explain", "sandbox", "--config", Path::to_str(&path).unwrap()]).stdout)
    };
    assert!(explained(&server).starts_with("x: no new privileges; "), "{}", explained(&server));
    server.configure(&service("echo", "sandbox = false").0);
    assert_eq!(explained(&server), "x: none; a connection process may do whatever its user may\n");
}

#[test]
fn a_connection_process_may_look_at_preforkd_and_do_nothing_to_it() {
    // Also one that has left its program, whose parent is the supervisor then.
    for before in ["", "setsid sh -c \"sleep 0.2; "] {
        let after = if before.is_empty() { "" } else { "\" & wait" };
        for (command, done) in
            [("status --json", true), ("reload", false), ("unban 127.0.0.1", false), ("upgrade", false)]
        {
            let script = format!(
                "{before}{} {command} --control DIR/control.sock >/dev/null 2>DIR/said; echo $? >DIR/code{after}",
                crate::support::BINARY
            );
            let script = if before.is_empty() { script } else { script.replace("$?", "\\$?") };
            let (config, at) = service(&script, "kill_mode = \"process\"");
            let server = Preforkd::run(&config).start();
            exchange(at, b"");
            let code = server.dir().join("code");
            crate::support::eventually("it has tried", || {
                std::fs::read_to_string(&code).is_ok_and(|code| code.ends_with('\n'))
            });
            let said = std::fs::read_to_string(server.dir().join("said")).unwrap();
            let code = std::fs::read_to_string(code).unwrap();
            assert_eq!(code == "0\n", done, "{before}{command}: {code}{said}");
            assert_eq!(said.contains("may ask for the status"), !done, "{before}{command}: {said}");
        }
    }
}
