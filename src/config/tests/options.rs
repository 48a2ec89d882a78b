//! The options of handlers, and what a program itself says of its services.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use serde::Deserialize;

use super::*;
use crate::handler::{ClientConnection, Handler, NoOptions};
use crate::shared::Layout;

#[derive(Deserialize)]
#[allow(dead_code, reason = "read by serde alone")]
struct Page {
    path: String,
    #[serde(default)]
    hits: u8,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "read by serde alone")]
struct Options {
    greeting: String,
    #[serde(default)]
    times: u8,
    #[serde(default)]
    upstream: Option<IpAddr>,
    #[serde(default)]
    pages: Vec<Page>,
    #[serde(default)]
    names: BTreeMap<String, u8>,
}

struct Greeter;

impl Handler for Greeter {
    type Options = Options;

    fn serve(&self, _: &mut ClientConnection<'_>) -> io::Result<()> {
        Ok(())
    }
}

fn greeter() -> Application {
    let mut application = Application::new("greeter");
    application.add("greeter", Greeter);
    application.add("silent", |_: &mut ClientConnection<'_>| Ok(()));
    application
}

const HEAD: &str = "[service.x]\nlisten = \"127.0.0.1:7\"\n";

fn load_with(application: &Application, text: &str) -> Result<ServiceConfig, String> {
    let place = Scratch::new();
    place.write("p.toml", &format!("{HEAD}{text}"));
    match place.load_for(application) {
        Ok(loaded) => Ok(loaded.config.services.into_iter().next().unwrap()),
        Err(problems) => Err(problems.to_string().replace(&place.path().display().to_string(), "DIR")),
    }
}

fn complaints(options: &str) -> String {
    let text = format!("handler = \"greeter\"\n[service.x.options]\n{options}");
    load_with(&greeter(), &text).unwrap_err()
}

#[test]
fn what_is_right_reaches_the_worker_as_it_was_written() {
    let options = "greeting = \"hi\"\ntimes = 3\nupstream = \"192.0.2.1\"\nnames = { a = 1 }\npages = [{ path = \"/\" }]\n";
    let service =
        load_with(&greeter(), &format!("handler = \"greeter\"\n[service.x.options]\n{options}")).unwrap();
    let written: toml::Table = toml::from_str(options).unwrap();
    assert_eq!(toml::from_str::<toml::Table>(&service.options).unwrap(), written);
    assert_eq!(can_serve(&service, &greeter()), Ok(()));
    let silent = load_with(&greeter(), "handler = \"silent\"\n").unwrap();
    assert_eq!(silent.options, "");
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_place() {
    let shown = complaints("greetin = 7\ntimes = 999\nupstream = \"nowhere\"\npages = [{ hits = 1 }]\n");
    let expected = "DIR/p.toml:4:12: error: \"greeting\" is missing in [service.x.options]\n";
    for said in [
        "DIR/p.toml:5:1: error: unknown key \"greetin\" in [service.x.options]\n",
        "   help: did you mean \"greeting\"?\n",
        "DIR/p.toml:6:9: error: \"times\": integer `999` where u8 is expected\n",
        "DIR/p.toml:7:12: error: \"upstream\": invalid IP address syntax\n",
        "DIR/p.toml:8:10: error: \"path\" is missing in \"pages\"\n",
        expected,
    ] {
        assert!(shown.contains(said), "{said}in\n{shown}");
    }
    assert_eq!(shown.matches(": error: ").count(), 5, "{shown}");
}

#[test]
fn what_is_further_in_is_found_too() {
    let shown = complaints("greeting = \"\"\npages = [{ path = \"/\" }, { path = \"/a\", hit = 3 }]\n");
    assert!(
        shown
            .starts_with("DIR/p.toml:6:41: error: unknown key \"hit\" in [service.x.options]: pages.1.hit\n"),
        "{shown}"
    );
    let shown = complaints("greeting = \"\"\nnames = { a = \"x\" }\n");
    assert!(
        shown.starts_with("DIR/p.toml:6:15: error: \"names\": string \"x\" where u8 is expected\n"),
        "{shown}"
    );
}

#[test]
fn who_has_no_options_says_so() {
    let shown = load_with(&greeter(), "handler = \"silent\"\noptions = { a = 1 }\n").unwrap_err();
    assert!(shown.contains(":4:13: error: unknown key \"a\" in [service.x.options]"), "{shown}");
    assert!(shown.contains("help: this handler has no options"), "{shown}");
    let shown = load_with(&greeter(), "exec = [\"cat\"]\noptions = { a = 1 }\n").unwrap_err();
    assert!(shown.contains("options can do nothing: they are a handler's, and this is a program"), "{shown}");
    let shown = load_with(&greeter(), "handler = \"greeter\"\noptions = 7\n").unwrap_err();
    assert!(shown.contains("integer where a table is expected"), "{shown}");
    let shown = load_with(&greeter(), "handler = \"greeter\"\n").unwrap_err();
    assert!(
        shown.contains("DIR/p.toml:1:10: error: \"greeting\" is missing in [service.x.options]"),
        "{shown}"
    );
}

fn flags_with(texts: &[&str]) -> Result<ServiceConfig, String> {
    let own = |key, kind, texts: &[&str]| Given {
        label: format!("--{key}"),
        part: Part::Service,
        key,
        kind,
        texts: texts.iter().map(ToString::to_string).collect(),
    };
    let given = [
        own("listen", Kind::List, &["127.0.0.1:7"]),
        own("handler", Kind::Text, &["greeter"]),
        own("options", Kind::Options, texts),
    ];
    let application = greeter();
    let config = from_flags("x", &given, &Machine::with(&application));
    config.map(|mut config| config.services.remove(0)).map_err(|problems| problems.to_string())
}

#[test]
fn a_flag_takes_texts_and_values() {
    let service = flags_with(&["greeting=hello you", "times=3", "pages=[{path='/'}]"]).unwrap();
    let options: toml::Table = toml::from_str(&service.options).unwrap();
    assert_eq!((options["greeting"].as_str(), options["times"].as_integer()), (Some("hello you"), Some(3)));
    assert_eq!(options["pages"][0]["path"].as_str(), Some("/"));
    let shown = flags_with(&["greeting=a", "times=many", "upstream=b"]).unwrap_err();
    assert!(shown.contains("--options: error: \"times\": string \"many\" where u8 is expected"), "{shown}");
    assert!(shown.contains("--options: error: \"upstream\": invalid IP address syntax"), "{shown}");
    let shown = flags_with(&["times=1"]).unwrap_err();
    assert!(shown.contains("--options: error: \"greeting\" is missing"), "{shown}");
}

#[test]
fn a_program_has_defaults_of_its_own_which_a_file_overrides() {
    let mut application = greeter();
    application.defaults =
        "handler = \"silent\"\nidle_timeout = \"7s\"\nsandbox = { network = \"client\" }\n";
    let service = load_with(&application, "").unwrap();
    assert_eq!(service.job, Job::Handler("silent".into()));
    assert_eq!(service.admission.deadlines.idle, Some(Duration::from_secs(7)));
    assert_eq!(service.sandbox.unwrap().network, Network::Client);
    let service = load_with(&application, "idle_timeout = \"9s\"\nsandbox = false\n").unwrap();
    assert_eq!((service.admission.deadlines.idle, service.sandbox), (Some(Duration::from_secs(9)), None));
    let service = load_with(&application, "exec = [\"cat\"]\n").unwrap();
    assert_eq!(service.admission.deadlines.idle, None, "a program has its own");

    for (wrong, said) in [
        ("idle_timeout = 7", "defaults of greeter itself: error: a duration needs a unit"),
        (
            "idle_timeot = 7",
            "defaults of greeter itself: error: unknown key \"idle_timeot\" in Server::defaults()",
        ),
        ("idle_timeout", "defaults of greeter itself: error: TOML syntax: "),
    ] {
        application.defaults = wrong;
        let shown = load_with(&application, "handler = \"silent\"\n").unwrap_err();
        assert!(shown.contains(said), "{shown}");
        assert_eq!(shown.matches(": error: ").count(), 1, "{shown}");
    }
}

#[test]
fn the_only_handler_need_not_be_named() {
    let mut application = Application::new("one");
    application.add("one", |_: &mut ClientConnection<'_>| Ok(()));
    assert_eq!(load_with(&application, "").unwrap().job, Job::Handler("one".into()));
    let shown = load_with(&greeter(), "").unwrap_err();
    assert!(shown.contains("help: add handler = \"greeter\", or exec"), "{shown}");
    let place = Scratch::new();
    place.write("p.toml", HEAD);
    let config = place.load_for(&application).unwrap().config;
    assert_eq!(config.supervisor.control_socket.as_deref(), Some(Path::new("/run/one/control.sock")));
}

#[test]
fn an_upgrade_needs_a_handler_that_takes_the_same_options() {
    let service =
        load_with(&greeter(), "handler = \"greeter\"\noptions = { greeting = \"\", times = 3 }\n").unwrap();
    let mut other = Application::new("greeter");
    assert_eq!(can_serve(&service, &other), Err("it has no handler \"greeter\"".into()));
    other.add("greeter", |_: &mut ClientConnection<'_>| Ok(()));
    assert_eq!(can_serve(&service, &other), Err("unknown key \"greeting\" in [service.x.options]".into()));
}

/// Shares a number.
#[derive(Default)]
struct Sharing(&'static str);

impl Handler for Sharing {
    type Options = NoOptions;

    fn share(&mut self, layout: &mut Layout) {
        layout.counter(self.0);
    }

    fn serve(&self, _: &mut ClientConnection<'_>) -> io::Result<()> {
        Ok(())
    }
}

fn sharing(name: &'static str) -> Application {
    let mut application = Application::new("sharing");
    application.add("sharing", Sharing(name));
    application
}

#[test]
fn an_upgrade_needs_a_handler_that_shares_the_same() {
    let service = load_with(&sharing("hits"), "").unwrap();
    assert_eq!(can_serve(&service, &sharing("hits")), Ok(()));
    let refused = can_serve(&service, &sharing("visits")).unwrap_err();
    assert!(refused.contains("is declared otherwise there; a restart is needed"), "{refused}");
    let mut other = Application::new("sharing");
    other.add("sharing", |_: &mut ClientConnection<'_>| Ok(()));
    assert!(can_serve(&service, &other).unwrap_err().contains("is declared otherwise there"));
}

#[test]
fn what_cannot_be_shared_is_an_error() {
    let shown = load_with(&sharing("hits"), "sandbox = { pid_namespace = true }\n").unwrap_err();
    assert!(
        shown.contains("DIR/p.toml:3:1: error: pid_namespace cannot be where connections share state"),
        "{shown}"
    );
    assert!(shown.contains("help: remove pid_namespace"), "{shown}");
    let shown = load_with(&sharing("two words"), "").unwrap_err();
    assert!(shown.contains("the handler \"sharing\" cannot share anything: "), "{shown}");
}
