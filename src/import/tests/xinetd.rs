//! What xinetd makes of its files, where that is not what one would think; its source is cited in import/xinetd.rs.

use super::*;

/// A service with these lines more, after these.
fn service_after(before: &str, lines: &str) -> Imported {
    xinetd(&format!(
        "{before}service x\n{{\ntype = UNLISTED\nport = 7000\nsocket_type = stream\nprotocol = tcp\nwait = no\nuser = nobody\n\
         server = /usr/bin/foo\n{lines}\n}}\n"
    ))
}

fn service(lines: &str) -> Imported {
    service_after("", lines)
}

fn assert_has(text: &str, parts: &[&str], what: &str) {
    for part in parts {
        assert!(text.contains(part), "{what}: {part} is missing in {text}");
    }
}

#[test]
fn the_place_of_the_braces_says_how_long_prefixes_are() {
    for (written, prefixes) in [
        ("192.168.{0,1}", "[\"192.168.0.0/24\", \"192.168.1.0/24\"]"),
        ("10.{0,2}", "[\"10.0.0.0/16\", \"10.2.0.0/16\"]"),
        ("10.1.2.{0,9}", "[\"10.1.2.0/32\", \"10.1.2.9/32\"]"),
        ("{10,11}", "[\"10.0.0.0/8\", \"11.0.0.0/8\"]"),
        ("192.168.0.0 0.0.0.0", "[\"192.168.0.0/16\", \"0.0.0.0/0\"]"),
    ] {
        let text = keys(service(&format!("only_from = {written}")));
        assert_has(&text, &[&format!("allow = {prefixes}\n")], written);
    }
    for written in ["10.{1,300}", "10.1.2.3.{4}", "10.{1,}", "10.{1", "10.1{2}"] {
        assert_has(&printed(service(&format!("no_access = {written}"))), &["PROTECTION LOST"], written);
    }
}

#[test]
fn addresses_that_xinetd_reads_otherwise_are_not_guessed() {
    for (written, why) in [
        ("192.168.1", "192.168.1.0 may be meant"),
        ("10", "10.0 may be meant"),
        ("010.0.0.0", "octal"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8 may be meant"),
        ("10.0.0.1,10.0.0.2", "no commas"),
        ("host.example", "no names"),
    ] {
        for attribute in ["only_from", "no_access"] {
            let text = printed(service(&format!("{attribute} = {written}")));
            assert_has(&text, &["\n#[service.x]", "PROTECTION LOST", why], written);
        }
    }
    let local = printed(service("only_from = localhost"));
    assert_has(
        &local,
        &["allow = [\"127.0.0.0/8\", \"::1/128\"]\n", "# near: only_from = localhost: "],
        "localhost",
    );
    let both = printed(service("only_from = 10.1.2.0\nno_access = 10.0.0.0"));
    assert_has(&both, &["\n[service.x]", "# near: no_access = 10.0.0.0: of two prefixes"], "both");
    let inner = printed(service("only_from = 10.0.0.0\nno_access = 10.1.2.0"));
    assert_has(&inner, &["# exact: no_access = 10.1.2.0"], "inner");
}

#[test]
fn what_is_set_stays_set() {
    let twice = keys(service("user = root\nport = 9\nflags = IPv4\nflags = IPv6\nserver = /bin/other"));
    assert_has(
        &twice,
        &["listen = [\"0.0.0.0:7000\"]", "exec = [\"/usr/bin/foo\"]", "user = \"nobody\""],
        "twice",
    );
    let text = printed(service("user = root"));
    assert_has(&text, &["# dropped: user = root: it is set already"], "said");
    let mut off = service("disable = yes\ndisable = no");
    finish(&mut off, STYLE, &application());
    assert_eq!(off.services[0].off.as_deref(), Some("disable = yes"));
    assert_eq!(service("disable = true").services[0].off.as_deref(), Some("disable = true"));
    assert_eq!(service("disable = no\ndisable = yes").services[0].off, None);
    let added = printed(service("flags += IPv4"));
    assert_has(
        &added,
        &["listen = [\"*:7000\"]", "# dropped: flags += IPv4: xinetd takes = alone"],
        "operator",
    );
}

#[test]
fn lists_add_up_in_defaults_and_begin_anew_in_services() {
    let of_two = |lists: &str| {
        let services = "service echo\n{\ntype = INTERNAL\n}\nservice daytime\n{\ntype = INTERNAL\n}\n";
        let imported = xinetd(&format!("defaults\n{{\n{lists}\n}}\n{services}"));
        imported.services.iter().map(|service| service.off.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(of_two("disabled = daytime\ndisabled = echo"), [true, true]);
    assert_eq!(of_two("enabled = daytime\nenabled = echo"), [false, false]);
    assert_eq!(of_two("enabled = daytime"), [true, false]);
    let from = "only_from = 10.0.0.1\nonly_from = 10.0.0.2";
    let defaults = keys(service_after(&format!("defaults\n{{\n{from}\n}}\n"), ""));
    assert_has(&defaults, &["allow = [\"10.0.0.1/32\", \"10.0.0.2/32\"]"], "defaults");
    let own = printed(service(&format!(
        "{from}\nno_access = 10.0.0.3\nno_access = 10.0.0.4\nenv = A=1\nenv = B=2"
    )));
    assert_has(
        &own,
        &[
            "\nallow = [\"10.0.0.2/32\"]\n",
            "\ndeny = [\"10.0.0.4/32\"]\n",
            "\nenvironment = { B = \"2\" }\n",
            "# near: only_from = 10.0.0.2: in a service = replaces",
        ],
        "own",
    );
}

#[test]
fn defaults_have_only_what_xinetd_heeds_there() {
    let all = "disable = yes\nflags = IPv4\nuser = root\nenv = A=b\naccess_times = 2:00-9:00\nnice = 5\nport = 9\nrlimit_as = 4M\n\
               deny_time = 5\nunheard = of\nINSTANCES = 4\numask = 027\n";
    let text = printed(service_after(&format!("defaults\n{{\n{all}}}\ndefaults\n{{\numask = 022\n}}\n"), ""));
    assert_has(
        &text,
        &[
            "\n[service.x]\n",
            "listen = [\"*:7000\"]",
            "user = \"nobody\"",
            "max_connections = 4\n",
            "umask = \"027\"\n",
            "dropped: disable = yes: xinetd ignores it in defaults",
            "dropped: access_times = 2:00-9:00: xinetd ignores it in defaults",
            "dropped: unheard = of: xinetd does not know it either",
            "dropped: defaults: xinetd takes the first defaults alone",
        ],
        "defaults",
    );
    assert!(
        !text.contains("environment =") && !text.contains("nice =\n") && !text.contains("limits ="),
        "{text}"
    );
}

#[test]
fn of_both_families_the_sixth_version_has_both() {
    let listen = |lines: &str| keys(service(lines)).lines().nth(1).unwrap().to_owned();
    assert_eq!(listen("flags = IPv4 IPv6"), "listen = [\"*:7000\"]");
    assert_eq!(listen("flags = IPv4 IPv6\nv6only = yes"), "listen = [\"[::]:7000\"]");
    assert_eq!(listen("flags = IPv4"), "listen = [\"0.0.0.0:7000\"]");
}

#[test]
fn quotes_in_an_environment_are_not_kept_in_silence() {
    let text = printed(service("env = \"PYTHONUNBUFFERED=1\" A='b'"));
    assert_has(
        &text,
        &[
            "\nenvironment = { PYTHONUNBUFFERED = \"1\", A = \"b\" }\n",
            "# near: env = ",
            "xinetd takes the quotes for part",
        ],
        "quotes",
    );
    let text = printed(service("env = A=1 B='x y'"));
    assert_has(
        &text,
        &["\n#[service.x]", "xinetd switches a service off for a word without =, as y' is"],
        "word",
    );
}

#[test]
fn words_are_compared_without_case_and_unknown_ones_ignored() {
    let text = printed(service(
        "rlimit_as = 128m\ninstances = unlimited\nrlimit_cpu = unlimited\nunheard = of\nrlimit_foo = 5\nGROUP = games\nenabled = y",
    ));
    assert_has(
        &text,
        &[
            "\n[service.x]\n",
            "limits = { as = \"128M\" }",
            "group = \"games\"",
            "# dropped: unheard = of: xinetd does not know it either",
            "# dropped: rlimit_foo = 5: xinetd does not know it either",
            "# dropped: enabled = y: ",
        ],
        "case",
    );
    let stream = "service x\n{\ntype = unlisted\nport = 9\nsocket_type = STREAM\nprotocol = TCP\nwait = NO\nuser = nobody\nserver = /bin/cat\n}\n";
    assert_has(&keys(xinetd(stream)), &["[service.x]\n", "listen = [\"*:9\"]"], "stream");
}
