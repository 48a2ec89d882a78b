//! Units of systemd, key by key.

use std::time::Duration;

use super::{ServiceNames, UnitFile, UnitPair, keys, pair, printed, server, systemd};
use crate::import::model::Imported;
use crate::import::unit_file::{assigned, commands, duration, size, span, words};

const ACCEPTS: &str = "[Socket]\nListenStream=7000\nAccept=yes\n";
const WAITS: &str = "[Socket]\nListenStream=7000\n";

/// Of a connection, with these lines beside.
fn connection(lines: &str) -> String {
    printed(pair(
        ACCEPTS,
        &format!("[Service]\nExecStart=/usr/bin/k\nStandardInput=socket\nUser=nobody\n{lines}"),
    ))
}

/// Of a program that gets the socket.
fn waiting(socket: &str, lines: &str) -> String {
    printed(pair(
        &format!("{WAITS}{socket}"),
        &format!("[Service]\nExecStart=/usr/bin/k\nUser=nobody\n{lines}"),
    ))
}

fn is_served(text: &str) -> bool {
    text.contains("\n[service.x]")
}

/// The verdict that is printed of a construct that begins so.
fn verdict<'t>(text: &'t str, construct: &str) -> &'t str {
    text.lines()
        .map(|line| line.trim_start_matches(['#', ' ']))
        .find(|line| line.contains(construct) && line.contains(": "))
        .unwrap_or_else(|| panic!("no verdict of {construct}: {text}"))
}

fn pairs(sockets: &[(&str, &str)], service_name: &str, service: &str) -> String {
    let mut imported = Imported::default();
    for (name, socket) in sockets {
        let mut pair =
            UnitPair { name: (*name).to_owned(), place: format!("{name}.socket"), ..UnitPair::default() };
        pair.socket.add(socket);
        pair.service_name = systemd::service_of(name, &pair.socket);
        assert_eq!(pair.service_name, service_name);
        let mut unit = UnitFile::default();
        unit.add(service);
        pair.service = Some(unit);
        systemd::read(&pair, &ServiceNames::default(), &mut imported);
    }
    printed(imported)
}

#[test]
fn a_program_finds_its_socket_where_systemd_puts_it() {
    let text = waiting("", "");
    assert!(text.contains("\nwait = true\n") && text.contains("\nconnection = \"listen-fds\"\n"), "{text}");
    assert!(verdict(&text, "StandardInput=null").starts_with("exact: "), "{text}");
    let input = waiting("", "StandardInput=socket\n");
    assert!(is_served(&input) && !input.contains("\nconnection = "), "{input}");
    let said = verdict(&input, "StandardInput=socket");
    assert!(said.starts_with("near: ") && said.contains("connection = \"listen-fds\""), "{said}");
    let named = waiting("FileDescriptorName=web\n", "");
    assert!(verdict(&named, "FileDescriptorName=web").contains("it is called listener here"), "{named}");
    let blocking = waiting("", "NonBlocking=yes\n");
    assert!(verdict(&blocking, "NonBlocking=yes").starts_with("near: "), "{blocking}");
}

#[test]
fn sockets_of_one_program_are_not_given_to_several() {
    let two = waiting("ListenStream=7001\n", "");
    assert!(!is_served(&two) && two.contains("refused: ListenStream=7000 ListenStream=7001: "), "{two}");
    let other = waiting("", "Sockets=x.socket y.socket\n");
    assert!(!is_served(&other) && other.contains("refused: Sockets=y.socket: "), "{other}");
    assert!(is_served(&waiting("", "Sockets=x.socket\n")));
    let service = "[Service]\nExecStart=/usr/bin/k\nUser=nobody\n";
    let both = pairs(
        &[("app", WAITS), ("more", "[Socket]\nListenStream=7001\nService=app.service\n")],
        "app.service",
        service,
    );
    assert!(both.contains("\n#[service.app]") && both.contains("\n#[service.more]"), "{both}");
    assert!(both.contains("refused: app.service of more.socket, too: systemd gives all"), "{both}");
    let named = |port: u16| format!("[Socket]\nListenStream={port}\nService=app.service\n");
    let both = pairs(&[("a", &named(7000)), ("b", &named(7001))], "app.service", service);
    assert!(both.contains("\n#[service.a]") && both.contains("\n#[service.b]"), "{both}");
    // A connection each: any number of addresses.
    let addresses = printed(pair(
        &format!("{ACCEPTS}ListenStream=7001\n"),
        "[Service]\nExecStart=/usr/bin/k\nStandardInput=socket\nUser=nobody\n",
    ));
    assert!(is_served(&addresses), "{addresses}");
    let udp = printed(pair("[Socket]\nListenDatagram=69\n", service));
    assert!(verdict(&udp, "ListenDatagram=69").starts_with("near: "), "{udp}");
}

#[test]
fn escapes_are_those_of_systemd() {
    let split = |line: &str| words(line).unwrap_or_else(|| panic!("{line}"));
    assert_eq!(split(r#"-e "x\.y" \d a\x20b"#), ["-e", r"x\.y", r"\d", "a b"]);
    assert_eq!(split(r"\a\b\f\n\r\t\v\\\s\101\u00e9\U0001f600"), ["\u{7}\u{8}\u{c}\n\r\t\u{b}\\ Aé😀"]);
    assert_eq!(
        split(r#""\"" '\'' \q \x0z \000 \400 \u12"#),
        ["\"", "'", r"\q", r"\x0z", r"\000", r"\400", r"\u12"]
    );
    assert_eq!(split("a\\"), ["a\\"]);
    assert_eq!(words("\"a\\"), None);
    // A byte that is no character is not made one.
    assert_eq!(split(r"\xff"), ["\u{fffd}"]);
    assert_eq!(split(r"\xc3\xa9"), ["é"]);
    assert_eq!(commands(r#"a \; ";" b ; c"#).unwrap(), [vec!["a", ";", ";", "b"], vec!["c"]]);
    assert_eq!(assigned(r#""A=b\x20c" D=e"#).unwrap(), ["A=b c", "D=e"]);
    assert_eq!(assigned(r"A=\d"), None);

    let exec = |line: &str| {
        let environment = r#""V=a 'b \\\\.c'""#;
        let unit = format!("[Service]\nExecStart={line}\nUser=nobody\nEnvironment={environment}\n");
        let text = keys(pair(WAITS, &unit));
        text.lines().find_map(|line| line.strip_prefix("exec = ")).unwrap_or(&text).to_owned()
    };
    assert_eq!(exec(r"/usr/bin/k -r 'a\.b' %%d \\"), r#"["/usr/bin/k", "-r", "a\\.b", "%d", "\\"]"#);
    // Of a variable's words, a backslash makes plain what stands behind it.
    assert_eq!(exec("/usr/bin/k $V"), r#"["/usr/bin/k", "a", "b \\.c"]"#);
    // socat has escapes of its own, and gets all that systemd leaves.
    for (written, argument) in [(r"a\.b", "a.b"), (r"a\\\\\\\.b", r"a\\.b"), (r"a\x41b", "aAb")] {
        let line = format!("EXEC:\"/usr/bin/foo -r 'c{written}'\"");
        let text = keys(server(
            "x",
            &format!("[Service]\nUser=nobody\nExecStart=/bin/socat TCP4-LISTEN:7,fork {line}\n"),
        ));
        assert!(
            text.contains(&format!("\nexec = [\"/usr/bin/foo\", \"-r\", \"c{argument}\"]\n")),
            "{written}: {text}"
        );
    }
    let wrong = connection("Environment=A=\\d\n");
    assert!(!is_served(&wrong) && wrong.contains("refused: Environment=A="), "{wrong}");
}

#[test]
fn a_line_goes_on_only_behind_a_backslash_that_is_meant() {
    let text = keys(pair(
        WAITS,
        "[Service]\nExecStart=/usr/bin/k a \\\n  # no end\n  b\nUser=nobody\nNice=\\\\\nNice=3\n",
    ));
    assert!(text.contains("exec = [\"/usr/bin/k\", \"a\", \"b\"]"), "{text}");
    let mut unit = UnitFile::default();
    unit.add("[Service]\nExecStart=/usr/bin/k \\\\\nUser=nobody\n");
    assert_eq!(unit.last("Service", "User"), Some("nobody"));
}

#[test]
fn time_spans_are_those_of_systemd() {
    for (text, seconds) in [
        ("1w", Some(Some(604_800))),
        ("1week", Some(Some(604_800))),
        ("1.5h", Some(Some(5_400))),
        ("1y 12month", Some(Some(31_557_600 + 12 * 2_629_800))),
        ("55s500ms", Some(Some(56))),
        ("300ms20s 5day", Some(Some(432_021))),
        ("2M", Some(Some(5_259_600))),
        ("3\u{b5}s", Some(Some(1))),
        ("0", Some(Some(0))),
        ("infinity", Some(None)),
        ("", None),
        ("5 parsecs", None),
        ("-1", None),
        ("h", None),
        ("1.5.5", None),
        ("999999999999999999y", None),
    ] {
        assert_eq!(span(text), seconds, "{text}");
    }
    assert_eq!(duration("7", 1), Some(Some(Duration::from_micros(7))));
    assert_eq!(size("1.5G"), Some(3 << 29));
    assert_eq!(size("20%"), None);

    for (line, key) in [
        ("RuntimeMaxSec=1w\n", "max_lifetime = \"604800s\""),
        ("RuntimeMaxSec=1.5h\n", "max_lifetime = \"5400s\""),
        ("RuntimeMaxSec=1500ms\n", "max_lifetime = \"1500ms\""),
        ("Type=oneshot\nTimeoutStartSec=5min\n", "max_lifetime = \"300s\""),
        ("LimitCPU=2min\n", "limits = { cpu = \"120s\" }"),
        ("LimitRTTIME=50ms\n", "limits = { rttime = 50000 }"),
        ("LimitNICE=-5\n", "limits = { nice = 25 }"),
        ("LimitAS=1.5G\n", "limits = { as = 1610612736 }"),
        ("LimitNOFILE=1K\n", "limits = { nofile = 1024 }"),
    ] {
        let text = connection(line);
        assert!(is_served(&text) && text.contains(&format!("\n{key}\n")), "{line}: {text}");
    }
    for line in ["RuntimeMaxSec=soon\n", "RuntimeMaxSec=0\n", "LimitCPU=x\n"] {
        assert!(!is_served(&connection(line)), "{line}");
    }
    let no_limit = connection("RuntimeMaxSec=infinity\n");
    assert!(is_served(&no_limit) && !no_limit.contains("max_lifetime"), "{no_limit}");
    let oneshot = connection("Type=oneshot\nRuntimeMaxSec=9\n");
    assert!(is_served(&oneshot) && !oneshot.contains("\nmax_lifetime = "), "{oneshot}");

    let of_socket = |lines: &str| {
        printed(pair(
            &format!("{ACCEPTS}{lines}"),
            "[Service]\nExecStart=/usr/bin/k\nStandardInput=socket\nUser=nobody\n",
        ))
    };
    for line in [
        "DeferAcceptSec=soon\n",
        "DeferAcceptSec=infinity\n",
        "KeepAliveTimeSec=soon\n",
        "KeepAliveIntervalSec=1x\n",
    ] {
        let text = of_socket(line);
        assert!(!is_served(&text) && text.contains("no time span"), "{line}: {text}");
    }
    let text = of_socket("KeepAlive=yes\nKeepAliveTimeSec=0\nDeferAcceptSec=0\nKeepAliveIntervalSec=1min\n");
    assert!(text.contains("\nkeepalive = { interval = \"60s\" }\n") && is_served(&text), "{text}");
    let text = of_socket("KeepAliveTimeSec=9\n");
    assert!(verdict(&text, "KeepAliveTimeSec=9").starts_with("near: "), "{text}");
}

#[test]
fn a_daemon_that_goes_to_the_background_is_refused() {
    for text in [waiting("", "Type=forking\nPIDFile=/run/k.pid\n"), connection("Type=forking\n")] {
        assert!(!is_served(&text) && text.contains("refused: Type=forking: "), "{text}");
        assert!(text.contains("stay in the foreground"), "{text}");
    }
    let goes_on = connection("Type=forking\nKillMode=process\n");
    assert!(is_served(&goes_on) && verdict(&goes_on, "Type=forking").starts_with("near: "), "{goes_on}");
    for kind in ["notify", "notify-reload", "dbus"] {
        let text = waiting("", &format!("Type={kind}\nPIDFile=/run/k.pid\nWatchdogSec=9\n"));
        assert!(is_served(&text), "{text}");
        for construct in [&format!("Type={kind}"), "PIDFile=", "WatchdogSec="] {
            assert!(verdict(&text, construct).starts_with("near: "), "{text}");
        }
        assert!(verdict(&connection(&format!("Type={kind}\n")), "Type=").starts_with("dropped: "));
    }
}

#[test]
fn services_that_it_wants_are_named() {
    let unit = "[Unit]\nWants=keys.service network.target x.service\nRequires=y.socket system.slice\nOnFailure=mail@%n.service\n\
                [Service]\nExecStart=/usr/bin/k\nUser=nobody\n";
    let text = printed(pair(WAITS, unit));
    let wants = verdict(&text, "Wants=");
    assert!(
        wants.starts_with("near: ") && wants.ends_with("add-wants preforkd.service keys.service"),
        "{wants}"
    );
    assert!(verdict(&text, "Requires=").starts_with("dropped: "), "{text}");
    assert!(verdict(&text, "OnFailure=").starts_with("near: ") && is_served(&text), "{text}");
    let own = printed(pair(&format!("{WAITS}[Unit]\nBindsTo=x.service\n"), unit));
    assert!(verdict(&own, "BindsTo=").starts_with("dropped: "), "{own}");
}

#[test]
fn a_throttle_is_no_limit() {
    let text = connection("MemoryHigh=100M\n");
    assert!(text.contains("\nlimits = { memory = \"100M\" }\n"), "{text}");
    assert!(verdict(&text, "MemoryHigh=").starts_with("near: "), "{text}");
    for lines in ["MemoryHigh=100M\nMemoryMax=200M\n", "MemoryMax=200M\nMemoryHigh=100M\n"] {
        let text = connection(lines);
        assert!(text.contains("\nlimits = { memory = \"200M\" }\n"), "{text}");
    }
}

#[test]
fn specifiers_count_where_they_do_in_systemd() {
    let lines = "CPUQuota=20%\nMemoryMax=50%\nTasksMax=10%\nSyslogIdentifier=a-%i\nSlice=a-%i.slice\nSupplementaryGroups=%i\n";
    let text = connection(lines);
    assert!(is_served(&text), "{text}");
    let exec = |socket: &str, line: &str| {
        let text = printed(pair(
            socket,
            &format!("[Service]\nExecStart=/usr/bin/k {line}\nUser=nobody\nStandardInput=socket\n"),
        ));
        text.lines().find_map(|line| line.strip_prefix("exec = ")).map_or(text.clone(), str::to_owned)
    };
    assert_eq!(
        exec(WAITS, "%n %N %p %i. %h %u %U 100% 5%, %F %"),
        r#"["/usr/bin/k", "x.service", "x", "x", ".", "/root", "root", "0", "100%", "5%,", "%F", "%"]"#
    );
    for (letter, why) in
        [('H', "%H is the host name of the machine"), ('m', "%m is the id of the machine"), ('v', "kernel")]
    {
        let text = exec(WAITS, &format!("%{letter}"));
        assert!(text.contains(why) && text.contains("\n#[service.x]"), "{text}");
    }
    for letter in ['i', 'I', 'n', 'N', 'f'] {
        let text = exec(ACCEPTS, &format!("%{letter}"));
        assert!(text.contains(&format!("%{letter} names the connection")), "{text}");
    }
    let named = printed(pair(
        "[Socket]\nListenStream=/run/%n/%p\n",
        "[Service]\nExecStart=/usr/bin/k\nUser=nobody\n",
    ));
    assert!(named.contains("\nlisten = [\"unix:/run/x.socket/x\"]\n"), "{named}");
    let scoped = printed(pair(
        "[Socket]\nListenStream=[fe80::1]:7000%eth0\nAccept=yes\n",
        "[Service]\nExecStart=/usr/bin/k\nUser=nobody\nStandardInput=socket\n",
    ));
    assert!(scoped.contains("\nlisten = [\"[fe80::1%eth0]:7000\"]\n"), "{scoped}");
    // Of an instance, with what systemd-escape(1) has done to it undone.
    let instance = keys(server(
        "x-y@a-b\\x2dc",
        "[Service]\nUser=nobody\nExecStart=/bin/socat TCP4-L:7,fork EXEC:'/bin/k %%i %i %I %j %f'\n",
    ));
    assert!(
        instance.contains(r#""%i", "a-b-c", "a/b-c", "y", "/a/b-c"]"#) || instance.contains("a/b-c"),
        "{instance}"
    );
    // What a file of the environment says has none.
    let text = exec(WAITS, "${A}\nEnvironment=A=50%%i");
    assert!(text.contains("\"50%i\""), "{text}");
}

#[test]
fn settings_of_commands_of_the_socket_are_left_out_with_them() {
    let text = waiting(
        "PrivateDevices=true\nUser=other\nSlice=a.slice\nLimitNOFILE=9\nKillMode=process\nSELinuxContextFromNet=no\n",
        "",
    );
    assert!(
        is_served(&text) && !text.contains("PROTECTION LOST") && text.contains("\nuser = \"nobody\"\n"),
        "{text}"
    );
    assert!(verdict(&text, "PrivateDevices=").starts_with("dropped: "), "{text}");
    assert!(!is_served(&waiting("SELinuxContextFromNet=yes\n", "")));
    assert!(!is_served(&waiting("ExecStartPre=/usr/bin/true\n", "")));
    let passes = waiting("PassCredentials=yes\nBroadcast=yes\nPassPacketInfo=yes\n", "");
    assert!(is_served(&passes) && verdict(&passes, "PassCredentials=").starts_with("near: "), "{passes}");
    let datagrams = "[Socket]\nListenDatagram=127.0.0.1:69\nPassPacketInfo=yes\n";
    assert!(!is_served(&printed(pair(datagrams, "[Service]\nExecStart=/usr/bin/k\nUser=nobody\n"))));
}

#[test]
fn every_key_of_systemd_has_a_verdict() {
    let dropped = "RestartSteps RestartMode RestartMaxDelaySec StartLimitIntervalSec StartLimitBurst TimeoutAbortSec FinalKillSignal TTYReset \
                   TTYVHangup TTYVTDisallocate SyslogIdentifier CPUAccounting RuntimeDirectoryPreserve NotifyAccess X-Mine";
    let near = "RuntimeDirectoryMode StateDirectoryMode CacheDirectoryMode LogsDirectoryMode ConfigurationDirectory ConfigurationDirectoryMode \
                LogRateLimitIntervalSec LogRateLimitBurst LogLevelMax FileDescriptorStoreMax FileDescriptorStorePreserve MemoryMin MemoryLow \
                MemorySwapMax CPUQuotaPeriodSec AllowedCPUs AllowedMemoryNodes CoredumpFilter PassEnvironment UtmpIdentifier UtmpMode IOWeight \
                ManagedOOMSwap OOMPolicy Delegate DelegateSubgroup CPUAffinity NUMAPolicy IOSchedulingClass KillSignal";
    let lost =
        "SocketBindAllow SocketBindDeny RestrictFileSystems IPIngressFilterPath PrivateBPF PrivateDevices";
    let refused = "RootImage RootVerity MountImages LoadCredential PAMName OpenFile Personality Unheard";
    for (keys, wanted) in [
        (dropped, "dropped: "),
        (near, "near: "),
        (lost, "dropped: WARNING, PROTECTION LOST: "),
        (refused, "refused: "),
    ] {
        for key in keys.split_whitespace() {
            let text = connection(&format!("{key}=2\n"));
            assert!(verdict(&text, &format!("{key}=")).starts_with(wanted), "{key}: {text}");
            assert_eq!(is_served(&text), wanted != "refused: ", "{key}: {text}");
        }
    }
    let off = connection("ProtectProc=default\nPrivateBPF=no\nMountAPIVFS=no\nWatchdogSec=0\nDelegate=no\n");
    assert!(is_served(&off) && !off.contains("LOST"), "{off}");
    assert!(verdict(&off, "Delegate=").starts_with("exact: "), "{off}");
    assert!(verdict(&connection("CPUAffinity=0\n"), "CPUAffinity=").starts_with("near: "));
    let tree = connection("ProtectSystem=strict\nConfigurationDirectory=k:link\n");
    assert!(tree.contains("\"-/etc/k\"") && !tree.contains("link\""), "{tree}");
}

#[test]
fn variables_of_files_that_may_be_absent_are_empty() {
    let unit = |lines: &str| {
        printed(pair(
            ACCEPTS,
            &format!(
                "[Service]\nExecStart=/usr/bin/k -i $OPTIONS ${{MORE}}\nStandardInput=socket\nUser=nobody\n{lines}"
            ),
        ))
    };
    let text = unit("EnvironmentFile=-/etc/default/k\n");
    assert!(is_served(&text) && text.contains("\nexec = [\"/usr/bin/k\", \"-i\", \"\"]\n"), "{text}");
    let said = verdict(&text, "ExecStart=");
    assert!(
        said.starts_with("near: ")
            && said.contains("$OPTIONS is empty as long as there is no /etc/default/k"),
        "{said}"
    );
    assert!(!is_served(&unit("EnvironmentFile=/etc/default/k\n")));
}

#[test]
fn commands_beside_the_program_are_named_with_a_way_out() {
    for (line, way) in [
        ("ExecStartPre=-/bin/mkdir -p /run/k\n", "have tmpfiles.d make it, or below /run RuntimeDirectory="),
        ("ExecStartPre=/usr/bin/ssh-keygen -A\n", "run ssh-keygen once"),
        ("ExecStopPost=/usr/bin/rm /run/k\n", "and then rm"),
    ] {
        let text = connection(line);
        assert!(!is_served(&text) && text.contains(way), "{line}: {text}");
    }
    assert!(is_served(&waiting("", "ExecStop=/bin/kill $MAINPID\n")));
    let named = waiting("", "DynamicUser=yes\n");
    assert!(is_served(&named) && verdict(&named, "DynamicUser=").contains("sysusers.d"), "{named}");
    let text = printed(pair(WAITS, "[Service]\nExecStart=/usr/bin/k\nDynamicUser=yes\n"));
    assert!(!is_served(&text) && text.contains("sysusers.d"), "{text}");
}

#[test]
fn several_servers_of_one_unit_are_several_services() {
    let socat = |port: u16| format!("ExecStart=/bin/sh -c 'socat TCP4-L:{port},fork EXEC:/bin/cat &'\n");
    let unit = format!("[Service]\nUser=nobody\nType=oneshot\nRemainAfterExit=yes\n{}{}", socat(7), socat(9));
    let text = keys(server("x", &unit));
    assert!(text.contains("[service.x]\nlisten = [\"0.0.0.0:7\"]"), "{text}");
    assert!(text.contains("[service.x-2]\nlisten = [\"0.0.0.0:9\"]"), "{text}");
    // Not one of them without the other.
    let text = printed(server("x", &format!("{unit}ExecStart=/bin/true\n")));
    assert!(text.contains("\n#[service.x]") && text.contains("refused: ExecStart=/bin/true"), "{text}");
}

#[test]
fn whoever_may_send_descriptors_still_may_if_it_is_written() {
    let unix = |line: &str| {
        printed(pair(
            &format!("[Socket]\nListenStream=/run/x.sock\nAccept=yes\n{line}"),
            "[Service]\nExecStart=/usr/bin/k\nStandardInput=socket\nUser=nobody\n",
        ))
    };
    assert!(unix("PassRights=yes\n").contains("\npass_rights = true"));
    assert!(unix("PassRights=no\n").contains("\npass_rights = false"));
    assert!(verdict(&unix(""), "PassRights=yes, the default").contains("near"));
    // Over TCP nobody can.
    assert!(!connection("").contains("PassRights"));
}
