//! A configuration as it was written: every key decoded, nothing compared yet.

mod admission;
pub(crate) mod keys;
mod limits;
mod penalties;
mod sandbox;
mod supervisor;
mod warm;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::address::{Address, AddressError};
use super::checked::{Keepalive, Limit, OWN_VARIABLES, Passing, StderrTarget, TreeLimits, credentials};
use super::value::{
    self, Applied, Fault, Faults, TomlValue, choice, collect, decode, duration, id, name_or_number,
    one_or_more, set, table, text, whole,
};
use crate::journal::Records;

pub(super) use admission::{CallerDraft, OverloadWord, PolicyDraft};
pub(super) use sandbox::SandboxDraft;
pub(super) use supervisor::{ControlAccessDraft, LogDraft, SupervisorDraft};
use warm::WarmDraft;

/// What the keys of a section said.
#[derive(Debug, Default)]
pub(crate) struct ServiceDraft {
    pub(crate) listen: Vec<Spanned<Address>>,
    pub(crate) handler: Option<Spanned<String>>,
    pub(crate) exec: Option<Exec>,
    pub(crate) argv0: Option<Spanned<String>>,
    pub(crate) connection: Option<Passing>,
    pub(crate) wait: bool,
    pub(crate) workers: Option<u16>,
    pub(crate) spare: Option<u32>,
    pub(super) warm: WarmDraft,
    pub(crate) connections_per_child: Option<u32>,
    pub(crate) max_connections: Option<u32>,
    pub(crate) user: Option<Spanned<String>>,
    /// In place of `user`: first and last of those that it may be.
    pub(crate) user_range: Option<Spanned<(u32, u32)>>,
    pub(crate) group: Option<Spanned<String>>,
    pub(crate) chroot: Option<Spanned<PathBuf>>,
    pub(crate) working_directory: Option<Spanned<PathBuf>>,
    pub(crate) umask: Option<u32>,
    pub(crate) nice: Option<i32>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) environment_file: Vec<Spanned<EnvironmentFile>>,
    pub(crate) credentials: Vec<Spanned<String>>,
    pub(super) sandbox: Option<SandboxDraft>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) tree_limits: TreeLimits,
    pub(crate) stderr: Option<StderrTarget>,
    pub(crate) records: Option<Records>,
    pub(crate) backlog: Option<u32>,
    pub(crate) nodelay: Option<bool>,
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) defer_accept: u32,
    pub(crate) interface: Option<String>,
    pub(crate) freebind: Option<bool>,
    pub(crate) transparent: Option<bool>,
    pub(crate) tos: u8,
    pub(crate) mark: u32,
    pub(crate) socket_user: Option<Spanned<String>>,
    pub(crate) socket_group: Option<Spanned<String>>,
    pub(crate) socket_mode: Option<u32>,
    pub(crate) pass_rights: Option<bool>,
    pub(crate) kill_mode: Option<KillModeWord>,
    pub(crate) kill_grace: Option<Duration>,
    pub(crate) count_bytes: Option<bool>,
    pub(super) admission: PolicyDraft,
}

/// An entry of `environment_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EnvironmentFile {
    pub(crate) path: PathBuf,
    /// It may be missing.
    pub(crate) is_optional: bool,
}

/// A word of `kill_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillModeWord {
    Group,
    Process,
}

/// `exec`.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Where the program is written.
    pub(crate) span: Range<usize>,
    /// argv, not empty.
    pub(crate) arguments: Vec<String>,
}

impl Exec {
    /// What the program finds as its arguments.
    pub(crate) fn argv(&self, argv0: Option<&Spanned<String>>) -> Vec<String> {
        let zeroth = argv0.map(Spanned::get_ref).or(self.arguments.first());
        zeroth.into_iter().chain(self.arguments.iter().skip(1)).cloned().collect()
    }
}

fn spanned<T>(value: &TomlValue<'_>, inner: T) -> Spanned<T> {
    Spanned::new(value.span(), inner)
}

fn listen(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    let entries = one_or_more(value);
    if entries.is_empty() {
        return Err(Fault::new(value.span(), "the list is empty").help("a service listens somewhere").into());
    }
    let mut faults = Faults::new();
    for entry in entries {
        // The good ones are kept beside bad ones, to be compared with those of other services.
        match address(entry) {
            Ok(address) => draft.listen.push(spanned(entry, address)),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn address(value: &TomlValue<'_>) -> Result<Address, Fault> {
    let text = text(value)?;
    text.parse().map_err(|why: AddressError| {
        let why = why.to_string();
        let (what, right) = why.split_once("; ").unwrap_or(("not an address to listen on", &why));
        Fault::new(value.span(), format!("\"{text}\" is {what}")).help(right)
    })
}

fn handler(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.handler, text(value).map(|name| spanned(value, name)))
}

/// What is in it, its handler says.
fn options(_: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    table(value).map(drop)
}

fn exec(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    const RIGHT: &str = "write a list, the program first, as in [\"/usr/bin/rsync\", \"--daemon\"]";
    let DeValue::Array(entries) = value.get_ref() else {
        let message = format!("{} where a list of strings is expected", value.get_ref().type_str());
        return Err(Fault::new(value.span(), message).help(RIGHT).into());
    };
    let arguments = collect(entries.iter(), text)?;
    match (arguments.first().map(String::as_str), entries.iter().next()) {
        (Some(program), Some(first)) if !program.is_empty() => {
            draft.exec = Some(Exec { span: first.span(), arguments });
            Ok(())
        }
        _ => Err(Fault::new(value.span(), "the program is missing").help(RIGHT).into()),
    }
}

fn argv0(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    let name = text(value)?;
    if name.is_empty() {
        let fault = Fault::new(value.span(), "an empty argv0 would leave the program without a name");
        return Err(fault.help("write the name that it is to find, or remove the key").into());
    }
    set(&mut draft.argv0, Ok(spanned(value, name)))
}

fn connection(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(
        &mut draft.connection,
        choice(value, &[("stdio", Passing::Stdio), ("listen-fds", Passing::ListenFds)]),
    )
}

fn wait(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    draft.wait = decode(value)?;
    Ok(())
}

fn environment_file(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    draft.environment_file = collect(one_or_more(value), |entry| {
        let text = text(entry)?;
        let path = text.strip_prefix('-').unwrap_or(&text);
        if !path.starts_with('/') {
            let fault = Fault::new(entry.span(), format!("\"{path}\" is not an absolute path"));
            return Err(fault.help("write a path that starts with /, or with -/ if the file may be missing"));
        }
        Ok(spanned(entry, EnvironmentFile { path: path.into(), is_optional: text.starts_with('-') }))
    })?;
    Ok(())
}

fn credentials(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    let names = collect(one_or_more(value), |entry| {
        let name = text(entry)?;
        if credentials::is_name(&name) {
            return Ok(spanned(entry, name));
        }
        let message = format!("\"{}\" cannot be the name of a credential", name.escape_debug());
        Err(Fault::new(entry.span(), message)
            .help("write the name that LoadCredential= has before its colon"))
    })?;
    draft.credentials = names;
    Ok(())
}

fn connections_per_child(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.connections_per_child, whole::<0, 1_000_000, _>(value))
}

fn user(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    match value.get_ref() {
        DeValue::Table(_) => {
            draft.user = None;
            draft.user_range = Some(spanned(value, user_range(value)?));
            Ok(())
        }
        // As a flag; no user has such a name.
        DeValue::String(text)
            if text.contains('-') && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') =>
        {
            draft.user = None;
            draft.user_range = Some(spanned(value, range_of(value, text)?));
            Ok(())
        }
        _ => {
            draft.user_range = None;
            set(&mut draft.user, name_or_number(value).map(|name| spanned(value, name)))
        }
    }
}

const RIGHT_USER: &str = "write user = { range = \"70000-70999\" }, or a name or a number";

/// First and last.
fn range_of(value: &TomlValue<'_>, text: &str) -> Result<(u32, u32), Fault> {
    let ends = text.split_once('-').and_then(|(first, last)| Some((id(first)?, id(last)?)));
    ends.filter(|(first, last)| first <= last).ok_or_else(|| {
        let message = format!("\"{}\" is no range of users", text.escape_debug());
        Fault::new(value.span(), message).help(RIGHT_USER)
    })
}

/// First and last of `{ range = "70000-70999" }`.
fn user_range(value: &TomlValue<'_>) -> Result<(u32, u32), Faults> {
    let mut range = None;
    for (key, value) in table(value)? {
        if key.get_ref().as_ref() != "range" {
            let message = format!("unknown key \"{}\" in user", key.get_ref());
            return Err(Fault::new(key.span(), message).help(RIGHT_USER).into());
        }
        let text = text(value).map_err(|fault| fault.help(RIGHT_USER))?;
        range = Some(range_of(value, &text)?);
    }
    range.ok_or_else(|| Fault::new(value.span(), "user does not say which range").help(RIGHT_USER).into())
}

fn group(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.group, name_or_number(value).map(|name| spanned(value, name)))
}

fn environment(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    const RIGHT: &str = "a name is not empty and has no \"=\"; a value is a string";
    let variables = collect(table(value)?, |(key, value)| {
        let name = key.get_ref().as_ref();
        if name.is_empty() || name.contains('=') {
            return Err(Fault::new(key.span(), format!("\"{name}\" cannot be a variable")).help(RIGHT));
        }
        if OWN_VARIABLES.contains(&name) {
            let fault = Fault::new(key.span(), format!("{name} is set by preforkd for each connection"));
            return Err(fault.help("choose another name"));
        }
        text(value).map(|text| (name.to_owned(), text)).map_err(|fault| fault.help(RIGHT))
    })?;
    draft.environment = variables.into_iter().collect();
    Ok(())
}

fn limits(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    let mut tree = TreeLimits::default();
    let all = collect(table(value)?, |(key, value)| limits::limit(key, value, &mut tree))?;
    draft.limits = all.into_iter().flatten().collect();
    draft.tree_limits = tree;
    draft.limits.sort_by_key(|limit| limit.kind.name);
    Ok(())
}

fn stderr(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    let words = [
        ("log", StderrTarget::Log),
        ("inherit", StderrTarget::Inherit),
        ("null", StderrTarget::Null),
        ("connection", StderrTarget::Connection),
    ];
    set(&mut draft.stderr, choice(value, &words))
}

fn log(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    let words = [("all", Records::All), ("failures", Records::Failures), ("none", Records::None)];
    set(&mut draft.records, choice(value, &words))
}

fn workers(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.workers, whole::<1, 1024, _>(value))
}

fn spare(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.spare, whole::<0, 1_000_000, _>(value))
}

fn max_connections(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.max_connections, whole::<1, 1_000_000, _>(value))
}

fn umask(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.umask, value::umask(value))
}

fn nice(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.nice, whole::<-20, 19, _>(value))
}

fn backlog(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.backlog, whole::<1, { i32::MAX as i64 }, _>(value))
}

fn nodelay(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.nodelay, decode(value))
}

fn socket_user(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.socket_user, name_or_number(value).map(|name| spanned(value, name)))
}

fn socket_group(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.socket_group, name_or_number(value).map(|name| spanned(value, name)))
}

fn socket_mode(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.socket_mode, value::file_mode(value))
}

fn kill_mode(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    let words = [("group", KillModeWord::Group), ("process", KillModeWord::Process)];
    set(&mut draft.kill_mode, choice(value, &words))
}

fn count_bytes(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.count_bytes, decode(value))
}

fn keepalive(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    const RIGHT: &str =
        "write true, false, or a table as in { idle = \"60s\", interval = \"10s\", count = 5 }";
    let DeValue::Table(entries) = value.get_ref() else {
        let is_on = decode(value).map_err(|fault| fault.help(RIGHT));
        return set(&mut draft.keepalive, is_on.map(|is_on| Keepalive { is_on, ..Keepalive::default() }));
    };
    let mut keepalive = Keepalive { is_on: true, ..Keepalive::default() };
    let mut faults = Faults::new();
    for (key, value) in entries {
        // The kernel takes no more than these: MAX_TCP_KEEPIDLE and the others in its include/net/tcp.h.
        let kept = match key.get_ref().as_ref() {
            "idle" => seconds::<32767>(value).map(|time| keepalive.idle = Some(time)),
            "interval" => seconds::<32767>(value).map(|time| keepalive.interval = Some(time)),
            "count" => whole::<1, 127, _>(value).map(|count| keepalive.count = Some(count)),
            other => Err(Fault::new(key.span(), format!("keepalive has no \"{other}\"")).help(RIGHT)),
        };
        faults.extend(kept.err());
    }
    draft.keepalive = faults.is_empty().then_some(keepalive);
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// A duration of 1 s at least, in whole seconds.
fn seconds<const MOST: u64>(value: &TomlValue<'_>) -> Result<u32, Fault> {
    let time = duration(value)?;
    let seconds = time.as_millis().div_ceil(1000);
    match u32::try_from(seconds) {
        Ok(seconds) if seconds > 0 && u64::from(seconds) <= MOST => Ok(seconds),
        _ => Err(Fault::new(value.span(), "the kernel does not take this time")
            .help(format!("write a time from \"1s\" to \"{MOST}s\""))),
    }
}

fn defer_accept(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    draft.defer_accept = seconds::<3600>(value)?;
    Ok(())
}

fn interface(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    let name = text(value)?;
    // IFNAMSIZ has 16 bytes with its NUL; dev_valid_name() in the kernel's net/core/dev.c.
    if name.is_empty()
        || name.len() > 15
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
    {
        let fault = Fault::new(value.span(), format!("\"{name}\" cannot be a network interface"));
        return Err(fault.help("write its name as ip link shows it, as in \"eth0\"").into());
    }
    draft.interface = Some(name);
    Ok(())
}

fn tos(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    // netinet/ip.h; systemd.socket(5) has the same words.
    const WORDS: [(&str, u8); 4] =
        [("low-delay", 16), ("throughput", 8), ("reliability", 4), ("low-cost", 2)];
    draft.tos = match value.get_ref() {
        DeValue::String(text) => match text.parse() {
            Ok(number) => number,
            Err(_) => choice(value, &WORDS)?,
        },
        _ => whole::<0, 255, _>(value)?,
    };
    Ok(())
}

fn mark(draft: &mut ServiceDraft, value: &TomlValue<'_>) -> Applied {
    draft.mark = whole::<0, { u32::MAX as i64 }, _>(value)?;
    Ok(())
}
