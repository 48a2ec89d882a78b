//! HAProxy, the one that Debian has.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::fence::{Fenced, Orders};
use super::{PATIENCE, eventually, write};

const HAPROXY: &str = "/usr/sbin/haproxy";

/// Where HAProxy calls from.
pub(crate) const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);

/// What it can be told to send before what the client says.
pub(crate) const V1: &str = "send-proxy";
pub(crate) const V2: &str = "send-proxy-v2";
pub(crate) const V2_FIELDS: &str = "send-proxy-v2-ssl-cn proxy-v2-options crc32c,unique-id,authority";

/// Whether HAProxy is there.
pub(crate) fn is_there(test: &str) -> bool {
    super::is_there(test, HAPROXY)
}

/// A HAProxy that runs until this is dropped.
pub(crate) struct Haproxy {
    /// Its lifeline is a pipe: HAProxy ends with the tests, however these end.
    fenced: Fenced,
    dir: tempfile::TempDir,
}

impl Haproxy {
    /// Starts it in TCP mode with these proxies, of which every server has these options, and waits until it serves.
    /// `DIR` stands for its directory.
    pub(crate) fn start(options: &str, proxies: &str) -> Self {
        Self::start_under(&[], options, proxies)
    }

    /// The same, started through this command.
    pub(crate) fn start_under(prefix: &[&str], options: &str, proxies: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("preforkd-haproxy-").tempdir().unwrap();
        let config = format!(
            "global\n log stdout format raw daemon notice\n stats socket DIR/stats level admin\n maxconn 1000\n\
             defaults\n log global\n mode tcp\n option log-health-checks\n balance roundrobin\n\
             retries 3\n option redispatch\n source {PROXY}\n unique-id-format %[uuid()]\n\
             timeout connect 5s\n timeout check 5s\n timeout client 1h\n timeout server 1h\n\
             default-server check inter 100ms {options}\n{proxies}"
        );
        let file = dir.path().join("haproxy.cfg");
        write(&file, &config.replace("DIR", dir.path().to_str().unwrap()));
        let command = [prefix, &[HAPROXY, "-db", "-f", file.to_str().unwrap()]].concat();
        let command = command.into_iter().map(str::to_owned).collect();
        let fenced = Fenced::start(&Orders { command, environment: BTreeMap::new(), listen: None });
        let new = Self { fenced, dir };
        eventually("HAProxy answers, or has ended", || {
            new.ask("show info").is_some() || new.fenced.has_ended()
        });
        assert!(!new.fenced.has_ended(), "HAProxy has ended: {:#?}", new.fenced.stderr.all());
        new
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it answers on its own socket.
    pub(crate) fn ask(&self, command: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.path("stats")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.write_all(format!("{command}\n").as_bytes()).ok()?;
        stream.read_to_string(&mut answer).ok()?;
        Some(answer).filter(|answer| !answer.is_empty())
    }

    /// A column of its statistics.
    pub(crate) fn stat(&self, proxy: &str, server: &str, column: &str) -> String {
        let table = self.ask("show stat").unwrap();
        let mut rows = table.trim_start_matches("# ").lines().map(|line| line.split(',').collect::<Vec<_>>());
        let index = rows.next().unwrap().iter().position(|name| *name == column).unwrap();
        let row = rows.find(|row| row.starts_with(&[proxy, server])).unwrap();
        row[index].to_owned()
    }

    pub(crate) fn wait_for(&self, state: &str, proxy: &str, server: &str) {
        eventually(&format!("{proxy}/{server} is {state}"), || self.stat(proxy, server, "status") == state);
    }

    /// How often it has found that this server is up again.
    pub(crate) fn ups(&self, proxy: &str, server: &str) -> usize {
        self.fenced.stdout.count(|line| line.starts_with(&format!("Server {proxy}/{server} is UP")))
    }

    /// The health checks that this server has failed. Those that came to nothing because HAProxy had no processor for so
    /// long are not counted: it gives a check no more time than there is between two of them.
    pub(crate) fn failed_checks(&self, server: &str) -> Vec<String> {
        let mut lines = self.fenced.stdout.all();
        let failed =
            |line: &String| line.contains(&format!("/{server} failed")) && !line.contains("Layer4 timeout");
        lines.retain(failed);
        lines
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- HAProxy:\n{}", self.fenced.stdout.all().join("\n"));
        }
    }
}

/// A proxy of HAProxy, and where its servers are.
pub(crate) fn proxy(name: &str, front: &str, servers: &[(char, SocketAddr)]) -> String {
    let servers: String =
        servers.iter().map(|(server, address)| format!(" server {server} {address}\n")).collect();
    format!("listen {name}\n bind {front}\n{servers}")
}
