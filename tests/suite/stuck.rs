//! Others that are stuck: the supervisor waits for none of them, and says who it is.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

use crate::life::echo_service;
use crate::support::client::{connect, echo, exchange};
use crate::support::{BINARY, Preforkd, Running, address, eventually, proc, root, text, write};

/// A server whose queue is full and that never accepts: whoever connects sleeps.
struct Stuck {
    _sockets: Vec<OwnedFd>,
}

impl Stuck {
    fn at(path: &Path) -> Self {
        let new = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap()
        };
        let address = UnixAddr::new(path).unwrap();
        let listener = new();
        socket::bind(listener.as_raw_fd(), &address).unwrap();
        socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let mut sockets = vec![listener];
        loop {
            let client = new();
            match socket::connect(client.as_raw_fd(), &address) {
                Ok(()) => sockets.push(client),
                // Full: unix(7).
                Err(Errno::EAGAIN) => return Self { _sockets: sockets },
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// What a command that may take a while says in the end; `timeout` ends it if that never comes.
struct Asked(Option<Child>);

impl Asked {
    fn by(command: &[&str]) -> Self {
        // Longer than any bound that it should have by itself.
        let child = Command::new("timeout")
            .arg("120")
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(Some(child))
    }

    fn reload(server: &Running) -> Self {
        Self::by(&[BINARY, "reload", "--control", server.control()])
    }

    fn has_ended(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Waits for its end; its exit code, and all that it said.
    fn answer(mut self) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = self.0.take().unwrap().wait_with_output().unwrap();
        (status.code(), text(&stdout) + &text(&stderr))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // timeout(1) has made a process group of its own, with all that hangs.
            let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
            let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

/// The supervisor does all that it has to do: it answers, and buries and replaces the dead; and its workers serve.
fn goes_on(server: &Running, listen: SocketAddr) {
    let mut held = connect(listen);
    echo(&mut held, b"before");
    for worker in server.workers() {
        server.replace_worker(worker);
    }
    echo(&mut held, b"after");
    assert_eq!(exchange(listen, b"x"), b"x");
}

/// A start is refused if this file in its directory is a socket whose owner is stuck.
fn start_is_refused(server: Preforkd, file: &str) {
    let path = server.dir().join(file);
    let _stuck = Stuck::at(&path);
    let server = server.start_unready();
    let ending = server.ending();
    server.wait_empty();
    let said = server.log.all().join("\n");
    assert!(said.contains(path.to_str().unwrap()) && !said.contains("serving"), "{said}");
    assert!(["is in use", "is using it", "already answers"].iter().any(|why| said.contains(why)), "{said}");
    assert_eq!(ending, "71", "{said}");
    assert!(path.exists(), "it is still its owner's");
}

#[test]
fn a_start_on_a_unix_socket_whose_owner_is_stuck_is_refused() {
    let server = Preforkd::serve(&["--workers", "1"], "unix:DIR/service.sock", &["echo"]);
    start_is_refused(server, "service.sock");
}

#[test]
fn a_start_with_a_control_socket_whose_owner_is_stuck_is_refused() {
    // What the tests pass by --control.
    let file = "control.sock";
    start_is_refused(Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]), file);
    start_is_refused(Preforkd::run(&echo_service(address::fresh(), "workers = 1")), file);
}

/// One whose new configuration wants a socket whose owner is stuck, besides what the old one has.
struct WantsStuck {
    server: Running,
    listen: SocketAddr,
    before: String,
    path: PathBuf,
    _stuck: Stuck,
}

impl WantsStuck {
    fn new() -> Self {
        let listen = address::fresh();
        let before = echo_service(listen, "workers = 1");
        let server = Preforkd::run(&before).start();
        let path = server.dir().join("stuck.sock");
        let stuck = Stuck::at(&path);
        let other = format!("[service.other]\nlisten = \"unix:{}\"\nhandler = \"echo\"\n", path.display());
        server.configure(&(before.clone() + &other));
        Self { server, listen, before, path, _stuck: stuck }
    }
}

#[test]
fn a_reload_that_wants_a_unix_socket_whose_owner_is_stuck_is_refused() {
    let WantsStuck { server, listen, before, path, _stuck } = WantsStuck::new();
    let (code, said) = Asked::reload(&server).answer();
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    assert!(said.contains("is in use") || said.contains("is using it"), "{said}");
    goes_on(&server, listen);
    server.configure(&before);
    server.reload_ok();
    assert!(path.exists(), "it is still its owner's");
}

#[test]
fn a_reload_that_wants_a_control_socket_whose_owner_is_stuck_is_refused() {
    let listen = address::fresh();
    let config = |control: &str| {
        format!("[supervisor]\ncontrol_socket = \"DIR/{control}\"\n") + &echo_service(listen, "workers = 1")
    };
    // Without the --control of the tests, which would override the file.
    let server = Preforkd::run(&config("control.sock"))
        .under(&["bash", "-euc", "exec \"${@:1:$#-2}\"", "bash"])
        .start();
    let path = server.dir().join("stuck.sock");
    let _stuck = Stuck::at(&path);
    server.configure(&config("stuck.sock"));
    let (code, said) = Asked::reload(&server).answer();
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    goes_on(&server, listen);
    server.configure(&config("control.sock"));
    server.reload_ok();
    assert!(path.exists(), "it is still its owner's");
}

#[test]
fn whoever_is_stuck_does_not_keep_a_supervisor_from_ending() {
    let WantsStuck { server, listen, _stuck, .. } = WantsStuck::new();
    let mark = server.notify.mark();
    let reload = Asked::reload(&server);
    server.notify.wait_after(mark, "the reload", |line| line == "RELOADING=1");
    server.signal(Signal::SIGTERM);
    server.left_nothing(&[listen]);
    drop(reload);
}

/// A getent that is asked and never answers; who it is asked for is in `asked`.
const HANGS: &str = "#!/bin/sh\necho \"$@\" >>DIR/asked\nexec sleep 1000\n";
const OWN_GETENT: &str = "mount --bind DIR/getent /usr/bin/getent";

fn with_user(listen: SocketAddr, user: &str) -> String {
    echo_service(listen, &format!("workers = 1\nuser = \"{user}\""))
}

/// One whose reload hangs in getent, which is asked for this user.
fn hangs_in_getent(listen: SocketAddr, user: &str) -> (Running, Asked) {
    let server = Preforkd::run(&echo_service(listen, "workers = 1"))
        .script("getent", HANGS)
        .after_mounts(OWN_GETENT)
        .start();
    server.configure(&with_user(listen, user));
    let reload = Asked::reload(&server);
    eventually("getent is asked", || server.dir().join("asked").exists());
    (server, reload)
}

#[test]
fn while_getent_hangs_in_a_reload_the_supervisor_goes_on_and_in_the_end_says_so() {
    if !root("a getent of its own") {
        return;
    }
    std::thread::scope(|scope| {
        // The second is in /etc/passwd, and asked for are only his groups.
        for user in ["ldapuser", "nobody"] {
            scope.spawn(move || {
                let listen = address::fresh();
                let (server, mut reload) = hangs_in_getent(listen, user);
                goes_on(&server, listen);
                assert!(!reload.has_ended(), "otherwise nothing was tested");
                let (code, said) = reload.answer();
                assert_eq!(code, Some(78), "{said}");
                assert!(said.contains("getent"), "{said}");
                goes_on(&server, listen);
                assert_eq!(server.status()["reloads"]["failed"].as_u64(), Some(1));
                server.configure(&echo_service(listen, "workers = 2"));
                server.reload_ok();
                let hangs = |process: &proc::Process| process.name == "sleep" || process.name == "getent";
                eventually("nothing of it is left", || !server.processes().iter().any(hangs));
            });
        }
    });
}

#[test]
fn while_getent_hangs_in_a_reload_the_supervisor_obeys() {
    if !root("a getent of its own") {
        return;
    }
    let listen = address::fresh();
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let (server, reload) = hangs_in_getent(listen, "ldapuser");
        server.signal(signal);
        server.left_nothing(&[listen]);
        let (code, said) = reload.answer();
        assert_ne!(code, Some(0), "{said}");
    }
}

#[test]
fn a_reload_after_one_in_which_getent_hangs_is_not_lost() {
    if !root("a getent of its own") {
        return;
    }
    let listen = address::fresh();
    let (server, first) = hangs_in_getent(listen, "ldapuser");
    server.configure(&echo_service(listen, "workers = 2"));
    let (code, said) = Asked::reload(&server).answer();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(server.workers().len(), 2);
    let (code, said) = first.answer();
    assert_ne!(code, Some(124), "{said}");
    assert!(server.upgrade().status.success());
}

#[test]
fn a_start_or_a_check_in_which_getent_hangs_ends_and_says_so() {
    if !root("a getent of its own") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    write(path("getent").as_ref(), &HANGS.replace("DIR", dir.path().to_str().unwrap()));
    write(path("preforkd.toml").as_ref(), &with_user(address::fresh(), "ldapuser"));
    let mount = format!("mount --bind {} /usr/bin/getent; exec \"$@\"", path("getent"));
    let under = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", &mount, "sh", BINARY];
    let (config, control) = (path("preforkd.toml"), path("control.sock"));
    let commands: [&[&str]; 3] = [
        &["check", "--config", &config],
        &["run", "--config", &config, "--control", &control],
        &["serve", "--user", "ldapuser", "--control", &control, "127.0.0.1:0", "echo"],
    ];
    // All at once: each takes its time.
    let asked = commands.map(|arguments| Asked::by(&[&under[..], arguments].concat()));
    for (asked, arguments) in asked.into_iter().zip(commands) {
        let (code, said) = asked.answer();
        assert!(code.is_some_and(|code| ![0, 124].contains(&code)), "{arguments:?}: {code:?} {said}");
        assert!(said.contains("getent"), "{arguments:?}: {said}");
    }
}

/// Somebody who holds a lease on a file and does not give it back: whoever opens the file sleeps until the kernel takes it
/// from him after 45 s, fcntl(2). So does an open on a file server that is gone. Neither std nor nix has `F_SETLEASE`, and
/// every Debian has perl.
struct Lease(Child);

impl Lease {
    fn on(path: &Path) -> Self {
        let script = "$SIG{IO} = 'IGNORE'; $| = 1; open(F, '<', $ARGV[0]) or die $!; \
                      fcntl(F, 1024, 1) or die $!; print qq(held\\n); sleep 1000";
        let mut child = Command::new("perl")
            .args(["-e", script])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut said).unwrap();
        assert_eq!(said, "held\n");
        Self(child)
    }

    /// Waits until somebody wants the file: proc_locks(5).
    fn is_wanted(&self) {
        let line = format!(" {} ", self.0.id());
        eventually("somebody opens it", || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            locks.lines().any(|lock| lock.contains(&line) && lock.contains("BREAKING"))
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn while_a_file_of_the_configuration_cannot_be_opened_the_supervisor_goes_on() {
    if !root("a passwd of its own") {
        return;
    }
    for file in ["preforkd.toml", "preforkd.d/more.toml", "passwd", "group"] {
        let listen = address::fresh();
        let config = with_user(listen, "nobody");
        let server = Preforkd::run(&config).after_mounts(
            "mkdir DIR/preforkd.d; echo >DIR/preforkd.d/more.toml; cp /etc/passwd /etc/group DIR; \
             mount --bind DIR/passwd /etc/passwd; mount --bind DIR/group /etc/group",
        );
        let server = server.start();
        server.configure(&config.replace("workers = 1", "workers = 2"));
        let lease = Lease::on(&server.dir().join(file));
        let mut reload = Asked::reload(&server);
        lease.is_wanted();
        goes_on(&server, listen);
        assert!(!reload.has_ended(), "otherwise nothing was tested");
        drop(lease);
        let (code, said) = reload.answer();
        assert_eq!(code, Some(0), "{file}: {said}");
        assert_eq!(server.workers().len(), 2, "{file}");

        let lease = Lease::on(&server.dir().join(file));
        let reload = Asked::reload(&server);
        lease.is_wanted();
        server.signal(Signal::SIGTERM);
        server.left_nothing(&[listen]);
        let (code, said) = reload.answer();
        assert_ne!(code, Some(0), "{file}: {said}");
    }
}

#[test]
fn a_pipe_that_nobody_writes_is_no_drop_in() {
    let listen = address::fresh();
    let config = echo_service(listen, "workers = 1");
    let server = Preforkd::run(&config).after("mkdir DIR/preforkd.d").start();
    let path = server.dir().join("preforkd.d/x.toml");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let (code, said) = Asked::reload(&server).answer();
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    goes_on(&server, listen);
    std::fs::remove_file(&path).unwrap();
    server.reload_ok();
}

#[test]
fn a_control_client_that_reads_nothing_holds_up_nobody() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]).start();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = std::os::unix::net::UnixStream::connect(server.control()).unwrap();
        client.write_all(b"{\"method\":\"org.preforkd.Control.GetStatus\"}\0").unwrap();
        clients.push(client);
    }
    goes_on(&server, server.address());
}

#[test]
fn a_service_manager_that_does_not_read_holds_up_nobody() {
    let server = Preforkd::serve(&["--workers", "1"], "127.0.0.1:0", &["echo"]);
    let path = server.dir().join("deaf");
    let deaf = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    // As much as it takes, and then the question whether all is well comes often.
    let full = std::os::unix::net::UnixDatagram::unbound().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send_to(b"STATUS=full", &path).is_ok() {}
    let server = server.env("WATCHDOG_USEC", "200000").after("export NOTIFY_SOCKET=DIR/deaf").start();
    goes_on(&server, server.address());
    drop(deaf);
}
