//! A cgroup for each connection: where each process is, what becomes of what a connection leaves behind, and what is left of it
//! all.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::life::echo_service;
use crate::support::cgroup::{self, Delegated, owning};
use crate::support::client::{connect, echo, exchange, listen_to};
use crate::support::{
    Preforkd, Running, address, eventually, kernel_has_scopes, preforkd, proc, root, run, text,
};

/// Leaves a job behind that has left the process group, says its pid and waits for its client to end. The job notes that it was
/// told to end, and does not.
const ESCAPES: &str = "#!/bin/sh\n\
    setsid sh -c 'trap \"echo told >DIR/told\" TERM; echo $$ >DIR/job; while :; do sleep 0.05; done' \
    </dev/null >/dev/null 2>&1 &\n\
    while ! [ -s DIR/job ]; do sleep 0.01; done\n\
    cat DIR/job; rm DIR/job\n\
    read line\n";

/// The ways in which programs come to have a connection.
const WAYS: [&str; 3] = ["", "spare = 1\n", "connection = \"listen-fds\"\ncount_bytes = false\n"];

fn service(listen: SocketAddr, program: &str, keys: &str) -> String {
    format!("[service.x]\nlisten = \"{listen}\"\nexec = [{program}]\nworkers = 1\n{keys}\n")
}

fn lives(pid: i32) -> bool {
    // One that is dead and not reaped does not.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

/// A connection, and the job that its program has started.
fn escape(listen: SocketAddr) -> (BufReader<TcpStream>, i32) {
    let mut stream = BufReader::new(connect(listen));
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    (stream, line.trim().parse().unwrap())
}

fn end(stream: &mut BufReader<TcpStream>) {
    stream.get_mut().write_all(b"end\n").unwrap();
    stream.read_to_string(&mut String::new()).unwrap();
}

fn was_told(server: &Running) -> bool {
    std::fs::read_to_string(server.dir().join("told")).is_ok_and(|text| text == "told\n")
}

/// A stop ends everything, and leaves the cgroup as it was.
fn stops_tidily(server: &Running, cgroup: &Delegated) {
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ending(), "0");
    server.wait_empty();
    assert!(cgroup.is_tidy(), "{:?}", cgroup::below(cgroup.path()));
}

fn name(path: &str) -> &str {
    Path::new(path).file_name().unwrap().to_str().unwrap()
}

#[test]
fn supervisor_worker_and_each_connection_have_cgroups_of_their_own() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    for way in WAYS {
        let listen = address::fresh();
        let tells = r#"'sh', '-c', 'sed -n s/^0:://p /proc/self/cgroup >&3 || sed -n s/^0:://p /proc/self/cgroup; read x'"#;
        let tells = match way.contains("listen-fds") {
            true => tells.replace("read x", "read x <&3"),
            false => tells.replace(" >&3 ||", " ||"),
        };
        let server = cgroup.run(&service(listen, &tells, way)).start();
        assert_eq!(name(&cgroup::of(server.pid()).unwrap()), "supervisor");
        let worker = cgroup::of(server.workers()[0]).unwrap();
        assert_eq!(name(&worker), "worker");
        let above = Path::new(&worker).parent().unwrap();
        assert!(above.parent().unwrap().ends_with("service-x"), "{worker}");
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = BufReader::new(connect(listen));
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            assert_eq!(Path::new(line.trim()).parent(), Some(above), "{way}: {line}");
            streams.push((stream, line));
        }
        let mut places: Vec<_> = streams.iter().map(|(_, line)| line.clone()).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 3, "{way}: {places:?}");
        drop(streams);
        stops_tidily(&server, &cgroup);
    }
}

/// Says how many filters it has, and 38, which is ENOSYS, if there is no clone3(2) whatever its sixth argument.
const COUNTS_ITS_FILTERS: &str = r#"'perl', '-e', 'open my $status, "<", "/proc/self/status"; my ($number) = grep s/^Seccomp_filters:\s*(\d+)\n/$1/, <$status>; my $socket = $ENV{LISTEN_FDS} ? 3 : 1; open my $client, ">&=", $socket; syscall 435, 0, 0, 0, 0, 0, 1; print $client "$number $!{ENOSYS}\n"'"#;

#[test]
fn one_filter_does_for_a_program_and_says_that_there_is_no_clone3() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    for way in WAYS {
        let listen = address::fresh();
        let server = cgroup.run(&service(listen, COUNTS_ITS_FILTERS, way)).start();
        // One after the other: its worker still has it when the first is over.
        for _ in 0..3 {
            assert_eq!(text(&exchange(listen, b"")), "1 38\n", "{way}");
        }
        stops_tidily(&server, &cgroup);
    }
}

#[test]
fn handlers_are_in_cgroups_too_and_one_after_the_other_in_the_same() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    for keys in ["workers = 1", "workers = 1\nspare = 2", "workers = 1\nspare = 2\nconnections_per_child = 0"]
    {
        let listen = address::fresh();
        let server = cgroup.run(&echo_service(listen, keys)).start();
        for _ in 0..30 {
            let mut stream = connect(listen);
            echo(&mut stream, b"x");
            let inside = server.connections();
            assert!(!inside.is_empty());
            for process in inside {
                let place = cgroup::of(process.pid).unwrap();
                assert!(name(&place).parse::<u32>().is_ok(), "{place}");
            }
            drop(stream);
            eventually("it has ended", || server.count("active") == 0);
        }
        let leaves = cgroup.leaves("echo").len();
        assert!(leaves <= 6, "{leaves} cgroups for 30 connections, one after the other");
        stops_tidily(&server, &cgroup);
    }
}

#[test]
fn who_has_left_the_group_ends_with_the_connection_all_the_same() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    for way in ["", "spare = 1", "count_bytes = false", "user = 4711\ngroup = 4711"] {
        if way.contains("user") && !root("another user") {
            continue;
        }
        let listen = address::fresh();
        let server = cgroup.run(&service(listen, "\"DIR/program\"", way)).script("program", ESCAPES).start();
        std::fs::set_permissions(server.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        for _ in 0..3 {
            let (mut stream, job) = escape(listen);
            end(&mut stream);
            eventually("it is dead", || !lives(job));
        }
        assert!(!was_told(&server), "{way}");
        assert_eq!(server.count("left_behind"), 0);
        stops_tidily(&server, &cgroup);
    }
}

#[test]
fn with_a_grace_it_is_told_before_and_killed_then() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    let listen = address::fresh();
    let config = service(listen, "\"DIR/program\"", "kill_grace = \"2s\"");
    let server = cgroup.run(&config).script("program", ESCAPES).start();
    let (mut stream, job) = escape(listen);
    end(&mut stream);
    eventually("it is dead", || !lives(job));
    assert!(was_told(&server));
    eventually("nobody is left", || server.count("left_behind") == 0);
    eventually("its cgroup is gone", || cgroup.leaves("x").len() <= 1);
    stops_tidily(&server, &cgroup);
}

#[test]
fn who_may_go_on_is_counted_wherever_it_went_until_its_service_ends() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    for way in ["", "spare = 1", "count_bytes = false"] {
        let listen = address::fresh();
        let other = echo_service(address::fresh(), "workers = 1");
        let config = service(listen, "\"DIR/program\"", &format!("kill_mode = \"process\"\n{way}"));
        let server = cgroup.run(&format!("{config}{other}")).script("program", ESCAPES).start();
        let (mut stream, job) = escape(listen);
        end(&mut stream);
        let count = || {
            let services = server.status()["services"].clone();
            let service = services.as_array().unwrap().iter().find(|service| service["name"] == "x").cloned();
            service.map_or(0, |service| service["left_behind"].as_u64().unwrap())
        };
        eventually("it is counted", || count() >= 1);
        // Neither the death of its worker nor an upgrade is its end.
        let worker = server.status()["services"][1]["workers"][0]["pid"].as_i64().unwrap() as i32;
        proc::kill(worker, Signal::SIGKILL);
        eventually("another worker", || {
            server.status()["services"][1]["workers"][0]["pid"]
                .as_i64()
                .is_some_and(|pid| pid as i32 != worker)
        });
        assert!(server.upgrade().status.success());
        eventually("the upgrade", || server.status()["state"] == "running");
        assert!(lives(job) && count() >= 1, "{way}");
        server.configure(&owning(&other));
        server.reload_ok();
        eventually("it has ended with its service", || !lives(job));
        assert!(was_told(&server), "{way}");
        eventually("its cgroups are gone", || cgroup.workers("x").is_empty());
        stops_tidily(&server, &cgroup);
    }
}

#[test]
fn connections_of_a_dead_worker_end_as_completely() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    for upgrades in [false, true] {
        let listen = address::fresh();
        let server = cgroup.run(&service(listen, "\"DIR/program\"", "")).script("program", ESCAPES).start();
        let (mut stream, job) = escape(listen);
        server.replace_worker(server.worker());
        if upgrades {
            assert!(server.upgrade().status.success());
            eventually("the upgrade", || server.status()["state"] == "running");
        }
        assert!(lives(job));
        end(&mut stream);
        eventually("it is dead", || !lives(job));
        eventually("it has ended", || server.count("active") == 0);
        eventually("the cgroups of dead workers are gone", || {
            exchange(listen, b"end\n");
            cgroup.workers("x").len() == server.all_workers().len()
        });
        stops_tidily(&server, &cgroup);
    }
}

#[test]
fn a_deadline_ends_all_of_a_connection() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    let listen = address::fresh();
    let config = service(listen, "\"DIR/program\"", "max_lifetime = \"4s\"");
    let stubborn = ESCAPES.replace("read line", "trap '' TERM; while :; do sleep 0.05; done");
    let server = cgroup.run(&config).script("program", &stubborn).start();
    let (_stream, job) = escape(listen);
    eventually("it is dead", || !lives(job));
    eventually("the connection has ended", || server.count("active") == 0);
    stops_tidily(&server, &cgroup);
}

#[test]
fn a_stop_leaves_nobody_and_nothing() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    for keys in ["", "kill_mode = \"process\""] {
        let listen = address::fresh();
        let config = format!(
            "[supervisor]\ncgroup = \"own\"\ndrain_timeout = \"0s\"\n{}",
            service(listen, "\"DIR/program\"", keys)
        );
        let server = cgroup.enter(Preforkd::run(&config)).script("program", ESCAPES).start();
        let (mut first, one) = escape(listen);
        end(&mut first);
        let (_second, two) = escape(listen);
        stops_tidily(&server, &cgroup);
        assert!(!lives(one) && !lives(two));
    }
}

#[test]
fn a_reload_and_an_upgrade_leave_no_cgroup_behind() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    let listen = address::fresh();
    let config = |workers: u32| owning(&echo_service(listen, &format!("workers = {workers}\nspare = 1")));
    let server = cgroup.enter(Preforkd::run(&config(1))).start();
    for workers in [2, 1, 3] {
        let mut stream = connect(listen);
        echo(&mut stream, b"x");
        server.configure(&config(workers));
        server.reload_ok();
        assert!(server.upgrade().status.success());
        eventually("the upgrade", || server.status()["state"] == "running");
        echo(&mut stream, b"still here");
        drop(stream);
        eventually("old workers have gone", || server.all_workers().len() == workers as usize);
        eventually("and their cgroups", || cgroup.workers("echo").len() == workers as usize);
    }
    stops_tidily(&server, &cgroup);
}

#[test]
fn what_a_supervisor_has_left_that_was_killed_is_no_obstacle() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    let listen = address::fresh();
    let server = cgroup.run(&service(listen, "\"DIR/program\"", "")).script("program", ESCAPES).start();
    let (_stream, job) = escape(listen);
    server.signal(Signal::SIGKILL);
    eventually("the supervisor is gone", || !server.ending().is_empty());
    // As systemd does; but the worker's directory stays, with what it had in it.
    std::fs::write(cgroup.path().join("cgroup.kill"), "1").unwrap();
    eventually("all is dead", || !lives(job));
    eventually("nobody is in it", || {
        std::fs::read_to_string(cgroup.path().join("cgroup.events")).unwrap().contains("populated 0")
    });
    assert!(!cgroup.is_tidy());
    // Nobody can be put into a cgroup while controllers are on below it. systemd removes all of it instead, if it can.
    cgroup.release_controllers();
    let server = cgroup.run(&echo_service(listen, "workers = 1")).start();
    assert!(cgroup.workers("x").is_empty());
    echo(&mut connect(listen), b"x");
    stops_tidily(&server, &cgroup);
}

#[test]
fn a_cgroup_that_was_taken_away_or_closed_is_replaced() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    let listen = address::fresh();
    let server = cgroup.run(&echo_service(listen, "workers = 1")).start();
    for _ in 0..3 {
        echo(&mut connect(listen), b"x");
        eventually("it has ended", || server.count("active") == 0);
        for leaf in cgroup.leaves("echo") {
            eventually("it is removed", || std::fs::remove_dir(&leaf).is_ok());
        }
    }
    stops_tidily(&server, &cgroup);
}

#[test]
fn only_what_was_delegated_is_divided() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    let config = |listen| echo_service(listen, "workers = 1");
    let listen = address::fresh();
    let server = cgroup.enter(Preforkd::run(&config(listen))).start();
    echo(&mut connect(listen), b"x");
    assert!(cgroup::below(cgroup.path()).is_empty(), "nobody said that it is preforkd's");
    server.stop();
    drop(server);
    let mark = format!("import os; os.setxattr('{}', 'user.delegate', b'1')", cgroup.path().display());
    assert!(run(&["python3", "-c", &mark]).status.success());
    for (use_it, is_used) in [("", true), ("[supervisor]\ncgroup = \"none\"\n", false)] {
        let listen = address::fresh();
        let server = cgroup.enter(Preforkd::run(&format!("{use_it}{}", config(listen)))).start();
        echo(&mut connect(listen), b"x");
        assert_eq!(!cgroup::below(cgroup.path()).is_empty(), is_used);
        server.stop();
        drop(server);
        let _ = std::fs::remove_dir(cgroup.path().join("supervisor"));
    }
}

#[test]
fn limits_of_a_tree_need_a_cgroup_and_the_error_names_the_drop_in() {
    let listen = address::fresh();
    let config = |keys: &str| service(listen, "'cat'", keys);
    let server = Preforkd::run(&config("")).start();
    for limit in ["memory = \"64M\"", "tasks = 10", "cpu_weight = 50"] {
        server.configure(&config(&format!("limits = {{ {limit} }}")));
        let refused = server.reload();
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains("cgroups.conf"), "{said}");
        assert!(said.contains(&format!("limits.{}", limit.split(' ').next().unwrap())), "{said}");
    }
    assert_eq!(text(&exchange(listen, b"still")), "still");
    server.configure(&owning(&config("")));
    let said = text(&server.reload().stderr);
    assert!(said.contains("takes a restart"), "{said}");
    let started = preforkd(&["serve", "--limits", "tasks=10", "127.0.0.1:0", "echo"]);
    assert_eq!(started.status.code(), Some(78));
    assert!(text(&started.stderr).contains("cgroups.conf"));
}

/// What a connection that was taken over tries on the cgroups of all, and gets an error for; and what it may still do elsewhere.
const TRIES: &str = "#!/bin/sh\n\
    d=$(sed -n s/^0:://p /proc/self/cgroup) m=$(sed -n 's/^[^ ]* \\([^ ]*\\) cgroup2 .*/\\1/p' /proc/mounts | head -1)\n\
    for f in $m$d/cgroup.kill $m$d/../*/cgroup.kill $m$d/../../*/*/cgroup.kill; do echo 1 2>/dev/null >$f && echo killed $f; done\n\
    for f in $m$d/../worker/cgroup.procs $m$d/../../../cgroup.procs $m/cgroup.procs; do echo $$ 2>/dev/null >$f && echo moved $f; done\n\
    for f in pids.max memory.max cgroup.subtree_control cgroup.freeze; do echo 0 2>/dev/null >$m$d/$f && echo wrote $f; done\n\
    mkdir $m$d/below 2>/dev/null && echo made; for e in $m$d/../*/; do rmdir $e 2>/dev/null && echo removed $e; done\n\
    chmod 0 $m$d/../cgroup.procs $m$d/cgroup.kill $m$d/cgroup.procs 2>/dev/null\n\
    (setsid sh -c 'sleep 1000' </dev/null >/dev/null 2>&1 &)\n\
    echo x >/dev/null && echo x >DIR/file && mkdir DIR/sub && rmdir DIR/sub && mv DIR/file DIR/other && echo works\n";

#[test]
fn who_takes_a_connection_over_does_not_change_a_cgroup() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    let uid = crate::support::user(1);
    if root("another user") {
        cgroup.give_to(uid);
    }
    for way in ["", "spare = 1", "sandbox = { read = [\"/\"], write = [\"/\"], execute = [\"/\"] }"] {
        let listen = address::fresh();
        let preforkd =
            Preforkd::run(&owning(&service(listen, "\"DIR/program\"", way))).script("program", TRIES);
        let started = cgroup.enter_then(preforkd, uid).start();
        for _ in 0..3 {
            assert_eq!(listen_to(listen), "works\n", "{way}");
            eventually("all of it has ended", || {
                started.processes().iter().all(|process| process.name != "sleep")
                    && started.count("active") == 0
            });
            let _ = std::fs::remove_file(started.dir().join("other"));
        }
        stops_tidily(&started, &cgroup);
    }
}

/// What the drop-in root.conf leaves to root: he may write to no file of others, and give none away.
const FEW_RIGHTS: [&str; 5] = [
    "setpriv",
    "--bounding-set",
    "-all,+setuid,+setgid,+sys_chroot,+kill,+dac_read_search",
    "--inh-caps",
    "-all",
];

#[test]
fn the_user_of_a_service_does_not_change_a_cgroup_without_a_sandbox_either() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    if !root("another user") {
        return;
    }
    for rights in [&[][..], &FEW_RIGHTS] {
        for (user, way) in [
            ("4711\ngroup = 4711", ""),
            ("4711\ngroup = 4711", "spare = 1"),
            ("4711\ngroup = 4711", "count_bytes = false"),
            ("{ range = \"471100-471199\" }\nmax_connections = 20", ""),
            ("{ range = \"471100-471199\" }\nmax_connections = 20", "spare = 1"),
        ] {
            let listen = address::fresh();
            let keys = format!("sandbox = false\nuser = {user}\n{way}");
            let preforkd = cgroup.run(&service(listen, "\"DIR/program\"", &keys)).script("program", TRIES);
            let server = preforkd.under(rights).start();
            std::fs::set_permissions(server.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
                .unwrap();
            for _ in 0..3 {
                assert_eq!(listen_to(listen), "works\n", "{rights:?} {way}");
                eventually("all of it has ended", || {
                    server.processes().iter().all(|process| process.name != "sleep")
                        && server.count("active") == 0
                });
                let _ = std::fs::remove_file(server.dir().join("other"));
            }
            // What its worker has left is the supervisor's to end.
            server.replace_worker(server.worker());
            eventually("its cgroup is gone", || cgroup.workers("x").len() == 1);
            stops_tidily(&server, &cgroup);
        }
    }
}

#[test]
fn a_supervisor_with_few_rights_ends_all_that_another_user_leaves() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    if !root("another user") {
        return;
    }
    let listen = address::fresh();
    let keys = "sandbox = false\nuser = 4711\ngroup = 4711\nkill_grace = \"2s\"";
    let preforkd = cgroup.run(&service(listen, "\"DIR/program\"", keys)).script("program", ESCAPES);
    let server = preforkd.under(&FEW_RIGHTS).start();
    std::fs::set_permissions(server.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for dies in [false, true] {
        let (mut stream, job) = escape(listen);
        if dies {
            server.replace_worker(server.worker());
        }
        end(&mut stream);
        eventually("it is dead", || !lives(job));
        assert!(was_told(&server));
        let _ = std::fs::remove_file(server.dir().join("told"));
        eventually("nobody is left", || server.count("left_behind") == 0 && server.count("active") == 0);
    }
    stops_tidily(&server, &cgroup);
}

#[test]
fn a_chroot_that_only_its_user_may_enter_is_entered_from_a_cgroup() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    if !root("chroot") {
        return;
    }
    for way in ["", "spare = 1"] {
        let listen = address::fresh();
        let keys = format!("workers = 1\nuser = 4711\ngroup = 4711\nchroot = \"DIR/jail\"\n{way}");
        let preforkd = cgroup.run(&echo_service(listen, &keys)).under(&FEW_RIGHTS);
        let jail = preforkd.dir().join("jail");
        std::fs::create_dir(&jail).unwrap();
        std::fs::set_permissions(&jail, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::set_permissions(preforkd.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        nix::unistd::chown(&jail, Some(4711.into()), None).unwrap();
        let server = preforkd.start();
        let mut stream = connect(listen);
        echo(&mut stream, b"x");
        let place = cgroup::of(server.connections()[0].pid).unwrap();
        assert!(name(&place).parse::<u32>().is_ok(), "{place}");
        drop(stream);
        stops_tidily(&server, &cgroup);
    }
}

#[test]
fn a_namespace_of_processes_is_in_the_cgroup_of_its_connection() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    if !root("another user") {
        return;
    }
    let script = "'/bin/sh', '-c', 'setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo x; read y'";
    for (user, way) in
        [("", ""), ("", "spare = 1"), ("user = 4711\ngroup = 4711", ""), ("", "count_bytes = false")]
    {
        let listen = address::fresh();
        let keys = format!("sandbox = {{ pid_namespace = true }}\n{user}\n{way}");
        let server = cgroup.run(&service(listen, script, &keys)).start();
        let sleeps = || server.processes().into_iter().filter(|process| process.name == "sleep").count();
        let begun = || {
            let mut stream = BufReader::new(connect(listen));
            stream.read_line(&mut String::new()).unwrap();
            eventually("its job", || sleeps() == 1);
            stream
        };
        let mut stream = begun();
        let job = server.processes().into_iter().find(|process| process.name == "sleep").unwrap();
        let place = cgroup::of(job.pid).unwrap();
        assert!(name(&place).parse::<u32>().is_ok(), "{place}");
        end(&mut stream);
        eventually("all has ended", || sleeps() == 0 && server.count("active") == 0);
        let mut stream = begun();
        server.replace_worker(server.worker());
        assert_eq!(sleeps(), 1);
        end(&mut stream);
        eventually("all has ended", || sleeps() == 0 && server.count("active") == 0);
        stops_tidily(&server, &cgroup);
    }
}

#[test]
fn where_no_process_can_begin_in_a_cgroup_there_are_none_and_it_is_said() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    if !root("a filter of system calls") {
        return;
    }
    let mark = format!("import os; os.setxattr('{}', 'user.delegate', b'1')", cgroup.path().display());
    assert!(run(&["python3", "-c", &mark]).status.success());
    // clone3(2), which systemd forbids with RestrictNamespaces=.
    let without = [concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/without"), "435", "--"];
    let listen = address::fresh();
    let config = echo_service(listen, "workers = 1");
    let server = cgroup.enter(Preforkd::run(&config)).under(&without).start();
    echo(&mut connect(listen), b"x");
    server.log.wait("why", |line| line.contains("clone3") && line.contains("RestrictNamespaces=no"));
    assert!(cgroup::below(cgroup.path()).is_empty());
    server.configure(&echo_service(listen, "workers = 1\nlimits = { tasks = 4 }"));
    let refused = server.reload();
    assert!(!refused.status.success() && text(&refused.stderr).contains("RestrictNamespaces=no"));
    server.stop();
    drop(server);
    let failed = cgroup.enter(Preforkd::run(&owning(&config))).under(&without).start_unready();
    assert_ne!(failed.ending(), "0");
    failed.wait_empty();
    failed.log.wait("why", |line| line.contains("RestrictNamespaces=no"));
}

#[test]
fn a_limit_of_processes_is_that_of_the_whole_connection() {
    let Some(cgroup) = Delegated::new(&["pids"]) else { return };
    let listen = address::fresh();
    let forks = "'/bin/sh', '-c', 'i=0; while [ $i -lt 20 ]; do setsid sleep 1000 2>&1 & i=$((i+1)); done; echo no end'";
    for way in ["", "spare = 1"] {
        let keys = format!("stderr = \"connection\"\nlimits = {{ tasks = 8 }}\n{way}");
        let server = cgroup.run(&service(listen, forks, &keys)).start();
        for _ in 0..3 {
            let said = listen_to(listen);
            assert!(said.contains("ork") && !said.contains("no end"), "{said}");
        }
        assert!(
            cgroup.leaves("x").iter().all(|leaf| {
                std::fs::read_to_string(leaf.join("pids.max")).is_ok_and(|text| text == "8\n")
            })
        );
        stops_tidily(&server, &cgroup);
    }
}

#[test]
fn a_limit_of_memory_ends_the_whole_connection_and_no_other() {
    let Some(cgroup) = Delegated::new(&["memory", "io"]) else { return };
    let listen = address::fresh();
    let hungry = "'/bin/sh', '-c', 'read x; echo begun; perl -e \"\\$x = q(x) x 300000000; sleep 1000\"; echo survived'";
    let keys = "limits = { memory = \"64M\", cpu_weight = 10 }";
    let server = match Delegated::new(&["memory", "cpu"]) {
        Some(_) => cgroup.run(&service(listen, hungry, keys)).start(),
        None => return,
    };
    let mut other = connect(listen);
    for _ in 0..2 {
        assert_eq!(text(&exchange(listen, b"go\n")), "begun\n");
    }
    server.log.wait("why", |line| line.contains(": killed KILL (memory limit) after "));
    if kernel_has_scopes() {
        // Of the same version: before, nobody could say.
        let peak =
            |line: &str| line.split(", ").find_map(|part| part.strip_suffix(" KiB in all")?.parse().ok());
        let peaks: Vec<u64> = server.log.all().iter().filter_map(|line| peak(line)).collect();
        assert!(
            !peaks.is_empty() && peaks.iter().all(|peak| (60 << 10..=64 << 10).contains(peak)),
            "{peaks:?}"
        );
    }
    assert_eq!(server.count("active"), 1, "the other goes on");
    other.write_all(b"go\n").unwrap();
    let mut said = String::new();
    other.read_to_string(&mut said).unwrap();
    assert_eq!(said, "begun\n");
    stops_tidily(&server, &cgroup);
}

#[test]
fn a_program_that_reads_its_cgroup_from_a_listening_service() {
    let Some(cgroup) = Delegated::new(&[]) else { return };
    let listen = address::fresh();
    let server = cgroup.run(&service(listen, "'cat', '/proc/self/cgroup'", "")).start();
    assert!(listen_to(listen).contains("service-x"));
    stops_tidily(&server, &cgroup);
}

/// A program that reads and writes files past the cache, and waits; and one that does nothing after it, in the same cgroup.
#[test]
fn a_record_says_what_the_whole_connection_has_used() {
    let Some(cgroup) = Delegated::new(&["memory"]) else { return };
    let listen = address::fresh();
    let script = "'/bin/sh', '-c', 'read x; case $x in much) perl -e \"\\$x = q(x) x 30000000\" & wait;; esac; echo done'";
    for way in ["", "spare = 1"] {
        let server = cgroup.run(&service(listen, script, way)).start();
        for job in [&b"much\n"[..], b"little\n"] {
            assert_eq!(text(&exchange(listen, job)), "done\n");
            eventually("it has ended", || server.count("active") == 0);
        }
        let of_connection = |line: &str| line.contains(" connection ") && line.contains(": exited 0 after ");
        eventually("two records", || server.log.count(of_connection) == 2);
        let records: Vec<String> = server.log.all().into_iter().filter(|line| of_connection(line)).collect();
        if kernel_has_scopes() {
            let peak = |line: &String| -> u64 {
                let found = line.split(", ").find_map(|part| part.strip_suffix(" KiB in all")?.parse().ok());
                found.unwrap_or_else(|| panic!("{line}"))
            };
            let (much, little) = (peak(&records[0]), peak(&records[1]));
            assert!(much > 28 << 10 && little < 28 << 10, "{records:?}");
        }
        stops_tidily(&server, &cgroup);
    }
}
