//! `preforkd metrics`, served.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::fence::{Fenced, Orders};
use super::{BINARY, Running, client, eventually, text};

/// One that runs until this is dropped.
pub(crate) struct Exporter {
    fenced: Fenced,
    /// Where it answers HTTP.
    pub(crate) address: SocketAddr,
}

/// What is answered over HTTP.
pub(crate) struct HttpReply {
    pub(crate) status: u16,
    /// With the names in lower case.
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Exporter {
    /// Of this preforkd, with these further arguments.
    pub(crate) fn of(server: &Running, arguments: &[&str]) -> Self {
        Self::under(&[], server, super::address::fresh(), arguments)
    }

    /// The same, started through this command, at this address.
    pub(crate) fn under(prefix: &[&str], server: &Running, address: SocketAddr, arguments: &[&str]) -> Self {
        let own = address.to_string();
        let command =
            [prefix, &[BINARY, "metrics", "--control", server.control()], arguments, &[&own]].concat();
        let command = command.into_iter().map(str::to_owned).collect();
        let fenced = Fenced::start(&Orders { command, environment: BTreeMap::new(), listen: None });
        let serves = format!("listening on {address}");
        eventually("the exporter serves, or has ended", || {
            fenced.stdout.count(|line| line == serves) > 0 || fenced.has_ended()
        });
        assert!(!fenced.has_ended(), "it has ended: {:#?}", fenced.stderr.all());
        Self { fenced, address }
    }

    /// Asks for a path.
    pub(crate) fn get(&self, path: &str) -> HttpReply {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    /// Sends this, and hears what is answered.
    pub(crate) fn ask(&self, request: &str) -> HttpReply {
        HttpReply::read(&text(&client::exchange(self.address, request.as_bytes())))
    }

    /// Its supervisor.
    pub(crate) fn pid(&self) -> i32 {
        self.fenced.pid()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the exporter:\n{}", self.fenced.stderr.all().join("\n"));
        }
    }
}

impl HttpReply {
    fn read(reply: &str) -> Self {
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {reply:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let field = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Self { status, fields: lines.map(field).collect(), body: body.to_owned() }
    }
}

/// The value of a sample in a text, by all that stands before it.
pub(crate) fn sample(page: &str, name: &str) -> Option<f64> {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map(|value| value.parse().unwrap())
}
