//! What a draft means on this machine: a service, checked.

mod admission;
pub(super) mod control;
mod credentials;
pub(crate) mod environment;
pub(super) mod identity;
mod options;
pub(super) mod roles;
mod sandbox;
mod sockets;
mod wait;
pub(super) mod warm;

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;

use super::address::Address;
use super::checked::{Identity, Job, KillMode, Program, ServiceConfig, SocketOptions, StderrTarget};
use super::diagnostic::nearest;
use super::document::Section;
use super::draft::{KillModeWord, ServiceDraft};
use super::machine::executable::{self, Setting, TooMuch};
use super::machine::lookup::{Obstacle, Root, Runner};
use super::machine::{Machine, files};
use super::source::Origin;
use super::value::{Fault, Faults};
use crate::handler::Application;
use crate::sys::process::{self, Resource};

pub(crate) use options::can_serve;

/// What is wrong with a service, as it is found.
#[derive(Default)]
struct FoundFaults(Faults);

impl FoundFaults {
    fn one<T>(&mut self, found: Result<T, Fault>) -> Option<T> {
        found.map_err(|fault| self.0.push(fault)).ok()
    }

    fn all<T>(&mut self, found: Result<T, Faults>) -> Option<T> {
        found.map_err(|faults| self.0.extend(faults)).ok()
    }

    /// Of what this machine may have later.
    fn one_of_machine<T>(&mut self, found: Result<T, Fault>) -> Option<T> {
        self.one(found.map_err(Fault::of_machine))
    }

    fn all_of_machine<T>(&mut self, found: Result<T, Faults>) -> Option<T> {
        self.all(found.map_err(|faults| faults.into_iter().map(Fault::of_machine).collect()))
    }
}

/// The service, or what is wrong with it beyond the faults of single keys; `None` if it is those.
pub(super) fn resolve(
    name: &str,
    section: &Section<'_>,
    mut draft: ServiceDraft,
    machine: &Machine<'_>,
) -> Result<Option<ServiceConfig>, Faults> {
    (machine.waits_for)(format_args!("what the service {name} names: programs, directories, sockets"));
    let mut found = FoundFaults::default();
    if !section.partial && section.span("listen").is_none() {
        let fault =
            Fault::new(section.header.clone(), format!("service \"{name}\" does not say where it listens"));
        found.0.push(fault.help("add listen = \"127.0.0.1:7007\" or another address"));
    }
    for address in &draft.listen {
        found.one_of_machine(files::socket_parent(address));
    }

    let user = found.all_of_machine(identity::user_ids(&draft, machine));
    let runner = match &user {
        Some(Some(user)) => Runner::User(user),
        Some(None) => Runner::Preforkd,
        None => Runner::Anybody,
    };
    let root = Root {
        chroot: draft.chroot.as_ref().map(|path| path.get_ref().as_path()),
        current: machine.current,
        runner,
    };
    // It is entered before the change of user.
    let outside = Root { chroot: None, current: None, runner: Runner::Anybody };
    let chroot = draft.chroot.as_ref().map(|path| files::directory(path, outside)).transpose();
    // In a chroot that does not exist, nothing exists; saying so once is enough.
    let has_root = chroot.is_ok();
    let chroot = found.one_of_machine(chroot).flatten();
    let working_directory = draft.working_directory.as_ref().filter(|_| has_root);
    let working_directory =
        working_directory.and_then(|path| found.one_of_machine(files::directory(path, root)));
    let handler = draft.handler.take().and_then(|name| found.one(handler(name, machine)));
    let environment = found.all_of_machine(environment::of(&draft, machine));
    let environment = environment.unwrap_or_else(|| draft.environment.clone());
    let credentials = found.all(credentials::of(&draft, machine)).unwrap_or_default();
    let setting = Setting {
        root,
        environment: &environment,
        directory: draft.working_directory.as_ref().map_or(Path::new("/"), |path| path.get_ref()),
    };
    let job = match has_root {
        true => found.one(job(name, section, handler, &draft, (machine.application, setting))).flatten(),
        false => None,
    };
    let sandbox = job.as_ref().and_then(|job| found.all(sandbox::of(section, &draft, job, root))).flatten();
    let options = job.as_ref().and_then(|job| found.all(options::of(name, section, job, machine)));
    let shared = options::shared(job.as_ref(), sandbox.as_ref(), section, machine.application);
    let shared = found.one(shared).unwrap_or_default();
    let socket_access = found.all_of_machine(sockets::access(&draft, machine)).flatten();
    if matches!(job, Some(Job::Exec(_))) {
        found.one_of_machine(space(section, &draft, &environment));
    }
    let kill_mode = found.one(kill_mode(section, &draft)).flatten();
    found.0.extend(wait::faults(section, &draft));
    let spare = found.one(spares(section, &draft, job.as_ref())).flatten();
    let warm = found.all(warm::of(section, &draft, job.as_ref(), setting)).flatten();
    let passed = found.all(sockets::demands(section, &draft, job.as_ref())).unwrap_or_default();
    let admission = std::mem::take(&mut draft.admission).check(section.origin, machine);
    let admission = found.all(admission).flatten();

    if !found.0.is_empty() {
        return Err(found.0);
    }
    // What is missing now is a key whose fault has been reported.
    let service = || {
        Some(ServiceConfig {
            name: name.to_owned(),
            listen: draft.listen.into_iter().map(Spanned::into_inner).collect(),
            job: job.clone()?,
            options: options.unwrap_or_default(),
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
                user: roles::user_of(job.as_ref()?, user?, machine),
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
pub(super) fn doubts(
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
