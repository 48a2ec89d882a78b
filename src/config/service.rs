//! A service: what its section says, checked against the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use toml::Spanned;

use super::accounts::{Accounts, Group, Unanswered, User};
use super::diagnostic::nearest;
use super::document::Section;
use super::draft::{KillModeWord, ServiceDraft};
use super::executable::{self, Setting, TooMuch};
use super::files;
use super::lookup::{Obstacle, Root, Runner};
use super::roles;
use super::source::Origin;
use super::value::{Fault, Faults, id};
use super::{
    Address, CredentialStore, Credentials, Identity, Job, KillMode, PassedDemands, Program, ServiceConfig,
    SocketOptions, StderrTarget, UserIds, UserRange, credentials, environment, options, sandbox, sockets,
    wait, warm,
};
use crate::handler::Application;
use crate::sys::process::{self, Resource};

/// The machine that a configuration is checked against.
pub(crate) struct Machine<'a> {
    /// Its users and groups.
    pub(crate) accounts: Accounts,
    /// The program, with its handlers.
    pub(crate) application: &'a Application,
    /// Where relative program paths start, on a command line.
    pub(crate) current: Option<&'a Path>,
    /// Where secrets are.
    pub(crate) credentials: CredentialStore,
    /// Whether preforkd is root there, and may become any other user.
    pub(crate) becomes_others: bool,
    /// Hears what will be waited for, before it is: a file server or another program may never answer.
    pub(crate) waits_for: &'a dyn Fn(fmt::Arguments<'_>),
}

impl<'a> Machine<'a> {
    /// Says that a user or group will be looked up.
    pub(super) fn waits_for_account(&self, name: &str) {
        (self.waits_for)(format_args!("\"{name}\" in /etc/passwd, /etc/group and what getent asks"));
    }

    /// This one, for this program.
    pub(crate) fn with(application: &'a Application) -> Self {
        let (accounts, credentials) = (Accounts::default(), CredentialStore::of_environment());
        let becomes_others = process::may_become_others();
        Machine { accounts, application, current: None, credentials, becomes_others, waits_for: &|_| () }
    }
}

/// The service, or what is wrong with it beyond the faults of single keys; `None` if it is those.
pub(crate) fn resolve(
    name: &str,
    section: &Section<'_>,
    mut draft: ServiceDraft,
    machine: &Machine<'_>,
) -> Result<Option<ServiceConfig>, Faults> {
    (machine.waits_for)(format_args!("what the service {name} names: programs, directories, sockets"));
    let mut faults = Faults::new();
    let mut keep = |fault| faults.push(fault);
    if !section.partial && section.span("listen").is_none() {
        let fault =
            Fault::new(section.header.clone(), format!("service \"{name}\" does not say where it listens"));
        keep(fault.help("add listen = \"127.0.0.1:7007\" or another address"));
    }
    let parents = draft.listen.iter().filter_map(|address| files::socket_parent(address).err());
    parents.map(Fault::of_machine).for_each(&mut keep);

    let user = user_ids(&draft, machine).map_err(|mut found| {
        found.drain(..).map(Fault::of_machine).for_each(&mut keep);
    });
    let runner = match &user {
        Ok(Some(user)) => Runner::User(user),
        Ok(None) => Runner::Preforkd,
        Err(()) => Runner::Anybody,
    };
    let chroot = draft.chroot.as_ref();
    let root = Root { chroot: chroot.map(|path| path.get_ref().as_path()), current: machine.current, runner };
    // It is entered before the change of user.
    let outside = Root { chroot: None, current: None, runner: Runner::Anybody };
    let chroot = chroot.map(|path| files::directory(path, outside)).transpose();
    let broken_chroot = chroot.is_err();
    let chroot = chroot.map_err(Fault::of_machine).map_err(&mut keep).ok().flatten();
    // In a chroot that does not exist, nothing exists; saying so once is enough.
    let working_directory = match &draft.working_directory {
        Some(path) if !broken_chroot => {
            files::directory(path, root).map_err(Fault::of_machine).map_err(&mut keep).ok()
        }
        _ => None,
    };
    let handler = draft.handler.take().and_then(|name| handler(name, machine).map_err(&mut keep).ok());
    let directory = draft.working_directory.as_ref().map_or(Path::new("/"), |path| path.get_ref());
    let environment = environment::of(&draft, machine).unwrap_or_else(|mut found| {
        found.drain(..).map(Fault::of_machine).for_each(&mut keep);
        draft.environment.clone()
    });
    let credentials = credentials::of(&draft, machine).unwrap_or_else(|found| {
        found.into_iter().for_each(&mut keep);
        Credentials::new()
    });
    let setting = Setting { root, environment: &environment, directory };
    let job = if broken_chroot {
        Ok(None)
    } else {
        job(name, section, handler, &draft, (machine.application, setting))
    };
    let job = job.map_err(&mut keep).ok().flatten();
    let sandbox = match &job {
        Some(job) => sandbox::of(section, &draft, job, root).unwrap_or_else(|found| {
            found.into_iter().for_each(&mut keep);
            None
        }),
        None => None,
    };
    let options = match &job {
        Some(job) => options::of(name, section, job, machine).unwrap_or_else(|found| {
            found.into_iter().for_each(&mut keep);
            String::new()
        }),
        None => String::new(),
    };
    let shared = options::shared(job.as_ref(), sandbox.as_ref(), section, machine.application)
        .map_err(&mut keep)
        .unwrap_or_default();
    let socket_access = sockets::access(&draft, machine).unwrap_or_else(|mut found| {
        found.drain(..).map(Fault::of_machine).for_each(&mut keep);
        None
    });
    if matches!(job, Some(Job::Exec(_))) {
        space(section, &draft, &environment).map_err(Fault::of_machine).map_err(&mut keep).ok();
    }
    let kill_mode = kill_mode(section, &draft).map_err(&mut keep).ok().flatten();
    wait::faults(section, &draft).into_iter().for_each(&mut keep);
    let spare = spares(section, &draft, job.as_ref()).map_err(&mut keep).ok().flatten();
    let warm = warm::of(section, &draft, job.as_ref(), setting).unwrap_or_else(|found| {
        found.into_iter().for_each(&mut keep);
        None
    });
    let mut passed = PassedDemands::default();
    match sockets::demands(section, &draft, job.as_ref()) {
        Ok(demands) => passed = demands,
        Err(found) => found.into_iter().for_each(&mut keep),
    }
    let admission = std::mem::take(&mut draft.admission).check(section.origin, machine);
    let admission = admission.unwrap_or_else(|mut found| {
        found.drain(..).for_each(&mut keep);
        None
    });

    if !faults.is_empty() {
        return Err(faults);
    }
    // What is missing now is a key whose fault has been reported.
    let service = || {
        Some(ServiceConfig {
            name: name.to_owned(),
            listen: draft.listen.into_iter().map(Spanned::into_inner).collect(),
            job: job.clone()?,
            options,
            shared,
            starts_threads: options::starts_threads(job.as_ref(), machine.application),
            wait: draft.wait,
            workers: if draft.wait { 1 } else { draft.workers.unwrap_or_else(cpus) },
            spare: spare?,
            warm,
            connections_per_child: draft.connections_per_child?,
            max_connections: draft.max_connections.map(|most| if draft.wait { 1 } else { most })?,
            admission: admission?,
            identity: Identity {
                user: roles::user_of(job.as_ref()?, user.ok()?, machine),
                worker: None,
                chroot,
                working_directory,
                umask: draft.umask?,
                nice: draft.nice,
            },
            environment,
            credentials,
            sandbox,
            limits: draft.limits,
            tree_limits: draft.tree_limits,
            kill_mode: kill_mode?,
            count_bytes: draft.count_bytes?,
            stderr: draft.stderr?,
            records: draft.records?,
            socket: SocketOptions {
                backlog: draft.backlog?,
                nodelay: draft.nodelay?,
                keepalive: draft.keepalive?,
                defer_accept: draft.defer_accept,
                interface: draft.interface,
                freebind: draft.freebind?,
                transparent: draft.transparent?,
                tos: draft.tos,
                mark: draft.mark,
            },
            socket_access: socket_access?,
            passed,
        })
    };
    Ok(service())
}

/// What is no error, and does not do what its writer expects.
pub(crate) fn doubts(
    name: &str,
    section: &Section<'_>,
    draft: &ServiceDraft,
    machine: &Machine<'_>,
) -> Faults {
    let mut doubts = sockets::open_names(section, draft);
    doubts.extend(boundless(name, section, draft));
    doubts.extend(own_wrapper(draft));
    doubts.extend(credentials::unknown(draft, machine));
    doubts
}

/// tcpd(8) runs what its zeroth argument names: under its own name, itself, for ever.
fn own_wrapper(draft: &ServiceDraft) -> Option<Fault> {
    let exec = draft.exec.as_ref()?;
    let is_tcpd = |path: &str| Path::new(path).file_name().is_some_and(|name| name == "tcpd");
    let argv = exec.argv(draft.argv0.as_ref());
    if !is_tcpd(exec.arguments.first()?) || !is_tcpd(argv.first()?) {
        return None;
    }
    let at = draft.argv0.as_ref().map_or_else(|| exec.span.clone(), Spanned::span);
    Some(Fault::new(at, "tcpd runs the program that argv0 names, and here that is tcpd itself, again and again").help(
        "write the program in argv0, and only its arguments after tcpd: exec = [\"/usr/sbin/tcpd\", \"-w\"] with argv0 = \
         \"/usr/sbin/in.fingerd\"",
    ))
}

/// A service that anybody can reach, and one client can take for itself.
fn boundless(name: &str, section: &Section<'_>, draft: &ServiceDraft) -> Option<Fault> {
    // Who tries something on a command line knows where; and no limit is preforkd's where a program accepts by itself.
    if draft.wait
        || matches!(section.origin, Origin::Flags(_))
        || draft.admission.has_bounds()
        || draft.admission.lets_only_neighbours_in()
    {
        return None;
    }
    let is_open = |address: &&Spanned<Address>| match address.get_ref() {
        Address::Tcp(address) => !address.ip().to_canonical().is_loopback(),
        Address::Scoped(..) | Address::Any(_) | Address::Udp(_) => true,
        // The file says who may; of a socket that systemd passes nothing is known.
        Address::Unix(_) | Address::Abstract(_) | Address::Activated(_) => false,
    };
    let open = draft.listen.iter().find(is_open)?;
    let message = format!(
        "service \"{name}\" listens at {} with no limit per source and no deadline: one client can keep all its connections",
        open.get_ref()
    );
    Some(Fault::new(open.span(), message).help(
        "add max_connections_per_source or rate_per_source, or first_byte_timeout, idle_timeout or max_lifetime; or let \
         only your own networks in by allow",
    ))
}

/// The CPUs that sched_setaffinity(2) and the cgroup leave to this process.
fn cpus() -> u16 {
    std::thread::available_parallelism()
        .map_or(1, |count| u16::try_from(count.get()).unwrap_or(1024).min(1024))
}

fn handler(name: Spanned<String>, machine: &Machine<'_>) -> Result<String, Fault> {
    if machine.application.handlers().any(|known| known == name.get_ref()) {
        return Ok(name.into_inner());
    }
    let guess = nearest(name.get_ref(), machine.application.handlers());
    let guess = guess.map(|name| format!("did you mean \"{name}\"? ")).unwrap_or_default();
    let help = format!(
        "{guess}the handlers: {}; a program is run with exec",
        machine.application.list_of_handlers()
    );
    Err(Fault::new(name.span(), format!("there is no handler \"{}\"", name.get_ref())).help(help))
}

/// `None` if the key that says it has a fault of its own.
fn job(
    name: &str,
    section: &Section<'_>,
    handler: Option<String>,
    draft: &ServiceDraft,
    (application, setting): (&Application, Setting<'_>),
) -> Result<Option<Job>, Fault> {
    match (section.span("handler"), section.span("exec")) {
        (Some(handler), Some(exec)) => {
            let later = if handler.start > exec.start { handler } else { exec };
            Err(Fault::new(later, "a service has either handler or exec, not both")
                .help("remove one of the two"))
        }
        (None, None) if section.partial => Ok(None),
        (None, None) => {
            let fault =
                Fault::new(section.header.clone(), format!("service \"{name}\" does not say what it serves"));
            let handler = application.handlers().next().unwrap_or("NAME");
            let what = if application.title.name == "preforkd" { " for a built-in service" } else { "" };
            Err(fault.help(format!("add handler = \"{handler}\"{what}, or exec = [\"/PATH/OF/PROGRAM\"]")))
        }
        (Some(_), None) => match &draft.argv0 {
            Some(argv0) => {
                Err(Fault::new(argv0.span(), "a handler is no program, and has no zeroth argument")
                    .help("remove argv0, or run a program with exec"))
            }
            None if draft.stderr == Some(StderrTarget::Connection) => {
                let at = section.span("stderr").unwrap_or_else(|| section.header.clone());
                let message = "a handler says nothing to stderr that is for its client";
                Err(Fault::new(at, message).help("remove stderr, or run a program with exec"))
            }
            None => Ok(handler.map(Job::Handler)),
        },
        (None, Some(_)) => match &draft.exec {
            Some(exec) => {
                let program = files::program(exec, setting).map_err(Fault::of_machine)?;
                let arguments = exec.argv(draft.argv0.as_ref());
                Ok(draft.connection.map(|passing| Job::Exec(Program { arguments, passing, ..program })))
            }
            None => Ok(None),
        },
    }
}

/// What becomes of what a program leaves behind.
fn kill_mode(section: &Section<'_>, draft: &ServiceDraft) -> Result<Option<KillMode>, Fault> {
    // A datagram server hands what it does to children of its own, and ends.
    let is_written = ["kill_mode", "kill_grace"].into_iter().any(|key| section.span(key).is_some());
    if draft.wait && !is_written && !sandbox::has_own_pids(draft) {
        return Ok(Some(KillMode::Process));
    }
    match (draft.kill_mode, section.span("kill_grace")) {
        (Some(KillModeWord::Process), Some(at)) => {
            let fault =
                Fault::new(at, "with kill_mode = \"process\" nothing is killed that could have a grace");
            Err(fault.help("remove kill_grace, or write kill_mode = \"group\""))
        }
        (Some(KillModeWord::Process), None) => Ok(Some(KillMode::Process)),
        (Some(KillModeWord::Group), _) => Ok(draft.kill_grace.map(|grace| KillMode::Group { grace })),
        (None, _) => Ok(None),
    }
}

/// Arguments and environment of a program must not be more than the kernel passes on.
fn space(
    section: &Section<'_>,
    draft: &ServiceDraft,
    environment: &BTreeMap<String, String>,
) -> Result<(), Fault> {
    let Some(exec) = &draft.exec else { return Ok(()) };
    let limit = draft.limits.iter().find(|limit| limit.kind.resource == Resource::RLIMIT_STACK);
    let own = || process::limits(Resource::RLIMIT_STACK).map_or(u64::MAX, |(soft, _)| soft);
    let stack = limit.map_or_else(own, |limit| limit.value);
    executable::fits(&exec.argv(draft.argv0.as_ref()), environment, stack).map_err(
        |(place, Obstacle { why, help })| {
            let at = match place {
                TooMuch::Arguments => exec.span.clone(),
                TooMuch::Environment => {
                    let keys = ["environment", "environment_file"].into_iter();
                    keys.filter_map(|key| section.span(key)).next().unwrap_or_else(|| section.header.clone())
                }
            };
            Fault::new(at, format!("the program cannot be started: {why}")).help(help)
        },
    )
}

/// How many connection processes are forked ahead. Those that serve more than one connection are spares by nature.
fn spares(section: &Section<'_>, draft: &ServiceDraft, job: Option<&Job>) -> Result<Option<u32>, Fault> {
    let at = || section.span("connections_per_child").unwrap_or_else(|| section.header.clone());
    let wants_spares = draft.spare.is_some_and(|spare| spare > 0)
        || draft.connections_per_child.is_some_and(|connections| connections != 1);
    // What is warm does not accept by itself.
    if wants_spares && !draft.warm.is_wanted() && !draft.admission.proxies.is_empty() {
        let at = section.span("spare").unwrap_or_else(at);
        let message =
            "a spare cannot wait for the header of a proxy: one that does not come would keep others out";
        return Err(
            Fault::new(at, message).help("remove spare and connections_per_child, or proxy_protocol_from")
        );
    }
    match (draft.connections_per_child, draft.spare, job) {
        (None | Some(1), spare, _) => Ok(spare),
        (Some(_), _, Some(Job::Exec(_))) => {
            let message = "a program serves one connection and ends; only handlers can serve more";
            Err(Fault::new(at(), message).help("remove the key, or write 1"))
        }
        (Some(_), Some(0), _) if section.span("spare").is_none() => Ok(Some(8)),
        (Some(_), Some(0), _) => {
            let message = "without spares there is no process that could serve more than one connection";
            Err(Fault::new(at(), message).help("add spare = 8, or remove this key"))
        }
        (Some(_), spare, _) => Ok(spare),
    }
}

/// Who the connection processes become.
fn user_ids(draft: &ServiceDraft, machine: &Machine<'_>) -> Result<Option<UserIds>, Faults> {
    let accounts = &machine.accounts;
    for name in [&draft.user, &draft.group].into_iter().flatten() {
        machine.waits_for_account(name.get_ref());
    }
    let mut faults = Faults::new();
    let group = draft.group.as_ref().map(|name| find_group(name, accounts)).transpose();
    let group = group.unwrap_or_else(|fault| {
        faults.push(fault);
        None
    });
    let ids = match (&draft.user, &group) {
        (None, _) if draft.user_range.is_some() => match range_ids(draft, group, machine) {
            Ok(ids) => ids,
            Err(fault) => {
                faults.push(fault);
                None
            }
        },
        (None, None) => None,
        (None, Some(group)) => Some(UserIds {
            name: group.name.clone(),
            is_named: false,
            group: Some(group.name.clone()),
            uid: process::user_id(),
            gid: group.gid,
            groups: vec![group.gid],
            range: None,
        }),
        (Some(name), _) => match become_user(name, group.as_ref(), draft.group.is_some(), accounts) {
            Ok(ids) => Some(ids),
            Err(fault) => {
                faults.push(fault);
                None
            }
        },
    };
    if faults.is_empty() { Ok(ids) } else { Err(faults) }
}

fn become_user(
    name: &Spanned<String>,
    group: Option<&Group>,
    group_is_given: bool,
    accounts: &Accounts,
) -> Result<UserIds, Fault> {
    let user = find_user(name, accounts)?;
    let (uid, gid) = match (&user, id(name.get_ref())) {
        (Some(user), _) => (user.uid, group.map_or(user.gid, |group| group.gid)),
        // A group that was not found has been reported; the number stands for it meanwhile.
        (None, Some(uid)) if group_is_given => (uid, group.map_or(uid, |group| group.gid)),
        (None, Some(uid)) => {
            let message = format!("user {uid} has no entry in passwd(5) that would tell its group");
            return Err(Fault::new(name.span(), message).help("add group = \"NAME\" or a number"));
        }
        (None, None) => return Err(unknown_user(name, accounts)),
    };
    let mut groups = match user {
        Some(user) => accounts.memberships(&user.name).map_err(|why| unanswered(name, &why))?,
        None => Vec::new(),
    };
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let group = group.map(|group| group.name.clone());
    Ok(UserIds { name: name.get_ref().clone(), is_named: true, group, uid, gid, groups, range: None })
}

/// Why this service cannot have its range of users: somebody else is one of them.
pub(super) fn range_of_others(
    name: &str,
    section: &Section<'_>,
    services: &[ServiceConfig],
) -> Option<Fault> {
    let user = |service: &ServiceConfig| service.identity.user.clone();
    let own = services.iter().find(|service| service.name == name).and_then(user)?;
    own.range?;
    let (span, own) = (section.span("user")?, own.users());
    services.iter().filter(|other| other.name != name).find_map(|other| {
        let users = user(other)?.users();
        let first = *users.start().max(own.start());
        own.contains(&first).then_some(()).filter(|()| users.contains(&first))?;
        let message = format!("user {first} of the range is one of service {}, too", other.name);
        Some(Fault::new(span.clone(), message).help("give each service users of its own"))
    })
}

/// From here on users are other things than people and services.
const FIRST_OF_PEOPLE: u32 = 1000;

/// Whom systemd makes up for `DynamicUser=`, and those that are nobody: "Users, Groups, UIDs and GIDs on systemd Systems".
const NOT_FREE: RangeInclusive<u32> = 61_184..=65_535;

/// A user for each connection.
fn range_ids(
    draft: &ServiceDraft,
    group: Option<Group>,
    machine: &Machine<'_>,
) -> Result<Option<UserIds>, Fault> {
    let Some(range) = &draft.user_range else { return Ok(None) };
    let (first, last) = *range.get_ref();
    let fault = |message: String, help: String| Err(Fault::new(range.span(), message).help(help));
    if first < FIRST_OF_PEOPLE || (first <= *NOT_FREE.end() && last >= *NOT_FREE.start()) {
        let (low, high) = (NOT_FREE.start(), NOT_FREE.end());
        return fault(
            format!(
                "users below {FIRST_OF_PEOPLE} and from {low} to {high} are the system's, systemd's, or nobody's"
            ),
            "take numbers that this machine gives nobody, for example from 70000 on".to_owned(),
        );
    }
    let users = machine.accounts.users();
    if let Some(user) = users.iter().find(|user| (first..=last).contains(&user.uid)) {
        let message = format!("user {} has number {}, which is in the range", user.name, user.uid);
        return fault(
            message,
            "take numbers that this machine gives nobody: what they run is killed".to_owned(),
        );
    }
    let groups = machine.accounts.groups();
    let is_taken = |group: &&Group| draft.group.is_none() && (first..=last).contains(&group.gid);
    if let Some(group) = groups.iter().find(is_taken) {
        let message = format!("group {} has number {}, which is in the range", group.name, group.gid);
        let help = "take numbers that this machine gives nobody, or set group, which is the group of all of them then";
        return fault(message, help.to_owned());
    }
    if let Some(id) = [first, last].into_iter().find(|id| !is_mapped(*id)) {
        let message = format!("the user namespace of preforkd does not have user {id}");
        return fault(message, "take others, or give that container more".to_owned());
    }
    let count = last - first + 1;
    if let Some(most) = draft.max_connections.filter(|most| *most > count) {
        return fault(
            format!(
                "the range has {count} users, and max_connections is {most}: each connection needs one of its own"
            ),
            format!("set max_connections = {count} or lower, or take more users"),
        );
    }
    if draft.kill_mode == Some(KillModeWord::Process) {
        return fault(
            "with a user for each connection, what one leaves behind cannot go on: a later one would be the same user"
                .to_owned(),
            "remove kill_mode, or take one user".to_owned(),
        );
    }
    if !draft.credentials.is_empty() {
        return fault(
            "credentials are for one user, and nobody else can read them".to_owned(),
            "remove credentials, or take one user".to_owned(),
        );
    }
    let with_groups = group.is_none();
    let gid = group.as_ref().map_or(first, |group| group.gid);
    Ok(Some(UserIds {
        name: format!("{first}-{last}"),
        is_named: true,
        uid: first,
        gid,
        groups: group.iter().map(|group| group.gid).collect(),
        group: group.map(|group| group.name),
        range: Some(UserRange { count, with_groups }),
    }))
}

fn unanswered(name: &Spanned<String>, why: &Unanswered) -> Fault {
    Fault::new(name.span(), why.to_string())
        .help("see whom nsswitch.conf(5) has it ask, and try getent on the command line")
}

fn unknown_user(name: &Spanned<String>, accounts: &Accounts) -> Fault {
    let users = accounts.users();
    let message = format!("\"{}\" is no user of this machine", name.get_ref());
    let near = nearest(name.get_ref(), users.iter().map(|user| user.name.as_str()));
    Fault::new(name.span(), message).help(suggestion(near, "users", "/etc/passwd"))
}

/// `None` for a number that has no entry.
pub(super) fn find_user(name: &Spanned<String>, accounts: &Accounts) -> Result<Option<User>, Fault> {
    match accounts.user(name.get_ref()).map_err(|why| unanswered(name, &why))? {
        None if id(name.get_ref()).is_none() => Err(unknown_user(name, accounts)),
        found => Ok(found),
    }
}

/// The id of a user who may be a client.
pub(super) fn client_user(name: &Spanned<String>, machine: &Machine<'_>) -> Result<u32, Fault> {
    machine.waits_for_account(name.get_ref());
    let user = find_user(name, &machine.accounts)?.map(|user| user.uid).or(id(name.get_ref()));
    let uid = user.ok_or_else(|| unknown_user(name, &machine.accounts))?;
    is_seen(name, "user", uid, "/proc/self/uid_map").map(|()| uid)
}

/// The id of a group that a client may have.
pub(super) fn client_group(name: &Spanned<String>, machine: &Machine<'_>) -> Result<u32, Fault> {
    machine.waits_for_account(name.get_ref());
    let gid = find_group(name, &machine.accounts)?.gid;
    is_seen(name, "group", gid, "/proc/self/gid_map").map(|()| gid)
}

/// Whether the user namespace of this process has the user and the group of this number.
pub(super) fn is_mapped(id: u32) -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"].into_iter().all(|map| is_in(id, map))
}

fn is_in(id: u32, map: &str) -> bool {
    let map = std::fs::read_to_string(map).unwrap_or_default();
    let has = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        first.zip(count).is_some_and(|(first, count)| (first..first + count).contains(&id.into()))
    };
    map.trim().is_empty() || map.lines().any(has)
}

/// In a user namespace that does not have it, every client looks like nobody, user_namespaces(7).
fn is_seen(name: &Spanned<String>, what: &str, id: u32, map: &str) -> Result<(), Fault> {
    if is_in(id, map) {
        return Ok(());
    }
    let message =
        format!("preforkd cannot see who is {what} {}: its user namespace does not have it", name.get_ref());
    Err(Fault::new(name.span(), message)
        .help("write PrivateUsers=no into the unit, as the drop-in programs.conf does"))
}

pub(super) fn find_group(name: &Spanned<String>, accounts: &Accounts) -> Result<Group, Fault> {
    if let Some(group) = accounts.group(name.get_ref()).map_err(|why| unanswered(name, &why))? {
        return Ok(group);
    }
    if let Some(gid) = id(name.get_ref()) {
        return Ok(Group { name: gid.to_string(), gid, members: Vec::new() });
    }
    let groups = accounts.groups();
    let message = format!("\"{}\" is no group of this machine", name.get_ref());
    let near = nearest(name.get_ref(), groups.iter().map(|group| group.name.as_str()));
    Err(Fault::new(name.span(), message).help(suggestion(near, "groups", "/etc/group")))
}

fn suggestion(near: Option<&str>, what: &str, file: &str) -> String {
    match near {
        Some(name) => format!("did you mean \"{name}\"? ({what} come from {file} and getent)"),
        None => format!("{what} come from {file} and getent"),
    }
}
