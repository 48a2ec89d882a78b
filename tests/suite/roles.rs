//! Who each process is, and what it has left of root.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::accept::Strace;
use crate::support::client::{closed, connect, echo};
use crate::support::{Preforkd, Running, address, eventually, limit, proc, root, text, user};

const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;
const KILL: u64 = 1 << 5;
const SYS_CHROOT: u64 = 1 << 18;
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_NICE: u64 = 1 << 23;

/// What proc_pid_status(5) says.
struct Status(BTreeMap<String, String>);

impl Status {
    fn of(pid: i32) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Status(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    /// Real, effective, saved and file system's.
    fn ids(&self, which: &str) -> [u32; 4] {
        let ids: Vec<u32> = self.0[which].split_whitespace().map(|id| id.parse().unwrap()).collect();
        ids.try_into().unwrap()
    }

    fn groups(&self) -> Vec<u32> {
        self.0["Groups"].split_whitespace().map(|id| id.parse().unwrap()).collect()
    }

    fn set(&self, which: &str) -> u64 {
        u64::from_str_radix(&self.0[which], 16).unwrap()
    }

    /// It has these capabilities, and could take back no other.
    fn has(&self, wanted: u64) {
        for (name, wanted) in [("CapEff", wanted), ("CapPrm", wanted), ("CapInh", 0), ("CapAmb", 0)] {
            assert_eq!(self.set(name), wanted, "{name}: {:x} instead of {wanted:x}", self.set(name));
        }
    }

    fn gains_nothing(&self) {
        assert_eq!(self.0["NoNewPrivs"], "1");
    }
}

fn worker(server: &Running, service: &str) -> i32 {
    let status = server.status();
    let services = status["services"].as_array().unwrap();
    let its = services.iter().find(|other| other["name"] == service).unwrap();
    i32::try_from(its["workers"][0]["pid"].as_i64().unwrap()).unwrap()
}

/// Serves with these keys, once as a handler and once as a program; what the worker and the process of a connection are is
/// given to the function.
fn with_processes(keys: &str, job: &str, see: impl Fn(&Status, &Status)) {
    let at = address::fresh();
    let config = format!("[service.x]\nlisten = \"{at}\"\nworkers = 1\n{job}\n{keys}\n");
    let server = Preforkd::run(&config);
    std::fs::create_dir(server.dir().join("jail")).unwrap();
    std::fs::copy("/bin/busybox", server.dir().join("jail/busybox")).expect("package busybox-static");
    let server = server.start();
    let mut client = connect(at);
    echo(&mut client, b"x");
    let worker = server.worker();
    let connection = server.connections().into_iter().find(|process| process.parent == worker).unwrap();
    see(&Status::of(worker), &Status::of(connection.pid));
    drop(client);
    eventually("it ends", || server.count("active") == 0);
}

const JOBS: [(&str, &str); 2] = [("handler", "handler = \"echo\""), ("program", "exec = [\"/bin/cat\"]")];

#[test]
fn a_worker_and_its_connection_processes_have_left_root_behind() {
    if !root("users") {
        return;
    }
    for (_, job) in JOBS {
        for spare in ["", "spare = 1\n"] {
            let keys = format!("user = \"games\"\n{spare}");
            with_processes(&keys, job, |worker, connection| {
                let [real, effective, saved, files] = worker.ids("Uid");
                let games = 5;
                assert_eq!([effective, files], [games, games]);
                assert!(real == saved && ![0, games].contains(&real), "{real} {saved}");
                let [real, effective, saved, _] = worker.ids("Gid");
                assert!(
                    effective == 60 && real == saved && ![0, 60].contains(&real),
                    "{real} {effective} {saved}"
                );
                assert_eq!(worker.groups(), connection.groups());
                assert!(!worker.groups().contains(&0));
                worker.has(0);
                worker.gains_nothing();
                assert_eq!(connection.ids("Uid"), [games; 4]);
                assert_eq!(connection.ids("Gid"), [60; 4]);
                connection.has(0);
                connection.gains_nothing();
                assert_eq!([worker.set("CapBnd"), connection.set("CapBnd")], [0, 0]);
            });
        }
    }
}

#[test]
fn without_a_user_a_handler_is_nobody_and_its_worker_another_and_a_program_is_who_preforkd_is() {
    if !root("users") {
        return;
    }
    with_processes("", JOBS[0].1, |worker, connection| {
        let [handler, ..] = connection.ids("Uid");
        assert!(handler != 0);
        assert_eq!(connection.ids("Uid"), [handler; 4]);
        // It sees what its children see, and is nobody whom they could reach.
        let [real, effective, saved, _] = worker.ids("Uid");
        assert_eq!((effective, saved), (handler, real));
        assert!(![0, handler].contains(&real));
        assert!(!worker.groups().contains(&0));
        worker.has(0);
        worker.gains_nothing();
        assert!(connection.ids("Gid").iter().all(|gid| *gid != 0));
        assert!(!connection.groups().contains(&0));
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        assert!(!users.contains(&format!(":x:{handler}:")), "{handler} is somebody");
        connection.has(0);
    });
    with_processes("group = \"games\"", JOBS[0].1, |_, connection| {
        assert_eq!(connection.ids("Gid"), [60; 4]);
        assert!(!connection.ids("Uid").contains(&0));
    });
    // Whoever asks for root has it.
    for (keys, job) in [("", JOBS[1].1), ("user = \"root\"", JOBS[0].1), ("user = \"root\"", JOBS[1].1)] {
        with_processes(keys, job, |worker, connection| {
            assert_eq!((worker.ids("Uid"), connection.ids("Uid")), ([0; 4], [0; 4]));
        });
    }
}

#[test]
fn a_worker_keeps_what_only_its_children_need_root_for() {
    if !root("capabilities") {
        return;
    }
    let busybox = "exec = [\"/busybox\", \"cat\"]";
    for (keys, job, wanted) in [
        ("chroot = \"DIR/jail\"", busybox, SYS_CHROOT),
        ("chroot = \"DIR/jail\"", JOBS[0].1, SYS_CHROOT),
        ("nice = -3", JOBS[0].1, SYS_NICE),
        ("nice = 3", JOBS[0].1, 0),
        ("limits = { nofile = 400 }", JOBS[1].1, 0),
        // What gains privileges has to be ended as well.
        ("sandbox = { no_new_privs = false }", JOBS[1].1, KILL),
        ("sandbox = false", JOBS[1].1, KILL),
    ] {
        with_processes(&format!("user = \"games\"\n{keys}"), job, |worker, connection| {
            worker.has(wanted);
            connection.has(0);
            assert_eq!(connection.ids("Uid"), [5; 4], "{keys}");
        });
    }
}

/// A directory that only root may enter is no reason to serve outside it, nor for more than reading on the way there.
#[test]
fn a_chroot_below_a_directory_of_roots_is_entered() {
    if !root("chroot") {
        return;
    }
    let at = address::fresh();
    let config = format!(
        "[service.x]\nlisten = \"{at}\"\nhandler = \"echo\"\nuser = \"games\"\nchroot = \"DIR/hidden/jail\"\nworkers = 1\n"
    );
    let server = Preforkd::run(&config);
    let hidden = server.dir().join("hidden");
    std::fs::create_dir_all(hidden.join("jail")).unwrap();
    std::fs::set_permissions(&hidden, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let server = server.start();
    let mut client = connect(at);
    echo(&mut client, b"x");
    Status::of(server.worker()).has(SYS_CHROOT | DAC_READ_SEARCH);
    let connection = server.connections()[0].pid;
    Status::of(connection).has(0);
    assert_eq!(std::fs::read_link(format!("/proc/{connection}/root")).unwrap(), hidden.join("jail"));
}

/// It needs its rights for the next worker, and for what workers leave.
#[test]
fn the_supervisor_keeps_what_it_is_started_with() {
    if !root("capabilities") {
        return;
    }
    let at = address::fresh();
    let server = Preforkd::run(&format!("[service.x]\nlisten = \"{at}\"\nhandler = \"echo\"\n")).start();
    let supervisor = Status::of(server.pid());
    assert_eq!(supervisor.ids("Uid"), [0; 4]);
    let needed = SETUID | SETGID | KILL;
    assert_eq!(supervisor.set("CapEff") & needed, needed);
}

#[test]
fn a_user_without_rights_gives_none_up() {
    if !root("another user") {
        return;
    }
    let at = address::fresh();
    let config = format!("[service.x]\nlisten = \"{at}\"\nhandler = \"echo\"\nworkers = 1\n");
    let server = Preforkd::run(&config).by_user(389, 100).start();
    let mut client = connect(at);
    echo(&mut client, b"x");
    for pid in [server.pid(), server.worker(), server.connections()[0].pid] {
        let status = Status::of(pid);
        assert!(status.ids("Uid").windows(2).all(|two| two[0] == two[1] && two[0] != 0));
        status.has(0);
    }
    Status::of(server.connections()[0].pid).gains_nothing();
}

/// Who is the user of a service can do nothing to its workers, on whatever kernel: nobody asks Landlock.
#[test]
fn a_worker_cannot_be_reached_by_the_user_of_its_service() {
    if !root("users") {
        return;
    }
    let (at, user) = (address::fresh(), user(388));
    let config = format!(
        "[service.x]\nlisten = \"{at}\"\nhandler = \"echo\"\nuser = {user}\ngroup = {user}\nworkers = 1\nspare = 1\nsandbox = false\n"
    );
    let server = Preforkd::run(&config).start();
    let worker = server.worker();
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    let as_user = |command: &str| {
        let command = command.replace("WORKER", &worker.to_string());
        let output = crate::support::run(&["setpriv", &uid, &gid, "--clear-groups", "sh", "-c", &command]);
        (output.status.success(), text(&output.stderr))
    };
    assert!(as_user("true").0);
    for attempt in [
        "kill -STOP WORKER",
        "kill -KILL WORKER",
        "kill -KILL -WORKER",
        "cat /proc/WORKER/environ",
        "cat /proc/WORKER/maps",
        "ls /proc/WORKER/fd/",
        "head -c1 /proc/WORKER/mem",
        "echo 1000 >/proc/WORKER/oom_score_adj",
        "prlimit --pid WORKER --cpu=1:1",
    ] {
        let (done, said) = as_user(attempt);
        assert!(!done, "{attempt}: {said}");
    }
    let spare = server.connections()[0].pid;
    as_user("kill -STOP -1; kill -KILL -1");
    eventually("whom it may kill is dead", || !proc::lives(spare));
    assert!(proc::lives(worker) && proc::process(worker).unwrap().state != 'T');
    echo(&mut connect(at), b"x");
    assert_eq!(server.workers(), [worker]);
}

/// Whoever it was started by, a process is ended by its deadline, by its worker, and by the supervisor if that is dead.
#[test]
fn processes_of_another_user_end_when_they_are_to() {
    if !root("users") {
        return;
    }
    for spare in ["", "spare = 1\n"] {
        let at = address::fresh();
        let config = format!(
            "[supervisor]\ndrain_timeout = \"100ms\"\n[service.x]\nlisten = \"{at}\"\nexec = [\"/bin/sh\", \"-c\", \"trap '' TERM; echo x; while :; do sleep 1; done\"]\n\
             user = \"games\"\nworkers = 1\nmax_lifetime = \"1s\"\n{spare}"
        );
        let server = Preforkd::run(&config).start();
        let begun = || {
            let mut client = connect(at);
            std::io::Read::read_exact(&mut client, &mut [0; 2]).unwrap();
            client
        };
        assert!(closed(&mut begun()), "by the worker");
        let mut client = begun();
        let worker = server.worker();
        proc::kill(worker, Signal::SIGKILL);
        assert!(closed(&mut client), "by the supervisor");
        eventually("another", || server.workers().first().is_some_and(|other| *other != worker));
        let _last = begun();
        server.signal(Signal::SIGTERM);
        server.wait_empty();
    }
}

#[test]
fn a_worker_counts_and_hears_where_processes_are_hidden() {
    if !root("mounts") {
        return;
    }
    let hide = "mount -t proc -o hidepid=2 proc /proc";
    for (job, keys) in [
        (JOBS[0].1, ""),
        (JOBS[0].1, "user = \"games\""),
        (JOBS[1].1, "user = \"games\"\ncount_bytes = false"),
    ] {
        let at = address::fresh();
        let config = format!("[service.x]\nlisten = \"{at}\"\n{job}\nworkers = 1\n{keys}\n");
        let server = Preforkd::run(&config).after_mounts(hide).start();
        let mut client = connect(at);
        echo(&mut client, b"hello");
        drop(client);
        eventually("it has ended", || server.count("completed") == 1);
        if !keys.contains("count_bytes") {
            server.log.wait("its bytes", |line| line.contains("received=5") || line.contains("5 bytes"));
        }
    }
}

#[test]
fn workers_are_what_they_were_after_a_reload_an_upgrade_and_a_death() {
    if !root("users") {
        return;
    }
    let at: [SocketAddr; 2] = [address::fresh(), address::fresh()];
    let config = |more: &str| {
        format!(
            "[service.a]\nlisten = \"{}\"\nhandler = \"echo\"\nuser = \"daemon\"\nworkers = 1\n{more}\n[service.b]\nlisten = \"{}\"\nexec = [\"/bin/cat\"]\n\
             user = \"games\"\nworkers = 1\n{more}\n",
            at[0], at[1]
        )
    };
    let server = Preforkd::run(&config("")).own_copy().start();
    let see = || {
        at.iter().for_each(|at| echo(&mut connect(*at), b"x"));
        for (service, user) in [("a", 1), ("b", 5)] {
            let status = Status::of(worker(&server, service));
            let [own, serves, saved, _] = status.ids("Uid");
            assert!(own == saved && own != 0 && own != serves && serves != 0);
            assert_eq!(serves, user);
            status.has(0);
        }
    };
    see();
    server.configure(&config("max_connections = 17"));
    server.reload_ok();
    see();
    assert!(server.upgrade().status.success());
    see();
    let dead = worker(&server, "b");
    server.replace_worker(dead);
    see();
}

/// What was possible in the rehearsal need not be later. Then nothing runs, the client is not kept, and it is said which step
/// failed; the next is served when it is possible again. A chroot: `attacks::who_cannot_be_confined_is_not_served`.
#[test]
fn a_directory_that_is_gone_is_a_step_that_fails_alone() {
    if !root("users") {
        return;
    }
    for (_, job) in JOBS {
        let at = address::fresh();
        let config = format!(
            "[service.x]\nlisten = \"{at}\"\nworkers = 1\nuser = \"games\"\nworking_directory = \"DIR/here\"\n{job}\n"
        );
        let server = Preforkd::run(&config);
        let (here, there) = (server.dir().join("here"), server.dir().join("there"));
        std::fs::create_dir(&here).unwrap();
        let server = server.start();
        echo(&mut connect(at), b"x");
        std::fs::rename(&here, &there).unwrap();
        is_not_served(&server, at, "working_directory");
        std::fs::rename(&there, &here).unwrap();
        echo(&mut connect(at), b"x");
    }
}

#[test]
fn a_limit_that_cannot_be_set_is_a_step_that_fails_alone() {
    if !root("another user") {
        return;
    }
    for (_, job) in JOBS {
        let at = address::fresh();
        let config = format!(
            "[service.x]\nlisten = \"{at}\"\nworkers = 1\n{job}\nlimits = {{ core = 1000, nofile = 500, fsize = \"1M\" }}\n"
        );
        // Without rights, so that what is lowered for the worker it cannot raise.
        let server = Preforkd::run(&config).by_user(387, 100).start();
        echo(&mut connect(at), b"x");
        limit(server.worker(), "--fsize=1000:1000");
        is_not_served(&server, at, "cannot set limits");
        assert_eq!(server.workers().len(), 1);
    }
}

/// The same of every other step, which nothing but the kernel can have fail: strace(1) does, in the processes that a worker makes.
#[test]
fn a_step_that_the_kernel_refuses_fails_alone() {
    if !root("another user") {
        return;
    }
    // The last: a filter that the worker cannot have itself.
    let keys = "user = \"games\"\nnice = 5\nlimits = { core = 1000 }\nchroot = \"DIR/jail\"\nworking_directory = \"/here\"\n\
                sandbox = { system_calls = { base = \"service\", deny = [\"mknod\"] } }\n";
    let jobs = ["handler = \"echo\"", "exec = [\"/busybox\", \"cat\"]"];
    let ranged = "user = { range = \"1840000-1840099\" }\nmax_connections = 100\n";
    for (job, keys) in jobs
        .iter()
        .flat_map(|job| [(job, keys.to_owned()), (job, keys.replacen("user = \"games\"\n", ranged, 1))])
    {
        for spare in ["", "spare = 1\n"] {
            let at = address::fresh();
            let config = format!("[service.x]\nlisten = \"{at}\"\nworkers = 1\n{job}\n{keys}{spare}");
            let server = Preforkd::run(&config);
            std::fs::create_dir_all(server.dir().join("jail/here")).unwrap();
            std::fs::copy("/bin/busybox", server.dir().join("jail/busybox")).expect("package busybox-static");
            let server = server.start();
            echo(&mut connect(at), b"x");
            eventually("it is over", || server.count("active") == 0);
            for (call, step) in [
                ("setpgid", "cannot make a process group"),
                ("setpriority", "cannot set nice 5"),
                ("prlimit64", "cannot set limits"),
                ("chroot", "cannot enter chroot"),
                ("setresgid", "cannot "),
                ("setresuid", "cannot become user"),
                ("chdir", "cannot enter "),
                ("landlock_restrict_self", "cannot enter its Landlock domain"),
                ("prctl", "cannot give up to gain privileges"),
                // After those of the capabilities and the privileges.
                ("prctl:when=3", "cannot have its system calls filtered"),
                ("close_range", "cannot "),
            ] {
                let strace = Strace::fail_children(&server, server.worker(), call, "EPERM");
                if !spare.is_empty() {
                    eventually("those are gone that had begun before", || {
                        server
                            .connections()
                            .iter()
                            .for_each(|process| proc::kill(process.pid, Signal::SIGKILL));
                        server.count("spares") == 0
                    });
                }
                is_not_served(&server, at, step);
                drop(strace);
                eventually("it is served again", || {
                    let mut client = connect(at);
                    let _ = std::io::Write::write_all(&mut client, b"x");
                    matches!(std::io::Read::read(&mut client, &mut [0]), Ok(1))
                });
                eventually("it is over", || server.count("active") == 0);
            }
        }
    }
}

fn is_not_served(server: &Running, at: SocketAddr, step: &str) {
    let mut client = connect(at);
    // The port is in the record of this connection.
    let port = format!("127.0.0.1:{}:", client.local_addr().unwrap().port());
    let _ = std::io::Write::write_all(&mut client, b"x");
    // The end or a reset, and never an answer.
    assert!(!matches!(std::io::Read::read(&mut client, &mut [0]), Ok(1..)));
    server.log.wait("why", |line| line.contains(&port) && line.contains(step));
    eventually("nothing is left", || server.count("active") == 0 && server.connections().is_empty());
    assert_eq!(server.count("accepted"), server.count("completed"));
}
