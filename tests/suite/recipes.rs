//! The examples of config/examples, as they are but for their addresses, serve in the sandboxes that they recommend.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;

use crate::support::client::{connect, exchange};
use crate::support::{Preforkd, Running, address, eventually, proc, root, run, sure, text};

/// The example, at an address of its own, with a /srv of its own that this script fills. In the sandbox of the example nothing
/// of it can be changed but what the example says.
fn serve(example: &str, listen: &str, script: &str) -> (Running, SocketAddr) {
    let at = address::fresh();
    (serve_at(example, listen, &at.to_string(), script), at)
}

/// The same, at this address.
fn serve_at(example: &str, listen: &str, at: &str, script: &str) -> Running {
    serve_changed(example, &[(listen, &format!("listen = \"{at}\""))], script)
}

/// The same, with these parts in place of those.
fn serve_changed(example: &str, changes: &[(&str, &str)], script: &str) -> Running {
    let path = format!("{}/config/examples/{example}.toml", env!("CARGO_MANIFEST_DIR"));
    let mut config = std::fs::read_to_string(path).unwrap();
    for (from, to) in changes {
        assert_eq!(config.matches(from).count(), 1, "{from}");
        config = config.replace(from, to);
    }
    let mounts = format!("mount -t tmpfs srv /srv; chmod 755 /srv; cd /srv; umask 022; {script}; cd /");
    Preforkd::run(&config).after_mounts(&mounts).start()
}

#[test]
fn git() {
    if !root("a user, and mounts") {
        return;
    }
    let script = "mkdir git; git init --quiet --bare git/project.git";
    let (server, at) = serve("git", "listen = \"*:9418\"", script);
    let dir = server.dir().join("clone");
    let output = run(&["git", "clone", &format!("git://{at}/project.git"), dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), server.log.all().join("\n"));
}

#[test]
fn rsync() {
    if !root("a user, and mounts") {
        return;
    }
    let script = "mkdir rsync upper work; echo hello >rsync/file; \
                  mount -t overlay -o lowerdir=/etc,upperdir=/srv/upper,workdir=/srv/work etc /etc; \
                  printf 'use chroot = no\\nreverse lookup = no\\n[files]\\npath = /srv/rsync\\n' >/etc/rsyncd.conf";
    let (server, at) = serve("rsync", "listen = \"*:873\"", script);
    let down = server.dir().join("down");
    sure(&["rsync", "-a", &format!("rsync://{at}/files/"), down.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(down.join("file")).unwrap(), "hello\n");
}

#[test]
fn tftp() {
    if !root("a user, and mounts") {
        return;
    }
    let script =
        "mkdir -p tftp/grub; head -c 3000000 /dev/urandom >tftp/grub/image; ln -s /etc/passwd tftp/passwd";
    let listen = "listen = [\"udp:0.0.0.0:69\", \"udp:[::]:69\"]";
    // At another address of this kind, in.tftpd answers from this one.
    let port = address::port().to_string();
    let server = serve_at("tftp", listen, &format!("udp:127.0.0.1:{port}"), script);
    let pid = server.pid().to_string();
    let fetch = |name: &str| {
        let to = server.dir().join("fetched").display().to_string();
        let _ = std::fs::remove_file(&to);
        let ask = ["tftp", "127.0.0.1", &port, "-m", "binary", "-c", "get", name, &to];
        let output = run(&ask);
        let said = text(&output.stdout) + &text(&output.stderr);
        (said, std::fs::read(&to).unwrap_or_default())
    };
    let wanted = sure(&["nsenter", "--mount", "--target", &pid, "sha256sum", "/srv/tftp/grub/image"]);
    for name in ["grub/image", "/grub/image"] {
        let (said, image) = fetch(name);
        let path = server.dir().join("image");
        std::fs::write(&path, &image).unwrap();
        let found = sure(&["sha256sum", path.to_str().unwrap()]);
        assert_eq!(
            found[..64],
            wanted[..64],
            "{name}: {} bytes: {said}\n{:#?}",
            image.len(),
            server.log.all()
        );
    }
    // What it hands out is in its own root.
    let (said, passwd) = fetch("passwd");
    assert!(passwd.is_empty() && said.contains("not found"), "{said}");
    let (said, _) = fetch("nothing");
    assert!(said.contains("File not found"), "{said}");
    assert_eq!((server.count("active"), server.count("accepted")), (1, 1));
}

#[test]
fn httpd() {
    if !root("a user, and mounts") {
        return;
    }
    let (_server, at) = serve("httpd", "listen = \"*:8080\"", "mkdir www; echo works >www/index.html");
    let said = text(&exchange(at, b"GET /index.html HTTP/1.0\r\n\r\n"));
    assert!(said.contains(" 200 ") && said.ends_with("works\n"), "{said}");
    let said = text(&exchange(at, b"GET /../../etc/passwd HTTP/1.0\r\n\r\n"));
    assert!(!said.contains("root:"), "{said}");
}

#[test]
fn python() {
    if !root("a user") {
        return;
    }
    let (server, at) = serve("python", "listen = \"127.0.0.1:7310\"", ":");
    assert_eq!(text(&exchange(at, b"1\n2\n39\n")), "42\n", "{}", server.log.all().join("\n"));
}

#[test]
fn script() {
    if !root("a user, and mounts") {
        return;
    }
    let (server, at) = serve(
        "script",
        "listen = \"127.0.0.1:7311\"",
        "install -d -o nobody guestbook; touch other; chmod 666 other",
    );
    assert_eq!(text(&exchange(at, b"hello\n")), "thanks\n", "{}", server.log.all().join("\n"));
    let read = |path: &str| {
        let pid = server.pid().to_string();
        sure(&["nsenter", "--mount", "--target", &pid, "cat", path])
    };
    assert_eq!(read("/srv/guestbook/lines"), "127.0.0.1 hello\n");
}

#[test]
fn socket_activation() {
    if !root("a user") {
        return;
    }
    let (server, at) = serve("socket-activation", "listen = \"fd:web\"", ":");
    let said = text(&exchange(at, b"GET / HTTP/1.0\r\n\r\n"));
    assert!(said.ends_with("Hello, 127.0.0.1\n"), "{said}\n{}", server.log.all().join("\n"));
}

/// As `ssh` with this key would, where the server is.
fn ssh(server: &Running, at: SocketAddr, key: &str, user: &str, command: &str) -> Output {
    let (pid, port) = (server.pid().to_string(), at.port().to_string());
    let (key, who) = (format!("/srv/{key}"), format!("{user}@{}", at.ip()));
    let mut words =
        vec!["nsenter", "--mount", "--target", &pid, "ssh", "-F", "none", "-i", &key, "-p", &port];
    for option in [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ] {
        words.extend(["-o", option]);
    }
    words.extend([&who, command]);
    run(&words)
}

#[test]
fn sshd() {
    logs_in("");
}

/// Who calls finds an sshd that has read its configuration and its keys.
#[test]
fn sshd_that_is_warm() {
    for kind in ["start", "spare"] {
        logs_in(&format!("warm = \"{kind}\"\nspare = 2\nworkers = 1\n"));
    }
}

/// With these keys more.
fn logs_in(keys: &str) {
    if !root("a user, and mounts") {
        return;
    }
    // Unpacked only: installed, it would serve this machine.
    let Some(packages) = super::moved::packages("sshd") else { return };
    let script = r#"
        for name in usr etc var; do
            mkdir -p upper/$name work/$name
            mount -t overlay -o lowerdir=PACKAGES/$name:/$name,upperdir=/srv/upper/$name,workdir=/srv/work/$name layer /$name
        done
        mount -t tmpfs run /run
        mkdir -p /run/sshd keys alice
        getent passwd sshd >/dev/null || echo sshd:x:901:901::/run/sshd:/bin/false >>/etc/passwd
        echo alice:x:21001:21001::/srv/alice:/bin/sh >>/etc/passwd
        for key in key wrong; do ssh-keygen -q -t ed25519 -N "" -f $key; done
        rm -f /etc/ssh/ssh_host_*
        ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
        cp key.pub keys/root
        cp key.pub keys/alice
        install -m 4755 /usr/bin/id setuid-id
        printf "AuthorizedKeysFile /srv/keys/%%u\nUsePAM no\nPrintMotd no\nPrintLastLog no\n" >/etc/ssh/sshd_config"#;
    let script = script.replace("PACKAGES", packages.to_str().unwrap());
    let at = address::fresh();
    let listen = format!("listen = \"{at}\"\n{keys}");
    let mut changes = vec![("listen = \"*:22\"", listen.as_str())];
    if !keys.is_empty() {
        // The directory is there, and mkdir(1) would be another process.
        changes.push((
            "\"/bin/sh\", \"-c\", \"mkdir -p -m 755 /run/sshd && exec /usr/sbin/sshd -i\"",
            "\"/usr/sbin/sshd\", \"-i\"",
        ));
    }
    let server = serve_changed("sshd", &changes, &script);
    let is_warm = || keys.is_empty() || server.count("warm") == 2;
    eventually("warm programs", is_warm);
    if keys.contains("\"spare\"") {
        server.log.wait("its keys are read", |line| line.contains("is warm at the system call getpeername,"));
    }

    // A stranger, before he has said who he is: a child of sshd talks to him, as nobody, where nothing is, under a filter of its own.
    let mut stranger = BufReader::new(connect(at));
    let mut banner = String::new();
    stranger.read_line(&mut banner).unwrap();
    assert!(banner.starts_with("SSH-2.0-OpenSSH"), "{banner}");
    std::io::Write::write_all(stranger.get_mut(), b"SSH-2.0-test\r\n").unwrap();
    eventually("its cage", || {
        proc::descendants(server.pid()).iter().any(|process| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap_or("0");
            let root = std::fs::read_link(format!("/proc/{}/root", process.pid)).unwrap_or_default();
            !uid.starts_with("0\t") && status.contains("Seccomp:\t2\n") && root == Path::new("/run/sshd")
        })
    });
    drop(stranger);

    let log = || server.log.all().join("\n");
    for (user, command, said, code) in [
        ("root", "echo hello; id -un; exit 3", "hello\nroot\n", 3),
        // With privileges of who owns the program, as sudo.
        ("alice", "id -un; /srv/setuid-id -u; echo ${SSH_CONNECTION%% *}", "alice\n0\n127.0.0.1\n", 0),
    ] {
        eventually("warm programs", is_warm);
        let mark = server.log.mark();
        let output = ssh(&server, at, "key", user, command);
        assert_eq!(
            (text(&output.stdout).as_str(), output.status.code()),
            (said, Some(code)),
            "{user}: {}\n{}",
            text(&output.stderr),
            log()
        );
        let record = server
            .log
            .wait_after(mark, "the record", |line| line.contains("connection ") && line.contains("bytes in"));
        // In what status sshd ends that has served one client, differs between versions.
        assert!(record.contains("exited ") && record.ends_with(", warm)") != keys.is_empty(), "{record}");
    }
    for user in ["root", "alice"] {
        let mark = server.log.mark();
        let output = ssh(&server, at, "wrong", user, "echo in");
        assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("", Some(255)));
        assert!(text(&output.stderr).contains("Permission denied"), "{}", text(&output.stderr));
        let record = server.log.wait_after(mark, "the record", |line| line.contains("bytes in"));
        assert!(record.contains("exited 255 ") || record.contains("exited 5 "), "{record}");
    }
    eventually("nobody is left", || server.count("active") == 0);
}
