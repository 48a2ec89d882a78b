//! The library as a newcomer meets it: a new project, the README's ten lines, and what such a program then is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::support::client::{connect, exchange, finish, listen_to};
use crate::support::{Preforkd, Running, address, eventually, run, sure, text, write};

/// What a newcomer has after a while: options, several handlers, and mistakes.
const ADVANCED: &str = r#"
use preforkd::shared::{Counter, Gauge, Layout, Lock, Queue, Table};
use preforkd::{Connection, Handler, LocalAddress, NoOptions, Readiness, Server, Stream};
use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::ExitCode;

#[derive(serde::Deserialize)]
struct Options {
    greeting: String,
    #[serde(default)]
    times: u8,
}

#[derive(Default)]
struct Greeter {
    text: String,
    worker: u32,
}

impl Handler for Greeter {
    type Options = Options;

    fn prepare(&mut self, options: Options) -> Result<(), Box<dyn Error>> {
        if options.greeting == "rude" {
            return Err("that is no greeting".into());
        }
        if options.greeting == "panic" {
            panic!("no {} today", "greeting");
        }
        if options.greeting == "thread" {
            let thread = std::thread::Builder::new().name("greeter-pool".into());
            thread.spawn(|| std::thread::park())?;
        }
        self.text = format!("{}\n", options.greeting).repeat(options.times.into());
        self.worker = std::process::id();
        Ok(())
    }

    fn serve(&self, client: &mut Connection) -> io::Result<()> {
        assert_ne!(std::process::id(), self.worker, "prepared elsewhere");
        client.write_all(self.text.as_bytes())
    }
}

/// Does what the client says.
struct Obedient;

impl Handler for Obedient {
    type Options = NoOptions;

    fn serve(&self, client: &mut Connection) -> io::Result<()> {
        let mut line = String::new();
        BufReader::new(&*client).read_line(&mut line)?;
        match line.trim_end() {
            "who" => writeln!(client, "{} {} {}", client.id(), client.peer(), client.local()?),
            "panic" => panic!("as {} wished", "you"),
            "abort" => std::process::abort(),
            "say" => {
                println!("to nobody");
                eprintln!("one line\nand another");
                writeln!(client, "said")
            }
            "wrong" => Err(io::Error::new(io::ErrorKind::InvalidData, "that is wrong")),
            "file" => std::fs::read("/etc/passwd").map(drop),
            "fds" => {
                let first = std::os::fd::AsRawFd::as_raw_fd(&std::os::unix::net::UnixStream::pair()?.0);
                writeln!(client, "{}", first > 2)
            }
            "thread" => {
                let sum = std::thread::spawn(|| (1..=10).sum::<u32>()).join();
                writeln!(client, "{}", sum.map_err(|_| io::Error::other("no sum"))?)
            }
            "stream" => match client.stream()? {
                Stream::Tcp(mut stream) => stream.write_all(b"by another hand\n"),
                Stream::Unix(mut stream) => stream.write_all(b"by another hand\n"),
                _ => Ok(()),
            },
            "wait" => {
                assert!(matches!(client.local()?, LocalAddress::Ip(_) | LocalAddress::Unix(_)));
                let ready = client.wait(Readiness::READ, None)?;
                let mut rest = Vec::new();
                client.read_to_end(&mut rest)?;
                writeln!(client, "{ready:?} {} {}", rest.len(), client.deadline().is_some())
            }
            other => writeln!(client, "{}", other.repeat(400)),
        }
    }
}

/// Shares all that there is to share.
#[derive(Default)]
struct Sharing {
    hits: Counter,
    here: Gauge,
    seats: Lock<u32>,
    names: Table<u64, u64>,
    lines: Queue<[u8; 8]>,
}

impl Handler for Sharing {
    type Options = NoOptions;

    fn share(&mut self, layout: &mut Layout) {
        let seats = if std::env::var_os("OTHER_SEATS").is_some() { "chairs" } else { "seats" };
        self.hits = layout.counter("hits");
        self.here = layout.gauge("here");
        self.seats = layout.lock(seats, 100);
        self.names = layout.table("names", 10);
        self.lines = layout.queue("lines", 3);
    }

    fn serve(&self, client: &mut Connection) -> io::Result<()> {
        self.hits.add(1);
        self.here.add(1);
        for line in BufReader::new(&*client).lines() {
            match line?.as_str() {
                "die" => std::process::abort(),
                "die inside" => {
                    let mut seats = self.seats.lock()?.guard();
                    *seats = 7;
                    std::process::abort()
                }
                "buy" => {
                    let left = self.seats.update(|seats| {
                        *seats -= 1;
                        *seats
                    })?;
                    self.names.insert(&left.into(), self.hits.sum())?;
                    self.lines.try_push(left.to_ne_bytes().repeat(2).try_into().unwrap_or_default())?;
                    self.lines.try_pop()?;
                }
                _ => {}
            }
            let (hits, here, names) = (self.hits.sum(), self.here.sum(), self.names.iter().count());
            writeln!(&mut &*client, "{hits} {here} {} {names}", self.seats.read()?)?;
        }
        self.here.add(-1);
        Ok(())
    }
}

/// Tries to have a thread.
struct Alone;

impl Handler for Alone {
    type Options = NoOptions;
    const THREADS: bool = false;

    fn serve(&self, client: &mut Connection) -> io::Result<()> {
        let thread = std::thread::Builder::new().spawn(|| ());
        writeln!(client, "{:?}", thread.err().map(|error| error.kind()))
    }
}

fn main() -> ExitCode {
    if std::env::var_os("THREAD_IN_MAIN").is_some() {
        std::thread::spawn(|| std::thread::park());
    }
    Server::new("advanced")
        .version("7.8.9")
        .about("Try everything")
        .handler("greeter", Greeter::default())
        .handler("obedient", Obedient)
        .handler("alone", Alone)
        .handler("sharing", Sharing::default())
        .defaults("idle_timeout = \"1h\"\nworkers = 1")
        .main()
}
"#;

/// The ten lines.
fn readme() -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, rest) = readme.split_once("\n```rust\n").unwrap();
    rest.split_once("\n```\n").unwrap().0.to_owned()
}

/// The directory of the programs, built once.
fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> PathBuf {
    let root = env!("CARGO_MANIFEST_DIR");
    let place = tempfile::Builder::new().prefix("preforkd-newcomer-").tempdir().unwrap();
    let project = place.path().join("guestbook");
    // What has been built for these tests is used again, where it is the same.
    let target = Path::new(crate::support::BINARY).ancestors().nth(2).unwrap().to_owned();
    let cargo = |arguments: &[&str], directory: &Path| {
        let output = Command::new(option_env!("CARGO").unwrap_or("cargo"))
            .args(arguments)
            .current_dir(directory)
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_NET_OFFLINE", "true")
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert!(output.status.success() && !said.contains("warning"), "cargo {arguments:?}: {said}");
    };
    // What would be published, and nothing beside it. What is as it was keeps its time, and need not be built again.
    cargo(&["package", "--no-verify", "--allow-dirty"], Path::new(root));
    let name = concat!("preforkd-", env!("CARGO_PKG_VERSION"));
    let packed = target.join(format!("package/{name}.crate"));
    let work = place.path().to_str().unwrap();
    sure(&["tar", "--extract", "--file", packed.to_str().unwrap(), "--directory", work]);
    let library = target.join("newcomer/package");
    let library = library.to_str().unwrap();
    sure(&["mkdir", "--parents", library]);
    sure(&["rsync", "--recursive", "--perms", "--checksum", "--delete", &format!("{work}/{name}/"), library]);
    cargo(&["new", "--quiet", "--vcs", "none", project.to_str().unwrap()], place.path());
    // The versions that are here.
    std::fs::copy(Path::new(root).join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    cargo(&["add", "--quiet", "--path", library], &project);
    write(&project.join("src/main.rs"), &readme());
    cargo(&["build", "--quiet"], &project);
    cargo(&["add", "--quiet", "serde", "--features", "derive"], &project);
    std::fs::create_dir(project.join("src/bin")).unwrap();
    write(&project.join("src/bin/advanced.rs"), ADVANCED);
    cargo(&["build", "--quiet", "--bins"], &project);
    // Others build there, too.
    let own = target.join("newcomer");
    std::fs::create_dir_all(&own).unwrap();
    for name in ["guestbook", "advanced"] {
        let fresh = own.join(format!("{name}.{}", std::process::id()));
        std::fs::copy(target.join("debug").join(name), &fresh).unwrap();
        std::fs::rename(fresh, own.join(name)).unwrap();
    }
    own
}

fn guestbook() -> PathBuf {
    programs().join("guestbook")
}

fn advanced() -> PathBuf {
    programs().join("advanced")
}

fn answer(program: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = run(&[&[program.to_str().unwrap()], arguments].concat());
    (status.code(), text(&stdout) + &text(&stderr))
}

fn hello(server: &Running) {
    let stream = connect(server.address());
    let local = stream.local_addr().unwrap();
    assert_eq!(text(&finish(stream, b"")), format!("hello {local}\n"));
}

#[test]
fn the_ten_lines_of_the_readme_are_a_service() {
    assert!(readme().lines().count() <= 10, "{}", readme());
    let server = Preforkd::serve(&[], "127.0.0.1:0", &[]).program(&guestbook()).start();
    hello(&server);
    server
        .log
        .wait("its record", |line| line.contains("guestbook: connection ") && line.contains("exited 0"));
    assert_eq!(server.service()["name"], "guestbook");
    server.stop();
    let named = ["--spare", "2", "--connections-per-child", "3"];
    let server = Preforkd::serve(&named, "127.0.0.1:0", &["guestbook"]).program(&guestbook()).start();
    (0..9).for_each(|_| hello(&server));
    server.stop();
}

#[test]
fn its_messages_have_its_own_name() {
    let program = guestbook();
    let (code, shown) = answer(&program, &["--help"]);
    assert!(code == Some(0) && shown.contains("Usage: guestbook <COMMAND>"), "{shown}");
    let (code, shown) = answer(&program, &["serve"]);
    assert!(
        code == Some(64) && shown.contains("Usage: guestbook serve [OPTIONS] ADDRESS [HANDLER]"),
        "{shown}"
    );
    let (code, shown) = answer(&program, &["status"]);
    assert!(code == Some(69) && shown.starts_with("guestbook: "), "{shown}");
    assert!(shown.contains("/run/guestbook/control.sock"), "{shown}");
    let (code, shown) = answer(&program, &["check"]);
    assert!(code == Some(78) && shown.contains("/etc/guestbook/guestbook.toml"), "{shown}");
    let (code, shown) = answer(&advanced(), &["--version"]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((code, shown), (Some(0), format!("advanced 7.8.9 (preforkd {version})\n")));
    let (code, shown) = answer(&advanced(), &["serve", "127.0.0.1:0"]);
    assert!(code == Some(64) && shown.contains("ADDRESS HANDLER"), "{shown}");
}

/// A service `obedient` and one that greets.
fn config(listen: [std::net::SocketAddr; 2], more: &str, options: &str) -> String {
    let [obedient, greeter] = listen;
    format!(
        "[service.obedient]\nlisten = \"{obedient}\"\nhandler = \"obedient\"\n{more}\n\
         [service.greeter]\nlisten = \"{greeter}\"\nhandler = \"greeter\"\n[service.greeter.options]\n{options}\n"
    )
}

#[test]
fn options_of_its_own_are_checked_and_reloaded() {
    let listen = [address::fresh(), address::fresh()];
    let good = config(listen, "", "greeting = \"hi\"\ntimes = 2");
    let server = Preforkd::run(&good).program(&advanced()).start();
    assert_eq!(listen_to(listen[1]), "hi\nhi\n");
    let path = server.dir().join("preforkd.toml");
    let check = || answer(&advanced(), &["check", "--config", path.to_str().unwrap()]);
    assert_eq!(check().0, Some(0), "{}", check().1);

    let wrong = "greetings = 1\ntimes = 2000";
    server.configure(&config(listen, "", wrong));
    let (code, shown) = check();
    assert_eq!(code, Some(78), "{shown}");
    let lines = [
        ":9:1: error: unknown key \"greetings\" in [service.greeter.options]",
        "   help: did you mean \"greeting\"?",
        ":10:9: error: \"times\": integer `2000` where u8 is expected",
        ": 3 errors",
    ];
    let refused = |said: &[&str]| {
        let output = server.reload();
        let shown = text(&output.stderr) + &text(&output.stdout);
        assert_eq!(output.status.code(), Some(78), "{shown}");
        said.iter().for_each(|said| assert!(shown.contains(said), "{said} in {shown}"));
        assert_eq!(listen_to(listen[1]), "hi\nhi\n", "what was in force still is");
    };
    lines.iter().for_each(|line| assert!(shown.contains(line), "{line} in {shown}"));
    refused(&lines[..3]);

    for (greeting, said) in [
        ("rude", "the handler \"greeter\" cannot prepare: that is no greeting"),
        ("panic", "the handler \"greeter\" cannot prepare: it panicked: no greeting today"),
        ("thread", "the thread \"greeter-pool\" was started while the handler \"greeter\" prepared"),
    ] {
        server.configure(&config(listen, "", &format!("greeting = \"{greeting}\"\ntimes = 1")));
        refused(&[said]);
    }
    server.configure(&config(listen, "", "greeting = \"good day\"\ntimes = 1"));
    server.reload_ok();
    assert_eq!(listen_to(listen[1]), "good day\n");
    server.stop();
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let serve = |greeting: &str| {
        let option = format!("greeting={greeting}");
        answer(
            &advanced(),
            &["serve", "--options", &option, "--options", "times=1", "127.0.0.1:0", "greeter"],
        )
    };
    let (code, shown) = serve("thread");
    assert!(code == Some(71) && shown.contains("the thread \"greeter-pool\" was started while"), "{shown}");
    let (code, shown) = serve("rude");
    assert!(code == Some(71) && shown.contains("cannot prepare: that is no greeting"), "{shown}");
    let shown = sure(&[
        "sh",
        "-c",
        &format!("THREAD_IN_MAIN=1 {} serve 127.0.0.1:0 obedient 2>&1; test $? = 70", advanced().display()),
    ]);
    assert!(shown.contains("advanced: the thread \"advanced\" was started before Server::main()"), "{shown}");
    let (code, shown) = answer(&advanced(), &["serve", "127.0.0.1:0", "greeter"]);
    assert!(code == Some(64) && shown.contains("\"greeting\" is missing"), "{shown}");
}

fn ask(server: &Running, listen: std::net::SocketAddr, what: &str, record: &str) -> String {
    let mark = server.log.mark();
    let said = text(&exchange(listen, format!("{what}\n").as_bytes()));
    server.log.wait_after(mark, record, |line| line.contains(": connection ") && line.contains(record));
    said
}

/// What befalls one connection befalls no other, and is in the log with its name.
fn what_a_handler_does(more: &str) {
    let listen = [address::fresh(), address::fresh()];
    let server =
        Preforkd::run(&config(listen, more, "greeting = \"hi\"\ntimes = 1")).program(&advanced()).start();
    let obedient = listen[0];
    let said = |what, record| ask(&server, obedient, what, record);
    let (id, rest) =
        said("who", "exited 0").split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    server.log.wait("the same name", |line| line.contains(&format!("connection {id} from ")));
    assert!(rest.starts_with("127.0.0.1:") && rest.ends_with(&format!(" {obedient}\n")), "{rest}");

    assert_eq!(said("panic", "panicked after"), "");
    server.log.wait("the words of a panic", |line| line.contains("stderr: as you wished"));
    assert_eq!(said("abort", "killed ABRT"), "");
    assert_eq!(said("say", "exited 0"), "said\n");
    server.log.wait("what was said", |line| line.ends_with("stderr: and another"));
    assert_eq!(said("wrong", "exited 65"), "");
    server.log.wait("the error", |line| line.ends_with("stderr: error: that is wrong"));
    assert_eq!(said("file", "exited 71"), "");
    server.log.wait("the way out", |line| {
        line.contains("stderr: error: Permission denied") && line.contains("what sandbox gives it")
    });
    assert_eq!(said("thread", "exited 0"), "55\n");
    assert_eq!(said("stream", "7 bytes in, 16 out"), "by another hand\n");
    assert_eq!(said("wait", "exited 0"), "Readiness { read: true, write: false } 0 false\n");
    assert_eq!(said("long", "5 bytes in, 1601 out"), "long".repeat(400) + "\n");
    eventually("nobody is left", || server.count("active") == 0);
    let service =
        server.status()["services"].as_array().unwrap().iter().find(|s| s["name"] == "obedient").cloned();
    assert_eq!(service.unwrap()["crashes"], 2);
    server.stop();
}

#[test]
fn one_that_starts_no_threads_can_start_none() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["alone"]).program(&advanced()).start();
    assert_eq!(listen_to(server.address()), "Some(WouldBlock)\n");
    server.stop();
}

#[test]
fn a_handler_does_what_it_does_to_one_connection() {
    what_a_handler_does("");
}

#[test]
fn so_it_does_as_a_spare() {
    what_a_handler_does("spare = 2");
}

#[test]
fn so_it_does_where_a_process_serves_several() {
    what_a_handler_does("spare = 2\nconnections_per_child = 0");
}

#[test]
fn the_standard_descriptors_are_nobody_elses() {
    for stderr in ["log", "inherit", "null"] {
        let options = ["--stderr", stderr, "--workers", "1"];
        let mut server = Preforkd::serve(&options, "127.0.0.1:0", &["obedient"]).program(&advanced());
        // A socket of its own.
        server = server.script("x", "");
        let server = server.start();
        let said = exchange(server.address(), b"fds\n");
        // It may have none: then it says so in the log.
        assert!(said == b"true\n" || said.is_empty(), "{stderr}: {}", text(&said));
        assert_eq!(exchange(server.address(), b"say\n"), b"said\n");
        server.stop();
    }
}

#[test]
fn it_is_upgraded_and_one_without_the_handler_is_refused() {
    let listen = [address::fresh(), address::fresh()];
    let text_of = |greeting: &str| config(listen, "", &format!("greeting = \"{greeting}\"\ntimes = 1"));
    let server = Preforkd::run(&text_of("hi")).program(&advanced()).own_copy().start();
    let mut stream = connect(listen[0]);
    server.replace_program(&std::fs::read(guestbook()).unwrap());
    let output = server.upgrade();
    let shown = text(&output.stderr);
    assert!(!output.status.success() && shown.contains("it has no handler \"greeter\""), "{shown}");
    assert_eq!(listen_to(listen[1]), "hi\n");
    // Nor may a thread stand in its way once it has taken over.
    let script = format!("#!/bin/sh\nTHREAD_IN_MAIN=1 exec {} \"$@\"\n", advanced().display());
    server.replace_program(script.as_bytes());
    let output = server.upgrade();
    let shown = text(&output.stderr);
    assert!(!output.status.success() && shown.contains("was started before Server::main()"), "{shown}");
    server.replace_program(&std::fs::read(advanced()).unwrap());
    let output = server.upgrade();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(listen_to(listen[1]), "hi\n");
    std::io::Write::write_all(&mut stream, b"x\n").unwrap();
    assert_eq!(finish(stream, b"").len(), 401, "a connection from before goes on");
    assert_eq!(server.status()["version"], "7.8.9");
    server.stop();
}

/// What the handler says of what is shared: how many have come, how many are there, seats, names.
fn shared(client: &mut std::net::TcpStream, what: &str) -> String {
    use std::io::{BufRead, BufReader, Write};
    client.write_all(format!("{what}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn what_is_shared_survives(more: &str) {
    let listen = address::fresh();
    let config = |limit: u32| {
        format!(
            "[service.sharing]\nlisten = \"{listen}\"\nhandler = \"sharing\"\nworkers = 2\nmax_connections = {limit}\n{more}\n"
        )
    };
    let server = Preforkd::run(&config(10)).program(&advanced()).own_copy().start();
    let mut first = connect(listen);
    assert_eq!(shared(&mut first, "look"), "1 1 100 0");
    assert_eq!(shared(&mut first, "buy"), "1 1 99 1");
    for (words, hits) in [("die", 2), ("die inside", 3)] {
        let mut victim = connect(listen);
        assert_eq!(shared(&mut victim, "look"), format!("{hits} 2 99 1"));
        assert_eq!(shared(&mut victim, words), "");
        eventually("its share is taken out", || shared(&mut first, "look") == format!("{hits} 1 99 1"));
    }
    // The kernel hands over what the dead one had locked.
    assert_eq!(shared(&mut first, "buy"), "3 1 98 2");

    // Who has no worker any more is with the supervisor.
    let mut orphan = connect(listen);
    assert_eq!(shared(&mut orphan, "look"), "4 2 98 2");
    let killed = server.workers();
    for worker in &killed {
        sure(&["kill", "-KILL", &worker.to_string()]);
    }
    // One in which somebody has died may be renewed by now, and drain beside them.
    eventually("there are others", || {
        let status = server.status();
        let accept = |worker: &&serde_json::Value| worker["state"] == "accepting";
        let workers = status["services"][0]["workers"].as_array().unwrap().iter().filter(accept);
        workers.filter(|worker| killed.iter().all(|pid| worker["pid"] != *pid)).count() == 2
    });
    let mut next = connect(listen);
    assert_eq!(shared(&mut next, "look"), "5 3 98 2");
    assert_eq!(shared(&mut orphan, "die"), "");
    eventually("its share is taken out", || shared(&mut next, "look") == "5 2 98 2");

    // There are slots that the memory had no rows for.
    server.configure(&config(200));
    server.reload_ok();
    let mut crowd: Vec<_> = (0..40).map(|_| connect(listen)).collect();
    crowd.iter_mut().for_each(|client| assert!(shared(client, "look").ends_with(" 98 2")));
    assert_eq!(shared(&mut crowd[0], "look"), "45 42 98 2");
    crowd.drain(1..).for_each(|client| drop(finish(client, b"")));
    eventually("they have gone", || shared(&mut crowd[0], "look") == "45 3 98 2");

    let script = format!("#!/bin/sh\nOTHER_SEATS=1 exec {} \"$@\"\n", advanced().display());
    server.replace_program(script.as_bytes());
    let output = server.upgrade();
    let shown = text(&output.stderr);
    assert!(!output.status.success() && shown.contains("share is declared otherwise there"), "{shown}");
    server.replace_program(&std::fs::read(advanced()).unwrap());
    let output = server.upgrade();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut last = connect(listen);
    assert_eq!(shared(&mut last, "buy"), "46 4 97 3");
    assert_eq!(shared(&mut next, "die inside"), "");
    eventually("its share is taken out", || shared(&mut last, "look") == "46 3 97 3");
    assert_eq!(shared(&mut first, "buy"), "46 3 96 4");
    [first, last, crowd.remove(0)].into_iter().for_each(|client| drop(finish(client, b"")));
    eventually("they have gone", || server.count("active") == 0);
    server.stop();
}

#[test]
fn what_is_shared_survives_all_but_the_service() {
    what_is_shared_survives("");
}

#[test]
fn so_it_does_among_spares() {
    what_is_shared_survives("spare = 4");
}

#[test]
fn so_it_does_among_processes_that_serve_several() {
    what_is_shared_survives("spare = 4\nconnections_per_child = 0");
}

#[test]
fn so_it_does_where_a_handler_may_ask_the_kernel_for_little() {
    what_is_shared_survives("sandbox = { system_calls = \"handler\" }");
}
