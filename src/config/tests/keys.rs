//! Keys one by one.

use std::collections::BTreeMap;

use super::*;
use crate::admission::{Deadlines, Overload};
use crate::config::checked::{Identity, PassedDemands};
use crate::config::{AllowedFiles, CallSet, Network};
use crate::shared::Declared;

#[test]
fn an_empty_service_has_the_defaults() {
    let place = Scratch::new();
    place.write("p.toml", "[service.x]\nlisten = \"127.0.0.1:7\"\nhandler = \"echo\"\n");
    let config = place.config();
    assert_eq!(config.supervisor.control_socket.as_deref(), Some(Path::new(control_socket!())));
    assert_eq!(config.supervisor.drain_timeout, Duration::from_secs(30));
    assert_eq!((config.log.target, config.log.level), (LogTarget::Auto, Level::Info));
    let cpus = std::thread::available_parallelism().unwrap().get();
    let expected = ServiceConfig {
        name: "x".into(),
        listen: vec!["127.0.0.1:7".parse().unwrap()],
        job: Job::Handler("echo".into()),
        options: String::new(),
        starts_threads: false,
        shared: Declared::NOTHING,
        wait: false,
        workers: u16::try_from(cpus).unwrap(),
        spare: 0,
        warm: None,
        connections_per_child: 1,
        max_connections: 1000,
        admission: config.services[0].admission.clone(),
        identity: Identity {
            user: None,
            worker: None,
            chroot: None,
            working_directory: None,
            umask: 0o022,
            nice: None,
        },
        environment: BTreeMap::new(),
        credentials: BTreeMap::new(),
        sandbox: config.services[0].sandbox.clone(),
        limits: vec![],
        tree_limits: crate::config::TreeLimits::default(),
        kill_mode: crate::config::KillMode::Group { grace: Duration::ZERO },
        count_bytes: true,
        stderr: StderrTarget::Log,
        records: crate::journal::Records::All,
        socket: SocketOptions {
            backlog: 4096,
            nodelay: true,
            keepalive: crate::config::Keepalive::default(),
            defer_accept: 0,
            interface: None,
            freebind: false,
            transparent: false,
            tos: 0,
            mark: 0,
        },
        socket_access: SocketAccess { user: None, group: None, mode: 0o600, passes_rights: false },
        passed: PassedDemands::default(),
    };
    assert_eq!(config.services, [expected]);
    let admission = &config.services[0].admission;
    assert_eq!((admission.overload.clone(), admission.deadlines), (Overload::Queue, Deadlines::default()));
    let penalties = &admission.penalties;
    assert_eq!((penalties.threshold.as_secs(), penalties.longest.as_secs()), (15, 600));
    assert_eq!((admission.source.prefix_v4, admission.source.prefix_v6), (32, 64));
    let listen = "[\"127.0.0.1:7\", \"unix:/run/x.sock\"]";
    let text = |keys: &str| format!("[service.x]\nlisten = {listen}\nexec = [\"cat\"]\n{keys}");
    let written: String =
        SERVICE.iter().filter_map(|key| Some(format!("{} = {}\n", key.name, key.default?))).collect();
    assert_eq!(service(&text(&written)), service(&text("")), "a default that is written changes nothing");
}

const EVERY_KEY: &[(&str, &str, &[&str])] = &[
    ("connection", "\"listen-fds\"", &["listen-fds"]),
    ("log", "\"failures\"", &["failures"]),
    ("kill_mode", "\"group\"", &["group"]),
    ("kill_grace", "\"3s\"", &["3s"]),
    ("environment_file", "\"-/nonexistent\"", &["-/nonexistent"]),
    ("credentials", "[]", &[]),
    ("argv0", "\"other\"", &["other"]),
    ("workers", "3", &["3"]),
    ("spare", "0", &["0"]),
    ("max_connections", "77", &["77"]),
    ("overload", "\"refuse\"", &["refuse"]),
    ("user", "\"alice\"", &["alice"]),
    ("group", "\"www\"", &["www"]),
    ("chroot", "\"/\"", &["/"]),
    ("working_directory", "\"/usr\"", &["/usr"]),
    ("umask", "\"027\"", &["027"]),
    ("nice", "-5", &["-5"]),
    ("environment", "{ TZ = \"UTC\", A = \"b=c\" }", &["TZ=UTC", "A=b=c"]),
    (
        "sandbox",
        "{ network = \"none\", read = [\"/etc\", \"/usr\"], system_calls = { deny = [\"chmod\"] }, private_tmp = \"2M\" }",
        &["network=none", "read=/etc", "read=/usr", "system_calls={ deny = [\"chmod\"] }", "private_tmp=2M"],
    ),
    ("limits", "{ nofile = 64, as = \"1G\", cpu = \"unlimited\" }", &["nofile=64", "as=1G", "cpu=unlimited"]),
    ("stderr", "\"null\"", &["null"]),
    ("wait", "false", &["false"]),
    ("backlog", "16", &["16"]),
    ("nodelay", "false", &["false"]),
    ("keepalive", "true", &["true"]),
    ("defer_accept", "\"10s\"", &["10s"]),
    ("interface", "\"eth0\"", &["eth0"]),
    ("freebind", "true", &["true"]),
    ("transparent", "true", &["true"]),
    ("tos", "\"low-delay\"", &["low-delay"]),
    ("mark", "7", &["7"]),
    ("socket_user", "\"alice\"", &["alice"]),
    ("socket_group", "33", &["33"]),
    ("socket_mode", "\"0660\"", &["0660"]),
    ("pass_rights", "true", &["true"]),
    ("count_bytes", "false", &["false"]),
    ("control_socket", "\"/run/control.sock\"", &["/run/control.sock"]),
    ("drain_timeout", "\"5m\"", &["5m"]),
    ("target", "\"stderr\"", &["stderr"]),
    ("level", "\"debug\"", &["debug"]),
    ("connections_per_child", "1", &["1"]),
    ("allow", "[\"192.0.2.0/24\", \"::1\"]", &["192.0.2.0/24", "::1"]),
    ("deny", "\"192.0.2.7\"", &["192.0.2.7"]),
    ("proxy_protocol_from", "[\"127.0.0.1\"]", &["127.0.0.1"]),
    ("max_connections_per_source", "10", &["10"]),
    ("rate_per_source", "\"10/s burst 20\"", &["10/s burst 20"]),
    ("source_prefix_v4", "24", &["24"]),
    ("source_prefix_v6", "56", &["56"]),
    ("penalties", "{ crash = \"1m\", 77 = \"5m\" }", &["crash=1m", "77=5m"]),
    ("penalty_threshold", "\"1s\"", &["1s"]),
    ("penalty_limit", "\"1h\"", &["1h"]),
    ("penalty_exempt", "[\"127.0.0.1\"]", &["127.0.0.1"]),
    ("refuse_message", "\"busy\"", &["busy"]),
    ("first_byte_timeout", "\"10s\"", &["10s"]),
    ("idle_timeout", "\"5m\"", &["5m"]),
    ("max_lifetime", "\"1h\"", &["1h"]),
    ("warm", "\"no\"", &["no"]),
    ("warm_max_age", "\"1h\"", &["1h"]),
    ("warm_watch", "[\"/usr\"]", &["/usr"]),
];

#[test]
fn flags_equal_a_file() {
    let is_of_files = |key: &str| key.starts_with("socket_") || key == "pass_rights";
    // This is a handler's, and what is served here is a program.
    let fits_tcp = |key: &str| !is_of_files(key) && key != "options";
    flags_equal_a_file_with("[::1]:7", fits_tcp);
    flags_equal_a_file_with("unix:/run/x.sock", is_of_files);
}

/// Not every key goes with every listener.
fn flags_equal_a_file_with(listen: &str, fits: impl Fn(&str) -> bool) {
    let place = Scratch::new();
    let section = |part: Part| {
        let keys = flags().filter(|flag| flag.part == part && (part != Part::Service || fits(flag.key)));
        let lines = keys.map(|flag| {
            let (_, toml, _) = EVERY_KEY.iter().find(|(key, ..)| *key == flag.key).expect(flag.key);
            format!("{} = {toml}\n", flag.key)
        });
        lines.collect::<String>()
    };
    let text = format!(
        "[supervisor]\n{}[log]\n{}[service.cat]\nlisten = \"{listen}\"\nexec = [\"cat\", \"-u\"]\n{}",
        section(Part::Supervisor),
        section(Part::Log),
        section(Part::Service)
    );
    place.write("p.toml", &text);

    let own = |text: &&str| (*text).to_owned();
    let mut given: Vec<Given> = flags()
        .filter(|flag| flag.part != Part::Service || fits(flag.key))
        .map(|flag| {
            let (.., texts) = EVERY_KEY.iter().find(|(key, ..)| *key == flag.key).unwrap();
            Given {
                label: format!("--{}", flag.name),
                part: flag.part,
                key: flag.key,
                kind: flag.kind,
                texts: texts.iter().map(own).collect(),
            }
        })
        .collect();
    for (key, texts) in [("listen", &[listen][..]), ("exec", &["cat", "-u"])] {
        let texts = texts.iter().map(own).collect();
        given.push(Given { label: key.into(), part: Part::Service, key, kind: Kind::List, texts });
    }
    let accounts = fake(place.path());
    let application = preforkd();
    let machine = Machine { accounts, becomes_others: false, ..Machine::with(&application) };
    let mut of_file = place.config();
    // Whoever types flags looks at what comes of them.
    of_file.supervisor.strict_start = true;
    assert_eq!(from_flags("cat", &given, &machine).unwrap(), of_file);
}

#[test]
fn every_key_refuses_a_wrong_type_and_a_wrong_value() {
    let wrong_values = [
        ("listen", "\"localhost:80\""),
        ("listen", "[]"),
        ("handler", "\"ftp\""),
        ("exec", "[]"),
        ("exec", "[\"\"]"),
        ("exec", "[\"/nonexistent\"]"),
        ("log", "\"some\""),
        ("kill_mode", "\"none\""),
        ("kill_grace", "3"),
        ("connection", "\"socket\""),
        ("connection", "3"),
        ("environment_file", "\"etc/x\""),
        ("environment_file", "\"/nonexistent\""),
        ("environment_file", "[7]"),
        ("credentials", "\"a/b\""),
        ("credentials", "\"none\""),
        ("credentials", "[7]"),
        ("argv0", "\"\""),
        ("argv0", "\"ls\""),
        ("workers", "1025"),
        ("spare", "-1"),
        ("max_connections", "0"),
        ("overload", "\"drop\""),
        ("connections_per_child", "-1"),
        ("warm", "\"yes\""),
        ("warm_max_age", "\"0s\""),
        ("warm_watch", "\"etc\""),
        ("user", "\"carol\""),
        ("user", "-1"),
        ("user", "4294967295"),
        ("group", "\"carol\""),
        ("chroot", "\"usr\""),
        ("chroot", "\"/nonexistent\""),
        ("working_directory", "\"/etc/passwd\""),
        ("umask", "\"089\""),
        ("nice", "20"),
        ("environment", "{ \"\" = \"x\" }"),
        ("limits", "{ nofile = \"64 files\" }"),
        ("stderr", "\"journal\""),
        ("backlog", "0"),
        ("nodelay", "\"yes\""),
        ("keepalive", "\"no\""),
        ("keepalive", "{ idle = \"0s\" }"),
        ("keepalive", "{ every = \"1s\" }"),
        ("defer_accept", "10"),
        ("defer_accept", "\"2h\""),
        ("interface", "\"a/b\""),
        ("freebind", "1"),
        ("transparent", "\"no\""),
        ("tos", "256"),
        ("tos", "\"fast\""),
        ("mark", "-1"),
        ("socket_user", "\"carol\""),
        ("socket_group", "-1"),
        ("socket_mode", "\"0800\""),
        ("pass_rights", "1"),
    ];
    let base = |key: &str| match key {
        "listen" => "handler = \"echo\"\n",
        "handler" | "exec" => "listen = \"127.0.0.1:7\"\n",
        "environment" | "environment_file" | "credentials" | "connection" | "kill_mode" | "kill_grace"
        | "stderr" | "count_bytes" => "listen = \"127.0.0.1:7\"\nexec = [\"cat\"]\n",
        _ => "listen = [\"127.0.0.1:7\", \"unix:/run/x.sock\"]\nhandler = \"echo\"\n",
    };
    let wrong_types = SERVICE
        .iter()
        .flat_map(|key| [(key.name, "1.5"), (key.name, "[[]]"), (key.name, "{ a = 1979-05-27 }")]);
    for (key, value) in wrong_types.chain(wrong_values) {
        let place = Scratch::new();
        place.write("p.toml", &format!("[service.x]\n{}{key} = {value}\n", base(key)));
        let problems = place.load().expect_err(key);
        let line = base(key).lines().count() + 2;
        for problem in problems.iter() {
            assert_eq!(
                problem.place.position.as_ref().map(|at| at.line),
                Some(line),
                "{key} = {value}: {problems}"
            );
            assert!(problem.help.is_some(), "{problem}");
        }
        assert_eq!(problems.errors(), 1, "{key} = {value}: {problems}");
    }
    let others =
        SUPERVISOR.iter().map(|key| ("supervisor", key.name)).chain(LOG.iter().map(|key| ("log", key.name)));
    for (section, key) in others {
        for value in ["1.5", "\"wrong\""] {
            let place = Scratch::new();
            place.write(
                "p.toml",
                &format!("[service.x]\nlisten = \"fd:a\"\nhandler = \"echo\"\n[{section}]\n{key} = {value}"),
            );
            assert_eq!(place.load().expect_err(key).errors(), 1, "{key} = {value}");
        }
    }
}

#[test]
fn what_is_promised_for_later_is_refused() {
    for key in SERVICE.iter().filter(|key| key.decode.is_none()) {
        let shown = complaint(&format!("{} = \"10s\"", key.name));
        assert!(shown.contains(&format!("\"{}\" is not supported by this version", key.name)), "{shown}");
    }
    assert!(complaint("connections_per_child = 100\nspare = 0").contains("without spares"));
}

#[test]
fn what_is_wrong_with_a_sandbox_is_said_at_its_place() {
    for (lines, right) in [
        ("sandbox = true", "boolean where a table is expected"),
        ("sandbox = \"none\"", "write a table"),
        ("[service.x.sandbox]\nnetworks = \"none\"", "did you mean \"network\"?"),
        ("[service.x.sandbox]\nnetwork = \"local\"", "write one of \"none\", \"client\", \"any\""),
        ("[service.x.sandbox]\nread = [\"srv\"]", "\"srv\" is not an absolute path"),
        (
            "[service.x.sandbox]\nread = [\"/nonexistent\"]",
            "cannot allow /nonexistent: there is no such file",
        ),
        ("[service.x.sandbox]\nread = [\"/proc/self/maps\"]", "write \"/proc\""),
        ("[service.x.sandbox]\nsystem_calls = \"few\"", "write one of \"handler\", \"service\", \"any\""),
        (
            "[service.x.sandbox]\nsystem_calls = { base = \"any\", allows = [] }",
            "the keys are base, allow and deny",
        ),
        ("[service.x.sandbox]\nsystem_calls = { deny = [\"socke\"] }", "did you mean \"socket\"?"),
        ("[service.x.sandbox]\nno_new_privs = false\nnetwork = \"none\"", "the kernel forbids it"),
        ("[service.x.sandbox]\nno_new_privs = false\npid_namespace = true", "the kernel forbids it"),
        ("[service.x.sandbox]\nprivate_tmp = \"much\"", "\"much\" is no size of a directory"),
        ("[service.x.sandbox]\nprivate_tmp = \"1023K\"", "write true, false, or a size from 1M"),
        ("[service.x.sandbox]\nprivate_tmp = 4", "where a boolean or a size is expected"),
        (
            "kill_grace = \"1s\"\n[service.x.sandbox]\npid_namespace = true",
            "remove pid_namespace, or kill_grace",
        ),
        (
            "kill_mode = \"process\"\n[service.x.sandbox]\npid_namespace = true",
            "remove pid_namespace, or kill_mode = \"process\"",
        ),
        (
            "working_directory = \"/tmp/..\"\n[service.x.sandbox]\nprivate_tmp = true",
            "private_tmp hides /tmp/..",
        ),
        ("[service.x.sandbox]\nrequired = \"yes\"", "string \"yes\" where a boolean is expected"),
    ] {
        let shown = complaint(lines);
        assert!(shown.contains(right), "{lines}: {shown}");
    }
    let place = Scratch::new();
    let program =
        "[service.x]\nlisten = \"fd:a\"\nexec = [\"cat\"]\nsandbox = { system_calls = \"handler\" }";
    place.write("p.toml", program);
    assert!(place.complaints().contains("no program could even be started"), "{}", place.complaints());
}

#[test]
fn what_a_sandbox_is_without_a_word_depends_on_the_job() {
    let of =
        |job: &str, keys: &str| service(&format!("[service.x]\nlisten = \"fd:a\"\n{job}\n{keys}")).sandbox;
    let handler = of("handler = \"echo\"", "").unwrap();
    assert_eq!((handler.network, handler.write_execute, handler.required), (Network::None, false, false));
    assert_eq!(handler.files, Some(AllowedFiles::default()));
    assert_eq!(handler.system_calls.base, CallSet::Service);
    let program = of("exec = [\"cat\"]", "").unwrap();
    assert_eq!((program.network, program.write_execute, program.required), (Network::Any, true, false));
    assert_eq!((program.files, program.system_calls.base), (None, CallSet::Service));

    for none in ["sandbox = false", "sandbox = { no_new_privs = false }"] {
        assert_eq!(of("exec = [\"cat\"]", none), None, "{none}");
    }
    let written =
        of("exec = [\"cat\"]", "sandbox = { read = \"/usr\", write = [\"-/nonexistent\"] }").unwrap();
    let files = written.files.unwrap();
    assert_eq!(files.read.len() + files.write.len(), 2);
    // It may be executed itself.
    assert_eq!(files.execute.len(), 1);
    assert!(written.required);
    // What may be missing is, and the directories themselves are there.
    let private = of(
        "exec = [\"cat\"]\nworking_directory = \"/tmp\"",
        "sandbox = { private_tmp = true, write = [\"/tmp\", \"/var/tmp\", \"-/tmp/nonexistent\"], network_namespace = true }",
    );
    let private = private.unwrap();
    assert_eq!(
        (private.private_tmp, private.network_namespace, private.pid_namespace),
        (Some(64 << 20), true, false)
    );
}

#[test]
fn nul_bytes_are_refused_everywhere() {
    for line in [
        "exec = [\"/bin/cat\", \"a\\u0000\"]",
        "environment = { \"A\\u0000\" = \"\" }",
        "chroot = \"/\\u0000\"",
    ] {
        assert!(complaint(line).contains("a NUL byte cannot be passed on"), "{line}");
    }
}
