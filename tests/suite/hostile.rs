//! What a captured connection process can do, and cannot: tests/hostile/attempts tries it from inside.
//!
//! The table says what must hold when all is built. What succeeds today although it must not is in the lists of open
//! attempts, which must be true as well: who closes one takes it out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::cgroup::Delegated;
use crate::support::client::{connect, echo};
use crate::support::{Preforkd, Running, address, eventually, proc, root, text, user, write};

/// When an attempt must fail.
#[derive(Clone, Copy, PartialEq)]
enum Fails {
    /// Whatever the service says: it harms others, or is a door of the kernel that no service needs.
    Always,
    /// Under the cage of a service that needs nothing: no file, no network, no other program.
    Caged,
    /// Never: it harms nobody, or what it does is judged below.
    Never,
}
use Fails::{Always, Caged, Never};

const ATTEMPTS: &[(&str, Fails)] = &[
    ("inherited_descriptors", Always),
    ("accept", Always),
    ("shared_memory", Always),
    ("capabilities", Always),
    ("control_socket", Always),
    ("signal_by_pidfd_sibling", Always),
    ("signal_by_io_sibling", Always),
    ("signal_joined_sibling", Always),
    ("migrate_sibling", Always),
    ("advise_sibling", Always),
    ("robust_list_sibling", Always),
    ("attach_sibling", Always),
    ("harm_sibling", Always),
    ("setuid_program", Always),
    ("become_root", Always),
    ("user_namespace", Always),
    ("mount_in_namespace", Always),
    ("mount", Always),
    ("chroot", Always),
    ("real_time", Always),
    ("raise_limit", Always),
    ("personality", Always),
    ("hang_up", Always),
    ("accounting", Always),
    ("kernel_messages", Always),
    ("kernel_log", Always),
    ("watch_files", Always),
    ("oom_score_lower", Always),
    ("load_module", Always),
    ("open_by_handle", Always),
    ("io_uring", Always),
    ("x32", Always),
    ("i386", Always),
    ("bpf", Always),
    ("userfaultfd", Always),
    ("perf_event", Always),
    ("keyring", Always),
    ("shm_sysv", Caged),
    ("shm_by_number", Caged),
    ("semaphore_by_number", Caged),
    ("queue_by_number", Caged),
    ("mqueue", Caged),
    ("memfd_exec", Caged),
    ("write_execute", Caged),
    ("map_write_execute", Caged),
    ("memfd_map_execute", Caged),
    ("tcp_connect", Caged),
    ("tcp_fast_open", Caged),
    ("tcp_listen", Caged),
    ("tcp_listen_unbound", Caged),
    ("mptcp_connect", Caged),
    ("sctp_socket", Caged),
    ("smc_socket", Caged),
    ("udp_send", Caged),
    ("udp_bind", Caged),
    ("raw_socket", Always),
    ("packet_socket", Always),
    ("netlink_socket", Caged),
    ("vsock_socket", Caged),
    ("alg_socket", Caged),
    ("abstract_bind", Caged),
    ("abstract_connect", Caged),
    ("unix_connect", Caged),
    ("forge_journal", Caged),
    ("own_reconnect", Caged),
    ("own_fast_open", Caged),
    ("own_listen", Caged),
    ("own_unlisten", Never),
    ("read_secret", Caged),
    ("read_passwd", Never),
    ("stat_secret", Never),
    ("write_directory", Caged),
    ("socket_in_directory", Caged),
    ("write_tmp", Caged),
    ("write_shm", Caged),
    ("run_written", Caged),
    ("run_shell", Caged),
    // Under the limits of the service below.
    ("memory", Always),
    ("descriptors", Always),
    ("processes", Always),
    ("disk", Always),
    ("flood_log", Never),
    ("cgroup_own", Always),
    ("cgroup_above", Always),
    ("cgroup_limits", Always),
    ("cgroup_below", Always),
    ("cgroup_beside", Always),
    ("born_of_worker", Never),
    ("outlive_group", Always),
    ("outlive_session", Always),
    ("keep_connection", Always),
];

/// Tried at the worker, the supervisor and a sibling: all of it must always fail.
const AT_OTHERS: &[&str] = &[
    "probe",
    "signal",
    "signal_group",
    "ptrace",
    "memory",
    "environment",
    "maps",
    "descriptors",
    "take_descriptor",
    "vm_read",
    "limits",
    "priority",
    "priority_group",
    "disk_group",
    "processor",
    "oom_score",
    "compare",
    "cgroup_join",
    "cgroup_kill",
    "cgroup_freeze",
];
const OTHERS: [&str; 3] = ["worker", "supervisor", "sibling"];

/// Open under root, where connection processes are a user of their own; `*` is any end.
const OPEN: &[&str] = &[
    // It may offer a sibling to the kernel when memory runs out.
    "oom_score_sibling",
    // Neither a cgroup nor a pid namespace.
    OUTLIVE,
];
const OUTLIVE: &str = "outlive_session";
/// Open as well if supervisor, workers and connection processes are one user.
const OPEN_FOR_ONE_USER: &[&str] = &["oom_score_worker", "oom_score_supervisor"];

/// Open as well on a kernel without Landlock.
const OPEN_WITHOUT_LANDLOCK: &[&str] = &[
    "memory_sibling",
    "environment_sibling",
    "maps_sibling",
    "descriptors_sibling",
    "robust_list_sibling",
    // Of a service that has no cage of files there.
    "read_secret",
    "run_shell",
    "run_written",
    "write_directory",
    "write_shm",
    "write_tmp",
];

/// landlock_create_ruleset, landlock_add_rule, landlock_restrict_self.
pub(crate) const LANDLOCK: [&str; 3] = ["444", "445", "446"];

/// The cages under which all is tried: their name, the keys of the service, and whether what must fail under a cage must
/// fail here. A cage that leaves nothing comes here with the keys that make it.
const CAGES: &[(&str, &str, bool)] = &[("defaults", "", false), ("nothing", NOTHING, true)];

const NOTHING: &str = r#"sandbox = { execute = ["/usr/bin/perl", "/usr/lib", "-/lib64"], network = "none", write_execute = false,
    read = ["/usr/share/perl", "/usr/share/perl5", "/etc/ld.so.cache"], required = false }"#;

fn must_fail(attempt: &str, caged: bool) -> bool {
    let at_others = OTHERS.iter().any(|other| {
        let what = attempt.strip_suffix(other).and_then(|what| what.strip_suffix('_'));
        what.is_some_and(|what| AT_OTHERS.contains(&what))
    });
    if at_others {
        return true;
    }
    let found = ATTEMPTS.iter().find(|(name, _)| *name == attempt);
    let (_, fails) = found.unwrap_or_else(|| panic!("{attempt} is not in the table"));
    *fails == Always || *fails == Caged && caged
}

/// How preforkd runs.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// By root, connection processes are a user of their own.
    Root,
    /// The same, on a kernel that lacks what newer ones have.
    WithoutLandlock,
    /// Supervisor, workers and connection processes are one user.
    OneUser,
    /// As the first, each connection in a cgroup of its own.
    RootInCgroups,
    /// As the third, each connection in a cgroup of its own.
    OneUserInCgroups,
}

impl Way {
    /// A cgroup ends with its connection.
    fn has_cgroups(self) -> bool {
        matches!(self, Way::RootInCgroups | Way::OneUserInCgroups)
    }
}

/// Open in a cage that leaves nothing, too.
const OPEN_IN_A_CAGE: &[&str] = &[OUTLIVE];

fn is_open(attempt: &str, caged: bool, way: Way) -> bool {
    if way.has_cgroups() && attempt == OUTLIVE {
        return false;
    }
    if caged && way != Way::WithoutLandlock {
        return OPEN_IN_A_CAGE.contains(&attempt);
    }
    let more = match way {
        Way::Root | Way::RootInCgroups => &[][..],
        Way::WithoutLandlock => OPEN_WITHOUT_LANDLOCK,
        Way::OneUser | Way::OneUserInCgroups => OPEN_FOR_ONE_USER,
    };
    let named = |name: &&str| match name.strip_prefix('*') {
        Some(end) => attempt.ends_with(end),
        None => *name == attempt,
    };
    OPEN.iter().chain(more).any(named)
}

fn config(hostile: SocketAddr, echo: SocketAddr, keys: &str) -> String {
    format!(
        "[supervisor]\ndrain_timeout = \"500ms\"\n\
         [service.hostile]\nlisten = \"{hostile}\"\nexec = [\"DIR/attempts\"]\nworkers = 1\n\
         limits = {{ nproc = 100, as = \"150M\", nofile = 64, fsize = \"10M\", core = 0 }}\n{keys}\n\
         [service.other]\nlisten = \"{echo}\"\nhandler = \"echo\"\nworkers = 1\n"
    )
}

/// The client of the program: it makes what the attempts need, and prints what became of each.
fn drive(server: &Running, hostile: SocketAddr) -> Child {
    let scratch = server.dir().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/drive"))
        .args([
            format!("address={hostile}"),
            format!("scratch={}", scratch.display()),
            format!("supervisor={}", server.pid()),
            format!("worker={}", server.worker()),
            format!("control={}", server.control()),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What became of each attempt, while others were served.
fn outcomes(server: &Running, hostile: SocketAddr, other: SocketAddr) -> BTreeMap<String, String> {
    let mut driver = drive(server, hostile);
    let mut early = connect(other);
    while driver.try_wait().unwrap().is_none() {
        let began = Instant::now();
        echo(&mut early, b"still here");
        echo(&mut connect(other), b"new");
        // Where that takes long, as on an emulated machine, it shall not be all that there is time for.
        std::thread::sleep(Duration::from_millis(10) + 4 * began.elapsed());
    }
    let output = driver.wait_with_output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}: {}\n{said}", output.status, text(&output.stderr));
    let pairs = said.lines().map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line}")));
    pairs.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect()
}

fn judge(outcomes: &BTreeMap<String, String>, caged: bool, way: Way, what: &str) {
    let at_others = AT_OTHERS.iter().flat_map(|what| OTHERS.map(|other| format!("{what}_{other}")));
    for name in ATTEMPTS.iter().map(|(name, _)| (*name).to_owned()).chain(at_others) {
        assert!(outcomes.contains_key(&name), "{what}: {name} was not tried");
    }
    let mut wrong = Vec::new();
    for (name, outcome) in outcomes {
        let (must_fail, open) = (must_fail(name, caged), is_open(name, caged, way));
        if outcome.contains("impossible") {
            wrong.push(format!("{name} could not be tried: {outcome}"));
        } else if outcome == "done" && must_fail && !open {
            wrong.push(format!("{name} succeeded"));
        } else if outcome != "done" && open {
            wrong.push(format!("{name} is in the list of what is open, but was {outcome}"));
        }
    }
    assert!(wrong.is_empty(), "{what}:\n{}\n\nall of it: {outcomes:#?}", wrong.join("\n"));
}

/// Nobody but the attacker has noticed, and all is counted.
fn all_is_well(server: &Running, workers: &[i32], hostile: SocketAddr, other: SocketAddr) {
    eventually("no connection is left", || {
        let services = server.status()["services"].clone();
        services.as_array().unwrap().iter().all(|service| service["active"] == 0 && service["counted"] == 0)
    });
    assert_eq!(server.all_workers(), workers, "the workers are the same");
    assert!(workers.iter().chain([&server.pid()]).all(|pid| proc::lives(*pid)));
    echo(&mut connect(other), b"later");
    let mut later = connect(hostile);
    let mut said = [0; 4];
    std::io::Read::read_exact(&mut later, &mut said).unwrap();
    assert_eq!(&said, b"pid ");
    drop(later);
    eventually("it has gone", || server.count("active") == 0);

    let of_service = |line: &&String| line.contains("hostile: connection ") && !line.contains(": stderr: ");
    let records = || server.log.all().iter().filter(of_service).cloned().collect::<Vec<_>>();
    let ended = server.count("completed");
    assert_eq!(server.count("accepted"), ended);
    // Where the flood was faster than who reads the log, it says that some are missing.
    let lost = || server.log.count(|line| line.contains("log records were lost")) > 0;
    eventually("a record of each", || records().len() as u64 == ended || lost());
    assert!(records().len() as u64 <= ended);
    for record in records() {
        assert!(record.contains(" from 127.0.0.1:"), "{record}");
    }
    // What it wrote is in records that say whose it is, one a line.
    let forged = |line: &str| line.contains("forged") || line.contains("192.0.2.99");
    assert!(server.log.count(forged) > 0, "the flood has come");
    assert_eq!(server.log.count(|line| forged(line) && !line.contains(": stderr: ")), 0);
}

fn try_everything(keys: &str, way: Way, number: u32) {
    if !root("a setuid program") {
        return;
    }
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile");
    for (cage, cage_keys, caged) in CAGES {
        let (hostile, other) = (address::fresh(), address::fresh());
        let uid = user(number);
        let identity = match way {
            Way::OneUser | Way::OneUserInCgroups => String::new(),
            Way::Root | Way::RootInCgroups | Way::WithoutLandlock => format!("user = {uid}\ngroup = {uid}"),
        };
        let cgroup = if way.has_cgroups() { Delegated::new(&[]) } else { None };
        if way.has_cgroups() && cgroup.is_none() {
            return;
        }
        let mut config = config(hostile, other, &format!("{keys}\n{identity}\n{cage_keys}"));
        if cgroup.is_some() {
            config = config.replacen("[supervisor]\n", "[supervisor]\ncgroup = \"own\"\n", 1);
        }
        let server = Preforkd::run(&config);
        let program = std::fs::read_to_string(format!("{directory}/attempts")).unwrap();
        write(&server.dir().join("attempts"), &program);
        let server = match way {
            Way::Root => server,
            Way::OneUser => server.by_user(number, 400),
            Way::RootInCgroups => cgroup.as_ref().unwrap().enter(server),
            Way::OneUserInCgroups => {
                let cgroup = cgroup.as_ref().unwrap();
                cgroup.give_to(uid);
                cgroup.enter(server).by_user(number, 400)
            }
            Way::WithoutLandlock => {
                let without = format!("{directory}/without");
                server.under(&[&[&*without], &LANDLOCK[..], &["--"]].concat())
            }
        };
        let server = server.start();
        let workers = server.all_workers();
        let service = server.service();
        assert_eq!(service["name"], "hostile");
        let says_so = service["sandbox"]["in_force"].to_string().contains("siblings cannot be signalled");
        assert!(says_so, "{}", service["sandbox"]);
        let outcomes = outcomes(&server, hostile, other);
        judge(&outcomes, *caged, way, &format!("{cage}, {keys}"));
        all_is_well(&server, &workers, hostile, other);
        // With all that has survived.
        server.stop();
    }
}

#[test]
fn a_captured_program_under_root_reaches_nobody() {
    try_everything("", Way::Root, 61_240);
}

#[test]
fn a_captured_program_that_was_a_spare_reaches_nobody() {
    try_everything("spare = 2", Way::Root, 61_241);
}

#[test]
fn a_captured_program_of_an_unprivileged_preforkd_reaches_nobody() {
    try_everything("", Way::OneUser, 61_242);
}

#[test]
fn a_captured_program_under_root_in_a_cgroup_of_its_own_reaches_nobody() {
    try_everything("", Way::RootInCgroups, 61_244);
}

#[test]
fn a_captured_program_of_one_user_in_a_cgroup_of_its_own_reaches_nobody() {
    try_everything("", Way::OneUserInCgroups, 61_245);
}

#[test]
fn a_captured_program_on_an_older_kernel_reaches_nobody() {
    try_everything("", Way::WithoutLandlock, 61_243);
}
