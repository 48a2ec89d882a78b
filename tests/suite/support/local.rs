//! Clients of Unix sockets that are somebody else, or that are bound to something themselves.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use super::{PATIENCE, run, text};

/// Connects, sends its last argument, says that there is no more, and prints all of the answer. Every Debian has perl.
const CLIENT: &str = "use IO::Socket::UNIX; my ($peer, $local, $say) = @ARGV; s/^@/\\0/ for ($peer, $local); \
     my @local = $local eq '' ? () : (Local => $local); \
     my $socket = IO::Socket::UNIX->new(Peer => $peer, @local) or die \"connect: $!\\n\"; \
     $socket->autoflush; print $socket $say; $socket->shutdown(1); $| = 1; print while <$socket>";

/// The ids of a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: &'a [u32],
}

/// A user whose groups nobody else has.
pub(crate) fn user(number: u32) -> Who<'static> {
    let id = super::user(number);
    Who { uid: id, gid: id, groups: &[] }
}

impl Who<'_> {
    /// The command that becomes this user.
    fn command(self) -> Vec<String> {
        let groups: Vec<_> = self.groups.iter().map(ToString::to_string).collect();
        let groups = match groups.is_empty() {
            true => "--clear-groups".to_owned(),
            false => format!("--groups={}", groups.join(",")),
        };
        let words = ["setpriv", "--reuid", &self.uid.to_string(), "--regid", &self.gid.to_string(), &groups];
        words.map(str::to_owned).to_vec()
    }

    /// Runs a command as this user.
    pub(crate) fn run(self, command: &[&str]) -> Output {
        let prefix = self.command();
        let command: Vec<_> = prefix.iter().map(String::as_str).chain(command.iter().copied()).collect();
        run(&command)
    }

    /// Connects so often to `peer` and sends this with a NUL each time; stays, and reads nothing, until it is dropped.
    pub(crate) fn besiege(self, peer: &str, times: usize, call: &str) -> Held {
        let script = "use IO::Socket::UNIX; my ($peer, $times, $call) = @ARGV; $SIG{PIPE} = 'IGNORE'; my @all; \
             for (1..$times) { my $s = IO::Socket::UNIX->new(Peer => $peer) or next; $s->autoflush; print $s \"$call\\0\"; \
             push @all, $s } print STDOUT \"x\\n\"; close STDOUT; <STDIN>";
        self.stay(script, &[peer, &times.to_string(), call])
    }

    /// What the service at `peer` answers him: a path, or an abstract name after its `@`; or why he cannot connect.
    pub(crate) fn ask(self, peer: &str, say: &str) -> Result<String, String> {
        let command = self.command();
        let command: Vec<_> = command.iter().map(String::as_str).chain(client(peer, "", say)).collect();
        answer(&run(&command))
    }

    /// A connection of his that stays, as long as it is not dropped.
    pub(crate) fn hold(self, peer: &str) -> Held {
        let script = "use IO::Socket::UNIX; my ($peer) = @ARGV; $peer =~ s/^@/\\0/; \
             my $socket = IO::Socket::UNIX->new(Peer => $peer) or die; $socket->autoflush; print $socket \"x\\n\"; \
             print STDOUT scalar <$socket>; close STDOUT; <STDIN>";
        self.stay(script, &[peer])
    }

    fn stay(self, script: &str, arguments: &[&str]) -> Held {
        let command = [self.command(), vec!["perl".to_owned(), "-e".to_owned()]].concat();
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
        Held { child, served: said == "x\n" }
    }
}

/// A client that has a connection.
pub(crate) struct Held {
    child: Child,
    /// Whether it was echoed what it said.
    pub(crate) served: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// What a client of ours is answered that is bound to `local`.
pub(crate) fn ask_from(local: &str, peer: &str, say: &str) -> Result<String, String> {
    let command: Vec<_> = client(peer, local, say).collect();
    answer(&run(&command))
}

/// What a client of ours is answered.
pub(crate) fn ask(peer: &str, say: &str) -> Result<String, String> {
    ask_from("", peer, say)
}

fn client<'a>(peer: &'a str, local: &'a str, say: &'a str) -> impl Iterator<Item = &'a str> {
    ["perl", "-e", CLIENT, peer, local, say].into_iter()
}

fn answer(output: &Output) -> Result<String, String> {
    assert_ne!(output.status.code(), Some(124), "not within {PATIENCE:?}");
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Owner, group and mode of a file.
pub(crate) fn access(path: &Path) -> (u32, u32, u32) {
    let file = std::fs::symlink_metadata(path).unwrap();
    (file.uid(), file.gid(), file.permissions().mode() & 0o7777)
}
