//! Clients that mean harm, and others beside them that must not notice.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::client::{closed, connect_from, try_echo};
use crate::support::{Preforkd, Running, address, by_itself, eventually, limit, proc, root, sure};

const BAD: [u8; 4] = [127, 0, 0, 66];
const GOOD: [u8; 4] = [127, 0, 0, 1];

/// Thousands of connections need as many descriptors.
fn raise_descriptor_limit() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = most.max(20_000);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
        .expect("20,000 descriptors need a hard limit of so many, or root");
}

fn connect_as(source: [u8; 4], service: SocketAddr) -> TcpStream {
    connect_from(Ipv4Addr::from(source), service).unwrap()
}

/// One exchange of somebody who means no harm, and must not fail.
fn good_exchange(service: SocketAddr) {
    let mut client = connect_as(GOOD, service);
    try_echo(&mut client, b"does it work?").unwrap();
}

fn refused(server: &Running, reason: &str) -> u64 {
    server.service()["refused"][reason].as_u64().unwrap()
}

/// Runs an attack until the good client has had its exchanges; returns how often it was tried.
fn while_attacked(threads: usize, attack: impl Fn() + Sync, good: impl FnOnce()) -> u64 {
    let over = AtomicBool::new(false);
    let tries = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    attack();
                    tries.fetch_add(1, Relaxed);
                }
            });
        }
        eventually("the attack has begun", || tries.load(Relaxed) > 100);
        good();
        over.store(true, Relaxed);
    });
    tries.into_inner()
}

/// As fast as this machine can; the benchmark says how fast that is, and what it does to the other's latency.
#[test]
fn a_flood_from_one_source_fails_nobody_else() {
    for more in [&[][..], &["--spare", "8"]] {
        let options = [&["--rate-per-source", "1000/s burst 1000", "--workers", "2"], more].concat();
        let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
        let service = server.address();
        let tries = while_attacked(
            4,
            || drop(connect_as(BAD, service)),
            // Fewer than its own burst.
            || (0..500).for_each(|_| good_exchange(service)),
        );
        eventually("all are counted", || {
            server.count("queued") == 0 && server.count("accepted") + refused(&server, "rate") >= tries
        });
        assert!(refused(&server, "rate") > 0, "{tries} connections were no flood");
    }
}

/// With the whole limit taken by sources that are each below theirs, see `deadlines`.
#[test]
fn five_thousand_silent_connections_of_one_source_leave_room_for_others() {
    raise_descriptor_limit();
    let options = ["--max-connections", "5000", "--max-connections-per-source", "4900", "--workers", "2"];
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let service = server.address();
    let mut silent = Vec::new();
    for n in 0..5000 {
        silent.push(connect_as(BAD, service));
        if n % 100 == 0 {
            good_exchange(service);
        }
    }
    eventually("his limit", || {
        refused(&server, "source_limit") == 100 && server.count("counted") == server.count("active")
    });
    (0..50).for_each(|_| good_exchange(service));
    eventually("only the silent", || server.count("active") == 4900);
    drop(silent);
    eventually("nobody", || server.count("active") == 0 && server.count("counted") == 0);
}

/// A program that crashes on a byte; it is as small as programs get, so that it can do so often.
fn crasher(server: &Preforkd) {
    let source = server.dir().join("crash.c");
    let program = server.dir().join("crash");
    let text = "#include <unistd.h>\nint main(void) { char c; while (read(0, &c, 1) == 1) { \
                if (c == 'x') *(volatile int *)0 = 0; write(1, &c, 1); } return 0; }\n";
    std::fs::write(&source, text).unwrap();
    let [source, to] = [&source, &program].map(|path| path.to_str().unwrap());
    sure(&["gcc", "-O1", "-static", "-w", "-o", to, source]);
}

fn crash_once(service: SocketAddr) {
    let mut client = connect_as(BAD, service);
    let _ = client.write_all(b"x");
    // A reset or the end, and never an answer.
    assert!(!matches!(client.read(&mut [0]), Ok(1..)));
}

fn crashing_server(listen: SocketAddr, keys: &str) -> Running {
    // A core of each would be written to wherever this machine keeps them.
    let config = "exec = [\"DIR/crash\"]\nlimits = { core = 0 }";
    let server = Preforkd::run(&format!("[service.x]\nlisten = \"{listen}\"\n{config}\n{keys}\n"));
    crasher(&server);
    server.start()
}

#[test]
fn a_thousand_crashes_fail_nobody_else() {
    for keys in ["", "spare = 4"] {
        let listen = address::fresh();
        let server = crashing_server(listen, keys);
        let good = || {
            while server.count("crashes") < 1000 {
                good_exchange(listen);
            }
        };
        while_attacked(4, || crash_once(listen), good);
        eventually("all have ended", || server.count("active") == 0);
        assert_eq!(server.count("accepted"), server.count("completed"));
        assert_eq!(server.count("queued"), 0);
    }
}

#[test]
fn who_crashes_pays_for_it_and_nobody_else() {
    let listen = address::fresh();
    let server = crashing_server(listen, "penalties = { crash = \"10m\" }\nworkers = 2");
    while_attacked(4, || crash_once(listen), || (0..100).for_each(|_| good_exchange(listen)));
    eventually("all have ended", || server.count("active") == 0);
    // No more than were begun when the first had crashed, of four at a time.
    assert!((1..=50).contains(&server.count("crashes")), "{} crashes", server.count("crashes"));
    assert!(refused(&server, "penalty") > 0);
}

#[test]
fn a_fork_bomb_stays_in_its_cage() {
    let listen = [address::fresh(), address::fresh()];
    // It stays when it can fork no more; with the end of the first, all would go.
    let bomb = "for (;;) { defined fork or last } sleep 1000";
    let config = format!(
        "[supervisor]\ndrain_timeout = \"100ms\"\n[service.bomb]\nlisten = \"{}\"\nexec = [\"/usr/bin/perl\", \"-e\", \"{bomb}\"]\nstderr = \"null\"\n\
         limits = {{ nproc = 100 }}\n[service.echo]\nlisten = \"{}\"\nhandler = \"echo\"\n",
        listen[0], listen[1]
    );
    let server = Preforkd::run(&config).by_user(61_234, 400).start();
    let bombs: Vec<_> = (0..2).map(|_| connect_as(BAD, listen[0])).collect();
    eventually("as many processes as may be", || server.processes().len() >= 90);
    (0..100).for_each(|_| good_exchange(listen[1]));
    assert!(server.processes().len() <= 110, "{} processes", server.processes().len());
    drop(bombs);
    server.stop();
}

/// Each source is below its limit, and together they take all that there is: then it is the deadline that helps.
#[test]
fn five_thousand_silent_connections_of_many_sources_go_by_their_deadline() {
    raise_descriptor_limit();
    let options = ["--max-connections", "5000", "--max-connections-per-source", "100"];
    let options = [&options[..], &["--first-byte-timeout", "3s", "--workers", "2"]].concat();
    let server = Preforkd::serve(&options, "127.0.0.1:0", &["echo"]).start();
    let service = server.address();
    let silent: Vec<_> =
        (0..5000u32).map(|n| connect_as([127, 0, 66, u8::try_from(n / 100).unwrap() + 1], service)).collect();
    // It may have to wait, and is served.
    (0..50).for_each(|_| good_exchange(service));
    eventually("all have ended", || server.count("active") == 0 && server.count("counted") == 0);
    assert_eq!(server.count("timeouts"), 5000);
    assert_eq!((server.count("accepted"), refused(&server, "source_limit")), (5050, 0));
    drop(silent);
}

#[test]
fn a_program_that_takes_all_it_can_get_is_ended_by_its_limits() {
    let listen = [address::fresh(), address::fresh(), address::fresh()];
    let service = |name: &str, listen: SocketAddr, job: &str| {
        format!("[service.{name}]\nlisten = \"{listen}\"\nstderr = \"null\"\n{job}\n")
    };
    let shell = |script: &str, limits: &str| {
        format!("exec = [\"/bin/sh\", \"-c\", '{script}']\nlimits = {{ core = 0, {limits} }}")
    };
    let config = [
        service("cpu", listen[0], &shell("while :; do :; done", "cpu = 1")),
        service("memory", listen[1], &shell("x=x; while :; do x=$x$x$x$x; done", "as = \"64M\"")),
        service("echo", listen[2], "handler = \"echo\""),
    ];
    let server = Preforkd::run(&config.concat()).start();
    let greedy: Vec<_> = (0..2).flat_map(|_| listen[..2].iter().map(|it| connect_as(BAD, *it))).collect();
    (0..100).for_each(|_| good_exchange(listen[2]));
    for mut client in greedy {
        assert!(!matches!(client.read(&mut [0]), Ok(1..)));
    }
    let ended = |service: &str| server.log.count(|line| line.contains(&format!("{service}: connection ")));
    eventually("records", || ended("cpu") == 2 && ended("memory") == 2);
    server.log.wait("by its limit", |line| line.contains("cpu: connection ") && line.contains("killed KILL"));
}

/// A worker that gets no memory ends, and another takes its place; its connections go on.
#[test]
fn a_worker_without_memory_is_replaced_and_its_connections_go_on() {
    let listen = address::fresh();
    let options = [&["--workers", "1"], by_itself()].concat();
    let server = Preforkd::serve(&options, &listen.to_string(), &["echo"]).start();
    let mut before = connect_as(GOOD, listen);
    try_echo(&mut before, b"x").unwrap();
    let worker = server.worker();
    limit(worker, "--as=4096:4096");
    // It needs no more memory for these, or dies for want of it.
    let mut failed = 0;
    for _ in 0..300 {
        let mut client = connect_as(GOOD, listen);
        failed += u32::from(try_echo(&mut client, b"x").is_err());
    }
    assert!(failed <= 1, "{failed} connections failed");
    try_echo(&mut before, b"x").unwrap();
}

/// Where workers write numbers of processes, the supervisor may read others: it signals nobody who is not its own child.
#[test]
fn a_number_in_the_scoreboard_gets_no_stranger_killed() {
    let listen = address::fresh();
    let config = format!(
        "[supervisor]\ndrain_timeout = \"100ms\"\n[service.echo]\nlisten = \"{listen}\"\nhandler = \"echo\"\nworkers = 1\n"
    );
    let server = Preforkd::run(&config).start();
    // A group of its own, as a connection process has.
    let mut stranger =
        Stranger(std::process::Command::new("setsid").args(["sleep", "1000"]).spawn().unwrap());
    let number = i32::try_from(stranger.0.id()).unwrap();
    let mut client = connect_as(GOOD, listen);
    try_echo(&mut client, b"x").unwrap();
    let connection = server.connections()[0].pid;
    let worker = server.worker();
    // Stopped, it does not put right what is about to be wrong.
    proc::stop(worker);
    assert_eq!(replace_in_scoreboard(server.pid(), connection, number), 1, "the number of one process");
    server.replace_worker(worker);
    good_exchange(listen);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.wait_empty();
    assert!(!proc::lives(connection), "who is really its child is ended");
    assert!(stranger.0.try_wait().unwrap().is_none(), "a stranger was killed");
}

/// A process of nobody's business, which ends with the test.
struct Stranger(std::process::Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts one number in the place of another in the scoreboard of a supervisor of one service; returns how often.
fn replace_in_scoreboard(process: i32, old: i32, new: i32) -> usize {
    let descriptors = proc::descriptors(process);
    let is_it = |path: &std::path::Path| path.to_string_lossy().contains("preforkd-scoreboard");
    let (number, _) = descriptors.iter().find(|(_, path)| is_it(path)).unwrap();
    let path = format!("/proc/{process}/fd/{number}");
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut content = Vec::new();
    (&file).read_to_end(&mut content).unwrap();
    let words = content.chunks_exact(4).enumerate().filter(|(_, word)| *word == old.to_ne_bytes());
    let places: Vec<_> = words.map(|(place, _)| place as u64 * 4).collect();
    places.iter().for_each(|place| file.write_all_at(&new.to_ne_bytes(), *place).unwrap());
    places.len()
}

/// What was there when preforkd started may be gone when somebody connects.
#[test]
fn who_cannot_be_confined_is_not_served() {
    if !root("chroot") {
        return;
    }
    let listen = [address::fresh(), address::fresh()];
    let service = |name: &str, listen: SocketAddr, job: &str| {
        format!("[service.{name}]\nlisten = \"{listen}\"\nuser = \"nobody\"\nchroot = \"DIR/jail\"\n{job}\n")
    };
    let config = [
        service("handler", listen[0], "handler = \"daytime\""),
        service("program", listen[1], "exec = [\"/busybox\", \"date\"]"),
    ];
    let server = Preforkd::run(&config.concat());
    let jail = server.dir().join("jail");
    std::fs::create_dir(&jail).unwrap();
    std::fs::copy("/bin/busybox", jail.join("busybox")).expect("package busybox-static");
    let server = server.start();
    let is_served = |service| matches!(connect_as(GOOD, service).read(&mut [0]), Ok(1..));
    assert!(listen.into_iter().all(is_served));
    std::fs::rename(&jail, server.dir().join("elsewhere")).unwrap();
    for (service, name) in listen.into_iter().zip(["handler", "program"]) {
        assert!(closed(&mut connect_as(BAD, service)), "{name}: served outside its chroot");
        server.log.wait("why", |line| line.contains(name) && line.contains("chroot"));
    }
    eventually("none is left", || {
        server.status()["services"].to_string().matches("\"active\":0").count() == 2
    });
    std::fs::rename(server.dir().join("elsewhere"), &jail).unwrap();
    assert!(listen.into_iter().all(is_served));
}

/// Who is turned away again and again takes nothing with him: CVE-2013-3571 of socat.
#[test]
fn refusals_leave_no_descriptor_behind() {
    for keys in ["", "spare = 2"] {
        let listen = address::fresh();
        let keys = format!("deny = \"127.0.0.66\"\nworkers = 1\n{keys}\n");
        let server =
            Preforkd::run(&format!("[service.x]\nlisten = \"{listen}\"\nhandler = \"echo\"\n{keys}")).start();
        let denied = |number: u64| {
            for _ in 0..number {
                let mut client = connect_as(BAD, listen);
                assert!(closed(&mut client));
            }
        };
        let at_rest = || {
            let others = server.connections().into_iter().map(|process| process.pid);
            let all = server.workers().into_iter().chain([server.pid()]).chain(others);
            all.map(proc::descriptors_at_rest).collect::<Vec<_>>()
        };
        denied(10);
        eventually("all are counted", || refused(&server, "access") == 10);
        let before = at_rest();
        denied(1000);
        eventually("all are counted", || refused(&server, "access") == 1010);
        eventually("as many descriptors as before", || at_rest() == before);
        good_exchange(listen);
    }
}

/// What workers and supervisor share is not in a connection process, which may be a stranger's: CVE-2019-0211 of Apache,
/// CVE-2021-21703 of php-fpm.
#[test]
fn a_connection_process_has_no_memory_of_its_worker() {
    for keys in
        ["", "spare = 1", "max_connections_per_source = 5", "spare = 1\nmax_connections_per_source = 5"]
    {
        for job in ["handler = \"echo\"", "exec = [\"/bin/cat\"]"] {
            let listen = address::fresh();
            let config = format!("[service.x]\nlisten = \"{listen}\"\n{job}\nworkers = 1\n{keys}\n");
            let server = Preforkd::run(&config).start();
            let mut client = connect_as(GOOD, listen);
            try_echo(&mut client, b"x").unwrap();
            let shares = |pid: i32| {
                let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
                let descriptors = proc::descriptors(pid);
                let is_shared = |path: &str| path.contains("memfd:preforkd-");
                maps.lines().any(is_shared)
                    || descriptors.iter().any(|(_, path)| is_shared(&path.to_string_lossy()))
            };
            assert!(shares(server.pid()), "this test looks for the wrong thing");
            // With spares, one serves and another waits: of that one nothing is said here.
            let serving = server.connections().into_iter().filter(|process| {
                proc::descriptors(process.pid)
                    .iter()
                    .all(|(_, path)| path.to_string_lossy() != "anon_inode:[eventpoll]")
            });
            let serving: Vec<_> = serving.collect();
            assert!(!serving.is_empty(), "{job} {keys}");
            for process in serving {
                assert!(!shares(process.pid), "{job} {keys}: {:?}", proc::descriptors(process.pid));
            }
        }
    }
}

/// Not at one of the addresses of its wildcard, and not by sharing the port: CVE-2008-3259.
#[test]
fn nobody_listens_beside_it() {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let listen = SocketAddr::from(([0, 0, 0, 0], address::port()));
    let server = Preforkd::run(&format!("[service.x]\nlisten = \"{listen}\"\nhandler = \"echo\"\n")).start();
    let beside = |place: [u8; 4]| {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
        let [a, b, c, d] = place;
        bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, listen.port()))
    };
    for place in [[0, 0, 0, 0], GOOD, BAD] {
        assert_eq!(beside(place), Err(nix::errno::Errno::EADDRINUSE), "{place:?}");
    }
    good_exchange(SocketAddr::from((GOOD, listen.port())));
    server.stop();
}
