//! The examples of config/examples, as they are but for their addresses, serve in the sandboxes that they recommend.

use std::net::SocketAddr;

use crate::support::client::exchange;
use crate::support::{Preforkd, Running, address, root, run, sure, text};

/// The example, at an address of its own, with a /srv of its own that this script fills. In the sandbox of the example nothing
/// of it can be changed but what the example says.
fn serve(example: &str, listen: &str, script: &str) -> (Running, SocketAddr) {
    let at = address::fresh();
    let path = format!("{}/config/examples/{example}.toml", env!("CARGO_MANIFEST_DIR"));
    let example = std::fs::read_to_string(path).unwrap();
    assert_eq!(example.matches(listen).count(), 1, "{listen}");
    let config = example.replace(listen, &format!("listen = \"{at}\""));
    let mounts = format!("mount -t tmpfs srv /srv; chmod 755 /srv; cd /srv; umask 022; {script}; cd /");
    (Preforkd::run(&config).after_mounts(&mounts).start(), at)
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
