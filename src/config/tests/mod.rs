//! The configuration as its writer meets it.

mod admission;
mod keys;
mod machine;
mod options;
mod wait;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::CredentialStore;
use crate::config::flags::{Given, from_flags};
use crate::config::key::{Kind, Part};
use crate::config::keys::{LOG, SERVICE, SUPERVISOR, flags};
use crate::config::machine::accounts::tests::fake;
use crate::handler::Application;
use crate::journal::{Level, LogTarget};

/// The program with the built-in handlers.
fn preforkd() -> Application {
    crate::builtin::preforkd().into_application()
}

/// A machine with a configuration directory of its own.
struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Scratch { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        // Whatever the umask is: a file that everybody may write to would be a warning.
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn load(&self) -> Result<Loaded, Diagnostics> {
        self.load_for(&preforkd())
    }

    fn load_for(&self, application: &Application) -> Result<Loaded, Diagnostics> {
        let credentials = CredentialStore::Directory(self.path().join("credentials"));
        let machine = Machine {
            accounts: fake(self.path()),
            credentials,
            becomes_others: false,
            ..Machine::with(application)
        };
        load(&self.path().join("p.toml"), &Tolerance::none(), &machine)
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|problems| panic!("{problems}")).config
    }

    /// What is said, with the directory shown as DIR.
    fn complaints(&self) -> String {
        self.load().expect_err("errors").to_string().replace(&self.path().display().to_string(), "DIR")
    }
}

/// The first service of a configuration.
pub(crate) fn service(text: &str) -> ServiceConfig {
    let place = Scratch::new();
    place.write("p.toml", text);
    place.config().services.remove(0)
}

/// The first line about a service with one more line.
fn complaint(line: &str) -> String {
    let place = Scratch::new();
    place.write("p.toml", &format!("[service.x]\nlisten = \"127.0.0.1:7\"\nhandler = \"echo\"\n{line}\n"));
    place.complaints()
}

const BROKEN: &str = r#"# Everything wrong at once.
top = 1
[supervisor]
drain_timeout = 30
control_sockets = "/run/x"

[log]
level = "loud"

[service.git]
listen  = ["127.0.0.1:80", ":443", "127.0.0.1"]
exec    = ["bin/git-daemon"]
user    = "nobdy"
workers = 0
max_conections = 5
sandbox = { network = false }
environment = { "A=B" = "c", LANG = 5 }
limits = { nofiles = 1, as = "1Q" }
umask = 22

[service.web]
listen = "0.0.0.0:80"
handler = "eco"
exec = ["/nonexistent"]
working_directory = "/nonexistent"

[service.empty]

[service."a b"]
listen = "127.0.0.1:9	"
handler = "echo"
"#;

/// `BLESS=1 cargo test` writes the text anew; read it before it is committed.
#[test]
fn all_errors_in_one_go() {
    let place = Scratch::new();
    place.write("p.toml", BROKEN);
    place.write("preforkd.d/more.toml", "[service.more]\nlisten \"fd:more\"\n[log]\nlevel = 1\n");
    let shown = place.complaints();
    if std::env::var_os("BLESS").is_some() {
        fs::write("src/config/tests/all_errors.txt", &shown).unwrap();
    }
    assert_eq!(shown, include_str!("all_errors.txt"));
    let problems = place.load().unwrap_err();
    assert!(
        problems.first_line().ends_with("unknown section or key \"top\" (and 25 more errors)"),
        "{}",
        problems.first_line()
    );
}

/// A right value of every supported key that is a flag, in TOML and as flags.

#[test]
fn drop_ins_add_services_and_override_the_rest() {
    let place = Scratch::new();
    place.write(
        "p.toml",
        "[supervisor]\ndrain_timeout = \"1s\"\ncontrol_socket = \"/run/a\"\n[log]\nlevel = \"debug\"\n",
    );
    place.write(
        "preforkd.d/20-b.toml",
        "[supervisor]\ndrain_timeout = \"3s\"\n[service.b]\nlisten = \"fd:b\"\nhandler = \"time\"\n",
    );
    place.write(
        "preforkd.d/10-a.toml",
        "[supervisor]\ndrain_timeout = \"2s\"\n[service.c]\nlisten = \"fd:c\"\nhandler = \"time\"\n",
    );
    place.write("preforkd.d/.hidden.toml", "broken");
    place.write("preforkd.d/README", "broken");
    place.write("preforkd.d/30.toml.dpkg-old", "broken");
    let config = place.config();
    assert_eq!(config.supervisor.drain_timeout, Duration::from_secs(3));
    assert_eq!(config.supervisor.control_socket.as_deref(), Some(Path::new("/run/a")));
    assert_eq!(config.log.level, Level::Debug);
    assert_eq!(config.services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn a_service_is_defined_once_and_an_address_used_once() {
    let place = Scratch::new();
    place.write(
        "p.toml",
        "[service.a]\nlisten = [\"127.0.0.1:7\", \"127.0.0.1:0\"]\nhandler = \"echo\"\n\
         [service.w]\nlisten = [\"0.0.0.0:7\", \"[::]:7\", \"127.0.0.1:0\"]\nhandler = \"echo\"\n\
         idle_timeout = \"1m\"\n",
    );
    place.write("preforkd.d/x.toml", "[service.a]\nlisten = \"unix:/run/x\"\nhandler = \"echo\"\n");
    place.write("preforkd.d/y.toml", "[service.y]\nlisten = [\"fd:y\", \"fd:y\"]\nhandler = \"echo\"\n");
    assert_eq!(
        place.complaints(),
        r#"DIR/p.toml:5:11: error: 0.0.0.0:7 overlaps with 127.0.0.1:7
    5 | listen = ["0.0.0.0:7", "[::]:7", "127.0.0.1:0"]
      |           ^^^^^^^^^^^
   note: service "a" has it at DIR/p.toml:2:11
   help: every address can be used once
DIR/preforkd.d/x.toml:1:10: error: service "a" is defined a second time
    1 | [service.a]
      |          ^
   note: first defined at DIR/p.toml:1:10
   help: remove one of the two, or give it another name
DIR/preforkd.d/y.toml:2:19: error: fd:y is listened on a second time
    2 | listen = ["fd:y", "fd:y"]
      |                   ^^^^^^
   note: service "y" has it at DIR/preforkd.d/y.toml:2:11
   help: every address can be used once
"#
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let place = Scratch::new();
    assert_eq!(
        place.complaints(),
        "DIR/p.toml: error: cannot read the configuration: there is no such file\n"
    );
    fs::create_dir(place.path().join("p.toml")).unwrap();
    assert_eq!(place.complaints(), "DIR/p.toml: error: cannot read the configuration: it is a directory\n");
    fs::remove_dir(place.path().join("p.toml")).unwrap();
    fs::write(place.path().join("p.toml"), b"[log]\n# caf\xe9\n").unwrap();
    assert!(
        place.complaints().starts_with("DIR/p.toml:2:6: error: this is not UTF-8\n    2 | # caf\u{fffd}\n")
    );
    place.write("p.toml", "[log]\n");
    assert!(
        place.complaints().starts_with("DIR/p.toml: error: no service is defined\n   help: add a section")
    );
}

#[test]
fn a_file_that_everybody_may_write_to_is_a_warning() {
    let place = Scratch::new();
    place.write("p.toml", "[service.x]\nlisten = \"fd:x\"\nhandler = \"echo\"\n");
    assert!(place.load().unwrap().warnings.iter().next().is_none());
    fs::set_permissions(place.path().join("p.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    let warnings = place.load().unwrap().warnings;
    assert!(
        warnings
            .to_string()
            .contains("p.toml: warning: everybody may write to this file\n   help: chmod o-w")
    );
    assert_eq!(warnings.errors(), 0);
}

#[test]
fn after_a_syntax_error_nothing_is_said_to_be_missing() {
    let place = Scratch::new();
    place.write("p.toml", "[service.x]\nlisten \"fd:x\"\nhandler = \"echo\"\n[service.y]\nworkers = 0\n");
    let problems = place.load().unwrap_err();
    let lines: Vec<_> =
        problems.iter().filter_map(|problem| Some(problem.place.position.as_ref()?.line)).collect();
    assert_eq!(lines, [2, 5], "{problems}");
}

#[test]
fn sections_are_named() {
    for (text, shown) in [
        ("workers = 1", "\"workers\" belongs into a [service.NAME] section"),
        ("log = 1", "write [log]"),
        ("[service]\nlisten = \"x\"", "a service needs a name"),
        ("[[service]]", "a service needs a name"),
        ("[service.-a]", "cannot be the name of a service"),
        ("[log.x]", "unknown key \"x\" in [log]"),
        ("[service.x\n", "TOML syntax"),
        ("[service.x]\nworkers =\n", "TOML syntax"),
    ] {
        let place = Scratch::new();
        place.write("p.toml", text);
        assert!(place.complaints().contains(shown), "{text}: {}", place.complaints());
    }
}

#[test]
fn no_beginning_of_a_file_makes_a_panic() {
    let place = Scratch::new();
    for end in (0..BROKEN.len()).filter(|&end| BROKEN.is_char_boundary(end)) {
        place.write("p.toml", &BROKEN[..end]);
        assert!(!place.complaints().is_empty());
    }
}
