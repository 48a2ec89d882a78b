//! The parsers, on texts; tests/suite/imported has real files and the real command.

mod files;
mod scripts;
mod units;
mod xinetd;

use std::fmt::Write;

use super::client_rules::PeerFile;
use super::hosts_access::HostsAccess;
use super::inetd::{self, Surroundings};
use super::model::{Imported, quoted, table};
use super::names::ServiceNames;
use super::systemd::{self, UnitPair};
use super::ucspi::{self, Beside, Script};
use super::unit_file::{UnitFile, span, words};
use super::xinetd::Blocks;
use super::{Style, finish, place, write};
use crate::seeded::seed;

const STYLE: Style<'_> = Style { program: "preforkd", sources: "a test", with_off: true };

fn application() -> crate::handler::Application {
    crate::builtin::preforkd().into_application()
}

fn inetd(text: &str) -> Imported {
    let (names, hosts) = (ServiceNames::default(), HostsAccess::default());
    inetd::parse("inetd.conf", text, &Surroundings { names: &names, hosts: &hosts })
}

fn xinetd(text: &str) -> Imported {
    let mut blocks = Blocks::default();
    let _ = blocks.read("xinetd.conf", text);
    blocks.services(&ServiceNames::default(), &HostsAccess::default())
}

/// The same text in every file, and in every directory the same files.
#[derive(Debug, Default)]
struct TestBeside<'a> {
    text: Option<&'a str>,
    peers: Option<&'a [(&'a str, u32)]>,
}

impl Beside for TestBeside<'_> {
    fn text(&self, _: &str) -> Option<String> {
        self.text.map(str::to_owned)
    }

    fn peers(&self, _: &str) -> Option<Vec<PeerFile>> {
        let peer =
            |&(name, mode): &(&str, u32)| PeerFile { name: name.to_owned(), mode, text: String::new() };
        self.peers.map(|peers| peers.iter().map(peer).collect())
    }
}

fn script(text: &str, beside: Option<&str>) -> Imported {
    script_beside(text, &TestBeside { text: beside, peers: None })
}

fn script_beside(text: &str, beside: &TestBeside<'_>) -> Imported {
    ucspi::parse(&Script { file: "run", text, name: None }, &ServiceNames::default(), beside)
}

fn pair(socket: &str, service: &str) -> Imported {
    let mut pair = UnitPair { name: "x".to_owned(), place: "x.socket".to_owned(), ..UnitPair::default() };
    pair.socket.add(socket);
    pair.service_name = systemd::service_of("x", &pair.socket);
    let mut unit = UnitFile::default();
    unit.add(service);
    pair.service = Some(unit);
    let mut imported = Imported::default();
    systemd::read(&pair, &ServiceNames::default(), &mut imported);
    imported
}

/// As it is printed.
fn printed(mut imported: Imported) -> String {
    finish(&mut imported, STYLE, &application());
    write(&imported, STYLE)
}

/// The keys of the only service, one a line.
fn keys(imported: Imported) -> String {
    let text = printed(imported);
    let lines = text.lines().filter(|line| !line.starts_with("# ") && *line != "#" && !line.is_empty());
    lines.fold(String::new(), |mut all, line| {
        writeln!(all, "{line}").unwrap();
        all
    })
}

#[test]
fn text_of_others_stays_text() {
    assert_eq!(quoted("a\"b\\c\nd\u{1b}\u{202e}"), "\"a\\\"b\\\\c\\nd\\U0000001B\\U0000202E\"");
    assert_eq!(table([("a b", quoted("c"))]), "{ \"a b\" = \"c\" }");
}

#[test]
fn times_and_words_are_those_of_systemd() {
    let times = [
        ("2min 30s", Some(Some(150))),
        ("5", Some(Some(5))),
        ("1h", Some(Some(3600))),
        ("300ms", Some(Some(1))),
    ];
    for (text, seconds) in
        times.into_iter().chain([("infinity", Some(None)), ("x", None), ("99999999999999999999", None)])
    {
        assert_eq!(span(text), seconds, "{text}");
    }
    assert_eq!(words(r#"a "b c" 'd'e \x"#).unwrap(), ["a", "b c", "de", "\\x"]);
    assert_eq!(words("\"open"), None);
}

#[test]
fn prefixes_are_written_with_their_own_network() {
    for (text, prefix) in [
        ("10.1.2.3", Some("10.1.2.3/32")),
        ("10.1.2.3/8", Some("10.0.0.0/8")),
        ("10.1.2.3/255.255.0.0", Some("10.1.0.0/16")),
        ("10.1.2.3/255.0.255.0", None),
        ("[2001:db8::1]/32", Some("2001:db8::/32")),
        ("10.0.0.0/33", None),
        ("0.0.0.0/0", Some("0.0.0.0/0")),
        ("host.example", None),
    ] {
        assert_eq!(place::prefix(text).as_deref(), prefix, "{text}");
    }
}

#[test]
fn inetd_of_the_bsds() {
    let free_bsd = "finger stream tcp46 nowait/3/10/2 nobody:nogroup/daemon /usr/libexec/fingerd fingerd -s";
    assert_eq!(
        keys(inetd(free_bsd)),
        "[service.finger]\nlisten = [\"*:79\"]\nexec = [\"/usr/libexec/fingerd\", \"-s\"]\nargv0 = \"fingerd\"\nuser = \"nobody\"\n\
         group = \"nogroup\"\nmax_connections = 3\nmax_connections_per_source = 2\nrate_per_source = \"10/m burst 10\"\n\
         stderr = \"connection\"\n"
    );
    // An address for what follows, and a line that goes on.
    let open_bsd = "192.0.2.1:\nssh stream tcp nowait.400 root /usr/sbin/sshd\n\tsshd -i\n*:\nssh stream tcp6 nowait root /usr/sbin/sshd sshd -i";
    let text = printed(inetd(open_bsd));
    assert!(text.contains("listen = [\"192.0.2.1:22\", \"[::]:22\"]"), "{text}");
    assert!(text.contains("exec = [\"/usr/sbin/sshd\", \"-i\"]"), "{text}");
    let net_bsd =
        "http stream,100:httpready tcp,sndbuf=64k nowait:600 _httpd /usr/libexec/httpd httpd /var/www";
    let text = printed(inetd(net_bsd));
    assert!(text.contains("backlog = 100\n") && text.contains("dropped: sndbuf=64k"), "{text}");
    for refused in [
        "rstatd/1-3 dgram rpc/udp wait root /x x",
        "echo dgram udp wait root internal",
        "tcpmux/+finger stream tcp nowait root /x x",
        "x raw 58 wait root /x x",
        "ftp stream faith/tcp6 nowait root /x x",
        "[host.example]:ftp stream tcp nowait root /x x",
        "ftp on exec = /usr/libexec/ftpd, user = root;",
        "finger stream tcp nowait nobody ./fingerd fingerd",
        "/run/x dgram unix wait root /x x",
    ] {
        let text = printed(inetd(refused));
        assert!(text.contains("# refused: ") && !text.contains("\n[service."), "{refused}: {text}");
    }
}

#[test]
fn inetd_with_quotes_and_comments() {
    let line =
        |arguments: &str| printed(inetd(&format!("12345 stream tcp nowait nobody /bin/sh sh {arguments}")));
    let quoted = line("-c \"echo hello;  exec cat\" 'a' # a comment");
    for part in [
        "\nexec = [\"/bin/sh\", \"-c\", \"echo hello;  exec cat\", \"a\"]\n",
        "# near: quotes: they hold words together, as in the inetds of FreeBSD, NetBSD and GNU",
        "there it was [\"/bin/sh\", \"-c\", \"\\\"echo\", \"hello;\", \"exec\", \"cat\\\"\", \"'a'\"]",
        "inetd takes what follows the # for arguments",
    ] {
        assert!(quoted.contains(part), "{part}: {quoted}");
    }
    for (word, kept) in
        [("--a=\"b\"", "--a=\\\"b\\\""), ("don't", "don't"), ("\"open", "\\\"open"), ("\"a\"b", "\\\"a\\\"b")]
    {
        let inner = line(&format!("{word} c"));
        assert!(inner.contains(&format!("\nexec = [\"/bin/sh\", \"{kept}\", \"c\"]\n")), "{word}: {inner}");
        assert!(inner.contains("quotes that hold no whole word are part of it"), "{word}: {inner}");
    }
    let sixth = printed(inetd("ftp stream tcp6 nowait root /bin/ftpd ftpd # comment"));
    assert!(sixth.contains("\nexec = [\"/bin/ftpd\"]\n"), "{sixth}");
    assert!(
        sixth.contains("# near: tcp6: IPv6 only") && sixth.contains("# near: /bin/ftpd ftpd # comment: "),
        "{sixth}"
    );
}

#[test]
fn what_this_machine_lacks_hides_no_fault() {
    let text = printed(script(
        "cd /nope\nexec tcpserver -I aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa -u nope -g nope 0 7 /nope/x\n",
        None,
    ));
    assert!(text.contains("\n#[service.echo]\n") && text.contains("cannot be a network interface"), "{text}");
    for machine in ["user of this machine", "group of this machine", "there is no"] {
        assert!(!text.contains(machine), "{machine}: {text}");
    }
}

#[test]
fn ports_by_names_that_old_files_use() {
    for (name, port) in [("netperf", 12865), ("fastagi", 4573), ("bftp", 152), ("cfinger", 2003)] {
        let text = printed(inetd(&format!("{name} stream tcp nowait root /bin/x x")));
        assert!(text.contains(&format!("listen = [\"0.0.0.0:{port}\"]")), "{text}");
    }
}

#[test]
fn rules_of_tcpd_are_not_lost_in_silence() {
    let line = "finger stream tcp nowait nobody /usr/sbin/tcpd in.fingerd -w";
    let names = ServiceNames::default();
    let mut hosts = HostsAccess::default();
    let text = printed(inetd::parse("f", line, &Surroundings { names: &names, hosts: &hosts }));
    assert!(text.contains("\n[service.finger]") && text.contains("WARNING, PROTECTION LOST: tcpd"), "{text}");
    hosts.add("hosts.deny", "sshd: ALL\n# ALL: ALL\n");
    let text = printed(inetd::parse("f", line, &Surroundings { names: &names, hosts: &hosts }));
    assert!(text.contains("\n[service.finger]") && !text.contains("LOST"), "{text}");
    hosts.add("hosts.allow", "in.fingerd, \\\n in.ftpd: 10.");
    let text = printed(inetd::parse("f", line, &Surroundings { names: &names, hosts: &hosts }));
    assert!(
        text.contains("\n#[service.finger]") && text.contains("hosts.allow:2 \"in.fingerd,  in.ftpd: 10.\""),
        "{text}"
    );
    assert!(
        text.contains("keep tcpd: exec = [\"/usr/sbin/tcpd\", \"-w\"], argv0 = \"in.fingerd\""),
        "{text}"
    );
}

#[test]
fn xinetd_with_its_defaults_and_operators() {
    let text = "defaults\n{\nonly_from = 10.0.0.0\nno_access = 10.0.0.9\ninstances = 5\n}\n\
                service ftp\n{\nsocket_type = stream\nwait = no\nuser = root\nserver = /bin/ftpd\nserver_args = -i \"a b\"\n\
                only_from += 128.138.{12,13} 192.0.2.7\nno_access -= 10.0.0.9\nflags = NODELAY KEEPALIVE IPv4\nrlimit_as = 64M\n\
                env = TZ=UTC A=b\n}\n";
    assert_eq!(
        keys(xinetd(text)),
        "[service.ftp]\nlisten = [\"0.0.0.0:21\"]\nexec = [\"/bin/ftpd\", \"-i\", \"\\\"a\", \"b\\\"\"]\nargv0 = \"ftpd\"\nuser = \"root\"\n\
         environment = { TZ = \"UTC\", A = \"b\" }\nmax_connections = 5\noverload = \"refuse\"\n\
         allow = [\"10.0.0.0/8\", \"128.138.12.0/24\", \"128.138.13.0/24\", \"192.0.2.7/32\"]\nlimits = { as = \"64M\" }\nstderr = \"connection\"\n\
         keepalive = true\n"
    );
    let service = |lines: &str| {
        xinetd(&format!(
            "service ftp\n{{\nsocket_type = stream\nwait = no\nuser = root\nserver = /bin/ftpd\n{lines}\n}}\n"
        ))
    };
    let nobody = printed(service("only_from ="));
    assert!(nobody.contains("deny = [\"0.0.0.0/0\", \"::/0\"]"), "{nobody}");
    for (lines, is_loss) in [
        ("only_from = 10.0.0.1 .example.org", true),
        ("access_times = 2:00-9:00", true),
        ("flags = SENSOR", true),
        ("redirect = 10.0.0.1 23", false),
        ("type = RPC", false),
        ("banner = /etc/issue", false),
        ("bind = host.example", false),
    ] {
        let text = printed(service(lines));
        assert!(text.contains("\n#[service.ftp]") && text.contains("# refused: "), "{lines}: {text}");
        assert_eq!(text.contains("PROTECTION LOST"), is_loss, "{lines}: {text}");
    }
}

#[test]
fn pairs_of_units() {
    let socket = "[Socket]\nListenStream=[::1]:7\nListenStream=192.0.2.1:9\nAccept=yes\nMaxConnections=5\nKeepAlive=yes\n\
                  KeepAliveTimeSec=2min\nIPAddressDeny=any\nIPAddressAllow=10.0.0.0/8 localhost\nMark=7\n";
    let service = "[Service]\nExecStart=-@/bin/cat cat0 \\\n  -u \"a b\" %p\nStandardInput=socket\nStandardError=journal\nDynamicUser=yes\n\
                   LimitNOFILE=64:128\nMemoryMax=64M\nRuntimeMaxSec=1h\nEnvironment=\"A=b c\" D=e\nEnvironment=F=g\n";
    assert_eq!(
        keys(pair(socket, service)),
        "[service.x]\nlisten = [\"[::1]:7\", \"192.0.2.1:9\"]\nexec = [\"/bin/cat\", \"-u\", \"a b\", \"x\"]\nargv0 = \"cat0\"\n\
         user = { range = \"70000-70004\" }\nenvironment = { A = \"b c\", D = \"e\", F = \"g\" }\nmax_connections = 5\noverload = \"refuse\"\n\
         allow = [\"10.0.0.0/8\", \"127.0.0.0/8\", \"::1/128\"]\nmax_lifetime = \"3600s\"\nlimits = { nofile = 128, memory = \"64M\" }\n\
         keepalive = { idle = \"120s\" }\nmark = 7\n"
    );
    let accepts = "[Socket]\nListenStream=7\nAccept=yes\n";
    let cat = "[Service]\nExecStart=/bin/cat\nStandardInput=socket\nUser=nobody\n";
    for (socket, service) in [
        ("[Socket]\nListenStream=vsock:2:1\nAccept=yes\n", ""),
        ("[Socket]\nListenFIFO=/run/x\n", ""),
        ("[Socket]\nListenDatagram=7\nAccept=yes\n", ""),
        (accepts, "ExecStartPre=/bin/true\n"),
        (accepts, "AmbientCapabilities=CAP_NET_RAW\n"),
        (accepts, "StandardOutput=journal\n"),
        (accepts, "ExecStart=\nExecStart=+/bin/cat\n"),
        (accepts, "ExecStart=\nExecStart=/bin/cat %i\n"),
        (accepts, "ExecStart=\nExecStart=/bin/cat $OPTIONS\n"),
        (accepts, "NewKey=1\n"),
    ] {
        let text = printed(pair(socket, &format!("{cat}{service}")));
        assert!(text.contains("\n#[service.x]") && text.contains("# refused: "), "{socket}{service}: {text}");
    }
    let boxed = format!("{cat}PrivateTmp=yes\nNoNewPrivileges=no\n");
    let boxed = keys(pair(accepts, &boxed));
    assert!(boxed.contains("sandbox = { private_tmp = true, no_new_privs = false }"), "{boxed}");
    // What only writes to the client.
    let writes = keys(pair(accepts, "[Service]\nExecStart=/bin/cat\nUser=nobody\nStandardOutput=socket\n"));
    assert!(writes.contains("\nstderr = \"connection\"\n") && !writes.contains("listen-fds"), "{writes}");
    let text = printed(pair(accepts, "[Service]\nExecStart=/bin/cat\nUser=nobody\nStandardOutput=null\n"));
    assert!(text.contains("listen-fds") && text.contains("# near: StandardOutput=null: "), "{text}");
    let text = printed(pair(
        accepts,
        &format!("{cat}CapabilityBoundingSet=\nRestrictAddressFamilies=AF_INET\nProtectClock=yes\n"),
    ));
    assert!(
        text.contains("\n[service.x]") && text.contains("LOST: RestrictAddressFamilies=AF_INET"),
        "{text}"
    );
    assert!(text.contains("# near: ProtectClock=yes"), "{text}");
}

fn server(name: &str, service: &str) -> Imported {
    let mut pair = UnitPair { name: name.to_owned(), place: "x.service".to_owned(), ..UnitPair::default() };
    let mut unit = UnitFile::default();
    unit.add(service);
    pair.service = Some(unit);
    assert!(systemd::starts_a_server(&pair), "{service}");
    let mut imported = Imported::default();
    systemd::read_server(&pair, &ServiceNames::default(), &TestBeside::default(), &mut imported);
    imported
}

#[test]
fn services_that_start_a_server_themselves() {
    let socat = "[Unit]\nDescription=x\n[Service]\nUser=nobody\nGroup=nogroup\nEnvironment=PORT=7 A=b\nEnvironment=TO=/bin/cat\n\
                 ExecStart=/usr/bin/socat -d -d TCP4-LISTEN:${PORT},bind=127.0.0.1,fork,range=10.0.0.0/8 EXEC:${TO}\nRestart=always\n\
                 AmbientCapabilities=CAP_NET_BIND_SERVICE\nLimitNOFILE=64\nNoNewPrivileges=yes\nTasksMax=9\nStandardError=null\n\
                 [Install]\nWantedBy=multi-user.target\n";
    assert_eq!(
        keys(server("x", socat)),
        "[service.x]\nlisten = [\"127.0.0.1:7\"]\nexec = [\"/bin/cat\"]\nuser = \"nobody\"\ngroup = \"nogroup\"\n\
         environment = { PORT = \"7\", A = \"b\", TO = \"/bin/cat\" }\nallow = [\"10.0.0.0/8\"]\nlimits = { nofile = 64 }\nstderr = \"null\"\n"
    );
    let text = printed(server("x", socat));
    assert!(text.contains("near: ExecStart=") && text.contains("${PORT} as it is now"), "{text}");
    // By a shell, which knows the variables as well; several of them.
    let shell = "[Service]\nEnvironment=PORT=7\nExecStart=/bin/sh -ec 'umask 077; tcpserver -c 9 0 $PORT /bin/cat & exec socat TCP4-L:9,fork,su=games EXEC:/bin/date'\n";
    let both = keys(server("x", shell));
    assert!(both.contains("listen = [\"0.0.0.0:7\"]\nexec = [\"/bin/cat\"]\nuser = \"root\""), "{both}");
    assert!(both.contains("[service.x-2]") && both.contains("umask = \"077\"\n"), "{both}");
    assert!(both.contains("listen = [\"0.0.0.0:9\"]\nexec = [\"/bin/date\"]\nuser = \"games\""), "{both}");
    // The server makes its programs another user than the unit made it.
    let text = printed(server("x", "[Service]\nUser=mail\nExecStart=/bin/tcpserver -u games 0 7 /bin/cat\n"));
    assert!(text.contains("user = \"games\"") && text.contains("dropped: User=mail"), "{text}");
    let instance =
        keys(server("x@7", "[Service]\nExecStart=/bin/socat TCP4-L:%i,fork EXEC:'/bin/echo %p %N'\n"));
    assert!(instance.contains("[service.x-7]\nlisten = [\"0.0.0.0:7\"]"), "{instance}");
    assert!(instance.contains("exec = [\"/bin/echo\", \"x\", \"x@7\"]"), "{instance}");
    for (name, service, why) in [
        (
            "x@",
            "ExecStart=/bin/socat TCP-L:%i,fork EXEC:cat\n",
            "multi-user.target.wants/NAME@INSTANCE.service",
        ),
        ("x", "ExecStart=/bin/socat TCP-L:7,fork EXEC:${WHAT}\n", "an environment file that is not here"),
        (
            "x",
            "ExecStart=/bin/socat TCP-L:7,fork EXEC:cat\nExecStart=/bin/socat TCP-L:9,fork EXEC:cat\n",
            "more than one",
        ),
        ("x", "ExecStart=+/bin/socat TCP-L:7,fork EXEC:cat\n", "other rights"),
        ("x", "ExecStart=/bin/socat UDP-L:7,fork EXEC:cat\n", "UDP-L:7"),
        (
            "x",
            "ExecStart=/bin/sh -c 'socat TCP-L:$(cat port),fork EXEC:cat'\n",
            "only the script itself knows",
        ),
        (
            "x",
            "ExecStart=/bin/socat TCP-L:7,fork EXEC:/bin/cat\nExecStartPre=/bin/true\n",
            "runs nothing before",
        ),
        (
            "x",
            "ExecStart=/bin/socat TCP-L:7,fork EXEC:/bin/cat\nAmbientCapabilities=CAP_NET_RAW\n",
            "no capabilities",
        ),
        ("x", "ExecStart=/bin/socat TCP-L:7,fork EXEC:/bin/cat\nDynamicUser=yes\n", "name a user"),
    ] {
        let text = printed(server(name, &format!("[Service]\n{service}")));
        assert!(text.contains("\n#[service.x") && text.contains(why), "{service}: {text}");
    }
}

#[test]
fn what_a_command_line_does_it_does_after_the_unit() {
    let later = server(
        "x",
        "[Service]\nUser=mail\nGroup=mail\nUMask=0022\nNice=3\nWorkingDirectory=/\nLimitNOFILE=99\nLimitNPROC=9\nEnvironment=A=1 B=2\n\
         StandardError=null\n\
         ExecStart=/bin/sh -c 'umask 077; cd /srv; exec nice -n 7 softlimit -o 64 env A=3 socat TCP4-L:7,fork,su=games EXEC:/bin/cat,stderr'\n",
    );
    let printed_keys = keys(later);
    for line in [
        "user = \"games\"",
        "working_directory = \"/srv\"",
        "umask = \"077\"",
        "nice = 7",
        "environment = { A = \"3\", B = \"2\" }",
        "limits = { nofile = 64, nproc = 9 }",
        "stderr = \"connection\"",
    ] {
        assert!(printed_keys.lines().any(|found| found == line), "{line}: {printed_keys}");
    }
    assert!(!printed_keys.contains("group"), "{printed_keys}");
    // Of what the unit says twice, as by a drop-in, the later counts.
    let twice = keys(server(
        "x",
        "[Service]\nUMask=0022\nUMask=0077\nLimitNOFILE=9\nLimitNOFILE=8\nGroup=games\nGroup=mail\nStandardError=null\n\
         StandardError=journal\nExecStart=/bin/socat TCP4-L:7,fork EXEC:/bin/cat\n",
    ));
    for line in ["umask = \"077\"", "limits = { nofile = 8 }", "group = \"mail\""] {
        assert!(twice.lines().any(|found| found == line), "{line}: {twice}");
    }
    assert!(!twice.contains("stderr"), "{twice}");
    let emptied = "[Service]\nEnvironment=A=1\nExecStart=/usr/bin/env - B=2 tcpserver 0 7 /bin/cat\n";
    let text = printed(server("x", emptied));
    assert!(
        text.contains("\nenvironment = { B = \"2\" }\n") && text.contains("# dropped: Environment=A=1"),
        "{text}"
    );
}

#[test]
fn protections_of_a_unit_with_a_server_are_not_lost_in_silence() {
    for (keys, lost) in [
        // Root has all capabilities, whoever binds.
        ("CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", "LOST: CapabilityBoundingSet="),
        ("IPAddressAllow=10.0.0.0/8\nIPAddressDeny=any\n", "LOST: IPAddressAllow="),
    ] {
        let unit =
            format!("[Service]\n{keys}ExecStart=/bin/socat TCP4-L:7,fork,range=10.1.0.0/16 EXEC:/bin/cat\n");
        let text = printed(server("x", &unit));
        assert!(text.contains(lost) && text.contains("allow = [\"10.1.0.0/16\"]"), "{text}");
    }
}

#[test]
fn what_may_be_written_follows_from_what_is_protected() {
    let socket = "[Socket]\nListenStream=7\nAccept=yes\n";
    let unit = |lines: &str| {
        printed(pair(
            socket,
            &format!("[Service]\nExecStart=/bin/cat\nStandardInput=socket\nUser=nobody\n{lines}"),
        ))
    };
    let strict =
        unit("ProtectSystem=strict\nProtectHome=yes\nReadWritePaths=/srv/x -/srv/y\nPrivateTmp=yes\n");
    assert!(
        strict.contains("write = [\"-/dev\", \"-/proc\", \"-/sys\", \"-/srv/x\", \"-/srv/y\"]"),
        "{strict}"
    );
    assert!(!strict.contains("\"-/home\"") && strict.contains("private_tmp = true"), "{strict}");
    let full = unit("ProtectSystem=full\n");
    let write = full.split("write = [").nth(1).unwrap().split(']').next().unwrap();
    assert!(
        !write.contains("-/etc")
            && !write.contains("-/usr")
            && write.contains("-/var")
            && write.contains("-/home"),
        "{full}"
    );
    let home = unit("ProtectHome=read-only\n");
    let write = home.split("write = [").nth(1).unwrap().split(']').next().unwrap();
    assert!(write.contains("-/usr") && !write.contains("-/home") && home.contains("\"-/home\""), "{home}");
}

#[test]
fn command_lines_of_tcpserver_and_s6() {
    let smtp = "#!/bin/sh\nU=`id -u qmaild`\nG=$(id -g qmaild)\nexec env - PATH=/bin softlimit -m 1000 -t5 \\\n tcpserver -vRDl0 -c 20 -b5 -u \"$U\" -g $G 0 smtp \\\n /bin/smtpd 'a b' 2>&1\n";
    assert_eq!(
        keys(script(smtp, None)),
        "[service.smtp]\nlisten = [\"0.0.0.0:25\"]\nexec = [\"/bin/smtpd\", \"a b\"]\nuser = \"qmaild\"\n\
         environment = { PATH = \"/bin\" }\nmax_connections = 20\n\
         limits = { as = 1000, data = 1000, stack = 1000, memlock = 1000, cpu = \"5s\" }\nbacklog = 5\n"
    );
    let utmpd = "#!/bin/execlineb -P\nfdmove -c 2 1\ns6-setuidgid utmp\ncd /run/utmps\nfdmove 1 3\ns6-ipcserver -1 -a 0600 -C 4 -- /run/utmps/utmpd-socket\nutmps-utmpd\n";
    assert_eq!(
        keys(script(utmpd, None)),
        "[service.utmpd-socket]\nlisten = [\"unix:/run/utmps/utmpd-socket\"]\nexec = [\"utmps-utmpd\"]\nuser = \"utmp\"\n\
         working_directory = \"/run/utmps\"\nmax_connections = 40\nmax_connections_per_source = 4\nsocket_mode = \"0600\"\n"
    );
    let s6 = keys(script(
        "exec s6-tcpserver -c 100 -u 80 -g 80 :: 8080 s6-tcpserver-access -v0 /bin/eris -c -. &\n",
        None,
    ));
    assert!(
        s6.contains(
            "listen = [\"[::]:8080\"]\nexec = [\"/bin/eris\", \"-c\", \"-.\"]\nuser = \"80\"\ngroup = \"80\""
        ),
        "{s6}"
    );
    let ruled = |rules: &str| keys(script("exec tcpserver -x /etc/x.cdb 0 25 /bin/x\n", Some(rules)));
    let only = ruled("10.1.2-3.:allow\n127.:allow\n:deny\n");
    assert!(only.contains("allow = [\"10.1.2.0/24\", \"10.1.3.0/24\", \"127.0.0.0/8\"]\n"), "{only}");
    let but = ruled("10.9.8.7:deny\n:allow\n");
    assert!(but.contains("deny = [\"10.9.8.7/32\"]\n") && !but.contains("allow"), "{but}");
    for text in [
        "exec tcpserver -x /etc/x.cdb 0 25 /bin/x\n",
        "exec tcpserver -c \"$MAX\" 0 25 /bin/x\n",
        "exec tcpserver host.example 25 /bin/x\n",
        "exec tcpserver 0 25 ./x\n",
        "exec tcpserver 0 25 /bin/x `hostname`\n",
        "exec unknown-wrapper tcpserver 0 25 /bin/x\n",
        "exec s6-tcpserver 0.0.0.0 25 s6-tcpserver-access -i rules /bin/x\n",
        "exec tcpserver -Bhello 0 25 /bin/x\n",
        "exec tcpserver 0\n",
    ] {
        let text = printed(script(text, None));
        assert!(text.contains("\n#[service.") && text.contains("# refused: "), "{text}");
    }
}

#[test]
fn command_lines_of_tcpsvd() {
    let text = "#!/bin/sh\nexec 2>&1\nmkdir -p /run/x\ncd /srv/case\numask 027\nexport A=b C='d e'\n\
        exec chpst -vn5 -m 4096 -u www:web env A=x tcpsvd -vhE -l localhost -c9 -C '3:go away\\n' -b 5 -i./peers 0 22 dropbear -i\n";
    let peers = TestBeside { text: None, peers: Some(&[("127.0.0.1", 0o644), ("0", 0)]) };
    assert_eq!(
        keys(script_beside(text, &peers)),
        "[service.ssh]\nlisten = [\"0.0.0.0:22\"]\nexec = [\"dropbear\", \"-i\"]\nuser = \"www\"\ngroup = \"web\"\n\
         working_directory = \"/srv/case\"\numask = \"027\"\nnice = 5\nenvironment = { A = \"x\", C = \"d e\" }\nmax_connections = 9\n\
         max_connections_per_source = 3\nallow = [\"127.0.0.1/32\"]\nlimits = { as = 4096, data = 4096, stack = 4096, memlock = 4096 }\nbacklog = 5\n"
    );
    let printed_text = printed(script_beside(text, &peers));
    for near in ["near: mkdir -p /run/x: ", "near: no other groups: "] {
        assert!(printed_text.contains(near), "{printed_text}");
    }
    let groups = keys(script("exec chpst -u :5:6:7 tcpsvd 0 7 cat\n", None));
    assert!(groups.contains("user = \"5\"\ngroup = \"6\"\n"), "{groups}");
    let few = keys(script("exec busybox tcpsvd -u :65534:65533 127.0.0.1 7 cat\n", None));
    assert!(
        few.contains("user = \"65534\"\ngroup = \"65533\"\n") && few.contains("max_connections = 30\n"),
        "{few}"
    );
    for text in [
        "exec tcpsvd -x peers.cdb 0 25 /bin/x\n",
        "exec tcpsvd -i /not/there 0 25 /bin/x\n",
        "exec tcpsvd -C 0 0 25 /bin/x\n",
        "exec chpst -e ./env tcpsvd 0 25 /bin/x\n",
        "export A=$(hostname)\nexec tcpsvd 0 25 /bin/x\n",
        "ulimit -n 9\nexec tcpsvd 0 25 /bin/x\n",
        "cd \"$HOME\"\nexec tcpsvd 0 25 /bin/x\n",
        &format!("{}exec tcpsvd 0 25 /bin/x\n", "true\n".repeat(201)),
    ] {
        let text = printed(script(text, None));
        assert!(text.contains("\n#[service.") && text.contains("# refused: "), "{text}");
    }
}

#[test]
fn command_lines_of_socat() {
    let whole = "cd /srv\nwhile true; do\n  sudo socat -d -d -lf /x TCP4-LISTEN:2323,bind=127.0.0.1,reuseaddr,fork,backlog=7,max-children=9,range=10.0.0.0:255.0.0.0,keepalive \\\n\
                 EXEC:'\"./finger \\\"a b\\\" c\"',stderr,su=nobody,umask=22 2>/dev/null &\ndone\n";
    assert_eq!(
        keys(script(whole, None)),
        "[service.port-2323]\nlisten = [\"127.0.0.1:2323\"]\nexec = [\"/srv/finger\", \"a b\", \"c\"]\nuser = \"nobody\"\n\
         working_directory = \"/srv\"\numask = \"022\"\nmax_connections = 9\nallow = [\"10.0.0.0/8\"]\nstderr = \"connection\"\n\
         backlog = 7\nkeepalive = true\n"
    );
    let exec = |command: &str| {
        let text = keys(script(command, None));
        text.lines().find_map(|line| line.strip_prefix("exec = ")).unwrap_or(&text).to_owned()
    };
    for (command, wanted) in [
        (
            "socat tcp-l:7,fork system:'\"read x; echo a: $x, b\"'",
            "[\"/bin/sh\", \"-c\", \"read x; echo a: $x, b\"]",
        ),
        (
            "socat TCP-L:7,fork EXEC:/bin/login,pty,setsid,stderr",
            "[\"/usr/bin/socat\", \"STDIO\", \"EXEC:/bin/login,pty,setsid,stderr\"]",
        ),
        (
            "socat -T 9 -v TCP-L:7,fork,crlf EXEC:/bin/cat,su=x",
            "[\"/usr/bin/socat\", \"-T\", \"9\", \"STDIO,crlf\", \"EXEC:/bin/cat\"]",
        ),
        (
            "socat TCP:192.0.2.1:80,nodelay TCP-L:7,fork",
            "[\"/usr/bin/socat\", \"STDIO\", \"TCP:192.0.2.1:80,nodelay\"]",
        ),
        ("socat UNIX-L:/run/x.sock,mode=660,user=a,unlink-early,fork EXEC:cat", "[\"cat\"]"),
    ] {
        assert_eq!(exec(command), wanted, "{command}");
    }
    let unix = keys(script("socat UNIX-L:/run/x.sock,mode=660,user=a,unlink-early,fork PIPE", None));
    let wanted = "[service.x]\nlisten = [\"unix:/run/x.sock\"]\nhandler = \"echo\"\n";
    assert!(
        unix.starts_with(wanted) && unix.contains("socket_user = \"a\"\nsocket_mode = \"0660\"\n"),
        "{unix}"
    );
    let two = keys(script("socat TCP6-L:7,fork EXEC:cat &\nsocat TCP6-L:9,fork,ipv6only EXEC:cat\n", None));
    assert!(two.contains("\"*:7\"") && two.contains("\"[::]:9\""), "{two}");
    for text in [
        "socat TCP-L:7,fork EXEC:./x\n",
        "socat TCP-L:7,fork SYSTEM:'echo a:b'\n",
        "socat -T9 TCP-L:7,fork EXEC:./x\n",
        "socat TCP-L:$PORT,fork EXEC:/bin/x\n",
        "socat TCP-L:7,fork -\n",
        "socat TCP-L:7,fork,tcpwrap=x EXEC:/bin/x\n",
        "socat TCP-L:7,fork,lowport EXEC:/bin/x\n",
        "socat TCP-L:7,fork,range=host.example:255.0.0.0 EXEC:/bin/x\n",
        "socat OPENSSL-LISTEN:7,fork,cert=x EXEC:/bin/x\n",
        "socat UDP-L:7,fork EXEC:/bin/x\n",
        "socat TCP-L:7,fork,unheard-of EXEC:/bin/x\n",
        "socat TCP-L:7,fork EXEC:/bin/x,unheard-of\n",
        "socat -? TCP-L:7,fork EXEC:/bin/x\n",
        "socat TCP-L:7,fork\n",
    ] {
        let text = printed(script(text, None));
        assert!(text.contains("\n#[service.") && text.contains("# refused: "), "{text}");
    }
    assert!(script("socat - UNIX-CONNECT:/run/x\n", None).services.is_empty());
    let client = keys(script("exec tcpserver 0 7 socat STDIO TCP:192.0.2.1:7\n", None));
    assert!(client.contains("exec = [\"socat\", \"STDIO\", \"TCP:192.0.2.1:7\"]\n"), "{client}");
}

#[test]
fn a_table_has_each_name_once() {
    let both = keys(script("exec env - A=1 B=2 A=3 tcpserver 0 7 /bin/cat\n", None));
    assert!(both.contains("environment = { A = \"3\", B = \"2\" }\n"), "{both}");
    let limits = keys(script("exec softlimit -m 9 -d 5 tcpserver 0 7 /bin/cat\n", None));
    assert!(limits.contains("limits = { as = 9, data = 5, stack = 9, memlock = 9 }\n"), "{limits}");
    let unit = keys(pair(
        "[Socket]\nListenStream=7\nAccept=yes\n",
        "[Service]\nExecStart=/bin/cat\nUser=nobody\nStandardInput=socket\nEnvironment=A=1\nEnvironment=\"A=2 3\" B=4\n",
    ));
    assert!(unit.contains("environment = { A = \"2 3\", B = \"4\" }\n"), "{unit}");
    let xinetd = "service x\n{\ntype = UNLISTED\nport = 7\nsocket_type = stream\nwait = no\nuser = root\nserver = /bin/cat\nenv = A=1 A=2\n}\n";
    assert!(keys(self::xinetd(xinetd)).contains("environment = { A = \"2\" }\n"));
}

const SEEDS: [&str; 6] = [
    "socat -T9 -d TCP-L:7,fork,bind=[::1],range=10.0.0.0/8,crlf EXEC:'/x \"a b\" c',pty,su=x,stderr 2>&1 &\n",
    "cd /x\nexport A=b\nexec chpst -u a:b -o 9 tcpsvd -v -C 3:x -i ./p -u :1:2 0 25 /bin/x &\n",
    "ftp stream tcp nowait/3/10 root /usr/sbin/tcpd in.ftpd -l\n127.0.0.1:x dgram udp6 wait.4 a:b /bin/x\n#<off># echo stream tcp nowait root internal\n",
    "defaults\n{\nonly_from = 10.0.0.0\ncps = 50 10\n}\nservice ftp\n{\nsocket_type = stream\nwait = no\nuser = root\nserver = /bin/ftpd\n\
     per_source = 3\nrlimit_as = 4M\nenv = A=b\nflags = REUSE\nno_access += 10.{1,2}\n}\n",
    "[Socket]\nListenStream=7\nAccept=yes\nMaxConnections=3\nKeepAliveTimeSec=2min\n[Service]\nExecStart=-/bin/cat \"a b\" \\\n c\nUser=nobody\n\
     StandardInput=socket\nProtectSystem=strict\nEnvironment=A=b\nLimitNOFILE=4\n",
    "#!/bin/sh\nA=`id -u x`\nexec softlimit -m 1000 tcpserver -vR -c 20 -x /a.cdb -u $A 0 25 /bin/x 'a b' 2>&1 | y &\n",
];

#[test]
fn any_text_gives_an_answer() {
    let application = application();
    let mut random = fastrand::Rng::with_seed(seed());
    let pieces = [
        " ",
        "\n",
        "\t",
        "=",
        "{",
        "}",
        "\"",
        "'",
        "\\",
        "\\\n",
        "#",
        ":",
        "/",
        ".",
        ",",
        "-",
        "%",
        "$",
        "${",
        "$(",
        "`",
        "0",
        "99999999999999999999",
        "\u{202e}",
        "\u{fffd}",
        "é",
        "[",
        "]",
        "*",
        "wait",
        "udp",
        "tcp6",
        "unix",
        "internal",
        "+=",
        "-=",
        "service x\n{\n",
        "}\n",
        "exec ",
        "tcpserver",
        "s6-ipcserver ",
        "/x",
        "::",
        "10.0.0.0/8",
        "yes",
        "\u{1b}[31m",
        "4294967296",
        "-1",
        "65536",
        "root",
    ];
    for round in 0..1500 {
        let mut text = SEEDS[round % SEEDS.len()].to_owned();
        for _ in 0..random.usize(..12) {
            let at =
                (0..=random.usize(..text.len() + 1)).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            if random.usize(..3) == 0 {
                let end = (at..=(at + random.usize(..9)).min(text.len()))
                    .rev()
                    .find(|end| text.is_char_boundary(*end))
                    .unwrap_or(at);
                text.replace_range(at..end, "");
            } else {
                text.insert_str(at, pieces[random.usize(..pieces.len())]);
            }
        }
        super::try_out(&text, &application);
        let _ = super::place::prefix(&text);
    }
}
