//! What a stranger can do who has captured the process of a built-in handler: the real process makes his system calls.
//!
//! tests/suite/hostile.rs does it to a program.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc as c;
use nix::sys::signal::Signal;

use crate::support::captive::{Captive, Outcome};
use crate::support::client::{connect, echo};
use crate::support::{Preforkd, Running, address, eventually, proc, root, user, write};

use Outcome::{Done, Killed, Refused};

/// Who is attacked, and with what.
struct Around {
    others: [(&'static str, i32); 4],
    client: TcpStream,
    /// The descriptor of its connection.
    connection: u64,
    pid: i32,
    tcp: SocketAddr,
    control: String,
    secret: String,
    own_file: String,
    directory: String,
}

/// Whether an attempt has succeeded, by what the kernel has said of each of its calls.
type Attempt = Box<dyn Fn(&mut Captive, &Around) -> Outcome>;

fn call(number: i64, arguments: &[u64]) -> Attempt {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    Box::new(move |captive, _| captive.call(number, all))
}

fn calls(captive: &mut Captive, number: i64, arguments: &[u64]) -> Outcome {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    captive.call(number, all)
}

const HERE: u64 = c::AT_FDCWD as u64;

fn open(path: impl Fn(&Around) -> String + 'static, flags: i32) -> Attempt {
    Box::new(move |captive, around| {
        let path = captive.put_text(&path(around));
        calls(captive, c::SYS_openat, &[HERE, path, flags as u64, 0o600])
    })
}

/// A call whose first argument is the name of a file that is its user's own.
fn to_own_file(number: i64, more: &'static [u64]) -> Attempt {
    Box::new(move |captive, around| {
        let path = captive.put_text(&around.own_file);
        calls(captive, number, &[&[path], more].concat())
    })
}

/// struct sockaddr_in.
fn ip(to: SocketAddr) -> [u8; 16] {
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let mut address = [0; 16];
    address[0] = c::AF_INET as u8;
    address[2..4].copy_from_slice(&to.port().to_be_bytes());
    address[4..8].copy_from_slice(&to.ip().octets());
    address
}

const FAST_OPEN: u64 = 0x2000_0000;

/// Tried once, whoever else there is.
fn attempts() -> Vec<(String, Attempt)> {
    let mut all: Vec<(&str, Attempt)> = vec![
        (
            "descriptors",
            Box::new(|_, around| match proc::descriptors(around.pid).len() {
                1 => Refused(Errno::EBADF),
                _ => Done(0),
            }),
        ),
        (
            "shared_memory",
            Box::new(|_, around| {
                let maps = std::fs::read_to_string(format!("/proc/{}/maps", around.pid)).unwrap();
                let is_shared =
                    |line: &str| line.split(' ').nth(1).is_some_and(|rights| rights.ends_with('s'));
                if maps.lines().any(is_shared) { Done(0) } else { Refused(Errno::ENOENT) }
            }),
        ),
        (
            "accept",
            Box::new(|captive, _| {
                for descriptor in 0..64 {
                    match calls(captive, c::SYS_accept4, &[descriptor, 0, 0, c::SOCK_NONBLOCK as u64]) {
                        Refused(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP) => {}
                        // It listens, and nobody calls.
                        Refused(Errno::EAGAIN) => return Done(0),
                        outcome => return outcome,
                    }
                }
                Refused(Errno::EBADF)
            }),
        ),
        (
            "sockets",
            Box::new(|captive, _| {
                for family in 1..46 {
                    for kind in [c::SOCK_STREAM, c::SOCK_DGRAM, c::SOCK_RAW, c::SOCK_SEQPACKET] {
                        match calls(captive, c::SYS_socket, &[family, kind as u64, 0]) {
                            Refused(_) => {}
                            outcome => return outcome,
                        }
                    }
                }
                Refused(Errno::EPERM)
            }),
        ),
        ("multipath_socket", call(c::SYS_socket, &[2, 1, 262])),
        (
            "disconnect",
            Box::new(|captive, around| {
                let nobody = captive.put(&[0; 16]);
                calls(captive, c::SYS_connect, &[around.connection, nobody, 16])
            }),
        ),
        (
            "connect",
            Box::new(|captive, around| {
                let to = captive.put(&ip(around.tcp));
                calls(captive, c::SYS_connect, &[around.connection, to, 16])
            }),
        ),
        (
            "fast_open",
            Box::new(|captive, around| {
                let to = captive.put(&ip(around.tcp));
                calls(captive, c::SYS_sendto, &[around.connection, to, 1, FAST_OPEN, to, 16])
            }),
        ),
        (
            "fast_open_nobody",
            Box::new(|captive, around| {
                let nobody = captive.put(&[0; 16]);
                calls(captive, c::SYS_sendto, &[around.connection, nobody, 1, FAST_OPEN, nobody, 16])
            }),
        ),
        (
            "bind",
            Box::new(|captive, around| {
                let any = captive.put(&ip("0.0.0.0:0".parse().unwrap()));
                calls(captive, c::SYS_bind, &[around.connection, any, 16])
            }),
        ),
        ("listen", Box::new(|captive, around| calls(captive, c::SYS_listen, &[around.connection, 1]))),
        (
            "control_socket",
            Box::new(|captive, around| {
                let mut address = c::AF_UNIX.to_le_bytes()[..2].to_vec();
                address.extend(around.control.as_bytes());
                address.push(0);
                let (at, length) = (captive.put(&address), address.len() as u64);
                match calls(captive, c::SYS_socket, &[1, 1, 0]) {
                    Done(socket) => calls(captive, c::SYS_connect, &[socket as u64, at, length]),
                    outcome => outcome,
                }
            }),
        ),
        (
            "socket_into_connection",
            Box::new(|captive, around| {
                // What a socket of another kind could be put in the place of.
                match calls(captive, c::SYS_socket, &[1, 2, 0]) {
                    Done(socket) => calls(captive, c::SYS_dup2, &[socket as u64, around.connection]),
                    outcome => outcome,
                }
            }),
        ),
        ("read_secret", open(|around| around.secret.clone(), c::O_RDONLY)),
        ("read_passwd", open(|_| "/etc/passwd".to_owned(), c::O_RDONLY)),
        ("read_own_memory", open(|_| "/proc/self/mem".to_owned(), c::O_RDWR)),
        ("write_own_oom_score", open(|_| "/proc/self/oom_score_adj".to_owned(), c::O_WRONLY)),
        ("write_directory", open(|around| format!("{}/new", around.directory), c::O_WRONLY | c::O_CREAT)),
        ("write_own_file", open(|around| around.own_file.clone(), c::O_WRONLY)),
        ("truncate_by_open", open(|around| around.own_file.clone(), c::O_WRONLY | c::O_TRUNC)),
        ("unnamed_file", open(|around| around.directory.clone(), c::O_WRONLY | c::O_TMPFILE)),
        ("write_tmp", open(|_| "/tmp/captured".to_owned(), c::O_WRONLY | c::O_CREAT)),
        ("write_shm", open(|_| "/dev/shm/captured".to_owned(), c::O_WRONLY | c::O_CREAT)),
        ("kernel_log", open(|_| "/dev/kmsg".to_owned(), c::O_WRONLY)),
        ("truncate", to_own_file(c::SYS_truncate, &[0])),
        ("chmod", to_own_file(c::SYS_chmod, &[0o666])),
        ("chown", to_own_file(c::SYS_chown, &[u64::MAX, u64::MAX])),
        ("utimes", to_own_file(c::SYS_utimes, &[0])),
        ("unlink", to_own_file(c::SYS_unlink, &[])),
        (
            "attribute",
            Box::new(|captive, around| {
                let (path, name) = (captive.put_text(&around.own_file), captive.put_text("user.x"));
                calls(captive, c::SYS_setxattr, &[path, name, name, 1, 0])
            }),
        ),
        (
            "make_directory",
            Box::new(|captive, around| {
                let path = captive.put_text(&format!("{}/made", around.directory));
                calls(captive, c::SYS_mkdir, &[path, 0o700])
            }),
        ),
        (
            "link",
            Box::new(|captive, around| {
                let [from, to] =
                    ["own", "linked"].map(|name| captive.put_text(&format!("{}/{name}", around.directory)));
                calls(captive, c::SYS_link, &[from, to])
            }),
        ),
        (
            "rename",
            Box::new(|captive, around| {
                let [from, to] =
                    ["own", "moved"].map(|name| captive.put_text(&format!("{}/{name}", around.directory)));
                calls(captive, c::SYS_rename, &[from, to])
            }),
        ),
        ("fork", call(c::SYS_fork, &[])),
        ("vfork", call(c::SYS_vfork, &[])),
        ("clone_thread", call(c::SYS_clone, &[0x0001_0f00, 0])),
        ("clone_of_worker", call(c::SYS_clone, &[0x8011, 0])),
        (
            "clone3",
            Box::new(|captive, _| {
                let mut arguments = [0; 88];
                arguments[32..40].copy_from_slice(&17_u64.to_le_bytes());
                let at = captive.put(&arguments);
                calls(captive, c::SYS_clone3, &[at, 88])
            }),
        ),
        (
            "exec_itself",
            Box::new(|captive, _| {
                let path = captive.put_text("/proc/self/exe");
                calls(captive, c::SYS_execve, &[path, 0, 0])
            }),
        ),
        (
            "exec_shell",
            Box::new(|captive, _| {
                let path = captive.put_text("/bin/sh");
                calls(captive, c::SYS_execve, &[path, 0, 0])
            }),
        ),
        (
            "memfd",
            Box::new(|captive, _| {
                let name = captive.put_text("x");
                calls(captive, c::SYS_memfd_create, &[name, 0])
            }),
        ),
        ("map_write_execute", call(c::SYS_mmap, &[0, 4096, 7, 0x22, u64::MAX, 0])),
        (
            "write_execute",
            Box::new(|captive, _| {
                let at = captive.put(&[0xc3]) & !0xfff;
                calls(captive, c::SYS_mprotect, &[at, 4096, 5])
            }),
        ),
        ("setuid", call(c::SYS_setuid, &[0])),
        ("setresgid", call(c::SYS_setresgid, &[0, 0, 0])),
        (
            "setgroups",
            Box::new(|captive, _| {
                let group = captive.put(&[0; 4]);
                calls(captive, c::SYS_setgroups, &[1, group])
            }),
        ),
        ("user_namespace", call(c::SYS_unshare, &[c::CLONE_NEWUSER as u64])),
        ("other_namespaces", call(c::SYS_unshare, &[0x2c02_0000])),
        (
            "chroot",
            Box::new(|captive, _| {
                let root = captive.put_text("/");
                calls(captive, c::SYS_chroot, &[root])
            }),
        ),
        (
            "mount",
            Box::new(|captive, around| {
                let (kind, at) = (captive.put_text("tmpfs"), captive.put_text(&around.directory));
                calls(captive, c::SYS_mount, &[kind, at, kind, 0, 0])
            }),
        ),
        ("more_descriptors", limit(c::RLIMIT_NOFILE as u64, 1 << 30)),
        ("more_processes", limit(c::RLIMIT_NPROC as u64, 100)),
        (
            "real_time",
            Box::new(|captive, _| {
                let priority = captive.put(&1_i32.to_le_bytes());
                calls(captive, c::SYS_sched_setscheduler, &[0, 1, priority])
            }),
        ),
        ("nicer", call(c::SYS_setpriority, &[0, 0, -20_i64 as u64])),
        ("new_privileges", call(c::SYS_prctl, &[38, 0, 0, 0, 0])),
        ("no_filter", call(c::SYS_prctl, &[22, 0, 0])),
        (
            "io_uring",
            Box::new(|captive, _| {
                let parameters = captive.put(&[0; 120]);
                calls(captive, c::SYS_io_uring_setup, &[8, parameters])
            }),
        ),
        ("x32", call(0x4000_0000 | c::SYS_getpid, &[])),
        (
            "bpf",
            Box::new(|captive, _| {
                let attributes =
                    captive.put(&[&[1, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0, 1][..], &[0; 115]].concat());
                calls(captive, c::SYS_bpf, &[0, attributes, 128])
            }),
        ),
        ("userfaultfd", call(c::SYS_userfaultfd, &[1])),
        (
            "perf_event",
            Box::new(|captive, _| {
                let mut attributes = [0; 112];
                (attributes[0], attributes[4], attributes[40]) = (1, 112, 0x60);
                let at = captive.put(&attributes);
                calls(captive, c::SYS_perf_event_open, &[at, 0, u64::MAX, u64::MAX, 0])
            }),
        ),
        (
            "keyring",
            Box::new(|captive, _| {
                let kind = captive.put_text("user");
                calls(captive, c::SYS_add_key, &[kind, kind, kind, 1, -2_i64 as u64])
            }),
        ),
        ("shm_sysv", call(c::SYS_shmget, &[0, 4096, 0o1600])),
        ("semaphores", call(c::SYS_semget, &[0, 1, 0o1600])),
        ("messages", call(c::SYS_msgget, &[0, 0o1600])),
        (
            "mqueue",
            Box::new(|captive, _| {
                let name = captive.put_text("captured");
                calls(captive, c::SYS_mq_open, &[name, 0o102, 0o600, 0])
            }),
        ),
        // The kernel says that it has succeeded, whoever has refused it. There is nobody else of this user on the machine.
        (
            "signal_everybody",
            Box::new(|captive, around| {
                match calls(captive, c::SYS_kill, &[-1_i64 as u64, c::SIGKILL as u64]) {
                    Done(_) if around.others.iter().all(|(_, pid)| proc::lives(*pid)) => {
                        Refused(Errno::EPERM)
                    }
                    outcome => outcome,
                }
            }),
        ),
    ];
    // The last: it ends who tries.
    all.push(("i386", Box::new(|captive, _| captive.call_of_32_bits(20, [0; 6]))));
    let last = all.pop();
    let named = |(name, attempt): (&str, Attempt)| (name.to_owned(), attempt);
    all.into_iter().map(named).chain(at_each_other()).chain(last.map(named)).collect()
}

fn limit(which: u64, value: u64) -> Attempt {
    Box::new(move |captive, _| {
        let limit = captive.put(&[value.to_le_bytes(), value.to_le_bytes()].concat());
        calls(captive, c::SYS_setrlimit, &[which, limit])
    })
}

/// Tried at a sibling, the worker and the supervisor.
fn at_each_other() -> Vec<(String, Attempt)> {
    type AtOther = fn(&mut Captive, &Around, u64) -> Outcome;
    let each: [(&str, AtOther); 25] = [
        ("probe", |captive, _, pid| calls(captive, c::SYS_kill, &[pid, 0])),
        ("signal", |captive, _, pid| calls(captive, c::SYS_kill, &[pid, c::SIGURG as u64])),
        ("signal_group", |captive, _, pid| {
            calls(captive, c::SYS_kill, &[pid.wrapping_neg(), c::SIGURG as u64])
        }),
        ("signal_thread", |captive, _, pid| calls(captive, c::SYS_tkill, &[pid, c::SIGURG as u64])),
        ("signal_its_thread", |captive, _, pid| calls(captive, c::SYS_tgkill, &[pid, pid, c::SIGURG as u64])),
        ("queue_signal", |captive, _, pid| {
            let mut info = [0; 128];
            info[8..12].copy_from_slice(&(-1_i32).to_le_bytes());
            let at = captive.put(&info);
            calls(captive, c::SYS_rt_sigqueueinfo, &[pid, c::SIGURG as u64, at])
        }),
        ("signal_by_pidfd", |captive, _, pid| match calls(captive, c::SYS_pidfd_open, &[pid, 0]) {
            Done(pidfd) => calls(captive, c::SYS_pidfd_send_signal, &[pidfd as u64, c::SIGURG as u64, 0, 0]),
            outcome => outcome,
        }),
        // It would kill who is named; that is seen by others.
        ("signal_by_io", |captive, around, pid| {
            let connection = around.connection;
            for (command, value) in [(8, pid), (10, 9), (4, 0o20000)] {
                match calls(captive, c::SYS_fcntl, &[connection, command, value]) {
                    Done(_) => {}
                    outcome => return outcome,
                }
            }
            (&around.client).write_all(b"x").unwrap();
            let room = captive.put(&[0; 8]);
            let outcome = calls(captive, c::SYS_recvfrom, &[connection, room, 8, 0, 0, 0]);
            assert_eq!(outcome, Done(1));
            if proc::lives(i32::try_from(pid).unwrap()) { Refused(Errno::EPERM) } else { Done(0) }
        }),
        ("trace", |captive, _, pid| calls(captive, c::SYS_ptrace, &[0x4206, pid, 0, 0])),
        ("read_by_call", |captive, around, pid| {
            let _ = around;
            let at = captive.put(&[0; 16]);
            let vector = captive.put(&[at.to_le_bytes(), 8_u64.to_le_bytes()].concat());
            match calls(captive, c::SYS_process_vm_readv, &[pid, vector, 1, vector, 1, 0]) {
                // It may, only not there.
                Refused(Errno::EFAULT) => Done(0),
                outcome => outcome,
            }
        }),
        ("take_descriptor", |captive, _, pid| match calls(captive, c::SYS_pidfd_open, &[pid, 0]) {
            Done(pidfd) => {
                for number in 0..32 {
                    match calls(captive, c::SYS_pidfd_getfd, &[pidfd as u64, number, 0]) {
                        Refused(Errno::EBADF) => {}
                        outcome => return outcome,
                    }
                }
                Refused(Errno::EBADF)
            }
            outcome => outcome,
        }),
        ("compare", |captive, around, pid| calls(captive, c::SYS_kcmp, &[around.pid as u64, pid, 1, 0, 0])),
        ("limit", |captive, _, pid| {
            let limit = captive.put(&[0; 16]);
            calls(captive, c::SYS_prlimit64, &[pid, 4, limit, 0])
        }),
        ("priority_of_user", |captive, _, _| calls(captive, c::SYS_setpriority, &[2, 0, 1])),
        ("disk_of_user", |captive, _, _| calls(captive, c::SYS_ioprio_set, &[3, 0, 3 << 13])),
        ("priority_of_group", |captive, _, _| calls(captive, c::SYS_setpriority, &[1, 0, 1])),
        ("disk_of_group", |captive, _, _| calls(captive, c::SYS_ioprio_set, &[2, 0, 3 << 13])),
        ("priority", |captive, _, pid| calls(captive, c::SYS_setpriority, &[0, pid, 1])),
        ("processor", |captive, _, pid| {
            let mask = captive.put(&[0xff; 128]);
            calls(captive, c::SYS_sched_setaffinity, &[pid, 128, mask])
        }),
        ("memory", |captive, _, pid| open_of(captive, pid, "mem", c::O_RDONLY)),
        ("environment", |captive, _, pid| open_of(captive, pid, "environ", c::O_RDONLY)),
        ("maps", |captive, _, pid| open_of(captive, pid, "maps", c::O_RDONLY)),
        ("its_descriptors", |captive, _, pid| open_of(captive, pid, "fd", c::O_RDONLY)),
        ("oom_score", |captive, _, pid| open_of(captive, pid, "oom_score_adj", c::O_WRONLY)),
        ("migrate", |captive, _, pid| calls(captive, c::SYS_move_pages, &[pid, 0, 0, 0, 0, 2])),
    ];
    let mut all: Vec<(String, Attempt)> = Vec::new();
    for (index, other) in ["sibling", "worker", "supervisor", "stranger"].into_iter().enumerate() {
        for (name, attempt) in each {
            let at_it: Attempt = Box::new(move |captive, around| {
                attempt(captive, around, u64::try_from(around.others[index].1).unwrap())
            });
            all.push((format!("{name}_{other}"), at_it));
        }
    }
    all
}

fn open_of(captive: &mut Captive, pid: u64, name: &str, flags: i32) -> Outcome {
    let path = captive.put_text(&format!("/proc/{pid}/{name}"));
    calls(captive, c::SYS_openat, &[HERE, path, flags as u64, 0])
}

/// A service `captured` with the handler echo, and another.
struct Scene {
    server: Running,
    at: SocketAddr,
    other: SocketAddr,
    /// Of the other service.
    other_worker: i32,
}

/// Who the captured is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Whom its service names; preforkd is root.
    Named,
    /// Nobody is named, in the other service neither; preforkd is root.
    Nobody,
    /// Who preforkd is, and not root.
    Same,
}

impl Scene {
    /// With these keys.
    fn new(keys: &str, number: u32, who: Who) -> Self {
        let (at, other, uid) = (address::fresh(), address::fresh(), user(number));
        let identity = match who {
            Who::Named => format!("user = {uid}\ngroup = {uid}\n"),
            Who::Nobody | Who::Same => String::new(),
        };
        let config = format!(
            "[supervisor]\ndrain_timeout = \"500ms\"\n\
             [service.captured]\nlisten = \"{at}\"\nhandler = \"echo\"\nworkers = 1\n{identity}{keys}\n\
             [service.other]\nlisten = \"{other}\"\nhandler = \"echo\"\nworkers = 1\n"
        );
        let server = Preforkd::run(&config);
        let server = if who == Who::Same { server.by_user(number, 400) } else { server };
        let files = server.dir().join("files");
        std::fs::create_dir(&files).unwrap();
        std::fs::set_permissions(&files, std::fs::Permissions::from_mode(0o777)).unwrap();
        write(&files.join("secret"), "of another service\n");
        write(&files.join("own"), "its user's own\n");
        chown(files.join("own"), Some(uid), Some(uid)).unwrap();
        let server = server.start();
        let other_worker = server.all_workers()[1];
        Scene { server, at, other, other_worker }
    }

    /// A connection, and the process that serves it.
    fn connection(&self) -> (TcpStream, i32) {
        let before: Vec<i32> = self.serving();
        let mut client = connect(self.at);
        echo(&mut client, b"hello");
        let mut new = self.serving();
        new.retain(|pid| !before.contains(pid));
        assert_eq!(new.len(), 1, "{new:?}");
        (client, new[0])
    }

    /// Who has a connection of the service.
    fn serving(&self) -> Vec<i32> {
        let connections = connections(self.at);
        let ours = |pid: &i32| proc::descriptors(*pid).iter().any(|(_, path)| connections.contains(path));
        proc::descendants(self.server.pid()).into_iter().map(|process| process.pid).filter(ours).collect()
    }

    fn worker(&self) -> i32 {
        self.server.workers()[0]
    }

    fn around(&self, sibling: i32, client: TcpStream, pid: i32, tcp: SocketAddr) -> Around {
        let files = self.server.dir().join("files");
        let path = |name: &str| files.join(name).display().to_string();
        let connections = connections(self.at);
        let has = |(number, path): (u32, PathBuf)| connections.contains(&path).then_some(number);
        let connection = proc::descriptors(pid).into_iter().find_map(has).unwrap();
        Around {
            others: [
                ("sibling", sibling),
                ("worker", self.worker()),
                ("supervisor", self.server.pid()),
                ("stranger", self.other_worker),
            ],
            client,
            connection: connection.into(),
            pid,
            tcp,
            control: self.server.control().to_owned(),
            secret: path("secret"),
            own_file: path("own"),
            directory: files.display().to_string(),
        }
    }

    /// Nobody else has noticed, and all is counted.
    fn is_well(&self, live: u64) {
        eventually("count == live", || {
            let service = self.server.service();
            service["active"] == live && service["counted"] == live
        });
        // That of the service is renewed after a process was killed by the kernel.
        assert!(self.server.all_workers().contains(&self.other_worker));
        assert!([self.other_worker, self.server.pid()].into_iter().all(proc::lives));
        echo(&mut connect(self.other), b"other");
        echo(&mut connect(self.at), b"new");
        eventually("it has gone", || self.server.count("active") == live);
    }
}

/// The connected sockets with this local address, as /proc/PID/fd names them.
fn connections(at: SocketAddr) -> Vec<PathBuf> {
    let SocketAddr::V4(v4) = at else { panic!("{at}") };
    let local = format!("{:08X}:{:04X}", u32::from(*v4.ip()).swap_bytes(), v4.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let connected = fields.filter(|fields| fields[1] == local && fields[3] != "0A");
    connected.map(|fields| format!("socket:[{}]", fields[9]).into()).collect()
}

/// Tries what is wanted from within a connection process; what became of each.
fn outcomes(scene: &Scene, is_wanted: &dyn Fn(&str) -> bool) -> BTreeMap<String, Outcome> {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut sibling, sibling_pid) = scene.connection();
    let mut taken: Option<(Captive, Around)> = None;
    let mut found = BTreeMap::new();
    for (name, attempt) in attempts() {
        if !is_wanted(&name) {
            continue;
        }
        let (captive, around) = taken.get_or_insert_with(|| {
            let (client, pid) = scene.connection();
            let around = scene.around(sibling_pid, client, pid, elsewhere.local_addr().unwrap());
            (Captive::take(pid), around)
        });
        let outcome = attempt(captive, around);
        if let (Done(child), true) = (outcome, name.ends_with("fork") || name.starts_with("clone")) {
            if let Ok(child) = i32::try_from(child) {
                proc::kill(child, Signal::SIGKILL);
            }
        }
        if !captive.lives() {
            taken = None;
        }
        found.insert(name, outcome);
    }
    // Who was captured goes on, if he lives.
    if let Some((captive, mut around)) = taken {
        drop(captive);
        echo(&mut around.client, b"still served");
    }
    echo(&mut sibling, b"not harmed");
    elsewhere.set_nonblocking(true).unwrap();
    let is_called = if elsewhere.accept().is_ok() { Done(0) } else { Refused(Errno::ECONNREFUSED) };
    found.insert("call".to_owned(), is_called);
    found
}

fn must_fail_but(scene: &Scene, open: &[&str], is_killed: bool) {
    let found = outcomes(scene, &|_| true);
    let mut wrong = Vec::new();
    for (name, outcome) in &found {
        let is_open = open.contains(&name.as_str());
        match outcome {
            Refused(_) if !is_open => {}
            Killed(Signal::SIGSYS) if !is_open && (is_killed || name == "i386") => {}
            Done(_) if is_open => {}
            _ => wrong.push(format!("{name}: {outcome:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}\n\nall of it: {found:#?}", wrong.join("\n"));
}

fn captured(keys: &str, number: u32, who: Who, open: &[&str], is_killed: bool) {
    if !root("to trace another's process") {
        return;
    }
    let scene = Scene::new(keys, number, who);
    must_fail_but(&scene, open, is_killed);
    scene.is_well(0);
    scene.server.stop();
}

#[test]
fn a_captured_handler_reaches_nobody() {
    captured("", 61_250, Who::Named, &[], false);
}

#[test]
fn a_captured_handler_of_an_unprivileged_preforkd_reaches_nobody() {
    captured("", 61_251, Who::Same, &[], false);
}

#[test]
fn a_captured_handler_for_whom_no_user_is_named_reaches_nobody() {
    captured("", 61_258, Who::Nobody, &[], false);
}

#[test]
fn a_captured_handler_that_was_a_spare_reaches_nobody() {
    captured("spare = 2", 61_252, Who::Named, &[], false);
}

#[test]
fn a_captured_handler_with_the_calls_of_a_handler_reaches_nobody() {
    // Each of these ends who tries it; what it may ask for does nothing to others.
    captured("sandbox = { system_calls = \"handler\" }", 61_253, Who::Named, &[], true);
}

#[test]
fn a_captured_handler_that_serves_several_has_what_is_documented_and_no_more() {
    // The listener, and by which it tells its worker.
    captured("spare = 2\nconnections_per_child = 100", 61_254, Who::Named, &["accept", "descriptors"], false);
}

/// The attempts are real ones: without a sandbox, these succeed. (To trace each other, a setting of the process keeps them.)
#[test]
fn without_a_sandbox_a_captured_handler_does_what_its_user_may() {
    if !root("to trace another's process") {
        return;
    }
    let scene = Scene::new("sandbox = false", 61_255, Who::Same);
    let found = outcomes(&scene, &|name| {
        let (what, who) = name.rsplit_once('_').unwrap_or((name, ""));
        let at_all =
            ["probe", "signal", "signal_by_pidfd", "signal_thread", "queue_signal", "limit", "oom_score"];
        let alone = [
            "sockets",
            "multipath_socket",
            "control_socket",
            "read_passwd",
            "read_secret",
            "write_directory",
            "chmod",
            "utimes",
            "truncate",
            "map_write_execute",
            "user_namespace",
            "userfaultfd",
            "keyring",
            "i386",
        ];
        let is_other = ["sibling", "worker", "supervisor"].contains(&who);
        is_other && at_all.contains(&what) || alone.contains(&name)
    });
    assert_eq!(found.len(), 1 + 7 * 3 + 14);
    let refused: Vec<_> =
        found.iter().filter(|(name, outcome)| *name != "call" && !matches!(outcome, Done(_))).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    scene.is_well(0);
    scene.server.stop();
}

#[test]
fn a_captured_handler_and_what_it_has_started_end_with_its_lifetime() {
    if !root("to trace another's process") {
        return;
    }
    let scene = Scene::new("max_lifetime = \"20s\"\nlimits = { nproc = 100 }", 61_256, Who::Named);
    let (_sibling, sibling) = scene.connection();
    let (_client, pid) = scene.connection();
    let mut captive = Captive::take(pid);
    let Done(child) = captive.call(c::SYS_fork, [0; 6]) else { panic!("no child") };
    let child = i32::try_from(child).unwrap();
    Captive::let_loose(child);
    // It hears of no deadline, is in another group than who it has left behind in its own, and ends for no SIGTERM.
    let all = captive.put(&[0xff; 8]);
    for (number, arguments) in [
        (c::SYS_setpgid, [0, sibling as u64, 0, 0]),
        (c::SYS_setitimer, [0, 0, 0, 0]),
        (c::SYS_rt_sigprocmask, [0, all, 0, 8]),
    ] {
        assert_eq!(calls(&mut captive, number, &arguments), Done(0), "{number}");
    }
    drop(captive);
    eventually("all have ended", || ![sibling, pid, child].into_iter().any(proc::lives));
    scene.is_well(0);
    scene.server.stop();
}

#[test]
fn what_a_captured_handler_leaves_is_believed_of_itself_alone() {
    if !root("to trace another's process") {
        return;
    }
    let scene = Scene::new("", 61_257, Who::Named);
    let words =
        [[0, 0], [5, 7], [1 << 62, 1 << 63], [u64::MAX - 1, u64::MAX - 1], [u64::MAX >> 1, u64::MAX >> 1]];
    let codes = [0, 1, 71, 77, 124, 125, 126, 127, 255];
    let mut ended = 0;
    for [soft, hard] in words {
        for code in codes {
            let (_client, pid) = scene.connection();
            let mut captive = Captive::take(pid);
            let limit = captive.put(&[u64::to_le_bytes(soft), u64::to_le_bytes(hard)].concat());
            assert_eq!(calls(&mut captive, c::SYS_setrlimit, &[10, limit]), Done(0));
            // What is left for good, is.
            let more = captive.put(&[0xff; 16]);
            assert_eq!(calls(&mut captive, c::SYS_setrlimit, &[10, more]), Refused(Errno::EPERM));
            assert_eq!(calls(&mut captive, c::SYS_exit_group, &[code]), Outcome::Exited(code as i32));
            drop(captive);
            ended += 1;
            scene.server.log.wait("its record", |line| line.contains(&format!("(pid {pid},")));
        }
    }
    let workers = scene.server.all_workers();
    scene.is_well(0);
    assert_eq!(scene.server.all_workers(), workers);
    assert_eq!(scene.server.count("completed"), ended + 1);
    scene.server.stop();
}
