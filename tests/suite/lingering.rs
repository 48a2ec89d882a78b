//! Sockets that a stranger has made so that their close waits for him (`SO_LINGER`): whoever else has one, or throws one away that was
//! sent to him, waits for nobody.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::client::{connect, exchange};
use crate::support::{Preforkd, Running, address, eventually, preforkd, root, text};

/// setsockopt(2) of SO_PASSRIGHTS, which Linux before 6.16 does not know.
const OLD_KERNEL: [&str; 3] =
    [concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/without"), "54:2=83", "--"];

/// Sends a connection whose close waits for its other end, which reads nothing, and ends: so it waits for nobody itself.
const SENDER: &str = "import array, os, socket, struct, sys\n\
    listener = socket.create_server(('127.0.0.1', 0))\n\
    if os.fork() == 0:\n    other, _ = listener.accept(); os.close(1); sys.stdin.read(); os._exit(0)\n\
    one = socket.create_connection(listener.getsockname()); one.setblocking(False)\n\
    try:\n    while True: one.send(bytes(65536))\n\
    except BlockingIOError: pass\n\
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 100000))\n\
    to = socket.socket(socket.AF_UNIX); to.connect(sys.argv[1])\n\
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [one.fileno()]))]\n\
    try: to.sendmsg([b'{'], rights); said = 'sent'\n\
    except PermissionError: said = 'refused'\n\
    os.write(1, said.encode() + b'\\n'); os._exit(0)\n";

/// Who has the other end: until this is dropped, whoever waits for it waits.
struct OtherEnd(Child);

impl Drop for OtherEnd {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Sends such a connection to a socket; who has its other end, and what came of it.
fn send(path: &Path) -> (OtherEnd, String) {
    let mut sender = Command::new("python3")
        .args(["-c", SENDER])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(sender.stdout.take().unwrap()).read_line(&mut said).unwrap();
    (OtherEnd(sender), said.trim_end().to_owned())
}

fn control(server: &Running) -> PathBuf {
    server.control().into()
}

const ECHO: &str = "[service.one]\nlisten = \"unix:DIR/service.sock\"\nhandler = \"echo\"\nworkers = 1\n";

#[test]
fn the_kernel_lets_nobody_send_descriptors() {
    let two = "[service.two]\nlisten = \"unix:DIR/two.sock\"\nexec = [\"cat\"]\n";
    let server = Preforkd::run(&(ECHO.to_owned() + two)).start();
    let path = server.dir().join("service.sock");
    for path in [control(&server), path.clone(), server.dir().join("two.sock")] {
        assert_eq!(send(&path).1, "refused", "{}", path.display());
    }
    // As the key says, from a reload on, too.
    server.configure(&ECHO.replace("workers", "pass_rights = true\nworkers"));
    server.reload_ok();
    assert_eq!(send(&path).1, "sent");
    server.configure(ECHO);
    server.reload_ok();
    assert_eq!(send(&path).1, "refused");
}

#[test]
fn a_descriptor_at_the_control_socket_of_an_older_kernel_holds_up_nobody() {
    if !root("a filter without no_new_privs") {
        return;
    }
    let server = Preforkd::run(ECHO).under(&OLD_KERNEL).start();
    let mut ends = Vec::new();
    // The supervisor reads one before its sender has gone, or after that.
    for _ in 0..6 {
        let (end, said) = send(&control(&server));
        assert_eq!(said, "sent");
        ends.push(end);
        assert_eq!(server.status()["state"], "running");
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ending(), "0");
    server.wait_empty();
    drop(ends);
}

#[test]
fn a_descriptor_in_the_queue_of_a_listener_holds_up_nobody() {
    if !root("a filter without no_new_privs") {
        return;
    }
    let other = "[service.other]\nlisten = \"unix:DIR/other.sock\"\nhandler = \"echo\"\n";
    let server = Preforkd::run(&(ECHO.to_owned() + other)).under(&OLD_KERNEL).start();
    let paused = preforkd(&["pause", "--control", server.control(), "one"]);
    assert!(paused.status.success(), "{}", text(&paused.stderr));
    let path = server.dir().join("service.sock");
    let queued: Vec<_> = (0..3).map(|_| send(&path)).collect();
    assert!(queued.iter().all(|(_, said)| said == "sent"));
    // The listener is closed, with all that is on it.
    server.configure(other);
    server.reload_ok();
    assert_eq!(server.status()["state"], "running");
    server.stop();
    drop(queued);
}

#[test]
fn what_a_program_has_made_of_its_connection_does_not_hold_up_its_worker() {
    let address = address::fresh();
    // Python sets it at the level of sockets; without a sandbox, nothing keeps it from that.
    let program = "import os, socket, struct\n\
                   s = socket.socket(fileno=0)\n\
                   if s.recv(1) != b'L': s.sendall(b'served'); raise SystemExit\n\
                   s.setblocking(False)\n\
                   try:\n    while True: s.send(bytes(65536))\n\
                   except BlockingIOError: pass\n\
                   s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 100000))\n\
                   os._exit(0)\n";
    let config = format!(
        "[service.one]\nlisten = \"{address}\"\nworkers = 1\nmax_lifetime = \"1s\"\nsandbox = false\n\
         exec = [\"python3\", \"DIR/program.py\"]\n"
    );
    let server = Preforkd::run(&config).script("program.py", program).start();
    let stuck: Vec<_> = (0..3)
        .map(|_| {
            let mut client = connect(address);
            client.write_all(b"L").unwrap();
            client
        })
        .collect();
    eventually("they have their records", || server.count("completed") == 3);
    assert_eq!(exchange(address, b"x"), b"served");
    drop(stuck);
}
