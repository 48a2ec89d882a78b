//! The machine of preforkd.migration(7), moved as the page says, while somebody calls each of its services all the time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::page::{Step, answers, sections};
use crate::support::service::said;
use crate::support::{Container, PATIENCE, eventually, say, text};

/// The services over TCP, what each is asked, and how its answer begins.
const PORTS: [(u16, &str, &str); 6] = [
    (873, "", "@RSYNCD: "),
    (8080, "GET / HTTP/1.0\r\n\r\n", "HTTP/1."),
    (13, "", ""),
    (79, "ada\r\n", "In the library"),
    (7001, "", "nobody\n127.0.0.1\n"),
    (7002, "hello\n", "HELLO\n"),
];

/// Between two calls of one caller: Debian's inetd takes 256 in a minute for a loop, and xinetd here 50 in a second.
const PACE: Duration = Duration::from_millis(250);

/// Puts in what the packages of Debian 12 have: there is no network to install them from.
fn install(container: &Container) -> bool {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("moved/root");
    let missing = ["nft", "in.tftpd"].iter().any(|name| !Path::new("/usr/sbin").join(name).exists());
    if missing || !packages.exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "needs nftables, tftpd-hpa and what tests/suite/moved/install unpacks"
        );
        say("SKIPPED: migration needs nftables, tftpd-hpa and what tests/suite/moved/install unpacks");
        return false;
    }
    let script = r#"
        packages=$1 root=$2
        for file in /usr/sbin/{xinetd,inetd,tcpd,in.tftpd,nft} /usr/bin/rsync /bin/busybox /etc/{services,protocols} \
          /etc/init.d/xinetd /usr/lib/systemd/system/inetd.service; do
          # What this machine has, is not among the packages.
          from=$packages$file
          [ -e "$from" ] || from=$file
          mkdir -p "$root$(dirname "$file")"
          cp --dereference "$from" "$root$file"
        done
        # The loader's search begins with what the packages have.
        LD_LIBRARY_PATH=$packages/usr/lib/x86_64-linux-gnu ldd "$root"/usr/sbin/{xinetd,inetd,tcpd,in.tftpd,nft} "$root/usr/bin/rsync" |
          sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u | while read -r library; do
            to=/usr/lib/x86_64-linux-gnu/$(basename "$library")
            [ -e "$root$to" ] || cp --dereference "$library" "$root$to"
          done"#;
    let output = Command::new("bash")
        .args(["-euc", script, "bash"])
        .args([packages, container.path("")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    true
}

/// One call from its beginning.
fn call(port: u16, request: &str, answer: &str) -> io::Result<()> {
    ask(TcpStream::connect(("127.0.0.1", port))?, request, answer)
}

/// What follows when somebody has called: an error, if it is not what it should be.
fn ask(mut stream: TcpStream, request: &str, answer: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    let said = text(&said);
    match said.starts_with(answer) && !said.is_empty() {
        true => Ok(()),
        false => Err(io::Error::other(format!("it said {said:?}"))),
    }
}

/// Asks for a file by tftp, until the first piece of it is here. Who asks a port that is nobody's is told so by the kernel.
fn fetch() -> io::Result<()> {
    // The answer comes from another port, so a socket that is connected would not get it, and one that is not hears of no error.
    let (asking, answered) = (UdpSocket::bind("127.0.0.1:0")?, nix::sys::socket::sockopt::Ipv4RecvErr);
    nix::sys::socket::setsockopt(&asking, answered, &true)?;
    asking.set_read_timeout(Some(PACE))?;
    loop {
        asking.send_to(b"\0\x01kernel\0octet\0", "127.0.0.1:69")?;
        let mut piece = [0; 600];
        match asking.recv(&mut piece) {
            Ok(length) if piece[..length] == *b"\0\x03\0\x01hello\n" => return Ok(()),
            Ok(length) => return Err(io::Error::other(format!("it said {:?}", text(&piece[..length])))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Somebody who calls all the time: how often he was served, and what else became of it.
struct Caller {
    name: String,
    served: AtomicUsize,
    call: Box<dyn Fn() -> io::Result<()> + Sync>,
}

impl Caller {
    fn new(name: String, call: impl Fn() -> io::Result<()> + Sync + 'static) -> Self {
        Caller { name, served: AtomicUsize::new(0), call: Box::new(call) }
    }

    fn call_until(&self, done: &AtomicBool) -> Vec<String> {
        let mut hurt = Vec::new();
        while !done.load(Ordering::Relaxed) {
            match (self.call)() {
                Ok(()) => drop(self.served.fetch_add(1, Ordering::Relaxed)),
                Err(error) => hurt.push(format!("{}: {error}", self.name)),
            }
            std::thread::sleep(PACE);
        }
        hurt
    }
}

/// A client, in a directory of his own, on the network of this thread.
fn client(directory: &Path, command: &str) -> Output {
    let environment = [("HOME", directory.to_str().unwrap()), ("LC_ALL", "C")];
    let mut client = Command::new("timeout");
    client.args(["20", "sh", "-c", command]).current_dir(directory).envs(environment);
    client.stdin(std::process::Stdio::null()).env_remove("http_proxy").output().unwrap()
}

struct Move<'a> {
    container: &'a Container,
    page: Vec<(String, Vec<Step>)>,
    directory: PathBuf,
}

impl Move<'_> {
    /// Does what a section says.
    fn follow(&self, section: &str) {
        let (_, steps) = self.page.iter().find(|(heading, _)| heading == section).unwrap();
        for step in steps {
            match step {
                Step::File { path, text } => self.container.write(path, text),
                Step::Command { is_root, command, answer } => {
                    let output = match is_root {
                        true => self.container.run(command),
                        false => client(&self.directory, command),
                    };
                    let said = said(&output);
                    assert!(answers(&said, answer), "{command}\n--- the page:\n{answer}--- here:\n{said}");
                }
            }
        }
    }
}

/// As the page says, with the same clients before and after.
pub(crate) fn a_machine_moves_and_refuses_nobody(container: &Container) {
    // The programs are those of Debian 12.
    if container.systemd() != 252 || !install(container) {
        return;
    }
    // As it is when it has just been installed.
    container.clean();
    container.sure("dpkg --purge preforkd 2>&1; rm -rf /run/systemd/system/preforkd.service.d");
    container.install(container.package());
    let directory = tempfile::tempdir().unwrap();
    let the_move = Move {
        container,
        page: sections("preforkd.migration.7.scd"),
        directory: directory.path().to_owned(),
    };
    the_move.follow("THE MACHINE");
    let caller = |(port, request, answer): (u16, &'static str, &'static str)| {
        Caller::new(format!("port {port}"), move || call(port, request, answer))
    };
    let mut callers: Vec<Caller> = PORTS.into_iter().map(caller).collect();
    callers.push(Caller::new("tftp".to_owned(), fetch));
    // xinetd says to nobody when it listens.
    eventually("all of them answer", || callers.iter().all(|caller| (caller.call)().is_ok()));
    the_move.follow("ITS CLIENTS");
    the_move.follow("BEFORE THE MOVE");

    // Somebody who has begun before the move, with a server of xinetd and one of systemd, and says what he wants when it is over.
    let sessions =
        [(8080, PORTS[1].1, PORTS[1].2), (7002, "late\n", "LATE\n")].map(|(port, request, answer)| {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            (stream, request, answer)
        });

    let done = AtomicBool::new(false);
    let served_more = |times: usize| {
        let before: Vec<usize> = callers.iter().map(|caller| caller.served.load(Ordering::Relaxed)).collect();
        eventually("each has been served", || {
            callers
                .iter()
                .zip(&before)
                .all(|(caller, before)| caller.served.load(Ordering::Relaxed) >= before + times)
        });
    };
    let hurt: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = callers.iter().map(|caller| scope.spawn(|| caller.call_until(&done))).collect();
        let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            served_more(2);
            the_move.follow("THE MOVE");
            served_more(2);
        }));
        done.store(true, Ordering::Relaxed);
        let hurt = running.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
        moved.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        hurt
    });
    assert!(hurt.is_empty(), "{hurt:#?}");
    for (stream, request, answer) in sessions {
        ask(stream, request, answer).unwrap();
    }
    the_move.follow("ITS CLIENTS");
    the_move.follow("AFTERWARDS");
    for name in ["tftp", "daytime", "finger", "rsync", "www", "whoami", "upper"] {
        assert!(container.count(name, "accepted") > 0, "{name} is served by preforkd");
    }
}
