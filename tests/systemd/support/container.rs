//! A booted Debian: systemd-nspawn over a root that is not changed, with a network of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use nix::sched::{CloneFlags, setns};

use super::{PATIENCE, eventually, failure, release_of, text};

/// Becomes systemd-nspawn; benches/accept uses it, too.
const BOOT: &str = include_str!("../boot");

/// One release, booted, with the package installed.
pub(crate) struct Container {
    nspawn: Child,
    /// Its systemd, by the pid that the host knows it by.
    leader: i32,
    name: String,
    /// What nspawn and systemd say while it boots.
    console: Arc<Mutex<Vec<String>>>,
    systemd: u32,
    package: PathBuf,
    /// Every file before the package was installed.
    files: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Container {
    /// Boots it and installs the package. The calling thread, and those that it starts, are in its network from then on.
    pub(crate) fn boot(root: &Path, package: &Path) -> Self {
        failure::keep();
        let dir = tempfile::Builder::new().prefix("preforkd-systemd-").tempdir().unwrap();
        let name = format!("preforkd-{}-{}", release_of(root), std::process::id());
        let mut nspawn = Command::new("setpriv")
            // It ends with this thread, however that ends, and with it its namespaces and mounts. KILL would leave the
            // guest running.
            .args([
                "--pdeathsig",
                "TERM",
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-euc",
                BOOT,
                "sh",
            ])
            .args([root, dir.path()])
            .arg(&name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let console = Arc::new(Mutex::new(Vec::new()));
        let (lines, output) = (Arc::clone(&console), BufReader::new(nspawn.stdout.take().unwrap()));
        // Somebody must read it, or systemd waits.
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line));
        });
        let mut new = Self {
            nspawn,
            leader: 0,
            name,
            console,
            systemd: 0,
            package: package.to_owned(),
            files: Vec::new(),
            _dir: dir,
        };
        new.wait_booted();
        let network = File::open(format!("/proc/{}/ns/net", new.leader)).unwrap();
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        let version = new.sure("systemctl --version");
        new.systemd = version.split(' ').nth(1).unwrap().parse().unwrap();
        new.files = new.all_files();
        new.write_for_tests();
        new.install(package);
        new
    }

    fn wait_booted(&mut self) {
        let pid = self.nspawn.id();
        eventually("the container starts", || {
            let ended = self.nspawn.try_wait().unwrap();
            assert!(ended.is_none(), "systemd-nspawn ended:\n{}", self.console.lock().unwrap().join("\n"));
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            // nspawn's first child makes the second one, which is pid 1 of the container.
            let leader = children.split_whitespace().find(|pid| {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
            });
            leader.is_some_and(|leader| {
                self.leader = leader.parse().unwrap();
                std::fs::read_to_string(format!("/proc/{leader}/comm")).is_ok_and(|name| name == "systemd\n")
            })
        });
        eventually("it has booted", || text(&self.run("systemctl is-system-running").stdout) == "running\n");
    }

    fn write_for_tests(&self) {
        // More than one test may write; nothing may be lost for want of room.
        self.write(
            "/etc/systemd/journald.conf.d/test.conf",
            "[Journal]\nStorage=volatile\nRuntimeMaxUse=2G\nRuntimeKeepFree=0\n",
        );
        self.sure("systemctl restart systemd-journald");
    }

    /// The version of systemd.
    pub(crate) fn systemd(&self) -> u32 {
        self.systemd
    }

    /// The package under test.
    pub(crate) fn package(&self) -> &Path {
        &self.package
    }

    /// The files that were there before the package.
    pub(crate) fn files_before(&self) -> &[String] {
        &self.files
    }

    /// Every file of the system, but those that are made by using it.
    pub(crate) fn all_files(&self) -> Vec<String> {
        let list = self.sure(
            "find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /var/tmp -o -path /var/log \
             -o -path /var/lib/dpkg -o -path /var/cache -o -path /root \\) -prune -o -print; find /run -name '*preforkd*'",
        );
        let mut list: Vec<String> = list.lines().map(str::to_owned).collect();
        list.sort();
        list
    }

    /// Installs a package as an administrator does.
    pub(crate) fn install(&self, package: &Path) -> String {
        let inside = format!("/root/{}", package.file_name().unwrap().to_str().unwrap());
        std::fs::copy(package, self.path(&inside)).unwrap_or_else(|error| panic!("{package:?}: {error}"));
        self.sure(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install {inside} 2>&1"))
    }

    /// A path inside, as seen from outside.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader))
    }

    /// Writes a file inside, and the directories above it.
    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Runs a shell script inside to its end; `timeout` ends it with 124 if it hangs.
    pub(crate) fn run(&self, script: &str) -> Output {
        self.command(script).output().unwrap()
    }

    /// Starts a shell script inside.
    pub(crate) fn background(&self, script: &str) -> Child {
        self.command(script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg((2 * PATIENCE).as_secs().to_string())
            .args([
                "nsenter",
                "--all",
                "--root",
                "--wd",
                "--target",
                &self.leader.to_string(),
                "sh",
                "-uc",
                script,
            ])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("SYSTEMD_PAGER", "cat")
            .env("SYSTEMD_COLORS", "0")
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script that must succeed, and returns its stdout.
    #[track_caller]
    pub(crate) fn sure(&self, script: &str) -> String {
        let output = self.run(script);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{script}: {}\n{out}{err}", output.status);
        out
    }

    /// What is worth knowing after a test has failed.
    pub(crate) fn post_mortem(&self) -> String {
        let script = "systemctl status --no-pager --lines=0 preforkd.service preforkd.socket; \
                      journalctl --no-pager --quiet --lines=60 _SYSTEMD_UNIT=preforkd.service + UNIT=preforkd.service \
                      | grep -v ': exited 0 after' | tail -n 25";
        text(&self.run(script).stdout)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The fall of its pid 1 ends everything inside, and then nspawn.
        if self.leader > 0 {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(self.leader),
                nix::sys::signal::Signal::SIGKILL,
            );
        } else {
            let _ = self.nspawn.kill();
        }
        let _ = self.nspawn.wait();
        for tree in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"] {
            remove_cgroup(&Path::new(tree).join(&self.name));
        }
    }
}

/// Removes a cgroup and those below it.
fn remove_cgroup(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}
