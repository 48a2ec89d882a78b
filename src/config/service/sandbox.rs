//! `sandbox`: what a connection process may not do, whoever has taken it over.

use std::path::Path;

use toml::Spanned;

use crate::config::address::Address;
use crate::config::checked::{
    AllowedFiles, AllowedPath, CallSet, Job, Network, PRIVATE_DIRECTORIES, Sandbox, SystemCalls,
};
use crate::config::document::Section;
use crate::config::draft::{KillModeWord, SandboxDraft, ServiceDraft};
use crate::config::machine::lookup::{self, Root};
use crate::config::value::{Fault, Faults};

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
    let message = format!("cannot allow {}{}: {}", name.display(), root.inside(), lookup::reason(&error));
    Some(
        Fault::new(path.span(), message)
            .help("correct the path, or write \"-\" before it if it may be missing")
            .of_machine(),
    )
}
