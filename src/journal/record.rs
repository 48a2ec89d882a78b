//! What a record says: one text for people, and fields for programs, the same in every form of the log.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::escape::Escaper;
use super::{Buffer, Level, MessageId};
use crate::admission::Deadline;
use crate::client::{Client, ConnectionId, Zoned};
use crate::sys::cgroup::TreeUsage;
use crate::sys::socket::Peer;
use crate::sys::time::Monotonic;
use crate::sys::wait::{Ended, Ending, Pid};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remote {
    /// A client of a TCP service.
    Ip(SocketAddr),
    /// A client of a Unix socket: who it was when it connected, by `SO_PEERCRED`.
    Unix {
        /// Its process.
        pid: Pid,
        /// Its user.
        uid: u32,
    },
    /// It was gone before anybody could ask.
    Unknown,
    /// Whoever calls: its program has the listener.
    Everybody,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Remote::Ip(SocketAddr::V6(address)) if address.ip().to_ipv4_mapped().is_some() => {
                write!(f, "{}:{}", address.ip().to_canonical(), address.port())
            }
            Remote::Ip(SocketAddr::V6(address)) if address.scope_id() != 0 => {
                write!(f, "[{}]:{}", Zoned(address.into()), address.port())
            }
            Remote::Ip(address) => address.fmt(f),
            Remote::Unix { pid, uid } => write!(f, "uid {uid} (pid {pid})"),
            Remote::Unknown => f.write_str("unknown"),
            Remote::Everybody => f.write_str("whoever calls"),
        }
    }
}

impl From<Peer> for Remote {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Ip(address) => Remote::Ip(address),
            Peer::Unix(Some(peer)) => Remote::Unix { pid: peer.pid, uid: peer.uid },
            Peer::Unix(None) => Remote::Unknown,
        }
    }
}

impl From<&Client> for Remote {
    fn from(client: &Client) -> Self {
        if client.is_listener() { Remote::Everybody } else { client.peer.into() }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit<'a> {
    /// Its process ended so.
    Ended(Ending),
    /// Its handler has panicked, which ended this process alone.
    Panicked,
    /// A deadline has ended it, whatever its process made of that.
    TimedOut(Deadline),
    /// Somebody has asked for it to be ended, whatever its process made of that.
    Killed,
    /// It never had a process; the reason, such as "fork: Resource temporarily unavailable".
    NotStarted(&'a str),
    /// Its worker died before it, so nobody who could say is left.
    Lost,
}

impl Exit<'_> {
    /// Whether that is a fault of the program.
    pub(crate) fn is_crash(&self) -> bool {
        match self {
            Exit::Ended(ending) => ending.is_crash(),
            Exit::Panicked => true,
            Exit::TimedOut(_) | Exit::Killed | Exit::NotStarted(_) | Exit::Lost => false,
        }
    }
}

impl fmt::Display for Exit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Ended(ending) => ending.fmt(f),
            Exit::Panicked => f.write_str("panicked"),
            Exit::TimedOut(deadline) => write!(f, "timeout {deadline}"),
            Exit::Killed => f.write_str("ended by kill"),
            Exit::NotStarted(_) => f.write_str("not started"),
            Exit::Lost => f.write_str("lost"),
        }
    }
}

/// A connection that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionRecord<'a> {
    /// The service it came to.
    pub(crate) service: &'a str,
    /// Its name.
    pub(crate) id: ConnectionId,
    /// Its process, 0 if there was none.
    pub(crate) pid: Pid,
    /// Who called.
    pub(crate) remote: Remote,
    /// From accept to the end.
    pub(crate) duration: Duration,
    /// How it ended.
    pub(crate) exit: Exit<'a>,
    /// Bytes from and to the client, if somebody counted.
    pub(crate) bytes: Option<(u64, u64)>,
    /// User and system time of its process and those that it waited for.
    pub(crate) cpu: Duration,
    /// The largest resident set of its process, in KiB.
    pub(crate) max_rss_kib: u64,
    /// What was used in its cgroup, if it had one: by its process and all that came of it.
    pub(crate) usage: Option<TreeUsage>,
    /// Its program had been started before it was there.
    pub(crate) warm: bool,
}

impl<'a> ConnectionRecord<'a> {
    /// The record of a connection that has ended just now.
    pub(crate) fn new(
        service: &'a str,
        id: ConnectionId,
        client: &Client,
        ended: &Ended,
        exit: Exit<'a>,
    ) -> Self {
        ConnectionRecord {
            service,
            id,
            pid: ended.pid,
            remote: Remote::from(client),
            duration: Monotonic::now() - client.accepted,
            exit,
            bytes: None,
            cpu: ended.cpu,
            max_rss_kib: ended.max_rss_kib,
            usage: None,
            warm: false,
        }
    }

    /// User and system time of all that is known of.
    pub(crate) fn cpu(&self) -> Duration {
        self.usage.map_or(self.cpu, |usage| usage.cpu)
    }

    /// What is to be said about how it ended beside that.
    fn why(&self) -> &'static str {
        match (self.exit, self.usage) {
            (Exit::Ended(_), Some(TreeUsage { ran_out_of_memory: true, .. })) => " (memory limit)",
            _ => "",
        }
    }

    pub(super) fn level(&self) -> Level {
        match self.message_id() {
            MessageId::ConnectionEnded => Level::Info,
            _ => Level::Warning,
        }
    }

    pub(super) fn message_id(&self) -> MessageId {
        match self.exit {
            Exit::NotStarted(_) => MessageId::ConnectionNotStarted,
            exit if exit.is_crash() => MessageId::ConnectionCrashed,
            _ => MessageId::ConnectionEnded,
        }
    }
}

impl fmt::Display for ConnectionRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remote {
            Remote::Everybody => write!(f, "program {} for {}: ", self.id, self.remote)?,
            remote => write!(f, "connection {} from {remote}: ", self.id)?,
        }
        if let Exit::NotStarted(reason) = self.exit {
            return write!(f, "not started: {reason}");
        }
        let (seconds, millis) = (self.duration.as_secs(), self.duration.subsec_millis());
        write!(f, "{}{} after {seconds}.{millis:03}s (pid {}", self.exit, self.why(), self.pid)?;
        if let Exit::Ended(_) | Exit::Panicked | Exit::TimedOut(_) | Exit::Killed = self.exit {
            write!(f, ", cpu {} ms, {} KiB", self.cpu().as_millis(), self.max_rss_kib)?;
            if let Some(peak) = self.usage.and_then(|usage| usage.peak_memory) {
                write!(f, ", {} KiB in all", peak >> 10)?;
            }
            if let Some((read, written)) = self.usage.and_then(|usage| usage.io) {
                write!(f, ", {} KiB from disk, {} to it", read >> 10, written >> 10)?;
            }
        }
        if let Some((received, sent)) = self.bytes {
            write!(f, ", {received} bytes in, {sent} out")?;
        }
        if self.warm {
            f.write_str(", warm")?;
        }
        f.write_str(")")?;
        match self.exit {
            Exit::Ended(ending) if ending.is_forbidden_call() => {
                f.write_str(": a system call that its sandbox forbids, see system_calls in preforkd.toml(5)")
            }
            _ => Ok(()),
        }
    }
}

/// A line that a program wrote to stderr.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutputLine<'a> {
    /// The service of its connection.
    pub(crate) service: &'a str,
    /// Its connection.
    pub(crate) id: ConnectionId,
    /// The connection process; who of its descendants wrote the line cannot be told.
    pub(crate) pid: Pid,
    /// What it wrote, with or without the newline; or that so many lines are not in the log.
    pub(crate) text: Result<&'a [u8], LeftOut>,
}

/// Lines that are not in the log, because a connection has so many in a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeftOut {
    pub(crate) lines: u64,
    pub(crate) allowed: u32,
    pub(crate) per: Duration,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LeftOut { lines, allowed, per } = self;
        let noun = if *lines == 1 { "line" } else { "lines" };
        write!(f, "{lines} {noun} of its stderr left out; a connection has {allowed} in {} s", per.as_secs())
    }
}

/// Whatever is written to the log.
pub(super) enum Body<'a> {
    Event(fmt::Arguments<'a>),
    Connection(&'a ConnectionRecord<'a>),
    Output(&'a OutputLine<'a>),
}

/// One record, not yet in any form.
pub(super) struct Entry<'a> {
    pub(super) level: Level,
    pub(super) id: Option<MessageId>,
    pub(super) service: Option<&'a str>,
    pub(super) body: Body<'a>,
}

impl Entry<'_> {
    /// Appends the text for people. An event may have several lines, which `newline` joins; remote text never has.
    pub(super) fn message(&self, out: &mut Buffer, newline: Option<&str>) {
        use fmt::Write as _;
        let newline = newline.filter(|_| matches!(self.body, Body::Event(_)));
        let mut text = Escaper::new(out, newline);
        if let Some(service) = self.service {
            let _ = write!(text, "{service}: ");
        }
        match &self.body {
            Body::Event(event) => drop(text.write_fmt(*event)),
            Body::Connection(connection) => drop(write!(text, "{connection}")),
            Body::Output(OutputLine { id, text: Ok(line), .. }) => {
                let _ = write!(text, "connection {id}: stderr: ");
                text.bytes(line.trim_ascii_end());
            }
            Body::Output(OutputLine { id, text: Err(left_out), .. }) => {
                let _ = write!(text, "connection {id}: {left_out}");
            }
        }
        text.finish();
    }

    /// SpareEvents `field` with the name and value of everything that interface.md promises beside the message.
    pub(super) fn fields(&self, field: &mut dyn FnMut(&'static str, fmt::Arguments<'_>)) {
        if let Some(service) = self.service {
            field("PREFORKD_SERVICE", format_args!("{service}"));
        }
        match &self.body {
            Body::Event(_) => {}
            Body::Connection(connection) => connection_fields(connection, field),
            Body::Output(line) => {
                field("PREFORKD_CONNECTION", format_args!("{}", line.id));
                field("PREFORKD_CHILD_PID", format_args!("{}", line.pid));
            }
        }
    }
}

fn connection_fields(record: &ConnectionRecord<'_>, field: &mut dyn FnMut(&'static str, fmt::Arguments<'_>)) {
    field("PREFORKD_CONNECTION", format_args!("{}", record.id));
    match record.remote {
        Remote::Ip(address) => {
            field("REMOTE_ADDR", format_args!("{}", Zoned(address)));
            field("REMOTE_PORT", format_args!("{}", address.port()));
        }
        Remote::Unix { pid, uid } => {
            field("PREFORKD_REMOTE_PID", format_args!("{pid}"));
            field("PREFORKD_REMOTE_UID", format_args!("{uid}"));
        }
        Remote::Unknown | Remote::Everybody => {}
    }
    field("PREFORKD_DURATION_USEC", format_args!("{}", record.duration.as_micros()));
    field("PREFORKD_EXIT", format_args!("{}{}", record.exit, record.why()));
    if record.pid > 0 {
        field("PREFORKD_CHILD_PID", format_args!("{}", record.pid));
    }
    if let Some((received, sent)) = record.bytes {
        field("PREFORKD_BYTES_IN", format_args!("{received}"));
        field("PREFORKD_BYTES_OUT", format_args!("{sent}"));
    }
    if record.warm {
        field("PREFORKD_WARM", format_args!("1"));
    }
    if let Exit::Ended(_) | Exit::Panicked | Exit::TimedOut(_) | Exit::Killed = record.exit {
        field("PREFORKD_CPU_USEC", format_args!("{}", record.cpu().as_micros()));
        field("PREFORKD_MAXRSS_KB", format_args!("{}", record.max_rss_kib));
        if let Some(peak) = record.usage.and_then(|usage| usage.peak_memory) {
            field("PREFORKD_MEMORY_PEAK", format_args!("{peak}"));
        }
        if let Some((read, written)) = record.usage.and_then(|usage| usage.io) {
            field("PREFORKD_IO_READ", format_args!("{read}"));
            field("PREFORKD_IO_WRITTEN", format_args!("{written}"));
        }
    }
}

/// As a record has it.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Remote::from(*self).fmt(f)
    }
}
