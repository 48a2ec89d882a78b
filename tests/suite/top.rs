//! `preforkd top`: one picture, and what its keys do.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::life::echo_service;
use crate::support::client::{connect, connect_from, echo, try_echo};
use crate::support::{BINARY, Preforkd, Running, address, eventually, preforkd, text};

fn once(server: &Running, size: &str) -> Vec<String> {
    let output =
        preforkd(&["top", "--once", "--interval", "100ms", "--size", size, "--control", server.control()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

fn served(address: SocketAddr, count: u8) -> Vec<TcpStream> {
    let connect = |number: u8| {
        let mut client = connect_from(Ipv4Addr::new(127, 0, 7, 1 + number % 10), address).unwrap();
        echo(&mut client, b"hello");
        client
    };
    (0..count).map(connect).collect()
}

#[test]
fn a_picture_has_every_service_and_as_many_connections_as_there_is_room_for() {
    let (one, two) = (address::fresh(), address::fresh());
    let config = echo_service(one, "spare = 3\nmax_connections = 40").replace(".echo", ".first")
        + &echo_service(two, "exec = [\"/bin/cat\"]")
            .replace("handler = \"echo\"\n", "")
            .replace(".echo", ".second");
    let server = Preforkd::run(&config).start();
    let held = (served(one, 25), served(two, 5));
    let picture = once(&server, "80x24");
    assert!(picture.len() <= 24 && picture.iter().all(|line| line.chars().count() <= 80), "{picture:#?}");
    assert!(picture[0].starts_with("preforkd ") && picture[0].contains("running"), "{picture:#?}");
    let words = |start: &str| {
        let line = picture
            .iter()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {picture:#?}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words("first")[1..4], ["serving", "25/40", "3"]);
    assert_eq!(words("second")[1..3], ["serving", "5/1000"]);
    assert!(picture.iter().any(|line| line.contains("30, the oldest first")), "{picture:#?}");
    let clients = |picture: &[String]| picture.iter().filter(|line| line.starts_with("127.0.7.")).count();
    assert!(clients(&picture) >= 8, "{picture:#?}");
    let picture = once(&server, "140x50");
    assert_eq!(clients(&picture), 30, "{picture:#?}");
    assert!(picture.iter().any(|line| line.contains("/bin/cat")), "{picture:#?}");
    // However small it is, it is a picture.
    for size in ["10x10", "20x12", "200x10", "1000x1000"] {
        once(&server, size);
    }
    drop(held);
    // A service that is down says why.
    server.configure(&config.replace(&one.to_string(), "192.0.2.1:7"));
    server.reload();
    let picture = once(&server, "120x24").join("\n");
    assert!(picture.contains("first is down: ") || picture.contains("serving"), "{picture}");
}

#[test]
fn graphs_of_rates_and_of_how_long_it_took_are_beside_each_other() {
    let listen = address::fresh();
    let server = Preforkd::run(&echo_service(listen, "")).start();
    let line = |picture: &[String]| picture.iter().find(|line| line.contains("accepted ")).unwrap().clone();
    let picture = once(&server, "80x24");
    assert!(line(&picture).contains("99% took -"), "{picture:#?}");
    let is_over = AtomicBool::new(false);
    let picture = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                echo(&mut connect(listen), b"hello");
            }
        });
        let picture = once(&server, "80x24");
        is_over.store(true, Ordering::Relaxed);
        picture
    });
    let line = line(&picture);
    assert!(!line.contains("accepted 0/s") && line.contains("refused or failed 0/s"), "{picture:#?}");
    assert!(line.contains("99% took ") && !line.contains("took -"), "{picture:#?}");
    assert!(picture.iter().any(|line| line.contains('█')), "{picture:#?}");
}

#[test]
fn what_it_cannot_do_is_said() {
    let said = |arguments: &[&str]| {
        let output = preforkd(arguments);
        (output.status.code(), text(&output.stderr))
    };
    let (code, text) = said(&["top", "--once", "--control", "/nowhere/control"]);
    assert_eq!(code, Some(69));
    assert!(text.contains("/nowhere/control"), "{text}");
    let (code, text) = said(&["top", "--control", "/nowhere/control"]);
    assert_eq!(code, Some(64));
    assert!(text.contains("top needs a terminal") && text.contains("--once"), "{text}");
    for wrong in [["--interval", "5ms"], ["--interval", "2h"], ["--size", "80"], ["--size", "0x24"]] {
        let (code, text) = said(&["top", "--once", wrong[0], wrong[1]]);
        assert_eq!(code, Some(64), "{wrong:?}");
        assert!(text.contains(wrong[0]), "{wrong:?}: {text}");
    }
}

/// `top` on a terminal of its own, with somebody who types.
struct Live {
    terminal: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<Screen>>,
}

/// What a terminal shows, as far as cells are written after the cursor was moved there: ECMA-48, CUP.
#[derive(Default)]
struct Screen {
    cells: BTreeMap<(usize, usize), char>,
    at: (usize, usize),
    /// A sequence that has begun.
    sequence: Option<String>,
}

impl Screen {
    fn write(&mut self, text: &str) {
        for character in text.chars() {
            match &mut self.sequence {
                None if character == '\x1b' => self.sequence = Some(String::new()),
                None => {
                    self.cells.insert(self.at, character);
                    self.at.1 += 1;
                }
                Some(sequence) => {
                    sequence.push(character);
                    if sequence.len() > 1 && ('@'..='~').contains(&character) || !sequence.starts_with('[') {
                        let sequence = self.sequence.take().unwrap();
                        self.obey(&sequence);
                    }
                }
            }
        }
    }

    fn obey(&mut self, sequence: &str) {
        if let Some(place) = sequence.strip_prefix('[').and_then(|sequence| sequence.strip_suffix('H')) {
            let (row, column) = place.split_once(';').unwrap_or(("1", "1"));
            self.at = (row.parse().unwrap(), column.parse().unwrap());
        }
    }

    fn text(&self) -> String {
        let row = |row| (1..=80).map(move |column| self.cells.get(&(row, column)).unwrap_or(&' '));
        (1..=24).flat_map(|number| row(number).chain([&'\n'])).collect()
    }
}

/// Gives what it reads to a program on a terminal, and prints what that shows.
const TERMINAL: &str = "import fcntl, os, pty, select, struct, sys, termios\n\
    pid, terminal = pty.fork()\n\
    if pid == 0: os.execv(sys.argv[1], sys.argv[1:])\n\
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))\n\
    sources = [terminal, 0]\n\
    while True:\n\
    \x20   ready, _, _ = select.select(sources, [], [])\n\
    \x20   if 0 in ready:\n\
    \x20       keys = os.read(0, 100)\n\
    \x20       if keys: os.write(terminal, keys)\n\
    \x20       else: sources.remove(0)\n\
    \x20   if terminal in ready:\n\
    \x20       try: shown = os.read(terminal, 65536)\n\
    \x20       except OSError: break\n\
    \x20       os.write(1, shown)\n\
    _, status = os.waitpid(pid, 0)\n\
    sys.exit(os.waitstatus_to_exitcode(status))\n";

impl Live {
    fn start(server: &Running) -> Live {
        let mut terminal = Command::new("python3")
            .args(["-c", TERMINAL, BINARY, "top", "--interval", "100ms", "--control", server.control()])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let screen = Arc::<Mutex<Screen>>::default();
        let (mut output, all) = (terminal.stdout.take().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let (mut piece, mut bytes) = ([0; 65536], Vec::new());
            while let Ok(length @ 1..) = output.read(&mut piece) {
                bytes.extend_from_slice(&piece[..length]);
                // A character may have come in part.
                let whole = match std::str::from_utf8(&bytes) {
                    Ok(text) => text.len(),
                    Err(error) => error.valid_up_to(),
                };
                let text = String::from_utf8(bytes.drain(..whole).collect()).unwrap();
                all.lock().unwrap().write(&text);
            }
        });
        let keys = terminal.stdin.take().unwrap();
        let live = Live { terminal, keys, screen };
        live.shows("q leave");
        live
    }

    fn shows(&self, what: &str) {
        let _shown = Printed(&self.screen);
        eventually(what, || self.screen.lock().unwrap().text().contains(what));
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn ends(mut self) {
        assert!(self.terminal.wait().unwrap().success());
    }
}

/// If the test fails.
struct Printed<'a>(&'a Mutex<Screen>);

impl Drop for Printed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.0.lock().unwrap().text());
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.terminal.kill();
        let _ = self.terminal.wait();
    }
}

const DOWN: &str = "\x1b[B";

#[test]
fn its_keys_end_ban_and_pause_and_ask_before() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2")).start();
    let mut clients = served(address, 2);
    let mut live = Live::start(&server);

    // Not without a yes.
    live.press(DOWN);
    live.press("k");
    live.shows("y/n");
    live.press("n");
    live.press("k");
    live.shows("y/n");
    live.press("y");
    eventually("one has been ended", || server.count("active") == 1);
    let left: Vec<bool> = clients.iter_mut().map(|client| try_echo(client, b"x").is_ok()).collect();
    assert_eq!(left.iter().filter(|there| **there).count(), 1, "{left:?}");

    // The other one, by its source, which is the only one that is left.
    live.press("\t");
    live.press(DOWN);
    live.press("b");
    live.shows("out for an hour?");
    live.press("y");
    eventually("it is banned", || server.status()["bans"] == 1);

    // From the sources to the services.
    live.press("\t");
    live.press(DOWN);
    live.press("p");
    live.shows("Pause echo?");
    live.press("y");
    eventually("it is paused", || server.service()["paused"] == true);
    live.shows("paused");
    live.press("p");
    live.shows("Let echo go on?");
    live.press("y");
    eventually("it goes on", || server.service()["paused"] == false);
    echo(&mut connect(address), b"x");

    // Help, a filter that leaves nobody, and away.
    live.press("?");
    live.shows("pause this service");
    live.press("x/nobody");
    live.shows("with \"nobody\"");
    live.press("\r");
    live.shows("0, those with most connections first");
    live.press("q");
    live.ends();
}

#[test]
fn a_supervisor_that_goes_away_and_comes_back_is_shown() {
    let address = address::fresh();
    let server = Preforkd::run(&echo_service(address, "workers = 2")).start();
    let mut live = Live::start(&server);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.pid()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    live.shows("no preforkd answers");
    // Nothing has changed while nobody looks.
    live.press("\x03");
    live.ends();
    server.left_nothing(&[address]);
}
