//! Who gets in, how many, and how long.

use super::*;
use crate::admission::{Deadlines, Overload, Policy, Rate, RateUnit, SourceLimits};

fn with(lines: &str) -> Result<ServiceConfig, String> {
    let place = Scratch::new();
    place.write("p.toml", &format!("[service.x]\nlisten = \"fd:x\"\nhandler = \"echo\"\n{lines}\n"));
    let shown =
        |problems: Diagnostics| problems.to_string().replace(&format!("{}/", place.path().display()), "");
    let mut loaded = place.load().map_err(shown)?;
    Ok(loaded.config.services.remove(0))
}

fn admission(lines: &str) -> Policy {
    with(lines).unwrap_or_else(|problems| panic!("{problems}")).admission
}

#[track_caller]
fn refused(lines: &str, parts: &[&str]) {
    let shown = with(lines).expect_err(lines);
    for part in parts {
        assert!(shown.contains(part), "{lines}: no {part:?} in\n{shown}");
    }
    assert_eq!(shown.matches(": error: ").count(), 1, "{shown}");
}

#[test]
fn rules_know_the_lines_where_they_were_written() {
    let rules = admission(
        "allow = [\n  \"192.0.2.0/24\", # office\n  \"2001:db8::/32\",\n]\ndeny = \"::ffff:192.0.2.7\"",
    )
    .rules;
    for (address, line) in
        [("192.0.2.1", Some(5)), ("2001:db8::1", Some(6)), ("192.0.2.7", Some(8)), ("::1", None)]
    {
        let decision = rules.decide(address.parse().unwrap());
        let place = decision.rule.map(|rule| rule.place);
        assert_eq!(place.and_then(|place| place.line), line, "{address}");
        assert!(place.is_none_or(|place| place.name.ends_with("/p.toml")), "{place:?}");
        assert_eq!(decision.allowed, matches!(line, Some(5 | 6)), "{address}");
    }
}

#[test]
fn wrong_prefixes_are_errors_with_their_places() {
    refused(
        "deny = [\"192.0.2.0/24\", \"10.0.0.1/8\"]",
        &[
            "p.toml:4:25: error: \"10.0.0.1/8\" has bits beyond its length; the prefix is 10.0.0.0/8\n",
            "help: write \"10.0.0.0/8\", or \"10.0.0.1\" for this one address",
        ],
    );
    refused("proxy_protocol_from = \"10.0.0.0/33\"", &["p.toml:4:23", "no length from 0 to 32"]);
    refused("allow = \"localhost\"", &["p.toml:4:9", "is no prefix", "names are not looked up"]);
    refused("allow = [\"fe80::1%eth0\"]", &["has a zone", "write \"fe80::1\""]);
    refused("deny = [1]", &["p.toml:4:9", "a string"]);
    refused("allow = []", &["everybody or nobody", "remove the key"]);
    assert_eq!(admission("deny = []\nproxy_protocol_from = []"), admission(""));
}

#[test]
fn every_wrong_prefix_of_a_list_is_named() {
    let shown = with("deny = [\"a\", \"::1\", \"b\"]").unwrap_err();
    assert_eq!(shown.matches(": error: ").count(), 2, "{shown}");
}

#[test]
fn rules_that_are_probably_not_meant_are_warnings() {
    let warnings = |lines: &str| {
        let place = Scratch::new();
        place.write("p.toml", &format!("[service.x]\nlisten = \"fd:x\"\nhandler = \"echo\"\n{lines}\n"));
        let loaded = place.load().unwrap();
        loaded.warnings.to_string().replace(&format!("{}/", place.path().display()), "")
    };
    for right in [
        "allow = [\"10.0.0.0/8\", \"::/0\"]\ndeny = [\"10.1.0.0/16\", \"2001:db8::1\"]",
        "deny = [\"10.1.0.0/16\", \"10.1.0.0/16\"]",
        "allow = \"10.1.0.0/16\"",
    ] {
        assert_eq!(warnings(right), "", "{right}");
    }
    let both = warnings("allow = \"10.0.0.0/8\"\ndeny = [\"10.0.0.0/8\", \"10.1.0.0/16\"]");
    assert!(both.contains("p.toml:5:9: warning: 10.0.0.0/8 is in allow, too; deny wins"), "{both}");
    assert!(both.contains("note: allow has it at p.toml:4:9"), "{both}");
    let outside = warnings("allow = \"192.0.2.7\"\ndeny = [\"192.0.2.0/24\", \"::/0\", \"192.0.2.7/32\"]");
    assert!(
        outside.contains("p.toml:5:9: warning: 192.0.2.0/24 (and 1 more) would be refused without this"),
        "{outside}"
    );
}

#[test]
fn limits_of_a_source() {
    assert_eq!(
        admission("").source,
        SourceLimits { prefix_v4: 32, prefix_v6: 64, max_connections: None, rate: None }
    );
    let source = admission(
        "max_connections_per_source = 10\nrate_per_source = \"10/s burst 20\"\nsource_prefix_v4 = 24\nsource_prefix_v6 = 48",
    )
    .source;
    let rate = Rate { count: 10, per: RateUnit::Second, burst: 20 };
    assert_eq!(
        source,
        SourceLimits { prefix_v4: 24, prefix_v6: 48, max_connections: Some(10), rate: Some(rate) }
    );
    for (address, prefix) in [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
    ] {
        assert_eq!(source.prefix_of(address.parse().unwrap()).to_string(), prefix);
    }
    for (key, range) in [
        ("max_connections_per_source", "from 1 to 1000000"),
        ("source_prefix_v4", "from 1 to 32"),
        ("source_prefix_v6", "from 1 to 128"),
    ] {
        refused(&format!("{key} = 0"), &[range]);
        refused(&format!("{key} = 1000001"), &[range]);
    }
}

#[test]
fn rates() {
    for (text, shown) in [
        ("10/s burst 20", "10/s burst 20"),
        ("10/s", "10/s burst 10"),
        ("600/m", "600/m burst 10"),
        ("61/m", "61/m burst 2"),
        ("1000/h", "1000/h burst 1"),
        ("1/h burst 1", "1/h burst 1"),
        ("1000000/s burst 1000000", "1000000/s burst 1000000"),
    ] {
        let rate = admission(&format!("rate_per_source = \"{text}\"")).source.rate.unwrap();
        assert_eq!(rate.to_string(), shown, "{text}");
    }
    for text in [
        "",
        "10",
        "/s",
        "10/",
        "10/d",
        "0/s",
        "-1/s",
        "+1/s",
        "1.5/s",
        "10/s burst",
        "10/s burst 0",
        "10/s 20",
        "10/s burst 20 ",
        " 10/s",
        "10 /s",
        "10/s  burst 20",
        "1000001/s",
        "99999999999999999999/s",
        "10/s burst 1e3",
    ] {
        refused(&format!("rate_per_source = \"{text}\""), &["p.toml:4:19", "is no rate", "as in \"10/s\""]);
    }
    refused("rate_per_source = 10", &["a string", "as in \"10/s\""]);
}

#[test]
fn deadlines_are_longer_than_nothing() {
    let deadlines =
        admission("first_byte_timeout = \"500ms\"\nidle_timeout = \"5m\"\nmax_lifetime = \"1h\"").deadlines;
    let expected = Deadlines {
        first_byte: Some(Duration::from_millis(500)),
        idle: Some(Duration::from_secs(300)),
        lifetime: Some(Duration::from_secs(3600)),
    };
    assert_eq!(deadlines, expected);
    for key in ["first_byte_timeout", "idle_timeout", "max_lifetime"] {
        refused(&format!("{key} = \"0s\""), &["would end every connection", "remove the key"]);
        refused(&format!("{key} = 10"), &["needs a unit"]);
    }
}

#[test]
fn deadlines_of_bytes_are_not_for_programs_at_a_unix_socket() {
    let said = |listen: &str, job: &str, keys: &str| {
        let place = Scratch::new();
        place.write("p.toml", &format!("[service.x]\nlisten = {listen}\n{job}\n{keys}\n"));
        let loaded = place.load();
        let said = loaded.map_or_else(|problems| problems.to_string(), |loaded| loaded.warnings.to_string());
        said.replace(&format!("{}/", place.path().display()), "")
    };
    let (unix, program) = ("[\"127.0.0.1:7\", \"unix:/run/x.sock\"]", "exec = [\"cat\"]");
    let shown = said(unix, program, "idle_timeout = \"5s\"\nfirst_byte_timeout = \"5s\"");
    let part = "error: idle_timeout: it cannot work for a program at a Unix socket";
    assert!(shown.contains(&format!("p.toml:4:1: {part}")), "{shown}");
    assert!(shown.contains("p.toml:5:1: error: first_byte_timeout"), "{shown}");
    assert_eq!(said(unix, program, "max_lifetime = \"5s\""), "");
    assert_eq!(said(unix, "handler = \"echo\"", "idle_timeout = \"5s\""), "");
    assert_eq!(said("[\"127.0.0.1:7\", \"fd:x\"]", program, "idle_timeout = \"5s\""), "");
}

#[test]
fn penalties_can_come_to_what_refuses() {
    let never = "penalties can never come to penalty_threshold";
    refused("penalty_threshold = \"11m\"", &["p.toml:4:21", never, "a shorter time than penalty_limit"]);
    refused("penalty_threshold = \"1m\"\npenalty_limit = \"59s\"", &["p.toml:5:17", never, "a longer time"]);
    let penalties = admission("penalty_threshold = \"11m\"\npenalty_limit = \"11m\"").penalties;
    assert_eq!((penalties.threshold, penalties.longest), (penalties.longest, Duration::from_secs(660)));
}

#[test]
fn overload_policies() {
    let refuse = |message: &str| Overload::Refuse { message: message.into() };
    let longest = "\u{e9}".repeat(256);
    for (lines, policy) in [
        ("", Overload::Queue),
        ("overload = \"queue\"", Overload::Queue),
        ("overload = \"reset\"", Overload::Reset),
        ("overload = \"refuse\"", refuse("")),
        ("overload = \"refuse\"\nrefuse_message = \"busy\"", refuse("busy")),
        (&format!("overload = \"refuse\"\nrefuse_message = \"{longest}\""), refuse(&longest)),
    ] {
        assert_eq!(admission(lines).overload, policy, "{lines}");
    }
    refused("overload = \"drop\"", &["\"drop\" is no value of this key"]);
    refused("overload = \"drop\"\nrefuse_message = \"busy\"", &["\"drop\" is no value of this key"]);
    let long = format!("overload = \"refuse\"\nrefuse_message = \"{longest}\u{e9}\"");
    refused(&long, &["the message has 514 bytes"]);
    for lines in ["", "overload = \"queue\"\n", "overload = \"reset\"\n"] {
        let parts = [":18: error: refuse_message is sent with overload = \"refuse\" only", "add overload"];
        refused(&format!("{lines}refuse_message = \"busy\""), &parts);
    }
}

#[test]
fn a_plan_keeps_everything() {
    let service = with(
        "allow = [\"10.0.0.0/8\", \"::/0\"]\ndeny = \"10.1.0.0/16\"\nproxy_protocol_from = \"10.2.0.0/16\"\n\
         rate_per_source = \"5/m\"\nidle_timeout = \"10s\"",
    )
    .unwrap();
    let again: ServiceConfig = serde_json::from_slice(&serde_json::to_vec(&service).unwrap()).unwrap();
    assert_eq!(again, service);
    assert!(again.admission.proxies.find("10.2.3.4".parse().unwrap()).is_some());
    assert!(!again.admission.rules.decide("10.1.3.4".parse().unwrap()).allowed);
}

#[test]
fn a_line_that_moves_makes_no_other_service() {
    let one = with("deny = [\"10.0.0.0/8\", \"::1\"]").unwrap();
    let other = with("# a comment\ndeny = [\n\"::1\",\n\"10.0.0.0/8\"]").unwrap();
    assert_eq!(one, other);
}

#[test]
fn thousands_of_prefixes_are_loaded_soon() {
    let prefixes: String =
        (0..20_000).map(|number| format!("  \"10.{}.{}.0/24\",\n", number / 256, number % 256)).collect();
    let rules = admission(&format!("deny = [\n{prefixes}]")).rules;
    let rule = rules.decide("10.78.31.9".parse().unwrap()).rule.unwrap();
    assert_eq!((rule.place.line, rule.caller.to_string()), (Some(5 + 78 * 256 + 31), "10.78.31.0/24".into()));
    assert!(rules.decide("10.79.31.9".parse().unwrap()).rule.is_none());
}

/// The warnings about a service with these keys, the headlines only.
fn doubts(keys: &str) -> Vec<String> {
    let place = Scratch::new();
    place.write("p.toml", &format!("[service.x]\nhandler = \"echo\"\n{keys}\n"));
    let warnings = place.load().unwrap_or_else(|problems| panic!("{keys}: {problems}")).warnings;
    warnings.iter().map(|warning| warning.line()).collect()
}

#[test]
fn a_lone_address_that_stands_for_more_elsewhere_is_doubted() {
    for key in ["allow", "deny", "penalty_exempt", "proxy_protocol_from"] {
        for address in ["0.0.0.0", "::", "0.0.0.0/32"] {
            let said = doubts(&format!("listen = \"127.0.0.1:7\"\n{key} = [\"192.0.2.1\", \"{address}\"]"));
            let network = address.split('/').next().unwrap();
            let wanted = format!("{network} stands for itself here, an address that no client has; ");
            assert!(said[0].contains(&wanted), "{key}: {said:?}");
            let names_network = said[0].contains("\"0.0.0.0/0\" and \"::/0\"");
            assert!(names_network != (key == "proxy_protocol_from"), "{said:?}");
        }
    }
    for (list, wanted) in
        [("10.0.0.0", "10.0.0.0/8"), ("192.168.0.0", "192.168.0.0/16"), ("2001:db8::", "2001:db8::/64")]
    {
        let said = doubts(&format!("listen = \"127.0.0.1:7\"\nallow = [\"{list}\"]"));
        assert!(said.len() == 1 && said[0].ends_with(&format!("write \"{wanted}\"")), "{said:?}");
    }
    for list in ["0.0.0.0/0", "::/0", "10.0.0.0/8", "192.0.2.10", "::1", "192.0.2.0"] {
        let said = doubts(&format!("listen = \"127.0.0.1:7\"\nallow = [\"{list}\"]"));
        assert!(said.is_empty(), "{said:?}");
    }
}

#[test]
fn a_tcpd_that_runs_itself_is_doubted() {
    let place = Scratch::new();
    for (keys, is_doubted) in [
        ("exec = [\"/usr/sbin/tcpd\", \"/bin/echo\", \"hello\"]", true),
        ("exec = [\"/usr/sbin/tcpd\", \"hello\"]\nargv0 = \"tcpd\"", true),
        ("exec = [\"/usr/sbin/tcpd\", \"hello\"]\nargv0 = \"/bin/echo\"", false),
        ("exec = [\"/bin/cat\"]\nargv0 = \"tcpd\"", false),
    ] {
        place.write("p.toml", &format!("[service.x]\nlisten = \"127.0.0.1:7\"\n{keys}\n"));
        let warnings = place.load().unwrap_or_else(|problems| panic!("{keys}: {problems}")).warnings;
        let said: Vec<String> = warnings.iter().map(|warning| warning.line()).collect();
        assert_eq!(said.iter().any(|line| line.contains("tcpd itself")), is_doubted, "{keys}: {said:?}");
    }
}

#[test]
fn a_service_that_one_client_can_take_is_doubted() {
    for keys in [
        "listen = \"0.0.0.0:7\"",
        "listen = [\"127.0.0.1:7\", \"[::]:7\"]",
        "listen = \"192.168.1.1:7\"",
        "listen = \"0.0.0.0:7\"\nallow = [\"10.0.0.0/8\", \"192.0.2.0/24\"]",
        "listen = \"0.0.0.0:7\"\nallow = [\"0.0.0.0/0\"]",
        "listen = \"0.0.0.0:7\"\nmax_connections = 5",
    ] {
        let said = doubts(keys);
        assert!(
            said.len() == 1 && said[0].contains("no limit per source and no deadline"),
            "{keys}: {said:?}"
        );
        assert!(said[0].contains("max_connections_per_source") && !said[0].contains('\n'), "{said:?}");
    }
    let open = "listen = \"0.0.0.0:7\"";
    for keys in [
        "listen = [\"127.0.0.1:7\", \"[::1]:7\", \"127.3.2.1:7\"]".to_owned(),
        "listen = \"unix:/run/x\"".to_owned(),
        "listen = \"fd:x\"".to_owned(),
        format!("{open}\nmax_connections_per_source = 5"),
        format!("{open}\nrate_per_source = \"10/s\""),
        format!("{open}\nfirst_byte_timeout = \"10s\""),
        format!("{open}\nidle_timeout = \"10s\""),
        format!("{open}\nmax_lifetime = \"10s\""),
        format!("{open}\nallow = [\"10.0.0.0/8\", \"192.168.7.0/24\", \"fd00::/8\", \"::1\"]"),
    ] {
        assert!(doubts(&keys).is_empty(), "{keys}: {:?}", doubts(&keys));
    }
}
