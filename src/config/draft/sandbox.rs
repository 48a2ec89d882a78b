//! `sandbox` as it was written.

use std::ops::Range;
use std::path::Path;

use syscalls::Sysno;
use toml::Spanned;
use toml::de::DeValue;

use crate::config::checked::{AllowedPath, CallSet, Network, SystemCalls};
use crate::config::diagnostic::nearest;
use crate::config::value::{
    Applied, Fault, Faults, TomlValue, choice, collect, decode, one_or_more, parse_size, set, table, text,
};

/// What is written of it.
#[derive(Debug, Default)]
pub(in crate::config) struct SandboxDraft {
    /// `false`.
    pub(in crate::config) is_off: bool,
    pub(in crate::config) read: Option<Vec<Spanned<AllowedPath>>>,
    pub(in crate::config) write: Option<Vec<Spanned<AllowedPath>>>,
    pub(in crate::config) execute: Option<Vec<Spanned<AllowedPath>>>,
    pub(in crate::config) network: Option<Network>,
    pub(in crate::config) system_calls: Option<SystemCalls>,
    pub(in crate::config) calls_span: Range<usize>,
    pub(in crate::config) write_execute: Option<bool>,
    pub(in crate::config) private_tmp: Option<Spanned<Option<u64>>>,
    pub(in crate::config) network_namespace: Option<bool>,
    pub(in crate::config) pid_namespace: Option<Spanned<bool>>,
    pub(in crate::config) no_new_privs: Option<Spanned<bool>>,
    pub(in crate::config) required: Option<bool>,
}

impl SandboxDraft {
    pub(in crate::config) fn says_more(&self) -> bool {
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

    pub(in crate::config) fn private_tmp(&self) -> Option<u64> {
        self.private_tmp.as_ref().and_then(|room| *room.get_ref())
    }

    pub(in crate::config) fn has_pid_namespace(&self) -> bool {
        self.pid_namespace.as_ref().is_some_and(|is_on| *is_on.get_ref())
    }
}

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
