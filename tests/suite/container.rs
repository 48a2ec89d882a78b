//! As the first process of a container: in a root that has nothing but preforkd, without systemd, whoever is its user and whether
//! anything can be written there or not. `packaging/container/try` starts the image itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::support::client::{connect, echo, exchange, refused};
use crate::support::fence::{Fenced, Orders};
use crate::support::{BINARY, address, eventually, preforkd, proc, root, run, sure, text};

const USER: u32 = 65_532;

/// What of a container can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writable {
    All,
    /// `docker run --read-only --tmpfs /run`.
    Run,
    /// `docker run --read-only`.
    Nothing,
}

struct Container {
    fenced: Fenced,
    at: SocketAddr,
    /// Where the first process is in the root, seen from here.
    pid: i32,
    _dir: tempfile::TempDir,
}

/// Puts the program into a root, and if it is not static what it is linked with.
fn put_program(root: &Path) {
    let linked = text(&run(&["ldd", BINARY]).stdout);
    let words = linked.split_whitespace().filter(|word| word.starts_with('/'));
    for path in words {
        let inside = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
        sure(&["cp", "--dereference", path, inside.to_str().unwrap()]);
    }
    // Not by this process: what it has open for writing cannot be exec'ed by others.
    sure(&["cp", BINARY, root.join("preforkd").to_str().unwrap()]);
}

impl Container {
    /// Starts one with the configuration of the image and this service.
    fn start(user: u32, writable: Writable, service: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("preforkd-container-").tempdir().unwrap();
        let inside = dir.path().join("root");
        for name in ["proc", "dev", "run/preforkd", "etc/preforkd/preforkd.d"] {
            std::fs::create_dir_all(inside.join(name)).unwrap();
        }
        put_program(&inside);
        if !service.is_empty() {
            sure(&["cp", "/bin/busybox", inside.to_str().unwrap()]);
        }
        let at = address::fresh();
        let of_image = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/container/preforkd.toml");
        let config = std::fs::read_to_string(of_image).unwrap().replace("*:7007", &at.to_string());
        std::fs::write(inside.join("etc/preforkd/preforkd.toml"), config + service).unwrap();
        std::fs::write(inside.join("etc/passwd"), format!("root:x:0:0::/:\npreforkd:x:{USER}:{USER}::/:\n"))
            .unwrap();
        std::fs::write(inside.join("etc/group"), format!("root:x:0:\npreforkd:x:{USER}:\n")).unwrap();
        std::fs::write(inside.join("dev/null"), "").unwrap();
        nix::unistd::chown(&inside.join("run/preforkd"), Some(user.into()), Some(user.into())).unwrap();

        let script = "mount --bind $1 $1; mount -t proc proc $1/proc; mount --bind /dev/null $1/dev/null; "
            .to_owned()
            + match writable {
                Writable::All => "",
                Writable::Run => "mount -t tmpfs -o mode=1777 run $1/run; mount -o remount,bind,ro $1; ",
                Writable::Nothing => "mount -o remount,bind,ro $1; ",
            }
            + "exec chroot --userspec=$2:$2 $1 /preforkd run";
        let words = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "sh", "-euc", &script, "sh"];
        let mut command: Vec<String> = words.map(str::to_owned).into();
        command.extend([inside.display().to_string(), user.to_string()]);
        let environment = [("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())].into();
        let fenced = Fenced::start(&Orders { command, environment, listen: None });
        let serves = |line: &str| line.starts_with("serving: ");
        eventually("it serves, or has ended", || fenced.stderr.count(serves) > 0 || fenced.has_ended());
        assert!(!fenced.has_ended(), "it has ended: {:#?}", fenced.stderr.all());
        let pid = proc::children(fenced.pid())[0];
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
        Self { fenced, at, pid, _dir: dir }
    }

    /// A path in the container, seen from here.
    fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.pid).into()
    }

    fn status(&self) -> serde_json::Value {
        let control = self.path("/run/preforkd/control.sock");
        let output = preforkd(&["status", "--json", "--control", control.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command in its namespace of processes and with its network, as `docker exec` does, though with other files.
    fn exec(&self, script: &str) {
        let pid = self.pid.to_string();
        sure(&["nsenter", "--target", &pid, "--pid", "sh", "-euc", script]);
    }

    fn children_named(&self, name: &str) -> Vec<i32> {
        let is_it = |pid: &i32| proc::process(*pid).is_some_and(|process| process.name == name);
        proc::children(self.pid).into_iter().filter(is_it).collect()
    }

    /// Waits until it has ended well, and with it everything in there.
    fn has_ended_well(&self) {
        assert_eq!(self.fenced.ending(), "0", "{:#?}", self.fenced.stderr.all());
        eventually("nobody is left", || self.fenced.is_empty());
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log in the container:\n{}", self.fenced.stderr.all().join("\n"));
        }
    }
}

#[test]
fn the_first_process_of_a_container_serves_and_ends_with_its_last_connection() {
    if !root("namespaces") {
        return;
    }
    for (user, writable) in [
        (0, Writable::All),
        (USER, Writable::All),
        (USER, Writable::Run),
        (0, Writable::Nothing),
        (USER, Writable::Nothing),
    ] {
        let container = Container::start(user, writable, "");
        let at = container.at;
        assert_eq!(exchange(at, b"hello"), b"hello", "{user} {writable:?}");
        let mut client = connect(at);
        echo(&mut client, b"before");
        // It logs where a container's log comes from, and what it cannot do without a place to write to.
        container
            .fenced
            .stderr
            .wait("a record", |line| line.contains(": connection ") && line.contains("exited 0"));
        let complaints = container.fenced.stderr.count(|line| line.contains("warning: "));
        if writable == Writable::Nothing {
            let about_it =
                |line: &str| line.contains("cannot make the control socket /run/preforkd/control.sock: ");
            assert_eq!(
                (complaints, container.fenced.stderr.count(about_it)),
                (1, 1),
                "{:#?}",
                container.fenced.stderr.all()
            );
            proc::kill(container.pid, Signal::SIGHUP);
            container.fenced.stderr.wait("a reload", |line| line.contains("generation 2"));
            assert_eq!(exchange(at, b"again"), b"again");
        } else {
            assert_eq!(complaints, 0, "{:#?}", container.fenced.stderr.all());
            assert_eq!(
                (&container.status()["pid"], &container.status()["state"]),
                (&1.into(), &"running".into())
            );
        }

        // As docker stop does, or somebody inside.
        match user {
            0 => proc::kill(container.pid, Signal::SIGTERM),
            _ => container.exec("kill -TERM 1"),
        }
        eventually("it accepts nobody", || refused(at));
        echo(&mut client, b"goes on");
        drop(client);
        container.has_ended_well();
    }
}

#[test]
fn the_first_process_of_a_container_reaps_whoever_comes_to_it_and_tells_nobody_of_its_signals() {
    if !root("namespaces") {
        return;
    }
    let at = address::fresh();
    // What is left behind has left the group before the program goes on.
    let leave = "/busybox setsid /busybox sh -c \"/busybox sleep 1000 >/dev/null 2>&1 </dev/null &\"; exec /busybox cat";
    let service = format!(
        "[service.leaves]\nlisten = \"{at}\"\nworkers = 1\nexec = [\"/busybox\", \"sh\", \"-c\", '{leave}']\n"
    );
    let container = Container::start(USER, Writable::All, &service);

    // Of docker exec, which does not wait for what its command leaves.
    container
        .exec("exec >/dev/null 2>&1; for number in 1 2 3; do sleep 1000 & done; (exit 3) & sleep 1000 &");
    eventually("all are its children", || container.children_named("sleep").len() == 4);
    let mut client = connect(container.at);
    echo(&mut client, b"before");
    for pid in container.children_named("sleep") {
        proc::kill(pid, Signal::SIGKILL);
    }
    // Of a program, which leaves its group.
    for _ in 0..3 {
        assert_eq!(exchange(at, b"hello"), b"hello");
    }
    let is_left = |process: &proc::Process| process.name == "busybox" && proc::lives(process.pid);
    let left = || proc::descendants(container.pid).into_iter().filter(is_left).collect::<Vec<_>>();
    eventually("the programs have ended, and what they left has not", || left().len() == 3);
    for process in &left()[..2] {
        proc::kill(process.pid, Signal::SIGTERM);
    }
    eventually("all who have ended are reaped, and no more", || {
        let below = proc::descendants(container.pid);
        below.iter().all(|process| process.state != 'Z') && left().len() == 1
    });
    let status = container.status();
    let active = |number: usize| &status["services"][number]["active"];
    assert_eq!((active(0), active(1)), (&1.into(), &0.into()), "{status}");

    // The kernel keeps what it has no handler for from it, and it tells nobody.
    let mut other = connect(at);
    echo(&mut other, b"before");
    for signal in [Signal::SIGALRM, Signal::SIGPIPE, Signal::SIGWINCH, Signal::SIGCONT, Signal::SIGUSR2] {
        proc::kill(container.pid, signal);
    }
    echo(&mut client, b"after");
    echo(&mut other, b"after");
    drop((client, other));
    eventually("all are gone", || {
        let status = container.status();
        (0..2).all(|number| status["services"][number]["active"] == 0)
    });
    proc::kill(container.pid, Signal::SIGTERM);
    container.has_ended_well();
}

#[test]
fn a_socket_that_was_asked_for_must_be_made_also_where_nothing_can_be_written() {
    if !root("namespaces") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("preforkd.toml");
    std::fs::write(
        &config,
        format!("[service.echo]\nlisten = \"{}\"\nhandler = \"echo\"\n", address::fresh()),
    )
    .unwrap();
    let path = dir.path().join("control.sock");
    let script = format!(
        "mount --bind {0} {0}; mount -o remount,bind,ro {0}; exec {BINARY} run --config {1} --control {2}",
        dir.path().display(),
        config.display(),
        path.display()
    );
    let output = run(&["unshare", "--mount", "sh", "-euc", &script]);
    assert_eq!(output.status.code(), Some(71), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("cannot make the control socket"), "{}", text(&output.stderr));
}
