//! A preforkd that runs, and whatever it started.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::fence::Fenced;
use super::lines::Lines;
use super::proc::{self, Process};
use super::varlink::Varlink;
use super::zombies::ZombieWatch;
use super::{BINARY, eventually, text};

/// When it is dropped, it is told to stop, and has to leave nothing.
pub(crate) struct Running {
    fenced: Fenced,
    dir: tempfile::TempDir,
    control: PathBuf,
    serve: bool,
    /// What it writes to stdout.
    pub(crate) stdout: Lines,
    /// What it writes to stderr: the log.
    pub(crate) log: Lines,
    /// What it tells systemd.
    pub(crate) notify: Lines,
}

impl Running {
    pub(super) fn new(
        fenced: Fenced,
        dir: tempfile::TempDir,
        control: PathBuf,
        notify: Lines,
        serve: bool,
    ) -> Self {
        let (stdout, log) = (fenced.stdout.clone(), fenced.stderr.clone());
        Self { fenced, dir, control, serve, stdout, log, notify }
    }

    /// Waits for what tells its user that it serves.
    pub(super) fn wait_ready(&self) {
        let ready = |line: &str| {
            if self.serve { line.starts_with("listening on ") } else { line == "READY=1" }
        };
        let said = if self.serve { &self.stdout } else { &self.notify };
        eventually("ready, or ended", || said.count(ready) > 0 || self.fenced.has_ended());
        assert!(said.count(ready) > 0, "it ended:\n{}", self.log.all().join("\n"));
    }

    /// Where `serve` listens, from what it says.
    pub(crate) fn address(&self) -> SocketAddr {
        let line = self.stdout.wait("`listening on`", |line| line.starts_with("listening on "));
        line["listening on ".len()..].parse().unwrap_or_else(|_| panic!("no address: {line}"))
    }

    /// Where the socket that was passed to it listens.
    pub(crate) fn passed_address(&self) -> SocketAddr {
        self.fenced.passed_address()
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces the configuration of `run`.
    pub(crate) fn configure(&self, config: &str) {
        let config = config.replace("DIR", self.dir().to_str().unwrap());
        super::write(&self.dir().join("preforkd.toml"), &config);
    }

    /// The pid of the supervisor.
    pub(crate) fn pid(&self) -> i32 {
        self.fenced.pid()
    }

    /// Sends the supervisor a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        proc::kill(self.pid(), signal);
    }

    /// Everything that belongs to it: supervisor, workers, connection processes and what these started.
    pub(crate) fn processes(&self) -> Vec<Process> {
        self.fenced.processes()
    }

    /// Everything but the supervisor and its workers.
    pub(crate) fn connections(&self) -> Vec<Process> {
        let mut workers = self.all_workers();
        workers.push(self.pid());
        let mut processes = self.processes();
        processes.retain(|process| !workers.contains(&process.pid) && process.state != 'Z');
        processes
    }

    /// What `preforkd status --json` prints, without a process for each time that a test asks.
    pub(crate) fn status(&self) -> Value {
        let reply = Varlink::to(self).call("GetStatus", json!({}));
        assert!(reply["error"].is_null(), "status: {reply}");
        reply["parameters"].clone()
    }

    /// The status of the first service, the only one of most tests.
    pub(crate) fn service(&self) -> Value {
        self.status()["services"][0].clone()
    }

    /// A count in the status of the first service.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.service()[name].as_u64().unwrap_or_else(|| panic!("status has no number {name}"))
    }

    /// The workers of the first service that accept.
    pub(crate) fn workers(&self) -> Vec<i32> {
        let service = self.service();
        let accepting = |worker: &&Value| worker["state"] == "accepting";
        service["workers"].as_array().unwrap().iter().filter(accepting).map(pid).collect()
    }

    /// The one worker that accepts: with several, any of them could have what the test looks for.
    pub(crate) fn worker(&self) -> i32 {
        let workers = self.workers();
        assert_eq!(workers.len(), 1, "{workers:?}");
        workers[0]
    }

    /// The workers of all services, in whatever state.
    pub(crate) fn all_workers(&self) -> Vec<i32> {
        let status = self.status();
        let services = status["services"].as_array().unwrap();
        services.iter().flat_map(|service| service["workers"].as_array().unwrap()).map(pid).collect()
    }

    /// Kills a worker and waits until another has taken its place.
    pub(crate) fn replace_worker(&self, worker: i32) {
        self.replace_workers(&[worker]);
    }

    /// Kills these workers and waits until others have taken their places. For a moment the status has the dead as well.
    pub(crate) fn replace_workers(&self, killed: &[i32]) {
        let before = self.workers().len();
        killed.iter().for_each(|worker| proc::kill(*worker, Signal::SIGKILL));
        eventually("other workers in their places", || {
            let workers = self.workers();
            workers.len() == before && !workers.iter().any(|worker| killed.contains(worker))
        });
    }

    /// The path of its control socket.
    pub(crate) fn control(&self) -> &str {
        self.control.to_str().unwrap()
    }

    /// `preforkd reload`.
    pub(crate) fn reload(&self) -> Output {
        super::run(&[BINARY, "reload", "--control", self.control()])
    }

    /// Puts another file in the place of the program, as a package does.
    pub(crate) fn replace_program(&self, content: &[u8]) {
        let [path, new, written] =
            ["", ".new", ".written"].map(|end| self.dir().join(format!("preforkd{end}")));
        std::fs::write(&written, content).unwrap();
        std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Not by this process, see `own_copy`.
        super::sure(&["cp", "-p", written.to_str().unwrap(), new.to_str().unwrap()]);
        std::fs::rename(new, path).unwrap();
    }

    /// `preforkd upgrade`.
    pub(crate) fn upgrade(&self) -> Output {
        super::run(&[BINARY, "upgrade", "--control", self.control()])
    }

    /// `preforkd reload` of a configuration that must be taken.
    pub(crate) fn reload_ok(&self) {
        let output = self.reload();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "reload: {said}\n{}", self.log.all().join("\n"));
    }

    /// Waits until the supervisor has ended; its exit code, or the signal that killed it.
    pub(crate) fn ending(&self) -> String {
        self.fenced.ending()
    }

    /// Waits until no process is left, also none that nobody has waited for.
    pub(crate) fn wait_empty(&self) {
        eventually("no process left", || self.fenced.is_empty());
        assert!(self.processes().is_empty(), "{:#?}", self.processes());
    }

    /// Tells it to stop; it ends well, and leaves no process and no socket.
    pub(crate) fn stop(&self) {
        let addresses: Vec<SocketAddr> = self.tcp_addresses();
        self.signal(Signal::SIGTERM);
        self.left_nothing(&addresses);
    }

    /// The TCP addresses in the status.
    pub(crate) fn tcp_addresses(&self) -> Vec<SocketAddr> {
        let status = self.status();
        let services = status["services"].as_array().unwrap();
        let listen = services.iter().flat_map(|service| service["listen"].as_array().unwrap());
        listen.filter_map(|address| address.as_str()?.parse().ok()).collect()
    }

    /// Waits until it has ended well; then no process, zombie or socket may be left.
    pub(crate) fn left_nothing(&self, addresses: &[SocketAddr]) {
        assert_eq!(self.ending(), "0", "the supervisor ended badly");
        self.wait_empty();
        for address in addresses {
            assert!(proc::listeners(*address).is_empty(), "something still listens on {address}");
        }
        let sockets = ["control.sock", "service.sock"].map(|name| self.dir().join(name));
        for socket in sockets {
            assert!(!socket.exists(), "{socket:?} is left");
        }
    }

    /// Watches its processes for zombies until the watch is dropped.
    pub(crate) fn watch_zombies(&self) -> ZombieWatch {
        ZombieWatch::below(self.fenced.fence_pid())
    }
}

fn pid(worker: &Value) -> i32 {
    i32::try_from(worker["pid"].as_i64().unwrap()).unwrap()
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log.all();
            let tail = &log[log.len().saturating_sub(60)..];
            eprintln!(
                "--- the log of preforkd:\n{}\n--- its processes:\n{:#?}",
                tail.join("\n"),
                self.processes()
            );
        } else if !self.fenced.is_empty() {
            self.stop();
        }
    }
}
