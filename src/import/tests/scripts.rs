//! What a shell makes of a script, and what a server of its command line.

use super::*;

fn assert_has(text: &str, parts: &[&str], what: &str) {
    for part in parts {
        assert!(text.contains(part), "{what}: {part} is missing in {text}");
    }
}

fn exec(command: &str) -> String {
    let text = keys(script(command, None));
    text.lines().find_map(|line| line.strip_prefix("exec = ")).unwrap_or(&text).to_owned()
}

#[test]
fn a_redirection_takes_its_file_with_it() {
    for redirections in [
        "> /dev/null 2>&1 &",
        ">/dev/null 2> /var/log/err",
        "2> /dev/null",
        "3>&1",
        "3>& 1",
        "&> /dev/null",
        "&>>/x",
        ">> /x 2>&1 | logger -t x",
        "< /dev/null",
        "<<< word",
        "<<E\ntcpserver 0 25 foo\ncd /x\nE\n",
        "<<-\"E\"\ntcpserver 0 25 foo\n\tE\n",
        ">|/x",
        "# > /x",
    ] {
        let imported = script(&format!("tcpserver 0 7000 /bin/cat {redirections}\n"), None);
        assert_eq!(imported.services.len(), 1, "{redirections}");
        assert_has(&keys(imported), &["listen = [\"0.0.0.0:7000\"]\nexec = [\"/bin/cat\"]\n"], redirections);
    }
    // In quotes, or in a word, it is none.
    assert_eq!(
        exec("tcpserver 0 7000 /bin/x '>' \\> 'a >b' a2 2\n"),
        "[\"/bin/x\", \">\", \">\", \"a >b\", \"a2\", \"2\"]"
    );
    let after = script("cat <<E > /etc/x\ntcpserver 0 25 foo\nE\nexec tcpserver 0 7 /bin/cat\n", None);
    assert_eq!(after.services.len(), 1);
}

#[test]
fn quotes_go_over_lines() {
    assert_eq!(
        exec("socat TCP-L:7,fork 'SYSTEM:\"read x\necho y\"'\n"),
        "[\"/bin/sh\", \"-c\", \"read x\\necho y\"]"
    );
    // An apostrophe in a comment begins nothing.
    assert_eq!(exec("# don't\ntcpserver 0 7 /bin/cat # doesn't\n"), "[\"/bin/cat\"]");
}

#[test]
fn the_group_of_a_user_is_no_group_of_his_name() {
    let own = printed(script(
        "exec tcpserver -u \"$(id -u vpopmail)\" -g \"$(id -g vpopmail)\" 0 89 /bin/x\n",
        None,
    ));
    assert_has(
        &own,
        &["user = \"vpopmail\"\n", "# exact: -g `id -g vpopmail`: the first group of the user"],
        "own",
    );
    assert!(!own.contains("\ngroup ="), "{own}");
    let later = keys(script(
        "U=mail\nA=`/usr/bin/id -u $U`\nG=`id -g $U`\nexec tcpserver -u$A -g$G 0 89 /bin/x\n",
        None,
    ));
    assert!(later.contains("user = \"mail\"\n") && !later.contains("group"), "{later}");
    for text in [
        "exec tcpserver -u qmaild -g `id -g vpopmail` 0 89 /bin/x\n",
        "exec tcpserver -g `id -g vpopmail` 0 89 /bin/x\n",
        "exec tcpserver 0 `id -u vpopmail` /bin/x\n",
        "export A=`id -u x`\nexec tcpserver 0 7 /bin/x\n",
    ] {
        let text = printed(script(text, None));
        assert_has(&text, &["\n#[service.", "# refused: "], &text);
    }
}

#[test]
fn what_a_branch_sets_is_known_if_all_set_it() {
    let listen = |script: &str| {
        let text = printed(self::script(&format!("{script}\nexec tcpserver 0 $PORT /bin/x\n"), None));
        text.lines().find_map(|line| line.strip_prefix("listen = ").map(str::to_owned)).unwrap_or_default()
    };
    for known in [
        "if test -f /x; then PORT=7; else PORT=7; fi",
        "case $1 in a|b) PORT=7 ;; (*) PORT=7 ;; esac",
        "case $1 in a) PORT=7 ;; *) echo usage; exit 1 ;; esac",
        "PORT=7; if [ -z \"$X\" ]; then A=1; fi",
        "PORT=7\n[ -d /x ] || { echo no; PORT=8; exit 1; }",
        "PORT=9; PORT=7",
        "A=7 B=8\nPORT=$A",
        "PORT=7\n(PORT=8; true)",
        "f() {\n A=8\n}\nPORT=7",
    ] {
        assert_eq!(listen(known), "[\"0.0.0.0:7\"]", "{known}");
    }
    for open in [
        "if test -f /x; then PORT=7; else PORT=8; fi",
        "if test -f /x; then PORT=7; elif test -f /y; then PORT=7; fi",
        "PORT=7; if test -f /x; then PORT=8; fi",
        "PORT=7\nwhile read x; do PORT=8; done < /x",
        "case $1 in a) PORT=7 ;; b) PORT=7 ;; esac",
        "PORT=7\n[ -f /x ] && PORT=8",
        "PORT=7; f() { PORT=8; }; f",
        "for PORT in 7 8; do true; done",
        "PORT=7; read PORT",
        "PORT=7; PORT+=8",
    ] {
        assert_eq!(listen(open), "", "{open}");
    }
}

#[test]
fn what_a_branch_does_is_done_only_if_the_server_is_in_it() {
    for (text, wanted) in [
        ("if true; then cd /srv; umask 027; exec tcpserver 0 7 /bin/x; fi\n", "umask = \"027\"\n"),
        (
            "case $1 in stop) cd /y; kill 1;; start) cd /srv; tcpserver 0 7 /bin/x;; esac\n",
            "working_directory = \"/srv\"\n",
        ),
        ("(cd /y; make)\ncd /srv && exec tcpserver 0 7 /bin/x\n", "working_directory = \"/srv\"\n"),
        ("main() {\n cd /srv\n tcpserver 0 7 /bin/x\n}\nmain\n", "working_directory = \"/srv\"\n"),
        ("while true; do cd /srv; tcpserver 0 7 /bin/x; done\n", "working_directory = \"/srv\"\n"),
    ] {
        let text = printed(script(text, None));
        assert_has(&text, &["\n[service.echo]\n", wanted], &text);
        assert!(!text.contains("kill 1"), "{text}");
    }
    for text in [
        "if [ -d /x ]; then cd /x; fi\nexec tcpserver 0 7 /bin/x\n",
        "if [ -d /x ]; then export A=b; fi\nexec tcpserver 0 7 /bin/x\n",
        "export A=b\nif [ -d /x ]; then A=c; fi\nexec tcpserver 0 7 /bin/x\n",
        "[ -d /x ] && umask 077\nexec tcpserver 0 7 /bin/x\n",
    ] {
        let text = printed(script(text, None));
        assert_has(&text, &["\n#[service.echo]\n", "under a condition"], &text);
    }
    let quiet = printed(script(
        "if [ -z \"$1\" ]\nthen\n exit 1\nelse\n true\nfi\nexec tcpserver 0 7 /bin/x\n",
        None,
    ));
    assert_has(&quiet, &["\n[service.echo]\n", "# near: if [ -z $1 ]: preforkd asks nothing"], "quiet");
    let named = "[ -x /bin/tcpserver ] || exit 1\nif ! command -v tcpserver; then echo no tcpserver >&2; exit 1; fi\nexec tcpserver 0 7 /bin/x\n";
    assert_eq!(script(named, None).services.len(), 1);
    assert_has(
        &printed(script(named, None)),
        &["\n[service.echo]\n", "# dropped: echo no tcpserver: "],
        named,
    );
    for keyword in [": then", ": else", ": fi", ": exit", "ExecStartPre"] {
        assert!(!quiet.contains(keyword), "{keyword}: {quiet}");
    }
}

#[test]
fn variables_are_known_from_all_that_sets_them() {
    let environment = |script: &str| {
        let text = printed(self::script(&format!("{script}\nexec tcpserver 0 7 /bin/x\n"), None));
        text.lines().find_map(|line| line.strip_prefix("environment = ").map(str::to_owned)).unwrap_or(text)
    };
    assert_eq!(environment("FOO=x\nexport FOO"), "{ FOO = \"x\" }");
    assert_eq!(environment("RELAYCLIENT=\"\"; export RELAYCLIENT"), "{ RELAYCLIENT = \"\" }");
    assert_eq!(environment("export A=1; export B=\"$A 2\"; A=3"), "{ A = \"3\", B = \"1 2\" }");
    let text = printed(script(
        "PORT=${PORT:-1337}\nexec tcpserver 0 ${PORT} /bin/x ${1-a} ${HOST:=b} $HOST\n",
        None,
    ));
    assert_has(
        &text,
        &[
            "listen = [\"0.0.0.0:1337\"]\n",
            "exec = [\"/bin/x\", \"a\", \"b\", \"b\"]\n",
            "# near: ${PORT:-1337}: \"1337\", unless the environment of the script says otherwise",
        ],
        "defaults",
    );
    assert_eq!(exec("A=7; tcpserver 0 ${A:-9} /bin/x \"${A-8}\"\n"), "[\"/bin/x\", \"7\"]");
    for open in ["${A%7}", "${A:-$B}", "$((7+1))", "${A:?}"] {
        assert_has(
            &printed(script(&format!("exec tcpserver 0 {open} /bin/x\n"), None)),
            &["# refused: "],
            open,
        );
    }
}

#[test]
fn shells_and_su_are_looked_into() {
    for command in [
        "su ctf -c \"socat TCP4-L:7,fork EXEC:/bin/x\"\n",
        "su - ctf -s /bin/sh -c 'exec socat TCP4-L:7,fork EXEC:/bin/x'\n",
        "runuser -u ctf -- socat TCP4-L:7,fork EXEC:/bin/x\n",
        "exec setuidgid ctf sh -ec 'umask 022; exec socat TCP4-L:7,fork EXEC:/bin/x 2> /dev/null'\n",
        "PORT=7\nexec su ctf -c \"exec bash -c 'socat TCP4-L:$PORT,fork EXEC:/bin/x'\" &\n",
        "exec s6-applyuidgid -u ctf -- socat TCP4-L:7,fork EXEC:/bin/x\n",
        "exec s6-envuidgid -D 65534 ctf s6-applyuidgid -U socat TCP4-L:7,fork EXEC:/bin/x\n",
    ] {
        let text = keys(script(command, None));
        assert_has(
            &text,
            &["listen = [\"0.0.0.0:7\"]\nexec = [\"/bin/x\"]\nuser = \"ctf\"\n", "[service.echo]\n"],
            command,
        );
    }
    let numbers =
        keys(script("exec s6-applyuidgid -u 1000 -g 1001 -- s6-tcpserver 0.0.0.0 7 /bin/x\n", None));
    assert_has(&numbers, &["user = \"1000\"\ngroup = \"1001\"\n"], "numbers");
    let directory = printed(script("envdir ./env sh -c 'exec envuidgid x tcpserver -U 0 7 /bin/x'\n", None));
    assert_has(&directory, &["#[service.echo]\n", "refused: envdir ./env", "#user = \"x\""], "envdir");
    // A shell that is the program of a server is no server.
    assert_eq!(exec("tcpserver 0 7 sh -c 'socat TCP-L:9 -'\n"), "[\"sh\", \"-c\", \"socat TCP-L:9 -\"]");
    let open = printed(script("su ctf -c \"socat TCP4-L:$WHAT,fork EXEC:/bin/x\"\n", None));
    assert_has(&open, &["# refused: "], "open");
    let unit = "[Service]\nExecStart=/usr/bin/envdir /x sh -c 'exec tcpserver 0 7 /bin/x'\n";
    assert_has(&printed(server("x", unit)), &["refused: /usr/bin/envdir /x"], "unit");
}

#[test]
fn a_script_that_nobody_can_find_is_refused() {
    for command in [
        "socat TCP-L:7,fork EXEC:./chall\n",
        "socat TCP-L:7,fork EXEC:'python3 challenge.py'\n",
        "socat TCP-L:7,fork EXEC:'python3 -u challenge.py',pty\n",
        "exec tcpserver 0 7 python3 challenge.py\n",
        "ncat -lk -p 7 -e '/usr/bin/perl x.pl'\n",
    ] {
        let text = printed(script(command, None));
        assert_has(&text, &["\n#[service.echo]\n", "from which directory is not known here"], command);
        let text = printed(script(&format!("cd /srv\n{command}"), None));
        assert_has(&text, &["\n[service.echo]\n", "\nworking_directory = \"/srv\"\n"], command);
    }
    for command in [
        "socat TCP-L:7,fork EXEC:'python3 /srv/challenge.py'\n",
        "socat TCP-L:7,fork EXEC:'python3 -m http.server'\n",
        "socat TCP-L:7,fork EXEC:'bash -c cat'\n",
        "socat TCP-L:7,fork EXEC:'cat ./x'\n",
    ] {
        assert_has(&printed(script(command, None)), &["\n[service.echo]\n"], command);
    }
    let unit =
        "[Service]\nWorkingDirectory=/srv\nExecStart=/usr/bin/socat TCP-L:7,fork EXEC:'python3 x.py'\n";
    assert_has(&printed(server("x", unit)), &["\n[service.x]\n", "working_directory = \"/srv\""], "unit");
}

#[test]
fn files_of_one_line_are_read() {
    let text = "MAX=`cat /var/qmail/control/concurrencyincoming`\nexec tcpserver -c \"$MAX\" 0 \"$(head -1 port)\" /bin/x\n";
    let read = printed(script(text, Some("20\n")));
    assert_has(
        &read,
        &[
            "max_connections = 20\n",
            "listen = [\"0.0.0.0:20\"]\n",
            "# near: `cat /var/qmail/control/concurrencyincoming`: 20 as it is now",
        ],
        "read",
    );
    for (beside, what) in [(None, "none"), (Some("20\n30\n"), "two"), (Some("a b\n"), "words")] {
        assert_has(&printed(script(text, beside)), &["# refused: -c `cat "], what);
    }
    assert_has(
        &keys(script("exec tcpserver 0 $(head -n 1 p) /bin/x\n", Some("7\n8\n"))),
        &["0.0.0.0:7\""],
        "head",
    );
    assert_has(&keys(script("socat TCP4-L:$(< p),fork EXEC:/bin/x\n", Some("7"))), &["0.0.0.0:7\""], "socat");
}

#[test]
fn command_lines_of_ncat_and_busybox() {
    for (command, wanted) in [
        (
            "ncat -lk -p 7 -e /bin/x",
            "listen = [\"*:7\"]\nexec = [\"/bin/x\"]\nuser = \"root\"\nmax_connections = 100\noverload = \"refuse\"\n",
        ),
        (
            "ncat -4 -kl 127.0.0.1 7 -c 'read x; echo $x' -m 5",
            "listen = [\"127.0.0.1:7\"]\nexec = [\"/bin/sh\", \"-c\", \"read x; echo $x\"]\nuser = \"root\"\nmax_connections = 5\n",
        ),
        (
            "ncat --listen --keep-open --exec '/bin/x a b' -p7 -6 --max-conns=9",
            "listen = [\"[::]:7\"]\nexec = [\"/bin/x\", \"a\", \"b\"]\nuser = \"root\"\nmax_connections = 9\n",
        ),
        ("ncat -lk 7 -e /bin/x --allow 10.0.0.0/8,192.0.2.1", "allow = [\"10.0.0.0/8\", \"192.0.2.1/32\"]\n"),
        ("busybox nc -lk -p 7 -e /bin/x -i", "listen = [\"*:7\"]\nexec = [\"/bin/x\", \"-i\"]\n"),
        ("nc -ll -p 7 -e /bin/x", "listen = [\"*:7\"]\nexec = [\"/bin/x\"]\n"),
        ("nc -lkp 7 -e '/bin/x a'", "exec = [\"/bin/x\", \"a\"]\n"),
        ("sudo -u nobody nc -lkvp 7 -e /bin/x", "user = \"nobody\"\n"),
    ] {
        let text = keys(script(&format!("{command}\n"), None));
        assert_has(&text, &["[service.echo]\n", wanted], command);
    }
    for (command, why) in [
        ("ncat -l -p 7 -e /bin/x", "without -k"),
        ("nc -l -p 7 -e /bin/x", "without -k"),
        ("ncat -lku 7 -e /bin/x", "datagrams"),
        ("ncat -lk 7 --ssl --ssl-cert x -e /bin/x", "PROTECTION LOST: --ssl"),
        ("ncat -lk 7 --allowfile x -e /bin/x", "PROTECTION LOST: --allowfile"),
        ("ncat -lk 7 --allow host.example -e /bin/x", "PROTECTION LOST: --allow"),
        ("ncat -lk 7 -i 5 -e /bin/x", "who is silent"),
        ("ncat -lk 7 --unheard-of -e /bin/x", "not known"),
        ("ncat -lk -p $PORT -e /bin/x", "only the script itself knows"),
        ("ncat -lk host.example 7 -e /bin/x", "no address"),
        ("exec sslserver -c 9 0 7 /bin/x", "PROTECTION LOST: sslserver"),
        ("exec udpsvd 0 7 /bin/x", "wait = true"),
    ] {
        let text = printed(script(&format!("{command}\n"), None));
        assert_has(&text, &["\n#[service.", "# refused: ", why], command);
    }
    for client in ["nc -z host 7", "nc host 7 -e /bin/x", "nc -l 7 > /x", "ncat -l 7"] {
        assert!(script(&format!("{client}\n"), None).services.is_empty(), "{client}");
    }
    assert_eq!(exec("tcpserver 0 7 nc 192.0.2.1 7\n"), "[\"nc\", \"192.0.2.1\", \"7\"]");
}

#[test]
fn a_bind_that_is_no_address_has_one_verdict() {
    let text = printed(script("socat TCP-L:7,bind=eth0,fork EXEC:/bin/x\n", None));
    assert_eq!(text.matches(": bind=eth0: ").count(), 1, "{text}");
    assert_has(&text, &["# refused: bind=eth0: "], "bind");
}
