//! What the keys of a service mean for the kinds of its listeners: who may use the files of its Unix sockets, and which
//! keys could not do there what they say.

use std::ops::Range;

use toml::Spanned;

use crate::config::address::Address;
use crate::config::checked::passed::{Demand, Need, PassedDemands, SocketKind};
use crate::config::checked::{Account, Job, SocketAccess};
use crate::config::document::Section;
use crate::config::draft::{CallerDraft, PolicyDraft, ServiceDraft};
use crate::config::machine::Machine;
use crate::config::machine::named::{find_group, find_user};
use crate::config::value::{Fault, Faults, id, one_or_more};

/// The kinds of listeners that a service has.
#[derive(Debug, Clone, Copy, Default)]
struct Kinds {
    tcp: bool,
    udp: bool,
    /// Unix sockets that have a file.
    file: bool,
    /// Unix sockets with an abstract name.
    name: bool,
    /// Of what systemd passes nobody knows yet what it is.
    passed: bool,
}

impl Kinds {
    /// `None` if not all of them are known: faults have been reported.
    fn of(section: &Section<'_>, draft: &ServiceDraft) -> Option<Self> {
        let written = section.table.get("listen").map_or(0, |listen| one_or_more(listen).len());
        if section.partial || draft.listen.is_empty() || draft.listen.len() != written {
            return None;
        }
        let mut kinds = Kinds::default();
        for address in &draft.listen {
            let kind = match address.get_ref() {
                Address::Tcp(_) | Address::Scoped(..) | Address::Any(_) => &mut kinds.tcp,
                Address::Udp(_) => &mut kinds.udp,
                Address::Unix(_) => &mut kinds.file,
                Address::Abstract(_) => &mut kinds.name,
                Address::Activated(_) => &mut kinds.passed,
            };
            *kind = true;
        }
        Some(kinds)
    }

    fn has(self, kind: SocketKind) -> bool {
        match kind {
            SocketKind::Tcp => self.tcp,
            SocketKind::Datagram => self.udp,
            SocketKind::Unix => self.file || self.name,
        }
    }

    /// Whether it is certain that it is not met.
    fn fails(self, need: Need) -> bool {
        match need {
            Need::One(kind) => !self.has(kind) && !self.passed,
            Need::Internet => !self.tcp && !self.udp && !self.passed,
            Need::None(kind) => self.has(kind),
        }
    }

    /// Why there is no file of a Unix socket that `key` could be about, and what to do; `None` if there is.
    fn without_file(self, key: &str) -> Option<(&'static str, String)> {
        let remove = |what: &str| format!("remove {key}, or {what}");
        match self {
            Kinds { file: true, .. } => None,
            Kinds { passed: true, tcp: false, udp: false, name: false, .. } => Some((
                "systemd makes the file of a socket that it passes",
                format!("remove {key}, and write {} into the .socket unit", in_unit(key)),
            )),
            Kinds { name: true, tcp: false, udp: false, .. } => Some((
                "an abstract name is no file, and whoever is on this machine may connect",
                remove("say with allow who may, or listen at a path, as in \"unix:/run/x.sock\""),
            )),
            _ => Some((
                "the service has no Unix socket with a file",
                remove("add one, as in \"unix:/run/x.sock\""),
            )),
        }
    }
}

/// What systemd.socket(5) calls it.
fn in_unit(key: &str) -> &'static str {
    match key {
        "socket_user" => "SocketUser=",
        "socket_group" => "SocketGroup=",
        _ => "SocketMode=",
    }
}

/// What the keys that are written ask of sockets, each with its place.
struct Asked<'a> {
    section: &'a Section<'a>,
    demands: Vec<(Range<usize>, Demand)>,
}

impl Asked<'_> {
    fn ask(&mut self, key: &str, need: Need, why: &str, help: &str) {
        if let Some(span) = self.section.span(key) {
            self.ask_at(span, key, need, why, help);
        }
    }

    fn ask_at(&mut self, span: Range<usize>, key: &str, need: Need, why: &str, help: &str) {
        let [key, why, help] = [key, why, help].map(str::to_owned);
        self.demands.push((span, Demand { key, need, why, help }));
    }
}

const NO_TCP: &str = "it can do nothing without a listener over TCP";
const NO_UNIX: &str = "it can do nothing without a listener at a Unix socket";

/// Keys that are options of TCP, and of the internet.
const OF_TCP: [&str; 3] = ["nodelay", "keepalive", "defer_accept"];
const OF_INTERNET: [&str; 5] = ["interface", "freebind", "transparent", "tos", "mark"];

/// Keys that say something about a program.
const ABOUT_PROGRAMS: [&str; 7] = [
    "environment",
    "environment_file",
    "credentials",
    "connection",
    "kill_mode",
    "kill_grace",
    "count_bytes",
];

/// What the keys ask of sockets that are not known yet; or which could not do what they say at those that are.
pub(super) fn demands(
    section: &Section<'_>,
    draft: &ServiceDraft,
    job: Option<&Job>,
) -> Result<PassedDemands, Faults> {
    let Some(kinds) = Kinds::of(section, draft) else { return Ok(PassedDemands::default()) };
    let mut asked = Asked { section, demands: Vec::new() };
    for key in OF_TCP {
        asked.ask(key, Need::One(SocketKind::Tcp), NO_TCP, &format!("remove {key}"));
    }
    for key in OF_INTERNET {
        asked.ask(key, Need::Internet, NO_TCP, &format!("remove {key}"));
    }
    asked.ask("pass_rights", Need::One(SocketKind::Unix), NO_UNIX, "remove pass_rights");
    if section.span("exec").is_some() && !draft.wait {
        for key in ["first_byte_timeout", "idle_timeout"] {
            let why = "it cannot work for a program at a Unix socket, where the kernel counts no bytes";
            asked.ask(
                key,
                Need::None(SocketKind::Unix),
                why,
                "remove it, and think of max_lifetime, which works there, too; or serve the Unix socket as a service of \
                 its own",
            );
        }
        let help = "remove count_bytes: the kernel counts no bytes of a Unix socket";
        asked.ask("count_bytes", Need::One(SocketKind::Tcp), NO_TCP, help);
    }
    if !draft.wait {
        of_admission(&draft.admission, &mut asked);
    }

    let mut faults = Faults::new();
    for key in ["socket_user", "socket_group", "socket_mode"] {
        let written = section.span(key).zip(kinds.without_file(key));
        faults.extend(
            written.map(|(span, (why, help))| {
                Fault::new(span, format!("{key} can do nothing: {why}")).help(help)
            }),
        );
    }
    if matches!(job, Some(Job::Handler(_))) {
        for key in ABOUT_PROGRAMS {
            faults.extend(section.span(key).map(|span| {
                Fault::new(span, format!("{key} can do nothing: it is about programs, and a handler is none"))
                    .help(format!("remove {key}, or run a program with exec"))
            }));
        }
    }
    let (certain, open): (Vec<_>, Vec<_>) =
        asked.demands.into_iter().partition(|(_, demand)| kinds.fails(demand.need));
    faults.extend(
        certain.into_iter().map(|(span, demand)| {
            Fault::new(span, format!("{}: {}", demand.key, demand.why)).help(demand.help)
        }),
    );
    if !faults.is_empty() {
        return Err(faults);
    }
    let open = open.into_iter().map(|(_, demand)| demand).filter(|_| kinds.passed);
    Ok(PassedDemands(open.collect()))
}

/// Who is named by address must come over TCP, or be named by a proxy; who is named as a user, through a Unix socket.
fn of_admission(policy: &PolicyDraft, asked: &mut Asked<'_>) {
    let is_unix = |proxy: &&Spanned<CallerDraft>| proxy.get_ref().is_local();
    let unix_proxy = policy.proxies.iter().find(is_unix);
    if let Some(proxy) = unix_proxy {
        let help = "remove \"unix:\", or add a Unix socket to listen";
        asked.ask_at(proxy.span(), "proxy_protocol_from", Need::One(SocketKind::Unix), NO_UNIX, help);
    }
    if let Some(proxy) = policy.proxies.iter().find(|proxy| !is_unix(proxy)) {
        let help = "write \"unix:\" for whoever may connect to a Unix socket, or listen over TCP";
        asked.ask_at(proxy.span(), "proxy_protocol_from", Need::One(SocketKind::Tcp), NO_TCP, help);
    }
    let lists =
        [("allow", &policy.allow), ("deny", &policy.deny), ("penalty_exempt", &policy.penalty_exempt)];
    for (key, list) in lists {
        let local = list.iter().find(|entry| entry.get_ref().is_local());
        let prefix = list.iter().find(|entry| !entry.get_ref().is_local());
        if let Some(local) = local {
            let why = "users and groups can do nothing without a listener at a Unix socket";
            let help = "write an address or a prefix, or add a Unix socket to listen";
            asked.ask_at(local.span(), key, Need::One(SocketKind::Unix), why, help);
            if unix_proxy.is_some() {
                let why = "users and groups can do nothing with proxy_protocol_from = \"unix:\", where clients are whom the \
                           proxy names, by address";
                let help = "write an address or a prefix; socket_mode and socket_group say who may connect";
                asked.ask_at(local.span(), key, Need::None(SocketKind::Unix), why, help);
            }
        }
        // Addresses come with the headers of proxies, too.
        if let Some(prefix) = prefix.filter(|_| unix_proxy.is_none()) {
            let why = "addresses can do nothing without a listener over TCP";
            let help = "write \"user:NAME\" or \"group:NAME\" for a client of a Unix socket, or remove it";
            asked.ask_at(prefix.span(), key, Need::One(SocketKind::Tcp), why, help);
        }
    }
    match (policy.allow.first(), policy.allow.iter().any(|entry| entry.get_ref().is_local())) {
        (Some(_), false) if unix_proxy.is_none() => {
            let why = "nobody could connect to the Unix socket, since it names only addresses";
            let help =
                "add \"user:NAME\" or \"group:NAME\", or serve the Unix socket as a service of its own";
            asked.ask("allow", Need::None(SocketKind::Unix), why, help);
        }
        (Some(_), true) if policy.allow.iter().all(|entry| entry.get_ref().is_local()) => {
            let why = "nobody could connect over TCP, since it names only users and groups";
            let help = "add the addresses that may connect, or serve the Unix socket as a service of its own";
            asked.ask("allow", Need::None(SocketKind::Tcp), why, help);
        }
        _ => {}
    }
    if unix_proxy.is_none() {
        for key in ["source_prefix_v4", "source_prefix_v6"] {
            let help = format!("remove {key}: the source of a Unix socket is a user");
            asked.ask(key, Need::One(SocketKind::Tcp), NO_TCP, &help);
        }
    }
}

/// Who may use the files of Unix sockets; `None` if a key of it has a fault that has been reported.
pub(super) fn access(draft: &ServiceDraft, machine: &Machine<'_>) -> Result<Option<SocketAccess>, Faults> {
    let accounts = &machine.accounts;
    let mut faults = Faults::new();
    for name in [&draft.socket_user, &draft.socket_group].into_iter().flatten() {
        machine.waits_for_account(name.get_ref());
    }
    let user = draft.socket_user.as_ref().map(|name| {
        let number = id(name.get_ref());
        let found = find_user(name, accounts)?.map(|user| user.uid).or(number);
        Ok(found.map(|id| Account { name: name.get_ref().clone(), id }))
    });
    let group = draft.socket_group.as_ref().map(|name| {
        let group = find_group(name, accounts)?;
        Ok(Some(Account { name: name.get_ref().clone(), id: group.gid }))
    });
    let mut keep = |found: Option<Result<Option<Account>, Fault>>| {
        found.transpose().map_err(|fault| faults.push(fault)).ok().flatten().flatten()
    };
    let (user, group) = (keep(user), keep(group));
    if faults.is_empty() {
        // A program that accepts by itself knows what it does.
        let passes_rights = draft.pass_rights.unwrap_or(draft.wait);
        Ok(draft.socket_mode.map(|mode| SocketAccess { user, group, mode, passes_rights }))
    } else {
        Err(faults)
    }
}

/// Abstract names of a service that lets everybody in, or believes everybody.
pub(super) fn open_names(section: &Section<'_>, draft: &ServiceDraft) -> Faults {
    let believes = draft.admission.proxies.iter().any(|proxy| proxy.get_ref().is_local());
    let is_open = believes || section.span("allow").is_none();
    let can_say = !draft.wait;
    let open =
        draft.listen.iter().filter(|address| is_open && matches!(address.get_ref(), Address::Abstract(_)));
    let doubt = |address: &Spanned<Address>| {
        let name = address.get_ref();
        let (message, help) = match believes {
            true => (
                format!(
                    "everybody on this machine may connect to {name} and name any address in a PROXY header"
                ),
                "listen at a path, whose socket_mode says who may connect",
            ),
            false => (
                format!("everybody on this machine may connect to {name}"),
                match can_say {
                    true => "say with allow who may, or listen at a path, whose socket_mode says it",
                    false => "listen at a path, whose socket_mode says who may",
                },
            ),
        };
        Fault::new(address.span(), message).help(help)
    };
    open.map(doubt).collect()
}
