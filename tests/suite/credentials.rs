//! Secrets by `LoadCredential=`: who finds them, and who does not.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::support::client::exchange;
use crate::support::{Preforkd, address, eventually, preforkd, root, text, write};

/// Says what credentials it has, and what each says. (The whole name of the variable has "DIR" in it.)
const TELL: &str = r#"exec = ["/bin/sh", "-c", "d=$(env | sed -n s/^CREDENTIALS_.*=//p); cd ${d:-/nowhere} && grep -rs . . | sort"]"#;

/// The directories of credentials below that of a test.
fn kept(dir: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    list(&dir.join("credentials")).iter().flat_map(|root| list(root)).collect()
}

fn given(config: &str) -> Preforkd {
    let server = Preforkd::run(config).script("given/one", "first").script("given/two", "second");
    let directory = server.dir().join("given").display().to_string();
    server.env("CREDENTIALS_DIRECTORY", &directory)
}

#[test]
fn a_service_finds_the_credentials_that_it_names_and_no_other_finds_any() {
    if !root("other users") {
        return;
    }
    let [one, two, none] = [(); 3].map(|()| address::fresh());
    let config = |one_has: &str| {
        format!(
            "[service.one]\nlisten = \"{one}\"\nuser = 4711\ngroup = 4711\n{TELL}\ncredentials = {one_has}\n\
             [service.two]\nlisten = \"{two}\"\n{TELL}\ncredentials = [\"one\", \"two\"]\n\
             [service.none]\nlisten = \"{none}\"\nexec = [\"/bin/sh\", \"-c\", \"env; cat DIR/credentials/*/*/*; ls DIR/credentials\"]\n\
             stderr = \"null\"\nuser = 4712\ngroup = 4711\n"
        )
    };
    let server = given(&config("\"one\"")).start();
    let ask = |address| text(&exchange(address, b""));
    assert_eq!(ask(one), "./one:first\n");
    assert_eq!(ask(two), "./one:first\n./two:second\n");
    let found = ask(none);
    assert!(!found.contains("CREDENTIALS") && !found.contains("first"), "{found}");
    // A stranger, and a program that would change them.
    let files = kept(server.dir());
    assert_eq!(files.len(), 2, "{files:?}");
    for directory in &files {
        let mode = std::fs::metadata(directory).unwrap();
        assert_eq!((mode.uid(), mode.permissions().mode() & 0o007), (0, 0), "{directory:?}");
    }

    // Another generation has others, and a service that is not touched keeps its own.
    server.configure(&config("\"two\""));
    server.reload_ok();
    assert_eq!((ask(one), ask(two)), ("./two:second\n".to_owned(), "./one:first\n./two:second\n".to_owned()));
    // What they say is read anew with the configuration.
    write(&server.dir().join("given/two"), "third");
    server.reload_ok();
    assert_eq!((ask(one), ask(two)), ("./two:third\n".to_owned(), "./one:first\n./two:third\n".to_owned()));
    // One that is not there changes nothing.
    server.configure(&config("\"three\""));
    let refused = server.reload();
    let said = text(&refused.stderr);
    assert!(said.contains("\"three\": there is none in ") && said.contains("LoadCredential="), "{said}");
    assert_eq!(ask(one), "./two:third\n");
    // An upgrade keeps them, and a service that wants none any more has none.
    server.configure(&config("\"two\""));
    assert!(server.upgrade().status.success());
    assert_eq!(ask(one), "./two:third\n");
    server.configure(&config("[]"));
    server.reload_ok();
    assert_eq!(ask(one), "");
    eventually("the credentials of one service are gone", || kept(server.dir()).len() == 1);

    let dir = server.dir().to_owned();
    server.stop();
    assert!(!dir.join("credentials").exists());
}

#[test]
fn what_a_killed_supervisor_has_left_is_removed_by_the_next() {
    let at = address::fresh();
    let config = format!("[service.x]\nlisten = \"{at}\"\n{TELL}\ncredentials = \"one\"\n");
    let server = given(&config);
    let dead = server.dir().join("credentials/4194305/x");
    std::fs::create_dir_all(&dead).unwrap();
    let foreign = server.dir().join("credentials/keep");
    write(&foreign, "not ours");
    let server = server.start();
    assert_eq!(text(&exchange(at, b"")), "./one:first\n");
    assert!(!dead.exists() && foreign.exists());
    server.stop();
    assert!(foreign.exists());
}

#[test]
fn without_its_credential_a_service_is_down_and_the_others_are_served() {
    let [one, two] = [(); 2].map(|()| address::fresh());
    let config = format!(
        "[service.one]\nlisten = \"{one}\"\n{TELL}\ncredentials = \"late\"\n[service.two]\nlisten = \"{two}\"\n\
         handler = \"echo\"\n"
    );
    let server = given(&config).start();
    assert_eq!(exchange(two, b"hello"), b"hello");
    let status = server.status();
    let services = status["services"].as_array().unwrap();
    let why = services.iter().find_map(|service| service["down"].as_str()).unwrap_or_default();
    assert!(why.contains("the credential \"late\""), "{status}");
    write(&server.dir().join("given/late"), "come");
    server.reload_ok();
    assert_eq!(text(&exchange(one, b"")), "./late:come\n");
}

#[test]
fn check_says_what_it_cannot_know() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preforkd.toml");
    let service =
        "[service.x]\nlisten = \"127.0.0.1:7\"\nexec = [\"/bin/cat\"]\ncredentials = [\"a\", \"b\"]\n";
    let check = |extra: &str| {
        write(&path, &format!("{service}{extra}"));
        preforkd(&["check", "--config", path.to_str().unwrap()])
    };
    let said = check("");
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert!(text(&said.stderr).contains("whether there is \"a\", \"b\" is not known here"));
    let said = check("chroot = \"/\"\n");
    assert_eq!(said.status.code(), Some(78));
    assert!(text(&said.stderr).contains("would not be found inside chroot"), "{}", text(&said.stderr));
}
