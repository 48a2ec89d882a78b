//! Starting preforkd the way a person, a script or systemd does.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use super::fence::{Fenced, Orders};
use super::lines::Lines;
use super::running::Running;
use super::{BINARY, text, write};

/// A preforkd that is not yet started.
pub(crate) struct Preforkd {
    dir: tempfile::TempDir,
    arguments: Vec<String>,
    handler: Vec<String>,
    prefix: Vec<String>,
    environment: BTreeMap<String, String>,
    listen: Option<String>,
    binary: PathBuf,
    serve: bool,
}

impl Preforkd {
    /// `preforkd serve OPTIONS ADDRESS HANDLER`, where `handler` may be `-- PROGRAM ARG…`; `DIR` in address and handler
    /// stands for a directory of its own.
    pub(crate) fn serve(options: &[&str], address: &str, handler: &[&str]) -> Self {
        let mut new = Self::new(true);
        new.arguments.push("serve".to_owned());
        new.arguments.extend(options.iter().map(ToString::to_string));
        let dir = new.dir().display().to_string();
        new.handler.push(address.replace("DIR", &dir));
        new.handler.extend(handler.iter().map(|word| word.replace("DIR", &dir)));
        new
    }

    /// `preforkd run` with this configuration; `DIR` in it stands for a directory of its own.
    pub(crate) fn run(config: &str) -> Self {
        let mut new = Self::new(false);
        let path = new.dir().join("preforkd.toml");
        write(&path, &config.replace("DIR", new.dir().to_str().unwrap()));
        new.arguments.extend(["run".to_owned(), "--config".to_owned(), path.display().to_string()]);
        new
    }

    fn new(serve: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("preforkd-test-").tempdir().unwrap();
        // For connection processes that are somebody else.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let environment = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/nonexistent"),
        ];
        Self {
            dir,
            arguments: Vec::new(),
            handler: Vec::new(),
            prefix: Vec::new(),
            environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            listen: None,
            binary: BINARY.into(),
            serve,
        }
    }

    /// Its directory, for scripts, sockets and what they write.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Puts a file into its directory, or below; a script is executable.
    pub(crate) fn script(self, name: &str, content: &str) -> Self {
        std::fs::create_dir_all(self.dir().join(name).parent().unwrap()).unwrap();
        write(&self.dir().join(name), &content.replace("DIR", self.dir().to_str().unwrap()));
        self
    }

    /// Starts it through this command, which ends with exec of its further arguments.
    pub(crate) fn under(mut self, command: &[&str]) -> Self {
        self.prefix.extend(command.iter().map(|word| word.replace("DIR", self.dir.path().to_str().unwrap())));
        self
    }

    /// Starts it after this shell script.
    pub(crate) fn after(self, script: &str) -> Self {
        self.under(&["sh", "-euc", &format!("{script}\nexec \"$@\""), "sh"])
    }

    /// Starts it in a mount namespace of its own, after this shell script.
    pub(crate) fn after_mounts(self, script: &str) -> Self {
        self.under(&["unshare", "--mount", "--propagation", "private"]).after(script)
    }

    /// Starts another program that uses preforkd as a library.
    pub(crate) fn program(mut self, binary: &Path) -> Self {
        self.binary = binary.to_owned();
        self
    }

    /// Starts a copy of the program, `preforkd` in its directory.
    pub(crate) fn own_copy(mut self) -> Self {
        let original = std::mem::replace(&mut self.binary, self.dir.path().join("preforkd"));
        // Not by this process: what it has open for writing, a child that another test just forks has open too, and
        // such a program cannot be exec'ed.
        super::sure(&["cp", original.to_str().unwrap(), self.binary.to_str().unwrap()]);
        self
    }

    /// Starts it as a user without a name and without rights, who has no other processes and may have `processes`.
    pub(crate) fn by_user(mut self, user: u32, processes: u32) -> Self {
        let uid = super::user(user);
        // The target directory may be in somebody's home.
        self = self.own_copy();
        nix::unistd::chown(self.dir(), Some(uid.into()), Some(uid.into())).unwrap();
        let uid = uid.to_string();
        self.under(&["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"]).under(&[
            "prlimit",
            &format!("--nproc={processes}:{processes}"),
            "--",
        ])
    }

    /// Sets a variable in the environment of the supervisor.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Passes it a socket that listens on this address, or at `unix:PATH`, as systemd does for
    /// `FileDescriptorName=NAME`.
    pub(crate) fn passing(mut self, name: &str, address: &str) -> Self {
        self.listen = Some(address.to_owned());
        // sd_listen_fds(3): the sockets start at 3, and LISTEN_PID says for whom they are.
        self.env("LISTEN_FDNAMES", name).after("exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1")
    }

    /// Starts it and waits until it serves.
    pub(crate) fn start(self) -> Running {
        let running = self.start_unready();
        running.wait_ready();
        running
    }

    /// Starts it without waiting for anything.
    pub(crate) fn start_unready(mut self) -> Running {
        let control = self.dir().join("control.sock");
        let notify_path = self.dir().join("notify");
        let notify = follow_notify(&UnixDatagram::bind(&notify_path).unwrap());
        std::fs::set_permissions(&notify_path, std::fs::Permissions::from_mode(0o777)).unwrap();
        self.environment.insert("NOTIFY_SOCKET".to_owned(), notify_path.display().to_string());

        let mut command = std::mem::take(&mut self.prefix);
        command.push(self.binary.display().to_string());
        command.append(&mut self.arguments);
        command.extend(["--control".to_owned(), control.display().to_string()]);
        command.append(&mut self.handler);
        let orders = Orders { command, environment: self.environment, listen: self.listen };
        Running::new(Fenced::start(&orders), self.dir, control, notify, self.serve)
    }
}

/// Collects the assignments that a service sends to systemd, sd_notify(3), one a line.
fn follow_notify(socket: &UnixDatagram) -> Lines {
    let socket = socket.try_clone().unwrap();
    let lines = Lines::default();
    let writer = lines.clone();
    std::thread::spawn(move || {
        let mut message = [0; 4096];
        // The end of the test binary ends it; a descriptor that comes along is not taken, and so closed.
        while let Ok(length) = socket.recv(&mut message) {
            for line in text(&message[..length]).lines() {
                writer.push(line.to_owned());
            }
        }
    });
    lines
}
