//! A worker that somebody has captured: it may write whatever it likes to what it shares with its supervisor, and say
//! whatever it likes. That costs its own service, and nobody else.

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::support::client::{connect, exchange};
use crate::support::{Preforkd, Running, address, eventually, proc, root, sure, text};

/// Leaves somebody behind in its group, and says who that is.
const JOB: &str = "#!/bin/sh\nsleep 1000 </dev/null >/dev/null 2>&1 &\necho $!\n";

/// A process of nobody's business, in a group and session of its own.
struct Stranger(Child);

impl Stranger {
    fn start() -> Self {
        let stranger = Stranger(Command::new("setsid").args(["sleep", "1000"]).spawn().unwrap());
        eventually("it leads a group", || group(stranger.pid()) == stranger.pid());
        stranger
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn group(pid: i32) -> i32 {
    nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid))).unwrap().as_raw()
}

/// The service whose worker is captured, one that leaves somebody behind, and one beside them.
fn serve(listen: [SocketAddr; 3]) -> Running {
    let [captured, jobs, other] = listen;
    let config = format!(
        "[supervisor]\ndrain_timeout = \"100ms\"\n\
         [service.captured]\nlisten = \"{captured}\"\nhandler = \"echo\"\nworkers = 1\nmax_connections = 50\n\
         max_connections_per_source = 40\n\
         [service.jobs]\nlisten = \"{jobs}\"\nexec = [\"DIR/program\"]\nworkers = 1\nkill_mode = \"process\"\n\
         [service.other]\nlisten = \"{other}\"\nhandler = \"echo\"\nworkers = 1\n"
    );
    // In a session of its own: whoever has its group killed has no more than that killed.
    Preforkd::run(&config).script("program", JOB).under(&["setsid"]).start()
}

fn status_of(server: &Running, service: &str) -> serde_json::Value {
    let status = server.status();
    let services = status["services"].as_array().unwrap();
    services.iter().find(|found| found["name"] == service).unwrap().clone()
}

fn worker_of(server: &Running, service: &str) -> i32 {
    let pid = status_of(server, service)["workers"][0]["pid"].as_i64().unwrap();
    i32::try_from(pid).unwrap()
}

/// Says something over the link of a worker to its supervisor.
fn say(worker: i32, reports: &[String]) {
    // pidfd_getfd(2) of the first descriptor that the supervisor has handed over.
    let script = "import ctypes, os, socket, sys\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         fd = libc.syscall(438, os.pidfd_open(int(sys.argv[1])), 3, 0)\n\
         link = socket.socket(fileno=fd)\n\
         assert link.type & 15 == socket.SOCK_SEQPACKET, link\n\
         for report in sys.argv[2:]: link.send(report.encode())\n";
    let worker = worker.to_string();
    let mut command = vec!["python3", "-c", script, &worker];
    command.extend(reports.iter().map(String::as_str));
    sure(&command);
}

#[test]
fn what_a_worker_says_to_be_left_behind_is_its_own() {
    if !root("pidfd_getfd(2)") {
        return;
    }
    let listen = [address::fresh(), address::fresh(), address::fresh()];
    let server = serve(listen);
    let mut stranger = Stranger::start();
    let job: i32 = text(&exchange(listen[1], b"")).trim().parse().unwrap();
    eventually("it is left behind", || status_of(&server, "jobs")["left_behind"] == 1);
    let kept = connect(listen[2]);
    eventually("it is served", || status_of(&server, "other")["active"] == 1);
    // A worker that is to be renewed stays for it, and its link with it.
    let held = connect(listen[0]);
    eventually("it is served", || status_of(&server, "captured")["active"] == 1);
    let of_others = server.connections();
    let groups = [group(job), group(server.pid()), server.pid(), stranger.pid(), 0, 1, -1, -job, i32::MIN];
    let groups = groups.into_iter().chain(of_others.iter().map(|process| process.pid));
    let report = |group| {
        format!(r#"{{"LeftBehind":{{"whom":{{"Group":{group}}},"kill_after":{{"secs":0,"nanos":0}}}}}}"#)
    };
    let mut reports: Vec<_> = groups.map(report).collect();
    // Each new worker is in the supervisor's group for an instant.
    reports.extend((0..20).flat_map(|_| [report(group(server.pid())), r#""NeedsRenewal""#.to_owned()]));
    say(worker_of(&server, "captured"), &reports);
    // It hears workers before it answers again, and does at once what is to be done at once.
    (0..3).for_each(|_| _ = server.status());
    assert!(stranger.lives() && proc::lives(job), "a stranger, or another service's, was killed");
    assert!(of_others.iter().all(|process| proc::lives(process.pid)));
    assert_eq!(status_of(&server, "jobs")["left_behind"], 1);
    assert_eq!(status_of(&server, "captured")["left_behind"], 0);
    drop((kept, held));
    server.stop();
    server.wait_empty();
}

/// Every eventfd of a worker is full, and whoever adds one more waits.
fn fill_events(worker: i32) {
    let script = "import ctypes, fcntl, os, sys\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         worker = os.pidfd_open(int(sys.argv[1]))\n\
         filled = 0\n\
         for number in os.listdir(f'/proc/{sys.argv[1]}/fd'):\n\
         \x20   if os.readlink(f'/proc/{sys.argv[1]}/fd/{number}') != 'anon_inode:[eventfd]': continue\n\
         \x20   fd = libc.syscall(438, worker, int(number), 0)\n\
         \x20   assert fd >= 0, os.strerror(ctypes.get_errno())\n\
         \x20   while True:\n\
         \x20       try: os.eventfd_write(fd, 1 << 62)\n\
         \x20       except BlockingIOError: break\n\
         \x20   for room in range(62, -1, -1):\n\
         \x20       try: os.eventfd_write(fd, 1 << room)\n\
         \x20       except BlockingIOError: pass\n\
         \x20   fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR)\n\
         \x20   filled += 1\n\
         assert filled >= 1\n";
    sure(&["python3", "-c", script, &worker.to_string()]);
}

#[test]
fn a_supervisor_waits_for_no_event_that_a_worker_has_filled() {
    if !root("pidfd_getfd(2)") {
        return;
    }
    let listen = [address::fresh(), address::fresh(), address::fresh()];
    let server = serve(listen);
    let mut held: Vec<_> = (0..3).map(|_| connect(listen[0])).collect();
    for client in &mut held {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    let worker = worker_of(&server, "captured");
    fill_events(worker);
    // All are adopted, and each that ends frees a slot; so may a limit that changes.
    proc::kill(worker, nix::sys::signal::Signal::SIGKILL);
    eventually("it is replaced", || {
        let status = status_of(&server, "captured");
        status["workers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|now| now["pid"] != worker && now["state"] == "accepting")
    });
    held.pop();
    eventually("it has ended", || status_of(&server, "captured")["active"] == 2);
    server.reload_ok();
    drop(held);
    eventually("they have ended", || status_of(&server, "captured")["active"] == 0);
    assert_eq!(exchange(listen[2], b"x"), b"x");
    server.stop();
}

/// Who waits for a slot learns of one that the supervisor has freed, also while its listener is being closed.
#[test]
fn slots_of_adopted_connections_are_taken_by_who_waits() {
    for stops in [false, true] {
        for spares in ["", "spare = 2\n"] {
            let listen = address::fresh();
            let server = Preforkd::run(&format!(
                "[service.one]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 2\nmax_connections = 2\n{spares}"
            ))
            .start();
            let mut held: Vec<_> = (0..2).map(|_| connect(listen)).collect();
            for client in &mut held {
                client.write_all(b"x").unwrap();
                client.read_exact(&mut [0]).unwrap();
            }
            server.replace_workers(&server.workers());
            let mut waits: Vec<_> = (0..2).map(|_| connect(listen)).collect();
            waits.iter_mut().for_each(|client| client.write_all(b"x").unwrap());
            eventually("they are queued", || server.count("queued") == 2);
            if stops {
                server.signal(nix::sys::signal::Signal::SIGTERM);
                eventually("it drains", || server.status()["state"] == "draining");
            }
            drop(held);
            for mut client in waits {
                client.read_exact(&mut [0]).unwrap();
            }
            match stops {
                true => server.left_nothing(&[listen]),
                false => server.stop(),
            }
        }
    }
}

#[test]
fn a_worker_that_says_nonsense_is_replaced() {
    if !root("pidfd_getfd(2)") {
        return;
    }
    let listen = [address::fresh(), address::fresh(), address::fresh()];
    let server = serve(listen);
    for nonsense in
        ["x", "[]", r#"{"LeftBehind":{}}"#, r#"{"Failed":1}"#, "\u{1}", &"[".repeat(10_000), "1e999"]
    {
        let worker = worker_of(&server, "captured");
        say(worker, &[nonsense.to_owned()]);
        eventually("it is replaced", || {
            let now = status_of(&server, "captured")["workers"].as_array().unwrap().clone();
            now.len() == 1 && now[0]["pid"] != worker && now[0]["state"] == "accepting"
        });
        assert_eq!(exchange(listen[2], b"x"), b"x");
    }
}

/// Also if the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The shared memory of a worker, as it can write it.
fn memory_of(worker: i32) -> Vec<File> {
    let maps = std::fs::read_to_string(format!("/proc/{worker}/maps")).unwrap();
    let is_shared = |line: &&str| {
        ["scoreboard", "counters", "sources"]
            .iter()
            .any(|name| line.contains(&format!("/memfd:preforkd-{name}")))
    };
    let range = |line: &str| line.split(' ').next().unwrap().to_owned();
    let open = |range: String| {
        File::options().read(true).write(true).open(format!("/proc/{worker}/map_files/{range}")).unwrap()
    };
    maps.lines().filter(is_shared).map(range).map(open).collect()
}

/// Writes garbage until it is over: small and large numbers, and those of processes, most of it where something is.
fn scribble(memory: &[File], numbers: &[i32], is_over: &AtomicBool) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Heads, and what the scoreboard and the sources have of the first slots.
    let begins = [0, 4096, 4096 + 4_000_000, 4096 + 8_000_000];
    while !is_over.load(Relaxed) {
        let file = &memory[random.usize(..memory.len())];
        let length = file.metadata().unwrap().len();
        let begin = begins[random.usize(..begins.len())];
        let place = if random.u8(..) == 0 { random.u64(..length) } else { begin + random.u64(..4096) } & !7;
        let number = i64::from(numbers[random.usize(..numbers.len())]);
        let half =
            [0, 1, u64::from(u32::MAX), number as u64 & 0xffff_ffff, random.u64(..) >> random.u32(..64)];
        let word = half[random.usize(..half.len())] | half[random.usize(..half.len())] << 32;
        if place + 8 <= length {
            file.write_all_at(&word.to_ne_bytes(), place).unwrap();
        }
    }
}

#[test]
fn a_scoreboard_full_of_garbage_costs_its_own_service_alone() {
    if !root("the memory of a worker") {
        return;
    }
    let listen = [address::fresh(), address::fresh(), address::fresh()];
    let server = serve(listen);
    let mut stranger = Stranger::start();
    let job: i32 = text(&exchange(listen[1], b"")).trim().parse().unwrap();
    let mut kept = connect(listen[2]);
    kept.write_all(b"x").unwrap();
    kept.read_exact(&mut [0]).unwrap();
    let beside: Vec<i32> = server.connections().iter().map(|process| process.pid).collect();
    let workers: Vec<i32> = ["jobs", "other"].iter().map(|service| worker_of(&server, service)).collect();
    let numbers =
        [&[1, 2, -1, 0, i32::MIN, server.pid(), stranger.pid(), job][..], &beside, &workers].concat();

    let is_over = AtomicBool::new(false);
    // What the first worker leaves goes on to be written.
    let memory = memory_of(worker_of(&server, "captured"));
    assert!(memory.len() >= 3, "{memory:?}");
    std::thread::scope(|scope| {
        let _ends = Ends(&is_over);
        scope.spawn(|| scribble(&memory, &numbers, &is_over));
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                // Whoever is served there is lucky.
                let _ = std::net::TcpStream::connect(listen[0]).map(|mut client| client.write_all(b"x"));
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        for round in 0..40 {
            assert_eq!(exchange(listen[2], b"does it work?"), b"does it work?", "round {round}");
            let service = status_of(&server, "captured");
            eventually("who has gone is gone", || status_of(&server, "other")["active"] == 1);
            if round % 8 == 7 {
                // What it held is adopted.
                let pids =
                    service["workers"].as_array().unwrap().iter().filter_map(|worker| worker["pid"].as_i64());
                pids.for_each(|pid| {
                    proc::kill(i32::try_from(pid).unwrap(), nix::sys::signal::Signal::SIGKILL);
                });
            }
            if round % 16 == 11 {
                server.reload_ok();
            }
        }
    });
    kept.write_all(b"y").unwrap();
    kept.read_exact(&mut [0]).unwrap();
    assert!(stranger.lives(), "a stranger was killed");
    assert!(
        beside.iter().chain(&workers).all(|pid| proc::lives(*pid)),
        "what is another service's was ended"
    );
    assert!(proc::lives(job), "what another service's program left behind was killed");
    drop(kept);
    server.stop();
    server.wait_empty();
    assert!(stranger.lives(), "a stranger was killed");
}
