//! The one list of keys. TOML, the flags of `serve` and the manual page come from it.

mod admission;
mod warm;

use super::supervisor::{self, LogDraft, SupervisorDraft};
use super::{ServiceDraft, sandbox};
use crate::config::checked::CgroupUse;
use crate::config::draft;
use crate::config::key::{Key, Kind, Part};
use crate::config::value::{choice, decode, duration, path, set};
use crate::journal::{Level, LogTarget};

/// The keys of `[supervisor]`.
pub(crate) static SUPERVISOR: &[Key<SupervisorDraft>] = &[
    Key {
        name: "control_socket",
        flag: Some("control"),
        kind: Kind::Text,
        placeholder: "PATH",
        default: Some(concat!("\"", control_socket!(), "\"")),
        example: "\"/run/preforkd/control.sock\"",
        doc: "The Unix socket on which preforkd is asked and told what to do, by its other commands",
        decode: Some(|draft, value| set(&mut draft.control_socket, supervisor::socket_path(value))),
    },
    Key {
        name: "control_access",
        flag: None,
        kind: Kind::Table,
        placeholder: "TABLE",
        default: None,
        example: "{ look = \"adm\", act = \"operators\" }",
        doc: "Who may use the control socket besides root and the user that preforkd runs as: its owner, user, and the group \
              act may do everything; the group look may see what goes on, by status, connections, bans, top and metrics",
        decode: Some(supervisor::control_access),
    },
    Key {
        name: "drain_timeout",
        flag: Some("drain-timeout"),
        kind: Kind::Text,
        placeholder: "DURATION",
        default: Some("\"30s\""),
        example: "\"30s\"",
        doc: "How long connections may go on after TERM before they are ended",
        decode: Some(|draft, value| set(&mut draft.drain_timeout, duration(value))),
    },
    Key {
        name: "strict_start",
        flag: None,
        kind: Kind::Boolean,
        placeholder: "BOOL",
        default: Some("false"),
        example: "true",
        doc: "Whether preforkd run starts only if every service can be served; else the others come up, and what is missing \
              is tried again",
        decode: Some(|draft, value| set(&mut draft.strict_start, decode(value))),
    },
    Key {
        name: "cgroup",
        flag: None,
        kind: Kind::Text,
        placeholder: "WHOSE",
        default: Some("\"auto\""),
        example: "\"own\"",
        doc: "Whether each connection gets a cgroup below the one in which preforkd is started: auto (if that was delegated to \
              it, as the drop-in cgroups.conf does), own (it is preforkd's, as in a container) or none",
        decode: Some(|draft, value| set(&mut draft.cgroup, choice(value, &CGROUP_USES))),
    },
];

/// The keys of `[log]`.
pub(crate) static LOG: &[Key<LogDraft>] = &[
    Key {
        name: "target",
        flag: Some("log-target"),
        kind: Kind::Text,
        placeholder: "TARGET",
        default: Some("\"auto\""),
        example: "\"auto\"",
        doc: "Where records go: auto (the journal if systemd connected stderr to it, else stderr), journal, stderr or \
              syslog",
        decode: Some(|draft, value| set(&mut draft.target, choice(value, &TARGETS))),
    },
    Key {
        name: "level",
        flag: Some("log-level"),
        kind: Kind::Text,
        placeholder: "LEVEL",
        default: Some("\"info\""),
        example: "\"info\"",
        doc: "The least important level that is written: error, warning, notice, info or debug",
        decode: Some(|draft, value| set(&mut draft.level, choice(value, &LEVELS))),
    },
];

const TARGETS: [(&str, LogTarget); 4] = [
    ("auto", LogTarget::Auto),
    ("journal", LogTarget::Journal),
    ("stderr", LogTarget::Stderr),
    ("syslog", LogTarget::Syslog),
];

const CGROUP_USES: [(&str, CgroupUse); 3] =
    [("auto", CgroupUse::Auto), ("own", CgroupUse::Own), ("none", CgroupUse::None)];

const LEVELS: [(&str, Level); 5] = [
    ("error", Level::Error),
    ("warning", Level::Warning),
    ("notice", Level::Notice),
    ("info", Level::Info),
    ("debug", Level::Debug),
];

/// The keys of `[service.NAME]`.
pub(crate) static SERVICE: &[Key<ServiceDraft>] = &[
    Key {
        name: "listen",
        flag: None,
        kind: Kind::List,
        placeholder: "ADDRESS",
        default: None,
        example: "\"127.0.0.1:7007\"",
        doc: "Where the service listens: IP:PORT, [IPV6]:PORT, [IPV6%ZONE]:PORT of an interface, *:PORT for every address of \
              this machine, unix:/PATH, unix:@NAME of the abstract namespace, fd:NAME for a socket that systemd passes, or with wait udp:IP:PORT",
        decode: Some(draft::listen),
    },
    Key {
        name: "handler",
        flag: None,
        kind: Kind::Text,
        placeholder: "HANDLER",
        default: None,
        example: "\"echo\"",
        doc: "A built-in service: echo, discard, chargen, daytime or time",
        decode: Some(draft::handler),
    },
    Key {
        name: "options",
        flag: Some("options"),
        kind: Kind::Options,
        placeholder: "NAME=VALUE",
        default: None,
        example: "{ greeting = \"hello\" }",
        doc: "What the handler of a program that uses preforkd as a library is told; the built-in services have no options",
        decode: Some(draft::options),
    },
    Key {
        name: "exec",
        flag: None,
        kind: Kind::List,
        placeholder: "PROGRAM",
        default: None,
        example: "[\"/usr/bin/rsync\", \"--daemon\"]",
        doc: "A program and its arguments; it has the connection on its stdin and stdout",
        decode: Some(draft::exec),
    },
    Key {
        name: "argv0",
        flag: Some("argv0"),
        kind: Kind::Text,
        placeholder: "NAME",
        default: None,
        example: "\"in.fingerd\"",
        doc: "The zeroth argument of the program, if it is not to be what exec names it",
        decode: Some(draft::argv0),
    },
    Key {
        name: "connection",
        flag: Some("connection"),
        kind: Kind::Text,
        placeholder: "HOW",
        default: Some("\"stdio\""),
        example: "\"listen-fds\"",
        doc: "How a program gets its connection: stdio (as its stdin and stdout) or listen-fds (as descriptor 3, with \
              LISTEN_FDS=1 and LISTEN_FDNAMES=connection)",
        decode: Some(draft::connection),
    },
    Key {
        name: "workers",
        flag: Some("workers"),
        kind: Kind::Number,
        placeholder: "N",
        default: None,
        example: "4",
        doc: "Worker processes that share the listener; without it, the number of CPUs this process may use",
        decode: Some(draft::workers),
    },
    Key {
        name: "spare",
        flag: Some("spare"),
        kind: Kind::Number,
        placeholder: "N",
        default: Some("0"),
        example: "8",
        doc: "Connection processes forked ahead of their connection, for the whole service",
        decode: Some(draft::spare),
    },
    warm::WARM,
    warm::WARM_MAX_AGE,
    warm::WARM_WATCH,
    Key {
        name: "max_connections",
        flag: Some("max-connections"),
        kind: Kind::Number,
        placeholder: "N",
        default: Some("1000"),
        example: "1000",
        doc: "Live connections of the service, over all its workers",
        decode: Some(draft::max_connections),
    },
    admission::OVERLOAD,
    Key {
        name: "connections_per_child",
        flag: Some("connections-per-child"),
        kind: Kind::Number,
        placeholder: "N",
        default: Some("1"),
        example: "1",
        doc: "Connections that a spare serves one after the other before it is renewed, 0 for as many as come; more than \
              1 gives up what a process per connection protects",
        decode: Some(draft::connections_per_child),
    },
    Key {
        name: "user",
        flag: Some("user"),
        kind: Kind::Text,
        placeholder: "USER",
        default: None,
        example: "\"nobody\"",
        doc: "The user that connection processes become, a name or a number; { range = \"FIRST-LAST\" }, as a flag \
              FIRST-LAST, gives each one of its own",
        decode: Some(draft::user),
    },
    Key {
        name: "group",
        flag: Some("group"),
        kind: Kind::Text,
        placeholder: "GROUP",
        default: None,
        example: "\"nogroup\"",
        doc: "The group that connection processes become; without it, the primary group of the user",
        decode: Some(draft::group),
    },
    Key {
        name: "chroot",
        flag: Some("chroot"),
        kind: Kind::Text,
        placeholder: "DIRECTORY",
        default: None,
        example: "\"/srv/jail\"",
        doc: "The root directory of connection processes; exec and working_directory are inside it",
        decode: Some(|draft, value| set(&mut draft.chroot, path(value))),
    },
    Key {
        name: "working_directory",
        flag: Some("working-directory"),
        kind: Kind::Text,
        placeholder: "DIRECTORY",
        default: None,
        example: "\"/srv/git\"",
        doc: "The working directory of connection processes; / without it",
        decode: Some(|draft, value| set(&mut draft.working_directory, path(value))),
    },
    Key {
        name: "umask",
        flag: Some("umask"),
        kind: Kind::Text,
        placeholder: "OCTAL",
        default: Some("\"022\""),
        example: "\"022\"",
        doc: "The file mode creation mask of connection processes, octal",
        decode: Some(draft::umask),
    },
    Key {
        name: "nice",
        flag: Some("nice"),
        kind: Kind::Number,
        placeholder: "N",
        default: None,
        example: "10",
        doc: "The nice value of connection processes, from -20 to 19",
        decode: Some(draft::nice),
    },
    Key {
        name: "environment",
        flag: Some("environment"),
        kind: Kind::Table,
        placeholder: "NAME=VALUE",
        default: None,
        example: "{ TZ = \"UTC\" }",
        doc: "What programs find in their environment besides PATH and the connection's own variables",
        decode: Some(draft::environment),
    },
    Key {
        name: "environment_file",
        flag: Some("environment-file"),
        kind: Kind::List,
        placeholder: "PATH",
        default: None,
        example: "[\"/etc/default/git\", \"-/etc/git.secret\"]",
        doc: "Files of lines NAME=value for the environment of programs, read by preforkd itself at its start and on reload; \
              one after a \"-\" need not exist, a later one wins, and environment wins over all",
        decode: Some(draft::environment_file),
    },
    Key {
        name: "credentials",
        flag: Some("credentials"),
        kind: Kind::List,
        placeholder: "NAME",
        default: None,
        example: "[\"db.password\"]",
        doc: "Secrets that systemd gives to preforkd (LoadCredential=) and that the programs of this service find as files of \
              these names in CREDENTIALS_DIRECTORY, which no other service's have",
        decode: Some(draft::credentials),
    },
    Key {
        name: "sandbox",
        flag: Some("sandbox"),
        kind: Kind::TableOrFalse,
        placeholder: "NAME=VALUE",
        default: None,
        example: "{ read = [\"/srv/git\"], execute = [\"/usr\"], network = \"none\" }",
        doc: "What a connection process may not do, even if somebody has taken it over, see SANDBOX; false for nothing of it",
        decode: Some(|draft, value| sandbox::sandbox(&mut draft.sandbox, value)),
    },
    Key {
        name: "limits",
        flag: Some("limits"),
        kind: Kind::Table,
        placeholder: "NAME=VALUE",
        default: None,
        example: "{ nofile = 64, as = \"256M\", cpu = \"10s\" }",
        doc: "Resource limits of connection processes, by the names of setrlimit(2); and memory, tasks and cpu_weight of a \
              connection process and all that comes of it, see LIMITS OF A CONNECTION",
        decode: Some(draft::limits),
    },
    Key {
        name: "stderr",
        flag: Some("stderr"),
        kind: Kind::Text,
        placeholder: "WHERE",
        default: Some("\"log\""),
        example: "\"log\"",
        doc: "Where programs' stderr goes: log (a record for each line), inherit (preforkd's own), null or \
              connection (the client, as with inetd)",
        decode: Some(draft::stderr),
    },
    Key {
        name: "log",
        flag: Some("log"),
        kind: Kind::Text,
        placeholder: "WHICH",
        default: Some("\"all\""),
        example: "\"failures\"",
        doc: "Which connections get a record in the log: all, failures (those that did not end with exit status 0) or none",
        decode: Some(draft::log),
    },
    Key {
        name: "backlog",
        flag: Some("backlog"),
        kind: Kind::Number,
        placeholder: "N",
        default: Some("4096"),
        example: "4096",
        doc: "Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn",
        decode: Some(draft::backlog),
    },
    Key {
        name: "nodelay",
        flag: Some("nodelay"),
        kind: Kind::Boolean,
        placeholder: "BOOL",
        default: Some("true"),
        example: "true",
        doc: "Whether small writes are sent at once (TCP_NODELAY)",
        decode: Some(draft::nodelay),
    },
    Key {
        name: "keepalive",
        flag: Some("keepalive"),
        kind: Kind::Boolean,
        placeholder: "BOOL",
        default: Some("false"),
        example: "true",
        doc: "Whether idle connections are probed (SO_KEEPALIVE), or how, as in { idle = \"60s\", interval = \"10s\", \
              count = 5 }",
        decode: Some(draft::keepalive),
    },
    Key {
        name: "defer_accept",
        flag: Some("defer-accept"),
        kind: Kind::Text,
        placeholder: "DURATION",
        default: None,
        example: "\"10s\"",
        doc: "Connections are accepted when their first byte has come, or about this time later (TCP_DEFER_ACCEPT)",
        decode: Some(draft::defer_accept),
    },
    Key {
        name: "interface",
        flag: Some("interface"),
        kind: Kind::Text,
        placeholder: "NAME",
        default: None,
        example: "\"eth0\"",
        doc: "The only network interface by which connections may come (SO_BINDTODEVICE)",
        decode: Some(draft::interface),
    },
    Key {
        name: "freebind",
        flag: Some("freebind"),
        kind: Kind::Boolean,
        placeholder: "BOOL",
        default: Some("false"),
        example: "true",
        doc: "Whether addresses may be listened at that this machine does not have yet (IP_FREEBIND)",
        decode: Some(|draft, value| set(&mut draft.freebind, decode(value))),
    },
    Key {
        name: "transparent",
        flag: Some("transparent"),
        kind: Kind::Boolean,
        placeholder: "BOOL",
        default: Some("false"),
        example: "true",
        doc: "Whether connections to addresses of others are taken that a router diverts here (IP_TRANSPARENT); needs \
              CAP_NET_ADMIN",
        decode: Some(|draft, value| set(&mut draft.transparent, decode(value))),
    },
    Key {
        name: "tos",
        flag: Some("tos"),
        kind: Kind::Text,
        placeholder: "TOS",
        default: None,
        example: "\"low-delay\"",
        doc: "The type of service of what is sent: low-delay, throughput, reliability, low-cost, or a number from 0 to 255",
        decode: Some(draft::tos),
    },
    Key {
        name: "mark",
        flag: Some("mark"),
        kind: Kind::Number,
        placeholder: "N",
        default: None,
        example: "7",
        doc: "The mark of what is sent, for rules of routing and firewall (SO_MARK); needs CAP_NET_ADMIN",
        decode: Some(draft::mark),
    },
    Key {
        name: "socket_user",
        flag: Some("socket-user"),
        kind: Kind::Text,
        placeholder: "USER",
        default: None,
        example: "\"alice\"",
        doc: "The owner of the files of Unix sockets, a name or a number; without it, the user of preforkd",
        decode: Some(draft::socket_user),
    },
    Key {
        name: "socket_group",
        flag: Some("socket-group"),
        kind: Kind::Text,
        placeholder: "GROUP",
        default: None,
        example: "\"www-data\"",
        doc: "The group of the files of Unix sockets, a name or a number; without it, the group of preforkd",
        decode: Some(draft::socket_group),
    },
    Key {
        name: "socket_mode",
        flag: Some("socket-mode"),
        kind: Kind::Text,
        placeholder: "OCTAL",
        default: Some("\"0600\""),
        example: "\"0660\"",
        doc: "Who may connect to the files of Unix sockets, octal: whoever may write to them",
        decode: Some(draft::socket_mode),
    },
    Key {
        name: "pass_rights",
        flag: Some("pass-rights"),
        kind: Kind::Boolean,
        placeholder: "BOOL",
        default: None,
        example: "true",
        doc: "Whether clients of Unix sockets may send descriptors to the program (SCM_RIGHTS), as systemd's PassRights= says; without it \
              they may only with wait, since Linux 6.16",
        decode: Some(|draft, value| set(&mut draft.pass_rights, decode(value))),
    },
    Key {
        name: "wait",
        flag: Some("wait"),
        kind: Kind::Boolean,
        placeholder: "BOOL",
        default: Some("false"),
        example: "true",
        doc: "Whether one program gets the listening socket itself, as inetd's wait has it: it is started when somebody calls, \
              accepts or reads by itself, and is started again when it has ended and somebody calls; the only kind for udp:",
        decode: Some(draft::wait),
    },
    Key {
        name: "kill_mode",
        flag: Some("kill-mode"),
        kind: Kind::Text,
        placeholder: "WHAT",
        default: Some("\"group\""),
        example: "\"process\"",
        doc: "What becomes of processes that a program leaves behind when it ends: group kills its process group, \
              or all that is in its cgroup if it has one, process leaves them without the client until the service ends",
        decode: Some(draft::kill_mode),
    },
    Key {
        name: "kill_grace",
        flag: Some("kill-grace"),
        kind: Kind::Text,
        placeholder: "DURATION",
        default: Some("\"0s\""),
        example: "\"10s\"",
        doc: "How long what is left of the process group or cgroup may take to end, after TERM, until it gets KILL",
        decode: Some(|draft, value| set(&mut draft.kill_grace, duration(value))),
    },
    Key {
        name: "count_bytes",
        flag: Some("count-bytes"),
        kind: Kind::Boolean,
        placeholder: "BOOL",
        default: Some("true"),
        example: "false",
        doc: "Whether records of programs say how many bytes went in and out; if so, a connection ends with its program, \
              and not before if that closes it",
        decode: Some(draft::count_bytes),
    },
    admission::REFUSE_MESSAGE,
    admission::ALLOW,
    admission::DENY,
    admission::MAX_CONNECTIONS_PER_SOURCE,
    admission::RATE_PER_SOURCE,
    admission::SOURCE_PREFIX_V4,
    admission::SOURCE_PREFIX_V6,
    admission::PENALTIES,
    admission::PENALTY_THRESHOLD,
    admission::PENALTY_LIMIT,
    admission::PENALTY_EXEMPT,
    admission::FIRST_BYTE_TIMEOUT,
    admission::IDLE_TIMEOUT,
    admission::MAX_LIFETIME,
    admission::PROXY_PROTOCOL_FROM,
];

/// One flag of `serve`, without the functions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    /// Without its dashes.
    pub(crate) name: &'static str,
    /// Of which section it is a key.
    pub(crate) part: Part,
    /// The key in TOML.
    pub(crate) key: &'static str,
    /// How its text becomes a value.
    pub(crate) kind: Kind,
    /// For usage texts.
    pub(crate) placeholder: &'static str,
    /// What holds without it, in TOML.
    pub(crate) default: Option<&'static str>,
    /// For help texts.
    pub(crate) doc: &'static str,
}

/// Every flag of `serve` that is a key.
pub(crate) fn flags() -> impl Iterator<Item = Flag> {
    let service = SERVICE.iter().filter_map(|key| key.as_flag(Part::Service));
    let supervisor = SUPERVISOR.iter().filter_map(|key| key.as_flag(Part::Supervisor));
    service.chain(supervisor).chain(LOG.iter().filter_map(|key| key.as_flag(Part::Log)))
}

impl<D> Key<D> {
    fn as_flag(&self, part: Part) -> Option<Flag> {
        let Key { name: key, kind, placeholder, default, doc, .. } = *self;
        let flag = self.flag.filter(|_| self.decode.is_some());
        flag.map(|name| Flag { name, part, key, kind, placeholder, default, doc })
    }
}
