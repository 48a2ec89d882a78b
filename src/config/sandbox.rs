//! `sandbox`: what a connection process may not do, whoever has taken it over.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use syscalls::Sysno;
use toml::Spanned;
use toml::de::DeValue;

use super::diagnostic::nearest;
use super::document::Section;
use super::draft::{KillModeWord, ServiceDraft};
use super::lookup::Root;
use super::value::{
    Applied, Fault, Faults, TomlValue, choice, collect, decode, one_or_more, parse_size, set, table, text,
};
use super::{Address, Job};

/// What a connection process may not do. With any of it, it gains no privileges by an exec, prctl(2),
/// `PR_SET_NO_NEW_PRIVS`, and a wall is between it and its siblings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// The files that it may use; `None` leaves that to their permissions.
    pub(crate) files: Option<AllowedFiles>,
    /// Whom it may call.
    pub(crate) network: Network,
    /// It serves datagrams: each answer comes from a socket that has to be bound.
    pub(crate) serves_datagrams: bool,
    /// What it may ask the kernel for.
    pub(crate) system_calls: SystemCalls,
    /// Whether it may execute memory that it has written.
    pub(crate) write_execute: bool,
    /// How many bytes each of [`PRIVATE_DIRECTORIES`] may take, if its service has its own.
    pub(crate) private_tmp: Option<u64>,
    /// Whether it finds a network without anybody in it.
    pub(crate) network_namespace: bool,
    /// Whether it has a namespace of processes, in which all end with it.
    pub(crate) pid_namespace: bool,
    /// Whether a kernel that cannot do all of it is an error.
    pub(crate) required: bool,
}

/// Files and directories with all that is below them, as they are named inside `chroot`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AllowedFiles {
    /// To be read.
    pub(crate) read: Vec<AllowedPath>,
    /// To be read, written, made and removed.
    pub(crate) write: Vec<AllowedPath>,
    /// To be read and executed.
    pub(crate) execute: Vec<AllowedPath>,
}

/// An entry of a list of paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AllowedPath {
    pub(crate) path: PathBuf,
    /// It may be missing.
    pub(crate) is_optional: bool,
}

/// Whom a connection process may call, besides the client that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    /// Nobody.
    None,
    /// Others, but none may call it.
    Client,
    /// Others, and they it.
    Any,
}

/// What a connection process may ask the kernel for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SystemCalls {
    pub(crate) base: CallSet,
    /// Besides what the base allows, by name.
    pub(crate) allow: Vec<String>,
    /// Not, though the base allows it.
    pub(crate) deny: Vec<String>,
}

/// Sets of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CallSet {
    /// The few that a handler needs; whoever asks for another is killed.
    Handler,
    /// Those that services need; what only administers the machine, or is the usual way out of a cage, fails.
    Service,
    /// All.
    Any,
}

/// What is written of it.
#[derive(Debug, Default)]
pub(crate) struct SandboxDraft {
    /// `false`.
    is_off: bool,
    read: Option<Vec<Spanned<AllowedPath>>>,
    write: Option<Vec<Spanned<AllowedPath>>>,
    execute: Option<Vec<Spanned<AllowedPath>>>,
    network: Option<Network>,
    system_calls: Option<SystemCalls>,
    calls_span: Range<usize>,
    write_execute: Option<bool>,
    private_tmp: Option<Spanned<Option<u64>>>,
    network_namespace: Option<bool>,
    pid_namespace: Option<Spanned<bool>>,
    no_new_privs: Option<Spanned<bool>>,
    required: Option<bool>,
}

/// Where temporary files are, file-hierarchy(7).
pub(crate) const PRIVATE_DIRECTORIES: [&str; 2] = ["/tmp", "/var/tmp"];

/// What a private one of them may take if nothing else is written.
const PRIVATE_BYTES: u64 = 64 << 20;

/// With less there would be no room for anything.
const LEAST_PRIVATE_BYTES: u64 = 1 << 20;

/// The keys of the table.
const KEYS: [&str; 11] = [
    "read",
    "write",
    "execute",
    "network",
    "system_calls",
    "write_execute",
    "private_tmp",
    "network_namespace",
    "pid_namespace",
    "no_new_privs",
    "required",
];

/// `sandbox`
pub(super) fn sandbox(draft: &mut Option<SandboxDraft>, value: &TomlValue<'_>) -> Applied {
    let mut new = SandboxDraft::default();
    if let DeValue::Boolean(false) = value.get_ref() {
        *draft = Some(SandboxDraft { is_off: true, ..new });
        return Ok(());
    }
    let entries = table(value).map_err(|mut faults| {
        let right = "write a table, as in sandbox = { network = \"none\" }, or false for no sandbox at all";
        faults.drain(..).map(|fault| fault.help(right)).collect::<Faults>()
    })?;
    let mut faults = Faults::new();
    for (key, value) in entries {
        let kept = match key.get_ref().as_ref() {
            "read" => paths(value).map(|paths| new.read = Some(paths)),
            "write" => paths(value).map(|paths| new.write = Some(paths)),
            "execute" => paths(value).map(|paths| new.execute = Some(paths)),
            "network" => set(
                &mut new.network,
                choice(value, &[("none", Network::None), ("client", Network::Client), ("any", Network::Any)]),
            ),
            "system_calls" => {
                new.calls_span = value.span();
                system_calls(value).map(|calls| new.system_calls = Some(calls))
            }
            "write_execute" => set(&mut new.write_execute, decode(value)),
            "no_new_privs" => {
                set(&mut new.no_new_privs, decode(value).map(|is_on| Spanned::new(value.span(), is_on)))
            }
            "required" => set(&mut new.required, decode(value)),
            "private_tmp" => {
                set(&mut new.private_tmp, private_tmp(value).map(|room| Spanned::new(value.span(), room)))
            }
            "network_namespace" => set(&mut new.network_namespace, decode(value)),
            "pid_namespace" => {
                set(&mut new.pid_namespace, decode(value).map(|is_on| Spanned::new(value.span(), is_on)))
            }
            name => {
                let help = match nearest(name, KEYS) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("the keys of sandbox are {}", KEYS.join(", ")),
                };
                Err(Fault::new(key.span(), format!("unknown key \"{name}\" in sandbox")).help(help).into())
            }
        };
        faults.extend(kept.err().into_iter().flatten());
    }
    *draft = Some(new);
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn paths(value: &TomlValue<'_>) -> Result<Vec<Spanned<AllowedPath>>, Faults> {
    collect(one_or_more(value), |entry| {
        let text = text(entry)?;
        let path = text.strip_prefix('-').unwrap_or(&text);
        if !path.starts_with('/') {
            let fault = Fault::new(entry.span(), format!("\"{path}\" is not an absolute path"));
            return Err(fault.help("write a path that starts with /, or with -/ if it may be missing"));
        }
        if Path::new(path).starts_with("/proc/self") || Path::new(path).starts_with("/proc/thread-self") {
            let fault = Fault::new(
                entry.span(),
                format!("{path} is preforkd's own at the time when the rules are made"),
            );
            return Err(
                fault.help("write \"/proc\": of other processes it has little for who is in a sandbox")
            );
        }
        let allowed = AllowedPath { path: path.into(), is_optional: text.starts_with('-') };
        Ok(Spanned::new(entry.span(), allowed))
    })
}

/// `false`, `true` or how much there is room for.
fn private_tmp(value: &TomlValue<'_>) -> Result<Option<u64>, Fault> {
    let wrong = |message: String| {
        Err(Fault::new(value.span(), message)
            .help("write true, false, or a size from 1M, as in \"256M\", for each of /tmp and /var/tmp"))
    };
    match value.get_ref() {
        DeValue::Boolean(false) => Ok(None),
        DeValue::Boolean(true) => Ok(Some(PRIVATE_BYTES)),
        DeValue::String(text) => match parse_size(text) {
            Some(bytes) if bytes >= LEAST_PRIVATE_BYTES => Ok(Some(bytes)),
            _ => wrong(format!("\"{text}\" is no size of a directory")),
        },
        other => wrong(format!("{} where a boolean or a size is expected", other.type_str())),
    }
}

const BASES: [(&str, CallSet); 3] =
    [("handler", CallSet::Handler), ("service", CallSet::Service), ("any", CallSet::Any)];

fn system_calls(value: &TomlValue<'_>) -> Result<SystemCalls, Faults> {
    let mut base = CallSet::Service;
    let (mut allow, mut deny) = (Vec::new(), Vec::new());
    let DeValue::Table(entries) = value.get_ref() else {
        return Ok(SystemCalls { base: choice(value, &BASES)?, allow, deny });
    };
    let mut faults = Faults::new();
    for (key, value) in entries {
        let kept = match key.get_ref().as_ref() {
            "base" => choice(value, &BASES).map(|found| base = found).map_err(Faults::from),
            "allow" => names(value).map(|names| allow = names),
            "deny" => names(value).map(|names| deny = names),
            name => {
                let fault = Fault::new(key.span(), format!("unknown key \"{name}\" in system_calls"));
                Err(fault.help("the keys are base, allow and deny").into())
            }
        };
        faults.extend(kept.err().into_iter().flatten());
    }
    if faults.is_empty() { Ok(SystemCalls { base, allow, deny }) } else { Err(faults) }
}

/// Names of system calls that this machine knows.
fn names(value: &TomlValue<'_>) -> Result<Vec<String>, Faults> {
    collect(one_or_more(value), |entry| {
        let name = text(entry)?;
        if name.parse::<Sysno>().is_ok() {
            return Ok(name);
        }
        let help = match nearest(&name, Sysno::iter().map(|call| call.name())) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "syscalls(2) has their names".to_owned(),
        };
        Err(Fault::new(entry.span(), format!("there is no system call \"{name}\"")).help(help))
    })
}

/// The sandbox of a service: what is written, and what holds where nothing is.
pub(super) fn of(
    section: &Section<'_>,
    draft: &ServiceDraft,
    job: &Job,
    root: Root<'_>,
) -> Result<Option<Sandbox>, Faults> {
    let written = draft.sandbox.as_ref();
    let is_off = written.is_some_and(|written| written.is_off);
    let gains_privileges =
        written.and_then(|written| written.no_new_privs.as_ref()).filter(|is_on| !*is_on.get_ref());
    if let (Some(written), Some(at)) = (written, gains_privileges) {
        return match written.says_more() {
            false => Ok(None),
            true => Err(Fault::new(
                at.span(),
                "a process that may gain privileges cannot be kept in a sandbox: the kernel forbids it",
            )
            .help("remove no_new_privs, or everything else in sandbox")
            .into()),
        };
    }
    if is_off {
        return Ok(None);
    }
    let mut sandbox = default(job);
    let may_be_one =
        |address: &Spanned<Address>| matches!(address.get_ref(), Address::Udp(_) | Address::Activated(_));
    sandbox.serves_datagrams = draft.wait && draft.listen.iter().any(may_be_one);
    let Some(written) = written else { return Ok(Some(sandbox)) };
    sandbox.required = written.required.unwrap_or(true);
    sandbox.network = written.network.unwrap_or(sandbox.network);
    sandbox.write_execute = written.write_execute.unwrap_or(sandbox.write_execute);
    sandbox.private_tmp = written.private_tmp();
    sandbox.network_namespace = written.network_namespace.unwrap_or(false);
    sandbox.pid_namespace = written.has_pid_namespace();
    let mut faults = Faults::new();
    if let Some(calls) = &written.system_calls {
        if calls.base == CallSet::Handler && matches!(job, Job::Exec(_)) {
            let at = if written.calls_span.is_empty() {
                section.header.clone()
            } else {
                written.calls_span.clone()
            };
            let message = "with the system calls of a handler no program could even be started";
            faults.push(Fault::new(at, message).help("write \"service\", and deny what it need not have"));
        }
        sandbox.system_calls = calls.clone();
    }
    let lists = [&written.read, &written.write, &written.execute];
    if lists.iter().any(|list| list.is_some()) {
        let [read, write, mut execute] = lists.map(|list| {
            let list = list.iter().flatten();
            faults.extend(list.clone().filter_map(|path| missing(path, root)));
            list.map(|path| path.get_ref().clone()).collect::<Vec<_>>()
        });
        if let Job::Exec(program) = job {
            execute.push(AllowedPath::of(&program.path));
        }
        sandbox.files = Some(AllowedFiles { read, write, execute });
    }
    faults.extend(left_behind(written, draft));
    faults.extend(covered(written, draft, job));
    if faults.is_empty() { Ok(Some(sandbox)) } else { Err(faults) }
}

/// Whether each of its processes is in a namespace of its own.
pub(super) fn has_own_pids(draft: &ServiceDraft) -> bool {
    draft.sandbox.as_ref().is_some_and(SandboxDraft::has_pid_namespace)
}

/// With a namespace of processes, what a program leaves behind ends with it.
fn left_behind(written: &SandboxDraft, draft: &ServiceDraft) -> Option<Fault> {
    let at = written.pid_namespace.as_ref().filter(|is_on| *is_on.get_ref())?.span();
    let key = match (draft.kill_mode, draft.kill_grace) {
        (Some(KillModeWord::Process), _) => "kill_mode = \"process\"",
        (_, Some(grace)) if !grace.is_zero() => "kill_grace",
        _ => return None,
    };
    let message = "what a program leaves behind ends with its namespace of processes, at once";
    Some(Fault::new(at, message).help(format!("remove pid_namespace, or {key}")))
}

/// What would not be found any more below a private directory.
fn covered(written: &SandboxDraft, draft: &ServiceDraft, job: &Job) -> Faults {
    let mut faults = Faults::new();
    let Some(at) = written.private_tmp.as_ref().filter(|room| room.get_ref().is_some()) else {
        return faults;
    };
    let is_covered = |path: &Path| {
        PRIVATE_DIRECTORIES.iter().any(|covered| path.starts_with(covered) && path != Path::new(covered))
    };
    let message = |path: &Path| format!("private_tmp hides {}", path.display());
    let help = "have it somewhere else, or remove private_tmp";
    let program = match job {
        Job::Exec(program) => Some(&program.path),
        Job::Handler(_) => None,
    };
    let hidden = program
        .into_iter()
        .chain(draft.working_directory.as_ref().map(Spanned::get_ref))
        .filter(|path| is_covered(path));
    faults.extend(hidden.map(|path| Fault::new(at.span(), message(path)).help(help)));
    let lists = [&written.read, &written.write, &written.execute].into_iter().flatten().flatten();
    let hidden = lists.filter(|path| is_covered(&path.get_ref().path) && !path.get_ref().is_optional);
    faults.extend(hidden.map(|path| Fault::new(path.span(), message(&path.get_ref().path)).help(help)));
    faults
}

impl SandboxDraft {
    fn says_more(&self) -> bool {
        self.read.is_some()
            || self.write.is_some()
            || self.execute.is_some()
            || self.network.is_some_and(|network| network != Network::Any)
            || self.system_calls.as_ref().is_some_and(|calls| calls.base != CallSet::Any)
            || self.write_execute == Some(false)
            || self.private_tmp().is_some()
            || self.network_namespace == Some(true)
            || self.has_pid_namespace()
    }

    fn private_tmp(&self) -> Option<u64> {
        self.private_tmp.as_ref().and_then(|room| *room.get_ref())
    }

    fn has_pid_namespace(&self) -> bool {
        self.pid_namespace.as_ref().is_some_and(|is_on| *is_on.get_ref())
    }
}

/// What holds where nothing is written. It is not required: it must not keep a service down on an older kernel.
fn default(job: &Job) -> Sandbox {
    let calls = |base| SystemCalls { base, allow: Vec::new(), deny: Vec::new() };
    match job {
        Job::Handler(_) => Sandbox {
            files: Some(AllowedFiles::default()),
            network: Network::None,
            serves_datagrams: false,
            system_calls: calls(CallSet::Service),
            write_execute: false,
            private_tmp: None,
            network_namespace: false,
            pid_namespace: false,
            required: false,
        },
        Job::Exec(_) => Sandbox {
            files: None,
            network: Network::Any,
            serves_datagrams: false,
            system_calls: calls(CallSet::Service),
            write_execute: true,
            private_tmp: None,
            network_namespace: false,
            pid_namespace: false,
            required: false,
        },
    }
}

fn missing(path: &Spanned<AllowedPath>, root: Root<'_>) -> Option<Fault> {
    let AllowedPath { path: name, is_optional } = path.get_ref();
    let error = std::fs::metadata(root.outside(name)).err().filter(|_| !*is_optional)?;
    let message =
        format!("cannot allow {}{}: {}", name.display(), root.inside(), super::lookup::reason(&error));
    Some(
        Fault::new(path.span(), message)
            .help("correct the path, or write \"-\" before it if it may be missing")
            .of_machine(),
    )
}

impl AllowedFiles {
    /// Everything.
    pub(crate) fn root() -> Self {
        AllowedFiles { read: vec![AllowedPath::of(Path::new("/"))], ..AllowedFiles::default() }
    }

    /// All of them with what may be done to them.
    pub(crate) fn lists(&self) -> [(FileUse, &[AllowedPath]); 3] {
        [(FileUse::Read, &self.read), (FileUse::Write, &self.write), (FileUse::Execute, &self.execute)]
    }
}

/// What may be done to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileUse {
    Read,
    Write,
    Execute,
}

impl AllowedPath {
    /// This one, which has to be there.
    pub(crate) fn of(path: &Path) -> Self {
        AllowedPath { path: path.to_owned(), is_optional: false }
    }

    /// Where it is outside.
    pub(crate) fn outside(&self, chroot: Option<&Path>) -> PathBuf {
        match chroot {
            Some(root) => root.join(self.path.strip_prefix("/").unwrap_or(&self.path)),
            None => self.path.clone(),
        }
    }
}
